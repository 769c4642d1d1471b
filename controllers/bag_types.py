"""What a recording says of its topics: message types in full, and QoS in the words of rosbag2."""

from __future__ import annotations

import importlib
import os
import re
import struct
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from controllers.ros import require_ros

_PRIMITIVE = re.compile(r"(bool|byte|char|float32|float64|u?int(8|16|32|64)|w?string)$")


def message_type(name: str) -> Any:
    """The class of ``package/msg/Name``; raises LookupError in words where its package is not installed."""
    package, kind, word = name.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.{kind}"), word)
    except (ImportError, AttributeError) as error:
        raise LookupError(f"the message type {name} is not installed ({error})") from error


def definition(name: str) -> str:
    """The text of ``package/msg/Name`` and of every type in it, as MCAP's ``ros2msg`` has it; "" where there is no
    .msg file to be found."""
    texts: dict[str, str] = {}
    waiting = [name]
    while waiting:
        package, *_, word = waiting.pop(0).split("/")
        key = f"{package}/{word}"
        if key in texts:
            continue
        path = next((folder / f"{word}.msg" for folder in _message_folders(package)), None)
        if path is None or not path.is_file():
            return ""
        texts[key] = path.read_text()
        waiting += _dependencies(texts[key], package)
    (_, own), *parts = texts.items()
    return own + "".join(f"\n{'=' * 80}\nMSG: {key}\n{text}" for key, text in parts)


def _message_folders(package: str) -> list[Path]:
    """Where the .msg files of a package may be: workspaces first, then beside the Python package, then our prefix."""
    module = importlib.import_module(package)
    prefixes = [Path(prefix) for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]
    prefixes += [*Path(module.__path__[0]).parents, Path(sys.prefix)]
    folders = [prefix / "share" / package / "msg" for prefix in prefixes]
    return [folder for folder in folders if folder.is_dir()]


def _dependencies(text: str, package: str) -> list[str]:
    """The types of a message's fields that are messages themselves."""
    found = []
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if len(words) < 2:
            continue
        word = re.split(r"[\[<]", words[0])[0]
        if not _PRIMITIVE.match(word):
            found.append(word if "/" in word else f"{package}/{word}")
    return found


def describe_qos(profiles: Sequence[Any]) -> str:
    """The YAML list that rosbag2 keeps for QoS profiles of rclpy."""

    def duration(value: Any) -> dict[str, int]:
        return {"sec": value.nanoseconds // 1_000_000_000, "nsec": value.nanoseconds % 1_000_000_000}

    about = [
        {
            "history": profile.history.name.lower(),
            "depth": profile.depth,
            "reliability": profile.reliability.name.lower(),
            "durability": profile.durability.name.lower(),
            "deadline": duration(profile.deadline),
            "lifespan": duration(profile.lifespan),
            "liveliness": profile.liveliness.name.lower(),
            "liveliness_lease_duration": duration(profile.liveliness_lease_duration),
            "avoid_ros_namespace_conventions": profile.avoid_ros_namespace_conventions,
        }
        for profile in profiles
    ]
    return yaml.safe_dump(about, sort_keys=False)


def chosen(name: str, namespace: str | None, topics: Sequence[str]) -> bool:
    """Whether a topic is to be recorded: under ``namespace`` or like one of ``topics``; without both, every one that is
    not hidden."""
    if namespace is None and not topics:
        return not any(part.startswith("_") for part in name.split("/"))
    below = namespace is not None and name.startswith(f"/{namespace.strip('/')}/")
    return below or any(fnmatchcase(name, pattern if pattern[:1] in "/*" else f"/{pattern}") for pattern in topics)


def decode(type_name: str, data: bytes) -> Any:
    """A recorded message as rclpy's, which ``controllers/messages.py`` takes; raises LookupError, ImportError."""
    require_ros()
    from rclpy.serialization import deserialize_message

    return deserialize_message(data, message_type(type_name))


def header_ns(data: bytes) -> int:
    """The stamp of a recorded message that begins with a Header, without decoding the rest."""
    sec, nanosec = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return int(sec) * 1_000_000_000 + int(nanosec)
