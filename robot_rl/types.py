"""The vocabulary every folder shares: states, commands, scenes, transitions and the protocols between them.

Arrays are float64 unless said. Everything is in the arm's base frame unless the name ends in ``_in_<frame>``.
Mixed 6-vectors (twist, wrench, stiffness) are linear then angular. Quaternions are ``xyzw`` with unit norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Obs = dict[str, np.ndarray]
"""Named observations. Keys that start with ``sim/`` reach reward and success, never an agent or a replay buffer."""

IDENTITY_XYZW = (0.0, 0.0, 0.0, 1.0)


# ---------------------------------------------------------------------------------------------------------------------
# Arms


@dataclass(frozen=True, slots=True)
class ArmState:
    """What an arm measured at one instant."""

    t_s: float  # the arm's own monotonic clock
    q_rad: Array  # (dof,)
    dq_radps: Array  # (dof,)
    tau_nm: Array  # (dof,) torque applied, without gravity compensation
    tcp_pos_m: Array  # (3,)
    tcp_quat_xyzw: Array  # (4,)
    tcp_twist: Array  # (6,) m/s, rad/s
    tcp_wrench: Array  # (6,) N, Nm; what the surroundings exert on the arm, at the tcp
    gripper: float  # 0 open .. 1 closed


@dataclass(frozen=True, slots=True)
class ArmCommand:
    """A Cartesian impedance target with a lease: ``valid_s`` after it was given it expires, and expired means hold."""

    tcp_pos_m: Array  # (3,)
    tcp_quat_xyzw: Array  # (4,)
    gripper: float = 0.0  # 0 open .. 1 closed
    stiffness: Array | None = None  # (6,) N/m, Nm/rad; None: the arm's default
    valid_s: float = 0.2


@dataclass(frozen=True, slots=True)
class ArmLimits:
    """What the arm's maker allows, and what the arm cannot do."""

    q_min_rad: Array  # (dof,)
    q_max_rad: Array  # (dof,)
    dq_max_radps: Array  # (dof,)
    tau_max_nm: Array  # (dof,)
    dtau_max_nmps: Array  # (dof,) torque rate, Nm/s
    speed_max_mps: float  # tcp
    speed_max_radps: float  # tcp
    stiffness_max: Array  # (6,) N/m, Nm/rad
    gripper_width_m: float  # fully open
    gripper_force_n: float  # largest grasping force
    cannot: frozenset[str] = frozenset()  # names of ArmCommand fields this arm has to refuse
    coulomb_nm: Array | None = None  # (dof,) identified joint friction; None: not known
    viscous_nmspr: Array | None = None  # (dof,) Nm s/rad, the same

    @property
    def dof(self) -> int:
        return len(self.q_min_rad)


@dataclass(frozen=True)
class Bounds:
    """What a task allows its policy: the guard clips commands into it. ``inf`` is no bound; 0.0 is a bound."""

    box_lower_m: tuple[float, float, float]
    box_upper_m: tuple[float, float, float]
    box_quat_xyzw: tuple[float, float, float, float]  # centre of the rotation box
    box_rot_rad: tuple[float, float, float]  # largest rotation vector from the centre, per base axis
    speed_mps: float = 0.25
    speed_radps: float = 1.0
    force_n: float = 30.0  # spring force a target may ask for
    torque_nm: float = 5.0  # spring moment a target may ask for
    trip_force_n: float = 200.0  # measured force above which the arm trips into a hold
    energy_j: float = 2.0  # what controller and policy may spend, net, in one episode (controllers/filters)

    def __post_init__(self) -> None:
        if not np.all(np.asarray(self.box_lower_m) <= np.asarray(self.box_upper_m)):  # so that NaN fails, too
            raise ValueError(
                f"Bounds.box_lower_m {self.box_lower_m} is above box_upper_m {self.box_upper_m}: give lower <= upper"
            )
        for name in ("speed_mps", "speed_radps", "force_n", "torque_nm", "trip_force_n"):
            value = getattr(self, name)
            if not value >= 0.0:
                raise ValueError(f"Bounds.{name} is {value}: give a number >= 0 (inf for no bound)")
        if not 0.0 < self.energy_j < np.inf:
            raise ValueError(f"Bounds.energy_j is {self.energy_j}: give a number of joules > 0")
        if not abs(np.linalg.norm(self.box_quat_xyzw) - 1.0) < 1e-6:
            raise ValueError(f"Bounds.box_quat_xyzw is {self.box_quat_xyzw}: give a unit quaternion")
        if not np.all(np.asarray(self.box_rot_rad) >= 0.0):
            raise ValueError(f"Bounds.box_rot_rad is {self.box_rot_rad}: give three angles >= 0 rad (inf for no bound)")


class Arm(Protocol):
    """A twin, a driver, an arm behind ROS, or any of them guarded."""

    limits: ArmLimits
    default_stiffness: Array  # (6,) N/m, Nm/rad

    def read(self) -> ArmState: ...
    def command(self, command: ArmCommand) -> None:
        """Returns at once. Raises ValueError on a value that is not finite."""

    def wait(self, dt_s: float) -> ArmState:
        """Let ``dt_s`` pass: a twin steps physics, a driver sleeps to its next tick. The only clock there is."""
        ...

    def stop(self) -> None:
        """Hold where the arm is, compliantly. May be called twice, and from any thread."""

    def close(self) -> None: ...


class Sensor(Protocol):
    """A camera is a sensor of uint8 (H, W, 3)."""

    def read(self) -> tuple[np.ndarray, float]:
        """Newest value and the time ``t_s`` it was taken."""
        ...


# ---------------------------------------------------------------------------------------------------------------------
# Scenes: what a task needs around the arm, said without saying in which world


@dataclass(frozen=True)
class Geom:
    """One primitive of a prop, in the prop's frame."""

    shape: Literal["box", "sphere", "cylinder", "capsule"]
    size_m: tuple[float, ...]  # box: half sizes; sphere: radius; cylinder and capsule: radius, half length along z
    pos_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    quat_xyzw: tuple[float, float, float, float] = IDENTITY_XYZW
    rgba: tuple[float, float, float, float] = (0.6, 0.6, 0.6, 1.0)
    friction: float = 0.5  # Coulomb, sliding
    collide: bool = True


@dataclass(frozen=True)
class Chain:
    """What a flexible prop is made of: equal links along x, one behind the other, between them joints that bend and
    twist. ``links * link_m`` long, it bends as a rod of flexural rigidity EI = ``joint_nmprad * link_m`` (Nm^2)."""

    links: int
    link_m: float
    joint_nmprad: float  # stiffness of each joint; the prop is straight where nothing bends it
    joint_nmsprad: float = 0.002  # its damping


@dataclass(frozen=True)
class Prop:
    """An object of the scene. ``fixture``: placed at each reset, then fixed. ``free``: moves. ``tool``: welded to the
    tcp (its frame is the tcp frame), as a peg in a closed gripper. ``cable``: a chain whose first link is placed
    somewhere near the tcp, which holds it there from then on; geoms are those of each link, in the link's frame."""

    name: str
    kind: Literal["fixture", "free", "tool", "cable"]
    geoms: tuple[Geom, ...]
    mass_kg: float = 0.1  # ignored for a fixture; of a whole chain
    chain: Chain | None = None  # of a cable

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of what has a pose: the prop, and of a chain its further links, ``<name>/1`` and so on."""
        more = range(1, self.chain.links) if self.chain is not None else ()
        return (self.name, *(f"{self.name}/{index}" for index in more))


@dataclass(frozen=True)
class Scene:
    props: tuple[Prop, ...] = ()
    table_height_m: float | None = 0.0  # None: no table
    locked_gripper: float | None = None  # the reading at which the fingers stay; None: the task moves them


@dataclass(frozen=True)
class Pose:
    pos_m: Array  # (3,)
    quat_xyzw: Array  # (4,)


@dataclass(frozen=True)
class Start:
    """One drawn beginning of an episode."""

    tcp: Pose
    gripper: float = 0.0  # not read where the scene locks the fingers
    props: Mapping[str, Pose] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------------------------
# Tasks


class Task(Protocol):
    """What to do; no world inside. Frozen: everything that changes comes in as an argument."""

    control_hz: float
    max_steps: int
    scene: Scene
    bounds: Bounds
    observation_space: Any  # gymnasium.spaces.Dict
    action_space: Any  # gymnasium.spaces.Box in [-1, 1]

    def reset(self, rng: np.random.Generator) -> Start: ...
    def observe(self, state: ArmState, readings: Mapping[str, np.ndarray], origin: ArmState) -> Obs:
        """``readings``: what the sensors say, by name; ``prop/<part>`` is a pose (7,) m, xyzw in the base frame.
        ``origin``: the state in which the episode began."""
        ...

    def command(self, action: np.ndarray, state: ArmState) -> ArmCommand: ...
    def steer(self, twist: np.ndarray, gripper: float, state: ArmState) -> np.ndarray:
        """The action of a person at a teleoperation device. ``twist`` (6,) in [-1, 1], base frame: share of the fastest
        speed, linear then angular; ``gripper``: -1 open, +1 closed, 0 as it is."""
        ...

    def reward(self, obs: Obs, action: np.ndarray, next_obs: Obs) -> dict[str, float]:
        """Named terms; their sum is the reward."""
        ...

    def success(self, obs: Obs) -> bool: ...
    def demonstrator(self, rng: np.random.Generator) -> Demonstrator: ...


Demonstrator = Callable[[Obs], np.ndarray]
"""One episode of a scripted expert: observation in, action in [-1, 1] out. Make a fresh one per episode."""


# ---------------------------------------------------------------------------------------------------------------------
# Learning


POLICY, INTERVENTION, DEMONSTRATION = 0, 1, 2
"""Who chose the action of a transition: the policy, a person (or a script) who took over, a demonstration."""


class Transition(NamedTuple):
    """One step, or a batch of them with leading axes."""

    obs: Any
    action: Any
    reward: Any
    discount: Any  # 0 only on a true end; 1 on a time-out
    next_obs: Any
    extra: Any = None  # whatever ``act`` returned besides the action


@runtime_checkable
class Agent(Protocol):
    """An immutable pytree."""

    def start(self) -> Any:
        """The carry of a new episode: subgoal, clock, chunk; ``None`` for a flat policy."""

    def act(self, obs: Obs, carry: Any, key: Any, explore: bool) -> tuple[Any, Any, dict[str, Any]]: ...
    def update(self, batch: Transition) -> tuple[Agent, dict[str, Any]]: ...
    @property
    def stored(self) -> Mapping[str, tuple[int, ...]]:
        """What ``update`` wants in ``batch.extra``, float32 by shape: "cost" is ``info["cost"]`` of the step, any other
        name something that ``act`` returned."""
        ...

    @property
    def policy(self) -> Any:
        """The part the actor needs."""

    def with_policy(self, policy: Any) -> Agent: ...
