"""How fast and how punctual the UR5e twin is behind RTDE: a server in a process of its own, an unmodified ur_rtde here.

Prints one JSON line: ``updates_hz``, the packages of the robot's 500 Hz that ur_rtde's RTDEReceiveInterface takes in,
by their time stamps; ``dt_ms``, the time between two of them as they arrive here, looked at every 50 us; ``late``, the
share of the server's ticks that began more than half a period after their time; and ``servoj_us``, a call of servoJ
from here until the joint target it moves has come back.

    python benchmarks/rtde.py [--seconds 20]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rtde_control import RTDEControlInterface
from rtde_receive import RTDEReceiveInterface

HOST = "127.77.0.1"
READY_S = 120.0
LOOK_S = 50e-6
ROUND_TRIPS = 200
NUDGE_RAD = 1e-4


@contextlib.contextmanager
def served(log: Path) -> Iterator[None]:
    """A twin behind RTDE; stopped as by Ctrl-C."""
    command = [sys.executable, "-m", "robot_rl.cli", "twin", "serve", "--protocol", "rtde", "--address", HOST]
    with open(log, "w") as file:
        process = subprocess.Popen([*command, "--task", "peg_insert"], stdout=file, stderr=file)
    try:
        end_s = time.monotonic() + READY_S
        while "is serving" not in log.read_text():
            if process.poll() is not None or time.monotonic() > end_s:
                raise RuntimeError(f"the twin does not serve:\n{log.read_text()}")
            time.sleep(0.1)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20.0)


def watch(receive: RTDEReceiveInterface, seconds: float) -> tuple[float, np.ndarray]:
    """Updates a second by the robot's time stamps, and ms between arrivals."""
    arrivals, seen = [], receive.getTimestamp()
    begun_s, stamps = time.perf_counter(), 0
    while (now_s := time.perf_counter()) < begun_s + seconds:
        stamp = receive.getTimestamp()
        if stamp != seen:
            arrivals.append(now_s)
            seen, stamps = stamp, stamps + 1
        time.sleep(LOOK_S)
    return stamps / (now_s - begun_s), np.diff(arrivals) * 1e3


def round_trips(receive: RTDEReceiveInterface, control: RTDEControlInterface) -> np.ndarray:
    """us from servoJ to the first joint target that moved."""
    out, q = [], np.array(receive.getActualQ())
    for index in range(ROUND_TRIPS):
        before = receive.getTargetQ()
        begun_s = time.perf_counter()
        control.servoJ((q + NUDGE_RAD * (index % 2 * 2 - 1)).tolist(), 0, 0, 0.002, 0.03, 2000)
        while receive.getTargetQ() == before and time.perf_counter() < begun_s + 1.0:
            time.sleep(LOOK_S)
        out.append((time.perf_counter() - begun_s) * 1e6)
        time.sleep(0.002 * (index % 7) / 7)  # at another moment of the period
    control.servoStop()
    return np.array(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of watching (default %(default)s)")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with served(log):
            receive, control = RTDEReceiveInterface(HOST), RTDEControlInterface(HOST)
            updates_hz, dt_ms = watch(receive, seconds)
            trips_us = round_trips(receive, control)
            control.disconnect()
            receive.disconnect()
        said = re.search(r"after ([\d.]+) s of the robot, (\d+) ticks late", log.read_text())
    assert said is not None, "the twin did not end in order"
    line = {
        "benchmark": "rtde", "updates_hz": round(updates_hz, 1), "seconds": seconds,
        "dt_ms": {"p50": round(float(np.percentile(dt_ms, 50)), 2), "p99": round(float(np.percentile(dt_ms, 99)), 2),
                  "max": round(float(dt_ms.max()), 2)},
        "late": round(int(said[2]) / (float(said[1]) * 500.0), 4),
        "servoj_us": {f"p{share}": round(float(np.percentile(trips_us, share))) for share in (50, 99)},
    }  # fmt: skip
    print(json.dumps(line))


if __name__ == "__main__":
    main()
