"""Measuring something repeatedly: how often, for how long, and what is kept."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["Case", "Effort", "Figure", "Series", "Work", "figure", "measure"]

_MOST_OPERATIONS = 1 << 24

Work = Callable[[int], int]
"""Does an operation the given number of times and returns how many nanoseconds that took."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured: each case ``repeat`` times, for about ``sample_ns`` nanoseconds each time."""

    repeat: int
    sample_ns: int


@dataclass(frozen=True, slots=True)
class Figure:
    """Median, least and most of all samples, in their unit."""

    median: float
    least: float
    most: float


def figure(values: Sequence[float]) -> Figure:
    """Median, least and most of ``values``, of which there is at least one."""
    return Figure(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Case:
    """Something to measure. An operation is ``size`` of ``kind`` (pages, bytes, ops), from which follows its rate.

    ``least_count``: the number of operations in a sample is a multiple of this.
    """

    name: str
    work: Work
    size: int = 1
    kind: str = "ops"
    least_count: int = 1


@dataclass(slots=True)
class Series:
    """The samples of one case, in nanoseconds per operation."""

    name: str
    size: int = 1
    kind: str = "ops"
    values: list[float] = field(default_factory=list)

    @property
    def figure(self) -> Figure:
        """Nanoseconds per operation."""
        return figure(self.values)

    @property
    def rate(self) -> float:
        """``kind`` per second, at the median."""
        return self.size * 1e9 / self.figure.median


def measure(cases: Sequence[Case], effort: Effort, told: Callable[[str], None] = lambda name: None) -> list[Series]:
    """Measure each case in turn, ``effort.repeat`` times, every other time in reverse order.

    So a machine that becomes slower or faster meanwhile favours none of them. ``told`` is called with the name of each
    case that begins.
    """
    counts = [_count(case, effort.sample_ns) for case in cases]
    series = [Series(case.name, case.size, case.kind) for case in cases]
    jobs = list(zip(cases, counts, series, strict=True))
    for turn in range(effort.repeat):
        for case, count, one in jobs if turn % 2 == 0 else reversed(jobs):
            told(case.name)
            # 0 would mean that the clock is too coarse for the operations; no figure is better than an infinite rate
            one.values.append(max(case.work(count), 1) / count)
    return series


def _count(case: Case, sample_ns: int) -> int:
    """How many operations take about ``sample_ns``; running them also warms up the caches."""
    count = case.least_count
    while True:
        taken = max(case.work(count), 1)
        if taken >= sample_ns // 2 or count >= _MOST_OPERATIONS:
            break
        # the first runs are the slowest, so the number grows at most eightfold at once
        count *= max(2, min(8, sample_ns // taken))
    wanted = max(1, round(count * sample_ns / taken / case.least_count)) * case.least_count
    return max(case.least_count, min(wanted, count))
