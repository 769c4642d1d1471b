"""How a learner and its actors keep up with one another, told in columns and in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robot_rl.log import percent

if TYPE_CHECKING:
    from robot_rl.learner import Learner


def link_row(learner: Learner) -> dict[str, Any]:
    """How learner and actors keep up with one another, as columns of metrics.csv."""
    counters, health = learner.session.counters, list(learner.server.present.values())
    starts = max(1, learner.session.run.agent_config.learning_starts)
    learned = counters.env_steps - starts
    row: dict[str, Any] = {"replay_ratio": counters.updates / learned if learned > 0 else None}
    row |= {"updates_due": learner.due, "rows_waiting": learner.server.rows - counters.rows}
    row |= {"actors": len(health), "policy_age_steps": learner.policy_age_steps}
    timed = [one for one in health if one.steps]
    row["policy_age_s"] = max((one.policy_age_s for one in timed), default=None)
    row["rows_unsent"] = sum(one.unsent for one in health)
    row["period_p50_s"] = max((one.period_p50_s for one in timed), default=None)
    row["period_p99_s"] = max((one.period_p99_s for one in timed), default=None)
    steps = sum(one.steps for one in timed)
    row["late_share"] = sum(one.late for one in timed) / steps if steps else None
    row["policies_superseded"] = sum(one.superseded for one in health)
    return row | {"messages_again": sum(one.retries for one in health), "messages_refused": learner.server.refused}


def facts(learner: Learner, env_rate: float, update_rate: float) -> dict[str, str]:
    """What the progress line says."""
    session = learner.session
    told = {} if session.success_rate is None else {"success": percent(session.success_rate)}
    told |= {"steps/s": f"{env_rate:.0f}", "updates/s": f"{update_rate:.0f}"}
    ratio = link_row(learner)["replay_ratio"]
    told |= {} if ratio is None else {"ratio": f"{ratio:.2f}/{session.run.agent_config.utd_ratio}"}
    if (owed := learner.due) > session.run.train.lead_steps:
        told["behind"] = f"{owed} updates"
    return told | {"actors": str(len(learner.server.present))}


def silence(learner: Learner) -> str:
    """Why nothing happens."""
    present = learner.server.present
    if not present:
        return (
            f"waiting for steps: no actor is there. Start one: robot-rl actor --learner {learner.server.address} "
            "--out DIR"
        )
    return f"ahead of the data: waiting for steps of {', '.join(sorted(present))}"
