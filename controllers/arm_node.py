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
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_srvs.srv import SetBool, Trigger

from controllers import arm_parameters, messages, watchdog
from controllers.arm_diagnostics import Diagnostics
from controllers.arm_inputs import Inputs
from controllers.arm_outputs import Outputs
from controllers.control_loop import ControlLoop, Tick, is_twin
from controllers.guard import EMERGENCY_STOP, FAULTS
from controllers.guarded_arm import GuardedArm
from controllers.ros import RosContext
from controllers.targets import Gate
from robot_rl.config import check, number
from robot_rl.types import ArmCommand, Bounds, Pose

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
    bounds: Bounds  # the task's; what guards the arm may be tighter
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
        self._inputs: Inputs | None = None
        self._services_made: list[Any] = []
        self._diagnostics: Diagnostics | None = None
        self._active = self._estopped = False
        self._outputs = Outputs(self, about.lockstep)
        self._outputs.estop(False)
        self.create_timer(1.0, self._repeat)
        self.add_on_set_parameters_callback(self._on_parameters)

    # ------------------------------------------------------------------------------------------------- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Connect, read the limits, say what there is."""
        lockstep, period_s = self._about.lockstep, 1.0 / self._config.rate_hz
        try:
            arm = self._make_arm()
            twin = is_twin(arm.unguarded)
            self._loop = ControlLoop(arm, self._timing, period_s, self._on_tick, lockstep, twin)
        except Exception as error:  # noqa: BLE001 - whatever a driver raises: the node stays, unconfigured, to tell
            self.get_logger().error(f"cannot configure: {error}")
            self._say("inactive", str(error))
            return BAD
        try:
            self._set_up(arm)
        except Exception as error:  # noqa: BLE001 - a parameter out of its range is rclpy's error
            self.get_logger().error(f"cannot configure: {error}")
            self.disconnect()
            self._say("inactive", str(error))
            return BAD
        self._say("inactive", "configured")
        return OK

    def _set_up(self, arm: GuardedArm) -> None:
        """Everything around a loop that was made; raises where a given parameter cannot be taken."""
        assert self._loop is not None
        about, loop = self._about, self._loop
        first, names = loop.last.state, messages.names_of(about.arm, arm.limits.dof)
        home, bounds = about.home or Pose(first.tcp_pos_m, first.tcp_quat_xyzw), arm.bounds
        # Where it was may lie outside of the bounds, and the guard would never let it arrive there.
        home_m = np.clip(home.pos_m, bounds.box_lower_m, bounds.box_upper_m)
        loop.home = ArmCommand(home_m, home.quat_xyzw, first.gripper)
        config = self._config
        rates_hz = (config.rate_hz,) * 2 if about.lockstep else (config.state_hz, config.status_hz)
        self._outputs.begin(names, *(round(config.rate_hz / hz) for hz in rates_hz))
        arm_parameters.declare_facts(self, about, loop, names)
        arm_parameters.declare_live(self, loop)
        arm_parameters.apply_overrides(self, loop)
        self._timing = loop.config
        self._gate = Gate(self._timing)
        self._inputs = Inputs(self, loop, self._gate, names.base)
        loop.poll = self._inputs.poll
        self._diagnostics = Diagnostics(self, loop, self._gate)
        self._make_services()

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Hold, then take targets."""
        assert self._loop is not None and self._inputs is not None
        if self._loop.error:
            self.get_logger().error(f"the arm is lost ({self._loop.error}): clean up and configure first")
            return BAD
        if self._estopped:  # pressed while nothing could be tripped
            self._loop.estop()
        self._inputs.open()
        self._active = True
        self._on_tick(self._loop.last)
        self._loop.start()
        self.get_logger().info(f"{self._about.arm} is active")
        return OK

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Take no more targets, let the arm go within the ramp, then hold where it is."""
        assert self._loop is not None and self._inputs is not None
        self._loop.stop()
        self._inputs.close()
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
        if self._inputs is not None:
            self._inputs.close()
        self._active, self._loop = False, None
        loop.arm.close()
        for service in self._services_made:
            self.destroy_service(service)
        self._services_made = []
        if self._diagnostics is not None:
            self._diagnostics.close()
            self._diagnostics = None
        for name in arm_parameters.names_declared(self):
            if name.startswith("arm."):  # read-only ones cannot be undeclared
                self._parameters.pop(name, None)
            else:
                self.undeclare_parameter(name)
        self._say("inactive", "not configured")

    # --------------------------------------------------------------------------------------------- topics and services

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

    # ------------------------------------------------------------------------------------------------- services

    def _answer(self, answer: Any, call: Callable[[], str]) -> Any:
        try:
            answer.message, answer.success = call(), True
        except (ValueError, RuntimeError, OSError) as error:
            answer.message, answer.success = str(error), False
        return answer

    def _clear_fault(self) -> str:
        loop = self._running_loop()
        if self._estopped:
            raise ValueError("the emergency stop is pressed: release it first (estop with data: false)")
        fault = loop.arm.fault
        # Some arms take long. Nobody waits here for them: an emergency stop has to be heard meanwhile.
        loop.ask(loop.arm.clear_fault, silent="the arm is still recovering; safety_state tells when it is cleared")
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
        except (ValueError, LookupError, RuntimeError, TypeError) as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _place(self, changes: dict[str, Any]) -> None:
        """Put a twin's world into a state. A parameter, because no standard service takes numbers and answers in
        words; ``guard_state`` counts the worlds."""
        loop = self._running_loop()
        assert self._inputs is not None
        inputs, start = self._inputs, arm_parameters.to_start(changes)
        if self._estopped or loop.arm.fault == FAULTS[EMERGENCY_STOP]:
            raise ValueError("an emergency stop stands: release it, then clear_fault")

        def place() -> Tick:
            self._outputs.forget()
            inputs.forget()
            self._gate.release()
            return loop.place(start)

        loop.ask(place)

    # ------------------------------------------------------------------------------------------------- out

    def _on_tick(self, tick: Tick) -> None:
        """In the loop's thread."""
        if self._active:
            self._say(tick.mode, tick.cause)
            self._outputs.tick(tick, self._about.props, self._gate.refused)

    def _say(self, mode: str, cause: str) -> None:
        if self._outputs.say(mode, cause) and mode in ("fault", "emergency stop"):
            what = f"{mode}: {cause}"
            self.get_logger().error(f"{what}; clear_fault once its cause is gone" if mode == "fault" else what)

    def _repeat(self) -> None:
        """Once a second, for who does not take latched messages."""
        self._outputs.repeat()
        self._outputs.estop(self._estopped)

    def _republish(self) -> None:
        """Lock-step: nothing ticks by itself, so what a service changed is told here."""
        if self._loop is not None and self._loop.lockstep:
            self._loop.refresh()


def bring_up(node: ArmNode, ros: RosContext) -> bool:
    """Configure and activate, unless ``ros`` is stopped meanwhile; whether that worked. Refuses a namespace in which
    there is such a node already: two would command one arm."""
    begun_s = time.monotonic()
    if node.trigger_configure() != OK:
        return False
    ros.spin_for(max(DISCOVERY_S - (time.monotonic() - begun_s), 0.1))
    if ros.stopping:
        return True
    if node.count_publishers(messages.SAFETY_STATE) > 1:
        where = node.get_fully_qualified_name()
        node.get_logger().error(f"{where} is there already: stop the other, or give another --namespace")
        return False
    return bool(node.trigger_activate() == OK)
