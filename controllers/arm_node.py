"""An arm behind ROS 2: targets in, state out, with guard, energy filter and watchdog between, as a lifecycle node.

The control loop runs in a thread of its own (``control_loop.py``), outside the executor. Callbacks check what comes in
and put it into the loop's mailbox. configure connects, activate holds and then takes targets, deactivate lets the arm
go gently, cleanup disconnects. A fault of the arm is no transition: it latches, is told on ``safety_state``, and waits
for ``~/clear_fault``. Topics and QoS: ``messages.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from numpy.typing import NDArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_msgs.msg import Float64MultiArray, Header
from std_srvs.srv import SetBool, Trigger

from controllers import arm_parameters, messages, watchdog
from controllers.arm_diagnostics import Diagnostics
from controllers.arm_outputs import Outputs
from controllers.control_loop import ControlLoop, Tick, is_twin
from controllers.guard import EMERGENCY_STOP, FAULTS
from controllers.guarded_arm import GuardedArm
from controllers.polling import Polled, take_all
from controllers.targets import Gate
from robot_rl.config import check, number
from robot_rl.types import ArmCommand, Pose

if TYPE_CHECKING:
    from rclpy.subscription import MessageInfo  # of Kilted; Jazzy gives a dict of the same keys

Array = NDArray[np.float64]
OK, BAD = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
REST_MPS = 0.02  # zero_ft: no faster
DISCOVERY_S = 1.5  # until another node of this machine is known of; measured 0.1 to 0.9


@dataclass(frozen=True)
class Config:
    """Rates of the node; ``status`` is energy, guard and objects."""

    rate_hz: float = number(500.0, 10.0, 2000.0, "Hz, control loop")
    state_hz: float = number(500.0, 1.0, 2000.0, "Hz, state and applied target")
    status_hz: float = number(50.0, 1.0, 500.0, "Hz, energy, guard and objects")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class About:
    """What the node is to say of its arm."""

    arm: str
    task: str
    lockstep: bool
    props: Callable[[], dict[str, Array]] = dict  # name -> (7,) m, xyzw; of the scene, where something measures them
    home: Pose | None = None  # None: where it was when it was configured


class ArmNode(LifecycleNode):
    """``make_arm`` connects; it is called by configure, and may raise."""

    def __init__(
        self, make_arm: Callable[[], GuardedArm], about: About, config: Config, timing: watchdog.Config, **node: Any
    ) -> None:
        super().__init__(messages.NODE, **node)
        self._make_arm, self._about, self._config, self._timing = make_arm, about, config, timing
        self._loop: ControlLoop | None = None
        self._gate = Gate(timing)
        self._inputs: list[tuple[Any, Callable[..., None]]] = []
        self._active = self._estopped = False
        self._stiffness: Array | None = None
        self._gripper: float | None = None
        self._handled_ns = 0  # lock-step: stamp of the newest target that was judged
        self._pending: Float64MultiArray | None = None
        self._outputs = Outputs(self, about.lockstep)
        self._outputs.estop(False)
        self.create_timer(1.0, self._repeat)
        self.add_on_set_parameters_callback(self._on_parameters)

    # ------------------------------------------------------------------------------------------------- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Connect, read the limits, say what there is."""
        about, config = self._about, self._config
        try:
            arm = self._make_arm()
            self._loop = ControlLoop(
                arm,
                self._timing,
                1.0 / config.rate_hz,
                self._on_tick,
                about.lockstep,
                is_twin(arm.unguarded),
                self._poll,
            )
        except Exception as error:  # noqa: BLE001 - whatever a driver raises: the node stays, unconfigured, to tell
            self.get_logger().error(f"cannot configure: {error}")
            self._say("inactive", str(error))
            return BAD
        first, names = self._loop.last.state, messages.names_of(about.arm, arm.limits.dof)
        home = about.home or Pose(first.tcp_pos_m, first.tcp_quat_xyzw)
        self._loop.home = ArmCommand(home.pos_m, home.quat_xyzw, first.gripper)
        self._gate = Gate(self._timing)
        if about.lockstep:
            self._outputs.begin(names, 1, 1)
        else:
            hz = config.rate_hz
            self._outputs.begin(names, round(hz / config.state_hz), round(hz / config.status_hz))
        self._frame = names.base
        arm_parameters.declare_facts(self, about.arm, about.task, self._loop, names)
        arm_parameters.declare_live(self, self._loop)
        self._diagnostics = Diagnostics(self, self._loop, self._gate)
        self._make_services()
        self._say("inactive", "configured")
        return OK

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Hold, then take targets."""
        assert self._loop is not None
        self._make_inputs()
        self._active = True
        self._loop.start()
        self._on_tick(self._loop.last)
        self.get_logger().info(f"{self._about.arm} is active")
        return OK

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Take no more targets, let the arm go within the ramp, then hold where it is."""
        assert self._loop is not None
        self._loop.stop()
        self._destroy_inputs()
        self._active = False
        self._say("inactive", "deactivated")
        return OK

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Disconnect."""
        self.disconnect()
        return OK

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.disconnect()
        return OK

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.disconnect()
        return OK

    def disconnect(self) -> None:
        """Stop the loop, hold, close the arm. May be called twice, and in any state."""
        if self._loop is None:
            return
        loop = self._loop
        loop.stop()
        self._destroy_inputs()
        self._active, self._loop = False, None
        loop.arm.close()
        for service in self._services_made:
            self.destroy_service(service)
        self._diagnostics.close()
        for name in arm_parameters.names_declared(self):
            self.undeclare_parameter(name) if not name.startswith("arm.") else self._parameters.pop(name, None)
        self._say("inactive", "not configured")

    # --------------------------------------------------------------------------------------------- topics and services

    def _make_inputs(self) -> None:
        """In real time the control loop takes these itself, just before a tick; in lock-step the executor does."""
        qos, group = messages.COMMAND_QOS, None if self._about.lockstep else Polled()
        wanted: list[tuple[type, str, Callable[..., None], Any]] = [
            (Float64MultiArray, messages.TARGET_STIFFNESS, self._on_stiffness, qos),
            (Float64MultiArray, messages.TARGET_GRIPPER, self._on_gripper, qos),
            (Header, messages.HEARTBEAT, self._on_heartbeat, messages.STATE_QOS),
            (PoseStamped, messages.TARGET_POSE, self._on_target, qos),
        ]
        if self._about.lockstep:
            wanted.append((Float64MultiArray, messages.STEP_TOPIC, self._on_step, messages.LOCKSTEP_QOS))
        self._inputs = [
            (self.create_subscription(kind, topic, call, depth, callback_group=group), call)
            for kind, topic, call, depth in wanted
        ]

    def _poll(self) -> None:
        """In the loop's thread, before a tick."""
        for subscription, call in self._inputs:
            for message, info in take_all(subscription):
                call(message, info)

    def _destroy_inputs(self) -> None:
        for subscription, _ in self._inputs:
            self.destroy_subscription(subscription)
        self._inputs = []

    def _make_services(self) -> None:
        calls: dict[str, Callable[[], str]] = {
            "clear_fault": self._clear_fault,
            "home": self._go_home,
            "zero_ft": self._zero_ft,
            "reset_energy": self._reset_energy,
        }

        def serve(call: Callable[[], str]) -> Callable[[Any, Any], Any]:
            return lambda _, answer: self._answer(answer, call)

        self._services_made = [self.create_service(Trigger, f"~/{name}", serve(call)) for name, call in calls.items()]
        self._services_made.append(self.create_service(SetBool, "~/estop", self._on_estop))

    # ------------------------------------------------------------------------------------------------- in

    def _on_target(self, message: PoseStamped, info: MessageInfo) -> None:
        loop, gate = self._loop, self._gate
        assert loop is not None
        publisher, stamp_ns = _publisher(info), messages.to_ns(message.header.stamp)
        now_s = loop.now_s()
        count = self.count_publishers(messages.TARGET_POSE) if not publisher else 1
        reason = gate.admits(publisher, count, now_s) or messages.refuse_pose(message, self._frame)
        pose = messages.from_pose(message.pose)
        clock_ns = loop.now_ns() if loop.lockstep else time.time_ns()
        reason = reason or gate.judge(stamp_ns, clock_ns, pose, loop.last.state)
        self._handled_ns = max(self._handled_ns, stamp_ns)
        if reason:
            self._refuse(reason)
        else:
            if gate.take(publisher, stamp_ns, now_s):
                loop.beat(gate.beats(publisher))
                self._stiffness = self._gripper = None
            gripper = loop.last.state.gripper if self._gripper is None else self._gripper
            lease_s = loop.config.hold_s
            loop.command(ArmCommand(pose.pos_m, pose.quat_xyzw, gripper, self._stiffness, valid_s=lease_s))
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._on_step(pending)

    def _refuse(self, reason: str) -> None:
        known = self._gate.reason == reason
        self._gate.refuse(reason)
        if not known:  # the first of its kind; diagnostics count the others
            self.get_logger().warning(reason)

    def _on_stiffness(self, message: Float64MultiArray, info: MessageInfo) -> None:
        assert self._loop is not None
        values = np.array(message.data[:6])
        if "stiffness" in self._loop.arm.limits.cannot:
            self._refuse("target_stiffness: this arm cannot change its stiffness")
        elif len(values) != 6 or not np.isfinite(values).all() or np.any(values < 0.0):
            self._refuse(f"target_stiffness is {values.tolist()}: give 6 finite numbers >= 0, N/m and Nm/rad")
        else:
            self._stiffness = values

    def _on_gripper(self, message: Float64MultiArray, info: MessageInfo) -> None:
        if len(message.data) != 1 or not 0.0 <= message.data[0] <= 1.0:
            self._refuse(f"target_gripper is {list(message.data)}: give one number, 0 open .. 1 closed")
        else:
            self._gripper = float(message.data[0])

    def _on_heartbeat(self, message: Header, info: MessageInfo) -> None:
        assert self._loop is not None
        if self._gate.beat(_publisher(info), self._loop.now_s()):
            self._loop.beat()

    def _on_step(self, message: Float64MultiArray, info: MessageInfo | None = None) -> None:
        """Lock-step: complete the command whose target has been judged, and let time pass."""
        assert self._loop is not None
        try:
            row = messages.from_columns(message, messages.STEP)
        except ValueError as error:
            self._refuse(str(error))
            return
        target_ns = messages.columns_ns(row, "target_")
        if target_ns > self._handled_ns:
            self._pending = message
            return
        dt_s = row["dt_s"]
        if dt_s == 0.0:
            self._loop.refresh()
            return
        if not 0.0 < dt_s <= 10.0:
            self._refuse(f"step: dt_s = {dt_s}: give seconds in [0, 10]; 0 only asks how things stand")
            return
        stiffness = np.array([row[name] for name in messages.STEP[-6:]])
        self._loop.complete(row["gripper"], row["valid_s"], None if np.isnan(stiffness).any() else stiffness)
        try:
            self._loop.step(dt_s)
        except ValueError as error:  # no multiple of the control tick
            self._refuse(f"step: {error}")

    # ------------------------------------------------------------------------------------------------- services

    def _answer(self, answer: Any, call: Callable[[], str]) -> Any:
        try:
            answer.message, answer.success = call(), True
        except (ValueError, RuntimeError, TimeoutError) as error:
            answer.message, answer.success = str(error), False
        return answer

    def _clear_fault(self) -> str:
        loop = self._running_loop()
        if self._estopped:
            raise ValueError("the emergency stop is pressed: release it first (estop with data: false)")
        fault = loop.arm.fault
        loop.ask(loop.arm.clear_fault)
        self._republish()
        return f"cleared: {fault}" if fault else "there was no fault"

    def _go_home(self) -> str:
        loop = self._running_loop()
        loop.go_home()
        if loop.lockstep:
            loop.step_home()
        return "moving home; safety_state tells when it is there"

    def _zero_ft(self) -> str:
        """Tare the published wrench by the mean of the last ticks. The guard goes on with the arm's own figure."""
        loop = self._running_loop()
        if float(np.linalg.norm(loop.last.state.tcp_twist[:3])) > REST_MPS:
            raise ValueError(f"the tcp moves faster than {REST_MPS} m/s: a tare is taken at rest, free of contact")
        return f"tared by {np.round(loop.ask(self._outputs.tare), 3).tolist()} N, Nm"

    def _reset_energy(self) -> str:
        loop = self._running_loop()
        loop.ask(loop.arm.grant_energy)
        return f"the ledger holds {loop.arm.energy['ledger_j']:.3g} J"

    def _on_estop(self, request: Any, answer: Any) -> Any:
        self._estopped = bool(request.data)
        self._outputs.estop(self._estopped)

        def press() -> str:
            if not self._estopped:
                return "released; the fault stays until clear_fault"
            if self._loop is None:
                raise ValueError("the node is not configured: there is no arm to stop")
            self._loop.estop()
            self._republish()
            return "stopped: the arm holds until estop is released and clear_fault called"

        return self._answer(answer, press)

    def _running_loop(self) -> ControlLoop:
        if self._loop is None or not self._active:
            raise ValueError("the node is not active: activate it first")
        if self._loop.error:
            raise ValueError(f"the arm is lost ({self._loop.error}): deactivate, clean up and configure, or restart")
        return self._loop

    # ------------------------------------------------------------------------------------------------- parameters

    def _on_parameters(self, parameters: list[Any]) -> SetParametersResult:
        """Live changes; all that come together are taken, or none."""
        prefixes = ("task.", "limits.", "watchdog.", "start.")
        changes = {p.name: p.value for p in parameters if p.name.startswith(prefixes)}
        if self._loop is None or not changes or not self.has_parameter(next(iter(changes))):
            return SetParametersResult(successful=True)
        try:
            if any(name in arm_parameters.START for name in changes):
                self._place(changes)
                return SetParametersResult(successful=True)
            arm_parameters.apply(self._loop, changes)
            self._gate.config = self._timing = self._loop.config
        except (ValueError, RuntimeError, TypeError) as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _place(self, changes: dict[str, Any]) -> None:
        """Put a twin's world into a state. A parameter, because no standard service takes numbers and answers in
        words; ``guard_state`` counts the worlds."""
        loop = self._running_loop()
        start = arm_parameters.to_start(changes)
        if self._estopped or loop.arm.fault == FAULTS[EMERGENCY_STOP]:
            raise ValueError("an emergency stop stands: release it, then clear_fault")

        def place() -> Tick:
            self._outputs.forget()
            return loop.place(start)

        self._stiffness = self._gripper = None
        loop.ask(place)

    # ------------------------------------------------------------------------------------------------- out

    def _on_tick(self, tick: Tick) -> None:
        """In the loop's thread."""
        if self._active:
            self._say(tick.mode, tick.cause)
            self._outputs.tick(tick, self._about.props, self._gate.refused)

    def _say(self, mode: str, cause: str) -> None:
        if self._outputs.say(mode, cause) and mode in ("fault", "emergency stop"):
            self.get_logger().error(f"{mode}: {cause}; clear_fault once its cause is gone")

    def _repeat(self) -> None:
        """Once a second, for who does not take latched messages."""
        self._outputs.repeat()
        self._outputs.estop(self._estopped)

    def _republish(self) -> None:
        """Lock-step: nothing ticks by itself, so what a service changed is told here."""
        if self._loop is not None and self._loop.lockstep:
            self._loop.refresh()


def _publisher(info: MessageInfo) -> bytes:
    """The id of who sent a message; empty where this ROS does not tell."""
    gid = info.get("publisher_gid")
    return bytes(gid["data"]) if gid else b""


def bring_up(node: ArmNode, spin: Callable[[float], None]) -> bool:
    """Configure and activate; whether that worked. ``spin(s)`` serves callbacks so long. Refuses a namespace in which
    there is such a node already: two would command one arm."""
    begun_s = time.monotonic()
    if node.trigger_configure() != OK:
        return False
    spin(max(DISCOVERY_S - (time.monotonic() - begun_s), 0.1))
    if node.count_publishers(messages.SAFETY_STATE) > 1:
        where = node.get_fully_qualified_name()
        node.get_logger().error(f"{where} is there already: stop the other, or give another --namespace")
        return False
    return bool(node.trigger_activate() == OK)
