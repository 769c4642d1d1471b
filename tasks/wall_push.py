"""Find a wall at an unknown distance and press on it with a demanded force: contact control in one dimension.

The policy moves along the wall's normal, the base's x, and chooses how stiffly; everything else is held. At the wall an
action is a force: a target ``step_m * action`` inside it presses with stiffness times that. What makes it hard is that
contact comes sooner or later, and that no one pair of displacement and stiffness is right for every demand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from robot_rl.config import check, choice, number
from robot_rl.types import ArmCommand, ArmState, Demonstrator, Geom, Obs, Pose, Prop, Scene, Start
from tasks import _common as common

KNOB_RADIUS_M = 0.012
KNOB_BELOW_TCP_M = 0.02  # so short that pressing hardly turns the tool
WALL_HALF_M = (0.01, 0.07, 0.05)  # as high as the tcp: the hand stays clear of it
START_M = np.array([0.42, 0.0, 0.1])  # of the tcp; y and z are held there
GAUGE_Y_M = 0.1  # beside the wall, where nothing touches it
GAUGE_MPN = 0.006  # height of the gauge's mark per demanded newton
GRIPPER = 1.0  # closed throughout


@dataclass(frozen=True)
class Config:
    max_steps: int = number(60, 1, 10_000, "policy steps")
    control_hz: float = number(10.0, 1.0, 100.0, "Hz, policy")
    step_m: float = number(0.015, 1e-4, 0.1, "m per policy step at action 1")
    softest_npm: float = number(150.0, 10.0, 3000.0, "N/m along the normal at action -1")
    stiffest_npm: float = number(2000.0, 10.0, 3000.0, "N/m along the normal at action 1")
    side_npm: float = number(1500.0, 10.0, 3000.0, "N/m in y and z")
    turn_nmprad: float = number(80.0, 1.0, 300.0, "Nm/rad of the orientation")
    nearest_m: float = number(0.02, 0.0, 0.15, "m from the knob to the wall, at least")
    farthest_m: float = number(0.1, 0.0, 0.15, "m from the knob to the wall, at most")
    weakest_n: float = number(8.0, 1.0, 30.0, "N demanded, at least")
    strongest_n: float = number(20.0, 1.0, 30.0, "N demanded, at most")
    tolerance_n: float = number(0.75, 0.01, 10.0, "+- N of the demanded force")
    still_mps: float = number(0.01, 1e-4, 1.0, "m/s of the tcp that counts as still")
    reward_kind: str = choice("sparse", ("sparse", "shaped"))

    def __post_init__(self) -> None:
        check(self)
        common.check_stiffness(self.softest_npm, self.stiffest_npm)
        for low, high in (("nearest_m", "farthest_m"), ("weakest_n", "strongest_n")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} = {getattr(self, low)}: give at most {high}, {getattr(self, high)}")
        if self.strongest_n > self.stiffest_npm * self.step_m:
            most = self.stiffest_npm * self.step_m
            raise ValueError(f"strongest_n = {self.strongest_n}: stiffest_npm * step_m presses with {most:g} N at most")


def make(config: Config) -> WallPush:
    return WallPush(config)


class WallPush:
    """Success: the arm feels the demanded force along the normal, within ``tolerance_n``, and stands still."""

    goal_size = 2
    goal_keys = ("goal",)

    def __init__(self, config: Config) -> None:
        self.config = config
        self.control_hz, self.max_steps = config.control_hz, config.max_steps
        knob = Geom("sphere", (KNOB_RADIUS_M,), (0, 0, KNOB_BELOW_TCP_M), rgba=(0.85, 0.45, 0.15, 1.0), friction=0.2)
        wall = Geom("box", WALL_HALF_M, rgba=(0.25, 0.42, 0.62, 0.45), friction=0.2)
        post_m = (0.0, GAUGE_Y_M, 0.1 - WALL_HALF_M[2])
        post = Geom("cylinder", (0.004, 0.1), post_m, rgba=(0.5, 0.5, 0.5, 1.0), collide=False)
        mark = Geom("box", (0.012, 0.02, 0.004), rgba=(0.3, 0.75, 0.35, 1.0), collide=False)
        self.scene = Scene(
            (
                Prop("knob", "tool", (knob,), mass_kg=0.05),
                Prop("wall", "fixture", (wall, post)),
                Prop("demand", "fixture", (mark,)),
            ),
            locked_gripper=GRIPPER,
        )
        self.bounds = common.contact_bounds(
            (START_M[0] - 0.05, START_M[1] - 0.02, START_M[2] - 0.02),
            (START_M[0] + 0.2, START_M[1] + 0.02, START_M[2] + 0.02),
        )
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = spaces.Dict(
            common.contact_space((0.2, 0.02, 0.02)) | {"goal": spaces.Box(0.0, 30.0, (1,), np.float32)}
        )

    def reset(self, rng: np.random.Generator) -> Start:
        cfg, upright = self.config, np.array([0.0, 0.0, 0.0, 1.0])
        gap_m = rng.uniform(cfg.nearest_m, cfg.farthest_m)
        force_n = rng.uniform(cfg.weakest_n, cfg.strongest_n)
        wall_m = np.array([START_M[0] + KNOB_RADIUS_M + gap_m + WALL_HALF_M[0], START_M[1], WALL_HALF_M[2]])
        mark_m = np.array([wall_m[0], GAUGE_Y_M, GAUGE_MPN * force_n])
        return Start(
            Pose(START_M, common.tool_down(np.zeros(3))),
            props={"wall": Pose(wall_m, upright), "demand": Pose(mark_m, upright)},
        )

    def observe(self, state: ArmState, readings: Mapping[str, np.ndarray], origin: ArmState) -> Obs:
        demanded_n = readings["prop/demand"][2] / GAUGE_MPN  # a task remembers nothing: the world holds the demand
        return common.contact(state, readings, origin) | {
            "goal": np.array([demanded_n]),
            "sim/achieved": np.array([-state.tcp_wrench[0], np.linalg.norm(state.tcp_twist[:3])]),
            "sim/desired": np.array([demanded_n, 0.0]),
        }

    def command(self, action: np.ndarray, state: ArmState) -> ArmCommand:
        """Target: the MEASURED position plus ``action[0]`` steps along the base's x, y and z as at the start."""
        cfg = self.config
        pos_m = np.array([state.tcp_pos_m[0] + cfg.step_m * action[0], START_M[1], START_M[2]])
        normal = common.stiffness(action[1], cfg.softest_npm, cfg.stiffest_npm)
        stiffness = np.array([normal, cfg.side_npm, cfg.side_npm, *[cfg.turn_nmprad] * 3])
        return ArmCommand(pos_m, np.array(common.TOOL_DOWN_XYZW), GRIPPER, stiffness, valid_s=2.0 / self.control_hz)

    def steer(self, twist: np.ndarray, gripper: float, state: ArmState) -> np.ndarray:
        return np.array([twist[0], 0.0])  # the stiffness half way

    def reward(self, obs: Obs, action: np.ndarray, next_obs: Obs) -> dict[str, float]:
        terms = {"success": float(self.success(next_obs))}
        if self.config.reward_kind == "shaped":
            achieved, desired = self.goal(next_obs)
            terms["nearness"] = 0.1 * float(np.exp(-abs(achieved[0] - desired[0]) / 5.0))
        return terms

    def success(self, obs: Obs) -> bool:
        return bool(self.reached(*self.goal(obs)))

    def goal(self, obs: Obs) -> tuple[np.ndarray, np.ndarray]:
        """Achieved and desired force along the normal and speed of the tcp (2,) N, m/s."""
        return obs["sim/achieved"], obs["sim/desired"]

    def reached(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        """Whether forces and speeds (..., 2) are within their tolerances."""
        gap = np.abs(achieved - desired)
        return (gap[..., 0] < self.config.tolerance_n) & (gap[..., 1] < self.config.still_mps)

    def demonstrator(self, rng: np.random.Generator) -> Demonstrator:
        return common.Hand(rng, _Press(rng, self.config), [self.config.step_m], noise=0.05)


class _Press:
    """Approach until something is felt, then lean in by what the force still lacks."""

    def __init__(self, rng: np.random.Generator, config: Config) -> None:
        self._rng, self._config = rng, config
        self._lean_m = 0.0  # how far the target is inside the wall
        self._firm = rng.uniform(0.85, 1.0)  # a person's stiffness: chosen once, held with a tremor

    def __call__(self, obs: Obs) -> np.ndarray:
        felt_n, wanted_n = -float(obs["tcp_wrench"][0]), float(obs["goal"][0])
        firm = self._firm + 0.03 * self._rng.standard_normal()
        stiffness = common.stiffness(np.array(firm), self._config.softest_npm, self._config.stiffest_npm)
        if felt_n < 1.0:
            self._lean_m = 0.5 * self._config.step_m
        else:
            self._lean_m += 0.5 * (wanted_n - felt_n) / float(stiffness)
        return np.array([self._lean_m, firm])
