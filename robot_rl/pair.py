"""Two tasks that undo each other, learned in turns on one arm: nobody puts things back between the episodes.

After the forward-backward relocation of SERL (arXiv 2401.16013): two agents, each with its own replay, demonstrations,
metrics and checkpoints, and one actor. After an episode the arm lets go and goes home by itself; a success hands over
to the other role. A person is asked (in simulation: the world is placed anew, which is counted and said) at the
beginning, after ``train.ask_after`` failures of a role in a row, and after a fault of the arm.

DIR/forward, DIR/backward   run folders, as ``train`` makes them
DIR/pair.json               whose turn it is, and which checkpoints of the two belong together
DIR/summary.json            what came out
"""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robot_rl.alternation import BACKWARD, FORWARD, ROLES, Alternation, begin_turn
from robot_rl.build import REMOTE
from robot_rl.demo import check_demonstrations
from robot_rl.episode import episode_seed
from robot_rl.files import FolderLock, read_json, write_json
from robot_rl.interrupt import Interrupted, StopSignals
from robot_rl.log import MetricsLog, Progress, Rate, percent
from robot_rl.pair_evaluate import PairEvaluation, evaluate_pair
from robot_rl.run import GYM, Run, check_new, checkpoints, create, extend, load, make_agent, make_env, remove_folder
from robot_rl.session import (
    Session,
    clean,
    demonstrate,
    make_session,
    pretrain,
    require_finite,
    restore,
    restore_replay,
    save,
    summarize,
)
from robot_rl.trackers import check_tracker
from robot_rl.train import overseeing, play

if TYPE_CHECKING:
    import gymnasium as gym

FORMAT = 1
_RESTORE = "restore it from a copy, or train again into another folder"


@dataclass
class Pair:
    """Everything that changes while two roles train."""

    folder: Path
    sessions: dict[str, Session]
    turns: Alternation

    @property
    def steps(self) -> int:
        """Of the role that has made fewer: what ``train.steps`` counts."""
        return min(session.steps for session in self.sessions.values())

    @property
    def behind(self) -> str:
        """The role that has made fewer steps."""
        return min(ROLES, key=lambda role: self.sessions[role].steps)

    @property
    def all_steps(self) -> int:
        return sum(session.steps for session in self.sessions.values())

    @property
    def run(self) -> Run:
        return self.sessions[FORWARD].run


def make_envs(runs: Mapping[str, Run]) -> dict[str, gym.Env]:
    """An environment for each role, on one arm. Raises ValueError where two tasks cannot share one."""
    if any(run.world == GYM for run in runs.values()):
        raise ValueError("--reset-task takes turns with --task; a Gymnasium environment (--gym) cannot")
    if runs[FORWARD].world in REMOTE:
        raise ValueError(
            f"--world {runs[FORWARD].world}: an arm behind its node does not go home by itself, as --reset-task needs; "
            "use sim or hardware"
        )
    forward = make_env(runs[FORWARD], runs[FORWARD].render_mode)
    try:
        return {FORWARD: forward, BACKWARD: make_env(runs[BACKWARD], runs[BACKWARD].render_mode, beside=forward)}
    except BaseException:
        forward.close()
        raise


def train_pair(runs: Mapping[str, Run], folder: Path) -> dict[str, Any]:
    """Make ``folder`` and train both roles in it; returns what ``summary.json`` then holds.

    Raises as ``train`` does.
    """
    check_new(folder)
    check_tracker(runs[FORWARD].train.tracker)
    if runs[FORWARD].train.bank_share > 0.0:
        raise ValueError("train.bank_share puts the world into other states, which --reset-task is there to avoid")
    if any(run.offline for run in runs.values()):
        raise ValueError(f"--agent {runs[FORWARD].agent} learns offline and never acts: --reset-task is not for it")
    envs = make_envs(runs)
    try:
        made = {role: make_agent(runs[role], envs[role]) for role in ROLES}
        for role in ROLES:
            if runs[role].demo_share > 0:
                check_demonstrations(runs[role], envs[role], "cost" in made[role][1].stored)
        sessions = {role: make_session(runs[role], folder / role, envs[role], *made[role]) for role in ROLES}
        pair = Pair(folder, sessions, Alternation())
        with _overseeing(pair):
            for role in ROLES:
                create(folder / role, runs[role])
            _write_state(pair, {})
            return _train(pair, resume=False)
    finally:
        envs[FORWARD].close()


def resume_pair(folder: Path, steps: int | None = None) -> dict[str, Any]:
    """Go on from the newest pair of checkpoints, to ``steps`` of each role if given.

    Agents, replays and random numbers go on as they were; the world does not: what is around a twin's arm is placed
    anew, and a person is asked to look after a real one.
    """
    runs = {role: load(folder / role) for role in ROLES}
    envs = make_envs(runs)
    try:
        for role in ROLES:
            if steps is not None and steps != runs[role].train.steps:
                runs[role] = replace(runs[role], train=replace(runs[role].train, steps=steps))
                extend(folder / role, runs[role].train)
        sessions = {
            role: make_session(runs[role], folder / role, envs[role], *make_agent(runs[role], envs[role]))
            for role in ROLES
        }
        pair = Pair(folder, sessions, Alternation())
        with _overseeing(pair):
            return _train(pair, resume=True)
    finally:
        envs[FORWARD].close()


@contextlib.contextmanager
def _overseeing(pair: Pair) -> Iterator[None]:
    """With whoever looks after both policies."""
    with overseeing(pair.sessions[FORWARD]), overseeing(pair.sessions[BACKWARD], pair.sessions[FORWARD].overseer):
        yield


def _train(pair: Pair, resume: bool) -> dict[str, Any]:
    run, folder = pair.run, pair.folder
    locks = [FolderLock(folder / role) for role in ROLES]
    logs: dict[str, MetricsLog] = {}
    try:
        for role in ROLES:
            clean(folder / role)
        saved = _restore(pair) if resume else {}
        begun_s = time.monotonic() - pair.sessions[FORWARD].counters.wall_s
        for role, session in pair.sessions.items():
            logs[role] = MetricsLog(
                folder / role, "env_steps", session.steps if resume else None, session.run.train.tracker
            )
        title = f"{pair.sessions[FORWARD].run.task} <> {pair.sessions[BACKWARD].run.task} {run.agent}"
        with Progress(title, run.train.steps, pair.steps) as progress, StopSignals(progress.say) as stop:
            for role, session in pair.sessions.items():
                demonstrate(session, progress, stop)
                if role in saved:
                    restore_replay(session, saved[role])
                pretrain(session, progress, stop)
            if not stop():
                _loop(pair, logs, progress, stop, begun_s)
        if stop.signum is not None:
            raise Interrupted(
                f"stopped at {pair.steps} of {run.train.steps} steps of each role; go on with: "
                f"robot-rl train --resume {shlex.quote(str(folder))}",
                stop.signum,
            )
        return _finish(pair, logs, begun_s)
    finally:
        for log in logs.values():
            log.__exit__(*sys.exc_info())
        for lock in locks:
            lock.release()


def _loop(pair: Pair, logs: Mapping[str, MetricsLog], progress: Progress, stop: StopSignals, begun_s: float) -> None:
    """Episode after episode, until both roles have made their steps or ``stop`` says so."""
    config, turns = pair.run.train, pair.turns
    rates = {role: (Rate(each.counters.env_steps), Rate(each.counters.updates)) for role, each in pair.sessions.items()}
    envs = {role: session.env for role, session in pair.sessions.items()}
    saved = pair.all_steps
    while pair.steps < config.steps and not stop():
        obs = begin_turn(
            envs,
            turns,
            {role: _seed(each) for role, each in pair.sessions.items()},
            pair.behind,
            progress.say,
            pair.run.world,
        )
        role = turns.role
        session, started_s = pair.sessions[role], time.monotonic()
        counters = session.counters
        row = play(session, obs, _seed(session), stop)
        require_finite(row, session)
        turns.count(bool(row["success"]), bool(row["faults"]), config.ask_after)
        counters.train_s += time.monotonic() - started_s
        counters.wall_s = time.monotonic() - begun_s
        env_rate, update_rate = rates[role][0].add(counters.env_steps), rates[role][1].add(counters.updates)
        row |= {"person_resets": turns.person_resets, "wall_s": counters.wall_s}
        logs[role].row(row | {"env_steps_per_s": env_rate, "updates_per_s": update_rate})
        progress.update(pair.steps, _facts(pair))
        if pair.all_steps // config.checkpoint_every > saved // config.checkpoint_every:
            saved = pair.all_steps
            _save(pair, logs)
    _save(pair, logs)


def _facts(pair: Pair) -> dict[str, str]:
    """What the progress line says."""
    facts = {role: percent(session.success_rate) for role, session in pair.sessions.items()}
    return facts | {"episodes": str(sum(s.counters.episodes for s in pair.sessions.values())),
                    "person": f"{pair.turns.person_resets} times"}  # fmt: skip


def _seed(session: Session) -> int:
    return episode_seed(session.run.seed, "train", session.counters.episodes)


def _write_state(pair: Pair, saved: Mapping[str, int]) -> None:
    state = {"format": FORMAT, "tasks": {role: pair.sessions[role].run.task for role in ROLES}}
    write_json(pair.folder / "pair.json", state | {"turns": asdict(pair.turns), "checkpoints": dict(saved)})


def _save(pair: Pair, logs: Mapping[str, MetricsLog]) -> None:
    """Checkpoints of both roles; they count once pair.json names them."""
    for role, session in pair.sessions.items():
        logs[role].sync()
        save(session)
    _write_state(pair, {role: session.steps for role, session in pair.sessions.items()})


def _restore(pair: Pair) -> dict[str, Path]:
    """Go on from the checkpoints that pair.json names, and return them by role, for their replays; a newer one was made
    just before a crash, and goes."""
    state = read_json(pair.folder / "pair.json", _RESTORE)
    pair.turns.placements = int(state["turns"]["placements"])
    saved: dict[str, Path] = {}
    for role, session in pair.sessions.items():
        step = state["checkpoints"].get(role)
        for path in checkpoints(session.folder):
            if step is None or int(path.name) > step:
                remove_folder(path)
        if step is not None:
            saved[role] = session.folder / "checkpoints" / f"{step:09d}"
            restore(session, saved[role])
    return saved


def _finish(pair: Pair, logs: Mapping[str, MetricsLog], begun_s: float) -> dict[str, Any]:
    """Alternate the trained policies, and write a summary of the pair and of each role."""
    config = pair.run.train
    players = {role: (session.env, session.agent, session.encoder) for role, session in pair.sessions.items()}
    with Progress("evaluation", config.eval_episodes) as progress:
        result = evaluate_pair(
            players, config.eval_episodes, pair.run.seed, config.ask_after, pair.run.world, progress.say,
            lambda count, rate: progress.update(count, {"success": percent(rate)}),
        )  # fmt: skip
    wall_s = time.monotonic() - begun_s
    summary = describe(pair.run, pair.sessions[BACKWARD].run, result)
    summary |= {
        "env_steps": pair.all_steps,
        "episodes": sum(session.counters.episodes for session in pair.sessions.values()),
        "training_person_resets": pair.turns.person_resets,
        "wall_s": round(wall_s, 3),
    }
    for role, session in pair.sessions.items():
        own = summarize(session, result.roles[role], wall_s)
        write_json(session.folder / "summary.json", own)
        logs[role].result(own)
    write_json(pair.folder / "summary.json", summary)
    return summary


def describe(forward: Run, backward: Run, result: PairEvaluation) -> dict[str, Any]:
    """An evaluation as JSON values."""
    about: dict[str, Any] = {
        "task": forward.task,
        "reset_task": backward.task,
        "arm": forward.arm,
        "world": forward.world,
    }
    about |= {"agent": forward.agent, "seed": forward.seed}
    roles = {f"{role}_success_rate": result.roles[role].success_rate for role in ROLES}
    roles |= {f"{role}_mean_length": result.roles[role].mean_length for role in ROLES}
    whole: dict[str, Any] = {
        "success_rate": result.success_rate,
        "success_last_100": result.success_last_100,
        "eval_episodes": result.episodes,
        "person_resets": result.person_resets,
        "longest_without_person": result.longest_without_person,
    }
    return about | whole | roles
