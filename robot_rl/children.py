"""Commands of ours as child processes: some at a time, stopped with their parent, each with its log."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from robot_rl.files import write_json
from robot_rl.interrupt import StopSignals

_POLL_S = 0.2
_TELL_S = 2.0
_PR_SET_PDEATHSIG = 1
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")


@dataclass(frozen=True)
class Job:
    """One ``robot-rl`` command."""

    name: str
    args: tuple[str, ...]
    log: Path  # what it says is appended here
    result: Path | None = None  # the JSON object it prints goes into this file, atomically


def environment(at_once: int) -> dict[str, str]:
    """What to add to the environment where ``at_once`` processes run side by side: of several each gets one thread.

    Left alone, XLA takes all cores in every process: two trainings side by side used 4 to 10 % more processor time.
    """
    if at_once == 1:
        return {}
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    return {**dict.fromkeys(_THREADS, "1"), "XLA_FLAGS": flags}


def run_jobs(
    jobs: Sequence[Job],
    at_once: int,
    added: Mapping[str, str],
    stop: StopSignals,
    tell: Callable[[int, Sequence[str]], None] = lambda finished, running: None,
) -> None:
    """Run ``jobs`` in their order, ``at_once`` side by side, with ``added`` in their environment.

    ``tell(finished, names of those that run)`` is called every few seconds. Once ``stop`` says so each child gets one
    SIGTERM and is waited for. A failure does not stop the others; raises RuntimeError, naming the logs, at the end.
    """
    waiting, running, failed = list(jobs), dict[Job, subprocess.Popen[str]](), list[str]()
    finished, interrupted, told_s = 0, False, -_TELL_S
    try:
        while running or (waiting and not stop()):
            while waiting and len(running) < at_once and not stop():
                job = waiting.pop(0)
                running[job] = start(job, added)
            if stop() and not interrupted:
                interrupted = True
                for process in running.values():
                    process.terminate()
            for job, process in [(job, process) for job, process in running.items() if process.poll() is not None]:
                del running[job]
                error = _end(job, process)
                finished += not error
                if error and not interrupted:
                    failed.append(error)
            if time.monotonic() - told_s >= _TELL_S or not (running or waiting):
                told_s = time.monotonic()
                tell(finished, [job.name for job in running])
            if running:
                time.sleep(_POLL_S)
    finally:
        for process in running.values():
            process.kill()
        for process in running.values():
            process.wait()
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(jobs)} failed, the others are safe: {'; '.join(failed)}")


def start(job: Job, added: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start ``job`` in a process group of its own: Ctrl-C in a terminal reaches it through us only, and once."""
    command = [sys.executable, "-m", "robot_rl.cli", *job.args]
    with open(job.log, "a") as log, warnings.catch_warnings():
        # JAX warns of any fork; this one runs another program at once, and is safe.
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log if job.result is None else subprocess.PIPE,  # one line fits into a pipe that nobody empties
            stderr=log,
            text=True,
            env={**os.environ, **added},
            process_group=0,
            preexec_fn=end_with_parent,
        )


_LIBC = ctypes.CDLL(None)


def end_with_parent(signum: int = signal.SIGTERM) -> None:
    """In the child, on Linux: ``signum`` when the parent dies, by whatever cause, so that no process is left behind."""
    with contextlib.suppress(AttributeError):
        _LIBC.prctl(_PR_SET_PDEATHSIG, signum)


def _end(job: Job, process: subprocess.Popen[str]) -> str:
    """Keep the result of a finished child; returns what went wrong, or an empty string."""
    printed = process.stdout.read() if process.stdout is not None else ""
    if process.stdout is not None:
        process.stdout.close()
    if process.returncode != 0:
        lines = job.log.read_text().strip().splitlines() or [f"exit status {process.returncode}"]
        return f"{job.name}: {lines[-1].removeprefix('robot-rl: error: ')} ({job.log})"
    if job.result is not None:
        write_json(job.result, json.loads(printed.strip().splitlines()[-1]))
    return ""
