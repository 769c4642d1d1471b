"""What an arm's node says about itself on /diagnostics, once a second and when it gets worse."""

from __future__ import annotations

from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from controllers.control_loop import LATE_WARN, ControlLoop
from controllers.messages import DIAGNOSTICS_QOS
from controllers.targets import Gate

OK, WARN, ERROR, STALE = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR, DiagnosticStatus.STALE


class Diagnostics:
    """Four statuses: the control loop, the targets, the arm, the energy."""

    def __init__(self, node: Any, loop: ControlLoop, gate: Gate) -> None:
        self._node, self._loop, self._gate = node, loop, gate
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", DIAGNOSTICS_QOS)
        self._timer = node.create_timer(1.0, self.publish)
        self._ticks, self._at_s = 0, loop.now_s()

    def close(self) -> None:
        self._node.destroy_timer(self._timer)
        self._node.destroy_publisher(self._publisher)

    def publish(self) -> None:
        message = DiagnosticArray(status=[self._timing(), self._targets(), self._arm(), self._energy()])
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)

    def _status(self, name: str, level: bytes, text: str, values: dict[str, Any]) -> DiagnosticStatus:
        pairs = [
            KeyValue(key=key, value=value if isinstance(value, str) else f"{value:g}") for key, value in values.items()
        ]
        where = self._node.get_fully_qualified_name()
        return DiagnosticStatus(name=f"{where}: {name}", hardware_id=where, level=level, message=text, values=pairs)

    def _timing(self) -> DiagnosticStatus:
        timing, now_s = self._loop.timing, self._loop.now_s()
        passed_s = max(now_s - self._at_s, 1e-9)
        hz = (timing.ticks - self._ticks) / passed_s
        self._ticks, self._at_s = timing.ticks, now_s
        lateness_ms = [1e3 * s for s in list(timing.lateness_s)] or [0.0]
        values = {
            "frequency_hz": hz,
            "mean_lateness_ms": float(np.mean(lateness_ms)),
            "p99_lateness_ms": float(np.percentile(lateness_ms, 99)),
            "worst_lateness_ms": 1e3 * timing.worst_s,
            "late_ticks": timing.late,
            "ticks": timing.ticks,
        }
        if self._loop.error:
            return self._status("control loop", ERROR, self._loop.error, values)
        if timing.late_on_end > LATE_WARN:
            return self._status(
                "control loop", WARN, f"{timing.late_on_end} ticks late on end: this computer is busy", values
            )
        return self._status("control loop", OK, "lock-step" if self._loop.lockstep else "on time", values)

    def _targets(self) -> DiagnosticStatus:
        gate, age_s = self._gate, self._loop.target_age_s
        values: dict[str, Any] = {"refused": gate.refused, "last_refusal": gate.reason}
        if age_s is not None:
            values["age_s"] = age_s
        warning, gate.warning = gate.warning, ""
        if warning:
            return self._status("targets", WARN, warning, values)
        if age_s is None or age_s > self._loop.config.hold_s:
            return self._status("targets", STALE if age_s else OK, "nobody commands", values)
        return self._status("targets", OK, "fresh", values)

    def _arm(self) -> DiagnosticStatus:
        tick = self._loop.last
        values = {"mode": tick.mode, "cause": tick.cause, **{f"clip_{name}": n for name, n in tick.clips.items()}}
        if tick.fault:
            return self._status("arm", ERROR, f"fault: {tick.fault}; call clear_fault once its cause is gone", values)
        return self._status("arm", OK, f"{tick.mode}: {tick.cause}" if tick.cause else tick.mode, values)

    def _energy(self) -> DiagnosticStatus:
        tick = self._loop.last
        values = {name: tick.energy[name] for name in ("ledger_j", "potential_j", "free_j", "alpha", "gamma", "beta")}
        level = {"normal": OK, "throttle": WARN, "hold": WARN, "float": ERROR}[tick.energy_state]
        return self._status("energy", level, tick.energy_state, values)
