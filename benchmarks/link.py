"""The link on loopback: rows with two pictures one way, policies the other. One JSON line each.

    python benchmarks/link.py [SECONDS]

``rows``: an actor logs and sends 200 transitions/s of two 128x128x3 uint8 pictures and a state, a learner stores them
and puts them into its replay buffer; processor time of both processes, in shares of a core, log and store included. The
buffer is a small one that is full: that a new one's memory is touched for the first time is not the link's.
``weights``: then a policy of 1.5 MB is published ten times a second while rows go on; time until it lies ready in the
actor.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from gymnasium import spaces

from robot_rl.intake import Intake
from robot_rl.link import link_pb2 as pb
from robot_rl.link.client import Identity, LinkClient
from robot_rl.link.courier import Courier
from robot_rl.link.security import Endpoint
from robot_rl.link.server import LinkServer
from robot_rl.replay import ReplayBuffer
from robot_rl.spaces import Encoder
from robot_rl.step_log import FIRST, STEP, Layout, StepLog, seal

RATE_HZ = 200.0
EPISODE = 100  # steps
CAMERAS = ("front", "wrist")
SPACE = spaces.Dict(
    {name: spaces.Box(0, 255, (128, 128, 3), np.uint8) for name in CAMERAS}
    | {"state": spaces.Box(-1.0, 1.0, (24,), np.float32)}
)
LAYOUT = Layout(dict.fromkeys(CAMERAS, ((128, 128, 3), "uint8")) | {"state": ((24,), "float32")}, action_dim=7)
POLICY = {f"layer{index}": np.zeros((96, 1000), np.float32) for index in range(4)}  # 1.5 MB
RUN = "benchmark"


def rows_of(count: int, log: int) -> np.ndarray:
    """``count`` rows of episodes that follow one another; pictures are noise, which no disk compresses."""
    rng = np.random.default_rng(0)
    rows = np.zeros(count, LAYOUT.dtype)
    index = np.arange(count)
    rows["log"], rows["sequence"] = log, index
    rows["episode"], rows["step"] = index // (EPISODE + 1), index % (EPISODE + 1)
    rows["kind"] = np.where(rows["step"] == 0, FIRST, STEP)
    rows["truncated"] = rows["step"] == EPISODE
    rows["cost"], rows["energy"], rows["success"] = np.nan, np.nan, 0
    rows["obs/state"] = rng.uniform(-1.0, 1.0, (count, 24))
    for name in CAMERAS:
        pool = rng.integers(0, 256, (64, 128, 128, 3), np.uint8)
        rows[f"obs/{name}"] = pool[index % 64]
    return rows


def actor(port: int, folder: Path, seconds: float) -> None:
    """The actor's process: rows at a fixed rate; prints how late policies came, and its processor time."""
    block = rows_of(404, log=1)
    delays: list[float] = []
    with StepLog(folder / "actor.zarr", LAYOUT) as log:
        client = LinkClient(Endpoint("127.0.0.1", port), None)
        courier = Courier(client, Identity(RUN, "actor0", 1, 1), log, 8, pb.Health, print)
        courier.wait_for(lambda: courier.heard, 10.0)
        began_s, began_cpu_s = time.monotonic(), time.process_time()
        for count in range(int(seconds * RATE_HZ)):
            row = block[count % 404 : count % 404 + 1].copy()
            row["sequence"], row["episode"] = count, count // (EPISODE + 1)
            seal(row)
            log.append(row)
            courier.notify()
            if (policy := courier.newest()) is not None:
                delays.append(policy.arrived_s - policy.env_steps / 1e6)
            time.sleep(max(0.0, began_s + (count + 1) / RATE_HZ - time.monotonic()))
        took_s, cpu_s = time.monotonic() - began_s, time.process_time() - began_cpu_s
        unsent = courier.close()
    ms = [1e3 * float(np.quantile(delays, share)) for share in (0.5, 0.99, 1.0)] if delays else None
    print(json.dumps({"rows": len(log), "took_s": took_s, "cpu_s": cpu_s, "unsent": unsent, "policies": len(delays),
                      "policy_ms": ms}))  # fmt: skip


def measure(seconds: float, weights: bool) -> tuple[dict, float, int, int]:
    """What the actor tells, processor time of the learner, rows that it stored, and policies that it published."""
    with tempfile.TemporaryDirectory() as name, StepLog(Path(name) / "learner.zarr", LAYOUT) as store:
        server = LinkServer(Endpoint("127.0.0.1", 0), None, RUN, {}, store, paced=False)
        words = [sys.executable, __file__, "actor", str(server.address.port), name, str(seconds)]
        encoder = Encoder.from_space(SPACE)
        replay = ReplayBuffer(500, encoder.space, 7)
        warm, intake = Intake(LAYOUT, encoder, replay, {}), Intake(LAYOUT, encoder, replay, {})
        for row in rows_of(606, log=2):
            warm.take(row)
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        taken, version, published_s = 0, 0, 0.0
        while not server.following:
            time.sleep(0.01)
        began_cpu_s = time.process_time()
        while process.poll() is None:
            server.wait_for_rows(taken, 0.02)
            for row in store.read(taken, server.rows):
                intake.take(row)
                taken += 1
            server.allow(0, taken)
            if weights and time.monotonic() - published_s >= 0.1:
                published_s, version = time.monotonic(), version + 1
                server.publish(version, int(1e6 * time.monotonic()), POLICY)
        cpu_s = time.process_time() - began_cpu_s
        told = json.loads((process.stdout.read() if process.stdout else "").strip().splitlines()[-1])
        stored = server.rows
        server.close()
    return told, cpu_s, stored, version


def main(seconds: float) -> None:
    for weights in (False, True):
        told, cpu_s, stored, version = measure(seconds, weights)
        share = 100.0 * (cpu_s + told["cpu_s"]) / told["took_s"]
        result = {
            "benchmark": "link weights" if weights else "link rows",
            "transitions_per_s": round(stored / told["took_s"], 1), "rows": stored, "unsent": told["unsent"],
            "row_bytes": LAYOUT.dtype.itemsize, "core_percent_both": round(share, 1),
            "core_percent_actor": round(100 * told["cpu_s"] / told["took_s"], 1), "load": round(os.getloadavg()[0], 1),
        }  # fmt: skip
        if weights:
            p50, p99, worst = (round(ms, 2) for ms in told["policy_ms"])
            result |= {"policy_bytes": sum(array.nbytes for array in POLICY.values()), "published": version}
            result |= {"arrived": told["policies"], "ms_p50": p50, "ms_p99": p99, "ms_max": worst}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["actor"]:
        actor(int(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]))
    else:
        main(float(sys.argv[1]) if sys.argv[1:] else 20.0)
