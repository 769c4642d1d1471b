"""The way back of ``object_relocation``: the object out of its goal's bin, into the one it came from."""

from __future__ import annotations

from tasks.object_relocation import Config as Config
from tasks.object_relocation import ObjectRelocation


def make(config: Config) -> ObjectRelocation:
    return ObjectRelocation(config, side=-1)
