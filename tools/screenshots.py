"""Pictures of every page of the desktop: ``python -m tools.screenshots OUTDIR [--size WxH ...] [--theme ...]``.

Needs no display. The content is made up: a run in progress, a finished mosaic and 500 frames in the filter.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import numpy as np
from astropy.io import fits
from PIL import Image
from PySide6.QtWidgets import QApplication, QWidget

from zemosaic_core.stretch import preview_rgba
from zemosaic_filter_gui_qt import FilterQtDialog
from zemosaic_gui_qt import PAGES, ZeMosaicQtMainWindow
from zemosaic_io.headers import FrameInfo
from zemosaic_pipeline.events import (
    PHASES,
    EtaUpdated,
    Event,
    FrameLeftOut,
    GpuRecorded,
    Message,
    PhaseFinished,
    PhaseProgress,
    PhaseStarted,
    PreviewGrown,
    RunEnded,
    RunStarted,
    TileFinished,
)
from zemosaic_ui.filter_model import FilterModel, FrameRow
from zemosaic_ui.jobs import _upright_footprint
from zemosaic_ui.qt.session import open_session
from zemosaic_ui.qt.theme import ThemeSwitch

__all__ = ["fill_filter", "main", "make_mosaic", "run_events"]

SIZES = ("1280x720", "1920x1080")
THEMES = ("dark", "light")


def make_mosaic(folder: Path, *, shape_hw: tuple[int, int] = (1500, 2300), seed: int = 5) -> dict[str, str]:
    """Write a made-up mosaic with coverage, report and preview; return its outputs by kind."""
    rng = np.random.default_rng(seed)
    height, width = shape_hw
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    light = np.zeros((3, height, width), dtype=np.float32)
    u, v = (x - 0.5 * width) / width, (y - 0.48 * height) / width
    along, across = u * 0.8 + v * 0.6, v * 0.8 - u * 0.6
    radius = np.hypot(along, across * 2.9)
    disc = 900 * np.exp(-radius / 0.10) + 2600 * np.exp(-((radius / 0.02) ** 2))
    arms = 1 + 0.35 * np.cos(2 * np.arctan2(across * 2.9, along) - 26 * np.sqrt(radius))
    for channel, tint in enumerate((1.0, 0.88, 0.80)):
        light[channel] = disc * arms * tint + rng.normal(0, 22, shape_hw)
    for _ in range(1400):
        cy, cx = rng.uniform(6, height - 6), rng.uniform(6, width - 6)
        flux, tint = 60 * rng.pareto(1.1) + 60, rng.uniform(-0.35, 0.35)
        y0, x0 = int(cy) - 6, int(cx) - 6
        box = np.hypot(y[y0 : y0 + 13, x0 : x0 + 13] - cy, x[y0 : y0 + 13, x0 : x0 + 13] - cx)
        star = np.minimum(flux, 30_000) * np.exp(-((box / 1.9) ** 2))
        for channel, factor in enumerate((1 + tint, 1.0, 1 - tint)):
            light[channel, y0 : y0 + 13, x0 : x0 + 13] += star * factor
    coverage = np.zeros(shape_hw, dtype=np.float32)
    tiles = []
    for i, (ty, tx) in enumerate((a, b) for a in (0.0, 0.4) for b in (0.0, 0.3, 0.62)):
        oy, ox = int(ty * height) + 10 * (i % 2), int(tx * width) + 12
        h, w = int(0.58 * height), int(0.36 * width)
        coverage[oy : oy + h, ox : ox + w] += 40 + 5 * i
        tiles.append({"tile_id": i + 1, "origin_yx": [oy, ox], "shape_hw": [h, w]})
    light[:, coverage == 0] = np.nan
    header = fits.Header()
    for key, value in {
        "CTYPE1": "RA---TAN",
        "CTYPE2": "DEC--TAN",
        "CRPIX1": width / 2,
        "CRPIX2": height / 2,
        "CRVAL1": 10.6847,
        "CRVAL2": 41.269,
        "CDELT1": -2.37 / 3600,
        "CDELT2": 2.37 / 3600,
        "CUNIT1": "deg",
        "CUNIT2": "deg",
    }.items():
        header[key] = value
    outputs = {
        kind: str(folder / name)
        for kind, name in (
            ("science", "mosaic_science.fits"),
            ("coverage", "mosaic_coverage.fits"),
            ("preview", "mosaic_preview.png"),
        )
    }
    fits.writeto(outputs["science"], light + 1200, header, overwrite=True)
    fits.writeto(outputs["coverage"], coverage, header, overwrite=True)
    Image.fromarray(preview_rgba(light, max_dim=1200)[::-1]).save(outputs["preview"])
    outputs["report"] = str(folder / "run_report.json")
    Path(outputs["report"]).write_text(json.dumps({"outputs": outputs, "tiles": tiles}), encoding="utf-8")
    return outputs


def run_events(outputs: dict[str, str], folder: Path) -> list[Event]:
    """Return the events of a run that is stacking its tiles."""
    night = "/data/astro/2024-10-12 Andromeda mosaic/Seestar S50/subs"
    events: list[Event] = [
        RunStarted("20241012-221530", night, str(folder), tuple(PHASES)),
        PhaseStarted("phase0_survey", 1243),
        PhaseProgress("phase0_survey", 1243, 1243, ""),
        PhaseFinished("phase0_survey", 3.4, 310_000_000),
        Message("run_info_survey", "INFO", {"frames": 1243, "left_out": 4}),
        PhaseStarted("phase1_prepare", 1243),
        GpuRecorded(
            {
                "kind": "probe",
                "op": "",
                "reason": "gpu",
                "key": "gpu_info_summary",
                "level": "INFO",
                "values": {},
                "device": {"name": "NVIDIA GeForce RTX 3070 Laptop GPU", "total_bytes": 8_589_934_592},
                "budget": {"total": 8_589_934_592, "free": 7_400_000_000, "usable": 6_500_000_000},
            }
        ),
    ]
    for i in range(14):
        path = f"{night}/Light_M 31_10.0s_IRCUT_20241012-22{15 + i}30.fit"
        key, values = (
            ("frame_too_few_stars", {"stars": 3, "needed": 8}),
            ("frame_duplicate", {"other": "x"}),
        )[i % 2]
        events.append(FrameLeftOut(path, key, values))
    events += [
        PhaseProgress("phase1_prepare", 1243, 1243, ""),
        PhaseFinished("phase1_prepare", 212.0, 1_420_000_000),
        Message("run_info_hot_pixels", "INFO", {"pixels": 1318, "cameras": 1}),
        PhaseStarted("phase2_group", 6),
        PhaseFinished("phase2_group", 0.6, 380_000_000),
        Message("run_info_groups", "INFO", {"groups": 6, "smallest": 171, "largest": 246}),
        PhaseStarted("phase4_grid", 1),
        PhaseFinished("phase4_grid", 4.1, 420_000_000),
        PhaseStarted("phase3_master_tiles", 6),
        GpuRecorded(
            {
                "kind": "decision",
                "op": "stack",
                "reason": "gpu",
                "key": "stack_using_gpu",
                "values": {},
                "level": "INFO",
                "device": "gpu",
                "chunk_rows": 384,
                "n_chunks": 6,
                "estimated_bytes": 5_900_000_000,
                "usable_bytes": 6_500_000_000,
            }
        ),
        GpuRecorded(
            {
                "kind": "split",
                "op": "stack",
                "reason": "out_of_memory",
                "key": "gpu_chunk_split",
                "level": "WARN",
                "values": {"op": "stack", "op_key": "gpu_op_stack", "chunk_rows": 192},
                "chunk_rows": 192,
            }
        ),
        GpuRecorded(
            {
                "kind": "operation",
                "op": "stack",
                "reason": "gpu",
                "key": "",
                "values": {},
                "level": "DEBUG",
                "gpu_chunks": 7,
                "cpu_chunks": 0,
                "peak_bytes": 5_710_000_000,
                "seconds": 21.0,
            }
        ),
        Message("gpu_chunk_split", "WARN", {"op": "stack", "op_key": "gpu_op_stack", "chunk_rows": 192}),
    ]
    for i in range(4):
        events.append(TileFinished(i + 1, str(folder / f"tile_{i + 1:03d}.fits"), 171 + 15 * i, ""))
        events.append(PhaseProgress("phase3_master_tiles", i + 1, 6, f"tile_{i + 1:03d}.fits"))
        tile = {"tile_id": i + 1, "n_frames": 171 + 15 * i}
        events.append(Message("run_tile_finished", "SUCCESS", tile))
    events += [PreviewGrown(outputs["preview"]), EtaUpdated(410.0)]
    return events


def fill_filter(frames: FilterModel, n: int, *, seed: int = 11) -> None:
    """Fill a filter model with a made-up night of ``n`` frames on six panels."""
    rng = np.random.default_rng(seed)
    rows, measures = [], []
    for i in range(n):
        panel = i * 6 // n
        ra = 10.68 + (panel % 3 - 1) * 0.95 / math.cos(math.radians(41.3)) + rng.normal(0, 0.02)
        dec = 41.27 + (panel // 3 - 0.5) * 0.8 + rng.normal(0, 0.015)
        if i == n // 2:
            ra += 9.0
        angle = math.radians(28.0 * (i * 6 / n - panel))
        flat = np.array(_upright_footprint(0.0, 0.0, 1080, 1920, 2.37 / 3600))
        flat[:, 0] = (flat[:, 0] + 180) % 360 - 180
        turned = flat @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        corners = tuple((ra + dx / math.cos(math.radians(dec)), dec + dy) for dx, dy in turned)
        name = f"Light_M 31_10.0s_IRCUT_20241012-{22 + i // 300:02d}{i // 5 % 60:02d}{i % 60:02d}.fit"
        path = f"/data/astro/2024-10-12 Andromeda mosaic/Seestar S50/subs/{name}"
        date = f"2024-10-12T{22 + i // 300:02d}:{i // 5 % 60:02d}:{i % 60:02d}"
        if i % 97 == 50:
            rows.append(FrameRow(path, None, refused_key="frame_truncated", refused_values={"missing": 2880}))
            continue
        info = FrameInfo(
            path=Path(path),
            size_bytes=4_150_080,
            mtime_ns=0,
            shape_hw=(1920, 1080),
            kind="cfa",
            cfa_pattern="GRBG",
            bitpix=16,
            bzero=32768.0,
            bscale=1.0,
            blank=None,
            hdu=0,
            data_offset=5760,
            axes="hw",
            n_stored_planes=1,
            instrument="Seestar S50",
            exposure_s=10.0,
            date_obs=date,
            filter_name="IRCUT",
            gain=80.0,
            object_name="M 31",
            image_type="Light",
            stack_count=1,
            ra_deg=ra,
            dec_deg=dec,
            scale_arcsec=2.37,
            wcs_cards=None,
            night="2024-10-12",
        )
        source = "hint" if i % 23 == 7 else "header"
        rows.append(
            FrameRow(
                path, info, source, ra % 360, dec, math.degrees(angle), corners, date, 10.0, "Seestar S50"
            )
        )
        bad = i % 41 == 13
        measures.append(
            (
                path,
                {
                    "stars": float(max(0, rng.normal(150 - 90 * bad, 14))),
                    "fwhm": float(rng.gamma(40, 0.07) + 1.6 * bad),
                    "elongation": float(1.08 + rng.gamma(2.0, 0.03) + 0.5 * bad),
                    "background": float(rng.normal(1180 + i * 0.3 + 500 * bad, 25)),
                },
            )
        )
    frames.add(rows)
    frames.set_measures(measures)


def settle(seconds: float) -> None:
    """Let the application draw."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.01)


def settle_until(ready: Callable[[], bool], at_most_s: float = 120.0) -> None:
    """Let the application draw until something is there, on a slow machine too.

    Raises
    ------
    TimeoutError
        It did not come.
    """
    end = time.monotonic() + at_most_s
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing to photograph after {at_most_s:g} s")
        settle(0.05)


class Photographer:
    """Takes the pictures of one theme, size and language."""

    def __init__(self, out: Path, work: Path, theme: str, size: str, language: str) -> None:
        self.out, self.work = out, work
        self.tag = f"{theme}_{size}" + ("" if language == "en" else f"_{language}")
        self.width, self.height = map(int, size.split("x"))
        app = QApplication.instance() or QApplication(sys.argv[:1])
        themes = ThemeSwitch(app)
        self.session = open_session(themes, work / "config.json")
        self.session.form.set("qt_theme_mode", theme)
        self.session.form.set("language", language)
        themes.set_mode(theme)

    def shoot(self, widget: QWidget, name: str) -> None:
        """Save a picture of a widget."""
        settle(0.15)
        widget.grab().save(str(self.out / f"{self.tag}_{name}.png"))

    def pages(self, outputs: dict[str, str]) -> None:
        """Take all pages of the main window."""
        window = ZeMosaicQtMainWindow(self.session, worker="tools.screenshots:no_worker")
        window.setMinimumSize(0, 0)
        window.resize(self.width, self.height)
        window.show()
        night = self.work / "subs"
        night.mkdir(exist_ok=True)
        self.session.form.set("input_dir", str(night))
        self.session.form.set("output_dir", str(self.work))
        window.start_page.ask_machine()
        settle(6.0)
        for name in PAGES:
            window.show_page(name)
            self.shoot(window, f"page_{name}")
        window.show_page("advanced")
        self.session.form.set("stacking_kappa_low", "99")
        self.session.form.set("stacking_final_combine_method", "median")
        window.advanced_page.search.setText("kappa")
        settle(0.3)
        self.shoot(window, "advanced_search")
        self.session.form.reset("stacking_kappa_low")
        self.session.form.reset("stacking_final_combine_method")
        self._run(window, outputs)
        self._viewer(window, outputs)
        window.close()

    def _run(self, window: ZeMosaicQtMainWindow, outputs: dict[str, str]) -> None:
        controller = window.controller
        start = time.monotonic() - 344.0
        controller.state.begin("in", str(self.work), start)
        for i, event in enumerate(run_events(outputs, self.work)):
            controller.state.apply(event, start + 8.2 * i)
        window.show_page("run")
        for _ in range(8):
            window.run_page.refresh(controller)
            settle(0.1)
        window._show_run_state()
        self.shoot(window, "run_in_progress")
        controller.state.apply(
            RunEnded("failed", key="ui_worker_killed", values={"signal": 9, "detail": ""}), time.monotonic()
        )
        window._show_run_state()
        settle(0.3)
        self.shoot(window, "run_failed")

    def _viewer(self, window: ZeMosaicQtMainWindow, outputs: dict[str, str]) -> None:
        window.show_page("mosaic")
        window.viewer_page.open_outputs(outputs)
        canvas = window.viewer_page.canvas
        settle_until(lambda: canvas.n_finished > 0)
        self.shoot(window, "viewer")
        window.viewer_page.overlay_buttons["tiles"].setChecked(True)
        window.viewer_page.overlay_buttons["coverage"].setChecked(True)
        canvas.hovered.emit(800.0, 620.0)
        settle(0.4)
        self.shoot(window, "viewer_overlays")
        window.viewer_page.overlay_buttons["coverage"].setChecked(False)
        canvas.zoom_to(2.0)
        settle_until(lambda: not canvas.missing_parts())
        self.shoot(window, "viewer_zoom")

    def filter(self, n: int) -> None:
        """Take the filter dialog with ``n`` frames."""
        dialog = FilterQtDialog(self.session, str(self.work), survey=False)
        dialog.setMinimumSize(0, 0)
        dialog.resize(self.width, self.height)
        dialog.show()
        fill_filter(dialog.frames, n)
        dialog.frames.set_cut("fwhm", (0.0, 3.6))
        settle(2.0)
        dialog.frames.select(dialog.frames.in_rectangle(0.6, -0.2, 1.2, 0.7))
        self.shoot(dialog, "filter")
        dialog.tabs.setCurrentIndex(1)
        dialog.table.view.expandAll()
        self.shoot(dialog, "filter_quality")
        dialog.close()


def no_worker(*_args: object, **_kwargs: object) -> None:
    """Stand in for the worker: the pictures show made-up events."""


def main(argv: list[str] | None = None) -> int:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("outdir", type=Path)
    parser.add_argument("--size", nargs="*", default=SIZES)
    parser.add_argument("--theme", nargs="*", default=THEMES)
    parser.add_argument("--language", nargs="*", default=("en", "fr"))
    parser.add_argument("--frames", type=int, default=500)
    options = parser.parse_args(argv)
    options.outdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="zemosaic_pictures_") as folder:
        work = Path(folder)
        outputs = make_mosaic(work)
        for theme in options.theme:
            for size in options.size:
                for language in options.language:
                    photographer = Photographer(options.outdir, work, theme, size, language)
                    photographer.pages(outputs)
                    photographer.filter(options.frames)
    print(f"{len(list(options.outdir.glob('*.png')))} pictures in {options.outdir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
