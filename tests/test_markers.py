"""What RViz is told to draw, read back from the messages."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from visualization_msgs.msg import Marker

from controllers import markers
from controllers.markers import Shown, to_markers
from robot_rl.find import find, names
from robot_rl.types import Bounds, Geom, Pose, Prop, Scene

TURN = Rotation.from_rotvec([0.3, -0.5, 0.8])
POSE = np.array([0.5, -0.1, 0.2, *TURN.as_quat()])
BALL = Geom("sphere", (0.02,), (0.1, 0.0, 0.0), rgba=(1.0, 0.0, 0.0, 0.5))
SCENE = Scene(
    (
        Prop("peg", "tool", (Geom("capsule", (0.01, 0.05)),)),
        Prop("cube", "free", (Geom("box", (0.01, 0.02, 0.03)), BALL)),
        Prop("hole", "fixture", (Geom("cylinder", (0.04, 0.01)),)),
    ),
    table_height_m=-0.1,
)
BOUNDS = Bounds((0.3, -0.2, 0.0), (0.7, 0.2, 0.4), (1.0, 0.0, 0.0, 0.0), (0.3, 0.3, 0.5))
ALL = Shown(
    props={"cube": POSE, "hole": POSE},
    tcp=POSE,
    arm=[Geom("capsule", (0.05, 0.1)), Geom("box", (0.1, 0.1, 0.1))],
    target=Pose(POSE[:3], POSE[3:]),
    applied_target=Pose(POSE[:3], POSE[3:]),
    force_n=np.array([0.0, 3.0, 4.0]),
)


def made(shown=ALL, scene=SCENE, bounds=BOUNDS):
    """Namespace -> its markers."""
    out = {}
    for marker in to_markers(scene, bounds, shown, "base", 1_500_000_000, 1.25).markers:
        out.setdefault(marker.ns, []).append(marker)
    return out


def position(marker):
    return np.array([marker.pose.position.x, marker.pose.position.y, marker.pose.position.z])


def rotation(marker):
    q = marker.pose.orientation
    return Rotation.from_quat([q.x, q.y, q.z, q.w])


def size(marker):
    return np.array([marker.scale.x, marker.scale.y, marker.scale.z])


def points(marker):
    return np.array([[point.x, point.y, point.z] for point in marker.points])


def test_everything_is_there_once():
    counts = {ns: len(group) for ns, group in made().items()}
    assert counts == {
        "base": 3, "tcp": 3, "target": 3, "applied_target": 3, "workspace": 1, "force": 1, "table": 1,
        "prop/peg": 3, "prop/cube": 2, "prop/hole": 1, "arm": 4,
    }  # fmt: skip


def test_ids_are_stable_and_all_have_an_end():
    for first, second in zip(made().items(), made().items(), strict=True):
        assert [(m.ns, m.id) for m in first[1]] == [(m.ns, m.id) for m in second[1]]
        assert [m.id for m in first[1]] == list(range(len(first[1])))
        for marker in first[1]:
            assert marker.header.frame_id == "base" and marker.header.stamp.nanosec == 500_000_000
            assert (marker.lifetime.sec, marker.lifetime.nanosec) == (1, 250_000_000)


def test_what_is_not_known_is_not_drawn():
    assert set(made(Shown(props={}))) == {"base", "table", "workspace"}
    assert "table" not in made(Shown(props={}), Scene(table_height_m=None))


def test_a_prop_is_where_its_pose_says():
    cube, ball = made()["prop/cube"]
    assert (cube.type, ball.type) == (Marker.CUBE, Marker.SPHERE)
    np.testing.assert_allclose(size(cube), [0.02, 0.04, 0.06])
    np.testing.assert_allclose(size(ball), [0.04] * 3)
    np.testing.assert_allclose(position(cube), POSE[:3])
    np.testing.assert_allclose(position(ball), POSE[:3] + TURN.apply([0.1, 0.0, 0.0]))
    assert (rotation(cube).inv() * TURN).magnitude() < 1e-9
    assert (ball.color.r, ball.color.g, ball.color.b, ball.color.a) == (1.0, 0.0, 0.0, 0.5)


def test_a_tool_is_at_the_tcp_unless_its_pose_is_given():
    moved = POSE + [0.1, 0, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(position(made()["prop/peg"][0]), POSE[:3])
    given = Shown(props={"peg": moved}, tcp=POSE)
    np.testing.assert_allclose(position(made(given)["prop/peg"][0]), moved[:3])


def test_the_table_is_under_its_height():
    (table,) = made()["table"]
    assert position(table)[2] + size(table)[2] / 2 == pytest.approx(-0.1)


@given(
    st.floats(0.001, 1.0),
    st.floats(0.001, 1.0),
    st.tuples(*[st.floats(-3.0, 3.0)] * 3),
    st.tuples(*[st.floats(-2.0, 2.0)] * 3),
)
def test_a_capsule_is_a_cylinder_between_two_balls(radius, half, turn, pos_m):
    turned = Rotation.from_rotvec(turn)
    quat = tuple(turned.as_quat().tolist())
    column, first, second = markers.solid(Geom("capsule", (radius, half), pos_m, quat))
    assert (column.type, first.type, second.type) == (Marker.CYLINDER, Marker.SPHERE, Marker.SPHERE)
    np.testing.assert_allclose(size(column), [2 * radius, 2 * radius, 2 * half])
    end = turned.apply([0.0, 0.0, half])
    np.testing.assert_allclose(position(first), pos_m - end, atol=1e-9)
    np.testing.assert_allclose(position(second), pos_m + end, atol=1e-9)


def test_an_ellipsoid_is_a_sphere_of_three_sizes():
    (marker,) = markers.solid(Geom("sphere", (0.1, 0.2, 0.3)))
    assert marker.type == Marker.SPHERE
    np.testing.assert_allclose(size(marker), [0.2, 0.4, 0.6])


def test_a_frame_is_three_arrows_red_green_blue():
    for index, marker in enumerate(made()["tcp"]):
        start, end = points(marker)
        np.testing.assert_allclose(start, POSE[:3])
        np.testing.assert_allclose(end - start, 0.1 * TURN.as_matrix()[:, index])
        colour = [marker.color.r, marker.color.g, marker.color.b]
        assert marker.type == Marker.ARROW and np.argmax(colour) == index


def test_the_workspace_is_the_box_of_the_bounds():
    (box,) = made()["workspace"]
    assert box.type == Marker.LINE_LIST
    ends = points(box)
    assert len(ends) == 24
    np.testing.assert_allclose(ends.min(axis=0), BOUNDS.box_lower_m)
    np.testing.assert_allclose(ends.max(axis=0), BOUNDS.box_upper_m)
    edges = np.abs(ends[::2] - ends[1::2])
    assert ((edges > 0).sum(axis=1) == 1).all()  # along an axis each
    assert len({tuple(sorted(map(tuple, pair))) for pair in ends.reshape(12, 2, 3).round(9).tolist()}) == 12


def test_no_bound_is_drawn_far_away():
    bounds = Bounds((-np.inf, -0.2, 0.0), (np.inf, 0.2, np.inf), (1.0, 0.0, 0.0, 0.0), (0.3, 0.3, 0.5))
    ends = points(made(bounds=bounds)["workspace"][0])
    assert np.isfinite(ends).all() and ends[:, 0].max() == markers.UNBOUNDED_M and ends[:, 1].max() == 0.2


def test_the_force_is_an_arrow_at_the_tcp_and_goes_with_the_force():
    (arrow,) = made()["force"]
    start, end = points(arrow)
    np.testing.assert_allclose(start, POSE[:3])
    np.testing.assert_allclose(end - start, [0.0, 0.03, 0.04])
    for nothing in (None, np.zeros(3), np.array([0.0, 0.0, np.nan])):
        (gone,) = made(Shown(props={}, tcp=POSE, force_n=nothing))["force"]
        assert gone.action == Marker.DELETE and gone.id == arrow.id


@pytest.mark.parametrize("name", names("tasks"))
def test_every_task_can_be_drawn(name):
    module = find("tasks", name)
    task = module.make(module.Config())
    start = task.reset(np.random.default_rng(0))
    props = {name: np.concatenate([pose.pos_m, pose.quat_xyzw]) for name, pose in start.props.items()}
    tcp = np.concatenate([start.tcp.pos_m, start.tcp.quat_xyzw])
    groups = made(Shown(props, tcp), task.scene, task.bounds)
    assert {f"prop/{prop.name}" for prop in task.scene.props} <= set(groups)
    for marker in (marker for group in groups.values() for marker in group if marker.action == Marker.ADD):
        assert marker.scale.x > 0 and 0 < marker.color.a <= 1 and np.isfinite(position(marker)).all()
