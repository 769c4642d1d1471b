"""What training has whichever way it runs: its state, batches, demonstrations, checkpoints and how it ends."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_rl import checkpoint
from robot_rl.demo import record
from robot_rl.evaluate import Evaluation, evaluate
from robot_rl.files import disk_errors, sync_folder, write_json
from robot_rl.intervention import Nobody, Overseer
from robot_rl.log import MetricsLog, Progress, as_row, percent
from robot_rl.replay import ReplayBuffer
from robot_rl.run import Run, Spaces, check_metadata, checkpoints, configs, remove_folder
from robot_rl.store import EpisodeReader, EpisodeWriter, StoreInfo, load_into

if TYPE_CHECKING:
    import gymnasium as gym

    from robot_rl.interrupt import StopSignals
    from robot_rl.spaces import Encoder
    from robot_rl.start_bank import StartBank
    from robot_rl.types import Agent, Start, Transition

KEPT_CHECKPOINTS = 2


@dataclass
class Counters:
    """Where training is; saved with each checkpoint."""

    env_steps: int = 0
    updates: int = 0
    episodes: int = 0
    demo_episodes: int = 0
    segments: int = 0  # of the replay buffer
    recent: list[bool] = field(default_factory=list)  # successes of the last training episodes
    wall_s: float = 0.0
    train_s: float = 0.0  # of which acting, stepping and updating
    bank_rates: list[float] = field(default_factory=list)  # of the start bank's groups
    rows: int = 0  # read of the store, where actors are apart from the learner

    def count_episode(self, success: bool | None, window: int) -> None:
        """One more episode; ``success`` None: not told."""
        self.episodes += 1
        if success is not None:
            self.recent = [*self.recent, success][-window:]


@dataclass
class Session:
    """Everything that changes while training."""

    run: Run
    folder: Path
    env: Any  # a gym.Env, or Spaces where only actors have one
    encoder: Encoder
    agent: Agent
    replay: ReplayBuffer  # and the demonstrations
    rng: np.random.Generator
    counters: Counters = field(default_factory=Counters)
    bank: StartBank[Start] | None = None
    overseer: Overseer = field(default_factory=Nobody)

    @property
    def steps(self) -> int:
        """What ``TrainConfig.steps`` counts."""
        return self.counters.updates if self.run.offline else self.counters.env_steps

    @property
    def success_rate(self) -> float | None:
        recent = self.counters.recent
        return sum(recent) / len(recent) if recent else None

    def row(self) -> dict[str, Any]:
        """Where training is, as columns of metrics.csv."""
        counters = self.counters
        row = {"env_steps": counters.env_steps, "updates": counters.updates, "episodes": counters.episodes}
        return row | {"success_rate": self.success_rate}


def make_session(run: Run, folder: Path, env: gym.Env | Spaces, encoder: Encoder, agent: Agent) -> Session:
    """With nothing done yet."""
    dim = int((env.action_space.shape or (0,))[0])
    replay = ReplayBuffer(run.train.replay_capacity, encoder.space, dim, agent.stored)
    return Session(run, folder, env, encoder, agent, replay, np.random.default_rng([run.seed, 11]))


def require_cost(cost: float | None, stored: Mapping[str, Any]) -> float | None:
    """The ``cost`` of a step; raises ValueError where there is none though the agent learns from it."""
    if cost is None and "cost" in stored:
        raise ValueError(
            "the environment reports no info['cost'], which this agent's constraint learns from: report one number "
            "per step, or train with --set agent.constraint=none"
        )
    return cost


def draw_batch(session: Session) -> Transition | None:
    """Leaves (U, B, ...), demonstrations in their share; None before learning starts."""
    config, counters = session.run.agent_config, session.counters
    if not session.run.offline and (counters.env_steps < config.learning_starts or not len(session.replay)):
        return None
    return session.replay.sample(session.rng, (config.utd_ratio, config.batch_size), session.run.demo_share)


def pretrain(session: Session, progress: Progress, stop: StopSignals) -> None:
    """The updates from demonstrations alone that come before the first step, as many as are not done yet."""
    run, counters = session.run, session.counters
    goal = 0 if counters.env_steps else run.pretrain_calls
    config, done = run.agent_config, counters.updates // run.agent_config.utd_ratio
    if done < goal:
        progress.say(f"{(goal - done) * config.utd_ratio} updates from demonstrations before the first step")
    metrics: dict[str, Any] = {}
    while done < goal and not stop():
        batch = session.replay.sample(session.rng, (config.utd_ratio, config.batch_size), 1.0)
        session.agent, metrics = session.agent.update(batch)
        counters.updates += config.utd_ratio
        done += 1
    if metrics:
        require_finite(mean_of([metrics]), session)


def mean_of(metrics: list[dict[str, Any]]) -> dict[str, float]:
    return (
        as_row({name: np.mean([np.asarray(part[name]) for part in metrics]) for name in metrics[0]}) if metrics else {}
    )


def require_finite(row: dict[str, Any], session: Session) -> None:
    for name, value in row.items():
        if value is not None and not math.isfinite(value):
            saved = checkpoints(session.folder)
            kept = f"the last good checkpoint is {saved[-1]}" if saved else "there was no checkpoint yet"
            raise FloatingPointError(
                f"{name} became {value} before environment step {session.counters.env_steps}, update "
                f"{session.counters.updates}; {kept}. Lower the learning rates or the replay ratio (--set agent.…)"
            )


def demonstrate(session: Session, progress: Progress, stop: StopSignals) -> None:
    """Give the replay buffer its demonstrations, recording what is missing."""
    run, counters = session.run, session.counters
    if run.demo_share <= 0 or stop():
        return
    path = Path(run.demos) if run.demos else session.folder / "demos.zarr"
    if not run.demos:
        wanted = run.train.demo_episodes
        info = StoreInfo.of(session.env, run.task, run.arm, run.world, configs(run))
        with EpisodeWriter(path, info) as writer:
            if len(writer) < wanted:
                progress.say(f"Recording {wanted - len(writer)} demonstrations into {path}")
                result = record(session.env, writer, wanted - len(writer), run.seed, stop=stop)
                progress.say(f"{result.kept} demonstrations kept, {result.failed} failures left out")
        if stop():
            return
    reader = EpisodeReader(path)
    counters.demo_episodes = counters.demo_episodes or len(reader)  # a resumed run takes those it began with
    load_into(session.replay, reader, session.encoder, counters.demo_episodes)


def clean(folder: Path) -> None:
    """Remove what a killed process left half done; the folder's lock is held."""
    for leftover in (*folder.glob("checkpoints/.*"), *folder.glob(".*.tmp")):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def save(session: Session, replay: bool = True) -> None:
    """Write a checkpoint, whole or not at all, and drop all but the two newest; without the replay where a store of
    all steps has it."""
    final = session.folder / "checkpoints" / f"{session.steps:09d}"
    if final.exists() and replay:  # between two steps nothing changes, but for a learner that has updates to make up
        return
    temporary = final.with_name(f".{final.name}.new.tmp")
    run = session.run
    metadata = {"task": run.task, "agent": run.agent, "steps": session.steps, "counters": asdict(session.counters)}
    with disk_errors(final):
        temporary.mkdir(parents=True)
        try:
            checkpoint.save(
                temporary / "agent.ckpt", session.agent, metadata | {"rng": session.rng.bit_generator.state}
            )
            if replay:
                session.replay.save(temporary / "replay.npz")
            sync_folder(temporary)
            if final.exists():  # its only file, at once
                os.replace(temporary / "agent.ckpt", final / "agent.ckpt")
                shutil.rmtree(temporary)
            else:
                os.rename(temporary, final)
        except BaseException:
            shutil.rmtree(temporary)
            raise
        sync_folder(final.parent)
        for old in checkpoints(session.folder)[:-KEPT_CHECKPOINTS]:
            remove_folder(old)


@contextlib.contextmanager
def _damage(session: Session, path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        earlier = checkpoints(session.folder)[:-1]
        raise ValueError(
            f"{error}. If the checkpoint is damaged, delete the folder {path} and resume again: training then goes on "
            f"from {earlier[-1] if earlier else 'its beginning'}"
        ) from error


def restore_replay(session: Session, path: Path) -> None:
    """Take the ring of a checkpoint, once the demonstrations are there. Raises as ``restore`` does."""
    with _damage(session, path):
        session.replay.load(path / "replay.npz")


def restore(session: Session, path: Path) -> None:
    """Go on from a checkpoint. Raises ValueError where it is damaged or of another run, with the remedy."""
    with _damage(session, path):
        checkpoint.load_metadata(path / "agent.ckpt")
    metadata = check_metadata(session.run, path)
    session.agent = checkpoint.load(path / "agent.ckpt", session.agent)
    session.rng.bit_generator.state = metadata["rng"]
    session.counters = Counters(**metadata["counters"])


def evaluated_row(session: Session) -> dict[str, float | None]:
    """Evaluate on the way; columns of metrics.csv."""
    run = session.run
    result = evaluate(session.env, session.agent, session.encoder, run.train.eval_every_episodes, run.seed)
    row = {"eval_success_rate": result.success_rate, "eval_return": result.mean_return}
    return row | ({} if result.mean_cost is None else {"eval_cost": result.mean_cost})


def finish(session: Session, log: MetricsLog, begun_s: float) -> dict[str, Any]:
    """Evaluate, where there is an environment to do it in, and write ``summary.json``."""
    run, env = session.run, session.env
    if isinstance(env, Spaces):
        result = Evaluation(0, None, None, None, None, None, None, None, run.seed)
    else:
        with Progress("evaluation", run.train.eval_episodes) as progress:
            result = evaluate(
                env, session.agent, session.encoder, run.train.eval_episodes, run.seed,
                lambda count, rate: progress.update(count, {"success": percent(rate)}),
            )  # fmt: skip
    summary = summarize(session, result, time.monotonic() - begun_s)
    write_json(session.folder / "summary.json", summary)
    log.result(summary)
    return summary


def summarize(session: Session, result: Evaluation, wall_s: float) -> dict[str, Any]:
    """What ``summary.json`` holds."""
    run, counters = session.run, session.counters
    about = {"task": run.task, "arm": run.arm, "world": run.world, "agent": run.agent, "seed": run.seed}
    return about | {
        "success_rate": result.success_rate,
        "success_interval": result.success_interval,
        "eval_episodes": result.episodes,
        "mean_return": result.mean_return,
        "mean_length": result.mean_length,
        "cycle_steps": result.cycle_steps,
        "energy": result.energy,
        "mean_cost": result.mean_cost,
        "env_steps": counters.env_steps,
        "updates": counters.updates,
        "episodes": counters.episodes,
        "demo_episodes": counters.demo_episodes,
        "wall_s": round(wall_s, 3),
        "env_steps_per_s": round(counters.env_steps / max(counters.train_s, 1e-9), 3),
        "updates_per_s": round(counters.updates / max(counters.train_s, 1e-9), 3),
    }
