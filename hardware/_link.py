"""A client's end of an arm's graph: topics that are read when they are wanted, calls that wait, a heartbeat.

Nothing spins between two reads: the middleware keeps the newest messages, and Python spends no time on the others. At
500 Hz and five topics that is what keeps a policy's process free for the policy.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from controllers.ros import RosContext

BEAT_S = 0.02


class Inbox:
    """The newest messages of one topic."""

    def __init__(self, node: Any, kind: type, topic: str, qos: Any) -> None:
        self.topic = node.resolve_topic_name(topic)
        self.kind = kind.__name__
        self._node = node
        # Nobody spins this node, so its callback is never called.
        self._subscription = node.create_subscription(kind, topic, lambda message: None, qos)

    def take(self) -> list[Any]:
        """What came since the last call, oldest first; at most the depth of the QoS."""
        from controllers.polling import take_all

        return [message for message, _ in take_all(self._subscription)]

    def why_silent(self) -> str:
        """A sentence for when nothing comes."""
        infos = self._node.get_publishers_info_by_topic(self.topic)
        if not infos:
            return f"{self.topic} is silent: nobody publishes it"
        others = {info.topic_type for info in infos if not info.topic_type.endswith(f"/{self.kind}")}
        if others:
            return f"{self.topic} is published as {', '.join(sorted(others))}, wanted is {self.kind}"
        names = ", ".join(sorted({info.node_name for info in infos}))
        return f"{self.topic} is silent: {names} publishes it, but nothing comes (stopped, inactive, or another QoS)"


class Link:
    """A context of its own with two nodes: one for topics, one for calls."""

    def __init__(self, namespace: str, name: str) -> None:
        from rclpy.node import Node

        self.namespace = "/" + namespace.strip("/")
        self._ros = RosContext()
        name = f"{name}_{os.getpid()}"
        quiet = {"context": self._ros.context, "namespace": self.namespace, "start_parameter_services": False}
        quiet |= {"enable_rosout": False, "use_global_arguments": False}
        self.node = self._ros.keep(Node(name, **quiet))
        self._calls = self._ros.add(Node(f"{name}_calls", **quiet))
        self._clients: dict[str, Any] = {}
        self._beating: tuple[threading.Thread, threading.Event] | None = None

    def inbox(self, kind: type, topic: str, qos: Any) -> Inbox:
        return Inbox(self.node, kind, topic, qos)

    def call(self, kind: Any, service: str, request: Any, timeout_s: float, hint: str, tries: int = 1) -> Any:
        """The answer of a service of the namespace. Raises TimeoutError with ``hint`` where nobody answers."""
        where = f"{self.namespace.rstrip('/')}/{service}"
        if service not in self._clients:
            self._clients[service] = self._calls.create_client(kind, where)
        client = self._clients[service]
        if not client.wait_for_service(timeout_sec=timeout_s):
            domain = os.environ.get("ROS_DOMAIN_ID", "0")
            raise TimeoutError(f"nobody offers {where} in ROS_DOMAIN_ID {domain} after {timeout_s:g} s: {hint}")
        for _ in range(tries):
            future = client.call_async(request)
            self._ros.executor.spin_until_future_complete(future, timeout_sec=timeout_s / tries)
            if future.done():
                return future.result()
            client.remove_pending_request(future)
        raise TimeoutError(f"{where} does not answer within {timeout_s:g} s: its node is stopped or hangs; {hint}")

    def get_parameters(self, node: str, names: Sequence[str], timeout_s: float, hint: str) -> dict[str, Any]:
        """Raises LookupError for a parameter that the node does not have."""
        from rcl_interfaces.srv import GetParameters
        from rclpy.parameter import parameter_value_to_python

        request = GetParameters.Request(names=list(names))
        # The answer to a client that was found just now may get lost; asking again does no harm.
        values = self.call(GetParameters, f"{node}/get_parameters", request, timeout_s, hint, tries=2).values
        if len(values) != len(names):
            raise LookupError(
                f"{self.namespace}/{node} is not configured, or no arm of ours: it lacks {names[0]}; {hint}"
            )
        return {name: parameter_value_to_python(value) for name, value in zip(names, values, strict=True)}

    def set_parameters(self, node: str, values: Mapping[str, Any], timeout_s: float, hint: str) -> str:
        """All or none; returns what the node says to it. Raises ValueError with the reason of a refusal."""
        from rcl_interfaces.srv import SetParametersAtomically
        from rclpy.parameter import Parameter

        parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        request = SetParametersAtomically.Request(parameters=parameters)
        answer = self.call(SetParametersAtomically, f"{node}/set_parameters_atomically", request, timeout_s, hint)
        if not answer.result.successful:
            raise ValueError(f"{self.namespace}/{node} refuses: {answer.result.reason}")
        return str(answer.result.reason)

    def start_heartbeat(self, publisher: Any) -> None:
        """Beat from a thread until ``close``."""
        from std_msgs.msg import Header

        stopping = threading.Event()

        def beat() -> None:
            while not stopping.wait(BEAT_S):
                message = Header()
                now_ns = time.time_ns()
                message.stamp.sec, message.stamp.nanosec = now_ns // 1_000_000_000, now_ns % 1_000_000_000
                publisher.publish(message)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        self._beating = (thread, stopping)
        thread.start()

    def close(self) -> None:
        """May be called twice."""
        if self._beating is not None:
            thread, stopping = self._beating
            stopping.set()
            thread.join()
            self._beating = None
        self._ros.close()
