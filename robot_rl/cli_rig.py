"""The commands of ``cli.py`` about a lab's own hardware: checking an arm, and calibrating what is around it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg, subcommand

from robot_rl.cli_ros import Settings

ByRig = arg(metavar="NAME", help_behavior_hint="(default: the rig's)")


@dataclass(frozen=True)
class Arm:
    """Connect to an arm, say what it is and how well it is heard, and, once a person has said yes, move it 1 cm up and
    back. Status 1 if something failed."""

    action: Positional[Literal["check"]]
    arm: Annotated[str, ByRig] = ""
    world: Annotated[str, ByRig] = ""
    """sim, ros, crisp or hardware"""
    rig: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """facts of this lab, such as rig.toml"""
    task: str = "reach"
    """whose scene and bounds it is checked in"""
    seconds: float = 3.0
    """to listen for, before anything moves"""
    yes: bool = False
    """a person watches the arm: do not ask"""
    look_only: bool = False
    """do not move"""
    json: bool = False
    """print one JSON object"""
    set: Settings = ()
    """settings of task, arm, guard and energy, such as arm.address=192.168.1.2; they win over the rig's"""

    def execute(self) -> int:
        from robot_rl.arm_check import arm_check

        return arm_check(self)


@dataclass(frozen=True)
class CalibrateCamera:
    """Find where a camera is from pictures of a board: one that stands (--mount base, the board is in the gripper), or
    one in the hand (--mount tcp, the board stands). The arm moves around where it is, once a person has said yes."""

    camera: Positional[str]
    """name of the rig's [camera.NAME]; the result is its [calibration.NAME]"""
    mount: Literal["base", "tcp"]
    """the frame that the camera does not move in"""
    rig: Path = Path("rig.toml")
    """read, and written; its [board] describes the board"""
    arm: Annotated[str, ByRig] = ""
    world: Annotated[str, ByRig] = ""
    task: str = "reach"
    """whose bounds the arm stays in"""
    count: int = 20
    """pictures"""
    spread_rad: float = 0.35
    """how far the arm turns"""
    spread_m: float = 0.03
    """how far it shifts besides, per axis"""
    pivot_m: float = 0.0
    """m ahead of the tcp: what it turns about; the board's distance keeps it in the view of a camera in the hand"""
    lens: Literal["camera", "pictures", "rig"] = "camera"
    """whose intrinsics: what the camera knows, or else the pictures; the pictures; those in the rig"""
    views: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """instead of moving: pictures and views.csv that --save has written"""
    save: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """keep the pictures"""
    yes: bool = False
    """a person watches the arm: do not ask"""
    json: bool = False
    """print one JSON object"""
    set: Settings = ()
    """settings of task, arm, guard, energy and board; they win over the rig's"""

    def execute(self) -> int:
        from robot_rl.calibrate_camera import calibrate_camera

        return calibrate_camera(self)


@dataclass(frozen=True)
class CalibratePayload:
    """Find the weight that an arm was not told of, and the bias of its force sensor, from the wrench that it measures
    in free air, held in several orientations. The result is the rig's [ft]."""

    rig: Path = Path("rig.toml")
    """read, and written"""
    arm: Annotated[str, ByRig] = ""
    world: Annotated[str, ByRig] = ""
    task: str = "reach"
    """whose bounds the arm stays in"""
    count: int = 12
    """orientations, at least 6"""
    spread_rad: float = 0.5
    """how far the arm turns"""
    spread_m: float = 0.0
    """how far it shifts besides, per axis"""
    readings: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """instead of moving: a CSV file that --save has written"""
    save: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """keep the readings"""
    yes: bool = False
    """a person watches the arm: do not ask"""
    json: bool = False
    """print one JSON object"""
    set: Settings = ()
    """settings of task, arm, guard and energy; they win over the rig's"""

    def execute(self) -> int:
        from robot_rl.calibrate import calibrate_payload

        return calibrate_payload(self)


@dataclass(frozen=True)
class CalibrateBoard:
    """Draw the board to print."""

    out: Path
    """.png file"""
    rig: Path = Path("rig.toml")
    """its [board] describes it"""
    px_per_square: int = 300
    set: Settings = ()
    """settings of the board, such as board.squares=9,6"""

    def execute(self) -> int:
        from robot_rl.calibrate import calibrate_board

        return calibrate_board(self)


@dataclass(frozen=True)
class Calibrate:
    """Find where a camera is, or what an arm carries, and write it into rig.toml."""

    command: (
        Annotated[CalibrateCamera, subcommand("camera")]
        | Annotated[CalibratePayload, subcommand("payload")]
        | Annotated[CalibrateBoard, subcommand("board")]
    )

    def execute(self) -> int:
        return self.command.execute()
