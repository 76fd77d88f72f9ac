"""Medians, spreads and ratios of the boots' figures, as tables and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .bars import markdown_table, shown, text_table
from .configurations import ACCESS_EVENTS, INTERRUPT_EVENTS
from .guest import Boot, Round, VfioMaps, Witness
from .samples import Figure, figure

__all__ = [
    "BASES",
    "Load",
    "Measurement",
    "as_json",
    "figures",
    "load_title",
    "loads",
    "notes",
    "quotient",
    "ratio",
    "table",
    "vfio_table",
    "with_spread",
    "witness_table",
    "witnessed",
]

BASES = ("pviommu", "floor")
"""Configurations that the others are compared with."""


@dataclass(slots=True)
class Measurement:
    """All boots of one configuration with one number of threads. ``server`` holds the server's own counts per pair;
    ``problem`` why it failed. ``wanted_group`` is the group type that its name promises, if any.
    """

    name: str
    title: str
    threads: int = 1
    wanted_group: str = ""
    boots: list[Boot] = field(default_factory=list)
    server: dict[str, float] = field(default_factory=dict)
    problem: str = ""

    def rounds(self, pages: int) -> list[Round]:
        """The rounds of all boots with maps of ``pages`` pages."""
        return [entry for boot in self.boots for entry in boot.rounds if entry.pages == pages]

    @property
    def vfio(self) -> list[VfioMaps]:
        """The times of maps through VFIO, in all boots that measured them."""
        return [entry for boot in self.boots for entry in boot.vfio]

    def witnesses(self, pages: int) -> list[Witness]:
        """What the kernel's own benchmark said in all boots about maps of ``pages`` pages."""
        return [entry for boot in self.boots for entry in boot.witnesses if entry.pages == pages]

    @property
    def pages(self) -> list[int]:
        """The numbers of pages that were measured."""
        return sorted({int(entry.pages) for boot in self.boots for entry in boot.rounds})

    @property
    def group_type(self) -> str:
        """The type of the device's IOMMU group, as the guest says; ``none`` if it has none."""
        return next((boot.facts["group_type"] for boot in self.boots if "group_type" in boot.facts), "?")

    @property
    def is_as_named(self) -> bool:
        """Whether the device's group is of the type that the configuration's name promises."""
        return self.wanted_group in ("", self.group_type)

    @property
    def accesses(self) -> float | None:
        """Accesses that left the guest per pair, the median of the boots; None if nothing was counted."""
        return self._counted(ACCESS_EVENTS)

    @property
    def interrupts(self) -> float | None:
        """Interrupts that QEMU delivered per pair, in the same way."""
        return self._counted(INTERRUPT_EVENTS)

    def _counted(self, events: Sequence[str]) -> float | None:
        counted = [sum(boot.accesses.get(event, 0) for event in events) for boot in self.boots if boot.counted]
        return statistics.median(counted) if counted else None


_KINDS = {
    "map": "map_ns_median",
    "unmap": "unmap_ns_median",
    "pair": "pair_ns_median",
    "pair_mean": "pair_ns_mean",
    "clock": "clock_ns_median",
}


def figures(rounds: Sequence[Round]) -> dict[str, Figure]:
    """``map``, ``unmap``, ``pair`` and ``clock`` (from each round's medians) and ``pair_mean`` (from its means).

    Nanoseconds. Empty without rounds.
    """
    if not rounds:
        return {}
    return {kind: figure(_values(rounds, kind)) for kind in _KINDS}


def ratio(one: Sequence[Round], base: Sequence[Round], kind: str = "pair") -> Figure | None:
    """``one`` as a multiple of ``base``; None if either has no figures.

    It compares the medians over all rounds. The least and the most are those of corresponding rounds: the first of
    both, the second and so on, each pair measured within a few minutes.
    """
    return quotient(_values(one, kind), _values(base, kind))


def quotient(above: Sequence[float], below: Sequence[float]) -> Figure | None:
    """The same for plain numbers."""
    if not above or not below or not all(below):
        return None
    each = [one / other for one, other in zip(above, below, strict=False)]
    return Figure(statistics.median(above) / statistics.median(below), min(each), max(each))


def _values(rounds: Sequence[Round], kind: str) -> list[float]:
    attribute = _KINDS[kind]
    return [getattr(entry, attribute) for entry in rounds]


def with_spread(found: Figure | None) -> str:
    """``0.50 (0.47-0.55)``."""
    return "-" if found is None else f"{found.median:.2f} ({found.least:.2f}-{found.most:.2f})"


Load = tuple[int, int]
"""Number of threads, pages per map."""


def loads(measurements: Sequence[Measurement]) -> list[Load]:
    """The loads that were measured, in order."""
    return sorted({(one.threads, pages) for one in measurements for pages in one.pages})


def load_title(load: Load) -> str:
    """``16 pages, 2 threads``."""
    threads, pages = load
    return f"{pages} page{'s' if pages > 1 else ''}, {threads} thread{'s' if threads > 1 else ''}"


_GROUP_TYPES = {"DMA": "DMA, strict", "DMA-FQ": "DMA-FQ, lazy"}
_HEADINGS = (
    *("", "group", "map", "unmap", "pair", "least-most", "mean", "least-most"),
    *(f"/{name}" for name in BASES),
    *("traps", "interrupts", "k pairs/s"),
)


def _rows(measurements: Sequence[Measurement], load: Load) -> list[tuple[str, ...]]:
    threads, pages = load
    here = [one for one in measurements if one.threads == threads and one.rounds(pages)]
    by_name = {one.name: one.rounds(pages) for one in here}
    rows: list[tuple[str, ...]] = []
    for one in here:
        rounds = one.rounds(pages)
        found = figures(rounds)
        rates = [rate for entry in rounds if (rate := entry.pairs_per_second) is not None]
        rows.append(
            (
                one.name,
                _GROUP_TYPES.get(one.group_type, one.group_type),
                *(f"{found[kind].median:.0f}" for kind in ("map", "unmap", "pair")),
                _ends(found["pair"]),
                f"{found['pair_mean'].median:.0f}",
                _ends(found["pair_mean"]),
                *(with_spread(ratio(rounds, by_name.get(base, ()))) for base in BASES),
                _two_places(one.accesses),
                _two_places(one.interrupts),
                shown(round(statistics.median(rates) / 1e3, 1)) if rates else "-",
            )
        )
    return rows


def _ends(found: Figure) -> str:
    return f"{found.least:.0f}-{found.most:.0f}"


_VFIO_HEADINGS = ("", "map", "least-most", "mean", "unmap", "all maps, s", "/virtio-iommu")


def vfio_table(measurements: Sequence[Measurement], *, markdown: bool = False) -> str:
    """The time per page of maps through VFIO, in nanoseconds; empty if it was not measured."""
    base = [entry.map_ns for one in measurements if one.name == "virtio-iommu" for entry in one.vfio]
    rows = []
    for one in measurements:
        if one.vfio:
            maps = [entry.map_ns for entry in one.vfio]
            found = figure(maps)
            rows.append(
                (
                    one.name,
                    f"{found.median:.0f}",
                    _ends(found),
                    f"{statistics.mean(maps):.0f}",
                    f"{statistics.median(entry.unmap_ns for entry in one.vfio):.0f}",
                    f"{found.median * one.vfio[0].pages / 1e9:.1f}",
                    with_spread(quotient(maps, base)),
                )
            )
    if not rows:
        return ""
    return markdown_table(_VFIO_HEADINGS, rows) if markdown else text_table([_VFIO_HEADINGS, *rows])


def table(measurements: Sequence[Measurement], load: Load, *, markdown: bool = False) -> str:
    """The table of one load; times are in nanoseconds per call, traps and interrupts per pair of map and unmap."""
    rows = _rows(measurements, load)
    if markdown:
        return markdown_table(_HEADINGS, rows, left=(0, 1))
    return text_table([_HEADINGS, *rows], left=(0, 1))


def notes(measurements: Sequence[Measurement], setting: Mapping[str, Any]) -> str:
    """What a reader needs besides the tables: columns, method, what failed, the setting."""
    plan = setting["plan"]
    versions = ", ".join(f"{name} {version}" for name, version in setting["versions"].items())
    lines = [
        f"Nanoseconds: medians over {setting['repeat']} x {plan['rounds']} rounds of each round's median"
        f" ({plan['operations']} pairs of map and unmap a thread); mean: a pair's, so with rare expensive calls.",
        "/NAME: a pair as a multiple of NAME's by medians, with the least and the most of corresponding rounds."
        " Reading the clock"
        f" ({_clock(measurements)}) is included, in a pair twice.",
        "traps, interrupts: accesses to the IOMMU that left the guest, and interrupts that QEMU delivered, in a pair,"
        f" from QEMU's trace events over {plan['count_operations']} other pairs."
        if plan["count_operations"]
        else "traps, interrupts: not counted.",
    ]
    lines.append(_busy(setting))
    lines += [f"{core} core: {', '.join(names)}." for core, names in _served(measurements).items()]
    for one in measurements:
        if one.server:
            counts = ", ".join(f"{name} {max(value, 0.0):.4f}" for name, value in one.server.items())
            lines.append(f"{one.name}, the server's own counts a pair, less those of a boot without pairs: {counts}.")
        lines += [
            f"{one.name}, {load_title((one.threads, pages))}, {_testimony(witnesses)}."
            for pages in one.pages
            if (witnesses := one.witnesses(pages))
        ]
        if one.boots and not one.is_as_named:
            lines.append(f"{one.name}: its group is of type {one.group_type}, not {one.wanted_group}.")
        if one.problem:
            lines.append(f"{one.name}, {one.threads} threads, FAILED: {one.problem}")
    lines.append(f"{versions}; {setting['seconds']:.0f} s in all, {setting['time']}.")
    return "\n".join(lines)


def _busy(setting: Mapping[str, Any]) -> str:
    hogs = setting["hogs"]
    busy = f"{hogs} processes that spin" if hogs > 1 else f"{'1' if hogs else 'no'} process that spins"
    return f"Beside: {busy}. Boots of all configurations take turns, and so do the loads within a boot."


def _served(measurements: Sequence[Measurement]) -> dict[str, list[str]]:
    """Configurations by the core of their server."""
    found: dict[str, list[str]] = {}
    for one in measurements:
        for core in {boot.facts["core"] for boot in one.boots if "core" in boot.facts}:
            if one.name not in found.setdefault(core, []):
                found[core].append(one.name)
    return found


def _testimony(witnesses: Sequence[Witness]) -> str:
    mapped, unmapped = witnessed(witnesses)
    return f"the kernel's own benchmark: map {mapped:.0f}, unmap {unmapped:.0f} on average"


def witnessed(witnesses: Sequence[Witness]) -> tuple[float, float]:
    """Nanoseconds of a map and of an unmap, as medians over the boots."""
    mapped, unmapped = [one.map_ns for one in witnesses], [one.unmap_ns for one in witnesses]
    return statistics.median(mapped), statistics.median(unmapped)


def witness_table(measurements: Sequence[Measurement]) -> str:
    """A Markdown table of what the kernel's own benchmark says and the means of the rounds; empty without a witness."""
    rows = []
    for load in loads(measurements):
        for one in measurements:
            witnesses = one.witnesses(load[1])
            rounds = one.rounds(load[1])
            if one.threads == load[0] and witnesses and rounds:
                means = ([entry.map_ns_mean for entry in rounds], [entry.unmap_ns_mean for entry in rounds])
                times = (*witnessed(witnesses), *(statistics.median(values) for values in means))
                rows.append((load_title(load), one.name, *(f"{value:.0f}" for value in times)))
    headings = ("load", "", "its map", "its unmap", "our map, mean", "our unmap, mean")
    return markdown_table(headings, rows, left=(0, 1)) if rows else ""


def _clock(measurements: Sequence[Measurement]) -> str:
    rounds = [entry for one in measurements for boot in one.boots for entry in boot.rounds]
    return f"{figures(rounds)['clock'].median:.0f} ns" if rounds else "not measured"


def _two_places(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 2) + 0.0:.2f}"  # never -0.00


def as_json(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """For each configuration and number of threads: the raw rounds, and by pages the medians, spreads and ratios."""
    by_name = {(one.name, one.threads): one for one in measurements}

    def ratios(one: Measurement, pages: int) -> dict[str, dict[str, dict[str, float] | None]]:
        found: dict[str, dict[str, dict[str, float] | None]] = {}
        for name in BASES:
            base = by_name.get((name, one.threads))
            beside = base.rounds(pages) if base else ()
            each = {kind: ratio(one.rounds(pages), beside, kind) for kind in ("pair", "pair_mean")}
            found[name] = {kind: None if value is None else asdict(value) for kind, value in each.items()}
        return found

    return [
        {
            "name": one.name,
            "title": one.title,
            "threads": one.threads,
            "group_type": one.group_type,
            "problem": one.problem,
            "loads": [
                {
                    "pages": pages,
                    "figures_ns": {kind: asdict(found) for kind, found in figures(one.rounds(pages)).items()},
                    "ratios": ratios(one, pages),
                }
                for pages in one.pages
            ],
            "traps_per_pair": one.accesses,
            "interrupts_per_pair": one.interrupts,
            "server_counts_per_pair": one.server,
            "vfio_ns_per_page": [asdict(entry) for entry in one.vfio],
            "boots": [asdict(boot) for boot in one.boots],
        }
        for one in measurements
    ]
