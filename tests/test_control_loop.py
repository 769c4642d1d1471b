"""The loop around an arm: the ladder of silence, and faults that only the loop can see.

Time is a clock of the test's own, and ticks are taken one by one: nothing here depends on how busy the computer is.
"""

from dataclasses import replace

import numpy as np
import pytest

from controllers import guard, watchdog
from controllers.guard import CLOCK_BACKWARDS, FAULTS, HEARTBEAT_LOST, LOOP_LATE, STATE_TOO_OLD
from controllers.guarded_arm import GuardedArm
from robot_rl.types import ArmCommand
from tests.loops import BOUNDS, DOWN, HERE, PERIOD_S, Driver, make, panda, run, said, target

# ------------------------------------------------------------------------------------------------------------- ladder


def test_hold_float_and_following_again_on_a_twin(clock):
    """By the stamps of the ticks; the reference stands still, then goes with the arm, and no torque ever jumps."""
    loop = make(panda())
    start = loop.last.state.tcp_pos_m
    assert said(run(loop, 0.1)[-1]) == ("holding", "no target yet")
    sent = []

    def send():
        sent.append(loop.now_ns())
        loop.command(ArmCommand(start + [0.0, 0.05 * np.sin(len(sent) / 10.0), 0.0], DOWN))

    moving = run(loop, 0.6, send)
    assert {tick.mode for tick in moving[1:]} == {"following"}
    silent = run(loop, 2.0)
    age_s = np.array([(tick.stamp_ns - sent[-1]) * 1e-9 for tick in silent])
    for tick, age in zip(silent, age_s, strict=True):
        expected = "following" if age <= 0.2 else "holding" if age <= 1.0 else "floating"
        assert tick.mode == expected or min(abs(age - 0.2), abs(age - 1.0)) < 1.5 * PERIOD_S
    references = np.array([tick.reference.pos_m for tick in silent])
    held = references[(age_s > 0.2 + PERIOD_S) & (age_s < 1.5 - PERIOD_S)]  # on through the ramp of 0.5 s
    np.testing.assert_array_equal(held, np.broadcast_to(held[0], held.shape))
    floating = silent[-1]
    np.testing.assert_allclose(floating.reference.pos_m, floating.state.tcp_pos_m, atol=1e-3)
    assert np.linalg.norm(floating.state.tcp_twist[:3]) < 0.01 and loop.arm.fault == ""
    here = floating.state.tcp_pos_m
    again = run(loop, 0.5, lambda: loop.command(ArmCommand(here + [0.0, 0.02, 0.0], DOWN)))
    assert again[-1].mode == "following" and np.linalg.norm(again[-1].state.tcp_pos_m - here - [0, 0.02, 0]) < 0.01
    torques = np.array([tick.state.tau_nm for tick in [*silent, *again]])
    assert np.abs(np.diff(torques, axis=0)).max() < 3.0
    np.testing.assert_array_equal(loop.arm.stiffness, loop.arm.default_stiffness)


def test_the_force_of_a_blocked_arm_never_jumps_up(clock):
    """Pressing with 20 N when the commander falls silent: as hard in hold, then less and less, and not harder when the
    next target comes, whenever that is."""
    for silent_s in (0.5, 1.1, 1.25, 1.45, 2.0):
        arm = Driver(clock, blocked=True)
        loop = make(arm)
        run(loop, 0.5, lambda loop=loop: loop.command(target((0.02, 0.0, 0.0))))
        assert arm.force_n() == pytest.approx(20.0, abs=0.1)
        forces = []
        run(loop, silent_s, lambda arm=arm, forces=forces: forces.append(arm.force_n()))
        assert np.all(np.diff(forces) <= 1e-9)
        before_n = arm.force_n()
        run(loop, PERIOD_S, lambda loop=loop: loop.command(target((0.02, 0.0, 0.0))))
        assert arm.force_n() <= before_n + 0.25 * PERIOD_S * 1000.0 + 1e-6, silent_s  # the speed limit's step


def test_a_lost_heartbeat_freezes_the_reference_although_targets_come(clock):
    loop = make(Driver(clock))
    config, beaten = loop.config, clock.now_s

    def send(beat: bool):
        loop.command(target((0.0, 0.1 * np.sin(clock.now_s), 0.0)))
        if beat:
            loop.beat()

    assert run(loop, 0.3, lambda: send(True))[-1].mode == "following"
    beaten = clock.now_s
    lost = run(loop, 1.5, lambda: send(False))
    ages = np.array([(index + 1) * PERIOD_S for index in range(len(lost))])
    assert clock.now_s - beaten == pytest.approx(1.5, abs=0.01)
    held = [tick for tick, age in zip(lost, ages, strict=True) if age > config.heartbeat_hold_s + 2 * PERIOD_S]
    assert {tick.mode for tick in held} == {"holding", "floating"}
    references = np.array([tick.reference.pos_m for tick in held])
    np.testing.assert_allclose(references, np.broadcast_to(references[0], references.shape), atol=1e-12)
    assert held[0].cause == "no heartbeat for 0.1 s" and held[-1].cause == "no heartbeat for 0.5 s"
    assert run(loop, 0.1, lambda: send(True))[-1].mode == "following"


def test_hold_after_float_is_a_hold_with_full_springs(clock):
    """The heartbeat comes back, targets do not: what is called holding has to hold."""
    arm = Driver(clock, blocked=True)
    config = watchdog.Config(float_s=5.0)
    loop = make(arm, config)
    loop.beat()
    run(loop, 0.1, lambda: loop.command(target((0.02, 0.0, 0.0))))
    assert run(loop, 1.5)[-1].mode == "floating" and not arm.given[-1].stiffness.any()
    loop.beat()
    assert run(loop, 0.05)[-1].mode == "holding"
    np.testing.assert_array_equal(arm.given[-1].stiffness, arm.default_stiffness)
    assert arm.force_n() < 1e-6


def test_a_new_commander_without_heartbeats_is_not_held_to_them(clock):
    loop = make(Driver(clock))
    loop.beat()
    assert run(loop, 0.3, lambda: loop.command(target()))[-1].mode == "holding"
    loop.beat(heard=False)
    assert run(loop, 1.0, lambda: loop.command(target()))[-1].mode == "following"


def test_a_fault_for_a_lost_heartbeat_latches(clock):
    loop = make(Driver(clock), watchdog.Config(heartbeat_fault_s=1.0))
    loop.beat()
    run(loop, 1.2, lambda: loop.command(target()))
    assert loop.arm.fault == FAULTS[HEARTBEAT_LOST]
    loop.beat()
    assert said(run(loop, 0.1, lambda: loop.command(target()))[-1]) == ("fault", "heartbeat lost")
    loop.arm.clear_fault()
    loop.beat()
    assert run(loop, 0.05, lambda: loop.command(target()))[-1].mode == "following"


def test_commands_of_a_fault_are_not_kept_for_later(clock):
    loop = make(Driver(clock))
    loop.estop()
    run(loop, 0.1, lambda: loop.command(target((0.1, 0.0, 0.0))))
    run(loop, 0.3)
    loop.arm.clear_fault()
    run(loop, 0.1)
    np.testing.assert_array_equal(loop.arm.reference.pos_m, HERE)


# -------------------------------------------------------------------------------------------------------- guarded arm


def test_trip_latches_the_first_fault_and_holds_where_the_arm_is(clock):
    arm = Driver(clock)
    guarded = GuardedArm(arm, BOUNDS, guard.Config(control_hz=100.0))
    guarded.command(target((0.1, 0.0, 0.0), valid_s=10.0))
    guarded.wait(0.1)
    there = arm.read().tcp_pos_m
    guarded.trip(LOOP_LATE)
    guarded.trip(STATE_TOO_OLD)
    assert guarded.fault == "control loop late" and not guarded.following
    guarded.wait(0.5)
    np.testing.assert_array_equal(guarded.reference.pos_m, there)
    guarded.clear_fault()
    assert guarded.fault == ""


def test_what_the_springs_gave_before_a_trip_is_charged(clock):
    driver = Driver(clock, blocked=True)
    loop = make(driver)
    run(loop, 0.2, lambda: loop.command(target((0.02, 0.0, 0.0))))
    before = loop.arm.energy
    driver.state = replace(driver.state, tcp_pos_m=loop.arm.reference.pos_m)  # free: the spring pulls it all the way
    loop.arm.trip(LOOP_LATE)
    assert before["potential_j"] > 0.05
    assert loop.arm.energy["work_j"] - before["work_j"] == pytest.approx(before["potential_j"], rel=1e-6)


def test_a_relaxed_arm_follows_whoever_moves_it(clock):
    arm = Driver(clock, blocked=True)
    guarded = GuardedArm(arm, BOUNDS, guard.Config(control_hz=100.0))
    for share in (0.5, 0.0):
        guarded.relax(share)
        guarded.wait(PERIOD_S)
        np.testing.assert_array_equal(arm.given[-1].stiffness, share * arm.default_stiffness)
    arm.state = replace(arm.state, tcp_pos_m=HERE + [0.0, 0.1, 0.0])
    guarded.relax(0.0)
    guarded.wait(PERIOD_S)
    np.testing.assert_array_equal(guarded.reference.pos_m, arm.state.tcp_pos_m)


def test_a_fault_is_not_relaxed(clock):
    arm = Driver(clock, blocked=True)
    guarded = GuardedArm(arm, BOUNDS, guard.Config(control_hz=100.0))
    guarded.trip(LOOP_LATE)
    guarded.relax(0.0)
    guarded.wait(PERIOD_S)
    np.testing.assert_array_equal(arm.given[-1].stiffness, arm.default_stiffness)


def test_an_arm_that_cannot_soften_is_let_go_at_the_end_of_the_ramp(clock):
    arm = Driver(clock, blocked=True)
    arm.limits = replace(arm.limits, cannot=frozenset({"stiffness"}))
    loop = make(arm)
    run(loop, 0.3, lambda: loop.command(target((0.02, 0.0, 0.0))))
    assert run(loop, 2.0)[-1].mode == "floating" and arm.given[-1].stiffness is None
    np.testing.assert_array_equal(arm.given[-1].tcp_pos_m, arm.state.tcp_pos_m)


# ------------------------------------------------------------------------------------------ faults of a driver's loop


def test_a_clock_that_stands_still_is_a_fault(clock):
    arm = Driver(clock)
    loop = make(arm)
    run(loop, 0.1, lambda: loop.command(target()))
    arm.frozen = True
    frozen = run(loop, 0.2)
    first = next(index for index, tick in enumerate(frozen) if tick.fault)
    assert frozen[first].fault == FAULTS[STATE_TOO_OLD] and 4 <= first <= 6  # 0.05 s
    assert frozen[first].mode == "fault"
    arm.frozen = False
    run(loop, 0.1)
    assert loop.arm.fault == FAULTS[STATE_TOO_OLD]  # until a person clears it
    loop.arm.clear_fault()
    assert run(loop, 0.1)[-1].fault == ""


def test_a_clock_that_goes_backwards_is_a_fault_and_believed_after_it(clock):
    arm = Driver(clock)
    loop = make(arm)
    run(loop, 0.1)
    arm.state = replace(arm.state, t_s=arm.state.t_s - 5.0)
    assert run(loop, PERIOD_S)[-1].fault == FAULTS[CLOCK_BACKWARDS]
    loop.arm.clear_fault()
    assert run(loop, 0.2)[-1].fault == ""


def test_a_clock_that_is_no_number_is_a_fault_and_not_for_ever(clock):
    arm = Driver(clock)
    loop = make(arm)
    run(loop, 0.1)
    good_s = arm.state.t_s
    arm.state = replace(arm.state, t_s=float("nan"))
    assert run(loop, 0.1)[-1].fault in (FAULTS[STATE_TOO_OLD], FAULTS[guard.NOT_FINITE])
    arm.state = replace(arm.state, t_s=good_s + 0.1)
    run(loop, 0.05)
    loop.arm.clear_fault()
    assert run(loop, 0.2)[-1].fault == ""


def test_a_loop_that_is_late_on_end_is_a_fault(clock):
    arm = Driver(clock)
    loop = make(arm, watchdog.Config(late_ticks=20))
    arm.late_s = 1.5 * PERIOD_S
    late = run(loop, 20 * PERIOD_S)
    assert late[-1].fault == "" and loop.timing.late_on_end == 20
    arm.late_s = 0.0
    run(loop, PERIOD_S)
    assert loop.timing.late_on_end == 0  # on end is what counts
    arm.late_s = 1.5 * PERIOD_S
    assert run(loop, 21 * PERIOD_S)[-1].fault == FAULTS[LOOP_LATE]
    assert loop.timing.late == 41 and loop.timing.worst_s == pytest.approx(1.5 * PERIOD_S)


def test_measurements_that_are_no_numbers_are_a_fault(clock):
    arm = Driver(clock)
    loop = make(arm)
    run(loop, 0.05, lambda: loop.command(target()))
    arm.state = replace(arm.state, q_rad=np.full(6, np.nan))
    assert run(loop, 0.05)[-1].fault == FAULTS[guard.NOT_FINITE]
