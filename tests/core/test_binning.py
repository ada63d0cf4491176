"""Means of blocks: the fast way for blocks of two gives the bits of the plain one."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.binning import bin_down


def plain(image, factor):
    """Every block by itself, in the order of its pixels."""
    channels, height, width = image.shape
    result = np.full((channels, -(-height // factor), -(-width // factor)), np.nan, np.float32)
    for c, j, i in np.ndindex(result.shape):
        block = image[c, j * factor : (j + 1) * factor, i * factor : (i + 1) * factor].ravel()
        known = block[np.isfinite(block)]
        total = np.float32(0.0)
        for value in known:
            total += value
        if known.size:
            result[c, j, i] = total / np.float32(known.size)
    return result


@pytest.mark.parametrize("factor", [1, 2, 3, 7])
@pytest.mark.parametrize("shape", [(1, 9, 11), (2, 16, 20), (3, 5, 2), (1, 1, 3)])
def test_means_of_blocks(factor, shape):
    image = np.random.default_rng(3).normal(1000.0, 30.0, shape).astype(np.float32)
    image[:, :3, :1] = np.nan
    image[-1, -1, -1] = np.inf
    np.testing.assert_array_equal(bin_down(image, factor), plain(image, factor))


def test_an_image_may_be_of_another_type_and_higher_than_a_strip():
    image = np.arange(2 * 600 * 4, dtype=np.uint16).reshape(2, 600, 4)
    np.testing.assert_array_equal(bin_down(image, 2), plain(image.astype(np.float32), 2))
