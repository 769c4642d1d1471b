"""What a lab allows any task: bounds that can only tighten a task's own. ``rig.toml`` has them as [bounds], --set as
``lab.speed_mps=0.1``."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from robot_rl.config import check, number
from robot_rl.types import Bounds

INF = math.inf


@dataclass(frozen=True)
class Config:
    """``inf`` is no bound, which all of them are unless given."""

    box_lower_m: tuple[float, float, float] = (-INF, -INF, -INF)
    box_upper_m: tuple[float, float, float] = (INF, INF, INF)
    box_rot_rad: tuple[float, float, float] = number(
        (INF, INF, INF), 0.0, INF, "rad from the centre of the task's rotation box, per axis"
    )
    speed_mps: float = number(INF, 0.0, INF)
    speed_radps: float = number(INF, 0.0, INF)
    force_n: float = number(INF, 0.0, INF, "spring force a target may ask for")
    torque_nm: float = number(INF, 0.0, INF, "spring moment a target may ask for")
    trip_force_n: float = number(INF, 0.0, INF, "measured force above which the arm trips into a hold")
    energy_j: float = number(INF, 1e-6, INF, "that an episode may spend")

    def __post_init__(self) -> None:
        check(self)
        if not all(low <= high for low, high in zip(self.box_lower_m, self.box_upper_m, strict=True)):
            raise ValueError(f"box_lower_m = {self.box_lower_m} is above box_upper_m = {self.box_upper_m}: swap them")


def wider(first: Config, second: Config) -> str:
    """The first field in which ``second`` allows more than ``first``; empty where it does not."""
    for field in dataclasses.fields(Config):
        before, after = (np.asarray(getattr(lab, field.name)) for lab in (first, second))
        if np.any(after < before if field.name == "box_lower_m" else after > before):
            return field.name
    return ""


def tighten(bounds: Bounds, lab: Config) -> Bounds:
    """The bounds that both the task and the lab allow; raises ValueError where their boxes do not meet."""
    lower = tuple(np.maximum(bounds.box_lower_m, lab.box_lower_m).tolist())
    upper = tuple(np.minimum(bounds.box_upper_m, lab.box_upper_m).tolist())
    for i, axis in enumerate("xyz"):
        if lower[i] > upper[i]:
            raise ValueError(
                f"the lab's box ([bounds] of the rig) and the task's do not meet along {axis}: the lab allows "
                f"{lab.box_lower_m[i]:g} to {lab.box_upper_m[i]:g} m, the task {bounds.box_lower_m[i]:g} to "
                f"{bounds.box_upper_m[i]:g} m; widen the lab's box, or move the task into it"
            )
    scalars = ("speed_mps", "speed_radps", "force_n", "torque_nm", "trip_force_n", "energy_j")
    least = {name: min(getattr(bounds, name), getattr(lab, name)) for name in scalars}
    rot = tuple(np.minimum(bounds.box_rot_rad, lab.box_rot_rad).tolist())
    return dataclasses.replace(bounds, box_lower_m=lower, box_upper_m=upper, box_rot_rad=rot, **least)
