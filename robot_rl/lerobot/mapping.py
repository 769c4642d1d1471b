"""Which of a dataset's numbers become which of ours."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robot_rl.lerobot import layout
from robot_rl.lerobot.source import Dataset
from robot_rl.store import StoreInfo

STEPS = (
    layout.ACTION, layout.REWARD, layout.DONE, layout.TERMINATED, layout.TRUNCATED, layout.SUCCESS, layout.COST
)  # fmt: skip
_RENAME = re.compile(r"(?P<theirs>[^\[\]=]+)(\[(?P<start>\d*):(?P<end>\d*)\])?=(?P<ours>.+)")


@dataclass(frozen=True)
class Origin:
    """Where one of ours comes from: components ``start`` to ``end`` of a feature, all of a picture."""

    feature: str
    start: int = 0
    end: int | None = None
    last: str | None = None  # column of meta/episodes that holds what follows the last frame
    one_more: bool = False  # the film goes on for one picture behind the last frame


def parse(renames: Sequence[str]) -> dict[str, Origin]:
    """``["observation.state[0:3]=tcp_pos"]`` by our name; raises ValueError for what is not written so."""
    found: dict[str, Origin] = {}
    for word in renames:
        match = _RENAME.fullmatch(word)
        if match is None:
            raise ValueError(f"--rename {word}: write it as THEIRS=OURS or THEIRS[0:3]=OURS")
        if match["ours"] in found:
            raise ValueError(f"--rename {word}: {match['ours']} is given twice; leave one of them out")
        end = match["end"]
        found[match["ours"]] = Origin(match["theirs"], int(match["start"] or 0), int(end) if end else None)
    return found


def origins(dataset: Dataset, info: StoreInfo, renames: Mapping[str, Origin]) -> dict[str, Origin]:
    """An origin for every observation of ``info``, and for those of ``STEPS`` that the dataset has.

    Renames come first, then what our own export noted, then equal names; a single observation that is left takes the
    single feature of its kind that is left. Raises LookupError or ValueError that names what is missing, or does not
    fit, and the ``--rename`` that says where it is.
    """
    for name, origin in renames.items():
        if origin.feature not in dataset.features:
            raise LookupError(f"--rename {origin.feature}=...: the dataset has {_list(dataset, dataset.features)}")
        if name not in info.observation and name not in STEPS:
            ours = ", ".join((*sorted(info.observation), *STEPS))
            raise LookupError(f"--rename ...={name}: the names here are {ours}")
    found = {name: origin for name, origin in renames.items() if name in STEPS}
    found |= {name: Origin(name) for name in STEPS if name in dataset.features and name not in found}
    if layout.ACTION not in found:
        raise LookupError(f"{dataset.root} has no feature 'action': say which it is, --rename THEIRS=action")
    seen = {name: origin for name, origin in renames.items() if name in info.observation}
    for name, (shape, dtype) in info.observation.items():
        known = None if name in seen else _known(dataset, name, shape, dtype)
        if known is not None:
            seen[name] = known
    _complete(dataset, info, seen)
    for name, (shape, dtype) in info.observation.items():
        if name not in seen:
            raise LookupError(_missing(dataset, name, shape, dtype))
        _check(dataset, f"observation '{name}' ({dtype} {list(shape)})", seen[name], shape, dtype)
    _check(dataset, f"action ({info.action_dim})", found[layout.ACTION], (info.action_dim,), "float32")
    for name in STEPS[1:]:
        if name in found:
            _check(dataset, name, found[name], (1,), "float32")
    return found | seen


def _known(dataset: Dataset, name: str, shape: tuple[int, ...], dtype: str) -> Origin | None:
    """What our own export noted about an observation, or a feature of its name."""
    noted = (dataset.ours or {}).get("observation", {}).get(name)
    if noted is not None and tuple(noted["shape"]) == shape:
        one_more = dataset.dtype(noted["feature"]) == "video"
        last = None if one_more else layout.LAST + name
        if noted["exact"] and noted["dtype"] == dtype:
            return Origin(noted["exact"], 0, None, last)
        start = noted["start"]
        image = layout.is_image(shape, dtype)
        return Origin(noted["feature"], start, None if image else start + math.prod(shape), last, one_more)
    dotted = name.replace("/", ".")
    prefixes = (layout.IMAGES,) if layout.is_image(shape, dtype) else ("observation.", layout.EXACT)
    for feature in (name, *(prefix + dotted for prefix in prefixes)):
        if feature in dataset.features:
            return Origin(feature)
    return None


def _complete(dataset: Dataset, info: StoreInfo, seen: dict[str, Origin]) -> None:
    """Where one observation of a kind has no origin and one feature of that kind no use, they belong together."""
    for image in (True, False):
        lacking = [
            name for name, place in info.observation.items() if name not in seen and layout.is_image(*place) == image
        ]
        spare = [
            feature
            for feature in dataset.features
            if (dataset.is_image(feature) if image else feature in (layout.STATE, layout.ENVIRONMENT))
            and feature not in {origin.feature for origin in seen.values()}
        ]
        if len(lacking) == len(spare) == 1:
            seen[lacking[0]] = Origin(spare[0])


def _missing(dataset: Dataset, name: str, shape: tuple[int, ...], dtype: str) -> str:
    image = layout.is_image(shape, dtype)
    fitting = [feature for feature in dataset.features if dataset.is_image(feature) == image and feature not in STEPS]
    example = f"--rename {layout.IMAGES}front={name}" if image else _slice(layout.STATE, math.prod(shape), name)
    return (
        f"{dataset.root} has nothing for observation '{name}' ({dtype} {list(shape)}); it has "
        f"{_list(dataset, fitting) or 'no such feature'}: say which it is, as in {example}"
    )


def _check(dataset: Dataset, what: str, origin: Origin, shape: tuple[int, ...], dtype: str) -> None:
    theirs, size = dataset.shape(origin.feature), math.prod(shape)
    image = layout.is_image(shape, dtype)
    if dataset.is_image(origin.feature) != image:
        kinds = ("numbers", "a picture") if image else ("a picture", "numbers")
        raise ValueError(f"{origin.feature} is {kinds[0]}, {what} is {kinds[1]}: --rename another feature")
    if image:
        return
    length = math.prod(theirs)
    end = length if origin.end is None else origin.end
    if end > length or end - origin.start != size:
        part = "" if origin.end is None and not origin.start else f"[{origin.start}:{end}]"
        name = re.sub(r" \(.*", "", what).removeprefix("observation ").strip("'")
        raise ValueError(
            f"{origin.feature}{part} has {max(min(end, length) - origin.start, 0)} numbers of {length}, {what} takes "
            f"{size}: give the part that it is, as in {_slice(origin.feature, size, name)}"
        )


def _slice(feature: str, size: int, name: str) -> str:
    return f"--rename '{feature}[0:{size}]={name}'"


def _list(dataset: Dataset, features: Any) -> str:
    return ", ".join(f"{name} {list(dataset.shape(name))}" for name in features if name not in layout.COUNTERS)
