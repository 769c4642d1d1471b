"""Configs are frozen dataclasses; every field says its unit, and every number its range.

    @dataclass(frozen=True)
    class Config:
        discount: float = number(0.97, 0.0, 1.0, "per policy step")

        def __post_init__(self) -> None:
            check(self)

``override(config, ["discount=0.98"])`` is what ``--set agent.discount=0.98`` does. Only the standard library is needed,
so that every folder may use it.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable
from typing import Any, TypeVar

from robot_rl.find import nearest

C = TypeVar("C")


def number(default: Any, low: float, high: float, doc: str = "") -> Any:
    """A field (a number, or a tuple of numbers) within ``[low, high]``, both included."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "doc": doc})


def choice(default: str, options: Iterable[str], doc: str = "") -> Any:
    """A field that is one of ``options``."""
    return dataclasses.field(default=default, metadata={"options": tuple(options), "doc": doc})


def check(config: Any) -> None:
    """Raise ValueError, naming the field, its value and the remedy, where a field breaks its type, range or options."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = f"{field.name} = {value!r}"
        if not _has_type(value, hints[field.name]):
            raise ValueError(f"{name}: give {_describe(hints[field.name])}")
        if "options" in field.metadata and value not in field.metadata["options"]:
            raise ValueError(f"{name}: {nearest('value', str(value), field.metadata['options'])}")
        if "low" in field.metadata and value is not None:
            low, high = field.metadata["low"], field.metadata["high"]
            for part in value if isinstance(value, tuple) else (value,):
                if not low <= part <= high:  # written so that NaN fails
                    raise ValueError(f"{name}: give a number in [{low:g}, {high:g}]")


def override(config: C, settings: Iterable[str]) -> C:
    """A copy of ``config`` with ``name=value`` settings applied; raises ValueError for what it cannot take."""
    hints = typing.get_type_hints(type(config))
    valid = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"setting '{setting}': write it as name=value")
        if name not in valid:
            raise ValueError(nearest("setting", name, valid))
        try:
            changes[name] = _parse(text.strip(), hints[name])
        except ValueError:
            raise ValueError(f"{name} = '{text}': give {_describe(hints[name])}") from None
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def as_json(config: Any) -> dict[str, Any]:
    """The fields of ``config`` as values of JSON, which has no infinity: that is the text that ``override`` takes."""

    def finite(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return [finite(part) for part in value]
        return str(value) if isinstance(value, float) and math.isinf(value) else value

    return {name: finite(value) for name, value in dataclasses.asdict(config).items()}


def restore(config_type: type[C], values: dict[str, Any]) -> C:
    """The config whose ``dataclasses.asdict`` went through JSON as ``values``; raises ValueError on unknown fields."""
    hints = typing.get_type_hints(config_type)
    valid = [field.name for field in dataclasses.fields(config_type)]  # type: ignore[arg-type]
    for name in values:
        if name not in valid:
            raise ValueError(nearest("setting", name, valid))
    return config_type(**{name: _from_json(value, hints[name]) for name, value in values.items()})


def _from_json(value: Any, hint: Any) -> Any:
    if isinstance(value, list):
        return tuple(_from_json(part, None) for part in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _has_type(value: Any, hint: Any) -> bool:
    for option in _options(hint):
        if option is type(None) and value is None:
            return True
        if typing.get_origin(option) is tuple:
            parts = typing.get_args(option)
            if isinstance(value, tuple):
                if len(parts) == 2 and parts[1] is Ellipsis:
                    parts = (parts[0],) * len(value)
                if len(parts) == len(value) and all(_has_type(v, h) for v, h in zip(value, parts, strict=True)):
                    return True
        elif option is bool:
            if isinstance(value, bool):
                return True
        elif option is float:
            if isinstance(value, float | int) and not isinstance(value, bool) and not math.isnan(value):
                return True
        elif option is int:
            if isinstance(value, int) and not isinstance(value, bool):
                return True
        elif isinstance(option, type) and isinstance(value, option):
            return True
    return False


def _parse(text: str, hint: Any) -> Any:
    for option in _options(hint):
        if option is type(None):
            if text.lower() == "none":
                return None
            continue
        try:
            return _parse_one(text, option)
        except ValueError:
            continue
    raise ValueError(text)


def _parse_one(text: str, hint: Any) -> Any:
    if typing.get_origin(hint) is tuple:
        words = [word for word in text.strip("()[] ").split(",") if word.strip()]
        parts = typing.get_args(hint)
        if len(parts) == 2 and parts[1] is Ellipsis:
            parts = (parts[0],) * len(words)
        if len(parts) != len(words):
            raise ValueError(text)
        return tuple(_parse_one(word.strip(), part) for word, part in zip(words, parts, strict=True))
    if hint is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise ValueError(text)
    return hint(text)


def _describe(hint: Any) -> str:
    words = {bool: "true or false", int: "an integer", float: "a number", str: "a word", type(None): "none"}

    def one(option: Any) -> str:
        if typing.get_origin(option) is tuple:
            parts = typing.get_args(option)
            if len(parts) == 2 and parts[1] is Ellipsis:
                return f"{words.get(parts[0], str(parts[0]))}s with commas between"
            return f"{len(parts)} values with commas between"
        return words.get(option, getattr(option, "__name__", str(option)))

    return " or ".join(one(option) for option in _options(hint))
