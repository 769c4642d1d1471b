"""A node of its own process that shows an arm: pictures and markers of what ``joint_states`` and ``props`` say.

    <name>/image_raw              Image            out  rgb8
    <name>/image_raw/compressed   CompressedImage  out  JPEG
    <name>/camera_info            CameraInfo       out
    markers                       MarkerArray      out  latched
    joint_states, props, external_wrench, target_pose, applied_target    in

Names are relative to the arm's namespace, and stamps are those of the joint state that is shown. A picture is drawn
only where someone looks, and again only where something moved; until then the last one is repeated with its old stamp.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, WrenchStamped
from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.context import Context
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState, MultiDOFJointState
from visualization_msgs.msg import MarkerArray

from controllers import images, messages
from controllers.markers import Shown, to_markers
from controllers.messages import Names
from controllers.polling import Polled, take_all
from controllers.ros import RosContext, run_until_signal
from robot_rl.types import Bounds, Geom, Scene

# Measured between two processes over the loopback profile, 30 Hz, two cores (benchmarks/images.py): 128 x 128 raw takes
# 0.7 ms (p99 1.2), as JPEG 1.0 (1.3); 640 x 480 raw 2.7 (3.7), as JPEG 4.7 (6.7); nothing is lost. Reliable costs
# best-effort subscribers nothing, a reliable one that stops reading holds nobody up, and RViz asks for reliable unless
# told otherwise. With the kernel's default of 212 kB for a socket (net.core.rmem_max), two thirds of the 640 x 480 raw
# pictures are lost by either, and none of the 128 x 128 or the JPEG ones: hence the default size.
IMAGE_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
MARKER_QOS = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
NEWEST_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
MARKER_HZ = 5.0
LIFETIME_S = 2.0  # of markers, after which those of a dead node vanish
_BURST_S = 0.002  # in which all messages of an instant have come
_WARN_S = 5.0


@dataclass(frozen=True)
class View:
    """What is looked at, and by whom: all that the node knows of a world."""

    render: Callable[[np.ndarray, float, Mapping[str, np.ndarray]], np.ndarray]
    """q_rad (dof,), gripper, props name -> (7,) m, xyzw: a picture, uint8 (H, W, 3). ValueError: it cannot be drawn."""
    geoms: Callable[[np.ndarray, float], tuple[Sequence[Geom], np.ndarray]]
    """q_rad (dof,), gripper: the arm's geoms in the base frame, and its tcp's pose (7,) m, xyzw."""
    fovy_rad: float
    scene: Scene
    bounds: Bounds
    names: Names


class _Newest:
    """The newest message of a topic, fetched when it is asked for; None until there is one."""

    def __init__(self, node: Node, kind: type, topic: str, group: CallbackGroup) -> None:
        self._subscription = node.create_subscription(kind, topic, lambda _: None, NEWEST_QOS, callback_group=group)
        self._message: Any = None

    def __call__(self) -> Any:
        for message, _ in take_all(self._subscription):
            self._message = message
        return self._message


class CameraNode(Node):
    """Raises ValueError for a rate that is not above 0, ImportError without OpenCV."""

    def __init__(
        self, view: View, context: Context, namespace: str, name: str = "front", rate_hz: float = 10.0
    ) -> None:
        if not 0.0 < rate_hz <= 1000.0:
            raise ValueError(f"rate_hz = {rate_hz}: give a rate in (0, 1000] Hz")
        images.require_opencv()  # now, not when the first one asks for a JPEG
        super().__init__(f"{name}_camera", context=context, namespace=namespace)
        self._view, self._frame = view, f"{name}_optical_frame"
        self._raw = self.create_publisher(Image, f"{name}/image_raw", IMAGE_QOS)
        self._compressed = self.create_publisher(CompressedImage, f"{name}/image_raw/compressed", IMAGE_QOS)
        self._info = self.create_publisher(CameraInfo, f"{name}/camera_info", IMAGE_QOS)
        self._markers = self.create_publisher(MarkerArray, "markers", MARKER_QOS)
        group = Polled()  # with a callback for each message, two of these streams took a seventh of a core
        self._joints = _Newest(self, JointState, messages.JOINT_STATES, group)
        self._props = _Newest(self, MultiDOFJointState, messages.PROPS, group)
        self._wrench = _Newest(self, WrenchStamped, messages.WRENCH, group)
        self._target = _Newest(self, PoseStamped, messages.TARGET_POSE, group)
        self._applied = _Newest(self, PoseStamped, messages.APPLIED_TARGET, group)
        self._drawn: tuple[Any, Any, np.ndarray] | None = None  # of which messages, and the picture
        self._warned = "", 0.0
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # also where time stands still between steps
        self.create_timer(1.0 / rate_hz, self._show, clock=steady)
        self.create_timer(1.0 / MARKER_HZ, self._mark, clock=steady)

    def _show(self) -> None:
        looked_at = [pub.get_subscription_count() > 0 for pub in (self._raw, self._compressed, self._info)]
        if not any(looked_at):
            return
        try:
            shown = self._draw()
        except ValueError as error:
            self._warn(f"no picture: {error}")
            return
        if shown is None:
            joints, props = (self.resolve_topic_name(topic) for topic in (messages.JOINT_STATES, messages.PROPS))
            self._warn(f"no picture: nothing on {joints} or {props} yet; does the arm's node run?")
            return
        picture, stamp_ns = shown
        raw, compressed, info = looked_at
        if raw:
            self._raw.publish(images.to_image(picture, self._frame, stamp_ns))
        if compressed:
            self._compressed.publish(images.to_compressed(picture, self._frame, stamp_ns))
        if info:
            height, width, _ = picture.shape
            fovy_rad = self._view.fovy_rad
            self._info.publish(images.to_camera_info(width, height, fovy_rad, self._frame, stamp_ns))

    def _draw(self) -> tuple[np.ndarray, int] | None:
        """The picture and its stamp; None before there is anything to show."""
        joints, props = self._joints(), self._props()
        if joints is not None and (props is None or messages.to_ns(props.header.stamp) < _stamp_ns(joints)):
            time.sleep(_BURST_S)  # the props of that instant may just be on their way
            props = self._props()
        expected = any(prop.kind != "tool" for prop in self._view.scene.props)
        if joints is None or (expected and props is None):
            return None
        if self._drawn is None or self._drawn[0] is not joints or self._drawn[1] is not props:
            q_rad, gripper = configuration(joints, self._view.names)
            poses = {} if props is None else messages.from_props(props)
            self._drawn = joints, props, self._view.render(q_rad, gripper, poses)
        return self._drawn[2], _stamp_ns(joints)

    def _mark(self) -> None:
        if self._markers.get_subscription_count() == 0:
            return
        joints, props, wrench = self._joints(), self._props(), self._wrench()
        target, applied = self._target(), self._applied()
        geoms: Sequence[Geom] = ()
        tcp = None
        if joints is not None:
            try:
                geoms, tcp = self._view.geoms(*configuration(joints, self._view.names))
            except ValueError as error:
                self._warn(f"no arm among the markers: {error}")
        shown = Shown(
            props={} if props is None else messages.from_props(props),
            tcp=tcp,
            arm=geoms,
            target=None if target is None else messages.from_pose(target.pose),
            applied_target=None if applied is None else messages.from_pose(applied.pose),
            force_n=None if wrench is None else _force_n(wrench),
        )
        stamp_ns = 0 if joints is None else _stamp_ns(joints)
        view = self._view
        self._markers.publish(to_markers(view.scene, view.bounds, shown, view.names.base, stamp_ns, LIFETIME_S))

    def _warn(self, text: str) -> None:
        """At once when it is news, else now and then."""
        now_s = time.monotonic()
        if text != self._warned[0] or now_s > self._warned[1] + _WARN_S:
            self._warned = text, now_s
            self.get_logger().warning(text)


def configuration(message: JointState, names: Names) -> tuple[np.ndarray, float]:
    """Joint angles (dof,) by name, and the gripper, 0 open .. 1 closed (0 where nothing says).

    Raises ValueError that names a joint that is not there.
    """
    where = dict(zip(message.name, message.position, strict=False))
    missing = [joint for joint in names.joints if joint not in where]
    if missing:
        raise ValueError(f"joint_states has no position of {', '.join(missing)}: it has {', '.join(where) or 'none'}")
    return np.array([where[joint] for joint in names.joints]), where.get(messages.GRIPPER_JOINT, 0.0)


def _stamp_ns(message: Any) -> int:
    return messages.to_ns(message.header.stamp)


def _force_n(message: WrenchStamped) -> np.ndarray:
    force = message.wrench.force
    return np.array([force.x, force.y, force.z])


def run(view: View, namespace: str, name: str = "front", rate_hz: float = 10.0, ros_args: Sequence[str] = ()) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit status."""
    with RosContext(ros_args) as ros:
        node = ros.add(CameraNode(view, ros.context, namespace, name, rate_hz))
        print(f"{node.get_fully_qualified_name()} is active", file=sys.stderr, flush=True)
        return run_until_signal(ros)
