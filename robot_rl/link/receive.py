"""What rows a learner takes: whole ones, of the layout, each the next one of its actor's log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from robot_rl.step_log import FIRST, STEP, UNKNOWN, Layout, StepLog, intact
from robot_rl.types import INTERVENTION, POLICY

LARGEST = 1e30  # number in an observation: beyond it, what is scaled and stored as float32 might not be finite


class Refused(Exception):
    """A message that is not taken, and the status that its sender gets."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Log:
    """How much of one actor's log is here."""

    id: int
    incarnation: int = 0
    rows: int = 0
    steps: int = 0  # of which transitions
    episode: int = -1  # of the last row
    step: int = -1
    ended: bool = False  # with the last row: a new episode has to begin
    waiting: int = 0  # messages that wait for the disk

    def take(self, rows: np.ndarray) -> None:
        """Count ``rows`` (k,), which are its next ones."""
        self.rows += len(rows)
        self.steps += int(np.count_nonzero(rows["kind"] == STEP))
        self.episode, self.step = int(rows["episode"][-1]), int(rows["step"][-1])
        self.ended = bool(rows["terminated"][-1] or rows["truncated"][-1])


def read_logs(store: StepLog) -> dict[int, Log]:
    """How much of which log ``store`` holds. Raises ValueError, naming the row, where it is damaged or out of order."""
    logs: dict[int, Log] = {}
    at = 0
    for block in store.blocks(0, len(store), verify=True):
        for log_id in np.unique(block["log"]):
            rows = block[block["log"] == log_id]
            log = logs.setdefault(int(log_id), Log(int(log_id)))
            if problem := _disorder(rows, log):
                raise ValueError(f"{store.path}, rows {at} to {at + len(block)}: {problem}; begin another run")
            log.take(rows)
        at += len(block)
    return logs


def check_rows(request: Any, log: Log, layout: Layout) -> np.ndarray:
    """The rows of an AppendRequest that ``log`` does not have yet, in order. Raises Refused for all others."""
    size = layout.dtype.itemsize
    if len(request.rows) != request.count * size:
        raise _bad(f"{request.count} rows have {len(request.rows)} bytes: a row of this run has {size}")
    if request.first > log.rows:
        raise Refused(
            grpc.StatusCode.OUT_OF_RANGE, f"rows {log.rows} to {request.first} are missing: go on with row {log.rows}"
        )
    known = min(log.rows - request.first, request.count)
    rows = np.frombuffer(request.rows, layout.dtype, request.count - known, known * size)
    if not len(rows):
        return rows
    if not (good := intact(rows)).all():
        raise _bad(f"row {log.rows + int(np.argmin(good))} is damaged: its checksum does not fit")
    if problem := _disorder(rows, log) or nonsense(rows, layout):
        raise _bad(problem)
    return rows


def _disorder(rows: np.ndarray, log: Log) -> str:
    """Why ``rows`` are not the next ones of ``log``; empty where they are."""
    if (rows["log"] != log.id).any():
        return "a row of another log"
    if (rows["sequence"] != log.rows + np.arange(len(rows), dtype=np.uint64)).any():
        return "a row whose sequence is not that of its place"
    episode = np.concatenate([[log.episode], rows["episode"]])
    step = np.concatenate([[log.step], rows["step"]])
    first = rows["kind"] == FIRST
    begins = first & (rows["step"] == 0) & (episode[1:] > episode[:-1])
    follows = (rows["kind"] == STEP) & (step[1:] == step[:-1] + 1) & (episode[1:] == episode[:-1])
    follows &= ~np.concatenate([[log.ended], (rows["terminated"] | rows["truncated"])[:-1]])
    return "" if (begins | follows).all() else "a row that does not follow the one before it"


def nonsense(rows: np.ndarray, layout: Layout) -> str:
    """The first field of ``rows`` that holds what no environment gives; empty where there is none."""
    for name in (
        "terminated",
        "truncated",
        "fault",
        "discarded",
        "called",
        *(f"obs/{name}" for name in layout.observation),
    ):
        if rows[name].dtype.kind == "b" and (rows[name].view(np.uint8) > 1).any():
            return f"{name} is neither true nor false"
    for name in (*(f"obs/{name}" for name in layout.observation), *(f"extra/{name}" for name in layout.extra)):
        if rows[name].dtype.kind == "f" and not (np.abs(rows[name]) <= LARGEST).all():  # nor is NaN
            return f"{name} is not finite"
    if not np.isfinite(rows["reward"]).all():
        return "reward is not finite"
    if not (np.abs(rows["action"]) <= 1.0).all():
        return "action is not in [-1, 1]"
    for name in ("success", "true_success"):
        if (rows[name] < UNKNOWN).any() or (rows[name] > 1).any():  # the least int8 has no absolute value
            return f"{name} is neither told nor unknown"
    if not np.isin(rows["source"], (POLICY, INTERVENTION)).all():
        return "source is neither the policy nor an intervention"
    if np.isinf(rows["cost"]).any() or np.isinf(rows["energy"]).any():
        return "cost or energy is not finite"
    return ""


def _bad(problem: str) -> Refused:
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, problem)
