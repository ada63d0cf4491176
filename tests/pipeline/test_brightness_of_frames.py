"""The brightness of the sky is told where stars and the noise of the sky tell it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from zemosaic_pipeline.sky_brightness import brightness_facts, sky_brightness


def frame(index, sky_adu, gain):
    solved = SimpleNamespace(
        frame=SimpleNamespace(index=index), measure=SimpleNamespace(sky_adu=(0.0, sky_adu, 0.0))
    )
    return SimpleNamespace(solved=solved, gain=(1.0, gain, 1.0))


def behind(*, measured=True, frames=(0, 1, 2)):
    pedestal = SimpleNamespace(
        measured=measured, level_adu=np.array([0.0, 300.0, 0.0]), sigma_adu=np.array([0.0, 10.0, 0.0])
    )
    return SimpleNamespace(model=SimpleNamespace(pedestal=pedestal), frames=frames)


def mosaic(solution=True):
    points = [SimpleNamespace(at_white=at, sigma=0.03) for at in (0.0, 24.0, 0.0)]
    return SimpleNamespace(
        colour=SimpleNamespace(solution=SimpleNamespace(zero_points=points) if solution else None),
        grid=SimpleNamespace(scale_arcsec=2.0),
    )


def test_haze_and_pedestal_do_not_count():
    """The same sky in clear air, behind haze that halves all light, and a brighter one."""
    found = sky_brightness(
        [frame(0, 700.0, 1.0), frame(1, 500.0, 2.0), frame(2, 1100.0, 1.0)], behind(), mosaic()
    )
    assert found[0][0] == found[1][0] == pytest.approx(24.0 - 2.5 * np.log10(400.0 / 4.0))
    assert found[0][0] - found[2][0] == pytest.approx(2.5 * np.log10(2.0))
    assert found[0][1] == pytest.approx(np.hypot(1.0857 * 10.0 / 400.0, 0.03), rel=1e-3)
    facts = brightness_facts(found)
    assert facts["brightest"] < facts["median"] <= facts["darkest"]
    assert facts["median"] == pytest.approx(19.0)


def test_nothing_is_told_that_is_not_known():
    frames = [frame(0, 700.0, 1.0)]
    assert sky_brightness(frames, behind(measured=False), mosaic()) == {}
    assert sky_brightness(frames, behind(), mosaic(solution=False)) == {}
    assert sky_brightness(frames, behind(frames=(7,)), mosaic()) == {}
    assert sky_brightness(frames, None, mosaic()) == {}
    assert brightness_facts({}) is None
