"""The bytes of Franka's control interface: captured from its clients, derived from its headers, and round trips."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sim.protocols import _fci_messages as fci
from sim.protocols._fci_messages import Command, GripperCommand

# What franky 2.0.0 (libfranka 0.21.2) sent to a twin, header and payload.
CAPTURED = {
    Command.CONNECT: (
        "000000000000000010000000" + "0a0074ca"
    ),
    Command.MOVE: (
        "01000000100000007d000000" +
        "00000000000000000000000000002440f6285c8fc2f50840182d4454fb2119400000000000002440f6285c8fc2f50840" +
        "182d4454fb211940" + "0000000000000000" * 7 + "00"
    ),
    Command.STOP_MOVE: (
        "02000000120000000c000000"
    ),
    Command.SET_COLLISION_BEHAVIOR: (
        "0300000004000000ac010000" + "0000000000003440" * 28 + "0000000000003e40" * 24
    ),
    Command.SET_JOINT_IMPEDANCE: (
        "040000000600000044000000" + "000000000070a740" * 3 +
        "000000000088a340000000000088a3400000000000409f400000000000409f40"
    ),
    Command.SET_CARTESIAN_IMPEDANCE: (
        "05000000070000003c000000" + "0000000000409f40" * 3 + "0000000000006940" * 3
    ),
    Command.SET_GUIDING_MODE: (
        "060000000800000013000000" + "01000100010001"
    ),
    Command.SET_EE_TO_K: (
        "07000000090000008c000000" + "000000000000f03f" + "0000000000000000" * 4 + "000000000000f03f" +
        "0000000000000000" * 4 + "000000000000f03f" + "0000000000000000" * 3 + "000000000000c03f000000000000f03f"
    ),
    Command.SET_NE_TO_EE: (
        "080000000a0000008c000000" + "000000000000f03f" + "0000000000000000" * 4 + "000000000000f03f" +
        "0000000000000000" * 4 + "000000000000f03f" + "0000000000000000" * 3 + "000000000000b03f000000000000f03f"
    ),
    Command.SET_LOAD: (
        "090000000d00000074000000" +
        "000000000000e03f0000000000000000000000000000d03f000000000000c03f000000000000f03f" +
        "0000000000000000" * 3 + "0000000000000040" + "0000000000000000" * 3 + "0000000000000840"
    ),
    Command.AUTOMATIC_ERROR_RECOVERY: (
        "0a0000000f0000000c000000"
    ),
    Command.GET_ROBOT_MODEL: (
        "0b000000010000000c000000"
    ),
}  # fmt: skip

CAPTURED_GRIPPER = {
    GripperCommand.CONNECT: (
        "0000000000000e000000" + "0300a1dc"
    ),
    GripperCommand.HOMING: (
        "0100020000000a000000"
    ),
    GripperCommand.GRASP: (
        "02000300000032000000" +
        "7b14ae47e17a943f7b14ae47e17a743f7b14ae47e17a743f9a9999999999a93f0000000000003440"
    ),
    GripperCommand.MOVE: (
        "0300010000001a000000" + "7b14ae47e17aa43f9a9999999999a93f"
    ),
    GripperCommand.STOP: (
        "0400040000000a000000"
    ),
}  # fmt: skip

# The first command of a JointMotion from joint angles of zero, as far as it is not zero.
CAPTURED_COMMAND = (
    "0c00000000000000" + "ae05bd974df4653f000000800be9a13f000000409ed1633f000000207d7a02c0000000602d041fbf"
    "0000004021c20240000000206b4ce93f" + "00" * 307
)  # fmt: skip

# Byte offsets, added up by hand from the sizes in rbk_types.h.
STATE_OFFSETS = {
    "message_id": 0, "O_T_EE": 8, "O_T_EE_d": 72, "F_T_EE": 136, "EE_T_K": 200, "F_T_NE": 264, "NE_T_EE": 328,
    "m_ee": 392, "I_ee": 396, "F_x_Cee": 432, "m_load": 444, "I_load": 448, "F_x_Cload": 484, "elbow": 496,
    "elbow_d": 504, "tau_J": 512, "tau_J_d": 540, "dtau_J": 568, "q": 596, "q_d": 624, "dq": 652, "dq_d": 680,
    "ddq_d": 708, "joint_contact": 736, "cartesian_contact": 764, "joint_collision": 788, "cartesian_collision": 816,
    "tau_ext_hat_filtered": 840, "O_F_ext_hat_K": 868, "K_F_ext_hat_K": 892, "O_dP_EE_d": 916, "O_ddP_O": 940,
    "elbow_c": 952, "delbow_c": 960, "ddelbow_c": 968, "O_T_EE_c": 976, "O_dP_EE_c": 1040, "O_ddP_EE_c": 1064,
    "theta": 1088, "dtheta": 1116, "accelerometer_top": 1144, "accelerometer_bottom": 1216,
    "motion_generator_mode": 1288, "controller_mode": 1289, "errors": 1290, "reflex_reason": 1331, "robot_mode": 1372,
    "control_command_success_rate": 1373,
}  # fmt: skip

LAYOUTS = [
    *fci.REQUESTS.values(),
    *fci.GRIPPER_REQUESTS.values(),
    fci.ROBOT_STATE,
    fci.ROBOT_COMMAND,
    fci.GRIPPER_STATE,
]


@pytest.mark.parametrize(
    ("header", "layouts", "kind", "captured"),
    [
        (fci.HEADER, fci.REQUESTS, int(command), hexed) for command, hexed in CAPTURED.items()
    ]
    + [
        (fci.GRIPPER_HEADER, fci.GRIPPER_REQUESTS, int(command), hexed) for command, hexed in CAPTURED_GRIPPER.items()
    ],
)  # fmt: skip
def test_captured_requests_are_read_and_written_back(header, layouts, kind, captured):
    sent = bytes.fromhex(captured)
    ((command, command_id, payload),) = fci.split(bytearray(sent), header)
    assert command == kind
    layout = layouts[kind]
    record = fci.decode(payload, layout)
    fields = {name: record[name] for name in layout.names or ()}
    assert fci.message(header, command, command_id, fci.encode(layout, **fields)) == sent


def read(command: Command):
    payload = bytes.fromhex(CAPTURED[command])[fci.HEADER.size :]
    return fci.decode(payload, fci.REQUESTS[command])


def test_captured_values():
    assert read(Command.CONNECT)["version"] == fci.VERSION
    move = read(Command.MOVE)  # joint positions, joint impedance, libfranka's own deviations
    assert (move["controller_mode"], move["motion_generator_mode"]) == (0, 0)
    np.testing.assert_allclose(move["maximum_path_deviation"], [10.0, 3.12, 2 * np.pi])
    np.testing.assert_allclose(move["maximum_goal_pose_deviation"], [10.0, 3.12, 2 * np.pi])
    thresholds = read(Command.SET_COLLISION_BEHAVIOR)
    assert (thresholds["upper_torque_thresholds_nominal"] == 20.0).all()
    assert (thresholds["upper_force_thresholds_nominal"] == 30.0).all()
    assert read(Command.SET_JOINT_IMPEDANCE)["K_theta"].tolist() == [3000, 3000, 3000, 2500, 2500, 2000, 2000]
    assert read(Command.SET_CARTESIAN_IMPEDANCE)["K_x"].tolist() == [2000, 2000, 2000, 200, 200, 200]
    guiding = read(Command.SET_GUIDING_MODE)
    assert (guiding["guiding_mode"].tolist(), guiding["nullspace"]) == ([1, 0, 1, 0, 1, 0], 1)
    assert read(Command.SET_EE_TO_K)["EE_T_K"][14] == 0.125
    assert read(Command.SET_NE_TO_EE)["NE_T_EE"][14] == 0.0625
    load = read(Command.SET_LOAD)
    assert (load["m_load"], load["F_x_Cload"].tolist()) == (0.5, [0.0, 0.25, 0.125])
    assert load["I_load"].tolist() == [1, 0, 0, 0, 2, 0, 0, 0, 3]
    grasp = fci.decode(bytes.fromhex(CAPTURED_GRIPPER[GripperCommand.GRASP])[10:], fci.GRIPPER_REQUESTS[2])
    assert grasp.tolist() == (0.02, 0.005, 0.005, 0.05, 20.0)


def test_captured_robot_command():
    sent = bytes.fromhex(CAPTURED_COMMAND)
    command = fci.decode(sent, fci.ROBOT_COMMAND)
    assert command["message_id"] == 12
    np.testing.assert_allclose(
        command["q_c"], [0.00268, 0.03498, 0.00242, -2.30981, -0.00012, 2.34479, 0.79058], atol=1e-5
    )
    assert not command["motion_generation_finished"] and not command["tau_J_d"].any()
    assert fci.encode(fci.ROBOT_COMMAND, **{name: command[name] for name in fci.ROBOT_COMMAND.names}) == sent


def test_state_layout():
    assert {name: fci.ROBOT_STATE.fields[name][1] for name in fci.ROBOT_STATE.names} == STATE_OFFSETS
    assert fci.ROBOT_STATE.itemsize == 1377
    state = fci.encode(fci.ROBOT_STATE, message_id=0x0102030405060708, robot_mode=5, control_command_success_rate=0.5)
    assert state[:8] == bytes([8, 7, 6, 5, 4, 3, 2, 1])
    assert state[1372:] == b"\x05" + struct.pack("<f", 0.5)


def test_command_layout():
    assert fci.ROBOT_COMMAND.itemsize == 371
    command = fci.encode(
        fci.ROBOT_COMMAND, message_id=7, valid_elbow=1, motion_generation_finished=1, torque_command_finished=1,
        tau_J_d=[1, 2, 3, 4, 5, 6, 7], elbow_c=[0.5, -1.0],
    )  # fmt: skip
    assert command[:8] == struct.pack("<Q", 7)
    assert command[296:312] == struct.pack("<2d", 0.5, -1.0)  # 8 + (7 + 7 + 16 + 6) * 8
    assert command[312:314] == b"\x01\x01"
    assert command[314:370] == struct.pack("<7d", 1, 2, 3, 4, 5, 6, 7)
    assert command[370:] == b"\x01"


def test_gripper_state_layout():
    state = fci.encode(fci.GRIPPER_STATE, message_id=3, width=0.04, max_width=0.08, is_grasped=1, temperature=30)
    assert state == struct.pack("<IddBH", 3, 0.04, 0.08, 1, 30)
    assert len(state) == 23


def test_answers():
    answer = fci.message(fci.HEADER, Command.CONNECT, 0, fci.CONNECTED.pack(1, 10))
    assert answer.hex() == "00000000" + "00000000" + "0f000000" + "01" + "0a00"
    started = fci.message(fci.HEADER, Command.MOVE, 16, fci.STATUS.pack(fci.MoveStatus.MOTION_STARTED))
    assert started.hex() == "01000000" + "10000000" + "0d000000" + "01"
    grasped = fci.message(fci.GRIPPER_HEADER, GripperCommand.GRASP, 3, fci.GRIPPER_STATUS.pack(2))
    assert grasped.hex() == "0200" + "03000000" + "0c000000" + "0200"
    connected = fci.message(fci.GRIPPER_HEADER, 0, 0, fci.GRIPPER_CONNECTED.pack(0, 3))
    assert connected.hex() == "0000" + "00000000" + "0e000000" + "0000" + "0300"


@given(st.data(), st.sampled_from(LAYOUTS))
def test_every_layout_comes_back_as_it_went(data, layout):
    fields = {}
    for name in layout.names or ():
        base, shape = layout[name].base, layout[name].shape
        fields[name] = data.draw(arrays.arrays(base, shape, elements=arrays.from_dtype(base, allow_nan=False)))
    sent = fci.encode(layout, **fields)
    assert len(sent) == layout.itemsize
    record = fci.decode(sent, layout)
    for name, value in fields.items():
        np.testing.assert_array_equal(record[name], value)


@given(
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 2**32 - 1), st.binary(max_size=50)), max_size=5), st.data()
)
def test_messages_come_whole_however_they_were_cut(messages, data):
    sent = b"".join(fci.message(fci.HEADER, *one) for one in messages)
    cut = data.draw(st.integers(0, len(sent)))
    received, got = bytearray(), []
    for piece in (sent[:cut], sent[cut:]):
        received += piece
        got += fci.split(received, fci.HEADER)
    assert got == messages and not received


@pytest.mark.parametrize("size", [0, 11, 5000])
def test_a_size_that_no_message_has(size):
    with pytest.raises(ValueError, match=f"a message of {size} bytes"):
        fci.split(bytearray(fci.HEADER.pack(1, 0, size) + b"rest"), fci.HEADER)


def test_a_payload_of_another_size():
    with pytest.raises(ValueError, match="a payload of 3 bytes: the layout has 4"):
        fci.decode(b"abc", fci.REQUESTS[Command.CONNECT])


def test_names_of_errors():
    assert len(fci.ERRORS) == len(set(fci.ERRORS)) == 41
    assert fci.ERRORS.index("communication_constraints_violation") == 25  # as libfranka's error.h counts them
    assert fci.ERRORS.index("tau_J_range_violation") == 34
