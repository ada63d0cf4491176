"""What ran where and why, gathered from the GPU ledger's records for the compute panel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ComputeState", "Fallback", "NoCard", "OperationState"]


@dataclass
class OperationState:
    """Where one operation runs.

    Attributes
    ----------
    device : str
        ``gpu``, ``cpu`` or ``mixed``.
    reason : str
        Reason of the policy, e.g. ``insufficient_memory``.
    values : mapping
        What the text of the reason needs, among it what the card or its libraries said.
    planned_bytes, peak_bytes : int
        Memory of the card: planned before, measured after; 0 = unknown.
    """

    op: str
    device: str = "cpu"
    reason: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    chunk_rows: int = 0
    n_chunks: int = 0
    planned_bytes: int = 0
    peak_bytes: int = 0
    gpu_chunks: int = 0
    cpu_chunks: int = 0
    splits: int = 0
    runs: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Fallback:
    """A step away from what was asked for: a text key with its values."""

    op: str
    key: str
    values: Mapping[str, Any]
    level: str


@dataclass(frozen=True)
class NoCard:
    """Why there is no card to use: a text key with its values, and the reason every operation repeats."""

    key: str
    values: Mapping[str, Any]
    reason: str


@dataclass
class ComputeState:
    """Grows with `add`; the same operation in many tiles is one line."""

    operations: dict[str, OperationState] = field(default_factory=dict)
    fallbacks: list[Fallback] = field(default_factory=list)
    device_name: str = ""
    no_card: NoCard | None = None
    total_bytes: int = 0
    free_bytes: int = 0
    usable_bytes: int = 0
    n_records: int = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Take one record of the ledger."""
        self.n_records += 1
        kind, op = str(record.get("kind", "")), str(record.get("op") or "")
        if kind == "probe":
            self._note_probe(record)
        elif kind == "decision" and "device" in record:
            self._note_decision(op, record)
        elif kind == "split":
            state = self._operation(op)
            state.splits += 1
            state.chunk_rows = int(record.get("chunk_rows") or state.chunk_rows)
        elif kind == "operation":
            self._note_end(op, record)
        if kind in ("override", "split", "fallback") or record.get("level") in ("WARN", "ERROR"):
            self._note_fallback(op, record)

    def _operation(self, op: str) -> OperationState:
        return self.operations.setdefault(op, OperationState(op))

    def _note_probe(self, record: Mapping[str, Any]) -> None:
        key, reason = str(record.get("key") or ""), str(record.get("reason") or "")
        device, budget = record.get("device"), record.get("budget")
        if key.startswith("gpu_fallback") and not isinstance(device, Mapping):
            self.no_card = NoCard(key, _values_of(record), reason)
        if isinstance(device, Mapping):
            self.device_name = str(device.get("name") or "")
        if isinstance(budget, Mapping):
            self.total_bytes = int(budget.get("total") or 0)
            self.free_bytes = int(budget.get("free") or 0)
            self.usable_bytes = int(budget.get("usable") or 0)

    def _note_decision(self, op: str, record: Mapping[str, Any]) -> None:
        state = self._operation(op)
        state.device = str(record["device"])
        state.reason = str(record.get("reason") or "")
        state.values = _values_of(record)
        state.chunk_rows = int(record.get("chunk_rows") or 0)
        state.n_chunks = int(record.get("n_chunks") or 0)
        state.planned_bytes = max(state.planned_bytes, int(record.get("estimated_bytes") or 0))
        self.usable_bytes = int(record.get("usable_bytes") or self.usable_bytes)

    def _note_end(self, op: str, record: Mapping[str, Any]) -> None:
        state = self._operation(op)
        state.runs += 1
        state.seconds += float(record.get("seconds") or 0.0)
        state.peak_bytes = max(state.peak_bytes, int(record.get("peak_bytes") or 0))
        state.gpu_chunks += int(record.get("gpu_chunks") or 0)
        state.cpu_chunks += int(record.get("cpu_chunks") or 0)
        if state.gpu_chunks and state.cpu_chunks:
            state.device = "mixed"

    def _note_fallback(self, op: str, record: Mapping[str, Any]) -> None:
        key = str(record.get("key") or "")
        if not key or (self.no_card is not None and self.no_card.reason == record.get("reason")):
            return
        found = Fallback(op, key, _values_of(record), str(record.get("level", "WARN")))
        # A whole night repeats the same step for every tile; one line says it.
        if all((known.op, known.key) != (found.op, found.key) for known in self.fallbacks):
            self.fallbacks.append(found)


def _values_of(record: Mapping[str, Any]) -> dict[str, Any]:
    values = record.get("values")
    return dict(values) if isinstance(values, Mapping) else {}
