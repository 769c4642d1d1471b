"""The actor: plays episodes beside the robot, writes every step to its own disk, and lets a courier do the rest.

    DIR/steps.zarr   its log (step_log.py): the truth about what happened, whatever becomes of the learner
    DIR/actor.json   which run it is of, and how often it was opened

The control loop never waits for the network: a step is appended to the log, and the newest policy that has come by
then acts in the next one. Only in simulation, where time waits for it, does an actor hold back when it is further ahead
of the learner than the run allows.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl import build, checkpoint, rig
from robot_rl.build import split_settings
from robot_rl.config import override
from robot_rl.episode import action_key, cost_of, episode_seed, fields_of, flatten
from robot_rl.files import disk_errors, read_json, write_json
from robot_rl.intake import fill_row
from robot_rl.interrupt import Interrupted, StopSignals
from robot_rl.intervention import Nobody, Overseer, Turns, make_overseer
from robot_rl.learner import STORE, is_simulated
from robot_rl.link import link_pb2 as pb
from robot_rl.link.client import Identity, LinkClient, described
from robot_rl.link.courier import Courier, Policy
from robot_rl.link.receive import nonsense
from robot_rl.link.security import Endpoint
from robot_rl.pace import Pace, control_period_s
from robot_rl.run import Run, choose_device, from_description, make_agent, make_env
from robot_rl.step_log import FIRST, STEP, Layout, StepLog, seal

SEND_EVERY = 8  # rows
OWN = ("arm", "lab", "intervention", "teleop")  # sections of settings that are the machine's beside the robot
_ANOTHER = "give the actor another --out"


@dataclass(frozen=True)
class Place:
    """Where and how an actor acts."""

    learner: Endpoint
    folder: Path
    index: int = 0  # of the actor in its run: episodes of different ones never meet
    keys: Path | None = None
    rig: Path | None = None
    settings: tuple[str, ...] = ()  # of OWN sections, such as "arm.address=172.16.0.2"
    real_time: bool = False  # let a twin's steps last as long as an arm's

    @property
    def name(self) -> str:
        return f"actor{self.index}"


def act(place: Place, say: Callable[[str], None], stop: StopSignals) -> dict[str, Any]:
    """Act until the learner has what it wants; returns what came of it.

    Raises Interrupted after Ctrl-C or SIGTERM, ConnectionError where the learner refuses, OSError where the disk is
    full.
    """
    for setting in place.settings:
        if setting.partition(".")[0] not in OWN:
            raise ValueError(f"setting '{setting}': an actor sets {', '.join(OWN)} only, the rest is its learner's")
    client = LinkClient(place.learner, place.keys)
    try:
        return _act(place, client, say, stop)
    finally:
        client.close()


def _act(place: Place, client: LinkClient, say: Callable[[str], None], stop: StopSignals) -> dict[str, Any]:
    def rest(seconds: float) -> bool:
        time.sleep(seconds)
        return stop()

    about = described(client, say, rest)
    if about is None:
        raise Interrupted("stopped before the learner answered", stop.signum or 0)
    run = from_description(about, f"the description of the learner at {place.learner}")
    here = _at_home(run, place)
    _check_lab(run, here)
    run, env = here, make_env(here, here.render_mode)
    overseer: Overseer = Nobody()
    try:
        encoder, agent = make_agent(run, env)
        overseer = make_overseer(run.intervention, run.teleop, env, say)
        extra = {name: shape for name, shape in agent.stored.items() if name != "cost"}
        layout = Layout(fields_of(env.observation_space), int((env.action_space.shape or (0,))[0]), extra)
        incarnation, log_id = _open_folder(place, about["run"])
        with StepLog(place.folder / STORE, layout, {"run": about["run"], "actor": place.name, "log": log_id}) as log:
            sender = Identity(about["run"], place.name, int(log.about["log"]), incarnation)
            actor = _Actor(run, place, env, encoder, agent, log, sender, overseer)
            courier = Courier(client, sender, log, SEND_EVERY, actor.health, say)
            actor.courier = courier
            try:
                actor.play(stop)
            finally:
                env.close()  # first of all: whatever waits below, the arm is held
                unsent = courier.close()
            if courier.failure is not None:
                raise courier.failure
            if stop.signum is not None:
                raise Interrupted(
                    f"stopped; {unsent} rows are in {log.path} only, and are sent when this actor is started again",
                    stop.signum,
                )
            return {"actor": place.name, "steps": actor.steps, "episodes": actor.episode, "rows": len(log)}
    finally:
        overseer.close()
        env.close()


def _at_home(run: Run, place: Place) -> Run:
    """The learner's ``run`` with what this machine beside the robot says of arm, lab, and who intervenes."""
    changes = split_settings(place.settings, OWN)
    facts = [f"{section}.{text}" for section in ("arm", "lab") for text in changes[section]]
    intervention = override(run.intervention, changes["intervention"])
    device = rig.load(place.rig).teleop
    teleop = run.teleop
    if intervention.by != run.intervention.by or device is not None or changes["teleop"]:
        teleop = choose_device(intervention.by, device, changes["teleop"])
    settings = (*run.settings, *rig.words(place.rig, run.arm, run.world, facts))
    return replace(run, settings=settings, intervention=intervention, teleop=teleop)


def _check_lab(there: Run, here: Run) -> None:
    """Raises ValueError where this lab would allow more than the learner's settings do."""
    if is_simulated(there):
        return
    from robot_rl.lab import Config, wider

    labs = [
        build.make_configs(run.task, run.arm, run.world, run.settings).get("lab", Config()) for run in (there, here)
    ]
    if name := wider(*labs):
        raise ValueError(
            f"lab.{name} is {getattr(labs[1], name)} here and {getattr(labs[0], name)} at the learner: bounds are only "
            "ever tightened; narrow it here"
        )


def _open_folder(place: Place, run: str) -> tuple[int, int]:
    """Which incarnation of this actor this is, and the number of its log. Raises ValueError for a folder of another."""
    path = place.folder / "actor.json"
    with disk_errors(place.folder):
        place.folder.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = {"run": run, "actor": place.name, "incarnation": 0}
    if path.exists():
        known = read_json(path, _ANOTHER)
    for name, value in (("run", run), ("actor", place.name)):
        if known.get(name) != value:
            raise ValueError(f"{place.folder} is of {name} {known.get(name)!r}, this is {value!r}: {_ANOTHER}")
    known["incarnation"] += 1
    known.setdefault("log", secrets.randbits(63))
    write_json(path, known)
    return known["incarnation"], known["log"]


class _Actor:
    """One actor's control loop."""

    def __init__(
        self, run: Run, place: Place, env: Any, encoder: Any, agent: Any, log: StepLog, sender: Identity,
        overseer: Overseer,
    ) -> None:  # fmt: skip
        self._run, self._place, self._env, self._encoder, self._agent = run, place, env, encoder, agent
        self._log, self._sender, self._overseer = log, sender, overseer
        self.courier: Courier
        self._policy: Policy | None = None
        simulated = is_simulated(run)
        real_time = place.real_time or overseer.paced
        self._pace = Pace(control_period_s(env) if real_time or not simulated else None, real_time and simulated)
        self._waits = simulated and not real_time
        self.episode = int(log.read(len(log) - 1, len(log))["episode"][0]) + 1 if len(log) else 0
        self.steps = len(log) - self.episode  # every episode has one row that is no step
        self._rng = np.random.default_rng([run.seed, 13, place.index, sender.incarnation])

    def health(self) -> Any:
        """For the learner's metrics; asked for by the courier's thread, which adds how it is doing itself."""
        policy, pace = self._policy, self._pace
        return pb.Health(
            period_p50_s=pace.percentile(0.5),
            period_p99_s=pace.percentile(0.99),
            late=pace.late,
            steps=pace.steps,
            policy_age_s=time.monotonic() - policy.arrived_s if policy is not None else 0.0,
        )

    def play(self, stop: StopSignals) -> None:
        """Episodes until the learner, a person or a failure ends it."""
        courier = self.courier
        while not courier.wait_for(lambda: courier.heard, 0.5):  # a first word of the learner
            if stop():
                return
        seen = {name: np.zeros(box.shape, box.dtype) for name, box in self._encoder.space.spaces.items()}
        self._agent.act(seen, self._agent.start(), action_key(0, 0), True)  # compiled here, not in a control step
        while not (stop() or courier.ended):
            self._episode(stop)
            self.episode += 1
        courier.notify(flush=True)

    def _episode(self, stop: StopSignals) -> None:
        env, seed = self._env, episode_seed(self._run.seed, "train", self.episode, self._place.index)
        obs, _ = env.reset(seed=seed)
        turns = Turns(self._overseer, seed)
        self._append(FIRST, 0, obs)
        encoded, carry = self._encoder.encode(obs), self._agent.start()
        self._pace.restart()
        step, ends = 0, (False, False)
        while not any(ends):
            if self._hold_back(stop):
                return
            proposed, carry, extra = self._choose(encoded, carry)
            action, extra = turns.choose(obs, proposed, extra)
            obs, reward, *ends_now, info = env.step(action)
            reward, *ends_now, info = turns.settle(float(reward), bool(ends_now[0]), bool(ends_now[1]), info)
            ends = ends_now[0], ends_now[1]
            self._pace.step()
            step, self.steps = step + 1, self.steps + 1
            self._append(STEP, step, obs, action, extra, (reward, ends, cost_of(info), info))
            encoded = self._encoder.encode(obs)
        if turns.event == "stop":
            env.unwrapped.arm.stop()
            stop.note()
        self.courier.notify(flush=True)

    def _hold_back(self, stop: Callable[[], bool]) -> bool:
        """Whether to end here; in simulation also waits for the learner to allow the next step."""
        courier = self.courier
        if self._waits and self.steps >= courier.granted and not courier.ended:
            courier.notify(flush=True)
            while not courier.wait_for(lambda: self.steps < courier.granted, 0.5):
                if stop():
                    return True
        return courier.ended or stop()

    def _choose(self, encoded: dict[str, np.ndarray], carry: Any) -> tuple[np.ndarray, Any, dict[str, Any]]:
        """The action of the newest policy; a random one before the first."""
        newer = self.courier.newest()
        if newer is not None:
            arrays, source = dict(newer.arrays), f"policy {newer.version} of the learner"
            self._agent = self._agent.with_policy(checkpoint.fill(self._agent.policy, arrays, source, "message"))
            self._policy = newer
        if self._policy is None:
            action = self._rng.uniform(-1.0, 1.0, self._log.layout.action_dim).astype(np.float32)
            return action, carry, {"proposed": action}
        key = action_key(self._run.seed, self.steps, self._place.index)
        drawn, carry, extra = self._agent.act(encoded, carry, key, True)
        action = np.asarray(drawn, np.float32)
        if not np.isfinite(action).all():
            raise FloatingPointError(f"policy {self._policy.version} gives action {action}: the learner has diverged")
        return action, carry, extra

    def _append(
        self, kind: int, step: int, obs: Any, action: np.ndarray | None = None, extra: Any = None, came: Any = None
    ) -> None:
        """One row, at once, to the log."""
        rows = np.zeros(1, self._log.layout.dtype)
        row = rows[0]
        row["kind"], row["log"], row["sequence"] = kind, self._sender.log, len(self._log)
        row["episode"], row["step"] = self.episode, step
        row["policy"] = self._policy.version if self._policy is not None and kind == STEP else 0
        for name, value in flatten(obs).items():
            row[f"obs/{name}"] = value
        if action is not None:
            row["action"] = np.clip(action, -1.0, 1.0)
            for name in self._log.layout.extra:
                row[f"extra/{name}"] = extra[name]
            reward, ends, cost, info = came
            fill_row(row, reward, ends, cost, info)
        if problem := nonsense(rows, self._log.layout):  # no learner would take it, nor anything behind it
            raise ValueError(f"{problem}: the environment must not give it; the step was not logged")
        seal(rows)
        self._log.append(rows)
        self.courier.notify()
