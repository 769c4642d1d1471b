"""Arms, cameras and boards whose true poses are known, for the tests of calibration."""

from functools import cache

import numpy as np
import pytest

from controllers import hand_eye
from robot_rl import rig
from robot_rl.calibrate_camera import Shot
from robot_rl.finding import Finding
from robot_rl.geometry import quat_multiply, quat_normalize, rotvec_to_quat
from robot_rl.types import Bounds, Pose

cv2 = pytest.importorskip("cv2")

from tests.boards import photographer  # noqa: E402

TOOL_DOWN = np.array([1.0, 0.0, 0.0, 0.0])
BOUNDS = Bounds((0.3, -0.2, 0.05), (0.7, 0.2, 0.45), (1.0, 0.0, 0.0, 0.0), (0.6, 0.6, 0.6))
WITHIN_M, WITHIN_RAD = 1e-3, np.radians(0.1)
CHARUCO, CHESSBOARD = rig.BoardFacts(), rig.BoardFacts("chessboard", (8, 5), 0.028)


def transform(pos_m, rotvec_rad) -> np.ndarray:
    return hand_eye.to_matrix(Pose(np.array(pos_m, float), rotvec_to_quat(np.array(rotvec_rad, float))))


def scene(in_hand: bool, tcp: Pose) -> tuple[np.ndarray, np.ndarray]:
    """True X and Z: from ``tcp`` the camera sees the board in its middle, from some 45 cm."""
    sight = transform([-0.09, -0.06, 0.45], [0.1, -0.15, 0.05])
    if in_hand:
        camera = transform([0.06, -0.03, -0.05], [0.1, 0.05, 0.7])
        return camera, hand_eye.to_matrix(tcp) @ camera @ sight
    camera = transform([1.1, 0.1, 0.4], [-1.2, -1.25, 1.1])
    return camera, hand_eye.inverse(hand_eye.to_matrix(tcp)) @ camera @ sight


def sight_of(tcp: Pose, in_hand: bool, camera: np.ndarray, board: np.ndarray) -> np.ndarray:
    arm = hand_eye.to_matrix(tcp)
    return hand_eye.inverse(camera) @ (hand_eye.inverse(arm) if in_hand else arm) @ board


def take(facts, in_hand: bool, count: int, turn=(1.0, 1.0, 1.0)):
    """Shots around a pose, and the true X."""
    shots, camera = _take(facts, in_hand, turn)
    return list(shots[:count]), camera


@cache
def _take(facts, in_hand: bool, turn: tuple[float, float, float]):
    rng, tcp = np.random.default_rng(0), Pose(np.array([0.5, 0.0, 0.3]), TOOL_DOWN)
    camera, z = scene(in_hand, tcp)
    shots = []
    for i in range(11):
        turned = rotvec_to_quat(rng.normal(size=3) * 0.12 * np.asarray(turn))
        at = Pose(tcp.pos_m + rng.uniform(-0.02, 0.02, 3), quat_normalize(quat_multiply(turned, tcp.quat_xyzw)))
        shots.append(Shot(f"{i:04d}.png", at, photographer(facts).take(sight_of(at, in_hand, camera, z), rng)))
    return shots, camera


def found_in(results) -> tuple[dict[str, Finding], object]:
    results = list(results)
    outcomes = [one for one in results if not isinstance(one, Finding)]
    return {one.name: one for one in results if isinstance(one, Finding)}, outcomes[0] if outcomes else None


def off(facts: rig.CameraPose, camera: np.ndarray) -> tuple[float, float]:
    pose = Pose(np.array(facts.pos_m), np.array(facts.quat_xyzw))
    return hand_eye.difference(hand_eye.to_matrix(pose), camera)
