"""An arm that runs CRISP's ros2_control controllers: its topics as a plain Arm, to be guarded.

CRISP closes the torque loop in C++ at the arm's rate; it takes ``target_pose`` and tells ``current_pose``,
``current_twist`` and ``joint_states``, which need not have one stamp. The stiffness stays that of CRISP's parameters
(``task.k_pos_x`` and so on, read when connecting). No contact force is known without a ``wrench_topic``: the guard then
cannot trip on it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controllers.arms import LIMITS
from hardware._link import Inbox, Link
from robot_rl.config import check, number
from robot_rl.find import nearest
from robot_rl.geometry import quat_normalize
from robot_rl.types import ArmCommand, ArmState, Bounds, Scene

Array = NDArray[np.float64]

CONTROL_HZ = 100.0
"""Rate of guard and filter for this arm: that of its targets."""


@dataclass(frozen=True)
class Config:
    namespace: str = ""
    """of CRISP's topics"""
    controller: str = "cartesian_impedance_controller"
    """its node, whose parameters are read"""
    wrench_topic: str = ""
    """WrenchStamped in the base frame, such as franka_robot_state_broadcaster/external_wrench_in_base_frame"""
    gripper_command: str = "gripper/gripper_position_controller/commands"
    """Float64MultiArray; empty: there is no gripper"""
    gripper_state: str = "gripper/joint_states"
    """JointState whose first joint is the gripper"""
    gripper_open: float = 1.0
    """value of its command and state when open"""
    gripper_closed: float = 0.0
    wait_s: float = number(10.0, 0.1, 600.0, "s to wait for the arm's topics")
    stale_s: float = number(1.0, 0.02, 10.0, "s without a new pose that are an error")

    def __post_init__(self) -> None:
        check(self)
        if self.gripper_open == self.gripper_closed:
            raise ValueError(f"gripper_open = gripper_closed = {self.gripper_open}: they have to differ")


def make(config: Config, arm: str, task: str, scene: Scene, bounds: Bounds) -> CrispArm:
    """Connect to CRISP; raises LookupError for an arm whose limits are not known, TimeoutError that names what is
    silent."""
    if arm not in LIMITS:
        raise LookupError(nearest("arm", arm, LIMITS))
    return CrispArm(config, arm, scene)


class CrispArm:
    """Not lock-step, and not guarded: a GuardedArm around it is."""

    def __init__(self, config: Config, arm: str, scene: Scene) -> None:
        from controllers import messages

        self._config, self._m = config, messages
        self.limits = replace(LIMITS[arm], cannot=frozenset({"stiffness"}))
        self._names = messages.names_of(arm, self.limits.dof)
        self._has_gripper = bool(config.gripper_command) and scene.locked_gripper is None
        self._still = 0.0 if scene.locked_gripper is None else scene.locked_gripper
        self._hint = "is the arm's driver running with CRISP's controllers? (robot-rl doctor lists what there is)"
        self._link = Link(config.namespace, "guard")
        try:
            self._open(bool(scene.props))
            self.default_stiffness = self._read_stiffness()
            self._state = self._first()
        except BaseException:
            self._link.close()
            raise
        self._deadline_s = time.monotonic()
        self._fresh_s = time.monotonic()

    def _open(self, props: bool) -> None:
        from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
        from sensor_msgs.msg import JointState, MultiDOFJointState
        from std_msgs.msg import Float64MultiArray

        m, config = self._m, self._config
        kinds: dict[str, type] = {
            m.CURRENT_POSE: PoseStamped, m.CURRENT_TWIST: TwistStamped, m.JOINT_STATES: JointState,
        }  # fmt: skip
        if config.wrench_topic:
            kinds[config.wrench_topic] = WrenchStamped
        if self._has_gripper:
            kinds[config.gripper_state] = JointState
        self._in: dict[str, Inbox] = {t: self._link.inbox(kind, t, m.STATE_QOS) for t, kind in kinds.items()}
        self._seen: dict[str, Any] = {}
        self._props = self._link.inbox(MultiDOFJointState, m.PROPS, m.STATE_QOS) if props else None
        self._poses: dict[str, Array] = {}
        node = self._link.node
        self._target = node.create_publisher(PoseStamped, m.TARGET_POSE, m.COMMAND_QOS)
        self._gripper = (
            node.create_publisher(Float64MultiArray, config.gripper_command, m.COMMAND_QOS)
            if self._has_gripper
            else None
        )

    def _read_stiffness(self) -> Array:
        from controllers.arm_parameters import STIFFNESS

        values = self._link.get_parameters(self._config.controller, STIFFNESS, self._config.wait_s, self._hint)
        return np.array([float(values[name]) for name in STIFFNESS])

    def _first(self) -> ArmState:
        end_s = time.monotonic() + self._config.wait_s
        while not self._collect() or len(self._seen) < len(self._in):
            if time.monotonic() > end_s:
                silent = "; ".join(box.why_silent() for topic, box in self._in.items() if topic not in self._seen)
                raise TimeoutError(f"no state of the arm for {self._config.wait_s:g} s: {silent}; {self._hint}")
            time.sleep(0.005)
        return self._make_state()

    def _collect(self) -> bool:
        """Take what came; whether there has been a pose."""
        for topic, inbox in self._in.items():
            if taken := inbox.take():
                self._seen[topic] = taken[-1]
                if topic == self._m.CURRENT_POSE:
                    self._fresh_s = time.monotonic()
        if self._props is not None and (taken := self._props.take()):
            self._poses = self._m.from_props(taken[-1])
        return self._m.CURRENT_POSE in self._seen

    def _make_state(self) -> ArmState:
        from geometry_msgs.msg import WrenchStamped

        m, seen, config = self._m, self._seen, self._config
        wrench = seen.get(config.wrench_topic, WrenchStamped())
        four = m.StateMessages(seen[m.CURRENT_POSE], seen[m.CURRENT_TWIST], seen[m.JOINT_STATES], wrench)
        grip = self._still
        if self._has_gripper:
            value = float(seen[config.gripper_state].position[0])
            span = config.gripper_closed - config.gripper_open
            grip = min(max((value - config.gripper_open) / span, 0.0), 1.0)
        state = m.from_state(four, self._names.joints, gripper=None)
        # As old as the oldest of what guards the arm: a wrench or a joint that is silent is no measurement.
        t_s = min(m.to_ns(seen[topic].header.stamp) for topic in self._in if topic != config.gripper_state) * 1e-9
        return replace(state, t_s=t_s, gripper=grip, tcp_quat_xyzw=quat_normalize(state.tcp_quat_xyzw))

    # --------------------------------------------------------------------------------------------------------- the arm

    def read(self) -> ArmState:
        self._collect()
        self._state = self._make_state()
        return self._state

    def readings(self) -> dict[str, Array]:
        """``prop/<name>`` (7,) m, xyzw of what something measures and publishes on ``props``."""
        return {f"prop/{name}": pose for name, pose in self._poses.items()}

    def command(self, command: ArmCommand) -> None:
        """Raises ValueError for what is not finite, and for a stiffness, which this arm does not take."""
        if command.stiffness is not None:
            raise ValueError("ArmCommand.stiffness: CRISP's stiffness is a parameter of its controller; leave it None")
        if not (np.isfinite(command.tcp_pos_m).all() and np.isfinite(command.tcp_quat_xyzw).all()):
            raise ValueError(f"ArmCommand {command.tcp_pos_m}, {command.tcp_quat_xyzw}: every number has to be finite")
        target = self._m.to_pose_stamped(command.tcp_pos_m, command.tcp_quat_xyzw, self._names.base, time.time_ns())
        self._target.publish(target)
        if self._gripper is not None:
            span = self._config.gripper_closed - self._config.gripper_open
            value = self._config.gripper_open + command.gripper * span
            self._gripper.publish(self._m.to_columns(("gripper",), [value]))

    def wait(self, dt_s: float) -> ArmState:
        """Sleep to the next deadline; the newest state. Raises TimeoutError where none has come for ``stale_s``."""
        now_s = time.monotonic()
        self._deadline_s = max(self._deadline_s + dt_s, now_s - dt_s)
        if self._deadline_s > now_s:
            time.sleep(self._deadline_s - now_s)
        self._collect()
        if time.monotonic() - self._fresh_s > self._config.stale_s:
            silent = self._in[self._m.CURRENT_POSE].why_silent()
            raise TimeoutError(f"no new pose for {self._config.stale_s:g} s: {silent}; {self._hint}")
        self._state = self._make_state()
        return self._state

    def stop(self) -> None:
        """Ask for the measured pose, or for nothing where none is fresh: an old one would move the arm."""
        state = self.read()
        if time.monotonic() - self._fresh_s > self._config.stale_s:
            return
        self.command(ArmCommand(state.tcp_pos_m, state.tcp_quat_xyzw, state.gripper))

    def close(self) -> None:
        self._link.close()
