"""Wipe a board: press on a cloth and drag it to a mark, neither losing it nor bearing down for nothing.

The cloth is a free block. It clings to the tool better than to the board, so it comes along where the tool presses hard
enough and stays behind where it does not. What has been wiped is where the cloth is: the world remembers, not the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from robot_rl.config import check, choice, number
from robot_rl.types import ArmCommand, ArmState, Demonstrator, Geom, Obs, Pose, Prop, Scene, Start
from tasks import _common as common

BOARD_HALF_M = (0.13, 0.18, 0.01)
CLOTH_HALF_M = (0.03, 0.03, 0.006)
TOOL_RADIUS_M = 0.01  # round at its tip
TOOL_BELOW_TCP_M = 0.05
CENTRE_M = np.array([0.5, 0.0, 2 * BOARD_HALF_M[2]])  # of the board's top
GRIPPER = 1.0  # closed on the tool throughout


@dataclass(frozen=True)
class Config:
    max_steps: int = number(120, 1, 10_000, "policy steps")
    control_hz: float = number(10.0, 1.0, 100.0, "Hz, policy")
    step_m: float = number(0.015, 1e-4, 0.1, "m per policy step at action 1")
    softest_npm: float = number(150.0, 10.0, 3000.0, "N/m in z at action -1")
    stiffest_npm: float = number(1500.0, 10.0, 3000.0, "N/m in z at action 1")
    side_npm: float = number(1500.0, 10.0, 3000.0, "N/m in x and y")
    turn_nmprad: float = number(80.0, 1.0, 300.0, "Nm/rad of the orientation")
    cloth_spread_m: float = number(0.02, 0.0, 0.03, "+- m of the cloth in x and y")
    goal_spread_m: float = number(0.03, 0.0, 0.04, "+- m of the mark in x and y")
    start_spread_m: float = number(0.01, 0.0, 0.015, "+- m of the tool over the cloth, per axis")
    cloth_mass_kg: float = number(0.5, 0.01, 2.0, "kg")
    cling: float = number(1.2, 0.0, 2.0, "Coulomb, tool and cloth")
    glide: float = number(0.2, 0.0, 2.0, "Coulomb, cloth and board")
    tolerance_m: float = number(0.01, 0.001, 0.05, "m of the cloth's centre from the mark's")
    reward_kind: str = choice("sparse", ("sparse", "shaped"))

    def __post_init__(self) -> None:
        check(self)
        common.check_stiffness(self.softest_npm, self.stiffest_npm)
        if not self.glide < self.cling:
            raise ValueError(
                f"glide = {self.glide}: give less than cling, {self.cling}, or no pressure moves the cloth"
            )


def make(config: Config) -> SurfaceWipe:
    return SurfaceWipe(config)


class SurfaceWipe:
    """Success: the cloth's centre within ``tolerance_m`` of the mark's."""

    goal_size = 2
    goal_keys = ("goal",)

    def __init__(self, config: Config) -> None:
        self.config = config
        self.control_hz, self.max_steps = config.control_hz, config.max_steps
        middle_m = TOOL_BELOW_TCP_M / 2
        rod = (TOOL_RADIUS_M, middle_m - TOOL_RADIUS_M)
        tool = Geom("capsule", rod, (0, 0, middle_m), rgba=(0.85, 0.45, 0.15, 1.0), friction=config.cling)
        # Of two friction numbers MuJoCo takes the larger one: that of the tool, and between cloth and board their own.
        cloth = Geom("box", CLOTH_HALF_M, rgba=(0.95, 0.75, 0.3, 1.0), friction=config.glide)
        board = Geom("box", BOARD_HALF_M, rgba=(0.85, 0.88, 0.9, 1.0), friction=config.glide)
        mark = Geom("box", (*CLOTH_HALF_M[:2], 0.0005), rgba=(0.3, 0.75, 0.35, 1.0), collide=False)
        self.scene = Scene(
            (
                Prop("tool", "tool", (tool,), mass_kg=0.05),
                Prop("board", "fixture", (board,)),
                Prop("goal", "fixture", (mark,)),
                Prop("cloth", "free", (cloth,), mass_kg=config.cloth_mass_kg),
            ),
            locked_gripper=GRIPPER,
        )
        self.bounds = common.contact_bounds(
            (CENTRE_M[0] - 0.12, CENTRE_M[1] - 0.17, CENTRE_M[2] + TOOL_BELOW_TCP_M - 0.01),
            (CENTRE_M[0] + 0.12, CENTRE_M[1] + 0.17, CENTRE_M[2] + TOOL_BELOW_TCP_M + 0.08),
        )
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.observation_space = spaces.Dict(
            common.contact_space((0.2, 0.3, 0.08))
            | {"cloth": common.box(0.1, 0.1, 0.05), "goal": common.box(0.2, 0.3, 0.08)}
        )

    def reset(self, rng: np.random.Generator) -> Start:
        cfg, level = self.config, np.array([0.0, 0.0, 0.0, 1.0])
        side = common.draw(rng, (cfg.cloth_spread_m, cfg.cloth_spread_m, 0.0))
        cloth_m = CENTRE_M + [0.0, -0.1, CLOTH_HALF_M[2]] + side
        goal_m = CENTRE_M + [0.0, 0.08, 0.0005] + common.draw(rng, (cfg.goal_spread_m, cfg.goal_spread_m, 0.0))
        over = np.array([0.0, 0.0, CLOTH_HALF_M[2] + TOOL_BELOW_TCP_M + 0.03])
        start = Pose(cloth_m + over + common.draw(rng, (cfg.start_spread_m,) * 3), common.tool_down(np.zeros(3)))
        board_m = CENTRE_M - [0.0, 0.0, BOARD_HALF_M[2]]
        poses = {"board": board_m, "goal": goal_m, "cloth": cloth_m}
        return Start(start, props={name: Pose(pos_m, level) for name, pos_m in poses.items()})

    def observe(self, state: ArmState, readings: Mapping[str, np.ndarray], origin: ArmState) -> Obs:
        """``cloth`` and ``goal`` (3,) m: from the tool's tip to their middles, along the base axes."""
        cloth, goal = readings["prop/cloth"][:3], readings["prop/goal"][:3]
        tip = state.tcp_pos_m - [0.0, 0.0, TOOL_BELOW_TCP_M]
        return common.contact(state, readings, origin) | {
            "cloth": cloth - tip,
            "goal": goal - tip,
            "sim/achieved": cloth[:2],
            "sim/desired": goal[:2],
        }

    def command(self, action: np.ndarray, state: ArmState) -> ArmCommand:
        """Target: the MEASURED position plus ``action[:3]`` in steps along the base axes; the tool points down."""
        cfg = self.config
        normal = common.stiffness(action[3], cfg.softest_npm, cfg.stiffest_npm)
        return ArmCommand(
            state.tcp_pos_m + cfg.step_m * action[:3],
            np.array(common.TOOL_DOWN_XYZW),
            GRIPPER,
            np.array([cfg.side_npm, cfg.side_npm, normal, *[cfg.turn_nmprad] * 3]),
            valid_s=2.0 / self.control_hz,
        )

    def steer(self, twist: np.ndarray, gripper: float, state: ArmState) -> np.ndarray:
        return np.append(twist[:3], 0.0)  # the stiffness half way

    def reward(self, obs: Obs, action: np.ndarray, next_obs: Obs) -> dict[str, float]:
        terms = {"success": float(self.success(next_obs))}
        if self.config.reward_kind == "shaped":
            achieved, desired = self.goal(next_obs)
            terms["nearness"] = 0.1 * float(np.exp(-np.linalg.norm(achieved - desired) / 0.1))
        return terms

    def success(self, obs: Obs) -> bool:
        return bool(self.reached(*self.goal(obs)))

    def goal(self, obs: Obs) -> tuple[np.ndarray, np.ndarray]:
        """Achieved and desired position (2,) m of the cloth in x and y, base frame."""
        return obs["sim/achieved"], obs["sim/desired"]

    def reached(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        """Whether cloths (..., 2) are on their marks."""
        return np.linalg.norm(achieved - desired, axis=-1) < self.config.tolerance_m

    def demonstrator(self, rng: np.random.Generator) -> Demonstrator:
        return common.Hand(rng, _Wipe(rng), [self.config.step_m] * 3, noise=0.1)


class _Wipe:
    """Over the cloth, down onto it, and off to the mark; up and over again where the tool has left its middle."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._firm = rng.uniform(0.3, 0.8)  # a person's stiffness: chosen once, held with a tremor

    def __call__(self, obs: Obs) -> np.ndarray:
        cloth, goal = np.array(obs["cloth"], float), np.array(obs["goal"], float)
        firm = self._firm + 0.1 * self._rng.standard_normal()
        off = float(np.hypot(*cloth[:2]))
        touching = float(obs["tcp_wrench"][2]) > 3.0
        if off > 0.02 or (not touching and off > 0.008):
            move = [*cloth[:2], cloth[2] + 0.02]  # 14 mm over it
        elif not touching:
            move = [*cloth[:2], -0.012]
        else:
            way = (goal - cloth)[:2]
            move = [*way * min(1.0, 0.008 / float(np.hypot(*way))), -0.01]  # slowly: it must not slip off
        return np.array([*move, firm])
