"""Something to see for each camera of the folder: a rig opens the camera, feeds it, unplugs it and plugs it in again.

Pictures are red on the left and blue on the right; their green is their number."""

import contextlib
import socket
import threading
import time

import cv2
import imageio.v2 as imageio
import numpy as np
import pyrealsense2 as rs

from hardware.cameras import realsense, video, webcam
from tests.ros_children import until

WIDTH_PX, HEIGHT_PX = 64, 48
PERIOD_S = 0.02
LEVELS = 20


def draw(number):
    picture = np.zeros((HEIGHT_PX, WIDTH_PX, 3), np.uint8)
    picture[:, : WIDTH_PX // 2] = (220, 0, 20)
    picture[:, WIDTH_PX // 2 :] = (20, 0, 220)
    picture[:, :, 1] = 10 * (number % LEVELS)
    return picture


def number_of(picture):
    """Modulo LEVELS, whatever a codec made of it."""
    return round(picture[:, :, 1].mean() / 10.0)


def read_fresh(camera):
    """A reading that is not refused, however long the machine takes for one."""

    def read():
        with contextlib.suppress(TimeoutError):
            return camera.read()
        return None

    return until(read)


class Rig:
    """Pictures come from a thread of the rig, from ``plug`` to ``unplug``. ``remedy``: words of a refusal."""

    returns = True  # can be plugged in again
    monotonic = True  # t_s is on the clock of time.monotonic
    remedy = "check its cable"
    name = ""  # what a refusal calls the camera

    def __init__(self):
        self.sent = 0
        self.cameras = []
        self._thread = None

    def open(self, mortal=False, **settings):
        """``mortal``: it is going to be unplugged."""
        self.cameras.append(self.make(mortal, **settings))
        return self.cameras[-1]

    def plug(self):
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.feed, name="rig")
        self._thread.start()

    def unplug(self):
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def feed(self):
        while not self._stop.wait(PERIOD_S):
            self.send(draw(self.sent))
            self.sent += 1

    def last_number(self):
        return (self.sent - 1) % LEVELS

    def close(self):
        for camera in self.cameras:
            camera.close()
            camera.close()  # may be called twice
        self.unplug()


class SoftCamera:
    """A RealSense of librealsense's own making (rs.software_device)."""

    def __init__(self, serial, rates=(30,), options=(), lens=rs.distortion.none, coefficients=(0.0,) * 5, depth=False):
        self.device = rs.software_device()
        self.device.register_info(rs.camera_info.name, "Soft D435")
        self.device.register_info(rs.camera_info.serial_number, serial)
        self.sensor = self.device.add_sensor("Stereo Module" if depth else "RGB Camera")
        self.profiles = [self.sensor.add_video_stream(self._stream(rate, lens, coefficients)) for rate in rates]
        for option, low, high, default in options:
            span = rs.option_range()
            span.min, span.max, span.step, span.default = low, high, 1.0, default
            self.sensor.add_option(option, span, True)
        if depth:
            self.sensor.add_read_only_option(rs.option.depth_units, 0.001)

    def _stream(self, rate, model, coefficients):
        lens = rs.intrinsics()
        lens.width, lens.height, lens.fx, lens.fy, lens.ppx, lens.ppy = WIDTH_PX, HEIGHT_PX, 60.0, 61.0, 31.0, 24.5
        lens.model, lens.coeffs = model, list(coefficients)
        stream = rs.video_stream()
        stream.type, stream.index, stream.uid, stream.fmt = rs.stream.color, 0, rate, rs.format.rgb8
        stream.width, stream.height, stream.fps, stream.bpp, stream.intrinsics = WIDTH_PX, HEIGHT_PX, rate, 3, lens
        return stream

    def send(self, picture, number, stamp_s=None, domain=rs.timestamp_domain.global_time):
        """``stamp_s``: of the wall clock; none: now."""
        frame = rs.software_video_frame()
        frame.pixels, frame.stride, frame.bpp = np.ascontiguousarray(picture), 3 * WIDTH_PX, 3
        frame.timestamp, frame.domain = 1e3 * (time.time() if stamp_s is None else stamp_s), domain
        frame.frame_number, frame.profile = number, self.profiles[0].as_video_stream_profile()
        self.sensor.on_video_frame(frame)


class RealSense(Rig):
    def __init__(self, serial="831612070000"):
        super().__init__()
        self.serial = self.name = serial
        self.soft = None

    def plug(self):
        self.soft = SoftCamera(self.serial)
        super().plug()

    def unplug(self):
        super().unplug()
        self.soft = None

    def send(self, picture):
        self.soft.send(picture, self.sent)

    def make(self, mortal, **settings):
        config = realsense.Config(self.serial, (WIDTH_PX, HEIGHT_PX), warmup_frames=2, **settings)
        return realsense.make(config, lambda: [] if self.soft is None else [self.soft.device])


class Webcam(Rig):
    """A camera of the network: JPEGs over HTTP, which OpenCV opens as it opens any webcam."""

    def __init__(self):
        super().__init__()
        self._server, self.port = None, 0

    @property
    def name(self):
        return f"http://127.0.0.1:{self.port}/video.mjpg"

    def plug(self):
        self._server = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
        self._server.settimeout(PERIOD_S)
        self.port = self._server.getsockname()[1]
        self._watcher = None
        super().plug()

    def unplug(self):
        super().unplug()
        for opened in (self._server, self._watcher) if self._server else ():
            if opened is not None:
                opened.close()
        self._server = None

    def feed(self):
        while not self._stop.wait(PERIOD_S):
            if self._watcher is None:
                with contextlib.suppress(TimeoutError):
                    self._watcher, _ = self._server.accept()
                    self._watcher.recv(4096)
                    self._watcher.sendall(
                        b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"
                    )
                continue
            try:
                self.send(draw(self.sent))
                self.sent += 1
            except OSError:  # it closed
                self._watcher.close()
                self._watcher = None

    def send(self, picture):
        code = cv2.imencode(".jpg", picture[:, :, ::-1])[1].tobytes()
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(code)}\r\n\r\n"
        self._watcher.sendall(head.encode() + code + b"\r\n")

    def make(self, mortal, **settings):
        return webcam.make(webcam.Config(self.name, (WIDTH_PX, HEIGHT_PX), warmup_frames=2, **settings))


class Video(Rig):
    """A film is never unplugged: a mortal one ends."""

    returns = False
    remedy = "it ended after 25 pictures; set loop=true"

    def __init__(self, folder):
        super().__init__()
        self.file = make_film(folder / "film.mp4", 25)
        self.sent, self.name = 25, str(self.file)

    def plug(self):
        pass

    def make(self, mortal, **settings):
        return video.make(video.Config(str(self.file), loop=not mortal, rate_hz=1.0 / PERIOD_S, **settings))


def make_film(file, pictures, fps=25):
    with imageio.get_writer(file, fps=fps, codec="libx264", macro_block_size=16, quality=10) as writer:
        for number in range(pictures):
            writer.append_data(draw(number))
    return file


class RosImage(Rig):
    """Needs a ROS domain of its own."""

    monotonic = False  # the message's stamp
    remedy = "nobody publishes there|is there and silent"
    name = "/lab/front/image_raw"

    def __init__(self):
        from rclpy.node import Node
        from sensor_msgs.msg import Image

        from controllers.ros import RosContext

        super().__init__()
        self._ros = RosContext()
        node = self._ros.add(Node("rig", context=self._ros.context))
        self._publisher = node.create_publisher(Image, self.name, 1)

    def send(self, picture):
        from controllers import images

        self._publisher.publish(images.to_image(picture, "lens", time.time_ns()))

    def make(self, mortal, **settings):
        from hardware.cameras import ros_image

        return ros_image.make(ros_image.Config(self.name, **settings))

    def close(self):
        super().close()
        self._ros.close()


RIGS = {"realsense": RealSense, "webcam": Webcam, "video": Video, "ros_image": RosImage}
"""Camera -> its rig."""
