"""``robot-rl train --reset-task`` and ``robot-rl eval`` of what it made; each returns an exit status."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robot_rl.commands import choose, refuse_besides_resume, say

if TYPE_CHECKING:
    from robot_rl import cli


def train(command: cli.Train) -> int:
    """``robot-rl train --reset-task``, or ``--resume`` of such a folder: prints the summary as one JSON object."""
    from robot_rl import pair
    from robot_rl.alternation import BACKWARD, FORWARD
    from robot_rl.interrupt import Interrupted

    try:
        if command.resume is not None:
            refuse_besides_resume(command)
            folder, summary = command.resume, pair.resume_pair(command.resume, command.steps)
        else:
            if command.gym is not None or command.task is None:
                raise ValueError("--reset-task takes turns with --task NAME: give one (see robot-rl tasks)")
            if (command.demos is None) != (command.reset_demos is None):
                raise ValueError("--demos and --reset-demos belong together: give both, or neither")
            runs = {
                FORWARD: choose(command, command.rig),
                BACKWARD: choose(command, command.rig, command.reset_task, command.reset_demos),
            }
            folder = command.out or Path("runs") / f"{command.task}-pair-{command.agent}-{command.seed}"
            summary = pair.train_pair(runs, folder)
    except Interrupted as interrupted:
        say(str(interrupted))
        return interrupted.code
    print(json.dumps(summary))
    say(_words(summary))
    where = shlex.quote(str(folder))
    say(f"everything is in {folder}; next: robot-rl eval {where} --episodes 500, robot-rl plot {where}/forward")
    return 0


def evaluate(command: cli.Eval) -> int:
    """``robot-rl eval`` of a pair: both policies in turns, nobody putting anything back."""
    from robot_rl import pair
    from robot_rl.alternation import BACKWARD, FORWARD, ROLES
    from robot_rl.log import Progress, percent
    from robot_rl.pair_evaluate import evaluate_pair
    from robot_rl.rig import words
    from robot_rl.run import load, load_agent

    for name in ("checkpoint", "sample"):
        if getattr(command, name):
            raise ValueError(f"--{name} is for one run: give {command.dir}/forward or {command.dir}/backward")
    chosen = load(command.dir / FORWARD)
    world = command.world or chosen.world
    settings = words(command.rig, chosen.arm, world, sum(command.set, ()))
    loaded: dict[str, Any] = {}
    try:
        for role in ROLES:
            beside = loaded[FORWARD][1] if loaded else None
            loaded[role] = load_agent(command.dir / role, None, settings=settings, world=command.world, beside=beside)
        players = {role: loaded[role][1:2] + (loaded[role][3], loaded[role][2]) for role in ROLES}
        with Progress(f"evaluating {chosen.task} and back", command.episodes) as progress:
            result = evaluate_pair(
                players, command.episodes, chosen.seed if command.seed is None else command.seed,
                chosen.train.ask_after, world, progress.say,
                lambda count, rate: progress.update(count, {"success": percent(rate)}),
            )  # fmt: skip
    finally:
        if loaded:
            loaded[FORWARD][1].close()
    about = pair.describe(loaded[FORWARD][0], loaded[BACKWARD][0], result)
    print(json.dumps(about) if command.json else _words(about))
    return 0


def _words(about: dict[str, Any]) -> str:
    """An evaluation, for a person."""
    from robot_rl.log import percent

    return (
        f"{about['task']} and {about['reset_task']}: {about['eval_episodes']} episodes in turns, success "
        f"{percent(about['success_rate'])}, of the last 100 {percent(about['success_last_100'])}; a person was needed "
        f"{about['person_resets']} times, the longest stretch without is {about['longest_without_person']} episodes"
    )
