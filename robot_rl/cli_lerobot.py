"""The commands of ``cli.py`` that exchange demonstrations with LeRobot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from robot_rl.cli_ros import Settings

Names = UseAppendAction[tuple[tuple[str, ...], ...]]


@dataclass(frozen=True)
class Export:
    """Write an episode folder as a LeRobot dataset v3.0."""

    src: Positional[Path]
    """episode folder, such as demos.zarr"""
    out: Path
    """dataset folder, not there yet; LeRobotDataset(repo_id, root=OUT) loads it"""
    instruction: Annotated[str, arg(metavar="TEXT", help_behavior_hint="(default: the task's name)")] = ""
    """the task in words, which policies that read language are given"""
    images: Literal["video", "png"] = "video"
    """video: films, small and a little lossy, as LeRobot records; png: exact"""
    codec: Literal["av1", "h264"] = "av1"
    """of the films"""
    fps: Annotated[float | None, arg(metavar="HZ", help_behavior_hint="(default: the task's control_hz)")] = None
    """steps per second"""
    environment_state: Names = ()
    """observations of the surroundings: into observation.environment_state, not observation.state"""
    leave_out: Names = ()
    """observations not to write"""
    data_file_mb: float = 100
    """a data file that grows beyond is followed by another"""
    video_file_mb: float = 200
    """the same for films"""

    def execute(self) -> int:
        from robot_rl.lerobot.commands import export_demonstrations

        return export_demonstrations(self)


@dataclass(frozen=True)
class Import:
    """Read a LeRobot dataset v3.0 into a new episode folder."""

    dir: Positional[Path]
    """dataset folder, which holds meta/info.json"""
    out: Path
    """episode folder, not there yet"""
    task: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: what `demo export` noted)")] = None
    """whose demonstrations they are: observations and actions become those of this task"""
    arm: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: as noted, else panda)")] = None
    world: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: as noted, else sim)")] = None
    set: Settings = ()
    """settings of task and arm, such as task.max_steps=80"""
    rename: Names = ()
    """theirs to ours: observation.images.front=camera 'observation.state[0:3]=tcp_pos' done=next.done"""
    action_scale: tuple[float, ...] = ()
    """their number that is 1 here, one for all components or one for each"""
    clip_actions: bool = False
    """clip actions to [-1, 1], instead of refusing what is beyond"""
    success_reward: float = 1.0
    """a step of at least this reward is a success, where the data do not tell"""
    assume: Annotated[Literal["success", "failure"] | None, arg(help_behavior_hint="")] = None
    """of every episode, where there is neither reward nor success"""
    terminal: Literal["success", "done"] = "success"
    """what is a true end where the data have no next.truncated: only a success, or whatever is done"""
    cut_at_done: bool = False
    """drop frames behind the first that is done"""

    def execute(self) -> int:
        from robot_rl.lerobot.commands import import_demonstrations

        return import_demonstrations(self)
