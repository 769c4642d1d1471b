"""The mathematics of calibration, boards in pictures, and cameras found from them, against ground truth."""

import numpy as np
import pytest

from controllers import hand_eye
from robot_rl import rig
from robot_rl.calibrate_camera import examine
from robot_rl.geometry import quat_multiply, quat_normalize, rotvec_to_quat
from robot_rl.types import Pose

cv2 = pytest.importorskip("cv2")

from hardware.cameras._board import Board  # noqa: E402
from tests.boards import LENS, SIZE_PX, photographer  # noqa: E402
from tests.calibrations import (  # noqa: E402
    CHARUCO,
    CHESSBOARD,
    TOOL_DOWN,
    WITHIN_M,
    WITHIN_RAD,
    found_in,
    scene,
    sight_of,
    take,
    transform,
)

# ---------------------------------------------------------------------------------------------------------------------
# The mathematics


def made_views(in_hand: bool, noise_px: float, count: int = 12, seed: int = 3, axes=(1, 1, 1)):
    """Views with pixels that are computed, and the true X and Z."""
    rng, tcp = np.random.default_rng(seed), Pose(np.array([0.5, 0.0, 0.3]), TOOL_DOWN)
    x, z = scene(in_hand, tcp)
    corners = np.stack(np.meshgrid(np.arange(1, 7) * 0.03, np.arange(1, 5) * 0.03, [0.0]), -1).reshape(-1, 3)
    views = []
    for _ in range(count):
        turned = rotvec_to_quat(rng.normal(size=3) * 0.2 * np.array(axes))
        at = Pose(tcp.pos_m + rng.uniform(-0.02, 0.02, 3), quat_normalize(quat_multiply(turned, tcp.quat_xyzw)))
        b = sight_of(at, in_hand, x, z)
        pixels = LENS.project(corners @ b[:3, :3].T + b[:3, 3]) + rng.normal(size=(len(corners), 2)) * noise_px
        views.append(hand_eye.View(hand_eye.to_matrix(at), b, corners, pixels))
    return views, x, z


@pytest.mark.parametrize("in_hand", [True, False])
@pytest.mark.parametrize("method", [hand_eye.park_martin, hand_eye.shah])
def test_closed_forms_are_exact_without_noise(in_hand, method) -> None:
    views, x, z = made_views(in_hand, 0.0)
    found = method(hand_eye.arm_side(views, in_hand), np.stack([view.board for view in views]))
    assert max(hand_eye.difference(found[0], x) + hand_eye.difference(found[1], z)) < 1e-9


@pytest.mark.parametrize("in_hand", [True, False])
def test_refining_finds_the_bottom_from_far_away(in_hand) -> None:
    views, x, z = made_views(in_hand, 0.0)
    push = transform([0.03, -0.02, 0.02], [0.1, -0.1, 0.1])
    found = hand_eye.refine(views, in_hand, x @ push, z, LENS)
    assert max(hand_eye.difference(found.camera, x) + hand_eye.difference(found.board, z)) < 1e-7


@pytest.mark.parametrize("in_hand", [True, False])
def test_refining_finds_a_lens_from_the_arms_movements(in_hand) -> None:
    views, x, z = made_views(in_hand, 0.0)
    other = LENS._replace(fx_px=640.0, cy_px=250.0, distortion=LENS.distortion + np.array([0.05, -0.1, 0, 0, 0]))
    found = hand_eye.refine(views, in_hand, x, z, other, free_lens=True)
    assert found.lens[:4] == pytest.approx(LENS[:4], abs=1e-3)
    assert found.lens.distortion == pytest.approx(LENS.distortion, abs=1e-4)
    assert max(hand_eye.difference(found.camera, x)) < 1e-6


def test_the_uncertainty_is_what_repeated_noise_gives() -> None:
    errors, sigmas = [], []
    for seed in range(20):
        views, x, z = made_views(True, 0.3)
        rng = np.random.default_rng(seed)
        views = [v._replace(pixels=v.pixels + rng.normal(size=v.pixels.shape) * 0.3) for v in made_views(True, 0.0)[0]]
        found = hand_eye.refine(views, True, x, z, LENS)
        errors.append(found.camera[:3, 3] - x[:3, 3])
        sigmas.append(found.sigma[:3])
    ratio = np.std(errors, axis=0) / np.mean(sigmas, axis=0)
    assert (ratio > 0.5).all() and (ratio < 1.6).all()


def test_leaving_one_out_is_what_solving_without_it_gives() -> None:
    views, _, _ = made_views(False, 0.5)
    all_of_them = hand_eye.solve(views, False, LENS)
    quick = hand_eye.leave_one_out(views, False, all_of_them)
    for left in (0, 5):
        rest = [view for i, view in enumerate(views) if i != left]
        slow = hand_eye.difference(hand_eye.solve(rest, False, LENS).camera, all_of_them.camera)
        assert quick[left] == pytest.approx(slow, rel=0.05)


def test_the_lens_is_opencvs() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform((-0.3, -0.2, 0.4), (0.3, 0.2, 1.0), (50, 3))
    matrix = np.array([[LENS.fx_px, 0, LENS.cx_px], [0, LENS.fy_px, LENS.cy_px], [0, 0, 1.0]])
    theirs, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), matrix, LENS.distortion)
    assert np.abs(LENS.project(points) - theirs[:, 0]).max() < 1e-9


@pytest.mark.skipif(not hasattr(cv2, "calibrateHandEye"), reason="OpenCV 5 leaves it out of Python")
def test_opencv_agrees() -> None:
    views, x, _ = made_views(True, 0.0)
    b = [view.board for view in views]
    turn, at = cv2.calibrateHandEye(
        [view.tcp[:3, :3] for view in views], [view.tcp[:3, 3] for view in views],
        [one[:3, :3] for one in b], [one[:3, 3] for one in b], method=cv2.CALIB_HAND_EYE_PARK,
    )  # fmt: skip
    assert np.abs(turn - x[:3, :3]).max() < 1e-6 and np.abs(at[:, 0] - x[:3, 3]).max() < 1e-6


def test_matrices_and_poses_are_the_same() -> None:
    pose = Pose(np.array([1.0, 2.0, 3.0]), quat_normalize(np.array([0.1, -0.2, 0.3, 0.4])))
    back = hand_eye.to_pose(hand_eye.to_matrix(pose))
    assert np.allclose(back.pos_m, pose.pos_m) and np.allclose(back.quat_xyzw, pose.quat_xyzw)
    assert np.allclose(hand_eye.inverse(hand_eye.to_matrix(pose)) @ hand_eye.to_matrix(pose), np.eye(4))


# ---------------------------------------------------------------------------------------------------------------------
# Boards in pictures


@pytest.mark.parametrize("facts", [CHARUCO, CHESSBOARD], ids=lambda facts: facts.kind)
@pytest.mark.parametrize("upside_down", [False, True])
def test_corners_are_found_where_they_are(facts, upside_down) -> None:
    board, rng = Board(facts), np.random.default_rng(1)
    sign = -1.0 if upside_down else 1.0
    sight = transform([-0.1 * sign, -0.07 * sign, 0.45], [0, 0, np.pi if upside_down else 0.0])
    sight = sight @ transform([0, 0, 0], [0.15, -0.2, 0.1])
    found = board.find(photographer(facts).take(sight, rng))
    expected = LENS.project(found.corners_m @ sight[:3, :3].T + sight[:3, 3])
    assert len(found.pixels) == (facts.squares[0] - 1) * (facts.squares[1] - 1)
    assert np.abs(found.pixels - expected).max() < 0.3


def test_a_picture_without_the_board_says_why() -> None:
    board = Board(CHARUCO)
    with pytest.raises(ValueError, match=r"0 of its corners found \(0 markers\), 8 are needed"):
        board.find(np.full((480, 640, 3), 200, np.uint8))
    with pytest.raises(ValueError, match="no chessboard of 7 x 4 inner corners"):
        Board(CHESSBOARD).find(np.full((480, 640, 3), 200, np.uint8))


def test_an_unknown_dictionary_names_the_nearest() -> None:
    with pytest.raises(LookupError, match="Did you mean '5X5_100'"):
        Board(rig.BoardFacts(dictionary="5X5_10"))


def test_the_lens_is_found_from_pictures() -> None:
    shots, _ = take(CHARUCO, True, 10)
    board = Board(CHARUCO)
    lens, error_px = board.find_lens([board.find(shot.picture) for shot in shots], SIZE_PX)
    assert error_px < 0.1
    rays = np.column_stack([np.random.default_rng(0).uniform(-0.25, 0.25, (100, 2)), np.ones(100)])
    assert np.abs(lens.project(rays) - LENS.project(rays)).max() < 1.5


# ---------------------------------------------------------------------------------------------------------------------
# From pictures to a camera


@pytest.mark.parametrize(("facts", "in_hand"), [(CHARUCO, True), (CHARUCO, False), (CHESSBOARD, False)])
def test_a_camera_is_found_within_a_millimetre(facts, in_hand) -> None:
    shots, camera = take(facts, in_hand, 11)
    found, outcome = found_in(examine(shots, Board(facts), "tcp" if in_hand else "base", LENS))
    off_m, off_rad = hand_eye.difference(outcome.solution.camera, camera)
    assert off_m < WITHIN_M and off_rad < WITHIN_RAD, (off_m, off_rad)
    assert found["residual"].measured["rms_px"] < 0.2 and outcome.views == 11
    assert found["camera's pose"].status == "ok"


def test_with_a_lens_that_nobody_knows_it_is_found_as_well_and_the_doubt_is_told() -> None:
    shots, camera = take(CHARUCO, True, 11)
    found, outcome = found_in(examine(shots, Board(CHARUCO), "tcp"))
    off_m, off_rad = hand_eye.difference(outcome.solution.camera, camera)
    told = found["camera's pose"].measured
    assert off_m < min(WITHIN_M, 4.0 * told["sigma_m"]) and off_rad < min(WITHIN_RAD, 4.0 * told["sigma_rad"])
    _, known = found_in(examine(shots, Board(CHARUCO), "tcp", LENS))
    assert told["sigma_m"] > 2.0 * known.solution.sigma[:3].max(), "a lens that is found adds to the doubt"


def test_a_bad_view_is_left_out_and_named() -> None:
    shots, camera = take(CHARUCO, True, 11)
    shots[4] = shots[4]._replace(tcp=Pose(shots[4].tcp.pos_m + np.array([0.01, 0, 0]), shots[4].tcp.quat_xyzw))
    shots[7] = shots[7]._replace(picture=np.zeros_like(shots[7].picture))
    found, outcome = found_in(examine(shots, Board(CHARUCO), "tcp", LENS))
    assert "0004.png" in found["views"].says and "0007.png: 0 of its corners" in found["pictures"].says
    assert outcome.views == 9 and hand_eye.difference(outcome.solution.camera, camera)[0] < WITHIN_M


def test_a_board_that_is_bent_is_left_out() -> None:
    shots, camera = take(CHARUCO, True, 9)
    y, x = np.mgrid[0:480, 0:640].astype(np.float32)
    wavy = cv2.remap(shots[2].picture, x, y + 15 * np.sin(x / 60).astype(np.float32), cv2.INTER_LINEAR)
    found, outcome = found_in(
        examine([*shots[:2], shots[2]._replace(picture=wavy), *shots[3:]], Board(CHARUCO), "tcp", LENS)
    )
    assert found["bent"].says.startswith("0002.png: no pose of the board fits") and outcome.views == 8
    assert hand_eye.difference(outcome.solution.camera, camera)[0] < WITHIN_M


def test_turning_about_one_axis_is_refused_and_says_what_to_add() -> None:
    shots, _ = take(CHARUCO, True, 9, turn=(0.0, 0.0, 1.0))
    found, outcome = found_in(examine(shots, Board(CHARUCO), "tcp", LENS))
    assert outcome is None and found["turns"].status == "fail"
    assert (
        "add views turned by 15 to 30 degrees about" in found["turns"].remedy
        and "0.0, 1.0]" not in found["turns"].remedy
    )


def test_too_few_pictures_are_refused() -> None:
    shots, _ = take(CHARUCO, True, 3)
    found, outcome = found_in(examine(shots, Board(CHARUCO), "tcp", LENS))
    assert outcome is None and "at least 8 are needed" in found["pictures"].remedy
