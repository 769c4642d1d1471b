"""For tests of the control loop: a clock of the test's own, a driver that keeps it, ticks that are taken one by one."""

from dataclasses import replace

import numpy as np

from controllers import control_loop, guard, watchdog
from controllers.control_loop import ControlLoop, is_twin
from controllers.guarded_arm import GuardedArm
from robot_rl.types import ArmCommand, Bounds, Pose, Scene, Start
from sim.panda import Config as PandaConfig
from sim.panda import make as make_panda
from tests.mock_arm import MockArm

PERIOD_S = 0.01
HERE = np.array([0.5, 0.0, 0.3])
DOWN = np.array([1.0, 0.0, 0.0, 0.0])
HOME = np.array([0.45, 0.0, 0.3])
BOUNDS = Bounds((0.2, -0.3, 0.0), (0.7, 0.3, 0.6), (1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0), force_n=30.0)


class Clock:
    """What control_loop takes for the module ``time``."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def monotonic_ns(self) -> int:
        return round(self.now_s * 1e9)

    def time_ns(self) -> int:
        return 1_800_000_000_000_000_000 + self.monotonic_ns()

    def sleep(self, time_s: float) -> None:
        self.now_s += time_s


class Driver(MockArm):
    """Keeps time by the test's clock; ``blocked``: something holds the tcp, and springs press against it."""

    def __init__(self, clock: Clock, blocked: bool = False) -> None:
        super().__init__()
        self.clock, self.blocked = clock, blocked
        self.late_s = 0.0
        self.dead = self.frozen = False
        self.closed = 0

    def command(self, command: ArmCommand) -> None:
        before = self.state
        super().command(command)
        if self.blocked:
            self.state = before

    def wait(self, dt_s: float):
        if self.dead:
            raise OSError("the cable is out")
        self.clock.now_s += dt_s + self.late_s
        if not self.frozen:
            self.state = replace(self.state, t_s=self.state.t_s + dt_s + self.late_s)
        return self.state

    def force_n(self) -> float:
        """What the spring that was asked for last presses with."""
        last = self.given[-1]
        return float(np.linalg.norm(last.stiffness[:3] * (last.tcp_pos_m - self.state.tcp_pos_m)))


def make(arm, config=None, publish=None, lockstep=False, bounds=BOUNDS, **energy) -> ControlLoop:
    hz = 1000.0 if is_twin(arm) else 1.0 / PERIOD_S
    guarded = GuardedArm(arm, bounds, guard.Config(control_hz=hz))
    ticks = []
    loop = ControlLoop(guarded, config or watchdog.Config(), PERIOD_S, publish or ticks.append, lockstep, is_twin(arm))
    loop.ticks = ticks
    return loop


def panda():
    twin = make_panda(PandaConfig(), Scene())
    twin.place(Start(Pose(HOME, DOWN)))
    return twin


def target(offset_m=(0.0, 0.0, 0.0), origin=HERE, **rest) -> ArmCommand:
    return ArmCommand(origin + np.array(offset_m), DOWN, valid_s=rest.pop("valid_s", 0.2), **rest)


def run(loop: ControlLoop, time_s: float, every=lambda: None):
    """Ticks for ``time_s``; the clock of a twin is moved by hand."""
    out = []
    for _ in range(round(time_s / PERIOD_S)):
        every()
        if loop.twin:
            control_loop.time.now_s += PERIOD_S
        loop._serve()
        out.append(loop.last)
    return out


def said(tick):
    return tick.mode, tick.cause
