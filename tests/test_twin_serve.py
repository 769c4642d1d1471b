"""``robot-rl twin serve``: what it says, how it ends, and what it refuses in one line."""

import pytest

from tests.served import serve


@pytest.mark.parametrize("protocol", ["fci", "rtde"])
def test_the_command_serves_until_it_is_stopped(protocol):
    with serve(protocol, task="reach") as twin:
        at_the_door = twin.door()
        assert len(at_the_door.truth()["q_rad"]) == {"fci": 7, "rtde": 6}[protocol]
        assert twin.stop() == 0, twin.log()
        assert "stopped after" in twin.log()
        with pytest.raises(ConnectionError, match="closed its door"):
            at_the_door.truth()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--protocol", "fci", "--arm", "ur5e"], "the twin that speaks fci is fr3"),
        (["--protocol", "rtde", "--task", "dance"], "unknown name in tasks/ 'dance'"),
        (["--protocol", "rtde", "--address", "203.0.113.7"], "cannot serve at 203.0.113.7"),
    ],
)
def test_what_cannot_be_served_is_one_line(words, says, capsys):
    from robot_rl.cli import main

    assert main(["twin", "serve", *words]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
