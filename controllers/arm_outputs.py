"""What an arm's node publishes, and when: state at one rate, status at another, words when they change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
from numpy.typing import NDArray
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState, MultiDOFJointState
from std_msgs.msg import Bool, Float64MultiArray, String

from controllers import messages
from controllers.control_loop import Tick
from controllers.filters import ledger
from controllers.guard import code_of

Array = NDArray[np.float64]
TARE_TICKS = 100


class Outputs:
    """Every method but ``repeat`` and ``estop`` runs in the control loop's thread."""

    def __init__(self, node: Any, lockstep: bool) -> None:
        state = messages.LOCKSTEP_QOS if lockstep else messages.STATE_QOS
        make, latched = node.create_publisher, messages.LATCHED_QOS
        self._pose = make(PoseStamped, messages.CURRENT_POSE, state)
        self._twist = make(TwistStamped, messages.CURRENT_TWIST, state)
        self._joints = make(JointState, messages.JOINT_STATES, state)
        self._wrench = make(WrenchStamped, messages.WRENCH, state)
        self._applied = make(PoseStamped, messages.APPLIED_TARGET, state)
        self._energy = make(Float64MultiArray, messages.ENERGY_STATE, state)
        self._guard = make(Float64MultiArray, messages.GUARD_STATE, state)
        self._props = make(MultiDOFJointState, messages.PROPS, state)
        self._safety = make(String, messages.SAFETY_STATE, latched)
        self._estop = make(Bool, messages.ESTOP_STATE, latched)
        self._clock = make(Clock, "/clock", messages.LOCKSTEP_QOS) if lockstep else None
        self._names = messages.names_of("", 0)
        self._state_every = self._status_every = 1
        self._count = 0
        self._told = ""  # the mode of the last status: a change is told at once
        self._energies: list[dict[str, float]] = []
        self._least_alpha = 1.0
        self._wrenches: list[Array] = []
        self._tare = np.zeros(6)
        self.said = ("", "")

    def begin(self, names: messages.Names, state_every: int, status_every: int) -> None:
        """``every``: ticks from one message to the next."""
        self._names, self._state_every, self._status_every = names, max(state_every, 1), max(status_every, 1)
        self._tare[:] = 0.0
        self.forget()

    def forget(self) -> None:
        """What was gathered belongs to a world that is gone; the next tick tells everything."""
        self._count = -1
        self._energies.clear()
        self._wrenches.clear()
        self._least_alpha = 1.0

    def tick(self, tick: Tick, props: Callable[[], dict[str, Array]], refused: int) -> None:
        """Publish what is due."""
        self._count += 1
        self._energies.append(tick.energy)
        self._least_alpha = min(self._least_alpha, float(tick.shown[1]))
        self._wrenches = [*self._wrenches[1 - TARE_TICKS :], tick.state.tcp_wrench]
        if self._count % self._state_every == 0:
            self._publish_state(tick)
        if self._count % self._status_every == 0 or tick.mode != self._told:
            self._told = tick.mode
            self._publish_status(tick, refused)
            if poses := props():
                self._props.publish(messages.to_props(poses, self._names.base, tick.stamp_ns))

    def _publish_state(self, tick: Tick) -> None:
        out = messages.to_state(tick.state, self._names, tick.stamp_ns, self._tare)
        if self._clock is not None:
            self._clock.publish(Clock(clock=messages.to_stamp(tick.stamp_ns)))
        self._joints.publish(out.joints)
        self._twist.publish(out.twist)
        self._wrench.publish(out.wrench)
        self._pose.publish(out.pose)
        pos_m, quat_xyzw = tick.reference.pos_m, tick.reference.quat_xyzw
        self._applied.publish(messages.to_pose_stamped(pos_m, quat_xyzw, self._names.base, tick.applied_ns))

    def _publish_status(self, tick: Tick, refused: int) -> None:
        values = ledger.combine(self._energies)
        values |= {"share": float(tick.shown[0]), "alpha_min": self._least_alpha}
        self._energies.clear()
        self._least_alpha = 1.0
        stamp = messages.stamp_columns(tick.stamp_ns)
        row = [*stamp, *(values[name] for name in messages.ENERGY[2:])]
        self._energy.publish(messages.to_columns(messages.ENERGY, row))
        codes = (
            tick.world,
            messages.MODES.index(tick.mode),
            code_of(tick.fault),
            ledger.STATES.index(tick.energy_state),
            refused,
        )
        self._guard.publish(messages.to_columns(messages.GUARD, [*stamp, *codes, *tick.clips.values()]))

    def tare(self) -> Array:
        """Make the mean of the last ticks' wrenches (6,) N, Nm the zero of what is published; returns it."""
        self._tare = np.mean(self._wrenches, axis=0) if self._wrenches else np.zeros(6)
        return self._tare

    def say(self, mode: str, cause: str) -> bool:
        """Tell mode and cause where they changed; whether they did."""
        changed = (mode, cause) != self.said
        if changed:
            self.said = (mode, cause)
            self.repeat()
        return changed

    def repeat(self) -> None:
        mode, cause = self.said
        self._safety.publish(String(data=f"{mode}: {cause}" if cause else mode))

    def estop(self, pressed: bool) -> None:
        self._estop.publish(Bool(data=pressed))
