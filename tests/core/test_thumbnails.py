import numpy as np
import pytest

from zemosaic_core.thumbnails import cell_medians


def plain_cells(image, origin, cell, min_fraction=0.5):
    """Slow twin: every lattice cell on its own."""
    n_channels, height, width = image.shape
    cells = {}
    for c in range(n_channels):
        for gy in range(origin[0] // cell, -(-(origin[0] + height) // cell)):
            for gx in range(origin[1] // cell, -(-(origin[1] + width) // cell)):
                y0, x0 = max(0, gy * cell - origin[0]), max(0, gx * cell - origin[1])
                part = image[c, y0 : gy * cell + cell - origin[0], x0 : gx * cell + cell - origin[1]]
                values = np.sort(part[np.isfinite(part)])
                enough = len(values) >= max(1, min_fraction * cell * cell)
                cells[c, gy, gx] = values[(len(values) - 1) // 2] if enough else np.nan
    return cells


@pytest.mark.parametrize("origin", [(0, 0), (5, 3), (16, 31)])
def test_cells_are_the_medians_of_the_lattice(origin):
    rng = np.random.default_rng(3)
    image = rng.normal(100, 5, (2, 37, 50)).astype(np.float32)
    image[:, rng.random((37, 50)) < 0.3] = np.nan
    image[:, :9, :20] = np.nan
    medians, (gy0, gx0) = cell_medians(image, origin, 8)
    expected = plain_cells(image, origin, 8)
    assert medians.size == len(expected)
    for (c, gy, gx), value in expected.items():
        np.testing.assert_equal(medians[c, gy - gy0, gx - gx0], np.float32(value))


def test_overlapping_tiles_give_the_same_cells():
    rng = np.random.default_rng(4)
    sky = rng.normal(0, 1, (1, 96, 96)).astype(np.float32)
    a, first_a = cell_medians(sky[:, :64], (0, 0), 16)
    b, first_b = cell_medians(sky[:, 32:], (32, 0), 16)
    shared = first_b[0] - first_a[0]
    np.testing.assert_array_equal(a[:, shared:], b[:, : a.shape[1] - shared])
