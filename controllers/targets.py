"""Which targets an arm takes, and from whom: one commander at a time, fresh, in order and near. No ROS in it.

A publisher is known by its id; the first twelve bytes are those of its process, which also sends its heartbeat. Whoever
commands keeps the arm until silent for ``float_s``; then another may have it.
"""

from __future__ import annotations

import numpy as np

from controllers.watchdog import Config
from robot_rl.geometry import rotation_between
from robot_rl.types import ArmState, Pose

PROCESS = 12  # bytes of an id that its process's publishers share


class Gate:
    """Remembers the commander and the newest stamp; ``refused`` counts, ``reason`` tells the last refusal."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.refused = 0
        self.reason = ""
        self.warning = ""  # what was wrong since the last take of it, for diagnostics
        self._commander: bytes | None = None
        self._heard_s = -np.inf
        self._stamp_ns = 0
        self._beats: dict[bytes, float] = {}

    def refuse(self, reason: str) -> str:
        """Count and keep ``reason``; returns it."""
        self.refused += 1
        self.reason = self.warning = reason
        return reason

    def beat(self, publisher: bytes, now_s: float) -> bool:
        """Note a heartbeat; whether it is the commander's."""
        process = publisher[:PROCESS]
        self._beats = {who: when for who, when in self._beats.items() if now_s - when < 60.0} | {process: now_s}
        return self._commander is not None and self._commander[:PROCESS] == process

    def beats(self, publisher: bytes) -> bool:
        """Whether the process of ``publisher`` sends heartbeats."""
        return publisher[:PROCESS] in self._beats

    def admits(self, publisher: bytes, publishers: int, now_s: float) -> str:
        """Why this publisher may not command, or an empty string. ``publisher`` is empty where the middleware does not
        tell: then there must be only one."""
        if not publisher:
            return f"target_pose has {publishers} publishers: none is heard until one is left" if publishers > 1 else ""
        if self._commander == publisher:
            self._heard_s = now_s  # also where this very target will be refused
        elif self._commander is not None:
            if now_s - self._heard_s < self.config.float_s:
                return "target_pose has a second publisher: it is refused, the first keeps the arm; stop one of them"
            self._stamp_ns = 0  # another sender, another clock
        return ""

    def judge(self, stamp_ns: int, now_ns: int, pose: Pose, state: ArmState) -> str:
        """Why this target cannot be taken, or an empty string. ``now_ns`` is the wall clock of this machine. A stamp of
        0 is none: the target is then as old as its arrival."""
        config = self.config
        if stamp_ns:
            age_s = (now_ns - stamp_ns) * 1e-9
            if stamp_ns < self._stamp_ns:
                back_s = (self._stamp_ns - stamp_ns) * 1e-9
                self._stamp_ns = stamp_ns  # a clock that was set once is believed from here on
                return f"target_pose's clock went backwards by {back_s:.3f} s: is the sender's clock being set?"
            if abs(age_s) > config.hold_s:
                return (
                    f"target_pose is stamped {abs(age_s):.3f} s {'ago' if age_s > 0 else 'ahead'} (at most "
                    f"{config.hold_s:g}): it is stale, or the clocks of two machines differ (run chrony on both)"
                )
        gap_m = float(np.linalg.norm(pose.pos_m - state.tcp_pos_m))
        gap_rad = float(np.linalg.norm(rotation_between(pose.quat_xyzw, state.tcp_quat_xyzw)))
        if gap_m > config.jump_m or gap_rad > config.jump_rad:
            return (
                f"target_pose is {gap_m:.3f} m and {gap_rad:.2f} rad from the arm (at most {config.jump_m:g} m, "
                f"{config.jump_rad:g} rad): send a path of nearer targets, or use the home service"
            )
        return ""

    def follows(self, publisher: bytes) -> bool:
        """Whether ``publisher`` is of the commander's process, or nobody commands."""
        return self._commander is None or self._commander[:PROCESS] == publisher[:PROCESS]

    def release(self) -> None:
        """Nobody commands: the next good target's publisher does."""
        self._commander, self._heard_s, self._stamp_ns = None, -np.inf, 0

    def take(self, publisher: bytes, stamp_ns: int, now_s: float) -> bool:
        """Note an accepted target; whether the commander is a new one."""
        new = publisher != self._commander
        self._commander, self._heard_s = publisher, now_s
        self._stamp_ns = max(stamp_ns, 0 if new else self._stamp_ns)
        return new
