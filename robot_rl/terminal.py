"""The person at the terminal: results of a command go to stdout, everything else to them."""

import sys


def say(text: str) -> None:
    """A line for the person, on stderr."""
    print(text, file=sys.stderr, flush=True)
