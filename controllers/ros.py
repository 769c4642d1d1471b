"""Our way into ROS 2: loopback by default, errors in words, and an end that leaves neither thread nor process behind.

Only this module, and what a node of ours is made of, imports rclpy. A system ROS 2 (Jazzy, Kilted) and the wheels of
``pip install 'robot-rl[ros]'`` have the same API.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

PROFILE = Path(__file__).with_name("fastdds.xml")
SPIN_S = 0.1  # longest time until a stop is noticed


def prepare_environment() -> None:
    """Before the first context: keep to this machine unless the user chose a range, a profile or another RMW.

    To reach other machines set ``ROS_AUTOMATIC_DISCOVERY_RANGE=SUBNET``; everything is then left to ROS.
    """
    chosen = ("ROS_AUTOMATIC_DISCOVERY_RANGE", "FASTDDS_DEFAULT_PROFILES_FILE", "ROS_DISCOVERY_SERVER")
    if any(os.environ.get(name) for name in chosen):
        return
    if os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp") == "rmw_fastrtps_cpp":
        os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = str(PROFILE)
        # LOCALHOST would add the shared-memory transport again; the profile already keeps to loopback.
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "SYSTEM_DEFAULT"
    else:
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"


def require_ros() -> Any:
    """The module rclpy; raises ImportError that says how to get it."""
    prepare_environment()
    try:
        import rclpy
    except ImportError as error:
        raise ImportError(
            f"ROS 2 is not here ({error}): pip install 'robot-rl[ros]', or source the setup file of your ROS 2"
        ) from error
    return rclpy


class RosContext:
    """A context of its own with one executor. ``spin`` runs it in this thread, ``start`` in another.

    Signals are not rclpy's: who runs a process decides what Ctrl-C means. ``args`` is what follows ``--ros-args``.
    """

    def __init__(self, args: Sequence[str] = ()) -> None:
        rclpy = require_ros()
        from rclpy.executors import SingleThreadedExecutor

        self.context = rclpy.Context()
        words = ["--ros-args", *args] if args else []
        rclpy.init(args=words, context=self.context, signal_handler_options=rclpy.SignalHandlerOptions.NO)
        # Not the EventsExecutor: with it, this rclpy cannot tell a callback who published.
        self.executor = SingleThreadedExecutor(context=self.context)
        self._nodes: list[Any] = []
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def add(self, node: Any) -> Any:
        """Spin ``node`` here; ``close`` destroys it."""
        self._nodes.append(node)
        self.executor.add_node(node)
        return node

    def keep(self, node: Any) -> Any:
        """Destroy ``node`` with the others, but never spin it: its messages are taken by hand."""
        self._nodes.append(node)
        return node

    def start(self) -> None:
        """Spin in a thread of its own until ``close``."""
        self._thread = threading.Thread(target=self.spin, name="ros", daemon=True)
        self._thread.start()

    def spin(self, until: Callable[[], bool] = lambda: False) -> None:
        """Serve callbacks until ``until()``, asked at least every ``SPIN_S`` seconds, or ``stop``."""
        while not self._stopping.is_set() and not until():
            self.executor.spin_once(timeout_sec=SPIN_S)

    def spin_for(self, time_s: float) -> None:
        """Serve callbacks so long, or until ``stop``."""
        end_s = time.monotonic() + time_s
        self.spin(lambda: time.monotonic() > end_s)

    def stop(self) -> None:
        """From any thread, or a signal handler: let ``spin`` return."""
        self._stopping.set()

    def close(self) -> None:
        """In the order that rclpy survives: stop spinning, then the nodes, then the context. May be called twice."""
        self.stop()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.executor.shutdown()
        for node in self._nodes:
            node.destroy_node()
        self._nodes.clear()
        self.context.try_shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def stopped_by_signals(ros: RosContext) -> Iterator[None]:
    """Inside: SIGINT and SIGTERM let ``ros.spin`` return, so that whatever follows it is done."""

    def on_signal(signum: int, frame: FrameType | None) -> None:
        ros.stop()

    previous = {sig: signal.signal(sig, on_signal) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for sig, handler in previous.items():
            signal.signal(sig, handler)


def run_until_signal(ros: RosContext) -> int:
    """Spin in the main thread until SIGINT or SIGTERM; returns the exit status, 0: being stopped is a node's end."""
    with stopped_by_signals(ros):
        ros.spin()
    return 0
