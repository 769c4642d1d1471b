"""rig.toml: what goes out comes back, what cannot be is named, and a lab's limits only ever tighten."""

import dataclasses
import importlib.util
import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl import build, rig
from robot_rl import lab as lab_bounds
from robot_rl.config import override
from robot_rl.lab import tighten
from robot_rl.rig_file import line_of, put_table, word
from robot_rl.types import Bounds

BOUNDS = Bounds((0.3, -0.2, 0.05), (0.7, 0.2, 0.45), (1.0, 0.0, 0.0, 0.0), (0.6, 0.6, 0.6))
HAND_MADE = """# our lab
[arm]  # the one by the window
name = "ur5e"
world = "sim"
damping_ratio = 1

[calibration.wrist]
# by hand
parent = "tcp"
pos_m = [
    0.0,
    0.05, 0.02,
]

# about the front camera
[calibration.front]
parent = "base"
"""


def numbers(low=-1e3, high=1e3):
    return st.floats(low, high, allow_nan=False)


def triples(low=-1e3, high=1e3):
    return st.tuples(*[numbers(low, high)] * 3)


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
TURN = st.tuples(*[numbers(-1.0, 1.0)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1)
POSES = st.builds(
    lambda quat, **rest: rig.CameraPose(quat_xyzw=tuple((np.array(quat) / np.linalg.norm(quat)).tolist()), **rest),
    quat=TURN, parent=st.sampled_from(["base", "tcp"]), pos_m=triples(-9.0, 9.0), width_px=st.integers(1, 9000),
    fx_px=numbers(1.0, 1e5), distortion=st.tuples(*[numbers(-9.0, 9.0)] * 5), residual_px=numbers(0.0), date=TEXT,
)  # fmt: skip
FORCES = st.builds(
    rig.ForceTorque, mass_kg=numbers(-9.0, 9.0), com_m=triples(-1.0, 1.0), force_bias_n=triples(), date=TEXT
)
LABS = st.builds(
    lab_bounds.Config, box_lower_m=triples(-2.0, 0.0), box_upper_m=triples(0.0, 2.0),
    speed_mps=st.one_of(numbers(0.0), st.just(math.inf)), box_rot_rad=triples(0.0, 4.0), energy_j=numbers(0.1, 9.0),
)  # fmt: skip
BOARDS = st.builds(
    rig.BoardFacts,
    squares=st.tuples(st.integers(3, 20), st.integers(3, 20)),
    square_m=numbers(0.03, 0.2),
    dictionary=TEXT,
    legacy=st.booleans(),
)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "rig.toml"


def load(path: Path, text: str) -> rig.Rig:
    path.write_text(text)
    return rig.load(path)


# ---------------------------------------------------------------------------------------------------------------------
# Out and back


@settings(deadline=None, max_examples=30)
@given(st.lists(st.one_of(POSES, FORCES, LABS, BOARDS), min_size=1, max_size=4))
def test_what_goes_out_comes_back_and_leaves_the_rest_alone(tmp_path_factory, parts) -> None:
    path = tmp_path_factory.mktemp("rig") / "rig.toml"
    path.write_text(HAND_MADE)
    held = {}
    for part in parts:
        flat = {kind: name for name, kind in rig.FLAT.items()}
        table = (flat[type(part)],) if type(part) in flat else ("calibration", "front")
        put_table(path, table, part)
        held[table] = part
        read = rig.load(path)
        for name, value in held.items():
            there = read.calibrations["front"] if name[0] == "calibration" else getattr(read, name[0])
            assert there == value
    assert read.arm == rig.ArmFacts("ur5e", "sim", {"damping_ratio": 1.0})
    assert read.calibrations["wrist"].pos_m == (0.0, 0.05, 0.02)
    text = path.read_text()
    for line in HAND_MADE.splitlines()[:-1]:
        assert line in text, "a hand-made line was lost"


def test_the_file_before_is_kept_and_a_comment_stays_with_its_table(path) -> None:
    path.write_text(HAND_MADE)
    put_table(path, ("calibration", "wrist"), rig.CameraPose(parent="tcp"))
    text = path.read_text()
    assert path.with_name("rig.toml.bak").read_text() == HAND_MADE
    wrist, front = text.index("[calibration.wrist]"), text.index("[calibration.front]")
    assert wrist < text.index("# by hand") < text.index("# about the front camera") < front


def test_a_new_file_is_made(path) -> None:
    put_table(path, ("ft",), rig.ForceTorque(mass_kg=0.5))
    assert rig.load(path).ft.mass_kg == 0.5 and not path.with_name("rig.toml.bak").exists()


def test_a_link_stays_a_link(path, tmp_path) -> None:
    real = tmp_path / "shared.toml"
    real.write_text("")
    path.symlink_to(real)
    put_table(path, ("ft",), rig.ForceTorque())
    assert path.is_symlink() and "[ft]" in real.read_text()


@pytest.mark.parametrize("text", ["calibration.front = {parent = 'tcp'}\n", "[calibration]\nfront.parent = 'tcp'\n"])
def test_what_cannot_be_replaced_by_lines_is_refused_and_left(path, text) -> None:
    path.write_text(text)
    with pytest.raises(ValueError, match=r"\[calibration.front\] cannot be replaced as it is written"):
        put_table(path, ("calibration", "front"), rig.CameraPose())
    assert path.read_text() == text and not path.with_name("rig.toml.bak").exists()


def test_a_header_inside_a_text_is_no_header(path) -> None:
    text = '[arm]\nname = """ur5e\\\n[ft]\nmass_kg = 3\n"""\n'
    path.write_text(text)
    with pytest.raises(ValueError, match="cannot be replaced"):
        put_table(path, ("ft",), rig.ForceTorque())
    assert path.read_text() == text


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be is named


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[arm]\nname = "ur5e"\nworld = "sim"\n\nstifness = 1\n', r":5: \[arm\] stifness = 1: .* mean 'stiffness'"),
        ('[arm]\nname = "ur5e"\nworld = "sim"\nclip_rad = 9.0\n', r":4: \[arm\] clip_rad = 9.0: give a number in"),
        ('[arm]\nname = "ur5e"\nworld = "sim"\nclip_rad = "a"\n', r":4: \[arm\] clip_rad = 'a': give a number"),
        ('[arm]\nname = "ur5"\nworld = "sim"\n', r":2: \[arm\] name: .* Did you mean 'ur5e'"),
        ('[arm]\nname = "ur5e"\nworld = "simm"\n', r":3: \[arm\] world: .* Did you mean 'sim'"),
        ("[arm]\n", r":1: \[arm\] name = None: give the arm's"),
        ("[bounds]\nbox_lower_m = [1, 2]\n", r":2: \[bounds\] box_lower_m = \(1, 2\): give 3 values"),
        ("[bounds]\nspeed_mps = -1\n", r":2: \[bounds\] speed_mps = -1.0: give a number in \[0, inf\]"),
        ("[bounds]\nbox_lower_m = [1, 0, 0]\nbox_upper_m = [0, 1, 1]\n", "is above box_upper_m"),
        ("[bouns]\n", r":1: unknown table 'bouns': .* Did you mean 'bounds'"),
        ("speed = 1\n", ":1: unknown key 'speed'"),
        ("\narm = 3\n", r":2: arm = 3: it is a table"),
        ("[camera]\nfront = 3\n", r":2: \[camera\] front = 3: give the camera a name"),
        ('[camera.a]\nkind = "ros_imag"\n', r":2: \[camera.a\] unknown kind .* Did you mean 'ros_image'"),
        ('[camera.a]\ntopic = "x"\n', r":1: \[camera.a\] kind is missing"),
        ('[calibration.a]\nparent = "flange"\n', r":2: \[calibration.a\] parent = 'flange'"),
        ("[calibration.a]\nquat_xyzw = [0, 0, 0, 0.5]\n", r":2: \[calibration.a\] quat_xyzw .* unit quaternion"),
        ("[board]\nsquares = [6, 4]\nkind = 'chessboard'\n", r":2: \[board\] squares .* upside down"),
        ("[board]\nmarker_m = 0.1\n", r":2: \[board\] marker_m"),
        ("[ft]\nmass_kg = nan\n", r":2: \[ft\] mass_kg = nan"),
        ("[a\n", r"no TOML: .*line 1"),
    ],
)  # fmt: skip
def test_an_error_names_file_line_table_key_and_remedy(path, text, says) -> None:
    with pytest.raises((ValueError, LookupError), match=f"rig.toml.*{says}"):
        load(path, text)


def test_a_missing_file_says_where_to_begin(path) -> None:
    with pytest.raises(FileNotFoundError, match=r"copy rig\.example\.toml"):
        rig.load(path)


def test_lines_are_found() -> None:
    assert line_of(HAND_MADE, ("arm",), "world") == 4
    assert line_of(HAND_MADE, ("calibration", "front"), "parent") == 17
    assert line_of(HAND_MADE, ("arm",), "none") == 2 and line_of(HAND_MADE, ("moon",), "x") == 0


@pytest.mark.skipif(importlib.util.find_spec("hardware.ur") is None, reason="the example names its driver")
def test_the_example_is_a_rig() -> None:
    found = rig.load(Path(__file__).parents[1] / "rig.example.toml")
    assert found.arm.name == "ur5e" and found.calibrations["front"].parent == "base"
    assert tighten(BOUNDS, found.bounds).trip_force_n == 100.0


# ---------------------------------------------------------------------------------------------------------------------
# Settings


def test_a_rig_says_settings_that_the_command_line_overrides(path) -> None:
    found = load(path, '[arm]\nname = "ur5e"\nworld = "sim"\nclip_rad = 0.2\nstiffness = [900, 900, 900, 60, 60, 60]\n')
    words = rig.settings(found, "ur5e", "sim")
    assert "arm.clip_rad=0.2" in words
    config = build.make_configs("reach", "ur5e", "sim", (*words, "arm.clip_rad=0.3"))["arm"]
    assert config.clip_rad == 0.3 and config.stiffness == (900, 900, 900, 60, 60, 60)
    assert rig.settings(found, "panda", "sim") == () == rig.settings(found, "ur5e", "ros")
    assert rig.settings(rig.Rig(), "ur5e", "sim") == ()


@settings(deadline=None)
@given(POSES)
def test_a_setting_in_words_is_the_same_value(pose) -> None:
    values = dataclasses.asdict(pose)
    del values["date"]  # --set strips spaces
    assert override(rig.CameraPose(), [f"{k}={word(v)}" for k, v in values.items()]) == dataclasses.replace(
        pose, date=""
    )


def test_what_was_calibrated_reaches_a_driver_that_takes_it(path, monkeypatch) -> None:
    @dataclasses.dataclass(frozen=True)
    class Config:
        ft: tuple[float, ...] = ()

    monkeypatch.setattr(build, "find_arm", lambda world, arm: type("Driver", (), {"Config": Config}))
    text = '[arm]\nname = "ur5e"\n[ft]\nmass_kg = 2.0\ncom_m = [1, 2, 3]\n'
    text += "force_bias_n = [4, 5, 6]\ntorque_bias_nm = [7, 8, 9]\n"
    (setting,) = rig.settings(load(path, text), "ur5e", "hardware")
    numbers = override(Config(), [setting.removeprefix("arm.")]).ft
    from controllers.payload import payload_of

    payload = payload_of(numbers)
    assert payload.mass_kg == 2.0 and payload.com_m.tolist() == [1, 2, 3]
    assert payload.force_bias_n.tolist() == [4, 5, 6] and payload.torque_bias_nm.tolist() == [7, 8, 9]
    with pytest.raises(ValueError, match="give 10 numbers"):
        payload_of(numbers[1:])


# ---------------------------------------------------------------------------------------------------------------------
# Bounds


@settings(deadline=None)
@given(LABS)
def test_bounds_are_only_ever_tightened(lab) -> None:
    both_low, both_high = (
        np.maximum(BOUNDS.box_lower_m, lab.box_lower_m),
        np.minimum(BOUNDS.box_upper_m, lab.box_upper_m),
    )
    if (both_low > both_high).any():
        with pytest.raises(ValueError, match="do not meet along"):
            tighten(BOUNDS, lab)
        return
    tight = tighten(BOUNDS, lab)
    assert tight.box_lower_m == tuple(both_low) and tight.box_upper_m == tuple(both_high)
    for name in ("speed_mps", "speed_radps", "force_n", "torque_nm", "trip_force_n", "energy_j"):
        assert getattr(tight, name) == min(getattr(BOUNDS, name), getattr(lab, name))
    assert (np.array(tight.box_rot_rad) <= BOUNDS.box_rot_rad).all()
    assert tight.box_quat_xyzw == BOUNDS.box_quat_xyzw and tighten(tight, lab) == tight


def test_a_lab_without_bounds_changes_nothing() -> None:
    assert tighten(BOUNDS, rig.Rig().bounds) == BOUNDS


def test_toml_reads_what_is_written_for_odd_texts(path) -> None:
    odd = 'a"b\\c\nd\te\x7f\x00 \u2028 😀 [x] # y'
    put_table(path, ("ft",), rig.ForceTorque(date=odd))
    assert tomllib.loads(path.read_bytes().decode())["ft"]["date"] == odd


def test_a_rig_reaches_the_guard_and_the_run_remembers(tmp_path) -> None:
    """Its bounds become settings, so that they are in run.json and hold again without the file."""
    path = tmp_path / "rig.toml"
    path.write_text(
        '[arm]\nname = "fr3"\nworld = "sim"\nclip_rad = 0.2\n[bounds]\nspeed_mps = 0.1\nbox_upper_m = [0.6, 0.1, 0.4]\n'
    )
    words = rig.words(path, "fr3", "sim", ("lab.speed_mps=0.05",))
    env = build.make_env("reach", "fr3", settings=words)
    plain = build.make_env("reach", "fr3")
    try:
        tight, task = env.unwrapped.arm.bounds, plain.unwrapped.arm.bounds
        assert tight.speed_mps == 0.05 and tight.box_upper_m == tuple(np.minimum(task.box_upper_m, (0.6, 0.1, 0.4)))
        assert tight.force_n == task.force_n and env.unwrapped.task.bounds == task
    finally:
        env.close()
        plain.close()
    with pytest.raises(ValueError, match=r"about fr3 in world sim, not panda in hardware: give --arm fr3 --world sim"):
        rig.words(path, "panda", "hardware")
    assert rig.words(None, "panda", "sim", ("a.b=1",)) == ("a.b=1",)
    with pytest.raises(ValueError, match="do not meet along z"):
        build.make_env("reach", "fr3", settings=["lab.box_upper_m=1,1,-1", "lab.box_lower_m=0,0,-2"])
