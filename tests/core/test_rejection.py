from __future__ import annotations

import numpy as np
import pytest
import twins_coadd as twins
from scipy.ndimage import maximum_filter

from zemosaic_core.clipped_light import mark_clipped_planes
from zemosaic_core.errors import SettingsError
from zemosaic_core.rejection import REJECTION_CODES, combine_stack
from zemosaic_core.sources import CombineRule, SampleNoise

NOISE = SampleNoise((90.0**2, 70.0**2), (1000.0, 980.0), 0.4)
RULES = [CombineRule(name) for name in REJECTION_CODES]
RULES += [
    CombineRule("none", combine="median"),
    CombineRule("winsorized_sigma_clip", 2.0, 1.5, (0.1, 0.2), "median"),
    CombineRule("kappa_sigma", 1.5, 2.5),
    CombineRule("linear_fit_clip", 2.0, 2.0, combine="median"),
]
KNOWN = [
    CombineRule(noise=NOISE),
    CombineRule("kappa_sigma", 2.0, 2.5, noise=NOISE),
    CombineRule("linear_fit_clip", combine="median", noise=SampleNoise((60.0**2,) * 2, (900.0,) * 2, 0.1)),
]


def make_stack(n, shape=(2, 3, 37), seed=0, *, level=1000.0, outliers=0.05, missing=0.1):
    rng = np.random.default_rng(seed)
    stack = rng.normal(level, 90.0, (n, *shape)).astype(np.float32)
    hit = rng.random(stack.shape)
    stack[hit < outliers] += 5000
    stack[hit > 1 - outliers / 2] -= 800
    stack[rng.random(stack.shape) < missing] = np.nan
    return stack


def clipped_at(bound):
    """A missing sample that holds a lower bound of its light."""
    planes = np.full((1, 1, 1), 2 * bound, np.float32)
    mark_clipped_planes(planes, (bound,))
    return planes[0, 0, 0]


def assert_same(ours, twin, level=1000.0, count_slack=0.0):
    """Counts must agree but for float32 ties at a bound; where they do, values agree closely."""
    agree = (ours.rejected_low == twin["rejected_low"]) & (ours.rejected_high == twin["rejected_high"])
    assert (~agree).mean() <= count_slack
    for name in ("image", "weight", "variance"):
        a, b = getattr(ours, name)[agree], twin[name][agree]
        assert np.array_equal(np.isnan(a), np.isnan(b)), name
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * level if name == "image" else 1e-6)
    np.testing.assert_array_equal(ours.coverage, twin["count"].max(axis=0))


def name_of(rule):
    return f"{rule.rejection}-{rule.combine}-{rule.kappa_low}" + ("-known" if rule.noise else "")


@pytest.mark.parametrize("rule", [*RULES, *KNOWN], ids=name_of)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 15, 16, 40])
def test_agrees_with_the_plain_twin(rule, n):
    stack = make_stack(n, seed=n)
    assert_same(combine_stack(stack, rule), twins.combine(stack, np.ones((n, 2)), None, rule))


@pytest.mark.parametrize("rule", [RULES[2], KNOWN[0]], ids=name_of)
def test_sources_that_see_a_part_of_the_row_count_there_alone(rule):
    # Wide enough for three runs of lanes; in the first nobody but the even ones has a sample, in the last the odd ones.
    stack = make_stack(9, (2, 2, 600), seed=2)
    stack[0::2, :, :, 390:] = np.nan
    stack[1::2, :, :, :210] = np.nan
    # One of those that have no sample on the left was cut off there, in one pixel that nobody else sees.
    stack[:, :, 1, 20] = np.nan
    stack[1, :, 1, 20] = clipped_at(4000.0)
    weights, maps = np.linspace(0.5, 1.5, 9), np.random.default_rng(4).random((9, 2, 600), np.float32)
    ours = combine_stack(stack, rule, weights=weights, weight_maps=maps)
    for here, who in ((slice(0, 210), slice(0, None, 2)), (slice(390, 600), slice(1, None, 2))):
        alone = combine_stack(
            stack[who, ..., here], rule, weights=weights[who], weight_maps=maps[who, :, here]
        )
        for name in ("image", "weight", "variance", "rejected_low", "rejected_high"):
            whole, part = getattr(ours, name)[..., here].copy(), getattr(alone, name)
            if here.start == 0:
                bound = whole[:, 1, 20].copy()
                whole[:, 1, 20] = part[:, 1, 20]
                assert name != "image" or (bound == 4000.0).all()
            np.testing.assert_array_equal(whole, part, name)


@pytest.mark.parametrize("rule", RULES[:4], ids=lambda r: r.rejection)
def test_two_hundred_images_agree_with_the_twin(rule):
    stack = make_stack(200, (1, 2, 60), seed=5)
    assert_same(
        combine_stack(stack, rule), twins.combine(stack, np.ones((200, 1)), None, rule), count_slack=0.01
    )


@pytest.mark.parametrize("n", [6, 12, 25])
@pytest.mark.parametrize("rule", [*RULES, *KNOWN], ids=name_of)
def test_weights_and_weight_maps_agree_with_the_twin(rule, n):
    stack = make_stack(n, seed=3)
    rng = np.random.default_rng(4)
    weights = rng.uniform(0.1, 1, (n, 2)).astype(np.float32)
    weights[3] = 0
    weights[5, 1] = 0
    maps = rng.uniform(0, 1, (n, 3, 37)).astype(np.float32)
    maps[maps < 0.1] = 0
    maps[0, 0, 0] = np.nan
    ours = combine_stack(stack, rule, weights=weights, weight_maps=maps)
    assert_same(ours, twins.combine(stack, weights.astype(float), np.nan_to_num(maps).astype(float), rule))


def make_night(n, seed=0, shape=(160, 160)):
    """Frames of changing noise and seeing with satellites: samples, what satellites added, noise, starlight."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    noise, fwhm = 20 * 1.5 ** rng.uniform(-0.5, 0.5, n), rng.uniform(2.3, 2.9, n)
    light, satellites = np.zeros((n, *shape)), np.zeros((n, *shape))
    for x0, y0, peak in zip(*rng.uniform(10, 150, (2, 25)), 10 ** rng.uniform(2.3, 4.5, 25), strict=True):
        for i in range(n):
            dx, dy = rng.normal(0, 0.1, 2)
            core = (fwhm[i] / 2) ** 2 / (2 ** (1 / 3.5) - 1)
            profile = (1 + ((x - x0 - dx) ** 2 + (y - y0 - dy) ** 2) / core) ** -3.5
            light[i] += peak * (2.6 / fwhm[i]) ** 2 * profile
    for i in range(0, n, 2):
        angle = rng.uniform(0, np.pi)
        across = (x - rng.uniform(40, 120)) * np.sin(angle) - (y - rng.uniform(40, 120)) * np.cos(angle)
        satellites[i] = 10 ** rng.uniform(2.5, 3.5) * np.exp(-(across**2) / 2.4)
    samples = (
        1000 + light + satellites + rng.normal(0, 1, light.shape) * np.sqrt(noise[:, None, None] ** 2 + light)
    )
    return samples.astype(np.float32)[:, None], satellites, noise, light


def judge(n, known):
    """Shares of samples: outliers left, and what was rejected in vain of the sky and of star cores; bias of the sky."""
    stack, satellites, noise, light = make_night(n, seed=n)
    weights = noise.mean() ** 2 / noise**2
    knowledge = SampleNoise((noise.mean() ** 2,), (1000.0,)) if known else None
    out = combine_stack(stack, CombineRule(noise=knowledge), weights=weights)
    rank = stack[:, 0].argsort(axis=0).argsort(axis=0)
    kept = (rank >= out.rejected_low[0]) & (rank < n - out.rejected_high[0].astype(int))
    hit, clean = satellites > 6 * noise[:, None, None], satellites < 0.3 * noise[:, None, None]
    mean = light.mean(axis=0)
    sky, core = mean < 2, mean > 0.5 * maximum_filter(mean, 7)
    core &= mean > 150
    bias = (out.image[0] - 1000 - mean)[sky & clean.all(axis=0)].mean() / noise.mean()
    lost = [(~kept & clean)[:, where].sum() / clean[:, where].sum() for where in (sky, core)]
    return (kept & hit)[:, sky].sum() / hit[:, sky].sum(), *lost, bias


@pytest.mark.parametrize("n", [3, 4, 5, 6, 8, 12, 16])
def test_few_samples_of_known_noise_lose_their_outliers_and_nothing_else(n):
    left, sky, core, bias = judge(n, known=True)
    assert left < (0.03 if n == 3 else 0.01)
    assert core <= sky < 0.005
    assert abs(bias) < 0.02


@pytest.mark.parametrize(("n", "left", "lost"), [(3, 1.0, 0.0), (4, 0.08, 0.01), (8, 0.005, 0.01)])
def test_the_scatter_of_few_samples_tells_less(n, left, lost):
    scatter, known = judge(n, known=False), judge(n, known=True)
    assert scatter[0] >= left
    assert scatter[1] >= lost
    assert known[0] < 0.3 * scatter[0]


def test_of_two_samples_the_brighter_one_goes():
    noise = SampleNoise((100.0,), (1000.0,), 0.3)
    stack = np.array([[1000, 1000, 1040, 9000, 5000], [1040, 1045, 1000, 1000, 6000]], np.float32)
    out = combine_stack(stack[:, None, None], CombineRule(noise=noise))
    # Three times the square root of two times 10 is 42.4; of stars a difference of a quarter is no reason.
    np.testing.assert_array_equal(out.rejected_high[0, 0], [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(out.rejected_low[0, 0], 0)
    np.testing.assert_array_equal(out.image[0, 0], [1020, 1000, 1020, 1000, 5500])


def test_known_noise_is_that_of_the_weights():
    """The same two samples: of frames with little weight they may differ more."""
    stack = np.array([1000, 1060], np.float32).reshape(2, 1, 1, 1)
    rule = CombineRule(noise=SampleNoise((100.0,), (1000.0,), 0.0))
    for weights, rejected in (([1, 1], 1), ([0.25, 0.25], 0), ([1, 0.25], 0), ([4, 1], 1)):
        assert combine_stack(stack, rule, weights=np.array(weights)).rejected_high.item() == rejected


def test_without_rejection_known_noise_rejects_nothing():
    stack = make_stack(5)
    plain, known = (combine_stack(stack, CombineRule("none", noise=noise)) for noise in (None, NOISE))
    np.testing.assert_array_equal(plain.image, known.image)
    assert known.rejected_high.sum() == 0


def test_equal_values_and_zero_scatter_reject_nothing():
    stack = np.full((9, 1, 2, 5), 7.0, np.float32)
    stack[0, 0, 0, 0] = 50.0
    for rule in RULES[1:4]:
        out = combine_stack(stack, rule)
        assert out.rejected_high[0, 1].sum() == 0
        np.testing.assert_array_equal(out.image[0, 1], 7.0)
        np.testing.assert_array_equal(out.variance[0, 1], 0.0)


def test_a_satellite_is_rejected_and_the_sky_is_kept():
    rng = np.random.default_rng(8)
    stack = rng.normal(1000, 30, (20, 1, 1, 2000)).astype(np.float32)
    stack[7] += 3000
    for name in ("kappa_sigma", "winsorized_sigma_clip", "linear_fit_clip"):
        out = combine_stack(stack, CombineRule(name))
        assert (out.rejected_high >= 1).all(), name
        assert abs(out.image.mean() - 1000) < 2, name
    assert combine_stack(stack, CombineRule()).rejected_low.mean() < 0.3


def test_no_sample_gives_nan_and_zero_weight():
    stack = np.full((5, 3, 2, 4), np.nan, np.float32)
    stack[2, 0, 0, 0] = 4.0
    out = combine_stack(stack, CombineRule())
    assert out.image[0, 0, 0] == 4.0
    assert np.isnan(out.variance[0, 0, 0])
    assert np.isnan(out.image).sum() == out.image.size - 1
    assert out.weight.sum() == 1
    assert out.coverage.sum() == 1


def test_infinite_samples_are_missing():
    stack = np.array([1.0, np.inf, -np.inf, 3.0], np.float32).reshape(4, 1, 1, 1)
    out = combine_stack(stack, CombineRule("none"))
    assert out.image.item() == 2.0
    assert out.coverage.item() == 2


def test_empty_stack_gives_an_empty_picture():
    out = combine_stack(np.empty((0, 3, 4, 5), np.float32), CombineRule())
    assert out.image.shape == (3, 4, 5)
    assert np.isnan(out.image).all()


@pytest.mark.parametrize(
    "rule", [CombineRule(), CombineRule(noise=SampleNoise((90.0**2,) * 3, (1000.0,) * 3))]
)
def test_result_does_not_depend_on_threads_or_on_how_rows_are_cut(rule):
    stack = make_stack(17, (3, 40, 613), seed=11)
    whole = combine_stack(stack, rule, threads=1)
    for other, rows in (
        (combine_stack(stack, rule, threads=3), slice(None)),
        (combine_stack(np.ascontiguousarray(stack[:, :, 7:9]), rule), slice(7, 9)),
    ):
        for name in ("image", "weight", "variance", "rejected_low", "rejected_high"):
            assert np.array_equal(getattr(whole, name)[:, rows], getattr(other, name), equal_nan=True), name


def test_result_does_not_depend_on_neighbouring_pixels():
    stack = make_stack(17, (1, 1, 700), seed=12)
    whole = combine_stack(stack, CombineRule())
    alone = combine_stack(np.ascontiguousarray(stack[..., 300:305]), CombineRule())
    assert np.array_equal(whole.image[..., 300:305], alone.image, equal_nan=True)
    assert np.array_equal(whole.variance[..., 300:305], alone.variance, equal_nan=True)


def test_variance_predicts_the_scatter_of_the_mean():
    rng = np.random.default_rng(1)
    stack = rng.normal(500, 40, (16, 1, 50, 400)).astype(np.float32)
    out = combine_stack(stack, CombineRule("none"))
    assert np.sqrt(out.variance.mean()) == pytest.approx(out.image.std(), rel=0.03)
    median = combine_stack(stack, CombineRule("none", combine="median"))
    assert np.sqrt(median.variance.mean()) == pytest.approx(median.image.std(), rel=0.06)


@pytest.mark.parametrize(
    "rule",
    [
        CombineRule("sigma"),
        CombineRule(combine="sum"),
        CombineRule(kappa_low=0.0),
        CombineRule(winsor_limits=(0.6, 0.5)),
        CombineRule(winsor_limits=(-0.1, 0.1)),
        CombineRule(noise=SampleNoise((0.0,), (1000.0,))),
        CombineRule(noise=SampleNoise((np.nan,), (1000.0,))),
        CombineRule(noise=SampleNoise((1.0,), (np.inf,))),
        CombineRule(noise=SampleNoise((1.0,), (1000.0,), -0.1)),
        CombineRule(noise=SampleNoise((1.0, 1.0), (1000.0, 1000.0))),
    ],
)
def test_invalid_rule_names_the_field(rule):
    with pytest.raises(SettingsError) as caught:
        combine_stack(np.ones((2, 1, 1, 1), np.float32), rule)
    assert caught.value.values["field"] in str(caught.value)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="weights"):
        combine_stack(np.ones((2, 1, 1, 1)), CombineRule(), weights=np.ones(3))
    with pytest.raises(ValueError, match="stack"):
        combine_stack(np.ones((2, 1, 1)), CombineRule())
