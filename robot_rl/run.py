"""The folder of one training run, and what it takes to build its parts again.

DIR/run.json            the command, every resolved config, versions, the commit: enough to repeat the run
DIR/demos.zarr          demonstrations, where the run recorded its own
DIR/metrics.csv         one row an episode; DIR/tensorboard/ or DIR/wandb/ has the same numbers
DIR/checkpoints/<step>/ agent.ckpt and replay.npz; the two newest are kept
DIR/summary.json        what came out
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robot_rl import intervention
from robot_rl.config import as_json, check, choice, number, override, restore
from robot_rl.files import disk_errors, read_json, write_json
from robot_rl.find import find
from robot_rl.trackers import TRACKERS

if TYPE_CHECKING:
    import gymnasium as gym

    from robot_rl.spaces import Encoder
    from robot_rl.types import Agent

FORMAT = 1
GYM = "gym"  # the world of an environment that is not ours
OWN = ("agent", "train", "intervention", "teleop")  # sections of settings that are the run's
WORLD = ("task", "arm", "guard", "energy", "lab")  # and those that build.py takes
_RESTORE = "restore it from a copy, or train again into another folder"
_PACKAGES = ("robot-rl", "numpy", "jax", "flax", "optax", "mujoco", "gymnasium", "zarr")


@dataclass(frozen=True)
class TrainConfig:
    """The training itself, whatever the task and the agent."""

    steps: int = number(20_000, 1, 10**10, "environment steps; gradient updates for an agent that learns offline")
    seed: int = number(0, 0, 2**63 - 1)
    eval_episodes: int = number(100, 0, 10**6, "at the end, with deterministic actions")
    eval_every: int = number(0, 0, 10**10, "steps between evaluations on the way; 0: only at the end")
    eval_every_episodes: int = number(20, 1, 10**6, "of each evaluation on the way")
    checkpoint_every: int = number(5_000, 1, 10**10, "steps; saved at the end of the episode")
    log_every: int = number(500, 1, 10**9, "updates per row of metrics.csv, offline; online a row is an episode")
    replay_capacity: int = number(200_000, 1, 10**9, "transitions")
    demo_episodes: int = number(20, 1, 10**6, "recorded where the agent wants demonstrations and none are given")
    lead_steps: int = number(64, 1, 10**9, "environment steps that twins may be ahead of the learner, where apart")
    bank_share: float = number(0.0, 0.0, 0.95, "of episodes that begin along a demonstration while none succeeds; sim")
    bank_until: float = number(0.9, 0.01, 1.0, "success rate of ordinary starts at which that share has fallen to 0")
    bank_focus: float = number(3.0, 0.0, 100.0, "how much it prefers starts that fail; 0: all alike")
    bank_groups: int = number(8, 1, 1000, "parts of the way whose success is told apart")
    ask_after: int = number(20, 1, 10**6, "failed episodes of a role in a row after which a pair asks a person")
    window: int = number(20, 1, 10**6, "training episodes in the rolling success rate")
    tracker: str = choice("tensorboard", TRACKERS, "where the rows of metrics.csv go besides")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Run:
    """What was chosen. ``world`` is "gym" where ``task`` is the id of an environment from outside."""

    task: str
    arm: str
    world: str
    agent: str
    agent_config: Any
    train: TrainConfig
    settings: tuple[str, ...] = ()  # of task and arm, such as "task.max_steps=50"
    demos: str | None = None  # None: the run records its own
    intervention: intervention.Config = field(default_factory=intervention.Config)
    teleop: Any = None  # Config of the device that ``intervention`` names

    @property
    def seed(self) -> int:
        return self.train.seed

    @property
    def demo_share(self) -> float:
        return float(self.agent_config.demo_share)

    @property
    def render_mode(self) -> str | None:
        """Of an environment that somebody intervenes in: twins are drawn for a person who watches them."""
        return "rgb_array" if self.intervention.view_port and self.world == "sim" else None

    @property
    def pretrain_calls(self) -> int:
        """How often the agent is updated before the first step, each time with ``utd_ratio`` updates."""
        if self.offline or not self.demo_share:
            return 0
        return -(-int(self.agent_config.pretrain_updates) // int(self.agent_config.utd_ratio))

    @property
    def offline(self) -> bool:
        """Whether the environment is only used to evaluate."""
        return not self.agent_config.online


def choose(
    task: str, arm: str, world: str, agent: str, train: TrainConfig, settings: Sequence[str] = (),
    demos: str | None = None, teleop: Any = None,
) -> Run:  # fmt: skip
    """A Run with ``settings`` such as "agent.utd_ratio=8" applied. ``teleop``: the lab's device, used where it is the
    one that intervenes.

    Raises LookupError for an unknown name and ValueError for a setting that cannot be taken, naming the valid ones.
    """
    from robot_rl.build import split_settings

    changes = split_settings(settings, OWN if world == GYM else (*OWN, *WORLD))
    own = {"agent": find("robot_rl.agents", agent).Config(), "train": train, "intervention": intervention.Config()}
    for section, config in own.items():
        own[section] = _override(section, config, changes[section])
    device = choose_device(own["intervention"].by, teleop, changes["teleop"])
    rest = tuple(f"{section}.{text}" for section in WORLD for text in changes.get(section, []))
    path = str(Path(demos).resolve()) if demos else None
    return Run(task, arm, world, agent, own["agent"], own["train"], rest, path, own["intervention"], device)


def choose_device(by: str, lab: Any, changes: Sequence[str]) -> Any:
    """The Config of the device ``by``: as the ``lab``'s rig has it (``rig.Device``), or its default, with ``changes``
    such as "frame=tool"; None where nobody, or a script, intervenes. Raises LookupError and ValueError."""
    config = intervention.device_config(by)
    if config is None and changes:
        raise ValueError(f"setting 'teleop.{changes[0]}': nobody uses a device; set intervention.by to one")
    if lab is not None and lab.kind == by:
        config = lab.config
    return None if config is None else _override("teleop", config, changes)


def _override(section: str, config: Any, changes: Sequence[str]) -> Any:
    try:
        return override(config, changes)
    except ValueError as error:
        raise ValueError(f"{section}: {error}") from None


@dataclass(frozen=True)
class Spaces:
    """What a learner knows of an environment that only its actors have."""

    observation_space: Any
    action_space: Any

    @property
    def unwrapped(self) -> Spaces:
        return self

    def close(self) -> None:
        """There is nothing to close."""


def make_spaces(run: Run) -> Spaces:
    """Of a task of ours, without its arm."""
    from robot_rl import build

    task = build.make_task(run.task, run.arm, run.world, run.settings)
    return Spaces(task.observation_space, task.action_space)


def make_env(run: Run, render_mode: str | None = None, beside: gym.Env | None = None) -> gym.Env:
    """The environment of ``run``; ``beside`` another whose arm and world it shares."""
    if run.world == GYM:
        from robot_rl.gym_envs import make_gym

        return make_gym(run.task, render_mode)
    from robot_rl import build

    return build.make_env(run.task, run.arm, run.world, run.settings, render_mode, beside=beside)


def make_agent(run: Run, env: gym.Env | Spaces) -> tuple[Encoder, Agent]:
    """A fresh agent of ``run`` for ``env``, and the encoder between the two."""
    from robot_rl.spaces import Encoder

    encoder = Encoder.from_space(env.observation_space)
    module = find("robot_rl.agents", run.agent)
    return encoder, module.make(run.agent_config, encoder.space, env.action_space, run.seed)


def is_pair(folder: Path) -> bool:
    """Whether ``folder`` holds two roles that take turns (pair.py), not a single run."""
    return (folder / "pair.json").is_file()


def check_new(folder: Path) -> None:
    """Raises FileExistsError where there is something in ``folder`` already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        go_on = f", or go on with it: robot-rl train --resume {shlex.quote(str(folder))}"
        raise FileExistsError(
            f"{folder} exists and is not empty: give another --out{go_on if (folder / 'run.json').is_file() else ''}"
        )


def create(folder: Path, run: Run, **more: Any) -> None:
    """Make the run folder with its ``run.json``, which ``more`` goes into as well. Raises as ``check_new`` does,
    touching nothing."""
    check_new(folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "run.json", {"format": FORMAT, **describe(run), **origin(), **more})


def describe(run: Run) -> dict[str, Any]:
    """What was chosen, as JSON values: what ``from_description`` makes the Run of again."""
    chosen = {name: getattr(run, name) for name in ("task", "arm", "world", "agent", "settings", "demos", "seed")}
    return {**chosen, "configs": configs(run)}


def origin() -> dict[str, Any]:
    """Where results come from: the command, the versions, the commit, the machine and the time."""
    return {
        "command": shlex.join(sys.argv),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "git_commit": _git_commit(),
        "platform": platform.platform(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def extend(folder: Path, train: TrainConfig) -> None:
    """Write another TrainConfig into ``run.json``."""
    path = folder / "run.json"
    values = read_json(path, _RESTORE)
    values["configs"]["train"] = dataclasses.asdict(train)
    write_json(path, values)


def configs(run: Run) -> dict[str, Any]:
    """Every resolved config by name, as JSON values."""
    own = {"agent": dataclasses.asdict(run.agent_config), "train": dataclasses.asdict(run.train)}
    own["intervention"] = dataclasses.asdict(run.intervention)
    if run.teleop is not None:
        own["teleop"] = as_json(run.teleop)
    if run.world == GYM:
        return own
    from robot_rl import build

    made = build.make_configs(run.task, run.arm, run.world, run.settings)
    return {section: as_json(config) for section, config in made.items()} | own


def load(folder: Path) -> Run:
    """The Run of a folder. Raises FileNotFoundError or ValueError that names the file and the remedy."""
    path = folder / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a run folder (it has no run.json): give one that `train --out` made")
    values = read_json(path, _RESTORE)
    if values.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {values.get('format')}, this version reads {FORMAT}: use the version it names"
        )
    return from_description(values, str(path))


def from_description(values: Mapping[str, Any], source: str) -> Run:
    """The Run of ``describe``; raises ValueError that names ``source`` where it is none."""
    try:
        agent_config = find("robot_rl.agents", values["agent"]).Config()
        interventions = restore(intervention.Config, values["configs"].get("intervention", {}))
        teleop = intervention.device_config(interventions.by)
        return Run(
            task=values["task"],
            arm=values["arm"],
            world=values["world"],
            agent=values["agent"],
            agent_config=restore(type(agent_config), values["configs"]["agent"]),
            train=restore(TrainConfig, values["configs"]["train"]),
            settings=_as_settings(values["configs"]),
            demos=values["demos"],
            intervention=interventions,
            teleop=None if teleop is None else restore(type(teleop), values["configs"]["teleop"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{source} is damaged ({error!r}): train again into another folder") from error
    except (ValueError, LookupError) as error:
        raise ValueError(
            f"{source} does not fit this version of robot-rl ({error}): use the version it names"
        ) from error


def _as_settings(saved: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Every saved value as a setting, so that a default that has changed since does not change an old run."""

    def text(value: Any) -> str:
        return ",".join(map(text, value)) if isinstance(value, list) else str(value)

    return tuple(
        f"{section}.{name}={text(value)}" for section in WORLD for name, value in saved.get(section, {}).items()
    )


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of a run folder, oldest first."""
    return sorted(
        (path for path in folder.glob("checkpoints/*") if path.name.isdigit()), key=lambda path: int(path.name)
    )


def load_agent(
    folder: Path,
    checkpoint: Path | None = None,
    render_mode: str | None = None,
    settings: Sequence[str] = (),
    world: str | None = None,
    beside: gym.Env | None = None,
) -> tuple[Run, gym.Env, Encoder, Agent]:
    """Run, environment (``beside`` another, as in ``make_env``), encoder and trained agent of a run folder, from its
    newest checkpoint or the one given.

    ``settings`` such as "energy.enforce=false", and another ``world``, change the environment from what the agent was
    trained in; of the run's own settings only the task's hold in another world. Raises FileNotFoundError where there is
    no checkpoint, and ValueError for that of another task or agent.
    """
    from robot_rl.checkpoint import load as load_checkpoint

    run = load(folder)
    if settings and run.world == GYM:
        raise ValueError(f"setting '{settings[0]}': {run.task} is a Gymnasium environment and takes no settings")
    if world not in (None, run.world):
        if run.world == GYM:
            raise ValueError(f"--world {world}: {run.task} is a Gymnasium environment and has no other world")
        run = replace(run, world=world, settings=tuple(text for text in run.settings if text.startswith("task.")))
    run = replace(run, settings=(*run.settings, *settings))
    path = newest(folder) if checkpoint is None else checkpoint
    check_metadata(run, path)
    env = make_env(run, render_mode, beside)
    encoder, agent = make_agent(run, env)
    return run, env, encoder, load_checkpoint(path / "agent.ckpt", agent)


def newest(folder: Path) -> Path:
    """The newest checkpoint; raises FileNotFoundError where the run has not come to its first."""
    if not (found := checkpoints(folder)):
        raise FileNotFoundError(
            f"{folder} has no checkpoint yet: train it, robot-rl train --resume {shlex.quote(str(folder))}"
        )
    return found[-1]


def check_metadata(run: Run, checkpoint: Path) -> Mapping[str, Any]:
    """The metadata of ``checkpoint``; raises ValueError where it belongs to another task or agent than ``run``."""
    from robot_rl.checkpoint import load_metadata

    path = checkpoint / "agent.ckpt"
    if not path.is_file():
        raise FileNotFoundError(
            f"{checkpoint} is not a checkpoint (it has no agent.ckpt): give a folder in checkpoints/"
        )
    metadata = load_metadata(path)
    for name in ("task", "agent"):
        if metadata.get(name) != getattr(run, name):
            raise ValueError(
                f"{path} is a checkpoint of {name} '{metadata.get(name)}', this run's {name} is "
                f"'{getattr(run, name)}': give a checkpoint of the same run"
            )
    return metadata


def remove_folder(folder: Path) -> None:
    """Delete a checkpoint so that no half of it is ever taken for a whole."""
    hidden = folder.with_name(f".{folder.name}.tmp")
    folder.rename(hidden)
    shutil.rmtree(hidden)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit this code is at, with "+changes" where files differ from it; None outside a repository."""
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        if commit.returncode != 0:
            return None
        status = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")
