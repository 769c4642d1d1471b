"""A cable in the twin: how far it sags, how it is held, placed, read and drawn; and the clip that it has to go into."""

import numpy as np
import pytest

from controllers.markers import Shown, to_markers
from controllers.moving import prop_readings
from robot_rl.build import make_env
from robot_rl.find import find
from robot_rl.geometry import quat_multiply, quat_rotate, rotvec_to_quat
from robot_rl.types import Chain, Geom, Pose, Prop, Scene, Start
from sim._models import PANDA
from sim._twin import Twin
from tasks import _common as common
from tasks import cable_route

TASK = cable_route.make(cable_route.Config())
G_MPS2 = 9.81


def twin(scene=TASK.scene, **more):
    panda = find("sim", "panda")
    return Twin(PANDA, panda.Config(), scene, **more)


def held_level(**chain):
    """A cable that the hand holds level in free air, and its twin."""
    along_x = (0.0, np.sqrt(0.5), 0.0, np.sqrt(0.5))
    link = Geom("capsule", (0.003, 0.01), (0.01, 0, 0), along_x)
    cable = Prop("cable", "cable", (link,), 0.008, Chain(8, 0.02, **chain))
    made = twin(Scene((cable,), table_height_m=None, locked_gripper=1.0))
    pose = Pose(np.array([0.45, 0.0, 0.4]), common.tool_down(np.zeros(3)))
    made.place(Start(pose, props={"cable": pose}))
    return made, cable


def test_a_cable_sags_as_the_statics_of_its_joints_say():
    """Joint i bears the weight of all links behind it: its angle is their moment over its stiffness."""
    made, cable = held_level(joint_nmprad=0.2)
    made.wait(2.0)
    links, length = cable.chain.links, cable.chain.link_m
    weight_n = cable.mass_kg / links * G_MPS2
    joints = length * np.arange(1, links)
    middles = length * (np.arange(links) + 0.5)
    angles = [weight_n * np.sum(np.clip(middles - x, 0.0, None)) / 0.2 for x in joints]
    expected = sum(angle * (length * (links - 1) - x) for angle, x in zip(angles, joints, strict=True))
    readings = made.readings()
    assert readings["prop/cable"][2] - readings["prop/cable/7"][2] == pytest.approx(expected, rel=0.05)
    assert 0.005 < expected < 0.01


def test_a_stiffer_cable_sags_less_and_every_number_repeats():
    ends = []
    for stiffness in (0.05, 0.1, 0.1):
        made, _ = held_level(joint_nmprad=stiffness)
        made.wait(0.5)
        ends.append(made.readings()["prop/cable/7"])
    assert ends[0][2] < ends[1][2] - 0.005 and np.array_equal(ends[1], ends[2])


def test_it_is_held_as_it_was_placed_and_moves_with_the_hand():
    made = twin()
    start = TASK.reset(np.random.default_rng(4))
    made.place(start)
    cable = start.props["cable"]
    np.testing.assert_allclose(made.readings()["prop/cable"], [*cable.pos_m, *cable.quat_xyzw], atol=2e-5)
    made.place_props({"cable": start.tcp})
    state = made.read()
    first = made.readings()["prop/cable"]
    np.testing.assert_allclose(first, [*state.tcp_pos_m, *state.tcp_quat_xyzw], atol=2e-5)
    begun = state
    made.wait(0.3)
    state, later = made.read(), made.readings()["prop/cable"]
    np.testing.assert_allclose(later[:3] - state.tcp_pos_m, first[:3] - begun.tcp_pos_m, atol=1e-7)
    with pytest.raises(ValueError, match=r"cable/1.*the scene places cable, clip"):
        made.place_props({"cable/1": start.tcp})


def test_compiled_and_plain_ticks_agree_bit_for_bit():
    start = TASK.reset(np.random.default_rng(1))
    poses = []
    for compiled in (True, False):
        made = twin(compiled=compiled)
        made.place(start)
        made.wait(0.05)
        poses.append(made.readings())
    for part, pose in poses[0].items():
        assert np.array_equal(pose, poses[1][part]), part


def test_a_picture_of_the_readings_has_the_cable_of_the_twin():
    made = twin()
    made.place(TASK.reset(np.random.default_rng(2)))
    made.wait(0.2)
    props = {name.removeprefix("prop/"): pose for name, pose in made.readings().items()}
    made._picture.move(made.read().q_rad, 1.0, props)
    np.testing.assert_allclose(made._picture.data.qpos, made._data.qpos, atol=1e-9)
    np.testing.assert_allclose(made._picture._model.body("cable").pos, made._model.body("cable").pos, atol=1e-9)
    with pytest.raises(ValueError, match="is it the same task"):
        made._picture.move(made.read().q_rad, 1.0, {name: props[name] for name in ("cable", "clip")})


def test_markers_show_every_link_that_is_known():
    poses = {part: np.array([0.1 * i, 0, 0, 0, 0, 0, 1.0]) for i, part in enumerate(TASK.scene.props[0].parts)}
    for known in (1, cable_route.LINKS):
        shown = Shown(dict(list(poses.items())[:known]))
        drawn = [m for m in to_markers(TASK.scene, TASK.bounds, shown, "base", 0, 1.0).markers if m.ns == "prop/cable"]
        assert len(drawn) == 3 * known, "a capsule is a cylinder and two balls"


def test_an_arm_that_nobody_shows_the_cable_refuses_by_name():
    start, state = TASK.reset(np.random.default_rng(0)), make_env("cable_route").unwrapped.arm.read()
    with pytest.raises(ValueError, match=r"nobody measures 'cable'.*topic props"):
        prop_readings(TASK.scene, {}, start, state)


def test_clip_start_and_grasp_are_drawn_within_their_spreads():
    starts = [TASK.reset(np.random.default_rng(seed)) for seed in range(300)]
    cfg = TASK.config
    clips = np.array([start.props["clip"].pos_m - cable_route.CLIP_M for start in starts])
    yaws = np.array([2 * np.arctan2(*start.props["clip"].quat_xyzw[[2, 3]]) for start in starts])
    slides = np.array([np.linalg.norm(start.props["cable"].pos_m - start.tcp.pos_m) for start in starts])
    assert np.abs(clips).max() <= cfg.clip_spread_m and clips[:, :2].std(axis=0).min() > 0.015
    assert np.abs(yaws).max() <= cfg.clip_spread_rad and yaws.std() > 0.17
    assert slides.max() <= cfg.grasp_spread_m and slides.std() > 0.001
    assert len({tuple(start.tcp.pos_m) for start in starts}) == 300


def test_the_nearest_point_of_a_line():
    line = np.array([[0.0, 0, 0], [1.0, 0, 0], [1.0, 1.0, 0]])
    np.testing.assert_allclose(cable_route.nearest(line, np.array([0.3, -0.2, 0.1])), [0.3, 0, 0])
    np.testing.assert_allclose(cable_route.nearest(line, np.array([1.4, 0.6, 0.0])), [1.0, 0.6, 0])
    np.testing.assert_allclose(cable_route.nearest(line, np.array([-1.0, 0, 0])), [0, 0, 0])


def press(aside_m: float):
    """Go down onto the clip, the cable ``aside_m`` beside the slot; the last info and private observation."""
    env = make_env("cable_route")
    obs, info = env.reset(seed=0)
    for step in range(60):
        move = cable_route._route(obs | {"gap": obs["gap"] + [0.0, aside_m, 0.0]})
        if step > 25:
            move[2] = 0.01
        action = np.clip(move / common.move_steps(TASK.config.step_m, TASK.config.step_rad), -1, 1)
        obs, _, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            break
    return env.unwrapped.private_obs, info


def test_only_between_the_prongs_is_it_seated():
    """Contact is real: the guides lead a cable in that is a little off, one on or beside a prong stays there."""
    assert press(0.0)[1]["success"] and press(0.003)[1]["success"]
    for aside_m in (0.012, -0.02):
        seen, info = press(aside_m)
        assert not info["success"] and info["fault"] == ""
        assert np.linalg.norm(seen["gap"]) > 2 * TASK.config.seated_m


def test_the_demonstrator_succeeds():
    env = make_env("cable_route")
    successes = 0
    for seed in range(30):
        obs, _ = env.reset(seed=seed)
        expert = env.unwrapped.demonstrator(np.random.default_rng(seed))
        for _ in range(TASK.max_steps):
            obs, _, terminated, truncated, _ = env.step(expert(obs))
            if terminated or truncated:
                successes += terminated
                break
    assert successes >= 29


def test_the_hand_holds_the_cable_along_x_of_the_tcp():
    start = TASK.reset(np.random.default_rng(7))
    straight = quat_rotate(start.props["cable"].quat_xyzw, np.array([1.0, 0.0, 0.0]))
    expected = quat_rotate(quat_multiply(start.tcp.quat_xyzw, rotvec_to_quat(np.zeros(3))), np.array([1.0, 0.0, 0.0]))
    assert np.arccos(straight @ expected) <= np.sqrt(2) * TASK.config.grasp_spread_rad
