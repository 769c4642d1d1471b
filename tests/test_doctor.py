"""robot-rl doctor: what it finds on machines that are made up, and on this one."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from robot_rl import machine_checks, ros_checks
from robot_rl.doctor import attempt, doctor
from robot_rl.finding import Finding, ask
from tests.ros_children import TIED
from tests.ros_graph import reserved_domain

HAS_ROS = importlib.util.find_spec("rclpy") is not None
ROS_VARIABLES = (
    "ROS_AUTOMATIC_DISCOVERY_RANGE",
    "FASTDDS_DEFAULT_PROFILES_FILE",
    "ROS_DISCOVERY_SERVER",
    "RMW_IMPLEMENTATION",
)


@pytest.fixture(autouse=True)
def own_domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ROS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with reserved_domain() as domain:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
        yield


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Findings and children


@pytest.mark.parametrize("status", ["warn", "fail"])
def test_a_warning_without_remedy_cannot_be_made(status) -> None:
    with pytest.raises(ValueError, match="remedy"):
        Finding("x", status, "is bad")


def test_a_check_that_fails_is_a_finding_and_names_its_error() -> None:
    def broken() -> Finding:
        raise RuntimeError("no such file in the moon")

    finding = attempt("moon", broken)
    assert (finding.name, finding.status) == ("moon", "warn")
    assert "RuntimeError: no such file in the moon" in finding.says
    assert finding.remedy


def test_what_a_child_said_before_it_crashed_is_kept() -> None:
    child = ask(["-c", "import os; print('so far', flush=True); os.abort()"], 30.0)
    assert child.out == "so far\n"
    assert "SIGABRT" in child.trouble
    assert "within 0.2 s" in ask(["-c", "import time; time.sleep(60)"], 0.2).trouble
    assert ask(["-c", "raise ValueError('mended soon')"], 30.0).trouble == "ValueError: mended soon"
    assert ask(["-c", "print('fine')"], 30.0).trouble == ""


# ---------------------------------------------------------------------------------------------------------------------
# This machine, made up


def test_an_old_python_fails() -> None:
    assert machine_checks.python((3, 10, 4)).status == "fail"
    assert machine_checks.python((3, 11, 0)).status == "ok"


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["numpy>=2", "no-such-thing[all]>=1.1", 'torch==2.13.0; extra == "torch"']
    monkeypatch.setattr(machine_checks.importlib.metadata, "requires", lambda name: needs)
    finding = machine_checks.package()
    assert finding.status == "fail"
    assert finding.remedy == "pip install no-such-thing"


def test_little_memory_warns(tmp_path: Path) -> None:
    info = put(tmp_path / "meminfo", "MemTotal: 16000000 kB\nMemAvailable: 12000000 kB\n")
    assert machine_checks.memory(info, tmp_path / "none").status == "ok"
    group = put(tmp_path / "memory.max", f"{2**30}\n")
    assert machine_checks.memory(info, group).status == "warn"
    assert machine_checks.memory(info, group).measured["total_gib"] == 1.0


def test_load_above_the_cores_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(os, "getloadavg", lambda: (7.0, 0.0, 0.0))
    assert machine_checks.cores().status == "warn"


@pytest.mark.parametrize(("backend", "status"), [("nonsense", "fail"), ("glfw", "warn")])
def test_a_missing_gl_is_found(monkeypatch: pytest.MonkeyPatch, backend: str, status: str) -> None:
    monkeypatch.setenv("MUJOCO_GL", backend)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    finding = machine_checks.pictures()
    assert finding.status == status, finding
    assert backend in finding.says


def test_a_gl_that_crashes_takes_nobody_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "_PICTURE", "import os; print('imported', flush=True); os.abort()")
    finding = machine_checks.pictures()
    assert finding.status == "warn"
    assert "SIGABRT" in finding.says


def test_low_limits_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(machine_checks.resource, "getrlimit", lambda which: (0, 0))
    low = machine_checks.real_time_limits()
    assert low.status == "note"
    assert "rtprio" in low.remedy
    endless = machine_checks.resource.RLIM_INFINITY
    monkeypatch.setattr(machine_checks.resource, "getrlimit", lambda which: (endless, endless))
    assert machine_checks.real_time_limits().status == "ok"


def test_a_real_time_kernel_and_a_saving_governor_are_told(tmp_path: Path) -> None:
    assert machine_checks.kernel(tmp_path / "none", "#1 SMP PREEMPT_RT").status == "ok"
    assert machine_checks.kernel(tmp_path / "none", "#1 SMP PREEMPT_DYNAMIC").status == "note"
    assert machine_checks.kernel(put(tmp_path / "realtime", "1\n"), "#1 SMP").status == "ok"
    assert machine_checks.governor(tmp_path).status == "ok"
    put(tmp_path / "cpu0/cpufreq/scaling_governor", "powersave\n")
    assert machine_checks.governor(tmp_path).says == "powersave"


def test_the_loop_counts_every_tick() -> None:
    measured = machine_checks.loop_jitter(rate_hz=200.0, seconds_s=0.1).measured
    assert measured["ticks"] == 20
    assert 0.0 <= measured["p50_ms"] <= measured["p99_ms"] <= measured["max_ms"]


def test_devices_without_permission_warn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = tmp_path / "class"
    put(classes / "hidraw3/device/uevent", "HID_NAME=3Dconnexion SpaceMouse Compact\n")
    put(classes / "hidraw4/device/uevent", "HID_NAME=A keyboard\n")
    put(tmp_path / "hidraw3", "")
    put(tmp_path / "video0", "")
    put(tmp_path / "ttyACM0", "")
    checks: tuple[Callable[[], Finding], ...] = (
        lambda: machine_checks.spacemouse(classes, tmp_path),
        lambda: machine_checks.video_devices(tmp_path),
        lambda: machine_checks.serial_ports(tmp_path),
    )
    for check, name in zip(checks, ("hidraw3", "video0", "ttyACM0"), strict=True):
        assert check().status == "ok"
        assert name in check().says
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for check in checks:
        assert check().status == "warn"
    assert machine_checks.spacemouse(tmp_path / "none", tmp_path).says == "none connected"


def test_stale_segments_are_told_from_those_in_use(tmp_path: Path) -> None:
    shm, processes = tmp_path / "shm", tmp_path / "proc"
    used, stale = put(shm / "fastdds_0a", ""), put(shm / "fastrtps_port7411", "")
    put(shm / "sound", "")
    put(processes / "17/maps", f"7f00-7f01 rw-s 00000000 00:17 5      {used}\n7f02-7f03 r--p 0 0 0 \n")
    assert machine_checks._in_use({used, stale}, processes) == {used}
    finding = machine_checks.shared_memory(shm, processes)
    assert "2 Fast DDS segments, 1 of them stale" in finding.says
    assert str(shm) in finding.remedy
    assert stale.exists(), "only told, not removed"


def test_small_receive_buffers_warn(tmp_path: Path) -> None:
    assert machine_checks.receive_buffers(put(tmp_path / "a", "212992\n")).status == "warn"
    assert machine_checks.receive_buffers(put(tmp_path / "b", "8388608\n")).status == "ok"


# ---------------------------------------------------------------------------------------------------------------------
# ROS, made up


@pytest.mark.parametrize(
    ("text", "status"),
    [("", "ok"), ("0", "ok"), ("150", "warn"), ("232", "ok"), ("233", "fail"), ("-1", "fail"), ("a", "fail")],
)
def test_the_domain_id(text: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", text)
    assert ros_checks.domain(put(tmp_path / "ports", "32768\t60999\n")).status == status


def test_the_domain_it_recommends_is_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = put(tmp_path / "ports", "32768\t60999\n")
    monkeypatch.setenv("ROS_DOMAIN_ID", "150")
    highest = ros_checks.domain(ports).remedy.split()[-1]
    monkeypatch.setenv("ROS_DOMAIN_ID", highest)
    assert ros_checks.domain(ports).status == "ok"


@pytest.mark.parametrize(
    ("name", "value", "status", "word"),
    [
        ("ROS_AUTOMATIC_DISCOVERY_RANGE", "", "ok", "this machine only"),
        ("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST", "ok", "this machine only"),
        ("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET", "note", "every machine of this network"),
        ("ROS_AUTOMATIC_DISCOVERY_RANGE", "OFF", "warn", "no process finds"),
        ("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCAL", "fail", "Did you mean 'LOCALHOST'"),
        ("FASTDDS_DEFAULT_PROFILES_FILE", "/no/such/profile.xml", "fail", "/no/such/profile.xml"),
        ("ROS_DISCOVERY_SERVER", "10.0.0.1:11811", "ok", "10.0.0.1:11811"),
    ],
)
def test_the_discovery_range(name: str, value: str, status: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    finding = ros_checks.discovery_range()
    assert finding.status == status
    assert word in finding.says


def test_two_ros_installations_warn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for prefix in ("one", "two"):
        put(tmp_path / prefix / "lib/python3.12/site-packages/rclpy/__init__.py", "")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "one/lib/python3.12/site-packages")])
    monkeypatch.setattr(sys, "modules", {k: v for k, v in sys.modules.items() if not k.startswith("rclpy")})
    assert ros_checks.installed().status == "ok"
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path / "two"))
    finding = ros_checks.installed()
    assert finding.status == "warn"
    assert str(tmp_path / "two") in finding.says


GRAPH = {"nodes": ["/panda/arm"], "arms": ["panda"], "images": []}
HEALTHY = {
    "found": True, "lifecycle": "active", "silent": [], "mode": "holding", "safety": "holding: no target yet",
    "estop": False, "commanders": 1,
    "parameters": {"arm.name": "panda", "arm.task": "reach", "arm.rate_hz": 500.0, "arm.lockstep": False},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ({}, "ok", "holding"),
        ({"found": False}, "fail", "there is one in panda"),
        ({"lifecycle": None}, "fail", "do not answer"),
        ({"lifecycle": "inactive"}, "warn", "inactive"),
        ({"mode": "fault", "safety": "fault: force"}, "warn", "fault: force"),
        ({"estop": True, "mode": "emergency stop", "safety": "pressed"}, "warn", "pressed"),
        ({"silent": ["current_pose"]}, "warn", "current_pose"),
        ({"silent": ["current_pose"], "parameters": {"arm.lockstep": True}}, "ok", "holding"),
        ({"commanders": 2}, "warn", "2 publishers"),
    ],
)
def test_an_arm_is_judged_by_what_it_tells(change: dict, status: str, word: str) -> None:
    finding = ros_checks.arm({"graph": GRAPH, "arm": HEALTHY | change, "trouble": ""}, "panda")
    assert finding.status == status, finding
    assert word in finding.says


def test_without_namespace_the_arms_in_the_domain_are_told() -> None:
    assert "--namespace panda" in ros_checks.arm({"graph": GRAPH}, None).says
    assert "node arm" in ros_checks.arm({"graph": GRAPH | {"arms": []}}, None).remedy


def test_a_slow_or_broken_round_trip_is_found() -> None:
    slow = {"p50_ms": 1.0, "p99_ms": 30.0, "max_ms": 31.0, "count": 9}
    assert ros_checks.round_trip({"round_trip": slow}).status == "warn"
    assert ros_checks.round_trip({"round_trip": slow | {"p99_ms": 3.0}}).status == "ok"
    assert ros_checks.round_trip({"round_trip": {}}).status == "fail"
    assert ros_checks.round_trip({"installation": {}, "trouble": "it crashed with SIGSEGV"}).status == "fail"


@pytest.mark.skipif(not HAS_ROS, reason="needs rclpy")
def test_a_middleware_that_is_not_installed_fails_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMW_IMPLEMENTATION", "rmw_of_the_moon")
    found = [check() for check in ros_checks.ros_checks(None, quick=True).values()]
    assert [finding.name for finding in found if finding.status == "fail"] == ["middleware"]
    assert "rmw_of_the_moon" in next(finding.says for finding in found if finding.name == "middleware")


@pytest.mark.alone  # the doctor waits for seconds only
@pytest.mark.skipif(not HAS_ROS, reason="needs rclpy")
def test_an_arm_node_is_asked_and_what_ails_it_is_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [*TIED, sys.executable, "-m", "robot_rl.cli", "node", "arm", "--task", "reach", "--namespace", "doctored"]
    with open(log, "w") as file:
        node = subprocess.Popen(command, stderr=file)
    try:
        end_s = time.monotonic() + 120.0
        while "is active" not in log.read_text() and node.poll() is None and time.monotonic() < end_s:
            time.sleep(0.1)
        finding = ros_checks.ros_checks("doctored", quick=True)["arm"]()
        assert finding.status == "ok", (finding, log.read_text())
        assert "/doctored/arm (panda, reach) is active, holding" in finding.says
        node.send_signal(signal.SIGSTOP)
        stopped = ros_checks.ros_checks("doctored", quick=True)["arm"]()
        assert stopped.status == "fail", stopped
    finally:
        node.kill()
        node.wait()


# ---------------------------------------------------------------------------------------------------------------------
# The whole


def test_without_ros_it_works_and_says_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['rclpy'] = None\n"
        "from robot_rl.doctor import doctor\n"
        "sys.exit(doctor(as_json=True, quick=True) + 10 * doctor('panda', as_json=True, quick=True))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 10, done.stderr  # only the arm that was asked for fails
    alone, with_arm = (json.loads(line)["findings"] for line in done.stdout.splitlines())
    ros = next(finding for finding in alone if finding["name"] == "ROS")
    assert ros["status"] == "note"
    assert "pip install 'robot-rl[ros]'" in ros["remedy"]
    assert [finding["name"] for finding in with_arm if finding["status"] == "fail"] == ["arm"]


@pytest.mark.alone
def test_the_real_run_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    status = doctor(as_json=True)
    report = json.loads(capsys.readouterr().out)
    findings = report["findings"]
    failed = [finding["name"] for finding in findings if finding["status"] == "fail"]
    assert status == (1 if failed else 0)
    assert report["failed"] is bool(failed)
    for finding in findings:
        assert set(finding) == {"name", "status", "says", "remedy", "measured"}
        assert "could not be checked" not in finding["says"], finding
        assert finding["remedy"] or finding["status"] in ("ok", "note")
    assert len({finding["name"] for finding in findings}) == len(findings)
    jitter = next(finding for finding in findings if finding["name"] == "loop jitter")
    assert jitter["measured"]["ticks"] == 1000
    if HAS_ROS:
        trip = next(finding for finding in findings if finding["name"] == "round trip")
        assert trip["measured"]["count"] > 0


def test_off_a_terminal_it_prints_plain_aligned_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"one": Finding("one", "ok", "is fine"), "two": Finding("two", "fail", "is not", "mend it")}
    monkeypatch.setattr("robot_rl.doctor.machine_checks", lambda quick: {n: lambda f=f: f for n, f in found.items()})
    monkeypatch.setattr("robot_rl.doctor.ros_checks", lambda namespace, quick: {})
    assert doctor() == 1
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "ok    one               is fine"
    assert lines[1:3] == ["fail  two               is not", "                        -> mend it"]
    assert lines[-1] == "1 ok, 0 note, 0 warn, 1 fail"
