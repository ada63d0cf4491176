"""The CUDA text itself: compiles for every architecture without spilling, and only real library calls are made."""

from __future__ import annotations

import ast
import functools
import io
import re
from pathlib import Path

import numpy as np
import pytest
from simulated_device import COMPILER, SimulatedDevice, signatures

from zemosaic_core import (
    background,
    cfa_rows,
    lanczos_table,
    pixel_map,
    raw_defects,
    raw_maxima,
    raw_sky,
    resample,
)
from zemosaic_core.gpu import combine, kernels, measure, tiles, windows
from zemosaic_core.gpu.launch import Queue
from zemosaic_core.sources import CombineRule

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = (61, 75, 86, 89, 90, 120)
VARIANTS = [
    ("smoke", ()),
    ("decode", ()),
    ("measure", ()),
    ("place", ()),
    ("sample", ("-DLANCZOS=0",)),
    ("sample", ("-DLANCZOS=1",)),
    ("combine", combine.Storage(combine.UNSORTED).options(mapped=True, noise=False)),
]


def sorting_variants() -> list[tuple[str, ...]]:
    """Compiler options of everything a card may be asked to sort with."""
    depths = [*combine.REGISTER_SIZES, 160, 20_000]
    storages = [combine.storage_for(depth, CombineRule(), None) for depth in depths]
    assert {s.kind for s in storages} == {combine.IN_SHARED, combine.IN_BLOCK, combine.IN_SCRATCH}
    return [storage.options(mapped=True, noise=True) for storage in storages]  # what takes most registers


@functools.cache
def compiler():
    """CuPy's wrapper of NVRTC; both come as wheels and need neither a driver nor a card."""
    module = pytest.importorskip("cupy.cuda.compiler")
    nvrtc = pytest.importorskip("cupy.cuda").nvrtc
    try:
        nvrtc.getVersion()
    except (RuntimeError, ImportError) as error:
        pytest.skip(f"NVRTC is not installed: {error}")
    return module


def spills(name: str, options: tuple[str, ...], arch: int) -> list[str]:
    """Compile to machine code and return the complaints: lines that report a spill."""
    program = compiler()._NVRTCProgram(kernels.source(name), f"{name}.cu", (), (), method="cubin")
    log = io.StringIO()
    flags = ("-std=c++17", "--fmad=false", f"-arch=sm_{arch}", "--ptxas-options=-v", *options)
    binary, _ = program.compile(flags, log)
    assert binary
    reports = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log.getvalue())
    assert len(reports) == len(signatures(kernels.source(name)))
    return [f"{name} {options} sm_{arch}: {s}" for s in reports if s != ("0", "0")]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_compiles_for_every_architecture_without_spills(arch):
    assert [s for name, options in VARIANTS for s in spills(name, options, arch)] == []


# Each takes half a minute; those between them have the same number of registers.
@pytest.mark.slow
@pytest.mark.parametrize("arch", [ARCHITECTURES[0], ARCHITECTURES[-1]])
def test_sorting_in_registers_does_not_spill(arch):
    assert [s for options in sorting_variants() for s in spills("combine", options, arch)] == []


def test_all_sources_are_listed_and_need_no_headers():
    folder = Path(kernels.__file__).parent
    assert sorted(path.stem for path in folder.glob("*.cu")) == sorted(kernels.NAMES)
    for name in kernels.NAMES:
        text = kernels.source(name)
        assert "#include" not in text
        # The host can only run kernels whose barriers are those of block.cuh.
        assert text.count("__syncthreads") == ("BARRIER" in text)
        assert signatures(text)


def test_constants_agree_with_the_python_side():
    for name in ("combine", "sample", "place"):
        assert f"#define TILE_W {tiles.TILE_W}\n" in kernels.source(name)
        assert f"#define TILE_H {tiles.TILE_H}\n" in kernels.source(name)
    text = kernels.source("sample")
    assert f"{float(lanczos_table.LANCZOS_ROWS)}f" in text
    assert f"#define NODE_BITS {pixel_map.NODES_PER_PX.bit_length() - 1}\n" in text
    assert f"#define UNDERSHOOT_FROM {resample.UNDERSHOOT[0]:g}f\n" in text
    assert f"#define UNDERSHOOT_TO {resample.UNDERSHOOT[1]:g}f\n" in text
    assert f"#define CONTRAST {float(resample.CONTRAST)}f\n" in text
    assert f"#define NO_NODE (-(1LL << {(-pixel_map.NO_NODE).bit_length() - 1}))\n" in text
    text = kernels.source("decode")
    assert f"#define SHARE_ROWS {windows.SHARE_ROWS}\n" in text
    assert f"here * {1 / cfa_rows.CLEAR:g}f;" in text
    text = kernels.source("measure")
    numbers = {
        "BINS": raw_sky.BINS,
        "COARSEST_BITS": raw_sky.COARSEST_BITS,
        "CLIP_SIGMA": raw_sky._CLIP_SIGMA,
        "CUT_CORRECTION": raw_sky._CUT_CORRECTION,
        "USABLE_FRACTION": raw_sky._USABLE_FRACTION,
        "CUT_OFF_FRACTION": raw_sky._CUT_OFF_FRACTION,
        "STEP_TO_SIGMA": raw_sky._STEP_TO_SIGMA,
        "MIDMEAN_ERROR": background.MIDMEAN_ERROR,
        "ISOLATED_SHARE": f"{raw_defects._ISOLATED_SHARE}f",
        "CEILING_PART": raw_defects._CEILING_PART,
        "OWN_SIGMA": f"{raw_maxima._OWN_SIGMA}f",
        "MORE_ON_LIGHT": f"{raw_maxima._OWN_SIGMA_ON_LIGHT - raw_maxima._OWN_SIGMA}f",
        "LIGHT_SIGMA": f"{raw_maxima._LIGHT_SIGMA}f",
        "RING_PX": raw_maxima.RING_PX,
        "WIDE_RING_PX": raw_maxima.WIDE_RING_PX,
        "STRIP_ROWS": measure.STRIP_ROWS,
    }
    for name, number in numbers.items():
        assert f"#define {name} {number}\n" in text


def attribute_chains(path: Path) -> set[str]:
    """Dotted names below CuPy or its runtime that a file uses."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name):
            parts.append(node.id)
        chain = ".".join(reversed(parts))
        for root, real in (
            ("self._cupy.", "cupy."),
            ("cupy.", "cupy."),
            ("self._runtime.", "cupy.cuda.runtime."),
        ):
            if chain.startswith(root):
                found.add(real + chain[len(root) :])
        if chain.startswith("runtime."):
            found.add("cupy.cuda." + chain)
    return found


def test_only_library_functions_that_exist_are_called():
    cupy = pytest.importorskip("cupy")
    used = {
        c for f in ("device", "probe") for c in attribute_chains(ROOT / "zemosaic_core" / "gpu" / f"{f}.py")
    }
    assert "cupy.cuda.runtime.memcpyAsync" in used
    for chain in sorted(used):
        thing = cupy
        for part in chain.split(".")[1:]:
            thing = getattr(thing, part)
    for name in ("memcpyAsync", "memsetAsync"):
        assert getattr(cupy.cuda.runtime, name).__doc__.startswith(name)


def test_64_bit_places_in_large_pools():
    """A pool beyond 2^31 samples is never allocated in a test; the text must not compute its places in 32 bits."""
    text = kernels.source("combine")
    assert "base + ((long long)row * n + slot) * TILE_W + col" in text
    assert "#define STRIDE ((long long)gridDim.x * THREADS)" in text
    assert text.count("(long long)k * TILE_W") == 7


def test_a_card_whose_float64_is_slow_does_not_need_it():
    for name in ("combine", "sample", "place", "decode"):
        assert not re.search(r"\bdouble\b", kernels.source(name))
    # Measuring: for numbers of a cell, not in a kernel with a thread per pixel.
    entries = re.findall(r"^extern.*?^}", kernels.source("measure"), flags=re.MULTILINE | re.DOTALL)
    slow = {signatures(text).popitem()[0] for text in entries if "double" in text}
    assert slow == {"cell_centres", "cell_steps"}
    assert len(entries) == len(signatures(kernels.source("measure")))


@pytest.mark.skipif(COMPILER is None, reason="needs a host C++ compiler")
def test_the_card_refuses_what_a_real_one_would_punish():
    device = SimulatedDevice()
    queue = Queue(device)
    out = device.empty((8,), np.float32)
    source = kernels.source("smoke")
    with pytest.raises(AssertionError, match="float64"):
        queue.launch_1d(source, "smoke", 8, (out, 8, np.float64(1), np.float32(0)))
    with pytest.raises(AssertionError, match="arguments"):
        queue.launch_1d(source, "smoke", 8, (out, 8, np.float32(1)))
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(out)
    queue.launch_1d(source, "smoke", 9, (out, 9, np.float32(1), np.float32(0)))
    with pytest.raises(AssertionError, match="outside"):
        queue.finish()


@pytest.mark.skipif(COMPILER is None, reason="needs a host C++ compiler")
def test_queued_work_notices_memory_that_is_gone():
    device = SimulatedDevice()
    stream = device.stream()
    array = device.empty((4,), np.float32)
    device.copy_in(array, np.zeros(4, np.float32), stream)
    del array
    with pytest.raises(AssertionError, match="given back"):
        device.synchronize(stream)
