"""Where a camera is, from a board seen in several poses of the arm. Numpy only.

One equation for both mounts, of 4x4 transforms, for every view i:

    A_i Z = X B_i    X: the camera in its parent frame, Z: the board in the other frame, B_i: the board in the camera

A camera in the hand (parent: the tcp, the board stands in the base frame) has A_i = inverse of the tcp's pose; a camera
that stands (parent: the base, the board is in the gripper) has A_i = the tcp's pose. ``park_martin`` (Park and Martin,
IEEE Trans. Robotics and Automation 10(5), 1994) and ``shah`` (Shah, J. Mechanisms Robotics 5(3), 2013) solve it in
closed form from the B_i; ``refine`` then makes the corners fit where they were seen, in pixels.

The camera's frame is OpenCV's: x right, y down, z forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from robot_rl.geometry import matrix_to_quat, quat_rotate, quat_to_rotvec, rotvec_to_quat
from robot_rl.types import Pose

Array = NDArray[np.float64]

_ROUNDS = 30
_STEP = 1e-6  # m, rad of the difference quotients


class Lens(NamedTuple):
    """A pinhole with Brown's distortion, as OpenCV has it; the middle of the first pixel is (0, 0)."""

    fx_px: float
    fy_px: float
    cx_px: float
    cy_px: float
    distortion: Array  # (5,) k1, k2, p1, p2, k3

    def project(self, points_m: Array) -> Array:
        """Pixels (..., 2) of points (..., 3) m in the camera's frame."""
        x, y = points_m[..., 0] / points_m[..., 2], points_m[..., 1] / points_m[..., 2]
        k1, k2, p1, p2, k3 = self.distortion
        r2 = x * x + y * y
        radial = 1.0 + r2 * (k1 + r2 * (k2 + r2 * k3))
        u = x * radial + 2.0 * p1 * x * y + p2 * (r2 + 2.0 * x * x)
        v = y * radial + p1 * (r2 + 2.0 * y * y) + 2.0 * p2 * x * y
        return np.stack([self.fx_px * u + self.cx_px, self.fy_px * v + self.cy_px], -1)


class View(NamedTuple):
    """One picture of the board."""

    tcp: Array  # (4, 4) pose of the tcp in the base frame
    board: Array  # (4, 4) pose of the board in the camera, from this picture alone
    corners_m: Array  # (P, 3) in the board's frame
    pixels: Array  # (P, 2) where they were seen


class Solution(NamedTuple):
    camera: Array  # (4, 4) X
    board: Array  # (4, 4) Z
    lens: Lens
    sigma: Array  # (6,) standard deviations of the camera's position, m, and rotation vector, rad


def to_matrix(pose: Pose) -> Array:
    """(4, 4)."""
    out = np.eye(4)
    out[:3, :3] = np.stack([quat_rotate(pose.quat_xyzw, axis) for axis in np.eye(3)], axis=1)
    out[:3, 3] = pose.pos_m
    return out


def to_pose(matrix: Array) -> Pose:
    return Pose(matrix[:3, 3].copy(), matrix_to_quat(matrix[:3, :3].ravel()))


def inverse(matrix: Array) -> Array:
    """Of rigid transforms (..., 4, 4)."""
    out = np.zeros_like(matrix)
    turned = np.swapaxes(matrix[..., :3, :3], -1, -2)
    out[..., :3, :3], out[..., 3, 3] = turned, 1.0
    out[..., :3, 3] = -np.einsum("...ij,...j->...i", turned, matrix[..., :3, 3])
    return out


def rotvec(matrix: Array) -> Array:
    """(3,) rad of a rotation (3, 3) or a transform (4, 4)."""
    return quat_to_rotvec(matrix_to_quat(matrix[:3, :3].ravel()))


def arm_side(views: Sequence[View], in_hand: bool) -> Array:
    """The A_i, (N, 4, 4)."""
    tcp = np.stack([view.tcp for view in views])
    return inverse(tcp) if in_hand else tcp


def turns(views: Sequence[View]) -> tuple[Array, Array]:
    """How far the tcp was turned between the views, about three axes at right angles: rms angles (3,) rad, the largest
    first, and the axes (3, 3), one a row, in the tcp's frame."""
    mean = _nearest_rotation(sum((view.tcp[:3, :3] for view in views), np.zeros((3, 3))))
    vectors = np.stack([rotvec(mean.T @ view.tcp[:3, :3]) for view in views])
    _, values, axes = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    sizes = np.zeros(3)
    sizes[: len(values)] = values / np.sqrt(len(views))
    return sizes, axes


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms


def park_martin(a: Array, b: Array) -> tuple[Array, Array]:
    """X and Z from A_i and B_i, both (N, 4, 4): the rotation from the axes of the motions between every two views."""
    axes_a, axes_b = [], []
    for i in range(len(a)):
        for j in range(i + 1, len(a)):
            axes_a.append(rotvec(a[j, :3, :3] @ a[i, :3, :3].T))
            axes_b.append(rotvec(b[j, :3, :3] @ b[i, :3, :3].T))
    turn_x = _nearest_rotation(np.stack(axes_a).T @ np.stack(axes_b))
    turns_z = np.einsum("nji,jk,nkl->il", a[:, :3, :3], turn_x, b[:, :3, :3])
    return _with_positions(a, b, turn_x, _nearest_rotation(turns_z))


def shah(a: Array, b: Array) -> tuple[Array, Array]:
    """X and Z from A_i and B_i, both (N, 4, 4): both rotations at once, from the largest singular vectors of the sum of
    Kronecker products of R_B and R_A."""
    total = np.zeros((9, 9))
    for one, other in zip(a, b, strict=True):
        total += np.kron(other[:3, :3], one[:3, :3])
    left, _, right = np.linalg.svd(total)
    turn_x, turn_z = left[:, 0].reshape(3, 3).T, right[0].reshape(3, 3).T
    if np.linalg.det(turn_x) < 0.0:  # a singular vector's sign is anybody's; both change together
        turn_x, turn_z = -turn_x, -turn_z
    return _with_positions(a, b, _nearest_rotation(turn_x), _nearest_rotation(turn_z))


def _with_positions(a: Array, b: Array, turn_x: Array, turn_z: Array) -> tuple[Array, Array]:
    """The positions for known rotations, by least squares: R_A t_Z - t_X = R_X t_B - t_A."""
    count = len(a)
    rows, wanted = np.zeros((3 * count, 6)), np.zeros(3 * count)
    for i in range(count):
        rows[3 * i : 3 * i + 3, :3], rows[3 * i : 3 * i + 3, 3:] = -np.eye(3), a[i, :3, :3]
        wanted[3 * i : 3 * i + 3] = turn_x @ b[i, :3, 3] - a[i, :3, 3]
    found = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    x, z = np.eye(4), np.eye(4)
    x[:3, :3], x[:3, 3], z[:3, :3], z[:3, 3] = turn_x, found[:3], turn_z, found[3:]
    return x, z


def _nearest_rotation(matrix: Array) -> Array:
    left, _, right = np.linalg.svd(matrix)
    flip = np.diag([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    return left @ flip @ right


# ---------------------------------------------------------------------------------------------------------------------
# Pixels


def residuals(views: Sequence[View], in_hand: bool, camera: Array, board: Array, lens: Lens) -> list[Array]:
    """Seen minus expected, (P, 2) px, for every view."""
    seen = _stack(views, in_hand)
    ends = np.cumsum([len(view.pixels) for view in views])[:-1]
    return np.split(_away(seen, camera, board, lens).reshape(-1, 2), ends)


class _Stack(NamedTuple):
    """The corners of all views in one array."""

    arm: Array  # (N, 4, 4) the A_i
    view: NDArray[np.int64]  # (P,) of each corner
    corners_m: Array  # (P, 3)
    pixels: Array  # (P, 2)


def _stack(views: Sequence[View], in_hand: bool) -> _Stack:
    number = np.repeat(np.arange(len(views)), [len(view.pixels) for view in views])
    corners_m, pixels = (np.concatenate([view[k] for view in views]) for k in (2, 3))
    return _Stack(arm_side(views, in_hand), number, corners_m, pixels)


def _away(seen: _Stack, camera: Array, board: Array, lens: Lens) -> Array:
    """Seen minus expected, (2 P,) px."""
    chain = (inverse(camera) @ seen.arm @ board)[seen.view]
    points_m = np.einsum("pij,pj->pi", chain[:, :3, :3], seen.corners_m) + chain[:, :3, 3]
    return (seen.pixels - lens.project(points_m)).ravel()


def refine(
    views: Sequence[View], in_hand: bool, camera: Array, board: Array, lens: Lens, free_lens: bool = False
) -> Solution:
    """Least squares of all corners in pixels, by Levenberg and Marquardt from a closed form's X and Z. ``free_lens``
    fits the lens, but for k3, to the same pixels: the arm's known movements say more about it than pictures alone.
    Raises ArithmeticError where the views leave a direction open."""
    seen, size = _stack(views, in_hand), 20 if free_lens else 12
    error, damping = _away(seen, camera, board, lens), 1e-3
    for _ in range(_ROUNDS):
        jac = _slopes(seen, camera, board, lens)[:, :size]
        normal, slope = jac.T @ jac, jac.T @ error
        for _ in range(_ROUNDS):
            damped = normal + damping * np.diag(np.diag(normal) + 1e-12)
            step = np.asarray(-np.linalg.solve(damped, slope), np.float64)
            there = _moved(camera, board, lens, np.pad(step, (0, 20 - size)))
            fresh = _away(seen, *there)
            if fresh @ fresh <= error @ error:
                break
            damping *= 4.0
        else:
            break  # no step is better: this is the bottom
        (camera, board, lens), error, damping = there, fresh, damping / 4.0
        if np.abs(step * _SCALES[:size]).max() < 1e-9:
            break
    scale = 1.0 / np.sqrt(np.diag(normal) + 1e-300)  # pixels and metres are told apart before anything is inverted
    if not np.isfinite(error).all() or np.linalg.cond(normal * np.outer(scale, scale)) > 1e12:
        raise ArithmeticError("the views leave a direction of the camera's pose open: turn the arm about other axes")
    variance = error @ error / max(len(error) - size, 1)
    covariance = np.linalg.inv(normal * np.outer(scale, scale)) * np.outer(scale, scale)
    return Solution(camera, board, lens, np.sqrt(variance * np.diag(covariance)[:6]))


_SCALES = np.array([1.0] * 12 + [1e-3] * 4 + [1.0] * 4)  # a pixel of the lens counts as much as a millimetre


def _slopes(seen: _Stack, camera: Array, board: Array, lens: Lens) -> Array:
    """(2 P, 20): how the pixels' errors change with small movements of the camera (6) and the board (6), and with fx ..
    cy and k1 .. p2 of the lens."""
    columns = []
    for k in range(20):
        step = np.zeros(20)
        step[k] = _STEP / _SCALES[k]
        ahead, behind = (_away(seen, *_moved(camera, board, lens, one)) for one in (step, -step))
        columns.append((ahead - behind) / (2.0 * step[k]))
    return np.stack(columns, axis=1)


def _moved(camera: Array, board: Array, lens: Lens, step: Array) -> tuple[Array, Array, Lens]:
    fx, fy, cx, cy = (float(value) for value in np.array(lens[:4]) + step[12:16])
    other = Lens(fx, fy, cx, cy, lens.distortion + np.append(step[16:], 0.0))
    return _shifted(camera, step[:6]), _shifted(board, step[6:12]), other


def _shifted(pose: Array, step: Array) -> Array:
    """``pose`` moved by (6,) m, rad in its parent's axes, about its own origin."""
    out = pose.copy()
    quat = rotvec_to_quat(step[3:])
    out[:3, :3] = np.stack([quat_rotate(quat, column) for column in pose[:3, :3].T], axis=1)
    out[:3, 3] += step[:3]
    return out


def solve(views: Sequence[View], in_hand: bool, lens: Lens, free_lens: bool = False) -> Solution:
    """``refine`` from whichever closed form fits the pixels better. Raises ArithmeticError as ``refine`` does."""
    a, b = arm_side(views, in_hand), np.stack([view.board for view in views])
    starts = [park_martin(a, b), shah(a, b)]
    errors = [rms(np.concatenate(residuals(views, in_hand, *start, lens))) for start in starts]
    return refine(views, in_hand, *starts[int(np.argmin(errors))], lens, free_lens)


def rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def difference(one: Array, other: Array) -> tuple[float, float]:
    """Distance in m and angle in rad between two poses (4, 4)."""
    turn = rotvec(one[:3, :3] @ other[:3, :3].T)
    return float(np.linalg.norm(one[:3, 3] - other[:3, 3])), float(np.linalg.norm(turn))


def pose_residuals(views: Sequence[View], in_hand: bool, solution: Solution) -> Array:
    """(N, 2) m, rad: how far the board that each picture alone shows is from where arm and solution put it."""
    chain = inverse(solution.camera) @ arm_side(views, in_hand) @ solution.board
    return np.array([difference(view.board, pose) for view, pose in zip(views, chain, strict=True)])


def leave_one_out(views: Sequence[View], in_hand: bool, solution: Solution, free_lens: bool = False) -> Array:
    """(N, 2) m, rad: how far the camera moves when one view is left out; one step of Gauss and Newton from the solution
    of all."""
    seen, found = _stack(views, in_hand), (solution.camera, solution.board, solution.lens)
    jac, error = _slopes(seen, *found)[:, : 20 if free_lens else 12], _away(seen, *found)
    normal, slope = jac.T @ jac, jac.T @ error
    out = []
    for left in range(len(views)):
        own = np.repeat(seen.view == left, 2)
        step = np.linalg.solve(normal - jac[own].T @ jac[own], slope - jac[own].T @ error[own])
        out.append((float(np.linalg.norm(step[:3])), float(np.linalg.norm(step[3:6]))))
    return np.array(out)
