"""Records of the GPU policy and the sums a report needs; knows keys and numbers, no files and no texts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from zemosaic_core.chunks import Workload
from zemosaic_core.gpu.device import GpuFault
from zemosaic_core.gpu.terms import (
    CALM_REASONS,
    RUN_WIDE_REASONS,
    Budget,
    Decision,
    GpuStatus,
    Parity,
    Reason,
    RunReport,
    reason_values,
)

__all__ = ["KINDS", "OperationTally", "Recorder"]

KINDS = (
    "probe",
    "override",
    "decision",
    "split",
    "fallback",
    "release",
    "staging",
    "lease",
    "parity",
    "operation",
    "summary",
)
# Operations with a sentence of their own; the others share one.
_SPOKEN_OPS = {"stack": "stack", "assemble": "phase5"}
MIB = 1 << 20


@dataclass
class OperationTally:
    """Sums over all runs of one operation. Units are rows times elements per row, so wide rows count more."""

    runs: int = 0
    gpu_units: int = 0
    cpu_units: int = 0
    gpu_chunks: int = 0
    cpu_chunks: int = 0
    splits: int = 0
    fallbacks: int = 0
    seconds: float = 0.0
    planned_peak: int = 0
    peak: int = 0
    parity: list[Parity] = field(default_factory=list)

    @property
    def gpu_share(self) -> float:
        """Share of the work done on the GPU, 0..1."""
        units = self.gpu_units + self.cpu_units
        return self.gpu_units / units if units else 0.0


class Recorder:
    """Makes the records, passes each to ``sink`` and keeps the sums.

    Parameters
    ----------
    sink : callable
        Gets every record, a JSON-serialisable dict.
    """

    def __init__(self, sink: Callable[[dict[str, Any]], None]) -> None:
        self._sink = sink
        self._told: set[tuple[str, str, str]] = set()
        self.tallies: dict[str, OperationTally] = {}
        self.fallbacks: list[dict[str, Any]] = []
        self.overrides: list[dict[str, Any]] = []

    def tally(self, op: str) -> OperationTally:
        """Return the sums of an operation."""
        return self.tallies.setdefault(op, OperationTally())

    def emit(
        self,
        kind: str,
        reason: Reason,
        *,
        op: str = "",
        key: str = "",
        values: dict[str, Any] | None = None,
        level: str = "INFO",
        fault: GpuFault | None = None,
        **numbers: Any,
    ) -> dict[str, Any]:
        """Make one record and pass it on.

        ``key`` and ``values`` are for the user; a value whose name ends in ``_key`` is itself a text key.
        ``repeat`` is true when the same thing was told before, for the same operation where it is about one.
        """
        record: dict[str, Any] = {
            "time": round(time.time(), 3),
            "pid": os.getpid(),
            "kind": kind,
            "op": op,
            "reason": reason.value,
            "key": key,
            "values": values or {},
            "level": level,
            **numbers,
        }
        if fault is not None:
            record |= {"exception": fault.type_name, "message": fault.message, "status": fault.status}
        mark = (op, key or kind, reason.value)
        if reason in RUN_WIDE_REASONS and kind in ("probe", "decision", "fallback"):
            mark = ("", "", reason.value)
        record["repeat"] = mark in self._told
        if level != "DEBUG" or kind == "release":
            self._told.add(mark)
        self._sink(record)
        return record

    def probe(self, status: GpuStatus, budget: Budget | None) -> None:
        """Record what is known of the card."""
        if not status.ok:
            level = "INFO" if status.reason in CALM_REASONS else "WARN"
            values = status.reason_values
            self.emit("probe", status.reason, key=status.fallback_key, values=values, level=level)
            return
        info = status.device
        total = budget.total if budget else 0
        values = {
            "name": status.detail if info is None else info.name,
            "total_mb": total // MIB,
            "free_mb": (budget.free if budget else 0) // MIB,
            "usable_mb": (budget.usable if budget else 0) // MIB,
        }
        numbers = {
            "device": None if info is None else asdict(info),
            "budget": None if budget is None else asdict(budget),
        }
        self.emit("probe", Reason.GPU, key="gpu_info_summary", values=values, **numbers)
        if status.unmet_wish:
            self.emit("probe", Reason.GPU, key="gpu_other_card", values=_wish_values(status), level="WARN")

    def override(self, reason: Reason, op: str, *, key: str, variable: str) -> None:
        """Record that a variable of the environment decides where an operation runs."""
        self.overrides.append(self.emit("override", reason, op=op, key=key, values={"variable": variable}))

    def decision(
        self, workload: Workload, decision: Decision, budget: Budget | None, detail: str = ""
    ) -> None:
        """Record where an operation starts, with every bound that was considered; ``detail`` explains the reason."""
        spoken = _SPOKEN_OPS.get(workload.op, "gpu_op")
        key = f"{spoken}_using_{decision.device}"
        values = {**_op_values(workload.op), **reason_values(decision.reason, detail)}
        # Where the processor does it, a fallback with its numbers follows and tells why.
        level = "INFO" if decision.device == "gpu" else "DEBUG"
        numbers = {
            "device": decision.device,
            "rows": workload.rows,
            "chunk_rows": decision.chunk_rows,
            "n_chunks": decision.n_chunks,
            "estimated_bytes": decision.estimated_bytes,
            "limits": decision.limits,
            "usable_bytes": budget.usable if budget else 0,
            "detail": dict(workload.detail),
        }
        self.emit("decision", decision.reason, op=workload.op, key=key, values=values, level=level, **numbers)
        if decision.n_chunks > 1:
            values = {
                **_op_values(workload.op),
                "chunk_rows": decision.chunk_rows,
                "n_chunks": decision.n_chunks,
            }
            values["rows"] = workload.rows
            self.emit(
                "decision",
                decision.reason,
                op=workload.op,
                key="gpu_chunking_rows",
                values=values,
                level="DEBUG",
            )

    def split(
        self,
        op: str,
        rows: tuple[int, int],
        chunk_rows: int,
        fault: GpuFault | None,
        *,
        reason: Reason,
        **numbers: Any,
    ) -> None:
        """Record that chunks become smaller because memory ran short."""
        values = {**_op_values(op), "chunk_rows": chunk_rows}
        where = {"rows": list(rows), "chunk_rows": chunk_rows, **numbers}
        key = {Reason.OVERCOMMITTED: "gpu_overcommitted", Reason.HOST_MEMORY: "gpu_host_memory"}
        self.emit(
            "split",
            reason,
            op=op,
            key=key.get(reason, "gpu_chunk_split"),
            values=values,
            fault=fault,
            **where,
        )
        self.tally(op).splits += 1

    def pageable(self, op: str, fault: GpuFault) -> None:
        """Record that the system refuses to lock pages, so that transfers are slower."""
        values = {**_op_values(op), "detail": f"{fault.type_name}: {fault.message}"}
        self.emit("staging", Reason.PAGEABLE, op=op, key="gpu_pageable", values=values, fault=fault)

    def fallback(
        self,
        reason: Reason,
        op: str,
        *,
        scope: str,
        fault: GpuFault | None = None,
        detail: str = "",
        needed_bytes: int = 0,
        usable_bytes: int = 0,
        **numbers: Any,
    ) -> dict[str, Any]:
        """Record that rows go to the CPU; ``scope`` is chunk, operation or run."""
        said = detail or (f"{fault.type_name}: {fault.message}" if fault else "")
        values = self.fallback_values(
            reason, op, detail=said, needed_bytes=needed_bytes, usable_bytes=usable_bytes
        )
        level = "INFO" if reason in CALM_REASONS else "WARN"
        numbers |= {"scope": scope, "needed_bytes": needed_bytes, "usable_bytes": usable_bytes}
        record = self.emit(
            "fallback",
            reason,
            op=op,
            key=reason.fallback_key,
            values=values,
            level=level,
            fault=fault,
            **numbers,
        )
        self.fallbacks.append(record)
        self.tally(op).fallbacks += 1
        return record

    @staticmethod
    def fallback_values(
        reason: Reason, op: str, *, detail: str = "", needed_bytes: int = 0, usable_bytes: int = 0
    ) -> dict[str, Any]:
        """Return what the sentence of a fallback needs."""
        values = {**_op_values(op), **reason_values(reason, detail)}
        return values | {"needed_mb": -(-needed_bytes // MIB), "usable_mb": usable_bytes // MIB}

    def parity(self, op: str, parity: Parity, rows: tuple[int, int]) -> None:
        """Record a comparison of the two bodies."""
        key = "gpu_parity_ok" if parity.ok else "gpu_parity_differs"
        values = {**_op_values(op), "difference": f"{parity.max_difference:.1e}", "flipped": parity.flipped}
        values["compared"] = parity.compared
        # That all is well belongs into the report. That it is not is told by the step that follows.
        level = "DEBUG"
        numbers = {**asdict(parity), "rows": list(rows)}
        self.emit("parity", Reason.GPU, op=op, key=key, values=values, level=level, **numbers)
        self.tally(op).parity.append(parity)

    def operation(self, workload: Workload, report: RunReport) -> None:
        """Record the end of an operation and add it to the sums."""
        units = max(1, workload.elements_per_row)
        tally = self.tally(workload.op)
        tally.runs += 1
        tally.gpu_units += report.gpu_rows * units
        tally.cpu_units += report.cpu_rows * units
        tally.gpu_chunks += report.gpu_chunks
        tally.cpu_chunks += report.cpu_chunks
        tally.seconds += report.seconds
        if report.peak_bytes >= tally.peak:
            tally.peak, tally.planned_peak = report.peak_bytes, report.decision.estimated_bytes
        self.emit(
            "operation",
            report.decision.reason,
            op=workload.op,
            level="DEBUG",
            gpu_rows=report.gpu_rows,
            cpu_rows=report.cpu_rows,
            gpu_chunks=report.gpu_chunks,
            cpu_chunks=report.cpu_chunks,
            rows=workload.rows,
            complete=report.gpu_rows + report.cpu_rows == workload.rows - workload.start,
            pieces=[list(piece) for piece in report.pieces],
            splits=report.splits,
            fallbacks=report.fallbacks,
            peak_bytes=report.peak_bytes,
            estimated_bytes=report.decision.estimated_bytes,
            seconds=round(report.seconds, 4),
        )

    def summary(self) -> dict[str, Any]:
        """Return the sums as JSON-serialisable numbers."""
        operations = {}
        for op, tally in self.tallies.items():
            worst = max((p.max_difference for p in tally.parity), default=None)
            operations[op] = {
                "runs": tally.runs,
                "gpu_share": round(tally.gpu_share, 6),
                "gpu_chunks": tally.gpu_chunks,
                "cpu_chunks": tally.cpu_chunks,
                "splits": tally.splits,
                "fallbacks": tally.fallbacks,
                "seconds": round(tally.seconds, 3),
                "peak_bytes": tally.peak,
                "planned_peak_bytes": tally.planned_peak,
                "parity_checks": len(tally.parity),
                "parity_ok": all(p.ok for p in tally.parity),
                "parity_max_difference": worst,
            }
        gpu = sum(t.gpu_units for t in self.tallies.values())
        total = gpu + sum(t.cpu_units for t in self.tallies.values())
        return {
            "gpu_share": round(gpu / total, 6) if total else 0.0,
            "operations": operations,
            "fallbacks": self.grouped_fallbacks(),
        }

    def grouped_fallbacks(self) -> list[dict[str, Any]]:
        """Return one record per operation, reason and scope: the first one, with how often and how much."""
        groups: dict[tuple[str, str, str], dict[str, Any]] = {}
        for record in self.fallbacks:
            mark = (record["op"], record["reason"], record["scope"])
            group = groups.setdefault(mark, {**record, "count": 0})
            group["count"] += 1
            group["needed_bytes"] = max(group["needed_bytes"], record["needed_bytes"])
        return list(groups.values())

    def report_lines(self, status: GpuStatus, budget: Budget | None) -> list[tuple[str, dict[str, Any]]]:
        """Return the GPU section of a run report as text keys with their values."""
        asked = [(record["key"], record["values"]) for record in self.overrides]
        if not status.ok:
            return [(status.fallback_key, status.reason_values), *asked]
        name = status.detail if status.device is None else status.device.name
        total, free = (budget.total, budget.free) if budget else (0, 0)
        lines: list[tuple[str, dict[str, Any]]] = [
            ("gpu_info_summary", {"name": name, "total_mb": total // MIB, "free_mb": free // MIB})
        ]
        if status.unmet_wish:
            lines.append(("gpu_other_card", _wish_values(status)))
        lines += asked
        for op, tally in self.tallies.items():
            values = {**_op_values(op), "percent": f"{100 * tally.gpu_share:.1f}", "runs": tally.runs}
            values |= {"gpu_chunks": tally.gpu_chunks, "cpu_chunks": tally.cpu_chunks}
            lines.append(("gpu_report_share", values))
            if tally.peak:
                percent = 100 * tally.peak / tally.planned_peak if tally.planned_peak else 0.0
                values = {**_op_values(op), "peak_mb": f"{tally.peak / MIB:.1f}", "percent": f"{percent:.0f}"}
                values["planned_mb"] = f"{tally.planned_peak / MIB:.1f}"
                lines.append(("gpu_report_peak", values))
            if tally.parity:
                worst = max(p.max_difference for p in tally.parity)
                flipped, compared = (
                    sum(p.flipped for p in tally.parity),
                    sum(p.compared for p in tally.parity),
                )
                key = "gpu_parity_ok" if all(p.ok for p in tally.parity) else "gpu_parity_differs"
                values = {
                    **_op_values(op),
                    "difference": f"{worst:.1e}",
                    "flipped": flipped,
                    "compared": compared,
                }
                lines.append((key, values))
        for group in self.grouped_fallbacks():
            lines.append((group["key"], group["values"]))
            if group["count"] > 1:
                lines.append(("gpu_report_repeated", {**group["values"], "count": group["count"]}))
        return lines


def _wish_values(status: GpuStatus) -> dict[str, Any]:
    return {"wanted": status.unmet_wish, "name": "" if status.device is None else status.device.name}


def _op_values(op: str) -> dict[str, Any]:
    return {"op": op, "op_key": f"gpu_op_{op}"}
