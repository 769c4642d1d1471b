"""The FR3 twin behind Franka's control interface, through the vendor's own clients, unmodified."""

import json
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.fci_client import at_normal_priority, cause
from tests.ros_children import until
from tests.served import address, serve


def franky_robot(host):
    franky = pytest.importorskip("franky")
    robot = franky.Robot(host, realtime_config=franky.RealtimeConfig.Ignore)
    at_normal_priority()
    robot.relative_dynamics_factor = 0.2
    return franky, robot


def test_franky_moves_arm_and_hand(fci_twin):
    server = fci_twin("pick_place")
    franky, robot = franky_robot(server.host)
    truth = server.twin.read()
    np.testing.assert_allclose(robot.state.q, truth.q_rad, atol=1e-6)
    np.testing.assert_allclose(robot.state.O_T_EE.translation, truth.tcp_pos_m, atol=1e-6)
    goal = np.array(robot.state.q) + 0.1
    robot.move(franky.JointMotion(goal))
    np.testing.assert_allclose(server.twin.read().q_rad, goal, atol=1e-3)
    before = server.twin.read().tcp_pos_m
    robot.move(franky.CartesianMotion(franky.Affine([0.0, 0.0, -0.03]), franky.ReferenceType.Relative))
    assert np.linalg.norm(server.twin.read().tcp_pos_m - before) == pytest.approx(0.03, abs=1e-3)
    gripper = franky.Gripper(server.host)
    at_normal_priority()
    assert gripper.move(0.05, 0.1)
    assert gripper.width == pytest.approx(0.05, abs=1e-3)
    assert gripper.homing() and not gripper.grasp(0.03, 0.1, 20.0, 0.005, 0.005)
    server_ok = robot.recover_from_errors()
    assert server_ok


def test_a_scene_without_fingers_says_so(fci_twin):
    server = fci_twin("peg_insert")
    franky = pytest.importorskip("franky")
    gripper = franky.Gripper(server.host)
    at_normal_priority()
    with pytest.raises(franky.CommandException, match="failed"):
        gripper.move(0.05, 0.1)


def follow(twin, seconds=1.0, pause_s=0.0):
    """Held time: a tracker follows a sine; where the tcp has been, from the door."""
    franky, robot = franky_robot(twin.host)
    door = twin.door()
    door.hold()
    start = [0.5, 0.0, 0.3, 1.0, 0.0, 0.0, 0.0]  # until it was held the arm stood for some time, by the wall clock
    door.ask("place", tcp=start, gripper=0.0, props=door.truth()["props"])
    standing = robot.state.time
    until(lambda: robot.state.time.to_msec() > standing.to_msec())  # the client has seen it
    tracker = franky.CartesianImpedanceTracker(robot, translational_stiffness=1500.0, rotational_stiffness=60.0)
    first = np.array(door.truth()["tcp"])
    try:
        tracker.__enter__()
        path = []
        for k in range(int(seconds / 0.02)):
            way = 0.03 * np.sin(2 * np.pi * k * 0.02) * min(1.0, k / 25)
            tracker.set_target(franky.Affine(first[:3] + (0.0, way, 0.0), first[3:]))
            door.advance(20)
            path.append((*door.truth()["tcp"], first[1] + way))
            if k == 10:
                time.sleep(pause_s)
    finally:
        door.free()  # ending a motion takes time
        tracker.__exit__(None, None, None)
    return np.array(path)


def test_franky_follows_a_sine_in_held_time_the_same_each_time():
    paths = []
    for pause_s in (0.0, 2.5):  # longer than libfranka's time-out
        with serve("fci", "fr3", task="reach", lockstep=True) as twin:
            paths.append(follow(twin, pause_s=pause_s))
    np.testing.assert_array_equal(paths[0], paths[1])
    assert np.abs(paths[0][:, 1] - paths[0][:, 7]).max() < 0.02
    assert np.ptp(paths[0][:, 1]) > 0.04


def test_pylibfranka_closes_a_torque_loop_and_knows_the_twins_model():
    with serve("fci", "fr3", task="peg_insert", lockstep=True) as twin:
        words = [sys.executable, "-m", "tests.fci_torque_loop", twin.host]
        said = json.loads(subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout)
    assert said["turned"] == pytest.approx(0.2, abs=0.02)
    body = Reference(said["q"], said["dq"])
    np.testing.assert_allclose(said["gravity"], body.gravity_nm, atol=1e-3)
    np.testing.assert_allclose(np.reshape(said["mass"], (7, 7)), body.mass, atol=1e-4)
    np.testing.assert_allclose(said["coriolis"], body.coriolis_nm, atol=1e-4)
    np.testing.assert_allclose(np.reshape(said["jac"], (7, 6)).T, body.jac, atol=1e-5)


class Reference:
    """The twin's own equations of motion in a state that a client has read, without the drives' rotors."""

    def __init__(self, q_rad, dq_radps):
        from robot_rl.build import make_arm, make_configs
        from robot_rl.find import find

        configs = make_configs("peg_insert", "fr3", "sim", [])
        twin = make_arm("peg_insert", "fr3", "sim", configs, find("tasks", "peg_insert").make(configs["task"]))
        import mujoco

        twin._data.qpos[:7], twin._data.qvel[:7] = q_rad, dq_radps
        mujoco.mj_forward(twin._model, twin._data)
        terms = twin.terms()
        self.gravity_nm, self.coriolis_nm, self.jac = terms.gravity_nm, terms.coriolis_nm, terms.jac
        self.mass = terms.mass - np.diag(twin._model.dof_armature[:7])


def test_two_arms_at_once(fci_twin):
    servers = [fci_twin(), fci_twin()]
    robots = [franky_robot(server.host) for server in servers]
    goals = []
    for k, (franky, robot) in enumerate(robots):
        goal = np.array(robot.state.q)
        goal[0] += 0.1 * (k + 1)
        goals.append(goal)
        robot.move(franky.JointMotion(goal), asynchronous=True)
    for (_, robot), server, goal in zip(robots, servers, goals, strict=True):
        robot.join_motion()
        np.testing.assert_allclose(server.twin.read().q_rad, goal, atol=1e-3)


def test_franky_meets_the_table_and_recovers(fci_twin):
    server = fci_twin()
    franky, robot = franky_robot(server.host)
    height_m = server.twin.read().tcp_pos_m[2]
    down = franky.Affine([0.0, 0.0, height_m + 0.02])  # the tool's z points down
    with pytest.raises(franky.ControlException, match="cartesian_reflex"):
        robot.move(franky.CartesianMotion(down, franky.ReferenceType.Relative))
    assert robot.has_errors
    with pytest.raises(franky.CommandException, match="Reflex"):
        robot.move(franky.JointMotion(np.array(robot.state.q)))
    until(lambda: abs(server._robot._wrench[2]) < 15.0)  # what it leans on pushes the arm off
    robot.recover_from_errors()
    until(lambda: not robot.has_errors)  # the client may have read a state from before
    robot.set_collision_behavior(100.0, 100.0)  # it still leans on the table
    up = franky.Affine([0.0, 0.0, -0.05])
    robot.move(franky.CartesianMotion(up, franky.ReferenceType.Relative))


def test_the_vendors_client_names_another_version_and_a_robot_that_is_not_there(fci_twin):
    server = fci_twin()
    cause(server, "wrong_version", version=9)
    franky = pytest.importorskip("franky")
    with pytest.raises(franky.IncompatibleVersionException):
        franky.Robot(server.host, realtime_config=franky.RealtimeConfig.Ignore)
    at_normal_priority()
    with socket.socket() as probe:
        probe.bind((address(), 0))
        with pytest.raises(franky.NetworkException):
            franky.Robot(probe.getsockname()[0], realtime_config=franky.RealtimeConfig.Ignore)
