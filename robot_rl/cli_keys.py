"""The command of ``cli.py`` about keys: what actors and a learner on different machines know each other by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg, subcommand


@dataclass(frozen=True)
class KeysMake:
    """Make new keys in a new folder, for a learner and its actors, and say which file goes to which machine."""

    out: Path
    """folder to make, such as keys"""
    host: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="HOST", help_behavior_hint="(repeatable)")] = ()
    """name or address by which actors dial the learner; its own machine reaches it as localhost anyway"""
    days: int = 825
    """until the certificates expire"""
    keep_ca: bool = False
    """keep the authority's private key (ca.key), to sign further certificates with other tools"""

    def execute(self) -> int:
        from robot_rl.link import keys

        keys.make(self.out, self.host, self.days, self.keep_ca)
        print("\n".join(keys.describe(self.out)[0]))
        for side in keys.SIDES:
            files = " ".join(str(self.out / name) for name in keys.files_of(side))
            print(f"copy to {'the learner' if side == 'learner' else 'every actor'}: {files}")
        if self.keep_ca:
            print(f"copy to no machine: {self.out / 'ca.key'}")
        print(
            "by a way that nobody listens at (scp -p), into a folder of mode 700; delete here what is not needed here"
        )
        return 0


@dataclass(frozen=True)
class KeysShow:
    """Say what a folder of keys holds, until when and for which hosts; no secrets. Status 1 if a side cannot use it."""

    folder: Positional[Path]

    def execute(self) -> int:
        from robot_rl.link import keys

        lines, well = keys.describe(self.folder)
        print("\n".join(lines))
        return 0 if well else 1


@dataclass(frozen=True)
class Keys:
    """Make or show the keys by which actors and a learner on different machines know each other."""

    command: Annotated[KeysMake, subcommand("make")] | Annotated[KeysShow, subcommand("show")]

    def execute(self) -> int:
        return self.command.execute()
