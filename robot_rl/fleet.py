"""The actors that a run starts for itself: here on this machine, each a process of its own, kept alive for as long as
their learner is there; on others, and many, in cluster.py."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from robot_rl.children import Job, environment, start
from robot_rl.files import read_json, write_json
from robot_rl.link.security import Endpoint

RESTARTS = 5  # of one actor, in a row, after lives of less than:
SHORT_S = 60.0
END_S = 45.0  # that an actor has to end, once told to: its arm may be on the way to an episode's start


@dataclass(frozen=True)
class Fleet:
    """Which actors a run starts, and how they reach its learner: what DIR/fleet.json holds, for another time."""

    actors: int = 1
    cluster: str | None = None  # address of a Ray cluster
    listen: str | None = None
    keys: str | None = None
    hosts: Mapping[str, str] = field(default_factory=dict)  # by number of an actor: whose disk has its log

    @classmethod
    def load(cls, folder: Path) -> Fleet:
        """As it was when the run in ``folder`` last went on. Raises ValueError where its file is damaged."""
        path, remedy = folder / "fleet.json", "delete it, and give --actors again"
        if not path.exists():
            return cls()
        try:
            return cls(**read_json(path, remedy))
        except TypeError as error:
            raise ValueError(f"{path} is damaged ({error}): {remedy}") from error

    def save(self, folder: Path) -> None:
        write_json(folder / "fleet.json", asdict(self))

    @property
    def through_ray(self) -> bool:
        """One actor on this machine is a child process, which needs nothing."""
        return self.actors > 1 or self.cluster is not None


class Starts:
    """How often an actor was started; it is not started for ever where it ends at once."""

    def __init__(self, name: str, log: str) -> None:
        """``log``: where what it said is, in words."""
        self.name, self.log = name, log
        self._started_s, self._short = 0.0, 0  # lives in a row that were shorter than SHORT_S

    def count(self) -> None:
        """It is started now."""
        self._started_s = time.monotonic()

    def again(self, how: str, last: str) -> str:
        """What to say as it is started again, having ended as ``how`` says with ``last`` as its last words. Raises
        RuntimeError, naming its log, where that keeps happening."""
        self._short = self._short + 1 if time.monotonic() - self._started_s < SHORT_S else 0
        if self._short > RESTARTS:
            raise RuntimeError(
                f"{self.name} ended {self._short} times, each time within {SHORT_S:.0f} s of its start, at last with "
                f"{last} ({self.log})"
            )
        return f"{self.name} ended ({how}) and is started again; what it said is in {self.log}"


class LocalActor:
    """One actor's process, started again where it ends though the learner is there."""

    def __init__(self, job: Job, added: dict[str, str], say: Callable[[str], None]) -> None:
        self._job, self._added, self._say = job, added, say
        self._starts = Starts(job.name, str(job.log))
        self._process: subprocess.Popen[str]
        self._start()

    def _start(self) -> None:
        self._starts.count()
        self._process = start(self._job, self._added)

    def look_after(self) -> None:
        """Start it again if it has ended. Raises RuntimeError, naming its log, where that keeps happening."""
        status = self._process.poll()
        if status is None:
            return
        self._say(self._starts.again(_how(status), last_words(self._job.log)))
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
    folder: Path, fleet: Fleet, words: Sequence[str], say: Callable[[str], None], learner: Endpoint
) -> Iterator[Callable[[], None]]:
    """``fleet.actors`` actors of ``learner``, with their logs in ``folder``/actors; the value is to be called often.

    ``words`` are further words of ``robot-rl actor``. One compute thread each: the cores are shared with the learner.
    """
    replace(fleet, hosts={"0": socket.gethostname()}).save(folder)
    (folder / "actors").mkdir(exist_ok=True)
    if fleet.keys is not None:
        words = ("--keys", fleet.keys, *words)
    actors: list[LocalActor] = []
    try:
        for index in range(fleet.actors):
            name = f"actor{index}"
            place = ("--index", str(index), "--out", str(folder / "actors" / str(index)))
            job = Job(name, ("actor", "--learner", str(learner), *place, *words), folder / "actors" / f"{index}.log")
            actors.append(LocalActor(job, environment(fleet.actors + 1), say))

        def look_after() -> None:
            for actor in actors:
                actor.look_after()

        yield look_after
    finally:
        for actor in actors:
            actor.terminate()
        end_s = time.monotonic() + END_S
        for actor in actors:
            actor.wait(end_s)


def _how(status: int) -> str:
    return f"status {status}" if status >= 0 else f"signal {-status}"


def last_words(log: Path) -> str:
    """The last line of ``log``, in quotes."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return repr(lines[-1].removeprefix("robot-rl: error: ")) if lines else "no word"
