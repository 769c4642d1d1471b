"""From an arm's MJCF and a task's Scene to one MuJoCo model. The only place where props become geoms."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from robot_rl.geometry import matrix_to_quat, quat_conjugate, quat_multiply, quat_rotate
from robot_rl.types import Geom, Pose, Prop, Scene
from sim._gl import mujoco

# The camera on the hand, in the tcp frame: beside the fingers, and looking at what they hold and what is under it.
WRIST_POS_M = (0.075, 0.0, -0.06)
WRIST_AIM_M = (0.0, 0.0, 0.05)
WRIST_FOVY_DEG = 55.0
SHAPES = {
    "box": mujoco.mjtGeom.mjGEOM_BOX,
    "sphere": mujoco.mjtGeom.mjGEOM_SPHERE,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "capsule": mujoco.mjtGeom.mjGEOM_CAPSULE,
}
FINGERS = ("finger1", "finger2")
# Stiff contacts: 4 ms is four physics steps; the first penetration of 20 N stays well under 0.1 mm.
SOLREF = (0.004, 1.0)
SOLIMP = (0.95, 0.99, 0.0005, 0.5, 2.0)
# Of a chain's joints, kg m^2: a link of a gram would ring faster than the clock ticks.
CHAIN_ARMATURE = 5e-6


def to_wxyz(quat_xyzw: np.ndarray | tuple[float, ...]) -> np.ndarray:
    """MuJoCo's quaternion order. This and ``from_wxyz`` are the only conversions in the project."""
    return np.array([quat_xyzw[3], quat_xyzw[0], quat_xyzw[1], quat_xyzw[2]])


def from_wxyz(quat_wxyz: np.ndarray) -> np.ndarray:
    return np.array([quat_wxyz[1], quat_wxyz[2], quat_wxyz[3], quat_wxyz[0]])


def build(arm_xml: Path, scene: Scene, finger_open_m: float, visual: bool) -> mujoco.MjModel:
    """Compile the arm with the scene around it; joints of the arm come first, free props last.

    Without ``visual`` the geoms that only look good are left out: a fifth of a physics step goes into moving them.
    Both models have the same joints, bodies and state.
    """
    spec = mujoco.MjSpec.from_file(str(arm_xml))
    spec.compiler.discardvisual = not visual
    # A diverged state has to reach the guard; MuJoCo would quietly start the world anew.
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
    if scene.locked_gripper is not None:
        _lock_fingers(spec, (1.0 - scene.locked_gripper) * finger_open_m)
    _add_surroundings(spec, scene)
    for prop in scene.props:
        _add_prop(spec, prop)
    if visual:
        _add_wrist_camera(spec)
    return spec.compile()


def place_prop(model: mujoco.MjModel, data: mujoco.MjData, name: str, pos_m: np.ndarray, quat_xyzw: np.ndarray) -> None:
    """Put a fixture or a free prop somewhere; velocities stay."""
    mocap = int(model.body(name).mocapid[0])
    if mocap >= 0:
        data.mocap_pos[mocap], data.mocap_quat[mocap] = pos_m, to_wxyz(quat_xyzw)
    else:
        where = data.joint(name).qpos
        where[:3], where[3:] = pos_m, to_wxyz(quat_xyzw)


def hold_cable(model: mujoco.MjModel, data: mujoco.MjData, cable: Prop, pose: Pose, tcp: Pose) -> None:
    """Weld a cable's first link to the hand so that it is at ``pose`` while the tcp is at ``tcp``, the rest straight
    behind it and at rest."""
    site, root = model.site("tcp"), model.body(cable.name)
    inverse = quat_conjugate(np.asarray(tcp.quat_xyzw))
    in_tcp_m = quat_rotate(inverse, pose.pos_m - tcp.pos_m)
    in_hand = from_wxyz(site.quat)
    root.pos[:] = site.pos + quat_rotate(in_hand, in_tcp_m)
    root.quat[:] = to_wxyz(quat_multiply(in_hand, quat_multiply(inverse, np.asarray(pose.quat_xyzw))))
    for part in cable.parts[1:]:
        data.joint(part).qpos[:] = (1.0, 0.0, 0.0, 0.0)
        data.joint(part).qvel[:] = 0.0


def bend_cable(data: mujoco.MjData, cable: Prop, quats_xyzw: list[np.ndarray]) -> None:
    """Turn each link of a cable as given, in the base frame."""
    for part, before, after in zip(cable.parts[1:], quats_xyzw, quats_xyzw[1:], strict=False):
        data.joint(part).qpos[:] = to_wxyz(quat_multiply(quat_conjugate(before), after))


def _lock_fingers(spec: mujoco.MjSpec, opening_m: float) -> None:
    """Weld the fingers at an opening: two joints and their rack less to integrate where no task moves them."""
    for element in (*spec.tendons, *spec.keys, *(spec.actuator(name) for name in FINGERS)):
        spec.delete(element)
    for index, name in enumerate(FINGERS, start=1):
        body, joint = spec.body(name), spec.joint(f"finger_joint{index}")
        body.pos = body.pos + opening_m * quat_rotate(from_wxyz(body.quat), np.asarray(joint.axis))
        spec.delete(joint)


def _add_surroundings(spec: mujoco.MjSpec, scene: Scene) -> None:
    visual = spec.visual
    visual.headlight.ambient[:] = (0.35, 0.35, 0.35)
    visual.headlight.diffuse[:] = (0.45, 0.45, 0.45)
    visual.headlight.specular[:] = (0.1, 0.1, 0.1)
    visual.quality.shadowsize = 2048
    visual.global_.offwidth, visual.global_.offheight = 1280, 960
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=(0.93, 0.95, 0.97),
        rgb2=(0.62, 0.70, 0.78),
        width=64,
        height=384,
    )
    spec.worldbody.add_light(pos=(0.6, -0.8, 2.2), dir=(-0.1, 0.35, -1.0), diffuse=(0.55, 0.55, 0.55), castshadow=True)
    if scene.table_height_m is None:
        return
    spec.add_texture(
        name="table",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=(0.97, 0.96, 0.94),
        rgb2=(0.90, 0.89, 0.87),
        width=256,
        height=256,
    )
    table = spec.add_material(name="table", texrepeat=(10, 10), reflectance=0.0)
    table.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "table"
    spec.worldbody.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=(1.5, 1.5, 0.05),
        pos=(0, 0, scene.table_height_m),
        material="table",
        solref=SOLREF,
        solimp=SOLIMP,
    )


def _add_wrist_camera(spec: mujoco.MjSpec) -> None:
    """MuJoCo's cameras look along -z, y up. Up in the picture is the tcp's -x, away from the camera's own side."""
    tcp = spec.site("tcp")
    back = np.subtract(WRIST_POS_M, WRIST_AIM_M)
    z = back / np.linalg.norm(back)
    x = np.cross((-1.0, 0.0, 0.0), z)
    x /= np.linalg.norm(x)
    turn = matrix_to_quat(np.stack([x, np.cross(z, x), z], axis=1).ravel())
    frame = from_wxyz(tcp.quat)
    tcp.parent.add_camera(
        name="wrist",
        pos=tcp.pos + quat_rotate(frame, np.array(WRIST_POS_M)),
        quat=to_wxyz(quat_multiply(frame, turn)),
        fovy=WRIST_FOVY_DEG,
    )


def _add_prop(spec: mujoco.MjSpec, prop: Prop) -> None:
    if prop.kind == "fixture":
        body = spec.worldbody.add_body(name=prop.name, mocap=True)
    elif prop.kind == "free":
        body = spec.worldbody.add_body(name=prop.name)
        body.add_freejoint(name=prop.name)
    else:
        tcp = spec.site("tcp")
        compensated = 0.0 if prop.kind == "cable" else 1.0  # a hand bears a tool's weight; a cable sags under its own
        body = tcp.parent.add_body(name=prop.name, pos=tcp.pos, quat=tcp.quat, gravcomp=compensated)
    chain = prop.chain
    links = 1 if chain is None else chain.links
    volume = links * sum(_volume(geom) for geom in prop.geoms if geom.collide)
    for part in prop.parts:
        if chain is not None and part != prop.name:
            body = body.add_body(name=part, pos=(chain.link_m, 0.0, 0.0))
            body.add_joint(
                name=part,
                type=mujoco.mjtJoint.mjJNT_BALL,
                stiffness=chain.joint_nmprad,
                damping=chain.joint_nmsprad,
                armature=CHAIN_ARMATURE,
                limited=False,
                range=(0.0, 0.0),  # an arm's defaults are of its own joints
            )
        if prop.kind in ("tool", "cable"):
            for name in ("hand", *FINGERS):
                spec.add_exclude(name=f"{part}_{name}", bodyname1=name, bodyname2=part)
        for index, geom in enumerate(prop.geoms):
            added = _add_geom(body, f"{part}_{index}", geom, prop.mass_kg / volume if geom.collide else 0.0)
            if chain is not None:
                added.contype = 0  # links do not meet one another


def _add_geom(body: mujoco.MjsBody, name: str, geom: Geom, density: float) -> mujoco.MjsGeom:
    size = np.zeros(3)
    size[: len(geom.size_m)] = geom.size_m
    added = body.add_geom(
        name=name,
        type=SHAPES[geom.shape],
        size=size,
        pos=geom.pos_m,
        quat=to_wxyz(geom.quat_xyzw),
        rgba=geom.rgba,
        density=density,
        friction=(geom.friction, 0.005, 0.0001),
        solref=SOLREF,
        solimp=SOLIMP,
        condim=3,  # a hand's pads have priority and bring their torsional friction
    )
    if not geom.collide:
        added.contype, added.conaffinity, added.group = 0, 0, 2
    return added


def _volume(geom: Geom) -> float:
    size = geom.size_m
    if geom.shape == "box":
        return 8.0 * size[0] * size[1] * size[2]
    ball = 4.0 / 3.0 * np.pi * size[0] ** 3
    column = 2.0 * np.pi * size[0] ** 2 * size[1] if len(size) > 1 else 0.0
    return {"sphere": ball, "cylinder": column, "capsule": ball + column}[geom.shape]
