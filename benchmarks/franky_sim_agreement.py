"""The same motion through franky on the FCI twin and on franky-sim, somebody else's FR3 behind the same protocol.

A development check: run it with an interpreter that has franky-sim 1.0.4 and franky-control 2.0.0; the twin is served
by another one, which has this project.

    /path/to/fs/bin/python benchmarks/franky_sim_agreement.py /path/to/project/bin/python

Prints one JSON line: the largest distances between the two hands, mm, at the end of five joint motions and during them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import franky
import numpy as np

READY = np.array([0.0, -np.pi / 4, 0.0, -3 * np.pi / 4, 0.0, np.pi / 2, np.pi / 4])
GOALS = READY + 0.25 * np.array([
    [0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0], [1, 1, -1, 0.5, 0, 0, 1], [-1, 0.5, 1, 1, 1, -1, 0],
    [0, -0.5, 0, -1, -1, 1, -1],
])  # fmt: skip
TIMES_S = np.arange(0.0, 8.0, 0.01)  # of the robot, since the motion began


def record(host: str) -> tuple[np.ndarray, np.ndarray]:
    """Flange positions (5, 3) at rest after each motion, and (5, times, 3) since it began, m."""
    robot = franky.Robot(host, realtime_config=franky.RealtimeConfig.Ignore)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    robot.relative_dynamics_factor = 0.1
    ends, ways = [], []
    for goal in GOALS:
        path: list[np.ndarray] = []

        def note(state, *_, path=path):
            hand = np.array(state.O_T_EE.matrix) @ np.linalg.inv(np.array(state.F_T_EE.matrix))
            path.append(np.array([state.time.to_sec(), *hand[:3, 3]]))

        motion = franky.JointMotion(goal)
        motion.register_callback(note)
        robot.move(motion)
        time.sleep(0.5)
        note(robot.state)
        samples = np.array(path)
        ends.append(samples[-1, 1:])
        times_s = samples[:, 0] - samples[0, 0]
        ways.append([np.interp(TIMES_S, times_s, samples[:, axis]) for axis in (1, 2, 3)])
    return np.array(ends), np.array(ways).transpose(0, 2, 1)


def main(python: str) -> None:
    ours, theirs = "127.0.77.1", "127.0.77.2"
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    serve = [python, "-m", "robot_rl.cli", "twin", "serve", "--protocol", "fci", "--task", "reach", "--address", ours]
    peer = [sys.executable, "-m", "franky_sim.run_server", "--simulator", "mujoco", "--hostname", theirs]
    children = [
        subprocess.Popen([*serve, "--lockstep"], cwd=root, env={**os.environ, "PYTHONPATH": root}),
        subprocess.Popen(peer, stdout=subprocess.DEVNULL),
    ]
    try:
        time.sleep(10.0)
        (our_ends, our_ways), (their_ends, their_ways) = record(ours), record(theirs)
    finally:
        for child in children:
            child.kill()
            child.wait()
    ends = 1e3 * np.linalg.norm(our_ends - their_ends, axis=1).max()
    ways = 1e3 * np.linalg.norm(our_ways[1:] - their_ways[1:], axis=2).max()
    print(json.dumps({"check": "franky_sim_agreement", "ends_mm": round(ends, 6), "ways_mm": round(ways, 3)}))


if __name__ == "__main__":
    main(sys.argv[1])
