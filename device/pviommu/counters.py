"""Counters of the device, for its log and for the reports of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Counters"]


@dataclass
class Counters:
    """Totals since the server started."""

    ops: Counter[str] = field(default_factory=Counter)
    """operations executed, by kind; ``failed`` ones are counted in both"""
    ops_failed: int = 0
    slots: int = 0
    slots_posted: int = 0
    pages_mapped: int = 0
    pages_unmapped: int = 0
    dma_requests: int = 0
    """requests that were translated"""
    dma_bytes: int = 0
    faults: int = 0
    events: int = 0
    events_lost: int = 0
    traps: int = 0
    """accesses to BARs that left the guest"""
    config_accesses: int = 0
    doorbells: int = 0
    interrupts: int = 0
    drains_continued: int = 0
    """times that DMA or a reset had to wait for a later turn, because the rings had too much work for one"""
    sleeps: int = 0
    """times the loop slept with doorbells armed"""
    naps: int = 0
    """times the loop slept briefly without doorbells armed, because the guest did not wait"""
    waits: int = 0
    """times the guest was seen to wait for a completion"""

    def load(self, report: dict[str, Any]) -> None:
        """Count on from what :meth:`report` gave. Raises ValueError, and then changes nothing, for other counters."""
        if differing := report.keys() ^ vars(self).keys():
            raise ValueError(f"counter {min(differing)}: it is not on both sides")
        for name, value in report.items():
            setattr(self, name, Counter(value) if name == "ops" else value)

    def report(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}
