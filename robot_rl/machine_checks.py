"""Checks of this machine for ``robot-rl doctor``: software, drawing, real time, devices and buffers.

Each is a function that returns one Finding. Where it reads files, the folder is an argument, so that a test can make
another machine up.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from robot_rl import gl
from robot_rl.finding import Finding, ask

NEEDS_PYTHON = (3, 11)
_GIB = 2**30
_GL_PACKAGES = "apt-get install libegl1 libegl-mesa0 libosmesa6 libgl1 libgles2"
_LIMITS_FILE = "/etc/security/limits.d/realtime.conf"
_PICTURE_LIMIT_S = 8.0
_FIFO_LIMIT_S = 5.0
_CAMERA_LIMIT_S = 4.0
_IMAGE_BYTES = 4 * 2**20  # receive buffer that controllers/fastdds.xml asks for


def machine_checks(quick: bool) -> dict[str, Callable[[], Finding]]:
    """The checks by name, in the order they are run; ``quick`` leaves out what draws or measures."""
    checks: dict[str, Callable[[], Finding]] = {
        "python": python,
        "robot-rl": package,
        "cores": cores,
        "memory": memory,
        "pictures": pictures,
        "real-time limits": real_time_limits,
        "SCHED_FIFO": fifo,
        "kernel": kernel,
        "CPU governor": governor,
        "loop jitter": loop_jitter,
        "cameras": video_devices,
        "RealSense": realsense,
        "SpaceMouse": spacemouse,
        "serial ports": serial_ports,
        "shared memory": shared_memory,
        "receive buffers": receive_buffers,
    }
    return {name: check for name, check in checks.items() if not (quick and check in (pictures, loop_jitter))}


# ---------------------------------------------------------------------------------------------------------------------
# Software


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    says = f"{'.'.join(map(str, version))}, {sys.executable}"
    if version < NEEDS_PYTHON:
        return Finding("python", "fail", says, "install Python 3.11 or newer, and make the environment anew with it")
    return Finding("python", "ok", says)


def package() -> Finding:
    """Version, place, and whether everything that it needs is installed."""
    where = Path(__file__).parents[1]
    try:
        version, needs = importlib.metadata.version("robot-rl"), importlib.metadata.requires("robot-rl") or []
    except importlib.metadata.PackageNotFoundError:
        return Finding("robot-rl", "warn", f"runs from {where}, not installed", f"pip install -e {where}")
    names = [re.split(r"[^\w.-]", need, maxsplit=1)[0] for need in needs if "extra ==" not in need]
    missing = [name for name in names if not _installed(name)]
    if missing:
        remedy = f"pip install {' '.join(missing)}"
        return Finding("robot-rl", "fail", f"{version}, {where}; {', '.join(missing)} missing", remedy)
    return Finding("robot-rl", "ok", f"{version}, {where}")


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def cores() -> Finding:
    count, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    says = f"{count} of {os.cpu_count()} for this process, load {load:.1f}"
    measured = {"cores": count, "load": round(load, 2)}
    if load > count:
        return Finding("cores", "warn", says, "end other work: timing measured now is worse than it could be", measured)
    return Finding("cores", "ok", says, measured=measured)


def memory(meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup/memory.max")) -> Finding:
    rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    total, free = (int(rows[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    limit = group.read_text().strip() if group.is_file() else "max"
    if limit.isdigit():
        total, free = min(total, int(limit)), min(free, int(limit))
    says = f"{free / _GIB:.1f} GiB free of {total / _GIB:.1f} GiB"
    measured = {"free_gib": round(free / _GIB, 2), "total_gib": round(total / _GIB, 2)}
    if free < 2 * _GIB:
        remedy = "training wants 2 GiB: end other programs, or lower agent and replay sizes with --set"
        return Finding("memory", "warn", says, remedy, measured)
    return Finding("memory", "ok", says, measured=measured)


_PICTURE = """
import mujoco
print("imported", flush=True)
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 0 3"/><geom size="1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data)
assert renderer.render().max() > 0, "the picture is black"
from OpenGL import GL
print(GL.glGetString(GL.GL_RENDERER).decode(), flush=True)
renderer.close()
"""


def pictures() -> Finding:
    """Draws one, in a child process: a driver that crashes takes nobody along."""
    try:
        backend = os.environ.get(gl.VARIABLE) or gl.backend()
    except OSError as error:
        return Finding("pictures", "warn", f"{error}; training from states works without", _GL_PACKAGES)
    drawn = ask(["-c", _PICTURE], _PICTURE_LIMIT_S, {**os.environ, "MUJOCO_GL": backend})
    lines = drawn.out.split("\n")
    if lines[0] != "imported":
        says = f"MuJoCo cannot be imported with MUJOCO_GL={backend}: {drawn.trouble}"
        return Finding("pictures", "fail", says, "pip install mujoco, and set MUJOCO_GL to egl, osmesa or glfw")
    if drawn.trouble:
        other = "osmesa" if backend == "egl" else "egl"
        says = f"MUJOCO_GL={backend} does not draw: {drawn.trouble}; training works without"
        return Finding("pictures", "warn", says, f"{_GL_PACKAGES}; or try MUJOCO_GL={other}")
    software = ", in software" if re.search("llvmpipe|softpipe|swrast", lines[1]) else ""
    return Finding("pictures", "ok", f"MUJOCO_GL={backend} draws with {lines[1]}{software}")


# ---------------------------------------------------------------------------------------------------------------------
# Real time


def real_time_limits() -> Finding:
    """Only a driver of a real arm needs them; a twin does not."""
    priority, _ = resource.getrlimit(resource.RLIMIT_RTPRIO)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    endless = resource.RLIM_INFINITY
    words = f"{'unlimited' if locked == endless else f'{locked / 2**20:.0f} MiB'} of locked memory"
    says = f"priority up to {'unlimited' if priority == endless else priority}, {words}"
    if os.geteuid() == 0:
        return Finding("real-time limits", "ok", f"{says}; root is not bound by them")
    if (priority == endless or priority >= 90) and (locked == endless or locked >= 512 * 2**20):
        return Finding("real-time limits", "ok", says)
    remedy = f"for a real arm: '@realtime - rtprio 99' and '@realtime - memlock unlimited' in {_LIMITS_FILE}, join "
    return Finding("real-time limits", "note", says, remedy + "the group realtime, log in again")


def fifo() -> Finding:
    """Tries it in a child process, for which alone it would hold."""
    code = "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))"
    tried = ask(["-S", "-c", code], _FIFO_LIMIT_S)
    if tried.trouble:
        says = f"cannot be set ({tried.trouble.split(': ', 1)[-1]})"
        return Finding("SCHED_FIFO", "note", says, "for a real arm: raise the limits above, or grant cap_sys_nice")
    return Finding("SCHED_FIFO", "ok", "can be set")


def kernel(realtime: Path = Path("/sys/kernel/realtime"), version: str = platform.version()) -> Finding:
    hard = "PREEMPT_RT" in version or (realtime.is_file() and realtime.read_text().strip() == "1")
    says = f"{platform.system()} {platform.release()}, {'' if hard else 'without '}PREEMPT_RT"
    if hard:
        return Finding("kernel", "ok", says)
    return Finding("kernel", "note", says, "only a torque loop on a real arm needs one: see your arm's maker")


def governor(cpus: Path = Path("/sys/devices/system/cpu")) -> Finding:
    found = sorted({path.read_text().strip() for path in cpus.glob("cpu[0-9]*/cpufreq/scaling_governor")})
    if not found:
        return Finding("CPU governor", "ok", "none to be read, as in a virtual machine")
    if found == ["performance"]:
        return Finding("CPU governor", "ok", "performance")
    remedy = "for less jitter: echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
    return Finding("CPU governor", "note", ", ".join(found), remedy)


def loop_jitter(rate_hz: float = 500.0, seconds_s: float = 2.0) -> Finding:
    """How late a plain loop with absolute deadlines wakes up; one period late is a miss."""
    period_s, late_s = 1.0 / rate_hz, []
    deadline_s = time.monotonic()
    for _ in range(int(seconds_s * rate_hz)):
        deadline_s += period_s
        while (left_s := deadline_s - time.monotonic()) > 0.0:
            time.sleep(left_s)
        late_s.append(time.monotonic() - deadline_s)
    p50, p99, worst = 1e3 * np.quantile(late_s, [0.5, 0.99, 1.0])
    misses = sum(late > period_s for late in late_s)
    says = f"{rate_hz:.0f} Hz: p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {worst:.2f} ms late; {misses} of {len(late_s)} "
    measured = {"p50_ms": p50, "p99_ms": p99, "max_ms": worst, "misses": misses, "ticks": len(late_s)}
    measured = {name: round(float(value), 3) for name, value in measured.items()}
    if p99 > 0.5e3 * period_s:
        remedy = "end other work on this machine, choose the performance governor, allow SCHED_FIFO"
        return Finding("loop jitter", "warn", f"{says}missed", remedy, measured)
    return Finding("loop jitter", "ok", f"{says}missed", measured=measured)


# ---------------------------------------------------------------------------------------------------------------------
# Devices


def video_devices(devices: Path = Path("/dev")) -> Finding:
    return _may_use("cameras", devices, ("video*",), "video", "no /dev/video*")


def serial_ports(devices: Path = Path("/dev")) -> Finding:
    return _may_use("serial ports", devices, ("ttyUSB*", "ttyACM*"), "dialout", "no USB serial device")


def _may_use(name: str, devices: Path, patterns: Iterable[str], group: str, none: str) -> Finding:
    found = sorted(path for pattern in patterns for path in devices.glob(pattern))
    closed = [path for path in found if not os.access(path, os.R_OK | os.W_OK)]
    if not found:
        return Finding(name, "ok", none)
    if closed:
        says = f"no permission for {', '.join(map(str, closed))}"
        return Finding(name, "warn", says, f"sudo usermod -aG {group} $USER, then log in again")
    return Finding(name, "ok", ", ".join(map(str, found)))


_REALSENSE = """
import pyrealsense2
for device in pyrealsense2.context().query_devices():
    print(*(device.get_info(getattr(pyrealsense2.camera_info, what)) for what in ("name", "serial_number")))
"""


def realsense() -> Finding:
    if importlib.util.find_spec("pyrealsense2") is None:
        return Finding("RealSense", "ok", "not asked: pyrealsense2 is not installed (pip install 'robot-rl[cameras]')")
    asked = ask(["-c", _REALSENSE], _CAMERA_LIMIT_S)
    if asked.trouble:
        says = f"pyrealsense2 is installed but does not answer: {asked.trouble}"
        return Finding("RealSense", "warn", says, "apt-get install libusb-1.0-0, and install librealsense's udev rules")
    return Finding("RealSense", "ok", ", ".join(asked.out.split("\n")).strip(", ") or "no camera connected")


def spacemouse(classes: Path = Path("/sys/class/hidraw"), devices: Path = Path("/dev")) -> Finding:
    found = []
    for uevent in sorted(classes.glob("*/device/uevent")):
        if re.search(r"3dconnexion|spacemouse|spacenavigator", uevent.read_text(errors="replace"), re.IGNORECASE):
            found.append(devices / uevent.parts[-3])
    closed = [path for path in found if not os.access(path, os.R_OK)]
    if closed:
        rule = 'KERNEL=="hidraw*", ATTRS{idVendor}=="256f", MODE="0660", GROUP="plugdev"'
        says, remedy = f"no permission for {', '.join(map(str, closed))}", f"a file in /etc/udev/rules.d with {rule}"
        return Finding("SpaceMouse", "warn", says, remedy)
    return Finding("SpaceMouse", "ok", ", ".join(map(str, found)) or "none connected")


# ---------------------------------------------------------------------------------------------------------------------
# Memory and buffers between processes


def shared_memory(folder: Path = Path("/dev/shm"), processes: Path = Path("/proc")) -> Finding:
    """Size, and Fast DDS segments that no process (of those this user may see) uses any more."""
    if not folder.is_dir():
        return Finding("shared memory", "note", f"no {folder}", "mount a tmpfs there for other ROS 2 programs")
    disk = os.statvfs(folder)
    size = disk.f_blocks * disk.f_frsize
    segments = {path for pattern in ("fastrtps_*", "fastdds_*", "sem.fast*") for path in folder.glob(pattern)}
    stale = segments - _in_use(segments, processes)
    says = f"{folder} of {size / 2**20:.0f} MiB, {len(segments)} Fast DDS segments, {len(stale)} of them stale"
    if stale:
        remedy = f"while no ROS 2 program runs: rm {folder}/fastrtps_* {folder}/fastdds_* {folder}/sem.fast*"
        return Finding("shared memory", "note", says, remedy)
    if size < 64 * 2**20:
        remedy = "other ROS 2 programs want more: docker run --shm-size=512m, or remount it"
        return Finding("shared memory", "note", says, remedy)
    return Finding("shared memory", "ok", says)


def _in_use(segments: set[Path], processes: Path) -> set[Path]:
    names = {str(path): path for path in segments}
    used = set()
    for maps in processes.glob("[0-9]*/maps") if names else ():
        try:
            lines = maps.read_text(errors="replace").splitlines()
        except OSError:  # another user's process, or one that has just ended
            continue
        used |= {names[place] for line in lines if (place := line.split(maxsplit=5)[-1]) in names}
    return used


def receive_buffers(rmem_max: Path = Path("/proc/sys/net/core/rmem_max")) -> Finding:
    allowed = int(rmem_max.read_text())
    says = f"net.core.rmem_max is {allowed / 2**20:.2f} MiB"
    if allowed < _IMAGE_BYTES:
        remedy = f"for camera images over ROS: sudo sysctl -w net.core.rmem_max={_IMAGE_BYTES}"
        return Finding("receive buffers", "warn", f"{says}: larger messages get lost", remedy)
    return Finding("receive buffers", "ok", says)
