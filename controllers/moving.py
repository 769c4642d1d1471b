"""The beginning of an episode on a real arm: it moves there by itself, and objects are where somebody says they are."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from robot_rl.geometry import quat_multiply, quat_normalize, rotation_between, rotvec_to_quat
from robot_rl.types import Arm, ArmCommand, ArmState, Scene, Start

Array = NDArray[np.float64]

MOVE_HZ = 50.0
LEAD_M, LEAD_RAD = 0.02, 0.1  # how far ahead of the arm its target is
AT_M, AT_RAD = 0.005, 0.03  # so near the pose is reached
REST_RADPS = 0.04  # and no joint faster: energy is granted at rest
RENEW_S = 0.5  # between two grants


class GuardedLike(Arm, Protocol):
    @property
    def fault(self) -> str: ...


def move_to(arm: GuardedLike, start: Start, within_s: float, renew: Callable[[], object]) -> ArmState:
    """Lead ``arm`` to ``start.tcp`` in a straight line; the guard keeps its speed. ``renew`` grants energy anew, or
    raises ValueError where it may not: it is called where the arm stands, since a long way takes more than one budget.

    Raises TimeoutError, with what is left and why, where the arm does not arrive.
    """
    pos_m, quat_xyzw = start.tcp.pos_m, start.tcp.quat_xyzw
    end_s = time.monotonic() + within_s
    state, renewed_s = arm.read(), -math.inf
    while True:
        gap, turn = pos_m - state.tcp_pos_m, rotation_between(quat_xyzw, state.tcp_quat_xyzw)
        far_m, far_rad = float(np.linalg.norm(gap)), float(np.linalg.norm(turn))
        resting = float(np.abs(state.dq_radps).max()) < REST_RADPS
        if far_m < AT_M and far_rad < AT_RAD and resting:
            return state
        if resting and not arm.fault and state.t_s > renewed_s + RENEW_S:
            renewed_s = state.t_s
            with contextlib.suppress(ValueError):
                renew()
        if arm.fault or time.monotonic() > end_s:
            why = f"it is in a fault ({arm.fault})" if arm.fault else "is something in its way, or in its bounds?"
            raise TimeoutError(
                f"the arm did not come to the episode's start: {far_m:.3f} m and {far_rad:.2f} rad are left; {why}"
            )
        share = min(1.0, LEAD_M / max(far_m, 1e-9), LEAD_RAD / max(far_rad, 1e-9))
        near = quat_normalize(quat_multiply(rotvec_to_quat(share * turn), state.tcp_quat_xyzw))
        arm.command(ArmCommand(state.tcp_pos_m + share * gap, near, start.gripper))
        state = arm.wait(1.0 / MOVE_HZ)


def prop_readings(
    scene: Scene, measured: Mapping[str, Array], start: Start | None, state: ArmState
) -> dict[str, np.ndarray]:
    """``prop/<part>`` (7,) m, xyzw of every prop: as measured; else a tool is at the tcp, and a fixture where the
    episode wants it. Raises ValueError for one that moves and that nobody measures."""
    out: dict[str, np.ndarray] = {}
    for prop, part in ((each, part) for each in scene.props for part in each.parts):
        if part in measured:
            out[f"prop/{part}"] = measured[part]
        elif prop.kind == "tool":
            out[f"prop/{part}"] = np.concatenate([state.tcp_pos_m, state.tcp_quat_xyzw])
        elif prop.kind == "fixture" and start is not None:
            pose = start.props[part]
            out[f"prop/{part}"] = np.concatenate([pose.pos_m, pose.quat_xyzw])
        else:
            raise ValueError(f"nobody measures '{part}': publish its pose on the topic props (MultiDOFJointState)")
    return out
