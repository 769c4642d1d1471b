"""An FR3 twin behind Franka's control interface, spoken to by hand."""

import numpy as np
import pytest

from sim.protocols import _fci_messages as fci
from sim.protocols._fci_messages import Command, Controller, Generator, MoveStatus, RobotMode
from tests.fci_client import Client, cause
from tests.ros_children import until

TORQUE = {"controller_mode": Controller.EXTERNAL, "motion_generator_mode": Generator.NONE - 1}


def begun(client):
    """A running torque motion in lock-step, and the state that waits for its next command."""
    assert client.ask(Command.MOVE, **TORQUE) == MoveStatus.MOTION_STARTED
    state = until_state(client, lambda state: state["robot_mode"] == RobotMode.MOVE)
    while not state["control_command_success_rate"]:  # until the twin, which had run ahead, waits for us
        client.command(state)
        state = client.state()
    return state


def until_state(client, condition):
    for _ in range(20000):
        state = client.state()
        if condition(state):
            return state
    raise AssertionError("never so")


def names(bits):
    return {fci.ERRORS[k] for k in np.flatnonzero(bits)}


def turn(client, state, ticks):
    """Answer so many states with no torque."""
    for _ in range(ticks):
        client.command(state)
        state = client.state()
    return state


# ------------------------------------------------------------------------------------------------------------- by hand


def test_another_version_is_told_and_kept_out(fci_twin):
    server = fci_twin()
    client = Client(server.host, version=9)
    assert client.connected == (fci.ConnectStatus.INCOMPATIBLE_LIBRARY_VERSION, 10)
    client.close()
    until(lambda: server._port._client is None)
    cause(server, "wrong_version", version=8)
    client = Client(server.host)
    assert client.connected == (fci.ConnectStatus.INCOMPATIBLE_LIBRARY_VERSION, 8)
    client.close()


def test_states_count_up_and_a_second_client_is_turned_away(fci_twin):
    server = fci_twin(lockstep=False)
    client = Client(server.host)
    assert client.connected == (fci.ConnectStatus.SUCCESS, 10)
    ids = [int(client.state()["message_id"]) for _ in range(20)]
    assert ids == list(range(ids[0], ids[0] + 20))
    with pytest.raises(OSError):
        Client(server.host)
    assert client.ask(Command.STOP_MOVE) == 0
    client.close()


@pytest.mark.parametrize("nonsense", [b"\x00" * 12, fci.message(fci.HEADER, 99, 1, b""), b"\x01" * 50,
                                      fci.message(fci.HEADER, 1, 1, b"too short")])  # fmt: skip
def test_who_talks_nonsense_is_dropped_and_the_next_is_welcome(fci_twin, nonsense):
    server = fci_twin()
    client = Client(server.host)
    client.tcp.sendall(nonsense)
    with pytest.raises(OSError):
        client.answer()
    client.close()
    again = Client(server.host)
    assert again.connected[0] == fci.ConnectStatus.SUCCESS
    again.close()


def test_the_setters_answer_and_refuse(fci_twin):
    client = Client(fci_twin().host)
    eye = np.eye(4).ravel()
    good = {
        Command.SET_COLLISION_BEHAVIOR: dict.fromkeys(fci.REQUESTS[Command.SET_COLLISION_BEHAVIOR].names, 30.0),
        Command.SET_JOINT_IMPEDANCE: {"K_theta": np.full(7, 1000.0)},
        Command.SET_CARTESIAN_IMPEDANCE: {"K_x": np.full(6, 200.0)},
        Command.SET_GUIDING_MODE: {"nullspace": 1},
        Command.SET_EE_TO_K: {"EE_T_K": eye},
        Command.SET_NE_TO_EE: {"NE_T_EE": eye},
        Command.SET_LOAD: {"m_load": 0.1},
        Command.AUTOMATIC_ERROR_RECOVERY: {},
        Command.STOP_MOVE: {},
    }
    assert {command: client.ask(command, **fields) for command, fields in good.items()} == dict.fromkeys(good, 0)
    assert client.ask(Command.SET_JOINT_IMPEDANCE, K_theta=np.full(7, -1.0)) == fci.SetStatus.INVALID_ARGUMENT
    begun(client)
    assert client.ask(Command.SET_LOAD) == fci.SetStatus.COMMAND_NOT_POSSIBLE
    assert client.ask(Command.MOVE, **TORQUE) == MoveStatus.COMMAND_NOT_POSSIBLE
    client.close()


def test_a_motion_ends_with_its_flag_and_the_move_is_answered(fci_twin):
    client = Client(fci_twin().host)
    state = begun(client)
    assert (state["motion_generator_mode"], state["controller_mode"]) == (Generator.NONE, Controller.EXTERNAL)
    state = turn(client, state, 20)
    assert state["control_command_success_rate"] == 1.0
    client.command(state, torque_command_finished=1)
    command, _, payload = client.answer()
    assert (command, payload[0]) == (Command.MOVE, MoveStatus.SUCCESS)
    state = until_state(client, lambda state: state["robot_mode"] == RobotMode.IDLE)
    assert (state["motion_generator_mode"], state["controller_mode"]) == (Generator.IDLE, Controller.OTHER)
    client.close()


def test_a_stop_preempts(fci_twin):
    client = Client(fci_twin().host)
    begun(client)
    client.send(Command.STOP_MOVE)
    answers = {command: payload[0] for command, _, payload in (client.answer(), client.answer())}
    assert answers == {Command.STOP_MOVE: fci.StopStatus.SUCCESS, Command.MOVE: MoveStatus.PREEMPTED}
    client.close()


def test_lockstep_waits_for_the_client(fci_twin):
    server = fci_twin()
    client = Client(server.host)
    state = begun(client)
    at = server.ticks
    for _ in range(3):  # the connection is kept alive by the very same state
        assert client.state()["message_id"] == state["message_id"]
    assert server.ticks == at
    client.command(state)
    until_state(client, lambda newer: newer["message_id"] == state["message_id"] + 1)
    assert server.ticks == at + 1
    client.close()


def test_lost_commands(fci_twin):
    server = fci_twin()
    client = Client(server.host)
    state = begun(client)
    cause(server, "drop", count=19)
    state = turn(client, state, 30)
    assert state["robot_mode"] == RobotMode.MOVE and 0.2 < state["control_command_success_rate"] < 0.7
    cause(server, "drop", count=20)
    state = turn(client, state, 20)
    assert names(state["errors"]) == names(state["reflex_reason"]) == {"communication_constraints_violation"}
    assert state["robot_mode"] == RobotMode.REFLEX
    assert client.answer()[2][0] == MoveStatus.REFLEX_ABORTED
    assert client.ask(Command.MOVE, **TORQUE) == MoveStatus.COMMAND_NOT_POSSIBLE
    assert client.ask(Command.AUTOMATIC_ERROR_RECOVERY) == fci.RecoveryStatus.SUCCESS
    begun(client)
    client.close()


def test_late_and_swapped_commands_count_as_lost(fci_twin):
    server = fci_twin()
    client = Client(server.host)
    state = turn(client, begun(client), 5)
    cause(server, "reorder", count=1)
    state = turn(client, state, 10)
    assert state["control_command_success_rate"] == pytest.approx(15 / 16)
    cause(server, "delay", ms=1)
    state = turn(client, state, 20)
    assert names(state["errors"]) == {"communication_constraints_violation"}
    client.close()


def test_a_share_of_lost_commands_is_the_same_each_time(fci_twin):
    rates = []
    for _ in range(2):
        server = fci_twin()
        client = Client(server.host)
        state = begun(client)
        cause(server, "drop", share=0.2)
        rates.append(turn(client, state, 100)["control_command_success_rate"])
        client.close()
    assert rates[0] == rates[1] and 0.6 < rates[0] < 0.95


def test_a_reflex_and_a_user_stop_through_the_door(fci_twin):
    server = fci_twin()
    client = Client(server.host)
    begun(client)
    cause(server, "reflex", name="joint_velocity_violation")
    assert client.answer()[2][0] == MoveStatus.REFLEX_ABORTED
    state = until_state(client, lambda state: state["robot_mode"] == RobotMode.REFLEX)
    assert names(state["errors"]) == {"joint_velocity_violation"}
    assert client.ask(Command.AUTOMATIC_ERROR_RECOVERY) == 0
    begun(client)
    cause(server, "user_stop")
    assert client.answer()[2][0] == MoveStatus.EMERGENCY_ABORTED
    until_state(client, lambda state: state["robot_mode"] == RobotMode.USER_STOPPED)
    assert client.ask(Command.AUTOMATIC_ERROR_RECOVERY) == fci.RecoveryStatus.COMMAND_NOT_POSSIBLE
    cause(server, "release_user_stop")
    until_state(client, lambda state: state["robot_mode"] == RobotMode.IDLE)
    with pytest.raises(ValueError, match="unknown error 'oops': the vendor's names are joint_position"):
        cause(server, "reflex", name="oops")
    client.close()


@pytest.mark.parametrize("fault", ["close", "half_open"])
def test_a_client_that_is_cut_off_can_come_back(fci_twin, fault):
    server = fci_twin()
    client = Client(server.host)
    begun(client)
    cause(server, fault)
    client.udp.settimeout(0.5)
    client.tcp.settimeout(0.5)
    with pytest.raises(OSError):
        while True:
            client.state()
    with pytest.raises(OSError):
        client.ask(Command.AUTOMATIC_ERROR_RECOVERY)
    again = Client(server.host)
    state = again.state()
    assert names(state["errors"]) == {"communication_constraints_violation"}, "the motion was not finished"
    client.close()
    assert again.ask(Command.AUTOMATIC_ERROR_RECOVERY) == 0
    begun(again)
    again.close()


def test_a_mute_robot_and_states_cut_short(fci_twin):
    server = fci_twin(lockstep=False)
    client = Client(server.host)
    client.state()
    cause(server, "corrupt", count=1)
    with pytest.raises(ValueError, match="a payload of 688 bytes"):
        until_state(client, lambda state: False)
    cause(server, "mute")
    client.udp.settimeout(0.3)
    with pytest.raises(TimeoutError):
        until_state(client, lambda state: False)
    cause(server, "mute", on=False)
    client.udp.settimeout(30.0)
    client.state()
    client.close()


def test_the_world_is_not_moved_under_a_running_motion(fci_twin):
    from controllers.door import Door

    server = fci_twin()
    client, door = Client(server.host), Door(server.host)
    truth = door.truth()
    begun(client)
    with pytest.raises(ValueError, match="a motion runs"):
        door.ask("place", tcp=truth["tcp"], gripper=0.0, props=truth["props"])
    client.ask(Command.STOP_MOVE)
    client.answer()
    tcp = [*truth["tcp"]]
    tcp[2] += 0.05
    door.ask("place", tcp=tcp, gripper=0.0, props=truth["props"])
    state = until_state(client, lambda state: abs(state["O_T_EE"][14] - tcp[2]) < 1e-4)
    assert names(state["errors"]) == set()
    client.close()
    door.close()


def test_only_an_fr3_speaks_it():
    from robot_rl.build import make_arm, make_configs
    from robot_rl.find import find
    from sim.protocols import franka_fci

    configs = make_configs("reach", "panda", "sim", [])
    arm = make_arm("reach", "panda", "sim", configs, find("tasks", "reach").make(configs["task"]))
    with pytest.raises(ValueError, match="arm = 'panda'"):
        franka_fci.make(franka_fci.Config(), arm, "127.0.0.1", False)
