"""The wire: what is compiled is what link.proto says, and arrays cross it as they are or are refused in words."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import robot_rl.link
from robot_rl.link import link_pb2 as pb
from robot_rl.link import wire

PROTO = Path(robot_rl.link.__file__).parent / "link.proto"
FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_what_is_compiled_is_link_proto(tmp_path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc")
    out, include = tmp_path / "out", resources.files("grpc_tools") / "_proto"
    arguments = [f"-I{PROTO.parent}", f"-I{include}", f"--descriptor_set_out={out}", PROTO.name]
    assert protoc.main(["protoc", *arguments]) == 0
    made, compiled = FileDescriptorSet.FromString(out.read_bytes()).file[0], FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(compiled)
    for one in (made, compiled):
        one.ClearField("name")  # of the file, which depends on where the compiler was called
        for message in one.message_type:
            for field in message.field:
                field.ClearField("json_name")  # which some versions leave out
    assert compiled == made, "robot_rl/link/link_pb2.py is not link.proto's: compile it again"
    assert [method.name for method in made.service[0].method] == ["Describe", "Join", "Append", "Follow"]
    assert f"{made.package}.{made.service[0].name}" == wire.SERVICE


DTYPES = st.sampled_from(sorted(wire.DTYPES)).map(np.dtype)
ORDERS = st.sampled_from("<>=")
ARRAYS = st.builds(
    lambda array, order, flip: np.asarray(array.astype(array.dtype.newbyteorder(order)).T if flip else array),
    DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))),
    ORDERS,
    st.booleans(),
)


@FUZZ
@given(st.dictionaries(st.text(max_size=8).filter(lambda name: name.isprintable()), ARRAYS, max_size=4))
def test_arrays_cross_as_they_are(arrays) -> None:
    news = pb.News(version=3, policy=wire.pack(arrays))
    back = wire.unpack(wire.parse(pb.News, news.SerializeToString()).policy)
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].shape == array.shape and back[name].dtype == array.dtype.newbyteorder("<")
        assert back[name].tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()
        assert not back[name].flags.writeable


@pytest.mark.parametrize(
    "array",
    [
        np.array([None]),
        np.array([{}, 1], object),
        np.array(["text"]),
        np.array([b"bytes"]),
        np.zeros(2, [("a", "f4")]),
        np.zeros(2, "M8[s]"),
        np.zeros(2, "V4"),
        np.zeros(2, complex),
        np.zeros(2, np.longdouble),
    ],
)
def test_what_holds_no_numbers_is_not_sent(array) -> None:
    with pytest.raises(TypeError, match=r"array 'weights' holds .*only numbers go over the link"):
        wire.pack({"weights": array})


SHAPES = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5), max_size=40)
ANY = st.builds(
    pb.Array,
    name=st.sampled_from("ab"),
    dtype=st.sampled_from([*sorted(wire.DTYPES), "object", "O", "V8", "float32,float32", "<f4", "", "U4", "complex64"]),
    shape=SHAPES,
    data=st.binary(max_size=40),
)


@settings(FUZZ, max_examples=300)
@given(st.lists(ANY, max_size=3))
@example([pb.Array(name="a", dtype="float32", shape=[0, 2**64 - 1])])
@example([pb.Array(name="a", dtype="float32", shape=[2**32, 2**32], data=b"")])
@example([pb.Array(name="a", dtype="float32", shape=[2**62, 4], data=b"")])
@example([pb.Array(name="a", dtype="float32", shape=[0] * 65)])
@example([pb.Array(name="a", dtype="uint8", shape=[1] * 65, data=b"x")])
@example([pb.Array(name="a", dtype="uint8", shape=[], data=b"x")] * 2)
def test_any_message_is_arrays_or_a_sentence(messages) -> None:
    try:
        arrays = wire.unpack(messages)
    except ValueError as error:
        assert str(error).startswith("array '") and len(str(error)) < 2000
        return
    assert len(arrays) == len(messages)
    for message in messages:
        array = arrays[message.name]
        assert array.dtype.name == message.dtype and array.shape == tuple(message.shape)
        assert array.tobytes() == message.data


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": bytes(11)}, "11 bytes and shape .3.: they do not fit"),
        ({"data": bytes(13)}, "13 bytes"),
        ({"shape": [3, 2]}, r"shape \[3, 2\]"),
        ({"dtype": "float64"}, "12 bytes"),
        ({"dtype": "object"}, "type 'object': not one of numbers"),
    ],
)
def test_errors_of_arrays_name_them(change, words) -> None:
    good = {"name": "weights", "dtype": "float32", "shape": [3], "data": bytes(12)}
    assert wire.unpack([pb.Array(**good)])["weights"].tolist() == [0.0] * 3
    with pytest.raises(ValueError, match=f"array 'weights' has .*{words}"):
        wire.unpack([pb.Array(**good | change)])
    with pytest.raises(ValueError, match="array 'weights' is there twice"):
        wire.unpack([pb.Array(**good)] * 2)


@FUZZ
@given(st.binary(max_size=200), st.sampled_from([pb.AppendRequest, pb.JoinRequest, pb.FollowRequest, pb.News]))
@example(b"\x0a\xff\xff\xff\xff\x0f", pb.AppendRequest)
@example(b"\x0b" * 500, pb.News)
@example(b"\x0a\x02\x12\x02", pb.JoinRequest)
@example(b"\x0a\x04\x12\x02\xff\xfe", pb.JoinRequest)
def test_any_bytes_are_a_message_or_a_sentence(data, kind) -> None:
    try:
        message = wire.parse(kind, data)
    except ValueError as error:
        assert str(error).startswith(f"not a {kind.__name__}")
        return
    assert isinstance(message, kind)
