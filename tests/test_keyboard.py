"""Keyboard: what is typed into a pseudo-terminal, any bytes, and how a terminal is left behind."""

import json
import os
import signal
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware.teleop import keyboard
from tests.teleop_benches import ANY, FEW, FORWARD, Keys, approx, is_sound, is_still, opened


@pytest.fixture
def keys(monkeypatch):
    yield from opened(Keys, monkeypatch)


@pytest.mark.parametrize("key", sorted(keyboard.MOTIONS))
def test_each_key_moves_for_a_moment(keys, key):
    device = keys.make(hold_s=0.2)
    axis, sign = keyboard.MOTIONS[key]
    keys.type(key.encode())
    want = np.zeros(6)
    want[axis] = sign
    assert device.read().twist == approx(want)
    keys.clock.pass_s(0.19)
    assert device.read().twist == approx(want)
    keys.clock.pass_s(0.02)
    assert not device.read().twist.any()
    device.close()


def test_keys_add_up_and_their_opposite_wins(keys):
    device = keys.make()
    keys.type(b"wrl")
    assert device.read().twist == approx([1, 0, 1, 0, 0, -1])
    keys.type(b"s")
    assert device.read().twist == approx([-1, 0, 1, 0, 0, -1])
    device.close()


@pytest.mark.parametrize("typed", [b"\x1b[A", b"\x1bOD", b"\x1b[1;5D", b"\x1bw", "ä".encode(), b"W", b"\x00", b"\x1b"])
def test_what_is_no_key_of_ours_moves_nothing(keys, typed):
    device = keys.make()
    keys.type(typed)
    reading = device.read()
    assert is_still(reading) and reading.events == frozenset()
    assert device.ignored or typed == b"\x1b"
    device.close()


def test_an_arrow_key_that_comes_in_two_halves(keys):
    device = keys.make()
    for half in (b"\x1b[", b"aw"):  # rxvt's Shift and up, not our left
        keys.type(half)
        reading = device.read()
    assert reading.twist == approx(FORWARD) and device.ignored == 1
    device.close()


def test_a_pasted_text_moves_nothing(keys):
    device = keys.make()
    keys.type(b"forward, straight ahead and right into the wall " * 3)
    assert is_still(device.read())
    device.close()


@ANY
@given(st.binary(max_size=100))
def test_split_takes_any_bytes(data):
    found, tail, strange = keyboard.split(data)
    assert found.isascii() and 0 <= strange <= len(data) and len(found) + len(tail) + strange <= len(data)


@FEW
@given(typed=st.lists(st.binary(min_size=1, max_size=20), max_size=8))
def test_no_keys_whatever_give_more_than_full_speed(keys, typed):
    device = keys.make()
    for data in typed:
        # What makes the terminal itself act: end of file is a key here, Ctrl-C and Ctrl-S are not.
        os.write(keys.master, bytes(byte for byte in data if byte not in b"\x03\x1c\x11\x13\x16"))
        keys.tick()
        assert is_sound(device.read())
    device.close()


def test_the_terminal_is_as_before_after_close(keys):
    before = termios.tcgetattr(keys.slave)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    device = keys.make()
    during = termios.tcgetattr(keys.slave)
    assert not during[3] & termios.ECHO and not during[3] & termios.ICANON and during[3] & termios.ISIG
    device.close()
    assert termios.tcgetattr(keys.slave) == before
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def test_the_help_is_shown_and_names_every_key(keys, capsys):
    device = keys.make(show_help=True)
    assert capsys.readouterr().err == keyboard.HELP
    keys.type(b"?")
    device.read()
    assert capsys.readouterr().err == keyboard.HELP
    words = keyboard.HELP.replace("\n", " ").split(" ")
    assert set(keyboard.MOTIONS) | set("xcqth?") <= set(words)
    device.close()


def test_stop_ends_what_keys_began(keys):
    device = keys.make()
    keys.type(b"wq")
    assert device.read().events == {"stop"}
    keys.tick()
    assert is_still(device.read())
    device.close()


def test_what_is_no_terminal_is_refused(tmp_path):
    with (tmp_path / "file").open("w") as file, pytest.raises(RuntimeError, match="ssh -t"):
        keyboard.make(keyboard.Config(), fd=file.fileno())
    with pytest.raises(ValueError, match="hold_s"):
        keyboard.Config(hold_s=1.0)


CHILD = """
import time
from hardware.teleop import keyboard
device = keyboard.make(keyboard.Config(show_help=False))
print("ready", flush=True)
while True:
    events = device.read().events
    if "success" in events:
        break
    if "fail" in events:
        raise ValueError("something else went wrong")
    time.sleep(0.005)
"""
LEADER = """
import fcntl, json, signal, subprocess, sys, termios
signal.signal(signal.SIGINT, lambda *_: None)  # a shell's: Ctrl-C is for the child
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the child would inherit that it is ignored
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
before = termios.tcgetattr(0)
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
changed = termios.tcgetattr(0) != before
print(json.dumps({"pid": child.pid, "changed": changed}), flush=True)
code = child.wait()
print(json.dumps({"restored": termios.tcgetattr(0) == before, "code": code}), flush=True)
"""


@pytest.mark.parametrize(
    "how, code, restored",
    [
        (b"\r", 0, True),
        (b"x", 1, True),
        (b"\x03", -signal.SIGINT, True),
        (signal.SIGTERM, -signal.SIGTERM, True),
        (signal.SIGHUP, -signal.SIGHUP, True),
        (signal.SIGKILL, -signal.SIGKILL, False),  # nothing can: so the others show something
    ],
    ids=["exit", "exception", "ctrl-c", "sigterm", "sighup", "sigkill"],
)
def test_a_program_leaves_the_terminal_as_it_was(how, code, restored):
    """Under a session leader on a pseudo-terminal, as under a shell: a terminal is reset when its leader ends."""
    master, slave = os.openpty()
    root = Path(__file__).parent.parent
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER, CHILD], stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        start_new_session=True, cwd=root, text=True,
    )  # fmt: skip
    try:
        begun = json.loads(leader.stdout.readline())
        assert begun["changed"]
        if isinstance(how, bytes):
            os.write(master, how)
        else:
            os.kill(begun["pid"], how)
        assert json.loads(leader.stdout.readline()) == {"restored": restored, "code": code}
        assert leader.wait(60) == 0
    finally:
        leader.kill()
        leader.wait()
        leader.stdout.close()
        os.close(master)
        os.close(slave)


def test_a_program_in_the_background_takes_no_terminal(keys, monkeypatch):
    monkeypatch.setattr(keyboard.os, "tcgetpgrp", lambda fd: os.getpgrp() + 1)
    with pytest.raises(RuntimeError, match="'fg'"):
        keys.open()
