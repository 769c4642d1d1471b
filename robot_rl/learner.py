"""The learner: takes the steps of any number of actors, trains at a set replay ratio, and sends policies back.

    DIR/steps.zarr      every row that actors sent, as they came (step_log.py): the replay buffer is this, reopened
    DIR/learner.json    where it listens
    and run.json, metrics.csv, checkpoints/ ... as in run.py

A checkpoint says how many rows had been learned from. Whatever kills this process, another one reads the rows up to
there into its buffer, and takes the rows after it as if they had just come. So nothing is lost, and nothing counted
twice: neither steps, nor episodes, nor updates.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl import checkpoint
from robot_rl.demo import check_demonstrations
from robot_rl.episode import fields_of
from robot_rl.files import FolderLock, read_json, write_json
from robot_rl.intake import Intake, Taken
from robot_rl.interrupt import Interrupted, StopSignals
from robot_rl.keeping_up import facts, link_row, silence
from robot_rl.link.security import Endpoint, listening
from robot_rl.link.server import LinkServer
from robot_rl.log import MetricsLog, Progress, Rate
from robot_rl.run import (
    GYM,
    Run,
    check_new,
    checkpoints,
    create,
    describe,
    extend,
    load,
    make_agent,
    make_env,
    make_spaces,
    newest,
)
from robot_rl.session import (
    Session,
    clean,
    demonstrate,
    draw_batch,
    evaluated_row,
    finish,
    make_session,
    mean_of,
    pretrain,
    require_finite,
    restore,
    save,
)
from robot_rl.step_log import Layout, StepLog
from robot_rl.trackers import check_tracker

STORE = "steps.zarr"
PUBLISH_S = 0.1  # between policies, at least
INGEST_ROWS = 256  # between two updates
LEAVE_S = 15.0  # at the end, actors have this long to hear of it and to go
_TELL_S = 0.5
_VERSION_BITS = 40  # of a policy's version: updates; above them, which learner of the run made it
_KNOWN_POLICIES = 1000  # whose age can be told
_SILENCE_S = 10.0  # without a step, after which it is said


@dataclass(frozen=True)
class Serving:
    """How actors reach the learner."""

    endpoint: Endpoint
    keys: Path | None = None


Companions = Callable[[Endpoint], contextlib.AbstractContextManager[Callable[[], None]]]
"""Given where the learner listens: what lives as long as it does; the value is called often, to look after it."""


@contextlib.contextmanager
def nobody(endpoint: Endpoint) -> Iterator[Callable[[], None]]:
    """No companions: actors come by themselves."""
    yield lambda: None


@dataclass
class Learner:
    """Everything that changes while learning."""

    session: Session
    store: StepLog
    intake: Intake
    server: LinkServer
    starts: int  # of learners in this run: versions of one never meet those of another
    made: dict[int, int] = field(default_factory=dict)  # environment steps at a policy's version
    sums: dict[str, float] = field(default_factory=dict)  # of metrics of updates since the last row
    summed: int = 0
    published_s: float = 0.0
    published: int = -1  # updates that the newest policy had
    policy_age_steps: float | None = None

    @property
    def calls(self) -> int:
        """How often the agent was updated since it acts, each time with ``utd_ratio`` updates of its critics."""
        run = self.session.run
        return self.session.counters.updates // run.agent_config.utd_ratio - run.pretrain_calls

    @property
    def due(self) -> int:
        """How many such calls the steps are worth that have come and were not learned from: one each, from
        ``learning_starts`` on, as in a process of its own."""
        run, counters = self.session.run, self.session.counters
        starts = max(1, run.agent_config.learning_starts)
        return min(counters.env_steps, run.train.steps) - starts - self.calls

    @property
    def mark(self) -> tuple[int, int]:
        """Changes when a checkpoint is due: by steps that came, and by those that were learned from."""
        every = self.session.run.train.checkpoint_every
        return self.session.steps // every, self.calls // every

    @property
    def paced(self) -> bool:
        """Whether actors wait for the learner: twins do, a real arm never does."""
        return is_simulated(self.session.run)


def is_simulated(run: Run) -> bool:
    """Whether time waits for the policy in the world of ``run``."""
    return run.world in ("sim", GYM)


def learn(
    run: Run,
    folder: Path,
    serving: Serving,
    companions: Companions = nobody,
    created: Callable[[Path], None] = lambda folder: None,
) -> dict[str, Any]:
    """Make ``folder`` and learn in it from the actors that come; returns what ``summary.json`` then holds. ``created``
    is told of the folder once it is there.

    Raises as ``train.train`` does, and OSError where the endpoint is taken or the disk is full.
    """
    if run.offline:
        raise ValueError(f"{run.agent} learns from demonstrations alone and has no use for actors: robot-rl train")
    if run.train.bank_share > 0.0:
        raise ValueError("train.bank_share: actors apart from the learner have no bank of starts; leave it at 0")
    check_new(folder)
    check_tracker(run.train.tracker)
    listening(serving.endpoint, serving.keys)  # what will be refused is, before anything is made
    env = make_env(run) if is_simulated(run) else make_spaces(run)
    try:
        encoder, agent = make_agent(run, env)
        if run.demo_share > 0:
            check_demonstrations(run, env, "cost" in agent.stored)
        create(folder, run, id=secrets.token_hex(8))
        created(folder)
        return _learn(make_session(run, folder, env, encoder, agent), serving, companions, resumed=False)
    finally:
        env.close()


def last_address(folder: Path) -> Endpoint:
    """Where the learner of ``folder`` listened the last time: its actors still ask for it there."""
    load(folder)  # says so where it is no run at all
    known = _known(folder)
    if "address" not in known:
        raise FileNotFoundError(f"{folder} has no learner.json, which says where it listened: give --listen HOST:PORT")
    return Endpoint.parse(known["address"])


def _known(folder: Path) -> dict[str, Any]:
    path = folder / "learner.json"
    return read_json(path, "delete it, and give --listen HOST:PORT") if path.is_file() else {}


def resume(folder: Path, serving: Serving, steps: int | None = None, companions: Companions = nobody) -> dict[str, Any]:
    """Go on in ``folder``, to ``steps`` if given. Raises as ``learn`` does."""
    run = load(folder)
    if "id" not in read_json(folder / "run.json", "begin another run"):
        raise ValueError(f"{folder} was trained in one process, and goes on in one: robot-rl train --resume {folder}")
    env = make_env(run) if is_simulated(run) else make_spaces(run)
    try:
        if steps is not None and steps != run.train.steps:
            run = replace(run, train=replace(run.train, steps=steps))
            extend(folder, run.train)
        return _learn(make_session(run, folder, env, *make_agent(run, env)), serving, companions, resumed=True)
    finally:
        env.close()


def layout_of(session: Session) -> Layout:
    """The rows that an actor of this run writes."""
    extra = {name: shape for name, shape in session.agent.stored.items() if name != "cost"}
    return Layout(fields_of(session.env.observation_space), session.replay.action_dim, extra)


def _learn(session: Session, serving: Serving, companions: Companions, resumed: bool) -> dict[str, Any]:
    run, folder = session.run, session.folder
    lock = FolderLock(folder)
    try:
        clean(folder)
        if resumed and checkpoints(folder):
            restore(session, newest(folder))
        about = {"run": read_json(folder / "run.json", "begin another run")["id"]}
        begun_s = time.monotonic() - session.counters.wall_s
        with (
            StepLog(folder / STORE, layout_of(session), about) as store,
            MetricsLog(folder, "env_steps", session.steps if resumed else None, run.train.tracker) as log,
        ):
            with (
                Progress(f"{run.task} {run.agent}", run.train.steps, session.steps) as progress,
                StopSignals(progress.say, "this update") as stop,
            ):
                demonstrate(session, progress, stop)
                pretrain(session, progress, stop)
                if not stop():
                    _serve(session, store, log, progress, stop, serving, companions, begun_s)
            if stop.signum is not None:
                raise Interrupted(
                    f"stopped at {session.steps} of {run.train.steps} steps; go on with: "
                    f"robot-rl learner --resume {shlex.quote(str(folder))}",
                    stop.signum,
                )
            return finish(session, log, begun_s)
    finally:
        lock.release()


def _serve(
    session: Session, store: StepLog, log: MetricsLog, progress: Progress, stop: StopSignals, serving: Serving,
    companions: Companions, begun_s: float,
) -> None:  # fmt: skip
    """Learn with actors coming and going, until the run has what it wants or ``stop`` says so."""
    run, folder = session.run, session.folder
    intake = Intake(store.layout, session.encoder, session.replay, session.agent.stored)
    choice = {**describe(run), "demos": None}  # where the demonstrations lie is nobody else's business
    server = LinkServer(
        serving.endpoint, serving.keys, store.about["run"], choice, store, paced=is_simulated(run), held=True
    )
    try:
        _refill(session, store, intake, progress)
        starts = 1 + int(_known(folder).get("starts", 0))
        learner = Learner(session, store, intake, server, starts)
        write_json(folder / "learner.json", {"address": str(server.address), "pid": os.getpid(), "starts": starts})
        _publish(learner)  # before anybody may move
        server.begin()
        progress.say(f"listening at {server.address}")
        with companions(server.address) as look_after:
            _loop(learner, log, progress, stop, begun_s, look_after)
            if stop.signum is None:
                _dismiss(server)
    finally:
        server.close()


def _refill(session: Session, store: StepLog, intake: Intake, progress: Progress) -> None:
    """Put the rows that the checkpoint has learned from into the buffer again: the newest, as many as it holds."""
    rows = session.counters.rows
    if rows > len(store):
        raise ValueError(
            f"{store.path} holds {len(store)} rows, the checkpoint has learned from {rows}: it was put back to an "
            "older copy; delete the newest folder in checkpoints/ and resume again"
        )
    start = max(0, rows - 2 * session.run.train.replay_capacity - 1)  # at least half of the rows are transitions
    if rows:
        progress.say(f"reading {rows - start} rows of {store.path} into the replay buffer")
    for block in store.blocks(start, rows):  # the server has looked at all of them
        for row in block:
            intake.take(row)


def _loop(
    learner: Learner, log: MetricsLog, progress: Progress, stop: StopSignals, begun_s: float, look_after: Callable
) -> None:
    """Until the steps have come and have been learned from, or ``stop`` says so."""
    session, config = learner.session, learner.session.run.train
    counters, rates = session.counters, (Rate(session.counters.env_steps), Rate(session.counters.updates))
    saved, evaluated = learner.mark, session.steps
    quiet_s, told_s = time.monotonic(), 0.0
    pending: deque[dict[str, Any]] = deque()
    try:
        while not stop():
            look_after()
            for ended in _ingest(learner):
                row = ended | _take_metrics(learner) | link_row(learner)
                require_finite(row, session)
                env_rate, update_rate = rates[0].add(counters.env_steps), rates[1].add(counters.updates)
                counters.wall_s = time.monotonic() - begun_s
                if config.eval_every and session.steps // config.eval_every > evaluated // config.eval_every:
                    evaluated = session.steps
                    row |= evaluated_row(session) if learner.paced else {}
                log.row(row | {"wall_s": counters.wall_s, "env_steps_per_s": env_rate, "updates_per_s": update_rate})
            started_s = time.monotonic()
            if started_s - told_s > _TELL_S:
                told_s = started_s
                now = rates[0].add(counters.env_steps), rates[1].add(counters.updates)
                progress.update(session.steps, facts(learner, *now))
            if learner.due > 0 and (batch := draw_batch(session)) is not None:
                session.agent, metrics = session.agent.update(batch)
                counters.updates += len(batch.reward)
                pending.append(metrics)
                if len(pending) > 1:  # one is computed while the next batch is drawn, and no more are waiting
                    _note(learner, pending.popleft())
                counters.train_s += time.monotonic() - started_s
                quiet_s = time.monotonic()
            elif session.steps >= config.steps:
                break
            elif not learner.server.wait_for_rows(counters.rows, 0.2) and time.monotonic() - quiet_s > _SILENCE_S:
                quiet_s = time.monotonic()
                progress.say(silence(learner))
            _publish(learner)
            if (mark := learner.mark) != saved:
                saved = mark
                _save(learner, log, pending)
    finally:
        for metrics in pending:  # nothing may be computed any more when the process ends
            for value in metrics.values():
                np.asarray(value)
    _save(learner, log, pending)


def _save(learner: Learner, log: MetricsLog, pending: deque[dict[str, Any]]) -> None:
    """A checkpoint of an agent that is known to be finite."""
    while pending:
        _note(learner, pending.popleft())
    log.sync()
    save(learner.session, replay=False)


def _note(learner: Learner, metrics: dict[str, Any]) -> None:
    """Wait for an update, and count what it tells. Raises FloatingPointError where it is no number any more."""
    told = mean_of([metrics])
    require_finite(told, learner.session)
    for name, value in told.items():
        learner.sums[name] = learner.sums.get(name, 0.0) + value
    learner.summed += 1


def _take_metrics(learner: Learner) -> dict[str, float]:
    """The means of all that was noted since the last time."""
    means = {name: total / learner.summed for name, total in learner.sums.items()}
    learner.sums, learner.summed = {}, 0
    return means


def _ingest(learner: Learner) -> list[dict[str, Any]]:
    """Take rows that came; the columns of episodes that ended with them."""
    session, counters = learner.session, learner.session.counters
    rows = []
    for row in learner.store.read(counters.rows, min(learner.server.rows, counters.rows + INGEST_ROWS)):
        taken = learner.intake.take(row)
        counters.rows += 1
        counters.env_steps += taken.step
        _note_age(learner, taken)
        if taken.ended is not None:
            counters.count_episode(taken.ended.success, session.run.train.window)
            rows.append(session.row() | taken.ended.row())
    steps = session.run.train.steps
    starts = session.run.agent_config.learning_starts
    lead = session.run.train.lead_steps
    learner.server.allow(min(steps, starts + learner.calls + lead), counters.rows)
    return rows


def _note_age(learner: Learner, taken: Taken) -> None:
    if taken.step and taken.policy in learner.made:
        learner.policy_age_steps = learner.session.counters.env_steps - learner.made[taken.policy]


def _publish(learner: Learner) -> None:
    """Give actors the policy as it is now, not too often: to fetch it from the device waits for the update."""
    session, updates, now_s = learner.session, learner.session.counters.updates, time.monotonic()
    wanted = learner.published < 0 or learner.server.following
    if updates == learner.published or now_s - learner.published_s < PUBLISH_S or not wanted:
        return
    random_first = session.run.agent_config.start_steps if not session.replay.demonstrations else 0
    if session.counters.env_steps < random_first:
        return  # until then actors act at random
    version = (learner.starts << _VERSION_BITS) + updates + 1
    learner.server.publish(version, session.counters.env_steps, checkpoint.flatten(session.agent.policy))
    learner.made[version] = session.counters.env_steps
    while len(learner.made) > _KNOWN_POLICIES:
        del learner.made[min(learner.made)]
    learner.published, learner.published_s = updates, now_s


def _dismiss(server: LinkServer) -> None:
    """Tell the actors that the run has what it wants, also one that is just coming back, and give them time to go."""
    server.stop_actors()
    end_s = time.monotonic() + LEAVE_S
    while (server.following or server.untold) and time.monotonic() < end_s:
        time.sleep(0.05)
