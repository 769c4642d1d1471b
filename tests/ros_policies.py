"""Policies as processes of their own, to be stopped and killed: ``python -m tests.ros_policies stream | env ...``."""

import os
import sys
import time

import numpy as np

from tests.ros_graph import Commander


def _stream(namespace: str, sway_m: float) -> None:
    """Swing the arm along y about where it is, with targets and heartbeats at 50 Hz."""
    with Commander(int(os.environ["ROS_DOMAIN_ID"]), namespace).connect() as commander:
        pos_m, quat_xyzw = commander.pose()
        begun_s, said = time.monotonic(), False
        while True:
            passed_s = time.monotonic() - begun_s
            aside = np.array([0.0, sway_m * np.sin(2.0 * passed_s), 0.0])
            commander.beat()
            commander.target(pos_m + aside, quat_xyzw)
            if not said and "following" in commander.safety():
                said = True
                print("streaming")
            time.sleep(0.02)


def _env(namespace: str, task: str, wait_s: str = "10.0") -> int:
    """Step an environment of the world ``ros`` until it fails; the error is one line, as the command line prints it."""
    from robot_rl.build import make_env

    try:
        env = make_env(task, world="ros", settings=[f"arm.namespace={namespace}", f"arm.wait_s={wait_s}"])
        try:
            env.reset(seed=0)
            print("stepping")
            while True:
                _, _, terminated, truncated, _ = env.step(np.zeros(env.action_space.shape))
                if terminated or truncated:
                    env.reset(seed=0)
        finally:
            env.close()
    except (ValueError, LookupError, OSError) as error:
        print(f"error: {error.args[0]}")
        return 2


if __name__ == "__main__":
    if sys.argv[1] == "stream":
        _stream(sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else 0.03)
    sys.exit(_env(*sys.argv[2:]))
