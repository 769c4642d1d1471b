"""Configs: every override is parsed by its type, checked by its range, and refused with the remedy."""

import dataclasses
import json
from dataclasses import dataclass

import pytest

from robot_rl import config
from robot_rl.config import check, choice, number, override, restore
from robot_rl.find import find, names


@dataclass(frozen=True)
class Example:
    rate: float = number(0.5, 0.0, 1.0, "share")
    count: int = number(3, 1, 10, "pieces")
    kind: str = choice("round", ("round", "square"))
    gains: tuple[float, ...] = number((1.0, 2.0), 0.0, 9.0)
    pair: tuple[int, int] = number((1, 2), 0, 9)
    wanted: float | None = number(None, -5.0, 5.0)
    fast: bool = False

    def __post_init__(self) -> None:
        check(self)


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("rate=0.25", "rate", 0.25),
        ("rate=1", "rate", 1.0),
        ("count=7", "count", 7),
        ("kind=square", "kind", "square"),
        ("gains=1,2.5,3", "gains", (1.0, 2.5, 3.0)),
        ("gains=(4,)", "gains", (4.0,)),
        ("pair=3,4", "pair", (3, 4)),
        ("wanted=-2", "wanted", -2.0),
        ("wanted=none", "wanted", None),
        ("fast=True", "fast", True),
    ],
)
def test_a_setting_is_taken(setting, name, value):
    changed = override(Example(), [setting])
    assert getattr(changed, name) == value and type(getattr(changed, name)) is type(value)
    assert dataclasses.replace(changed, **{name: getattr(Example(), name)}) == Example()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("rate=1.5", r"rate = 1.5: give a number in \[0, 1\]"),
        ("rate=nan", "rate = nan"),
        ("rate=fast", "rate = 'fast': give a number"),
        ("count=2.5", "count = '2.5': give an integer"),
        ("count=0", r"count = 0: give a number in \[1, 10\]"),
        ("kind=squre", "Did you mean 'square'"),
        ("gains=1,10", r"gains = \(1.0, 10.0\)"),
        ("pair=1,2,3", "2 values with commas"),
        ("fast=1", "true or false"),
        ("wanted=6", "wanted = 6.0"),
        ("rat=0.1", "Did you mean 'rate'"),
        ("rate", "name=value"),
    ],
)
def test_a_bad_setting_names_the_field_the_value_and_the_remedy(setting, says):
    with pytest.raises(ValueError, match=says):
        override(Example(), [setting])


def test_a_config_survives_json():
    changed = override(Example(), ["gains=1,2,3", "rate=1", "pair=5,6"])
    assert restore(Example, json.loads(json.dumps(dataclasses.asdict(changed)))) == changed
    with pytest.raises(ValueError, match="unknown setting 'colour'"):
        restore(Example, {"colour": 1})


PLUGINS = [(folder, name) for folder in ("tasks", "sim", "robot_rl.agents") for name in names(folder)]


@pytest.mark.parametrize(("folder", "name"), PLUGINS)
def test_every_plugin_has_a_config_and_make(folder, name):
    module = find(folder, name)
    built = module.Config()
    assert dataclasses.is_dataclass(built) and callable(module.make) and module.__doc__
    config.check(built)
    restored = restore(type(built), json.loads(json.dumps(dataclasses.asdict(built))))
    assert restored == built
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(built, dataclasses.fields(built)[0].name, None)


@pytest.mark.parametrize(("folder", "name"), PLUGINS)
def test_every_number_of_a_plugin_has_a_range(folder, name):
    for field in dataclasses.fields(find(folder, name).Config()):
        if any(kind in str(field.type) for kind in ("int", "float")):
            assert "low" in field.metadata, f"{folder}.{name}: {field.name} has no range"


def test_find_lists_what_there_is():
    with pytest.raises(LookupError, match="there is fr3, panda, ur5e"):
        find("sim", "_twin")
