"""The camera's node: pictures and markers of what an arm in another process says, over DDS."""

import json
import os
import signal
import threading

import cv2
import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped, WrenchStamped
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image, JointState, MultiDOFJointState
from visualization_msgs.msg import MarkerArray

from controllers import images, messages
from controllers.camera_node import CameraNode, View
from controllers.ros import RosContext
from hardware.cameras import ros_image
from robot_rl import gl, ros_nodes
from robot_rl.build import make_configs
from robot_rl.find import find
from robot_rl.types import Bounds, Geom, Prop, Scene
from sim import panda
from sim._picture import CAMERAS
from tests.ros_children import child, kill, until

SIZE = (160, 120)
TASK = "peg_insert"
# Plays the arm's node: the state of an instant again and again, the next instant on SIGUSR1.
ARM = """
import json, signal, sys, time, numpy as np
from geometry_msgs.msg import PoseStamped, WrenchStamped
from rclpy.node import Node
from sensor_msgs.msg import JointState, MultiDOFJointState
from controllers import messages
from controllers.ros import RosContext
states, index = json.loads(sys.argv[1]), 0
def on_signal(*_):
    global index
    index += 1
signal.signal(signal.SIGUSR1, on_signal)
names = messages.names_of("panda", 7)
with RosContext() as ros:
    node = ros.add(Node("arm", context=ros.context, namespace="/lab"))
    joints = node.create_publisher(JointState, "joint_states", messages.STATE_QOS)
    props = node.create_publisher(MultiDOFJointState, "props", messages.STATE_QOS)
    wrench = node.create_publisher(WrenchStamped, "external_wrench", messages.STATE_QOS)
    applied = node.create_publisher(PoseStamped, "applied_target", messages.STATE_QOS)
    while True:
        state, stamp_ns = states[index], (index + 1) * 1_000_000_000
        message = JointState(name=["gripper", *names.joints], position=[0.8, *state["q_rad"]])
        message.header.stamp = messages.to_stamp(stamp_ns)
        joints.publish(message)
        poses = {name: np.array(pose) for name, pose in state["props"].items()}
        props.publish(messages.to_props(poses, names.base, stamp_ns))
        push = WrenchStamped()
        push.wrench.force.z = 20.0
        wrench.publish(push)
        target = np.array([0.4, 0.1, 0.3]), np.array([1.0, 0.0, 0.0, 0.0])
        applied.publish(messages.to_pose_stamped(*target, names.base, stamp_ns))
        time.sleep(0.01)
"""
CAMERA = """
import sys
from robot_rl.ros_nodes import camera
sys.exit(camera(sys.argv[1], "panda", "/lab", width_px=int(sys.argv[2]), height_px=int(sys.argv[3])))
"""


@pytest.fixture(autouse=True)
def headless(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", "egl"))


@pytest.fixture
def twin():
    configs = make_configs(TASK)
    twin = find("sim", "panda").make(configs["arm"], find("tasks", TASK).make(configs["task"]).scene)
    yield twin
    twin.close()


def instants(twin, count=2):
    """States of a few episodes' beginnings, as JSON can take them."""
    task = find("tasks", TASK).make(find("tasks", TASK).Config())
    out = []
    for seed in range(count):
        state = twin.place(task.reset(np.random.default_rng(seed)))
        props = {name.removeprefix("prop/"): pose.tolist() for name, pose in twin.readings().items()}
        out.append({"q_rad": state.q_rad.tolist(), "props": props})
    return out


def shown_by(twin, instant):
    return twin.show(
        np.array(instant["q_rad"]),
        0.8,
        {name: np.array(pose) for name, pose in instant["props"].items()},
        *SIZE,
        shadows=False,
    )


class Eyes:
    """Subscribes as RViz does, and keeps the newest."""

    def __init__(self, ros, *wanted):
        self.node = ros.add(Node("eyes", context=ros.context, namespace="/lab"))
        self.seen = {}
        for kind, topic in wanted:
            self.node.create_subscription(kind, topic, lambda m, topic=topic: self.seen.__setitem__(topic, m), 5)

    def get(self, topic, like=lambda message: True):
        return until(lambda: self.seen.get(topic) if topic in self.seen and like(self.seen[topic]) else None)


@pytest.fixture
def ros(ros_domain):
    with RosContext() as ros:
        ros.start()
        yield ros
    assert not [thread for thread in threading.enumerate() if thread.name == "ros"]


def test_the_picture_is_the_twins_and_moves_with_the_arm(ros, twin):
    """Process to process: the stamp tells which configuration a picture shows, pixel by pixel."""
    states = instants(twin)
    first, second = (shown_by(twin, state) for state in states)
    assert np.abs(first.astype(int) - second).max() > 50
    eyes = Eyes(ros, (Image, "front/image_raw"), (CameraInfo, "front/camera_info"))
    with child(ARM, json.dumps(states)) as arm, child(CAMERA, TASK, *map(str, SIZE)) as camera:
        message = eyes.get("front/image_raw")
        assert message.header.stamp.sec == 1 and message.header.frame_id == "front_optical_frame"
        np.testing.assert_array_equal(images.from_image(message), first)
        info = eyes.get("front/camera_info")
        assert (info.width, info.height) == SIZE and info.header.stamp.sec == 1
        arm.send_signal(signal.SIGUSR1)
        message = eyes.get("front/image_raw", lambda m: m.header.stamp.sec == 2)
        # Should the props have come after the joints, the next picture of this instant has both.
        until(lambda: np.array_equal(images.from_image(eyes.seen["front/image_raw"]), second))
        camera.send_signal(signal.SIGTERM)
        assert camera.wait(30) == 0


def test_jpeg_through_the_sensor_and_a_killed_camera(ros_domain, twin):
    """kill -9 of the camera: the sensor says so, the arm's process lives on, and a new camera is seen again."""
    states = instants(twin, 1)
    config = ros_image.Config("/lab/front/image_raw/compressed", stale_s=0.6, wait_s=60.0)
    sensor = ros_image.make(config)
    try:
        with child(ARM, json.dumps(states)) as arm:
            with child(CAMERA, TASK, *map(str, SIZE)) as camera:
                picture, t_s = sensor.read()
                assert t_s == 1.0
                assert np.abs(picture.astype(int) - shown_by(twin, states[0])).mean() < 2.0
                kill(camera)
                until(lambda: sensor.age_s > 0.6)
                with pytest.raises(TimeoutError, match="last picture on /lab/front/image_raw/compressed came"):
                    sensor.read()
                assert arm.poll() is None
            with child(CAMERA, TASK, *map(str, SIZE)):
                until(lambda: sensor.age_s < 0.6)
                assert sensor.read()[1] == 1.0 and arm.poll() is None
    finally:
        sensor.close()


def test_markers_of_a_running_camera(ros, twin):
    states = instants(twin, 1)
    task = find("tasks", TASK).make(find("tasks", TASK).Config())
    eyes = Eyes(ros, (MarkerArray, "markers"))
    target = eyes.node.create_publisher(PoseStamped, "target_pose", 1)
    with child(ARM, json.dumps(states)), child(CAMERA, TASK, *map(str, SIZE)):

        def complete():
            target.publish(messages.to_pose_stamped(np.array([0.5, 0, 0.2]), np.array([1.0, 0, 0, 0]), "base", 1))
            found = {}
            for marker in eyes.seen["markers"].markers if "markers" in eyes.seen else []:
                found.setdefault(marker.ns, []).append(marker)
            return found if {"target", "applied_target", "force", "prop/hole", "arm"} <= set(found) else None

        found = until(complete)
        until(lambda: complete()["force"][0].action == 0)
    assert {ns: len(group) for ns, group in found.items() if ns != "arm"} == {
        "base": 3, "tcp": 3, "target": 3, "applied_target": 3, "workspace": 1, "force": 1, "table": 1,
        "prop/peg": 1, "prop/hole": 5,
    }  # fmt: skip
    geoms, tcp = twin.geoms(np.array(states[0]["q_rad"]), 0.8)
    assert len(found["arm"]) == sum(3 if geom.shape == "capsule" else 1 for geom in geoms) > 50
    peg = found["prop/peg"][0].pose
    np.testing.assert_allclose([peg.position.x, peg.position.y], states[0]["props"]["peg"][:2], atol=0.02)
    start = found["tcp"][0].points[0]
    np.testing.assert_allclose([start.x, start.y, start.z], tcp[:3], atol=1e-9)
    ends = np.array([[p.x, p.y, p.z] for p in found["workspace"][0].points])
    np.testing.assert_allclose(ends.max(axis=0), task.bounds.box_upper_m)
    np.testing.assert_allclose(ends.min(axis=0), task.bounds.box_lower_m)
    middle = found["applied_target"][0].points[0]
    assert (middle.x, middle.y, middle.z) == (0.4, 0.1, 0.3)
    every = [marker for group in found.values() for marker in group]
    assert {marker.header.frame_id for marker in every} == {"base"}
    assert {marker.header.stamp.sec for marker in every} == {1}
    assert all(0 < marker.lifetime.sec + marker.lifetime.nanosec * 1e-9 < 5 for marker in every)


# ------------------------------------------------------------------------------------- the node in this process, no GL

BOUNDS = Bounds((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
NAMES, EMPTY = messages.names_of("mock", 2), Scene()


class Stage:
    """A node with a renderer of ours, and who publishes to it."""

    def __init__(self, ros, scene=EMPTY, **settings):
        self.drawn = []
        view = View(self.render, lambda q, gripper: ([], np.array([*q, 0, 0, 0, 0, 1.0])), 0.8, scene, BOUNDS, NAMES)
        self.node = ros.add(CameraNode(view, ros.context, "/lab", **{"name": "front", "rate_hz": 50.0} | settings))
        self.arm = ros.add(Node("arm", context=ros.context, namespace="/lab"))
        self.joints = self.arm.create_publisher(JointState, "joint_states", messages.STATE_QOS)
        self.props = self.arm.create_publisher(MultiDOFJointState, "props", messages.STATE_QOS)
        self.wrench = self.arm.create_publisher(WrenchStamped, "external_wrench", messages.STATE_QOS)

    def render(self, q_rad, gripper, props):
        self.drawn.append((q_rad.tolist(), gripper, sorted(props)))
        if q_rad[0] < 0:
            raise ValueError("q_rad is where nobody can look")
        return np.full((4, 6, 3), int(q_rad[0]), np.uint8)

    def move(self, q_rad, stamp_ns=7, names=("joint1", "joint2")):
        message = JointState(name=list(names), position=q_rad)
        message.header.stamp = messages.to_stamp(stamp_ns)
        self.joints.publish(message)
        return True


def test_what_nobody_looks_at_is_not_drawn_and_what_stands_still_is_drawn_once(ros):
    stage = Stage(ros)
    until(lambda: stage.move([5.0, 0.0]) and stage.node.count_publishers("joint_states") == 1)
    eyes = Eyes(ros, (MarkerArray, "markers"))
    eyes.get("markers", lambda m: any(marker.ns == "tcp" for marker in m.markers))
    assert stage.drawn == []
    pictures = []
    eyes.node.create_subscription(Image, "front/image_raw", pictures.append, 50)
    until(lambda: len(pictures) > 5)
    assert stage.drawn == [([5.0, 0.0], 0.0, [])]
    assert {message.header.stamp.nanosec for message in pictures} == {7}
    until(lambda: stage.move([6.0, 0.0], 8) and pictures[-1].data[0] == 6)
    assert pictures[-1].header.stamp.nanosec == 8


def test_what_cannot_be_drawn_is_said_and_the_node_lives_on(ros, capfd):
    stage = Stage(ros)
    eyes = Eyes(ros, (Image, "front/image_raw"))
    errors = ""

    def said(words):
        nonlocal errors
        errors += capfd.readouterr().err
        return words in errors

    until(lambda: said("no picture: nothing on /lab/joint_states"))
    until(lambda: stage.move([1.0], names=["elbow"]) and said("no position of joint1, joint2: it has elbow"))
    until(lambda: stage.move([-1.0, 0.0]) and said("no picture: q_rad is where nobody can look"))
    assert eyes.seen == {}
    until(lambda: stage.move([9.0, 0.0]) and eyes.seen)
    assert eyes.seen["front/image_raw"].data[0] == 9


def test_a_scene_with_objects_waits_for_them(ros):
    scene = Scene((Prop("cube", "free", (Geom("sphere", (0.1,)),)),))
    stage = Stage(ros, scene)
    eyes = Eyes(ros, (Image, "front/image_raw"), (MarkerArray, "markers"))
    until(lambda: stage.move([5.0, 0.0]) and "markers" in eyes.seen)
    assert stage.drawn == []

    def say(stamp_ns):
        stage.props.publish(messages.to_props({"cube": np.array([0, 0, 0, 0, 0, 0, 1.0])}, "base", stamp_ns))
        return True

    until(lambda: stage.move([5.0, 0.0]) and say(7) and eyes.seen.get("front/image_raw"))
    pictures = []
    eyes.node.create_subscription(Image, "front/image_raw", pictures.append, 50)

    def still():
        drawn, shown = len(stage.drawn), len(pictures)
        until(lambda: len(pictures) > shown + 3)
        return len(stage.drawn) == drawn

    until(still)
    drawn = len(stage.drawn)
    until(lambda: say(8) and len(stage.drawn) > drawn)  # an object moved, the arm did not
    assert all(call == ([5.0, 0.0], 0.0, ["cube"]) for call in stage.drawn)


@pytest.mark.parametrize("rate_hz", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_cannot_be(ros, rate_hz):
    with pytest.raises(ValueError, match="rate_hz = "):
        Stage(ros, rate_hz=rate_hz)


# ------------------------------------------------------------------------------------------------ twin and intrinsics


def test_a_shown_state_is_what_the_twin_renders(twin):
    """Also while physics is elsewhere, and without touching it."""
    task = find("tasks", TASK).make(find("tasks", TASK).Config())
    state = twin.place(task.reset(np.random.default_rng(3)))
    rendered, props = twin.render(*SIZE).copy(), twin.readings()
    elsewhere = twin.place(task.reset(np.random.default_rng(4)))
    plain = {name.removeprefix("prop/"): pose for name, pose in props.items()}
    np.testing.assert_array_equal(twin.show(state.q_rad, state.gripper, plain, *SIZE), rendered)
    plainer = twin.show(state.q_rad, state.gripper, plain, *SIZE, shadows=False)
    assert plainer.mean() > rendered.mean() + 1.0
    np.testing.assert_array_equal(twin.read().q_rad, elsewhere.q_rad)
    assert twin.read().t_s == elsewhere.t_s
    assert not np.array_equal(twin.render(*SIZE), rendered)


@pytest.mark.parametrize(
    "change,words",
    [
        ({"q_rad": np.zeros(6)}, r"shape \(6,\): this arm has 7 joints"),
        ({"q_rad": np.full(7, np.nan)}, "not finite"),
        ({"props": {}}, r"props are \[\], the scene has \['hole', 'peg'\]"),
        ({"props": {"hole": np.full(7, np.inf)}}, "not finite"),
        ({"width": 5000}, "5000 x 120 px: give at most 1280 x 960"),
        ({"height": 0}, "160 x 0 px"),
    ],
)
def test_what_the_twin_cannot_show(twin, change, words):
    good = {"q_rad": np.zeros(7), "gripper": 0.8, "props": {"hole": np.array([0.5, 0, 0, 0, 0, 0, 1.0])}}
    twin.show(**good, width=160, height=120)
    with pytest.raises(ValueError, match=words):
        twin.show(**{**good, "width": 160, "height": 120} | change)


def test_camera_info_projects_where_the_renderer_draws():
    """A small ball lies in the picture where the pinhole of camera_info puts it."""
    width, height = 640, 480
    scene = Scene((Prop("ball", "free", (Geom("sphere", (0.012,), rgba=(1.0, 0.0, 1.0, 1.0)),)),))
    twin = panda.make(panda.Config(), scene)
    view = CAMERAS["front"]
    azimuth, elevation = np.deg2rad([view["azimuth"], view["elevation"]])
    forward = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
    optical = np.stack([right, np.cross(forward, right), forward])  # x right, y down, z ahead
    eye = np.array(view["lookat"]) - view["distance"] * forward
    info = images.to_camera_info(width, height, twin.fovy_rad(), "front_optical_frame", 1)
    lens = np.array(info.k).reshape(3, 3)
    np.testing.assert_array_equal(np.array(info.p).reshape(3, 4)[:, :3], lens)
    for place in ([0.5, 0.4, 0.1], [0.6, -0.35, 0.5], [0.3, 0.3, 0.75]):
        pose = np.array([*place, 0.0, 0.0, 0.0, 1.0])
        picture = twin.show(
            np.array([0, -0.8, 0, -2.4, 0, 1.6, 0.8]), 0.0, {"ball": pose}, width, height, shadows=False
        )
        hue = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)
        rows, columns = np.nonzero((np.abs(hue[:, :, 0].astype(int) - 150) < 6) & (hue[:, :, 1] > 150))
        assert len(rows) > 40
        pixel = lens @ (optical @ (np.array(place) - eye))
        np.testing.assert_allclose([columns.mean(), rows.mean()], pixel[:2] / pixel[2], atol=0.25)
    twin.close()


def test_without_gl_the_remedy_is_named(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(gl, "_LIBRARIES", {"egl": ("libNotThere.so.1",)})
    with pytest.raises(OSError, match="apt-get install libegl1"):
        ros_nodes.camera(TASK, "panda", "/lab")


def test_a_camera_of_nothing(ros_domain):
    with pytest.raises(LookupError, match="peg_insert"):
        ros_nodes.camera("peg_insrt", "panda", "/lab")
    with pytest.raises(LookupError, match="unknown camera 'wirst': there is front, side, wrist"):
        ros_nodes.camera(TASK, "panda", "/lab", name="wirst")
    with pytest.raises(ValueError, match="give at most 1280 x 960"):
        ros_nodes.camera(TASK, "panda", "/lab", width_px=2000)
    with pytest.raises(ValueError, match="rate_hz = 0"):
        ros_nodes.camera(TASK, "panda", "/lab", rate_hz=0.0)
