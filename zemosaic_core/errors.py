"""The errors of ZeMosaic: each says what the caller should do with it.

Every error carries a text key and its values, so that the window, the terminal and the report can say the
same thing in the user's language; ``str(error)`` is a plain English line for logs.
"""

from __future__ import annotations

__all__ = ["Cancelled", "RunFailed", "SaveFailed", "SettingsError", "SkipItem", "ZeMosaicError"]


class ZeMosaicError(Exception):
    """Base of all errors raised on purpose.

    Parameters
    ----------
    key : str
        Text key in ``locales/*.json``.
    message : str
        English sentence for logs, with the offending value and what to do.
    **values
        Values for the placeholders of the localised text; JSON-serialisable.
    """

    def __init__(self, key: str, message: str = "", **values: object) -> None:
        super().__init__(message or key)
        self.key = key
        self.values = values

    def __reduce__(self):
        return _rebuild, (type(self), self.key, str(self), self.values)


def _rebuild(cls: type[ZeMosaicError], key: str, message: str, values: dict) -> ZeMosaicError:
    return cls(key, message, **values)


class SettingsError(ZeMosaicError):
    """A setting or an argument is wrong; nothing was started. Exit code 2."""


class SkipItem(ZeMosaicError):
    """One frame or tile cannot be used; the run goes on without it and the report says why."""


class RunFailed(ZeMosaicError):
    """The run cannot give a result. Exit code 1."""


class SaveFailed(RunFailed):
    """A file could not be written; the result is not safe on disk."""


class Cancelled(ZeMosaicError):
    """The user asked to stop. Exit code 130."""

    def __init__(
        self, key: str = "run_cancelled", message: str = "stopped by the user", **values: object
    ) -> None:
        super().__init__(key, message, **values)
