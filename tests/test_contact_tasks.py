"""The tasks of contact: what a maze's drawing may be, what a policy feels, and that walls, forces and friction act."""

import numpy as np
import pytest

from robot_rl.build import make_env
from tasks import _common as common
from tasks import maze, surface_wipe, wall_push

CONTACT = {"maze": maze, "wall_push": wall_push, "surface_wipe": surface_wipe}
SMALL = """
    #####
    #S.G#
    #####
    """


def run(env, policy, steps: int):
    """The last private observation and info of an episode's first steps under a memoryless policy."""
    obs, info = env.reset(seed=0)
    for _ in range(steps):
        obs, _, terminated, truncated, info = env.step(np.asarray(policy(obs), float))
        if terminated or truncated:
            break
    return env.unwrapped.private_obs, info


# ---------------------------------------------------------------------------------------------------------------------
# Maze: layouts


def test_every_layout_parses_and_no_two_are_alike():
    layouts = {name: maze.parse(name, drawing) for name, drawing in maze.LAYOUTS.items()}
    assert set(maze.TRAINING) < set(layouts) and "held_out" not in maze.TRAINING
    assert len({layout.shape for layout in layouts.values()}) == 1, "all in one box, so all within the same bounds"
    assert len({frozenset(layout.cells_to_goal) for layout in layouts.values()}) == len(layouts)
    assert len({tuple(layout.start_m) for layout in layouts.values()}) == 1, "the start must not tell them apart"


@pytest.mark.parametrize("drawing", [*maze.LAYOUTS.values(), SMALL])
def test_rectangles_cover_every_wall_once_and_nothing_else(drawing):
    rows = drawing.split()
    counts = np.zeros((len(rows), len(rows[0])), int)
    for row, column, height, width in maze.parse("it", drawing).walls:
        counts[row : row + height, column : column + width] += 1
    np.testing.assert_array_equal(counts, [[int(mark == "#") for mark in row] for row in rows])


def test_the_way_to_the_goal_is_measured_through_the_slot():
    layout = maze.parse("small", SMALL)
    np.testing.assert_allclose(layout.start_m, [-maze.CELL_M, 0.0])
    np.testing.assert_allclose(layout.goal_m, [maze.CELL_M, 0.0])
    for x_m in np.linspace(-maze.CELL_M, maze.CELL_M, 21):
        assert layout.to_goal_m(np.array([x_m, 0.0])) == pytest.approx(maze.CELL_M - x_m)
    first = maze.parse("first", maze.LAYOUTS["first"])
    straight_m = np.linalg.norm(first.goal_m - first.start_m)
    assert first.to_goal_m(first.start_m) > straight_m + 3 * maze.CELL_M, "the way is longer than the crow's"


@pytest.mark.parametrize(
    ("drawing", "says"),
    [
        ("##### #S.G## #####", "layout it, row 1 .*5 columns"),
        ("##### #S?G# #####", "layout it, row 1 .*'#', '.', 'S' and 'G'"),
        ("##### #S.G. #####", "layout it, row 1 .*border"),
        ("##.## #S.G# #####", "layout it, row 0 .*border"),
        ("##### #..G# #####", "layout it: draw one 'S', not 0"),
        ("###### #SG.G# ######", "layout it: draw one 'G', not 2"),
        ("##### #S#G# #####", "layout it, row 1: no way"),
    ],
)
def test_a_bad_drawing_is_refused_with_its_row(drawing, says):
    with pytest.raises(ValueError, match=says):
        maze.parse("it", drawing)


def test_both_training_layouts_are_drawn_and_the_held_out_one_never():
    task = maze.make(maze.Config())
    on_table = [
        {name for name, pose in task.reset(np.random.default_rng(seed)).props.items() if pose.pos_m[2] == 0.0}
        for seed in range(40)
    ]
    assert {frozenset(names) for names in on_table} == {frozenset({"first"}), frozenset({"second"})}
    assert 10 < sum(names == {"first"} for names in on_table) < 30


# ---------------------------------------------------------------------------------------------------------------------
# Maze: what happens in it


def test_the_maze_is_blind():
    """Before anything is touched, nothing a policy sees depends on the layout or on where the maze lies."""
    seen = []
    for layout, seed in (("first", 0), ("second", 1), ("held_out", 2)):
        env = make_env("maze", settings=(f"task.layout={layout}",))
        obs, _ = env.reset(seed=seed)
        seen.append([obs, *(env.step(np.array([0.2, 0.0, 0.0, 0.0]))[0] for _ in range(3))])
    for others in zip(*seen, strict=True):
        for other in others[1:]:
            assert all(np.array_equal(other[key], others[0][key]) for key in others[0])


def test_pushing_straight_on_does_not_pass_a_wall():
    env = make_env("maze", settings=("task.layout=second", "task.maze_spread_m=0", "task.maze_spread_rad=0"))
    end, info = run(env, lambda obs: [1.0, 0.0, 1.0, 1.0], steps=60)
    assert not info["success"]
    reach_m = 2.5 * maze.CELL_M - maze.PEG_RADIUS_M  # from the start's middle to the wall at the end of its row
    assert end["sim/achieved"][0] == pytest.approx(reach_m, abs=1e-3)
    assert end["tcp_wrench"][0] < -15.0, "and it is felt"


def rule(obs: dict[str, np.ndarray]) -> list[float]:
    """Where a wall stops the peg, slide: left in the near half, right in the far half. No memory, no layout."""
    force = obs["tcp_wrench"]
    if -force[0] - 0.4 * abs(force[1]) < 1.0:
        return [0.9, 0.0, 0.5, 0.5]
    return [0.35, 0.8 if obs["tcp_pos"][0] < 3.5 * maze.CELL_M else -0.8, 0.5, 0.5]


@pytest.mark.parametrize("layout", maze.LAYOUTS)
def test_one_rule_of_place_and_touch_solves_every_layout(layout):
    """So what training on two layouts can teach is of use on the third."""
    env = make_env("maze", settings=(f"task.layout={layout}",))
    _, info = run(env, rule, steps=75)
    assert info["success"]


def test_the_demonstrator_finds_its_way_in_the_held_out_layout():
    env = make_env("maze", settings=("task.layout=held_out",))
    for seed in range(3):
        obs, _ = env.reset(seed=seed)
        expert = env.unwrapped.demonstrator(np.random.default_rng(seed))
        info = {}
        for _ in range(env.unwrapped.task.max_steps):
            obs, _, terminated, truncated, info = env.step(expert(obs))
            if terminated or truncated:
                break
        assert info["success"]


def test_shaped_progress_adds_up_to_the_way_gone():
    env = make_env("maze", settings=("task.reward_kind=shaped", "task.layout=first"))
    obs, _ = env.reset(seed=0)
    before, total = env.unwrapped.private_obs["sim/to_goal"][0], 0.0
    for _ in range(40):
        obs, _, _, _, info = env.step(np.array(rule(obs)))
        total += info["reward_terms"]["progress"]
    gone_m = before - env.unwrapped.private_obs["sim/to_goal"][0]
    assert gone_m > 0.1 and total == pytest.approx(0.1 * gone_m / maze.CELL_M)


# ---------------------------------------------------------------------------------------------------------------------
# All three: stiffness and energy


def test_the_ends_of_the_action_are_the_ends_of_the_stiffness():
    ends = common.stiffness(np.array([-1.0, 0.0, 1.0]), 150.0, 1500.0)
    np.testing.assert_allclose(ends, [150.0, np.sqrt(150.0 * 1500.0), 1500.0])


@pytest.mark.parametrize(("name", "axes"), [("maze", (0, 1)), ("wall_push", (0,)), ("surface_wipe", (2,))])
def test_a_policy_commands_stiffness_where_the_task_says_and_nowhere_else(name, axes):
    task = CONTACT[name].make(CONTACT[name].Config())
    state = make_env(name).unwrapped.arm.read()
    size = task.action_space.shape[0]
    soft, stiff = np.zeros(size), np.zeros(size)
    soft[-len(axes) :], stiff[-len(axes) :] = -1.0, 1.0
    soft_k, stiff_k = task.command(soft, state).stiffness, task.command(stiff, state).stiffness
    for axis in range(6):
        if axis in axes:
            assert (soft_k[axis], stiff_k[axis]) == (task.config.softest_npm, task.config.stiffest_npm)
        else:
            assert soft_k[axis] == stiff_k[axis]


@pytest.mark.parametrize("name", CONTACT)
def test_stiffness_the_wrong_way_round_is_refused(name):
    with pytest.raises(ValueError, match=r"softest_npm = 3000.*stiffest_npm"):
        make_env(name, settings=("task.softest_npm=3000", "task.stiffest_npm=2999"))


@pytest.mark.parametrize("name", CONTACT)
def test_energy_is_observed_as_it_is_read_and_nothing_private_leaks(name):
    env = make_env(name)
    obs, _ = env.reset(seed=0)
    assert not any(key.startswith("sim/") for key in obs)
    task, state = env.unwrapped.task, env.unwrapped.arm.read()
    readings = dict(env.unwrapped._readings()) | {"energy": np.array([-0.25, 0.5])}
    np.testing.assert_array_equal(task.observe(state, readings, state)["energy"], [-0.25, 0.5])
    space = task.observation_space["energy"]
    assert space.low.tolist() == [-1.0, 0.0] and space.high.tolist() == [1.0, 1.0]


# ---------------------------------------------------------------------------------------------------------------------
# Wall push


def test_the_demanded_force_and_the_distance_are_drawn_within_their_ranges():
    env = make_env("wall_push")
    demands, gaps = [], []
    for seed in range(30):
        obs, _ = env.reset(seed=seed)
        demands.append(obs["goal"][0])
        start = env.unwrapped.task.reset(np.random.default_rng(seed))
        gaps.append(start.props["wall"].pos_m[0])
    assert 8.0 <= min(demands) < 11.0 and 17.0 < max(demands) <= 20.0
    assert max(gaps) - min(gaps) > 0.05


def test_a_fixed_push_presses_with_stiffness_times_displacement():
    env = make_env("wall_push", settings=("task.weakest_n=25", "task.strongest_n=25"))
    stiffness = common.stiffness(np.array(0.5), 150.0, 2000.0)
    end, info = run(env, lambda obs: [0.6, 0.5], steps=40)
    assert not info["success"]
    assert end["sim/achieved"][0] == pytest.approx(0.6 * 0.015 * stiffness, rel=0.1)


def test_the_right_force_in_motion_is_no_success():
    task = wall_push.make(wall_push.Config())
    desired = np.array([12.0, 0.0])
    assert task.reached(np.array([12.5, 0.002]), desired)
    assert not task.reached(np.array([12.5, 0.05]), desired)
    assert not task.reached(np.array([13.5, 0.002]), desired)


def test_a_force_beyond_the_action_is_refused():
    with pytest.raises(ValueError, match=r"strongest_n = 25.*24 N"):
        make_env("wall_push", settings=("task.strongest_n=25", "task.stiffest_npm=1600"))
    with pytest.raises(ValueError, match=r"nearest_m = 0.12.*farthest_m"):
        make_env("wall_push", settings=("task.nearest_m=0.12",))


# ---------------------------------------------------------------------------------------------------------------------
# Surface wipe


def test_the_cloth_follows_pressure_and_only_pressure():
    """The same way along the board, once hovering over the cloth and once pressing on it."""
    moved = {}
    for kind, down in (("hover", 0.0), ("press", -0.7)):
        env = make_env("surface_wipe", settings=("task.start_spread_m=0",))
        obs, _ = env.reset(seed=0)
        begun = env.unwrapped.private_obs["sim/achieved"].copy()
        for step in range(30):
            obs, *_ = env.step(np.array([0.0, 0.5 if step >= 10 else 0.0, down, 0.6]))
        moved[kind] = env.unwrapped.private_obs["sim/achieved"][1] - begun[1]
        assert obs["tcp_pos"][1] > 0.05
    assert abs(moved["hover"]) < 1e-4 and moved["press"] > 0.03


def test_a_cloth_that_no_pressure_moves_is_refused():
    with pytest.raises(ValueError, match=r"glide = 1.3.*cling"):
        make_env("surface_wipe", settings=("task.glide=1.3",))
