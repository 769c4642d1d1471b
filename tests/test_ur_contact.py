"""The UR5e twin behind RTDE, without a vendor's client: force, contact and queries."""

import numpy as np
import pytest

from sim.protocols import _rtde_messages as rtde
from sim.protocols import _ur_kinematics as kin
from sim.protocols._rtde_fields import OUTPUTS
from sim.protocols._ur_dashboard import Runtime, Safety

# ------------------------------------------------------------------------------------------------------- force, contact
from tests.ur_robot import over_table


def test_force_mode_presses_with_the_force_asked_for(robot):
    over_table(robot)
    robot.ask(8)
    robot.put(6, [0] * 6 + [0, 0, -12.0, 0, 0, 0] + [2, 2, 0.05, 1, 1, 1], [2, 0, 0, 1, 0, 0, 0])
    robot.tick(1)
    fastest = 0.0
    for _ in range(1000):
        robot.tick()
        fastest = max(fastest, -robot.value("actual_TCP_speed")[2])
    assert robot.value("actual_TCP_force")[2] == pytest.approx(12.0, abs=0.6)
    assert fastest < 0.055, "the limit of a compliant axis is a speed"
    assert robot.pose[2] == pytest.approx(0.04, abs=1e-3)
    robot.put(0)
    robot.tick()
    robot.ask(7)
    assert robot.arm.force is None and robot.machine.safety == Safety.NORMAL


def test_force_mode_leaves_the_other_axes_stiff(robot):
    over_table(robot)
    before = robot.pose
    robot.put(6, [0] * 6 + [0, 0, -12.0, 0, 0, 0] + [2, 2, 0.05, 1, 1, 1], [2, 0, 0, 1, 0, 0, 0])
    robot.tick(800)
    np.testing.assert_allclose(robot.pose[:2], before[:2], atol=1e-3)


def test_force_mode_presses_while_the_arm_moves_along(robot):
    over_table(robot)
    robot.put(6, [0] * 6 + [0, 0, -10.0, 0, 0, 0] + [2, 2, 0.05, 1, 1, 1], [2, 0, 0, 1, 0, 0, 0])
    robot.tick(500)
    start = robot.pose
    robot.put(10, [0.03, 0, 0, 0, 0, 0, 0.3, 0.0])
    forces_n = []
    for _ in range(500):
        robot.tick()
        forces_n.append(robot.value("actual_TCP_force")[2])
    assert robot.machine.safety == Safety.NORMAL
    assert robot.pose[0] - start[0] == pytest.approx(0.03, abs=4e-3)
    assert np.mean(forces_n) == pytest.approx(10.0, abs=1.0), "a peg that is dragged sticks and slips: on average"


def test_contact_is_detected_and_moved_back_to(robot):
    over_table(robot)
    robot.ask(51, [0, 0, -0.02, 0, 0, 0, *[0] * 6, 0.25])
    robot.tick(100)
    assert robot.pose[2] == pytest.approx(0.04, abs=1e-3) and robot.machine.safety == Safety.NORMAL
    assert robot.value("actual_TCP_force")[2] < 5.0, "back where it began"


def test_contact_detection_stops_an_asynchronous_move(robot):
    over_table(robot)
    robot.ask(62, [0, 0, -1.0, 0, 0, 0])
    robot.ask(3, [*robot.moved(0, 0, -0.05), 0.02, 0.2], [1])
    robot.tick(2000)
    assert robot.machine.safety == Safety.NORMAL and robot.pose[2] == pytest.approx(0.04, abs=1e-3)
    robot.ask(64)
    assert robot.register(1) > 0
    robot.ask(63)


def test_sensor_errors_are_zeroed_and_payload_counts(make_robot):
    robot = make_robot("ft_bias=1,2,3,0.1,0.2,0.3", "set_payload_kg=1.62")
    flange = robot.arm.flange_frame()[:3, :3]
    wrong_n = flange @ [1, 2, 3] + [0, 0, 0.5 * 9.81]
    np.testing.assert_allclose(robot.value("actual_TCP_force")[:3], wrong_n, atol=1e-6)
    weight = -1.12 * 9.81 * flange[2]
    np.testing.assert_allclose(robot.value("ft_raw_wrench")[:3], weight + [1, 2, 3], atol=1e-6)
    robot.ask(8)
    assert np.abs(robot.value("actual_TCP_force")).max() < 1e-9
    robot.ask(17, [1.12, 0, 0, 0.06])
    assert np.linalg.norm(robot.value("actual_TCP_force")[:3]) == pytest.approx(0.5 * 9.81), "zeroed with the wrong one"
    robot.ask(8)
    robot.raise_arm()
    q = robot.arm.state.q_rad + [0, 0, 0, 0.4, 0.3, 0]
    robot.ask(1, [*q, 1.0, 3.0])
    robot.tick(100)
    assert np.abs(robot.value("actual_TCP_force")).max() < 1e-3, "a right payload is right in every attitude"


def test_a_tcp_that_is_set_moves_pose_force_and_kinematics(robot):
    flange = robot.arm.flange_frame()
    robot.ask(29, [0.01, 0.02, 0.2, 0, 0, 0.5])
    wanted = kin.to_pose(flange @ kin.to_matrix(np.array([0.01, 0.02, 0.2, 0, 0, 0.5])))
    np.testing.assert_allclose(robot.pose, wanted, atol=1e-9)
    robot.ask(40)
    np.testing.assert_allclose(robot.doubles(), [0.01, 0.02, 0.2, 0, 0, 0.5], atol=1e-12)
    robot.ask(43)
    np.testing.assert_allclose(robot.doubles(), wanted, atol=1e-9)
    robot.put(58)
    robot.tick()
    np.testing.assert_allclose(robot.doubles(), kin.to_pose(flange), atol=1e-9)


# ------------------------------------------------------------------------------------------------------------- queries


def test_queries_say_what_the_twin_says(robot):
    q, tcp = robot.arm.state.q_rad, robot.arm.tcp
    robot.ask(44, [*(q + 0.1), *kin.to_pose(tcp)])
    np.testing.assert_allclose(robot.doubles(), kin.to_pose(kin.forward(q + 0.1, tcp)), atol=1e-12)
    pose = kin.to_pose(kin.forward(q + 0.05, tcp))
    robot.ask(30, [*pose, *q, 1e-10, 1e-10])
    np.testing.assert_allclose(robot.doubles(), q + 0.05, atol=1e-8)
    for command, good, bad in ((60, pose, [3, 0, 0, 0, 0, 0]), (36, pose, [3, 0, 0, 0, 0, 0]), (37, q, q + 9.0)):
        robot.ask(command, good)
        assert robot.register(1) == 1
        robot.ask(command, bad)
        assert robot.register(1) == 0
    robot.put(67)
    robot.tick()
    registers = [robot.server.outputs[f"output_double_register_{i}"] for i in (*range(24), *range(36, 48))]
    np.testing.assert_allclose(np.reshape(registers, (6, 6)), robot.twin.terms().mass, atol=1e-6)
    robot.put(70)
    robot.tick()
    registers = [robot.server.outputs[f"output_double_register_{i}"] for i in (*range(24), *range(36, 48))]
    np.testing.assert_allclose(np.reshape(registers, (6, 6)).T, robot.twin.terms().jac, atol=1e-6)
    robot.put(0)
    robot.tick(300)
    robot.ask(47)
    assert robot.register(1) == 1
    robot.put(3, [*robot.moved(0, 0, 0.02), 0.1, 0.5], [1])
    robot.tick(5)
    robot.put(0)
    robot.tick()
    robot.ask(47)
    assert robot.register(1) == 0


def test_without_a_solution_the_program_dies(robot):
    robot.ask(46, [3, 0, 0, 0, 0, 0])
    assert robot.machine.runtime == Runtime.STOPPED


@pytest.mark.parametrize("number", [1, 3, 9, 10, 11, 24, 66])
def test_a_number_that_is_none_ends_the_program_and_nothing_moves(robot, number):
    before = robot.arm.state.q_rad
    robot.put(number, [float("nan")] * 18)
    robot.tick(20)
    assert robot.machine.runtime == Runtime.STOPPED
    np.testing.assert_allclose(robot.arm.state.q_rad, before, atol=1e-9)


def test_direct_torque_moves_a_joint_until_it_ends(robot):
    robot.raise_arm()
    for _ in range(50):
        robot.put(66, [0, 0, 0, 0, 0, 0.5, *[0] * 12])
        robot.tick()
    assert robot.value("actual_qd")[5] > 0.1
    robot.put(0)
    robot.tick(200)
    assert np.abs(robot.value("actual_qd")).max() < 1e-3
    np.testing.assert_allclose(robot.arm.friction(np.ones(6)), 0.2 * robot.arm.state.dq_radps)


def test_a_hand_may_move_the_arm_in_free_drive(robot):
    robot.raise_arm()
    robot.ask(18)
    robot.twin._data.qfrc_applied[0] = 3.0
    robot.tick(200)
    assert robot.arm.state.dq_radps[0] > 0.05
    robot.twin._data.qfrc_applied[0] = 0.0
    robot.ask(19)
    robot.tick(100)
    assert np.abs(robot.arm.state.dq_radps).max() < 1e-3
    here = robot.arm.state.q_rad
    robot.tick(50)
    np.testing.assert_allclose(robot.arm.state.q_rad, here, atol=1e-4)


def test_inputs_set_lights_and_analog_outputs(robot):
    robot.server._put(["standard_digital_output_mask", "standard_digital_output"], [0b101, 0b100])
    robot.server._put(["tool_digital_output_mask", "tool_digital_output"], [0b10, 0b10])
    assert robot.value("actual_digital_output_bits") == 0b100 | 1 << 17
    robot.server._put(["standard_digital_output_mask", "standard_digital_output"], [0b100, 0])
    assert robot.value("actual_digital_output_bits") == 1 << 17
    names = ["standard_analog_output_mask", "standard_analog_output_type", "standard_analog_output_0"]
    robot.server._put(names, [1, 1, 0.25])
    assert robot.value("standard_analog_output0") == 2.5


def test_every_output_has_a_value_of_its_type(robot):
    for name, kind in OUTPUTS.items():
        assert rtde.Recipe(1, [name], [kind]).pack([robot.server._state.value(name)])
