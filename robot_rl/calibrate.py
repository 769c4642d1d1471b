"""What ``robot-rl calibrate`` has in common, and its ``payload`` and ``board``; ``camera`` is calibrate_camera.py."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robot_rl import rig as rigs
from robot_rl.arm_session import Pace, Session, confirm, connect, outside, travel, why_not
from robot_rl.config import override
from robot_rl.doctor import report
from robot_rl.files import write_atomic
from robot_rl.finding import Finding
from robot_rl.geometry import quat_multiply, quat_normalize, quat_rotate, rotvec_to_quat
from robot_rl.interrupt import Interrupted, StopSignals
from robot_rl.rig_file import put_table, table_text
from robot_rl.types import ArmState, Bounds, Pose

if TYPE_CHECKING:
    from robot_rl import cli_rig

Array = NDArray[np.float64]

PACE = Pace(speed_mps=0.05, speed_radps=0.25)
LISTEN_S = 1.0  # at every orientation
_ARRIVED_M, _ARRIVED_RAD = 0.02, 0.1  # the pose that counts is the measured one
_STILL_RADPS, _REST_S = 0.01, 10.0  # a redundant arm goes on turning its elbow for a while
_TRIES = 200  # drawn for each pose that is kept
_FORCE_RESIDUAL_N, _MASS_SHARE = 2.0, 0.05
_READINGS = "qx,qy,qz,qw,fx_n,fy_n,fz_n,tx_nm,ty_nm,tz_nm"
_HELD = "stopped; the arm is held where it is, and nothing was written"


# ---------------------------------------------------------------------------------------------------------------------
# Moving about


def viewpoints(
    around: Pose, bounds: Bounds, count: int, spread_m: float, spread_rad: float, pivot_m: float = 0.0
) -> list[Pose]:
    """``count`` poses of the tcp within ``bounds``, always the same ones: turned by up to ``spread_rad`` about all
    axes, and shifted by up to ``spread_m``. They turn about the point ``pivot_m`` ahead of the tcp, along its z.

    Raises ValueError where the bounds leave no room for so many.
    """
    rng, out = np.random.default_rng(0), []
    ahead = np.array([0.0, 0.0, pivot_m])
    pivot = around.pos_m + quat_rotate(around.quat_xyzw, ahead)
    for _ in range(_TRIES * count):
        axis = rng.normal(size=3)
        turn = rotvec_to_quat(axis / np.linalg.norm(axis) * spread_rad * rng.uniform(0.5, 1.0))
        quat = quat_normalize(quat_multiply(turn, around.quat_xyzw))
        pose = Pose(pivot - quat_rotate(quat, ahead) + rng.uniform(-spread_m, spread_m, 3), quat)
        if not outside(bounds, pose):
            out.append(pose)
        if len(out) == count:
            return out
    raise ValueError(
        f"only {len(out)} of {count} poses around the arm's are inside the bounds: begin nearer to their middle, or "
        "give a smaller --spread-m, --spread-rad or --count"
    )


@contextmanager
def moving(
    command: Any, rig: rigs.Rig, settings: Sequence[str], pivot_m: float = 0.0
) -> Iterator[tuple[Session, list[Pose], StopSignals]]:
    """A session, the poses a person has agreed to, and whether to stop. Raises RuntimeError where the arm must not
    move, ValueError where nobody agreed, and what ``connect`` raises."""
    with connect(command.task, command.arm, command.world, rig, settings, PACE) as session:
        state = session.driver.read()
        here = Pose(state.tcp_pos_m, state.tcp_quat_xyzw)
        if why := why_not(session, ()):
            raise RuntimeError(f"the arm must not move: {why}")
        poses = viewpoints(here, session.bounds, command.count, command.spread_m, command.spread_rad, pivot_m)
        far_m = max(float(np.linalg.norm(pose.pos_m - here.pos_m)) for pose in poses)
        what = (
            f"The arm will move to {len(poses)} poses, up to {100 * far_m:.0f} cm away and turned by up to "
            f"{np.degrees(command.spread_rad):.0f} degrees, at up to {100 * PACE.speed_mps:g} cm/s."
        )
        if not confirm(what, command.yes):
            raise ValueError("nobody said yes: nothing was moved")
        session.begin()
        with StopSignals(_say, "this control step, with the arm held") as stop:
            yield session, poses, stop


def go(session: Session, pose: Pose, stop: StopSignals) -> None:
    """Move there. Raises RuntimeError where the arm does not arrive, Interrupted where it was asked to stop."""
    trip = travel(session, pose, PACE, stop)
    if trip.stopped:
        raise Interrupted(_HELD, stop.signum or 2)
    if trip.fault or trip.missed_m > _ARRIVED_M or trip.missed_rad > _ARRIVED_RAD:
        why = f"a fault ({trip.fault})" if trip.fault else "something in its way, or too weak a spring?"
        raise RuntimeError(
            f"the arm did not arrive: {trip.missed_m:.3f} m and {trip.missed_rad:.3f} rad are left; {why}"
        )
    for _ in range(round(_REST_S / session.step_s)):
        if float(np.abs(listen(session, session.step_s, stop)[-1].dq_radps).max()) <= _STILL_RADPS:
            session.renew()
            return
    raise RuntimeError(f"the arm does not come to rest within {_REST_S:g} s: is something moving it?")


def listen(session: Session, seconds: float, stop: StopSignals) -> list[ArmState]:
    """What the arm measures while it holds. Raises Interrupted where it was asked to stop,
    RuntimeError in a fault."""
    out = []
    for _ in range(max(1, round(seconds / session.step_s))):
        out.append(session.arm.wait(session.step_s))
        if stop():
            session.arm.stop()
            raise Interrupted(_HELD, stop.signum or 2)
        if session.fault:
            raise RuntimeError(f"the arm is in a fault: {session.fault}")
    return out


def load_rig(path: Path) -> rigs.Rig:
    """The rig to add to; one that is not there yet is empty."""
    return rigs.load(path if path.exists() else None)


def split(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """Settings of ``board``, and all others."""
    board = [setting.removeprefix("board.") for setting in settings if setting.startswith("board.")]
    return board, [setting for setting in settings if not setting.startswith("board.")]


def write(path: Path, table: tuple[str, ...], values: Any) -> Finding:
    """Put ``values`` into the rig, and say what was written."""
    put_table(path, table, values)
    fields = {part.name: getattr(values, part.name) for part in dataclasses.fields(values)}
    return Finding("written", "ok", f"{path}:\n{table_text(table, fields)}")


def today() -> str:
    return datetime.date.today().isoformat()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# Board


def calibrate_board(command: cli_rig.CalibrateBoard) -> int:
    """``robot-rl calibrate board``: prints the file."""
    boards = importlib.import_module("hardware.cameras._board")
    rig = load_rig(command.rig)
    facts = override(rig.board, split(sum(command.set, ()))[0])
    picture = boards.Board(facts).draw(command.px_per_square)
    margin = command.px_per_square // 2  # white around it: OpenCV needs some to find it
    boards.write_picture(command.out, np.pad(picture, margin, constant_values=255))
    width_mm, height_mm = (1000.0 * facts.square_m * (count + 1) for count in facts.squares)
    _say(
        f"print it {width_mm:g} x {height_mm:g} mm, glue it to something flat, and measure its squares: board.square_m"
    )
    print(command.out)
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# Payload


def calibrate_payload(command: cli_rig.CalibratePayload) -> int:
    """``robot-rl calibrate payload``: prints findings; 1 where it refuses, and then writes nothing."""
    rig = load_rig(command.rig)
    try:
        if command.readings is not None:
            quats, wrenches = _load_readings(command.readings)
        else:
            quats, wrenches = _take_readings(command, rig)
    except Interrupted as interrupted:
        _say(str(interrupted))
        return interrupted.code
    return report(examine_payload(quats, wrenches, command.rig), command.json)


def examine_payload(quats: Sequence[Array], wrenches: Sequence[Array], path: Path) -> Iterator[Finding]:
    payloads = importlib.import_module("controllers.payload")
    try:
        fit = payloads.fit(quats, wrenches)
    except ValueError as error:
        yield Finding("readings", "fail", f"refused: {error}", "take others; nothing was written")
        return
    degrees = np.degrees(np.arcsin(min(1.0, fit.spread)))
    yield Finding("readings", "ok", f"{len(quats)} orientations, {degrees:.0f} degrees rms about the worst axis")
    found = fit.payload
    numbers = {"mass_kg": found.mass_kg, "mass_sigma_kg": fit.mass_sigma_kg, "com_sigma_m": fit.com_sigma_m}
    numbers |= {"residual_n": fit.residual_n, "residual_nm": fit.residual_nm}
    left = f"{fit.residual_n:.3f} N and {fit.residual_nm:.4f} Nm rms are not explained"
    if fit.residual_n > _FORCE_RESIDUAL_N:
        remedy = "did something touch the arm, or a cable pull? does its bias turn with the tcp? nothing was written"
        yield Finding("residual", "fail", left, remedy, numbers)
        return
    yield Finding("residual", "ok", left, measured=numbers)
    where = f"at {_mm(found.com_m)} mm" if found.com_m.any() else "too light to tell where"
    says = (
        f"{found.mass_kg:.4f} +- {fit.mass_sigma_kg:.4f} kg {where}, in the tcp's frame, besides what the arm was told"
    )
    doubtful = fit.mass_sigma_kg > max(_MASS_SHARE * abs(found.mass_kg), 0.02)
    if doubtful:
        yield Finding("weight", "warn", says, "take more readings, turned further: --count, --spread-rad")
    else:
        yield Finding("weight", "ok", says)
    force, torque = (", ".join(f"{x:.3f}" for x in part) for part in (found.force_bias_n, found.torque_bias_nm))
    yield Finding("bias", "ok", f"force ({force}) N, torque ({torque}) Nm, in the tcp's frame")
    facts = rigs.ForceTorque(
        mass_kg=found.mass_kg,
        com_m=tuple(found.com_m.tolist()),
        force_bias_n=tuple(found.force_bias_n.tolist()),
        torque_bias_nm=tuple(found.torque_bias_nm.tolist()),
        residual_n=fit.residual_n,
        residual_nm=fit.residual_nm,
        date=today(),
    )
    yield write(path, ("ft",), facts)


def _take_readings(command: cli_rig.CalibratePayload, rig: rigs.Rig) -> tuple[list[Array], list[Array]]:
    rows = []
    with moving(command, rig, sum(command.set, ())) as (session, poses, stop):
        for pose in poses:
            go(session, pose, stop)
            heard = listen(session, LISTEN_S, stop)
            rows.append(
                np.concatenate([heard[-1].tcp_quat_xyzw, np.mean([state.tcp_wrench for state in heard], axis=0)])
            )
            _say(f"reading {len(rows)} of {len(poses)}")
    if command.save is not None:
        lines = [",".join(map(repr, row.tolist())) for row in rows]
        write_atomic(command.save, "\n".join([_READINGS, *lines, ""]).encode())
    return [row[:4] for row in rows], [row[4:] for row in rows]


def _load_readings(path: Path) -> tuple[list[Array], list[Array]]:
    rows = read_csv(path, _READINGS)
    return [quat_normalize(np.array(row[:4], np.float64)) for row in rows], [
        np.array(row[4:], np.float64) for row in rows
    ]


def read_csv(path: Path, header: str) -> list[list[str]]:
    """The rows of a table with that header; raises ValueError that names the line that has another form."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: give a file with the columns {header}")
    first, *lines = path.read_text().splitlines() or [""]
    if first.strip() != header:
        raise ValueError(f"{path}:1: '{first.strip()}': the columns have to be {header}")
    rows = [line.split(",") for line in lines if line.strip()]
    for number, row in enumerate(rows, start=2):
        if len(row) != header.count(",") + 1:
            raise ValueError(f"{path}:{number}: {len(row)} columns: there have to be {header.count(',') + 1}, {header}")
    return rows


def _mm(vector: Array) -> str:
    return f"({', '.join(f'{1000 * x:.1f}' for x in vector)})"
