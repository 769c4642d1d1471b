"""The processes of a graph: what ``robot-rl node arm`` and ``robot-rl node camera`` put together and run."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from robot_rl import build, gl
from robot_rl.find import find

NODE_SECTIONS = {"node": "controllers.arm_node", "watchdog": "controllers.watchdog"}
"""Sections of settings that only an arm's node has."""


def arm(
    task: str,
    arm: str,
    world: str,
    namespace: str,
    lockstep: bool,
    settings: Sequence[str],
    ros_args: Sequence[str] = (),
) -> int:
    """Put ``arm`` of ``world`` behind its ROS 2 node and serve it until SIGINT or SIGTERM; returns the exit status."""
    ros = importlib.import_module("controllers.ros")
    ros.require_ros()
    if world in build.REMOTE:
        raise ValueError(f"world '{world}' is the other end of such a node: give sim, or a real arm's world")
    own_hz = getattr(build.find_arm(world, arm), "CONTROL_HZ", None)
    if own_hz is not None:
        settings = (f"node.rate_hz={own_hz}", f"node.state_hz={own_hz}", *settings)
    configs = build.make_configs(task, arm, world, settings, NODE_SECTIONS)
    built = find("tasks", task).make(configs["task"])
    bounds = build.bounds_of(built, configs)
    made: list[Any] = []
    guarded_arm = importlib.import_module("controllers.guarded_arm")
    if lockstep and world != "sim":
        raise ValueError(f"lock-step is for twins: world '{world}' has a clock of its own")

    def make_arm() -> Any:
        made[:] = [build.make_arm(task, arm, world, configs, built)]
        guarded = guarded_arm.GuardedArm(made[0], bounds, configs["guard"], configs["energy"])
        if world == "sim":
            guarded.wait(1.0 / configs["guard"].control_hz)  # compiles, where that was not done before
            guarded.place(built.reset(np.random.default_rng(0)))  # inside the task's bounds, with its objects about
        return guarded

    def props() -> dict[str, Any]:
        return build.prop_poses(made[0].readings())

    inner = getattr(configs["arm"], "namespace", None)
    if inner is not None and inner.strip("/") == (namespace or arm).strip("/"):
        raise ValueError(
            f"namespace '{namespace or arm}' is the arm's own, arm.namespace: targets would go past the guard; "
            "give the node another --namespace"
        )
    arm_node = importlib.import_module("controllers.arm_node")
    about = arm_node.About(arm, task, lockstep, built.bounds, props)
    with ros.RosContext(ros_args) as context:
        node = arm_node.ArmNode(
            make_arm, about, configs["node"], configs["watchdog"], context=context.context, namespace=namespace or arm
        )
        context.add(node)
        with ros.stopped_by_signals(context):
            try:
                if not arm_node.bring_up(node, context):
                    return 2
                context.spin()
            finally:
                node.disconnect()
        return 0


def camera(
    task: str,
    arm: str,
    namespace: str,
    name: str = "front",
    rate_hz: float = 10.0,
    width_px: int = 128,
    height_px: int = 128,
    settings: Sequence[str] = (),
    ros_args: Sequence[str] = (),
) -> int:
    """Show the arm in ``namespace`` by its twin, in pictures and markers, until SIGINT or SIGTERM; returns 0.

    Raises OSError that names the packages where no GL library is, ImportError without ROS 2 or OpenCV, LookupError for
    an unknown task, arm or camera, ValueError for a setting, a size or a rate that cannot be taken.
    """
    gl.prepare()
    importlib.import_module("controllers.ros").require_ros()
    camera_node = importlib.import_module("controllers.camera_node")
    messages = importlib.import_module("controllers.messages")
    configs = build.make_configs(task, arm, settings=settings)
    built = find("tasks", task).make(configs["task"])
    twin = find("sim", arm).make(configs["arm"], built.scene)
    try:
        twin.render(width_px, height_px, name)  # what cannot be drawn is refused before anyone waits for it
        view = camera_node.View(
            # Ten pictures a second with shadows would take a whole core from the arm and the policy.
            render=partial(twin.show, width=width_px, height=height_px, camera=name, shadows=False),
            geoms=twin.geoms,
            fovy_rad=twin.fovy_rad(name),
            scene=built.scene,
            bounds=built.bounds,
            names=messages.names_of(arm, twin.limits.dof),
        )
        status: int = camera_node.run(view, namespace or arm, name, rate_hz, ros_args)
        return status
    finally:
        twin.close()
