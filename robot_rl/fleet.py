"""Actors on this machine, each a process of its own, kept alive for as long as their learner is there."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from robot_rl.children import Job, environment, start
from robot_rl.link.security import Endpoint

RESTARTS = 5  # of one actor, within:
RESTARTS_S = 60.0
_END_S = 10.0  # that an actor has to end, once told to


class LocalActor:
    """One actor's process, started again where it ends though the learner is there."""

    def __init__(self, job: Job, added: dict[str, str], say: Callable[[str], None]) -> None:
        self._job, self._added, self._say = job, added, say
        self._starts: deque[float] = deque(maxlen=RESTARTS + 1)
        self._process: subprocess.Popen[str]
        self._start()

    def _start(self) -> None:
        self._starts.append(time.monotonic())
        self._process = start(self._job, self._added)

    def look_after(self) -> None:
        """Start it again if it has ended. Raises RuntimeError, naming its log, where that keeps happening."""
        status = self._process.poll()
        if status is None:
            return
        if len(self._starts) > RESTARTS and self._starts[-1] - self._starts[0] < RESTARTS_S:
            raise RuntimeError(
                f"{self._job.name} ended {RESTARTS + 1} times in {RESTARTS_S:.0f} s, at last with "
                f"{_last(self._job.log)} ({self._job.log})"
            )
        self._say(f"{self._job.name} ended ({_how(status)}) and is started again; what it said is in {self._job.log}")
        self._start()

    def terminate(self) -> None:
        self._process.terminate()

    def wait(self, end_s: float) -> None:
        """Until it has ended, or time.monotonic() is ``end_s``: then it is killed."""
        try:
            self._process.wait(max(0.0, end_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def local_actors(
    folder: Path, count: int, words: Sequence[str], say: Callable[[str], None], learner: Endpoint
) -> Iterator[Callable[[], None]]:
    """``count`` actors of ``learner``, with their logs in ``folder``/actors; the value is to be called often.

    ``words`` are further words of ``robot-rl actor``. One compute thread each: the cores are shared with the learner.
    """
    (folder / "actors").mkdir(exist_ok=True)
    actors: list[LocalActor] = []
    try:
        for index in range(count):
            name = f"actor{index}"
            place = ("--index", str(index), "--out", str(folder / "actors" / str(index)))
            job = Job(name, ("actor", "--learner", str(learner), *place, *words), folder / "actors" / f"{index}.log")
            actors.append(LocalActor(job, environment(count + 1), say))

        def look_after() -> None:
            for actor in actors:
                actor.look_after()

        yield look_after
    finally:
        for actor in actors:
            actor.terminate()
        end_s = time.monotonic() + _END_S
        for actor in actors:
            actor.wait(end_s)


def _how(status: int) -> str:
    return f"status {status}" if status >= 0 else f"signal {-status}"


def _last(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return repr(lines[-1].removeprefix("robot-rl: error: ")) if lines else "no word"
