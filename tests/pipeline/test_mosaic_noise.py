from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from astropy.io import fits

from zemosaic_io.fits_write import write_image
from zemosaic_io.preview import read_clipped_pixels, read_noise_map
from zemosaic_pipeline.mosaic_noise import mosaic_noise


class Weights:
    """A store of tiles that knows their weights only."""

    def __init__(self, maps):
        self.maps = maps

    def read_weight(self, key, y0, y1, x0, x1):
        return self.maps[key][y0:y1, x0:x1]


def tile(key, shape, origin, noise):
    return SimpleNamespace(tile_id=key, shape_hw=shape, origin_yx=origin, noise_adu=noise)


def test_noise_follows_the_weights_and_adds_where_tiles_overlap():
    first = np.full((128, 160), 4.0, np.float32)
    first[:, 96:] = 1.0
    second = np.full((128, 64), 4.0, np.float32)
    tiles = [tile(0, (128, 160), (10, 20), (3.0,)), tile(1, (128, 64), (10, 20), (6.0,))]
    gains = np.array([[1.0], [0.5]])
    noise = mosaic_noise(tiles, Weights([first, second]), gains, (10, 20), (160, 192))
    assert noise.sigma.shape == (1, 5, 6)
    assert noise.cell_px == 32
    # Two tiles of noise 3 (one of them scaled) make 3 / sqrt(2); beyond the second one there is the first alone.
    np.testing.assert_allclose(noise.sigma[0, :4, :2], 3 / np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(noise.sigma[0, :4, 2], 3.0, rtol=1e-6)
    np.testing.assert_allclose(noise.sigma[0, :4, 3:5], 6.0, rtol=1e-6)
    assert np.isnan(noise.sigma[0, 4]).all()
    assert np.isnan(noise.sigma[0, :, 5]).all()


def test_a_tile_that_cannot_tell_its_noise_makes_none_up():
    tiles = [tile(0, (64, 64), (0, 0), (float("nan"),))]
    noise = mosaic_noise(tiles, Weights([np.ones((64, 64), np.float32)]), np.ones((1, 1)), (0, 0), (64, 64))
    assert np.isnan(noise.sigma).all()


def test_noise_is_read_back_from_the_file_of_the_coverage(tmp_path):
    sigma = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    path = tmp_path / "coverage.fits"
    write_image(
        path,
        np.ones((64, 128), np.float32),
        extensions=[("CLIPPED", np.zeros((64, 128), np.uint8)), ("NOISE", sigma)],
    )
    np.testing.assert_array_equal(read_noise_map(path).sigma, sigma)
    assert fits.getdata(path, extname="NOISE").shape == (3, 2, 4)
    write_image(path, np.ones((64, 128), np.float32))
    assert read_noise_map(path) is None


def test_noise_follows_from_a_variance_where_nothing_else_tells_it(tmp_path):
    variance = np.full((3, 64, 100), 9.0, np.float32)
    variance[1, :32, :32] = 16.0
    variance[2, 40:50] = np.nan
    path = tmp_path / "variance.fits"
    write_image(path, variance, {"EXTNAME": "VARIANCE"})
    noise = read_noise_map(path)
    assert noise.sigma.shape == (3, 2, 4)
    assert noise.sigma[1, 0, 0] == 4.0
    assert (noise.sigma[2] == 3.0).all()


def test_clipped_pixels_are_listed(tmp_path):
    clipped = np.zeros((200, 30), np.uint8)
    clipped[(7, 150), (3, 29)] = 1, 4
    path = tmp_path / "coverage.fits"
    write_image(path, np.ones((200, 30), np.float32), extensions=[("CLIPPED", clipped)])
    assert read_clipped_pixels(path).tolist() == [[7, 3], [150, 29]]
    write_image(path, np.ones((200, 30), np.float32))
    assert read_clipped_pixels(path).shape == (0, 2)
