"""RTDE's bytes: by hand from Universal Robots' guide, as ur_rtde sends them, and there and back."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.protocols import _rtde_messages as rtde
from sim.protocols._rtde_fields import INPUTS, OUTPUTS, zero

NAMES = st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True), min_size=1, max_size=30)
NUMBERS = st.integers(0, 255) | st.none()  # of recipes
FINITE = st.floats(allow_nan=False)
VALUES = {
    "BOOL": st.booleans(), "UINT8": st.integers(0, 2**8 - 1), "UINT32": st.integers(0, 2**32 - 1),
    "UINT64": st.integers(0, 2**64 - 1), "INT32": st.integers(-(2**31), 2**31 - 1), "DOUBLE": FINITE,
    "VECTOR3D": st.tuples(*[FINITE] * 3), "VECTOR6D": st.tuples(*[FINITE] * 6),
    "VECTOR6INT32": st.tuples(*[st.integers(-(2**31), 2**31 - 1)] * 6),
    "VECTOR6UINT32": st.tuples(*[st.integers(0, 2**32 - 1)] * 6),
}  # fmt: skip


def hexed(text: str) -> bytes:
    return bytes.fromhex(text)


@pytest.mark.parametrize(
    ("message", "wire"),
    [
        (rtde.pack_protocol(2), "0005 56 0002"),
        (rtde.pack_protocol(1), "0005 56 0001"),
        (rtde.pack_accepted(rtde.REQUEST_PROTOCOL, True), "0004 56 01"),
        (rtde.pack_accepted(rtde.START, True), "0004 53 01"),
        (rtde.pack_accepted(rtde.PAUSE, False), "0004 50 00"),
        (rtde.pack(rtde.GET_VERSION), "0003 76"),
        (rtde.pack_version((5, 26, 0, 1234567)), "0013 76 00000005 0000001a 00000000 0012d687"),
        (rtde.pack(rtde.START), "0003 53"),
        (rtde.pack(rtde.PAUSE), "0003 50"),
        (rtde.pack_outputs(["timestamp"], 500.0), "0014 4f 407f400000000000 74696d657374616d70"),
        (rtde.pack_outputs(["timestamp"]), "000c 4f 74696d657374616d70"),
        (rtde.pack_inputs(["payload", "timestamp"]), "0014 49 7061796c6f6164 2c 74696d657374616d70"),
        (rtde.pack_types(rtde.SETUP_OUTPUTS, 1, ["DOUBLE"]), "000a 4f 01 444f55424c45"),
        (rtde.pack_types(rtde.SETUP_OUTPUTS, None, ["DOUBLE"]), "0009 4f 444f55424c45"),
        (rtde.pack_types(rtde.SETUP_INPUTS, 0, ["IN_USE", "BOOL"]), "000f 49 00 494e5f555345 2c 424f4f4c"),
        (rtde.pack_text(rtde.Text("hi", "me", rtde.WARNING)), "000a 4d 02 6869 02 6d65 02"),
        (rtde.pack_text(rtde.Text("hi", "me", rtde.WARNING), protocol=1), "0006 4d 02 6869"),
    ],
)
def test_every_message_has_the_bytes_of_the_guide(message, wire):
    assert message == hexed(wire)


@pytest.mark.parametrize(
    ("kind", "value", "wire"),
    [
        ("BOOL", True, "01"),
        ("UINT8", 200, "c8"),
        ("UINT32", 0x01020304, "01020304"),
        ("UINT64", 0x0102030405060708, "0102030405060708"),
        ("INT32", -2, "fffffffe"),
        ("DOUBLE", 0.5, "3fe0000000000000"),
        ("VECTOR3D", (1.0, 2.0, -2.0), "3ff0000000000000 4000000000000000 c000000000000000"),
        ("VECTOR6D", (0.0,) * 5 + (1.0,), "00" * 40 + "3ff0000000000000"),
        ("VECTOR6INT32", (1, 0, 0, 0, 0, -1), "00000001" + "00" * 16 + "ffffffff"),
        ("VECTOR6UINT32", (1, 0, 0, 0, 0, 2**32 - 1), "00000001" + "00" * 16 + "ffffffff"),
    ],
)
def test_every_type_has_the_bytes_of_the_guide(kind, value, wire):
    assert kind in rtde.TYPES
    recipe = rtde.Recipe(7, ["it"], [kind])
    body = hexed("07") + hexed(wire)
    assert recipe.pack([value]) == struct.pack(">HB", 3 + len(body), ord("U")) + body
    assert recipe.unpack(body) == [value]
    assert rtde.Recipe(None, ["it"], [kind]).pack([value])[3:] == hexed(wire)


KINDS = st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=60)


@given(KINDS.flatmap(lambda kinds: st.tuples(st.just(kinds), st.tuples(*[VALUES[kind] for kind in kinds]))), NUMBERS)
def test_a_data_package_goes_there_and_back(values, number):
    kinds, given = values
    recipe = rtde.Recipe(number, [f"v{index}" for index in range(len(kinds))], kinds)
    received = bytearray(recipe.pack(list(given)))
    ((kind, payload),) = rtde.take(received)
    assert kind == rtde.DATA and not received
    assert recipe.unpack(payload) == list(given)


@given(NAMES, st.floats(1.0, 500.0), st.sampled_from([1, 2]))
def test_set_ups_go_there_and_back(names, frequency_hz, protocol):
    message = rtde.pack_outputs(names, frequency_hz if protocol == 2 else None)
    assert rtde.unpack_outputs(message[3:], protocol) == (frequency_hz if protocol == 2 else None, names)
    assert rtde.unpack_names(rtde.pack_inputs(names)[3:]) == names
    assert rtde.unpack_names((",".join(names) + ",").encode()) == names, "ur_rtde ends its list with a comma"
    number = 3 if protocol == 2 else None
    assert rtde.unpack_types(rtde.pack_types(rtde.SETUP_OUTPUTS, number, names)[3:], protocol) == (number, names)


@given(st.text(st.characters(max_codepoint=255), max_size=255), st.text(st.characters(max_codepoint=255), max_size=255),
       st.integers(0, 3))  # fmt: skip
def test_texts_go_there_and_back(message, source, level):
    text = rtde.Text(message, source, level)
    assert rtde.unpack_text(rtde.pack_text(text)[3:]) == text
    assert rtde.unpack_text(rtde.pack_text(text, 1)[3:], 1) == text._replace(source="")


@given(st.integers(0, 2**16 - 1), st.tuples(*[st.integers(0, 2**32 - 1)] * 4), st.booleans())
def test_small_messages_go_there_and_back(protocol, version, accepted):
    assert rtde.unpack_protocol(rtde.pack_protocol(protocol)[3:]) == protocol
    assert rtde.unpack_version(rtde.pack_version(version)[3:]) == version
    assert rtde.unpack_accepted(rtde.pack_accepted(rtde.START, accepted)[3:]) is accepted


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40)), max_size=8), st.data())
def test_messages_are_found_however_they_are_cut(messages, data):
    wire = b"".join(rtde.pack(kind, payload) for kind, payload in messages)
    received, found = bytearray(), []
    while wire:
        some = data.draw(st.integers(1, len(wire)))
        received += wire[:some]
        wire = wire[some:]
        found += rtde.take(received)
    assert found == messages and not received


def test_what_is_no_rtde_is_refused():
    with pytest.raises(ValueError, match="size 2"):
        rtde.take(bytearray(b"\x00\x02U"))
    with pytest.raises(ValueError, match="65535"):
        rtde.pack(rtde.DATA, bytes(65533))
    with pytest.raises(ValueError, match="recipe 1 has 9"):
        rtde.Recipe(1, ["timestamp"], ["DOUBLE"]).unpack(b"\x01")


def test_every_variable_has_a_type_and_a_first_value():
    for name, kind in (INPUTS | OUTPUTS).items():
        assert len(rtde.Recipe(1, [name], [kind]).pack([zero(kind)])) > 4
    assert OUTPUTS["actual_TCP_force"] == "VECTOR6D" and OUTPUTS["output_int_register_47"] == "INT32"
    assert INPUTS["input_double_register_0"] == "DOUBLE" and "output_int_register_48" not in OUTPUTS


SERVOJ = ["input_int_register_0"] + [f"input_double_register_{index}" for index in range(11)]
FORCE_MODE = [f"input_int_register_{index}" for index in range(8)]
FORCE_MODE += [f"input_double_register_{index}" for index in range(18)]
ONE, TWO, TENTH, ZERO = "3ff0000000000000", "4000000000000000", "3fb999999999999a", "0000000000000000"


@pytest.mark.parametrize(
    ("names", "number", "values", "wire"),
    [
        (["input_int_register_0"], 4, [0], "00085504 00000000"),
        (
            SERVOJ, 2, [11, 2.889, 0.2, 0.3, 0.4, 0.5, 0.6, 0.0, 0.0, 0.002, 0.1, 300.0],
            f"00605502 0000000b 40071cac083126e9 3fc999999999999a 3fd3333333333333 3fd999999999999a 3fe0000000000000"
            f"3fe3333333333333 {ZERO} {ZERO} 3f60624dd2f1a9fc {TENTH} 4072c00000000000",
        ),
        (
            FORCE_MODE, 3, [6, 2, 0, 0, 1, 0, 0, 0, *[0.0] * 8, -10.0, 0, 0, 0, 2.0, 2.0, 0.1, 1.0, 1.0, 1.0],
            "00b45503 00000006 00000002 00000000 00000000 00000001 00000000 00000000 00000000"
            f"{ZERO * 8} c024000000000000 {ZERO * 3} {TWO * 2} {TENTH} {ONE * 3}",
        ),
    ],
    ids=["clear", "servoJ", "forceMode"],
)  # fmt: skip
def test_ur_rtdes_data_packages_as_it_sent_them(names, number, values, wire):
    """Recorded from ur_rtde 1.6.5."""
    recipe = rtde.Recipe(number, names, [INPUTS[name] for name in names])
    assert recipe.pack(values) == bytes.fromhex(wire)
    ((kind, payload),) = rtde.take(bytearray.fromhex(wire))
    assert kind == rtde.DATA and recipe.unpack(payload) == values


def test_ur_rtdes_set_ups_as_it_sent_them():
    """Recorded from ur_rtde 1.6.5: the protocol, an input recipe and the beginning of its outputs."""
    wire = "0005560002 000376 002d49"
    wire += "696e7075745f696e745f72656769737465725f302c 696e7075745f696e745f72656769737465725f312c"
    (_, protocol), (asked, _), (kind, names) = rtde.take(bytearray.fromhex(wire))
    assert rtde.unpack_protocol(protocol) == 2 and asked == rtde.GET_VERSION and kind == rtde.SETUP_INPUTS
    assert rtde.unpack_names(names) == ["input_int_register_0", "input_int_register_1"]
    outputs = bytes.fromhex("407f400000000000 74696d657374616d702c726f626f745f7374617475735f626974732c")
    assert rtde.unpack_outputs(outputs, 2) == (500.0, ["timestamp", "robot_status_bits"])
