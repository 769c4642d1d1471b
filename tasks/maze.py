"""A blind planar maze: a peg finds its way through a slot by touch alone.

After the contact-rich maze of "Passivity-Centric Safe RL for Contact-Rich Robotic Tasks" (arXiv 2503.00287); layouts,
sizes and numbers are our own. The policy moves the peg in the plane and chooses how stiffly; height and orientation are
held. Walls may be touched, and have to be: there is no camera, and nothing observed says which layout it is.

Every layout bends left, away from the entrance, and later right again; where, and how far, differs. So "push on; where
a wall stops you, slide left in the near half and right in the far half" solves layouts never felt before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from robot_rl.config import check, choice, number
from robot_rl.geometry import quat_conjugate, quat_rotate, rotvec_to_quat
from robot_rl.types import ArmCommand, ArmState, Array, Demonstrator, Geom, Obs, Pose, Prop, Scene, Start
from tasks import _common as common

# Seen from above, away from the robot to the right. '#' wall, '.' slot, 'S' start, 'G' goal.
LAYOUTS = {
    "first": """
        ##########
        ######.###
        ##.....###
        ##.###.###
        #S.###..G#
        ##.#######
        ##########
        """,
    "second": """
        ##########
        ###...####
        ###.#.####
        ###.#...G#
        #S..######
        ###.######
        ##########
        """,
    "held_out": """
        ##########
        ######.###
        ###....###
        ###.##.###
        #S..##.###
        ######..G#
        ##########
        """,
}
TRAINING = ("first", "second")

CELL_M = 0.024
PEG_RADIUS_M = 0.006
PEG_BELOW_TCP_M = 0.05
WALL_HEIGHT_M = 0.018
TIP_M = 0.005  # height of the peg's tip above the table
CENTRE_M = np.array([0.5, 0.0, 0.0])  # of the maze on the table
PARKED = Pose(np.array([0.5, 0.0, -1.0]), np.array([0.0, 0.0, 0.0, 1.0]))  # of the layouts not in use
GRIPPER = 1.0  # closed on the peg throughout
FELT_N = 1.0  # from here on the demonstrating hand takes a force for a wall


@dataclass(frozen=True)
class Config:
    layout: str = choice("training", ("training", *LAYOUTS), "training draws one of the two per episode")
    max_steps: int = number(150, 1, 10_000, "policy steps")
    control_hz: float = number(10.0, 1.0, 100.0, "Hz, policy")
    step_m: float = number(0.025, 1e-4, 0.1, "m per policy step at action 1")
    softest_npm: float = number(150.0, 10.0, 3000.0, "N/m in x and y at action -1")
    stiffest_npm: float = number(3000.0, 10.0, 3000.0, "N/m in x and y at action 1")
    height_npm: float = number(1500.0, 10.0, 3000.0, "N/m in z")
    turn_nmprad: float = number(80.0, 1.0, 300.0, "Nm/rad of the orientation")
    maze_spread_m: float = number(0.003, 0.0, 0.006, "+- m of the maze in x and y")
    maze_spread_rad: float = number(0.02, 0.0, 0.04, "+- rad of the maze about the vertical")
    friction: float = number(0.3, 0.0, 2.0, "Coulomb, peg and walls")
    tolerance_m: float = number(0.008, 0.001, 0.012, "m of the peg from the middle of the goal's cell")
    reward_kind: str = choice("sparse", ("sparse", "shaped"))

    def __post_init__(self) -> None:
        check(self)
        common.check_stiffness(self.softest_npm, self.stiffest_npm)


class Layout(NamedTuple):
    """A parsed drawing; positions are (2,) m from its middle, x to the drawing's right and y to its top."""

    walls: tuple[tuple[int, int, int, int], ...]  # rectangles of cells: row, column, rows, columns
    shape: tuple[int, int]
    start_m: Array
    goal_m: Array
    cells_to_goal: dict[tuple[int, int], int]  # of every cell of the slot

    def centre_m(self, row: float, column: float) -> Array:
        rows, columns = self.shape
        return CELL_M * np.array([column - 0.5 * (columns - 1), 0.5 * (rows - 1) - row])

    def to_goal_m(self, pos_m: Array) -> float:
        """Way (m) through the slot from a position (2,) to the goal; one in a wall counts as in the nearest cell."""
        rows, columns = self.shape
        cell = (round(0.5 * (rows - 1) - pos_m[1] / CELL_M), round(pos_m[0] / CELL_M + 0.5 * (columns - 1)))
        if cell not in self.cells_to_goal:
            cell = min(self.cells_to_goal, key=lambda c: float(np.linalg.norm(self.centre_m(*c) - pos_m)))
        near = [other for other in (cell, *_neighbours(cell)) if other in self.cells_to_goal]
        return min(float(np.linalg.norm(self.centre_m(*c) - pos_m)) + CELL_M * self.cells_to_goal[c] for c in near)


def _neighbours(cell: tuple[int, int]) -> list[tuple[int, int]]:
    row, column = cell
    return [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]


def parse(name: str, drawing: str) -> Layout:
    """Raises ValueError, naming layout and row, for a drawing that is no maze with one way from S to G."""
    rows = drawing.split()
    for index, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(f"layout {name}, row {index} '{row}': give {len(rows[0])} columns as in row 0")
        if set(row) - set("#.SG"):
            raise ValueError(f"layout {name}, row {index} '{row}': draw with '#', '.', 'S' and 'G' only")
        closed = row.strip("#") == "" if index in (0, len(rows) - 1) else row[0] == row[-1] == "#"
        if not closed:
            raise ValueError(f"layout {name}, row {index} '{row}': close the border with '#'")
    found = {}
    for mark in "SG":
        cells = [(i, row.index(mark)) for i, row in enumerate(rows) for _ in range(row.count(mark))]
        if len(cells) != 1:
            raise ValueError(f"layout {name}: draw one '{mark}', not {len(cells)} (rows {[i for i, _ in cells]})")
        found[mark] = cells[0]
    cells_to_goal, edge = {found["G"]: 0}, [found["G"]]
    for cell in edge:  # breadth first; grows while it is walked
        for row_, column in _neighbours(cell):
            if rows[row_][column] != "#" and (row_, column) not in cells_to_goal:
                cells_to_goal[row_, column] = cells_to_goal[cell] + 1
                edge.append((row_, column))
    if found["S"] not in cells_to_goal:
        raise ValueError(f"layout {name}, row {found['S'][0]}: no way leads from 'S' to 'G'")
    shape = (len(rows), len(rows[0]))
    layout = Layout(_rectangles(rows), shape, np.zeros(2), np.zeros(2), cells_to_goal)
    return layout._replace(start_m=layout.centre_m(*found["S"]), goal_m=layout.centre_m(*found["G"]))


def _rectangles(rows: list[str]) -> tuple[tuple[int, int, int, int], ...]:
    """Cover the wall cells with few rectangles: each as wide, then as high, as it goes. Few geoms are fast geoms."""
    left = {(i, j) for i, row in enumerate(rows) for j, mark in enumerate(row) if mark == "#"}
    out = []
    while left:
        row, column = min(left)
        width = 1
        while (row, column + width) in left:
            width += 1
        height = 1
        while all((row + height, column + j) in left for j in range(width)):
            height += 1
        left -= {(row + i, column + j) for i in range(height) for j in range(width)}
        out.append((row, column, height, width))
    return tuple(out)


def make(config: Config) -> Maze:
    return Maze(config)


class Maze:
    """Success: the peg's axis within ``tolerance_m`` of the middle of the goal's cell, in the twin."""

    goal_size = 2
    goal_keys = ()  # nothing a policy is given shows the goal

    def __init__(self, config: Config) -> None:
        self.config = config
        self.control_hz, self.max_steps = config.control_hz, config.max_steps
        names = TRAINING if config.layout == "training" else (config.layout,)
        self.layouts = {name: parse(name, LAYOUTS[name]) for name in names}
        self.scene = Scene(
            (self._peg(), *(self._walls(name, layout) for name, layout in self.layouts.items())),
            locked_gripper=GRIPPER,
        )
        height_m = TIP_M + PEG_BELOW_TCP_M
        half = 0.5 * CELL_M * np.max([layout.shape for layout in self.layouts.values()], axis=0)
        self.bounds = common.contact_bounds(
            (CENTRE_M[0] - half[1], -half[0], height_m - 0.01),
            (CENTRE_M[0] + half[1], half[0], height_m + 0.01),
        )
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.observation_space = spaces.Dict(common.contact_space((0.24, 0.12, 0.01)))

    def _peg(self) -> Prop:
        half = PEG_BELOW_TCP_M / 2
        body = Geom(
            "cylinder",
            (PEG_RADIUS_M, half),
            (0, 0, half),
            rgba=(0.85, 0.45, 0.15, 1.0),
            friction=self.config.friction,
        )
        return Prop("peg", "tool", (body,), mass_kg=0.05)

    def _walls(self, name: str, layout: Layout) -> Prop:
        """The frame is on the table under the middle of the drawing."""
        geoms = []
        for row, column, rows, columns in layout.walls:
            x, y = layout.centre_m(row + 0.5 * (rows - 1), column + 0.5 * (columns - 1))
            half = (0.5 * CELL_M * columns, 0.5 * CELL_M * rows, 0.5 * WALL_HEIGHT_M)
            geoms.append(
                Geom("box", half, (x, y, half[2]), rgba=(0.25, 0.42, 0.62, 1.0), friction=self.config.friction)
            )
        for (x, y), colour in ((layout.start_m, (0.9, 0.75, 0.3, 1.0)), (layout.goal_m, (0.3, 0.75, 0.35, 1.0))):
            tile = (0.5 * CELL_M, 0.5 * CELL_M, 0.0005)
            geoms.append(Geom("box", tile, (x, y, tile[2]), rgba=colour, collide=False))
        return Prop(name, "fixture", tuple(geoms))

    def reset(self, rng: np.random.Generator) -> Start:
        cfg = self.config
        name = list(self.layouts)[rng.integers(len(self.layouts))]
        yaw = rng.uniform(-cfg.maze_spread_rad, cfg.maze_spread_rad)
        shift = common.draw(rng, (cfg.maze_spread_m, cfg.maze_spread_m, 0.0))
        maze = Pose(CENTRE_M + shift, rotvec_to_quat(np.array([0.0, 0.0, yaw])))
        start_m = CENTRE_M + [*self.layouts[name].start_m, TIP_M + PEG_BELOW_TCP_M]
        props = {other: maze if other == name else PARKED for other in self.layouts}
        return Start(Pose(start_m, common.tool_down(np.zeros(3))), props=props)

    def observe(self, state: ArmState, readings: Mapping[str, np.ndarray], origin: ArmState) -> Obs:
        name = next(name for name in self.layouts if readings[f"prop/{name}"][2] > PARKED.pos_m[2] / 2)
        maze, layout = readings[f"prop/{name}"], self.layouts[name]
        tip = readings["prop/peg"][:3] + quat_rotate(readings["prop/peg"][3:], np.array([0.0, 0.0, PEG_BELOW_TCP_M]))
        goal = maze[:3] + quat_rotate(maze[3:], np.array([*layout.goal_m, 0.0]))
        in_maze = quat_rotate(quat_conjugate(maze[3:]), tip - maze[:3])
        return common.contact(state, readings, origin) | {
            "sim/achieved": tip[:2] - origin.tcp_pos_m[:2],
            "sim/desired": goal[:2] - origin.tcp_pos_m[:2],
            "sim/to_goal": np.array([layout.to_goal_m(in_maze[:2])]),
        }

    def command(self, action: np.ndarray, state: ArmState) -> ArmCommand:
        """Target: the MEASURED position plus ``action[:2]`` in steps along the base's x and y, at a constant height."""
        cfg = self.config
        pos_m = np.append(state.tcp_pos_m[:2] + cfg.step_m * action[:2], TIP_M + PEG_BELOW_TCP_M)
        planar = common.stiffness(action[2:4], cfg.softest_npm, cfg.stiffest_npm)
        stiffness = np.array([*planar, cfg.height_npm, *[cfg.turn_nmprad] * 3])
        return ArmCommand(pos_m, np.array(common.TOOL_DOWN_XYZW), GRIPPER, stiffness, valid_s=2.0 / self.control_hz)

    def steer(self, twist: np.ndarray, gripper: float, state: ArmState) -> np.ndarray:
        return np.array([*twist[:2], 0.0, 0.0])  # the stiffness half way

    def reward(self, obs: Obs, action: np.ndarray, next_obs: Obs) -> dict[str, float]:
        terms = {"success": float(self.success(next_obs))}
        if self.config.reward_kind == "shaped":  # the difference of a potential: sums to the way gone, wherever it led
            terms["progress"] = 0.1 * float(obs["sim/to_goal"][0] - next_obs["sim/to_goal"][0]) / CELL_M
        return terms

    def success(self, obs: Obs) -> bool:
        return bool(self.reached(*self.goal(obs)))

    def goal(self, obs: Obs) -> tuple[np.ndarray, np.ndarray]:
        """Achieved and desired position (2,) m of the peg in x and y, relative to the reset position."""
        return obs["sim/achieved"], obs["sim/desired"]

    def reached(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        """Whether pegs (..., 2) are at their goals."""
        return np.linalg.norm(achieved - desired, axis=-1) < self.config.tolerance_m

    def demonstrator(self, rng: np.random.Generator) -> Demonstrator:
        return common.Hand(rng, _Touch(rng, self.config.step_m), [self.config.step_m] * 2, noise=0.15)


class _Touch:
    """Push on; where a wall stops it, slide along, to the likelier side first and back when cornered."""

    def __init__(self, rng: np.random.Generator, step_m: float) -> None:
        self._rng, self._step_m = rng, step_m
        self._firm = rng.uniform(0.3, 0.8)  # a person's stiffness: chosen once, held with a tremor
        self._side = 0.0  # along y at the wall it was last stopped by
        self._wall_m = -np.inf  # x of that wall
        self._last_m = np.zeros(3)

    def __call__(self, obs: Obs) -> np.ndarray:
        pos_m, force_n = np.array(obs["tcp_pos"], float), np.array(obs["tcp_wrench"][:3], float)
        moved_m, self._last_m = pos_m - self._last_m, pos_m
        # What a wall ahead presses with, and a wall beside: friction along the one is not the other.
        ahead_n, beside_n = -force_n[0] - 0.4 * abs(force_n[1]), -force_n[1] * self._side - 0.4 * abs(force_n[0])
        move = np.array([1.0, 0.0])
        if ahead_n > FELT_N:
            if pos_m[0] > self._wall_m + CELL_M / 2:  # a new wall
                likely = 1.0 if pos_m[0] < 3.5 * CELL_M else -1.0
                self._side = likely if self._rng.random() < 0.85 else -likely
            elif beside_n > FELT_N and abs(moved_m[1]) < 0.05 * self._step_m:  # cornered
                self._side = -self._side
            self._wall_m = pos_m[0]
            move = np.array([0.4, self._side])
        return np.concatenate([self._step_m * move, self._firm + 0.1 * self._rng.standard_normal(2)])
