"""The theorem, on a plant whose energy balance is exact: whatever the policy, the wall and the line to the robot do,
kinetic energy + ledger never rises by more than the surroundings put in, and the ledger never falls below zero. Then
the same runs with one mechanism of the filter taken out, which have to break what that mechanism is there for."""

import dataclasses

import mujoco
import numpy as np
import pytest

from controllers import impedance
from controllers.filters import ledger
from controllers.guard import make_memory, open_limits
from robot_rl.geometry import matrix_to_quat, quat_multiply, rotvec_to_quat
from robot_rl.types import ArmState, Scene
from sim._models import PANDA
from sim._scene import build
from tests import plants
from tests.plants import (
    BETA,
    LEDGER,
    POLICIES,
    POTENTIAL,
    PULL,
    SPEED,
    STATE,
    STORAGE,
    TORQUE,
    WALL,
    Log,
    Switches,
    World,
    arm_limits,
    trial,
)

ZERO_J = -1e-12  # rounding of sums of joules
TRIALS, TICKS = 400, 1000


def draw_world(rng: np.random.Generator) -> World:
    """Every nuisance of a real arm, each in half of the worlds."""

    def maybe(value: float) -> float:
        return value if rng.random() < 0.5 else 0.0

    mass_kg = float(np.exp(rng.uniform(np.log(0.5), np.log(10.0))))
    period_s = float(rng.choice([0.001, 0.002, 0.005]))
    return World(
        mass_kg=mass_kg,
        viscous=maybe(rng.uniform(0.0, 5.0)),
        coulomb_n=maybe(rng.uniform(0.0, 3.0)),
        wall_npm=float(10.0 ** rng.uniform(3.0, 6.0)),
        wall_m=rng.uniform(0.005, 0.1),
        wall_stroke_m=maybe(rng.uniform(0.0, 0.03)),
        cone=maybe(rng.uniform(0.1, 1.0)),
        shake_n=maybe(rng.uniform(0.0, min(30.0, 8.0 * mass_kg))),
        period_s=period_s,
        substeps=int(10 * period_s / 0.001),
        delay_ticks=int(rng.integers(0, 4)),
        quantum_m=maybe(1e-5),
        lost_share=maybe(0.05),
        burst_ticks=int(rng.choice([1, 20])),
        nan_share=maybe(0.01),
    )


def config_of(world: World, **changes) -> ledger.Config:
    """What somebody who knows this line to the robot would configure."""
    hold = world.burst_ticks + 1 if world.lost_share > 0.0 else 1
    return ledger.Config(delay_ticks=world.delay_ticks, hold_ticks=hold, **changes)


def storage(log: Log) -> np.ndarray:
    """Kinetic energy + wall + ledger, less what the surroundings have put in: the proof says that it never rises."""
    rows = log.rows
    return rows[:, STORAGE] + rows[:, LEDGER] - rows[:, plants.GRANTED] - rows[:, plants.OUTSIDE]


def noise_j(world: World, log: Log) -> float:
    """What quantised encoders can hide (sum by parts): half a step per unit of torque change."""
    change = np.abs(np.diff(log.tau_n, axis=0)).sum() + np.abs(log.tau_n[0]).sum() + np.abs(log.tau_n[-1]).sum()
    return 0.5 * world.quantum_m * float(change)


def free_j(log: Log) -> np.ndarray:
    return log.rows[:, LEDGER] - log.rows[:, POTENTIAL]


@pytest.mark.parametrize("policy", POLICIES)
def test_arm_and_controller_are_passive(policy):
    """Random worlds, adversarial policies: identity, storage inequality and floor of the ledger in every tick."""
    rng = np.random.default_rng(POLICIES.index(policy))
    too_fast = 0
    for seed in range(TRIALS if policy != "silent" else TRIALS // 5):
        world = draw_world(rng)
        config = config_of(world)
        log, energy, limits = trial(
            policy, world, config, ticks=TICKS, seed=seed,
            limits=arm_limits(rate=float(rng.choice([1e3, 4e3, 1e6]))),
            speed_mps=float(rng.choice([0.25, np.inf])), clip_m=float(rng.choice([0.015, 10.0])),
            damping_ratio=rng.uniform(0.2, 1.0), switches=Switches(regrant=bool(rng.random() < 0.5)),
        )  # fmt: skip
        about = f"trial {seed}: {world}"
        total, noise = storage(log), noise_j(world, log)
        if world.quantum_m == 0.0:
            assert np.diff(total).max(initial=0.0) <= 1e-9, about
        assert (total - total[0]).max() <= noise + 1e-9, about
        if world.nan_share == 0.0:
            work_j = float(np.sum(log.tau_n[:-1] * np.diff(log.q_m, axis=0)))
            spent_j = limits.budget_j - log.rows[-1, LEDGER] - energy.spill_j[0] + energy.granted_j[0]
            assert abs(spent_j - work_j) <= 1e-9 and abs(work_j - log.rows[-1, TORQUE]) <= noise + 1e-9, about
            if energy.granted_j[0] == 0.0:
                audited = ledger.audit(log.tau_n[:-1], log.q_m, limits.budget_j, limits.cap_j)
                assert np.abs(audited - log.rows[:, LEDGER]).max() <= 1e-9, about
        assert log.rows[:, LEDGER].max() <= limits.cap_j, about
        if log.rows[:, SPEED].max() > limits.speed_radps[0]:
            too_fast += 1  # the one assumption does not hold: nothing is promised
            continue
        assert log.rows[:, LEDGER].min() >= ZERO_J - noise, about
        if world.nan_share == 0.0:  # else there are ticks without a pose to measure V at
            assert np.all(free_j(log) >= np.minimum(limits.reserve_j, log.rows[:, LEDGER]) - 1e-9), about
            assert np.all(log.rows[:, PULL] <= log.rows[:, LEDGER] + 1e-9), about
    assert too_fast <= TRIALS // 20


SHIPPED = {"clip_m": 0.015, "damping_ratio": 1.0, "speed_mps": 0.25}
OPEN = {"clip_m": 10.0, "damping_ratio": 0.1, "speed_mps": np.inf}


@pytest.mark.parametrize("policy", POLICIES)
def test_the_reserve_stays_free_with_the_shipped_parameters(policy):
    """E >= reserve: at 1 kHz with the default law the ledger never falls so far that an arm floats."""
    for mass_kg in (0.5, 2.0, 10.0):
        for wall_npm, rate in ((1e3, 1e3), (1e5, 4e3), (1e6, 1e6)):
            world, limits = World(mass_kg=mass_kg, wall_npm=wall_npm), arm_limits(rate=rate)
            log, *_ = trial(policy, world, ticks=1500, limits=limits, **SHIPPED)
            assert free_j(log).min() >= 0.05 - 1e-9, f"{mass_kg} kg, {wall_npm:g} N/m"


@pytest.mark.parametrize("policy", ["random", "pump", "push", "bang"])
def test_without_the_filter_the_same_run_breaks_the_floor(policy):
    """The control run: the ledger keeps its identity and goes far below zero; filtered, it delivers its budget."""
    filtered, *_ = trial(policy, World(wall_npm=1e4), ticks=3000, **OPEN)
    watched, *_ = trial(policy, World(wall_npm=1e4), ledger.Config(enforce=False), ticks=3000, **OPEN)
    assert np.diff(storage(watched)).max() <= 1e-9
    assert watched.rows[:, LEDGER].min() < -5.0 and free_j(watched).min() < -30.0
    assert filtered.rows[:, TORQUE].max() <= 2.0 and watched.rows[:, TORQUE].max() > 7.0
    assert filtered.rows[:, LEDGER].min() >= ZERO_J


@pytest.mark.parametrize("budget_j", [0.25, 1.0, 2.0])
def test_the_contact_force_is_bounded_by_the_ledger(budget_j):
    """Pushed 0.25 m into the wall, the arm settles at no more than sqrt(2 K L); unfiltered far above that."""
    world = World(wall_npm=1e4, viscous=40.0)
    slow = {**OPEN, "speed_mps": 0.1, "damping_ratio": 1.0, "ticks": 6000, "limits": arm_limits(rate=4e3)}
    settled_n = []
    for enforce in (True, False):
        log, *_ = trial("push", world, ledger.Config(enforce=enforce, budget_j=budget_j), **slow)
        assert np.ptp(log.rows[-100:, WALL]) < 0.1
        settled_n.append(log.rows[-1, WALL])
        if enforce:
            assert settled_n[0] <= np.sqrt(2.0 * 3000.0 * log.rows[-1, LEDGER]) + 0.1
            assert np.all(log.rows[:, PULL] <= log.rows[:, LEDGER])
    assert settled_n[0] <= np.sqrt(2.0 * 3000.0 * budget_j) < 0.7 * settled_n[1]


# -------------------------------------------------------------------------------------------------- an arm that turns


class FreePanda:
    """The Panda in free space, integrated by Runge-Kutta in steps of 0.1 ms, under the compiled control tick."""

    def __init__(self, config: ledger.Config, clip_rad: float) -> None:
        model = build(PANDA.xml_path, Scene(table_height_m=None, locked_gripper=0.0), PANDA.finger_open_m, visual=False)
        model.opt.timestep, model.opt.integrator = 1e-4, mujoco.mjtIntegrator.mjINT_RK4
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT | mujoco.mjtDisableBit.mjDSBL_LIMIT
        self.model, self.data, limits = model, mujoco.MjData(model), PANDA.limits
        self.data.qpos[:] = PANDA.ready_rad
        self.site = model.site("tcp").id
        settings = impedance.Config(clip_m=(0.2,) * 3, clip_rad=clip_rad, damping_ratio=0.2)
        self.law = impedance.make_law(settings, limits, PANDA.ready_rad)
        self.guard = open_limits(limits)
        self.limits = ledger.make_limits(config, 2.0, limits, 2.0 * limits.dq_max_radps)
        self.energy = ledger.make_memory(self.limits)
        self.tau, zero = np.zeros(7), np.zeros(7)
        _, _, _, pos, quat, wrench, _ = self.sample()
        state = ArmState(0.0, zero, zero, zero, pos, quat, wrench, wrench, 0.0)
        self.memory = make_memory(state, self.law.stiffness)
        self.memory.valid_s[0] = 1e9

    def sample(self) -> tuple[np.ndarray, ...]:
        d = self.data
        mujoco.mj_forward(self.model, d)
        jac = np.zeros((6, 7))
        mujoco.mj_jacSite(self.model, d, jac[:3], jac[3:], self.site)
        pos, quat = d.site_xpos[self.site].copy(), matrix_to_quat(d.site_xmat[self.site])
        return d.qpos.copy(), d.qvel.copy(), jac, pos, quat, np.zeros(6), d.qfrc_bias - d.qfrc_gravcomp

    def tick(self) -> tuple[float, float, float]:
        """One control period; at its sample kinetic energy + ledger, the ledger and the free energy."""
        sample, momentum = self.sample(), np.zeros(7)
        mujoco.mj_mulM(self.model, self.data, momentum, sample[1])
        stored_j = 0.5 * float(sample[1] @ momentum)
        args = (self.law, self.guard, self.memory, self.limits, self.limits, self.energy, Switches())
        self.tau = plants.control(sample, self.tau, self.tau, 0.001, 0.001, *args)
        self.data.ctrl[:] = self.tau
        mujoco.mj_step(self.model, self.data, nstep=10)
        ledger_j = float(self.energy.ledger_j[0])
        return stored_j + ledger_j, ledger_j, ledger_j - float(self.energy.potential_j[0])


@pytest.mark.parametrize("clip_rad", [0.15, np.pi])
@pytest.mark.parametrize("enforce", [True, False])
def test_an_arm_that_is_turned_about_is_passive(enforce, clip_rad):
    """Half-turn flips of the target, anisotropic stiffness at random, a reference ahead of the rotation: storage never
    rises, the full mass matrix counted. Filtered, the ledger stays above zero; unfiltered it does not."""
    rng, arm, rows = np.random.default_rng(1), FreePanda(ledger.Config(enforce=enforce), clip_rad), []
    for tick in range(700):
        _, dq, jac, pos, quat, *_ = arm.sample()
        if tick % 60 == 0:
            axis = rng.normal(size=3)
            flip = rotvec_to_quat(np.pi * axis / np.linalg.norm(axis))
            arm.memory.target_pos_m[:] = pos + rng.uniform(-0.1, 0.1, 3)
            arm.memory.target_stiffness[:] = rng.uniform(0.0, 1.0, 6) * [3000.0, 3000.0, 3000.0, 300.0, 300.0, 300.0]
            arm.memory.target_quat_xyzw[:] = quat_multiply(flip, quat)
        elif tick % 200 > 100:
            spin = jac[3:] @ dq
            ahead = spin / max(float(np.linalg.norm(spin)), 1e-6)
            arm.memory.target_quat_xyzw[:] = quat_multiply(rotvec_to_quat(ahead), quat)
        rows.append(arm.tick())
        if not enforce and rows[-1][1] < -5.0:
            break
    stored, ledger_j, free = np.array(rows).T
    assert np.diff(stored).max() <= 1e-6
    assert (ledger_j.min() >= ZERO_J) if enforce else (ledger_j.min() < -1.0 and free.min() < -1.0)


# ------------------------------------------------------------------------------------------------------------ mutations


def least(log: Log) -> float:
    return float(log.rows[:, LEDGER].min())


def rise_j(log: Log) -> float:
    return float(np.diff(storage(log)).max())


def worst_pair(world: dict, mutation: dict, config: dict | None = None) -> tuple[float, float]:
    """The least ledger over drawn runs, sound and mutated, of those in which no joint outran its limit."""
    rng, worst = np.random.default_rng(0), np.full(2, np.inf)
    for seed in range(40):
        speed, rate = float(rng.choice([0.5, 0.7, 1.0, 1.4])), float(rng.choice([500.0, 1e3, 2e3]))
        drawn = World(mass_kg=float(rng.choice([1.0, 3.0, 10.0])), wall_npm=float(rng.choice([1e3, 1e5])), **world)
        policy = str(rng.choice(["push", "random", "pump", "bang"]))
        sound = config_of(drawn)
        for index, (given, changes) in enumerate(
            [(sound, {}), (dataclasses.replace(sound, **(config or {})), mutation)]
        ):
            log, *_ = trial(policy, drawn, given, seed=seed, limits=arm_limits(speed, rate), **OPEN, **changes)
            if log.rows[:, SPEED].max() <= speed:
                worst[index] = min(worst[index], least(log))
    return float(worst[0]), float(worst[1])


@pytest.mark.parametrize(
    ("world", "mutation", "config"),
    [
        pytest.param({}, {"switches": Switches(valve=False)}, None, id="no valve"),
        pytest.param({}, {"filtering": {"dtau_nmps": np.full(3, 1e9)}}, None, id="no ramp reserve"),
        pytest.param({"delay_ticks": 3}, {"in_flight": 0}, None, id="nothing set aside for torque in flight"),
        pytest.param({"lost_share": 0.05, "burst_ticks": 20}, {}, {"hold_ticks": 1}, id="bursts not covered"),
    ],
)
def test_every_part_of_the_valve_keeps_the_ledger_above_zero(world, mutation, config):
    sound_j, mutated_j = worst_pair(world, mutation, config)
    assert sound_j >= ZERO_J and mutated_j < -0.02


@pytest.mark.parametrize(
    "switches",
    [pytest.param(Switches(gamma=False), id="gamma = 1"), pytest.param(Switches(alpha=False), id="alpha = 1")],
)
def test_without_gamma_or_alpha_the_springs_promise_more_than_there_is(switches):
    given = {"ticks": 2000, "limits": arm_limits(rate=1e6), **OPEN}
    assert free_j(trial("bang", World(), **given)[0]).min() >= 0.0
    assert free_j(trial("bang", World(), switches=switches, **given)[0]).min() < -1.0


def test_without_giving_way_the_surroundings_stretch_the_springs_beyond_what_there_is():
    """The shaken arm loads its springs while the ledger is at its cap, and what spills is missing afterwards."""
    world, given = World(shake_n=40.0, shake_hz=1.0, wall_npm=1e3), {"ticks": 3000, **OPEN}
    assert free_j(trial("push", world, **given)[0]).min() >= 0.0
    assert free_j(trial("push", world, switches=Switches(retreat=False), **given)[0]).min() < -0.1


def test_without_a_reserve_an_empty_ledger_is_never_told():
    """The valve alone keeps L above zero; the reserve is where it is told, and the arm floats."""
    world, given = World(nan_share=0.05), {"ticks": 1500, **OPEN}
    told = {
        reserve_j: (trial("bang", world, ledger.Config(budget_j=0.3, reserve_j=reserve_j), **given)[0].rows)
        for reserve_j in (0.05, 0.0)
    }
    assert (told[0.05][:, STATE] == ledger.FLOAT).any() and not (told[0.0][:, STATE] == ledger.FLOAT).any()
    assert told[0.0][:, LEDGER].min() < 0.05


def test_the_cap_bounds_what_the_surroundings_can_load_into_the_ledger():
    """A moving wall and a shaken arm do work on the springs; without the cap all of it could be given back at once."""
    world = World(mass_kg=2.0, shake_n=15.0, shake_hz=2.0, wall_stroke_m=0.03, viscous=0.0)
    capped, energy, _ = trial("silent", world, ticks=4000, clip_m=10.0)
    loose, *_ = trial("silent", world, ticks=4000, clip_m=10.0, charging={"cap_j": np.inf})
    assert capped.rows[:, LEDGER].max() <= 5.0 < loose.rows[:, LEDGER].max() and energy.spill_j[0] > 0.0


def test_a_sample_that_is_no_number_is_charged_at_the_worst():
    """Not charging it at all would let storage rise."""
    world = World(nan_share=0.05, wall_m=1.0)
    sound, *_ = trial("bang", world, ticks=3000, **OPEN)
    mutated, *_ = trial("bang", world, ticks=3000, charging={"speed_radps": np.zeros(3)}, **OPEN)
    assert rise_j(sound) <= 1e-9 and least(sound) >= ZERO_J
    assert rise_j(mutated) > 1e-4


def test_credit_is_sound_up_to_the_friction_there_is():
    world = World(coulomb_n=2.0, wall_m=1.0)
    given = {"ticks": 3000, "limits": arm_limits(coulomb=2.0), **SHIPPED}
    sound, energy, _ = trial("bang", world, ledger.Config(friction_credit=0.8), **given)
    mutated, *_ = trial(
        "bang", world, ledger.Config(friction_credit=0.8), charging={"coulomb_nm": np.full(3, 4.0)}, **given
    )
    assert energy.credit_j[0] > 0.05 and rise_j(sound) <= 1e-9
    assert rise_j(mutated) > 1e-5


def test_every_mechanism_acts_somewhere_in_these_runs():
    """What never acts proves nothing: throttling, holding, floating and the valve all occur."""
    states, valve = set(), False
    for policy in ("pump", "push"):
        for delay_ticks in (0, 3):
            log, *_ = trial(policy, World(mass_kg=10.0, wall_npm=1e3, delay_ticks=delay_ticks), ticks=1500, **OPEN)
            states |= {ledger.STATES[int(state)] for state in log.rows[:, STATE]}
            valve |= bool(log.rows[:, BETA].min() < 1.0)
    drained, *_ = trial("bang", World(nan_share=0.05), ledger.Config(budget_j=0.3), ticks=1500, **OPEN)
    nominal, *_ = trial("bang", World(), ticks=100, **SHIPPED)
    states |= {ledger.STATES[int(state)] for state in nominal.rows[:, STATE]}
    states |= {ledger.STATES[int(state)] for state in drained.rows[:, STATE]}
    assert states == set(ledger.STATES) and valve and len(plants.COLUMNS) == drained.rows.shape[1]
