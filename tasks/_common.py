"""What the arm tasks share: proprioception as in SERL, delta-pose actions, and a hand for scripted demonstrators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from gymnasium import spaces

from robot_rl.geometry import quat_conjugate, quat_multiply, quat_rotate, relative_pose, rotvec_to_quat
from robot_rl.types import ArmState, Bounds, Obs, Pose

TOOL_DOWN_XYZW = (1.0, 0.0, 0.0, 0.0)  # z of the tcp points down, y against the base's


def box(*bounds: float) -> spaces.Box:
    """Observations within ``+-bounds``; what is beyond is clipped, and the bound is the scale an agent sees."""
    high = np.asarray(bounds, np.float32)
    return spaces.Box(-high, high, dtype=np.float32)


def action_space(gripper: bool) -> spaces.Box:
    """Six for the pose, and one for the gripper where the task uses it."""
    size = 7 if gripper else 6
    return spaces.Box(-1.0, 1.0, (size,), np.float32)


def contact_bounds(lower_m: tuple[float, float, float], upper_m: tuple[float, float, float]) -> Bounds:
    """Bounds of a task that touches on purpose, tool down: stiff springs may pull harder, and it trips earlier."""
    return Bounds(lower_m, upper_m, TOOL_DOWN_XYZW, (0.1, 0.1, 0.1), force_n=60.0, trip_force_n=120.0)


def proprioception_space(gripper: bool) -> dict[str, spaces.Space]:
    """Spaces of ``proprioception``; units m, rad, m/s, rad/s, N, Nm."""
    out: dict[str, spaces.Space] = {
        "tcp_pose": box(*[0.3] * 3, *[0.6] * 3),
        "tcp_twist": box(*[0.3] * 3, *[1.0] * 3),
        "tcp_wrench": box(*[40.0] * 3, *[4.0] * 3),
    }
    if gripper:
        out["gripper"] = spaces.Box(0.0, 1.0, (1,), np.float32)
    return out


def proprioception(state: ArmState, origin: ArmState, gripper: bool) -> Obs:
    """tcp pose relative to the reset pose; twist and wrench in the tcp frame; gripper 0 open .. 1 closed."""
    inverse = quat_conjugate(state.tcp_quat_xyzw)
    out = {
        "tcp_pose": relative_pose(state.tcp_pos_m, state.tcp_quat_xyzw, origin.tcp_pos_m, origin.tcp_quat_xyzw),
        "tcp_twist": _rotate_both(inverse, state.tcp_twist),
        "tcp_wrench": _rotate_both(inverse, state.tcp_wrench),
    }
    if gripper:
        out["gripper"] = np.array([state.gripper])
    return out


def contact_space(reach_m: tuple[float, float, float]) -> dict[str, spaces.Space]:
    """Spaces of ``contact``; ``reach_m`` is how far the tcp gets from its reset position, per base axis."""
    return {
        "tcp_pos": box(*reach_m),
        "tcp_wrench": box(*[40.0] * 3, *[4.0] * 3),
        "energy": spaces.Box(np.array([-1.0, 0.0], np.float32), np.ones(2, np.float32)),
    }


def contact(state: ArmState, readings: Mapping[str, np.ndarray], origin: ArmState) -> Obs:
    """What a hand feels that sees nothing: where it has got to since the reset (m) and the wrench (N, Nm), both along
    the base axes, and the passivity filter's free energy (share of the budget) and last reference scale."""
    return {
        "tcp_pos": state.tcp_pos_m - origin.tcp_pos_m,
        "tcp_wrench": state.tcp_wrench,
        "energy": readings["energy"],
    }


def stiffness(action: np.ndarray, softest_npm: float, stiffest_npm: float) -> np.ndarray:
    """Stiffness in N/m of actions in [-1, 1]: equal steps of the action are equal ratios, its ends the two given."""
    return softest_npm * (stiffest_npm / softest_npm) ** (0.5 * (action + 1.0))


def check_stiffness(softest_npm: float, stiffest_npm: float) -> None:
    """Raises ValueError where the ends are the wrong way round; equal ends are a fixed stiffness."""
    if softest_npm > stiffest_npm:
        raise ValueError(f"softest_npm = {softest_npm}: give at most stiffest_npm, {stiffest_npm}")


def _rotate_both(quat_xyzw: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """A twist or wrench (6,) in another orientation, about the same point: both halves turn, nothing mixes."""
    return np.concatenate([quat_rotate(quat_xyzw, vector[:3]), quat_rotate(quat_xyzw, vector[3:])])


def moved(state: ArmState, action: np.ndarray, step_m: float, step_rad: float) -> tuple[np.ndarray, np.ndarray]:
    """Target position and orientation: the MEASURED pose plus ``action[:6]`` in the tcp frame, in steps."""
    pos = state.tcp_pos_m + step_m * quat_rotate(state.tcp_quat_xyzw, action[:3])
    return pos, quat_multiply(state.tcp_quat_xyzw, rotvec_to_quat(step_rad * action[3:6]))


def steered(twist: np.ndarray, state: ArmState, gripper: float | None = None) -> np.ndarray:
    """``Task.steer`` for the actions of ``moved``: the twist in the tcp frame, and the gripper's wish where there is
    one. A twist is never longer for it: where a component would exceed 1, its linear or angular half is shortened."""
    turned = _rotate_both(quat_conjugate(state.tcp_quat_xyzw), twist)
    for half in (slice(0, 3), slice(3, 6)):
        turned[half] /= max(1.0, float(np.abs(turned[half]).max()))
    return turned if gripper is None else np.append(turned, gripper)


def gripper(action: float, state: ArmState) -> float:
    """Close above 0.5, open below -0.5 (SERL's thresholds), else go on with what the fingers are at: exploration noise
    around zero must not drop what is held. A held object leaves the reading above 0.3 on any hand up to 1.4 times as
    wide as itself."""
    if abs(action) > 0.5:
        return 1.0 if action > 0.0 else 0.0
    return 1.0 if state.gripper > 0.3 else 0.0


def carry_terms(away_m: np.ndarray, achieved: np.ndarray, desired: np.ndarray, lying_m: float) -> dict[str, float]:
    """Terms of a shaped reward for bringing an object somewhere: near it, lifted, near its goal. ``away_m`` (3,) from
    the tcp; ``achieved`` and ``desired`` begin with positions (3,) m; ``lying_m`` is its height on the table."""
    carry = np.linalg.norm(achieved[:3] - desired[:3])
    return {
        "reach": 0.02 * float(np.exp(-np.linalg.norm(away_m) / 0.1)),
        "lift": 0.04 * float(min(max(achieved[2] - lying_m, 0.0) / 0.05, 1.0)),
        "carry": 0.04 * float(np.exp(-carry / 0.1)),
    }


def seen_from_tcp(state: ArmState, pose: Pose) -> np.ndarray:
    """A pose (6,) m, rad in the tcp frame: where to go from here, all zeros on arrival."""
    return relative_pose(pose.pos_m, pose.quat_xyzw, state.tcp_pos_m, state.tcp_quat_xyzw)


def move_steps(step_m: float, step_rad: float) -> list[float]:
    """The move (6,) of one policy step at action 1, for ``Hand``."""
    return [step_m] * 3 + [step_rad] * 3


def draw(rng: np.random.Generator, half_width: tuple[float, ...]) -> np.ndarray:
    """A uniform draw within ``+-half_width``."""
    return rng.uniform(-1.0, 1.0, len(half_width)) * np.asarray(half_width)


def tool_down(turn_rad: np.ndarray) -> np.ndarray:
    """Quaternion (4,) xyzw of a tool pointing down, turned by a rotation vector (3,) about the base axes."""
    return quat_multiply(rotvec_to_quat(turn_rad), np.array(TOOL_DOWN_XYZW))


class Hand:
    """How a person's hand follows a script: at its own pace, with drifting aim and tremor, sometimes pausing.

    ``plan(obs)`` gives the wanted move (n,) m, rad, and after it whatever else the action holds, in its own units: a
    gripper, a stiffness. ``steps`` (n,) is the move of one policy step at action 1. The hand turns the plan into an
    action of the same task.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        plan: Callable[[Obs], np.ndarray],
        steps: Sequence[float],
        noise: float,
    ) -> None:
        self._rng, self._plan = rng, plan
        self._scale = 1.0 / np.asarray(steps)
        self._noise = noise
        self._pace = rng.uniform(0.5, 0.9)
        self._drift = np.zeros(len(self._scale))

    def __call__(self, obs: Obs) -> np.ndarray:
        wanted, n = self._plan(obs), len(self._scale)
        action = np.concatenate([wanted[:n] * self._scale, wanted[n:]])
        reach = np.abs(action[:n]).max()
        if reach > self._pace:  # keep the direction, limit the pace
            action[:n] *= self._pace / reach
        self._drift += -0.2 * self._drift + 0.4 * self._noise * self._rng.standard_normal(n)
        action[:n] += self._drift + 0.5 * self._noise * self._rng.standard_normal(n)
        if self._rng.random() < 0.02:
            action[:n] *= 0.1  # a moment's hesitation
        return np.clip(action, -1.0, 1.0).astype(np.float32)
