"""The package in a ROS 2 workspace: built by colcon, and as complete as the repository."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("robot_rl", "controllers", "tasks", "sim", "hardware")
FOLDERS = (*PACKAGES, "launch", "resource")
FILES = ("package.xml", "setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
COLCON = shutil.which("colcon", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


@pytest.fixture(scope="module", params=[[], ["--symlink-install"]], ids=["install", "symlink"])
def workspace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with nothing else in it, built."""
    if COLCON is None:
        pytest.skip("colcon is not here: pip install colcon-common-extensions")
    workspace = tmp_path_factory.mktemp("workspace")
    source = workspace / "src" / "robot_rl"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    log = subprocess.run(
        [sys.executable, COLCON, "build", *request.param],
        cwd=workspace,
        env={**os.environ, "PYTHONPATH": "", "COLCON_LOG_PATH": str(workspace / "log")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert log.returncode == 0, log.stdout
    return workspace


def sourced(workspace: Path, *command: str) -> str:
    """What ``command`` prints where the workspace's setup file was sourced."""
    words = [". install/local_setup.bash", shlex.join(command)]
    out = subprocess.run(
        ["bash", "-c", " && ".join(words)],
        cwd=workspace,
        env={**os.environ, "PYTHONPATH": "", "COLCON_PYTHON_EXECUTABLE": sys.executable},
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr
    return out.stdout


def test_ros_finds_package_program_and_launch_files(workspace):
    installed = workspace / "install/robot_rl"
    assert (installed / "share/ament_index/resource_index/packages/robot_rl").is_file()
    assert (installed / "share/robot_rl/package.xml").is_file()
    launch = {path.name for path in (installed / "share/robot_rl/launch").iterdir()}
    assert launch == {path.name for path in (ROOT / "launch").glob("*.launch.py")} and "twin.launch.py" in launch
    assert os.access(installed / "lib/robot_rl/robot-rl", os.X_OK)
    assert str(installed) in sourced(workspace, "bash", "-c", "echo $AMENT_PREFIX_PATH").split(":")[0]


def test_every_module_and_data_file_is_installed(workspace):
    """A folder that setup.cfg forgets would be missed only on the robot's machine."""
    code = f"import importlib; print(*(importlib.import_module(name).__path__[0] for name in {PACKAGES}), sep='\\n')"
    paths = [Path(line) for line in sourced(workspace, sys.executable, "-c", code).splitlines()]
    for folder, there in zip(PACKAGES, paths, strict=True):
        assert there.resolve().is_relative_to(workspace.resolve())
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".xml"} and "__pycache__" not in path.parts:
                assert (there / path.relative_to(ROOT / folder)).is_file(), f"{path.relative_to(ROOT)} is not installed"


def test_the_installed_program_runs(workspace):
    printed = sourced(workspace, "install/robot_rl/lib/robot_rl/robot-rl", "up", "twin", "--print")
    assert [process["name"] for process in json.loads(printed)] == ["arm"]


def test_the_manifest_is_that_of_the_project():
    manifest = ElementTree.parse(ROOT / "package.xml").getroot()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert manifest.attrib["format"] == "3"
    assert manifest.findtext("name") == "robot_rl" and project["name"] == "robot-rl"
    assert manifest.findtext("version") == project["version"]
    assert manifest.findtext("description") == project["description"]
    assert manifest.findtext("export/build_type") == "ament_python"
    needed = {element.text for element in manifest.findall("exec_depend")}
    assert {"rclpy", "launch", "launch_ros", "ros2launch"} <= needed
    # What the extra "ros" brings from PyPI, the manifest asks of ROS.
    wheels = {name.partition("[")[0] for name in project["optional-dependencies"]["ros"] if name.startswith("ros-")}
    assert {name.removeprefix("ros-").replace("-", "_") for name in wheels} <= needed
