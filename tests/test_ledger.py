"""The kernels one by one: what a sample charges, what alpha and gamma let through, what a ramp can cost."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from controllers import guard, impedance
from controllers.filters import ledger, passivity
from controllers.impedance import spring_potential, spring_wrench
from robot_rl.geometry import quat_multiply, rotation_between, rotvec_to_quat
from robot_rl.types import ArmState
from tests.mock_arm import LIMITS
from tests.plants import IDENTITY

DOF, T = 6, 0.001
SPEED = np.full(DOF, 2.0)
STEP = 1.5 * 2.0**-passivity.HALVINGS  # just beyond the resolution of alpha, gamma and beta
seeds = st.integers(0, 2**32 - 1)


def make(law_changes: dict | None = None, **config):
    """Law, energy limits and a full ledger of the mock arm."""
    law = impedance.make_law(impedance.Config(**(law_changes or {})), LIMITS, np.zeros(DOF))
    settings_ = ledger.Config(**config)
    limits = ledger.make_limits(settings_, 2.0, LIMITS, SPEED)
    return law, limits, ledger.make_memory(limits, settings_.delay_ticks)


def reference(pos_m, quat_xyzw, stiffness) -> guard.GuardMemory:
    zero = np.zeros(DOF)
    state = ArmState(0.0, zero, zero, zero, np.asarray(pos_m), np.asarray(quat_xyzw), zero, zero, 0.0)
    return guard.make_memory(state, stiffness)


# ------------------------------------------------------------------------------------------------------------ charge


@given(seeds)
def test_the_ledger_is_what_an_audit_of_the_log_finds(seed):
    rng = np.random.default_rng(seed)
    _, limits, energy = make()
    q, tau = np.cumsum(rng.uniform(-0.002, 0.002, (60, DOF)), axis=0), rng.normal(0.0, 50.0, (59, DOF))
    ledger.charge(limits, energy, np.zeros(DOF), q[0], T)
    found = [2.0]
    for k in range(59):
        ledger.charge(limits, energy, tau[k], q[k + 1], T)
        found.append(float(energy.ledger_j[0]))
    np.testing.assert_allclose(found, ledger.audit(tau, q, 2.0, 5.0), atol=1e-12, rtol=0.0)
    balance = 2.0 - energy.work_j[0] + energy.credit_j[0] - energy.spill_j[0] + energy.granted_j[0]
    assert found[-1] == pytest.approx(balance, abs=1e-12)
    assert energy.work_j[0] == pytest.approx(float(np.sum(tau * np.diff(q, axis=0))), abs=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sample_that_is_no_number_charges_the_worst_of_both_intervals_around_it(bad):
    _, limits, energy = make()
    tau = np.array([3.0, -2.0, 0.0, 0.0, 0.0, 0.0])
    ledger.charge(limits, energy, tau * 0.0, np.zeros(DOF), T)
    ledger.charge(limits, energy, tau, np.full(DOF, bad), T)
    ledger.charge(limits, energy, tau, np.full(DOF, 0.001), T)
    assert energy.ledger_j[0] == pytest.approx(2.0 - 2 * 5.0 * 2.0 * T, abs=1e-15)
    ledger.charge(limits, energy, tau, np.full(DOF, 0.002), T)  # known again
    assert energy.ledger_j[0] == pytest.approx(2.0 - 0.02 - 0.001, abs=1e-15)


def test_a_late_sample_charges_the_worst_once_over_the_time_that_has_passed():
    """Twenty periods late with a ``hold_ticks`` of twenty: 20 T |tau| v, which the valve has set aside, not 400."""
    _, limits, energy = make(hold_ticks=20)
    tau = np.full(DOF, 1.0)
    assert ledger.charge(limits, energy, tau, np.full(DOF, math.nan), 20 * T) is None
    assert 2.0 - energy.ledger_j[0] == pytest.approx(20 * T * 2.0 * DOF)
    assert 2.0 - energy.ledger_j[0] <= passivity.ramp_cost(limits, tau, T) + 1e-12


def test_a_sample_out_of_reach_earns_no_more_than_the_joint_could():
    """An encoder that jumps against the torque would otherwise fill the ledger."""
    _, limits, energy = make()
    tau = np.full(DOF, 5.0)
    ledger.charge(limits, energy, tau, np.zeros(DOF), T)
    begun_j = energy.ledger_j[0]
    ledger.charge(limits, energy, tau, np.full(DOF, -0.5), T)
    assert energy.ledger_j[0] - begun_j == pytest.approx(5.0 * 2.0 * T * DOF, abs=1e-12)
    ledger.charge(limits, energy, tau, np.zeros(DOF), T)
    assert energy.state[0] == ledger.FLOAT
    slipping = dataclasses.replace(LIMITS, viscous_nmspr=np.full(DOF, 0.5), coulomb_nm=np.full(DOF, 1.0))
    limits = ledger.make_limits(ledger.Config(friction_credit=0.8), 2.0, slipping, SPEED)
    energy = ledger.make_memory(limits)
    for tick in range(4):
        ledger.charge(limits, energy, np.zeros(DOF), np.full(DOF, 0.5 * (tick % 2)), T)
    assert energy.credit_j[0] == 0.0  # what is no motion rubs off nothing


def test_trembling_encoders_earn_no_friction_credit():
    limits_ = dataclasses.replace(LIMITS, coulomb_nm=np.full(DOF, 1.0))
    limits = ledger.make_limits(ledger.Config(friction_credit=0.8), 2.0, limits_, SPEED)
    energy = ledger.make_memory(limits)
    for tick in range(1000):
        ledger.charge(limits, energy, np.zeros(DOF), np.full(DOF, 1e-5 * (tick % 2)), T)
    assert energy.credit_j[0] == 0.0


@given(seeds)
def test_viscous_credit_is_less_than_any_way_of_getting_there_lost(seed):
    rng = np.random.default_rng(seed)
    limits_ = dataclasses.replace(LIMITS, viscous_nmspr=np.full(DOF, 0.5), coulomb_nm=np.full(DOF, 2.0))
    limits = ledger.make_limits(ledger.Config(friction_credit=0.8), 2.0, limits_, SPEED)
    energy = ledger.make_memory(limits)
    speed = rng.normal(0.0, 1.0, (50, DOF))  # within the interval, as it likes
    ledger.charge(limits, energy, np.zeros(DOF), np.zeros(DOF), T)
    ledger.charge(limits, energy, np.zeros(DOF), speed.mean(axis=0) * T, T)
    lost_j = float((0.5 * speed**2 + 2.0 * np.abs(speed)).mean(axis=0).sum() * T)
    assert 0.0 < energy.credit_j[0] <= 0.8 * lost_j + 1e-15


def test_an_empty_ledger_floats_until_it_is_granted_anew_and_a_full_one_is_granted_nothing():
    _, limits, energy = make()
    ledger.book(limits, energy, 1.96, 0.0)
    assert energy.state[0] == ledger.FLOAT
    ledger.book(limits, energy, -1.0, 0.0)  # what it absorbs does not wake it
    assert energy.state[0] == ledger.FLOAT and energy.ledger_j[0] == pytest.approx(1.04)
    ledger.grant(limits, energy)
    assert energy.state[0] == ledger.NORMAL and energy.granted_j[0] == pytest.approx(0.96)
    ledger.book(limits, energy, -9.0, 0.0)
    assert energy.ledger_j[0] == limits.cap_j and energy.spill_j[0] == pytest.approx(6.0)
    ledger.grant(limits, energy)
    assert energy.ledger_j[0] == limits.cap_j and energy.granted_j[0] == pytest.approx(0.96)


def test_settings_that_promise_too_much_are_refused():
    with pytest.raises(ValueError, match="at most cap_j"):
        ledger.Config(budget_j=6.0)
    with pytest.raises(ValueError, match=r"raise energy\.cap_j"):
        ledger.make_limits(ledger.Config(), 6.0, LIMITS, SPEED)
    with pytest.raises(ValueError, match="friction of this arm"):
        ledger.make_limits(ledger.Config(friction_credit=0.5), 2.0, LIMITS, SPEED)


# -------------------------------------------------------------------------------------------------------------- spring


@given(seeds, st.sampled_from([0.05, 0.3, math.pi]))
@settings(max_examples=150, deadline=None)
def test_the_wrench_is_minus_the_gradient_of_the_potential(seed, clip_rad):
    """-dV/dt = F . twist by central differences: anisotropic, at the clip corners, beyond the saturation."""
    rng = np.random.default_rng(seed)
    law, *_ = make({"clip_rad": clip_rad})
    stiffness = rng.uniform(0.0, 1.0, 6) * np.array([3000.0] * 3 + [100.0] * 3)
    corner = rng.choice([-1.0, 1.0], 3) * (law.clip_m + rng.choice([-1e-9, 0.0, 1e-9]))
    pos = np.where(rng.random(3) < 0.5, corner, rng.normal(0.0, 0.02, 3))
    axis = rng.normal(size=3)
    quat = rotvec_to_quat(axis / np.linalg.norm(axis) * rng.uniform(0.01, 3.0))
    twist, h = rng.normal(size=6), 1e-6

    def potential(t: float) -> float:
        there = quat_multiply(rotvec_to_quat(t * twist[3:]), quat)
        return spring_potential(pos + t * twist[:3], there, np.zeros(3), IDENTITY, stiffness, law)

    wrench = spring_wrench(pos, quat, np.zeros(3), IDENTITY, stiffness, law)
    slope = (potential(h) - potential(-h)) / (2 * h)
    assert -slope == pytest.approx(
        float(wrench @ twist), rel=1e-6, abs=1e-6 * (1.0 + stiffness.max()) * float(twist @ twist)
    )


@given(seeds)
def test_the_potential_rises_with_every_stiffness_and_is_concave_in_it(seed):
    """What makes the bisection of gamma exact: along any stiffening there is one crossing of the ceiling."""
    rng = np.random.default_rng(seed)
    law, *_ = make({"clip_rad": 0.1})
    pos, quat = rng.normal(0.0, 0.03, 3), rotvec_to_quat(rng.normal(0.0, 0.8, 3))
    soft, added = rng.uniform(0.0, 100.0, 6), rng.uniform(0.0, 100.0, 6)
    values = np.array(
        [spring_potential(pos, quat, np.zeros(3), IDENTITY, soft + s * added, law) for s in np.linspace(0.0, 1.0, 21)]
    )
    assert np.all(np.diff(values) >= -1e-12) and np.all(np.diff(values, 2) <= 1e-12) and values[0] >= 0.0


# ------------------------------------------------------------------------------------------------------ alpha and gamma


def throttle(seed: int, ledger_j: float, turn: float = 0.2, softer: bool = False):
    """One ``limit_reference`` from a drawn reference to a drawn wish; returns everything around it."""
    rng = np.random.default_rng(seed)
    law, limits, energy = make({"clip_m": (0.05,) * 3, "clip_rad": 1.0})
    energy.ledger_j[0] = ledger_j
    pos, quat = rng.normal(size=3), rotvec_to_quat(rng.normal(size=3))
    first = rng.uniform(0.0, 1.0, 6) * np.array([2000.0] * 3 + [80.0] * 3)
    memory = reference(
        pos + rng.normal(0.0, 0.01, 3), quat_multiply(rotvec_to_quat(rng.normal(0.0, 0.1, 3)), quat), first
    )
    before = passivity.reference_of(memory)
    memory.pos_m[:] += rng.normal(0.0, 0.04, 3)
    memory.quat_xyzw[:] = quat_multiply(rotvec_to_quat(rng.normal(0.0, turn, 3)), memory.quat_xyzw)
    change = rng.uniform(0.0, 1.0, 6) if softer else rng.uniform(0.0, 3.0, 6)
    memory.stiffness[:] = first * change
    wanted = passivity.reference_of(memory)
    passivity.limit_reference(limits, energy, memory, passivity.Reference(*(a.copy() for a in before)), pos, quat, law)

    def potential(where: passivity.Reference) -> float:
        return spring_potential(pos, quat, where.pos_m, where.quat_xyzw, where.stiffness, law)

    payable_j = max(ledger_j - limits.reserve_j, 0.0)
    start = before._replace(stiffness=np.minimum(before.stiffness, wanted.stiffness))
    drawn = retreat(start, pos, quat, potential, payable_j)
    return start, drawn, wanted, passivity.reference_of(memory), energy, potential, payable_j, (pos, quat)


def retreat(start: passivity.Reference, pos, quat, potential, payable_j: float) -> passivity.Reference:
    """The reference, drawn back to the measured pose as far as has to be; found apart from the kernel."""

    def drawn(share: float) -> passivity.Reference:
        lead = rotation_between(start.quat_xyzw, quat)
        turned = quat_multiply(rotvec_to_quat(share * lead), quat)
        return passivity.Reference(pos + share * (start.pos_m - pos), turned, start.stiffness)

    if potential(start) <= payable_j:
        return start
    if payable_j == 0.0:
        return drawn(0.0)
    return drawn(brentq(lambda share: potential(drawn(share)) - payable_j, 0.0, 1.0, xtol=1e-15))


def path(start: passivity.Reference, wanted: passivity.Reference, gamma: float, alpha: float) -> passivity.Reference:
    """Where gamma of the stiffening and alpha of the step lead to."""
    turn = rotvec_to_quat(alpha * rotation_between(wanted.quat_xyzw, start.quat_xyzw))
    return passivity.Reference(
        start.pos_m + alpha * (wanted.pos_m - start.pos_m),
        quat_multiply(turn, start.quat_xyzw),
        start.stiffness + gamma * (wanted.stiffness - start.stiffness),
    )


@given(seeds, st.floats(-1.0, 8.0))
@settings(max_examples=300, deadline=None)
def test_as_much_is_let_through_as_is_paid_for_and_no_more(seed, ledger_j):
    _, start, wanted, left, energy, potential, payable_j, _ = throttle(seed, ledger_j)
    alpha, gamma = float(energy.alpha[0]), float(energy.gamma[0])
    assert potential(left) <= payable_j + 1e-12
    assert energy.potential_j[0] == pytest.approx(potential(left), abs=1e-12)
    if potential(wanted) <= payable_j:
        assert alpha == gamma == 1.0
        for passed, given_ in zip(left, wanted, strict=True):
            np.testing.assert_array_equal(passed, given_)
        return
    chosen = path(start, wanted, gamma, alpha)
    np.testing.assert_allclose(left.pos_m, chosen.pos_m, atol=1e-6)  # the kernel draws back to within 5e-7
    np.testing.assert_allclose(left.stiffness, chosen.stiffness, atol=1e-9)
    assert abs(rotation_between(left.quat_xyzw, chosen.quat_xyzw)).max() < 1e-5
    assert alpha < 1.0 or gamma < 1.0
    slack_j = 1e-4  # what that little is worth
    if gamma < 1.0:
        assert potential(path(start, wanted, gamma + STEP, 0.0)) > payable_j - slack_j
    if alpha < 1.0:
        assert potential(path(start, wanted, gamma, min(alpha + STEP, 1.0))) > payable_j - slack_j


@given(seeds, st.floats(0.0, 4.0), st.floats(0.0, 4.0))
def test_more_energy_never_lets_less_stiffening_through_nor_at_equal_stiffness_less_of_a_step(seed, one, other):
    poor, rich = throttle(seed, min(one, other)), throttle(seed, max(one, other))
    if poor[5](poor[0]) <= poor[6]:  # from the same place: neither had to draw back
        assert poor[4].gamma[0] <= rich[4].gamma[0]
    poor, rich = (throttle(seed, value, turn=0.02, softer=True) for value in (min(one, other), max(one, other)))
    if poor[5](poor[0]) <= poor[6]:
        assert poor[4].gamma[0] == rich[4].gamma[0] == 1.0  # softening is free
        assert poor[4].alpha[0] <= rich[4].alpha[0] + STEP


@given(seeds)
def test_with_nothing_left_the_springs_let_go(seed):
    *_, left, energy, potential, _, (pos, quat) = throttle(seed, 0.0)
    assert energy.state[0] == ledger.HOLD and potential(left) == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(left.pos_m, pos, atol=1e-6)
    assert abs(rotation_between(left.quat_xyzw, quat)).max() < 1e-5


def test_springs_that_the_surroundings_stretched_give_way_as_far_as_has_to_be():
    """Nothing was commanded; pushed 5 cm off, 2000 N/m would hold 2.5 J, of which 1.95 J are there."""
    law, limits, energy = make({"clip_m": (1.0,) * 3})
    memory = reference(np.zeros(3), IDENTITY, np.array([2000.0] * 3 + [80.0] * 3))
    before, pos = passivity.reference_of(memory), np.array([0.0, 0.05, 0.0])
    passivity.limit_reference(limits, energy, memory, before, pos, IDENTITY, law)
    assert memory.pos_m[1] == pytest.approx(0.05 - math.sqrt(2.0 * 1.95 / 2000.0), abs=1e-7)
    assert energy.state[0] == ledger.HOLD and energy.potential_j[0] == pytest.approx(1.95, abs=1e-5)


# -------------------------------------------------------------------------------------------------------------- valve


def ramped(tau, step):
    return tau - np.clip(tau, -step, step)


@given(seeds, st.integers(1, 20))
def test_a_ramp_costs_one_tick_more_than_what_is_left_of_it(seed, hold):
    rng = np.random.default_rng(seed)
    _, limits, _ = make(hold_ticks=hold)
    tau = rng.normal(0.0, 10.0, DOF) * rng.choice([0.0, 1e-9, 0.1, 1.0], DOF)
    tau = np.where(rng.random(DOF) < 0.3, np.round(tau), tau)  # on the edges of floor(), too
    now = T * hold * float(SPEED @ np.abs(tau))
    left = passivity.ramp_cost(limits, ramped(tau, LIMITS.dtau_max_nmps * T), T)
    assert passivity.ramp_cost(limits, tau, T) == pytest.approx(now + left, rel=1e-12, abs=1e-15)


def test_the_closed_form_of_a_ramp_is_too_low_between_whole_steps():
    """|tau| (|tau| + d) / 2d is exact at multiples of d = 1 Nm only; a valve that used it could be overdrawn."""
    _, limits, _ = make()
    for torque, exact in ((3.0, 6.0), (0.5, 0.5), (2.5, 4.5)):
        closed = torque * (torque + 1.0) / 2.0
        series = passivity.ramp_cost(limits, np.array([torque, 0, 0, 0, 0, 0]), T) / (T * SPEED[0])
        assert series == pytest.approx(exact, rel=1e-12)
        assert closed == pytest.approx(exact) if torque == 3.0 else closed < exact - 0.1


@given(seeds, st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_the_worst_motion_there_is_never_empties_the_ledger_below_zero(seed, delay):
    """Every joint at its top speed, always along the torque; a law that wants the most, the other way, or nothing."""
    rng = np.random.default_rng(seed)
    law, limits, energy = make(delay_ticks=delay)
    commanded, q = np.zeros(DOF), np.zeros(DOF)
    flying = [np.zeros(DOF) for _ in range(delay)]
    applied = np.zeros(DOF)
    least, acted = math.inf, False
    for _ in range(300):
        ledger.charge(limits, energy, applied, q, T)
        least = min(least, float(energy.ledger_j[0]))
        wanted = impedance.limit_torque(rng.choice([-50.0, 50.0, 0.0, 5.0], DOF), commanded, law, T)
        previous, commanded = commanded, passivity.limit_torque(limits, energy, wanted, commanded, T)
        assert np.abs(commanded - previous).max() <= 1.0 + 1e-12
        acted |= bool(energy.beta[0] < 1.0)
        flying.append(commanded)
        applied = flying.pop(0)
        q = q + SPEED * T * np.sign(applied)
    assert least >= -1e-12 and acted


def test_a_torque_that_is_no_number_is_never_commanded():
    """It would pass every comparison unseen; the valve brings the torque down instead, as fast as it may."""
    _, limits, energy = make()
    wanted, previous = np.array([math.nan, 1.0, 0.0, 0.0, 0.0, 0.0]), np.array([3.0, 0.4, 0.0, 0.0, 0.0, 0.0])
    tau = passivity.limit_torque(limits, energy, wanted, previous, T)
    np.testing.assert_allclose(tau, [2.0, 0.0, 0.0, 0.0, 0.0, 0.0], atol=1e-12)
