"""What the commands of ``cli_fleet.py`` do, and ``train --async``; each returns an exit status."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robot_rl.commands import choose, refuse_besides_resume, report, run_folder, say

if TYPE_CHECKING:
    from robot_rl import cli, cli_fleet

LISTEN = "127.0.0.1:5580"


def learner(command: cli_fleet.Learner) -> int:
    """``robot-rl learner``: prints the summary as one JSON object."""
    from robot_rl import learner as learning
    from robot_rl.interrupt import Interrupted
    from robot_rl.link.security import Endpoint

    serving = None
    if command.listen is not None or command.resume is None:
        serving = learning.Serving(Endpoint.parse(command.listen or LISTEN), command.keys)
    try:
        if command.resume is not None:
            refuse_besides_resume(command, ("listen", "keys"))
            folder = command.resume
            serving = serving or learning.Serving(learning.last_address(folder), command.keys)
            summary = learning.resume(folder, serving, command.steps)
        else:
            assert serving is not None
            run = choose(command, rig_file=None)
            folder = run_folder(command.out, run)
            summary = learning.learn(run, folder, serving)
    except Interrupted as interrupted:
        say(str(interrupted))
        return interrupted.code
    return report(summary, folder)


def actor(command: cli_fleet.Actor) -> int:
    """``robot-rl actor``: prints what it did as one JSON object."""
    from robot_rl.actor import Place, act
    from robot_rl.interrupt import Interrupted, StopSignals
    from robot_rl.link.security import Endpoint

    if not 0 <= command.index < 2**31:
        raise ValueError(f"--index {command.index}: give a number from 0 on")
    place = Place(
        Endpoint.parse(command.learner), command.out, command.index, command.keys, command.rig, sum(command.set, ()),
        command.real_time,
    )  # fmt: skip
    try:
        with StopSignals(say, "this step") as stop:
            done = act(place, say, stop)
    except Interrupted as interrupted:
        say(str(interrupted))
        return interrupted.code
    print(json.dumps(done))
    return 0


def train_apart(command: cli.Train) -> int:
    """``robot-rl train --async``: a learner here, and its actors as processes of this machine."""
    import os

    from robot_rl.children import environment

    os.environ.update(environment(2))  # before JAX is there: one compute thread, the other cores are the actors'
    from robot_rl import learner as learning
    from robot_rl.fleet import local_actors
    from robot_rl.interrupt import Interrupted
    from robot_rl.link.security import Endpoint

    serving = learning.Serving(Endpoint("127.0.0.1", 0))
    words = ("--rig", str(command.rig)) if command.rig is not None else ()
    try:
        if command.resume is not None:
            refuse_besides_resume(command, ("apart", "rig"))
            folder = command.resume
            companions: Any = partial(local_actors, folder, 1, words, say)
            summary = learning.resume(folder, serving, command.steps, companions)
        else:
            run = choose(command, command.rig)
            folder = run_folder(command.out, run)
            companions = partial(local_actors, folder, 1, words, say)
            summary = learning.learn(run, folder, serving, companions)
    except Interrupted as interrupted:
        say(str(interrupted).replace("robot-rl learner --resume", "robot-rl train --resume"))
        return interrupted.code
    return report(summary, folder)


def is_apart(folder: Path) -> bool:
    """Whether actors and learner of the run in ``folder`` are processes of their own."""
    return (folder / "learner.json").exists()
