"""What RViz and Foxglove draw beside the pictures: scene, arm, frames, targets, workspace and contact force.

A marker's place in its namespace is its id, so that each message replaces the one before; its lifetime ends soon after
its publisher's. Everything is in the base frame.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point
from numpy.typing import NDArray
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from controllers.messages import to_pose, to_stamp
from robot_rl.geometry import quat_multiply, quat_rotate
from robot_rl.types import IDENTITY_XYZW, Bounds, Geom, Pose, Scene

Array = NDArray[np.float64]
Rgba = tuple[float, float, float, float]

TABLE_HALF_M = (0.75, 0.75, 0.005)
UNBOUNDED_M = 2.0  # how far the workspace is drawn where it has no bound
METRES_PER_NEWTON = 0.01
LEAST_FORCE_N = 0.5  # what is less is noise, and no arrow
_RED, _GREEN, _BLUE = (0.9, 0.2, 0.2, 1.0), (0.2, 0.7, 0.2, 1.0), (0.2, 0.4, 0.9, 1.0)
_YELLOW, _MAGENTA, _GREY = (1.0, 0.8, 0.1, 0.6), (0.9, 0.2, 0.9, 1.0), (0.93, 0.92, 0.9, 1.0)


@dataclass(frozen=True)
class Shown:
    """What there is to draw at one instant; None and empty are not drawn. Poses are (7,) m, xyzw."""

    props: Mapping[str, Array]
    tcp: Array | None = None
    arm: Sequence[Geom] = ()
    target: Pose | None = None
    applied_target: Pose | None = None
    force_n: Array | None = None  # (3,) what the surroundings exert on the arm, at the tcp


def to_markers(scene: Scene, bounds: Bounds, shown: Shown, frame: str, stamp_ns: int, lifetime_s: float) -> MarkerArray:
    """Namespaces: ``table``, ``prop/<name>``, ``arm``, ``base``, ``tcp``, ``target``, ``applied_target``,
    ``workspace``, ``force``. A tool is at the tcp where its pose is not given."""
    groups: dict[str, list[Marker]] = {"base": axes(np.array([0.0, 0.0, 0.0, *IDENTITY_XYZW]), 0.2)}
    if scene.table_height_m is not None:
        top = Geom("box", TABLE_HALF_M, (0.0, 0.0, scene.table_height_m - TABLE_HALF_M[2]), rgba=_GREY)
        groups["table"] = solid(top)
    for prop in scene.props:
        found = [shown.props.get(part, shown.tcp if prop.kind == "tool" else None) for part in prop.parts]
        poses = [pose for pose in found if pose is not None]
        if poses:
            groups[f"prop/{prop.name}"] = [
                marker for pose in poses for geom in prop.geoms for marker in solid(_placed(geom, pose))
            ]
    groups["arm"] = [marker for geom in shown.arm for marker in solid(geom)]
    groups["workspace"] = [workspace(bounds)]
    if shown.tcp is not None:
        groups["tcp"] = axes(shown.tcp, 0.1)
        groups["force"] = [force(shown.tcp[:3], np.zeros(3) if shown.force_n is None else shown.force_n)]
    for name, target, length_m in (("target", shown.target, 0.07), ("applied_target", shown.applied_target, 0.05)):
        if target is not None:
            groups[name] = axes(np.concatenate([target.pos_m, target.quat_xyzw]), length_m, 0.5)
    stamp, lifetime = to_stamp(stamp_ns), Duration(sec=int(lifetime_s), nanosec=int(lifetime_s % 1.0 * 1e9))
    for name, markers in groups.items():
        for index, marker in enumerate(markers):
            marker.header.frame_id, marker.header.stamp = frame, stamp
            marker.ns, marker.id, marker.lifetime = name, index, lifetime
    return MarkerArray(markers=[marker for markers in groups.values() for marker in markers])


def solid(geom: Geom) -> list[Marker]:
    """One geom; a capsule, which RViz does not know, is a cylinder and two spheres. A sphere may have three radii."""
    size, pos_m, quat_xyzw = np.asarray(geom.size_m), np.asarray(geom.pos_m), np.asarray(geom.quat_xyzw)
    if geom.shape == "box":
        return [_marker(Marker.CUBE, 2.0 * size, pos_m, quat_xyzw, geom.rgba)]
    if geom.shape == "sphere":
        return [_marker(Marker.SPHERE, 2.0 * np.broadcast_to(size, 3), pos_m, quat_xyzw, geom.rgba)]
    radius, half = size
    column = _marker(Marker.CYLINDER, 2.0 * np.array([radius, radius, half]), pos_m, quat_xyzw, geom.rgba)
    if geom.shape == "cylinder":
        return [column]
    end = quat_rotate(quat_xyzw, np.array([0.0, 0.0, half]))
    ball = np.full(3, 2.0 * radius)
    return [column, *(_marker(Marker.SPHERE, ball, pos_m + side * end, quat_xyzw, geom.rgba) for side in (-1, 1))]


def axes(pose: Array, length_m: float, opacity: float = 1.0) -> list[Marker]:
    """A frame (7,) m, xyzw: arrows along x, y and z in red, green and blue."""
    ends = (quat_rotate(pose[3:], length_m * axis) for axis in np.eye(3))
    colours = ((*colour[:3], opacity) for colour in (_RED, _GREEN, _BLUE))
    return [arrow(pose[:3], pose[:3] + end, length_m / 15, rgba) for end, rgba in zip(ends, colours, strict=True)]


def arrow(start_m: Array, end_m: Array, thickness_m: float, rgba: Rgba) -> Marker:
    size = np.array([thickness_m, 2.0 * thickness_m, 0.0])
    marker = _marker(Marker.ARROW, size, np.zeros(3), np.asarray(IDENTITY_XYZW), rgba)
    marker.points = [_point(start_m), _point(end_m)]
    return marker


def force(tcp_m: Array, force_n: Array) -> Marker:
    """An arrow from the tcp, METRES_PER_NEWTON long; one that takes the last arrow away where there is no force."""
    if not np.linalg.norm(force_n) >= LEAST_FORCE_N:
        return Marker(action=Marker.DELETE)
    return arrow(tcp_m, tcp_m + METRES_PER_NEWTON * force_n, 0.008, _MAGENTA)


def workspace(bounds: Bounds) -> Marker:
    """The twelve edges of the box that the tcp is kept in; UNBOUNDED_M stands for infinite."""
    lower = np.clip(bounds.box_lower_m, -UNBOUNDED_M, UNBOUNDED_M)
    upper = np.clip(bounds.box_upper_m, -UNBOUNDED_M, UNBOUNDED_M)
    marker = _marker(Marker.LINE_LIST, np.array([0.003, 0.0, 0.0]), np.zeros(3), np.asarray(IDENTITY_XYZW), _YELLOW)
    corners = [np.where(choice, upper, lower) for choice in itertools.product((False, True), repeat=3)]
    for first, second in itertools.combinations(range(8), 2):
        if (first ^ second) in (1, 2, 4):  # neighbours differ along one axis
            marker.points += [_point(corners[first]), _point(corners[second])]
    return marker


def _placed(geom: Geom, pose: Array) -> Geom:
    """A prop's geom in the base frame."""
    x, y, z = (pose[:3] + quat_rotate(pose[3:], np.asarray(geom.pos_m))).tolist()
    qx, qy, qz, qw = quat_multiply(pose[3:], np.asarray(geom.quat_xyzw)).tolist()
    return replace(geom, pos_m=(x, y, z), quat_xyzw=(qx, qy, qz, qw))


def _marker(kind: int, size_m: Array, pos_m: Array, quat_xyzw: Array, rgba: Rgba) -> Marker:
    marker = Marker(type=kind, action=Marker.ADD, pose=to_pose(pos_m, quat_xyzw))
    marker.scale.x, marker.scale.y, marker.scale.z = (float(v) for v in size_m)
    red, green, blue, alpha = rgba
    marker.color = ColorRGBA(r=red, g=green, b=blue, a=alpha)
    return marker


def _point(position_m: Array) -> Point:
    x, y, z = position_m.tolist()
    return Point(x=x, y=y, z=z)
