"""What an environment tells of energy: in info, in readings, in the end of an episode; and what settings change."""

import mujoco
import numpy as np
import pytest

from robot_rl.build import make_configs, make_env
from robot_rl.find import find, names

PUSH = np.array([0.0, 0.0, -1.0, 0.0, 0.0, 0.0])


def run(env, steps: int, action=None, seed: int = 0) -> list[dict]:
    """The infos of an episode, with random actions unless one is given."""
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    infos = []
    for _ in range(steps):
        drawn = rng.uniform(-1.0, 1.0, env.action_space.shape) if action is None else action
        *_, terminated, truncated, info = env.step(drawn)
        infos.append(info | {"truncated": truncated})
        if terminated or truncated:
            break
    return infos


def test_the_ledger_balances_in_every_step():
    env = make_env("reach", settings=["energy.friction_credit=0.8"])
    for info in run(env, 20):
        energy = info["energy"]
        assert energy["free_j"] == energy["ledger_j"] - energy["potential_j"]
        balance = energy["ledger_j"] + energy["work_j"] - energy["credit_j"] + energy["spill_j"]
        assert balance == pytest.approx(2.0, abs=1e-9)
        assert energy["free_min_j"] <= energy["free_j"] + 1e-12 and energy["credit_j"] > 0.0
        assert info["cost"] == 0.0 and not info["energy_depleted"]


def test_a_new_episode_begins_with_a_full_ledger():
    env = make_env("reach")
    spent = run(env, 10)[-1]["energy"]
    assert spent["ledger_j"] < 2.0
    env.reset(seed=1)
    fresh = env.unwrapped.arm.energy
    assert fresh["ledger_j"] == 2.0 and fresh["work_j"] == 0.0


def test_the_cost_rises_as_free_energy_runs_out():
    env = make_env("reach", settings=["energy.enforce=false", "energy.budget_j=0.2", "energy.low_share=0.5"])
    for info in run(env, 30):
        share_of_low = info["energy"]["free_min_j"] / 0.1
        assert info["cost"] == pytest.approx(np.clip(1.0 - share_of_low, 0.0, 1.0))
    assert info["cost"] == 1.0 and info["energy"]["negative"] > 0.0  # watched, not stopped
    assert info["energy"]["intervened"] == 0.0 and info["fault"] == ""


def test_with_the_filter_the_same_episode_stays_in_the_budget():
    env = make_env("reach", settings=["energy.budget_j=0.2"])
    infos = run(env, 30)
    assert min(info["energy"]["ledger_min_j"] for info in infos) >= 0.0
    assert max(info["energy"]["intervened"] for info in infos) > 0.0


def test_an_empty_ledger_truncates_the_episode_and_says_so():
    env = make_env("reach")
    env.reset(seed=0)
    env.unwrapped.arm._energy.ledger_j[0] = 0.04  # as if all but this were gone
    *_, truncated, last = env.step(np.ones(6))
    last |= {"truncated": truncated}
    assert last["energy_depleted"] and last["truncated"] and last["fault"] == "energy depleted"
    env.reset(seed=3)
    assert env.unwrapped.arm.fault == ""


def test_a_task_may_see_free_energy_and_alpha():
    env = make_env("reach", settings=["energy.enforce=false", "energy.budget_j=0.06"])
    env.reset(seed=0)
    np.testing.assert_array_equal(env.unwrapped.arm.readings()["energy"], [1.0, 1.0])
    run(env, 20)
    share, alpha = env.unwrapped.arm.readings()["energy"]
    assert -1.0 <= share < 0.0 and alpha == 1.0


def test_the_trace_has_a_row_for_each_control_tick():
    env = make_env("reach")
    info = run(env, 3)[-1]
    trace = env.unwrapped.arm.energy_trace
    assert trace.shape == (100, 7)
    assert trace[:, 2].min() == info["energy"]["free_min_j"]
    np.testing.assert_allclose(trace[:, 2], trace[:, 0] - trace[:, 1])


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("energy.budget_j=9", "budget_j"),
        ("energy.friction_credit=0.9", "friction_credit"),
        ("energy.budgt_j=1", "budget_j"),
        ("energy.enforce=maybe", "enforce"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(setting, named):
    with pytest.raises(ValueError, match=named):
        make_configs("reach", settings=[setting])


def test_a_budget_above_the_cap_is_refused():
    with pytest.raises(ValueError, match=r"energy\.cap_j"):
        make_env("reach", settings=["energy.cap_j=1.0"])


@pytest.mark.parametrize("arm", names("sim"))
def test_the_friction_a_twin_is_credited_for_is_the_models(arm):
    """Credited friction must be no more than there is."""
    module = find("sim", arm)
    model = getattr(module, arm.upper())
    spec = mujoco.MjModel.from_xml_path(str(model.xml_path))
    dof = model.limits.dof
    np.testing.assert_array_equal(model.limits.viscous_nmspr, spec.dof_damping[:dof])
    assert model.limits.coulomb_nm is None and not spec.dof_frictionloss[:dof].any()
