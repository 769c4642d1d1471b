"""Where the numbers of a run go besides metrics.csv: TensorBoard files, or Weights & Biases where it is asked for.

A sink is one class with ``row``, ``result`` and ``close``, and one line in ``open_sink``.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import re
import shlex
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from robot_rl.files import read_json, write_json

TRACKERS = ("tensorboard", "wandb", "none")
PROJECT = "robot-rl"  # where WANDB_PROJECT does not say another
FINAL = ("success_rate", "mean_return", "mean_length", "cycle_steps", "mean_cost", "env_steps", "updates", "episodes")
_FLUSH_S = 20.0
_INIT_TIMEOUT_S = 45.0  # of a server that does not answer at the start
_FINISH_TIMEOUT_S = 120.0  # for what is still on its way at the end
_SENT = ("task", "arm", "world", "agent", "seed", "configs", "versions", "git_commit")  # of run.json
_PRIVATE = re.compile(r"address|host|user|password|token|secret|credential|api_?key", re.IGNORECASE)


class Sink(Protocol):
    """One place that numbers go to."""

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of one row of metrics.csv, without its step."""

    def result(self, step: int, numbers: Mapping[str, float]) -> None:
        """What the evaluation at the end gave; some of ``FINAL``."""

    def close(self, failed: bool) -> None:
        """No more comes; ``failed`` where training was broken off."""


@dataclass(frozen=True)
class Place:
    """What a sink is told of the run."""

    folder: Path
    keep_steps: int | None = None  # on resume, the step to go on from
    kept: Sequence[tuple[int, Mapping[str, float]]] = ()  # and the rows up to there, as ``row`` takes them


def open_sink(tracker: str, place: Place) -> Sink | None:
    """The sink called ``tracker``, one of TRACKERS; None for "none". Raises as the sink does."""
    sinks: dict[str, Callable[[Place], Sink] | None] = {"tensorboard": TensorBoard, "wandb": Wandb, "none": None}
    if tracker not in sinks:
        raise ValueError(f"tracker = '{tracker}': give one of {', '.join(TRACKERS)}")
    make = sinks[tracker]
    return make(place) if make else None


def check_tracker(tracker: str) -> None:
    """Raises ImportError or RuntimeError, naming the remedy, where ``tracker`` cannot work here; sends nothing."""
    if tracker == "wandb":
        _check_key(_import_wandb())


class TensorBoard:
    """Event files in FOLDER/tensorboard. On resume, what was logged behind the step to go on from is purged.

    Written here and now: tensorboardX's SummaryWriter has a thread, which ends at a full disk and is then waited for.
    """

    def __init__(self, place: Place) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        suffix = f".{time.time_ns() % 10**9:09}"  # names go by the second: one made in the same replaces it
        (place.folder / "tensorboard").mkdir(exist_ok=True)
        self._writer = EventsWriter(str(place.folder / "tensorboard" / "events"), suffix)
        self._flushed_s = time.monotonic()
        if place.keep_steps is not None:
            first_dropped = place.keep_steps + 1
            for what in ({"file_version": "brain.Event:2"}, {"session_log": SessionLog(status=SessionLog.START)}):
                self._writer.write_event(Event(step=first_dropped, **what))

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in numbers.items():
            self._writer.write_event(Event(step=step, wall_time=time.time(), summary=scalar(name, value)))
        if time.monotonic() - self._flushed_s > _FLUSH_S:
            self._flushed_s = time.monotonic()
            self._writer.flush()

    def result(self, step: int, numbers: Mapping[str, float]) -> None:
        self.row(step, {f"final/{name}": value for name, value in numbers.items()})

    def close(self, failed: bool) -> None:
        with contextlib.suppress(OSError) if failed else contextlib.nullcontext():  # a full disk has been told of
            self._writer.close()


class Wandb:
    """A run of Weights & Biases, whose id is kept in FOLDER/wandb.json, so that ``--resume`` goes on with it.

    WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY and WANDB_BASE_URL hold as they do elsewhere. Sent are the rows, the result,
    and of run.json the choices and configs without addresses; no console output, code, command line, host name or
    machine statistics.

    W&B cannot take a row back, and a killed process leaves it a few rows short. So on resume it is asked up to which
    step it has the run: what it lacks of metrics.csv is logged first, and what is done again but was there before, with
    the same numbers (all but the wall clock), is left out.
    """

    def __init__(self, place: Place) -> None:
        """Raises ImportError without the package and RuntimeError where W&B refuses or does not answer."""
        wandb = _import_wandb()
        _check_key(wandb)
        self._folder, self._failure = place.folder, ""
        about = read_json(place.folder / "run.json", "train again into another folder")
        identity = _identity(place.folder)
        try:
            self._run: Any = wandb.init(
                id=identity["id"],
                project=identity["project"],
                entity=identity["entity"],
                name=place.folder.resolve().name,
                group="-".join(str(about[name]) for name in ("task", "arm", "agent") if about.get(name)),
                config=_public({name: about[name] for name in _SENT if name in about}),
                dir=str(place.folder.resolve()),
                resume="allow",
                reinit="create_new",
                settings=_settings(wandb),
            )
        except Exception as error:  # noqa: BLE001 - of many kinds; its words are given on
            again = f"robot-rl train --resume {shlex.quote(str(place.folder))}"
            raise RuntimeError(
                f"W&B did not start ({_without_key(error)}): look at network and `wandb login`, then {again}; or keep "
                f"the data here to sync later, WANDB_MODE=offline {again}"
            ) from None  # the cause may name more than the text above, in which the key is masked
        resumed = place.keep_steps is not None
        self._held = _held(self._run, place.folder / "wandb", identity["id"]) if resumed else -1
        known = {"offline": f"offline in {place.folder / 'wandb'}", "disabled": "disabled, nothing is kept"}
        where = known.get(_mode()) or self._run.url  # which offline warns of itself
        _say(f"W&B: run {identity['id']} of project {identity['project']}, {where}")
        for step, numbers in place.kept:
            self.row(step, numbers)

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        if step > self._held:
            self._attempt(lambda: self._run.log(dict(numbers), step=step))

    def result(self, step: int, numbers: Mapping[str, float]) -> None:
        self._attempt(lambda: self._run.summary.update({f"final/{name}": value for name, value in numbers.items()}))

    def close(self, failed: bool) -> None:
        self._attempt(lambda: self._run.finish(exit_code=1 if failed or self._failure else 0), closing=True)

    def _attempt(self, call: Callable[[], Any], closing: bool = False) -> None:
        """Do ``call``, unless an earlier one failed; training does not end because W&B does."""
        if self._failure and not closing:
            return
        try:
            call()
        except Exception as error:  # noqa: BLE001 - whatever a package behind a network raises, it is told below
            if not self._failure:
                self._failure = _without_key(error) or type(error).__name__
                _say(
                    f"W&B failed and gets no more of this run ({self._failure}); training goes on, metrics.csv is "
                    f"whole. What it had: wandb sync {shlex.quote(str(self._folder / 'wandb'))}/*run-*"
                )


def _import_wandb() -> Any:
    if importlib.util.find_spec("wandb") is None:
        raise ImportError(
            "tracker = 'wandb', but wandb is not installed: python -m pip install 'robot-rl[wandb]', or train with "
            "--set train.tracker=tensorboard"
        )
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # reports of its own faults were not asked for
    import wandb

    return wandb


def _mode() -> str:
    mode = os.environ.get("WANDB_MODE", "online").strip().lower()
    return {"dryrun": "offline", "run": "online"}.get(mode, mode)


def _check_key(wandb: Any) -> None:
    """Raises RuntimeError where a key is needed and there is none; W&B itself would ask for it, and wait."""
    if _mode() in ("offline", "disabled"):
        return
    try:
        found = wandb.login(prompt=False, verify=False)
    except Exception as error:  # noqa: BLE001 - of many kinds; its words are given on
        raise RuntimeError(f"W&B: {_without_key(error)}: give the key again, `wandb login`") from None
    if not found:
        raise RuntimeError(
            "W&B has no API key here: give it once, `wandb login`, or set WANDB_API_KEY; WANDB_MODE=offline keeps the "
            "data in the run folder, and --set train.tracker=tensorboard does without W&B"
        )


def _settings(wandb: Any) -> Any:
    """Numbers and configs only, no questions, and no wait without end."""
    return wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        save_code=False,
        host="-",
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
        init_timeout=_INIT_TIMEOUT_S,
        finish_timeout=_FINISH_TIMEOUT_S,
    )


def _identity(folder: Path) -> dict[str, Any]:
    """Id, project and entity of the folder's W&B run: those in wandb.json, which is written the first time.

    The id is a hash of run.json and of where it lies: run.json holds the second of its making, so another run that is
    later made in the same place has another id.
    """
    path = folder / "wandb.json"
    if path.is_file():
        kept = read_json(path, "delete it, and a new W&B run is begun")
        if all(isinstance(kept.get(name), str) for name in ("id", "project")):
            return {"entity": None} | kept
        raise ValueError(f"{path} is damaged (no id or project): delete it, and a new W&B run is begun")
    text = str(folder.resolve()).encode() + b"\0" + (folder / "run.json").read_bytes()
    identity = {
        "id": hashlib.sha256(text).hexdigest()[:16],
        "project": os.environ.get("WANDB_PROJECT") or PROJECT,
        "entity": os.environ.get("WANDB_ENTITY") or None,
    }
    write_json(path, identity)
    return identity


def _held(run: Any, folder: Path, identity: str) -> int:
    """The last step that W&B has of the run: its server says so, or offline the files in ``folder``; -1 for none."""
    if _mode() != "offline":
        return int(run.starting_step) - 1 if run.resumed else -1
    return max((step for path in folder.glob(f"*run-*/run-{identity}.wandb") for step in _steps(path)), default=-1)


def _steps(path: Path) -> Iterator[int]:
    """The steps in a .wandb file, up to where it was cut off.

    It has LevelDB's log format: after 7 bytes of its own, blocks of 32 KiB of chunks (crc, length, kind), and a record
    is one chunk (kind 1), or a first (2), middle ones (3) and a last (4).
    """
    from google.protobuf.message import DecodeError

    read = importlib.import_module("wandb.proto.wandb_internal_pb2").Record.FromString  # made at run time
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        part, at = data[at + 7 : at + 7 + length], at + 7 + length
        whole = part if kind in (1, 2) else whole + part
        if len(part) < length or kind == 0:
            return
        if kind in (1, 4):
            try:
                record = read(whole)
            except DecodeError:
                return
            if record.WhichOneof("record_type") == "history":
                yield int(record.history.step.num)


def _public(value: Any) -> Any:
    """``value`` without the fields whose names say that they are nobody else's business."""
    if isinstance(value, dict):
        return {name: _public(part) for name, part in value.items() if not _PRIVATE.search(str(name))}
    return value


def _without_key(error: Exception) -> str:
    text, key = " ".join(str(error).split()), os.environ.get("WANDB_API_KEY")
    return text.replace(key, "***") if key else text


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
