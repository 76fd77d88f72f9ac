"""Medians, spreads and ratios of what the boots gave, as a table and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pviommu.bench.guest import Boot, Round

__all__ = ["BASES", "Figure", "Measurement", "as_json", "figures", "notes", "ratio", "table"]

BASES = ("pviommu", "floor")
"""Configurations that the others are compared with."""


@dataclass(slots=True)
class Measurement:
    """All boots of one configuration. ``server`` holds the server's own counts per pair; ``problem`` why it failed."""

    name: str
    title: str
    boots: list[Boot] = field(default_factory=list)
    server: dict[str, float] = field(default_factory=dict)
    problem: str = ""

    @property
    def rounds(self) -> list[Round]:
        """The rounds of all boots."""
        return [entry for boot in self.boots for entry in boot.rounds]

    @property
    def group_type(self) -> str:
        """What the guest says of the device's group; ``none`` if it has none."""
        return next((boot.facts["group_type"] for boot in self.boots if "group_type" in boot.facts), "?")

    @property
    def accesses(self) -> float | None:
        """Accesses that left the guest per pair, the median of the boots; None if nothing was counted."""
        counted = [sum(boot.accesses.values()) for boot in self.boots if boot.counted]
        return statistics.median(counted) if counted else None


@dataclass(frozen=True, slots=True)
class Figure:
    """Nanoseconds: the median over all rounds, and the least and the most of any round."""

    median: float
    least: float
    most: float


def _figure(values: Sequence[float]) -> Figure:
    return Figure(statistics.median(values), min(values), max(values))


def figures(rounds: Sequence[Round]) -> dict[str, Figure]:
    """``map``, ``unmap``, ``pair`` and ``clock`` (from each round's medians) and ``pair_mean`` (from its means).

    Empty without rounds.
    """
    if not rounds:
        return {}
    return {
        "map": _figure([entry.map_ns_median for entry in rounds]),
        "unmap": _figure([entry.unmap_ns_median for entry in rounds]),
        "pair": _figure([entry.pair_ns_median for entry in rounds]),
        "pair_mean": _figure([entry.pair_ns_mean for entry in rounds]),
        "clock": _figure([entry.clock_ns_median for entry in rounds]),
    }


def ratio(one: Measurement, base: Measurement | None, kind: str = "pair") -> float | None:
    """How many times ``base`` ``one`` is; None if either has no figures."""
    if base is None or not one.rounds or not base.rounds:
        return None
    below = figures(base.rounds)[kind].median
    return figures(one.rounds)[kind].median / below if below else None


_GROUP_TYPES = {"DMA": "DMA, strict", "DMA-FQ": "DMA-FQ, lazy"}
_HEADINGS = ("", "group", "map", "unmap", "pair", "least-most", "mean", *(f"/{name}" for name in BASES), "traps")


def table(measurements: Sequence[Measurement]) -> str:
    """The readable table; times in nanoseconds a call, traps a pair of map and unmap."""
    by_name = {measurement.name: measurement for measurement in measurements}
    rows: list[tuple[str, ...]] = [_HEADINGS]
    for one in measurements:
        found = figures(one.rounds)
        if not found:
            continue
        pair = found["pair"]
        rows.append(
            (
                one.name,
                _GROUP_TYPES.get(one.group_type, one.group_type),
                *(f"{found[kind].median:.0f}" for kind in ("map", "unmap", "pair")),
                f"{pair.least:.0f}-{pair.most:.0f}",
                f"{found['pair_mean'].median:.0f}",
                *(_two_places(ratio(one, by_name.get(base))) for base in BASES),
                _two_places(one.accesses),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = []
    for row in rows:
        cells = (
            cell.ljust(width) if at < 2 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def notes(measurements: Sequence[Measurement], setting: Mapping[str, Any]) -> str:
    """What a reader needs beside the table: columns, method, what failed, the setting."""
    plan = setting["plan"]
    versions = ", ".join(f"{name} {version}" for name, version in setting["versions"].items())
    lines = [
        f"Nanoseconds: medians over {setting['repeat']} x {plan['rounds']} rounds of each round's median"
        f" ({plan['operations']} pairs of map and unmap); mean: a pair's, so with rare dear calls.",
        "/NAME: a pair as a multiple of NAME's. Reading the clock"
        f" ({_clock(measurements)}) is contained, in a pair twice.",
        "traps: accesses to the IOMMU that left the guest in a pair, from QEMU's trace events over"
        f" {plan['count_operations']} other pairs."
        if plan["count_operations"]
        else "traps: not counted.",
    ]
    for one in measurements:
        if one.server:
            counts = ", ".join(f"{name} {max(value, 0.0):.4f}" for name, value in one.server.items())
            lines.append(f"{one.name}, the server's own counts a pair, less those of a boot without pairs: {counts}.")
        if one.problem:
            lines.append(f"{one.name} FAILED: {one.problem}")
    lines.append(f"{versions}; {setting['vcpus']} vCPU, {setting['seconds']:.0f} s in all, {setting['time']}.")
    return "\n".join(lines)


def _clock(measurements: Sequence[Measurement]) -> str:
    rounds = [entry for one in measurements for entry in one.rounds]
    return f"{figures(rounds)['clock'].median:.0f} ns" if rounds else "not measured"


def _two_places(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def as_json(measurements: Sequence[Measurement], setting: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, ready for JSON: ``setting`` and per configuration the raw rounds, medians, spreads and ratios."""
    by_name = {measurement.name: measurement for measurement in measurements}
    return {
        **setting,
        "configurations": [
            {
                "name": one.name,
                "title": one.title,
                "group_type": one.group_type,
                "problem": one.problem,
                "figures_ns": {kind: asdict(figure) for kind, figure in figures(one.rounds).items()},
                "ratios": {
                    base: {kind: ratio(one, by_name.get(base), kind) for kind in ("pair", "pair_mean")}
                    for base in BASES
                },
                "traps_per_pair": one.accesses,
                "server_counts_per_pair": one.server,
                "boots": [asdict(boot) for boot in one.boots],
            }
            for one in measurements
        ],
    }
