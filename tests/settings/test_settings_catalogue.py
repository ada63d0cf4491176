"""The catalogue is complete, consistent and says what the settings object is."""

from __future__ import annotations

import pytest

from zemosaic_settings import GROUPS, LEVELS, OPTIONS, OPTIONS_BY_KEY, Settings, options_in_group
from zemosaic_settings.catalogue import ALIASES
from zemosaic_settings.option import KINDS
from zemosaic_settings.values import parse_value

PYTHON_TYPES = {"bool": bool, "int": int, "float": float}


def test_every_option_is_declared_once():
    assert len(OPTIONS_BY_KEY) == len(OPTIONS)


def test_no_name_stands_for_two_options():
    names = [name for option in OPTIONS for name in option.all_names]
    assert len(names) == len(set(names))
    assert set(ALIASES) == set(names) - set(OPTIONS_BY_KEY)


def test_settings_and_catalogue_agree():
    assert tuple(Settings.model_fields) == tuple(OPTIONS_BY_KEY)
    for option in OPTIONS:
        annotation = Settings.model_fields[option.key].annotation
        if option.type == "geometry":
            assert annotation == tuple[int, int, int, int] | None
        else:
            assert annotation is PYTHON_TYPES.get(option.type, str), option.key
        assert getattr(Settings(), option.key) == option.default


def test_schema_carries_limits_and_choices():
    properties = Settings.model_json_schema()["properties"]
    assert properties["stacking_kappa_low"]["minimum"] == 0.1
    assert properties["stacking_kappa_low"]["maximum"] == 10.0
    assert properties["gpu_mode"]["enum"] == ["auto", "off", "require"]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.key)
def test_declaration_is_sound(option):
    assert option.type in KINDS
    assert option.level in LEVELS
    assert option.group in GROUPS
    assert parse_value(option, option.default) == option.default
    assert bool(option.choices) == (option.type == "choice")
    if option.type in ("int", "float"):
        assert option.minimum is not None
        assert option.minimum <= option.default <= option.maximum
        assert isinstance(option.default, PYTHON_TYPES[option.type])
    for old, new in option.old_values:
        assert old not in option.choices
        assert new in option.choices


def test_groups_show_every_option_of_the_forms():
    shown = [option for group in GROUPS for option in options_in_group(group)]
    assert set(shown) == {option for option in OPTIONS if option.in_forms}
    assert shown == [option for option in OPTIONS if option.in_forms]


def test_unknown_group_is_refused():
    with pytest.raises(ValueError, match="no option group is called 'skin'"):
        options_in_group("skin")
