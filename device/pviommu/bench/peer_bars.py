"""The bars of the PV-IOMMU beside QEMU's IOMMUs, the effect of its levers, and plots of both."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .bars import Bar, Judgement, markdown_table
from .configurations import LEVERS
from .figures import Load, Measurement, figures, load_title, loads, quotient, ratio, with_spread
from .plot import ChartBar, bar_chart
from .samples import Figure

__all__ = ["judge", "lever_table", "plots"]


@dataclass(frozen=True, slots=True)
class _Limit:
    """A pair of ``name`` may take at most ``limit`` times as long as one of ``peer``, for loads of ``pages`` and
    ``threads``, or of any number of either. Each thread needs so many ``cores``: one for the guest's processor, one for
    the server or QEMU unless neither of the two needs them.
    """

    name: str
    peer: str
    limit: float
    pages: int | None = None
    threads: int | None = None
    cores: int = 2

    def is_about(self, load: Load) -> bool:
        threads, pages = load
        return self.pages in (None, pages) and self.threads in (None, threads)


_LIMITS = (
    _Limit("pviommu", "floor", 1.15, threads=1, cores=1),
    _Limit("pviommu-strict", "floor-strict", 1.25, pages=1, threads=1, cores=1),
    _Limit("pviommu-strict", "virtio-iommu-strict", 0.3, pages=1, threads=1),
    _Limit("pviommu-strict", "floor-strict", 1.3, threads=2, cores=1),
    _Limit("pviommu-ring", "virtio-iommu", 1 / 3),
    _Limit("pviommu-ring", "intel-iommu", 2 / 3),
    _Limit("pviommu-ring-strict", "virtio-iommu-strict", 1 / 2),
    _Limit("pviommu-ring-strict", "intel-iommu", 1.0),
)
"""Linux drives intel-iommu strictly in either mode."""

_VFIO_PEER = "virtio-iommu"
_VFIO_LIMITS = {"pviommu": 0.25, "pviommu-ring": 1.0}
_SELDOM, _NEVER = 1 / 64, 0.001
"""How often a pair may do what leaves the guest. Whatever else two boots do, they differ by less than one time in a
thousand pairs."""
_COUNTS = {
    "pviommu": {"traps": _NEVER, "slots": _NEVER, "doorbells": _NEVER},
    "pviommu-strict": {"traps": _NEVER, "slots": _NEVER, "doorbells": _NEVER},
    "pviommu-ring": {"traps": _SELDOM},
    "pviommu-ring-strict": {"traps": _SELDOM},
}


def judge(measurements: Sequence[Measurement], cores: int) -> list[Judgement]:
    """The bars for each load that was measured. Loads that need more than ``cores`` are only reported."""
    judgements = []
    for load in loads(measurements):
        for limit in _LIMITS:
            one, other = _find(measurements, limit.name, load), _find(measurements, limit.peer, load)
            if one is not None and other is not None and limit.is_about(load):
                judgements += _judge_pair(one, other, limit, load, cores)
    for name, most in _VFIO_LIMITS.items():
        judgements += _judge_vfio(measurements, name, most)
    for one in measurements:
        if one.threads == 1:
            judgements += _judge_counts(one)
    return judgements


def _judge_counts(one: Measurement) -> Iterator[Judgement]:
    for what, most in _COUNTS.get(one.name, {}).items():
        # The server counts over all rounds, so it sees what happens only now and then; the trace events are those of a
        # short phase.
        counted = {"the server's count": max(one.server[what], 0.0)} if what in one.server else {}
        if what == "traps" and one.accesses is not None:
            counted = {"trace events": max(one.accesses, 0.0), **counted}
        if counted:
            source = max(counted, key=lambda name: counted[name])
            yield Bar(f"{what} a pair while busy, {one.name}", most).judge(counted[source], f"by {source}")


def _judge_pair(one: Measurement, other: Measurement, limit: _Limit, load: Load, cores: int) -> list[Judgement]:
    """By medians and by means. The latter also include what happens rarely, and the effects of other processes on a
    guest."""
    threads, pages = load
    reasons = [
        f"the group of {each.name} is of type {each.group_type}" for each in (one, other) if not each.is_as_named
    ]
    if threads > 1 and cores < threads * limit.cores:
        reasons.append(f"{threads} threads need {threads * limit.cores} cores, here are {cores}")
    title = f"{load_title(load)}: {one.name}"
    return [
        _judge(
            Bar(f"{title}, {by}", limit.limit, f"x {other.name}"),
            ratio(one.rounds(pages), other.rounds(pages), kind),
            reasons,
        )
        for by, kind in (("median", "pair"), ("mean", "pair_mean"))
    ]


def _judge(bar: Bar, found: Figure | None, reasons: Sequence[str] = ()) -> Judgement:
    """Judge ``found``, unless there are ``reasons`` not to."""
    if found is None:
        return bar.judge(None)
    spread = f"{found.least:.2f}-{found.most:.2f}"
    return bar.unjudged(found.median, "; ".join([spread, *reasons])) if reasons else bar.judge(found.median, spread)


def _judge_vfio(measurements: Sequence[Measurement], name: str, limit: float) -> list[Judgement]:
    maps = {one.name: [entry.map_ns for entry in one.vfio] for one in measurements if one.vfio}
    own, peer = maps.get(name), maps.get(_VFIO_PEER)
    found = quotient(own or (), peer or ())
    if found is None or own is None or peer is None:
        return []
    means = Figure(statistics.mean(own) / statistics.mean(peer), found.least, found.most)
    return [
        _judge(Bar(f"a map of 1 page through VFIO: {name}, {by}", limit, f"x {_VFIO_PEER}"), value)
        for by, value in (("median", found), ("mean", means))
    ]


def _find(measurements: Sequence[Measurement], name: str, load: Load) -> Measurement | None:
    threads, pages = load
    found = (one for one in measurements if (one.name, one.threads) == (name, threads) and one.rounds(pages))
    return next(found, None)


def lever_table(measurements: Sequence[Measurement]) -> str:
    """A Markdown table that compares the PV-IOMMU without each of its levers with the unchanged one; empty if no lever
    was measured."""
    rows = []
    for load in loads(measurements):
        for whole in dict.fromkeys(lever.lever_of for lever in LEVERS):
            base = _find(measurements, whole, load)
            levers = [_find(measurements, lever.name, load) for lever in LEVERS if lever.lever_of == whole]
            if base is not None and any(levers):
                rows += [_lever_row(one, base, load) for one in (base, *levers) if one is not None]
    headings = ("load", "", "map", "unmap", "pair", "mean", "multiple", "of the mean")
    return markdown_table(headings, rows, left=(0, 1)) if rows else ""


def _lever_row(one: Measurement, base: Measurement, load: Load) -> tuple[str, ...]:
    rounds, beside = one.rounds(load[1]), base.rounds(load[1])
    found = figures(rounds)
    multiples = (ratio(rounds, beside, kind) for kind in ("pair", "pair_mean"))
    return (
        load_title(load),
        one.title,
        *(f"{found[kind].median:.0f}" for kind in ("map", "unmap", "pair", "pair_mean")),
        *(with_spread(multiple) for multiple in multiples),
    )


def plots(measurements: Sequence[Measurement], accelerator: str) -> dict[str, str]:
    """One chart (SVG) for each load, by its pages and threads, such as ``16-1``."""
    charts = {}
    for load in loads(measurements):
        threads, pages = load
        chart = []
        for one in measurements:
            rounds = one.rounds(pages)
            if one.threads == threads and rounds:
                found = figures(rounds)
                parts = (found["map"].median / 1e3, found["unmap"].median / 1e3)
                chart.append(ChartBar(one.name, parts, found["pair"].least / 1e3, found["pair"].most / 1e3))
        title = f"dma_map_page and dma_unmap_page, {load_title(load)} ({accelerator})"
        unit = "microseconds: medians; the line spans all rounds of a pair"
        charts[f"{pages}-{threads}"] = bar_chart(title, unit, ("map", "unmap"), chart)
    return charts
