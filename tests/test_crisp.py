"""An arm that runs CRISP's controllers, driven over its own topics: directly, and behind our node."""

import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from robot_rl import build
from tests.ros_children import TIED

pytest.importorskip("rclpy")
ROOT = Path(__file__).parent.parent
AT_START = ["task.max_steps=20"]


@contextmanager
def child(*args):
    """A process of this test; dead at its end."""
    process = subprocess.Popen([*TIED, sys.executable, *args], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        finally:
            process.kill()


@contextmanager
def crisp(namespace="crisp", arm="fr3"):
    with child(str(ROOT / "tests" / "crisp_mock.py"), namespace, arm, "7") as process:
        yield process


def test_reach_is_done_by_an_arm_under_crisp(ros_domain):
    """The same task, demonstrator and guard; the arm moves to each episode's start by itself."""
    with crisp():
        env = build.make_env("reach", "fr3", "crisp", ["arm.namespace=crisp", *AT_START])
        try:
            arm = env.unwrapped.arm
            assert arm.default_stiffness.tolist() == [600.0] * 3 + [30.0] * 3
            obs, _ = env.reset(seed=3)
            act = env.unwrapped.demonstrator(np.random.default_rng(0))
            for _ in range(20):
                obs, _, terminated, truncated, info = env.step(act(obs))
                assert info["fault"] == ""
                if terminated or truncated:
                    break
            assert info["success"]
        finally:
            env.close()


def test_our_node_guards_an_arm_under_crisp(ros_domain):
    """Policy -> our node (guard, ledger, watchdog) -> CRISP."""
    node = ["-m", "robot_rl.cli", "node", "arm", "--task", "reach", "--arm", "fr3", "--world", "crisp"]
    with crisp(), child(*node, "--set", "arm.namespace=crisp"):
        env = build.make_env("reach", "fr3", "ros", ["arm.wait_s=60", *AT_START])
        try:
            assert not env.unwrapped.arm.twin and not env.unwrapped.arm.lockstep
            obs, _ = env.reset(seed=4)
            act = env.unwrapped.demonstrator(np.random.default_rng(0))
            for _ in range(20):
                obs, _, terminated, truncated, info = env.step(act(obs))
                if terminated or truncated:
                    break
            assert info["success"], info
        finally:
            env.close()


def test_a_lost_arm_is_named_and_the_node_lives(ros_domain):
    node = ["-m", "robot_rl.cli", "node", "arm", "--task", "reach", "--arm", "fr3", "--world", "crisp"]
    with crisp() as mock, child(*node, "--set", "arm.namespace=crisp") as ours:
        env = build.make_env("reach", "fr3", "ros", ["arm.wait_s=60"])
        try:
            arm = env.unwrapped.arm
            mock.kill()
            end_s = time.monotonic() + 30.0
            while arm.fault not in ("state too old", "arm lost"):
                assert time.monotonic() < end_s, arm.fault
                arm._collect()
                time.sleep(0.02)
            assert ours.poll() is None
        finally:
            env.close()


def test_a_silent_arm_is_named(ros_domain):
    with pytest.raises(TimeoutError, match=r"/nobody/cartesian_impedance_controller/get_parameters.*CRISP"):
        build.make_env("reach", "fr3", "crisp", ["arm.namespace=nobody", "arm.wait_s=1"])


def test_an_arm_without_known_limits_is_refused(ros_domain):
    with pytest.raises(LookupError, match=r"kinova.*fr3"):
        build.make_env("reach", "kinova", "crisp", ["arm.namespace=nobody", "arm.wait_s=1"])
