"""What Ray runs for us, in processes of its own: an actor, or one training after the other.

Only text and numbers come in and go out, since Ray pickles what it carries. Rows and policies go over the link
(robot_rl/link), as from any other actor.
"""

from __future__ import annotations

import importlib.metadata
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from robot_rl.fleet import last_words
from robot_rl.interrupt import StopSignals

THREADS = 4  # Ray runs so many methods of a worker at once: work, and beside it the word to stop


class Worker:
    """Its methods run in threads, none of them the main one."""

    def where(self) -> tuple[str, int, str]:
        """The host, the process and the version of robot-rl there."""
        return socket.gethostname(), os.getpid(), importlib.metadata.version("robot-rl")

    def sees(self, path: str, text: str) -> bool:
        """Whether the file at ``path`` holds ``text``: if so, it is the same disk."""
        file = Path(path)
        return file.is_file() and file.read_text() == text

    def stop(self) -> None:
        """Let what runs here end, with everything saved."""
        StopSignals.stop_process()

    def act(self, learner: str, folder: str, index: int, keys: str, log: str) -> str:
        """Be actor ``index`` of ``learner``; ``keys`` is empty for none. Returns why it ended, if not as told."""
        from robot_rl.link.security import Endpoint

        def work() -> str:
            from robot_rl.actor import Place, act

            place = Place(Endpoint.parse(learner), Path(folder), index, Path(keys) if keys else None)
            with StopSignals(_say, "this step") as stop:
                act(place, _say, stop)
            return ""

        return _logged(log, work)

    def train(self, words: Sequence[str], log: str) -> str:
        """Run ``robot-rl`` with ``words``. Returns why that failed, if it did."""

        def work() -> str:
            from robot_rl import cli

            sys.argv[:] = ["robot-rl", *words]  # run.json keeps the command
            status = cli.main(words)
            return "" if status == 0 else f"status {status}, {last_words(Path(log))}"

        return _logged(log, work)


def _logged(log: str, work: Callable[[], str]) -> str:
    """Do ``work`` with all that this process says going to the end of the file ``log``; returns what it returns, or
    the error that it raises."""
    from robot_rl.cli import message, raised_on_purpose
    from robot_rl.interrupt import Interrupted

    Path(log).parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    try:
        return work()
    except Interrupted as interrupted:
        _say(str(interrupted))
        return ""
    except Exception as error:  # noqa: BLE001  # goes to the log, and to who started this; Ray would pickle it
        if raised_on_purpose(error):
            _say(f"robot-rl: error: {message(error)}")
        else:
            _say(traceback.format_exc())
        return message(error)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
