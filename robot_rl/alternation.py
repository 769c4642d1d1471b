"""Whose turn it is where two tasks undo each other, how a turn begins, and when a person has to come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

FORWARD, BACKWARD = ROLES = ("forward", "backward")


@dataclass
class Alternation:
    """A success hands over; after a failure the object is still where the same role wants it, so it tries again."""

    role: str = FORWARD
    failures: int = 0  # of this role in a row
    in_order: bool = False  # whether an episode can begin in the world as it is
    placements: int = 0  # times the world was put in order by somebody else than the two

    @property
    def person_resets(self) -> int:
        """Times a person had to come (in simulation: the world was placed anew) after the beginning."""
        return max(self.placements - 1, 0)

    def hand_over(self) -> None:
        """The role's task is done."""
        self.role = BACKWARD if self.role == FORWARD else FORWARD
        self.failures = 0

    def count(self, success: bool, fault: bool, ask_after: int) -> None:
        """One more episode of ``role``. ``ask_after`` failures in a row, or a fault of the arm, need a person."""
        if success:
            self.hand_over()
        else:
            self.failures += 1
        self.in_order = self.in_order and not fault and self.failures < ask_after

    def put_in_order(self, role: str) -> None:
        """Somebody put everything where the task of ``role`` begins."""
        self.role, self.failures, self.in_order = role, 0, True
        self.placements += 1


def begin_turn(
    envs: Mapping[str, Any],
    turns: Alternation,
    seeds: Mapping[str, int],
    behind: str,
    say: Callable[[str], None],
    world: str,
) -> Any:
    """Bring the arm to the start of the next episode, whose role ``turns`` then names; returns the observation.

    A role whose task is done before it begins hands over at once. Where the world has to be put in order, it is put so
    for the role that is ``behind``: else one that cannot do its task yet would keep the other from ever learning.
    """
    for _ in ROLES if turns.in_order else ():
        try:
            obs, info = envs[turns.role].reset(seed=seeds[turns.role], options={"go_home": True})
        except TimeoutError as error:
            say(f"The arm did not come home ({error}).")
            break
        if not info["success"]:
            return obs
        turns.hand_over()
    turns.put_in_order(behind)
    if turns.person_resets:
        say(f"A person is needed, after failures in a row or a fault: {turns.person_resets} times so far.")
    _ask(world, say, behind)
    return envs[behind].reset(seed=seeds[behind])[0]


def _ask(world: str, say: Callable[[str], None], role: str) -> None:
    """Wait for a person, whom a simulation needs not. Raises RuntimeError where there is none."""
    if world == "sim":
        return
    if not sys.stdin.isatty():
        raise RuntimeError(f"a person has to put the object where the {role} task begins: start again at a terminal")
    say(f"Put the object where the {role} task begins, then press Enter.")
    if not sys.stdin.readline():  # the end of the terminal is nobody's word
        raise RuntimeError("a person has to put the object back, and the terminal is gone with the person at it")
