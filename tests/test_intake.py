"""Rows of many actors to one replay buffer: the same transitions and accounts as of each actor by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robot_rl.energy import OF_STEP
from robot_rl.episode import EpisodeAccount
from robot_rl.intake import Intake, Taken, fill_row, transitions
from robot_rl.replay import ReplayBuffer
from robot_rl.spaces import Encoder
from robot_rl.step_log import FIRST, STEP, Layout, seal

SPACE = spaces.Dict(
    state=spaces.Box(-4.0, 4.0, (2,), np.float64),
    touch=spaces.Box(0, 255, (1,), np.uint8),
    wrist=spaces.Box(0, 255, (2, 2, 1), np.uint8),
)
LAYOUT = Layout(
    {"state": ((2,), "float64"), "touch": ((1,), "uint8"), "wrist": ((2, 2, 1), "uint8")}, 1, {"proposed": (1,)}
)
STORED = {"proposed": (1,), "cost": ()}
ENCODER = Encoder.from_space(SPACE)
FUZZ = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def observation(log: int, number: int) -> dict[str, np.ndarray]:
    """All of it tells the log and the number."""
    return {
        "state": np.array([log / 4, number / 64]),
        "touch": np.array([number % 256], np.uint8),
        "wrist": np.array([log, number // 256, number % 256, 7], np.uint8).reshape(2, 2, 1),
    }


def infos(log: int, number: int) -> tuple[float, float, dict]:
    """Reward, cost and info of the step that led to ``number``; all of them exact in float32."""
    info: dict = {"fault": "contact" if number % 5 == 0 else ""}
    if log != 2:
        info["success"] = number % 3 == 0
    if log == 2:
        info |= {"true_success": number % 4 == 0, "classifier_version": 3, "called": number % 3 == 0}
    if log != 3:
        info["energy"] = dict(zip(OF_STEP, (1.0, number / 4, float(number % 2), math.nan), strict=True))
    return log + number / 8, number / 16, info


class Recorded:
    """An actor's log: rows, and the transitions and accounts that a loop of its own would have made of them."""

    def __init__(self, log: int, episodes: list[tuple[int, str]]) -> None:
        """Of each episode how many steps, and how it ends: terminated, truncated, killed or discarded."""
        self.rows, self.transitions, self.accounts = [], [], []
        self.discarded: set[int] = set()
        number = 0
        for episode, (steps, end) in enumerate(episodes):
            account, segment, source = EpisodeAccount(), 0, 0
            self._row(log, number, episode, 0)
            for step in range(1, steps + 1):
                number += 1
                reward, cost, info = infos(log, number)
                ends = (step == steps and end == "terminated", step == steps and end in ("truncated", "discarded"))
                info["discarded"] = step == steps and end == "discarded"
                info["source"] = int(log > 1 and number % 5 in (2, 3))
                segment += step > 1 and info["source"] != source
                info["segment"], source = segment, info["source"]
                row = self._row(log, number, episode, step)
                row["action"], row["extra/proposed"], row["policy"] = number / 100, number / 50, 1 + number // 2
                fill_row(row, reward, ends, cost, info)
                account.add(reward, cost, info)
                told = info["source"], bool(info.get("called")), (episode, segment)
                self.transitions.append((log, number - 1, number, reward, cost, float(not ends[0]), *told))
                self.discarded |= {episode} if info["discarded"] else set()
            number += 1
            if steps and end != "killed":
                self.accounts.append(account)

    def _row(self, log: int, number: int, episode: int, step: int) -> np.ndarray:
        rows = np.zeros(1, LAYOUT.dtype)
        row = rows[0]
        row["kind"], row["log"], row["sequence"] = STEP if step else FIRST, log, len(self.rows)
        row["episode"], row["step"] = episode, step
        for name, value in observation(log, number).items():
            row[f"obs/{name}"] = value
        self.rows.append(row)
        return row


EPISODES = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["terminated", "truncated", "killed", "discarded"])),
    min_size=1,
    max_size=4,
)


def make_intake(stored: dict = STORED, capacity: int = 500) -> tuple[Intake, ReplayBuffer]:
    replay = ReplayBuffer(capacity, ENCODER.space, 1, stored)
    return Intake(LAYOUT, ENCODER, replay, stored), replay


def interleaved(logs: list[Recorded], order: st.DataObject) -> Iterator[np.ndarray]:
    """Rows of all logs, each log's in its order."""
    left = [list(log.rows) for log in logs]
    while any(left):
        at = order.draw(st.sampled_from([at for at, rows in enumerate(left) if rows]))
        yield left[at].pop(0)


def held(replay: ReplayBuffer) -> list[tuple]:
    """The transitions of a buffer; fails where the parts of one disagree."""
    batch = replay.gather(np.arange(len(replay)))
    logs, numbers = (np.rint(ends[..., 0] * 16).astype(int) for ends in (batch.obs["state"], batch.next_obs["state"]))
    np.testing.assert_array_equal(logs, numbers)
    found = []
    for ends in (batch.obs, batch.next_obs):
        number = np.rint(ends["state"][:, 1] * 256).astype(int)
        wrist = ends["wrist"].reshape(len(replay), 4).astype(int)
        np.testing.assert_array_equal(wrist[:, 0], logs)
        np.testing.assert_array_equal(wrist[:, 1] * 256 + wrist[:, 2], number)
        found.append(number)
    np.testing.assert_allclose(batch.action[:, 0], found[1] / 100, rtol=1e-6)
    np.testing.assert_allclose(batch.extra["proposed"][:, 0], found[1] / 50, rtol=1e-6)
    columns = (
        logs,
        *found,
        batch.reward,
        batch.extra["cost"],
        batch.discount,
        batch.extra["source"],
        batch.extra["called"],
    )
    return list(zip(*(column.tolist() for column in columns), strict=True))


@FUZZ
@given(st.lists(EPISODES, min_size=1, max_size=3), st.data())
def test_any_order_gives_the_transitions_and_accounts_of_each(played, order) -> None:
    logs = [Recorded(number, episodes) for number, episodes in enumerate(played, 1)]
    intake, replay = make_intake()
    taken: list[tuple[int, Taken]] = []
    steps = 0
    for row in interleaved(logs, order):
        taken.append((int(row["log"]), intake.take(row)))
        assert taken[-1][1].policy == row["policy"] and taken[-1][1].step == (row["kind"] == STEP)
        steps += taken[-1][1].step
    expected = sorted(step[:8] for log in logs for step in log.transitions)
    assert sorted(held(replay)) == expected and steps == len(expected)
    drawn = [held(replay)[slot] for slot in replay._experience.listed]
    kept = [step for log in logs for step in log.transitions if step[8][0] not in log.discarded]
    assert sorted(drawn) == sorted(step[:8] for step in kept)
    shown = [held(replay)[slot] for slot in replay._shown.listed]
    assert sorted(shown) == sorted(step[:8] for step in kept if step[6])
    for number, log in enumerate(logs, 1):
        accounts = [one.ended.row() for actor, one in taken if actor == number and one.ended is not None]
        np.testing.assert_equal(accounts, [account.row() for account in log.accounts])
        assert intake.episodes[number] == len(log.accounts)
        assert transitions(np.array(log.rows, LAYOUT.dtype)) == len(log.transitions)


@FUZZ
@given(st.lists(EPISODES, min_size=1, max_size=3), st.data())
def test_every_stretch_of_an_episode_is_a_segment_of_its_own(played, order) -> None:
    """As a buffer has them to which each actor's transitions were added directly."""
    logs = [Recorded(number, episodes) for number, episodes in enumerate(played, 1)]
    intake, replay = make_intake()
    for row in interleaved(logs, order):
        intake.take(row)
    segments = replay._arrays["segment"][: len(replay)].tolist()
    stretch_of = {step[:3]: (step[0], step[8]) for log in logs for step in log.transitions}
    pairs = {(segment, stretch_of[step[:3]]) for segment, step in zip(segments, held(replay), strict=True)}
    assert len(pairs) == len({segment for segment, _ in pairs}) == len({stretch for _, stretch in pairs})
    direct = ReplayBuffer(500, ENCODER.space, 1, STORED)
    for log in logs:
        for number, before, after, reward, cost, discount, source, called, (episode, stretch) in log.transitions:
            ends = ENCODER.encode(observation(number, before)), ENCODER.encode(observation(number, after))
            extra = {"proposed": np.array([after / 50], np.float32), "cost": cost}
            action = np.array([after / 100])
            segment = 10_000 * number + 100 * episode + stretch
            direct.add(ends[0], action, reward, discount == 0.0, False, ends[1], segment, extra, source, called)
    assert sorted(held(direct)) == sorted(held(replay))
    assert len(direct._aside) == len(replay._aside)  # images are stored once, as often as by each alone


def test_a_killed_episode_ends_where_it_was_killed() -> None:
    log = Recorded(1, [(3, "killed"), (0, "killed"), (2, "truncated")])
    intake, replay = make_intake()
    ended = [taken.ended for row in log.rows if (taken := intake.take(row)).ended]
    assert [one.length for one in ended] == [2] and intake.episodes[1] == 1
    assert [step[1:3] for step in held(replay)] == [(0, 1), (1, 2), (2, 3), (5, 6), (6, 7)]
    assert len(set(replay._arrays["segment"][:3].tolist())) == 1
    assert len(set(replay._arrays["segment"][:5].tolist())) == 2


@pytest.mark.parametrize("begin", [1, 2, 3])
def test_what_begins_in_the_middle_is_counted_and_not_learned(begin) -> None:
    log = Recorded(1, [(3, "truncated"), (2, "terminated")])
    intake, replay = make_intake()
    taken = [intake.take(row) for row in log.rows[begin:]]
    assert sum(one.step for one in taken) == 4 - begin + 2
    assert [one.ended.length for one in taken if one.ended] == [2] and intake.episodes[1] == 1
    assert [step[1:3] for step in held(replay)] == [(4, 5), (5, 6)]


def test_nothing_follows_the_end_of_an_episode() -> None:
    log = Recorded(1, [(2, "terminated"), (1, "truncated")])
    after = log.rows[2].copy()
    after["step"] = 3
    intake, replay = make_intake()
    for row in (*log.rows[:3], after, *log.rows[3:]):
        intake.take(row)
    assert len(replay) == 3 and intake.episodes[1] == 2


def test_a_missing_cost_is_refused_where_the_agent_learns_from_it() -> None:
    log = Recorded(1, [(2, "truncated")])
    for row in log.rows:
        row["cost"] = math.nan
    intake, replay = make_intake()
    assert not intake.take(log.rows[0]).step
    with pytest.raises(ValueError, match=r"reports no info\['cost'\].*agent.constraint=none"):
        intake.take(log.rows[1])
    assert len(replay) == 0
    intake, replay = make_intake({"proposed": (1,)})
    ended = [taken.ended for row in log.rows if (taken := intake.take(row)).ended]
    assert len(replay) == 2 and "cost" not in ended[0].row()


def test_what_a_step_came_to_survives_its_row() -> None:
    for log, number in ((1, 3), (1, 5), (2, 3), (3, 4)):
        rows = np.zeros(1, LAYOUT.dtype)
        reward, cost, info = infos(log, number)
        fill_row(rows[0], reward, (False, True), cost, info)
        seal(rows)
        direct = EpisodeAccount()
        direct.add(reward, cost, info)
        rows["kind"] = STEP
        intake, _ = make_intake()
        first = np.zeros(1, LAYOUT.dtype)
        first["kind"] = FIRST
        intake.take(first[0])
        account = intake.take(rows[0]).ended
        np.testing.assert_equal(account.row(), direct.row())
