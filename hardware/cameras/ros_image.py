"""A camera behind ROS 2: pictures from sensor_msgs/Image or CompressedImage, whoever publishes them.

The newest good picture wins: decoding happens where messages come in, and reading takes what is there. ``t_s`` is the
message's stamp, the clock of an arm behind ROS.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from controllers.ros import RosContext
from hardware.cameras._newest import Newest
from hardware.cameras._picture import PictureConfig, fit

_IMAGE, _COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
_POLL_S = 0.05
_WARN_S = 5.0


@dataclass(frozen=True)
class Config(PictureConfig):
    topic: str = "/panda/front/image_raw"
    compressed: bool | None = None  # none: by the topic's name, then by what is published on it

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.topic:
            raise ValueError("topic = '': give the topic of the camera, such as /panda/front/image_raw")


def make(config: Config, ros: RosContext | None = None) -> RosCamera:
    """``ros``: a context that spins in a thread of its own; without one the camera has its own, until ``close``.

    Raises ImportError without ROS 2, or without OpenCV; only raw pictures that are not resized need none.
    ValueError for a topic that no topic can be called.
    """
    return RosCamera(config, ros)


class RosCamera:
    """A Sensor. A message that is no picture is counted in ``refused``, and said in the log with its cause."""

    def __init__(self, config: Config, ros: RosContext | None) -> None:
        self.config = config
        self.refused = 0
        self._own = RosContext() if ros is None else None
        try:
            self._subscribe(ros or self._own)
            if self._own is not None:
                self._own.start()
        except BaseException:
            if self._own is not None:
                self._own.close()
            raise

    def _subscribe(self, ros: Any) -> None:
        from rclpy.clock import Clock, ClockType
        from rclpy.exceptions import InvalidTopicNameException
        from rclpy.node import Node
        from rclpy.validate_topic_name import validate_topic_name

        from controllers import images

        config, self._images = self.config, images
        if config.compressed is not False or config.width_px is not None:
            images.require_opencv()  # now, and not in the thread
        try:
            validate_topic_name(config.topic)
        except InvalidTopicNameException as error:
            raise ValueError(f"topic = '{config.topic}' is no name of a topic: give one like {Config.topic}") from error
        self._cause = ""  # of what was refused since
        self._warned = "", 0.0
        self._subscription: Any = None
        node_name = "camera_" + "".join(c if c.isascii() and c.isalnum() else "_" for c in config.topic.strip("/~"))
        self._node = Node(node_name, context=ros.context, start_parameter_services=False)
        ros.add(self._node)
        self._topic = self._node.resolve_topic_name(config.topic)
        self._newest = Newest(f"on {self._topic}", config, self._why)
        by_name = self._topic.endswith("/compressed")
        self._compressed = by_name if config.compressed is None else config.compressed
        if by_name or config.compressed is not None:
            self._listen()
        else:
            # DDS knows one type a topic and participant: we wait for the type that is published.
            steady = Clock(clock_type=ClockType.STEADY_TIME)
            self._search = self._node.create_timer(_POLL_S, self._find_type, clock=steady)

    def _find_type(self) -> None:
        kinds = {info.topic_type for info in self._node.get_publishers_info_by_topic(self._topic)}
        if kinds & {_IMAGE, _COMPRESSED}:
            self._search.cancel()
            self._compressed = _IMAGE not in kinds
            self._listen()

    def _listen(self) -> None:
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import CompressedImage, Image

        # Best effort and volatile: that matches every publisher, whatever it offers.
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        kind = CompressedImage if self._compressed else Image
        self._subscription = self._node.create_subscription(kind, self._topic, self._on_message, qos)

    def _on_message(self, message: Any) -> None:
        try:
            convert = self._images.from_compressed if self._compressed else self._images.from_image
            picture = fit(convert(message), self.config)
        except ValueError as error:
            self.refused += 1
            self._cause = str(error)
            self._warn(f"picture refused, {self.refused} so far: {error}")
            return
        stamp = message.header.stamp
        self._cause = ""
        self._newest.put(picture, stamp.sec + stamp.nanosec * 1e-9, time.monotonic())

    def _warn(self, text: str) -> None:
        """At once when the cause is news, else now and then."""
        now_s = time.monotonic()
        if self._cause != self._warned[0] or now_s > self._warned[1] + _WARN_S:
            self._warned = self._cause, now_s
            self._node.get_logger().warning(f"{self._topic}: {text}")

    def read(self) -> tuple[np.ndarray, float]:
        """The newest picture, uint8 (H, W, 3) RGB, and its stamp in seconds. Waits, up to ``wait_s``, for the first
        one only.

        Raises TimeoutError that says what is on the topic where none comes, or how old the last one is where that is
        more than ``stale_s``. Once pictures come again, reading goes on.
        """
        return self._newest.read()

    @property
    def age_s(self) -> float:
        """Seconds since the newest picture came; inf before the first."""
        return self._newest.age_s

    def _why(self) -> str:
        """What is known about a silent topic, and what to do."""
        if self._cause:
            return f"{self.refused} so far were refused, the last because {self._cause}"
        wanted = _COMPRESSED if self._compressed else _IMAGE
        found = self._node.get_publishers_info_by_topic(self._topic)
        if not found:
            topics = self._node.get_topic_names_and_types()
            there = sorted(name for name, kinds in topics if {_IMAGE, _COMPRESSED} & set(kinds) and name != self._topic)
            domain = os.environ.get("ROS_DOMAIN_ID") or "0"
            return (
                f"nobody publishes there (ROS_DOMAIN_ID {domain}); pictures are on {', '.join(there) or 'no topic'}; "
                "start the camera, or give its topic"
            )
        of_type = [info for info in found if info.topic_type == wanted]
        if not of_type:
            others = ", ".join(f"{_name(info)} publishes {info.topic_type}" for info in found)
            switch = any(info.topic_type in (_IMAGE, _COMPRESSED) for info in found)
            remedy = "leave compressed at none" if switch else "give the topic of a camera"
            return f"{others} there, {wanted} is needed: {remedy}"
        return f"{', '.join(map(_name, of_type))} is there and silent: does its camera run, and its network carry it?"

    def close(self) -> None:
        """May be called twice. A context that was given stays its owner's."""
        if self._own is not None:
            self._own.close()
        else:
            self._node.destroy_node()


def _name(info: Any) -> str:
    return f"{info.node_namespace.rstrip('/')}/{info.node_name}"
