"""``robot-rl calibrate camera``: where a camera is, from pictures of a board in several poses of the arm."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robot_rl import rig as rigs
from robot_rl.arm_session import Session
from robot_rl.calibrate import go, listen, load_rig, moving, read_csv, split, today, write
from robot_rl.config import override
from robot_rl.doctor import report
from robot_rl.files import write_atomic
from robot_rl.find import nearest
from robot_rl.finding import Finding, Status
from robot_rl.geometry import quat_normalize
from robot_rl.interrupt import Interrupted, StopSignals
from robot_rl.types import Pose

if TYPE_CHECKING:
    from robot_rl import cli_rig

Array = NDArray[np.float64]

VIEWS = "views.csv"
LEAST_VIEWS = 8
_HEADER = "picture,x_m,y_m,z_m,qx,qy,qz,qw"
_PICTURE_S = 5.0  # longest wait for a picture of the arm at rest
_LEAST_TURN_RAD = 0.08  # rms about the second of three axes
_OUTLIER, _OUTLIER_PX = 3.0, 0.5  # times the median error of a view, and at least
_GOOD_PX, _WORST_PX = 1.0, 3.0
_WORST_M, _WORST_RAD = 0.003, 0.01  # standard deviation of the camera's pose, and its move when a view is left out


class Shot(NamedTuple):
    name: str
    tcp: Pose  # in the base frame
    picture: np.ndarray  # uint8 (H, W, 3) RGB


class Outcome(NamedTuple):
    """What the pictures say; ``solution`` as in controllers/hand_eye.py."""

    solution: Any
    size_px: tuple[int, int]
    residual_px: float
    residual_m: float
    residual_rad: float
    views: int


def calibrate_camera(command: cli_rig.CalibrateCamera) -> int:
    """Prints findings; 1 where it refuses, and then writes nothing."""
    rig = load_rig(command.rig)
    ours, settings = split(sum(command.set, ()))
    boards = importlib.import_module("hardware.cameras._board")
    board = boards.Board(override(rig.board, ours))
    facts = rig.calibrations.get(command.camera) if command.lens == "rig" else None
    if command.lens == "rig" and facts is None:
        raise LookupError(f"--lens rig: {command.rig} has no [calibration.{command.camera}]; leave --lens out")
    known = None if facts is None else _lens(facts)
    try:
        if command.views is not None:
            shots = load_shots(command.views)
        else:
            shots, told = _take_shots(command, rig, settings)
            known = told if known is None and command.lens == "camera" else known
    except Interrupted as interrupted:
        _say(str(interrupted))
        return interrupted.code
    if facts is not None and any(shot.picture.shape[:2] != (facts.height_px, facts.width_px) for shot in shots):
        raise ValueError(
            f"--lens rig: that of [calibration.{command.camera}] is of pictures of {facts.width_px} x "
            f"{facts.height_px} px, these have another size; leave --lens out"
        )
    findings = examine(shots, board, command.mount, known)
    return report(_written(findings, command), command.json)


def _written(findings: Iterator[Finding | Outcome], command: cli_rig.CalibrateCamera) -> Iterator[Finding]:
    """The findings; at the end of good ones the rig is written."""
    failed, outcome = False, None
    for found in findings:
        if isinstance(found, Outcome):
            outcome = found
            continue
        failed |= found.status == "fail"
        yield found
    if outcome is None or failed:
        yield Finding("written", "note", f"nothing: {command.rig} is as it was")
        return
    yield write(command.rig, ("calibration", command.camera), to_facts(outcome, command.mount))


def to_facts(outcome: Outcome, mount: str) -> rigs.CameraPose:
    hand_eye = importlib.import_module("controllers.hand_eye")
    pose, lens = hand_eye.to_pose(outcome.solution.camera), outcome.solution.lens
    return rigs.CameraPose(
        parent=mount,
        pos_m=tuple(pose.pos_m.tolist()),
        quat_xyzw=tuple(pose.quat_xyzw.tolist()),
        width_px=outcome.size_px[0],
        height_px=outcome.size_px[1],
        fx_px=float(lens.fx_px),
        fy_px=float(lens.fy_px),
        cx_px=float(lens.cx_px),
        cy_px=float(lens.cy_px),
        distortion=tuple(lens.distortion.tolist()),
        residual_px=outcome.residual_px,
        residual_mm=1000.0 * outcome.residual_m,
        residual_deg=float(np.degrees(outcome.residual_rad)),
        views=outcome.views,
        date=today(),
    )


# ---------------------------------------------------------------------------------------------------------------------
# From pictures to a pose


def examine(shots: Sequence[Shot], board: Any, mount: str, lens: Any = None) -> Iterator[Finding | Outcome]:
    """What is found on the way, and the outcome where there is one. ``mount``: tcp or base, the camera's parent frame;
    ``lens``: None to find it from the same pictures."""
    found, corners, refused = [], [], []
    for shot in shots:
        try:
            corners.append(board.find(shot.picture))
            found.append(shot)
        except ValueError as error:
            refused.append(f"{shot.name}: {error}")
    says = f"{len(found)} of {len(shots)} show the board" + "".join(f"\n{text}" for text in refused)
    if len(found) < LEAST_VIEWS:
        remedy = (
            f"at least {LEAST_VIEWS} are needed: all of the board in the picture, sharp, well lit; is [board] right?"
        )
        yield Finding("pictures", "fail", says, remedy)
        return
    yield Finding("pictures", "note" if refused else "ok", says, measured={"views": len(found)})
    size_px = found[0].picture.shape[1], found[0].picture.shape[0]
    if any(shot.picture.shape != found[0].picture.shape for shot in found):
        raise ValueError("the pictures have different sizes: take them anew, with one camera")
    free_lens = lens is None
    if free_lens:
        lens, error_px = board.find_lens(corners, size_px)
        yield _found_lens(lens, error_px)
    else:
        yield Finding("lens", "ok", f"as given: {_describe(lens)}")
    views, names, bent = [], [], []
    for one, shot in zip(corners, found, strict=True):
        try:
            views.append(board.view(one, shot.tcp, lens))
            names.append(shot.name)
        except ValueError as error:
            bent.append(f"{shot.name}: {error}")
    if bent:
        status: Status = "warn" if len(views) >= LEAST_VIEWS else "fail"
        yield Finding("bent", status, "\n".join(bent), "glue the board to something flat; is the lens right?")
    if len(views) >= LEAST_VIEWS:
        yield from _solve(views, names, mount == "tcp", lens, free_lens, size_px)


def _found_lens(lens: Any, error_px: float) -> Finding:
    says = f"found from the pictures, {error_px:.3f} px rms: {_describe(lens)}"
    if error_px < _GOOD_PX:
        return Finding("lens", "ok", says, measured={"error_px": error_px})
    remedy = "is the board flat, and [board] right? fill the pictures with it"
    return Finding("lens", "warn", says, remedy, {"error_px": error_px})


def _solve(
    views: list[Any], names: list[str], in_hand: bool, lens: Any, free_lens: bool, size_px: tuple[int, int]
) -> Iterator[Finding | Outcome]:
    hand_eye = importlib.import_module("controllers.hand_eye")
    sizes, axes = hand_eye.turns(views)
    degrees = " / ".join(f"{value:.1f}" for value in np.degrees(sizes))
    if sizes[1] < _LEAST_TURN_RAD:
        about = " and ".join(str(np.round(axis, 1).tolist()) for axis in axes[1:])
        remedy = f"add views turned by 15 to 30 degrees about {about} of the tcp's frame"
        yield Finding("turns", "fail", f"the arm was turned about one axis at most: {degrees} degrees rms", remedy)
        return
    yield Finding("turns", "ok", f"{degrees} degrees rms about three axes", measured={"second_rad": float(sizes[1])})
    try:
        views, solution, dropped = _without_outliers(hand_eye, views, names, in_hand, lens, free_lens)
    except ArithmeticError as error:
        yield Finding("solution", "fail", str(error), "take other views; nothing was written")
        return
    if dropped:
        remedy = "did the arm move or the board slip while it was taken?"
        yield Finding("views", "warn", f"left out, for they do not fit the others: {', '.join(dropped)}", remedy)
    away_px = hand_eye.rms(np.concatenate(hand_eye.residuals(views, in_hand, *solution[:3])))
    apart = np.sqrt(np.mean(hand_eye.pose_residuals(views, in_hand, solution) ** 2, axis=0))
    numbers = {"rms_px": away_px, "rms_m": float(apart[0]), "rms_rad": float(apart[1])}
    says = (
        f"{away_px:.3f} px rms; the board {1000 * apart[0]:.2f} mm and {np.degrees(apart[1]):.3f} degrees rms, view by "
        "view"
    )
    remedy = "was all of it at rest? is the arm's own tcp right? does the board sit firmly?"
    status: Status = "ok" if away_px < _GOOD_PX else "warn" if away_px < _WORST_PX else "fail"
    yield Finding("residual", status, says, "" if status == "ok" else remedy, numbers)
    yield _methods(hand_eye, views, in_hand, solution)
    yield _certainty(hand_eye, views, in_hand, solution, free_lens)
    yield Outcome(solution, size_px, away_px, float(apart[0]), float(apart[1]), len(views))


def _without_outliers(
    hand_eye: Any, views: list[Any], names: list[str], in_hand: bool, lens: Any, free_lens: bool
) -> tuple[list[Any], Any, list[str]]:
    """The views that fit together, the solution of them, and the names of those left out, one at a time. Raises
    ArithmeticError where too few are left."""
    views, names = list(views), list(names)
    dropped: list[str] = []
    while True:
        solution = hand_eye.solve(views, in_hand, lens, free_lens)
        errors = [hand_eye.rms(part) for part in hand_eye.residuals(views, in_hand, *solution[:3])]
        worst = int(np.argmax(errors))
        if errors[worst] <= max(_OUTLIER * float(np.median(errors)), _OUTLIER_PX):
            return views, solution, dropped
        if len(views) - 1 < LEAST_VIEWS:
            raise ArithmeticError(f"the views do not fit together: {', '.join([*dropped, names[worst]])} fit least")
        dropped.append(names.pop(worst))
        views.pop(worst)


def _methods(hand_eye: Any, views: list[Any], in_hand: bool, solution: Any) -> Finding:
    """How far two closed forms, which know nothing of pixels, are from the solution."""
    a, b = hand_eye.arm_side(views, in_hand), np.stack([view.board for view in views])
    parts = []
    for name, method in (("Park and Martin", hand_eye.park_martin), ("Shah", hand_eye.shah)):
        off_m, off_rad = hand_eye.difference(method(a, b)[0], solution.camera)
        parts.append(f"{name} {1000 * off_m:.2f} mm, {np.degrees(off_rad):.3f} degrees")
    return Finding("closed forms", "note", f"from the solution: {'; '.join(parts)}")


def _certainty(hand_eye: Any, views: list[Any], in_hand: bool, solution: Any, free_lens: bool) -> Finding:
    sigma_m, sigma_rad = float(solution.sigma[:3].max()), float(solution.sigma[3:].max())
    moved_m, moved_rad = (
        float(value) for value in hand_eye.leave_one_out(views, in_hand, solution, free_lens).max(axis=0)
    )
    numbers = {"sigma_m": sigma_m, "sigma_rad": sigma_rad, "moved_m": moved_m, "moved_rad": moved_rad}
    says = (
        f"+- {1000 * sigma_m:.2f} mm, {np.degrees(sigma_rad):.3f} degrees along the worst axis; without any one view "
        f"it moves by up to {1000 * moved_m:.2f} mm, {np.degrees(moved_rad):.3f} degrees"
    )
    if max(sigma_m, moved_m) <= _WORST_M and max(sigma_rad, moved_rad) <= _WORST_RAD:
        return Finding("camera's pose", "ok", says, measured=numbers)
    remedy = "take more views, turned further about all axes, with the board larger in the picture; nothing was written"
    return Finding("camera's pose", "fail", says, remedy, numbers)


def _describe(lens: Any) -> str:
    fx, fy, cx, cy = lens[:4]
    return f"fx {fx:.1f}, fy {fy:.1f}, cx {cx:.1f}, cy {cy:.1f} px, distortion {np.round(lens.distortion, 4).tolist()}"


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def _take_shots(command: cli_rig.CalibrateCamera, rig: rigs.Rig, settings: Sequence[str]) -> tuple[list[Shot], Any]:
    """Pictures from poses around the arm's, and the lens that the camera knows, or None."""
    if command.camera not in rig.cameras:
        raise LookupError(f"{command.rig}: [camera.NAME]: {nearest('camera', command.camera, rig.cameras)}")
    camera = rig.cameras[command.camera].make()
    try:
        shots: list[Shot] = []
        with moving(command, rig, settings, command.pivot_m) as (session, poses, stop):
            for pose in poses:
                go(session, pose, stop)
                shots.append(_shoot(session, camera, f"{len(shots):04d}.png", stop))
                _say(f"picture {len(shots)} of {len(poses)}")
        told = getattr(camera, "intrinsics", None)
    finally:
        camera.close()
    if command.save is not None:
        save_shots(command.save, shots)
    return shots, None if told is None else _lens(told)


def _shoot(session: Session, camera: Any, name: str, stop: StopSignals) -> Shot:
    """A picture that was taken after the arm had come to rest."""
    begun_s = time.monotonic()
    while True:
        states = listen(session, 2 * session.step_s, stop)
        waited_s = time.monotonic() - begun_s
        if camera.age_s < waited_s:
            picture, _ = camera.read()
            mean_m = np.mean([state.tcp_pos_m for state in states], axis=0)
            return Shot(name, Pose(mean_m, states[-1].tcp_quat_xyzw), picture)
        if waited_s > _PICTURE_S:
            raise TimeoutError(f"no new picture for {_PICTURE_S:g} s: does the camera run?")


def save_shots(folder: Path, shots: Sequence[Shot]) -> None:
    """One PNG a shot, and ``views.csv`` with the tcp's poses. Raises FileExistsError for a folder that has one."""
    boards = importlib.import_module("hardware.cameras._board")
    if (folder / VIEWS).exists():
        raise FileExistsError(f"{folder / VIEWS} exists: give another folder to --save")
    folder.mkdir(parents=True, exist_ok=True)
    rows = [_HEADER]
    for shot in shots:
        boards.write_picture(folder / shot.name, shot.picture)
        rows.append(",".join([shot.name, *(repr(float(x)) for x in (*shot.tcp.pos_m, *shot.tcp.quat_xyzw))]))
    write_atomic(folder / VIEWS, ("\n".join(rows) + "\n").encode())


def load_shots(folder: Path) -> list[Shot]:
    """Raises FileNotFoundError, and ValueError that names the line, for what is not as ``save_shots`` writes it."""
    boards = importlib.import_module("hardware.cameras._board")
    out = []
    for number, (name, *words) in enumerate(read_csv(folder / VIEWS, _HEADER), start=2):
        try:
            numbers = np.array([float(word) for word in words])
        except ValueError:
            raise ValueError(f"{folder / VIEWS}:{number}: {','.join(words)}: give seven numbers") from None
        pose = Pose(numbers[:3], quat_normalize(numbers[3:]))
        out.append(Shot(name, pose, boards.read_picture(folder / name)))
    return out


def _lens(facts: Any) -> Any:
    """``hand_eye.Lens`` of whatever has its fields."""
    five = np.zeros(5)
    five[: len(facts.distortion)] = facts.distortion
    hand_eye = importlib.import_module("controllers.hand_eye")
    return hand_eye.Lens(facts.fx_px, facts.fy_px, facts.cx_px, facts.cy_px, five)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
