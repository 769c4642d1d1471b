"""An unkind world around a real arm, seen from an environment: whatever stops the arm has a name, the arm holds, no
command gets through, nothing raises out of ``step``, and only a person's word, given when the cause is gone, goes on.

Both drivers, through their makers' unmodified clients, against served twins in lock-step.
"""

import contextlib
import dataclasses
import threading

import numpy as np
import pytest

from robot_rl import build
from robot_rl.types import ArmCommand
from tests.served import address, serve

pytest.importorskip("franky")
pytest.importorskip("rtde_control")

PROTOCOLS = {"fr3": "fci", "ur5e": "rtde"}
STOP_N = 25.0  # of contact at which the arms stop by themselves
TWINS = {"fr3": (), "ur5e": (f"protocol.stop_force_n={STOP_N}",)}
DRIVERS = {
    "fr3": (f"arm.collision_force_n={STOP_N}",),
    "ur5e": ("arm.power_on=true", "energy.budget_j=10", "energy.cap_j=10"),
}
STEP_S = 0.1
MANY = 60  # steps within which a fault is there


class Bench:
    """An environment around a served twin."""

    def __init__(self, arm, twin, task="reach", settings=()):
        self.arm, self.twin, self.door = arm, twin, twin.door()
        words = [f"arm.address={twin.host}", "arm.twin=lockstep", *DRIVERS[arm], *settings]
        self.env = build.make_env(task, arm, "hardware", words)
        self.env.reset(seed=0)
        self.guarded = self.env.unwrapped.arm
        self.action = np.zeros(self.env.action_space.shape)
        self.action[1] = 0.5  # along y

    def step(self):
        """One step of a policy that goes on regardless; why it was truncated."""
        _, _, terminated, truncated, info = self.env.step(self.action)
        assert not terminated and (truncated or not info["fault"])
        return info["fault"]

    def stopped(self):
        """Steps until there is a fault: its name."""
        for _ in range(MANY):
            if fault := self.step():
                return fault
        raise AssertionError(f"no fault within {MANY} steps")

    def stays(self, fault):
        """It is held, and nothing that is commanded changes that."""
        seen = self.door.truth()
        for _ in range(4):
            assert self.step() == fault
        truth = self.door.truth()
        assert truth["t_s"] > seen["t_s"]
        assert np.abs(np.subtract(truth["tcp"], seen["tcp"])).max() < 1e-3
        assert self.guarded.fault == fault

    def refuses(self, says, fault):
        with pytest.raises(ValueError, match=says):
            self.guarded.clear_fault()
        assert self.guarded.fault == fault

    def goes_on(self):
        """A person has cleared it: it holds where it is, follows, and an episode can begin."""
        self.guarded.clear_fault()
        assert self.guarded.fault == ""
        state = self.guarded.read()
        assert np.abs(self.guarded.wait(0.2).tcp_pos_m - state.tcp_pos_m).max() < 1e-3
        up = ArmCommand(state.tcp_pos_m + [0.0, 0.0, 0.02], state.tcp_quat_xyzw, state.gripper)
        for _ in range(8):
            self.guarded.command(up)
            after = self.guarded.wait(STEP_S)
        np.testing.assert_allclose(after.tcp_pos_m, up.tcp_pos_m, atol=2e-3)
        self.env.reset(seed=1)
        assert self.step() == ""


@pytest.fixture(scope="module")
def benches():
    """``benches(arm)``: one fault after the other befalls the same connection."""
    made = {}
    with contextlib.ExitStack() as stack:

        def bench(arm):
            if arm not in made:
                twin = stack.enter_context(serve(PROTOCOLS[arm], arm, task="reach", settings=TWINS[arm]))
                made[arm] = Bench(arm, twin)
                stack.callback(made[arm].env.close)
            if made[arm].guarded.fault:  # of a test that failed
                made[arm].guarded.clear_fault()
            made[arm].env.reset(seed=0)
            return made[arm]

        yield bench


@dataclasses.dataclass(frozen=True)
class Drill:
    arm: str
    causes: dict  # name -> how
    fault: str  # as it begins
    mended: dict = dataclasses.field(default_factory=dict)  # what ends the cause, where it lasts
    refusal: str = ""  # what a person is told while it lasts

    def __str__(self):
        return f"{self.arm} {' '.join(self.causes)}"


LATE = "communication constraints violation"
LOST = "connection lost"
DRILLS = (
    Drill("fr3", {"reflex": {}}, "reflex: cartesian reflex"),
    Drill("fr3", {"user_stop": {}}, "user stop", {"release_user_stop": {}}, "release the stop"),
    Drill("fr3", {"drop": {"count": 25}}, LATE),
    Drill("fr3", {"delay": {"ms": 50}}, LATE, {"delay": {"ms": 0}}),
    Drill("fr3", {"corrupt": {}}, LOST),
    Drill("fr3", {"mute": {}}, LOST, {"mute": {"on": False}}, "still away"),
    Drill("fr3", {"half_open": {}}, LOST),
    Drill("fr3", {"close": {}}, LOST),
    Drill("fr3", {"wrong_version": {}, "close": {}}, LOST, {"wrong_version": {"version": 10}}, "version 9"),
    Drill("ur5e", {"protective_stop": {}}, "protective stop"),
    Drill("ur5e", {"emergency_stop": {}}, "emergency stop", {"release_emergency_stop": {}}, "release the emergency"),
    Drill("ur5e", {"program_stop": {}}, "program stopped"),
    Drill(
        "ur5e", {"remote_control": {}, "program_stop": {}}, "program stopped", {"remote_control": {"on": True}},
        "Local to Remote",
    ),
    Drill("ur5e", {"drop": {}}, LOST),
)  # fmt: skip


@pytest.mark.parametrize("drill", DRILLS, ids=str)
def test_what_stops_the_arm_is_named_held_and_waits_for_a_person(benches, drill):
    bench = benches(drill.arm)
    bench.step()
    for cause, how in drill.causes.items():
        bench.door.cause(cause, **how)
    fault = bench.stopped()
    assert fault.startswith(f"arm stopped: {drill.fault}")
    bench.stays(fault)
    if drill.refusal:
        bench.refuses(drill.refusal, fault)
    for cause, how in drill.mended.items():
        bench.door.cause(cause, **how)
    if drill.mended:
        bench.stays(fault)
    bench.goes_on()


@pytest.mark.parametrize(("arm", "fault"), [("fr3", "reflex: cartesian reflex"), ("ur5e", "protective stop")])
def test_running_into_the_table_is_a_stop(benches, arm, fault):
    bench = benches(arm)
    bounds = bench.guarded.bounds
    lower = (*bounds.box_lower_m[:2], -0.2)
    try:
        bench.guarded.set_bounds(dataclasses.replace(bounds, box_lower_m=lower))  # those of a task that is wrong
        bench.action[:] = 0.0
        bench.action[2] = 1.0  # along the tool
        assert bench.stopped() == f"arm stopped: {fault}"
        bench.stays(f"arm stopped: {fault}")
        assert bench.door.truth()["tcp"][2] > -0.01
        bench.goes_on()
    finally:
        bench.guarded.set_bounds(bounds)
        bench.action[:] = 0.0
        bench.action[1] = 0.5


@pytest.mark.alone  # the robot's and its gripper's connection end at once; on a busy machine the latter may be told of
@pytest.mark.parametrize(("arm", "settings"), [("fr3", ()), ("ur5e", ("arm.gripper=robotiq",))])
def test_a_killed_robot_with_its_gripper_is_lost_until_it_is_back(arm, settings):
    """Its hand and its props go and come back with it; what was seen of them last stands."""
    task = "pick_place"
    host, before = address(), set(threading.enumerate())
    with serve(PROTOCOLS[arm], arm, task=task, host=host) as twin:
        bench = Bench(arm, twin, task, settings)
        bench.step()
        twin.kill()
        fault = bench.stopped()
        assert "connection lost" in fault  # whichever of the two is told of first
        state = bench.guarded.read()
        assert bench.step() == fault and bench.guarded.read() is state
        bench.refuses("no twin behind", fault)
        with pytest.raises(ValueError, match="no twin behind"):
            bench.env.reset(seed=1)
    with serve(PROTOCOLS[arm], arm, task=task, host=host):
        assert bench.step() == bench.step() == fault
        bench.goes_on()
        bench.env.close()
        bench.env.close()
    assert set(threading.enumerate()) <= before
