"""The loop around an arm: homing, a new world, lock-step, and requests from threads."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from controllers import control_loop, watchdog
from controllers.guarded_arm import GuardedArm
from robot_rl.types import ArmCommand, Pose, Start
from tests.loops import BOUNDS, DOWN, HOME, PERIOD_S, Driver, make, panda, run, said, target
from tests.mock_arm import MockArm
from tests.ros_graph import wait_until

# ------------------------------------------------------------------------------------------------- homing and place


def test_homing_goes_there_within_the_speed_limit_and_tells_when_it_is_there(clock):
    loop = make(Driver(clock))
    loop.home = target((0.1, 0.1, 0.0))
    loop.go_home()
    ticks = run(loop, 1.0)
    assert ticks[0].mode == "homing" and said(ticks[-1]) == ("holding", "no target yet")
    steps = np.linalg.norm(np.diff([tick.reference.pos_m for tick in ticks], axis=0), axis=1)
    assert steps.max() <= BOUNDS.speed_mps * PERIOD_S * (1 + 1e-9)
    assert np.linalg.norm(ticks[-1].reference.pos_m - loop.home.tcp_pos_m) < control_loop.HOME_M + 0.003


def test_homing_is_refused_in_words(clock):
    loop = make(Driver(clock))
    with pytest.raises(ValueError, match="no home"):
        loop.go_home()
    loop.home = target()
    loop.command(target())
    with pytest.raises(ValueError, match="somebody commands"):
        loop.go_home()
    clock.now_s += 1.0
    loop.estop()
    with pytest.raises(ValueError, match="emergency stop"):
        loop.go_home()


def test_homing_ends_with_a_fault_and_does_not_go_on_after_it(clock):
    loop = make(Driver(clock))
    loop.home = target((0.1, 0.1, 0.0))
    loop.go_home()
    run(loop, 0.1)
    loop.estop()
    assert run(loop, 0.1)[-1].mode == "emergency stop"
    there = loop.arm.reference.pos_m
    loop.arm.clear_fault()
    run(loop, 0.3)
    np.testing.assert_array_equal(loop.arm.reference.pos_m, there)
    assert loop.last.mode == "holding"


def test_homing_that_never_arrives_ends(clock):
    loop = make(Driver(clock, blocked=True))
    loop.home = target((0.1, 0.0, 0.0))
    loop.go_home()
    ticks = run(loop, control_loop.HOME_S + 0.1)
    assert ticks[-1].mode == "holding" and {tick.cause for tick in ticks if "0.100 m from home" in tick.cause}


def test_place_is_a_new_world(clock):
    twin = panda()
    loop = make(twin)
    run(loop, 0.3, lambda: loop.command(ArmCommand(HOME + [0.0, 0.05, 0.0], DOWN)))
    loop.estop()
    loop.command(ArmCommand(HOME + [0.0, 0.05, 0.0], DOWN))
    before = loop.last
    tick = loop.place(Start(Pose(HOME, DOWN)))
    assert (tick.world, tick.fault, said(tick)) == (1, "", ("holding", "no target yet"))
    assert tick.stamp_ns >= before.stamp_ns
    assert run(loop, 0.5)[-1].mode == "holding"  # neither the old command nor the old silence
    np.testing.assert_allclose(loop.last.reference.pos_m, tick.reference.pos_m, atol=1e-9)


# -------------------------------------------------------------------------------------------------------- lock-step


def test_lock_step_is_the_guarded_arm_itself():
    """The same commands through the loop and without it: the same numbers, and stamps that say what was stepped."""
    loop, plain = make(panda(), lockstep=True), GuardedArm(panda(), BOUNDS)
    begun_ns = loop.now_ns()
    for step in range(20):
        command = ArmCommand(HOME + [0.0, 0.01 * step, 0.0], DOWN, valid_s=0.15)
        stiffness = np.full(6, 100.0 + step)
        loop.command(replace(command, valid_s=9.0))
        loop.complete(0.5, 0.15, stiffness)
        plain.command(replace(command, gripper=0.5, stiffness=stiffness))
        tick, state = loop.step(0.1), plain.wait(0.1)
        for name in ("q_rad", "dq_radps", "tau_nm", "tcp_pos_m", "tcp_wrench"):
            np.testing.assert_array_equal(getattr(tick.state, name), getattr(state, name))
        assert tick.stamp_ns - begun_ns == 100_000_000 * (step + 1)
        assert tick.energy == plain.energy and tick.clips == plain.clips
    tick = loop.step(0.1)
    plain.wait(0.1)
    assert tick.mode == "holding" and not plain.following  # nothing was commanded anew
    assert loop.place(Start(Pose(HOME, DOWN))).stamp_ns > tick.stamp_ns


def test_lock_step_refuses_what_is_no_multiple_of_the_tick_and_no_time_passes():
    loop = make(panda(), lockstep=True)
    before = loop.now_ns()
    with pytest.raises(ValueError, match="no multiple"):
        loop.step(0.0105)
    assert loop.now_ns() == before


def test_homing_in_lock_step_arrives_and_says_so():
    loop = make(panda(), lockstep=True)
    loop.home = ArmCommand(HOME + [0.0, 0.05, 0.0], DOWN)
    loop.go_home()
    tick = loop.step_home()
    assert np.linalg.norm(tick.state.tcp_pos_m - loop.home.tcp_pos_m) < 0.005
    assert loop.last.mode == "holding" and not loop.homing
    assert loop.ticks[-1].stamp_ns == loop.now_ns()


def test_homing_in_lock_step_ends_with_a_fault():
    loop = make(panda(), lockstep=True)
    loop.home = ArmCommand(HOME + [0.0, 0.05, 0.0], DOWN)
    loop.go_home()
    loop.estop()
    assert loop.step_home().fault == "emergency stop" and not loop.homing


# ---------------------------------------------------------------------------------------------------------- threads


class Sleeper(MockArm):
    """A driver in real time."""

    def __init__(self) -> None:
        super().__init__()
        self.dead = False
        self.hang = threading.Event()
        self.hang.set()

    def wait(self, dt_s: float):
        if self.dead:
            raise OSError("the cable is out")
        self.hang.wait()
        threading.Event().wait(dt_s)
        return super().wait(dt_s)


@pytest.fixture
def running():
    """A loop in its thread, patient with a busy computer; ended whatever the test does."""
    loop = make(Sleeper(), watchdog.Config(late_ticks=10_000, state_s=1.0, ramp_s=0.1))
    loop.start()
    yield loop
    loop.arm.unguarded.hang.set()
    loop.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "control"]


def test_requests_from_many_threads_run_between_ticks_in_one(running):
    ran_in, results = set(), []

    def ask(number: int) -> None:
        def work() -> int:
            ran_in.add(threading.current_thread().name)
            return number

        results.append((number, running.ask(work)))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ran_in == {"control"} and len(results) == 20 and all(asked == got for asked, got in results)


@pytest.mark.parametrize("error", [ValueError("not so"), TimeoutError("too slow"), KeyError("x"), OSError(5, "io")])
def test_exceptions_come_back_to_who_asked_and_the_loop_goes_on(running, error):
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        running.ask(fail)
    assert caught.value is error
    assert running.ask(lambda: 3) == 3 and running.error == ""


def test_a_request_may_ask_itself(running):
    assert running.ask(lambda: running.ask(lambda: 5)) == 5


def test_a_driver_that_raises_ends_the_loop_and_everything_says_why(running):
    ticks = running.timing.ticks
    wait_until(lambda: running.timing.ticks > ticks + 5, "it runs")
    running.arm.unguarded.dead = True
    wait_until(lambda: running.error, "the error")
    assert running.error == "OSError: the cable is out"
    with pytest.raises(RuntimeError, match="the cable is out"):
        running.ask(lambda: 1)
    with pytest.raises(RuntimeError, match="the cable is out"):
        running.estop()
    wait_until(lambda: running.ticks[-1].mode == "fault", "it is told")
    assert running.ticks[-1].cause == running.error
    assert running.ticks[-1].stamp_ns >= running.ticks[-2].stamp_ns


def test_a_publisher_that_raises_leaves_no_arm_running():
    """Whatever ends the loop, the arm is told to stop: its last reference must not stand for ever."""
    count = []

    def publish(tick) -> None:
        count.append(tick)
        if len(count) == 5:
            raise TypeError("a fault of ours")

    loop = make(Sleeper(), publish=publish)
    loop.start()
    wait_until(lambda: loop.error, "the error")
    wait_until(lambda: loop.arm.unguarded.stopped, "the arm is stopped")
    loop.stop()
    assert loop.error == "TypeError: a fault of ours" and count[-1].mode == "fault"


def test_a_driver_that_hangs_does_not_hang_who_asks(running, monkeypatch):
    monkeypatch.setattr(control_loop, "ANSWER_S", 0.5)
    running.arm.unguarded.hang.clear()
    with pytest.raises(RuntimeError, match="does not answer"):  # the first may come just before it hangs
        for _ in range(3):
            running.ask(lambda: 1)
    with pytest.raises(RuntimeError, match=r"within 0\.1 s: it takes long"):
        running.ask(lambda: 1, 0.1, "it takes long")


def test_stop_ramps_down_holds_and_may_be_called_twice(running):
    running.command(target((0.05, 0.0, 0.0)))
    wait_until(lambda: any(tick.mode == "following" for tick in running.ticks), "it follows")
    arm = running.arm.unguarded
    running.stop()
    assert {tick.mode for tick in running.ticks[-5:]} == {"floating"} and running.ticks[-1].cause == "deactivated"
    assert arm.stopped == 1
    stiffness = [command.stiffness[0] for command in arm.given]
    assert stiffness[-1] < 0.5 * stiffness[0]
    count = len(running.ticks)
    running.stop()
    assert len(running.ticks) == count


def test_a_loop_that_starts_again_holds_first_with_full_springs(running):
    """Whatever was commanded before it stopped is forgotten; no request of then is carried out now."""
    running.command(target((0.05, 0.0, 0.0)))
    wait_until(lambda: any(tick.mode == "following" for tick in running.ticks), "it follows")
    running.stop()
    running.command(target((0.2, 0.2, 0.0)))  # came too late
    late: list[int] = []
    running._requests.put((lambda: late.append(1), control_loop.Future()))
    here = running.arm.unguarded.state.tcp_pos_m
    running.ticks.clear()
    running.start()
    wait_until(lambda: len(running.ticks) > 5, "it runs")
    assert {said(tick) for tick in running.ticks} == {("holding", "no target yet")} and not late
    np.testing.assert_array_equal(running.arm.unguarded.given[-1].stiffness, running.arm.default_stiffness)
    np.testing.assert_allclose(running.ticks[-1].reference.pos_m, here, atol=1e-9)


def test_who_asks_a_stopped_loop_is_served_at_once(running):
    running.stop()
    assert running.ask(lambda: threading.current_thread()) is threading.current_thread()


def test_a_twin_is_held_to_the_wall_clock():
    """By count, not by duration: as much simulated as real time has passed, less what was lost and told."""
    loop = make(panda())
    loop.start()
    try:
        wait_until(lambda: loop.timing.ticks >= 30, "thirty ticks")
    finally:
        loop.stop()
    stamps = np.array([tick.stamp_ns for tick in loop.ticks]) * 1e-9
    clocks = np.array([tick.state.t_s for tick in loop.ticks])
    assert np.all(np.diff(stamps) > 0) and np.all(np.diff(clocks) > 0)
    assert clocks[-1] - clocks[0] <= stamps[-1] - stamps[0] + 2 * PERIOD_S  # never faster
