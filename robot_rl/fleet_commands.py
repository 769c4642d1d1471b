"""What the commands of ``cli_fleet.py`` do, and ``train --async`` and ``--actors``; each returns an exit status."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robot_rl.children import environment
from robot_rl.commands import choose, refuse_besides_resume, report, run_folder, say
from robot_rl.files import read_json

if TYPE_CHECKING:
    from robot_rl import cli, cli_fleet
    from robot_rl.fleet import Fleet
    from robot_rl.learner import Companions
    from robot_rl.link.security import Endpoint
    from robot_rl.run import Run

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
    """``robot-rl train --async`` and ``--actors``: a learner here, and its actors on this machine or through Ray."""
    os.environ.update(environment(2))  # before JAX is there: one compute thread, the other cores are the actors'
    from robot_rl import learner as learning
    from robot_rl.fleet import Fleet
    from robot_rl.interrupt import Interrupted
    from robot_rl.run import check_new, load

    if command.resume is not None:
        refuse_besides_resume(command, ("apart", "rig", "actors", "cluster", "listen", "keys"))
        run, folder = load(command.resume), command.resume
        if not is_apart(folder):
            raise ValueError(f"{folder} was trained in one process, and goes on in one: leave out --async and --actors")
        if (folder / "learner.json").exists() and not (folder / "fleet.json").exists():
            raise ValueError(
                f"{folder} is of a learner whose actors are started by hand: robot-rl learner --resume {folder}"
            )
    else:
        run = choose(command, command.rig)
        folder = run_folder(command.out, run)
        check_new(folder)
    fleet = _fleet(command, Fleet.load(folder))
    _check_fleet(fleet, run)
    serving = learning.Serving(_endpoint(fleet), Path(fleet.keys) if fleet.keys is not None else None)
    try:
        with _companions(command, folder, fleet) as companions:
            if command.resume is not None:
                summary = learning.resume(folder, serving, command.steps, companions)
            else:
                summary = learning.learn(run, folder, serving, companions, fleet.save)
    except Interrupted as interrupted:
        say(str(interrupted).replace("robot-rl learner --resume", "robot-rl train --resume"))
        return interrupted.code
    return report(summary, folder)


def _fleet(command: cli.Train, before: Fleet) -> Fleet:
    """``before``, with what ``command`` gives."""
    changes: dict[str, Any] = {name: getattr(command, name) for name in ("actors", "cluster", "listen")}
    changes["keys"] = str(command.keys.absolute()) if command.keys is not None else None
    return replace(before, **{name: value for name, value in changes.items() if value is not None})


def _check_fleet(fleet: Fleet, run: Run) -> None:
    """Raises ValueError for what cannot be, before anything is started."""
    from robot_rl.link.security import listening
    from robot_rl.run import GYM

    if fleet.actors < 1:
        raise ValueError(f"--actors {fleet.actors}: give at least 1")
    if fleet.through_ray and run.world not in ("sim", GYM):
        raise ValueError(
            f"--actors and --cluster are for twins, and this run is in world {run.world}: start robot-rl learner, and "
            "one robot-rl actor beside each arm, with an --index of its own"
        )
    endpoint = _endpoint(fleet)
    if endpoint.host in ("0.0.0.0", "::"):
        raise ValueError(f"--listen {endpoint}: the actors dial it, too; give this machine's own name or address")
    listening(endpoint, fleet.keys)


def _endpoint(fleet: Fleet) -> Endpoint:
    from robot_rl.link.security import Endpoint

    return Endpoint.parse(fleet.listen) if fleet.listen is not None else Endpoint("127.0.0.1", 0)


@contextlib.contextmanager
def _companions(command: cli.Train, folder: Path, fleet: Fleet) -> Iterator[Companions]:
    """What starts the actors of ``fleet`` once their learner listens."""
    from robot_rl.fleet import local_actors

    if not fleet.through_ray:
        words = ("--rig", str(command.rig)) if command.rig is not None else ()
        yield partial(local_actors, folder, fleet, words, say)
        return
    from robot_rl import cluster

    address = None if fleet.cluster in (None, "local") else fleet.cluster
    with cluster.connected(address, fleet.actors, cluster.actors_environment()) as ray:
        cluster.check(ray, fleet)
        yield partial(cluster.ray_actors, ray, folder, fleet, say)


def sweep(command: cli_fleet.Sweep) -> int:
    """``robot-rl sweep``: prints the table. Raises RuntimeError, naming the logs, where a training failed."""
    from robot_rl import sweep as sweeping
    from robot_rl.interrupt import Interrupted

    names = ("task", "gym", "arm", "agent", "steps", "seeds")
    demos = str(command.demos.resolve()) if command.demos is not None else None
    vary = tuple(sweeping.Varied.parse(text) for text in sum(command.vary, ()))
    chosen = {name: getattr(command, name) for name in names}
    plan = sweeping.Plan(**chosen, demos=demos, vary=vary, settings=sum(command.set, ()))
    try:
        outcome = sweeping.sweep(plan, command.out, command.jobs, command.cluster)
    except Interrupted as interrupted:
        say(str(interrupted))
        return interrupted.code
    print(outcome.table, end="")
    say(f"to compare them: robot-rl runs compare {shlex.quote(str(command.out))}")
    if outcome.failed:
        count = f"{len(outcome.failed)} of {len(plan.trainings)} failed, the others are safe"
        raise RuntimeError(f"{count}: {'; '.join(outcome.failed)}")
    return 0


def is_apart(folder: Path) -> bool:
    """Whether actors and learner of the run in ``folder`` are processes of their own."""
    path = folder / "run.json"
    return path.is_file() and "id" in read_json(path, "train again into another folder")
