"""The admittance law: the same springs as the impedance law, passive, and stable against what it says it meets."""

import math

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from controllers import admittance, impedance
from controllers.admittance import Admittance, Config, Sample, filter_share, least_damping
from controllers.arms import UR5E
from robot_rl.geometry import rotation_between, rotvec_to_quat
from robot_rl.types import Pose

PERIOD_S = 0.002
IDENTITY = np.array([0.0, 0.0, 0.0, 1.0])
HERE = Pose(np.zeros(3), IDENTITY)
STIFFNESS = np.array([2000.0] * 3 + [80.0] * 3)
FREE = {  # nothing between force and mass, and no bound that acts
    "cutoff_hz": 1000.0, "deadband_n": 0.0, "deadband_nm": 0.0, "delay_s": 0.0, "environment": (0.0,) * 6,
    "speed_mps": 2.0, "speed_radps": 5.0, "accel_mps2": 100.0, "accel_radps2": 500.0, "leash_m": 0.2, "leash_rad": 1.0,
}  # fmt: skip
numbers = st.integers(0, 2**32 - 1)


def make(period_s: float = PERIOD_S, **changes) -> Admittance:
    return Admittance(Config(**changes), UR5E, period_s)


def at(mass: Admittance, wrench=None) -> Sample:
    """An arm that is where the mass is."""
    return Sample(mass.pos_m, mass.quat_xyzw, np.zeros(6) if wrench is None else np.asarray(wrench, np.float64))


@pytest.mark.parametrize("ratio", [1.0, 2.0])
def test_a_step_of_the_target_is_answered_as_the_differential_equation_says(ratio):
    """Closed form of M e'' + D e' + K e = 0 from rest, all roots real; per axis with its own stiffness."""
    period_s = 2e-4
    mass = make(period_s, damping_ratio=ratio, **FREE)
    mass.begin(at(mass))
    stiffness = np.array([2000.0, 1000.0, 500.0, 80.0, 80.0, 80.0])
    target = Pose(np.array([0.005, -0.005, 0.005]), IDENTITY)
    pole = np.sqrt(stiffness[:3] / 3.0)
    for k in range(1, 1501):
        mass.step(at(mass), target, stiffness)
        if k % 300 == 0:
            t_s, root = k * period_s, math.sqrt(ratio**2 - 1.0)
            if root == 0.0:
                left = (1.0 + pole * t_s) * np.exp(-pole * t_s)
            else:
                slow, fast = pole * (ratio - root), pole * (ratio + root)
                left = (fast * np.exp(-slow * t_s) - slow * np.exp(-fast * t_s)) / (fast - slow)
            np.testing.assert_allclose(mass.pos_m, target.pos_m * (1.0 - left), atol=2e-5)


@settings(max_examples=6, deadline=None)
@given(numbers)
def test_a_push_moves_the_mass_by_force_over_stiffness(seed):
    rng = np.random.default_rng(seed)
    stiffness = np.concatenate([rng.uniform(500.0, 3000.0, 3), np.full(3, rng.uniform(50.0, 300.0))])
    wrench = np.concatenate([rng.uniform(-5.0, 5.0, 3), rng.uniform(-1.0, 1.0, 3)])
    mass = make(**{**FREE, "contact_damping": (0.0,) * 6})
    mass.begin(at(mass, wrench))
    for _ in range(1200):
        mass.step(at(mass, wrench), HERE, stiffness)
    np.testing.assert_allclose(mass.pos_m, wrench[:3] / stiffness[:3], atol=1e-6)
    np.testing.assert_allclose(rotation_between(mass.quat_xyzw, IDENTITY), wrench[3:] / stiffness[3:], atol=1e-5)


def pressed(mass, wall_npm, wall_m, target, stiffness, delay_ticks, seconds=2.0):
    """Forces (ticks,) N of a wall across x on an arm that is where it was sent ``delay_ticks`` ago."""
    mass.begin(at(mass))
    way, forces = [mass.pos_m] * (delay_ticks + 1), []
    for _ in range(round(seconds / PERIOD_S)):
        felt = np.zeros(6)
        felt[0] = -wall_npm * max(way[0][0] - wall_m, 0.0)
        forces.append(-felt[0])
        way = [*way[1:], mass.step(Sample(way[0], IDENTITY, felt), target, stiffness).pos_m]
    return np.array(forces)


@settings(max_examples=20, deadline=None, phases=[Phase.generate])
@given(st.floats(5e3, 4e4), st.floats(0.0, 0.03), st.floats(500.0, 3000.0), st.integers(0, 7), st.floats(0.001, 0.01))
def test_it_comes_to_rest_on_any_wall_with_stiffness_times_clipped_error(wall_npm, depth_m, stiffness, delay, gap_m):
    """A search over the surroundings that the defaults are said to meet."""
    mass = make()
    clip_m = Config().clip_m[0]
    forces = pressed(
        mass, wall_npm, gap_m, Pose(np.array([gap_m + depth_m, 0, 0]), IDENTITY), np.full(6, stiffness), delay
    )
    settled, touch_n = forces[-250:], Config().touch_n
    error_m = gap_m + depth_m - mass.pos_m[0]
    if settled.mean() < 2.0 * touch_n:  # below a touch it has little damping
        assert settled.max() < 4.0 * touch_n
        return
    assert np.ptp(settled) < 0.1
    assert settled.mean() - Config().deadband_n == pytest.approx(stiffness * min(error_m, clip_m), abs=0.05)


@pytest.mark.parametrize(("wall_npm", "delay"), [(5e4, 5), (2e4, 8), (4e4, 8), (1e5, 2)])
def test_the_bound_on_damping_is_where_contact_begins_to_oscillate(wall_npm, delay):
    """The law itself, with the wall on both sides, a little above and below its bound."""
    share = filter_share(60.0, PERIOD_S)
    least = least_damping(3.0, 3000.0, wall_npm, PERIOD_S, delay * PERIOD_S, share)
    grown = []
    for factor in (0.8, 1.2):
        config = {**FREE, "cutoff_hz": 60.0, "contact_damping": (factor * least,) * 3 + (0.0,) * 3, "touch_n": 0.1}
        mass = make(**config, touch_s=5.0)
        mass.begin(at(mass, [1.0, 0, 0, 0, 0, 0]))
        way, swing = [np.zeros(3)] * delay, []
        mass.twist[0] = 1e-4
        for _ in range(1500):
            way = [*way, mass.pos_m]
            felt = np.array([-wall_npm * way.pop(0)[0], 0, 0, 0, 0, 0])
            mass._touched_s = 0.0
            mass.step(Sample(mass.pos_m, IDENTITY, felt), HERE, np.full(6, 3000.0))
            swing.append(abs(mass.pos_m[0]))
        grown.append(max(swing[-300:]) / max(swing[100:400]))
    assert grown[0] > 1.0 > grown[1]


def test_the_bound_is_that_of_a_delayed_spring_where_inertia_does_not_count():
    """D s + k exp(-s tau) is stable for D > 2 k tau / pi; half a period more is the sampling."""
    for tau_s in (0.01, 0.02, 0.04):
        least = least_damping(1e-3, 0.0, 1e4, PERIOD_S, tau_s, 1.0)
        assert least == pytest.approx(2.0 * 1e4 * (tau_s + 0.5 * PERIOD_S) / math.pi, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"contact_damping": (900.0, 300.0, 900.0, 15.0, 15.0, 15.0)}, r"contact_damping\[1\] = 300: against 40000"),
        ({"environment": (4e5,) * 3 + (400.0,) * 3}, r"contact_damping\[0\].*oscillates below \d+"),
        ({"delay_s": 0.05}, r"felt 50 ms late"),
        ({"environment": (4e4,) * 3 + (5e3,) * 3}, r"contact_damping\[3\].*Nm/rad"),
        ({"environment": (4e4,)}, "give 6 numbers"),
        ({"stiffness": (9000.0,) * 3 + (80.0,) * 3}, "allows at most"),
        ({"leash_m": -1.0}, "leash_m"),
    ],
)
def test_gains_that_cannot_be_are_refused_with_the_reason(changes, words):
    with pytest.raises(ValueError, match=words):
        make(**changes)


@settings(max_examples=10, deadline=None)
@given(numbers)
def test_it_is_passive_towards_whatever_pushes_it(seed):
    """Kinetic and spring energy never rise by more than the push has put in, for any pushes, stiffness and target."""
    rng = np.random.default_rng(seed)
    mass = make(**{**FREE, "contact_damping": tuple(rng.uniform(0.0, 500.0, 6))})
    stiffness = np.concatenate([rng.uniform(0.0, 3000.0, 3), rng.uniform(0.0, 300.0, 3)])
    target = Pose(rng.normal(size=3) * 0.01, rotvec_to_quat(rng.normal(size=3) * 0.2))
    mass.begin(at(mass))

    def stored_j() -> float:
        kinetic = 0.5 * float(np.sum(mass.law.reference_inertia * mass.twist**2))
        pose = (mass.pos_m, mass.quat_xyzw, target.pos_m, target.quat_xyzw)
        return kinetic + impedance.spring_potential(*pose, stiffness, mass.law)

    for k in range(300):
        if k % 10 == 0:
            wrench = np.concatenate([rng.normal(size=3) * 20.0, rng.normal(size=3) * 2.0])
        before = stored_j()
        mass._wrench = wrench.copy()  # its filter answers at once
        mass.step(at(mass, wrench), target, stiffness)
        assert stored_j() - before <= PERIOD_S * float(wrench @ mass.twist) + 1e-9


@settings(max_examples=10, deadline=None)
@given(numbers)
def test_no_wrench_and_no_target_gets_past_the_bounds(seed):
    rng = np.random.default_rng(seed)
    config = Config(speed_mps=0.3, accel_mps2=5.0, speed_radps=1.0, accel_radps2=20.0, leash_m=0.01, leash_rad=0.1)
    mass = Admittance(config, UR5E, PERIOD_S)
    arm = Sample(np.zeros(3), IDENTITY, np.zeros(6))
    mass.begin(arm)
    for _ in range(200):
        wrench = rng.normal(size=6) * 10.0 ** rng.uniform(-1, 4)
        target = Pose(rng.normal(size=3), rotvec_to_quat(rng.normal(size=3)))
        before = mass.twist.copy()
        mass.step(arm._replace(wrench=wrench), target, STIFFNESS)
        change = mass.twist - before
        leashed = not mass.twist[:3].any() or not mass.twist[3:].any()
        assert np.linalg.norm(mass.twist[:3]) <= 0.3 + 1e-9 and np.linalg.norm(mass.twist[3:]) <= 1.0 + 1e-9
        assert leashed or np.linalg.norm(change[:3]) <= 5.0 * PERIOD_S + 1e-9
        assert leashed or np.linalg.norm(change[3:]) <= 20.0 * PERIOD_S + 1e-9
        assert np.linalg.norm(mass.pos_m) <= 0.01 + 1e-12
        assert np.linalg.norm(rotation_between(mass.quat_xyzw, IDENTITY)) <= 0.1 + 1e-9


def test_a_touch_adds_damping_at_once_and_for_a_while():
    mass = make(touch_s=0.1)
    mass.begin(at(mass))
    mass.step(at(mass), HERE, STIFFNESS)
    assert not mass.touching
    push = np.array([0, 0, 50.0, 0, 0, 0])
    mass.step(at(mass, push), HERE, STIFFNESS)
    assert mass.touching
    for _ in range(40):
        mass.step(at(mass), HERE, STIFFNESS)
    assert mass.touching
    for _ in range(30):
        mass.step(at(mass), HERE, STIFFNESS)
    assert not mass.touching


def test_the_reference_is_sent_ahead_by_the_lag():
    """What a first-order lag makes of it is where the mass is."""
    mass = Admittance(Config(), UR5E, PERIOD_S, lead_s=0.03)
    mass.begin(at(mass))
    target = Pose(np.array([0.02, 0.0, 0.0]), rotvec_to_quat(np.array([0.0, 0.2, 0.0])))
    share = 1.0 - math.exp(-PERIOD_S / 0.03)
    lagging, turned = np.zeros(3), Rotation.identity()
    for _ in range(400):
        sent = mass.step(at(mass), target, STIFFNESS)
        lagging = lagging + share * (sent.pos_m - lagging)
        turned = Rotation.from_rotvec(share * (Rotation.from_quat(sent.quat_xyzw) * turned.inv()).as_rotvec()) * turned
        assert np.linalg.norm(lagging - mass.pos_m) < 4e-4
        assert (Rotation.from_quat(mass.quat_xyzw) * turned.inv()).magnitude() < 4e-3


def test_a_deadband_takes_no_step_in_force():
    assert [admittance._beyond(size, 2.0) * size for size in (0.0, 1.0, 2.0, 3.0, 10.0)] == [0.0, 0.0, 0.0, 1.0, 8.0]
