"""What a check of ``robot-rl doctor`` found, and how a check asks a child process."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

_COLOUR = re.compile("\x1b\\[[0-9;]*m")

Status = Literal["ok", "note", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """``note``: worth knowing. ``warn``: something will work badly. ``fail``: something cannot work."""

    name: str
    status: Status
    says: str
    remedy: str = ""  # what to do; never empty for warn and fail
    measured: Mapping[str, float] = field(default_factory=dict)  # numbers behind ``says``, with units in their names

    def __post_init__(self) -> None:
        if self.status in ("warn", "fail") and not self.remedy:
            raise ValueError(f"Finding {self.name!r} is a {self.status} without remedy: say what to do about it")


@dataclass(frozen=True)
class Child:
    """How a child process ended."""

    out: str
    trouble: str  # empty: it ended well; else its signal, or its last words


def ask(args: Sequence[str], limit_s: float, env: Mapping[str, str] | None = None) -> Child:
    """Run this Python with ``args``: what may crash or hang does so there. What it had printed is kept in any case."""
    process = subprocess.Popen(
        [sys.executable, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=env,
    )  # fmt: skip
    try:
        out, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return Child(process.communicate()[0], f"no answer within {limit_s:g} s")
    finally:
        if process.poll() is None:  # Ctrl-C while waiting
            process.kill()
            process.wait()
    if process.returncode == 0:
        return Child(out, "")
    if process.returncode < 0:
        return Child(out, f"it crashed with {signal.Signals(-process.returncode).name}")
    lines = _COLOUR.sub("", errors).strip().splitlines()
    words = [line for line in lines if line.strip() and not line.startswith(" ")]
    return Child(out, words[-1] if words else f"exit status {process.returncode}")
