from __future__ import annotations

import numpy as np
import pytest
import twins_coadd as twins

from zemosaic_core.errors import SettingsError
from zemosaic_core.rejection import REJECTION_CODES, combine_stack
from zemosaic_core.sources import CombineRule

RULES = [CombineRule(name) for name in REJECTION_CODES]
RULES += [
    CombineRule("none", combine="median"),
    CombineRule("winsorized_sigma_clip", 2.0, 1.5, (0.1, 0.2), "median"),
    CombineRule("kappa_sigma", 1.5, 2.5),
    CombineRule("linear_fit_clip", 2.0, 2.0, combine="median"),
]


def make_stack(n, shape=(2, 3, 37), seed=0, *, level=1000.0, outliers=0.05, missing=0.1):
    rng = np.random.default_rng(seed)
    stack = rng.normal(level, 90.0, (n, *shape)).astype(np.float32)
    hit = rng.random(stack.shape)
    stack[hit < outliers] += 5000
    stack[hit > 1 - outliers / 2] -= 800
    stack[rng.random(stack.shape) < missing] = np.nan
    return stack


def assert_same(ours, twin, level=1000.0, count_slack=0.0):
    """Counts must agree but for float32 ties at a bound; where they do, values agree closely."""
    agree = (ours.rejected_low == twin["rejected_low"]) & (ours.rejected_high == twin["rejected_high"])
    assert (~agree).mean() <= count_slack
    for name in ("image", "weight", "variance"):
        a, b = getattr(ours, name)[agree], twin[name][agree]
        assert np.array_equal(np.isnan(a), np.isnan(b)), name
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * level if name == "image" else 1e-6)
    np.testing.assert_array_equal(ours.coverage, twin["count"].max(axis=0))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{r.rejection}-{r.combine}-{r.kappa_low}")
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 40])
def test_agrees_with_the_plain_twin(rule, n):
    stack = make_stack(n, seed=n)
    assert_same(combine_stack(stack, rule), twins.combine(stack, np.ones((n, 2)), None, rule))


@pytest.mark.parametrize("rule", RULES[:4], ids=lambda r: r.rejection)
def test_two_hundred_images_agree_with_the_twin(rule):
    stack = make_stack(200, (1, 2, 60), seed=5)
    assert_same(
        combine_stack(stack, rule), twins.combine(stack, np.ones((200, 1)), None, rule), count_slack=0.01
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{r.rejection}-{r.combine}-{r.kappa_low}")
def test_weights_and_weight_maps_agree_with_the_twin(rule):
    stack = make_stack(12, seed=3)
    rng = np.random.default_rng(4)
    weights = rng.uniform(0.1, 1, (12, 2)).astype(np.float32)
    weights[3] = 0
    weights[5, 1] = 0
    maps = rng.uniform(0, 1, (12, 3, 37)).astype(np.float32)
    maps[maps < 0.1] = 0
    maps[0, 0, 0] = np.nan
    ours = combine_stack(stack, rule, weights=weights, weight_maps=maps)
    assert_same(ours, twins.combine(stack, weights.astype(float), np.nan_to_num(maps).astype(float), rule))


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


def test_result_does_not_depend_on_threads_or_on_how_rows_are_cut():
    stack = make_stack(23, (3, 40, 613), seed=11)
    whole = combine_stack(stack, CombineRule(), threads=1)
    for other, rows in (
        (combine_stack(stack, CombineRule(), threads=3), slice(None)),
        (combine_stack(np.ascontiguousarray(stack[:, :, 7:9]), CombineRule()), slice(7, 9)),
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
