import numpy as np

from zemosaic_core.colour_maps import coverage_rgba


def test_nothing_is_transparent_and_more_is_lighter():
    rgba = coverage_rgba(np.array([[0.0, 1.0, 5.0, 10.0, np.nan]]))
    assert rgba[0, :, 3].tolist() == [0, 255, 255, 255, 0]
    lightness = rgba[0, 1:4, :3].sum(axis=1)
    assert (np.diff(lightness.astype(int)) > 0).all()


def test_an_empty_map_is_all_transparent():
    assert (coverage_rgba(np.zeros((3, 4)))[..., 3] == 0).all()
