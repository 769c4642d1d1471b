"""Press a flexible cable, held at one end, between the two prongs of a clip whose pose is drawn anew each episode.

After the cable routing of SERL (arXiv 2401.16013) and the clipping of HIL-SERL (arXiv 2410.21845), with our own clip.
The hand does not touch what it places: between the fingers and the clip lie centimetres of a cable that sags, gives way
on the prongs and springs back; and how it lies in the fingers differs each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from robot_rl.config import check, choice, number
from robot_rl.geometry import quat_conjugate, quat_multiply, quat_rotate, rotvec_to_quat
from robot_rl.types import ArmCommand, ArmState, Bounds, Chain, Demonstrator, Geom, Obs, Pose, Prop, Scene, Start
from tasks import _common as common

RADIUS_M = 0.003
LINKS, LINK_M = 8, 0.015
SHOWN = (2, 4, 6, 8)  # points of the cable that are observed, in links from the fingers
MASS_KG = 0.0065  # 54 g/m
FLOOR_M = 0.02  # of the slot above the table: the hand stays clear of that
PRONG_M = 0.016  # height of the prongs above it
PRONG_HALF_M = (0.005, 0.003)  # along and across the slot
GUIDE_HALF_M = 0.005  # of the slanted tops
REACH_M = 0.07  # from the tcp to the clip, where the hand wants it
CLIP_M = np.array([0.5 + REACH_M, 0.0, 0.0])  # nominal place of the clip on the table
START_M = np.array([0.5, 0.0, 0.11])  # nominal place of the tcp
GRIPPER = 0.9  # closed on the cable throughout


@dataclass(frozen=True)
class Config:
    max_steps: int = number(100, 1, 10_000, "policy steps")
    control_hz: float = number(10.0, 1.0, 100.0, "Hz, policy")
    step_m: float = number(0.0125, 1e-4, 0.1, "m per policy step at action 1")
    step_rad: float = number(0.05, 1e-3, 0.5, "rad per policy step at action 1")
    clearance_m: float = number(0.0005, 0.0001, 0.003, "m between cable and prong, per side")
    clip_spread_m: float = number(0.03, 0.0, 0.04, "+- m of the clip in x and y")
    clip_spread_rad: float = number(0.35, 0.0, 0.5, "+- rad of the clip about the vertical")
    start_spread_m: float = number(0.02, 0.0, 0.03, "+- m of the arm's start, per axis")
    start_spread_rad: float = number(0.1, 0.0, 0.2, "+- rad of the arm's start, per axis")
    grasp_spread_m: float = number(0.005, 0.0, 0.01, "+- m of the cable along itself in the fingers")
    grasp_spread_rad: float = number(0.08, 0.0, 0.15, "+- rad of the cable in the fingers, up and sideways")
    joint_nmprad: float = number(0.05, 0.01, 0.5, "Nm/rad between links: how stiff the cable is")
    friction: float = number(0.4, 0.0, 2.0, "Coulomb, cable and prongs")
    seated_m: float = number(0.003, 5e-4, 0.008, "m of the cable's axis from its place in the slot")
    reward_kind: str = choice("sparse", ("sparse", "shaped"))

    def __post_init__(self) -> None:
        check(self)


def make(config: Config) -> CableRoute:
    return CableRoute(config)


class CableRoute:
    """Success: the cable's axis passes within ``seated_m`` of where it lies on the slot's floor, in its middle.

    So low between the prongs it cannot lie on them or beside them, and a link or more of it lies behind the clip.
    """

    goal_size = 3
    goal_keys = ("goal", "gap", "gap_near")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.control_hz, self.max_steps = config.control_hz, config.max_steps
        self.scene = Scene((self._cable(), self._clip()), locked_gripper=GRIPPER)
        self.bounds = Bounds(
            box_lower_m=(START_M[0] - 0.1, -0.1, 0.012),
            box_upper_m=(START_M[0] + 0.1, 0.1, START_M[2] + 0.06),
            box_quat_xyzw=common.TOOL_DOWN_XYZW,
            box_rot_rad=(0.3, 0.3, 0.8),
            speed_mps=0.2,
            force_n=20.0,
            torque_nm=4.0,
        )
        self.action_space = common.action_space(gripper=False)
        self.observation_space = spaces.Dict(
            common.proprioception_space(gripper=False)
            | {
                "goal": common.box(0.15, 0.1, 0.12, 0.5, 0.5, 0.5),
                "gap": common.box(*[0.12] * 3),
                "gap_near": common.box(*[0.01] * 3),
                "cable": common.box(*[0.12, 0.03, 0.03] * len(SHOWN)),
            }
        )

    def _cable(self) -> Prop:
        along_x = (0.0, np.sqrt(0.5), 0.0, np.sqrt(0.5))
        link = Geom(
            "capsule", (RADIUS_M, LINK_M / 2), (LINK_M / 2, 0.0, 0.0), along_x, (0.85, 0.45, 0.15, 1.0),
            self.config.friction,
        )  # fmt: skip
        chain = Chain(LINKS, LINK_M, self.config.joint_nmprad)
        return Prop("cable", "cable", (link,), MASS_KG, chain)

    def _clip(self) -> Prop:
        """A block, two prongs on it and their slanted tops; the frame is on the table under the middle of the slot."""
        blue, friction = (0.25, 0.42, 0.62, 1.0), self.config.friction
        slot = RADIUS_M + self.config.clearance_m
        along, across = PRONG_HALF_M
        y, top = slot + across, FLOOR_M + PRONG_M
        slant = GUIDE_HALF_M / np.sqrt(2.0)  # the tops begin at the prongs' inner edges and lean outwards by 45 degrees
        thin = 0.001
        inset = thin / np.sqrt(2.0)
        geoms = [Geom("box", (along, y + across, FLOOR_M / 2), (0, 0, FLOOR_M / 2), rgba=blue, friction=friction)]
        for side in (-1, 1):
            middle = (0.0, side * y, FLOOR_M + PRONG_M / 2)
            geoms.append(Geom("box", (along, across, PRONG_M / 2), middle, rgba=blue, friction=friction))
            turn = rotvec_to_quat(np.array([-side * np.pi / 4, 0.0, 0.0]))
            middle = (0.0, side * (slot + slant + inset), top + slant - inset)
            geoms.append(Geom("box", (along, thin, GUIDE_HALF_M), middle, tuple(turn.tolist()), blue, friction))
        return Prop("clip", "fixture", tuple(geoms))

    def reset(self, rng: np.random.Generator) -> Start:
        cfg = self.config
        clip = Pose(
            CLIP_M + common.draw(rng, (cfg.clip_spread_m, cfg.clip_spread_m, 0.0)),
            rotvec_to_quat(np.array([0.0, 0.0, rng.uniform(-cfg.clip_spread_rad, cfg.clip_spread_rad)])),
        )
        tcp = Pose(
            START_M + common.draw(rng, (cfg.start_spread_m,) * 3),
            common.tool_down(common.draw(rng, (cfg.start_spread_rad,) * 3)),
        )
        slide_m = rng.uniform(-cfg.grasp_spread_m, cfg.grasp_spread_m)
        turn = rotvec_to_quat(np.append(0.0, common.draw(rng, (cfg.grasp_spread_rad,) * 2)))
        cable_quat = quat_multiply(tcp.quat_xyzw, turn)
        cable = Pose(tcp.pos_m + quat_rotate(cable_quat, np.array([slide_m, 0.0, 0.0])), cable_quat)
        return Start(tcp, props={"cable": cable, "clip": clip})

    def observe(self, state: ArmState, readings: Mapping[str, np.ndarray], origin: ArmState) -> Obs:
        clip, inverse = readings["prop/clip"], quat_conjugate(state.tcp_quat_xyzw)
        seat_m = clip[:3] + [0.0, 0.0, FLOOR_M + RADIUS_M]
        line_m = axis(readings)
        near_m = nearest(line_m[:-1], seat_m)
        gap = quat_rotate(inverse, seat_m - near_m)
        seat = Pose(seat_m, quat_multiply(clip[3:], np.array(common.TOOL_DOWN_XYZW)))
        return common.proprioception(state, origin, gripper=False) | {
            "goal": common.seen_from_tcp(state, seat),
            "gap": gap,
            "gap_near": gap,
            "cable": np.concatenate([quat_rotate(inverse, line_m[i] - state.tcp_pos_m) for i in SHOWN]),
            "sim/achieved": near_m - origin.tcp_pos_m,
            "sim/desired": seat_m - origin.tcp_pos_m,
        }

    def command(self, action: np.ndarray, state: ArmState) -> ArmCommand:
        pos_m, quat_xyzw = common.moved(state, action, self.config.step_m, self.config.step_rad)
        return ArmCommand(pos_m, quat_xyzw, GRIPPER, valid_s=2.0 / self.control_hz)

    def steer(self, twist: np.ndarray, gripper: float, state: ArmState) -> np.ndarray:
        return common.steered(twist, state)

    def reward(self, obs: Obs, action: np.ndarray, next_obs: Obs) -> dict[str, float]:
        terms = {"success": float(self.success(next_obs))}
        if self.config.reward_kind == "shaped":
            terms["nearness"] = 0.1 * float(np.exp(-np.linalg.norm(next_obs["gap"]) / 0.02))
        return terms

    def success(self, obs: Obs) -> bool:
        return bool(self.reached(*self.goal(obs)))

    def goal(self, obs: Obs) -> tuple[np.ndarray, np.ndarray]:
        """The point (3,) m of the cable's axis that is nearest to its place in the slot, and that place; base frame,
        relative to the reset position of the tcp."""
        return obs["sim/achieved"], obs["sim/desired"]

    def reached(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        """Whether points (..., 3) are in their slots."""
        return np.linalg.norm(achieved - desired, axis=-1) < self.config.seated_m

    def demonstrator(self, rng: np.random.Generator) -> Demonstrator:
        steps = common.move_steps(self.config.step_m, self.config.step_rad)
        return common.Hand(rng, _route, steps, noise=0.1)


def axis(readings: Mapping[str, np.ndarray]) -> np.ndarray:
    """The ends of the cable's links (LINKS + 1, 3) m, from the fingers on."""
    poses = [readings["prop/cable"], *(readings[f"prop/cable/{index}"] for index in range(1, LINKS))]
    end_m = poses[-1][:3] + quat_rotate(poses[-1][3:], np.array([LINK_M, 0.0, 0.0]))
    return np.array([*(pose[:3] for pose in poses), end_m])


def nearest(line_m: np.ndarray, point_m: np.ndarray) -> np.ndarray:
    """The point (3,) of a polyline (N, 3) that is nearest to ``point_m``."""
    begin, along = line_m[:-1], np.diff(line_m, axis=0)
    share = np.clip(np.sum((point_m - begin) * along, axis=1) / np.sum(along * along, axis=1), 0.0, 1.0)
    points = begin + share[:, None] * along
    return points[np.argmin(np.linalg.norm(points - point_m, axis=1))]


def _route(obs: Obs) -> np.ndarray:
    """The next move (6,) m, rad in the tcp frame, whose z points down: over the slot and along it, then in."""
    goal, gap = np.array(obs["goal"], float), np.array(obs["gap"], float)
    yaw = goal[5] - np.arctan2(obs["cable"][7] - obs["cable"][1], obs["cable"][6] - obs["cable"][0])
    move = np.array([goal[0] - REACH_M, gap[1], gap[2], goal[3], goal[4], yaw])
    aligned = abs(gap[1]) < 0.003 and abs(yaw) < 0.08 and abs(move[0]) < 0.02
    if gap[2] > PRONG_M - 0.002:  # above the prongs
        move[2] = gap[2] + 0.004 if aligned else gap[2] - PRONG_M - 0.008
    else:  # between them: press, and a little further than where it seems to rest
        move[2] = gap[2] + 0.006
        move[1] *= 0.5
    return move
