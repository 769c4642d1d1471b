"""Insert a square peg, held in the gripper, into a square hole whose pose is drawn anew each episode.

Contact-rich: with the clearance of the default, 0.5 mm a side, a straight move jams on the rim unless the peg is
aligned in x, y and yaw, so the policy has to use what it feels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from robot_rl.config import check, choice, number
from robot_rl.geometry import quat_multiply, relative_pose, rotvec_to_quat
from robot_rl.types import ArmCommand, ArmState, Bounds, Demonstrator, Geom, Obs, Pose, Prop, Scene, Start
from tasks import _common as common

PEG_HALF_M = 0.008  # half the side of the square
GRIPPER = 0.8  # closed on the peg throughout
PEG_BELOW_TCP_M = 0.04  # from the tcp to the tip
BLOCK_HALF_M = 0.035
FLOOR_M = 0.005  # thickness under the hole
BLOCK_M = np.array([0.5, 0.0, 0.0])  # nominal place of the block on the table


@dataclass(frozen=True)
class Config:
    max_steps: int = number(100, 1, 10_000, "policy steps")
    control_hz: float = number(10.0, 1.0, 100.0, "Hz, policy")
    step_m: float = number(0.01, 1e-4, 0.1, "m per policy step at action 1")
    step_rad: float = number(0.05, 1e-3, 0.5, "rad per policy step at action 1")
    clearance_m: float = number(0.0005, 0.0001, 0.005, "m, per side")
    depth_m: float = number(0.025, 0.005, 0.04, "m, of the hole")
    hole_spread_m: float = number(0.02, 0.0, 0.05, "+- m of the hole in x and y")
    hole_spread_rad: float = number(0.1745, 0.0, 0.5, "+- rad of the hole about the vertical")
    start_spread_m: float = number(0.02, 0.0, 0.05, "+- m of the arm's start, per axis")
    start_spread_rad: float = number(0.1, 0.0, 0.3, "+- rad of the arm's start, per axis")
    friction: float = number(0.3, 0.0, 2.0, "Coulomb, peg and hole")
    seated_m: float = number(0.002, 1e-4, 0.01, "m from the bottom that counts as seated")
    reward_kind: str = choice("sparse", ("sparse", "shaped"))

    def __post_init__(self) -> None:
        check(self)
        if not self.seated_m + self.clearance_m < self.depth_m / 2:
            raise ValueError(f"seated_m = {self.seated_m}: give less than half of depth_m, {self.depth_m}")


def make(config: Config) -> PegInsert:
    return PegInsert(config)


class PegInsert:
    """Success: the peg's tip within ``seated_m + clearance_m`` of the middle of the hole's bottom, in the twin."""

    goal_size = 6
    goal_keys = ("goal", "goal_near")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.control_hz, self.max_steps = config.control_hz, config.max_steps
        self.scene = Scene((self._peg(), self._block()), locked_gripper=GRIPPER)
        top = FLOOR_M + config.depth_m
        self.bounds = Bounds(
            box_lower_m=(BLOCK_M[0] - 0.1, BLOCK_M[1] - 0.1, PEG_BELOW_TCP_M),
            box_upper_m=(BLOCK_M[0] + 0.1, BLOCK_M[1] + 0.1, top + PEG_BELOW_TCP_M + 0.12),
            box_quat_xyzw=common.TOOL_DOWN_XYZW,
            box_rot_rad=(0.3, 0.3, 0.5),
            speed_mps=0.15,
            force_n=20.0,
            torque_nm=4.0,
        )
        self.action_space = common.action_space(gripper=False)
        self.observation_space = spaces.Dict(
            common.proprioception_space(gripper=False)
            | {"goal": common.box(0.1, 0.1, 0.15, 0.5, 0.5, 0.5), "goal_near": common.box(*[0.006] * 3, *[0.1] * 3)}
        )

    def _peg(self) -> Prop:
        half = PEG_BELOW_TCP_M / 2 + 0.01
        body = Geom(
            "box",
            (PEG_HALF_M, PEG_HALF_M, half),
            (0, 0, PEG_BELOW_TCP_M - half),
            rgba=(0.85, 0.45, 0.15, 1.0),
            friction=self.config.friction,
        )
        return Prop("peg", "tool", (body,), mass_kg=0.05)

    def _block(self) -> Prop:
        """Four walls around the hole and a floor; the frame is on the table under the hole's centre."""
        hole = PEG_HALF_M + self.config.clearance_m
        wall = (BLOCK_HALF_M - hole) / 2
        height = (FLOOR_M + self.config.depth_m) / 2
        colour, friction = (0.25, 0.42, 0.62, 1.0), self.config.friction
        walls = [
            Geom("box", (wall, BLOCK_HALF_M, height), (side * (hole + wall), 0, height), rgba=colour, friction=friction)
            for side in (-1, 1)
        ]
        walls += [
            Geom("box", (hole, wall, height), (0, side * (hole + wall), height), rgba=colour, friction=friction)
            for side in (-1, 1)
        ]
        floor = Geom("box", (hole, hole, FLOOR_M / 2), (0, 0, FLOOR_M / 2), rgba=(0.15, 0.25, 0.4, 1.0))
        return Prop("hole", "fixture", (*walls, floor))

    def reset(self, rng: np.random.Generator) -> Start:
        cfg = self.config
        yaw = rng.uniform(-cfg.hole_spread_rad, cfg.hole_spread_rad)
        hole = Pose(
            BLOCK_M + common.draw(rng, (cfg.hole_spread_m, cfg.hole_spread_m, 0.0)),
            rotvec_to_quat(np.array([0.0, 0.0, yaw])),
        )
        above = np.array([0.0, 0.0, FLOOR_M + cfg.depth_m + PEG_BELOW_TCP_M + 0.05])
        start = Pose(
            BLOCK_M + above + common.draw(rng, (cfg.start_spread_m,) * 3),
            common.tool_down(common.draw(rng, (cfg.start_spread_rad,) * 3)),
        )
        return Start(start, props={"hole": hole})

    def observe(self, state: ArmState, readings: Mapping[str, np.ndarray], origin: ArmState) -> Obs:
        seat = _seat(readings["prop/hole"])
        peg = readings["prop/peg"]
        goal = common.seen_from_tcp(state, seat)
        return (
            common.proprioception(state, origin, gripper=False)
            | {
                "goal": goal,
                "goal_near": goal,  # the same, under a magnifying glass: its bounds are what a tight fit is about
                "sim/achieved": relative_pose(peg[:3], peg[3:], origin.tcp_pos_m, origin.tcp_quat_xyzw),
                "sim/desired": relative_pose(seat.pos_m, seat.quat_xyzw, origin.tcp_pos_m, origin.tcp_quat_xyzw),
            }
        )

    def command(self, action: np.ndarray, state: ArmState) -> ArmCommand:
        pos_m, quat_xyzw = common.moved(state, action, self.config.step_m, self.config.step_rad)
        return ArmCommand(pos_m, quat_xyzw, GRIPPER, valid_s=2.0 / self.control_hz)

    def steer(self, twist: np.ndarray, gripper: float, state: ArmState) -> np.ndarray:
        return common.steered(twist, state)

    def reward(self, obs: Obs, action: np.ndarray, next_obs: Obs) -> dict[str, float]:
        terms = {"success": float(self.success(next_obs))}
        if self.config.reward_kind == "shaped":
            terms["nearness"] = 0.1 * float(np.exp(-np.linalg.norm(next_obs["goal"][:3]) / 0.02))
        return terms

    def success(self, obs: Obs) -> bool:
        return bool(self.reached(*self.goal(obs)))

    def goal(self, obs: Obs) -> tuple[np.ndarray, np.ndarray]:
        """Achieved and desired peg pose (6,) m, rad relative to the reset pose: where it is, where it is seated."""
        return obs["sim/achieved"], obs["sim/desired"]

    def reached(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        """Whether pegs (..., 6) are seated. So deep and so central a tip cannot be outside the hole."""
        gap = np.abs(achieved[..., :3] - desired[..., :3])
        return np.linalg.norm(gap, axis=-1) < self.config.seated_m + self.config.clearance_m

    def demonstrator(self, rng: np.random.Generator) -> Demonstrator:
        return common.Hand(
            rng, _Insertion(self.config.depth_m), common.move_steps(self.config.step_m, self.config.step_rad), noise=0.1
        )


def _seat(hole: np.ndarray) -> Pose:
    """The tcp pose in which the peg is seated in a hole (7,) m, xyzw."""
    pos_m = hole[:3] + np.array([0.0, 0.0, FLOOR_M + PEG_BELOW_TCP_M])
    return Pose(pos_m, quat_multiply(hole[3:], np.array(common.TOOL_DOWN_XYZW)))


class _Insertion:
    """Align above the rim, lower, and circle with growing radius while the peg is stuck on it."""

    def __init__(self, depth_m: float) -> None:
        self._depth_m = depth_m
        self._stuck = 0
        self._last = np.inf

    def __call__(self, obs: Obs) -> np.ndarray:
        move = np.array(obs["goal"], float)
        off_axis = np.hypot(move[0], move[1])
        above_rim = move[2] - self._depth_m
        aligned = off_axis < 0.002 and np.linalg.norm(move[3:]) < 0.04
        if above_rim > 0.001 and not aligned:
            move[2] = above_rim - 0.006  # wait above the rim until aligned
            return move
        self._stuck = self._stuck + 1 if self._last - move[2] < 0.0005 else 0
        self._last = move[2]
        if above_rim < 0.001:  # in contact: press lightly, correct firmly against friction
            move[2] = min(move[2] + 0.002, 0.004)
            move[:2] *= 2.0
        if self._stuck > 2:
            turn = 1.1 * self._stuck
            move[:2] += min(0.0003 * self._stuck, 0.002) * np.array([np.cos(turn), np.sin(turn)])
            move[2] *= 0.5 if self._stuck % 4 else -1.0  # now and then take the weight off
        return move
