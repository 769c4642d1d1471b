"""The folder is the catalogue: a plug-in is a module, its name is its file name.

A module is a plug-in of its folder when its name does not start with an underscore.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType


def nearest(what: str, name: str, valid: Iterable[str]) -> str:
    """The sentence for an unknown ``name``: what there is, and the nearest match."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"unknown {what} '{name}': there is {', '.join(valid) or 'none'}.{hint}"


def names(folder: str) -> list[str]:
    """Plug-ins of a package such as ``tasks`` or ``robot_rl.agents``, sorted."""
    package = importlib.import_module(folder)
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not (m.ispkg or m.name[0] == "_"))


def find(folder: str, name: str) -> ModuleType:
    """Import the plug-in ``name`` of ``folder``; raises LookupError that lists the names and the nearest."""
    if name not in names(folder):
        raise LookupError(nearest(f"name in {folder}/", name, names(folder)))
    return importlib.import_module(f"{folder}.{name}")
