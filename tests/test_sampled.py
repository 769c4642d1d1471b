"""The ledger of an arm that closes its own loop: a point mass with a vendor's spring-damper at 1 kHz, and the filter at
50 to 200 Hz around it. What its springs deliver, less what its damping takes, is never more than the budget."""

import dataclasses
import math

import numpy as np
import pytest

from controllers.filters import ledger, passivity, sampled
from controllers.guard import Config
from controllers.guarded_arm import GuardedArm
from controllers.impedance import spring_potential, spring_wrench
from robot_rl.types import ArmCommand, Bounds, Pose
from tests.mock_arm import LIMITS, MockArm
from tests.plants import IDENTITY

INNER_S = 0.001
BOUNDS = Bounds(
    (-1.0,) * 3, (1.0,) * 3, (0.0, 0.0, 0.0, 1.0), (1.0,) * 3, speed_mps=1.0, force_n=math.inf, trip_force_n=math.inf
)


class SpringArm(MockArm):
    """A mass on the vendor's own impedance loop: its torque is held for 1 ms, as any sampled law's is."""

    def __init__(self, damping: float, mass_kg: float = 2.0) -> None:
        super().__init__(dataclasses.replace(LIMITS, dq_max_radps=np.full(6, 100.0)))
        self.state = dataclasses.replace(self.state, tcp_pos_m=np.zeros(3), tcp_quat_xyzw=IDENTITY.copy())
        self.damping, self.mass_kg, self.v = damping, mass_kg, np.zeros(3)
        self.law = sampled.spring_of(self)
        self.goal, self.stiffness = np.zeros(3), self.default_stiffness
        self.spring_j = self.damper_j = 0.0

    def command(self, command: ArmCommand) -> None:
        self.goal, self.stiffness = command.tcp_pos_m, command.stiffness

    def wait(self, dt_s: float):
        x = self.state.tcp_pos_m.copy()
        for _ in range(round(dt_s / INNER_S)):
            spring = spring_wrench(x, IDENTITY, self.goal, IDENTITY, self.stiffness, self.law)[:3]
            damper = -self.damping * self.v
            after = self.v + INNER_S * (spring + damper) / self.mass_kg
            moved = INNER_S * 0.5 * (self.v + after)  # exact under a force that is held
            x, self.v = x + moved, after
            self.spring_j += float(spring @ moved)
            self.damper_j += float(damper @ moved)
        twist = np.concatenate([self.v, np.zeros(3)])
        self.state = dataclasses.replace(self.state, t_s=self.state.t_s + dt_s, tcp_pos_m=x, tcp_twist=twist)
        return self.state


def drive(damping: float, control_hz: float, seed: int, policy: str, **config) -> tuple[np.ndarray, GuardedArm]:
    """Rows of (spring work, spring and damper work, ledger, free energy) J at each sample of four seconds."""
    rng, arm = np.random.default_rng(seed), SpringArm(damping)
    guarded = GuardedArm(arm, BOUNDS, Config(control_hz=control_hz), ledger.Config(**config))
    rows = []
    for step in range(int(4.0 * control_hz)):
        x, v = arm.state.tcp_pos_m, arm.v
        if policy == "pump":  # ahead of the motion, stiff while the spring drives it, soft while it would brake
            pull = (arm.goal - x) * v >= 0.0
            goal, share = x + np.copysign(0.3, v), np.where(pull, 1.0, 0.05)
        elif policy == "bang":
            goal, share = np.full(3, 0.3 if step // 20 % 2 else -0.3), np.full(3, 1.0 if step % 30 < 15 else 0.1)
        else:
            goal, share = rng.uniform(-0.4, 0.4, 3), rng.uniform(0.0, 1.0, 3)
        stiffness = np.concatenate([3000.0 * share, np.full(3, 50.0)])
        guarded.command(ArmCommand(np.clip(goal, -0.9, 0.9), IDENTITY, stiffness=stiffness, valid_s=1.0))
        guarded.wait(1.0 / control_hz)
        found = ledger.summarize(guarded._limits, guarded._energy, 0.3)
        rows.append((arm.spring_j, arm.spring_j + arm.damper_j, found["ledger_j"], found["free_min_j"]))
    return np.array(rows), guarded


@pytest.mark.parametrize("control_hz", [50.0, 100.0, 200.0])
@pytest.mark.parametrize("policy", ["pump", "bang", "random"])
def test_springs_less_damping_deliver_no_more_than_the_budget(policy, control_hz):
    """With the least damping for which it is claimed, K T_in / 2, and with an ordinary one. There is no valve: the last
    interval before the float may overdraw the reserve by some millijoules."""
    for damping in (0.5 * 3000.0 * INNER_S, 20.0):
        rows, guarded = drive(damping, control_hz, 0, policy)
        assert rows[:, 1].max() <= 2.0 + 1e-9 and guarded.fault in ("", "energy depleted")
        assert rows[:, 3].min() >= -0.01


@pytest.mark.parametrize("policy", ["pump", "bang", "random"])
def test_without_the_filter_the_same_springs_deliver_many_times_as_much(policy):
    rows, _ = drive(1.5, 50.0, 0, policy, enforce=False)
    assert rows[:, 1].max() > 100.0 and rows[:, 3].min() < -100.0


@pytest.mark.parametrize("policy", ["pump", "bang", "random"])
def test_the_leak_is_what_an_undamped_inner_loop_makes(policy):
    """Without damping the sampled springs make energy; uncharged (an inner period of nearly zero) it is too much."""
    assert drive(0.0, 100.0, 0, policy)[0][:, 1].max() <= 2.01
    assert drive(0.0, 100.0, 0, policy, inner_period_s=1e-5)[0][:, 1].max() > 2.4


def test_a_change_of_stiffness_that_is_not_charged_delivers_more_than_the_budget(monkeypatch):
    """The mutation gives the ledger what a stiffening adds to the springs, so that the free energy never sees it."""
    limit_reference = passivity.limit_reference

    def mutated(limits, energy, memory, before, pos_m, quat_xyzw, law):
        stiffer = np.maximum(memory.stiffness, before.stiffness)
        soft_j, stiff_j = (
            spring_potential(pos_m, quat_xyzw, before.pos_m, before.quat_xyzw, stiffness, law)
            for stiffness in (before.stiffness, stiffer)
        )
        energy.ledger_j[0] += stiff_j - soft_j
        limit_reference(limits, energy, memory, before, pos_m, quat_xyzw, law)

    monkeypatch.setattr(passivity, "limit_reference", mutated)
    assert drive(1.5, 100.0, 0, "random")[0][:, 1].max() > 5.0


class Loose(SpringArm):
    """Stopped, its springs let go until the next command; a person may move it about."""

    def stop(self) -> None:
        self.stiffness = np.zeros(6)

    def carry(self, by_m: float) -> None:
        self.state = dataclasses.replace(self.state, tcp_pos_m=self.state.tcp_pos_m + [by_m, 0.0, 0.0])
        self.v = np.zeros(3)


def test_an_arm_that_was_carried_while_stopped_has_earned_nothing():
    """The reference is where the arm is found, so its springs do not pull it back with energy nobody put in."""
    arm = Loose(damping=3.0)
    guarded = GuardedArm(arm, BOUNDS, Config(control_hz=100.0))
    for _ in range(12):
        guarded.command(ArmCommand(arm.state.tcp_pos_m + [0.02, 0.0, 0.0], IDENTITY, valid_s=1.0))
        guarded.wait(0.1)
        guarded.stop()
        before_j = guarded.energy["ledger_j"]
        arm.carry(0.03)
        at_m = arm.state.tcp_pos_m
        guarded.wait(0.04)
        assert guarded.energy["ledger_j"] <= before_j + 1e-12
        np.testing.assert_allclose(arm.state.tcp_pos_m, at_m, atol=1e-12)
    assert arm.spring_j + arm.damper_j <= 2.0


def test_a_pause_between_two_waits_leaks_as_well():
    arm = SpringArm(damping=20.0)
    guarded = GuardedArm(arm, BOUNDS, Config(control_hz=100.0))
    guarded.wait(0.02)
    arm.state = dataclasses.replace(arm.state, t_s=arm.state.t_s + 5.0, tcp_twist=np.array([0.1, 0, 0, 0, 0, 0]))
    before_j = guarded.energy["ledger_j"]
    guarded.wait(0.01)
    leak_j = 0.5 * INNER_S * 5.01 * 1000.0 * 0.1**2
    assert before_j - guarded.energy["ledger_j"] == pytest.approx(leak_j, rel=1e-6)


class Known(SpringArm):
    """The same arm, which knows the damping of its loop."""

    told = 1.0  # times what is true

    def damping_of(self, stiffness):
        return self.told * np.array([self.damping] * 3 + [0.0] * 3)


@pytest.mark.parametrize("control_hz", [50.0, 200.0])
@pytest.mark.parametrize("policy", ["pump", "bang", "random"])
def test_credited_damping_still_delivers_no_more_than_the_budget(policy, control_hz, monkeypatch):
    """What is delivered is spring work less damper work; the credit gives back part of the latter, never more."""
    monkeypatch.setitem(globals(), "SpringArm", Known)
    for damping in (20.0, 150.0):
        rows, guarded = drive(damping, control_hz, 0, policy)
        assert rows[:, 1].max() <= 2.0 + 1e-9 and guarded.fault in ("", "energy depleted")
        assert rows[:, 3].min() >= -0.01
        assert guarded.energy["credit_j"] <= -guarded.unguarded.damper_j + 1e-9


def test_damping_that_is_not_there_delivers_more_than_the_budget(monkeypatch):
    monkeypatch.setitem(globals(), "SpringArm", Known)
    monkeypatch.setattr(Known, "told", 3.0)
    assert max(drive(20.0, 100.0, 0, policy)[0][:, 1].max() for policy in ("pump", "bang", "random")) > 2.5


def there_and_back(arm: SpringArm) -> GuardedArm:
    """Half a metre of free motion at 0.2 m/s."""
    guarded = GuardedArm(arm, dataclasses.replace(BOUNDS, speed_mps=0.2), Config(control_hz=100.0))
    for step in range(50):
        goal = np.array([0.1 if step // 10 % 2 else -0.1, 0.0, 0.0])
        guarded.command(ArmCommand(goal, IDENTITY, valid_s=1.0))
        guarded.wait(0.05)
    return guarded


def test_moving_through_free_air_spends_little_of_a_damped_arms_budget():
    assert there_and_back(SpringArm(damping=150.0)).energy["ledger_j"] < 0.2  # it stands still
    guarded = there_and_back(Known(damping=150.0))
    assert guarded.fault == "" and guarded.energy["ledger_j"] > 0.8


def test_a_jitter_of_measurements_earns_nothing():
    rng, damping = np.random.default_rng(0), np.array([200.0] * 3 + [20.0] * 3)
    for _ in range(200):
        before = Pose(rng.uniform(-1e-5, 1e-5, 3), IDENTITY)
        assert sampled.damping_credit(damping, before, rng.uniform(-1e-5, 1e-5, 3), IDENTITY, 0.01) == 0.0
    assert sampled.damping_credit(damping, Pose(np.zeros(3), IDENTITY), np.full(3, 0.1), IDENTITY, 0.0) == 0.0


def test_the_credit_is_what_a_steady_motion_takes():
    moved, damping = np.array([0.002, 0.0, 0.0]), np.array([100.0] + [0.0] * 5)
    credit_j = sampled.damping_credit(damping, Pose(np.zeros(3), IDENTITY), moved, IDENTITY, 0.01)
    assert credit_j == pytest.approx(sampled.CREDITED * 100.0 * 0.2**2 * 0.01, rel=0.03)


@pytest.mark.parametrize("kind", [SpringArm, Known])
@pytest.mark.parametrize("name", ["tcp_pos_m", "tcp_quat_xyzw", "tcp_twist", "t_s"])
def test_a_sample_that_is_no_number_leaves_the_ledger_one(kind, name):
    """A ledger that is no number would limit nothing, for ever."""
    arm = kind(damping=20.0)
    guarded = GuardedArm(arm, BOUNDS, Config(control_hz=100.0))
    guarded.command(ArmCommand(np.array([0.05, 0.0, 0.0]), IDENTITY, valid_s=1.0))
    guarded.wait(0.05)
    before_j = guarded.energy["ledger_j"]
    state = arm.state
    arm.state = dataclasses.replace(state, **{name: getattr(state, name) * np.nan})
    guarded._charge(arm.state)
    assert guarded.energy["ledger_j"] == before_j
    arm.state = dataclasses.replace(state, t_s=state.t_s + 0.01)
    guarded.wait(0.05)
    assert np.isfinite(guarded.energy["ledger_j"]) and guarded.energy["ledger_j"] != before_j
