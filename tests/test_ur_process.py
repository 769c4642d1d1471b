"""ur_rtde's control interface in its own process: whatever becomes of that one, this one goes on."""

import os
import signal

import pytest

from hardware import _ur_process
from hardware._ur_process import Control
from tests.served import address

CHILD = """
import json, sys, time
def say(**answer):
    sys.stdout.write(json.dumps(answer) + "\\n"); sys.stdout.flush()
say(result=None, connected=True)
for line in sys.stdin:
    function, args = json.loads(line)
    if function == "hang":
        time.sleep(600)
    elif function == "die":
        sys.exit(3)
    elif function == "fail":
        say(error="as ur_rtde says it", connected=True)
    else:
        say(result=args, connected=function != "lose")
"""


@pytest.fixture
def control(tmp_path, monkeypatch):
    path = tmp_path / "child.py"
    path.write_text(CHILD)
    monkeypatch.setattr(_ur_process, "__file__", str(path))
    control = Control("nowhere")
    yield control
    control.close()
    control.close()
    assert control._process.poll() is not None and not control.connected


def test_answers_and_errors_come_back(control):
    numbers = [0.1, -1e-17, 3.0]
    assert control.call("echo", [numbers]) == [numbers] and control.connected
    with pytest.raises(RuntimeError, match="as ur_rtde says it"):
        control.call("fail")
    assert control.connected and control.call("echo") == []


def test_a_process_that_dies_is_a_lost_connection(control):
    with pytest.raises(RuntimeError, match="ur_rtde has ended"):
        control.call("die")
    assert not control.connected
    with pytest.raises(RuntimeError, match="the connection is lost"):
        control.call("echo")


def test_killed_from_outside(control):
    os.kill(control._process.pid, signal.SIGKILL)
    control._process.wait()
    with pytest.raises(RuntimeError, match="ur_rtde has ended"):
        control.call("echo")
    assert not control.connected


def test_a_process_that_hangs_is_not_waited_for(control):
    with pytest.raises(RuntimeError, match="does not answer within"):
        control.call("hang", within_s=0.2)
    assert not control.connected


def test_what_loses_the_robot_stays_lost(control):
    """Whatever ur_rtde reconnects by itself."""
    assert control.call("lose") == [] and not control.connected
    with pytest.raises(RuntimeError, match="lost"):
        control.call("echo")


def test_nobody_there_is_said_and_leaves_no_process():
    pytest.importorskip("rtde_control")
    with pytest.raises(RuntimeError):
        Control(address())
