"""The bars of the PV-IOMMU beside QEMU's IOMMUs, the effect of its levers, and plots of both."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from .bars import Bar, Judgement, markdown_table
from .configurations import LEVERS
from .figures import Load, Measurement, figures, load_title, loads, quotient, ratio, with_spread
from .plot import ChartBar, bar_chart
from .samples import Figure

__all__ = ["judge", "lever_table", "plots"]

_LIMITS = (
    ("pviommu", "virtio-iommu", 1 / 3),
    ("pviommu", "intel-iommu", 2 / 3),
    ("pviommu-strict", "virtio-iommu-strict", 1 / 2),
    ("pviommu-strict", "intel-iommu", 1.0),
)
"""How many times as long as a pair of the second a pair of the first may take. Linux drives intel-iommu strictly in
either mode."""

_VFIO_PEER, _VFIO_LIMIT = "virtio-iommu", 1.0
_TRAPS = Bar("traps a pair while busy", 1 / 64)
_CORES_A_THREAD = 2  # one for the guest's processor, one for the server or QEMU


def judge(measurements: Sequence[Measurement], cores: int) -> list[Judgement]:
    """The bars for each load that was measured. Loads that need more than ``cores`` are only reported."""
    judgements = []
    for load in loads(measurements):
        for name, peer, limit in _LIMITS:
            one, other = _find(measurements, name, load), _find(measurements, peer, load)
            if one is not None and other is not None:
                judgements += _judge_pair(one, other, limit, load, cores)
    judgements += _judge_vfio(measurements)
    for one in measurements:
        if one.name in {name for name, _, _ in _LIMITS} and one.threads == 1 and one.accesses is not None:
            # The server counts over all rounds, so it sees what happens only now and then; the trace events are those
            # of a short phase.
            counted = {"trace events": max(one.accesses, 0.0), "the server's count": one.server.get("traps", 0.0)}
            source = max(counted, key=lambda name: counted[name])
            bar = Bar(f"{_TRAPS.measure}, {one.name}", _TRAPS.limit)
            judgements.append(bar.judge(counted[source], f"by {source}"))
    return judgements


def _judge_pair(one: Measurement, other: Measurement, limit: float, load: Load, cores: int) -> list[Judgement]:
    """By medians and by means. The latter also include what happens rarely, and the effects of other processes on a
    guest."""
    threads, pages = load
    reasons = [
        f"the group of {each.name} is of type {each.group_type}" for each in (one, other) if not each.is_as_named
    ]
    if threads > 1 and cores < threads * _CORES_A_THREAD:
        reasons.append(f"{threads} threads need {threads * _CORES_A_THREAD} cores, here are {cores}")
    title = f"{load_title(load)}: {one.name}"
    return [
        _judge(
            Bar(f"{title}, {by}", limit, f"x {other.name}"),
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


def _judge_vfio(measurements: Sequence[Measurement]) -> list[Judgement]:
    maps = {one.name: [entry.map_ns for entry in one.vfio] for one in measurements if one.vfio}
    own, peer = maps.get("pviommu"), maps.get(_VFIO_PEER)
    found = quotient(own or (), peer or ())
    if found is None or own is None or peer is None:
        return []
    means = Figure(statistics.mean(own) / statistics.mean(peer), found.least, found.most)
    return [
        _judge(Bar(f"a map of 1 page through VFIO: pviommu, {by}", _VFIO_LIMIT, f"x {_VFIO_PEER}"), value)
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
