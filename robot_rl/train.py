"""Training in one process: act, step, store, update; checkpoints from which it goes on with exactly the same numbers.

Nothing of the environment has to be saved: an episode depends on its seed and its actions only, seeds are derived from
(run seed, purpose, index), and checkpoints are taken between episodes.

Threads are left to XLA, which takes all cores for an update while Python steps the environment beside it: holding XLA
or BLAS to one thread was no faster on two cores.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.demo import check_demonstrations
from robot_rl.demo_starts import check_bank, make_bank
from robot_rl.episode import EpisodeAccount, action_key, cost_of, episode_seed
from robot_rl.files import FolderLock
from robot_rl.interrupt import Interrupted, StopSignals
from robot_rl.intervention import NOBODY, Overseer, Oversight, make_overseer
from robot_rl.log import MetricsLog, Progress, Rate, percent
from robot_rl.pace import Pace, control_period_s
from robot_rl.run import Run, check_new, checkpoints, create, extend, load, make_agent, make_env, newest
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
    require_cost,
    require_finite,
    restore,
    restore_replay,
    save,
)
from robot_rl.trackers import check_tracker


def train(run: Run, folder: Path) -> dict[str, Any]:
    """Make ``folder`` and train in it; returns what ``summary.json`` then holds.

    Raises FileExistsError for a folder in use, FloatingPointError where a loss is no number any more, Interrupted
    after Ctrl-C or SIGTERM. Each leaves the last checkpoint whole.
    """
    check_new(folder)
    check_tracker(run.train.tracker)
    check_bank(run)
    env = make_env(run, run.render_mode)  # before the folder is made, so that a wrong name leaves none behind
    try:
        encoder, agent = make_agent(run, env)
        if run.demo_share > 0:
            check_demonstrations(run, env, "cost" in agent.stored)
        with overseeing(make_session(run, folder, env, encoder, agent)) as session:
            create(folder, run)
            return _train(session, resume=False)
    finally:
        env.close()


def resume(folder: Path, steps: int | None = None) -> dict[str, Any]:
    """Go on from the newest checkpoint of ``folder``, to ``steps`` if given: the same numbers as without the break."""
    run = load(folder)
    env = make_env(run, run.render_mode)
    try:
        if steps is not None and steps != run.train.steps:
            run = replace(run, train=replace(run.train, steps=steps))
            extend(folder, run.train)
        with overseeing(make_session(run, folder, env, *make_agent(run, env))) as session:
            return _train(session, resume=True)
    finally:
        env.close()


@contextlib.contextmanager
def overseeing(session: Session, same: Overseer | None = None) -> Iterator[Session]:
    """With whoever looks after the policy; raises as ``make_overseer`` does, which is given ``same``."""
    run = session.run
    if run.offline and run.intervention.by != NOBODY:
        raise ValueError(f"intervention.by = '{run.intervention.by}': {run.agent} learns without acting; give nobody")
    session.overseer = make_overseer(run.intervention, run.teleop, session.env, same=same)
    try:
        yield session
    finally:
        session.overseer.close()


def _train(session: Session, resume: bool) -> dict[str, Any]:
    run, folder = session.run, session.folder
    lock = FolderLock(folder)
    try:
        clean(folder)
        saved = newest(folder) if resume and checkpoints(folder) else None
        if saved is not None:
            restore(session, saved)
        begun_s = time.monotonic() - session.counters.wall_s
        name = "updates" if run.offline else "env_steps"
        with MetricsLog(folder, name, session.steps if resume else None, run.train.tracker) as log:
            with (
                Progress(f"{run.task} {run.agent}", run.train.steps, session.steps) as progress,
                StopSignals(progress.say) as stop,
            ):
                demonstrate(session, progress, stop)
                if saved is not None:
                    restore_replay(session, saved)
                pretrain(session, progress, stop)
                if not stop():
                    session.bank = make_bank(session)
                    _loop(session, log, progress, stop, begun_s)
            if stop.signum is not None:
                raise Interrupted(
                    f"stopped at {session.steps} of {run.train.steps} steps; go on with: "
                    f"robot-rl train --resume {shlex.quote(str(folder))}",
                    stop.signum,
                )
            return finish(session, log, begun_s)
    finally:
        lock.release()


def _loop(session: Session, log: MetricsLog, progress: Progress, stop: StopSignals, begun_s: float) -> None:
    """Play (or, offline, study) until the steps are done or ``stop`` says so; log and save on the way."""
    run, counters, config = session.run, session.counters, session.run.train
    rates = Rate(counters.env_steps), Rate(counters.updates)
    saved = evaluated = session.steps
    while session.steps < config.steps and not stop():
        started_s = time.monotonic()
        row = _study(session) if run.offline else _episode(session, stop)
        require_finite(row, session)
        counters.train_s += time.monotonic() - started_s
        env_rate, update_rate = rates[0].add(counters.env_steps), rates[1].add(counters.updates)
        if config.eval_every and session.steps // config.eval_every > evaluated // config.eval_every:
            evaluated = session.steps
            row |= evaluated_row(session)
        counters.wall_s = time.monotonic() - begun_s
        log.row(row | {"wall_s": counters.wall_s, "env_steps_per_s": env_rate, "updates_per_s": update_rate})
        progress.update(session.steps, _facts(session, row, env_rate, update_rate))
        if session.steps // config.checkpoint_every > saved // config.checkpoint_every:
            saved = session.steps
            log.sync()
            save(session)
    log.sync()
    save(session)


def _facts(session: Session, row: Mapping[str, Any], env_rate: float, update_rate: float) -> dict[str, str]:
    """What the progress line says."""
    facts = {"updates/s": f"{update_rate:.0f}"}
    if not session.run.offline:
        facts = {"steps/s": f"{env_rate:.0f}"} | facts
        told = session.success_rate is not None
        facts = ({"success": percent(session.success_rate)} if told else {"return": f"{row['return']:.4g}"}) | facts
    return facts


def _episode(session: Session, stop: StopSignals) -> dict[str, Any]:
    """One episode from where the task draws its start, or from one of the bank's, which no success rate counts."""
    seed = episode_seed(session.run.seed, "train", session.counters.episodes)
    if (bank := session.bank) is None:
        return play(session, session.env.reset(seed=seed)[0], seed, stop)
    drawn = bank.draw(seed, session.success_rate)
    obs, _ = session.env.reset(seed=seed, options=None if drawn is None else {"start": drawn.start})
    row = play(session, obs, seed, stop, ordinary=drawn is None)
    if drawn is None or row["discarded"]:
        return row
    bank.count(drawn.group, bool(row["success"]))
    session.counters.bank_rates = list(bank.rates)
    return row | {"success": None, "bank_success": row["success"], "bank_group": drawn.group}


def play(session: Session, obs: Any, seed: int, stop: StopSignals, ordinary: bool = True) -> dict[str, Any]:
    """One episode, of ``seed``, from ``obs`` on. What was learned before a step acts in it; its own transition is
    learned from in the next.

    JAX computes the update while the environment steps and the next batch is drawn.
    """
    run, counters, encoder = session.run, session.counters, session.encoder
    oversight = Oversight(session.overseer, seed)
    pace = Pace(control_period_s(session.env), session.overseer.paced)
    first_segment = counters.segments
    pace.restart()
    encoded, carry = encoder.encode(obs), session.agent.start()
    metrics: list[dict[str, Any]] = []
    account = EpisodeAccount()
    terminated = truncated = False
    while not (terminated or truncated):
        stop()  # says at once that a signal was heard; the episode is played out all the same
        batch = draw_batch(session)
        if counters.env_steps < run.agent_config.start_steps and not session.replay.demonstrations:
            action = session.rng.uniform(-1.0, 1.0, session.replay.action_dim).astype(np.float32)
            extra: dict[str, Any] = {"proposed": action}
        else:
            key = action_key(run.seed, counters.env_steps)
            drawn, carry, extra = session.agent.act(encoded, carry, key, True)
            action = np.asarray(drawn, np.float32)
            require_finite({"action": float(action.sum())}, session)
        if batch is not None:
            session.agent, step_metrics = session.agent.update(batch)
            metrics.append(step_metrics)
            counters.updates += len(batch.reward)
        action, extra = oversight.choose(obs, action, extra)
        obs, *came = session.env.step(action)
        pace.step()
        reward, terminated, truncated, info = oversight.settle(float(came[0]), bool(came[1]), bool(came[2]), came[3])
        following = encoder.encode(obs)
        cost = require_cost(cost_of(info), session.agent.stored)
        counters.segments = first_segment + oversight.segment
        session.replay.add(
            encoded, action, reward, terminated, truncated, following, counters.segments, extra | {"cost": cost},
            oversight.source, bool(info.get("called")),
        )  # fmt: skip
        account.add(reward, cost, info)
        encoded = following
        counters.env_steps += 1
    if account.discarded:
        session.replay.discard(range(first_segment, counters.segments + 1))
    counters.segments += 1
    if oversight.event == "stop":
        session.env.unwrapped.arm.stop()
        stop.note()
    counters.count_episode(account.success if ordinary else None, run.train.window)
    return session.row() | account.row() | mean_of(metrics)


def _study(session: Session) -> dict[str, Any]:
    """``log_every`` updates from demonstrations alone; always all of them, as an episode is always played out."""
    metrics = []
    goal = session.counters.updates + session.run.train.log_every
    while session.counters.updates < goal:
        batch = draw_batch(session)
        assert batch is not None  # offline training has demonstrations, _demonstrate saw to that
        session.agent, step_metrics = session.agent.update(batch)
        metrics.append(step_metrics)
        session.counters.updates += len(batch.reward)
    return {"updates": session.counters.updates} | mean_of(metrics)
