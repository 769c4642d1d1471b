"""Somebody takes over: what is executed is what is stored, in the policy's coordinates, with who did it and in which
stretch; a person's judgement ends episodes; nothing joins what did not follow."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.teleop._device import Reading
from robot_rl import build, cli, intervention, run, train
from robot_rl.demo import record
from robot_rl.find import find, names
from robot_rl.geometry import quat_normalize, quat_rotate
from robot_rl.interrupt import Interrupted
from robot_rl.intervention import Oversight, Person, Wish, make_overseer
from robot_rl.log import read_metrics
from robot_rl.replay import ReplayBuffer
from robot_rl.run import TrainConfig, choose
from robot_rl.store import EpisodeReader, EpisodeWriter, StoreInfo
from robot_rl.types import INTERVENTION, POLICY, ArmState
from tests.test_train import SETTINGS, TRAIN, assert_same_training

TESTS = Path(__file__).parent


def scripted(monkeypatch: pytest.MonkeyPatch, *more: str, agent: str = "rlpd", **changes: Any) -> run.Run:
    monkeypatch.syspath_prepend(str(TESTS))
    config = TrainConfig(**{"steps": 150, "seed": 3} | TRAIN | changes)
    words = [f"agent.{text}" for text in SETTINGS[agent]]
    words += ["intervention.by=scripted", "intervention.patience_steps=3", "intervention.hold_steps=2", *more]
    return choose("tiny_env:Tiny-v0", "", "gym", agent, config, words)


# --------------------------------------------------------------------------------------------------------- oversight


class Played:
    """An overseer who does as listed."""

    paced = False

    def __init__(self, wishes: list[Wish]) -> None:
        self._wishes = iter(wishes)

    def begin(self, seed: int) -> None: ...
    def close(self) -> None: ...
    def __call__(self, obs: Any) -> Wish:
        return next(self._wishes)


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_every_change_of_who_acts_begins_a_segment(takes_over):
    wishes = [Wish(np.full(1, 0.5, np.float32) if taken else None) for taken in takes_over]
    oversight, segments = Oversight(Played(wishes), 0), []
    for taken in takes_over:
        action, extra = oversight.choose({}, np.full(1, -0.5, np.float32), {"proposed": -0.5, "noise": 1.0})
        assert action == (0.5 if taken else -0.5) == extra["proposed"] and extra["noise"] == 1.0
        reward, *ends, info = oversight.settle(0.25, False, True, {"cost": 0.0})
        assert (reward, ends, info["cost"]) == (0.25, [False, True], 0.0)
        assert info["source"] == (INTERVENTION if taken else POLICY)
        segments.append(info["segment"])
    changes = [a != b for a, b in itertools.pairwise(takes_over)]
    assert segments == [0, *np.cumsum(changes).tolist()]


@pytest.mark.parametrize(
    ("event", "before", "after"),
    [
        ("success", (0.1, False, False, False), (1.1, True, False, True)),
        ("success", (1.1, True, False, True), (1.1, True, False, True)),
        ("success", (0.1, False, True, False), (1.1, True, False, True)),
        ("fail", (0.1, False, False, False), (0.1, True, False, False)),
        ("fail", (1.1, True, False, True), (0.1, True, False, False)),
        ("discard", (0.1, False, False, False), (0.1, False, True, False)),
        ("stop", (0.1, False, False, False), (0.1, False, True, False)),
        ("stop", (1.1, True, False, True), (1.1, True, False, True)),
    ],
)
def test_a_persons_judgement_ends_the_episode(event, before, after):
    """Success and failure are true ends; after discard and stop something would have followed, so values go on."""
    reward, terminated, truncated, success = before
    oversight = Oversight(Played([Wish(None, event)]), 0)
    oversight.choose({}, np.zeros(1), {})
    *came, info = oversight.settle(reward, terminated, truncated, {"success": success})
    assert (*came, info["success"]) == pytest.approx(after)
    assert bool(info.get("called")) == (event in ("success", "fail"))
    assert oversight.event == event and bool(info.get("discarded")) == (event == "discard")


# ---------------------------------------------------------------------------------------------------------- training


def test_training_with_a_script_repeats_itself_and_survives_a_stop(tmp_path, monkeypatch):
    chosen = scripted(monkeypatch)
    train.train(chosen, tmp_path / "whole")
    train.train(scripted(monkeypatch, steps=70), tmp_path / "cut")
    train.resume(tmp_path / "cut", 150)
    assert_same_training(tmp_path / "whole", tmp_path / "cut")
    assert run.load(tmp_path / "cut").intervention == chosen.intervention
    rows = read_metrics(tmp_path / "whole/metrics.csv")
    long = [row for row in rows if int(row["length"]) > 5]
    assert long and all(int(row["interventions"]) >= 1 for row in long)
    shares = {float(row["intervened_share"]) * int(row["length"]) for row in rows}
    assert max(shares) >= 2 and all(int(row["interventions"]) == 0 for row in rows if int(row["length"]) <= 3)
    with np.load(run.newest(tmp_path / "whole") / "replay.npz") as replay:
        sources, segments, shown = replay["source"], replay["segment"], replay["shown"]
    for segment in np.unique(segments):  # of one source, without a gap
        slots = np.flatnonzero(segments == segment)
        assert len(set(sources[slots])) == 1 and (np.diff(slots) == 1).all()
    interventions = np.flatnonzero(sources == INTERVENTION)
    assert len(interventions) == sum(round(share) for share in map(float, _intervened(rows)))
    assert set(interventions) <= set(shown.tolist())


def test_hg_dagger_learns_from_what_was_shown_alone(tmp_path, monkeypatch):
    """First from demonstrations, then from corrections as well; what the policy did itself changes nothing."""
    drawn, sample = [], ReplayBuffer.sample
    monkeypatch.setattr(ReplayBuffer, "sample", lambda *args: drawn.append(sample(*args)) or drawn[-1])
    more = ("train.demo_episodes=1", "agent.learning_rate=0.003")
    summary = train.train(scripted(monkeypatch, *more, agent="hg_dagger", steps=300), tmp_path / "run")
    steps = summary["env_steps"]
    assert summary["updates"] == 102 + 2 * (steps - 1)  # nothing to learn from beside the first step
    sources = [batch.extra["source"] for batch in drawn]
    assert not any((source == POLICY).any() for source in sources)
    assert not any((source == INTERVENTION).any() for source in sources[:51])
    assert any((source == INTERVENTION).any() for source in sources[51:])
    assert summary["success_rate"] >= 0.8


def _intervened(rows: list[dict[str, str]]) -> list[float]:
    return [float(row["intervened_share"]) * int(row["length"]) for row in rows]


def test_a_discarded_episode_is_never_drawn(tmp_path, monkeypatch):
    """Neither success nor failure is counted; its steps are."""

    class Picky(intervention.Nobody):
        episodes = 0

        def begin(self, seed: int) -> None:
            self.episodes, self.step = self.episodes + 1, 0

        def __call__(self, obs: Any) -> Wish:
            self.step += 1
            return Wish(None, "discard" if self.episodes % 2 and self.step == 2 else "")

    monkeypatch.setattr(train, "make_overseer", lambda *_, **__: Picky())
    train.train(scripted(monkeypatch), tmp_path / "run")
    rows = read_metrics(tmp_path / "run/metrics.csv")
    discarded = [row for row in rows if row["discarded"] == "1"]
    assert len(discarded) >= len(rows) // 3 and all(row["success"] == "" for row in discarded)
    assert sum(int(row["length"]) for row in rows) == int(rows[-1]["env_steps"])
    with np.load(run.newest(tmp_path / "run") / "replay.npz") as replay:
        drawn, segments = set(replay["experience"].tolist()), replay["segment"]
    kept = [row["discarded"] == "0" for row in rows]
    assert {int(segments[slot]) for slot in drawn} == {index for index, keep in enumerate(kept) if keep}


def test_a_person_who_stops_ends_the_run_with_all_saved(tmp_path, monkeypatch):
    stopped = []

    class Alarmed(intervention.Nobody):
        steps = 0

        def __call__(self, obs: Any) -> Wish:
            self.steps += 1
            return Wish(None, "stop" if self.steps == 30 else "")

    class Arm:
        def stop(self) -> None:
            stopped.append(True)

    monkeypatch.setattr(train, "make_overseer", lambda *_, **__: Alarmed())
    chosen = scripted(monkeypatch)
    import tiny_env

    monkeypatch.setattr(tiny_env.Tiny, "arm", Arm(), raising=False)
    with pytest.raises(Interrupted, match=r"stopped at 30 of 150 steps; go on with"):
        train.train(chosen, tmp_path / "run")
    assert stopped and run.newest(tmp_path / "run").name == "000000030"
    assert read_metrics(tmp_path / "run/metrics.csv")[-1]["env_steps"] == "30"


def test_who_cannot_intervene_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS))
    with pytest.raises(LookupError, match=r"unknown intervention\.by 'spacemaus': .*Did you mean 'spacemouse'"):
        scripted(monkeypatch, "intervention.by=spacemaus")
    with pytest.raises(ValueError, match="teleop: unknown setting 'fram'"):
        scripted(monkeypatch, "intervention.by=keyboard", "teleop.fram=tool")
    with pytest.raises(ValueError, match=r"'teleop\.frame=tool': nobody uses a device"):
        scripted(monkeypatch, "teleop.frame=tool")
    chosen = scripted(monkeypatch, "intervention.by=keyboard", "teleop.frame=tool")
    assert chosen.teleop.frame == "tool"
    with pytest.raises(ValueError, match="is no arm that a person could steer"):
        train.train(chosen, tmp_path / "run")
    offline = choose(
        "tiny_env:Tiny-v0", "", "gym", "bc", TrainConfig(steps=50, demo_episodes=2), ["intervention.by=scripted"]
    )
    with pytest.raises(ValueError, match="bc learns without acting"):
        train.train(offline, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run.create(tmp_path / "saved", chosen)
    assert run.load(tmp_path / "saved").teleop == chosen.teleop


# ------------------------------------------------------------------------------------------------------------- person


class FakeDevice:
    """What a device gives, one reading after the other; the last one for ever."""

    def __init__(self, *readings: Reading) -> None:
        self.readings, self.closed = [Reading(np.zeros(6)), *readings], False

    def read(self) -> Reading:
        return self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def reach() -> Any:
    env = build.make_env("reach", settings=("task.max_steps=30",))
    yield env
    env.close()


@pytest.mark.parametrize("frame", ["base", "tool"])
def test_an_arm_goes_where_the_person_pushes(reach, frame):
    """Whatever the frame: stored is the policy's action, whose execution moves the tool that way."""
    push = np.array([0.0, 0.8, 0.0, 0.0, 0.0, 0.0])
    reach.reset(seed=3)
    begun = reach.unwrapped.state
    person = Person(FakeDevice(Reading(push, active=True, frame=frame)), reach.unwrapped, pytest.fail)
    oversight = Oversight(person, 0)
    for _ in range(8):
        action, extra = oversight.choose({}, np.zeros(6, np.float32), {})
        assert reach.action_space.contains(action) and extra["proposed"] is action
        reach.step(action)
    gone = reach.unwrapped.state.tcp_pos_m - begun.tcp_pos_m
    wanted = push[:3] if frame == "base" else quat_rotate(begun.tcp_quat_xyzw, push[:3])
    assert gone @ wanted / np.linalg.norm(wanted) > 0.02
    assert np.linalg.norm(gone - (gone @ wanted) * wanted / (wanted @ wanted)) < 0.005


def test_a_person_keeps_control_by_button_or_while_moving(reach):
    reach.reset(seed=1)
    still, moving = np.zeros(6), np.array([0.0, 0.0, 0.5, 0.0, 0.0, 0.0])
    device = FakeDevice(
        Reading(still),
        Reading(moving, active=True),
        Reading(still, active=True),  # within release_s
        Reading(still),
        Reading(still, events=frozenset({"take_over"})),
        Reading(still),
        Reading(still, events=frozenset({"hand_back"})),
        Reading(still, events=frozenset({"success", "fail"})),
    )
    person = Person(device, reach.unwrapped, pytest.fail)
    person.begin(0)
    wishes = [person({}) for _ in range(8)]
    assert [wish.action is not None for wish in wishes] == [False, True, True, False, True, True, False, False]
    assert wishes[7].event == "fail"  # of two keys the careful one
    person.close()
    assert device.closed


def test_one_person_looks_after_two_tasks_of_an_arm(monkeypatch):
    """With one device, opened once: each task gets its own action, and closing both closes it once and for all."""
    one = build.make_env("object_relocation")
    two = build.make_env("object_relocation_back", beside=one)
    device = FakeDevice(Reading(np.array([0.0, 0.0, 0.5, 0.0, 0.0, 0.0]), gripper=1.0, active=True))
    made: list[Any] = []
    plugin = type("Plugin", (), {"make": staticmethod(lambda config: made.append(config) or device)})
    monkeypatch.setattr(intervention, "find", lambda folder, name: plugin)
    config = intervention.Config(by="keyboard")
    first = make_overseer(config, None, one)
    second = make_overseer(config, None, two, same=first)
    assert len(made) == 1
    for env, person in ((one, first), (two, second)):
        env.reset(seed=0)
        person.begin(0)
        action = person({}).action
        assert env.action_space.contains(action) and action[6] == 1.0
    first.close()
    second.close()
    assert device.closed
    one.close()


def test_a_device_that_is_gone_says_so_once_and_stops(reach):
    reach.reset(seed=1)
    gone = Reading(np.zeros(6), events=frozenset({"stop"}), fault="mouse is gone: plug it in", age_s=math.inf)
    said: list[str] = []
    person = Person(FakeDevice(gone, Reading(np.zeros(6), fault=gone.fault)), reach.unwrapped, said.append)
    person.begin(0)
    assert [person({}).event for _ in range(3)] == ["stop", "", ""] and said == ["mouse is gone: plug it in"]


def test_a_person_records_demonstrations_and_discards_one(reach, tmp_path):
    """As often as they like; what was executed is kept, and a discarded episode is not."""
    expert: dict[str, Any] = {}

    class Hands(intervention.Nobody):
        """The scripted expert's, but for the second episode, which they give up."""

        episodes = -1

        def begin(self, seed: int) -> None:
            self.episodes, self.step = self.episodes + 1, 0
            expert["act"] = reach.unwrapped.demonstrator(np.random.default_rng(seed))

        def __call__(self, obs: Any) -> Wish:
            self.step += 1
            given_up = self.episodes == 1 and self.step == 3
            return Wish(np.asarray(expert["act"](obs), np.float32), "discard" if given_up else "")

    info = StoreInfo.of(reach, "reach", "panda", "sim", {})
    with EpisodeWriter(tmp_path / "demos.zarr", info) as writer:
        result = record(reach, writer, 3, seed=5, person=Hands())
    assert (result.kept, result.discarded, result.failed) == (3, 1, result.failed)
    episodes = list(EpisodeReader(tmp_path / "demos.zarr"))
    assert all(episode.succeeded and np.abs(episode.action).max() > 0.1 for episode in episodes)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--by", "nobody"], "somebody has to demonstrate"),
        (["--by", "joystick"], "unknown intervention.by 'joystick'"),
        (["--set", "teleop.frame=tool"], "nobody uses a device"),
    ],
)
def test_who_cannot_demonstrate_is_refused(tmp_path, capsys, words, said):
    out = str(tmp_path / "demos.zarr")
    assert cli.main(["demo", "record", "--task", "reach", "--out", out, *words]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "demos.zarr").exists()


# -------------------------------------------------------------------------------------------------------------- tasks


def still(quat_xyzw: np.ndarray) -> ArmState:
    """An arm at rest, its tool turned by ``quat_xyzw``."""
    zero = np.zeros(7)
    return ArmState(0.0, zero, zero, zero, np.array([0.5, 0.0, 0.1]), quat_xyzw, np.zeros(6), np.zeros(6), 0.1)


UNIT = st.floats(-1.0, 1.0)


@pytest.mark.parametrize("name", names("tasks"))
@settings(max_examples=50, deadline=None)
@given(st.tuples(*[UNIT] * 6), st.sampled_from([-1.0, 0.0, 1.0]), st.tuples(*[st.floats(-0.2, 0.2)] * 4))
def test_every_task_turns_a_twist_into_an_action(name, twist, grip, tilt):
    """The target moves along the twist, on the axes that the task leaves free, and no faster than its steps."""
    task = find("tasks", name).make(find("tasks", name).Config())
    state = still(quat_normalize(np.array([1.0, 0.0, 0.0, 0.0]) + np.array(tilt)))
    action = np.asarray(task.steer(np.array(twist), grip, state), np.float32)
    assert task.action_space.contains(action)
    moved = task.command(action, state).tcp_pos_m - state.tcp_pos_m
    at_rest = task.command(task.steer(np.zeros(6), grip, state), state).tcp_pos_m - state.tcp_pos_m
    free = np.array([_moves(task, state, axis) for axis in range(3)])
    along = (moved - at_rest)[free]
    wanted = task.config.step_m * np.array(twist)[:3][free]
    if np.linalg.norm(wanted) > 1e-4:
        assert along @ wanted > 0.0 and np.linalg.norm(along) <= np.linalg.norm(wanted) * (1 + 1e-5)
        np.testing.assert_allclose(
            along / np.linalg.norm(along), wanted / np.linalg.norm(wanted), atol=1e-3
        )  # never turned, at most shortened
    if action.shape == (7,):
        assert action[6] == grip


def _moves(task: Any, state: ArmState, axis: int) -> bool:
    ends = [task.command(task.steer(sign * np.eye(6)[axis], 0.0, state), state).tcp_pos_m for sign in (-1.0, 1.0)]
    return bool(np.ptp([end[axis] for end in ends]) > 1e-6)


def test_a_persons_script_needs_an_expert(monkeypatch):
    import gymnasium

    env = gymnasium.make("Pendulum-v1")
    with pytest.raises(ValueError, match="has no scripted demonstrator"):
        make_overseer(intervention.Config(by="scripted"), None, env)
