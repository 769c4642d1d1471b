"""A camera behind ROS: every encoding, the newest picture, and what it says when there is none."""

import threading

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from controllers import images
from controllers.messages import to_stamp
from controllers.ros import RosContext
from hardware.cameras import ros_image
from hardware.cameras.ros_image import Config
from tests.ros_children import child, kill, until

TOPIC = "/lab/front/image_raw"
# A camera of its own process: grey pictures, stamped and coloured with their number.
CAMERA = """
import sys, time, numpy as np
from rclpy.node import Node
from sensor_msgs.msg import Image
from controllers import images
from controllers.ros import RosContext
with RosContext() as ros:
    node = ros.add(Node("grabber", context=ros.context))
    publisher = node.create_publisher(Image, sys.argv[1], 1)
    for number in range(100_000):
        picture = np.full((8, 6, 3), number % 256, np.uint8)
        publisher.publish(images.to_image(picture, "lens", number * 1_000_000_000))
        time.sleep(0.02)
"""


@pytest.fixture
def node(ros_domain):
    """A node of another participant, to publish with."""
    with RosContext() as ros:
        yield ros.add(Node("publisher", context=ros.context))
    assert not [thread for thread in threading.enumerate() if thread.name == "ros"]


@pytest.fixture
def open_camera(ros_domain):
    opened = []

    def make(topic=TOPIC, **settings):
        opened.append(ros_image.make(Config(topic, **settings)))
        return opened[-1]

    yield make
    for camera in opened:
        camera.close()
        camera.close()  # may be called twice


def draw(width=5, height=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(picture, encoding, padding=0, big_endian=0):
    """An Image message written by hand, from the definition of sensor_msgs."""
    height, width, _ = picture.shape
    alpha = np.full((height, width, 1), 7, np.uint8)
    pixels = {
        "rgb8": picture,
        "bgr8": picture[:, :, ::-1],
        "mono8": picture[:, :, :1],
        "rgba8": np.concatenate([picture, alpha], 2),
        "bgra8": np.concatenate([picture[:, :, ::-1], alpha], 2),
    }[encoding]
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (0, padding)), constant_values=99)
    message = Image(height=height, width=width, encoding=encoding, step=rows.shape[1], is_bigendian=big_endian)
    message.data.frombytes(rows.tobytes())
    return message


def expected(picture, encoding):
    return np.repeat(picture[:, :, :1], 3, 2) if encoding == "mono8" else picture


def compressed(picture, suffix, form):
    message = CompressedImage(format=form)
    message.data.frombytes(cv2.imencode(suffix, picture[:, :, ::-1])[1].tobytes())
    return message


def sent(publisher, message, camera):
    """Publish until the camera has it."""
    message.header.stamp = to_stamp(5_250_000_000)

    def arrived():
        publisher.publish(message)
        return camera.age_s < np.inf or camera.refused

    until(arrived)


# ---------------------------------------------------------------------------------------------------------- conversions


@given(
    encoding=st.sampled_from(sorted(images.ENCODINGS)),
    width=st.integers(1, 9),
    height=st.integers(1, 9),
    padding=st.integers(0, 5),
    big_endian=st.integers(0, 1),
    seed=st.integers(0, 99),
)
def test_any_picture_survives_any_encoding(encoding, width, height, padding, big_endian, seed):
    picture = draw(width, height, seed)
    read = images.from_image(encoded(picture, encoding, padding, big_endian))
    assert read.dtype == np.uint8 and read.flags.c_contiguous
    np.testing.assert_array_equal(read, expected(picture, encoding))


@given(width=st.integers(1, 40), height=st.integers(1, 40), seed=st.integers(0, 99))
def test_our_own_messages_come_back(width, height, seed):
    picture = draw(width, height, seed)
    np.testing.assert_array_equal(images.from_image(images.to_image(picture, "lens", 1)), picture)
    np.testing.assert_array_equal(images.from_compressed(compressed(picture, ".png", "png")), picture)


def test_a_jpeg_comes_back_in_its_colours():
    y, x = np.mgrid[:48, :64]
    picture = np.stack([4 * x, 5 * y, 0 * x + 30], -1).astype(np.uint8)
    message = images.to_compressed(picture, "lens", 3_000_000_001)
    assert message.header.frame_id == "lens" and message.header.stamp == to_stamp(3_000_000_001)
    assert "jpeg" in message.format and len(message.data) < picture.size / 4
    assert np.abs(images.from_compressed(message).astype(int) - picture).max() < 16


BAD = {
    "short": (lambda m: m.data.pop(), "59 bytes are no 5 x 4 px of rgb8 in rows of 15 bytes"),
    "long": (lambda m: m.data.append(0), "61 bytes"),
    "step": (lambda m: setattr(m, "step", 14), "rows of 14 bytes"),
    "empty": (lambda m: (setattr(m, "height", 0), m.data.__delitem__(slice(None))), "5 x 0 px"),
    "encoding": (lambda m: setattr(m, "encoding", "yuv422"), "'yuv422': rgb8, bgr8"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_malformed_image_is_refused(fault):
    message = encoded(draw(), "rgb8")
    spoil, words = BAD[fault]
    spoil(message)
    with pytest.raises(ValueError, match=words):
        images.from_image(message)


@pytest.mark.parametrize("code", [b"", b"no picture", b"\xff\xd8\xff\xe0" + b"x" * 40])
def test_rubbish_is_no_compressed_picture(code):
    message = CompressedImage(format="jpeg")
    message.data.frombytes(code)
    with pytest.raises(ValueError, match=f"{len(code)} bytes of format 'jpeg'"):
        images.from_compressed(message)


# ------------------------------------------------------------------------------------------------------------- over DDS


@pytest.mark.parametrize("encoding", sorted(images.ENCODINGS))
def test_every_encoding_arrives(node, open_camera, encoding):
    camera = open_camera()
    picture = draw(31, 17)
    sent(node.create_publisher(Image, TOPIC, 1), encoded(picture, encoding, padding=3), camera)
    read, t_s = camera.read()
    np.testing.assert_array_equal(read, expected(picture, encoding))
    assert t_s == 5.25 and camera.refused == 0
    read[:] = 0  # the reader's own
    assert camera.read()[0].any()


@pytest.mark.parametrize(
    "topic,explicit",
    [(f"{TOPIC}/compressed", None), ("/lab/png", None), ("/lab/png", True)],
    ids=["by name", "by type", "explicit"],
)
def test_compressed_pictures_arrive(node, open_camera, topic, explicit):
    publisher = node.create_publisher(CompressedImage, topic, 1)
    camera = open_camera(topic, compressed=explicit, wait_s=0.0)
    picture = draw(31, 17)

    def read():
        publisher.publish(compressed(picture, ".png", "png"))
        try:
            return camera.read()
        except TimeoutError:
            return None

    np.testing.assert_array_equal(until(read)[0], picture)


def test_crop_and_size(node, open_camera):
    camera = open_camera(crop_px=(10, 4, 16, 8), width_px=8, height_px=4)
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[4:12, 10:18], picture[4:12, 18:26] = (200, 0, 0), (0, 0, 100)
    sent(node.create_publisher(Image, TOPIC, 1), encoded(picture, "rgb8"), camera)
    read, _ = camera.read()
    assert read.shape == (4, 8, 3)
    np.testing.assert_array_equal(read[:, :4], np.full((4, 4, 3), (200, 0, 0)))
    np.testing.assert_array_equal(read[:, 4:], np.full((4, 4, 3), (0, 0, 100)))


def test_a_malformed_picture_is_counted_and_the_next_good_one_is_read(node, open_camera, capfd):
    camera = open_camera(wait_s=0.0, crop_px=(0, 0, 5, 4))
    publisher = node.create_publisher(Image, TOPIC, 1)
    sent(publisher, encoded(draw(), "rgb8"), camera)
    for count, (spoil, _) in enumerate([*BAD.values(), (lambda m: setattr(m, "encoding", "16UC1"), "")], 1):
        message = encoded(draw(), "rgb8")
        spoil(message)
        publisher.publish(message)
        until(lambda count=count: camera.refused == count)
    publisher.publish(encoded(draw(3, 2), "rgb8"))
    until(lambda: camera.refused == len(BAD) + 2)
    assert f"{TOPIC}: picture refused, 1 so far: " in capfd.readouterr().err
    better = draw(seed=1)
    publisher.publish(encoded(better, "rgb8"))
    until(lambda: np.array_equal(camera.read()[0], better))


def test_where_all_are_malformed_the_error_says_why(node, open_camera):
    camera = open_camera(wait_s=0.0, crop_px=(0, 0, 50, 4))
    sent(node.create_publisher(Image, TOPIC, 1), encoded(draw(), "rgb8"), camera)
    with pytest.raises(TimeoutError, match=r"were refused, the last because crop_px = \(0, 0, 50, 4\) goes beyond"):
        camera.read()


def test_the_newest_wins(node, open_camera):
    """A reader that comes late gets the last picture, not the next in a queue."""
    camera = open_camera(stale_s=60.0)
    publisher = node.create_publisher(Image, TOPIC, 1)
    sent(publisher, encoded(draw(), "rgb8"), camera)
    for number in range(30):
        message = encoded(np.full((4, 5, 3), number, np.uint8), "rgb8")
        message.header.stamp = to_stamp(100 + number)
        publisher.publish(message)
    until(lambda: camera.read()[0].max() == 29)
    picture, t_s = camera.read()
    assert picture.min() == 29 and t_s == pytest.approx(129e-9)


def test_a_given_context_outlives_the_camera(node):
    with RosContext() as ros:
        ros.start()
        camera = ros_image.make(Config(TOPIC), ros)
        sent(node.create_publisher(Image, TOPIC, 1), encoded(draw(), "rgb8"), camera)
        camera.close()
        camera.close()
        other = ros_image.make(Config(f"{TOPIC}/compressed"), ros)
        sent(node.create_publisher(CompressedImage, f"{TOPIC}/compressed", 1), compressed(draw(), ".png", "png"), other)
        np.testing.assert_array_equal(other.read()[0], draw())
        assert ros.context.ok()


# -------------------------------------------------------------------------------------------------------- silent topics


def test_a_topic_without_publisher(node, open_camera, ros_domain):
    node.create_publisher(Image, "/lab/rear/image_raw", 1)
    camera = open_camera(wait_s=0.0)
    until(lambda: "rear" in message_of(camera))
    message = message_of(camera)
    assert message.startswith(f"no picture on {TOPIC} within 0 s: nobody publishes there")
    assert f"ROS_DOMAIN_ID {ros_domain}" in message and "pictures are on /lab/rear/image_raw" in message


def test_a_publisher_that_is_silent(node, open_camera):
    node.create_publisher(Image, TOPIC, 1)
    camera = open_camera(wait_s=0.0)
    until(lambda: "/publisher is there and silent" in message_of(camera))


def test_a_publisher_of_something_else(node, open_camera):
    node.create_publisher(String, TOPIC, 1)
    camera = open_camera(wait_s=0.0)
    until(lambda: "/publisher publishes std_msgs/msg/String there" in message_of(camera))
    assert "sensor_msgs/msg/Image is needed: give the topic of a camera" in message_of(camera)


def test_a_publisher_of_the_other_form(node, open_camera):
    node.create_publisher(CompressedImage, TOPIC, 1)
    camera = open_camera(wait_s=0.0, compressed=False)
    until(lambda: "publishes sensor_msgs/msg/CompressedImage there" in message_of(camera))
    assert "leave compressed at none" in message_of(camera)


def message_of(camera):
    with pytest.raises(TimeoutError) as caught:
        camera.read()
    return str(caught.value)


def test_a_killed_camera_is_stale_and_a_new_one_is_read_again(ros_domain, open_camera):
    camera = open_camera(wait_s=60.0, stale_s=0.5)
    with child(CAMERA, TOPIC) as grabber:
        picture, t_s = camera.read()
        assert picture.shape == (8, 6, 3) and (picture == t_s % 256).all()
        until(lambda: camera.read()[1] > t_s)  # it goes on
        kill(grabber)
        until(lambda: camera.age_s > 0.5)
        assert message_of(camera).startswith(f"the last picture on {TOPIC} came ")
        assert "stale_s is 0.5" in message_of(camera)
    with child(CAMERA, TOPIC):
        until(lambda: camera.age_s < 0.5)
        assert camera.read()[0].shape == (8, 6, 3)


# -------------------------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    "settings,words",
    [
        ({"topic": ""}, "topic = '': give the topic"),
        ({"width_px": 64}, "width_px = 64, height_px = None: give both"),
        ({"width_px": 0, "height_px": 8}, "width_px = 0: give a number in"),
        ({"crop_px": (0, 0, 0, 5)}, r"crop_px = \(0, 0, 0, 5\)"),
        ({"stale_s": float("nan")}, "stale_s = nan"),
    ],
)
def test_a_config_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        Config(**settings)


def test_a_topic_that_no_topic_can_be_called(ros_domain):
    with pytest.raises(ValueError, match="topic = '/lab/front camera' is no name of a topic"):
        ros_image.make(Config("/lab/front camera"))
