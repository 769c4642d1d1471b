"""TOML as text: where a key stands, how a value is written, and replacing one table without touching the rest.

The tables that we write are our own and flat, so lines are enough and no further library is needed. What was written is
read again and compared before it takes the file's place.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robot_rl.files import write_atomic

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def word(value: Any) -> str:
    """A value of a config as ``--set`` reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(word(part) for part in value)
    return repr(value) if isinstance(value, float) else str(value)


def line_of(text: str, table: tuple[str, ...], key: str) -> int:
    """The line, from 1, of ``key`` in ``table``, or of the table where the key is not; 0 where neither is found."""
    lines = text.split("\n")
    first, last = _lines_of(lines, table) if table else (-1, _next_header(lines, 0))
    if first is None:
        return 0
    for index in range(first + 1, last):
        if lines[index].partition("=")[0].strip().strip("\"'") == key and "=" in lines[index]:
            return index + 1
    return first + 1


def put_table(path: Path, table: tuple[str, ...], values: Any) -> None:
    """Make ``table`` of the file what the dataclass ``values`` holds; the file may be new.

    Everything else keeps its text, comments included, and the file as it was is kept beside it as ``.bak``. It is
    replaced at once or not at all. Raises ValueError where the table is written in a way that cannot be replaced.
    """
    path = path.resolve()  # a link stays one
    before = path.read_bytes().decode() if path.exists() else ""
    fields = {field.name: getattr(values, field.name) for field in dataclasses.fields(values)}
    after = _replaced(before, table, fields)
    wanted: dict[str, Any] = tomllib.loads(before)
    inner = wanted
    for name in table[:-1]:
        inner = inner.setdefault(name, {})
    inner[table[-1]] = json.loads(json.dumps(fields))  # tuples as the lists they are read as
    try:
        kept = tomllib.loads(after) == wanted
    except tomllib.TOMLDecodeError:
        kept = False
    if not kept:
        name = ".".join(table)
        raise ValueError(f"{path}: [{name}] cannot be replaced as it is written: remove it, and give the command again")
    if path.exists():
        write_atomic(path.with_name(path.name + ".bak"), before.encode())
    write_atomic(path, after.encode())


def table_text(table: tuple[str, ...], values: Mapping[str, Any]) -> str:
    """``[table]`` and its keys, one a line."""
    header = ".".join(name if _BARE.fullmatch(name) else _text(name) for name in table)
    return "\n".join([f"[{header}]", *(f"{key} = {_value(value)}" for key, value in values.items())])


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_value, value))}]"
    return repr(value)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # the one that JSON leaves and TOML forbids


def _replaced(before: str, table: tuple[str, ...], fields: Mapping[str, Any]) -> str:
    lines = before.split("\n")
    first, last = _lines_of(lines, table)
    written = table_text(table, fields)
    if first is None:
        return f"{before.rstrip()}\n\n{written}\n".lstrip("\n")
    while last > first + 1 and (not lines[last - 1].strip() or lines[last - 1].lstrip().startswith("#")):
        last -= 1  # a comment at the end is about the table that follows
    comments = [line for line in lines[first + 1 : last] if line.lstrip().startswith("#")]
    header, *keys = written.split("\n")
    return "\n".join([*lines[:first], header, *comments, *keys, *lines[last:]])


def _lines_of(lines: list[str], table: tuple[str, ...]) -> tuple[int | None, int]:
    """Index of the header of ``table``, and of the first line behind it; None where it has no header."""
    for index, line in enumerate(lines):
        if _header(line) == table:
            return index, _next_header(lines, index + 1)
    return None, 0


def _next_header(lines: list[str], start: int) -> int:
    return next((index for index in range(start, len(lines)) if _header(lines[index]) is not None), len(lines))


def _header(line: str) -> tuple[str, ...] | None:
    """The names in a line such as ``[calibration.front]``; None where it is no header of a table."""
    if not line.lstrip().startswith("["):
        return None
    try:
        inner: Any = tomllib.loads(line.rstrip("\r"))
    except tomllib.TOMLDecodeError:
        return None
    path = []
    while isinstance(inner, dict) and inner:
        ((name, inner),) = inner.items()
        path.append(name)
    return tuple(path)
