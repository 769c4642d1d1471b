"""A kinematic arm for tests: its tcp follows commands at once; what it measures can be falsified."""

from dataclasses import replace

import numpy as np

from robot_rl.types import ArmCommand, ArmLimits, ArmState

LIMITS = ArmLimits(
    q_min_rad=np.full(6, -3.0),
    q_max_rad=np.full(6, 3.0),
    dq_max_radps=np.full(6, 2.0),
    tau_max_nm=np.full(6, 50.0),
    dtau_max_nmps=np.full(6, 1000.0),
    speed_max_mps=1.0,
    speed_max_radps=2.0,
    stiffness_max=np.array([3000.0] * 3 + [300.0] * 3),
    gripper_width_m=0.08,
    gripper_force_n=70.0,
)


class MockArm:
    """Not a lock-step arm: a GuardedArm around it runs the guard from Python, as around a driver."""

    default_stiffness = np.array([1000.0] * 3 + [50.0] * 3)

    def __init__(self, limits: ArmLimits = LIMITS) -> None:
        self.limits = limits
        self.given: list[ArmCommand] = []
        self.stopped = 0
        self.state = ArmState(
            t_s=0.0,
            q_rad=np.zeros(6),
            dq_radps=np.zeros(6),
            tau_nm=np.zeros(6),
            tcp_pos_m=np.array([0.5, 0.0, 0.3]),
            tcp_quat_xyzw=np.array([1.0, 0.0, 0.0, 0.0]),
            tcp_twist=np.zeros(6),
            tcp_wrench=np.zeros(6),
            gripper=0.0,
        )

    def read(self) -> ArmState:
        return self.state

    def command(self, command: ArmCommand) -> None:
        self.given.append(command)
        self.state = replace(self.state, tcp_pos_m=command.tcp_pos_m, tcp_quat_xyzw=command.tcp_quat_xyzw)

    def wait(self, dt_s: float) -> ArmState:
        self.state = replace(self.state, t_s=self.state.t_s + dt_s)
        return self.state

    def stop(self) -> None:
        self.stopped += 1

    def close(self) -> None:
        self.stop()
