"""Environment steps per second that reach a learner from one actor through Ray, and from several at once.

The learner takes rows, makes them safe on its disk and gives out one policy; it does not learn, so this is how fast
actors, link and store are together. The policy is a fresh agent's, which acts in every step; a twin's physics, guard
and controller are in it as always. One compute thread an actor. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from robot_rl import checkpoint, cluster
from robot_rl.fleet import Fleet
from robot_rl.intake import transitions
from robot_rl.learner import layout_of
from robot_rl.link.security import Endpoint
from robot_rl.link.server import LinkServer
from robot_rl.run import Run, TrainConfig, choose, describe, make_agent, make_env
from robot_rl.session import make_session
from robot_rl.step_log import StepLog

PATIENCE_S = 300.0  # for the actors to come


def steps_per_s(ray: cluster.Cluster, run: Run, actors: int, seconds_s: float) -> float:
    """Of ``actors`` together, over ``seconds_s`` after each has sent its first steps."""
    env = make_env(run)
    encoder, agent = make_agent(run, env)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        layout = layout_of(make_session(run, folder, env, encoder, agent))
        env.close()
        with StepLog(folder / "steps.zarr", layout, {"run": "benchmark"}) as store:
            server = LinkServer(Endpoint("127.0.0.1", 0), None, "benchmark", describe(run), store, paced=False)
            server.publish(1, 0, checkpoint.flatten(agent.policy))
            try:
                with cluster.ray_actors(ray, folder, Fleet(actors), _say, server.address) as look_after:
                    end_s = time.monotonic() + PATIENCE_S
                    while sum(one.steps > 0 for one in server.present.values()) < actors:
                        if time.monotonic() > end_s:
                            raise TimeoutError(f"only {len(server.present)} of {actors} actors came")
                        _pass(server, look_after)
                    begun_s, first = time.monotonic(), server.rows
                    while time.monotonic() - begun_s < seconds_s:
                        _pass(server, look_after)
                    took_s, last = time.monotonic() - begun_s, server.rows
                    server.stop_actors()
            finally:
                server.close()
            return transitions(store.read(first, last)) / took_s


def _pass(server: LinkServer, look_after: Callable[[], None]) -> None:
    look_after()
    server.allow(0, server.rows)  # everything is learned from at once: nobody has to wait
    time.sleep(0.02)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="reach")
    parser.add_argument("--actors", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    run = choose(args.task, "panda", "sim", "rlpd", TrainConfig())
    load = os.getloadavg()[0]
    with cluster.connected(None, args.actors, cluster.actors_environment()) as ray:
        one, many = (steps_per_s(ray, run, count, args.seconds) for count in (1, args.actors))
    result = {"benchmark": "actors", "task": args.task, "actors": args.actors, "seconds": args.seconds}
    result |= {"one_steps_per_s": round(one, 1), "many_steps_per_s": round(many, 1), "ratio": round(many / one, 2)}
    print(json.dumps(result | {"cores": len(os.sched_getaffinity(0)), "load_before": round(load, 1)}))


if __name__ == "__main__":
    main()
