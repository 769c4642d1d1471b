"""The replay buffer against a plain list of what was added.

Every transition carries its number in all its parts, so a sample that joins two of them gives itself away.
"""

from collections import deque

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.replay import ReplayBuffer
from robot_rl.types import DEMONSTRATION, INTERVENTION, POLICY

STATE = spaces.Dict(state=spaces.Box(-np.inf, np.inf, (2,), np.float32))
IMAGES = spaces.Dict(
    state=STATE["state"],
    wrist=spaces.Box(0, 255, (2, 2, 1), np.uint8),
    side=spaces.Box(0, 255, (3, 2, 1), np.uint8),
)


def observation(number, space=IMAGES):
    """All of it tells ``number``; images in base 256."""
    obs = {"state": np.array([number, -number], np.float32)}
    if "wrist" in space.spaces:
        obs["wrist"] = np.array([number // 256, number % 256, 0, 1], np.uint8).reshape(2, 2, 1)
        obs["side"] = np.array([number // 256, number % 256, 9, 9, 9, 9], np.uint8).reshape(3, 2, 1)
    return obs


def number_of(obs):
    """The number of each observation; fails where its parts disagree."""
    number = obs["state"][..., 0].astype(int)
    for name in obs.keys() - {"state"} if number.size else ():
        flat = obs[name].reshape(*number.shape, -1).astype(int)
        np.testing.assert_array_equal(flat[..., 0] * 256 + flat[..., 1], number)
    return number


def add(buffer, number, next_number, segment, terminated=False, truncated=False, space=IMAGES):
    buffer.add(
        observation(number, space),
        np.array([number / 10]),
        number,
        terminated,
        truncated,
        observation(next_number, space),
        segment,
        {"clock": np.array([number + 0.5])},
    )
    return (number, next_number, float(not terminated), number, number + 0.5)


def contents(buffer, slots=None):
    """The transitions of all slots as tuples."""
    batch = buffer.gather(np.arange(len(buffer)) if slots is None else slots)
    np.testing.assert_allclose(batch.action[:, 0], batch.reward / 10, rtol=1e-6)
    columns = (
        number_of(batch.obs),
        number_of(batch.next_obs),
        batch.discount,
        batch.reward,
        batch.extra["clock"][:, 0],
    )
    return [tuple(float(x) for x in row) for row in zip(*columns, strict=True)]


# Each actor's step: goes on, ends by termination or time-out (a new segment after a reset), is cut by an intervention
# that is not stored (a gap: a new segment, another state), or is cut with no gap (a new segment, the same state).
STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["on", "on", "on", "terminated", "truncated", "gap", "cut"])),
    max_size=80,
)


def play(buffer, steps, reference):
    """Interleaved actors write ``steps``; ``reference`` receives the transitions."""
    fresh = iter(range(10**6))
    segments = iter(range(10**6))
    actors = [[next(fresh), next(segments)] for _ in range(3)]
    for actor, kind in steps:
        number, segment = actors[actor]
        following = next(fresh)
        reference.append(add(buffer, number, following, segment, kind == "terminated", kind == "truncated"))
        goes_on = kind in ("on", "cut")
        actors[actor] = [following if goes_on else next(fresh), segment if kind == "on" else next(segments)]


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 13), STEPS)
def test_holds_exactly_the_last_transitions(capacity, steps):
    buffer = ReplayBuffer(capacity, IMAGES, 1, {"clock": (1,)})
    reference = deque(maxlen=capacity)
    play(buffer, steps, reference)
    assert len(buffer) == len(reference)
    assert sorted(contents(buffer)) == sorted(reference)
    if reference:
        drawn = buffer.sample(np.random.default_rng(0), (7, 11))
        pairs = {row[:3] for row in reference}
        for row in zip(
            *(x.ravel() for x in (number_of(drawn.obs), number_of(drawn.next_obs), drawn.discount)), strict=True
        ):
            assert row in pairs


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 13), STEPS, STEPS)
def test_saved_and_loaded_goes_on_as_if_nothing_had_been(tmp_path_factory, capacity, before, after):
    path = tmp_path_factory.mktemp("replay") / "replay.npz"
    buffer = ReplayBuffer(capacity, IMAGES, 1, {"clock": (1,)})
    play(buffer, before, [])
    buffer.save(path)
    loaded = ReplayBuffer(capacity, IMAGES, 1, {"clock": (1,)})
    play(loaded, after, [])  # whatever it held before is gone
    loaded.load(path)
    assert contents(loaded) == contents(buffer)
    for each in (buffer, loaded):
        play(each, after, [])
    assert contents(loaded) == contents(buffer)
    if len(buffer):
        a, b = (each.sample(np.random.default_rng(5), (3, 4)) for each in (buffer, loaded))
        np.testing.assert_array_equal(a.next_obs["wrist"], b.next_obs["wrist"])
        np.testing.assert_array_equal(a.reward, b.reward)


@given(st.integers(1, 40), st.integers(0, 100))
def test_capacity_is_exact_and_every_slot_is_reached(capacity, count):
    buffer = ReplayBuffer(capacity, STATE, 1, {"clock": (1,)})
    for i in range(count):
        add(buffer, i, i + 1, 0, space=STATE)
    assert len(buffer) == min(count, capacity)
    if count:
        drawn = buffer.sample(np.random.default_rng(0), (2000,)).reward
        assert set(drawn.tolist()) == set(range(max(0, count - capacity), count))


def test_a_stream_of_interventions_joins_no_two_segments():
    """Only corrected steps are stored, as SERL's image buffer and LeRobot's next-row link could not take."""
    buffer = ReplayBuffer(100, IMAGES, 1, {"clock": (1,)})
    for segment, start in enumerate((5, 40)):
        for number in range(start, start + 3):
            add(buffer, number, number + 1, segment)
    assert [row[:2] for row in contents(buffer)] == [(5, 6), (6, 7), (7, 8), (40, 41), (41, 42), (42, 43)]


def test_one_segment_number_with_a_gap_in_it_is_seen_by_its_images():
    buffer = ReplayBuffer(100, IMAGES, 1, {"clock": (1,)})
    for number in (5, 6, 12, 13):
        add(buffer, number, number + 1, 0)
    assert [row[:2] for row in contents(buffer)] == [(5, 6), (6, 7), (12, 13), (13, 14)]


def test_a_time_out_bootstraps_from_its_own_last_observation():
    buffer = ReplayBuffer(10, IMAGES, 1, {"clock": (1,)})
    add(buffer, 3, 4, 0, truncated=True)
    add(buffer, 100, 101, 1)
    assert contents(buffer)[0][:3] == (3, 4, 1.0)


def test_a_true_end_does_not_bootstrap_even_at_the_time_limit():
    buffer = ReplayBuffer(10, IMAGES, 1, {"clock": (1,)})
    add(buffer, 3, 4, 0, terminated=True, truncated=True)
    assert contents(buffer)[0][:3] == (3, 4, 0.0)


def test_images_are_bytes_and_stored_once():
    image = spaces.Dict(camera=spaces.Box(0, 255, (64, 64, 3), np.uint8))
    buffer = ReplayBuffer(400, image, 1)
    frames = np.random.default_rng(0).integers(0, 256, (402, 64, 64, 3), dtype=np.uint8)
    for i in range(0, 400, 2):
        for actor in range(2):  # interleaved actors share as well
            at = i // 2 + 201 * actor
            buffer.add({"camera": frames[at]}, np.zeros(1), 0.0, False, False, {"camera": frames[at + 1]}, actor)
    assert buffer.nbytes < 1.02 * frames.nbytes
    drawn = buffer.sample(np.random.default_rng(1), (5,))
    assert drawn.next_obs["camera"].dtype == np.uint8


def test_samples_are_the_callers_own():
    buffer = ReplayBuffer(4, IMAGES, 1, {"clock": (1,)})
    for i in range(4):
        add(buffer, i, i + 1, 0)
    before = contents(buffer)
    drawn = buffer.sample(np.random.default_rng(0), (8,))
    for array in (*drawn.obs.values(), *drawn.next_obs.values(), drawn.action, drawn.reward, drawn.discount):
        array[...] = 99
    assert contents(buffer) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": np.array([np.nan])}, r"action = \[nan\] is not finite"),
        ({"action": np.zeros(2)}, r"action has shape \(2,\): this buffer stores \(1,\)"),
        ({"reward": float("inf")}, "reward = inf is not finite"),
        ({"obs": {"state": np.zeros(3)}}, r"obs/state has shape \(3,\)"),
        ({"next_obs": {"state": np.array([0, np.nan])}}, "next_obs/state = .* is not finite"),
        ({"next_obs": {"q": np.zeros(2)}}, "next_obs lacks 'state': there is q"),
    ],
)
def test_a_bad_transition_is_named_and_not_stored(change, message):
    buffer = ReplayBuffer(4, STATE, 1)
    good = {
        "obs": observation(1, STATE),
        "action": np.zeros(1),
        "reward": 0.0,
        "terminated": False,
        "truncated": False,
        "next_obs": observation(2, STATE),
        "segment": 0,
    }
    with pytest.raises(ValueError, match=message):
        buffer.add(**(good | change))
    assert len(buffer) == 0
    buffer.add(**good)
    assert len(buffer) == 1


def test_an_image_of_another_type_is_refused():
    buffer = ReplayBuffer(4, IMAGES, 1)
    obs = observation(1) | {"wrist": np.zeros((2, 2, 1), np.float32)}
    with pytest.raises(ValueError, match="obs/wrist is float32: this buffer stores uint8"):
        buffer.add(obs, np.zeros(1), 0.0, False, False, observation(2), 0)


def shown(buffer, number, source, segment=0):
    buffer.add(
        observation(number), np.zeros(1), number, False, False, observation(number + 1), segment,
        {"clock": np.zeros(1)}, source,
    )  # fmt: skip


def test_what_is_drawn_is_a_query_over_one_buffer():
    """Experience first and, behind it, the share of what was shown: demonstrations and interventions."""
    buffer = ReplayBuffer(10, IMAGES, 1, {"clock": (1,)})
    buffer.reserve(5)
    for number in range(100, 105):
        shown(buffer, number, DEMONSTRATION, -1)
    for number in range(10):
        shown(buffer, number, INTERVENTION if number in (3, 4) else POLICY, number)
    assert (len(buffer), buffer.demonstrations) == (10, 5)
    rng = np.random.default_rng(0)
    batch = buffer.sample(rng, (50, 8), 0.25)
    assert batch.obs["state"].shape == (50, 8, 2)
    numbers = number_of(batch.obs)
    np.testing.assert_array_equal(numbers, batch.reward)
    np.testing.assert_array_equal(numbers + 1, number_of(batch.next_obs))
    assert set(numbers[:, :6].ravel()) == set(range(10)) and set(numbers[:, 6:].ravel()) == {3, 4, *range(100, 105)}
    sources = {**dict.fromkeys(range(10), POLICY), 3: INTERVENTION, 4: INTERVENTION}
    told = [sources.get(int(number), DEMONSTRATION) for number in numbers.ravel()]
    np.testing.assert_array_equal(batch.extra["source"].ravel(), told)
    assert set(buffer.sample(rng, (50, 8)).reward.ravel()) == set(range(10))
    assert set(buffer.sample(rng, (50, 8), 1.0).reward.ravel()) == {3, 4, *range(100, 105)}
    for number in range(10, 20):  # the interventions are overwritten, the demonstrations are not
        shown(buffer, number, POLICY, number)
    assert set(buffer.sample(rng, (50, 8), 1.0).reward.ravel()) == set(range(100, 105))


def test_one_query_stands_in_for_the_other_where_that_is_empty():
    rng = np.random.default_rng(0)
    buffer = ReplayBuffer(10, STATE, 1)
    buffer.add(observation(1, STATE), np.zeros(1), 1.0, False, False, observation(2, STATE), 0)
    assert (buffer.sample(rng, (8,), 0.5).reward == 1.0).all()
    buffer = ReplayBuffer(10, STATE, 1)
    buffer.reserve(1)
    add_demo = (observation(7, STATE), np.zeros(1), 7.0, False, False, observation(8, STATE), -1, None, DEMONSTRATION)
    buffer.add(*add_demo)
    assert (buffer.sample(rng, (8,), 0.5).reward == 7.0).all()
    with pytest.raises(ValueError, match="no room for more than 1 demonstrated steps"):
        buffer.add(*add_demo)
    with pytest.raises(ValueError, match="empty"):
        buffer.sample(rng, (8,))
    with pytest.raises(ValueError, match=r"shown_share = 1\.5"):
        buffer.sample(rng, (8,), 1.5)
    with pytest.raises(ValueError, match="in use"):
        buffer.reserve(3)


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from([POLICY, INTERVENTION]), st.integers(0, 3)),
        st.tuples(st.just("discard"), st.just(0), st.integers(0, 3)),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 9), st.integers(0, 3), EVENTS)
def test_queries_hold_what_a_list_says(tmp_path_factory, capacity, demos, events):
    """Under any order of adding, overwriting and discarding, and after a save and a load."""
    buffer = ReplayBuffer(capacity, STATE, 1)
    buffer.reserve(demos)
    for number in range(demos):
        buffer.add(observation(0, STATE), np.zeros(1), -1 - number, False, False, observation(0, STATE), -1, None, 2)
    ring = deque(maxlen=capacity)  # [number, source, segment, whether it is drawn]
    for number, (kind, source, segment) in enumerate(events):
        if kind == "add":
            step = observation(0, STATE), np.zeros(1), number, False, False, observation(0, STATE), segment, None
            buffer.add(*step, source)
            ring.append([number, source, segment, True])
        else:
            buffer.discard([segment])
            for row in ring:
                row[3] &= row[2] != segment
    path = tmp_path_factory.mktemp("replay") / "replay.npz"
    buffer.save(path)
    loaded = ReplayBuffer(capacity, STATE, 1)
    loaded.reserve(demos)
    for number in range(demos):
        loaded.add(observation(0, STATE), np.zeros(1), -1 - number, False, False, observation(0, STATE), -1, None, 2)
    loaded.load(path)
    wanted = {0.0: {row[0] for row in ring if row[3]}, 1.0: {row[0] for row in ring if row[3] and row[1]}}
    wanted[1.0] |= {-1 - number for number in range(demos)}
    for share, numbers in wanted.items():
        if numbers:
            drawn = [each.sample(np.random.default_rng(1), (400,), share).reward for each in (buffer, loaded)]
            assert set(drawn[0].tolist()) == numbers
            np.testing.assert_array_equal(*drawn)


def test_empty_and_impossible_buffers_say_so():
    with pytest.raises(ValueError, match="the replay buffer is empty"):
        ReplayBuffer(4, STATE, 1).sample(np.random.default_rng(0), (2,))
    with pytest.raises(ValueError, match="capacity = 0"):
        ReplayBuffer(0, STATE, 1)
    with pytest.raises(ValueError, match="'mode' is not a Box"):
        ReplayBuffer(4, spaces.Dict(mode=spaces.Discrete(2)), 1)


def test_load_refuses_damaged_files_and_other_tasks_and_changes_nothing(tmp_path):
    path = tmp_path / "replay.npz"
    buffer = ReplayBuffer(8, IMAGES, 1, {"clock": (1,)})
    play(buffer, [(0, "on"), (1, "truncated"), (0, "on")], [])
    buffer.save(path)
    assert list(tmp_path.iterdir()) == [path]
    whole = path.read_bytes()
    other = ReplayBuffer(8, IMAGES, 1, {"clock": (1,)})
    add(other, 7, 8, 0)
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"{path} is not a readable replay buffer"):
            other.load(path)
    assert [row[:2] for row in contents(other)] == [(7, 8)]
    path.write_bytes(whole)
    for mismatch, message in (
        (ReplayBuffer(9, IMAGES, 1, {"clock": (1,)}), "holds capacity 8, this buffer 9"),
        (ReplayBuffer(8, IMAGES, 2, {"clock": (1,)}), r"holds action \['float32', 1\], this buffer \['float32', 2\]"),
        (ReplayBuffer(8, STATE, 1, {"clock": (1,)}), "load it into a buffer made for the same task"),
    ):
        with pytest.raises(ValueError, match=message):
            mismatch.load(path)
    np.savez(path, a=np.zeros(1))
    with pytest.raises(ValueError, match="is not a saved replay buffer"):
        other.load(path)
