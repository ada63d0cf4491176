"""Start here: the desktop application by default; run, plan, demo, doctor and solve without a window."""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":

    def _leave(*_: object) -> None:
        os._exit(130)

    # While the program is imported nothing is begun that would have to be ended: a stop is no traceback then.
    for _name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, _name) and signal.getsignal(getattr(signal, _name)) != signal.SIG_IGN:
            signal.signal(getattr(signal, _name), _leave)

import argparse
import importlib
import io
import multiprocessing
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from zemosaic_core import __version__
from zemosaic_core.errors import Cancelled, RunFailed, SettingsError, ZeMosaicError
from zemosaic_pipeline.window_libraries import missing_packages
from zemosaic_ui.texts import Texts, available_languages

__all__ = ["EXIT_CANCELLED", "EXIT_FAILED", "EXIT_OK", "EXIT_USAGE", "build_parser", "main"]

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CANCELLED = 130

# Toolkit -> its door, the function that opens the window, and the package it stands on.
_WINDOWS = {
    "qt": ("zemosaic_gui_qt", "run_qt_main", "PySide6"),
    "tk": ("zemosaic_gui", "run_tk_main", "tkinter"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    0 success, 1 failed, 2 wrong arguments or settings, 130 stopped by the user.
    """
    # Needed by a frozen Windows program whose children start this very file.
    multiprocessing.freeze_support()
    _open_closed_streams()
    _show_anything()
    arguments = list(sys.argv[1:] if argv is None else argv)
    texts = Texts(_language(arguments))
    parser = build_parser(texts)
    try:
        options = parser.parse_args(arguments)
    except SystemExit as leaving:  # argparse leaves after --help, --version and wrong arguments
        return int(leaving.code or 0)
    try:
        _check_language(options.language)
        if __name__ == "__main__":
            _leave_no_more()
        if options.command == "gui":
            return _open_window(options.backend, texts)
        _stop_like_ctrl_c()
        # Imported when it is chosen: the window and `--help` must not wait for what they do not use.
        from zemosaic_ui.commands import COMMANDS

        return COMMANDS[options.command](options, texts)
    except SettingsError as error:
        return _complain(texts, error, EXIT_USAGE)
    except (Cancelled, KeyboardInterrupt):
        return EXIT_CANCELLED
    except ZeMosaicError as error:
        return _complain(texts, error, EXIT_FAILED)


def _leave_no_more() -> None:
    """Let signals do what they do in every Python program."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == _leave:
            signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


def _stop_like_ctrl_c() -> None:
    """Let a command that is asked to end clean up and leave with the code of a stop."""
    if threading.current_thread() is not threading.main_thread():
        return  # called by a program that decides about its signals itself
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # Whoever starts a command with `nohup` wants it to outlive the terminal.
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def _open_closed_streams() -> None:
    """Give a program that was started without streams (``>&-``) some that lead nowhere.

    The next file that is opened would get their numbers otherwise, and whatever a library in C complains of would be
    written into it.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    while nowhere <= 2:
        os.set_inheritable(nowhere, True)
        nowhere = os.open(os.devnull, os.O_RDWR)
    os.close(nowhere)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open as long as the program
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _show_anything() -> None:
    """Let the terminal show what it has no character for as an escape: a name must not end the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Parser(argparse.ArgumentParser):
    """A parser whose own words are in the user's language, too, except for what it says of wrong arguments."""

    def __init__(self, texts: Texts, **options: Any) -> None:
        def formatter(**given: Any) -> argparse.HelpFormatter:
            return _HelpFormatter(texts("cli.usage"), **given)

        super().__init__(add_help=False, formatter_class=formatter, **options)
        # There is no public way to name the two groups that argparse makes itself.
        self._positionals.title, self._optionals.title = texts("cli.arguments"), texts("cli.options")
        self.add_argument("-h", "--help", action="help", help=texts("cli.help"))


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, usage: str, **given: Any) -> None:
        super().__init__(**given)
        self._usage_word = usage

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[argparse._MutuallyExclusiveGroup],
        prefix: str | None = None,
    ) -> None:
        super().add_usage(usage, actions, groups, f"{self._usage_word}: " if prefix is None else prefix)


def build_parser(texts: Texts) -> argparse.ArgumentParser:
    """Return the parser of the command line, its help in the language of ``texts``."""
    # What was typed: after `pip install` the command is called `zemosaic`.
    name = os.path.basename(sys.argv[0]).removesuffix(".exe")
    prog = name if name == "zemosaic" else "run_zemosaic.py"
    parser = _Parser(texts, prog=prog, description=texts("cli.description"))
    parser.add_argument(
        "--version", action="version", version=f"ZeMosaic {__version__}", help=texts("cli.version")
    )
    _add_language(parser, texts)
    parser.set_defaults(command="gui", backend=None)
    commands = parser.add_subparsers(title=texts("cli.commands"), metavar="COMMAND")
    for name, add in (
        ("run", _add_run),
        ("plan", _add_plan),
        ("demo", _add_demo),
        ("doctor", _add_doctor),
        ("solve", _add_solve),
        ("crop", _add_crop),
        ("quality", _add_quality),
        ("gui", _add_gui),
    ):
        text = texts(f"cli.{name}")
        command = commands.add_parser(name, texts=texts, help=text, description=text)
        command.set_defaults(command=name)
        _add_language(command, texts, default=argparse.SUPPRESS)
        add(command, texts)
    return parser


def _add_language(parser: argparse.ArgumentParser, texts: Texts, default: str | None = None) -> None:
    parser.add_argument(
        "--language",
        metavar="XX",
        default=default,
        help=texts("cli.language", languages=", ".join(available_languages())),
    )


def _add_folders(parser: argparse.ArgumentParser, texts: Texts) -> None:
    parser.add_argument("input", metavar="INPUT", help=texts("cli.input"))
    parser.add_argument("output", metavar="OUTPUT", help=texts("cli.output"))


def _add_settings_file(parser: argparse.ArgumentParser, texts: Texts) -> None:
    parser.add_argument("--config", metavar="FILE", help=texts("cli.config"))
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help=texts("cli.set"))


def _add_settings(parser: argparse.ArgumentParser, texts: Texts) -> None:
    _add_settings_file(parser, texts)
    parser.add_argument("--resume", choices=("off", "auto"), help=texts("cli.resume"))
    parser.add_argument("--gpu", choices=("auto", "off", "require"), help=texts("cli.gpu"))
    parser.add_argument("--gpu-device", metavar="N", help=texts("cli.gpu_device"))
    parser.add_argument("--gpu-memory-mb", metavar="N", help=texts("cli.gpu_memory_mb"))
    parser.add_argument("--hips", action="store_true", help=texts("cli.hips"))
    parser.add_argument("--executor", metavar="WHERE", help=texts("cli.executor"))
    parser.add_argument("--map-path", metavar="HERE=THERE", action="append", help=texts("cli.map_path"))


def _add_verbosity(parser: argparse.ArgumentParser, texts: Texts) -> None:
    how_much = parser.add_mutually_exclusive_group()
    how_much.add_argument("--quiet", action="store_true", help=texts("cli.quiet"))
    how_much.add_argument("--verbose", action="store_true", help=texts("cli.verbose"))


def _add_run(parser: argparse.ArgumentParser, texts: Texts) -> None:
    parser.add_argument("input", metavar="INPUT", nargs="?", help=texts("cli.input"))
    parser.add_argument("output", metavar="OUTPUT", help=texts("cli.output"))
    parser.add_argument("--tiles", metavar="FOLDER", help=texts("cli.tiles"))
    _add_settings(parser, texts)
    _add_verbosity(parser, texts)
    parser.add_argument("--json", action="store_true", help=texts("cli.run_json"))


def _add_plan(parser: argparse.ArgumentParser, texts: Texts) -> None:
    _add_folders(parser, texts)
    _add_settings(parser, texts)
    parser.add_argument("--solve-some", type=int, metavar="N", default=0, help=texts("cli.solve_some"))
    parser.add_argument("--json", action="store_true", help=texts("cli.json"))


def _add_demo(parser: argparse.ArgumentParser, texts: Texts) -> None:
    parser.add_argument(
        "folder", metavar="FOLDER", nargs="?", default="zemosaic_demo", help=texts("cli.folder")
    )
    parser.add_argument("--frames", type=int, metavar="N", default=12, help=texts("cli.frames"))
    _add_settings(parser, texts)
    _add_verbosity(parser, texts)


def _add_doctor(parser: argparse.ArgumentParser, texts: Texts) -> None:
    parser.add_argument("--json", action="store_true", help=texts("cli.json"))
    parser.add_argument("--config", metavar="FILE", help=texts("cli.config"))


def _add_solve(parser: argparse.ArgumentParser, texts: Texts) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help=texts("cli.files"))
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--write", action="store_true", help=texts("cli.write"))
    where.add_argument("--in-place", action="store_true", help=texts("cli.in_place"))
    _add_settings_file(parser, texts)


def _add_crop(parser: argparse.ArgumentParser, texts: Texts) -> None:
    from zemosaic_ui.tile_commands import add_crop

    add_crop(parser, texts)


def _add_quality(parser: argparse.ArgumentParser, texts: Texts) -> None:
    from zemosaic_ui.tile_commands import add_quality

    add_quality(parser, texts)


def _add_gui(parser: argparse.ArgumentParser, texts: Texts) -> None:
    parser.add_argument("--backend", choices=("qt", "tk"), help=texts("cli.backend"))


def _open_window(backend: str | None, texts: Texts) -> int:
    """Open the desktop application and return its exit code; say what to do where it cannot open."""
    from zemosaic_config import load_config

    chosen = backend or load_config()["preferred_gui_backend"]
    module, entry, package = _WINDOWS[chosen]
    if sys.platform.startswith("linux") and not _has_display():
        raise RunFailed("gui_no_display", "no display: DISPLAY and WAYLAND_DISPLAY are not set")
    try:
        window = importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or "").split(".")[0] in (package, "pyqtgraph", "_tkinter")
        if not missing and package not in str(error):
            raise
        raise RunFailed(f"gui_{chosen}_missing", f"{package}: {error}", detail=str(error)) from error
    if chosen == "qt" and not (os.environ.get("QT_QPA_PLATFORM") or os.environ.get("WAYLAND_DISPLAY")):
        # Qt itself would end the program with a message for programmers.
        packages = " ".join(missing_packages())
        if packages:
            raise RunFailed("gui_qt_libraries", f"Qt needs system libraries: {packages}", packages=packages)
    return int(getattr(window, entry)() or 0)


def _has_display() -> bool:
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"))


def _check_language(code: str | None) -> None:
    known = available_languages()
    if code is not None and code not in known:
        allowed = ", ".join(known)
        raise SettingsError(
            "settings_not_a_choice",
            f"--language {code!r}: allowed is one of {allowed}",
            option="--language",
            value=code,
            allowed=allowed,
        )


def _language(arguments: Sequence[str]) -> str:
    """Return the language before anything is parsed, because the help itself is translated."""
    from zemosaic_config import read_config

    given: dict[str, list[str]] = {"--language": [], "--set": [], "--config": []}
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, value = argument.partition("=")
        if name in given:
            given[name].append(value if equals else following)
    assigned = [text.partition("=") for text in given["--set"]]
    chosen = [value.strip() for key, _, value in assigned if key.strip() == "language"]
    if given["--language"] or chosen:
        return [*chosen, *given["--language"]][-1]
    path = given["--config"][-1] if given["--config"] else None
    return str(read_config(path).values["language"])


def _complain(texts: Texts, error: ZeMosaicError, code: int) -> int:
    sys.stderr.write(texts.message(error.key, error.values) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
