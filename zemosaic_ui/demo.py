"""A night to try the program with: real stars, made-up frames, written once and used again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from zemosaic_core.errors import SettingsError

__all__ = ["prepare_demo"]

SEED = 7
PANELS = (2, 2)
# Changes when the same recipe would show other stars.
SKY_EDITION = 2
MARKER = "demo.json"
# Wide enough for all panels of the night with their rotation.
CATALOGUE_RADIUS_DEG = 2.5


def prepare_demo(folder: Path, frames_per_panel: int, say: Callable[..., None]) -> Path:
    """Write the frames of the demo below ``folder`` unless they are there, and return their folder.

    The stars are those of the built-in catalogue, so that the frames are solved as real ones are.

    Raises
    ------
    SettingsError
        The number of frames makes no night.
    SaveFailed
        A frame cannot be written.
    """
    if not 3 <= frames_per_panel <= 1000:
        raise SettingsError(
            "settings_out_of_range",
            f"--frames {frames_per_panel}: allowed is 3 to 1000",
            option="--frames",
            value=frames_per_panel,
            minimum=3,
            maximum=1000,
        )
    frames, marker = folder / "frames", folder / MARKER
    recipe = {"sky": SKY_EDITION, "seed": SEED, "panels": list(PANELS), "frames_per_panel": frames_per_panel}
    total = PANELS[0] * PANELS[1] * frames_per_panel
    if _is_written(marker, recipe, frames, total):
        say("demo_reused", folder=str(frames), n=total)
        return frames
    say("demo_writing", folder=str(frames), n=total)
    _write(folder, frames, frames_per_panel)
    marker.write_text(json.dumps(recipe) + "\n", encoding="utf-8")
    return frames


def _is_written(marker: Path, recipe: dict[str, object], frames: Path, total: int) -> bool:
    if not marker.is_file() or marker.read_text(encoding="utf-8").strip() != json.dumps(recipe):
        return False
    return sum(1 for _ in frames.glob("*.fit*")) == total


def _write(folder: Path, frames: Path, frames_per_panel: int) -> None:
    # Imported here: the command line must not pay for it when it makes no demo.
    from zemosaic_io.demo_session import DEMO_CENTER_DEG, DEMO_EPOCH, write_demo_night
    from zemosaic_io.star_catalogue import open_built_in_catalogue

    for old in frames.glob("*.fit*"):  # of a demo with another number of frames
        old.unlink()
    write_demo_night(
        frames,
        seed=SEED,
        panels=PANELS,
        frames_per_panel=frames_per_panel,
        catalogue=open_built_in_catalogue().sky_near(*DEMO_CENTER_DEG, CATALOGUE_RADIUS_DEG, DEMO_EPOCH),
        save_truth=folder / "truth",
    )
