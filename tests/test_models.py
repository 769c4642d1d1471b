"""The arm models against what the makers publish, and against physics."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
import pytest

from sim._models import FR3, PANDA, UR5E, Model

PI = np.pi


@dataclass(frozen=True)
class Published:
    """Facts typed here a second time, apart from the models."""

    dh: list[tuple[float, float, float]]  # (a m, alpha rad, d m) a joint
    craig: bool  # modified DH: the twist comes before the joint
    flange: float  # m along the last z
    tcp: tuple[float, float]  # m along z, rad about z, from the flange
    q_min_rad: list[float]
    q_max_rad: list[float]
    dq_radps: list[float]
    tau_nm: list[float]
    mass_kg: list[float]  # links, then hand and the two fingers
    ready_tcp_m: tuple[float, float, float]
    width_m: float
    force_n: float


FRANKA_DH = [
    (0.0, 0.0, 0.333),
    (0.0, -PI / 2, 0.0),
    (0.0, PI / 2, 0.316),
    (0.0825, PI / 2, 0.0),
    (-0.0825, -PI / 2, 0.384),
    (0.0, PI / 2, 0.0),
    (0.088, PI / 2, 0.0),
]
HAND_KG = [0.6544, 0.0291, 0.0291]
FRANKA_READY_M = (0.306891, 0.0, 0.590282 - 0.1034)
PUBLISHED = {
    "panda": Published(
        dh=FRANKA_DH,
        craig=True,
        flange=0.107,
        tcp=(0.1034, -PI / 4),
        q_min_rad=[-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973],
        q_max_rad=[2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973],
        dq_radps=[2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61],
        tau_nm=[87, 87, 87, 87, 12, 12, 12],
        mass_kg=[2.7907, 2.5420, 2.2513, 2.2037, 2.2855, 1.353, 0.35973, *HAND_KG],
        ready_tcp_m=FRANKA_READY_M,
        width_m=0.08,
        force_n=70.0,
    ),
    "fr3": Published(
        dh=FRANKA_DH,
        craig=True,
        flange=0.107,
        tcp=(0.1034, -PI / 4),
        q_min_rad=[-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159],
        q_max_rad=[2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159],
        dq_radps=[2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26],
        tau_nm=[87, 87, 87, 87, 12, 12, 12],
        mass_kg=[2.9274653, 2.9355370, 2.2449014, 2.6155956, 2.3271208, 1.8170377, 0.6271433, *HAND_KG],
        ready_tcp_m=FRANKA_READY_M,
        width_m=0.08,
        force_n=70.0,
    ),
    "ur5e": Published(
        dh=[
            (0.0, PI / 2, 0.1625),
            (-0.425, 0.0, 0.0),
            (-0.3922, 0.0, 0.0),
            (0.0, PI / 2, 0.1333),
            (0.0, -PI / 2, 0.0997),
            (0.0, 0.0, 0.0996),
        ],
        craig=False,
        flange=0.0,
        tcp=(0.1577, 0.0),
        q_min_rad=[-2 * PI] * 6,
        q_max_rad=[2 * PI] * 6,
        dq_radps=[PI] * 6,
        tau_nm=[150, 150, 150, 28, 28, 28],
        mass_kg=[3.761, 8.058, 2.846, 1.37, 1.3, 0.365, 0.93, 0.07, 0.07],
        ready_tcp_m=(0.45, 0.0, 0.3),
        width_m=0.05,
        force_n=185.0,
    ),
}
PRIMITIVES = {
    mujoco.mjtGeom.mjGEOM_SPHERE,
    mujoco.mjtGeom.mjGEOM_CAPSULE,
    mujoco.mjtGeom.mjGEOM_ELLIPSOID,
    mujoco.mjtGeom.mjGEOM_CYLINDER,
    mujoco.mjtGeom.mjGEOM_BOX,
}
VISUAL, COLLISION = 2, 3


@pytest.fixture(params=[PANDA, FR3, UR5E], ids=lambda arm: arm.name)
def arm(request: pytest.FixtureRequest) -> Model:
    return request.param


@pytest.fixture
def facts(arm: Model) -> Published:
    return PUBLISHED[arm.name]


@pytest.fixture
def physics(arm: Model) -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = mujoco.MjModel.from_xml_path(str(arm.xml_path))
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, model.key("ready").id)
    return model, data


def transform(axis: str, angle_rad: float, offset_m: float) -> np.ndarray:
    """(4, 4): a screw along and about x or z."""
    out = np.eye(4)
    i = "xyz".index(axis)
    j, k = (i + 1) % 3, (i + 2) % 3
    out[j, j] = out[k, k] = np.cos(angle_rad)
    out[k, j], out[j, k] = np.sin(angle_rad), -np.sin(angle_rad)
    out[i, 3] = offset_m
    return out


def forward(facts: Published, q_rad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flange and tcp (4, 4) from the DH table."""
    flange = np.eye(4)
    for (a, alpha, d), q in zip(facts.dh, q_rad, strict=True):
        twist, joint = transform("x", alpha, a), transform("z", q, d)
        flange = flange @ (twist @ joint if facts.craig else joint @ twist)
    flange = flange @ transform("z", 0.0, facts.flange)
    return flange, flange @ transform("z", facts.tcp[1], facts.tcp[0])


def assert_same_pose(data: mujoco.MjData, site: str, pose: np.ndarray) -> None:
    rotation = data.site(site).xmat.reshape(3, 3)
    assert np.linalg.norm(data.site(site).xpos - pose[:3, 3]) < 1e-6
    assert np.linalg.norm(rotation - pose[:3, :3]) / np.sqrt(2.0) < 1e-6  # rad, for small angles


def test_forward_kinematics(arm: Model, facts: Published, physics) -> None:
    model, data = physics
    rng = np.random.default_rng(0)
    for q_rad in rng.uniform(arm.limits.q_min_rad, arm.limits.q_max_rad, (1000, arm.limits.dof)):
        data.qpos[: arm.limits.dof] = q_rad
        mujoco.mj_kinematics(model, data)
        flange, tcp = forward(facts, q_rad)
        assert_same_pose(data, "flange", flange)
        assert_same_pose(data, "tcp", tcp)


def test_ready_pose(arm: Model, facts: Published, physics) -> None:
    model, data = physics
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(data.qpos[: arm.limits.dof], arm.ready_rad, atol=1e-9)
    np.testing.assert_allclose(data.site("tcp").xpos, facts.ready_tcp_m, atol=1e-6)
    np.testing.assert_allclose(data.site("tcp").xmat.reshape(3, 3), np.diag([1.0, -1.0, -1.0]), atol=1e-6)
    assert data.ncon == 0


def test_limits_are_the_published_ones(arm: Model, facts: Published, physics) -> None:
    model, _ = physics
    dof = len(facts.dh)
    limits = arm.limits
    assert limits.dof == dof
    np.testing.assert_array_equal(limits.q_min_rad, facts.q_min_rad)
    np.testing.assert_array_equal(limits.q_max_rad, facts.q_max_rad)
    np.testing.assert_array_equal(limits.dq_max_radps, facts.dq_radps)
    np.testing.assert_array_equal(limits.tau_max_nm, facts.tau_nm)
    assert (limits.gripper_width_m, limits.gripper_force_n) == (facts.width_m, facts.force_n)
    for i in range(dof):
        assert model.joint(i).name == f"joint{i + 1}"
        assert model.actuator(i).name == f"motor{i + 1}"
        assert model.actuator(i).trnid[0] == i
        np.testing.assert_allclose(model.joint(i).range, [facts.q_min_rad[i], facts.q_max_rad[i]], atol=1e-12)
        np.testing.assert_array_equal(model.actuator(i).ctrlrange, [-facts.tau_nm[i], facts.tau_nm[i]])
    for i, finger in enumerate(("finger1", "finger2"), start=dof):
        assert model.actuator(i).name == finger
        np.testing.assert_array_equal(model.actuator(i).ctrlrange, [0.0, arm.finger_open_m])
        np.testing.assert_array_equal(model.actuator(i).forcerange, [-facts.force_n, facts.force_n])
    assert (model.nu, model.nq) == (dof + 2, dof + 2)


def test_masses_and_inertias(facts: Published, physics) -> None:
    model, _ = physics
    links = [f"link{i + 1}" for i in range(len(facts.dh))]
    bodies = [model.body(name) for name in (*links, "hand", "finger1", "finger2")]
    np.testing.assert_allclose([body.mass[0] for body in bodies], facts.mass_kg, rtol=1e-6)
    for body in bodies:
        small, middle, large = np.sort(body.inertia)
        assert small > 0.0
        assert small + middle >= large
    assert model.ngeom > 0
    assert np.all(model.body_gravcomp[2:] == 1.0)  # all but the world and the base


def test_only_primitive_geoms(physics) -> None:
    model, _ = physics
    assert set(model.geom_type) <= {int(kind) for kind in PRIMITIVES}
    assert (model.nmesh, model.nhfield, model.ntex) == (0, 0, 0)
    visual, collision = model.geom_group == VISUAL, model.geom_group == COLLISION
    assert np.all(visual | collision)
    assert not model.geom_contype[visual].any()
    assert not model.geom_conaffinity[visual].any()
    assert np.all(model.geom_conaffinity[collision] & 1)  # meets the surroundings
    assert 5 <= collision.sum() <= 16
    for pad in ("pad1", "pad2"):
        assert model.geom(pad).condim[0] == 4
        assert model.geom(pad).friction[0] == pytest.approx(1.0)


def test_gravity_compensation_holds_still(arm: Model, physics) -> None:
    model, data = physics
    rng = np.random.default_rng(1)
    low, high = 0.8 * arm.limits.q_min_rad, 0.8 * arm.limits.q_max_rad
    free = []
    while len(free) < 4:  # poses in which no link touches another
        data.qpos[: arm.limits.dof] = rng.uniform(np.minimum(low, high), np.maximum(low, high))
        mujoco.mj_forward(model, data)
        if data.ncon == 0:
            free.append(data.qpos.copy())
    for q_rad in (model.key("ready").qpos, *free):
        mujoco.mj_resetDataKeyframe(model, data, 0)
        data.qpos[:] = q_rad
        for _ in range(10):
            mujoco.mj_step(model, data, 500)
            np.testing.assert_allclose(data.qpos, q_rad, atol=1e-4)
        assert data.time == pytest.approx(5.0)


def test_without_gravity_compensation_it_falls(physics) -> None:
    """The test above can fail."""
    model, data = physics
    model.body_gravcomp[:] = 0.0
    before = data.qpos.copy()
    mujoco.mj_step(model, data, 500)
    assert np.abs(data.qpos - before).max() > 0.1


def hold(arm: Model, data: mujoco.MjData, q_rad: np.ndarray) -> None:
    """A stiff joint servo within the torque limits, so that only the joint or the hand in question moves."""
    dof, tau_max = arm.limits.dof, arm.limits.tau_max_nm
    wanted = 20.0 * tau_max * (q_rad - data.qpos[:dof]) - 1.0 * tau_max * data.qvel[:dof]
    data.ctrl[:dof] = np.clip(wanted, -tau_max, tau_max)


@pytest.mark.parametrize("direction", [-1.0, 1.0])
def test_joints_stop_at_their_ends(arm: Model, direction: float, physics) -> None:
    model, data = physics
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT
    for i in range(arm.limits.dof):
        mujoco.mj_resetDataKeyframe(model, data, 0)
        end = (arm.limits.q_max_rad if direction > 0 else arm.limits.q_min_rad)[i]
        rest = arm.ready_rad.copy()
        data.qpos[i] = rest[i] = end - 0.2 * direction
        beyond = []
        for _ in range(1500):
            hold(arm, data, rest)
            data.ctrl[i] = 0.2 * direction * arm.limits.tau_max_nm[i]
            mujoco.mj_step(model, data)
            beyond.append(direction * (data.qpos[i] - end))
        assert max(beyond) < 0.01
        assert beyond[-1] == pytest.approx(0.0, abs=2e-3)


def opening_m(model: mujoco.MjModel, data: mujoco.MjData) -> float:
    """Gap between the faces of the two pads."""
    pads = data.geom("pad1").xpos, data.geom("pad2").xpos
    return float(np.linalg.norm(pads[0] - pads[1]) - model.geom("pad1").size[1] - model.geom("pad2").size[1])


def test_hand_opens_and_closes(arm: Model, facts: Published, physics) -> None:
    model, data = physics
    for share, gap_m in ((0.0, 0.0), (1.0, facts.width_m), (0.5, facts.width_m / 2)):
        data.ctrl[arm.limits.dof :] = share * arm.finger_open_m
        for _ in range(1500):
            hold(arm, data, arm.ready_rad)
            mujoco.mj_step(model, data)
        assert opening_m(model, data) == pytest.approx(gap_m, abs=1e-4)


BLOCK_M = 0.03


def grasp(arm: Model) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """A free block of 100 g in the closed hand, held in the ready pose."""
    spec = mujoco.MjSpec.from_file(str(arm.xml_path))
    block = spec.worldbody.add_body(name="block")
    block.add_freejoint(name="block")
    half = BLOCK_M / 2
    block.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=[half] * 3, mass=0.1, friction=[0.5, 0.005, 0.0001])
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    data.joint("block").qpos[:3] = data.site("tcp").xpos
    data.joint("block").qpos[1] += 0.002  # a little off centre
    model.opt.gravity[2] = 0.0
    run(arm, model, data, steps=1500, closed=True)
    model.opt.gravity[2] = -9.81
    run(arm, model, data, steps=500, closed=True)
    return model, data


def run(arm: Model, model: mujoco.MjModel, data: mujoco.MjData, steps: int, closed: bool) -> None:
    data.ctrl[arm.limits.dof :] = 0.0 if closed else arm.finger_open_m
    for _ in range(steps):
        hold(arm, data, arm.ready_rad)
        mujoco.mj_step(model, data)


def pad_force_n(model: mujoco.MjModel, data: mujoco.MjData, pad: str) -> float:
    """Sum of the normal forces on a pad."""
    total, force = 0.0, np.zeros(6)
    for i, contact in enumerate(data.contact):
        if model.geom(pad).id in contact.geom:
            mujoco.mj_contactForce(model, data, i, force)
            total += force[0]
    return total


def in_hand_m(data: mujoco.MjData) -> np.ndarray:
    """Position of the block in the frame of the tcp."""
    return data.site("tcp").xmat.reshape(3, 3).T @ (data.body("block").xpos - data.site("tcp").xpos)


def test_grasping_force(arm: Model, facts: Published) -> None:
    model, data = grasp(arm)
    for pad in ("pad1", "pad2"):
        assert pad_force_n(model, data, pad) == pytest.approx(facts.force_n, rel=0.1)
    assert opening_m(model, data) == pytest.approx(BLOCK_M, abs=2e-4)


@pytest.mark.parametrize("pull", np.vstack([np.eye(3), -np.eye(3)]).tolist(), ids=str)
def test_grasped_block_does_not_slip(arm: Model, pull: list[float]) -> None:
    model, data = grasp(arm)
    before = in_hand_m(data)
    data.body("block").xfrc_applied[:3] = 2.0 * np.asarray(pull)
    run(arm, model, data, steps=1000, closed=True)
    np.testing.assert_allclose(in_hand_m(data), before, atol=2e-4)


def test_opened_hand_drops_the_block(arm: Model) -> None:
    """The test above can fail."""
    model, data = grasp(arm)
    run(arm, model, data, steps=1000, closed=False)
    assert in_hand_m(data)[2] > 0.1  # z points out of the hand, down


def test_links_clear_each_other(arm: Model, physics) -> None:
    """Neighbours never touch; of the poses with the hand in front of the base, over 90 % are free."""
    model, data = physics
    rng = np.random.default_rng(2)
    # Half of a UR5e's two turns: every pose once.
    low, high = np.maximum(arm.limits.q_min_rad, -PI), np.minimum(arm.limits.q_max_rad, PI)
    in_front = free = 0
    while in_front < 200:
        data.qpos[: arm.limits.dof] = rng.uniform(low, high)
        mujoco.mj_fwdPosition(model, data)
        for contact in data.contact:
            first, second = (model.geom_bodyid[geom] for geom in contact.geom)
            assert model.body_parentid[second] != first
            assert model.body_parentid[first] != second
        x, y, z = data.site("tcp").xpos
        if 0.25 < x < 0.75 and abs(y) < 0.4 and 0.0 < z < 0.7 and data.site("tcp").xmat[8] < -0.5:
            in_front += 1
            free += data.ncon == 0
    assert free >= 0.9 * in_front
