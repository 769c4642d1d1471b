"""What two ends have to agree on: a layout is one, or is refused in words, whoever wrote it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robot_rl.step_log import DTYPES, Layout

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([*DTYPES, "O", "U3", "f4,f4"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
SHAPES = st.lists(st.integers(-2, 9) | st.integers() | st.floats() | st.text(max_size=2), max_size=4) | JSON
LAYOUTS = st.fixed_dictionaries(
    {
        "observation": st.dictionaries(st.text(max_size=4), st.tuples(SHAPES, JSON).map(list) | JSON, max_size=3)
        | JSON,
        "action_dim": st.integers(-3, 9) | JSON,
        "extra": st.dictionaries(st.text(max_size=4), SHAPES, max_size=2) | JSON,
    }
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(LAYOUTS | JSON)
def test_any_json_is_a_layout_or_a_sentence(value) -> None:
    try:
        layout = Layout.from_json(value)
    except ValueError as error:
        assert str(error).startswith("not a layout of steps (")
        return
    assert layout.dtype.itemsize > 0 and not layout.dtype.hasobject
    again = Layout.from_json(layout.as_json())
    assert again.dtype == layout.dtype and not again.difference(layout)


GOOD = {"observation": {"state": [[3], "float32"]}, "action_dim": 2, "extra": {"proposed": [2]}}


@pytest.mark.parametrize(
    "change",
    [
        *({"observation": {"state": [[3], dtype]}} for dtype in ("O", "object", "U3", "S5", "V8", "f4,f4", "M8[s]")),
        *({"observation": {"state": [[3], dtype]}} for dtype in ("complex64", "float128", "<f4", None, 3, ["f4"], {})),
        *({"observation": {"state": [s, "uint8"]}} for s in ([-1], [1 << 40], [1 << 20, 1 << 20], [2.5], "12", [True])),
        {"observation": {"state": [[1] * 33, "uint8"]}},
        {"observation": [["state", [[3], "float32"]]]},
        *({"action_dim": dim} for dim in (-1, 1 << 31, 1 << 70, 2.0, "2", None, True, [2])),
        *({"extra": extra} for extra in ({"proposed": [-2]}, {"proposed": 2}, [], None, {"proposed": [[2]]})),
    ],
)
def test_nonsense_is_no_layout(change) -> None:
    assert Layout.from_json(GOOD).action_dim == 2
    with pytest.raises(ValueError, match="not a layout of steps"):
        Layout.from_json(GOOD | change)


def test_equal_layouts_are_equal_however_they_are_written() -> None:
    """Order of names, and how a dtype is written, make no difference."""
    one = Layout({"a": ((2,), "float32"), "b": ((), "uint8")}, 2, {"x": (1,), "y": ()})
    two = Layout({"b": ((), "|u1"), "a": ((2,), ">f4")}, 2, {"y": (), "x": (1,)})
    assert one.dtype == two.dtype and one.as_json() == two.as_json() and not one.difference(two)
    three = Layout({"a": ((2,), "float32"), "b": ((), "int8")}, 2, {"x": (1,), "y": ()})
    assert one.difference(three) == "observation 'b' is [[], 'uint8'] there, [[], 'int8'] here"
    assert one.dtype != three.dtype
