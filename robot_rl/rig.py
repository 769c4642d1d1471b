"""``rig.toml``: a lab's facts in one file. ``rig.example.toml`` explains each table.

    [arm]                  which arm, in which world, and any field of its driver's Config
    [bounds]               the lab's box and limits; they can only tighten a task's
    [board]                the calibration target
    [camera.NAME]          kind, and any field of that camera's Config
    [teleop]               kind, and any field of that device's Config
    [calibration.NAME]     where camera NAME is and how it draws; `robot-rl calibrate camera` writes it
    [ft]                   what the wrench still holds of payload and bias; `robot-rl calibrate payload` writes it

Whatever the file says that it cannot say is an error with file, line, table, key, value and the nearest valid name.
What ``--set`` says comes after the rig and wins.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from robot_rl import build
from robot_rl.config import check, choice, number, restore
from robot_rl.find import find, names, nearest
from robot_rl.lab import Config as LabBounds
from robot_rl.rig_file import line_of, word

C = TypeVar("C")
INF = math.inf
EXAMPLE = "rig.example.toml"


@dataclass(frozen=True)
class ArmFacts:
    name: str
    world: str = "hardware"
    settings: Mapping[str, Any] = field(default_factory=dict)
    """fields of the driver's Config, such as its address, with the types that Config has"""


@dataclass(frozen=True)
class BoardFacts:
    """The calibration target, as measured with a ruler: printers scale."""

    kind: str = choice("charuco", ("charuco", "chessboard"))
    squares: tuple[int, int] = number((7, 5), 3, 50, "columns, rows of squares, the outer ones included")
    square_m: float = number(0.03, 1e-3, 1.0, "m, side of a square")
    marker_m: float = number(0.022, 1e-3, 1.0, "m, side of a marker; charuco only")
    dictionary: str = "5X5_100"
    """of the markers, as OpenCV calls it; charuco only"""
    legacy: bool = False
    """made by OpenCV before 4.6, with a marker in the first corner; charuco only"""

    def __post_init__(self) -> None:
        check(self)
        if self.kind == "charuco" and self.marker_m >= self.square_m:
            raise ValueError(f"marker_m = {self.marker_m}: a marker is smaller than its square, {self.square_m} m")
        if self.kind == "chessboard" and sum(self.squares) % 2 == 0:
            raise ValueError(
                f"squares = {self.squares}: a chessboard that looks the same upside down has no frame; "
                "take one with an even and an odd side, or a charuco board"
            )


@dataclass(frozen=True)
class CameraPose:
    """Where a camera is and how it draws. Its frame is OpenCV's: x right, y down, z forward, origin in the lens."""

    parent: str = choice("base", ("base", "tcp"), "frame the pose is in: a camera that stands, or one in the hand")
    pos_m: tuple[float, float, float] = number((0.0, 0.0, 0.0), -100.0, 100.0, "m")
    quat_xyzw: tuple[float, float, float, float] = number((0.0, 0.0, 0.0, 1.0), -1.0, 1.0)
    width_px: int = number(640, 1, 20_000, "px of the pictures that fx .. distortion are of")
    height_px: int = number(480, 1, 20_000, "px")
    fx_px: float = number(600.0, 1.0, 1e6)
    fy_px: float = number(600.0, 1.0, 1e6)
    cx_px: float = number(320.0, -1e5, 1e5, "px; the centre of the first pixel is 0")
    cy_px: float = number(240.0, -1e5, 1e5)
    distortion: tuple[float, float, float, float, float] = number((0.0,) * 5, -1e6, 1e6, "k1, k2, p1, p2, k3")
    residual_px: float = number(0.0, 0.0, INF, "rms of the corners, one axis")
    residual_mm: float = number(0.0, 0.0, INF, "rms of the board's position, view by view")
    residual_deg: float = number(0.0, 0.0, INF, "rms of the board's orientation")
    views: int = number(0, 0, 100_000, "pictures it was found from; 0: measured otherwise")
    date: str = ""

    def __post_init__(self) -> None:
        check(self)
        if abs(math.hypot(*self.quat_xyzw) - 1.0) > 1e-4:
            raise ValueError(f"quat_xyzw = {self.quat_xyzw}: give a unit quaternion")


@dataclass(frozen=True)
class ForceTorque:
    """What the wrench reads in free air beside contact: weight the arm was not told of, and constant bias; tcp frame.
    ``controllers/payload.py`` has the signs."""

    mass_kg: float = number(0.0, -100.0, 100.0, "kg; below 0 where the arm was told too much")
    com_m: tuple[float, float, float] = number((0.0, 0.0, 0.0), -10.0, 10.0, "m, of that mass")
    force_bias_n: tuple[float, float, float] = number((0.0, 0.0, 0.0), -1e4, 1e4, "N")
    torque_bias_nm: tuple[float, float, float] = number((0.0, 0.0, 0.0), -1e4, 1e4, "Nm")
    residual_n: float = number(0.0, 0.0, INF, "rms of what it leaves unexplained")
    residual_nm: float = number(0.0, 0.0, INF)
    date: str = ""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Device:
    """A camera or teleoperation device: ``find(folder, kind).make(config)`` makes it."""

    folder: str
    kind: str
    config: Any

    def make(self) -> Any:
        return find(self.folder, self.kind).make(self.config)


@dataclass(frozen=True)
class Rig:
    arm: ArmFacts | None = None
    bounds: LabBounds = field(default_factory=LabBounds)
    board: BoardFacts = BoardFacts()
    cameras: Mapping[str, Device] = field(default_factory=dict)
    teleop: Device | None = None
    calibrations: Mapping[str, CameraPose] = field(default_factory=dict)
    ft: ForceTorque | None = None


FLAT: dict[str, type] = {"bounds": LabBounds, "board": BoardFacts, "ft": ForceTorque}
TABLES = ("arm", "teleop", "camera", "calibration", *FLAT)


def load(path: Path | None) -> Rig:
    """The rig in ``path``; an empty one for None. Raises FileNotFoundError, and ValueError or LookupError that name
    file, line, table, key, value and remedy."""
    if path is None:
        return Rig()
    if not path.is_file():
        raise FileNotFoundError(f"no rig at {path}: copy {EXAMPLE} there and put this lab's facts into it")
    text = path.read_bytes().decode(errors="replace")
    try:
        return _Reader(path, text).rig(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: no TOML: {error}") from None


def settings(rig: Rig, arm: str, world: str) -> tuple[str, ...]:
    """``("arm.address=10.0.0.2", ...)``: what the rig says about ``arm`` in ``world``; nothing about another. Put the
    settings of ``--set`` behind them."""
    if rig.arm is None or (rig.arm.name, rig.arm.world) != (arm, world):
        return ()
    fence = {name: value for name, value in vars(rig.bounds).items() if value != getattr(LabBounds, name, None)}
    said = dict(rig.arm.settings)
    takes = {part.name for part in dataclasses.fields(build.find_arm(world, arm).Config)}
    if rig.ft is not None and "ft" in takes:  # ten numbers: controllers.payload.payload_of
        said.setdefault("ft", (rig.ft.mass_kg, *rig.ft.com_m, *rig.ft.force_bias_n, *rig.ft.torque_bias_nm))
    lab = () if world in build.REMOTE else tuple(f"lab.{name}={word(value)}" for name, value in fence.items())
    return (*(f"arm.{name}={word(value)}" for name, value in said.items()), *lab)


def words(path: Path | None, arm: str, world: str, more: Sequence[str] = ()) -> tuple[str, ...]:
    """The settings of the rig at ``path`` (None: there is none), then ``more``, which win. Raises as ``load`` does, and
    ValueError for a rig of another arm."""
    rig = load(path)
    if rig.arm is not None and (rig.arm.name, rig.arm.world) != (arm, world):
        raise ValueError(
            f"{path} is about {rig.arm.name} in world {rig.arm.world}, not {arm} in {world}: "
            f"give --arm {rig.arm.name} --world {rig.arm.world}"
        )
    return (*settings(rig, arm, world), *more)


class _Reader:
    """From a parsed file to a Rig; knows where things are in the file, for its errors."""

    def __init__(self, path: Path, text: str) -> None:
        self._path, self._text = path, text

    def rig(self, tables: Mapping[str, Any]) -> Rig:
        for name, values in tables.items():
            if name not in TABLES:
                what = "table" if isinstance(values, dict) else "key"
                raise ValueError(f"{self._at((name,) if what == 'table' else (), name)}{nearest(what, name, TABLES)}")
            if not isinstance(values, dict):
                raise ValueError(
                    f"{self._at((), name)}{name} = {values!r}: it is a table; write [{name}] above its keys"
                )
        found: dict[str, Any] = {
            name: self._flat((name,), kind, tables[name]) for name, kind in FLAT.items() if name in tables
        }
        if "arm" in tables:
            found["arm"] = self._arm(tables["arm"])
        if "teleop" in tables:
            found["teleop"] = self._device(("teleop",), "hardware.teleop", tables["teleop"])
        cameras = self._named("camera", tables.get("camera", {}))
        poses = self._named("calibration", tables.get("calibration", {}))
        return Rig(
            cameras={
                name: self._device(("camera", name), "hardware.cameras", table) for name, table in cameras.items()
            },
            calibrations={name: self._flat(("calibration", name), CameraPose, table) for name, table in poses.items()},
            **found,
        )

    def _named(self, name: str, tables: Mapping[str, Any]) -> Mapping[str, dict[str, Any]]:
        for key, values in tables.items():
            if not isinstance(values, dict):
                raise ValueError(
                    f"{self._at((name,), key)}[{name}] {key} = {values!r}: give the camera a name, as in [{name}.front]"
                )
        return tables

    def _arm(self, table: Mapping[str, Any]) -> ArmFacts:
        rest = dict(table)
        name, world = rest.pop("name", None), rest.pop("world", ArmFacts.world)
        if not isinstance(name, str):
            raise ValueError(f"{self._at(('arm',), 'name')}[arm] name = {name!r}: give the arm's, such as 'ur5e'")
        if not isinstance(world, str) or world not in build.WORLDS:
            raise ValueError(f"{self._at(('arm',), 'world')}[arm] world: {nearest('world', str(world), build.WORLDS)}")
        try:
            module = build.find_arm(world, name)
        except LookupError as error:
            raise LookupError(f"{self._at(('arm',), 'name')}[arm] name: {error.args[0]}") from None
        config = self._flat(("arm",), module.Config, rest, and_also=("name", "world"))
        return ArmFacts(name, world, {key: getattr(config, key) for key in rest})

    def _device(self, table: tuple[str, ...], folder: str, values: Mapping[str, Any]) -> Device:
        rest = dict(values)
        kind = rest.pop("kind", None)
        importlib.import_module(folder)
        if kind not in names(folder):
            said = (
                nearest("kind", str(kind), names(folder))
                if "kind" in values
                else f"kind is missing: {', '.join(names(folder))}"
            )
            raise LookupError(f"{self._at(table, 'kind')}[{'.'.join(table)}] {said}")
        return Device(folder, kind, self._flat(table, find(folder, kind).Config, rest, and_also=("kind",)))

    def _flat(
        self, table: tuple[str, ...], kind: type[C], values: Mapping[str, Any], and_also: Sequence[str] = ()
    ) -> C:
        """``kind`` made of the keys of a table; their types and ranges are what it checks itself."""
        known = [part.name for part in dataclasses.fields(kind)]  # type: ignore[arg-type]
        where = f"[{'.'.join(table)}]"
        for key, value in values.items():
            if key not in known:
                said = nearest("key", key, (*known, *and_also))
                raise ValueError(f"{self._at(table, key)}{where} {key} = {value!r}: {said}")
        try:
            return restore(kind, dict(values))
        except ValueError as error:
            key = str(error).partition(" = ")[0]
            raise ValueError(f"{self._at(table, key)}{where} {error}") from None

    def _at(self, table: tuple[str, ...], key: str) -> str:
        line = line_of(self._text, table, key)
        return f"{self._path}:{line}: " if line else f"{self._path}: "
