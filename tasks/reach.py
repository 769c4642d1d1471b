"""Bring the tcp to a drawn pose: the smallest task, for a first run and for checking an arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from robot_rl.config import check, choice, number
from robot_rl.geometry import relative_pose
from robot_rl.types import ArmCommand, ArmState, Bounds, Demonstrator, Geom, Obs, Pose, Prop, Scene, Start
from tasks import _common as common

CENTRE_M = np.array([0.5, 0.0, 0.25])
GRIPPER = 1.0  # closed throughout


@dataclass(frozen=True)
class Config:
    max_steps: int = number(50, 1, 10_000, "policy steps")
    control_hz: float = number(10.0, 1.0, 100.0, "Hz, policy")
    step_m: float = number(0.02, 1e-4, 0.1, "m per policy step at action 1")
    step_rad: float = number(0.1, 1e-3, 0.5, "rad per policy step at action 1")
    goal_spread_m: float = number(0.12, 0.0, 0.2, "+- m of the goal, per axis")
    goal_spread_rad: float = number(0.3, 0.0, 0.5, "+- rad of the goal, per axis")
    tolerance_m: float = number(0.01, 1e-4, 0.1, "m")
    tolerance_rad: float = number(0.1, 1e-3, 1.0, "rad")
    reward_kind: str = choice("sparse", ("sparse", "shaped"))

    def __post_init__(self) -> None:
        check(self)


def make(config: Config) -> Reach:
    return Reach(config)


class Reach:
    """Success: tcp within ``tolerance_m`` and ``tolerance_rad`` of the goal."""

    goal_size = 6
    goal_keys = ("goal", "goal_near")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.control_hz, self.max_steps = config.control_hz, config.max_steps
        marker = Geom("sphere", (0.012,), rgba=(0.9, 0.3, 0.2, 0.8), collide=False)
        needle = Geom("capsule", (0.003, 0.03), (0, 0, 0.03), rgba=(0.9, 0.3, 0.2, 0.8), collide=False)
        self.scene = Scene((Prop("goal", "fixture", (marker, needle)),), locked_gripper=GRIPPER)
        self.bounds = Bounds(
            box_lower_m=tuple(CENTRE_M - 0.2),
            box_upper_m=tuple(CENTRE_M + 0.2),
            box_quat_xyzw=common.TOOL_DOWN_XYZW,
            box_rot_rad=(0.6, 0.6, 0.6),
        )
        self.action_space = common.action_space(gripper=False)
        self.observation_space = spaces.Dict(
            common.proprioception_space(gripper=False)
            | {"goal": common.box(*[0.3] * 3, *[0.8] * 3), "goal_near": common.box(*[0.03] * 3, *[0.2] * 3)}
        )

    def reset(self, rng: np.random.Generator) -> Start:
        spread_m, spread_rad = self.config.goal_spread_m, self.config.goal_spread_rad
        start = Pose(CENTRE_M + common.draw(rng, (0.05,) * 3), common.tool_down(common.draw(rng, (0.1,) * 3)))
        goal = Pose(CENTRE_M + common.draw(rng, (spread_m,) * 3), common.tool_down(common.draw(rng, (spread_rad,) * 3)))
        return Start(start, props={"goal": goal})

    def observe(self, state: ArmState, readings: Mapping[str, np.ndarray], origin: ArmState) -> Obs:
        goal = Pose(readings["prop/goal"][:3], readings["prop/goal"][3:])
        seen = common.seen_from_tcp(state, goal)
        return common.proprioception(state, origin, gripper=False) | {
            "goal": seen,
            "goal_near": seen,  # the same, under a magnifying glass
            "sim/desired": relative_pose(goal.pos_m, goal.quat_xyzw, origin.tcp_pos_m, origin.tcp_quat_xyzw),
        }

    def command(self, action: np.ndarray, state: ArmState) -> ArmCommand:
        pos_m, quat_xyzw = common.moved(state, action, self.config.step_m, self.config.step_rad)
        return ArmCommand(pos_m, quat_xyzw, GRIPPER, valid_s=2.0 / self.control_hz)

    def steer(self, twist: np.ndarray, gripper: float, state: ArmState) -> np.ndarray:
        return common.steered(twist, state)

    def reward(self, obs: Obs, action: np.ndarray, next_obs: Obs) -> dict[str, float]:
        terms = {"success": float(self.success(next_obs))}
        if self.config.reward_kind == "shaped":
            distance = np.linalg.norm(next_obs["goal"][:3]) / 0.1 + np.linalg.norm(next_obs["goal"][3:])
            terms["nearness"] = 0.1 * float(np.exp(-distance))
        return terms

    def success(self, obs: Obs) -> bool:
        return bool(self.reached(*self.goal(obs)))

    def goal(self, obs: Obs) -> tuple[np.ndarray, np.ndarray]:
        """Achieved and desired tcp pose (6,) m, rad relative to the reset pose."""
        return obs["tcp_pose"], obs["sim/desired"]

    def reached(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        """Whether goals (..., 6) are met; the rotation is compared as the difference of small rotation vectors."""
        gap = achieved - desired
        near = np.linalg.norm(gap[..., :3], axis=-1) < self.config.tolerance_m
        return near & (np.linalg.norm(gap[..., 3:], axis=-1) < self.config.tolerance_rad)

    def demonstrator(self, rng: np.random.Generator) -> Demonstrator:
        return common.Hand(
            rng, lambda obs: obs["goal"], common.move_steps(self.config.step_m, self.config.step_rad), noise=0.15
        )
