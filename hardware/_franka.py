"""A Franka arm through franky: connection, the 1 kHz torque loop in its C++ thread, and its faults by name.

Everything that names franky is here and in ``_franka_hand.py``. ``franky.CartesianImpedanceTracker`` wraps the motion
used here; it takes neither the damping of each axis from the first tick on nor the cut-off of the torques.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from robot_rl.types import ArmLimits

Array = NDArray[np.float64]
T = TypeVar("T")

INDEX = "https://timschneider42.github.io/franky/whl/by-robot-server-version"
"""franky's wheels for every version of an arm's server; PyPI has those for version 10 only."""
SERVERS = {
    10: ((0, 18), (1,)), 9: ((0, 15), (0, 18)), 8: ((0, 14), (0, 15)), 7: ((0, 13), (0, 14)), 6: ((0, 10), (0, 13)),
    5: ((0, 9), (0, 10)), 4: ((0, 8), (0, 9)), 3: ((0, 5), (0, 8)),
}  # fmt: skip
"""Version of the arm's server -> libfranka from, and below; libfranka does not tell the former where it agrees."""
BEGIN_S = 5.0  # longest that a motion may take to begin, and to end
EXACT = 1e-9  # observation variances that make franky's estimate of joint velocities what the arm measured


def franky() -> Any:
    """The SDK; raises ImportError naming the extra."""
    try:
        import franky
    except ImportError as error:
        raise ImportError("franky-control is not installed: pip install 'robot-rl[franka]'") from error
    return franky


def aside(work: Callable[[], T]) -> T:
    """``work()`` in a thread that lives no longer. libfranka gives whatever thread connects the highest real-time
    priority; ours would hand it on to every thread that it starts, and a learner's would starve the whole machine."""
    with ThreadPoolExecutor(1, "franka") as pool:
        return pool.submit(work).result()


def first_in_line() -> None:
    """The highest real-time priority for the calling thread, where the system lets us."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(os.sched_get_priority_max(os.SCHED_FIFO)))


def fault_of(error: Exception) -> str:
    """A vendor's exception as the name of a fault."""
    text, sdk = str(error), franky()
    if isinstance(error, sdk.NetworkException | sdk.ProtocolException):
        return "connection lost"
    if "User Stop" in text:
        return "user stop"
    if "by reflex" in text or "still moving" in text:
        return reflex_of(text)
    if "safety function" in text:
        return "safety function"
    return "motion ended: " + text.splitlines()[0].removeprefix("libfranka: ").removeprefix("Move command ")


def reflex_of(errors: str) -> str:
    """The arm's own names of its errors, in words."""
    names = re.findall(r'"(\w+)"', errors)
    if "communication_constraints_violation" in names:
        return "communication constraints violation"
    return "reflex: " + (", ".join(names).replace("_", " ") or "unknown")


class Session:
    """One connection, and at most one motion: ``start`` begins it, ``failure`` says why it ended."""

    def __init__(self, config: Any, limits: ArmLimits, damping: Callable[[Array], Array]) -> None:
        """Connect and set up; nothing moves. ``damping`` (6,) goes with a stiffness (6,). Raises ConnectionError,
        RuntimeError with the remedy, ImportError."""
        self._config, self._limits, self._damping, self._sdk = config, limits, damping, franky()
        self._motion: Any = None
        self._robot = aside(self._connect)
        try:
            self.was = self._robot.state  # the newest state of an arm that no motion reads
            if self.stopped_by(self.was) == "":
                self._set_up()
        except self._sdk.NetworkException as error:
            raise ConnectionError(f"the arm at {config.address} went away: {error}") from error

    def _connect(self) -> Any:
        sdk, config = self._sdk, self._config
        try:
            return sdk.Robot(
                config.address,
                realtime_config=sdk.RealtimeConfig.Enforce if config.realtime else sdk.RealtimeConfig.Ignore,
                kalman_q_obs_var=EXACT,
                kalman_dq_obs_var=EXACT,
            )
        except sdk.IncompatibleVersionException as error:
            raise RuntimeError(version_remedy(config.address, str(error))) from error
        except sdk.RealtimeException as error:
            raise RuntimeError(f"{error}: boot a PREEMPT_RT kernel, or leave arm.realtime false") from error
        except sdk.NetworkException as error:
            raise ConnectionError(
                f"no arm at {config.address}: {error}; is arm.address right, are the brakes open and FCI active in "
                "Desk, and is no other program connected?"
            ) from error

    def _set_up(self) -> None:
        """Frames, load and collision thresholds; raises RuntimeError where the arm refuses them."""
        config, robot = self._config, self._robot
        tcp = self._sdk.Affine(np.array(config.ee_pos_m), np.array(config.ee_quat_xyzw))
        try:
            robot.set_ee(columns((self.was.F_T_NE.inverse * tcp).matrix))  # F_T_NE: what Desk says of the hand
            robot.set_k(columns(np.eye(4)))  # the wrench is that at the tcp
            robot.set_load(config.load_kg, list(config.load_com_m), np.diag(config.load_inertia_kgm2).ravel().tolist())
            torque, force = list(config.collision_torque_nm), [config.collision_force_n] * 3
            robot.set_collision_behavior(torque, torque, *[force + [config.collision_moment_nm] * 3] * 2)
        except self._sdk.CommandException as error:
            raise RuntimeError(f"the arm at {config.address} refuses its set-up: {error}") from error
        self.was = robot.state

    def about(self) -> dict[str, str]:
        """What is at the other end and at this one, in words."""
        name = re.search(r'<robot[^>]*\bname="([^"]+)"', getattr(self._robot, "model_urdf", ""))
        library = libfranka_version(Path(self._sdk.__file__).parent.parent)
        spoken = [server for server, (low, high) in SERVERS.items() if low <= numbers_of(library) < high]
        state = self.look() if self.running else None
        rate = 0.0 if state is None else state.control_command_success_rate
        return {
            "robot": name.group(1) if name else "not told", "serial number": "not told over FCI: see Desk",
            "server": f"FCI version {spoken[0] if spoken else 'unknown'}",
            "library": f"franky-control {metadata.version('franky-control')}, libfranka {library}",
            "packets that came in time": f"{rate:.1%} of the last 100",
        }  # fmt: skip

    # ------------------------------------------------------------------------------------------------------ the motion

    def start(self, pos_m: Array, quat_xyzw: Array, stiffness: Array) -> None:
        """Track a pose from now on: that where the arm is. Time has to pass in it. Raises RuntimeError."""
        sdk, config, limits = self._sdk, self._config, self._limits
        posture = sdk.PostureTask(
            np.array(config.posture_rad), config.posture_stiffness, config.posture_damping, config.posture_max_nm
        )
        self._motion = sdk.CartesianImpedanceTrackingMotion(
            translational_stiffness=stiffness[0], rotational_stiffness=stiffness[3],
            translational_error_clip=np.array(config.clip_m), rotational_error_clip=np.full(3, config.clip_rad),
            posture_task=posture, max_delta_tau=config.max_delta_tau_nm,
            lower_joint_limits=limits.q_min_rad, upper_joint_limits=limits.q_max_rad,
            gains_time_constant=config.gains_time_s,
        )  # fmt: skip
        self.target(pos_m, quat_xyzw)
        self.stiffen(stiffness)
        try:
            aside(self._begin)
        except sdk.Exception as error:
            raise RuntimeError(f"the arm does not begin: {fault_of(error)}") from error
        end_s = time.monotonic() + BEGIN_S
        while (state := self.look()) is None or state.robot_mode != sdk.RobotMode.Move:
            if not self.running:
                raise RuntimeError(f"the arm does not begin: {self.failure()}")
            if time.monotonic() > end_s:
                raise RuntimeError(f"the arm does not begin within {BEGIN_S:g} s")
            time.sleep(0.001)

    def _begin(self) -> None:
        """In a thread of its own: the torque loop's thread inherits its priority."""
        if not self._config.twin:
            first_in_line()
        self._robot.move(self._motion, asynchronous=True, cutoff_frequency=self._config.cutoff_hz)

    @property
    def running(self) -> bool:
        return bool(self._robot.is_in_control)

    def look(self) -> Any | None:
        """The newest state that the torque loop has answered, which takes a microsecond; None where it has ended."""
        try:
            state = self._robot.state
        except self._sdk.Exception:  # it ended just now, and the arm is silent; failure() says why
            return None
        return state if self.running else None

    def target(self, pos_m: Array, quat_xyzw: Array) -> None:
        """From the next tick on."""
        self._motion.set_reference(self._sdk.CartesianReference(self._sdk.Affine(pos_m, quat_xyzw)))

    def stiffen(self, stiffness: Array) -> None:
        """Stiffness (6,) by axis, with the damping that belongs to it; the loop gets there within ``gains_time_s``."""
        self._motion.set_gains(self._sdk.CartesianImpedanceGains.diagonal(stiffness, self._damping(stiffness)))

    def failure(self) -> str:
        """Why the motion that no longer runs has ended."""
        try:
            self._robot.join_motion(timeout=BEGIN_S)
        except Exception as error:  # noqa: BLE001 - whatever ended the arm's loop is a fault, none may go unnamed
            return fault_of(error)
        return "motion ended"

    def finish(self) -> str:
        """Bring the arm to rest and leave the torque loop; what went wrong, or an empty string. Time has to pass."""
        if self._motion is None or not self.running:
            return "" if self._motion is None else self.failure()
        try:
            self._robot.move(self._sdk.TorqueStopMotion(), asynchronous=True)
            return "" if self._robot.join_motion(timeout=BEGIN_S) else "it does not come to rest"
        except Exception as error:  # noqa: BLE001 - as in failure()
            return fault_of(error)

    # ----------------------------------------------------------------------------------------------------- after a stop

    def stopped_by(self, state: Any) -> str:
        """Why an arm without a motion would not begin one, by name, or an empty string."""
        modes, errors = self._sdk.RobotMode, str(state.current_errors)
        if state.robot_mode == modes.Idle and '"' not in errors:
            return ""
        if state.robot_mode in (modes.Reflex, modes.Idle):
            return reflex_of(errors)
        names = {modes.UserStopped: "user stop", modes.Guiding: "guiding", modes.Move: "another program moves it"}
        return names.get(state.robot_mode, "brakes closed, or FCI not active")

    def recover(self) -> None:
        """Clear a reflex, and set up. Raises RuntimeError saying what a person has to do first, ConnectionError."""
        sdk, remedy = self._sdk, {
            "user stop": "release the stop (the arm's light turns from white to blue or green)",
            "guiding": "let go of the guiding buttons and lay the enabling device down",
        }  # fmt: skip
        try:
            why = self.stopped_by(self._robot.state)
            if why.startswith(("reflex", "communication")):
                self._robot.recover_from_errors()
                why = self.stopped_by(self._robot.state)
            if why:
                first = remedy.get(why, "look into Desk: brakes open, FCI active, no other program, no error left")
                raise RuntimeError(f"the arm cannot go on ({why}): {first}; then clear the fault again")
            self.was = self._robot.state
            self._set_up()
        except (sdk.NetworkException, sdk.ProtocolException) as error:
            raise ConnectionError(f"the arm at {self._config.address} is silent: {error}") from error
        except sdk.Exception as error:
            raise RuntimeError(f"the arm refuses to recover: {error}") from error

    def drop(self) -> None:
        """Let the connection go. A vendor's thread that hangs on a dead line is left behind after ``BEGIN_S``."""
        self._motion, holder = None, [self._robot]
        del self._robot  # the last reference is in the list
        thread = threading.Thread(target=holder.clear, name="franka-drop", daemon=True)
        thread.start()
        thread.join(BEGIN_S)


def libfranka_version(site: Path) -> str:
    """The version of the libfranka inside franky's wheel, by the name of its file."""
    found = sorted((site / "franky_control.libs").glob("libfranka*.so.*"))
    return found[0].name.partition(".so.")[2] if found else "unknown"


def numbers_of(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def columns(transform: Array) -> list[float]:
    """A homogeneous transform (4, 4) as libfranka takes it: column by column."""
    return transform.T.ravel().tolist()


def version_remedy(address: str, said: str) -> str:
    """What to install for an arm whose server speaks another version of the interface."""
    numbers = re.search(r"server version: (\d+), library version: (\d+)", said)
    if numbers is None:
        return f"the arm at {address} speaks another version of FCI: {said}"
    server, library = numbers.groups()
    return (
        f"the arm at {address} speaks FCI version {server}, the installed franky-control version {library}: "
        f"pip install --force-reinstall franky-control --extra-index-url {INDEX}/{server}/, or update the arm's system"
    )
