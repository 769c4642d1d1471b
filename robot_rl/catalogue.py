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
    """Tasks, arms of each world, and agents, with a sentence each."""
    from robot_rl.build import WORLDS

    folders = {"tasks": "tasks"} | {f"arms (world {world})": folder for world, folder in WORLDS.items()}
    folders |= {"agents": "robot_rl.agents"}
    width = max(len(name) for folder in folders.values() for name in names(folder))
    blocks = []
    for title, folder in folders.items():
        lines = [f"  {name:<{width}}  {first_sentence(f'{folder}.{name}')}" for name in names(folder)]
        blocks.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join(blocks)
