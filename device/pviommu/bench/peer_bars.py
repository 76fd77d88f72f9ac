"""What the PV-IOMMU must reach beside QEMU's IOMMUs, what its levers give, and plots of both."""

from __future__ import annotations

from collections.abc import Sequence

from pviommu.bench.bars import Bar, Judgement, markdown_table
from pviommu.bench.configurations import LEVERS
from pviommu.bench.figures import Load, Measurement, figures, load_title, loads, ratio
from pviommu.bench.plot import ChartBar, bar_chart

__all__ = ["judge", "lever_table", "plots"]

_LIMITS = (
    ("pviommu", "virtio-iommu", 1 / 3),
    ("pviommu", "intel-iommu", 2 / 3),
    ("pviommu-strict", "virtio-iommu-strict", 1 / 2),
    ("pviommu-strict", "intel-iommu", 1.0),
)
"""A pair of the first as a multiple of one of the second, at most; Linux drives intel-iommu strictly either way."""

_TRAPS = Bar("traps a pair while busy", 1 / 64)
_CORES_A_THREAD = 2  # one for the processor of the guest, one for the server or QEMU


def judge(measurements: Sequence[Measurement], cores: int) -> list[Judgement]:
    """The bars, for each load that was measured. Loads that need more than ``cores`` are reported only."""
    judgements = []
    for load in loads(measurements):
        for name, peer, limit in _LIMITS:
            one, other = _find(measurements, name, load), _find(measurements, peer, load)
            if one is not None and other is not None:
                judgements.append(_judge_pair(one, other, limit, load, cores))
    for one in measurements:
        if one.name in {name for name, _, _ in _LIMITS} and one.threads == 1 and one.accesses is not None:
            # The server counts over all rounds, so it sees what happens now and then; the events are of a short phase.
            counted = {"trace events": max(one.accesses, 0.0), "the server's count": one.server.get("traps", 0.0)}
            source = max(counted, key=lambda name: counted[name])
            bar = Bar(f"{_TRAPS.measure}, {one.name}", _TRAPS.limit)
            judgements.append(bar.judge(counted[source], f"by {source}"))
    return judgements


def _judge_pair(one: Measurement, other: Measurement, limit: float, load: Load, cores: int) -> Judgement:
    threads, pages = load
    bar = Bar(f"{load_title(load)}: {one.name}", limit, f"x {other.name}")
    found = ratio(one.rounds(pages), other.rounds(pages))
    means = ratio(one.rounds(pages), other.rounds(pages), "pair_mean")
    note = "" if means is None else f"means: {means:.2f}"
    for each in (one, other):
        if not each.is_as_named:
            return bar.unjudged(found, f"the group of {each.name} is of type {each.group_type}; {note}")
    if threads > 1 and cores < threads * _CORES_A_THREAD:
        return bar.unjudged(
            found, f"{threads} threads need {threads * _CORES_A_THREAD} cores, here are {cores}; {note}"
        )
    return bar.judge(found, note)


def _find(measurements: Sequence[Measurement], name: str, load: Load) -> Measurement | None:
    threads, pages = load
    found = (one for one in measurements if (one.name, one.threads) == (name, threads) and one.rounds(pages))
    return next(found, None)


def lever_table(measurements: Sequence[Measurement]) -> str:
    """The PV-IOMMU without each of its levers, beside it as it is, as Markdown; empty if no lever was measured."""
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
        *("-" if multiple is None else f"{multiple:.2f}" for multiple in multiples),
    )


def plots(measurements: Sequence[Measurement], accelerator: str) -> dict[str, str]:
    """SVG by pages and threads, as ``16-1``: one chart for each load."""
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
