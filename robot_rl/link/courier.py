"""Between an actor's control loop and the learner: two threads, so that the loop never waits for anything.

One brings rows of the actor's log to the learner, each batch first to the own disk; the other takes news. Whatever
happens to the learner, rows are only ever in the log, from where they are sent once it is back.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from robot_rl.link import wire
from robot_rl.link.client import RETRY_S, Identity, LinkClient, passing
from robot_rl.step_log import StepLog

FLUSH_S = 0.2  # rows are sent at the latest after this long
BEAT_S = 1.0  # without rows, the actor's health is sent this often
LONGEST_RETRY_S = 2.0
_FORGOTTEN = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.OUT_OF_RANGE)


@dataclass(frozen=True)
class Policy:
    """A policy as it came."""

    version: int
    env_steps: int  # that the run had when it was made
    arrays: Mapping[str, np.ndarray]
    arrived_s: float  # time.monotonic()


class Courier:
    """Serves one control loop, which calls ``notify`` after each row and ``newest`` before each step.

    ``health()`` is asked for a message to go with rows. ``failure`` is what ended the link for good, such as a full
    disk or a learner that refuses; it is for the control loop to look at.
    """

    def __init__(
        self,
        client: LinkClient,
        sender: Identity,
        log: StepLog,
        send_every: int,
        health: Callable[[], Any],
        say: Callable[[str], None],
    ) -> None:
        self._client, self._sender, self._log = client, sender, log
        self._send_every, self._health, self._say = send_every, health, say
        self._wake = threading.Condition()
        self._flush, self._closing = False, False
        self._policy: Policy | None = None
        self._taken: Policy | None = None
        self.cursor = 0  # rows that are safe at the learner
        self.granted, self.heard = 0, False  # steps that may be taken; whether the learner has said anything
        self.stop = False  # the learner has what it wants
        self.failure: Exception | None = None
        self.superseded = self.retries = 0
        self._joined, self._connected = False, True
        self._cancel: Callable[[], Any] = lambda: None
        self._batch = self._most = max(1, wire.APPEND_BYTES // log.layout.dtype.itemsize)
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for work, name in ((self._deliver, "link-rows"), (self._fetch, "link-news"))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def unsent(self) -> int:
        """Rows that are in the log only."""
        return len(self._log) - self.cursor

    @property
    def ended(self) -> bool:
        """Whether the control loop has to stop."""
        return self.stop or self.failure is not None

    def notify(self, flush: bool = False) -> None:
        """A row was appended. ``flush``: send what there is."""
        if flush or len(self._log) - self.cursor >= self._send_every:
            with self._wake:
                self._flush = True
                self._wake.notify_all()

    def newest(self) -> Policy | None:
        """The newest policy, where it is another one than last time."""
        policy = self._policy
        if policy is None or policy is self._taken:
            return None
        self._taken = policy
        return policy

    def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Until ``condition()`` is true, which is looked at whenever something came; whether it is."""
        with self._wake:
            return self._wake.wait_for(lambda: condition() or self.ended, timeout_s)

    def close(self, patience_s: float = 5.0) -> int:
        """Send what is unsent, if that works in time, and end; returns how many rows are in the log only."""
        if self.failure is None:
            self.notify(flush=True)
            with self._wake:
                self._wake.wait_for(lambda: not self.unsent or self.failure is not None, patience_s)
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._cancel()
        self._client.close()
        for thread in self._threads:
            thread.join()
        return self.unsent

    # ---------------------------------------------------------------------------------------------------- its threads

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  # handed to the control loop, which raises it
            if not self._closing:
                self._end(error)

    def _end(self, error: Exception) -> None:
        with self._wake:
            self.failure = self.failure or error
            self._wake.notify_all()

    def _deliver(self) -> None:
        pause_s, beat_s = RETRY_S / 4, 0.0
        while not self._closing:
            try:
                if not self._joined:
                    self._log.sync()  # whoever answers: what is on the disk is safe, and there is room for more
                    self._take(self._client.join(self._sender, self._log.layout))
                    self._joined = True
                elif self.unsent or time.monotonic() >= beat_s:
                    self._send()
                    beat_s = time.monotonic() + BEAT_S
                pause_s = RETRY_S / 4
                self._batch = min(2 * self._batch, self._most)
                self._reached()
            except grpc.RpcError as error:
                if error.code() in _FORGOTTEN:
                    self._joined = False  # another learner, or one that knows less: it says what it wants
                elif not passing(error):
                    raise self._refusal(error) from None
                self.retries += 1
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    self._batch = self._most = max(1, self._batch // 2)  # a slow network gets less through in time
                if not (
                    self._joined and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                ):  # a learner that is behind
                    self._lost(error)
                self._rest(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, LONGEST_RETRY_S)
                continue
            if self.unsent < self._send_every:
                self._rest(FLUSH_S, until=lambda: self._flush)
            self._flush = False

    def _send(self) -> None:
        """The next batch, from the log, or none; first it is made sure that the own disk has it."""
        first = self.cursor
        safe = self._log.sync()
        rows = self._log.read(first, min(safe, first + self._batch))
        health = self._health()
        health.unsent, health.superseded, health.retries = self.unsent - len(rows), self.superseded, self.retries
        self._take(self._client.append(self._sender, first, len(rows), rows.tobytes(), health))

    def _take(self, receipt: Any) -> None:
        if receipt.cursor > len(self._log):
            raise ValueError(
                f"the learner has {receipt.cursor} rows of {self._log.path}, which holds {len(self._log)}: it was put "
                "back to an older copy; give the actor another --out"
            )
        with self._wake:
            self.cursor, self.stop = int(receipt.cursor), self.stop or receipt.stop
            self._wake.notify_all()

    def _fetch(self) -> None:
        while not self._closing:
            if not self._joined:
                self._rest(FLUSH_S, until=lambda: self._joined)
                continue
            try:
                news, self._cancel = self._client.follow(self._sender)
                for item in news:
                    self._hear(item)
            except grpc.RpcError as error:
                if error.code() in _FORGOTTEN:
                    self._joined = False
                elif not passing(error):
                    raise self._refusal(error) from None
            self._rest(RETRY_S / 4)

    def _hear(self, news: Any) -> None:
        policy = None
        known = self._policy
        if news.policy and (known is None or (known.version, known.env_steps) != (news.version, news.env_steps)):
            policy = Policy(news.version, news.env_steps, wire.unpack(news.policy), time.monotonic())
        with self._wake:
            if policy is not None:
                self.superseded += self._policy is not None and self._policy is not self._taken
                self._policy = policy
            self.granted, self.heard, self.stop = news.granted, True, self.stop or news.stop
            self._wake.notify_all()

    def _rest(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self._closing or until(), seconds)

    def _refusal(self, error: grpc.RpcError) -> ConnectionError:
        return ConnectionError(f"the learner at {self._client.learner} refuses: {wire.words(error)}")

    def _lost(self, error: grpc.RpcError) -> None:
        if self._connected and not self._closing:
            self._connected = False
            self._say(f"no answer from the learner ({wire.words(error)}): going on, steps are kept in {self._log.path}")

    def _reached(self) -> None:
        if not self._connected:
            self._connected = True
            self._say(f"the learner answers again; {self.unsent} rows to send")
