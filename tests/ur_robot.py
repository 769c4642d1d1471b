"""A UR5e behind RTDE whose ticks are ours: registers in, ticks, registers out."""

import numpy as np

from robot_rl import build
from robot_rl.config import override
from robot_rl.find import find
from sim.protocols import _ur_kinematics as kin
from sim.protocols import ur_rtde
from sim.protocols._ur_dashboard import Runtime
from tests.served import address

PROGRAM = (
    "def rtde_control():\n global reg_offset_int = # int register offset\n0\n m = get_mass_matrix()\n"
    " direct_torque(torque, viscous_scale=viscous_scale)\n # inject move path\n    end\nend\n"
)
RAISED_M = 0.12  # above where the task begins: free space


class Robot:
    """A server that nobody runs: its ticks are ours."""

    def __init__(self, *given: str, program: str = PROGRAM) -> None:
        configs = build.make_configs("peg_insert", "ur5e", "sim", [])
        built = find("tasks", "peg_insert").make(configs["task"])
        twin = build.make_arm("peg_insert", "ur5e", "sim", configs, built)
        twin.place(built.reset(np.random.default_rng(0)))
        self.server = ur_rtde.make(override(ur_rtde.Config(), given), twin, address())
        self.arm, self.machine, self.twin = self.server.arm, self.server.machine, twin
        self.server.run_script(program)

    def put(self, number: int, doubles=(), ints=()) -> None:
        values = {"input_int_register_0": number}
        values |= {f"input_double_register_{index}": float(value) for index, value in enumerate(doubles)}
        values |= {f"input_int_register_{1 + index}": int(value) for index, value in enumerate(ints)}
        self.server._put(list(values), list(values.values()))

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.server._advance()

    def ask(self, number: int, doubles=(), ints=(), limit: int = 20_000) -> int:
        """A command that is through when it says so; how many ticks it took."""
        self.put(number, doubles, ints)
        ticks = 0
        while not ticks or (self.register(0) != 2 and self.machine.runtime == Runtime.PLAYING):
            assert ticks < limit, f"command {number} is not through after {limit} ticks"
            self.tick()
            ticks += 1
        self.put(0)
        self.tick()
        return ticks

    def register(self, index: int) -> int:
        return self.server.outputs[f"output_int_register_{index}"]

    def doubles(self, count: int = 6) -> np.ndarray:
        return np.array([self.server.outputs[f"output_double_register_{index}"] for index in range(count)])

    def value(self, name: str):
        self.server._state.renew()
        value = self.server._state.value(name)
        return np.array(value) if isinstance(value, list | tuple) else value

    @property
    def pose(self) -> np.ndarray:
        return self.value("actual_TCP_pose")

    def raise_arm(self) -> None:
        goal = self.pose + [0, 0, RAISED_M, 0, 0, 0]
        self.ask(3, [*goal, 0.5, 2.0])

    def moved(self, *offset: float) -> np.ndarray:
        goal = kin.to_matrix(self.pose)
        goal[:3, 3] += offset
        return kin.to_pose(goal)


def over_table(robot) -> None:
    """With the peg 5 mm above the table, beside the block."""
    robot.raise_arm()
    robot.ask(3, [*robot.moved(0, 0.12, 0), 0.5, 2.0])
    down = np.array([*robot.moved(0, 0, 0.045 - robot.pose[2])[:3], np.pi, 0, 0])
    robot.ask(3, [*down, 0.25, 1.0])
    robot.tick(100)


class NoServer:
    """Where the dashboard listens, nobody calls."""

    def listen(self, port, on_accept):
        pass
