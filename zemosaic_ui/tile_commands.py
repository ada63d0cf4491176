"""The commands that cut and score finished pictures: `crop` and `quality`."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from zemosaic_core.errors import SaveFailed, SettingsError, SkipItem
from zemosaic_core.visible_text import visible_text
from zemosaic_settings import OPTIONS_BY_KEY
from zemosaic_ui.texts import Texts
from zemosaic_ui.tool_numbers import ALTAZ, CROP, QUALITY

if TYPE_CHECKING:
    from zemosaic_core.altaz_mask import AltAzOptions
    from zemosaic_core.quality_crop import CropOptions

__all__ = ["add_crop", "add_quality", "crop", "quality"]


def _add_numbers(
    parser: ArgumentParser, texts: Texts, names: tuple[str, ...], prefix: str, flag: str = ""
) -> None:
    """Add numbers that are settings of runs, too, with the same defaults."""
    for name in names:
        default = OPTIONS_BY_KEY[f"{prefix}_{name}"].default
        parser.add_argument(
            f"--{flag}{name.replace('_', '-')}",
            type=type(default),
            default=default,
            metavar="N",
            help=texts("cli.number_of_option", option=f"{prefix}_{name}") + f" ({default:g})",
        )


def add_crop(parser: ArgumentParser, texts: Texts) -> None:
    """Add the arguments of `crop`."""
    parser.add_argument("files", metavar="FILE", nargs="+", help=texts("cli.pictures"))
    parser.add_argument("--out", metavar="FOLDER", help=texts("cli.crop_out"))
    parser.add_argument("--altaz", action="store_true", help=texts("cli.crop_altaz"))
    parser.add_argument("--no-edges", action="store_true", help=texts("cli.crop_no_edges"))
    parser.add_argument("--zeros", action="store_true", help=texts("cli.crop_zeros"))
    parser.add_argument("--sidecar", choices=("png", "tiff"), default="", help=texts("cli.crop_sidecar"))
    parser.add_argument("--overwrite", action="store_true", help=texts("cli.crop_overwrite"))
    _add_numbers(parser, texts, CROP, "quality_crop")
    _add_numbers(parser, texts, ALTAZ, "altaz", "altaz-")
    parser.add_argument("--json", action="store_true", help=texts("cli.json"))


def add_quality(parser: ArgumentParser, texts: Texts) -> None:
    """Add the arguments of `quality`."""
    parser.add_argument("files", metavar="FILE", nargs="+", help=texts("cli.pictures"))
    parser.add_argument(
        "--threshold",
        type=float,
        default=OPTIONS_BY_KEY["quality_gate_threshold"].default,
        metavar="N",
        help=texts("cli.quality_threshold"),
    )
    parser.add_argument("--no-override", action="store_true", help=texts("cli.quality_no_override"))
    parser.add_argument("--move-to", metavar="FOLDER", help=texts("cli.quality_move"))
    _add_numbers(parser, texts, QUALITY, "quality_gate")
    parser.add_argument("--json", action="store_true", help=texts("cli.json"))


def _pictures(names: list[str]) -> list[Path]:
    """Return the files, and those of the folders among them.

    Raises
    ------
    SettingsError
        There is nothing at a name.
    """
    from zemosaic_io.folders import survey_files
    from zemosaic_io.stack_pictures import is_stack_name

    found: list[Path] = []
    for name in names:
        path = Path(name).expanduser().resolve()
        own = (
            [p for p in survey_files(path, recursive=False) if is_stack_name(p.name)]
            if os.path.isdir(path)
            else [path]
        )
        if not own or not all(map(os.path.isfile, own)):
            raise SettingsError("error_no_pictures", f"there is no FITS file at {path}", path=str(path))
        found += own
    return list(dict.fromkeys(found))


def _show(console: Console | None, path: Path, words: str, style: str) -> None:
    if console is not None:
        line = Text.assemble(
            (f"{'✔' if style == 'green' else '✖'} ", style), (visible_text(path.name), "bold")
        )
        console.print(line + Text(f": {words}"), soft_wrap=True, highlight=False)


def crop(options: Namespace, texts: Texts) -> int:
    """Write the good part of each picture to another file; 1 when one of them could not be cut."""
    from zemosaic_core.altaz_mask import AltAzOptions
    from zemosaic_core.quality_crop import CropOptions

    try:
        edges = CropOptions(*(getattr(options, name) for name in CROP))
        altaz = AltAzOptions(*(getattr(options, f"altaz_{name}") for name in ALTAZ))
        results, failed = _crop_all(options, texts, edges, altaz)
    except ValueError as error:
        raise SettingsError("cli_wrong_number", str(error), reason=str(error)) from error
    if options.json:
        sys.stdout.write(json.dumps(results, indent=2, ensure_ascii=True) + "\n")
    return 1 if failed else 0


def _crop_all(
    options: Namespace, texts: Texts, edges: CropOptions, altaz: AltAzOptions
) -> tuple[list[dict[str, Any]], bool]:
    from zemosaic_io.tile_tools import AltAzWish, crop_file, cropped_name

    console = None if options.json else Console()
    folder = None if options.out is None else Path(options.out).expanduser().resolve()
    wish = AltAzWish(altaz, nanize=not options.zeros, sidecar=options.sidecar)
    results, failed = [], False
    for path in _pictures(options.files):
        target = cropped_name(path, folder)
        try:
            facts = crop_file(
                path,
                target,
                None if options.no_edges else edges,
                wish if options.altaz or options.no_edges else None,
                overwrite=options.overwrite,
            )
        except (SkipItem, SaveFailed) as error:
            failed = True
            words = texts.reason(error.key, error.values, str(path))
            results.append({"file": str(path), "error": error.key, "text": words})
            _show(console, path, words, "bold red")
            continue
        y0, y1, x0, x1 = facts["box"]
        kept = round(100 * (y1 - y0) * (x1 - x0) / max(1, facts["pixels"]), 1)
        results.append(facts)
        words = texts("crop.done", kept=kept, masked=round(100 * facts["masked"], 1), path=str(target))
        _show(console, path, words, "green")
    return results, failed


def quality(options: Namespace, texts: Texts) -> int:
    """Score pictures; 1 when one of them does not pass or cannot be read."""
    from zemosaic_core.tile_quality import QualityOptions
    from zemosaic_io.tile_tools import move_rejected, score_file

    console = None if options.json else Console()
    measured = QualityOptions(*(getattr(options, name) for name in QUALITY))
    results: list[dict[str, Any]] = []
    failed = False
    for path in _pictures(options.files):
        try:
            found = score_file(path, options.threshold, measured, override=not options.no_override)
        except SkipItem as error:
            failed = True
            words = texts.reason(error.key, error.values, str(path))
            results.append({"file": str(path), "error": error.key, "text": words})
            _show(console, path, words, "bold red")
            continue
        results.append(found)
        numbers = {
            name.lower(): texts.number(value, 3) for name, value in found.items() if isinstance(value, float)
        }
        _show(console, path, texts("quality.line", **numbers), "green" if found["accepted"] else "bold red")
    if options.move_to is not None:
        for moved in move_rejected(results, Path(options.move_to).expanduser().resolve()):
            _show(console, moved, texts("quality.moved", path=str(moved)), "green")
    if options.json:
        sys.stdout.write(json.dumps(results, indent=2, ensure_ascii=True) + "\n")
    return 1 if failed or not all(found.get("accepted") for found in results) else 0
