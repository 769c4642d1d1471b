"""Any arm behind its ROS 2 node, which guards it: over topics, in real time or in lock-step.

Guard, energy filter and watchdog run in the node, so this arm is not guarded a second time. Against a node in lock-step
every number is that of the same task in one process; in real time ``wait`` keeps the policy's rate by absolute
deadlines. Messages and QoS: ``controllers/messages.py``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controllers.moving import move_to, prop_readings
from hardware._link import Inbox, Link
from robot_rl.config import check, number
from robot_rl.types import ArmCommand, ArmState, Bounds, Scene, Start

Array = NDArray[np.float64]

POLL_S = 5e-5
LOST = "arm lost"


@dataclass(frozen=True)
class Config:
    namespace: str = ""
    """of the arm's node; empty: the arm's name"""
    wait_s: float = number(10.0, 0.1, 600.0, "s to wait for the node, and for each of its topics")
    stale_s: float = number(0.5, 0.02, 10.0, "s without a new state that end an episode with an error")
    move_s: float = number(30.0, 1.0, 600.0, "s that a real arm may take to an episode's start")

    def __post_init__(self) -> None:
        check(self)


def make(config: Config, arm: str, task: str, scene: Scene, bounds: Bounds) -> RosArm:
    """Connect to the node of ``arm``; raises TimeoutError or ValueError that say what is missing or different."""
    return RosArm(config, arm, task, scene, bounds)


class RosArm:
    """A client of ``controllers.arm_node``. One thread uses it; the heartbeat has its own."""

    def __init__(self, config: Config, arm: str, task: str, scene: Scene, bounds: Bounds) -> None:
        self._config = config
        self._link = Link(config.namespace or arm, "policy")
        self._hint = f"start it with: robot-rl up twin arm:={arm} task:={task} (robot-rl doctor looks for it)"
        try:
            self._connect(arm, task, scene, bounds)
        except BaseException:
            self._link.close()
            raise

    def _connect(self, arm: str, task: str, scene: Scene, bounds: Bounds) -> None:
        from controllers import arm_parameters, messages

        facts = self._link.get_parameters(messages.NODE, arm_parameters.fact_names(), self._config.wait_s, self._hint)
        for what, there, here in (("arm", facts["arm.name"], arm), ("task", facts["arm.task"], task)):
            if there != here:
                raise ValueError(f"the node at {self._link.namespace} guards {what} '{there}', wanted is '{here}'")
        if arm_parameters.bounds_differ(bounds, facts["arm.bounds"]):
            raise ValueError(
                f"the node at {self._link.namespace} has other bounds than this task's: give both the same --set task.*"
            )
        self.limits = arm_parameters.to_limits(facts)
        self.default_stiffness = np.asarray(facts["arm.default_stiffness"], np.float64)
        self.lockstep, self.twin = bool(facts["arm.lockstep"]), bool(facts["arm.twin"])
        self._joints, self._frame = list(facts["arm.joints"]), facts["arm.base_frame"]
        self._scene, self._task = scene, task
        self._start: Start | None = None
        self._open(messages)
        self._sets: dict[int, dict[str, Any]] = {}
        self._newest: dict[str, Any] = {}
        self._energies: list[dict[str, float]] = []
        self._stamp_ns = 0  # of the state that was read last
        self._since_ns = 0  # what is older belongs to a world that is gone
        self._command_ns = 0
        self._command: ArmCommand | None = None
        self._deadline_s: float | None = None
        self.late = 0  # waits whose deadline had passed before they began
        if self.lockstep:  # nothing comes unasked
            self._ask_step(0.0)
        self._state = self._await(0)

    def _open(self, m: Any) -> None:
        from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
        from sensor_msgs.msg import JointState, MultiDOFJointState
        from std_msgs.msg import Float64MultiArray, Header

        node, state = self._link.node, m.LOCKSTEP_QOS if self.lockstep else m.STATE_QOS
        self._m = m
        kinds: dict[str, type] = {
            m.CURRENT_POSE: PoseStamped, m.CURRENT_TWIST: TwistStamped, m.JOINT_STATES: JointState,
            m.WRENCH: WrenchStamped, m.ENERGY_STATE: Float64MultiArray, m.GUARD_STATE: Float64MultiArray,
        }  # fmt: skip
        if self._scene.props:
            kinds[m.PROPS] = MultiDOFJointState
        self._in: dict[str, Inbox] = {}
        for topic, kind in kinds.items():
            every = topic == m.ENERGY_STATE and not self.lockstep  # of energy none may be missed: cost is a maximum
            self._in[topic] = self._link.inbox(kind, topic, m.ENERGY_QOS if every else state)
        # In real time energy, guard and objects come more slowly than the state, and the newest is used.
        self._core = tuple(kinds) if self.lockstep else (m.CURRENT_POSE, m.CURRENT_TWIST, m.JOINT_STATES, m.WRENCH)
        # Around a real arm there may be nothing that measures objects.
        self._needed = tuple(topic for topic in kinds if self.twin or topic != m.PROPS)
        self._target = node.create_publisher(PoseStamped, m.TARGET_POSE, m.COMMAND_QOS)
        self._stiffness = node.create_publisher(Float64MultiArray, m.TARGET_STIFFNESS, m.COMMAND_QOS)
        self._gripper = node.create_publisher(Float64MultiArray, m.TARGET_GRIPPER, m.COMMAND_QOS)
        self._step = node.create_publisher(Float64MultiArray, m.STEP_TOPIC, m.LOCKSTEP_QOS)
        self._story = node.create_publisher(JointState, m.EPISODE_STEP, m.LOCKSTEP_QOS)
        self._link.start_heartbeat(node.create_publisher(Header, m.HEARTBEAT, m.STATE_QOS))
        self._await_listener([m.TARGET_POSE, *([m.STEP_TOPIC] if self.lockstep else [])])

    def _await_listener(self, topics: list[str]) -> None:
        """Until the node itself, not just any recorder, listens."""
        end_s, here = time.monotonic() + self._config.wait_s, self._link.namespace
        for topic in topics:
            while not any(
                info.node_name == self._m.NODE and info.node_namespace == here
                for info in self._link.node.get_subscriptions_info_by_topic(topic)
            ):
                if time.monotonic() > end_s:
                    raise TimeoutError(f"{here}/{self._m.NODE} does not listen to {topic}: is it active? {self._hint}")
                time.sleep(0.01)

    # --------------------------------------------------------------------------------------------------------- reading

    def _collect(self) -> None:
        """Take what came; states are matched by stamp."""
        m = self._m
        for topic, inbox in self._in.items():
            for message in inbox.take():
                if topic in (m.ENERGY_STATE, m.GUARD_STATE):
                    message = m.from_columns(message, m.ENERGY if topic == m.ENERGY_STATE else m.GUARD)
                stamp_ns = self._ns_of(message)
                if stamp_ns < self._since_ns:
                    continue
                if topic == m.ENERGY_STATE and not self.lockstep:
                    self._energies.append(message)
                self._newest[topic] = message
                if topic in self._core and stamp_ns > self._stamp_ns:
                    self._sets.setdefault(stamp_ns, {})[topic] = message

    def _complete(self, at_least_ns: int) -> int:
        """The newest stamp of which every message is here, or 0."""
        whole = (ns for ns, found in self._sets.items() if ns >= at_least_ns and len(found) == len(self._core))
        return max(whole, default=0)

    def _await(self, at_least_ns: int, timeout_s: float | None = None) -> ArmState:
        """The newest whole state, not older than a stamp; raises TimeoutError that names what is silent."""
        timeout_s = self._config.wait_s if timeout_s is None else timeout_s
        end_s = time.monotonic() + timeout_s
        self._collect()
        # The slower topics, too, have to have spoken once.
        while (stamp_ns := self._complete(at_least_ns)) == 0 or any(
            topic not in self._newest for topic in self._needed
        ):
            if time.monotonic() > end_s:
                raise TimeoutError(self._why_nothing(at_least_ns, timeout_s))
            time.sleep(POLL_S if self.lockstep else 1e-3)
            self._collect()
        found = self._sets[stamp_ns]
        self._sets = {ns: rest for ns, rest in self._sets.items() if ns > stamp_ns}
        self._newest |= found
        self._stamp_ns = stamp_ns
        m = self._m
        four = m.StateMessages(*(found[topic] for topic in (m.CURRENT_POSE, m.CURRENT_TWIST, m.JOINT_STATES, m.WRENCH)))
        self._state = m.from_state(four, self._joints)
        return self._state

    def _why_nothing(self, at_least_ns: int, timeout_s: float) -> str:
        heard = {topic for ns, found in self._sets.items() if ns >= at_least_ns for topic in found}
        heard |= {topic for topic in self._newest if topic not in self._core}
        silent = [self._in[topic].why_silent() for topic in self._needed if topic not in heard]
        said = "; ".join(silent) or f"messages of one stamp never come together on {', '.join(self._core)}"
        return f"no state of the arm for {timeout_s:g} s: {said}; {self._hint}"

    def read(self) -> ArmState:
        return self._state

    def readings(self) -> dict[str, np.ndarray]:
        """``prop/<name>`` (7,) m, xyzw (``moving.prop_readings``) and ``energy`` (2,)."""
        m = self._m
        poses = m.from_props(self._newest[m.PROPS]) if m.PROPS in self._newest else {}
        row = self._newest[m.ENERGY_STATE]
        energy = {"energy": np.array([row["share"], row["alpha_min"]])}
        return prop_readings(self._scene, poses, self._start, self._state) | energy

    @property
    def fault(self) -> str:
        from controllers.guard import FAULTS

        code = int(self._newest[self._m.GUARD_STATE]["fault"])
        return FAULTS[code] if 0 <= code < len(FAULTS) else LOST

    @property
    def clips(self) -> dict[str, int]:
        from controllers.guard import CLIPS

        row = self._newest[self._m.GUARD_STATE]
        return {name: int(row[name]) for name in CLIPS}

    @property
    def energy(self) -> dict[str, float]:
        """The ledger over the last ``wait`` (``ledger.summarize``)."""
        from controllers.filters import ledger

        rows = self._energies or [self._newest[self._m.ENERGY_STATE]]
        return ledger.combine([{name: row[name] for name in self._m.ENERGY[4:]} for row in rows])

    @property
    def energy_state(self) -> str:
        from controllers.filters.ledger import STATES

        return STATES[int(self._newest[self._m.GUARD_STATE]["energy_state"])]

    # ------------------------------------------------------------------------------------------------------ commanding

    def command(self, command: ArmCommand) -> None:
        """Raises ValueError on what is not finite, as every arm does; the node would refuse it, too."""
        for name in ("tcp_pos_m", "tcp_quat_xyzw", "gripper"):
            if not np.isfinite(getattr(command, name)).all():
                raise ValueError(f"ArmCommand.{name} is {getattr(command, name)}: every number has to be finite")
        self._command = command
        self._command_ns = self._stamp_ns if self.lockstep else time.time_ns()
        if not self.lockstep:  # before the pose, which makes them count
            self._gripper.publish(self._m.to_columns(("gripper",), [command.gripper]))
            if command.stiffness is not None:
                self._stiffness.publish(self._m.to_columns(self._m.STEP[-6:], command.stiffness))
        self._target.publish(
            self._m.to_pose_stamped(command.tcp_pos_m, command.tcp_quat_xyzw, self._frame, self._command_ns)
        )

    def wait(self, dt_s: float) -> ArmState:
        """Lock-step: have the node let ``dt_s`` pass. Real time: sleep to the next deadline; the newest state."""
        self._energies.clear()
        if self.lockstep:
            self._ask_step(dt_s)
            return self._await(self._stamp_ns + round(dt_s * 1e9))
        now_s = time.monotonic()
        deadline_s = now_s + dt_s if self._deadline_s is None else self._deadline_s + dt_s
        if deadline_s < now_s:
            self.late += 1
            deadline_s = now_s
        time.sleep(deadline_s - now_s)
        self._deadline_s = deadline_s
        return self._await(self._stamp_ns + 1, self._config.stale_s)

    def _ask_step(self, dt_s: float) -> None:
        command, nothing = self._command, np.full(6, np.nan)
        stamp = self._m.stamp_columns(self._command_ns if command else 0)
        rest: list[float] = [0.0, 0.0, *nothing]
        if command is not None:
            rest = [command.valid_s, command.gripper, *(nothing if command.stiffness is None else command.stiffness)]
        self._step.publish(self._m.to_columns(self._m.STEP, [*stamp, dt_s, *rest]))
        self._command = None

    def stop(self) -> None:
        """Ask for the measured pose: the arm holds there, and floats once nothing more comes."""
        self.command(ArmCommand(self._state.tcp_pos_m, self._state.tcp_quat_xyzw, self._state.gripper))

    def close(self) -> None:
        self._link.close()

    # -------------------------------------------------------------------------------------------------------- episodes

    def reset(self, start: Start) -> ArmState:
        """Begin an episode: a twin is put into ``start``; a real arm moves there, and its ledger is filled anew."""
        self._deadline_s = self._command = None
        self._start = start
        self._energies.clear()
        if self.twin:
            from controllers import arm_parameters
            from controllers.guard import EMERGENCY_STOP, FAULTS

            self._await_person({FAULTS[EMERGENCY_STOP]})  # all else ends with the world it was in

            values = arm_parameters.from_start(start)
            before = self._newest[self._m.GUARD_STATE]["world"]
            self._link.set_parameters(self._m.NODE, values, self._config.wait_s, self._hint)
            self._since_ns = self._await_world(before)
            return self._await(self._since_ns)
        from controllers.guard import FAULTS

        self._await_person({*FAULTS[1:], LOST})
        move_to(self, start, self._config.move_s, lambda: self.call("reset_energy"))
        self._deadline_s = None
        self.call("reset_energy")
        return self._await(self._stamp_ns + 1, self._config.stale_s)

    def _await_world(self, before: float) -> int:
        """The stamp at which a new world is told of; what is older is forgotten."""
        m, end_s = self._m, time.monotonic() + self._config.wait_s
        while (row := self._newest[m.GUARD_STATE])["world"] == before:
            if time.monotonic() > end_s:
                raise TimeoutError(self._in[m.GUARD_STATE].why_silent())
            time.sleep(POLL_S)
            self._collect()
        since_ns = int(m.columns_ns(row))
        fresh = {topic: found for topic, found in self._newest.items() if self._ns_of(found) >= since_ns}
        self._newest = fresh
        self._energies = [energy for energy in self._energies if m.columns_ns(energy) >= since_ns]
        return since_ns

    def _ns_of(self, message: Any) -> int:
        m = self._m
        return int(m.columns_ns(message) if isinstance(message, dict) else m.to_ns(message.header.stamp))

    def _await_person(self, faults: set[str]) -> None:
        """Wait until none of ``faults`` stands, and say so."""
        said = False
        while (fault := self.fault) in faults:
            if not said:
                said = True
                print(
                    f"The arm is in a fault ({fault}) and waits for a person: mend its cause, then "
                    f"robot-rl call clear_fault --namespace {self._link.namespace.strip('/')}",
                    file=sys.stderr,
                )
            time.sleep(0.2)
            if self.lockstep:
                self._ask_step(0.0)
            self._collect()
            self._energies.clear()
            self._sets = {ns: found for ns, found in self._sets.items() if ns >= max(self._sets)}

    def narrate(self, values: Mapping[str, float]) -> None:
        """Tell the graph what the policy did, for recorders: ``episode_step``, stamped with the state it led to."""
        from sensor_msgs.msg import JointState

        message = JointState(name=list(values), position=[float(value) for value in values.values()])
        message.header.frame_id, message.header.stamp = self._task, self._m.to_stamp(self._stamp_ns)
        self._story.publish(message)

    def call(self, service: str) -> str:
        """One of the node's Trigger services; raises ValueError with its reason."""
        from std_srvs.srv import Trigger

        request = Trigger.Request()
        answer = self._link.call(Trigger, f"{self._m.NODE}/{service}", request, self._config.wait_s, self._hint)
        if not answer.success:
            raise ValueError(f"{service}: {answer.message}")
        return str(answer.message)
