"""From rows of steps, as actors logged them, to what a learner learns from: transitions, and one account an episode."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_rl.energy import OF_STEP
from robot_rl.episode import EpisodeAccount, success_of
from robot_rl.session import require_cost
from robot_rl.step_log import FIRST, STEP, UNKNOWN, Layout
from robot_rl.types import POLICY

if TYPE_CHECKING:
    from robot_rl.replay import ReplayBuffer
    from robot_rl.spaces import Encoder


def fill_row(
    row: np.ndarray, reward: float, ends: tuple[bool, bool], cost: float | None, info: Mapping[str, Any]
) -> None:
    """Write what a step came to into ``row`` (), of a ``Layout.dtype``; its header and its arrays are the caller's."""
    row["source"], row["segment"] = info.get("source", POLICY), info.get("segment", 0)
    row["discarded"], row["called"] = info.get("discarded", False), info.get("called", False)
    true_success = info.get("true_success")
    row["true_success"] = UNKNOWN if true_success is None else true_success
    row["classifier"] = info.get("classifier_version", 0)
    row["reward"], row["cost"] = reward, math.nan if cost is None else cost
    row["terminated"], row["truncated"] = ends
    success = success_of(info)
    row["success"], row["fault"] = UNKNOWN if success is None else success, bool(info.get("fault"))
    energy = info.get("energy")
    row["energy"] = math.nan if energy is None else [energy[name] for name in OF_STEP]


def _info(row: np.ndarray) -> dict[str, Any]:
    """What ``fill_row`` was given."""
    info: dict[str, Any] = {"fault": bool(row["fault"]), "discarded": bool(row["discarded"])}
    info |= {"source": int(row["source"]), "segment": int(row["segment"]), "called": bool(row["called"])}
    if row["classifier"]:
        info["classifier_version"] = int(row["classifier"])
    if row["true_success"] != UNKNOWN:
        info["true_success"] = bool(row["true_success"])
    if row["success"] != UNKNOWN:
        info["success"] = bool(row["success"])
    if not np.isnan(row["energy"]).all():
        info["energy"] = dict(zip(OF_STEP, row["energy"].tolist(), strict=True))
    return info


@dataclass
class _Stream:
    """One actor's log as far as it was read."""

    obs: dict[str, np.ndarray]  # encoded, of the last row
    account: EpisodeAccount
    segments: dict[int, int]  # of the episode -> of the replay buffer


@dataclass(frozen=True)
class Taken:
    """What one row brought."""

    step: bool  # whether it was a transition
    ended: EpisodeAccount | None  # of the episode that it ended
    policy: int  # version that acted


class Intake:
    """Puts transitions into a replay buffer. Rows of different actors may come in any order, those of one in theirs;
    each actor's episode is a segment of its own, or several where somebody took over."""

    def __init__(self, layout: Layout, encoder: Encoder, replay: ReplayBuffer, stored: Mapping[str, Any]) -> None:
        self._names = list(layout.observation)
        self._extra = list(layout.extra)
        self._encoder, self._replay, self._stored = encoder, replay, stored
        self._streams: dict[int, _Stream] = {}
        self._segments = 0
        self.episodes: Counter[int] = Counter()  # that ended, by log

    def take(self, row: np.ndarray) -> Taken:
        """Read one row. Raises ValueError where it lacks a cost that the agent learns from."""
        log, policy = int(row["log"]), int(row["policy"])
        obs = self._encoder.encode({name: np.array(row[f"obs/{name}"]) for name in self._names})
        if row["kind"] == FIRST:
            self._streams[log] = _Stream(obs, EpisodeAccount(), {})
            return Taken(False, None, policy)
        stream = self._streams.get(log)
        if stream is None:  # reading began in the middle of an episode, at what no longer fits into the buffer
            return Taken(True, None, policy)
        cost = None if np.isnan(row["cost"]) else float(row["cost"])
        extra: dict[str, Any] = {name: row[f"extra/{name}"] for name in self._extra} | {
            "cost": require_cost(cost, self._stored)
        }
        ends = bool(row["terminated"]), bool(row["truncated"])
        action, reward = row["action"], float(row["reward"])
        info = _info(row)
        if info["segment"] not in stream.segments:
            stream.segments[info["segment"]] = self._segments
            self._segments += 1
        segment = stream.segments[info["segment"]]
        self._replay.add(stream.obs, action, reward, *ends, obs, segment, extra, info["source"], info["called"])
        stream.obs = obs
        stream.account.add(reward, cost, info)
        if info["discarded"]:
            self._replay.discard(list(stream.segments.values()))
        if not any(ends):
            return Taken(True, None, policy)
        self.episodes[log] += 1
        del self._streams[log]  # until its next first row, nothing follows
        return Taken(True, stream.account, policy)


def transitions(rows: np.ndarray) -> int:
    """How many of ``rows`` (k,) are transitions."""
    return int(np.count_nonzero(rows["kind"] == STEP))
