"""``pviommu bench engine``: measures engine, rings and DMA in this process, without a VM."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TextIO

from ..lab.run import guarded
from . import in_process
from .bars import Bar, Judgement
from .cores import NATIVE
from .engine_cases import (
    GIB,
    WALK,
    baseline_cases,
    bytes_per_gib,
    bytes_per_scattered_page,
    table_cases,
    translate_cases,
    walk_cases,
)
from .in_process import Measurement, is_wanted
from .local_guest import AT_ONCE, LocalGuest
from .ring_cases import GUESTS_4K, WALK_GUEST, buffers, dma_cases, guest_walk_cases, ring_cases
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
    in_process.add_arguments(parser, "ring*")


def main(args: argparse.Namespace, *, out: TextIO | None = None) -> int:
    """Measure with parsed options; returns the exit status."""
    measurement = Measurement(_NAME, _measure, judge, _MEMORY)
    return guarded(_NAME, lambda: in_process.run(measurement, args, sys.stdout if out is None else out))


def _measure(core: str, patterns: Sequence[str] | None, effort: Effort) -> list[Series]:
    """The chosen cases of one core. memcpy is measured along with DMA, which is compared with it."""
    with LocalGuest(core) as guest:
        source, target = buffers(guest)
        with target:
            cases: list[Case] = [
                *table_cases(core),
                *translate_cases(core),
                *walk_cases(core),
                *ring_cases(guest),
                *dma_cases(guest),
                *guest_walk_cases(guest),
                *baseline_cases((source, target)),
            ]
            wanted = [case for case in cases if is_wanted(case.name, patterns)]
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
_WALKS = Bar("walk of a page, warm tables", 300, "ns")
_HIT = Bar("translate hit", 500, "ns")
_SPEEDS = tuple(
    (f"DMA {way}, {layout}", Bar(f"DMA {way} of 1 MiB, {layout}", limit, "x memcpy", at_most=False))
    for layout, limit in (("4K pages", 1 / 3), ("2M page", 0.9), ("contiguous", 0.9))
    for way in ("write", "read")
)
_GUEST_WALKS = Bar("translation by the guest's tables, 4 KiB, warm", 300, "ns")
_BESIDE = tuple(
    (
        f"DMA {way}, {GUESTS_4K}",
        f"DMA {way}, 4K pages",
        Bar(f"DMA {way} of 1 MiB by the guest's tables", 0.8, "x", at_most=False),
    )
    for way in ("write", "read")
)
"""What is compared with the same by the device's tables."""
_SIZES = (
    ("bytes a scattered page", Bar("memory of a live scattered page", 100, "bytes")),
    ("bytes a GiB, contiguous", Bar("memory of a live contiguous GiB", 1024, "bytes")),
)


def judge(core: str, series: Sequence[Series], memory: Mapping[str, float]) -> list[Judgement]:
    """The bars of one core's figures; bars for which nothing was measured are left out. Walks have one in C only."""
    found = {one.name: one for one in series}
    judgements = [bar.judge(found[name].rate) for name, bar in _RATES if name in found]
    if "translate, hit" in found:
        judgements.append(_HIT.judge(found["translate, hit"].figure.median))
    if WALK in found and core == NATIVE:
        judgements.append(_WALKS.judge(found[WALK].figure.median))
    if WALK_GUEST in found and core == NATIVE:
        judgements.append(_GUEST_WALKS.judge(found[WALK_GUEST].figure.median))
    judgements += [
        bar.judge(found[other].figure.median / found[name].figure.median)
        for name, other, bar in _BESIDE
        if name in found and other in found
    ]
    if _BASELINE in found:
        memcpy = found[_BASELINE].figure.median
        judgements += [bar.judge(memcpy / found[name].figure.median) for name, bar in _SPEEDS if name in found]
    return judgements + [bar.judge(memory[name]) for name, bar in _SIZES if name in memory]
