"""The words of the windows in the user's language, and numbers written the way people read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from locales.zemosaic_localization import ZeMosaicLocalization, available_languages
from zemosaic_core.visible_text import visible_text

__all__ = ["Texts", "available_languages"]


class Texts:
    """Text of a key in the current language; views register to be redrawn when it changes."""

    def __init__(self, language: str = "en") -> None:
        self._localization = ZeMosaicLocalization(language)
        self._listeners: list[Callable[[], None]] = []

    def __call__(self, key: str, **values: Any) -> str:
        """Return the text of ``key`` with its values filled in."""
        return self._localization.get(key, **values)

    @property
    def language(self) -> str:
        """Code of the current language."""
        return self._localization.language_code

    def has(self, key: str) -> bool:
        """Whether a key has a text."""
        return self._localization.has(key)

    def on_language(self, listener: Callable[[], None]) -> None:
        """Call ``listener()`` after each change of the language."""
        self._listeners.append(listener)

    def forget(self, listener: Callable[[], None]) -> None:
        """Stop calling a listener."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def set_language(self, code: str) -> None:
        """Switch the language and tell every view."""
        if code == self.language:
            return
        self._localization.set_language(code)
        for listener in tuple(self._listeners):
            listener()

    # ------------------------------------------------------------------ messages

    def message(self, key: str, values: Mapping[str, Any]) -> str:
        """Return a line for a message of the worker; a key without a text is shown as it is."""
        values = self._worded(values)
        if self.has(key):
            return self(key, **values)
        shown = ", ".join(f"{name}={value}" for name, value in values.items())
        return visible_text(f"{key} ({shown})" if shown else key)

    def reason(self, key: str, values: Mapping[str, Any], path: str = "") -> str:
        """Return the reason why a frame is not used, without repeating its path."""
        return self.message(key, {"path": Path(path).name, **values} if path else dict(values))

    def log_words(self, key: str, level: str, values: Mapping[str, Any]) -> str:
        """Return one line for the log; a warning about a file begins with the file's name."""
        path = str(values.get("path", ""))
        if path and level == "WARN":
            said = self.reason(key, {name: value for name, value in values.items() if name != "path"}, path)
            name = path.replace("\\", "/").rsplit("/", 1)[-1]
            return said if name in said else f"{name}: {said}"
        return " ".join(self.message(key, values).splitlines())

    def _worded(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Put words in place of values that are text keys: ``op_key`` gives ``op``."""
        worded = dict(values)
        for name, value in values.items():
            if name.endswith("_key") and isinstance(value, str) and self.has(value):
                worded[name.removesuffix("_key")] = self(value)
        return worded

    # ------------------------------------------------------------------ numbers

    def number(self, value: float, digits: int = 0) -> str:
        """Return a number with the language's decimal sign and thin spaces between thousands."""
        return self._localization.number(value, digits)

    def written(self, number: str) -> str:
        """Return a number that Python wrote with point and commas as the language writes it."""
        return self._localization.written(number)

    def size(self, n_bytes: float) -> str:
        """Return a size in the largest unit that keeps it above one (powers of ten)."""
        return self._localization.size(n_bytes)

    def moment(self, iso: str) -> str:
        """Return date and time of day of an ISO 8601 text in the language's order."""
        return self._localization.moment(iso)

    def field(self, value: object) -> str:
        """Return the value of an option as a field shows it: a fraction has the language's decimal sign."""
        return self._localization.written(f"{value:g}") if isinstance(value, float) else str(value)

    def typed(self, option_type: str, typed: object) -> object:
        """Return what was typed into a field as the settings take it: in a fraction point and sign both count."""
        if option_type != "float" or not isinstance(typed, str):
            return typed
        return typed.replace(self("ui_decimal_sign"), ".")

    def clock(self, seconds: float) -> str:
        """Return ``h:mm:ss`` or ``m:ss``."""
        whole = max(0, round(seconds))
        hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
        return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

    def about(self, seconds: float, spread: float) -> str:
        """Return a duration in words, as coarse as it is uncertain."""
        if seconds < 20:
            return self("ui_eta_seconds")
        if seconds < 90:
            return self("ui_eta_minute")
        minutes = seconds / 60.0
        if minutes < 60:
            step = 1 if minutes < 10 else 5 if spread > 0.25 or minutes > 30 else 2
            return self("ui_eta_minutes", n=max(2, round(minutes / step) * step))
        hours = minutes / 60.0
        text = self.number(round(hours * 2) / 2 if spread > 0.25 else hours, 1)
        return self("ui_eta_hours", n=text)
