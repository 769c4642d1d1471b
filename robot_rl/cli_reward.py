"""The commands of ``cli.py`` about learned rewards: labelling frames, training a success classifier, trying it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg, subcommand

from robot_rl.cli_ros import Settings

Optional = arg(metavar="DIR", help_behavior_hint="")
File = arg(metavar="FILE", help_behavior_hint="")
Word = arg(metavar="NAME", help_behavior_hint="")


@dataclass(frozen=True)
class Label:
    """Add labelled frames to a label set: from recorded episodes (--source), from episodes of a twin, which knows the
    truth (--task), or of any world with a person's keys (--task and --keys). Prints what it then holds."""

    labels: Positional[Path]
    """label set, such as labels.zarr; made where there is none"""
    source: Annotated[tuple[Path, ...], arg(metavar="DIR ...", help_behavior_hint="")] = ()
    """episode folders, logs of steps (steps.zarr) or run folders"""
    rule: Literal["end", "told"] = "end"
    """of --source. end: the last frames of a success are positive, all before a margin and all of a failure negative;
    told: as each step's own success says"""
    last: int = 1
    """frames at the end of a success that show one"""
    margin: int = 3
    """frames before those, or before a key, that get no label"""
    task: Annotated[str | None, Word] = None
    """play episodes of this task"""
    arm: str = "panda"
    world: str = "sim"
    rig: Annotated[Path | None, File] = None
    """facts of the lab, such as rig.toml"""
    policy: Annotated[Path | None, Optional] = None
    """run folder whose policy plays, instead of --task and its scripted expert"""
    keys: Annotated[str | None, Word] = None
    """a device of hardware/teleop whose success and fail keys label, such as keyboard"""
    person: bool = False
    """the person at --keys drives, too"""
    episodes: int = 40
    """to play"""
    seed: int = 0
    """of the episodes"""
    positives: int = 5
    """frames of an episode that are kept, at most"""
    negatives: int = 15
    """frames of an episode that are kept, at most; the hardest among them"""
    most_positives: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: no limit)")] = None
    """in all"""
    mine: Annotated[Path | None, Optional] = None
    """of --source: the frames of failures that this classifier likes best, to be reviewed"""
    count: int = 24
    """frames that --mine adds, at most"""
    yes: bool = False
    """no failure among --source shows a success: what --mine finds is negative, unreviewed"""
    review: bool = False
    """look at frames without a label, on sheets of pictures, and say what they are"""
    correct: Annotated[tuple[str, ...], arg(metavar="ENTRY:STEP=LABEL ...", help_behavior_hint="")] = ()
    """give frames another label: 1 success, 0 none, -1 not known"""
    set: Settings = ()
    """settings of task, arm, guard, energy and lab"""

    def execute(self) -> int:
        from robot_rl.reward.commands import label

        return label(self)


@dataclass(frozen=True)
class Train:
    """Train a success classifier: another version in the same folder each time."""

    labels: Positional[Path]
    """label set"""
    out: Path
    """folder of the classifier's versions, such as classifiers/peg"""
    fresh: bool = False
    """begin anew, not from the newest version in --out"""
    follow: bool = False
    """wait for new labels, and train another version whenever there are some; until Ctrl-C"""
    mine: Annotated[Path | None, Optional] = None
    """then add the frames of failures in this run or store that it likes best, and train once more"""
    yes: bool = False
    """no failure among --mine shows a success; otherwise they wait for `reward label --review`"""
    json: bool = False
    """print the whole report as one JSON object"""
    set: Settings = ()
    """settings of the training, such as inputs=camera/wrist,gripper members=3 false_positives=0.005"""

    def execute(self) -> int:
        from robot_rl.reward.commands import train

        return train(self)


@dataclass(frozen=True)
class Eval:
    """Say how good a classifier is: on labels it was not trained on, and on fresh episodes of a twin (--task). Draws a
    reliability diagram and a sheet of its worst false positives."""

    classifier: Positional[Path]
    """folder of a classifier, or one of its .ckpt files"""
    labels: Annotated[Path | None, Optional] = None
    """label set; episodes that it was trained on are left out"""
    task: Annotated[str | None, Word] = None
    """play episodes of this task"""
    arm: str = "panda"
    policy: Annotated[Path | None, Optional] = None
    """run folder whose policy plays, instead of --task and its scripted expert"""
    episodes: int = 200
    seed: int = 1
    """of the episodes"""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: eval-VERSION in the folder)")] = None
    """folder for the pictures and report.json, which are replaced"""
    set: Settings = ()
    """settings of task, arm, guard, energy, lab and reward, such as reward.threshold=0.9 reward.hold_steps=3"""

    def execute(self) -> int:
        from robot_rl.reward.commands import evaluate

        return evaluate(self)


@dataclass(frozen=True)
class Reward:
    """Success classifiers: label frames, train on them, see how good it is. In use: --set reward.classifier=DIR."""

    command: (
        Annotated[Label, subcommand("label")]
        | Annotated[Train, subcommand("train")]
        | Annotated[Eval, subcommand("eval")]
    )

    def execute(self) -> int:
        return self.command.execute()
