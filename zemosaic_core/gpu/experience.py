"""What a run learns of its operations: how fast the processor is, and how much memory was too much."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from zemosaic_core.chunks import Workload
from zemosaic_core.gpu.terms import RunReport

__all__ = ["Experience"]


@dataclass
class Experience:
    """Grows with every operation.

    Attributes
    ----------
    ceilings : dict
        Operation -> bytes: the peak that has failed is above this.
    paces : dict
        Operation -> seconds that were expected of the processor, and seconds that it took.
    """

    ceilings: dict[str, int] = field(default_factory=dict)
    paces: dict[str, tuple[float, float]] = field(default_factory=dict)

    def timed(self, workload: Workload) -> Workload:
        """Return the workload with the processor's time as this run has measured it, where it has."""
        expected, measured = self.paces.get(workload.op, (1.0, 1.0))
        return replace(workload, cpu_seconds=workload.cpu_seconds * measured / expected)

    def learn(self, workload: Workload, report: RunReport, usable_bytes: int) -> None:
        """Take what an operation has shown, with so much of the card usable."""
        op = workload.op
        if report.cpu_body_rows and workload.cpu_seconds > 0:
            expected, measured = self.paces.get(op, (0.0, 0.0))
            expected += workload.cpu_seconds * report.cpu_body_rows / workload.rows
            self.paces[op] = expected, measured + report.cpu_body_seconds
        if op in self.ceilings and report.gpu_chunks and not report.splits + report.fallbacks:
            # What failed once need not fail for ever: others have left the card, or the pool was in pieces.
            self.ceilings[op] *= 2
            if self.ceilings[op] >= min(workload.peak(workload.rows), usable_bytes):
                del self.ceilings[op]
