"""Importing this registers every task with Gymnasium: ``robot_rl/PegInsert-v0``, ``robot_rl/PegInsertGoal-v0``, ...

``gymnasium.make("robot_rl.envs:robot_rl/PegInsert-v0", arm="ur5e")`` imports it by itself.
"""

import gymnasium

from robot_rl.find import names


def env_id(task: str, goal: bool = False) -> str:
    """``peg_insert -> robot_rl/PegInsert-v0``, and its GoalEnv view ``robot_rl/PegInsertGoal-v0``."""
    return f"robot_rl/{task.title().replace('_', '')}{'Goal' if goal else ''}-v0"


for _task in names("tasks"):
    for _goal in (False, True):
        gymnasium.register(
            env_id(_task, _goal),
            entry_point="robot_rl.build:make_env",
            kwargs={"task": _task, "goal": _goal},
        )
