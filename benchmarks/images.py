"""Pictures between two processes over DDS as our nodes use it (controllers/fastdds.xml): latency and loss.

Prints one JSON line per size, form and QoS of the publisher; the subscriber's is always best effort. Latency is from
before the message is filled to the numpy array, so that a compressed picture pays for its coding and decoding.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np

SIZES = ((128, 128), (320, 240), (640, 480))
RATE_HZ, SECONDS, WARM_S = 30.0, 8.0, 1.0
TOPIC = "picture"


def picture(width: int, height: int) -> np.ndarray:
    """A smooth picture with some noise: JPEG finds it neither trivial nor hopeless."""
    y, x = np.mgrid[:height, :width] / height
    smooth = np.stack([x, y, 0.5 + 0.5 * np.sin(9 * x)], -1) * 200
    return np.clip(smooth + np.random.default_rng(0).normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


def publish(width: int, height: int, form: str, reliable: bool) -> None:
    """The child: pictures until it is ended, stamped with the time before they were made into messages."""
    import cv2
    from rclpy.node import Node
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import CompressedImage, Image

    from controllers import images, messages
    from controllers.ros import RosContext, prepare_environment

    prepare_environment()
    shown = picture(width, height)
    with RosContext() as ros:
        node = ros.add(Node("pictures", context=ros.context))
        policy = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        kind = CompressedImage if form == "jpeg" else Image
        publisher = node.create_publisher(kind, TOPIC, QoSProfile(depth=1, reliability=policy))
        ros.start()
        next_s = time.monotonic()
        for number in range(10**9):
            begun_ns = time.time_ns()
            if form == "jpeg":
                message = CompressedImage(format="rgb8; jpeg compressed bgr8")
                message.data.frombytes(cv2.imencode(".jpg", shown[:, :, ::-1])[1].tobytes())
                message.header.stamp = messages.to_stamp(begun_ns)
            else:
                message = images.to_image(shown, "", begun_ns)
            message.header.frame_id = str(number)
            publisher.publish(message)
            next_s += 1.0 / RATE_HZ
            time.sleep(max(0.0, next_s - time.monotonic()))


def measure(width: int, height: int, form: str, reliable: bool) -> dict[str, object]:
    import cv2
    from rclpy.node import Node
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import CompressedImage, Image

    from controllers import messages
    from controllers.ros import RosContext

    seen: list[int] = []
    latency_ms: list[float] = []
    size = 0

    def on_picture(message: Image | CompressedImage) -> None:
        nonlocal size
        raw = np.frombuffer(message.data, np.uint8)
        shown = cv2.imdecode(raw, 1) if form == "jpeg" else raw.reshape(height, width, 3).copy()
        assert shown.shape == (height, width, 3)
        size = raw.size
        seen.append(int(message.header.frame_id))
        latency_ms.append((time.time_ns() - messages.to_ns(message.header.stamp)) * 1e-6)

    command = [sys.executable, __file__, str(width), str(height), form, str(int(reliable))]
    with RosContext() as ros:
        node = ros.add(Node("looks", context=ros.context))
        node.create_subscription(
            CompressedImage if form == "jpeg" else Image, TOPIC, on_picture, qos_profile_sensor_data
        )
        child = subprocess.Popen(command)
        try:
            ros.spin(until=lambda: node.count_publishers(TOPIC) > 0)
            end_s = time.monotonic() + WARM_S
            ros.spin(until=lambda: time.monotonic() > end_s)
            seen.clear(), latency_ms.clear()
            end_s = time.monotonic() + SECONDS
            ros.spin(until=lambda: time.monotonic() > end_s)
        finally:
            child.kill()
            child.wait()
    sent = seen[-1] - seen[0] + 1 if seen else 0
    p50, p99 = np.percentile(latency_ms, (50, 99)) if latency_ms else (np.nan, np.nan)
    return {
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "lost": round(1.0 - len(seen) / sent, 4) if sent else 1.0,
        "arrived_hz": round(len(seen) / SECONDS, 1),
        "bytes": size,
    }


def main() -> None:
    os.environ.setdefault("ROS_DOMAIN_ID", "97")
    for width, height in SIZES:
        for form in ("raw", "jpeg"):
            for reliable in (False, True):
                line = {"benchmark": "images", "size": f"{width}x{height}", "form": form}
                line["qos"] = "reliable" if reliable else "best effort"
                print(json.dumps(line | measure(width, height, form, reliable)), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        publish(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4] == "1")
    else:
        main()
