"""Who may import whom, read from the syntax trees, and what an import may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"robot_rl", "controllers", "tasks", "sim", "hardware", "launch"}
LIGHT = {"types", "geometry", "find", "config", "gl"}  # of robot_rl: numpy and the standard library only
JAX = {"jax", "flax", "optax"}
ROS = {
    "rclpy",
    "launch_ros",
    "std_msgs",
    "geometry_msgs",
    "sensor_msgs",
    "std_srvs",
    "diagnostic_msgs",
    "rcl_interfaces",
}
ROS |= {"visualization_msgs", "rosgraph_msgs", "lifecycle_msgs", "builtin_interfaces", "trajectory_msgs"}
MAY = {
    "robot_rl": {"robot_rl"},
    "controllers": {"controllers"} | {f"robot_rl.{name}" for name in LIGHT},
    "tasks": {"tasks"} | {f"robot_rl.{name}" for name in LIGHT | {"stl"}},
    "sim": {"sim", "controllers"} | {f"robot_rl.{name}" for name in LIGHT},
    "hardware": {"hardware", "controllers"} | {f"robot_rl.{name}" for name in LIGHT},
    "launch": {"robot_rl.ros_launch"},
}
NEVER = {
    "robot_rl": {"mujoco", "numba"} | ROS,
    "controllers": JAX | {"mujoco", "gymnasium"},
    "tasks": JAX | {"mujoco", "numba"} | ROS,
    "sim": JAX | {"gymnasium"} | ROS,
    "hardware": JAX | {"mujoco", "gymnasium"},
    "launch": JAX | {"mujoco", "numba", "gymnasium"},
}


def imports(path: Path) -> list[str]:
    """Every module a file names in an import statement, at any depth; relative ones are resolved."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            stem = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (stem, node.module or "") if part)
            # "from robot_rl import geometry" names the module robot_rl.geometry
            found += [f"{base}.{alias.name}" for alias in node.names] if base in OURS else [base]
    return found


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def allowed(name: str, folder: str) -> bool:
    return any(name == may or name.startswith(f"{may}.") for may in MAY[folder])


@pytest.mark.parametrize("folder", sorted(MAY))
def test_a_folder_imports_only_what_it_may(folder):
    assert files(folder), f"{folder}/ holds no Python file"
    for path in files(folder):
        for name in imports(path):
            top = name.split(".")[0]
            if top in OURS:
                assert allowed(name, folder), f"{path.relative_to(ROOT)} imports {name}"
            assert top not in NEVER[folder], f"{path.relative_to(ROOT)} imports {name}"


def test_what_needs_ros_is_reached_by_what_needs_ros_only():
    """``controllers`` without ROS stays usable without it: guard, filter, law and loop."""
    modules = {path.stem: imports(path) for path in files("controllers")}
    needs = {name for name, found in modules.items() if any(top.split(".")[0] in ROS for top in found)}
    assert "arm_node" in needs and "guarded_arm" not in needs and "control_loop" not in needs
    needs |= {"ros"}
    for name, found in modules.items():
        reached = {top.split(".")[1] for top in found if top.startswith("controllers.")} & needs
        assert not reached or name in needs, f"controllers/{name}.py imports {reached}"


def test_ray_is_one_file_s():
    """An extra, and one that starts processes: everything else has to do without."""
    found = [
        path for folder in MAY for path in files(folder) if {"ray"} & {name.split(".")[0] for name in imports(path)}
    ]
    assert found == [ROOT / "robot_rl/cluster.py"]


def test_the_vocabulary_needs_numpy_only():
    for name in LIGHT:
        for imported in imports(ROOT / "robot_rl" / f"{name}.py"):
            top = imported.split(".")[0]
            fine = top in sys.stdlib_module_names or top == "numpy"
            assert fine or imported.split(".")[1] in LIGHT, f"robot_rl/{name}.py imports {imported}"


def test_the_rule_sees_a_violation(tmp_path, monkeypatch):
    """A rule that cannot fail is none."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "sim").mkdir()
    (tmp_path / "sim" / "bad.py").write_text("def f():\n    from tasks import reach\n    import jax.numpy\n")
    assert imports(tmp_path / "sim" / "bad.py") == ["tasks.reach", "jax.numpy"]
    assert not allowed("tasks.reach", "sim")


def test_launch_is_never_a_package():
    """ROS 2 owns the import name."""
    assert not (ROOT / "launch" / "__init__.py").exists()


@pytest.mark.parametrize(
    "statement",
    [
        "import robot_rl.types, controllers",
        "import controllers.guard, controllers.impedance",
        "import controllers.control_loop, controllers.targets, controllers.moving, controllers.arms",
        "import hardware.ros, hardware.crisp, hardware.franka, hardware.ur",
        "import hardware.cameras.realsense, hardware.cameras.webcam, hardware.cameras.video",
        "import hardware.teleop.spacemouse, hardware.teleop.gamepad, hardware.teleop.keyboard",
        "import tasks.peg_insert",
        "import robot_rl.up, robot_rl.warden, robot_rl.ros_launch",
    ],
)
def test_light_imports_load_nothing_heavy(statement):
    heavy = [
        "jax",
        "mujoco",
        "rclpy",
        "torch",
        "matplotlib",
        "cv2",
        "pyrealsense2",
        "hid",
        "evdev",
        "franky",
        "rtde_control",
    ]
    code = f"import sys; {statement}; print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"
