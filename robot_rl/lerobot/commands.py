"""What ``robot-rl demo export`` and ``demo import`` do."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from robot_rl import build
from robot_rl.find import find
from robot_rl.lerobot import export as exporting
from robot_rl.lerobot import importing, layout
from robot_rl.lerobot.source import Dataset
from robot_rl.log import Progress
from robot_rl.store import EpisodeReader, StoreInfo

if TYPE_CHECKING:
    from robot_rl import cli_lerobot


def export_demonstrations(command: cli_lerobot.Export) -> int:
    """Prints the folder; returns 0."""
    same = ("instruction", "images", "codec", "fps", "data_file_mb", "video_file_mb")
    options = exporting.Options(
        **{name: getattr(command, name) for name in same},
        environment=sum(command.environment_state, ()),
        leave_out=sum(command.leave_out, ()),
    )
    with Progress("exporting episodes", len(EpisodeReader(command.src))) as progress:
        done = exporting.export(command.src, command.out, options, lambda count, _: progress.update(count, {}))
    _say(f"{done.episodes} episodes, {done.frames} frames; load: LeRobotDataset('me/demos', root='{command.out}')")
    print(command.out)
    return 0


def import_demonstrations(command: cli_lerobot.Import) -> int:
    """Prints the folder; returns 0."""
    dataset = Dataset(command.dir)
    info = importing.info_of(dataset) if command.task is None else _info(command, dataset)
    same = ("action_scale", "clip_actions", "success_reward", "assume", "terminal", "cut_at_done")
    options = importing.Options(sum(command.rename, ()), **{name: getattr(command, name) for name in same})
    with Progress("importing episodes", len(dataset)) as progress:
        done = importing.import_dataset(
            dataset, command.out, info, options, lambda count, _: progress.update(count, {})
        )
    _say(f"{done.episodes} episodes, {done.successes} of them successes, {done.steps} steps")
    if done.unused:
        _say(f"not imported: {', '.join(done.unused)}")
    _say(f"next: robot-rl demo info {shlex.quote(str(command.out))}")
    print(command.out)
    return 0


def _info(command: cli_lerobot.Import, dataset: Dataset) -> StoreInfo:
    """The description of the episodes of a task; its control_hz has to be the data's."""
    noted, task = dataset.ours or {}, command.task or ""
    if noted and noted["task"] != task:
        raise ValueError(
            f"--task {task}: {dataset.root} was exported from {noted['task']}; leave --task out, or take its "
            f"{layout.OURS} away to map it by --rename"
        )
    arm, world = command.arm or noted.get("arm", "panda"), command.world or noted.get("world", "sim")
    made = build.make_configs(task, arm, world, sum(command.set, ()))
    built: Any = find("tasks", task).make(made["task"])
    if abs(built.control_hz - dataset.fps) > 1e-6 * dataset.fps:
        raise ValueError(
            f"{dataset.root} has {dataset.fps:g} frames per second, {task} acts at {built.control_hz:g} Hz: "
            f"give --set task.control_hz={dataset.fps:g}, or resample the data"
        )
    spaces = SimpleNamespace(observation_space=built.observation_space, action_space=built.action_space)
    configs = {section: asdict(config) for section, config in made.items()}
    return StoreInfo.of(cast(Any, spaces), task, arm, world, configs)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
