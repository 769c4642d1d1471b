"""Messages taken when they are wanted, instead of a callback for each: of a stream at 500 Hz only the newest counts.

A control loop that takes its targets itself, just before a tick, waits for no executor and shares no lock with one.
"""

from __future__ import annotations

from typing import Any

from rclpy.callback_groups import CallbackGroup


class Polled(CallbackGroup):
    """Subscriptions of this group are left alone by the executor that spins their node."""

    def can_execute(self, entity: Any) -> bool:
        return False

    def beginning_execution(self, entity: Any) -> bool:
        return False

    def ending_execution(self, entity: Any) -> None:
        return


def take_all(subscription: Any, raw: bool = False, most: int = 100) -> list[tuple[Any, dict[str, Any]]]:
    """What has come since the last call with its info, oldest first, ``most`` at a time: a flood has to end somewhere.
    It is what rclpy's executors do themselves."""
    out: list[tuple[Any, dict[str, Any]]] = []
    with subscription.handle:
        while len(out) < most:
            taken = subscription.handle.take_message(subscription.msg_type, raw)
            if taken is None:
                break
            out.append(taken)
    return out
