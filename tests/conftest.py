"""Fixtures for tests that use ROS 2: a domain of their own, and a look at what they leave behind."""

import fcntl
import tempfile
from pathlib import Path

import pytest

DOMAINS = range(1, 100)  # above, the ports of a domain lie where the kernel hands out its own


@pytest.fixture
def ros_domain(monkeypatch):
    """A ROS_DOMAIN_ID that no other test of this machine has, set in the environment; a lock file keeps it."""
    for domain in DOMAINS:
        with open(Path(tempfile.gettempdir()) / f"robot-rl-domain-{domain}.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
            for name in ("ROS_AUTOMATIC_DISCOVERY_RANGE", "FASTDDS_DEFAULT_PROFILES_FILE"):
                monkeypatch.delenv(name, raising=False)
            yield domain
            return
    raise RuntimeError(f"every domain in {DOMAINS} is in use")
