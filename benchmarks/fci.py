"""How well the FCI twin keeps its millisecond, with the vendor's clients on the other end; prints one JSON line.

The twin runs in a process of its own; the clients are franky's Cartesian impedance tracker, whose loop is C++, and a
torque loop in plain Python over pylibfranka. ``late`` is the share of cycles in which no command had come in time, as
the robot itself counts it, and ``late_ticks`` the share that the twin began more than half a millisecond too late.

    python -m benchmarks.fci [seconds]
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import numpy as np

from tests.fci_client import at_normal_priority
from tests.served import serve


def track(host: str, seconds: float) -> dict[str, float]:
    """A sine of 3 cm through franky's tracker."""
    import franky

    robot = franky.Robot(host, realtime_config=franky.RealtimeConfig.Ignore)
    at_normal_priority()
    first = robot.current_pose.end_effector_pose
    rates, gaps_m = [], []
    with franky.CartesianImpedanceTracker(robot, translational_stiffness=1500.0, rotational_stiffness=60.0) as tracker:
        begin_s = time.monotonic()
        while (t_s := time.monotonic() - begin_s) < seconds:
            goal_m = first.translation + np.array([0.0, 0.03 * np.sin(2.0 * t_s) * min(1.0, t_s), 0.0])
            tracker.set_target(franky.Affine(goal_m, first.quaternion))
            time.sleep(0.02)
            gaps_m.append(np.linalg.norm(robot.state.O_T_EE.translation - goal_m))
            rates.append(robot.state.control_command_success_rate)
    return {"late": 1.0 - float(np.mean(rates[10:])), "gap_mm": 1e3 * float(np.sqrt(np.mean(np.square(gaps_m))))}


def torque_loop(host: str, seconds: float) -> dict[str, float]:
    """A soft spring at joint 7 in plain Python."""
    import pylibfranka

    robot = pylibfranka.Robot(host, pylibfranka.RealtimeConfig.kIgnore)
    at_normal_priority()
    control = robot.start_torque_control()
    cycles, rates, periods_ms = round(1000 * seconds), [], []
    state, _ = control.readOnce()
    first = state.q[6]
    for cycle in range(cycles):
        begin_s = time.perf_counter()
        state, _ = control.readOnce()
        torque = 10.0 * (first + 0.1 * np.sin(2e-3 * cycle) - state.q[6]) - 1.0 * state.dq[6]
        torques = pylibfranka.Torques([0.0] * 6 + [torque])
        torques.motion_finished = cycle == cycles - 1
        control.writeOnce(torques)
        rates.append(state.control_command_success_rate)
        periods_ms.append(1e3 * (time.perf_counter() - begin_s))
    return {
        "late": 1.0 - float(np.mean(rates[100:])), "period_ms": float(np.mean(periods_ms)),
        "p99_ms": float(np.percentile(periods_ms, 99)), "max_ms": float(np.max(periods_ms)),
    }  # fmt: skip


CLIENTS = {"franky_tracker": track, "pylibfranka_torque": torque_loop}


def main(seconds: float = 5.0) -> None:
    line: dict[str, object] = {"benchmark": "fci", "seconds": seconds, "cpus": os.cpu_count()}
    for name in CLIENTS:
        with serve("fci", "fr3", task="reach") as twin:
            # Each client has its own process: both libraries register libfranka's types.
            words = [sys.executable, "-m", "benchmarks.fci", str(seconds), name, twin.host]
            measured = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
            twin.stop()
            found = re.search(r"stopped after ([\d.]+) s of the robot, (\d+) ticks late", twin.log())
            if found:
                measured["late_ticks"] = int(found[2]) / (1000.0 * float(found[1]))
        line[name] = {key: round(value, 4) for key, value in measured.items()}
    print(json.dumps(line))


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(json.dumps(CLIENTS[sys.argv[2]](sys.argv[3], float(sys.argv[1]))))
    else:
        main(*map(float, sys.argv[1:2]))
