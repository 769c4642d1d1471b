"""Training in one process: act, step, store, update; checkpoints from which it goes on with exactly the same numbers.

Nothing of the environment has to be saved: an episode depends on its seed and its actions only, seeds are derived from
(run seed, purpose, index), and checkpoints are taken between episodes.

Threads are left to XLA, which takes all cores for an update while Python steps the environment beside it: holding XLA
or BLAS to one thread was no faster on two cores.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_rl import checkpoint
from robot_rl.demo import check_demonstrations, record
from robot_rl.energy import EpisodeEnergy
from robot_rl.episode import cost_of, episode_seed, success_of
from robot_rl.evaluate import Evaluation, evaluate
from robot_rl.files import FolderLock, disk_errors, sync_folder, write_json
from robot_rl.interrupt import Interrupted, StopSignals
from robot_rl.log import MetricsLog, Progress, Rate, as_row, percent
from robot_rl.replay import ReplayBuffer, sample_mixture
from robot_rl.run import (
    Run,
    check_metadata,
    check_new,
    checkpoints,
    configs,
    create,
    extend,
    load,
    make_agent,
    make_env,
    newest,
    remove_folder,
)
from robot_rl.store import EpisodeReader, EpisodeWriter, StoreInfo, load_into
from robot_rl.trackers import check_tracker

if TYPE_CHECKING:
    import gymnasium as gym

    from robot_rl.spaces import Encoder
    from robot_rl.types import Agent, Transition

KEPT_CHECKPOINTS = 2
_KEY_STREAM = 7  # any number: separates the keys of actions from other uses of the seed


@dataclass
class Counters:
    """Where training is; saved with each checkpoint."""

    env_steps: int = 0
    updates: int = 0
    episodes: int = 0
    demo_episodes: int = 0
    recent: list[bool] = field(default_factory=list)  # successes of the last training episodes
    wall_s: float = 0.0
    train_s: float = 0.0  # of which acting, stepping and updating


@dataclass
class Session:
    """Everything that changes while training."""

    run: Run
    folder: Path
    env: gym.Env
    encoder: Encoder
    agent: Agent
    replay: ReplayBuffer
    demos: ReplayBuffer
    rng: np.random.Generator
    counters: Counters = field(default_factory=Counters)

    @property
    def steps(self) -> int:
        """What ``TrainConfig.steps`` counts."""
        return self.counters.updates if self.run.offline else self.counters.env_steps

    @property
    def success_rate(self) -> float | None:
        recent = self.counters.recent
        return sum(recent) / len(recent) if recent else None


def train(run: Run, folder: Path) -> dict[str, Any]:
    """Make ``folder`` and train in it; returns what ``summary.json`` then holds.

    Raises FileExistsError for a folder in use, FloatingPointError where a loss is no number any more, Interrupted
    after Ctrl-C or SIGTERM. Each leaves the last checkpoint whole.
    """
    check_new(folder)
    check_tracker(run.train.tracker)
    env = make_env(run)  # before the folder is made, so that a wrong name leaves none behind
    try:
        encoder, agent = make_agent(run, env)
        if run.demo_share > 0:
            check_demonstrations(run, env, "cost" in agent.stored)
        create(folder, run)
        return _train(_session(run, folder, env, encoder, agent), resume=False)
    finally:
        env.close()


def resume(folder: Path, steps: int | None = None) -> dict[str, Any]:
    """Go on from the newest checkpoint of ``folder``, to ``steps`` if given: the same numbers as without the break."""
    run = load(folder)
    env = make_env(run)
    try:
        if steps is not None and steps != run.train.steps:
            run = replace(run, train=replace(run.train, steps=steps))
            extend(folder, run.train)
        return _train(_session(run, folder, env, *make_agent(run, env)), resume=True)
    finally:
        env.close()


def _session(run: Run, folder: Path, env: gym.Env, encoder: Encoder, agent: Agent) -> Session:
    dim = int((env.action_space.shape or (0,))[0])
    replay = ReplayBuffer(run.train.replay_capacity, encoder.space, dim, agent.stored)
    demos = ReplayBuffer(1, encoder.space, dim, agent.stored)  # until it is known how many there are
    return Session(run, folder, env, encoder, agent, replay, demos, np.random.default_rng([run.seed, 11]))


def _train(session: Session, resume: bool) -> dict[str, Any]:
    run, folder = session.run, session.folder
    lock = FolderLock(folder)
    try:
        for leftover in (*folder.glob("checkpoints/.*"), *folder.glob(".*.tmp")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        if resume and checkpoints(folder):
            _restore(session, newest(folder))
        begun_s = time.monotonic() - session.counters.wall_s
        name = "updates" if run.offline else "env_steps"
        with MetricsLog(folder, name, session.steps if resume else None, run.train.tracker) as log:
            with (
                Progress(f"{run.task} {run.agent}", run.train.steps, session.steps) as progress,
                StopSignals(progress.say) as stop,
            ):
                _demonstrate(session, progress, stop)
                if not stop():
                    _loop(session, log, progress, stop, begun_s)
            if stop.signum is not None:
                raise Interrupted(
                    f"stopped at {session.steps} of {run.train.steps} steps; go on with: "
                    f"robot-rl train --resume {shlex.quote(str(folder))}",
                    stop.signum,
                )
            summary = _finish(session, begun_s)
            log.result(summary)
            return summary
    finally:
        lock.release()


def _loop(session: Session, log: MetricsLog, progress: Progress, stop: StopSignals, begun_s: float) -> None:
    """Play (or, offline, study) until the steps are done or ``stop`` says so; log and save on the way."""
    run, counters, config = session.run, session.counters, session.run.train
    rates = Rate(counters.env_steps), Rate(counters.updates)
    saved = evaluated = session.steps
    while session.steps < config.steps and not stop():
        started_s = time.monotonic()
        row = _study(session) if run.offline else _play(session, stop)
        _require_finite(row, session)
        counters.train_s += time.monotonic() - started_s
        env_rate, update_rate = rates[0].add(counters.env_steps), rates[1].add(counters.updates)
        if config.eval_every and session.steps // config.eval_every > evaluated // config.eval_every:
            evaluated = session.steps
            result = evaluate(session.env, session.agent, session.encoder, config.eval_every_episodes, run.seed)
            row |= {"eval_success_rate": result.success_rate, "eval_return": result.mean_return}
            row |= {} if result.mean_cost is None else {"eval_cost": result.mean_cost}
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


def _play(session: Session, stop: StopSignals) -> dict[str, Any]:
    """One episode. What was learned before a step acts in it; its own transition is learned from in the next.

    JAX computes the update while the environment steps and the next batch is drawn.
    """
    run, counters, encoder = session.run, session.counters, session.encoder
    obs, _ = session.env.reset(seed=episode_seed(run.seed, "train", counters.episodes))
    encoded, carry = encoder.encode(obs), session.agent.start()
    key_word = np.random.SeedSequence([run.seed, _KEY_STREAM]).generate_state(1)[0]
    metrics: list[dict[str, Any]] = []
    costs: list[float | None] = []
    success: bool | None = None
    total, length, faults = 0.0, 0, 0
    energy = EpisodeEnergy()
    terminated = truncated = False
    while not (terminated or truncated):
        stop()  # says at once that a signal was heard; the episode is played out all the same
        batch = _batch(session)
        if counters.env_steps < run.agent_config.start_steps and not len(session.demos):
            action = session.rng.uniform(-1.0, 1.0, session.replay.action_dim).astype(np.float32)
            extra: dict[str, Any] = {"proposed": action}
        else:
            key = np.array([key_word, counters.env_steps], np.uint32)
            drawn, carry, extra = session.agent.act(encoded, carry, key, True)
            action = np.asarray(drawn, np.float32)
            _require_finite({"action": float(action.sum())}, session)
        if batch is not None:
            session.agent, step_metrics = session.agent.update(batch)
            metrics.append(step_metrics)
            counters.updates += len(batch.reward)
        obs, reward, terminated, truncated, info = session.env.step(action)
        energy.add(info)
        following = encoder.encode(obs)
        costs.append(_cost(session, info))
        ends = bool(terminated), bool(truncated)
        extra = extra | {"cost": costs[-1]}
        session.replay.add(encoded, action, float(reward), *ends, following, counters.episodes, extra)
        encoded, success = following, success_of(info)
        total, length, faults = total + float(reward), length + 1, faults + bool(info.get("fault"))
        counters.env_steps += 1
    counters.episodes += 1
    if success is not None:
        counters.recent = [*counters.recent, success][-run.train.window :]
    row: dict[str, Any] = {"env_steps": counters.env_steps, "updates": counters.updates, "episodes": counters.episodes}
    row |= {"return": total, "length": length, "faults": faults, "success_rate": session.success_rate}
    row |= energy.row()
    row |= {} if None in costs else {"cost": float(np.mean(np.asarray(costs, np.float64)))}
    return row | {"success": None if success is None else int(success)} | _mean(metrics)


def _cost(session: Session, info: Mapping[str, Any]) -> float | None:
    """``cost_of`` a step; raises ValueError where there is none though the agent learns from it."""
    cost = cost_of(info)
    if cost is None and "cost" in session.agent.stored:
        raise ValueError(
            "the environment reports no info['cost'], which this agent's constraint learns from: report one number "
            "per step, or train with --set agent.constraint=none"
        )
    return cost


def _study(session: Session) -> dict[str, Any]:
    """``log_every`` updates from demonstrations alone; always all of them, as an episode is always played out."""
    metrics = []
    goal = session.counters.updates + session.run.train.log_every
    while session.counters.updates < goal:
        batch = _batch(session)
        assert batch is not None  # offline training has demonstrations, _demonstrate saw to that
        session.agent, step_metrics = session.agent.update(batch)
        metrics.append(step_metrics)
        session.counters.updates += len(batch.reward)
    return {"updates": session.counters.updates} | _mean(metrics)


def _batch(session: Session) -> Transition | None:
    """Leaves (U, B, ...), demonstrations in their share; None before learning starts."""
    config, counters = session.run.agent_config, session.counters
    if not session.run.offline and (counters.env_steps < config.learning_starts or not len(session.replay)):
        return None
    sources = [(session.replay, 1.0 - session.run.demo_share), (session.demos, session.run.demo_share)]
    return sample_mixture(session.rng, sources, (config.utd_ratio, config.batch_size))


def _mean(metrics: list[dict[str, Any]]) -> dict[str, float]:
    return (
        as_row({name: np.mean([np.asarray(part[name]) for part in metrics]) for name in metrics[0]}) if metrics else {}
    )


def _require_finite(row: dict[str, Any], session: Session) -> None:
    for name, value in row.items():
        if value is not None and not math.isfinite(value):
            saved = checkpoints(session.folder)
            kept = f"the last good checkpoint is {saved[-1]}" if saved else "there was no checkpoint yet"
            raise FloatingPointError(
                f"{name} became {value} before environment step {session.counters.env_steps}, update "
                f"{session.counters.updates}; {kept}. Lower the learning rates or the replay ratio (--set agent.…)"
            )


def _demonstrate(session: Session, progress: Progress, stop: StopSignals) -> None:
    """Fill the demonstration buffer, recording what is missing."""
    run, counters = session.run, session.counters
    if run.demo_share <= 0 or stop():
        return
    path = Path(run.demos) if run.demos else session.folder / "demos.zarr"
    if not run.demos:
        wanted = run.train.demo_episodes
        info = StoreInfo.of(session.env, run.task, run.arm, run.world, configs(run))
        with EpisodeWriter(path, info) as writer:
            if len(writer) < wanted:
                progress.say(f"Recording {wanted - len(writer)} demonstrations into {path}")
                result = record(session.env, writer, wanted - len(writer), run.seed, stop=stop)
                progress.say(f"{result.kept} demonstrations kept, {result.failed} failures left out")
        if stop():
            return
    reader = EpisodeReader(path)
    session.demos = ReplayBuffer(
        max(1, reader.rows), session.encoder.space, session.replay.action_dim, session.agent.stored
    )
    counters.demo_episodes = counters.demo_episodes or len(reader)  # a resumed run takes those it began with
    load_into(session.demos, reader, session.encoder, counters.demo_episodes)


def save(session: Session) -> None:
    """Write a checkpoint, whole or not at all, and drop all but the two newest."""
    final = session.folder / "checkpoints" / f"{session.steps:09d}"
    if final.exists():
        return
    temporary = final.with_name(f".{final.name}.tmp")
    run = session.run
    metadata = {"task": run.task, "agent": run.agent, "steps": session.steps, "counters": asdict(session.counters)}
    with disk_errors(final):
        temporary.mkdir(parents=True)
        try:
            checkpoint.save(
                temporary / "agent.ckpt", session.agent, metadata | {"rng": session.rng.bit_generator.state}
            )
            session.replay.save(temporary / "replay.npz")
            sync_folder(temporary)
            os.replace(temporary, final)
        except BaseException:
            shutil.rmtree(temporary)
            raise
        sync_folder(final.parent)
        for old in checkpoints(session.folder)[:-KEPT_CHECKPOINTS]:
            remove_folder(old)


def _restore(session: Session, path: Path) -> None:
    try:
        checkpoint.load_metadata(path / "agent.ckpt")
        session.replay.load(path / "replay.npz")
    except (ValueError, FileNotFoundError) as error:
        earlier = checkpoints(session.folder)[:-1]
        raise ValueError(
            f"{error}. If the checkpoint is damaged, delete the folder {path} and resume again: training then goes on "
            f"from {earlier[-1] if earlier else 'its beginning'}"
        ) from error
    metadata = check_metadata(session.run, path)
    session.agent = checkpoint.load(path / "agent.ckpt", session.agent)
    session.rng.bit_generator.state = metadata["rng"]
    session.counters = Counters(**metadata["counters"])


def _finish(session: Session, begun_s: float) -> dict[str, Any]:
    """Evaluate, and write ``summary.json``."""
    run = session.run
    with Progress("evaluation", run.train.eval_episodes) as progress:
        result = evaluate(
            session.env, session.agent, session.encoder, run.train.eval_episodes, run.seed,
            lambda count, rate: progress.update(count, {"success": percent(rate)}),
        )  # fmt: skip
    summary = summarize(session, result, time.monotonic() - begun_s)
    write_json(session.folder / "summary.json", summary)
    return summary


def summarize(session: Session, result: Evaluation, wall_s: float) -> dict[str, Any]:
    """What ``summary.json`` holds."""
    run, counters = session.run, session.counters
    about = {"task": run.task, "arm": run.arm, "world": run.world, "agent": run.agent, "seed": run.seed}
    return about | {
        "success_rate": result.success_rate,
        "success_interval": result.success_interval,
        "eval_episodes": result.episodes,
        "mean_return": result.mean_return,
        "mean_length": result.mean_length,
        "energy": result.energy,
        "mean_cost": result.mean_cost,
        "env_steps": counters.env_steps,
        "updates": counters.updates,
        "episodes": counters.episodes,
        "demo_episodes": counters.demo_episodes,
        "wall_s": round(wall_s, 3),
        "env_steps_per_s": round(counters.env_steps / max(counters.train_s, 1e-9), 3),
        "updates_per_s": round(counters.updates / max(counters.train_s, 1e-9), 3),
    }
