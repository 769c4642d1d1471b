"""robot-rl arm check: on twins, on an arm that is made up, and what stops it."""

import io
import json
import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from robot_rl import arm_session, build
from robot_rl.arm_check import UP_M
from robot_rl.arm_session import Pace, outside, slow_bounds
from robot_rl.cli_rig import Arm
from robot_rl.types import Bounds, Pose
from tests.mock_arm import LIMITS, MockArm

ARMS = ("panda", "fr3", "ur5e")


@dataclass(frozen=True)
class Config:
    address: str = ""
    twin: str = ""


class Driver(MockArm):
    """A made-up arm behind a wire: listens, follows at once, and has faults of its own."""

    def __init__(self) -> None:
        super().__init__(replace(LIMITS, cannot=frozenset({"stiffness"})))
        self.fault, self.closed = "", False
        self.on_wait = lambda: None

    def about(self) -> dict[str, str]:
        return {"firmware": "5.21.3", "serial number": "20195500001"}

    def recover(self) -> None:
        raise AssertionError("nobody has asked for it")

    def command(self, command) -> None:
        assert command.stiffness is None
        if not self.fault:
            super().command(command)

    def wait(self, dt_s):
        self.on_wait()
        return super().wait(dt_s)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def driver(monkeypatch) -> Driver:
    """The arm of world ``hardware``, whatever it is called."""
    made = Driver()
    module = SimpleNamespace(Config=Config, CONTROL_HZ=100.0, make=lambda *_: made)
    monkeypatch.setattr(build, "find_arm", lambda world, arm: module)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return made


def check(capsys, **options) -> tuple[int, dict[str, dict]]:
    """Status and findings by name."""
    given = {"action": "check", "arm": "ur5e", "world": "hardware", "json": True, "seconds": 0.5, "yes": True} | options
    status = Arm(**given).execute()
    said = json.loads(capsys.readouterr().out)
    assert said["failed"] == any(finding["status"] == "fail" for finding in said["findings"])
    return status, {finding["name"]: finding for finding in said["findings"]}


# ---------------------------------------------------------------------------------------------------------------------
# Twins


@pytest.mark.parametrize("arm", ARMS)
def test_a_twin_passes(capsys, arm) -> None:
    status, found = check(capsys, arm=arm, world="sim")
    assert status == 0, found
    for way in ("up", "back"):
        numbers = found[way]["measured"]
        assert numbers["reached_m"] == pytest.approx(UP_M, abs=1e-3) and numbers["missed_m"] < 1e-3
        assert numbers["tracking_m"] < 0.004 and numbers["force_n"] < 1.0
    assert found["state"]["measured"]["fresh_share"] == 1.0
    assert found["force, torque"]["measured"]["bias_n"] < 0.1


def test_a_table_in_plain_words(capsys) -> None:
    assert Arm("check", "ur5e", "sim", seconds=0.2, look_only=True).execute() == 0
    out = capsys.readouterr().out
    assert "joint limits" in out and "cannot do" in out and "left out, as --look-only says" in out
    assert out.strip().splitlines()[-1].endswith("0 fail")


# ---------------------------------------------------------------------------------------------------------------------
# An arm behind a wire


def test_it_moves_up_and_back_and_no_further(capsys, driver) -> None:
    begun = driver.state.tcp_pos_m.copy()
    status, found = check(capsys)
    assert status == 0, found
    assert found["firmware"]["says"] == "5.21.3" and found["cannot do"]["says"] == "stiffness"
    path = np.array([given.tcp_pos_m for given in driver.given]) - begun
    assert np.abs(path[:, :2]).max() < 1e-9 and path[:, 2].min() > -1e-9
    assert path[:, 2].max() == pytest.approx(UP_M, abs=1e-6) and abs(path[-1, 2]) < 1e-6
    assert np.abs(np.diff(path[:, 2])).max() * 100.0 <= 0.031, "faster than its fence"
    assert driver.closed


def test_nothing_is_commanded_before_a_person_has_agreed(capsys, driver) -> None:
    status, found = check(capsys, yes=False)
    assert status == 1 and driver.given == []
    assert "needs a person at a terminal" in found["movement"]["says"]


@pytest.mark.parametrize(("typed", "moves"), [("yes\n", True), ("y\n", False), ("", False)])
def test_a_person_at_a_terminal_is_asked(capsys, driver, monkeypatch, typed, moves) -> None:
    terminal = io.StringIO(typed)
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    status, found = check(capsys, yes=False)
    assert status == 0 and bool(driver.given) is moves
    assert moves or found["movement"]["status"] == "warn"


def test_an_arm_in_a_fault_is_not_moved(capsys, driver) -> None:
    driver.fault = "protective stop"
    status, found = check(capsys)
    assert status == 1 and driver.given == []
    assert found["fault"]["says"] == "arm stopped: protective stop" and "protective stop" in found["movement"]["says"]


def test_an_arm_that_moves_is_not_moved(capsys, driver) -> None:
    driver.state = replace(driver.state, dq_radps=np.array([0, 0, 0.2, 0, 0, 0]))
    status, found = check(capsys)
    assert status == 1 and driver.given == []
    assert found["at rest"]["status"] == "fail" and "0.2 rad/s" in found["movement"]["says"]


@pytest.mark.parametrize(("z_m", "quat"), [(0.445, (1, 0, 0, 0)), (0.3, (np.sqrt(0.5), np.sqrt(0.5), 0, 0))])
def test_a_movement_out_of_the_box_is_not_begun(capsys, driver, z_m, quat) -> None:
    driver.state = replace(driver.state, tcp_pos_m=np.array([0.5, 0, z_m]), tcp_quat_xyzw=np.array(quat, float))
    status, found = check(capsys)
    assert status == 1 and driver.given == [] and "outside the" in found["movement"]["says"]


def test_a_rig_tightens_the_box_and_names_the_arm(capsys, driver, tmp_path: Path) -> None:
    path = tmp_path / "rig.toml"
    path.write_text('[arm]\nname = "ur5e"\naddress = "10.0.0.1"\n[bounds]\nbox_upper_m = [1.0, 1.0, 0.305]\n')
    status, found = check(capsys, arm="", world="", rig=path)
    assert status == 1 and "z = 0.310 m is outside the box of the bounds, 0.050 to 0.305 m" in found["movement"]["says"]
    assert found["arm"]["says"].startswith("ur5e in world hardware")


def test_a_fault_on_the_way_ends_it_and_the_arm_is_held(capsys, driver) -> None:
    def trip() -> None:
        if len(driver.given) == 20:
            driver.fault = "reflex: force"

    driver.on_wait = trip
    status, found = check(capsys)
    assert status == 1 and driver.stopped and "reflex: force" in found["up"]["says"] and "back" not in found
    assert len(driver.given) == 20, "an arm that has stopped takes no command"
    assert driver.closed


def test_a_contact_force_trips_the_guard(capsys, driver) -> None:
    def hit() -> None:
        if len(driver.given) == 20:
            driver.state = replace(driver.state, tcp_wrench=np.array([0, 0, -40.0, 0, 0, 0]))

    driver.on_wait = hit
    status, found = check(capsys)
    assert status == 1 and "contact force" in found["up"]["says"] and found["up"]["measured"]["force_n"] == 40.0


def test_an_arm_that_is_blocked_is_told(capsys, driver, monkeypatch) -> None:
    monkeypatch.setattr(Driver, "command", lambda self, command: self.given.append(command))
    status, found = check(capsys)
    assert status == 1 and "something in its way" in found["up"]["remedy"]


def test_bias_and_noise_of_the_force_are_measured(capsys, driver) -> None:
    rng = np.random.default_rng(0)

    def feel() -> None:
        driver.state = replace(driver.state, tcp_wrench=np.array([6, 0, 8, 0, 0, 0]) + rng.normal(0, 0.5, 6))

    driver.on_wait = feel
    _, found = check(capsys, seconds=4.0)
    numbers = found["force, torque"]["measured"]
    assert found["force, torque"]["status"] == "warn" and "calibrate payload" in found["force, torque"]["remedy"]
    assert numbers["bias_n"] == pytest.approx(10.0, abs=0.3) and numbers["noise_n"] == pytest.approx(0.5, rel=0.3)


def test_an_arm_that_falls_silent_is_found(capsys, driver, monkeypatch) -> None:
    monkeypatch.setattr(Driver, "wait", lambda self, dt_s: self.state)
    status, found = check(capsys, look_only=True)
    assert status == 1 and found["state"]["status"] == "fail"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_on_the_way_holds_the_arm(capsys, driver, signum) -> None:
    def interrupt() -> None:
        if len(driver.given) == 20:
            os.kill(os.getpid(), signum)

    driver.on_wait = interrupt
    status, found = check(capsys)
    assert status == 128 + signum and driver.stopped and driver.closed
    assert "stopped by a person" in found["up"]["says"] and "back" not in found
    assert len(driver.given) < 25


def test_an_error_on_the_way_holds_the_arm(driver) -> None:
    def lose() -> None:
        if len(driver.given) == 20:
            raise TimeoutError("no new pose for 1 s")

    driver.on_wait = lose
    with pytest.raises(TimeoutError, match="no new pose"):
        Arm("check", "ur5e", "hardware", seconds=0.2, yes=True).execute()
    assert driver.stopped and driver.closed


def test_a_silly_time_is_refused() -> None:
    with pytest.raises(ValueError, match="--seconds 0"):
        Arm("check", "ur5e", "sim", seconds=0.0).execute()


# ---------------------------------------------------------------------------------------------------------------------
# Bounds


def test_slow_bounds_are_never_looser() -> None:
    bounds = Bounds((0, 0, 0), (1, 1, 1), (0, 0, 0, 1), (1, 1, 1), speed_mps=0.01, force_n=5.0, trip_force_n=25.0)
    state = replace(MockArm().state, tcp_wrench=np.array([0, 3.0, 4.0, 0, 0, 0]))
    assert slow_bounds(bounds, Pace(0.02, 9.0, 20.0), state) == bounds
    tight = slow_bounds(replace(bounds, trip_force_n=200.0), Pace(0.002, 0.1, 2.0), state)
    assert (tight.speed_mps, tight.force_n, tight.trip_force_n) == (0.003, 2.0, 5.0 + arm_session.ABOVE_REST_N)


def test_outside_names_the_axis() -> None:
    bounds = Bounds((0, 0, 0), (1, 1, 1), (0, 0, 0, 1), (0.1, 0.1, 0.5))
    assert outside(bounds, Pose(np.full(3, 0.5), np.array([0, 0, 0, 1.0]))) == ""
    assert outside(bounds, Pose(np.array([0.5, 1.5, 0.5]), np.array([0, 0, 0, 1.0]))).startswith("y = 1.500 m")
    turned = Pose(np.full(3, 0.5), np.array([np.sin(0.1), 0, 0, np.cos(0.1)]))
    assert "0.200 rad about x" in outside(bounds, turned)
    assert outside(bounds, Pose(np.array([np.nan, 0, 0]), np.array([0, 0, 0, 1.0])))
