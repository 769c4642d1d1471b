from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest

from robot_rl import files, run
from robot_rl.files import FolderLock, read_json, write_atomic, write_json
from robot_rl.run import Run, TrainConfig, choose


def chosen(**changes: object) -> Run:
    made = choose("reach", "panda", "sim", "sac", TrainConfig(steps=7), ["agent.hidden=8,8", "task.max_steps=9"])
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def test_settings_reach_their_sections() -> None:
    made = choose(
        "reach", "panda", "sim", "sac", TrainConfig(), ["train.window=3", "agent.critics=4", "arm.clip_rad=0.1"]
    )
    assert (made.train.window, made.agent_config.critics, made.settings) == (3, 4, ("arm.clip_rad=0.1",))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("agent.critic=4", "agent: unknown setting 'critic'.*Did you mean 'critics'"),
        ("agent.critics=many", "agent: critics = 'many': give an integer"),
        ("train.window=0", r"train: window = 0: give a number in \[1, "),
        ("trian.window=3", "'trian'.*Did you mean 'train'"),
        ("window=3", "write it as"),
    ],
)
def test_a_bad_setting_is_named_with_the_valid_ones(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose("reach", "panda", "sim", "sac", TrainConfig(), [setting])


def test_a_gym_environment_has_no_settings_of_task_or_arm() -> None:
    with pytest.raises(ValueError, match="'task'"):
        choose("Pendulum-v1", "", "gym", "sac", TrainConfig(), ["task.max_steps=3"])


def test_a_run_comes_back_as_it_was_with_every_value_it_had(tmp_path: Path) -> None:
    made = chosen(demos="/demos")
    run.create(tmp_path / "runs/a", made)
    loaded = run.load(tmp_path / "runs/a")
    assert dataclasses.replace(loaded, settings=()) == dataclasses.replace(made, settings=())
    assert run.configs(loaded) == run.configs(made)  # the settings say every value now, defaults too
    assert "task.max_steps=9" in loaded.settings and any(text.startswith("arm.") for text in loaded.settings)
    about = json.loads((tmp_path / "runs/a/run.json").read_text())
    assert about["configs"]["task"]["max_steps"] == 9 and about["platform"] and about["command"]


def test_a_default_that_changes_later_does_not_change_an_old_run(tmp_path: Path) -> None:
    """A value of the saved run wins over today's default."""
    run.create(tmp_path / "a", chosen())
    values = json.loads((tmp_path / "a/run.json").read_text())
    values["configs"]["task"]["control_hz"] = 5.0
    write_json(tmp_path / "a/run.json", values)
    assert run.make_env(run.load(tmp_path / "a")).unwrapped.metadata["render_fps"] == 5


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    run.create(tmp_path / "a", chosen())
    before = (tmp_path / "a/run.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"is not empty: give another --out, or go on with it: .*--resume"):
        run.create(tmp_path / "a", chosen())
    assert (tmp_path / "a/run.json").read_bytes() == before
    (tmp_path / "b").mkdir()
    run.create(tmp_path / "b", chosen())  # an empty folder is fine
    (tmp_path / "c").write_text("mine")
    with pytest.raises(FileExistsError, match=r"give another --out$"):
        run.create(tmp_path / "c", chosen())
    assert (tmp_path / "c").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v | {"format": 2}, "format 2, this version reads 1"),
        (lambda v: {k: x for k, x in v.items() if k != "agent"}, "run.json is damaged"),
        (lambda v: v | {"agent": "ppo"}, "does not fit this version .*'ppo'"),
        (lambda v: v["configs"]["agent"].update(critics=0) or v, "does not fit this version .*critics = 0"),
        (lambda v: v["configs"]["train"].update(color=1) or v, "does not fit this version .*'color'"),
    ],
)
def test_a_damaged_run_is_named(tmp_path: Path, change, message: str) -> None:
    run.create(tmp_path / "a", chosen())
    path = tmp_path / "a/run.json"
    write_json(path, change(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=message):
        run.load(tmp_path / "a")
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match=r"run\.json is damaged .*restore it"):
        run.load(tmp_path / "a")


def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    for name in ("fsync", "replace"):

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(
                OSError, match=r"the disk is full while writing .*file\.json: free some space"
            ) as raised:
                write_json(path, {"a": 2})
        assert raised.value.errno == errno.ENOSPC
        assert read_json(path, "") == {"a": 1} and os.listdir(tmp_path) == ["file.json"]
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert read_json(path, "") == {"a": 1}


def test_a_written_file_may_be_read_by_others(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", b"x")
    (tmp_path / "other").write_bytes(b"x")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_the_lock_ends_with_its_release(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(BlockingIOError, match=f"pid {os.getpid()}"):
        FolderLock(tmp_path)
    lock.release()
    lock.release()
    FolderLock(tmp_path).release()


def test_forbidden_is_said_with_the_remedy(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"no permission to write .*choose another folder"),
        files.disk_errors(tmp_path),
    ):
        raise PermissionError(errno.EACCES, "Permission denied")
