"""A plant whose energy balance is exact, and the control tick around it: the bench on which the proof is tested.

A point mass on three prismatic joints (q = position, J = [I; 0]) with a unilateral wall across x. Each substep is the
implicit midpoint rule with the discrete gradient of the wall's potential, so that kinetic energy + wall potential
changes by exactly the work of the forces; friction opposes the midpoint velocity and can only take energy. What the
storage inequality shows is therefore the controller's doing, to rounding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from controllers import impedance
from controllers.filters import ledger, passivity
from controllers.filters.ledger import FLOAT, HOLD, EnergyLimits, EnergyMemory
from controllers.guard import NO_FAULT, NOT_FINITE, GuardLimits, GuardMemory, guard_tick, make_memory, open_limits
from controllers.impedance import Law, impedance_torque, spring_potential, spring_wrench
from controllers.jacobian import row_space
from robot_rl.types import ArmLimits, ArmState

Array = NDArray[np.float64]
IDENTITY = np.array([0.0, 0.0, 0.0, 1.0])
HOME = np.zeros(3)

POLICIES = ("silent", "random", "pump", "push", "bang", "hold")
SILENT, RANDOM, PUMP, PUSH, BANG, HOLDING = range(6)

COLUMNS = ("ledger", "potential", "granted", "storage", "outside", "torque", "pull", "wall", "speed", "beta", "state")
"""Of a log, one row per control tick: L, V, J granted so far, kinetic + wall energy, work of the surroundings so far,
work of the torques so far (true motion), the most of F^2 / 2K over the axes, wall force N, top speed, beta, state."""
LEDGER, POTENTIAL, GRANTED, STORAGE, OUTSIDE, TORQUE, PULL, WALL, SPEED, BETA, STATE = range(11)


class World(NamedTuple):
    """The mass, what surrounds it, and the line between it and its controller."""

    mass_kg: float = 2.0
    viscous: float = 0.0  # Ns/m of each joint
    coulomb_n: float = 0.0  # of each joint
    wall_npm: float = 1e4
    wall_m: float = 0.05  # where it begins, on x
    wall_stroke_m: float = 0.0  # it moves by a sine
    wall_hz: float = 3.0
    cone: float = 0.0  # friction coefficient of the wall
    shake_n: float = 0.0  # an outside force on every axis, by sines
    shake_hz: float = 7.0
    period_s: float = 0.001
    substeps: int = 10
    delay_ticks: int = 0
    quantum_m: float = 0.0  # of the encoders
    lost_share: float = 0.0  # of the ticks; the robot holds its torque, what is in flight waits, too
    burst_ticks: int = 1  # longest run of lost ticks
    nan_share: float = 0.0  # of the samples


class Switches(NamedTuple):
    """Mechanisms of the filter that a mutation takes out."""

    alpha: bool = True
    gamma: bool = True
    retreat: bool = True
    valve: bool = True
    regrant: bool = False  # whoever watches grants a new budget at rest


class Log(NamedTuple):
    rows: Array  # (ticks, 11)
    q_m: Array  # (ticks, 3) as measured
    tau_n: Array  # (ticks, 3) that was applied after that sample


def arm_limits(speed: float = 5.0, rate: float = 1000.0, coulomb: float | None = None) -> ArmLimits:
    return ArmLimits(
        q_min_rad=np.full(3, -100.0),
        q_max_rad=np.full(3, 100.0),
        dq_max_radps=np.full(3, speed),
        tau_max_nm=np.full(3, 200.0),
        dtau_max_nmps=np.full(3, rate),
        speed_max_mps=100.0,
        speed_max_radps=100.0,
        stiffness_max=np.array([3000.0] * 3 + [300.0] * 3),
        gripper_width_m=0.08,
        gripper_force_n=70.0,
        coulomb_nm=None if coulomb is None else np.full(3, coulomb),
    )


@numba.njit
def _wall_j(world: World, depth: float) -> float:
    return 0.5 * world.wall_npm * max(depth, 0.0) ** 2


@numba.njit
def _gradient(world: World, s0: float, s1: float) -> float:
    """The discrete gradient of the wall's potential: (U(s1) - U(s0)) / (s1 - s0), without cancellation."""
    if s0 >= 0.0 and s1 >= 0.0:
        return 0.5 * world.wall_npm * (s0 + s1)
    if s0 <= 0.0 and s1 <= 0.0:
        return 0.0
    return (_wall_j(world, s1) - _wall_j(world, s0)) / (s1 - s0)


@numba.njit
def _normal(world: World, free: float, s0: float, moved_m: float, inertia: float, h: float) -> float:
    """The midpoint velocity across the wall, ``free`` without it: the root of ``inertia (v - free) + DU(v)``, which
    rises with v, so that one case of the four holds: free, both ends in contact, coming, leaving."""
    a, half, end = inertia / h, 0.5 * world.wall_npm, s0 + h * free - moved_m
    both = (a * end - half * s0) / (a + half)
    if s0 <= 0.0 and end <= 0.0:
        return free
    if s0 >= 0.0 and both >= 0.0:
        s1 = both
    elif s0 < 0.0:
        b = 0.5 * a * (end + s0)
        s1 = (b + math.sqrt(b * b - (a + half) * a * end * s0)) / (a + half)
    else:
        s1 = 0.5 * (s0 + end - math.sqrt((s0 - end) ** 2 + 4.0 * half * s0 * s0 / a))
    return (s1 - s0 + moved_m) / h


@numba.njit
def _held(velocity: float, friction_n: float, inertia: float) -> float:
    """A midpoint velocity after Coulomb friction: against the motion, never reversing it."""
    return math.copysign(max(abs(velocity) - friction_n / inertia, 0.0), velocity)


@numba.njit
def advance(world: World, x: Array, v: Array, tau: Array, t_s: float) -> tuple[float, float]:
    """One control period with the torque held; returns the work of the surroundings and the last wall force."""
    h = world.period_s / world.substeps
    outside_j, wall_n = 0.0, 0.0
    for k in range(world.substeps):
        begun = t_s + k * h
        phase = 2.0 * math.pi * world.wall_hz
        p0 = world.wall_m + world.wall_stroke_m * math.sin(phase * begun)
        p1 = world.wall_m + world.wall_stroke_m * math.sin(phase * (begun + h))
        inertia = 2.0 * world.mass_kg / h + world.viscous
        middle, force = np.empty(3), np.empty(3)
        for i in range(3):
            force[i] = world.shake_n * math.sin(2.0 * math.pi * world.shake_hz * begun + 2.0 * i)
            middle[i] = (2.0 * world.mass_kg / h * v[i] + tau[i] + force[i]) / inertia
        middle[0] = _normal(world, middle[0], x[0] - p0, p1 - p0, inertia, h)
        touching = 0.5 * world.wall_npm * h if x[0] > p0 else 0.0
        middle[0] = _held(middle[0], world.coulomb_n, inertia + touching)
        wall_n = _gradient(world, x[0] - p0, x[0] - p1 + h * middle[0])
        for i in range(1, 3):
            middle[i] = _held(middle[i], world.coulomb_n, inertia)
        slip = math.hypot(middle[1], middle[2])
        if slip > 0.0:
            share = max(1.0 - world.cone * wall_n / (inertia * slip), 0.0)
            middle[1:] *= share
        for i in range(3):
            x[i] += h * middle[i]
            v[i] = 2.0 * middle[i] - v[i] if middle[i] != 0.0 else 0.0  # stuck: it loses what it still had
            outside_j += force[i] * h * middle[i]
        outside_j -= wall_n * (p1 - p0)
    return outside_j, wall_n


@numba.njit
def stored_j(world: World, x: Array, v: Array, t_s: float) -> float:
    """Kinetic energy and the wall's potential."""
    wall_m = world.wall_m + world.wall_stroke_m * math.sin(2.0 * math.pi * world.wall_hz * t_s)
    return 0.5 * world.mass_kg * np.sum(v * v) + _wall_j(world, x[0] - wall_m)


@numba.njit
def control(
    sample: tuple[Array, Array, Array, Array, Array, Array, Array],
    applied: Array,
    commanded: Array,
    period_s: float,
    elapsed_s: float,
    law: Law,
    guard: GuardLimits,
    memory: GuardMemory,
    limits: EnergyLimits,
    charging: EnergyLimits,
    energy: EnergyMemory,
    switches: Switches,
) -> Array:
    """The kernels in the order of ``sim._tick.run_ticks``; returns the torque to command. ``sample``: q, dq, Jacobian,
    tcp position and quaternion, wrench, Coriolis torque. ``charging``: the limits that ``charge`` reads."""
    q, dq, jac, pos, quat, wrench, coriolis = sample
    ledger.charge(charging, energy, applied, q, elapsed_s)
    held, before = passivity.reference_of(memory), passivity.reference_of(memory)
    guard_tick(guard, memory, q, dq, pos, quat, wrench, elapsed_s)
    wanted = passivity.reference_of(memory)
    passivity.limit_reference(limits, energy, memory, before, pos, quat, law)
    whole = switches.alpha and switches.gamma and (switches.retreat or energy.state[0] != HOLD)
    if energy.state[0] != FLOAT and memory.fault[0] != NOT_FINITE and not whole:
        if not switches.retreat:
            memory.pos_m[:] = held.pos_m
            memory.quat_xyzw[:] = held.quat_xyzw
            memory.stiffness[:] = held.stiffness
        if not switches.gamma:
            memory.stiffness[:] = wanted.stiffness
        if not switches.alpha:
            memory.pos_m[:] = wanted.pos_m
            memory.quat_xyzw[:] = wanted.quat_xyzw
        energy.potential_j[0] = spring_potential(pos, quat, memory.pos_m, memory.quat_xyzw, memory.stiffness, law)
    if memory.fault[0] == NOT_FINITE:
        tau = np.zeros(len(q))
    elif energy.state[0] == FLOAT:
        tau = impedance.braking_torque(dq, law)
    else:
        tau = impedance_torque(
            q, dq, jac, row_space(jac), pos, quat, memory.pos_m, memory.quat_xyzw, memory.stiffness, coriolis, law
        )
    tau = impedance.limit_torque(tau, commanded, law, period_s)
    if switches.valve:
        tau = passivity.limit_torque(limits, energy, tau, commanded, period_s)
    return impedance.limit_torque(tau, commanded, law, period_s)  # the robot's own: for the mutations of the valve


_grant = numba.njit(ledger.grant)


@numba.njit
def _command(
    rng: np.random.Generator,
    policy: int,
    tick: int,
    memory: GuardMemory,
    x: Array,
    v: Array,
    wall_m: float,
    most: Array,
) -> None:
    """What an adversary asks for, as ``take_command`` would leave it in memory."""
    target, stiffness = memory.target_pos_m, memory.target_stiffness
    memory.age_s[0], memory.valid_s[0] = 0.0, 0.0 if policy == SILENT else 1.0
    if policy == RANDOM and tick % 30 == 0:
        for i in range(3):
            target[i] = rng.uniform(-0.3, 0.3)
            stiffness[i] = rng.uniform(0.0, most[i])
    elif policy == PUMP:  # ahead of the motion; stiff while the spring drives it, soft while it would brake
        for i in range(3):
            target[i] = x[i] + math.copysign(0.3, v[i])
            stiffness[i] = most[i] * (1.0 if (memory.pos_m[i] - x[i]) * v[i] >= 0.0 else 0.02)
    elif policy == PUSH:
        target[0] = wall_m + 0.25
        stiffness[:] = most
    elif policy == BANG:
        side = 1.0 if (tick // 100) % 2 == 0 else -1.0
        for i in range(3):
            target[i] = 0.25 * side
            stiffness[i] = most[i] if (tick // 50) % 2 == 0 else 0.1 * most[i]


@numba.njit
def run(
    ticks: int,
    rng: np.random.Generator,
    policy: int,
    world: World,
    law: Law,
    guard: GuardLimits,
    memory: GuardMemory,
    limits: EnergyLimits,
    charging: EnergyLimits,
    energy: EnergyMemory,
    switches: Switches,
) -> Log:
    """Run ``ticks`` control periods. Every fault is cleared at once: the proof does not rest on them."""
    rows, q_log, tau_log = np.zeros((ticks, 11)), np.zeros((ticks, 3)), np.zeros((ticks, 3))
    x, v, jac = memory.pos_m.copy(), np.zeros(3), np.zeros((6, 3))
    jac[:3] = np.eye(3)
    flying, applied, commanded = np.zeros((world.delay_ticks + 1, 3)), np.zeros(3), np.zeros(3)
    quat, zero, most = np.array([0.0, 0.0, 0.0, 1.0]), np.zeros(3), np.array([3e3, 3e3, 3e3, 300.0, 300.0, 300.0])
    outside_j, torque_j, wall_n, fastest, lost, count, elapsed = 0.0, 0.0, 0.0, 0.0, 0, 0, 1
    for tick in range(ticks):
        if lost == 0 and rng.random() < world.lost_share:
            lost = rng.integers(1, world.burst_ticks + 1)
        if lost == 0 or elapsed > world.burst_ticks:
            q = np.round(x / world.quantum_m) * world.quantum_m if world.quantum_m > 0.0 else x.copy()
            broken = rng.random() < world.nan_share
            if broken:
                q[rng.integers(0, 3)] = np.nan
            if memory.fault[0] != NO_FAULT and energy.state[0] != FLOAT and not broken:
                memory.fault[0] = NO_FAULT
                memory.pos_m[:] = q
            if switches.regrant and energy.state[0] == FLOAT and np.abs(v).max() < 0.05 and not broken:
                _grant(limits, energy)
                memory.fault[0] = NO_FAULT
            if not broken:
                _command(rng, policy, tick, memory, q, v, world.wall_m, most)
            sample = (q, v.copy(), jac, q.copy(), quat, np.zeros(6), zero)
            period_s = world.period_s
            commanded = control(
                sample, applied, commanded, period_s, elapsed * period_s, law, guard, memory, limits, charging, energy,
                switches,
            )  # fmt: skip
            for i in range(world.delay_ticks):
                flying[i] = flying[i + 1]
            flying[world.delay_ticks] = commanded
            applied = flying[0].copy()
            pull = 0.0
            if energy.state[0] != FLOAT and not broken:
                spring = spring_wrench(q, quat, memory.pos_m, memory.quat_xyzw, memory.stiffness, law)
                for i in range(3):
                    if memory.stiffness[i] > 0.0:
                        pull = max(pull, spring[i] ** 2 / (2.0 * memory.stiffness[i]))
            row = rows[count]
            row[LEDGER], row[POTENTIAL], row[GRANTED] = energy.ledger_j[0], energy.potential_j[0], energy.granted_j[0]
            row[STORAGE], row[OUTSIDE], row[TORQUE] = stored_j(world, x, v, tick * period_s), outside_j, torque_j
            row[PULL], row[WALL], row[SPEED], row[BETA] = pull, wall_n, fastest, energy.beta[0]
            row[STATE] = energy.state[0]
            q_log[count], tau_log[count] = q, applied
            count, elapsed, fastest = count + 1, 1, 0.0
        else:
            lost, elapsed = lost - 1, elapsed + 1
        begun = x.copy()
        work_j, wall_n = advance(world, x, v, applied, tick * world.period_s)
        outside_j += work_j
        torque_j += np.sum(applied * (x - begun))
        fastest = max(fastest, np.abs(x - begun).max() / world.period_s)
    return Log(rows[:count], q_log[:count], tau_log[:count])


def trial(
    policy: str,
    world: World,
    config: ledger.Config | None = None,
    *,
    ticks: int = 1000,
    seed: int = 0,
    switches: Switches | None = None,
    limits: ArmLimits | None = None,
    speed_mps: float = 0.25,
    clip_m: float = 0.015,
    damping_ratio: float = 1.0,
    charging: dict | None = None,
    filtering: dict | None = None,
    in_flight: int | None = None,
) -> tuple[Log, EnergyMemory, EnergyLimits]:
    """One run from rest at ``HOME``. ``charging`` and ``filtering`` falsify what ``charge`` and the filter read;
    ``in_flight`` falsifies the delay that the valve is told."""
    limits, config = limits or arm_limits(), config or ledger.Config()
    law = impedance.make_law(impedance.Config(clip_m=(clip_m,) * 3, damping_ratio=damping_ratio), limits, np.zeros(3))
    guard = open_limits(limits)._replace(speed_mps=speed_mps, trip_radps=limits.dq_max_radps)
    zero = np.zeros(3)
    state = ArmState(0.0, HOME.copy(), zero, zero, HOME.copy(), IDENTITY.copy(), np.zeros(6), np.zeros(6), 0.0)
    memory = make_memory(state, law.stiffness)
    sound = ledger.make_limits(config, 2.0, limits, limits.dq_max_radps)
    delay = config.delay_ticks if in_flight is None else in_flight
    energy = ledger.make_memory(sound, delay)
    log = run(
        ticks, np.random.default_rng(seed), POLICIES.index(policy), world, law, guard, memory,
        sound._replace(**(filtering or {})), sound._replace(**(charging or {})), energy, switches or Switches(),
    )  # fmt: skip
    return log, energy, sound
