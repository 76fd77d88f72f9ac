"""Tables, bars and plots of ``pviommu bench net``."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .bars import Bar, Judgement, markdown_table, shown, text_table
from .net_boots import Counted, NetBoot
from .net_loads import LOADS
from .plot import ChartBar, bar_chart
from .samples import Figure, figure

__all__ = ["NetMeasurement", "as_json", "judge", "plots", "tables"]

OWN = "pviommu"
LIMITS = (("virtio-iommu", 1.5), ("intel-iommu", 1.0), ("none", 0.6))
"""How many times the throughput of QEMU's card behind each IOMMU is wanted."""
PING_PEER, PING_LIMIT = "virtio-iommu", 1.0
TRAP_LIMIT = 0.02
"""per packet, while busy"""
_TCP = ("tcp-out", "tcp-in")
_UDP = tuple(load.name for load in LOADS if load.is_udp)
_TITLES = {load.name: load.title for load in LOADS}
_MEGA, _KILO = 1e6, 1e3


@dataclass(slots=True)
class NetMeasurement:
    """All boots of one configuration, of which ``problem`` says why there are none or fewer."""

    name: str
    title: str
    group: str
    """the type of the card's IOMMU group for which the figures mean what the name says; empty: no matter"""
    boots: list[NetBoot] = field(default_factory=list)
    problem: str = ""

    @property
    def is_as_named(self) -> bool:
        """Whether the card was translated as the name says."""
        return not self.group or all(boot.facts.get("group_type") == self.group for boot in self.boots)

    def rates(self, load: str) -> list[float]:
        """One for each boot."""
        return [rate for boot in self.boots if (rate := boot.rate(load)) is not None]

    def pings(self, kind: str) -> list[float]:
        """``p50`` or ``p99``, of each boot, in microseconds."""
        return [getattr(boot.pings, kind) for boot in self.boots if boot.pings is not None]

    def counted(self, load: str) -> list[Counted]:
        """One for each boot."""
        return [one for boot in self.boots for one in boot.counted if one.load == load]


def _cells(values: Sequence[float], unit: float = 1.0) -> tuple[str, str]:
    if not values:
        return "-", ""
    found = figure(values)
    return shown(found.median / unit), f"{shown(found.least / unit)}-{shown(found.most / unit)}"


def _median(values: Sequence[float]) -> str:
    return shown(statistics.median(values)) if values else "-"


def _name(one: NetMeasurement) -> str:
    return one.name if one.is_as_named else f"{one.name} (group: {one.boots[0].facts.get('group_type')})"


def tables(measurements: Sequence[NetMeasurement]) -> dict[str, Callable[..., str]]:
    """Each table by its name: a function of whether it is to be Markdown."""
    return {
        "net-tcp": lambda markdown: _table(
            (
                *("TCP and pings", "out, Mbit/s", "least-most", "in, Mbit/s", "least-most"),
                *("ping p50, us", "least-most", "p99, us", "least-most"),
            ),
            [
                (
                    *(_name(one), *_cells(one.rates("tcp-out"), _MEGA), *_cells(one.rates("tcp-in"), _MEGA)),
                    *(*_cells(one.pings("p50")), *_cells(one.pings("p99"))),
                )
                for one in measurements
            ],
            markdown,
        ),
        "net-udp": lambda markdown: _table(
            ("k packets/s", *(cell for load in _UDP for cell in (load, "least-most"))),
            [(_name(one), *(cell for load in _UDP for cell in _cells(one.rates(load), _KILO))) for one in measurements],
            markdown,
        ),
        "net-counts": lambda markdown: _table(
            ("", "load", "traps/packet", "interrupts/packet", "maps/packet", "QEMU busy", "server busy"),
            [
                (_name(one), load.name, *_counts(one.counted(load.name)), *_busy(one, load.name))
                for load in LOADS
                for one in measurements
            ],
            markdown,
            left=(0, 1),
        ),
    }


def _counts(found: Sequence[Counted]) -> tuple[str, ...]:
    kinds = ([one.traps for one in found], [one.interrupts for one in found], [one.maps for one in found])
    return tuple(_median(values) for values in kinds)


def _busy(one: NetMeasurement, load: str) -> tuple[str, ...]:
    samples = [sample for boot in one.boots for sample in boot.samples if sample.load == load]
    return _median([sample.qemu for sample in samples]), _median([sample.server for sample in samples])


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool, left: Sequence[int] = (0,)) -> str:
    return markdown_table(headings, rows, left=left) if markdown else text_table([headings, *rows], left=left)


def judge(measurements: Sequence[NetMeasurement]) -> list[Judgement]:
    """The bars. A ratio is the median of those of boots of the same turn."""
    found = {one.name: one for one in measurements}
    if OWN not in found:
        return []
    own, judgements = found[OWN], []
    for load in _TCP:
        for peer, limit in LIMITS:
            if peer in found:
                bar = Bar(_TITLES[load], limit, f"x {peer}", at_most=False)
                judgements.append(_judge(bar, own, found[peer], lambda one, load=load: one.rates(load)))  # type: ignore[misc]
    if PING_PEER in found:
        bar = Bar("ping, p50", PING_LIMIT, f"x {PING_PEER}")
        judgements.append(_judge(bar, own, found[PING_PEER], lambda one: one.pings("p50")))
    for name in dict.fromkeys(one.load for boot in own.boots for one in boot.counted):
        bar = Bar(f"{_TITLES[name]}: traps a packet", TRAP_LIMIT)
        judgements.append(bar.judge(statistics.median(one.traps for one in own.counted(name))))
    return judgements


def _judge(
    bar: Bar, own: NetMeasurement, peer: NetMeasurement, of: Callable[[NetMeasurement], list[float]]
) -> Judgement:
    ratios = [mine / other for mine, other in zip(of(own), of(peer), strict=False)]
    if not ratios:
        return bar.judge(None)
    ratio = figure(ratios)
    spread = f"{shown(ratio.least)}-{shown(ratio.most)}"
    reasons = [f"{one.name}: {one.problem}" for one in (own, peer) if one.problem]
    reasons += [
        f"the group of {one.name} is of type {one.boots[0].facts.get('group_type')}"
        for one in (own, peer)
        if not one.is_as_named
    ]
    return bar.unjudged(ratio.median, "; ".join([spread, *reasons])) if reasons else bar.judge(ratio.median, spread)


def plots(measurements: Sequence[NetMeasurement], accelerator: str) -> dict[str, str]:
    """SVG by name: throughput each way, and round trips."""
    charts: dict[str, tuple[str, str, Callable[[NetMeasurement], list[float]], float]] = {
        "tcp-out": ("TCP from the guest", "Mbit/s", lambda one: one.rates("tcp-out"), _MEGA),
        "tcp-in": ("TCP to the guest", "Mbit/s", lambda one: one.rates("tcp-in"), _MEGA),
        "ping": ("median round trip of a ping", "us", lambda one: one.pings("p50"), 1.0),
    }
    made = {}
    for name, (title, unit, of, scale) in charts.items():
        found: Mapping[str, Figure] = {one.name: figure(of(one)) for one in measurements if of(one)}
        bars = [
            ChartBar(label, (each.median / scale,), each.least / scale, each.most / scale)
            for label, each in found.items()
        ]
        if bars:
            made[name] = bar_chart(f"{title} ({accelerator})", unit, (unit,), bars)
    return made


def as_json(measurements: Sequence[NetMeasurement]) -> list[dict[str, Any]]:
    """All figures as JSON values."""
    return [asdict(one) for one in measurements]
