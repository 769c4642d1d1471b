"""An arm that stops by itself, as those of vendors do: GuardedArm latches it, and only a person's word goes on."""

import io
from dataclasses import replace

import numpy as np
import pytest

from controllers import moving
from controllers.guard import FAULTS, code_of
from controllers.guarded_arm import GuardedArm
from robot_rl import build
from robot_rl.types import ArmCommand, Bounds, Pose, Start
from tests.mock_arm import MockArm

BOUNDS = Bounds((-1.0,) * 3, (1.0,) * 3, (1.0, 0.0, 0.0, 0.0), (3.0,) * 3)
UP = np.array([0.5, 0.0, 0.32])


class Stopping(MockArm):
    def __init__(self):
        super().__init__()
        self.fault, self.needs, self.recovered = "", "", 0

    def command(self, command):
        if not self.fault:
            super().command(command)

    def recover(self):
        if self.needs:
            raise RuntimeError(self.needs)
        self.fault, self.recovered = "", self.recovered + 1


@pytest.fixture
def arms():
    arm = Stopping()
    return arm, GuardedArm(arm, BOUNDS)


def up(guarded):
    guarded.command(ArmCommand(UP, guarded.read().tcp_quat_xyzw))
    return guarded.wait(0.1)


def test_its_own_words_are_the_fault(arms):
    arm, guarded = arms
    up(guarded)
    assert guarded.fault == ""
    arm.fault = "protective stop"
    guarded.wait(0.01)
    assert guarded.fault == "arm stopped: protective stop"
    arm.fault = ""  # whoever cleared it there, here a person has not spoken
    up(guarded)
    assert guarded.fault == "arm stopped: protective stop"


def test_it_holds_where_it_stopped(arms):
    arm, guarded = arms
    guarded.command(ArmCommand(UP, guarded.read().tcp_quat_xyzw))
    guarded.wait(0.02)
    arm.fault = "reflex"
    guarded.wait(0.01)
    where = guarded.read().tcp_pos_m.copy()
    assert where[2] < UP[2]
    arm.fault = ""
    guarded.wait(0.2)
    np.testing.assert_array_equal(guarded.reference.pos_m, where)
    np.testing.assert_array_equal(guarded.read().tcp_pos_m, where)


def test_a_person_clears_it_once_the_arm_can(arms):
    arm, guarded = arms
    arm.fault, arm.needs = "emergency stop", "release the emergency stop first"
    guarded.wait(0.01)
    with pytest.raises(ValueError, match="release the emergency stop first"):
        guarded.clear_fault()
    assert guarded.fault == "arm stopped: emergency stop" and arm.recovered == 0
    arm.needs = ""
    guarded.clear_fault()
    assert guarded.fault == "" and arm.recovered == 1
    assert up(guarded).tcp_pos_m[2] > 0.305


def test_the_first_fault_stands(arms):
    arm, guarded = arms
    arm.state.dq_radps[0] = 5.0
    guarded.wait(0.01)
    assert guarded.fault == "joint speed"
    arm.state.dq_radps[0] = 0.0
    arm.fault = "reflex"
    guarded.wait(0.01)
    assert guarded.fault == "joint speed"
    guarded.clear_fault()
    assert arm.recovered == 1 and guarded.fault == ""


def test_an_arm_that_stopped_between_two_waits_says_so_before_the_next(arms):
    arm, guarded = arms
    arm.fault = "user stop"
    assert guarded.fault == "arm stopped: user stop"
    with pytest.raises(TimeoutError, match="user stop"):
        moving.move_to(guarded, Start(Pose(UP, guarded.read().tcp_quat_xyzw), 0.0, {}), 1.0, guarded.grant_energy)
    assert not arm.given  # nobody tried


def test_what_moves_a_stopped_arm_earns_no_energy(arms):
    arm, guarded = arms
    arm.damping_of = lambda stiffness: 2.0 * np.sqrt(3.0 * stiffness)
    guarded = GuardedArm(arm, BOUNDS)
    up(guarded)
    arm.fault = "guiding"
    guarded.wait(0.01)
    before_j = guarded.energy["ledger_j"]
    arm.state = replace(arm.state, t_s=arm.state.t_s + 1.0, tcp_pos_m=arm.state.tcp_pos_m + 0.1)  # by hand
    guarded.clear_fault()
    guarded.wait(0.1)
    assert guarded.energy["ledger_j"] == before_j
    np.testing.assert_array_equal(guarded.reference.pos_m, arm.state.tcp_pos_m)


def test_codes_are_found_behind_words():
    assert [code_of(name) for name in FAULTS] == list(range(len(FAULTS)))
    assert code_of("arm stopped: protective stop") == FAULTS.index("arm stopped")
    assert code_of("no such thing") == -1


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_person_at_the_terminal_is_asked(arms, monkeypatch, capsys):
    arm, guarded = arms
    arm.fault, arm.needs = "emergency stop", "release it"
    guarded.wait(0.01)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(RuntimeError, match="needs a person"):
        build.await_person(guarded)
    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(RuntimeError, match="terminal is gone"):
        build.await_person(guarded)
    assert guarded.fault

    class Person(Terminal):
        asked = 0

        def readline(self, *_):
            Person.asked += 1
            arm.needs = "" if Person.asked > 1 else arm.needs
            return "\n"

    monkeypatch.setattr("sys.stdin", Person())
    build.await_person(guarded)
    assert guarded.fault == "" and Person.asked == 2
    assert "Not cleared: release it" in capsys.readouterr().err
