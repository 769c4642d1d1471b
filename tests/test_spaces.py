import numpy as np
import pytest
from gymnasium import spaces

from robot_rl.spaces import Encoder, action_size, image_names, vector_size


def box(low, high, shape, dtype=np.float32):
    return spaces.Box(low, high, shape, dtype)


def test_vectors_are_sorted_scaled_and_joined():
    space = spaces.Dict(b=box(-2.0, 6.0, (2,)), a=box(-np.inf, np.inf, (1,)))
    encoder = Encoder.from_space(space)
    encoded = encoder.encode({"b": np.array([-2.0, 4.0]), "a": np.array([7.0])})
    np.testing.assert_allclose(encoded["state"], [7.0, -1.0, 0.5])
    assert encoded["state"].dtype == np.float32
    assert encoder.space["state"].high.tolist() == [np.inf, 1.0, 1.0]


def test_half_a_bound_is_no_scale_and_neither_is_the_largest_float():
    space = spaces.Dict(half=box(0.0, np.inf, (1,)), huge=box(-3.4e38, 3.4e38, (1,)), point=box(2.0, 2.0, (1,)))
    state = Encoder.from_space(space).encode({"half": [3.0], "huge": [5.0], "point": [2.0]})["state"]
    np.testing.assert_allclose(state, [3.0, 5.0, 0.0])


def test_nested_and_goal_spaces_are_flattened_and_simulator_secrets_dropped():
    space = spaces.Dict(
        {
            "observation": spaces.Dict(q=box(-1, 1, (2,)), dq=box(-1, 1, (1,))),
            "desired_goal": box(-np.inf, np.inf, (3,)),
            "achieved_goal": box(-np.inf, np.inf, (3,)),
            "sim/depth_m": box(-1, 1, (1,)),
        }
    )
    encoder = Encoder.from_space(space)
    assert [name for name, _ in encoder.vectors["state"].parts] == [
        "achieved_goal",
        "desired_goal",
        "observation/dq",
        "observation/q",
    ]
    assert encoder.encode(space.sample())["state"].shape == (9,)


def test_images_pass_untouched():
    space = spaces.Dict(camera=box(0, 255, (4, 5, 3), np.uint8), q=box(-1, 1, (2,)))
    encoder = Encoder.from_space(space)
    obs = space.sample()
    encoded = encoder.encode(obs)
    assert encoded["camera"] is obs["camera"]
    assert encoder.space.contains(encoded)


@pytest.mark.parametrize(
    "space", [box(-1, 1, (3,)), box(-5, 5, (2, 3), np.float64), box(0, 9, (4,), np.int64), box(0, 255, (2,), np.uint8)]
)
def test_plain_boxes_become_state_within_the_encoded_space(space):
    encoder = Encoder.from_space(space)
    space.seed(0)
    for _ in range(50):
        assert encoder.space.contains(encoder.encode(space.sample()))


def test_a_plain_image_is_an_image():
    encoder = Encoder.from_space(box(0, 255, (4, 4, 3), np.uint8))
    assert list(encoder.encode(np.zeros((4, 4, 3), np.uint8))) == ["image"]


def test_an_unsupported_space_is_named():
    with pytest.raises(ValueError, match=r"'inner/mode' is a Discrete space: only Box and Dict"):
        Encoder.from_space(spaces.Dict(inner=spaces.Dict(mode=spaces.Discrete(3))))


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        ({"a": np.zeros(2)}, "'b' is missing: there is a"),
        ({"a": np.zeros(3), "b": np.zeros(1)}, r"'a' has shape \(3,\): its space says \(2,\)"),
        ({"a": np.zeros(2), "b": np.array([np.nan])}, "observation b is not finite"),
        ({"a": np.array([0.0, np.inf]), "b": np.zeros(1)}, "observation a is not finite"),
    ],
)
def test_bad_observations_are_named(obs, message):
    encoder = Encoder.from_space(spaces.Dict(a=box(-1, 1, (2,)), b=box(-1, 1, (1,))))
    with pytest.raises(ValueError, match=message):
        encoder.encode(obs)


def test_sizes_count_the_vectors_that_there_are():
    space = spaces.Dict(state=box(-1, 1, (2,)), wrist=box(0, 255, (4, 4, 3), np.uint8), privileged=box(-1, 1, (3,)))
    assert vector_size(space, "state") == 2 and vector_size(space, "state", "privileged") == 5
    assert vector_size(spaces.Dict(wrist=space["wrist"]), "state") == 0
    assert image_names(space) == ("wrist",)
    assert action_size(box(-1, 1, (4,))) == 4
    with pytest.raises(ValueError, match="give the Dict space of an Encoder"):
        vector_size(box(-1, 1, (2,)), "state")
    with pytest.raises(ValueError, match=r"rescale it to \[-1, 1\]"):
        action_size(box(-2, 2, (4,)))
    with pytest.raises(ValueError, match="one-dimensional Box"):
        action_size(spaces.Discrete(4))


def test_what_is_for_critics_travels_in_a_vector_of_its_own():
    space = spaces.Dict(
        {"critic/cube": box(-2.0, 2.0, (3,)), "a": box(-1.0, 1.0, (2,)), "critic/b": box(0.0, 1.0, (1,))}
    )
    encoder = Encoder.from_space(space)
    assert set(encoder.space.spaces) == {"state", "privileged"}
    encoded = encoder.encode({"critic/cube": np.full(3, 1.0), "a": np.full(2, 0.25), "critic/b": np.ones(1)})
    np.testing.assert_array_equal(encoded["state"], [0.25, 0.25])
    np.testing.assert_array_equal(encoded["privileged"], [1.0, 0.5, 0.5, 0.5])  # critic/b, then critic/cube
