"""Episodes out of recordings: number by number those that were played, and none that is not whole."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("mcap")

from controllers import bag_reader, bag_writer
from controllers.bag_types import decode
from controllers.bag_writer import BagWriter, Message
from robot_rl.bag_commands import replay_bag
from robot_rl.bag_export import export
from robot_rl.build import make_env
from robot_rl.episode import Episode, rollout
from robot_rl.store import EpisodeReader
from tests.bags import await_arrival
from tests.ros_children import TIED

ROOT = Path(__file__).parent.parent
STEP_NS = 100_000_000
SETTINGS = {"reach": ["task.max_steps=60"], "peg_insert": ["task.max_steps=12"]}
RECORD = "import sys; from pathlib import Path; from controllers.bag import record; sys.exit(record(Path(sys.argv[1])))"


class Told(gymnasium.Wrapper):
    """Publishes what the node and the policy of a lock-step graph do, by the contract of controllers/messages.py."""

    def __init__(self, env: gymnasium.Env, node: Any, task: str) -> None:
        from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
        from sensor_msgs.msg import JointState, MultiDOFJointState
        from std_msgs.msg import Float64MultiArray

        from controllers import messages as m

        super().__init__(env)
        self._m, self._task, self._stamp_ns = m, task, 5_000_000_000
        kinds = {m.CURRENT_POSE: PoseStamped, m.CURRENT_TWIST: TwistStamped, m.JOINT_STATES: JointState}
        kinds |= {m.WRENCH: WrenchStamped, m.ENERGY_STATE: Float64MultiArray, m.PROPS: MultiDOFJointState}
        kinds |= {m.EPISODE_STEP: JointState}
        self.publishers = {
            word: node.create_publisher(kind, f"/{task}/{word}", m.LOCKSTEP_QOS) for word, kind in kinds.items()
        }

    def reset(self, **options: Any) -> Any:
        result = self.env.reset(**options)
        self._stamp_ns += 7 * STEP_NS
        self._publish({"seed": options["seed"]})
        return result

    def step(self, action: np.ndarray) -> Any:
        result = _, reward, terminated, truncated, info = self.env.step(action)
        self._stamp_ns += STEP_NS
        told = {"reward": reward, "terminated": terminated, "truncated": truncated, "success": info["success"]}
        self._publish(told | {"cost": info["cost"]} | {f"action_{i}": value for i, value in enumerate(action)})
        return result

    def _publish(self, told: dict[str, Any]) -> None:
        from sensor_msgs.msg import JointState

        m, stamp_ns, arm_env = self._m, self._stamp_ns, self.env.unwrapped
        state, readings = arm_env.arm.read(), arm_env._readings()
        names = m.names_of("panda", len(state.q_rad))
        words = (m.CURRENT_POSE, m.CURRENT_TWIST, m.JOINT_STATES, m.WRENCH)
        send = dict(zip(words, m.to_state(state, names, stamp_ns), strict=True))
        share, alpha = readings["energy"]
        row = dict.fromkeys(m.ENERGY, 0.0) | {"share": share, "alpha_min": alpha}
        row["sec"], row["nanosec"] = m.stamp_columns(stamp_ns)
        send[m.ENERGY_STATE] = m.to_columns(m.ENERGY, list(row.values()))
        poses = {name.removeprefix("prop/"): pose for name, pose in readings.items() if name.startswith("prop/")}
        send[m.PROPS] = m.to_props(poses, names.base, stamp_ns)
        story = JointState(name=list(told), position=[float(value) for value in told.values()])
        story.header.stamp, story.header.frame_id = m.to_stamp(stamp_ns), self._task
        for word, message in (send | {m.EPISODE_STEP: story}).items():
            self.publishers[word].publish(message)
        time.sleep(0.005)


def wait_for(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


_PLAYED: dict[str, tuple[str, list[Episode], Path]] = {}  # one recording per task is enough for all tests


@pytest.fixture(params=["reach", "peg_insert"])
def played(request: pytest.FixtureRequest, ros_domain: int, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A task, three of its episodes as played in this process, and their recording."""
    task = request.param
    if task not in _PLAYED:
        out = tmp_path_factory.mktemp(task) / "bag"
        _PLAYED[task] = (task, play(task, out), out)
    return _PLAYED[task]


def play(task: str, out: Path) -> list[Episode]:
    """Play three episodes and record them."""
    from controllers.ros import RosContext, require_ros

    rclpy = require_ros()
    words = [*TIED, sys.executable, "-c", RECORD, str(out)]
    recorder = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        with RosContext() as ros:
            node = ros.add(rclpy.create_node("tester", context=ros.context, enable_rosout=False))
            env = Told(make_env(task, settings=SETTINGS[task]), node, task)
            wait_for(lambda: all(publisher.get_subscription_count() for publisher in env.publishers.values()))
            episodes = []
            for seed in (11, 12, 13):
                played = rollout(env, env.unwrapped.demonstrator(np.random.default_rng(seed)), seed)
                assert played is not None
                episodes.append(played[0])
            for publisher in env.publishers.values():
                await_arrival(publisher)
            env.close()
            recorder.send_signal(signal.SIGINT)
            assert recorder.wait(60.0) == 0
    finally:
        recorder.kill()
        recorder.wait()
    return episodes


def same(one: Episode, other: Episode) -> bool:
    """Number by number, type by type."""
    names = ("action", "reward", "terminated", "truncated", "success", "cost")
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    pairs += [(one.observation[name], other.observation[name]) for name in one.observation]
    return (
        one.seed == other.seed
        and one.observation.keys() == other.observation.keys()
        and all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)
    )


def exported(bag: Path, out: Path, task: str, **options: Any) -> tuple[Any, list[Episode]]:
    result = export(bag, out, world="sim", settings=SETTINGS[task], **options)
    return result, list(EpisodeReader(out)) if out.exists() else []


def altered(bag: Path, out: Path, alter: Callable[[int, Message], Message | None]) -> Path:
    """A copy in which ``alter(count on its topic, message)`` has replaced or removed messages."""
    writer = BagWriter(out, 1e9, 1e9)
    counts: dict[str, int] = {}
    for message in bag_reader.messages(bag):
        name = message.topic.name
        counts[name] = counts.get(name, -1) + 1
        if (kept := alter(counts[name], message)) is not None:
            writer.write(kept)
    writer.close()
    return out


def without(word: str, index: int) -> Callable[[int, Message], Message | None]:
    return lambda count, message: None if message.topic.name.endswith(f"/{word}") and count == index else message


def test_exported_episodes_are_those_that_were_played(played, tmp_path):
    task, episodes, bag = played
    result, found = exported(bag, tmp_path / "demos.zarr", task)
    assert str(result) == "3 episodes added"
    assert len(found) == 3 and all(same(a, b) for a, b in zip(found, episodes, strict=True))
    assert np.any([np.ptp(rows, axis=0).any() for rows in found[0].observation.values()])
    again, still = exported(bag, tmp_path / "demos.zarr", task)
    assert (again.added, again.held) == (0, 3) and len(still) == 3


def test_the_store_is_one_that_demonstrations_of_the_task_may_join(played, tmp_path):
    from robot_rl.store import StoreInfo

    task, _, bag = played
    exported(bag, tmp_path / "demos.zarr", task)
    env = make_env(task, settings=SETTINGS[task])
    own = StoreInfo.of(env, task, "panda", "sim", {"task": {}})
    info = EpisodeReader(tmp_path / "demos.zarr").info
    assert (info.observation, info.action_dim, info.arm) == (own.observation, own.action_dim, own.arm)
    assert info.configs["task"]["max_steps"] == int(SETTINGS[task][0].split("=")[1])
    env.close()


@pytest.mark.parametrize(
    ("word", "index", "why"),
    [
        ("current_pose", 3, "current_pose of one of its states was not recorded"),
        ("external_wrench", 0, "external_wrench of one of its states was not recorded"),
        ("props", 2, "props of one of its states was not recorded"),
        ("energy_state", 2, "energy_state of one of its states was not recorded"),
        ("episode_step", 4, "a step was not recorded"),
        ("episode_step", 0, "its beginning was not recorded"),
    ],
)
@pytest.mark.parametrize("counted", [True, False])
def test_an_episode_with_a_gap_is_left_out(played, tmp_path, word, index, why, counted):
    task, episodes, bag = played

    def alter(count: int, message: Message) -> Message | None:
        kept = without(word, index)(count, message)
        return kept if kept is None or counted else kept._replace(sequence=0)  # as by recorders that do not count

    result, found = exported(altered(bag, tmp_path / "bag", alter), tmp_path / "demos.zarr", task)
    assert result.left_out == {why: 1}
    assert len(found) == 2 and all(same(a, b) for a, b in zip(found, episodes[1:], strict=True))


def test_an_episode_that_a_crash_cut_is_left_out(played, tmp_path):
    task, episodes, bag = played
    last = len(episodes[0]) + len(episodes[1]) + 2  # messages of two episodes; then the third begins

    def alter(count: int, message: Message) -> Message | None:
        return None if message.topic.name.endswith("/episode_step") and count > last + 3 else message

    result, found = exported(altered(bag, tmp_path / "bag", alter), tmp_path / "demos.zarr", task)
    assert result.left_out == {"its end was not recorded": 1}
    assert str(result) == "2 episodes added; 1 left out: its end was not recorded"
    assert len(found) == 2


def test_a_file_cut_in_the_middle_gives_the_episodes_before(played, tmp_path, monkeypatch):
    task, episodes, bag = played
    monkeypatch.setattr(bag_writer, "CHUNK_BYTES", 20_000)  # else a recording of a moment is one chunk
    (path,) = bag_reader.files_of(altered(bag, tmp_path / "bag", lambda count, message: message))
    whole, total = path.read_bytes(), len(list(bag_reader.messages(bag)))
    while len(list(bag_reader.messages(path))) > 0.8 * total:
        path.write_bytes(whole[: path.stat().st_size - 5000])
    result, found = exported(tmp_path / "bag", tmp_path / "demos.zarr", task)
    assert 1 <= len(found) < 3 and sum(result.left_out.values()) == 1
    assert all(same(a, b) for a, b in zip(found, episodes, strict=False))


def test_readings_of_a_slower_topic_may_be_a_little_older(played, tmp_path):
    """In real time energy and objects come at 50 Hz beside states at 500 Hz."""
    task, episodes, bag = played

    def alter(count: int, message: Message) -> Message:
        from rclpy.serialization import serialize_message

        if not message.topic.name.endswith("/props"):
            return message
        props = decode(message.topic.type, message.data)
        nanosec = props.header.stamp.nanosec - 18_000_000
        props.header.stamp.sec -= nanosec < 0
        props.header.stamp.nanosec = nanosec % 1_000_000_000
        return message._replace(data=serialize_message(props))

    result, found = exported(altered(bag, tmp_path / "bag", alter), tmp_path / "demos.zarr", task)
    assert result.added == 3 and all(same(a, b) for a, b in zip(found, episodes, strict=True))


@pytest.mark.parametrize("played", ["reach"], indirect=True)
def test_other_settings_than_those_of_the_recording_are_noticed(played, tmp_path):
    task, episodes, bag = played
    assert any(episode.succeeded for episode in episodes)
    changed = [*SETTINGS[task], "task.tolerance_m=0.0001"]
    result = export(bag, tmp_path / "demos.zarr", world="sim", settings=changed)
    assert result.added == 0 and list(result.left_out) == [
        "its rewards are not those of this task: give the --set it was played with"
    ]
    assert not (tmp_path / "demos.zarr").exists()


def test_failures_can_be_left_out(played, tmp_path):
    task, episodes, bag = played
    result, found = exported(bag, tmp_path / "demos.zarr", task, successes_only=True)
    successes = sum(episode.succeeded for episode in episodes)
    assert len(found) == result.added == successes
    assert result.left_out == ({"no success": 3 - successes} if successes < 3 else {})


def test_a_recording_without_episodes_says_so(played, tmp_path):
    _, _, bag = played
    silent = altered(bag, tmp_path / "bag", lambda count, m: None if m.topic.name.endswith("_step") else m)
    with pytest.raises(LookupError, match=r"no episodes \(nothing on \*/episode_step\); was a policy at work\?"):
        export(silent, tmp_path / "demos.zarr", world="sim")
    with pytest.raises(LookupError, match=r"nothing on \*/other/episode_step"):
        export(bag, tmp_path / "demos.zarr", namespace="other", world="sim")


def test_the_command_mends_and_exports(played, tmp_path, capsys):
    """What ``robot-rl replay-bag DIR --recover --export STORE`` does."""
    task, episodes, bag = played
    altered(bag, tmp_path / "bag", lambda count, message: message)
    (path,) = bag_reader.files_of(tmp_path / "bag")
    path.write_bytes(path.read_bytes()[:-100])  # its index is gone, its messages are not
    store = tmp_path / "demos.zarr"
    options = {"namespace": None, "arm": "panda", "world": "sim", "set": (tuple(SETTINGS[task]),)}
    command: Any = SimpleNamespace(
        dir=tmp_path / "bag", recover=True, export=store, successes_only=False, **options
    )  # fmt: skip
    assert replay_bag(command, ()) == 0
    said = capsys.readouterr().err
    assert f"{path}: " in said and "readable by every tool" in said and f"{store}: 3 episodes added" in said
    assert bag_reader.cut_short(tmp_path / "bag") == [] and len(EpisodeReader(store)) == len(episodes)
