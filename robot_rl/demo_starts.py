"""States along demonstrations as starts, by playing their actions again in the twin that they are for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robot_rl.start_bank import StartBank, in_groups
from robot_rl.store import EpisodeReader

if TYPE_CHECKING:
    from robot_rl.episode import Episode
    from robot_rl.run import Run
    from robot_rl.session import Session
    from robot_rl.types import Start


def check_bank(run: Run) -> None:
    """Raises ValueError where ``train.bank_share`` is asked for and there can be no bank."""
    if run.train.bank_share <= 0.0:
        return
    said = f"train.bank_share = {run.train.bank_share:g}"
    if run.world != "sim":
        raise ValueError(f"{said}: only a twin can be put into a state, world '{run.world}' cannot; leave it at 0")
    if run.demo_share <= 0.0 or run.offline:
        raise ValueError(f"{said}: agent {run.agent} does not act beside demonstrations; leave it at 0")


def make_bank(session: Session) -> StartBank[Start] | None:
    """The bank of a session, with the rates it had at its checkpoint; None where ``train.bank_share`` is 0.

    Raises ValueError where no demonstration succeeds when it is played again.
    """
    run, config = session.run, session.run.train
    if config.bank_share <= 0.0:
        return None
    path = Path(run.demos) if run.demos else session.folder / "demos.zarr"
    ways = starts_along(session.env, list(EpisodeReader(path))[: session.counters.demo_episodes])
    if not ways:
        raise ValueError(
            f"no demonstration in {path} succeeds when it is played again in this twin: record some with this arm and "
            "these settings, or leave train.bank_share at 0"
        )
    groups = in_groups(ways, config.bank_groups)
    return StartBank(groups, config.bank_share, config.bank_until, config.bank_focus, session.counters.bank_rates)


def starts_along(env: Any, episodes: Iterable[Episode]) -> list[list[Start]]:
    """For each episode that succeeds again when its actions are played from its seed, the state before each step."""
    ways = []
    for episode in episodes:
        env.reset(seed=episode.seed)
        way, success = [], False
        for action in episode.action:
            way.append(env.unwrapped.start_here())
            *_, info = env.step(action)
            success = bool(info["success"])
        if success:
            ways.append(way)
    return ways
