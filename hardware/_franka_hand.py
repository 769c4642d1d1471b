"""A Franka Hand through franky: told in a thread of its own, read in another, so that no control step waits for it."""

from __future__ import annotations

import threading
import time
from typing import Any

from hardware._franka import franky
from robot_rl.types import ArmLimits

NEAR = 0.02  # of the way: so near is the same target, and an opening that has been reached
SENT_S = 0.003  # the library's own thread sends
CLOSED_M = 0.001  # an object thinner than this is none


class Hand:
    """A target is 0 open .. 1 closed. Closing grasps: whatever is between the fingers is held with
    ``gripper_force_n``. Opening moves them apart."""

    def __init__(self, config: Any, limits: ArmLimits) -> None:
        """Raises ConnectionError where there is no hand, RuntimeError where it does not find its width."""
        sdk = self._sdk = franky()
        self._config, self._limits = config, limits
        try:
            self._gripper = sdk.Gripper(config.address)
            if config.gripper_home:
                self._gripper.homing()
            state = self._gripper.state
        except (sdk.NetworkException, sdk.IncompatibleVersionException) as error:
            raise ConnectionError(
                f"no Franka Hand at {config.address}: {error}; is it set as the end effector in Desk?"
            ) from error
        except sdk.CommandException as error:
            raise RuntimeError(f"the Franka Hand at {config.address} does not find its width: {error}") from error
        self._width_m = state.max_width if state.max_width > CLOSED_M else limits.gripper_width_m
        self.lost, self._said = False, ""
        self.reading = self._share(state.width)
        self._target = self._told = self.reading
        self._changed = threading.Condition()
        self._sent, self._ended = threading.Event(), False
        self._sent.set()
        self._threads = [
            threading.Thread(target=task, name=f"franka-hand-{task.__name__[1:]}", daemon=True)
            for task in (self._act, self._read)
        ]
        for thread in self._threads:
            thread.start()

    def _share(self, width_m: float) -> float:
        return min(max(1.0 - width_m / self._width_m, 0.0), 1.0)

    def go(self, target: float) -> bool:
        """Move towards ``target`` from now on; whether that is new. Returns at once."""
        target = min(max(target, 0.0), 1.0)
        if abs(target - self._target) < NEAR:
            return False
        with self._changed:
            self._target = target
            self._sent.clear()
            self._changed.notify()
        return True

    def await_sent(self) -> None:
        """Return once the library has been told of the newest target, and has sent it."""
        self._sent.wait(1.0)
        time.sleep(SENT_S)

    def _act(self) -> None:
        """Tell the library of new targets; what it is still at is stopped first."""
        going: Any = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._target != self._told)
                if self._ended:
                    break
                closing, self._told = self._target > self._told, self._target
            try:
                if going is not None and not going.wait(0.0):
                    self._gripper.stop()
                going = self._tell((1.0 - self._told) * self._width_m, closing)
            except (self._sdk.Exception, RuntimeError) as error:
                self._said = f": {error}"
            self._sent.set()

    def _tell(self, width_m: float, closing: bool) -> Any:
        config, gripper = self._config, self._gripper
        if not closing:
            return gripper.move_async(width_m, config.gripper_speed_mps)
        # Whatever stops the fingers, from fully open to shut, counts as grasped and is held on to.
        return gripper.grasp_async(width_m, config.gripper_speed_mps, config.gripper_force_n, 1.0, 1.0)

    def _read(self) -> None:
        while not self._ended:
            try:
                self.reading = self._share(self._gripper.state.width)
            except (self._sdk.Exception, RuntimeError) as error:  # the latter where its connection has broken
                self.lost, self._said = True, f": {error}"
                return

    def about(self) -> str:
        return f"Franka Hand, server {self._gripper.server_version}, {self._width_m:g} m wide{self._said}"

    def close(self) -> None:
        """Leave the fingers as they are. May be called twice."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        for thread in self._threads:
            thread.join(2.0)
