"""What there is to choose from, told without importing any of it."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from robot_rl.find import names


def first_sentence(module: str) -> str:
    """The first sentence of a module's docstring, read from its source."""
    spec = importlib.util.find_spec(module)
    source = Path(spec.origin).read_text() if spec and spec.origin else ""
    paragraph = (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0]
    sentence, _, _ = " ".join(paragraph.split()).partition(". ")
    return sentence.rstrip(".")


def describe() -> str:
    """Tasks, arms of each world that has a folder of them, the other worlds, and agents, with a sentence each."""
    from robot_rl.build import DRIVERS, WORLDS

    folders = {world: where for world, where in WORLDS.items() if "." not in where and world != "hardware"}
    entries = {"tasks": _plugins("tasks")}
    entries |= {f"arms (world {world})": _plugins(folder) for world, folder in folders.items()}
    entries["arms (world hardware)"] = dict(DRIVERS)
    entries["other worlds"] = {w: where for w, where in WORLDS.items() if w not in folders and w != "hardware"}
    entries["agents"] = _plugins("robot_rl.agents")
    width = max(len(name) for modules in entries.values() for name in modules)
    blocks = []
    for title, modules in entries.items():
        lines = [f"  {name:<{width}}  {first_sentence(module)}" for name, module in modules.items()]
        blocks.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join(blocks)


def _plugins(folder: str) -> dict[str, str]:
    return {name: f"{folder}.{name}" for name in names(folder)}
