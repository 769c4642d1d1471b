"""Ledger and filter around real twins: the depletion drill, and what is bit for bit the same."""

import math

import numpy as np
import pytest

from controllers.filters import ledger
from controllers.guarded_arm import GuardedArm
from robot_rl.types import ArmCommand, Bounds, Geom, Pose, Prop, Scene, Start
from sim._twin import Twin
from sim.panda import Config
from sim.panda import make as make_panda

DOWN = np.array([1.0, 0.0, 0.0, 0.0])
HOME = np.array([0.45, 0.0, 0.3])
INTO = HOME - [0.0, 0.0, 0.2]
BOUNDS = Bounds((0.2, -0.3, 0.0), (0.7, 0.3, 0.6), (1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0), force_n=150.0)
WALL = Scene((Prop("wall", "fixture", (Geom("box", (0.1, 0.1, 0.02)),)),))
ASIDE = np.array([0.0, 0.08, 0.0])


def make(energy: ledger.Config, compiled: bool = True, height_m: float = 0.28, **config) -> tuple[GuardedArm, Twin]:
    twin = make_panda(Config(**config), WALL)
    if not compiled:
        twin._compiled = False
        twin._plant = twin._plant._replace(model=twin._model, data=twin._data)
    arm = GuardedArm(twin, BOUNDS, energy=energy)
    wall = Pose(np.array([HOME[0], HOME[1], height_m - 0.02]), np.array([0.0, 0.0, 0.0, 1.0]))
    arm.place(Start(Pose(HOME, DOWN), gripper=1.0, props={"wall": wall}))
    return arm, twin


def command(arm: GuardedArm, pos_m: np.ndarray, stiffness: np.ndarray | None = None) -> None:
    arm.command(ArmCommand(pos_m, DOWN, gripper=1.0, stiffness=stiffness, valid_s=10.0))


def starve(arm: GuardedArm) -> list[np.ndarray]:
    """Press on the wall, and find the ledger below its reserve; the torques (dof,) Nm before and after that tick."""
    command(arm, INTO)
    arm.wait(0.6)
    arm._limits = arm._limits._replace(reserve_j=10.0)  # the filter alone stops short of it
    before = arm.read().tau_nm
    arm.wait(0.001)
    arm._limits = arm._limits._replace(reserve_j=0.05)
    assert arm.energy_state == "float" and np.abs(before).max() > 3.0
    return [before, arm.read().tau_nm]


def test_the_depletion_drill():
    """Float within |tau| / dtau ticks, no step in torque, nothing clears itself, and back at the measured pose."""
    arm, twin = make(ledger.Config())
    taus = starve(arm)
    step = arm.limits.dtau_max_nmps * 0.001
    ticks = math.ceil(float((np.abs(taus[0]) / step).max())) - 1  # one is already down
    assert ticks >= 1
    moving = []
    for _ in range(ticks):
        taus.append(arm.wait(0.001).tau_nm)
        moving.append(arm.energy["ledger_j"])
    assert np.abs(taus[-1]).max() < 0.5 and min(moving) >= 0.0
    assert np.all(np.abs(np.diff(taus, axis=0)) <= step + 1e-9)
    for _ in range(3):  # commands are taken, and nothing comes of them
        command(arm, HOME)
        state = arm.wait(0.05)
        np.testing.assert_allclose(state.tau_nm, -2.0 * state.dq_radps, atol=0.05)  # it only brakes
        assert (arm.energy_state, arm.fault) == ("float", "energy depleted") and arm.energy["intervened"] == 1.0
        np.testing.assert_allclose(arm._memory.pos_m, twin._plant.site_pos, atol=1e-4)  # one tick apart
    arm.wait(3.0)
    assert np.abs(arm.read().dq_radps).max() < 0.01 and np.linalg.norm(arm.read().tcp_pos_m - HOME) < 0.15
    arm.clear_fault()
    assert (arm.energy_state, arm.fault) == ("normal", "") and arm.energy["ledger_j"] == pytest.approx(2.0)
    before = arm.wait(0.001).tau_nm
    np.testing.assert_allclose(arm._memory.pos_m, arm.read().tcp_pos_m, atol=1e-4)
    assert np.abs(before).max() <= 1.0 + 1e-9
    command(arm, HOME)
    assert np.linalg.norm(arm.wait(0.5).tcp_pos_m - HOME) < 0.15 and arm.fault == ""


@pytest.mark.parametrize("act", ["clear_fault", "grant_energy"])
def test_energy_is_granted_at_rest_and_free_of_contact_only(act):
    arm, twin = make(ledger.Config())
    starve(arm)
    twin._data.qvel[0] = 0.3
    with pytest.raises(ValueError, match="rad/s"):
        getattr(arm, act)()
    arm.wait(3.0)
    twin._tick.wrench[2] = 20.0
    with pytest.raises(ValueError, match="contact force is 20"):
        getattr(arm, act)()
    assert arm.energy_state == "float"
    twin._tick.wrench[2] = 0.0
    getattr(arm, act)()
    assert arm.energy_state == ("normal" if act == "clear_fault" else "float")  # only a cleared fault ends floating


def test_a_grant_fills_the_ledger_of_an_arm_at_work():
    arm, _ = make(ledger.Config())
    command(arm, HOME + ASIDE)
    arm.wait(2.0)
    assert arm.energy["ledger_j"] < 2.0
    arm.grant_energy()
    assert arm.energy["ledger_j"] == 2.0 and arm.energy_state == "normal"


def test_a_filter_with_nothing_to_do_changes_no_bit():
    """Watched or enforced: the same torques where alpha, gamma and beta stay 1, and other ones where they do not."""

    def torques(enforce: bool, budget_j: float) -> tuple[np.ndarray, float]:
        arm, _ = make(ledger.Config(enforce=enforce, budget_j=budget_j))
        taus, least = [], 1.0
        for tick in range(400):
            if tick % 100 == 0:
                command(arm, INTO + ASIDE * (tick % 200 / 100.0 - 0.5))
            taus.append(arm.wait(0.001).tau_nm)
            least = min(least, arm.energy["alpha"], arm.energy["gamma"], arm.energy["beta"])
        return np.array(taus), least

    enforced, least = torques(True, 4.0)
    assert least == 1.0 and np.array_equal(enforced, torques(False, 4.0)[0])
    scarce, least = torques(True, 0.3)
    assert least < 1.0 and not np.array_equal(scarce, torques(False, 0.3)[0])


def test_compiled_and_plain_ticks_agree_while_the_filter_acts():
    """Through throttling and the valve: torque, pose and every number of the ledger within 1e-9."""
    runs = []
    for compiled in (True, False):
        arm, _ = make(ledger.Config(budget_j=0.35, delay_ticks=2), compiled)
        command(arm, INTO, np.array([3000.0, 3000.0, 3000.0, 100.0, 100.0, 100.0]))
        state = arm.wait(0.15)
        runs.append((arm.energy_trace, state.q_rad, state.tau_nm))
    for compiled_, plain in zip(*runs, strict=True):
        np.testing.assert_allclose(compiled_, plain, atol=1e-9, rtol=0.0)
    trace = runs[0][0]
    assert trace[:, ledger.ALPHA].min() < 1.0 and trace[:, ledger.BETA].min() < 1.0


def test_a_hold_that_loses_its_measurements_lets_go():
    """A contact trip holds the measured pose; a sample that is no number while it holds has to end the hold, too."""
    arm, twin = make(ledger.Config())
    arm._guard = arm._guard._replace(trip_force_n=5.0)
    command(arm, INTO)
    arm.wait(1.0)
    assert arm.fault == "contact force"
    twin._data.qpos[0] = math.nan
    assert np.isfinite(arm.wait(0.01).tau_nm).all()
    arm.wait(0.1)
    assert arm.fault == "not finite" and np.all(arm.read().tau_nm == 0.0) and arm.energy["ledger_j"] >= 0.0
