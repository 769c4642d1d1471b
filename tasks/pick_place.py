"""Pick up a cube and place it on a platform: reaching, grasping, lifting, letting go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from robot_rl.config import check, choice, number
from robot_rl.geometry import quat_conjugate, quat_multiply, quat_rotate, quat_to_rotvec, rotvec_to_quat
from robot_rl.types import ArmCommand, ArmState, Bounds, Demonstrator, Geom, Obs, Pose, Prop, Scene, Start
from tasks import _common as common

CUBE_HALF_M = 0.015
PLATFORM_HALF_M = (0.045, 0.045, 0.02)
CENTRE_M = np.array([0.5, 0.0, 0.0])
OPEN = 0.25  # gripper reading below which the cube is let go: on any hand at least 7 mm wider than the cube


@dataclass(frozen=True)
class Config:
    max_steps: int = number(100, 1, 10_000, "policy steps")
    control_hz: float = number(10.0, 1.0, 100.0, "Hz, policy")
    step_m: float = number(0.025, 1e-4, 0.1, "m per policy step at action 1")
    step_rad: float = number(0.1, 1e-3, 0.5, "rad per policy step at action 1")
    cube_spread_m: float = number(0.05, 0.0, 0.1, "+- m of the cube in x and y")
    cube_spread_rad: float = number(0.3, 0.0, 0.785, "+- rad of the cube about the vertical")
    platform_spread_m: float = number(0.03, 0.0, 0.05, "+- m of the platform in x and y")
    start_spread_m: float = number(0.03, 0.0, 0.05, "+- m of the arm's start, per axis")
    tolerance_m: float = number(0.025, 0.001, 0.04, "m of the cube's centre from the platform's")
    cube_mass_kg: float = number(0.1, 0.01, 1.0, "kg")
    reward_kind: str = choice("sparse", ("sparse", "shaped"))

    def __post_init__(self) -> None:
        check(self)


def make(config: Config) -> PickPlace:
    return PickPlace(config)


class PickPlace:
    """Success: the cube is on the platform, within ``tolerance_m`` of its middle, and the gripper is open."""

    goal_size = 4
    goal_keys = ("goal",)
    object_keys = ("cube", "cube_near", "goal", "height")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.control_hz, self.max_steps = config.control_hz, config.max_steps
        cube = Geom("box", (CUBE_HALF_M,) * 3, rgba=(0.85, 0.3, 0.25, 1.0), friction=1.0)
        platform = Geom("box", PLATFORM_HALF_M, (0, 0, PLATFORM_HALF_M[2]), rgba=(0.25, 0.42, 0.62, 1.0))
        self.scene = Scene(
            (
                Prop("platform", "fixture", (platform,)),
                Prop("cube", "free", (cube,), mass_kg=config.cube_mass_kg),
            )
        )
        self.bounds = Bounds(
            box_lower_m=(CENTRE_M[0] - 0.2, -0.25, 0.008),
            box_upper_m=(CENTRE_M[0] + 0.2, 0.25, 0.3),
            box_quat_xyzw=common.TOOL_DOWN_XYZW,
            box_rot_rad=(0.3, 0.3, 0.9),
            speed_mps=0.3,
        )
        self.action_space = common.action_space(gripper=True)
        self.observation_space = spaces.Dict(
            common.proprioception_space(gripper=True)
            | {
                "cube": common.box(*[0.3] * 3, *[0.8] * 3),
                "cube_near": common.box(*[0.03] * 3, *[0.2] * 3),
                "goal": common.box(*[0.3] * 3),
                "height": spaces.Box(0.0, 0.3, (1,), np.float32),
            }
        )

    def reset(self, rng: np.random.Generator) -> Start:
        cfg = self.config
        side = common.draw(rng, (cfg.cube_spread_m, cfg.cube_spread_m, 0.0))
        turn = np.array([0.0, 0.0, rng.uniform(-cfg.cube_spread_rad, cfg.cube_spread_rad)])
        cube = Pose(CENTRE_M + [0.0, -0.1, CUBE_HALF_M] + side, rotvec_to_quat(turn))
        shift = common.draw(rng, (cfg.platform_spread_m, cfg.platform_spread_m, 0.0))
        platform = Pose(CENTRE_M + [0.0, 0.12, 0.0] + shift, np.array([0.0, 0.0, 0.0, 1.0]))
        start = Pose(
            CENTRE_M + [0.0, 0.0, 0.2] + common.draw(rng, (cfg.start_spread_m,) * 3),
            common.tool_down(np.zeros(3)),
        )
        return Start(start, gripper=0.0, props={"platform": platform, "cube": cube})

    def observe(self, state: ArmState, readings: Mapping[str, np.ndarray], origin: ArmState) -> Obs:
        cube, platform = readings["prop/cube"], readings["prop/platform"]
        inverse = quat_conjugate(state.tcp_quat_xyzw)
        turn = quat_multiply(quat_multiply(inverse, cube[3:]), np.array(common.TOOL_DOWN_XYZW))
        seen = np.concatenate([quat_rotate(inverse, cube[:3] - state.tcp_pos_m), quat_to_rotvec(turn)])
        rest = platform[:3] + [0.0, 0.0, 2 * PLATFORM_HALF_M[2] + CUBE_HALF_M]
        return common.proprioception(state, origin, gripper=True) | {
            "cube": seen,
            "cube_near": seen,
            "goal": quat_rotate(inverse, rest - state.tcp_pos_m),
            "height": np.array([cube[2]]),
            "sim/achieved": np.append(cube[:3], state.gripper),
            "sim/desired": np.append(rest, 0.0),
        }

    def command(self, action: np.ndarray, state: ArmState) -> ArmCommand:
        pos_m, quat_xyzw = common.moved(state, action, self.config.step_m, self.config.step_rad)
        return ArmCommand(pos_m, quat_xyzw, common.gripper(action[6], state), valid_s=2.0 / self.control_hz)

    def steer(self, twist: np.ndarray, gripper: float, state: ArmState) -> np.ndarray:
        return common.steered(twist, state, gripper)

    def reward(self, obs: Obs, action: np.ndarray, next_obs: Obs) -> dict[str, float]:
        terms = {"success": float(self.success(next_obs))}
        if self.config.reward_kind == "shaped":
            terms |= common.carry_terms(next_obs["cube"][:3], *self.goal(next_obs), CUBE_HALF_M)
        return terms

    def success(self, obs: Obs) -> bool:
        return bool(self.reached(*self.goal(obs)))

    def goal(self, obs: Obs) -> tuple[np.ndarray, np.ndarray]:
        """Achieved and desired cube position and gripper (4,) m, -; base frame."""
        return obs["sim/achieved"], obs["sim/desired"]

    def reached(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        """Whether cubes (..., 4) are at the height of the platform, central, and let go."""
        gap = np.abs(achieved - desired)
        central = np.linalg.norm(gap[..., :2], axis=-1) < self.config.tolerance_m
        return central & (gap[..., 2] < 0.004) & (achieved[..., 3] < OPEN)

    def demonstrator(self, rng: np.random.Generator) -> Demonstrator:
        return common.Hand(
            rng, _pick_and_place, common.move_steps(self.config.step_m, self.config.step_rad), noise=0.12
        )


def _pick_and_place(obs: Obs) -> np.ndarray:
    """The next move (6,) and gripper: over the cube, down, grasp, up, over the platform, down, let go."""
    cube, goal, gripper = obs["cube"], obs["goal"], float(obs["gripper"][0])
    level = np.concatenate([np.zeros(3), cube[3:]])  # keeps the fingers along the cube's faces
    held = gripper > 0.3 and np.linalg.norm(cube[:3]) < 0.02
    resting = np.linalg.norm(cube[:2] - goal[:2]) < 0.02 and abs(cube[2] - goal[2]) < 0.006
    if resting:  # on the platform: let go, and up when open
        move = level * 0.0
        move[2] = -0.03 if gripper < 0.2 else 0.0
        return np.append(move, -1.0)
    if not held:
        move = np.concatenate([cube[:3], cube[3:]])
        if np.linalg.norm(cube[:2]) > 0.008 or np.linalg.norm(cube[3:]) > 0.15:
            move[2] = cube[2] - 0.06  # stay above until the fingers clear its sides
            return np.append(move, -1.0)
        grasp = 1.0 if abs(cube[2]) < 0.008 else -1.0
        return np.append(move, grasp)
    move = np.concatenate([goal, np.zeros(3)])
    if np.linalg.norm(goal[:2]) > 0.015:
        move[2] = goal[2] - 0.05  # carry well above the platform
        if goal[2] < 0.02:  # not lifted yet: up before sideways
            move[:2] *= 0.2
    return np.append(move, 1.0)
