"""The built-in plate solver and the star matcher: how often, how fast, how exact, and never wrong.

python -m benchmarks.plate_solve                       # simulated frames all over the sky
python -m benchmarks.plate_solve --wrong 2000          # star lists that belong nowhere near
python -m benchmarks.plate_solve --blind 3             # no position at all
python -m benchmarks.plate_solve --frames FOLDER       # real frames, beside solve-field when installed
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from astropy.wcs import WCS

from zemosaic_core.errors import SkipItem
from zemosaic_core.plate_solve import SolveHint, solve_plate
from zemosaic_core.sphere import separation_deg, tan_wcs
from zemosaic_core.star_patterns import find_similarity
from zemosaic_core.stars import detect_stars
from zemosaic_io.headers import read_frame_info
from zemosaic_io.solvers.astrometry_net import SolveFieldSolver
from zemosaic_io.solvers.base import SolveRequest
from zemosaic_io.solvers.embedded import EmbeddedSolver
from zemosaic_io.star_catalogue import open_built_in_catalogue
from zemosaic_pipeline.solver_questions import image_provider

SHAPE, SCALE, NOMINAL_SCALE = (1920, 1080), 2.374, 2.392


def somewhere(rng):
    return rng.uniform(0, 360), math.degrees(math.asin(rng.uniform(-1, 1)))


def observe(rng, ra, dec, noise=0.2, lost=0.05, extra=2.0):
    """Detected stars and true WCS of a simulated frame over real catalogue stars."""
    height, width = SHAPE
    wcs = tan_wcs((ra, dec), SCALE / 3600, SHAPE, rng.uniform(0, 360), int(rng.choice([-1, 1])))
    near = open_built_in_catalogue().near(ra, dec, 0.75)
    x, y = wcs.all_world2pix(near.ra_deg, near.dec_deg, 0)
    keep = (x > 3) & (x < width - 4) & (y > 3) & (y < height - 4) & (rng.uniform(size=len(x)) > lost)
    n = int(extra * keep.sum()) + 20
    mag = np.concatenate([near.mag[keep] + rng.normal(0, 0.35, keep.sum()), 12 + rng.uniform(-1, 2, n)])
    xs = np.concatenate([x[keep], rng.uniform(0, width, n)]) + rng.normal(0, noise, len(mag))
    ys = np.concatenate([y[keep], rng.uniform(0, height, n)]) + rng.normal(0, noise, len(mag))
    order = np.argsort(mag)
    return SimpleNamespace(x=xs[order], y=ys[order]), wcs


def hint_off(rng, ra, dec, largest):
    angle, off = rng.uniform(0, 2 * np.pi), largest * math.sqrt(rng.uniform())
    dec2 = float(np.clip(dec + off * math.cos(angle), -90, 90))
    return ra + off * math.sin(angle) / max(math.cos(math.radians(dec)), 0.02), dec2


def simulated(n: int, largest_deg: float) -> None:
    rng = np.random.default_rng(1)
    catalogue = open_built_in_catalogue()
    ms, centre, corner, failed, wrong = [], [], [], 0, 0
    for _ in range(n):
        ra, dec = somewhere(rng)
        stars, wcs = observe(rng, ra, dec)
        hint = SolveHint(*hint_off(rng, ra, dec, largest_deg), 10.0, NOMINAL_SCALE)
        start = time.perf_counter()
        try:
            found = solve_plate(stars, SHAPE, catalogue, hint)
        except SkipItem:
            failed += 1
            continue
        ms.append(1e3 * (time.perf_counter() - start))
        x, y = np.array([539.5, 0, 1079, 0, 1079]), np.array([959.5, 0, 0, 1919, 1919])
        errors = 3600 * separation_deg(*found.fit.sky(x, y), *wcs.all_pix2world(x, y, 0))
        centre.append(errors[0])
        corner.append(errors[1:].max())
        wrong += errors[0] > 5
    print(f"hint within {largest_deg:4.1f} deg: {len(ms) - wrong}/{n} right, {wrong} wrong, {failed} unsolved; "
          f"median {np.median(ms):.1f} ms, 90 % {np.percentile(ms, 90):.1f} ms; centre {np.median(centre):.3f}, "
          f'worst corner {np.median(corner):.3f} arcsec (centroid noise 0.2 px)')  # fmt: skip


def wrong_fields(n: int) -> None:
    rng = np.random.default_rng(2)
    catalogue = open_built_in_catalogue()
    false, start = 0, time.perf_counter()
    for trial in range(n):
        stars, _ = observe(rng, *somewhere(rng))
        if trial % 3 == 1:
            stars = SimpleNamespace(x=stars.x, y=rng.permutation(stars.y))
        elif trial % 3 == 2:
            size = int(rng.integers(7, 200))
            stars = SimpleNamespace(x=rng.uniform(0, 1080, size), y=rng.uniform(0, 1920, size))
        try:
            solve_plate(stars, SHAPE, catalogue, SolveHint(*somewhere(rng), 1.05, NOMINAL_SCALE))
            false += 1
        except SkipItem:
            pass
    print(
        f"wrong fields: {false} false solutions in {n}, {1e3 * (time.perf_counter() - start) / n:.0f} ms each"
    )


def blind(n: int) -> None:
    rng = np.random.default_rng(3)
    for scale in (NOMINAL_SCALE, None):
        for _ in range(n):
            ra, dec = somewhere(rng)
            stars, _ = observe(rng, ra, dec)
            start = time.perf_counter()
            found = solve_plate(stars, SHAPE, open_built_in_catalogue(), SolveHint(scale_arcsec=scale))
            off = 3600 * separation_deg(found.fit.ra_deg, found.fit.dec_deg, ra, dec)
            print(f"no hint, scale {scale}: {time.perf_counter() - start:.1f} s, off by {off:.2f} arcsec")


def matching(n: int) -> None:
    rng = np.random.default_rng(4)
    ms, found = [], 0
    for _ in range(n):
        stars, _ = observe(rng, *somewhere(rng))
        xy = np.column_stack([stars.x, stars.y])
        turn = rng.uniform(0, 2 * np.pi)
        matrix = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        keep = rng.uniform(size=len(xy)) < 0.7
        other = xy[keep] @ matrix.T + rng.normal(0, 0.3, (keep.sum(), 2))
        start = time.perf_counter()
        match = find_similarity(xy, other)
        ms.append(1e3 * (time.perf_counter() - start))
        found += match is not None
    print(f"star matching: {found}/{n} found, median {np.median(ms):.2f} ms")


def real_frames(folder: Path) -> None:
    outside = SolveFieldSolver()
    solvers = [EmbeddedSolver()] + ([outside] if outside.find().ok else [])
    with tempfile.TemporaryDirectory() as work:
        for path in sorted(folder.glob("*.fit*")):
            info = read_frame_info(path)
            provider = image_provider(info)
            image, offset = provider()
            stars = detect_stars(image, offset=offset)
            request = SolveRequest(
                path,
                info.shape_hw,
                info.ra_deg,
                info.dec_deg,
                info.scale_arcsec,
                3.0,
                stars,
                provider,
                Path(work),
            )
            places, line = [], path.name
            for solver in solvers:
                outcome = solver.solve(request)
                line += f" | {solver.name} {1e3 * outcome.seconds:.0f} ms {outcome.key}"
                if outcome.ok:
                    line += f" {outcome.n_matched} stars rms {outcome.rms_px or math.nan:.3f} px"
                    wcs = WCS(outcome.wcs_cards, relax=True)
                    height, width = info.shape_hw
                    places.append(wcs.all_pix2world((width - 1) / 2, (height - 1) / 2, 0))
            if len(places) == 2:
                line += f" | centres {3600 * separation_deg(*places[0], *places[1]):.2f} arcsec apart"
            print(line)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--wrong", type=int, default=0)
    parser.add_argument("--blind", type=int, default=0)
    parser.add_argument("--frames", type=Path)
    options = parser.parse_args()
    if options.frames:
        real_frames(options.frames)
        return
    matching(options.count)
    for largest in (0.3, 1.0, 4.0, 9.5):
        simulated(options.count, largest)
    if options.wrong:
        wrong_fields(options.wrong)
    if options.blind:
        blind(options.blind)


if __name__ == "__main__":
    main()
