"""``pviommu bench engine``: measures engine, rings and DMA in this process, without a VM."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import partial
from typing import TextIO

from ..exit_status import ExitStatus
from ..lab.problems import UsageError
from ..lab.run import guarded
from . import bars
from .bars import Bar, Judgement, markdown_table, shown, text_table, verdict_table
from .cores import chosen_cores
from .engine_cases import (
    GIB,
    baseline_cases,
    bytes_per_gib,
    bytes_per_scattered_page,
    table_cases,
    translate_cases,
)
from .local_guest import AT_ONCE, LocalGuest
from .output import Document, add_targets, check_targets, machine, show
from .ring_cases import buffers, dma_cases, ring_cases
from .samples import Case, Effort, Series, measure

__all__ = ["add_arguments", "judge", "main"]

_NAME = "pviommu bench engine"
_BASELINE = "memcpy 1 MiB"
_MEMORY: dict[str, Callable[[str], float]] = {
    "bytes a scattered page": bytes_per_scattered_page,
    "bytes a GiB, contiguous": bytes_per_gib,
    "bytes a GiB, unaligned": partial(bytes_per_gib, shift=1),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pviommu bench engine``."""
    parser.description = (
        "Measure maps, unmaps, translations, operations through a ring and DMA in this process, without a VM, beside a "
        "plain dict and memcpy. Prints medians, spreads, rates, and the bars with their verdicts."
    )
    parser.epilog = (
        "Exit status: 0 everything was measured, whether bars are met or not; 2 usage; 3 it could not be measured."
    )
    parser.add_argument(
        "--core", choices=("native", "python", "both"), default="both", help="core; both, if the native one is built"
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="PATTERN",
        help="measure only what matches this shell pattern, such as 'ring*'; may be repeated; default: all",
    )
    parser.add_argument("--repeat", metavar="N", type=int, default=7, help="samples of each figure")
    parser.add_argument("--sample-ms", metavar="N", type=float, default=40.0, help="length of a sample in ms")
    add_targets(parser)


def main(args: argparse.Namespace, *, out: TextIO | None = None) -> int:
    """Measure with parsed options; returns the exit status."""
    return guarded(_NAME, lambda: _run(args, sys.stdout if out is None else out))


def _run(args: argparse.Namespace, out: TextIO) -> int:
    if not 1 <= args.repeat <= 1000:
        raise UsageError(f"--repeat {args.repeat}: give 1 to 1000")
    if not 0 < args.sample_ms <= 10_000:
        raise UsageError(f"--sample-ms {args.sample_ms:g}: give a number above 0, up to 10000")
    effort = Effort(args.repeat, int(args.sample_ms * 1e6))
    cores = chosen_cores(args.core)
    check_targets(args)
    began = datetime.now(UTC)
    measured: dict[str, list[Series]] = {}
    memory: dict[str, dict[str, float]] = {}
    for core in cores:
        measured[core] = _measure(core, args.only, effort)
        memory[core] = {name: take(core) for name, take in _MEMORY.items() if _is_wanted(name, args.only)}
    if not any(measured.values()) and not any(memory.values()):
        raise UsageError(f"--only {' '.join(args.only)}: matches nothing, see pviommu bench engine for all names")
    document = _document(began, effort, measured, memory)
    show(document, args, out)
    return ExitStatus.PASSED


def _is_wanted(name: str, patterns: Sequence[str] | None) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def _measure(core: str, patterns: Sequence[str] | None, effort: Effort) -> list[Series]:
    """The chosen cases of one core. memcpy is measured along with DMA, which is compared with it."""
    with LocalGuest(core) as guest:
        source, target = buffers(guest)
        with target:
            cases: list[Case] = [
                *table_cases(core),
                *translate_cases(core),
                *ring_cases(guest),
                *dma_cases(guest),
                *baseline_cases((source, target)),
            ]
            wanted = [case for case in cases if _is_wanted(case.name, patterns)]
            if any(case.name.startswith("DMA") for case in wanted):
                wanted += [case for case in cases if case.name == _BASELINE and case not in wanted]
            return measure(wanted, effort)


# -- judging ----------------------------------------------------------------------------------------------------------

_RATES = (
    (f"ring, waited, {AT_ONCE} at a time", Bar("one-page ops through a ring", 1e6, "ops/s", at_most=False)),
    (f"ring, posted, {AT_ONCE} at a time", Bar(f"posted batches of {AT_ONCE}", 3e6, "ops/s", at_most=False)),
    ("map contiguous 512", Bar("contiguous mapping, 2 MiB", 1e8, "pages/s", at_most=False)),
    (f"map contiguous {GIB}", Bar("contiguous mapping, 1 GiB", 1e8, "pages/s", at_most=False)),
)
_HIT = Bar("translate hit", 500, "ns")
_SPEEDS = tuple(
    (f"DMA {way}, {layout}", Bar(f"DMA {way} of 1 MiB, {layout}", limit, "x memcpy", at_most=False))
    for layout, limit in (("4K pages", 1 / 3), ("2M page", 0.9), ("contiguous", 0.9))
    for way in ("write", "read")
)
_SIZES = (
    ("bytes a scattered page", Bar("memory of a live scattered page", 100, "bytes")),
    ("bytes a GiB, contiguous", Bar("memory of a live contiguous GiB", 1024, "bytes")),
)


def judge(series: Sequence[Series], memory: Mapping[str, float]) -> list[Judgement]:
    """The bars of one core's figures; bars for which nothing was measured are left out."""
    found = {one.name: one for one in series}
    judgements = [bar.judge(found[name].rate) for name, bar in _RATES if name in found]
    if "translate, hit" in found:
        judgements.append(_HIT.judge(found["translate, hit"].figure.median))
    if _BASELINE in found:
        memcpy = found[_BASELINE].figure.median
        judgements += [bar.judge(memcpy / found[name].figure.median) for name, bar in _SPEEDS if name in found]
    return judgements + [bar.judge(memory[name]) for name, bar in _SIZES if name in memory]


# -- showing ----------------------------------------------------------------------------------------------------------

_HEADINGS = ("", "ns", "least-most", "a second", "")


def _rows(series: Sequence[Series], memory: Mapping[str, float]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (
            one.name,
            shown(one.figure.median),
            f"{shown(one.figure.least)}-{shown(one.figure.most)}",
            f"{shown(one.rate / 1e6)} M",
            one.kind,
        )
        for one in series
    ]
    return rows + [(name, shown(round(value, 1)), "", "", "bytes") for name, value in memory.items()]


def _document(
    began: datetime,
    effort: Effort,
    measured: Mapping[str, Sequence[Series]],
    memory: Mapping[str, Mapping[str, float]],
) -> Document:
    setting = {"time": began.isoformat(timespec="seconds"), "versions": machine(), "effort": asdict(effort)}
    text: list[str] = []
    blocks: dict[str, str] = {}
    data = []
    for core, series in measured.items():
        judgements = judge(series, memory[core])
        rows = _rows(series, memory[core])
        text.append(f"core {core}\n" + text_table([_HEADINGS, *rows], left=(0, 4)))
        blocks[f"engine-{core}"] = markdown_table(("", "ns", "least-most", "a second", "of"), rows, left=(0, 4))
        if judgements:
            text.append(f"core {core}\n" + verdict_table(judgements))
            blocks[f"engine-{core}-bars"] = verdict_table(judgements, markdown=True)
        data.append(
            {
                "core": core,
                "bars": bars.as_json(judgements),
                "bytes": dict(memory[core]),
                "series": [asdict(one) | {"figure_ns": asdict(one.figure)} for one in series],
            }
        )
    host = ", ".join(f"{name} {value}" for name, value in machine().items())
    text.append(
        f"Nanoseconds an operation: medians of {effort.repeat} samples of {effort.sample_ns / 1e6:g} ms. {host};"
        f" {setting['time']}."
    )
    blocks["engine-setting"] = text[-1]
    return Document(_NAME, "\n\n".join(text), {**setting, "cores": data}, blocks)
