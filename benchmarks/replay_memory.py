"""Memory of a learner's replay buffer with two 128x128x3 uint8 cameras, and how fast batches of 256 come out of it.

    python benchmarks/replay_memory.py [TRANSITIONS]

Transitions go in as rows of actors' logs do. One JSON line: what this process has resident, less what it had before,
and batches a second, each with both observations.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.link import EPISODE, LAYOUT, SPACE, rows_of
from robot_rl.intake import Intake
from robot_rl.replay import ReplayBuffer
from robot_rl.spaces import Encoder

BATCH = 256
BATCHES = 100


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main(transitions: int) -> None:
    block = rows_of(10 * (EPISODE + 1), log=1)
    encoder = Encoder.from_space(SPACE)
    before = resident_bytes()
    replay = ReplayBuffer(transitions, encoder.space, LAYOUT.action_dim)
    intake = Intake(LAYOUT, encoder, replay, {})
    began_s = time.monotonic()
    while len(replay) < transitions:
        for row in block:
            intake.take(row)
    filled_s = time.monotonic() - began_s
    resident = resident_bytes() - before
    rng = np.random.default_rng(0)
    began_s = time.monotonic()
    for _ in range(BATCHES):
        replay.sample(rng, (BATCH,))
    batches_hz = BATCHES / (time.monotonic() - began_s)
    print(json.dumps({
        "benchmark": "replay memory", "transitions": len(replay), "resident_gb": round(resident / 1e9, 3),
        "bytes_per_transition": round(resident / len(replay)), "two_frames_bytes": 2 * 128 * 128 * 3,
        "batches_of_256_per_s": round(batches_hz, 1), "filled_per_s": round(len(replay) / filled_s),
    }))  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 100_000)
