"""Many twin actors for one learner, through Ray: on this machine, or on a Ray cluster.

Ray starts processes and tells when they die; that is all it does here. Each actor is that of ``robot-rl actor``: it has
its log on the disk of its host and speaks to the learner over the link. What Ray carries between its own processes is
pickled: numbers and text only, and never a key.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from robot_rl.children import environment
from robot_rl.fleet import END_S, Fleet, Starts
from robot_rl.link.security import Endpoint
from robot_rl.ray_worker import THREADS, Worker

LOOK_S = 0.2  # between looks at the actors
PATIENCE_S = 30.0  # without a place for an actor, after which it is said
_STORE_BYTES = 80 << 20  # Ray's shared memory, the least it takes: nothing of ours goes through it
_LOCAL = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # read on Linux, too: everything listens on loopback only
}
_BOTH = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a process that asked for no GPU keeps what it could use without Ray
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # nodes have their own installation
}
_COMPILE_ONCE = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


class Cluster:
    """A Ray that is there; ``connected`` makes it."""

    def __init__(self, ray: Any, address: str | None) -> None:
        self.ray, self.address = ray, address

    def worker(self, host: str | None = None) -> Any:
        """A handle of a new Worker, on ``host`` where one is given, else where there is most room."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        strategy: Any = "SPREAD"
        if host is not None:
            strategy = NodeAffinitySchedulingStrategy(self.hosts[host], soft=False)
        made = self.ray.remote(Worker).options(
            num_cpus=1, max_restarts=0, max_concurrency=THREADS, scheduling_strategy=strategy
        )
        return made.remote()

    @property
    def hosts(self) -> dict[str, str]:
        """Ray's id of a node on each host that is there."""
        return {node["NodeManagerHostname"]: node["NodeID"] for node in self.ray.nodes() if node["Alive"]}

    @property
    def elsewhere(self) -> list[str]:
        """The hosts that are not this one."""
        return sorted(set(self.hosts) - {socket.gethostname()})

    @property
    def slots(self) -> int:
        """How many workers there can be at once: Ray's CPUs."""
        return int(self.ray.cluster_resources().get("CPU", 0))

    def done(self, work: Any) -> bool:
        """Whether there is an outcome of ``work``."""
        return bool(self.ray.wait([work], timeout=0)[0])

    def outcome(self, work: Any) -> Any:
        """What ``work`` returned, once it is done. Raises ChildProcessError where its process died first."""
        try:
            return self.ray.get(work)
        except self.ray.exceptions.RayError as error:
            text = str(error).strip().splitlines() or [type(error).__name__]
            raise ChildProcessError(text[0]) from error

    def kill(self, worker: Any) -> None:
        """End its process at once."""
        self.ray.kill(worker)


@contextlib.contextmanager
def connected(address: str | None, slots: int, added: Mapping[str, str]) -> Iterator[Cluster]:
    """The Ray cluster at ``address``; with None a Ray of our own on this machine, on loopback, for ``slots`` workers,
    which ends with this. ``added`` goes into the workers' environment.

    Raises ImportError where Ray is not installed, ConnectionError where no cluster answers.
    """
    ray = _import_ray(_BOTH if address is not None else {**_BOTH, **_LOCAL})
    if address is None:  # Ray would keep a token for all its clusters in the home folder; and it reads it once
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    with contextlib.ExitStack() as stack:
        folder = tempfile.mkdtemp(prefix="robot-rl-ray-", dir=_short_folder())
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(ray.shutdown)
        if address is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # many workers compile the same
            added = {**added, **_COMPILE_ONCE, "JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "compiled")}
        common = {"runtime_env": {"env_vars": {**_BOTH, **added}}, "log_to_driver": False, "logging_level": "error"}
        try:
            if address is None:
                with warnings.catch_warnings():  # JAX warns of any fork; these run other programs at once
                    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
                    ray.init(
                        "local", num_cpus=slots, include_dashboard=False, object_store_memory=_STORE_BYTES,
                        _node_ip_address="127.0.0.1", _temp_dir=folder, **common,
                    )  # fmt: skip
                _require_loopback(ray)
            else:
                _connect(ray, address, common)
        finally:
            for signum, handler in handlers.items():  # Ray sets one of its own, which would end us with nothing saved
                with contextlib.suppress(ValueError):  # not in the main thread: there it has set none
                    signal.signal(signum, handler)
        yield Cluster(ray, address)


def _import_ray(settings: Mapping[str, str]) -> Any:
    """Ray, which reads its ``settings`` when it is imported."""
    os.environ.update(settings)
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            f"several actors, --cluster and sweeps go through Ray, which is not installed ({error}): "
            "pip install 'robot-rl[cluster]'"
        ) from error
    return ray


def _connect(ray: Any, address: str, common: Mapping[str, Any]) -> None:
    how = "start one with `ray start`, join it with this machine, and give HOST:PORT of its head"
    if "://" in address:
        raise ValueError(
            f"--cluster {address}: only HOST:PORT of a cluster that this machine has joined (ray start "
            "--address=HOST:PORT), or auto"
        )
    if address != "auto":
        endpoint = Endpoint.parse(address)
        try:
            socket.create_connection((endpoint.host, endpoint.port), 5.0).close()
        except OSError as error:
            raise ConnectionError(f"--cluster {address}: nothing answers there ({error}); {how}") from error
    try:
        ray.init(address, **common)
    except (OSError, RuntimeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConnectionError(f"--cluster {address}: {first}; {how}") from error


def _require_loopback(ray: Any) -> None:
    address = ray.nodes()[0]["NodeManagerAddress"]
    if not Endpoint(address, 0).is_loopback:
        raise RuntimeError(
            f"Ray {ray.__version__} listens at {address}, not on loopback as it was told: install ray 2.60, "
            "whose behaviour is known, and do not import it before robot_rl.cluster does"
        )


def _short_folder() -> str:
    """Where temporary files go, if it is short: paths of Ray's sockets have 107 characters at most."""
    usual = tempfile.gettempdir()
    return usual if len(usual) <= 24 else "/tmp"


# ---------------------------------------------------------------------------------------------------------------------
# Actors


def actors_environment() -> dict[str, str]:
    """One compute thread each; a policy acts on the CPU, a GPU is the learner's."""
    return {**environment(2), "JAX_PLATFORMS": "cpu"}


def check(cluster: Cluster, fleet: Fleet) -> None:
    """Raises ValueError where ``fleet`` cannot run on ``cluster``: too many actors, or a learner out of reach."""
    if fleet.actors > cluster.slots:
        raise ValueError(
            f"--actors {fleet.actors}: the cluster at {cluster.address} has {cluster.slots} CPUs, and an actor takes "
            "one: give fewer, or add nodes"
        )
    if cluster.elsewhere and (fleet.listen is None or Endpoint.parse(fleet.listen).is_loopback):
        raise ValueError(
            f"--cluster {cluster.address} has other machines ({', '.join(cluster.elsewhere[:3])}), which do not reach "
            "loopback: give --listen HOST:PORT, a name of this machine, and --keys DIR, at the same path on all of "
            "them (robot-rl keys make --out DIR --host HOST)"
        )


@contextlib.contextmanager
def ray_actors(
    cluster: Cluster, folder: Path, fleet: Fleet, say: Callable[[str], None], learner: Endpoint
) -> Iterator[Callable[[], None]]:
    """``fleet.actors`` actors of ``learner`` on ``cluster``; the value is to be called often. The log of each is in
    ``folder``/actors on the disk of its host, where it is started again."""
    actors = _Actors(cluster, folder.absolute(), fleet, say, learner)
    try:
        actors.begin()
        yield actors.look_after
    finally:
        actors.end()


class _Actors:
    """All of them, and which is where."""

    def __init__(
        self, cluster: Cluster, folder: Path, fleet: Fleet, say: Callable[[str], None], learner: Endpoint
    ) -> None:
        self.cluster, self.folder, self.fleet, self.say, self.learner = cluster, folder, fleet, say, learner
        self._actors: list[RayActor] = []
        self._looked_s = 0.0

    def begin(self) -> None:
        """Those whose logs can go on, and new ones for the rest."""
        self.fleet.save(self.folder)
        there = self.cluster.hosts
        known = {int(number): host for number, host in self.fleet.hosts.items()}
        for index, host in sorted(known.items()):
            if len(self._actors) < self.fleet.actors:
                if host in there:
                    self._actors.append(RayActor(self, index, host))
                else:
                    self.say(f"actor{index} was on {host}, which is not there: a new one takes its place")
        while len(self._actors) < self.fleet.actors:
            self._actors.append(RayActor(self, self.unused()))

    def unused(self) -> int:
        """A number that no actor of this run ever had: one that goes on elsewhere would repeat episodes."""
        used = {int(number) for number in self.fleet.hosts} | {actor.index for actor in self._actors}
        return max(used, default=-1) + 1

    def note(self, index: int, host: str) -> None:
        """Write down whose disk has the log of an actor, before there is one."""
        if self.fleet.hosts.get(str(index)) != host:
            self.fleet = replace(self.fleet, hosts={**self.fleet.hosts, str(index): host})
            self.fleet.save(self.folder)

    def look_after(self) -> None:
        """Start again what ended. Raises RuntimeError, naming the log, where that keeps happening."""
        if time.monotonic() - self._looked_s >= LOOK_S:
            self._looked_s = time.monotonic()
            for actor in list(self._actors):
                actor.look_after()

    def replace(self, actor: RayActor, host: str) -> None:
        """Have another one in the place of ``actor``, whose ``host`` is gone."""
        new = RayActor(self, self.unused())
        self.say(f"{host} is gone, and with it what only its disk has of actor{actor.index}: actor{new.index} begins")
        self._actors[self._actors.index(actor)] = new

    def end(self) -> None:
        for actor in self._actors:
            actor.stop()
        end_s = time.monotonic() + END_S
        for actor in self._actors:
            actor.wait(end_s)


class RayActor:
    """One actor in a process of Ray's, started again where it ends though the learner is there."""

    def __init__(self, actors: _Actors, index: int, host: str | None = None) -> None:
        self.index, self._actors, self._host = index, actors, host
        self._log = actors.folder / "actors" / f"{index}.log"
        self._starts = Starts(f"actor{index}", str(self._log))
        self._start()

    def _start(self) -> None:
        self._starts.count()
        self._begun_s, self._patient = time.monotonic(), True
        self._worker = self._actors.cluster.worker(self._host)
        self._where: Any = self._worker.where.remote()
        self._work: Any = None

    def look_after(self) -> None:
        """One look: at whether it has a place, then at whether it still acts."""
        cluster, waits_for = self._actors.cluster, self._work or self._where
        if not cluster.done(waits_for):
            if self._work is None and self._patient and time.monotonic() - self._begun_s > PATIENCE_S:
                self._patient = False
                self._actors.say(f"actor{self.index} waits for a CPU of the cluster")
            return
        try:
            outcome = cluster.outcome(waits_for)
        except ChildProcessError as error:
            self._again("its process died", str(error))
            return
        if self._work is None:
            self._act(*outcome)
        else:
            self._again(outcome or "by itself", outcome or "no word")

    def _act(self, host: str, pid: int, version: str) -> None:
        self._host = host
        if host != socket.gethostname():
            self._starts.log = f"{host}:{self._log}"
        self._actors.note(self.index, host)
        place = str(self._actors.folder / "actors" / str(self.index))
        keys = self._actors.fleet.keys or ""
        self._work = self._worker.act.remote(str(self._actors.learner), place, self.index, keys, str(self._log))

    def _again(self, how: str, last: str) -> None:
        self._actors.say(self._starts.again(how, last))
        self._actors.cluster.kill(self._worker)
        if self._host is not None and self._host not in self._actors.cluster.hosts:
            self._actors.replace(self, self._host)
        else:
            self._start()

    def stop(self) -> None:
        """Tell it to end after this step."""
        self._worker.stop.remote()

    def wait(self, end_s: float) -> None:
        """Until it has ended, or time.monotonic() is ``end_s``; then its process is killed."""
        if self._work is not None:
            self._actors.cluster.ray.wait([self._work], timeout=max(0.0, end_s - time.monotonic()))
        self._actors.cluster.kill(self._worker)
