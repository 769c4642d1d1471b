"""robot-rl calibrate on a twin: cameras and payloads against ground truth, and what is refused."""

import io
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controllers import hand_eye, payload
from robot_rl import build, rig
from robot_rl.calibrate import viewpoints
from robot_rl.calibrate_camera import load_shots, save_shots
from robot_rl.cli_rig import CalibrateBoard, CalibrateCamera, CalibratePayload
from robot_rl.geometry import quat_multiply, rotvec_to_quat
from robot_rl.lab import Config as LabBounds
from robot_rl.lab import tighten
from robot_rl.types import Pose

cv2 = pytest.importorskip("cv2")

from hardware.cameras._board import Board, read_picture, write_picture  # noqa: E402
from tests.boards import LENS, SIZE_PX, photographer  # noqa: E402
from tests.calibrations import (  # noqa: E402
    BOUNDS,
    CHARUCO,
    TOOL_DOWN,
    WITHIN_M,
    WITHIN_RAD,
    off,
    scene,
    sight_of,
    take,
)

# ---------------------------------------------------------------------------------------------------------------------
# The commands, on a twin


class TwinCamera:
    """What stands around a twin, or sits in its hand, sees: a board, through a real lens."""

    def __init__(self, twin, in_hand: bool) -> None:
        self._twin, self._in_hand = twin, in_hand
        state = twin.read()
        self.x, self._z = scene(in_hand, Pose(state.tcp_pos_m, state.tcp_quat_xyzw))
        self._rng = np.random.default_rng(0)
        self.age_s, self.closed = 0.0, False
        self.intrinsics = rig.CameraPose(
            fx_px=LENS.fx_px, fy_px=LENS.fy_px, cx_px=LENS.cx_px, cy_px=LENS.cy_px, distortion=tuple(LENS.distortion)
        )

    def read(self):
        state = self._twin.read()
        assert np.abs(state.dq_radps).max() < 0.01, "a picture of an arm that moves"
        tcp = Pose(state.tcp_pos_m, state.tcp_quat_xyzw)
        return photographer(CHARUCO).take(sight_of(tcp, self._in_hand, self.x, self._z), self._rng), state.t_s

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def twins(monkeypatch):
    """The twins that a command makes, the newest last."""
    made, make_arm = [], build.make_arm

    def remember(*args):
        made.append(make_arm(*args))
        return made[-1]

    monkeypatch.setattr(build, "make_arm", remember)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return made


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "rig.toml"
    path.write_text('# ours\n[arm]\nname = "panda"\nworld = "sim"\n\n[ft]  # by hand\nmass_kg = 9.0\n')
    return path


def run(command, capsys) -> tuple[int, dict[str, dict]]:
    status = command.execute()
    said = json.loads(capsys.readouterr().out)
    return status, {finding["name"]: finding for finding in said["findings"]}


@pytest.mark.parametrize("mount", ["tcp", "base"])
def test_calibrate_camera_on_a_twin(twins, path, tmp_path, monkeypatch, capsys, mount) -> None:
    cameras: list[TwinCamera] = []

    class Lazy:
        """Made before the twin is."""

        age_s, intrinsics = 0.0, None

        def read(self):
            if not cameras:
                cameras.append(TwinCamera(twins[-1], mount == "tcp"))
                self.intrinsics = cameras[0].intrinsics
            return cameras[0].read()

        def close(self) -> None:
            cameras[0].close()

    device = rig.Device("hardware.cameras", "made up", None)
    monkeypatch.setattr(rig.Device, "make", lambda self: Lazy())
    load = rig.load
    monkeypatch.setattr(rig, "load", lambda p: rig.dataclasses.replace(load(p), cameras={"eye": device}))
    command = CalibrateCamera(
        "eye", mount, path, count=9, pivot_m=0.4 if mount == "tcp" else 0.0, spread_rad=0.25, save=tmp_path / "views",
        yes=True, json=True,
    )  # fmt: skip
    status, found = run(command, capsys)
    assert status == 0, found
    written = load(path).calibrations["eye"]
    assert written.parent == mount and written.views == 9 and (written.width_px, written.height_px) == SIZE_PX
    off_m, off_rad = off(written, cameras[0].x)
    assert off_m < WITHIN_M and off_rad < WITHIN_RAD, (off_m, off_rad)
    assert cameras[0].closed and "# ours" in path.read_text() and "[calibration.eye]" in found["written"]["says"]
    # The pictures that were kept give the same again, with the lens that is now in the rig.
    again = CalibrateCamera("eye", mount, path, lens="rig", views=tmp_path / "views", json=True)
    assert run(again, capsys)[0] == 0
    assert np.allclose(load(path).calibrations["eye"].pos_m, written.pos_m, atol=1e-6)


def test_a_camera_that_the_rig_does_not_have_is_refused(path) -> None:
    with pytest.raises(LookupError, match="unknown camera 'eye'"):
        CalibrateCamera("eye", "tcp", path, yes=True).execute()


def test_pictures_that_do_not_fit_the_arms_poses_are_refused(path, tmp_path, capsys) -> None:
    before, rng = path.read_text(), np.random.default_rng(0)
    shots = [
        shot._replace(tcp=Pose(shot.tcp.pos_m + rng.normal(size=3) * 0.008, shot.tcp.quat_xyzw))
        for shot in take(CHARUCO, True, 9)[0]
    ]
    save_shots(tmp_path / "views", shots)
    status, found = run(CalibrateCamera("eye", "tcp", path, views=tmp_path / "views", json=True), capsys)
    assert found["residual"]["status"] == found["camera's pose"]["status"] == "fail", "there is a solution, a bad one"
    assert status == 1 and found["written"]["says"].startswith("nothing") and path.read_text() == before


def test_a_lens_of_other_pictures_is_refused(path, tmp_path) -> None:
    path.write_text("[calibration.eye]\nwidth_px = 320\nheight_px = 240\n")
    save_shots(tmp_path / "views", take(CHARUCO, True, 2)[0])
    with pytest.raises(ValueError, match="of pictures of 320 x 240 px"):
        CalibrateCamera("eye", "tcp", path, lens="rig", views=tmp_path / "views").execute()
    with pytest.raises(LookupError, match=r"has no \[calibration.other\]"):
        CalibrateCamera("other", "tcp", path, lens="rig", views=tmp_path / "views").execute()


def test_refused_pictures_leave_the_rig_as_it_was(path, tmp_path, capsys) -> None:
    before = path.read_text()
    save_shots(tmp_path / "views", take(CHARUCO, True, 9, turn=(0.0, 0.0, 1.0))[0])
    status, found = run(CalibrateCamera("eye", "tcp", path, views=tmp_path / "views", json=True), capsys)
    assert status == 1 and found["written"]["says"].startswith("nothing") and path.read_text() == before


def test_shots_are_kept_and_read_again(tmp_path) -> None:
    shots, _ = take(CHARUCO, True, 2)
    save_shots(tmp_path / "views", shots)
    for one, other in zip(shots, load_shots(tmp_path / "views"), strict=True):
        assert one.name == other.name and (one.picture == other.picture).all()
        assert np.allclose(one.tcp.pos_m, other.tcp.pos_m, atol=0) and np.allclose(
            one.tcp.quat_xyzw, other.tcp.quat_xyzw
        )
    with pytest.raises(FileExistsError, match="give another folder"):
        save_shots(tmp_path / "views", shots)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("picture\n", "views.csv:1: 'picture': the columns have to be"),
        ("picture,x_m,y_m,z_m,qx,qy,qz,qw\na.png,1,2\n", "views.csv:2: 3 columns"),
        ("picture,x_m,y_m,z_m,qx,qy,qz,qw\na.png,1,2,3,0,0,0,x\n", "views.csv:2: 1,2,3,0,0,0,x: give seven numbers"),
        ("picture,x_m,y_m,z_m,qx,qy,qz,qw\na.png,1,2,3,0,0,0,1\n", "a.png: no picture"),
    ],
)
def test_a_damaged_folder_names_the_line(tmp_path, lines, says) -> None:
    (tmp_path / "views.csv").write_text(lines)
    with pytest.raises(ValueError, match=says):
        load_shots(tmp_path)


def test_the_board_is_drawn_as_it_is_found(tmp_path, capsys) -> None:
    out = tmp_path / "board.png"
    assert CalibrateBoard(out, tmp_path / "none.toml", 60, set=(("board.squares=9,6",),)).execute() == 0
    picture = read_picture(out)
    assert picture.shape == (7 * 60, 10 * 60, 3)
    assert len(Board(rig.BoardFacts(squares=(9, 6))).find(picture).pixels) == 8 * 5
    with pytest.raises(OSError, match="cannot be written"):
        write_picture(tmp_path / "no" / "board.png", picture)


# ---------------------------------------------------------------------------------------------------------------------
# Payload

TRUE = payload.Payload(
    1.35, np.array([0.012, -0.025, 0.061]), np.array([1.5, -2.0, 0.7]), np.array([0.12, -0.08, 0.03])
)


def orientations(count: int, spread_rad: float = 0.5) -> list[np.ndarray]:
    around = Pose(np.array([0.5, 0, 0.25]), TOOL_DOWN)
    return [pose.quat_xyzw for pose in viewpoints(around, BOUNDS, count, 0.0, spread_rad)]


def near(found: payload.Payload, share: float) -> None:
    assert found.mass_kg == pytest.approx(TRUE.mass_kg, rel=share)
    for name in ("com_m", "force_bias_n", "torque_bias_nm"):
        true = getattr(TRUE, name)
        assert np.abs(getattr(found, name) - true).max() <= share * np.linalg.norm(true), name


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_any_payload_is_found_exactly_without_noise(seed) -> None:
    rng = np.random.default_rng(seed)
    true = payload.Payload(
        rng.uniform(-2.0, 5.0) or 1.0, *rng.uniform(-0.1, 0.1, (1, 3)), *rng.uniform(-9.0, 9.0, (2, 3))
    )
    quats = orientations(8)
    fit = payload.fit(quats, [true.wrench(quat) for quat in quats])
    again = [fit.payload.wrench(quat) - true.wrench(quat) for quat in orientations(20, 0.3)]
    assert np.abs(again).max() < 1e-9 and fit.residual_n < 1e-9
    assert fit.payload.mass_kg == pytest.approx(true.mass_kg, abs=1e-9)


def test_noise_is_averaged_to_a_percent() -> None:
    rng = np.random.default_rng(0)
    quats = orientations(12)
    noise = np.array([0.3] * 3 + [0.02] * 3) / np.sqrt(1000.0)  # a second at 1 kHz
    fit = payload.fit(quats, [TRUE.wrench(quat) + rng.normal(size=6) * noise for quat in quats])
    near(fit.payload, 0.01)
    assert abs(fit.payload.mass_kg - TRUE.mass_kg) < 4.0 * fit.mass_sigma_kg
    assert np.abs(fit.payload.com_m - TRUE.com_m).max() < 4.0 * fit.com_sigma_m


def test_signs_are_those_of_a_weight_that_hangs() -> None:
    hanging = payload.Payload(1.0, np.array([0.1, 0.0, 0.0]), np.zeros(3), np.zeros(3))
    wrench = hanging.wrench(np.array([0.0, 0.0, 0.0, 1.0]))  # tcp frame and base frame are one
    assert wrench == pytest.approx([0, 0, -9.81, 0, 0.981, 0])  # r x F = (0.1, 0, 0) x (0, 0, -9.81)


def test_too_few_and_too_little_turned_are_refused() -> None:
    quats = orientations(8)
    with pytest.raises(ValueError, match="5 readings: at least 6"):
        payload.fit(quats[:5], [TRUE.wrench(quat) for quat in quats[:5]])
    still = orientations(8, 0.05)
    with pytest.raises(ValueError, match="turned too little to tell weight"):
        payload.fit(still, [TRUE.wrench(quat) for quat in still])
    one_axis = [
        quat_multiply(rotvec_to_quat(np.array([angle, 0, 0])), TOOL_DOWN) for angle in np.linspace(-0.5, 0.5, 8)
    ]
    with pytest.raises(ValueError, match="about two axes across gravity"):
        payload.fit(one_axis, [TRUE.wrench(quat) for quat in one_axis])


@pytest.fixture
def loaded(twins, monkeypatch):
    """A twin whose wrench holds a payload, bias and noise besides what touches it."""
    from dataclasses import replace

    from sim._twin import Twin

    rng, wait_guarded = np.random.default_rng(0), Twin.wait_guarded

    def wait(self, *args):
        state = wait_guarded(self, *args)
        noise = rng.normal(size=6) * np.array([0.1] * 3 + [0.005] * 3)
        return replace(state, tcp_wrench=state.tcp_wrench + TRUE.wrench(state.tcp_quat_xyzw) + noise)

    monkeypatch.setattr(Twin, "wait_guarded", wait)
    return twins


def test_calibrate_payload_on_a_twin(loaded, path, tmp_path, capsys) -> None:
    keep = tmp_path / "readings.csv"
    status, found = run(CalibratePayload(path, save=keep, yes=True, json=True), capsys)
    assert status == 0, found
    written = rig.load(path).ft
    near(payload.payload_of((written.mass_kg, *written.com_m, *written.force_bias_n, *written.torque_bias_nm)), 0.01)
    assert "# by hand" not in path.read_text().split("[ft]")[0] and "# ours" in path.read_text()
    assert run(CalibratePayload(path, readings=keep, json=True), capsys)[0] == 0
    again = rig.load(path).ft
    assert again.mass_kg == pytest.approx(written.mass_kg) and again.com_m == pytest.approx(written.com_m)


def test_a_touch_is_noticed(path, tmp_path, capsys) -> None:
    quats = orientations(8)
    rows = [np.concatenate([quat, TRUE.wrench(quat)]) for quat in quats]
    rows[3][4:7] += [0.0, 15.0, 0.0]
    (tmp_path / "r.csv").write_text(
        "\n".join(["qx,qy,qz,qw,fx_n,fy_n,fz_n,tx_nm,ty_nm,tz_nm", *(",".join(map(str, row)) for row in rows)])
    )
    before = path.read_text()
    status, found = run(CalibratePayload(path, readings=tmp_path / "r.csv", json=True), capsys)
    assert status == 1 and "did something touch" in found["residual"]["remedy"] and path.read_text() == before


def test_nothing_moves_without_a_person(twins, path) -> None:
    with pytest.raises(RuntimeError, match="needs a person at a terminal"):
        CalibratePayload(path).execute()
    assert twins[-1].read().t_s == 0.0


def test_ctrl_c_ends_a_calibration_and_writes_nothing(loaded, path, monkeypatch, capsys) -> None:
    from sim._twin import Twin

    count, wait_guarded = [0], Twin.wait_guarded

    def wait(self, *args):
        count[0] += 1
        if count[0] == 100:
            os.kill(os.getpid(), signal.SIGINT)
        return wait_guarded(self, *args)

    monkeypatch.setattr(Twin, "wait_guarded", wait)
    before = path.read_text()
    assert CalibratePayload(path, yes=True).execute() == 130
    assert path.read_text() == before and "arm is held" in capsys.readouterr().err and count[0] < 110


# ---------------------------------------------------------------------------------------------------------------------
# Where it goes


def test_viewpoints_are_inside_turn_about_their_pivot_and_are_always_the_same() -> None:
    around = Pose(np.array([0.5, 0.0, 0.25]), TOOL_DOWN)
    poses = viewpoints(around, BOUNDS, 10, 0.0, 0.3, pivot_m=0.2)
    for pose, again in zip(poses, viewpoints(around, BOUNDS, 10, 0.0, 0.3, pivot_m=0.2), strict=True):
        pivot = hand_eye.to_matrix(pose) @ np.array([0.0, 0.0, 0.2, 1.0])
        assert pivot[:3] == pytest.approx([0.5, 0.0, 0.05])
        assert (pose.pos_m == again.pos_m).all() and (np.array(BOUNDS.box_lower_m) <= pose.pos_m).all()


def test_bounds_without_room_say_so() -> None:
    tight = tighten(BOUNDS, LabBounds(box_rot_rad=(0.01, 0.01, 0.01)))
    with pytest.raises(ValueError, match=r"only 0 of 6 poses .* --spread-rad"):
        viewpoints(Pose(np.array([0.5, 0.0, 0.25]), TOOL_DOWN), tight, 6, 0.0, 0.5)
