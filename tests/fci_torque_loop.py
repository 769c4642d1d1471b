"""A torque loop in plain Python over pylibfranka, and what its model says: one JSON line. pylibfranka and franky cannot
live in one process (both register libfranka's types), so this one has its own."""

import json
import sys

import pylibfranka

from tests.fci_client import at_normal_priority


def main(host: str) -> None:
    robot = pylibfranka.Robot(host, pylibfranka.RealtimeConfig.kIgnore)
    at_normal_priority()
    model = robot.load_model()
    control = robot.start_torque_control()
    state, _ = control.readOnce()
    first = state.q[6]
    for k in range(400):
        state, _ = control.readOnce()
        torque = 20.0 * (first + 0.2 - state.q[6]) - 2.0 * state.dq[6]
        torques = pylibfranka.Torques([0.0] * 6 + [min(torque, 0.05 * k)])
        torques.motion_finished = k == 399
        control.writeOnce(torques)
    said = {"turned": state.q[6] - first, "q": list(state.q), "dq": list(state.dq)}
    said |= {"gravity": list(model.gravity(state)), "mass": list(model.mass(state))}
    said |= {"coriolis": list(model.coriolis(state)), "jac": list(model.zero_jacobian(state))}
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1])
