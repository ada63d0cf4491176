"""The public GPU functions: same result as their CPU twins on the simulated card, and without any card."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from gpu_cases import FakePixels, make_sources
from simulated_device import COMPILER, SimulatedDevice

import zemosaic_align_stack as stacks
import zemosaic_utils as utils
from zemosaic_core.errors import RunFailed, SettingsError
from zemosaic_core.gpu import budget
from zemosaic_core.gpu.device import FaultScript
from zemosaic_core.sources import CombineRule
from zemosaic_core.sphere import tan_wcs
from zemosaic_gpu_policy import GpuPolicy
from zemosaic_io.gpu_files import device_lease

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the simulated card needs a host C++ compiler")
RNG = np.random.default_rng(11)


@pytest.fixture(params=["card", "small card", "no card"])
def policy(request, install):
    """A policy that never finds work too small, with a card, a tiny card, or none."""
    if request.param == "no card":
        yield GpuPolicy(mode="auto", environ={})
        return
    device = install(SimulatedDevice(64 << 20 if request.param == "card" else 600_000))
    policy = GpuPolicy(mode="require", environ={"ZEMOSAIC_GPU_RESERVE_MB": "0"})
    assert policy.status.ok
    yield policy
    assert device.pool.used == 0
    assert all(op["gpu_share"] == 1 for op in policy.summary()["operations"].values())


def image(h=60, w=75, channels=3, holes=True):
    data = RNG.normal(1000, 20, (h, w, channels)).astype(np.float32)
    data[RNG.integers(0, h, 30), RNG.integers(0, w, 30)] += 3000
    if holes:
        data[RNG.integers(0, h, 10), RNG.integers(0, w, 10)] = np.nan
    return data if channels > 1 else data[..., 0]


def test_single_images_are_done_on_the_processor_under_their_gpu_names_too(tmp_path):
    """No run does these on a card, so there is one way to compute them."""
    data = image()
    told, mask = [], tmp_path / "mask.npy"
    mended = utils.detect_and_correct_hot_pixels_gpu(data, 4.0, 5, lambda *a, **k: told.append(k), mask)
    np.testing.assert_array_equal(mended, utils.detect_and_correct_hot_pixels(data, 4.0, 5))
    assert np.load(mask).sum() == told[0]["count"] > 0
    for method in ("gaussian", "mesh"):
        np.testing.assert_array_equal(
            utils.estimate_background_map_gpu(data, method, 8.0),
            utils.estimate_background_map(data, method, 8.0),
        )
    np.testing.assert_array_equal(
        utils.stretch_auto_asifits_like_gpu(data, apply_wb=False),
        utils.stretch_auto_asifits_like(data, apply_wb=False),
    )


@pytest.mark.parametrize("percents", [[0, 100], [25.0, 50.0, 75.0], [0.5, 99.8], [33.3]])
def test_percentiles_are_numpys(percents):
    values = RNG.normal(0, 50, (41, 177)).astype(np.float32)
    values[RNG.uniform(size=values.shape) < 0.1] = np.nan
    expected = np.nanpercentile(values.astype(np.float64), percents)
    np.testing.assert_allclose(stacks._gpu_nanpercentile(values, percents), expected, rtol=1e-6)
    assert utils._percentiles_gpu(values, 0.0, 100.0) == (np.nanmin(values), np.nanmax(values))
    assert np.isnan(stacks._gpu_nanpercentile(np.full((3, 3), np.nan), [50.0])).all()


@pytest.mark.parametrize(
    ("gpu", "cpu", "options"),
    [
        (
            stacks.gpu_stack_winsorized,
            stacks.stack_winsorized_sigma_clip,
            {"kappa": 2.5, "winsor_limits": (0.1, 0.1)},
        ),
        (stacks.gpu_stack_kappa, stacks.stack_kappa_sigma_clip, {"sigma_low": 2.0, "sigma_high": 3.0}),
        (stacks.gpu_stack_linear, stacks.stack_linear_fit_clip, {"sigma": 2.5}),
    ],
)
@pytest.mark.parametrize("weights", ["none", "numbers", "maps"])
def test_stacks(policy, gpu, cpu, options, weights):
    frames = [image(21, 33) for _ in range(9)]
    given = {"none": None, "numbers": RNG.uniform(0.1, 1, (9, 3)), "maps": RNG.uniform(0, 1, (9, 21, 33))}[
        weights
    ]
    result, percent = gpu(frames, given, policy=policy, **options)
    expected, expected_percent = cpu(frames, given, **options)
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert percent == pytest.approx(expected_percent)
    assert percent > 0
    with pytest.raises(TypeError):
        gpu(frames, policy=policy, no_such_option=1)


def mosaic_case():
    out = tan_wcs((10.0, 41.0), 2.0 / 3600, (70, 90))
    tiles = [image(40, 50, channels=1) for _ in range(5)]
    wcs = [
        tan_wcs((10.0 + dx, 41.0 + dy), 2.0 / 3600, (40, 50), 7.0)
        for dx, dy in RNG.uniform(-0.01, 0.01, (5, 2))
    ]
    return tiles, wcs, (70, 90), {"output_projection": out}


@pytest.mark.parametrize("combine", ["mean", "median", "kappa_sigma", "winsorized"])
def test_reproject_and_coadd(policy, combine):
    tiles, wcs, shape, options = mosaic_case()
    options |= {
        "combine_function": combine,
        "tile_weights": [1, 2, 1, 3, 1],
        "tile_affine_corrections": [(1.1, 5)] * 5,
    }
    gpu, seen = utils.reproject_and_coadd_wrapper(tiles, wcs, shape, use_gpu=True, policy=policy, **options)
    cpu, expected_seen = utils.reproject_and_coadd_wrapper(tiles, wcs, shape, **options)
    np.testing.assert_allclose(gpu, cpu, rtol=1e-6)
    np.testing.assert_allclose(seen, expected_seen, rtol=1e-6)
    named, _ = utils.gpu_assemble_final_mosaic_reproject_coadd(tiles, wcs, shape, policy=policy, **options)
    np.testing.assert_array_equal(named, gpu)


def test_incremental_assembly(policy):
    tiles, wcs, shape, options = mosaic_case()
    gpu, _ = utils.gpu_assemble_final_mosaic_incremental(tiles, wcs, shape, policy=policy, **options)
    np.testing.assert_allclose(
        gpu, utils.reproject_and_coadd_wrapper(tiles, wcs, shape, **options)[0], rtol=1e-6
    )
    with pytest.raises(SettingsError):
        utils.gpu_assemble_final_mosaic_incremental(tiles, wcs, shape, combine_function="median", **options)


def test_results_do_not_depend_on_the_chunks_bit_by_bit(install):
    device = install(SimulatedDevice(256 << 20))
    body = sweep_cases()["stack"]
    results = []
    for rows in ("64", "5", "1"):
        policy = GpuPolicy(
            mode="require", environ={"ZEMOSAIC_GPU_RESERVE_MB": "0", "ZEMOSAIC_GPU_CHUNK_ROWS": rows}
        )
        results.append(body(policy))
        assert policy.summary()["gpu_share"] == 1
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    assert device.pool.used == 0


def test_small_work_says_so(install):
    install(SimulatedDevice(64 << 20))
    policy = GpuPolicy(environ={"ZEMOSAIC_GPU_RESERVE_MB": "0"})
    stacks.gpu_stack_kappa([image(9, 9)] * 4, policy=policy)
    assert [f["reason"] for f in policy.summary()["fallbacks"]] == ["workload_too_small"]


def sweep_cases():
    frames = [image(12, 16) for _ in range(5)]
    pixels = FakePixels(3, (14, 18), raw="some", hot=3)
    sources = make_sources(pixels, 3, (16, 20), turn=0.01, feather=3.0)

    def coadd(policy, rule):
        blocks = []
        utils.coadd_on_grid(
            pixels, sources, (16, 20), 3, rule, "lanczos3", budget_bytes=1 << 26, policy=policy, threads=1,
            sink=lambda y0, y1, block: blocks.append(block.image),
        )  # fmt: skip
        return np.concatenate(blocks, axis=1)

    return {
        "stack": lambda p: stacks.gpu_stack_winsorized(frames, policy=p)[0],
        "mean": lambda p: coadd(p, CombineRule("none")),
        "tile": lambda p: coadd(p, CombineRule()),
    }


@pytest.mark.parametrize("op", ["stack", "mean", "tile"])
def test_any_failure_of_any_call_gives_the_same_result(install, monkeypatch, op):
    """Fail every call of every operation in turn: nothing escapes, nothing stays, the result is the same."""
    import zemosaic_gpu_policy as module

    monkeypatch.setattr(budget, "OPERATION_OVERHEAD_SECONDS", -1.0)  # small work stays on the card here
    monkeypatch.setattr(budget, "TRANSFER_BYTES_PER_SECOND", 1e30)
    # Slow, and without it this also shows that nothing hangs in a cycle.
    monkeypatch.setattr(module.gc, "collect", lambda: 0)
    device = install(SimulatedDevice(64 << 20))
    body = sweep_cases()[op]
    environ = {"ZEMOSAIC_GPU_RESERVE_MB": "0", "ZEMOSAIC_GPU_CHUNK_ROWS": "64"}
    policy = GpuPolicy(environ=environ)
    assert policy.status.ok
    device.faults = FaultScript()
    expected = body(policy)
    assert policy.summary()["gpu_share"] == 1
    calls, allocations = device.faults.calls, device.faults.allocations
    scripts = [f"oom@{k}" for k in range(1, allocations + 1)]
    scripts += [f"error1@{k}" for k in range(1, calls + 1)]
    scripts += [f"sticky700@{k}" for k in range(1, calls + 1, 5)]
    for script in scripts:
        device.faults = FaultScript()
        policy = GpuPolicy(environ=environ)
        assert policy.status.ok
        device.faults = FaultScript(script)
        np.testing.assert_allclose(body(policy), expected, rtol=1e-5, atol=2e-6, err_msg=script)
        assert device.pool.used == 0, script


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["sink", "pixels"])
def test_an_error_in_a_real_operation_leaves_nothing_behind(install, where, error):
    """With readers ahead of the card and memory kept between chunks: all of it goes."""
    device = install(SimulatedDevice(64 << 20))
    before, records = set(threading.enumerate()), []
    environ = {"ZEMOSAIC_GPU_RESERVE_MB": "0", "ZEMOSAIC_GPU_CHUNK_ROWS": "12"}
    policy = GpuPolicy(mode="require", environ=environ, on_record=records.append)
    assert policy.status.ok
    pixels = FakePixels(5, (60, 64), raw="some", hot=3)
    sources = make_sources(pixels, 5, (64, 70), turn=0.01, feather=3.0)
    read_raw, blocks = pixels.read_raw, []

    def read(key, y0, y1):
        if where == "pixels" and len(blocks) >= 2:
            raise error
        return read_raw(key, y0, y1)

    def sink(y0, y1, block):
        blocks.append((y0, y1))
        if where == "sink" and len(blocks) == 3:
            raise error

    pixels.read_raw = read
    with pytest.raises(error) as caught:
        utils.coadd_on_grid(
            pixels, sources, (64, 70), 3, CombineRule(), "lanczos3", budget_bytes=1 << 26, policy=policy,
            sink=sink,
        )  # fmt: skip
    assert caught.tb is not None
    policy.close()
    assert (device.pool.used, device.pool.total) == (0, 0)
    (operation,) = [record for record in records if record["kind"] == "operation"]
    # Blocks are handed on beside the next one: what was handed on, the card had computed.
    assert (operation["complete"], operation["gpu_rows"]) == (False, blocks[-1][1])
    assert not [t.name for t in threading.enumerate() if t not in before]
    with device_lease(device.info.uuid, timeout_s=0):
        pass


@pytest.mark.parametrize("card", [True, False])
def test_rows_that_are_there_already_are_not_done_again(install, card):
    """The rows below them are the same, bit by bit, although blocks are cut elsewhere; they begin on the lattice."""
    install(SimulatedDevice(64 << 20))
    environ = {"ZEMOSAIC_GPU_RESERVE_MB": "0", "ZEMOSAIC_GPU_CHUNK_ROWS": "16"}
    pixels = FakePixels(5, (60, 64), raw="some", hot=3)
    sources = make_sources(pixels, 5, (64, 70), turn=0.01, feather=3.0)

    def coadd(**options):
        records, rows, blocks = [], [], []
        policy = GpuPolicy(mode="require" if card else "off", environ=environ, on_record=records.append)
        utils.coadd_on_grid(
            pixels, sources, (64, 70), 3, CombineRule(), "lanczos3", budget_bytes=50_550_000, policy=policy,
            sink=lambda y0, y1, block: (rows.append((y0, y1)), blocks.append(block.image)), **options,
        )  # fmt: skip
        policy.close()
        (operation,) = [record for record in records if record["kind"] == "operation"]
        assert operation["complete"]
        return rows, np.concatenate(blocks, axis=1)

    rows, whole = coadd()
    assert rows[0][0] == 0
    below, rest = coadd(first_row=23, lattice_row=-101)
    assert below[0][0] == 23
    assert below[-1][1] == 64
    assert len(below) > 2
    assert all((y0 + 101) % 2 == 0 for y0, _ in below[1:])
    np.testing.assert_array_equal(rest, whole[:, 23:])


def test_without_a_card_the_short_answers_are_calm():
    if utils.gpu_is_available():
        pytest.skip("this machine has a card")
    assert utils.GPU_AVAILABLE is False
    utils.ensure_cupy_pool_initialized()
    utils.ensure_cupy_pool_initialized(3)
    utils.free_cupy_memory_pools()
    assert not utils.gpu_memory_sufficient(1)
    assert not stacks._has_gpu_budget(1)
    with pytest.raises(RunFailed):
        utils.reproject_and_coadd_wrapper(
            *mosaic_case()[:3], use_gpu=True, allow_cpu_fallback=False, **mosaic_case()[3]
        )
    with pytest.raises(AttributeError):
        _ = utils.no_such_name


def test_with_a_card_the_short_answers_know_it(install, monkeypatch):
    install(SimulatedDevice(4 << 30))
    monkeypatch.setenv("ZEMOSAIC_GPU_RESERVE_MB", "0")
    assert utils.GPU_AVAILABLE
    utils.ensure_cupy_pool_initialized()
    utils.free_cupy_memory_pools()
    assert utils.gpu_memory_sufficient(3 << 30)
    assert not utils.gpu_memory_sufficient(3 << 30, 0.5)
    assert utils.gpu_memory_sufficient(3600 << 20, 5.0)


def test_aligned_images_are_stacked_on_the_card_too(install):
    """On request, with the same numbers, and in bounded passes."""
    device = install(SimulatedDevice(64 << 20))
    images = [image(30, 20) for _ in range(8)]
    plain = stacks.stack_aligned_images(images, rejection_algorithm="winsorized_sigma_clip")
    policy = GpuPolicy(mode="require", environ={"ZEMOSAIC_GPU_RESERVE_MB": "0"})
    for passes in (0, 3):
        ours = stacks.stack_aligned_images(
            images,
            rejection_algorithm="winsorized_sigma_clip",
            policy=policy,
            winsor_max_frames_per_pass=passes,
        )
        np.testing.assert_array_equal(ours, plain)
        on_cpu = stacks.stack_aligned_images(
            images, rejection_algorithm="winsorized_sigma_clip", winsor_max_frames_per_pass=passes
        )
        np.testing.assert_array_equal(on_cpu, plain)
    stack = policy.summary()["operations"]["stack"]
    assert (stack["gpu_share"], stack["gpu_chunks"]) == (1.0, 4)
    assert "combine_pool" in device.launches


def test_a_source_that_is_not_there_at_all(install):
    """A stack of one frame with one hole."""
    install(SimulatedDevice(64 << 20))
    frame = np.full((5, 6), np.nan, np.float32)
    frame[2] = 4.0
    result, percent = stacks.gpu_stack_kappa([frame], policy=GpuPolicy(mode="require", environ={}))
    np.testing.assert_array_equal(result, frame)
    assert percent == 0
    assert FakePixels(1, (4, 4)).read_raw(0, 0, 2) is None
