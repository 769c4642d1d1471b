"""The UR5e twin behind RTDE, without a vendor's client: stops, other programs, and the dashboard's states."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sim.protocols._ur_dashboard import TOO_SOON, Dashboard, Identity, Machine, RobotMode, Runtime, Safety
from sim.protocols._ur_script import split
from tests.ur_robot import PROGRAM, NoServer, over_table

# --------------------------------------------------------------------------------------------------------------- stops


def test_a_collision_is_a_protective_stop(robot):
    over_table(robot)
    robot.put(3, [*robot.moved(0, 0, -0.06), 0.25, 1.0], [1])
    robot.tick(400)
    assert robot.machine.safety == Safety.PROTECTIVE_STOP and "collision" in robot.machine.cause
    assert robot.machine.runtime == Runtime.PAUSED and robot.value("safety_status_bits") == 1 << 2 | 1 << 10
    robot.put(3, [*robot.moved(0, 0, 0.06), 0.25, 1.0], [1])
    before = robot.pose
    robot.tick(500)
    np.testing.assert_allclose(robot.pose, before, atol=1e-3)
    assert robot.server.dashboard.answer("unlock protective stop") == TOO_SOON
    robot.server.run_script(PROGRAM)
    assert robot.machine.runtime == Runtime.PAUSED, "no program starts in a stop"
    robot.tick(2500)
    assert robot.machine.safety == Safety.PROTECTIVE_STOP, "it does not clear by itself"
    assert robot.server.dashboard.answer("unlock protective stop") == "Protective stop releasing"
    robot.server.run_script(PROGRAM)
    robot.put(0)
    robot.tick()
    robot.ask(3, [*robot.moved(0, 0, 0.03), 0.25, 1.0])
    assert robot.machine.safety == Safety.NORMAL


def test_a_joint_too_fast_trips(robot):
    robot.raise_arm()
    robot.put(11, [*(robot.arm.state.q_rad + [1.8, 0, 0, 0, 0, 0]), 0, 0, 0.002, 0.03, 2000.0])
    robot.tick(200)
    assert robot.machine.safety == Safety.PROTECTIVE_STOP and "speed limit" in robot.machine.cause


def test_a_joint_off_its_path_trips(make_robot):
    robot = make_robot("stop_path_rad=0.02", "stop_force_n=10000")
    robot.raise_arm()
    robot.twin._data.qfrc_applied[0] = 1e3
    robot.tick(100)
    assert robot.machine.safety == Safety.PROTECTIVE_STOP


def test_an_emergency_stop_takes_the_power_until_a_person_acts(robot):
    robot.raise_arm()
    robot.put(10, [0.1, 0, 0, 0, 0, 0, 0.5, 0])
    robot.tick(100)
    robot.server.faults()["emergency_stop"]()
    robot.tick(200)
    assert np.abs(robot.arm.state.dq_radps).max() < 1e-3
    assert robot.value("safety_mode") == Safety.ROBOT_EMERGENCY_STOP
    assert robot.value("robot_mode") == RobotMode.POWER_OFF
    assert robot.server.dashboard.answer("power on") == "Failed to execute: power on"
    robot.server.faults()["release_emergency_stop"]()
    assert robot.value("safety_mode") == Safety.NORMAL and robot.value("robot_mode") == RobotMode.POWER_OFF
    assert robot.server.dashboard.answer("brake release") == "Brake releasing"
    robot.tick(600)
    assert robot.value("robot_mode") == RobotMode.RUNNING and robot.machine.runtime == Runtime.STOPPED


def test_a_program_stop_brakes(robot):
    robot.raise_arm()
    robot.put(10, [0.1, 0, 0, 0, 0, 0, 0.5, 0])
    robot.tick(150)
    robot.server.faults()["program_stop"]()
    robot.tick(100)
    assert robot.value("runtime_state") == Runtime.STOPPED and np.abs(robot.arm.state.dq_radps).max() < 1e-3


def test_a_watchdog_that_is_not_kicked_stops_the_program(robot):
    robot.ask(35, [10.0])
    for _ in range(5):
        robot.tick(40)
        robot.put(0)
    assert robot.machine.runtime == Runtime.PLAYING
    robot.tick(45)
    assert robot.machine.runtime == Runtime.PLAYING
    robot.tick(15)
    assert robot.machine.runtime == Runtime.STOPPED


def test_a_paused_program_goes_on_with_the_next_command(robot):
    robot.put(11, [*robot.arm.state.q_rad, 0, 0, 0.002, 0.1, 300.0])
    robot.tick(10)
    assert robot.server.dashboard.answer("pause") == "Pausing program"
    robot.tick(10)
    assert robot.server.dashboard.answer("programState") == "PAUSED <unnamed>"
    assert robot.server.dashboard.answer("play") == "Starting program"
    robot.put(11, [*robot.arm.state.q_rad, 0, 0, 0.002, 0.1, 300.0])
    robot.tick(10)
    assert robot.machine.runtime == Runtime.PLAYING


def test_other_programs_run_line_by_line(make_robot, capfd):
    robot = make_robot()
    robot.raise_arm()
    text = "def mine():\n  set_payload(2.5, [0, 0, 0.1])\n  fancy(1)\n"
    text += "  movej([2.9, -1.5, 1.9, -2.0, -1.5, -1.9], a=4, v=1)\n"
    text += "  movel(p[0.45, 0.05, 0.25, 3.1, 0.0, 0.0], v=0.5)\n  write_output_integer_register(3, 7)\nend\n"
    robot.server.run_script(text)
    assert robot.machine.runtime == Runtime.PLAYING
    robot.tick(3000)
    assert robot.machine.runtime == Runtime.STOPPED and robot.value("output_int_register_3") == 7
    np.testing.assert_allclose(robot.pose, [0.45, 0.05, 0.25, 3.1, 0.0, 0.0], atol=1e-3)
    assert robot.value("payload") == 2.5 and "not understood: fancy(1)" in capfd.readouterr().err
    robot.server.run_script("powerdown()\n")
    robot.tick(3)
    assert robot.machine.mode == RobotMode.POWER_OFF


def test_programs_are_cut_where_they_end():
    received = bytearray(b"movej([0])\ndef a():\n  if x:\n  end\nend\nstop program\ndef b():\n")
    assert split(received) == ["movej([0])\n", "def a():\n  if x:\n  end\nend\n", "stop program\n"]
    assert bytes(received) == b"def b():\n"


def test_the_same_commands_give_the_same_numbers(make_robot):
    def run():
        robot = make_robot()
        over_table(robot)
        robot.put(6, [0] * 6 + [0, 0, -12.0, 0, 0, 0] + [2, 2, 0.05, 1, 1, 1], [2, 0, 0, 1, 0, 0, 0])
        robot.tick(300)
        return np.concatenate([robot.value("actual_q"), robot.value("actual_TCP_force"), [robot.server.t_s]])

    assert np.array_equal(run(), run())


# ----------------------------------------------------------------------------------------------------- state machine


class Dashboards(RuleBasedStateMachine):
    """Whatever is sent, pressed and waited: nothing but a person's act leads out of a stop."""

    def __init__(self):
        super().__init__()
        self.machine = Machine(0.5, 5.0, True)
        self.t_s, self.pressed, self.since_s = 0.0, False, -1e9
        self.loaded = False
        self.dashboard = Dashboard(
            NoServer(), self.machine, Identity((5, 26, 0, 0), "1", "UR5"), self.play, self.stop, lambda: False
        )

    def play(self):
        if self.machine.ready and self.loaded:
            self.machine.runtime = Runtime.PLAYING
        return self.machine.ready and self.loaded

    def stop(self):
        self.machine.runtime = Runtime.STOPPED
        return True

    @rule(s=st.sampled_from([0.002, 0.6, 5.0]))
    def wait(self, s):
        before = self.machine.safety
        self.t_s += s
        self.machine.tick(self.t_s)
        assert self.machine.safety == before

    @rule(command=st.sampled_from(
        ["power on", "power off", "brake release", "play", "stop", "pause", "PLAY", "restart safety", "robotmode",
         "safetystatus", "running", "close safety popup", "clear operational mode", "quit", "nonsense"]))  # fmt: skip
    def send(self, command):
        before = self.machine.safety
        answer = self.dashboard.answer(command)
        assert answer and "\n" not in answer
        if command != "restart safety" or before != Safety.FAULT:
            assert self.machine.safety == before
        if command.lower() == "play":
            assert (answer == "Starting program") == (self.machine.runtime == Runtime.PLAYING)
        if command == "safetystatus":
            assert answer == f"Safetystatus: {before.name}"

    @rule()
    def load(self):
        self.loaded = True

    @rule()
    def collide(self):
        if self.machine.safety in (Safety.NORMAL, Safety.PROTECTIVE_STOP):
            self.since_s = self.t_s
        self.machine.protective_stop("test")

    @rule()
    def unlock(self):
        before = self.machine.safety
        answer = self.dashboard.answer("unlock protective stop")
        if before == Safety.PROTECTIVE_STOP:
            early = self.t_s < self.since_s + 5.0 - 1e-6
            assert (answer == TOO_SOON) == early and (self.machine.safety == Safety.NORMAL) != early
        else:
            assert self.machine.safety == before

    @rule()
    def press(self):
        self.pressed = True
        self.machine.emergency_stop()

    @rule()
    def turn_out(self):
        self.pressed = False
        self.machine.release_emergency_stop()

    @invariant()
    def stopped_means_no_program(self):
        machine = self.machine
        assert machine.safety_bits & 1 == (machine.safety == Safety.NORMAL)
        if self.pressed:
            assert machine.safety == Safety.ROBOT_EMERGENCY_STOP and not machine.powered
        if machine.runtime == Runtime.PLAYING:
            assert machine.safety == Safety.NORMAL and machine.powered
        assert machine.ready == (machine.mode == RobotMode.RUNNING and machine.safety == Safety.NORMAL)


TestDashboards = Dashboards.TestCase
TestDashboards.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_in_local_control_the_dashboard_only_tells(robot):
    robot.server.faults()["remote_control"](on=False)
    answer = robot.server.dashboard.answer
    assert answer("is in remote control") == "false" and answer("robotmode") == "Robotmode: RUNNING"
    assert answer("play") == "Failed to execute: play" and answer("power off").startswith("Failed")
    robot.server.run_script("stop program\n")
    robot.server.run_script(PROGRAM)
    assert robot.machine.runtime == Runtime.STOPPED, "nor are programs taken"


def test_the_dashboard_says_who_it_is(robot):
    answer = robot.server.dashboard.answer
    assert answer("PolyscopeVersion").startswith("URSoftware 5.26.0.") and answer("get serial number").isdigit()
    assert answer("get robot model") == "UR5" and answer("running") == "Program running: true"
    assert answer("load my.urp") == "File not found: my.urp" and answer("popup hello") == "showing popup"
    assert answer("what is this").startswith("could not understand")
