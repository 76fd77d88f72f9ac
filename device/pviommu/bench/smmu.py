"""``pviommu bench smmu``: measures a virtual SMMUv3 in this process, without a VM."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TextIO

from ..lab.run import guarded
from . import in_process, smmu_beside
from .bars import Bar, Judgement
from .cores import NATIVE
from .guest_options import add_results_option
from .in_process import Measurement, is_wanted
from .samples import Effort, Series, measure
from .smmu_cases import cold_cases, command_cases, translation_cases
from .smmu_guest import CACHED, SIZES, SmmuGuest

__all__ = ["add_arguments", "judge", "main"]

_NAME = "pviommu bench smmu"
_NESTED = " nested"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pviommu bench smmu``."""
    parser.description = (
        "Measure accesses to registers, commands and translations of a virtual SMMUv3 in this process, without a VM. "
        "Prints medians, spreads, rates, and the bars with their verdicts."
    )
    in_process.add_arguments(parser, "*nested*")
    guest = parser.add_argument_group("beside QEMU's SMMUv3, in guests")
    guest.add_argument(
        "--guest",
        action="store_true",
        help="instead boot two guests of arm64 under TCG, in which Linux' own driver drives this SMMU and that of "
        "QEMU's process, and print what both cost it, with the ratios; the first run fetches QEMU and a kernel",
    )
    guest.add_argument("--boots", metavar="N", type=int, default=3, help="boot both in turn, N times")
    guest.add_argument("--rounds", metavar="N", type=int, default=5, help="rounds in each boot")
    guest.add_argument("--operations", metavar="N", type=int, default=2000, help="operations of each kind in a round")
    guest.add_argument("--timeout", metavar="SECONDS", type=float, default=300.0, help="hard limit of one boot")
    guest.add_argument("--memory", metavar="SIZE", default="1G", help="guest memory")
    guest.add_argument("--qemu", metavar="PATH", help="QEMU for Arm to use; default: Debian's")
    add_results_option(parser)


def main(args: argparse.Namespace, *, out: TextIO | None = None) -> int:
    """Measure with parsed options; returns the exit status."""
    stream = sys.stdout if out is None else out
    if args.guest:
        return guarded(_NAME, lambda: smmu_beside.run(args, _NAME, stream))
    measurement = Measurement(_NAME, _measure, judge, unit="Nanoseconds of processor time")
    return guarded(_NAME, lambda: in_process.run(measurement, args, stream))


def _measure(core: str, patterns: Sequence[str] | None, effort: Effort) -> list[Series]:
    with ExitStack() as stack:
        guests = [
            stack.enter_context(SmmuGuest(core, nested=nested, cached=cached))
            for nested in (False, True)
            for cached in (CACHED, 0)
        ]
        plain, cold, nested, cold_nested = guests
        cases = [
            *command_cases(plain),
            *translation_cases(plain),
            *translation_cases(nested, _NESTED),
            *cold_cases(cold),
            *cold_cases(cold_nested, _NESTED),
        ]
        return measure([case for case in cases if is_wanted(case.name, patterns)], effort)


_WALKS = (
    *((f"each of many, {size}, miss", Bar(f"stage 1 walk, {size}", 1500, "ns")) for size in SIZES),
    *((f"each of many, {size}{_NESTED}, miss", Bar(f"nested walk, {size}", 4000, "ns")) for size in SIZES),
    (f"each of many, 4K{_NESTED}, nothing cached", Bar("nested walk, 4K, nothing cached", 4000, "ns")),
    *((f"each of many, {size}, hit", Bar(f"hit, {size}", 500, "ns")) for size in SIZES),
)


def judge(core: str, series: Sequence[Series], _: Mapping[str, float]) -> list[Judgement]:
    """The bars, which are for walks in C."""
    if core != NATIVE:
        return []
    found = {one.name: one.figure.median for one in series}
    return [bar.judge(found[name]) for name, bar in _WALKS if name in found]
