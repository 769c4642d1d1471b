"""The only arm a policy is ever given: guard, energy ledger and passivity filter around any arm, in any world."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from controllers import guard as guarding
from controllers.filters import ledger, passivity, sampled
from controllers.filters.ledger import EnergyLimits, EnergyMemory
from controllers.guard import (
    ARM_STOPPED,
    CLIPS,
    EMERGENCY_STOP,
    FAULTS,
    NO_FAULT,
    GuardLimits,
    GuardMemory,
    guard_tick,
)
from robot_rl.types import Arm, ArmCommand, ArmState, Bounds, Pose, Start

Array = NDArray[np.float64]

REST_RADPS = 0.05  # no joint faster: the arm is at rest
REST_N = 5.0  # no contact force above: it touches nothing


@runtime_checkable
class LockstepArm(Protocol):
    """An arm that runs guard, filter and law inside its own ticks: a twin."""

    control_hz: float

    def wait_guarded(
        self,
        guard: GuardLimits,
        memory: GuardMemory,
        limits: EnergyLimits,
        energy: EnergyMemory,
        dt_s: float,
    ) -> ArmState: ...
    def place(self, start: Start) -> ArmState: ...


@runtime_checkable
class StoppingArm(Protocol):
    """An arm that stops by itself: a driver's, whose controller has reflexes and protective stops."""

    @property
    def fault(self) -> str:
        """Why it does not follow, or an empty string. In a fault it takes no command and raises nothing."""
        ...

    def recover(self) -> None:
        """A person's word; raises RuntimeError with what the person has to do first."""


class GuardedArm:
    """An arm that steps in lock-step runs guard and filter inside its own loop, with the torques it really applies. Any
    other is commanded with the guarded reference at ``control_hz``, from here, and its ledger is sampled."""

    def __init__(
        self,
        arm: Arm,
        bounds: Bounds,
        config: guarding.Config | None = None,
        energy: ledger.Config | None = None,
    ) -> None:
        self._arm = arm
        self._twin = arm if isinstance(arm, LockstepArm) else None
        self._stopping = arm if isinstance(arm, StoppingArm) else None
        self._stopped_by = ""  # the arm's own words
        self._config, self._energy_config = config or guarding.Config(), energy or ledger.Config()
        self.limits = arm.limits
        if self._twin is not None and not math.isclose(self._twin.control_hz, self._config.control_hz):
            raise ValueError(
                f"control_hz = {self._config.control_hz:g}: this arm steps in lock-step at {self._twin.control_hz:g} Hz"
            )
        self.set_bounds(bounds)
        self._limits = ledger.make_limits(self._energy_config, bounds.energy_j, arm.limits, arm.limits.dq_max_radps)
        self.default_stiffness = arm.default_stiffness
        self._law = None if self._twin is not None else sampled.spring_of(arm)
        self._damped = arm if isinstance(arm, sampled.DampedArm) else None
        self._begin(arm.read())

    def _begin(self, state: ArmState) -> None:
        """Guard and ledger as at the beginning of an episode."""
        self._memory = guarding.make_memory(state, self.default_stiffness)
        self._energy = ledger.make_memory(self._limits, self._energy_config.delay_ticks)
        self._seen, self._damping = state, np.zeros(6)  # of the last charge
        self._stopped = self._relaxed = False

    def set_bounds(self, bounds: Bounds) -> None:
        """Other bounds from the next tick on; raises ValueError where one is looser than the arm's own limit. The
        energy budget stays that of the beginning."""
        self._guard = guarding.make_limits(bounds, self.limits, self._config)
        self.bounds = bounds

    @property
    def unguarded(self) -> Arm:
        """What is guarded; only for who runs it, never for a policy."""
        return self._arm

    @property
    def reference(self) -> Pose:
        """What is left of the command after guard and energy filter: the pose the law is given."""
        return Pose(self._memory.pos_m.copy(), self._memory.quat_xyzw.copy())

    @property
    def stiffness(self) -> Array:
        """(6,) N/m, Nm/rad that the law is given."""
        return self._memory.stiffness.copy()

    @property
    def gripper(self) -> float:
        """What the gripper is told, 0 open .. 1 closed."""
        return float(self._memory.gripper[0])

    @property
    def following(self) -> bool:
        """Whether there is a command whose lease goes on."""
        return bool(self._memory.age_s[0] < self._memory.valid_s[0])

    @property
    def fault(self) -> str:
        """Why the guard holds the arm, or an empty string; behind "arm stopped: " it is the arm's own words, which the
        next ``wait`` latches."""
        code = self._memory.fault[0]
        said = self._stopped_by if code == ARM_STOPPED else ""
        if code == NO_FAULT and self._stopping is not None:
            said = self._stopping.fault
        return f"{FAULTS[ARM_STOPPED]}: {said}" if said else FAULTS[code]

    @property
    def clips(self) -> dict[str, int]:
        """Control ticks in which each clip acted, since the guard was made or placed."""
        return dict(zip(CLIPS, self._memory.clips.tolist(), strict=True))

    @property
    def energy(self) -> dict[str, float]:
        """The last ``wait`` in numbers: the ledger at its last tick, and what was extreme (``ledger.summarize``)."""
        return ledger.summarize(self._limits, self._energy, self._energy_config.low_share)

    @property
    def energy_state(self) -> str:
        return ledger.STATES[self._energy.state[0]]

    @property
    def energy_trace(self) -> Array:
        """One row (``ledger.TRACE``) for each control tick of the last ``wait``."""
        return self._energy.trace[: self._energy.row[0]].copy()

    def readings(self) -> dict[str, np.ndarray]:
        """``energy`` (2,): free energy as a share of the budget, in [-1, 1], and the least alpha of the last wait."""
        free_j = float(self._energy.ledger_j[0] - self._energy.potential_j[0])
        share = free_j / self._limits.budget_j
        alpha = self._energy.trace[: self._energy.row[0], ledger.ALPHA].min(initial=1.0)
        return {"energy": np.array([min(max(share, -1.0), 1.0), alpha])}

    def read(self) -> ArmState:
        return self._arm.read()

    def command(self, command: ArmCommand) -> None:
        """Begin a new lease; raises ValueError on what is not finite, misshapen or beyond this arm."""
        if command.stiffness is not None and "stiffness" in self.limits.cannot:
            raise ValueError("ArmCommand.stiffness: this arm cannot change its stiffness; leave it None")
        guarding.take_command(self._memory, command, self.default_stiffness)
        self._stiffen()

    def wait(self, dt_s: float) -> ArmState:
        """Let ``dt_s`` pass under guard. A fault holds the arm; it does not raise."""
        ticks = self.ticks(dt_s)
        if ticks > len(self._energy.trace):
            self._energy = self._energy._replace(trace=np.zeros((ticks, len(ledger.TRACE))))
        self._energy.row[0] = 0
        if self._twin is not None:
            return self._twin.wait_guarded(self._guard, self._memory, self._limits, self._energy, dt_s)
        period_s = 1.0 / self._config.control_hz
        state, elapsed_s = self._arm.read(), period_s
        if self._stopped:  # what moved a stopped arm did no work on springs of ours
            self._energy.known[0], self._stopped = 0, False
            self._anchor(state)
        for _ in range(ticks):
            self._tick(state, elapsed_s)
            begun_s, state = state.t_s, self._arm.wait(period_s)
            self._watch()
            elapsed_s = max(state.t_s - begun_s, period_s)  # a late loop ages the lease by what has really passed
        return state

    def ticks(self, dt_s: float) -> int:
        """How many control ticks ``dt_s`` is; raises ValueError where it is not a whole number."""
        ticks = round(dt_s * self._config.control_hz)
        if ticks < 1 or abs(ticks - dt_s * self._config.control_hz) > 1e-6:
            raise ValueError(
                f"a period of {dt_s:g} s is no multiple of the guard's tick, {1.0 / self._config.control_hz:g} s: "
                "change the rate, or guard.control_hz"
            )
        return ticks

    def _watch(self) -> None:
        """Latch that the arm has stopped by itself."""
        if self._stopping is not None and self._memory.fault[0] == NO_FAULT and (said := self._stopping.fault):
            self._stopped_by = said
            self.trip(ARM_STOPPED)

    def _tick(self, state: ArmState, dt_s: float) -> None:
        """Guard and filter of an arm that closes its own loop, then the reference that is left of the command."""
        memory, pose = self._memory, (state.tcp_pos_m, state.tcp_quat_xyzw)
        assert self._law is not None
        self._charge(state)
        before = passivity.reference_of(memory)
        guard_tick(self._guard, memory, state.q_rad, state.dq_radps, *pose, state.tcp_wrench, dt_s)
        passivity.limit_reference(self._limits, self._energy, memory, before, *pose, self._law)
        ledger.record(self._energy, state.tcp_wrench)
        stiffness = None if "stiffness" in self.limits.cannot else memory.stiffness.copy()
        self._arm.command(ArmCommand(memory.pos_m.copy(), memory.quat_xyzw.copy(), float(memory.gripper[0]), stiffness))

    def _charge(self, state: ArmState) -> None:
        """What springs gave and dampers took since the last charge; pauses between two waits leak as well. A sample
        that is not finite is none."""
        assert self._law is not None
        if not np.isfinite(np.concatenate([[state.t_s], state.tcp_pos_m, state.tcp_quat_xyzw, state.tcp_twist])).all():
            return  # nor may the next one be measured against it: a ledger that is no number limits nothing
        memory, pose = self._memory, (state.tcp_pos_m, state.tcp_quat_xyzw)
        since_s, seen = max(state.t_s - self._seen.t_s, 0.0), Pose(self._seen.tcp_pos_m, self._seen.tcp_quat_xyzw)
        damping = np.zeros(6) if self._damped is None else self._damped.damping_of(memory.stiffness)
        credit_j = sampled.damping_credit(np.minimum(damping, self._damping), seen, *pose, since_s)
        self._seen, self._damping = state, damping
        sampled.charge(self._limits, self._energy, memory, *pose, state.tcp_twist, self._law, since_s, credit_j)

    def stop(self) -> None:
        """Stop the arm where it is and end the lease. Not latched: the next command moves it again."""
        self._arm.stop()
        self._let_go(self._arm.read())
        self._stopped = True

    def _let_go(self, state: ArmState) -> None:
        """End the lease and hold where the arm is; the gripper stays as it is."""
        guarding.drop_command(self._memory)
        self._anchor(state)

    def _anchor(self, state: ArmState) -> None:
        """Anchor the springs where the arm is; what they gave until now is charged."""
        if guarding.is_finite(state):
            if self._law is not None and self._energy.known[0]:
                self._charge(state)
            self._memory.pos_m[:], self._memory.quat_xyzw[:] = state.tcp_pos_m, state.tcp_quat_xyzw
            self._energy.potential_j[0] = 0.0

    def trip(self, fault: int) -> None:
        """Latch a fault that the guard cannot see (a code of ``guard.FAULTS``) and hold. The first one stands, but for
        an emergency stop, which stands above all."""
        if self._memory.fault[0] == NO_FAULT:
            self._let_go(self._arm.read())
            self._end_relaxing()
            self._memory.fault[0] = fault
        elif fault == EMERGENCY_STOP:
            self._memory.fault[0] = fault

    def settle(self) -> None:
        """Hold where the arm is now, whatever was commanded before; faults stay."""
        if self._memory.fault[0] == NO_FAULT:
            if self._law is not None:
                self._energy.known[0] = 0  # what moved it since did no work on springs of ours
            self._let_go(self._arm.read())
            self._memory.target_stiffness[:] = self._memory.stiffness[:] = self.default_stiffness
            self._relaxed = False

    def _end_relaxing(self) -> None:
        """Springs that were relaxed are stiff again, at rest where the arm is: that takes no energy."""
        if self._relaxed:
            self._memory.target_stiffness[:] = self._memory.stiffness[:] = self.default_stiffness
            self._relaxed = False

    def hold(self) -> None:
        """End the lease: from the next tick on the reference stands still."""
        guarding.drop_command(self._memory)
        if self._relaxed and self._memory.fault[0] == NO_FAULT:
            self._memory.target_stiffness[:] = self.default_stiffness
        self._stiffen()

    def _stiffen(self) -> None:
        """An arm that was relaxed is held where it is: no spring that is tensioned gets stiff again."""
        if self._relaxed and self._memory.fault[0] == NO_FAULT:
            self._anchor(self._arm.read())
            self._relaxed = False

    def relax(self, share: float) -> None:
        """Soften the springs to ``share`` of the default until the next command. At 0 they follow whoever moves the
        arm, so that nothing snaps back; an arm that cannot change its stiffness is let go in the same way."""
        if self._memory.fault[0] != NO_FAULT:
            return
        guarding.drop_command(self._memory)
        self._relaxed = True
        if "stiffness" not in self.limits.cannot:
            softer = share * self.default_stiffness  # than what a soft policy had is not needed
            self._memory.target_stiffness[:] = np.minimum(self._memory.target_stiffness, softer)
        if share == 0.0:
            self._let_go(self._arm.read())

    def clear_fault(self) -> None:
        """A person's word that the cause is gone: hold at the measured pose and take commands again.

        After an empty ledger this grants the budget anew, as ``grant_energy`` does. Raises ValueError, and stays in the
        fault, while the arm measures what is not finite, is to be granted energy while it moves or is touched, or has
        stopped by itself and cannot go on before someone has done what the error says.
        """
        if self._stopping is not None and self._stopping.fault:
            try:
                self._stopping.recover()
            except RuntimeError as error:
                raise ValueError(str(error)) from None
            self._stopped = True
        state = self._arm.read()
        if self.energy_state == "float":
            self._require_rest(state)
        guarding.hold_here(self._memory, state)
        self._end_relaxing()
        if self.energy_state == "float":
            ledger.grant(self._limits, self._energy)
        self._memory.fault[0] = NO_FAULT

    def grant_energy(self) -> None:
        """Fill the ledger up to the budget: a person's act, or the beginning of an episode on a real arm.

        An arm that floats goes on floating until ``clear_fault``. Raises ValueError while the arm moves or is touched:
        energy granted then is no longer a bound on what is felt.
        """
        self._require_rest(self._arm.read())
        if self.energy_state != "float":
            ledger.grant(self._limits, self._energy)

    def _require_rest(self, state: ArmState) -> None:
        speed_radps = float(np.abs(state.dq_radps).max())
        force_n = float(np.linalg.norm(state.tcp_wrench[:3]))
        if not (speed_radps <= REST_RADPS and force_n <= REST_N):
            raise ValueError(
                f"energy is granted at rest and free of contact only: the fastest joint moves at {speed_radps:.3g} "
                f"rad/s (at most {REST_RADPS}), the contact force is {force_n:.3g} N (at most {REST_N})"
            )

    def place(self, start: Start) -> ArmState:
        """Twins only: put the world into ``start``. It is a new world, so guard and ledger start anew with it."""
        if self._twin is None:
            raise TypeError(f"{type(self._arm).__name__} is no twin: a real world cannot be put into a state")
        state = self._twin.place(start)
        self._begin(state)
        return state

    def close(self) -> None:
        self._arm.close()
