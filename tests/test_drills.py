"""Fault drills, by signal and by network. In each the arm holds within the ladder, what should live lives, the cause
is told, and what was killed is started again without the rest.

Times are the node's own stamps. A target's age counts from its arrival, and it is refused unless it arrives within
``hold_s`` of its stamp: so the reference stands still from twice ``hold_s`` after the last stamp on, on any computer.
"""

import math
import signal
import time

import numpy as np
import pytest

pytest.importorskip("rclpy")

from controllers import messages as m
from robot_rl.types import Pose, Start
from tests.ros_graph import Commander, Process, arm_node, reserved_domain, stream, wait_until

HOME = np.array([0.5, 0.0, 0.3])
DOWN = np.array([1.0, 0.0, 0.0, 0.0])
ASIDE = HOME + [0.0, 0.03, 0.0]
START = Start(Pose(HOME, DOWN), 0.0, {"goal": Pose(HOME, np.array([0.0, 0.0, 0.0, 1.0]))})
HOLD_NS = 200_000_000


@pytest.fixture(scope="module")
def node(module_domain):
    with arm_node(module_domain, "panda") as process:
        yield process
        assert process.stop() == 0, process.log()
        assert "Traceback" not in process.log()


@pytest.fixture(scope="module")
def shared(node, module_domain):
    with Commander(module_domain).connect() as commander:
        yield commander


@pytest.fixture
def arm(shared, node):
    """An observer, in a fresh world; the node has to live to the end of the test."""
    shared.silence()
    assert shared.place(START) == (True, "")
    shared.await_safety("holding: no target yet")
    for heard in shared.heard.values():
        heard.clear()
    yield shared
    shared.silence()
    assert node.alive, node.log()


@pytest.fixture
def commanding(arm):
    """The observer commands, too."""
    arm.stream(ASIDE, DOWN)
    arm.await_safety("following")
    return arm


def last_target_ns(arm: Commander) -> int:
    return int(arm.rows(m.TARGET_POSE)[0][-1])


def assert_frozen(arm: Commander, after_ns: int) -> None:
    """The applied target stands still from ``after_ns`` to the end of the ramp to float, and the arm is at rest."""

    def late() -> bool:
        return bool(len(arm.rows(m.APPLIED_TARGET)[0]) and arm.rows(m.APPLIED_TARGET)[0][-1] > after_ns + 3 * HOLD_NS)

    wait_until(late, "0.6 s of the node's time")
    stamps_ns, pos_m = arm.rows(m.APPLIED_TARGET)
    first = int(np.searchsorted(stamps_ns, after_ns))
    held = pos_m[first + 1 :][stamps_ns[first + 1 :] < after_ns + 2 * HOLD_NS]  # a tick may have begun before
    np.testing.assert_array_equal(held, np.broadcast_to(held[:1], held.shape))
    modes = [mode for stamp_ns, mode in arm.modes() if stamp_ns > after_ns + HOLD_NS]
    assert modes and set(modes) <= {"holding", "floating"}
    assert arm.speed_mps() < 0.01


def assert_still_follows(arm: Commander) -> None:
    """Whatever a stranger does: the commander is heard, and the arm is where he wants it."""
    arm.next(m.GUARD_STATE, 10)
    arm.await_safety("following")  # a busy computer may have held for a moment
    wait_until(lambda: np.linalg.norm(arm.pose()[0] - ASIDE) < 0.01, "the arm is where its commander wants it")


# -------------------------------------------------------------------------------------------------------- by signal


def test_kill_of_the_policy(arm, module_domain):
    with stream(module_domain, "panda") as policy:
        wait_until(lambda: len(arm.rows(m.TARGET_POSE)[0]) > 20, "targets")
        policy.stop(signal.SIGKILL)
    killed_ns = last_target_ns(arm)
    assert_frozen(arm, killed_ns + 2 * HOLD_NS)
    arm.await_safety("floating")
    causes = [message.data for message in arm.heard[m.SAFETY_STATE]]
    assert "holding: no heartbeat for 0.1 s" in causes
    assert any(cause.startswith("floating: no ") for cause in causes)
    with stream(module_domain, "panda"):  # the next one goes on
        arm.await_safety("following")


def test_stop_and_continue_of_the_policy(arm, module_domain):
    with stream(module_domain, "panda") as policy:
        wait_until(lambda: len(arm.rows(m.TARGET_POSE)[0]) > 20, "targets")
        policy.send(signal.SIGSTOP)
        time.sleep(0.2)  # what was on its way
        stopped_ns = last_target_ns(arm)
        assert_frozen(arm, stopped_ns + 2 * HOLD_NS)
        assert "no heartbeat" in arm.safety()
        policy.send(signal.SIGCONT)
        arm.await_safety("following")
        assert policy.alive


def test_kill_of_the_node_under_a_policy_and_a_new_node(ros_domain):
    """The policy's error names what is silent; a new node serves a new policy, and nobody else was restarted."""
    with Commander(ros_domain) as observer:
        with (
            arm_node(ros_domain, "panda") as node,
            Process(ros_domain, ["env", "panda", "reach"], "child") as policy,
        ):
            policy.await_line("stepping")
            observer.await_safety("following")
            node.stop(signal.SIGKILL)
            assert policy.wait() == 2
            said = policy.log().splitlines()[-1]
            assert said.startswith("error: no state of the arm for 0.5 s: /panda/current_pose is silent")
            assert "robot-rl up twin arm:=panda task:=reach" in said and "Traceback" not in policy.log()
        with (
            arm_node(ros_domain, "panda") as again,
            Process(ros_domain, ["env", "panda", "reach"], "child") as policy,
        ):
            policy.await_line("stepping")
            observer.await_safety("following")
            assert again.stop(signal.SIGTERM) == 0


# -------------------------------------------------------------------------------------------------------- by network


def test_a_second_publisher_is_refused_and_the_first_keeps_the_arm(commanding, module_domain):
    with Commander(module_domain).connect() as second:
        second.stream(HOME - [0.0, 0.03, 0.0], DOWN)
        commanding.await_refusal("second publisher")
        assert_still_follows(commanding)
        commanding.silence()  # once the first is silent the second may have it
        wait_until(lambda: second.pose()[0][1] < -0.02, "the second has the arm")


BAD_TARGETS = {
    "not finite": lambda arm: arm.target(np.array([math.nan, 0.0, 0.3]), DOWN),
    "from the arm": lambda arm: arm.target(HOME + [0.0, 0.0, 1.0], DOWN),
    "in frame 'world'": lambda arm: arm.target(ASIDE, DOWN, frame="world"),
    "s ago": lambda arm: arm.target(ASIDE, DOWN, stamp_ns=time.time_ns() - 10**9),
    "s ahead": lambda arm: arm.target(ASIDE, DOWN, stamp_ns=time.time_ns() + 10**9),
    "quaternion of norm": lambda arm: arm.target(ASIDE, np.zeros(4)),
}


@pytest.mark.parametrize("cause", BAD_TARGETS)
def test_a_bad_target_is_refused_and_the_arm_holds(arm, node, cause):
    """Nothing but bad ones come: as good as nobody."""
    arm.stream(ASIDE, DOWN, heartbeat=False)
    arm.await_safety("following")
    arm.silence()
    good_ns = last_target_ns(arm)
    before = arm.guard()["refused"]

    def send() -> bool:
        BAD_TARGETS[cause](arm)
        return arm.guard()["refused"] >= before + 20

    wait_until(send, "twenty refusals")
    assert any(cause in line for line in node.log().splitlines())
    assert_frozen(arm, good_ns + 2 * HOLD_NS)
    arm.stream(ASIDE, DOWN)
    arm.await_safety("following")


def test_a_clock_that_goes_backwards_is_named(commanding, node):
    behind_ns = 100_000_000
    commanding.silence()

    def named() -> bool:
        stamp_ns = time.time_ns()
        commanding.target(ASIDE, DOWN, stamp_ns=stamp_ns)
        commanding.target(ASIDE, DOWN, stamp_ns=stamp_ns - behind_ns)  # on a busy computer it may come as too old
        commanding.guard()
        return "went backwards by 0." in node.log()

    wait_until(named, "it is named")
    commanding.stream(ASIDE, DOWN)
    commanding.await_safety("following")


def test_a_parameter_out_of_bounds_changes_nothing(commanding):
    for values in ({"limits__speed_mps": 50.0}, {"limits__box_upper_m": [math.nan] * 3}, {"watchdog__jump_m": -1.0}):
        success, reason = commanding.set(**values)
        name = next(iter(values)).split("__")[1]
        assert not success and name in reason
    assert_still_follows(commanding)


def test_a_flood_of_targets_starves_nobody(commanding):
    """1 kHz for a second, good and bad: services answer, the ladder and the commander live on."""
    end_s = time.monotonic() + 1.0
    sent = 0
    while time.monotonic() < end_s:
        commanding.target(ASIDE if sent % 2 else np.full(3, math.nan), DOWN)
        sent += 1
        time.sleep(0.001)
    assert sent > 100
    assert commanding.call("clear_fault") == (True, "there was no fault")
    assert_still_follows(commanding)


def test_the_heartbeat_of_a_stranger_keeps_nobodys_target_alive(arm, module_domain):
    arm._beating = True
    with stream(module_domain, "panda") as policy:
        wait_until(lambda: len(arm.rows(m.TARGET_POSE)[0]) > 20, "targets")
        policy.stop(signal.SIGKILL)
    killed_ns = last_target_ns(arm)
    assert_frozen(arm, killed_ns + 2 * HOLD_NS)
    assert "no heartbeat" in arm.safety()


def test_a_policy_that_connects_twice(module_domain, arm):
    """The second client of a real-time node is refused while the first commands; what it is told is why."""
    with Process(module_domain, ["env", "panda", "reach"], "child") as first:
        first.await_line("stepping")
        arm.await_safety("following")
        with Commander(module_domain).connect() as second:
            second.stream(HOME, DOWN)
            second.await_refusal("second publisher")
        assert first.alive


# -------------------------------------------------------------------------------------------------- clients that cannot


CLIENTS = [
    (["env", "panda", "peg_insert"], "guards task 'reach', wanted is 'peg_insert'"),
    (["env", "nobody", "reach", "1.0"], "nobody offers /nobody/arm/get_parameters"),
]


@pytest.mark.parametrize(("args", "words"), CLIENTS)
def test_a_client_that_cannot_is_told_why(arm, module_domain, args, words):
    with Process(module_domain, args, "child") as client:
        assert client.wait() == 2
        assert words in client.log() and "Traceback" not in client.log()


def test_a_client_with_another_arm_or_other_bounds_is_told_so(arm):
    from robot_rl.build import make_env

    with pytest.raises(ValueError, match="guards arm 'panda', wanted is 'fr3'"):
        make_env("reach", arm="fr3", world="ros", settings=["arm.namespace=panda"])
    from hardware import ros
    from robot_rl.types import Bounds
    from tasks import reach

    task = reach.make(reach.Config())
    other = Bounds((0.0,) * 3, (1.0,) * 3, (1.0, 0.0, 0.0, 0.0), (1.0,) * 3)
    with pytest.raises(ValueError, match="other bounds than this task's"):
        ros.make(ros.Config(), "panda", "reach", task.scene, other)


def test_in_another_domain_there_is_nobody(arm):
    with reserved_domain() as other, Process(other, ["env", "panda", "reach", "1.0"], "child") as client:
        assert client.wait() == 2
        assert f"in ROS_DOMAIN_ID {other} after 1 s" in client.log() and "robot-rl up twin" in client.log()


def test_a_node_that_is_not_active_or_not_configured_is_named(arm, module_domain):
    try:
        assert arm.transition("deactivate")
        with Process(module_domain, ["env", "panda", "reach", "2.0"], "child") as client:
            assert client.wait() == 2
            assert "active" in client.log() and "Traceback" not in client.log()
        assert arm.transition("cleanup")
        with Process(module_domain, ["env", "panda", "reach", "2.0"], "child") as client:
            assert client.wait() == 2
            assert "/panda/arm is not configured" in client.log()
    finally:
        if arm.lifecycle() == "unconfigured":
            assert arm.transition("configure")
        assert arm.transition("activate")
        arm.connect()


# ------------------------------------------------------------------------------------------------------------ lock-step


@pytest.fixture(scope="module")
def lockstep(module_domain):
    with arm_node(module_domain, "steps", lockstep=True) as process:
        yield process
        assert process.stop() == 0, process.log()


def test_garbage_in_lock_step_is_refused_and_no_time_passes(lockstep, module_domain):
    with Commander(module_domain, "steps", lockstep=True) as arm:
        wait_until(lambda: arm.step.get_subscription_count() > 0, "steps are heard")
        assert arm.place(START) == (True, "")
        stamp_ns = m.columns_ns(m.from_columns(arm.newest(m.GUARD_STATE), m.GUARD))
        good = dict(zip(m.STEP, [0.0, 0.0, 0.1, 0.2, 0.0, *[math.nan] * 6], strict=True))
        bad = [
            good | {"target_sec": math.nan},
            good | {"target_nanosec": math.inf},
            good | {"dt_s": math.nan},
            good | {"dt_s": -0.1},
            good | {"dt_s": 1e9},
            good | {"dt_s": 0.00015},
        ]
        for row in bad:
            arm.step.publish(m.to_columns(m.STEP, row.values()))
        arm.numbers(arm.step, [1.0])
        arm.step.publish(m.to_columns(("a", "b"), (1.0, 2.0)))
        arm.step.publish(m.to_columns(m.STEP, good.values()))
        seen = wait_until(
            lambda: (
                (row := m.from_columns(arm.newest(m.GUARD_STATE), m.GUARD))["refused"] >= 8
                and m.columns_ns(row) > stamp_ns
                and row
            ),
            "the good step after the bad ones",
        )
        assert m.columns_ns(seen) - stamp_ns == 100_000_000
        assert lockstep.alive and "Traceback" not in lockstep.log()


def test_a_policy_killed_in_lock_step_makes_way_for_the_next(lockstep, module_domain):
    """At once, though no time passes in which it could be silent; the next one's numbers are those of a fresh world."""
    from robot_rl.build import make_env

    def play(env) -> list[np.ndarray]:
        env.reset(seed=7)
        act = np.full(env.action_space.shape, 0.5)
        return [np.concatenate([*map(np.ravel, env.step(act)[0].values())]) for _ in range(5)]

    with Process(module_domain, ["env", "steps", "reach"], "child") as policy:
        policy.await_line("stepping")
        policy.stop(signal.SIGKILL)
    near, far = make_env("reach"), make_env("reach", world="ros", settings=["arm.namespace=steps"])
    try:
        np.testing.assert_array_equal(play(far), play(near))
    finally:
        near.close()
        far.close()


def test_a_stranger_does_not_let_time_pass(lockstep, module_domain):
    """A step in another's episode would shift all its numbers, and nobody would notice."""
    from robot_rl.build import make_env

    near, far = make_env("reach"), make_env("reach", world="ros", settings=["arm.namespace=steps"])
    act = np.full(near.action_space.shape, 0.5)
    try:
        for env in (near, far):
            env.reset(seed=7)
            env.step(act)
        with Commander(module_domain, "steps", lockstep=True) as stranger:
            wait_until(lambda: stranger.step.get_subscription_count() > 0, "steps are heard")
            row = [0.0, 0.0, 0.1, 0.2, 0.0, *[math.nan] * 6]
            stranger.step.publish(m.to_columns(m.STEP, row))
            lockstep.await_line("step is published by another process")

        here, there = near.step(act)[0], far.step(act)[0]
        for key, value in here.items():
            np.testing.assert_array_equal(there[key], value)
    finally:
        near.close()
        far.close()
