"""The options form without a toolkit: what is shown, what is typed, what is wrong with it, what was changed.

Everything comes from the option catalogue; this module repeats no option. A form holds the user's intention:
a field may hold a value that is not allowed, together with the reason, until `settings` is asked for.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from zemosaic_core.errors import SettingsError
from zemosaic_settings import GROUPS, LEVELS, OPTIONS, Option, Settings
from zemosaic_settings.values import parse_value

__all__ = ["FieldProblem", "FormField", "FormModel"]

TextOf = Callable[..., str]


@dataclass(frozen=True)
class FieldProblem:
    """Why a value is refused: a text key with its values."""

    key: str
    values: Mapping[str, Any]


@dataclass
class FormField:
    """One option in the form.

    Attributes
    ----------
    value : object
        The last accepted value.
    typed : object
        What stands in the control; differs from ``value`` only while it is refused.
    problem : FieldProblem or None
    """

    option: Option
    value: Any
    typed: Any
    problem: FieldProblem | None = None

    @property
    def is_default(self) -> bool:
        """Whether the control shows the default."""
        return self.problem is None and self.value == self.option.default


class FormModel:
    """All options of the forms, with listeners that hear of each change.

    Parameters
    ----------
    settings : Settings
        The values to begin with.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        values = (settings or Settings()).to_mapping()
        self._hidden = {option.key: values[option.key] for option in OPTIONS if not option.in_forms}
        self.fields: dict[str, FormField] = {
            option.key: FormField(option, values[option.key], values[option.key])
            for option in OPTIONS
            if option.in_forms
        }
        self._listeners: list[Callable[[str], None]] = []

    # ------------------------------------------------------------------ reading

    def __getitem__(self, key: str) -> Any:
        """Return the accepted value of an option."""
        return self.fields[key].value if key in self.fields else self._hidden[key]

    @property
    def problems(self) -> dict[str, FieldProblem]:
        """Every refused value by option key."""
        return {key: field.problem for key, field in self.fields.items() if field.problem is not None}

    @property
    def changed_keys(self) -> list[str]:
        """Options whose value is not the default."""
        return [key for key, field in self.fields.items() if not field.is_default]

    def groups(self, *, level: str = "expert") -> dict[str, list[FormField]]:
        """Return the fields by group in the order of the forms, up to a level of experience."""
        allowed = LEVELS[: LEVELS.index(level) + 1]
        return {
            group: found
            for group in GROUPS
            if (
                found := [
                    f for f in self.fields.values() if f.option.group == group and f.option.level in allowed
                ]
            )
        }

    def search(self, words: str, text: TextOf) -> list[str]:
        """Return the keys whose label, explanation, group or own name contains every word of ``words``."""
        wanted = [_plain(word) for word in words.split()]
        return [
            key for key, field in self.fields.items() if all(w in self._haystack(field, text) for w in wanted)
        ]

    def settings(self) -> Settings:
        """Return the checked settings of the whole form.

        Raises
        ------
        SettingsError
            A field is refused, or two values contradict each other.
        """
        for key, problem in self.problems.items():
            raise SettingsError(problem.key, f"{key}: {problem.key}", **problem.values)
        return Settings.from_mapping(self.to_mapping())

    def to_mapping(self) -> dict[str, Any]:
        """Return key -> accepted value of every option."""
        return {**self._hidden, **{key: field.value for key, field in self.fields.items()}}

    # ------------------------------------------------------------------ changing

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Call ``listener(key)`` after each change of a field."""
        self._listeners.append(listener)

    def forget(self, listener: Callable[[str], None]) -> None:
        """Stop calling a listener."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def set(self, key: str, typed: Any) -> FieldProblem | None:
        """Take what was typed; return the reason when it is refused."""
        field = self.fields[key]
        before = (field.typed, field.problem)
        field.typed = typed
        try:
            field.value = parse_value(field.option, typed)
        except SettingsError as error:
            field.problem = FieldProblem(error.key, dict(error.values))
        else:
            field.typed, field.problem = field.value, None
        if (field.typed, field.problem) != before:
            for listener in tuple(self._listeners):
                listener(key)
        return field.problem

    def set_hidden(self, key: str, value: Any) -> None:
        """Keep a value that no form shows, such as the place of a window."""
        self._hidden[key] = value

    def reset(self, key: str) -> None:
        """Go back to the default of one option."""
        self.set(key, self.fields[key].option.default)

    def reset_all(self, keys: Iterable[str] | None = None) -> None:
        """Go back to the defaults of the given options, or of all."""
        for key in tuple(keys if keys is not None else self.fields):
            self.reset(key)

    def load(self, mapping: Mapping[str, Any]) -> list[str]:
        """Take the values of a mapping (a preset, a settings file); return the names that are no option.

        Raises
        ------
        SettingsError
            A value is not allowed; nothing was changed.
        """
        # A value given under an older name wins over the one in the form.
        named = {option.key for option in OPTIONS if any(name in mapping for name in option.all_names)}
        kept = {key: value for key, value in self.to_mapping().items() if key not in named}
        checked = Settings.from_mapping({**kept, **mapping}).to_mapping()
        known = {name for option in OPTIONS for name in option.all_names}
        for key in self.fields:
            self.set(key, checked[key])
        return [name for name in mapping if name not in known]

    def _haystack(self, field: FormField, text: TextOf) -> str:
        option = field.option
        parts = [option.key.replace("_", " "), option.key, *option.aliases]
        parts += [
            text(f"{option.text_key}.label"),
            text(f"{option.text_key}.help"),
            text(f"group.{option.group}"),
        ]
        return _plain(" ".join(parts))


def _plain(text: str) -> str:
    """Fold case and accents, so that a search for "etoile" finds "Étoile"."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(char for char in decomposed if not unicodedata.combining(char))
