import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from robot_rl import checkpoint
from robot_rl.agents import sac

ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)


def states(size):
    return spaces.Dict(state=spaces.Box(-1.0, 1.0, (size,), np.float32))


def make(state_dim=3, hidden=(8, 8), seed=0, **settings):
    return sac.make(sac.Config(hidden=hidden, **settings), states(state_dim), ACTIONS, seed)


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_round_trip_is_exact(tmp_path):
    saved = make(seed=1)
    checkpoint.save(tmp_path / "agent", saved, {"task": "reach", "steps": 7})
    loaded = checkpoint.load(tmp_path / "agent", make(seed=2))
    assert same(saved, loaded)
    assert checkpoint.load_metadata(tmp_path / "agent") == {"task": "reach", "steps": 7}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"state_dim": 5}, r"'.actor.opt_state.*float32 \(3, 8\) in the file and float32 \(5, 8\) here"),
        ({"hidden": (8, 8, 8)}, "'.actor.opt_state.*in the file and float32 .* here|missing"),
        ({"critics": 4}, r"'.critic.opt_state.*float32 \(2, .*in the file and float32 \(4, "),
    ],
)
def test_another_agent_is_refused_by_name_of_its_first_array(tmp_path, other, message):
    checkpoint.save(tmp_path / "agent", make())
    with pytest.raises(ValueError, match=message) as error:
        checkpoint.load(tmp_path / "agent", make(**other))
    assert "use the task, agent and settings it was made with" in str(error.value)
    assert str(tmp_path / "agent") in str(error.value)


@pytest.mark.parametrize("keep", [0, 5, 30, 60, 1000, -1])
def test_a_file_cut_short_is_named(tmp_path, keep):
    path = tmp_path / "agent"
    checkpoint.save(path, make())
    path.write_bytes(path.read_bytes()[:keep])
    for read in (lambda: checkpoint.load(path, make()), lambda: checkpoint.load_metadata(path)):
        with pytest.raises(ValueError, match=f"{path} is (not a checkpoint|cut short)"):
            read()


def test_every_flipped_byte_is_found(tmp_path):
    path = tmp_path / "agent"
    checkpoint.save(path, {"w": jnp.arange(4.0)}, {"a": 1})
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        with pytest.raises(ValueError, match=f"{path} is"):
            checkpoint.load(path, {"w": jnp.zeros(4)})


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "agent"
    checkpoint.save(path, {"w": jnp.ones(2)})
    before = path.read_bytes()
    with pytest.raises(ValueError):
        checkpoint.save(path, {"w": jnp.zeros(2)}, {"loss": float("nan")})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_no_file_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "agent", make())
