"""What an arm's node takes in: targets, heartbeats, and in lock-step the passing of time. All of it is judged first.

In real time the control loop calls ``poll`` just before a tick, in its own thread; in lock-step the executor delivers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from numpy.typing import NDArray
from std_msgs.msg import Float64MultiArray, Header

from controllers import messages
from controllers.control_loop import ControlLoop
from controllers.polling import Polled, take_all
from controllers.targets import PROCESS, Gate
from robot_rl.types import ArmCommand

if TYPE_CHECKING:
    from rclpy.subscription import MessageInfo  # of Kilted; Jazzy gives a dict without publisher_gid

Array = NDArray[np.float64]
WARN_S = 5.0  # between two warnings of one kind
_DIGITS = str.maketrans("", "", "0123456789.-")


class Inputs:
    """The subscriptions of an active node."""

    def __init__(self, node: Any, loop: ControlLoop, gate: Gate, frame: str) -> None:
        """``frame``: the one that targets have to be in."""
        self._node, self._loop, self._gate, self._frame = node, loop, gate, frame
        self._open: list[tuple[Any, Callable[..., None]]] = []
        self._stiffness: dict[bytes, Array] = {}  # process -> its last target
        self._gripper: dict[bytes, float] = {}
        self._handled_ns = 0  # lock-step: stamp of the newest target that was judged
        self._warned = "", 0.0  # kind of reason, and when it was logged
        self._pending: tuple[Float64MultiArray, MessageInfo] | None = None

    def open(self) -> None:
        """In real time the control loop takes these itself, just before a tick; in lock-step the executor does."""
        qos, group = messages.INPUT_QOS, None if self._loop.lockstep else Polled()
        wanted: list[tuple[type, str, Callable[..., None], Any]] = [
            (Float64MultiArray, messages.TARGET_STIFFNESS, self._on_stiffness, qos),
            (Float64MultiArray, messages.TARGET_GRIPPER, self._on_gripper, qos),
            (Header, messages.HEARTBEAT, self._on_heartbeat, messages.STATE_QOS),
            (PoseStamped, messages.TARGET_POSE, self._on_target, qos),
        ]
        if self._loop.lockstep:
            wanted.append((Float64MultiArray, messages.STEP_TOPIC, self._on_step, messages.LOCKSTEP_QOS))
        self._open = [
            (self._node.create_subscription(kind, topic, call, depth, callback_group=group), call)
            for kind, topic, call, depth in wanted
        ]

    def poll(self) -> None:
        """In the loop's thread, before a tick."""
        for subscription, call in self._open:
            for message, info in take_all(subscription):
                call(message, info)

    def close(self) -> None:
        for subscription, _ in self._open:
            self._node.destroy_subscription(subscription)
        self._open = []

    def _on_target(self, message: PoseStamped, info: MessageInfo) -> None:
        loop, gate = self._loop, self._gate
        publisher, stamp_ns = _publisher(info), messages.to_ns(message.header.stamp)
        now_s = loop.now_s()
        count = self._node.count_publishers(messages.TARGET_POSE) if not publisher else 1
        reason = gate.admits(publisher, count, now_s) or messages.refuse_pose(message, self._frame)
        pose = messages.from_pose(message.pose)
        clock_ns = loop.now_ns() if loop.lockstep else time.time_ns()
        reason = reason or gate.judge(stamp_ns, clock_ns, pose, loop.last.state)
        self._handled_ns = max(self._handled_ns, min(stamp_ns, clock_ns))
        if reason:
            self._refuse(reason)
        else:
            if gate.take(publisher, stamp_ns, now_s):
                loop.beat(gate.beats(publisher))
            process, hold_s = publisher[:PROCESS], loop.config.hold_s
            # A target's lease began when it was sent, as far as the two clocks agree.
            age_s = min(max((clock_ns - stamp_ns) * 1e-9, 0.0), hold_s) if stamp_ns else 0.0
            gripper = self._gripper.get(process, loop.arm.gripper)
            stiffness = self._stiffness.get(process)
            loop.command(ArmCommand(pose.pos_m, pose.quat_xyzw, gripper, stiffness, valid_s=hold_s - age_s), age_s)
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._on_step(*pending)

    def forget(self) -> None:
        """What was commanded belongs to a world, or a commander, that is gone."""
        self._stiffness.clear()
        self._gripper.clear()
        self._pending, self._handled_ns = None, 0

    def _refuse(self, reason: str) -> None:
        self._gate.refuse(reason)
        kind, now_s = reason.translate(_DIGITS), time.monotonic()
        if kind != self._warned[0] or now_s - self._warned[1] > WARN_S:  # diagnostics count the others
            self._warned = kind, now_s
            self._node.get_logger().warning(reason)

    def _on_stiffness(self, message: Float64MultiArray, info: MessageInfo) -> None:
        values = np.array(message.data[:6])
        if "stiffness" in self._loop.arm.limits.cannot:
            self._refuse("target_stiffness: this arm cannot change its stiffness")
        elif len(values) != 6 or not np.isfinite(values).all() or np.any(values < 0.0):
            self._refuse(f"target_stiffness is {values.tolist()}: give 6 finite numbers >= 0, N/m and Nm/rad")
        else:
            self._stiffness[_publisher(info)[:PROCESS]] = values

    def _on_gripper(self, message: Float64MultiArray, info: MessageInfo) -> None:
        if len(message.data) != 1 or not 0.0 <= message.data[0] <= 1.0:
            self._refuse(f"target_gripper is {list(message.data)}: give one number, 0 open .. 1 closed")
        else:
            self._gripper[_publisher(info)[:PROCESS]] = float(message.data[0])

    def _on_heartbeat(self, message: Header, info: MessageInfo) -> None:
        if self._gate.beat(_publisher(info), self._loop.now_s()):
            self._loop.beat()

    def _on_step(self, message: Float64MultiArray, info: MessageInfo) -> None:
        """Lock-step: complete the command whose target has been judged, and let time pass."""
        try:
            row = messages.from_columns(message, messages.STEP)
            target_ns = messages.columns_ns(row, "target_")
        except (ValueError, OverflowError) as error:  # int() of what is not finite
            self._refuse(f"step: {error}")
            return
        if target_ns > self._handled_ns:
            self._pending = (message, info)
            return
        dt_s = row["dt_s"]
        if dt_s == 0.0:
            self._loop.refresh()
            return
        if not self._gate.follows(_publisher(info)):
            self._refuse("step is published by another process than the commander's: it is refused; stop one of them")
            return
        if not 0.0 < dt_s <= 10.0:
            self._refuse(f"step: dt_s = {dt_s}: give seconds in [0, 10]; 0 only asks how things stand")
            return
        stiffness = np.array([row[name] for name in messages.STEP[-6:]])
        self._loop.complete(row["gripper"], row["valid_s"], None if np.isnan(stiffness).any() else stiffness)
        try:
            self._loop.step(dt_s)
        except ValueError as error:  # no multiple of the control tick
            self._refuse(f"step: {error}")


def _publisher(info: MessageInfo) -> bytes:
    """The id of who sent a message; empty where this ROS does not tell."""
    gid = info.get("publisher_gid")
    return bytes(gid["data"]) if gid else b""
