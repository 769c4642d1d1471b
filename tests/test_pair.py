"""Two tasks in turns on one arm: whose turn it is, what happens between episodes, and a pair's training as a whole."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot_rl import cli, pair, run, runs
from robot_rl.alternation import BACKWARD, FORWARD, ROLES, Alternation, begin_turn
from robot_rl.build import make_env
from robot_rl.episode import rollout
from robot_rl.interrupt import Interrupted, StopSignals
from robot_rl.log import read_columns
from robot_rl.run import TrainConfig, choose

TASKS = {FORWARD: "object_relocation", BACKWARD: "object_relocation_back"}
SMALL = ["hidden=8,8", "batch_size=8", "utd_ratio=1", "start_steps=10", "learning_starts=10"]


# ---------------------------------------------------------------------------------------------------------------------
# Whose turn it is


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60), st.integers(1, 6))
def test_a_success_hands_over_a_failure_tries_again_and_a_person_comes_after_so_many(told, ask_after):
    turns, in_a_row, placed = Alternation(), 0, 0
    for success, fault in told:
        if not turns.in_order:
            turns.put_in_order(BACKWARD)
            placed, in_a_row = placed + 1, 0
            assert turns.role == BACKWARD
        before = turns.role
        turns.count(success, fault, ask_after)
        assert (turns.role == before) == (not success)
        in_a_row = 0 if success else in_a_row + 1
        assert turns.failures == in_a_row and turns.in_order == (in_a_row < ask_after and not fault)
        assert turns.person_resets == placed - 1


class World:
    """An environment of one role that notes how it is reset. ``done``: whether its task is done before it begins."""

    def __init__(self, name: str, done: bool = False, stuck: bool = False) -> None:
        self.name, self.done, self.stuck, self.resets = name, done, stuck, []

    def reset(self, seed, options=None):
        self.resets.append((seed, options))
        if options and self.stuck:
            raise TimeoutError("something is in its way")
        return self.name, {"success": self.done}


def begin(envs, turns, said=None, world="sim", behind=FORWARD):
    say = (said if said is not None else []).append
    return begin_turn(envs, turns, {FORWARD: 1, BACKWARD: 2}, behind, say, world)


def test_a_turn_begins_placed_only_when_the_world_is_out_of_order():
    envs, turns, said = {role: World(role) for role in ROLES}, Alternation(), []
    assert begin(envs, turns, said) == FORWARD and envs[FORWARD].resets == [(1, None)] and not said
    turns.count(True, False, 3)
    assert begin(envs, turns) == BACKWARD and envs[BACKWARD].resets == [(2, {"go_home": True})]
    for _ in range(3):
        turns.count(False, False, 3)
    assert begin(envs, turns, said, behind=BACKWARD) == turns.role == BACKWARD
    assert envs[BACKWARD].resets[-1] == (2, None) and turns.person_resets == 1 and "1 times" in said[0]


def test_a_task_that_is_done_before_it_begins_hands_over():
    envs = {FORWARD: World(FORWARD, done=True), BACKWARD: World(BACKWARD)}
    turns = Alternation(in_order=True, placements=1, failures=2)
    assert begin(envs, turns) == BACKWARD and turns == Alternation(BACKWARD, 0, True, 1)


@pytest.mark.parametrize("fault", ["done", "stuck"])
def test_an_arm_that_does_not_come_home_or_a_world_that_cannot_be_is_for_a_person(fault):
    envs = {role: World(role, **{fault: True}) for role in ROLES}
    turns, said = Alternation(in_order=True, placements=1), []
    assert begin(envs, turns, said) == FORWARD and turns.person_resets == 1 and said


def test_a_real_arm_waits_for_a_person_and_refuses_without_a_terminal(monkeypatch):
    envs, turns, said = {role: World(role) for role in ROLES}, Alternation(), []
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(RuntimeError, match="terminal"):
        begin(envs, turns, said, world="hardware")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda: "\n", raising=False)
    assert begin(envs, Alternation(), said, world="hardware") == FORWARD and "press Enter" in said[-1]
    monkeypatch.setattr("sys.stdin.readline", lambda: "", raising=False)
    with pytest.raises(RuntimeError, match="gone"):
        begin(envs, Alternation(), said, world="hardware")


# ---------------------------------------------------------------------------------------------------------------------
# One arm


@pytest.fixture(scope="module")
def envs():
    forward = make_env(TASKS[FORWARD])
    return {FORWARD: forward, BACKWARD: make_env(TASKS[BACKWARD], beside=forward)}


def test_two_experts_relocate_an_object_over_and_over_and_nobody_touches_it(envs):
    """Time goes on without a break, and where an episode begins is where the last one has left the cube."""
    turns, clock_s, cube_m, roles = Alternation(), 0.0, None, []
    arm = envs[FORWARD].unwrapped.arm
    assert envs[BACKWARD].unwrapped.arm is arm
    for index in range(6):
        obs = begin_turn(envs, turns, dict.fromkeys(ROLES, index), FORWARD, print, "sim")
        env, state = envs[turns.role], arm.read()
        begun_m = env.unwrapped.private_obs["sim/achieved"][:3]
        if cube_m is not None:
            assert state.t_s > clock_s and np.linalg.norm(begun_m - cube_m) < 0.03
            home = env.unwrapped.task.reset(np.random.default_rng(0)).tcp
            assert state.gripper < 0.05 and abs(state.tcp_pos_m[2] - home.pos_m[2]) < 0.07
        assert arm.energy_state == "normal" and arm.fault == ""
        roles.append(turns.role)
        _, success = rollout(env, env.unwrapped.demonstrator(np.random.default_rng(index)), index, begun=obs)
        assert success
        clock_s, cube_m = arm.read().t_s, env.unwrapped.private_obs["sim/achieved"][:3]
        turns.count(True, False, 5)
    assert roles == [FORWARD, BACKWARD] * 3 and turns.person_resets == 0


def test_on_its_way_home_the_arm_lets_go_first(envs):
    """What it held falls where it was held, and is not thrown."""
    env = envs[FORWARD]
    obs, _ = env.reset(seed=3)
    expert = env.unwrapped.demonstrator(np.random.default_rng(3))
    while not (obs["height"][0] > 0.03 and obs["gripper"][0] > 0.5):
        obs, *_ = env.step(expert(obs))
    held_m = env.unwrapped.private_obs["sim/achieved"][:2]
    obs, _ = env.reset(seed=4, options={"go_home": True})
    assert obs["height"][0] < 0.005 and obs["gripper"][0] < 0.05
    assert np.linalg.norm(env.unwrapped.private_obs["sim/achieved"][:2] - held_m) < 0.03


def test_tasks_of_different_worlds_cannot_take_turns():
    with pytest.raises(ValueError, match=r"differ in scene.*object_relocation_back"):
        make_env("reach", beside=make_env("pick_place"))


# ---------------------------------------------------------------------------------------------------------------------
# Training


def chosen(**changes):
    config = {"steps": 24, "seed": 1, "eval_episodes": 3, "checkpoint_every": 20, "ask_after": 2, "tracker": "none"}
    settings = [f"agent.{text}" for text in SMALL] + ["task.max_steps=4"]
    train = TrainConfig(**config | changes)
    # Untrained policies never hand over: that both are trained is the person's doing.
    return {role: choose(task, "panda", "sim", "sac", train, settings) for role, task in TASKS.items()}


def test_a_pair_is_trained_resumed_listed_and_evaluated(tmp_path, capsys):
    folder = tmp_path / "pair"
    summary = pair.train_pair(chosen(), folder)
    assert summary["eval_episodes"] == 3 and summary["env_steps"] >= 48
    again = pair.resume_pair(folder, 36)
    assert again["env_steps"] > summary["env_steps"]
    for role in ROLES:
        columns = read_columns(folder / role / "metrics.csv")
        assert columns["env_steps"][-1] >= 36 and columns["env_steps"] == sorted(set(columns["env_steps"]))
        assert columns["updates"][-1] > 0 and columns["person_resets"] == sorted(columns["person_resets"])
        assert run.load(folder / role).task == TASKS[role]
    assert columns["person_resets"][-1] > 0
    assert {record.state for record in runs.find([folder])} == {"finished"}
    capsys.readouterr()
    assert cli.main(["eval", str(folder), "--episodes", "4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["eval_episodes"] == 4 and told["success_rate"] == 0.0 and told["longest_without_person"] == 2
    assert cli.main(["eval", str(folder / "forward"), "--episodes", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == TASKS[FORWARD]


def test_ctrl_c_keeps_both_roles_and_the_next_start_goes_on(tmp_path, monkeypatch):
    """The checkpoints that pair.json names are gone on from; one that was made just before a crash is dropped."""
    folder, play, played = tmp_path / "pair", pair.play, []

    def interrupted(session, obs, seed, stop):
        played.append(session.run.task)
        if len(played) == 5:
            stop.note()
        return play(session, obs, seed, stop)

    monkeypatch.setattr(pair, "play", interrupted)
    with pytest.raises(Interrupted, match=r"--resume .*pair"):
        pair.train_pair(chosen(), folder)
    state = json.loads((folder / "pair.json").read_text())
    assert (
        state["checkpoints"] == {FORWARD: 12, BACKWARD: 8}
        and state["turns"]["placements"] == 3
        and not StopSignals._inside
    )
    for role in ROLES:
        (folder / role / "checkpoints" / "000000020").mkdir()
    summary = pair.resume_pair(folder)
    assert summary["env_steps"] >= 48 and summary["training_person_resets"] > 0
    assert not (folder / FORWARD / "checkpoints" / "000000020" / "nothing").exists()
    steps = read_columns(folder / FORWARD / "metrics.csv")["env_steps"]
    assert steps == list(np.arange(4.0, steps[-1] + 1, 4.0))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--task", "object_relocation", "--reset-task", "reach"], "differ in scene"),
        (["--gym", "Pendulum-v1", "--agent", "sac", "--reset-task", "reach"], "--task NAME"),
        (["--task", "object_relocation", "--reset-task", "object_relocation_bac"], "object_relocation_back"),
        (["--task", "object_relocation", "--reset-task", "object_relocation_back", "--actors", "2"], "actors"),
        (["--task", "object_relocation", "--reset-task", "object_relocation_back", "--agent", "bc"], "offline"),
        (
            ["--task", "object_relocation", "--reset-task", "object_relocation_back", "--world", "ros"],
            "sim or hardware",
        ),
        (["--task", "object_relocation", "--reset-task", "object_relocation_back", "--demos", "x"], "--reset-demos"),
        (
            ["--task", "object_relocation", "--reset-task", "object_relocation_back", "--set", "train.bank_share=0.5"],
            "bank_share",
        ),
    ],
)
def test_what_cannot_be_a_pair_is_refused_before_anything_is_made(tmp_path, capsys, words, says):
    assert cli.main(["train", *words, "--out", str(tmp_path / "pair")]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "pair").exists()
