"""A block of a co-add on a worker that has a (simulated) card: the same numbers, and records with its host."""

from __future__ import annotations

import json

import pytest
from gpu_cases import FakePixels, assert_blocks_agree, make_sources
from simulated_device import COMPILER, SimulatedDevice

from zemosaic_core.sources import CombineRule
from zemosaic_gpu_policy import GpuPolicy
from zemosaic_pipeline import cluster_block_work
from zemosaic_pipeline.cluster_block_work import CoaddPart, coadd_part
from zemosaic_pipeline.elsewhere import OwnWorker, RunStop

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the simulated card needs a host C++ compiler")

WIDTH, ROWS = 150, (13, 53)


class Frames(FakePixels):
    """Frames of which none is packed."""

    def unpack_into(self, folder, keep_free_bytes):
        pass


def part_of(pixels, sources, mode):
    rule = CombineRule("kappa_sigma", 2.5, 2.0)
    return CoaddPart(
        pixels, tuple(sources), ROWS, WIDTH, pixels.n_channels, rule, "bilinear", 1 << 28, 0, mode,
        lambda _, block: block, RunStop("r"),
    )  # fmt: skip


def test_worker_with_a_card_gives_the_same_block_and_its_records(install, monkeypatch, tmp_path):
    install(SimulatedDevice(2 << 30))
    cluster_block_work._card_policy.cache_clear()
    worker = OwnWorker("1", "attic", threads=1, has_card=True)
    monkeypatch.setattr(cluster_block_work, "own_worker", lambda: worker)
    pixels = Frames(6, (80, 160))
    sources = make_sources(pixels, 6, (60, WIDTH))
    on_card, host, records = coadd_part(part_of(pixels, sources, "require"))
    on_processor, _, told_off = coadd_part(part_of(pixels, sources, "off"))
    cluster_block_work._card_policy.cache_clear()
    assert on_card.image.shape == (pixels.n_channels, ROWS[1] - ROWS[0], WIDTH)
    assert_blocks_agree(on_card, on_processor)
    assert host == "attic"
    # The policy of the worker says that the card was not wanted; nothing was done on it.
    assert {record["reason"] for record in told_off if record["kind"] in ("probe", "decision")} == {"off"}
    assert {record["device"] for record in told_off if record["kind"] == "decision"} == {"cpu"}
    assert any(record["kind"] == "operation" for record in records)
    ledger = tmp_path / "gpu_ledger.jsonl"
    seen = []
    policy = GpuPolicy(mode="off", ledger_path=ledger, on_record=seen.append)
    for record in records:
        policy.adopt(record, host)
    lines = [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()]
    assert [line["host"] for line in lines] == ["attic"] * len(records) == [r["host"] for r in seen]
