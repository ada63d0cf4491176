from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

REAL_FRAMES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "seestar_m94"


@pytest.fixture(scope="session")
def real_frames() -> list[Path]:
    """Genuine Seestar frames when this checkout stands beside them."""
    frames = sorted(REAL_FRAMES.glob("*.fit")) if REAL_FRAMES.is_dir() else []
    if not frames:
        pytest.skip("the real Seestar frames are not on this machine")
    return frames


@pytest.fixture
def write_cfa(tmp_path):
    """Write a small uint16 frame the way a Seestar does; return its path and its pixels."""

    def write(name="frame.fit", shape=(20, 30), seed=0, **cards):
        rng = np.random.default_rng(seed)
        data = rng.integers(0, 65536, shape, dtype=np.uint16)
        header = fits.Header()
        for key, value in {"BAYERPAT": "GRBG", "INSTRUME": "Seestar S50", **cards}.items():
            if value is not None:
                header[key.replace("_", "-") if key.startswith("DATE") else key] = value
        path = tmp_path / name
        fits.PrimaryHDU(data, header).writeto(path)
        return path, data

    return write
