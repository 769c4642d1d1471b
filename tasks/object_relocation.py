"""Pick an object out of one bin and put it into the other; ``object_relocation_back`` is the way back.

After the bin relocation of SERL (arXiv 2401.16013), with our own bins. Both directions have one scene, so that one arm
can alternate them: where the one ends, the other begins, and nobody puts anything back. Fingers reach over the walls,
so they can grasp an object wherever in a bin it lies; it is a cube, so none of its sides is up, and only a quarter of a
turn tells its poses apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from robot_rl.config import check, choice, number
from robot_rl.geometry import quat_conjugate, quat_multiply, quat_rotate, rotvec_to_quat
from robot_rl.types import ArmCommand, ArmState, Bounds, Demonstrator, Geom, Obs, Pose, Prop, Scene, Start
from tasks import _common as common

CUBE_HALF_M = 0.015
BIN_HALF_M = (0.07, 0.06)  # inner half sizes of each bin in x and y
WALL_M = 0.004  # thickness
WALL_HEIGHT_M = 0.01  # below the pads of every hand that grasps GRASP_M above the cube's middle
GRASP_M = 0.009
BIN_Y_M = BIN_HALF_M[1] + WALL_M / 2  # from the wall between the bins to the middle of each
CENTRE_M = np.array([0.5, 0.0, 0.0])  # nominal place of the wall between the bins
HOME_M = 0.14  # height of the tcp at the start
OPEN = 0.25  # gripper reading below which the cube is let go: on any hand at least 7 mm wider than the cube
RESTING_M = 0.004  # of the cube's middle from its height on the floor
COLOURS = ((0.25, 0.42, 0.62, 1.0), (0.36, 0.58, 0.40, 1.0))  # of the bins, at -y and at +y


@dataclass(frozen=True)
class Config:
    max_steps: int = number(100, 1, 10_000, "policy steps")
    control_hz: float = number(10.0, 1.0, 100.0, "Hz, policy")
    step_m: float = number(0.025, 1e-4, 0.1, "m per policy step at action 1")
    step_rad: float = number(0.1, 1e-3, 0.5, "rad per policy step at action 1")
    cube_spread_m: float = number(0.035, 0.0, 0.04, "+- m of the cube in x and y from the middle of its bin")
    cube_spread_rad: float = number(0.78, 0.0, 0.7854, "+- rad of the cube about the vertical; 0.785 is any")
    bins_spread_m: float = number(0.02, 0.0, 0.04, "+- m of the bins in x and y")
    start_spread_m: float = number(0.03, 0.0, 0.05, "+- m of the arm's start, per axis")
    cube_mass_kg: float = number(0.1, 0.01, 1.0, "kg")
    reward_kind: str = choice("sparse", ("sparse", "shaped"))

    def __post_init__(self) -> None:
        check(self)


def make(config: Config) -> ObjectRelocation:
    return ObjectRelocation(config, side=1)


class ObjectRelocation:
    """Success: the cube lies on the floor of the goal's bin, and the gripper is open.

    ``side`` is that of the goal's bin along y: 1, or -1 on the way back.
    """

    goal_size = 4
    goal_keys = ("goal",)
    object_keys = ("cube", "cube_near", "goal", "height", "height_near")

    def __init__(self, config: Config, side: int) -> None:
        self.config = config
        self.control_hz, self.max_steps = config.control_hz, config.max_steps
        self._goal_in_bins_m = np.array([0.0, side * BIN_Y_M, CUBE_HALF_M])
        cube = Geom("box", (CUBE_HALF_M,) * 3, rgba=(0.85, 0.3, 0.25, 1.0), friction=1.0)
        self.scene = Scene((_bins(), Prop("cube", "free", (cube,), mass_kg=config.cube_mass_kg)))
        self.bounds = Bounds(
            box_lower_m=(CENTRE_M[0] - 0.16, -0.2, 0.02),
            box_upper_m=(CENTRE_M[0] + 0.16, 0.2, 0.25),
            box_quat_xyzw=common.TOOL_DOWN_XYZW,
            box_rot_rad=(0.3, 0.3, 0.9),
            speed_mps=0.3,
        )
        self.action_space = common.action_space(gripper=True)
        self.observation_space = spaces.Dict(
            common.proprioception_space(gripper=True)
            | {
                "cube": common.box(*[0.3] * 3, 0.8),
                "cube_near": common.box(*[0.03] * 3, 0.2),
                "goal": common.box(*[0.3] * 3),
                "height": spaces.Box(0.0, 0.2, (1,), np.float32),
                "height_near": spaces.Box(0.0, 0.02, (1,), np.float32),
            }
        )

    def reset(self, rng: np.random.Generator) -> Start:
        cfg = self.config
        bins_m = CENTRE_M + common.draw(rng, (cfg.bins_spread_m, cfg.bins_spread_m, 0.0))
        side = common.draw(rng, (cfg.cube_spread_m, cfg.cube_spread_m, 0.0))
        turn = np.array([0.0, 0.0, rng.uniform(-cfg.cube_spread_rad, cfg.cube_spread_rad)])
        cube = Pose(bins_m + self._goal_in_bins_m * [1.0, -1.0, 1.0] + side, rotvec_to_quat(turn))
        home_m = CENTRE_M + [0.0, 0.0, HOME_M] + common.draw(rng, (cfg.start_spread_m,) * 3)
        return Start(
            Pose(home_m, common.tool_down(np.zeros(3))),
            gripper=0.0,
            props={"bins": Pose(bins_m, np.array([0.0, 0.0, 0.0, 1.0])), "cube": cube},
        )

    def observe(self, state: ArmState, readings: Mapping[str, np.ndarray], origin: ArmState) -> Obs:
        cube = readings["prop/cube"]
        rest = readings["prop/bins"][:3] + self._goal_in_bins_m
        inverse = quat_conjugate(state.tcp_quat_xyzw)
        away = quat_rotate(inverse, cube[:3] - state.tcp_pos_m)
        seen = np.append(away, quarter_turn(quat_multiply(inverse, cube[3:])))
        return (
            common.proprioception(state, origin, gripper=True)
            | {
                "cube": seen,
                "cube_near": seen - [0.0, 0.0, GRASP_M, 0.0],  # all zeros where it is grasped; z of the tcp points down
                "goal": quat_rotate(inverse, rest - state.tcp_pos_m),
                "height": np.array([cube[2] - CUBE_HALF_M]),
                "height_near": np.array([cube[2] - CUBE_HALF_M]),
                "sim/achieved": np.append(cube[:3], state.gripper),
                "sim/desired": np.append(rest, 0.0),
            }
        )

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
        """Achieved and desired cube position and gripper (4,) m, -; base frame. Desired is the middle of the bin."""
        return obs["sim/achieved"], obs["sim/desired"]

    def reached(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        """Whether cubes (..., 4) lie on the floor between the walls around their goals, and are let go."""
        gap = np.abs(achieved - desired)
        inside = (gap[..., 0] < BIN_HALF_M[0] - CUBE_HALF_M / 2) & (gap[..., 1] < BIN_HALF_M[1] - CUBE_HALF_M / 2)
        return inside & (gap[..., 2] < RESTING_M) & (achieved[..., 3] < OPEN)

    def demonstrator(self, rng: np.random.Generator) -> Demonstrator:
        steps = common.move_steps(self.config.step_m, self.config.step_rad)
        return common.Hand(rng, _Relocation(rng), steps, noise=0.12)


def _bins() -> Prop:
    """Two bins that share a wall; the frame is on the table under the middle of that wall."""
    half_x, half_y, height = BIN_HALF_M[0] + WALL_M, 2 * BIN_HALF_M[1] + 1.5 * WALL_M, WALL_HEIGHT_M / 2
    grey = (0.5, 0.52, 0.55, 1.0)
    walls = [
        Geom("box", (half_x, WALL_M / 2, height), (0, y, height), rgba=grey)
        for y in (-half_y + WALL_M / 2, 0.0, half_y - WALL_M / 2)
    ]
    walls += [
        Geom("box", (WALL_M / 2, half_y, height), (side * (half_x - WALL_M / 2), 0, height), rgba=grey)
        for side in (-1, 1)
    ]
    floors = [  # the table carries: these only say which bin is which
        Geom("box", (*BIN_HALF_M, 0.0005), (0, side * BIN_Y_M, 0.0005), rgba=colour, collide=False)
        for side, colour in zip((-1, 1), COLOURS, strict=True)
    ]
    return Prop("bins", "fixture", (*walls, *floors))


def quarter_turn(quat_xyzw: np.ndarray) -> float:
    """How far an upright cube is turned about z, in [-pi/4, pi/4) rad, whichever of its faces is up: turned back by
    that, the others lie along x and y."""
    axes = [quat_rotate(quat_xyzw, axis) for axis in np.eye(3)]
    flattest = min(axes, key=lambda axis: abs(axis[2]))
    turn = np.arctan2(flattest[1], flattest[0])
    return float((turn + np.pi / 4) % (np.pi / 2) - np.pi / 4)


class _Relocation:
    """Over the cube, down, grasp, up, over a place in the other bin, down, let go."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._place_m = common.draw(rng, (0.03, 0.025))  # from the middle of the bin: people aim roughly
        self._drop_m = rng.uniform(0.003, 0.012)  # and let go a little above its floor
        self._gripper = 0.0

    def __call__(self, obs: Obs) -> np.ndarray:
        """The next move (6,) m, rad in the tcp frame, whose z points down, and the gripper."""
        cube, gripper = np.array(obs["cube"], float), float(obs["gripper"][0])
        goal = np.array(obs["goal"], float) - [*self._place_m, 0.0]
        cube[2] -= GRASP_M
        closing, self._gripper = gripper > self._gripper + 0.02, gripper
        held = gripper > 0.3 and not closing and np.linalg.norm(cube[:3]) < 0.02
        there = np.linalg.norm(goal[:2]) < 0.015 and np.linalg.norm(cube[:2]) < 0.03
        move = np.array([*cube[:3], 0.0, 0.0, cube[3]])
        above_m = float(obs["height"][0])
        if there and above_m < self._drop_m:
            return np.append(np.zeros(6), -1.0)
        if held:
            carry = np.array([*goal[:2], above_m, 0.0, 0.0, 0.0])
            if not there:
                carry[2] = above_m - 0.04  # well above the walls
                if above_m < 0.02:  # up before sideways
                    carry[:2] *= 0.2
            return np.append(carry, 1.0)
        if np.linalg.norm(cube[:2]) > 0.008 or abs(cube[3]) > 0.15:
            move[2] = cube[2] - 0.05  # stay above until the fingers clear its sides
            return np.append(move, -1.0)
        return np.append(move, 1.0 if abs(cube[2]) < 0.008 else -1.0)
