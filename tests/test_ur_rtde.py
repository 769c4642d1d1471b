"""The UR5e twin behind RTDE, without a vendor's client: how it moves, and what it answers."""

import numpy as np
import pytest

from sim.protocols import _ur_kinematics as kin
from sim.protocols import ur_rtde
from sim.protocols._ur_dashboard import Runtime
from sim.protocols._ur_motion import Trapezoid
from tests.ur_robot import PROGRAM

# --------------------------------------------------------------------------------------------------------- kinematics


def test_kinematics_are_the_twins(robot):
    rng = np.random.default_rng(1)
    tcp = kin.to_matrix(np.array(ur_rtde.Config().tcp))
    for _ in range(20):
        q = robot.arm.state.q_rad + rng.uniform(-0.6, 0.6, 6)
        robot.twin._data.qpos[:6] = q
        robot.twin.place_props({})
        state, terms = robot.twin.read(), robot.twin.terms()
        jac, end = kin.jacobian(kin.links(q), tcp)
        np.testing.assert_allclose(end[:3, 3], state.tcp_pos_m, atol=1e-12)
        np.testing.assert_allclose(jac, terms.jac, atol=1e-12)
        found = kin.inverse(end, tcp, q + rng.uniform(-0.2, 0.2, 6))
        np.testing.assert_allclose(kin.forward(found, tcp), end, atol=1e-9)
        np.testing.assert_allclose(kin.to_matrix(kin.to_pose(end)), end, atol=1e-12)
    with pytest.raises(ValueError, match="no inverse kinematics"):
        kin.inverse(kin.to_matrix(np.array([2.0, 0, 0, 0, 0, 0])), tcp, q)


def test_a_trapezoid_keeps_its_limits():
    for speed, acceleration in ((0.5, 1.0), (10.0, 1.0)):
        profile = Trapezoid(speed, acceleration)
        t_s = np.linspace(0.0, profile.duration_s, 2001)
        s, ds = np.array([profile.at(t) for t in t_s]).T
        assert s[0] == 0.0 and s[-1] == 1.0 and ds.max() <= speed + 1e-12
        np.testing.assert_allclose(np.gradient(s, t_s)[1:-1], ds[1:-1], atol=2e-3)
        assert np.abs(np.gradient(ds, t_s)).max() <= acceleration * 1.01


# ------------------------------------------------------------------------------------------------------------- motions


def test_movel_arrives_and_keeps_its_speed(robot):
    robot.raise_arm()
    goal, fastest = robot.moved(0.05, -0.04, 0.03), 0.0
    robot.put(3, [*goal, 0.1, 0.5])
    while robot.register(0) != 2:
        robot.tick()
        fastest = max(fastest, float(np.linalg.norm(robot.value("actual_TCP_speed")[:3])))
    robot.put(0)
    robot.tick(50)
    np.testing.assert_allclose(robot.pose, goal, atol=1e-4)
    assert 0.09 < fastest < 0.11


def test_movej_goes_straight_in_joint_space_and_the_slider_slows_it(robot):
    robot.raise_arm()
    start, way = robot.arm.state.q_rad, np.array([0.3, 0, 0, 0, 0, -0.15])
    ticks = robot.ask(1, [*(start + way), 1.0, 4.0])
    np.testing.assert_allclose(robot.arm.state.q_rad, start + way, atol=2e-4)
    robot.server._put(["speed_slider_mask", "speed_slider_fraction"], [1, 0.5])
    slower = robot.ask(1, [*start, 1.0, 4.0])
    assert robot.value("speed_scaling") == 0.5
    assert slower == pytest.approx(2 * ticks, abs=12)
    np.testing.assert_allclose(robot.arm.state.q_rad, start, atol=2e-4)


def test_an_asynchronous_move_tells_its_progress(robot):
    robot.raise_arm()
    before = robot.register(2)
    assert not before & 1 << 15
    assert robot.ask(3, [*robot.moved(0.05, 0, 0), 0.25, 1.0], [1]) == 1, "it returns at once"
    running = robot.register(2)
    assert running & 1 << 15 and running >> 24 == (before >> 24) + 1
    assert robot.ask(33, [5.0], [0]) > 1, "a stop takes its time, and ends the move"
    assert not robot.register(2) & 1 << 15
    robot.tick(100)
    assert np.linalg.norm(robot.value("actual_TCP_speed")) < 1e-3


def test_a_move_that_takes_over_begins_with_the_speed_that_is(robot):
    robot.raise_arm()
    robot.ask(3, [*robot.moved(0.05, 0, 0), 0.25, 1.0], [1])
    robot.tick(100)
    goal = robot.moved(0, 0.03, 0)
    robot.put(3, [*goal, 0.25, 1.0], [0])
    jumps = []
    while robot.register(0) != 2:
        before = robot.arm.target.dq_radps
        robot.tick()
        jumps.append(np.abs(robot.arm.target.dq_radps - before).max())
    assert max(jumps) < 0.06, "rad/s in a period"
    robot.put(0)
    robot.tick(50)
    np.testing.assert_allclose(robot.pose, goal, atol=1e-4)


def test_servoj_follows_its_law(robot):
    """On a ramp the arm is behind by the lookahead time; then it settles."""
    robot.raise_arm()
    start = robot.arm.state.q_rad
    for step in range(500):
        robot.put(11, [*(start + [0.0004 * step, 0, 0, 0, 0, 0]), 0, 0, 0.002, 0.1, 300.0])
        robot.tick()
        assert robot.register(0) == 1
    late_s = (start[0] + 0.0004 * 499 - robot.arm.state.q_rad[0]) / 0.2
    assert late_s == pytest.approx(0.1, abs=0.01)
    robot.tick(500)
    np.testing.assert_allclose(robot.arm.state.q_rad[0], start[0] + 0.0004 * 499, atol=1e-4)
    robot.ask(16, [10.0])
    assert robot.arm.motion is None


def test_servol_and_speedl_move_the_tcp(robot):
    robot.raise_arm()
    goal = robot.moved(0.02, 0.01, -0.01)
    robot.put(24, [*goal, 0, 0, 0.002, 0.1, 300.0])
    robot.tick(600)
    np.testing.assert_allclose(robot.pose, goal, atol=1e-4)
    robot.ask(16, [10.0])
    robot.put(10, [0, 0.05, 0, 0, 0, 0.1, 0.5, 0.0])
    robot.tick(250)
    np.testing.assert_allclose(robot.value("actual_TCP_speed"), [0, 0.05, 0, 0, 0, 0.1], atol=3e-3)
    robot.ask(15, [10.0])
    robot.put(9, [0, 0, 0, 0, 0, 0.3, 2.0, 0.0])
    robot.tick(250)
    np.testing.assert_allclose(robot.value("actual_qd"), [0, 0, 0, 0, 0, 0.3], atol=3e-3)
    robot.ask(15, [10.0])
    robot.tick(50)
    assert np.abs(robot.value("actual_qd")).max() < 1e-3


def test_two_threads_cannot_move_the_arm(robot):
    robot.raise_arm()
    robot.put(11, [*robot.arm.state.q_rad, 0, 0, 0.002, 0.1, 300.0])
    robot.tick()
    robot.put(1, [*robot.arm.state.q_rad, 1.0, 1.0])
    robot.tick()
    assert robot.machine.runtime == Runtime.STOPPED, "as URScript's runtime has it"


def test_jog_goes_along_the_tools_axes(robot):
    robot.raise_arm()
    tool = kin.to_matrix(robot.pose)[:3, :3]
    robot.put(41, [0, 0, -0.05, 0, 0, 0, 1, 0.5, *[0] * 6])
    robot.tick(200)
    np.testing.assert_allclose(robot.value("actual_TCP_speed")[:3], tool @ [0, 0, -0.05], atol=2e-3)
    robot.put(0)
    robot.tick()
    robot.ask(42)
    assert robot.arm.motion is None


def test_a_path_is_followed(make_robot):
    lines = "\tsignal_async_progress(0)\n\tmovej([2.9,-1.5,1.9,-2.0,-1.5,-1.9],a=4,v=1,r=0)\n"
    lines += "\tsignal_async_progress(1)\n\tmovel(p[0.45,0.05,0.25,3.1,0.0,0.0],a=2,v=0.5,r=0.0)\n"
    robot = make_robot(program=PROGRAM.replace("# inject move path\n", "# inject move path\n" + lines))
    robot.ask(45, (), [0])
    np.testing.assert_allclose(robot.pose, [0.45, 0.05, 0.25, 3.1, 0.0, 0.0], atol=1e-3)
