"""Commands that measure cases in this process, core by core, and judge them: ``bench engine`` and ``bench smmu``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import NamedTuple, TextIO

from ..exit_status import ExitStatus
from ..lab.problems import UsageError
from . import bars
from .bars import Judgement, markdown_table, shown, text_table, verdict_table
from .cores import chosen_cores
from .output import Document, add_targets, check_targets, machine, show
from .samples import Effort, Series

__all__ = ["Measurement", "add_arguments", "is_wanted", "run"]

EXIT_STATUS = (
    "Exit status: 0 everything was measured, whether bars are met or not; 2 usage; 3 it could not be measured."
)


class Measurement(NamedTuple):
    """What such a command is made of."""

    name: str
    """``pviommu bench NAME``"""
    measure: Callable[[str, Sequence[str] | None, Effort], list[Series]]
    """the cases of a core whose names match one of these patterns, if there are any"""
    judge: Callable[[str, Sequence[Series], Mapping[str, float]], list[Judgement]]
    """the bars of one core's figures and sizes"""
    sizes: Mapping[str, Callable[[str], float]] = {}
    """bytes that something takes with a core"""
    unit: str = "Nanoseconds"
    """of the figures"""


def add_arguments(parser: argparse.ArgumentParser, example: str) -> None:
    """Declare the options; ``example``: a pattern for ``--only``."""
    parser.epilog = EXIT_STATUS
    parser.add_argument(
        "--core", choices=("native", "python", "both"), default="both", help="core; both, if the native one is built"
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="PATTERN",
        help=f"measure only what matches this shell pattern, such as '{example}'; may be repeated; default: all",
    )
    parser.add_argument("--repeat", metavar="N", type=int, default=7, help="samples of each figure")
    parser.add_argument("--sample-ms", metavar="N", type=float, default=40.0, help="length of a sample in ms")
    add_targets(parser)


def run(measurement: Measurement, args: argparse.Namespace, out: TextIO) -> int:
    """Measure with parsed options; returns the exit status. Raises UsageError."""
    if not 1 <= args.repeat <= 1000:
        raise UsageError(f"--repeat {args.repeat}: give 1 to 1000")
    if not 0 < args.sample_ms <= 10_000:
        raise UsageError(f"--sample-ms {args.sample_ms:g}: give a number above 0, up to 10000")
    effort = Effort(args.repeat, int(args.sample_ms * 1e6))
    cores = chosen_cores(args.core)
    check_targets(args)
    began = datetime.now(UTC)
    measured: dict[str, list[Series]] = {}
    sizes: dict[str, dict[str, float]] = {}
    for core in cores:
        measured[core] = measurement.measure(core, args.only, effort)
        sizes[core] = {name: take(core) for name, take in measurement.sizes.items() if is_wanted(name, args.only)}
    if not any(measured.values()) and not any(sizes.values()):
        raise UsageError(f"--only {' '.join(args.only)}: matches nothing, see {measurement.name} for all names")
    show(_document(measurement, began, effort, measured, sizes), args, out)
    return ExitStatus.PASSED


def is_wanted(name: str, patterns: Sequence[str] | None) -> bool:
    """Whether a case is to be measured."""
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


_HEADINGS = ("", "ns", "least-most", "a second", "")


def _rows(series: Sequence[Series], sizes: Mapping[str, float]) -> list[tuple[str, ...]]:
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
    return rows + [(name, shown(round(value, 1)), "", "", "bytes") for name, value in sizes.items()]


def _document(
    measurement: Measurement,
    began: datetime,
    effort: Effort,
    measured: Mapping[str, Sequence[Series]],
    sizes: Mapping[str, Mapping[str, float]],
) -> Document:
    setting = {"time": began.isoformat(timespec="seconds"), "versions": machine(), "effort": asdict(effort)}
    prefix = measurement.name.split()[-1]
    text: list[str] = []
    blocks: dict[str, str] = {}
    data = []
    for core, series in measured.items():
        judgements = measurement.judge(core, series, sizes[core])
        rows = _rows(series, sizes[core])
        text.append(f"core {core}\n" + text_table([_HEADINGS, *rows], left=(0, 4)))
        blocks[f"{prefix}-{core}"] = markdown_table(("", "ns", "least-most", "a second", "of"), rows, left=(0, 4))
        if judgements:
            text.append(f"core {core}\n" + verdict_table(judgements))
            blocks[f"{prefix}-{core}-bars"] = verdict_table(judgements, markdown=True)
        data.append(
            {
                "core": core,
                "bars": bars.as_json(judgements),
                "bytes": dict(sizes[core]),
                "series": [asdict(one) | {"figure_ns": asdict(one.figure)} for one in series],
            }
        )
    host = ", ".join(f"{name} {value}" for name, value in machine().items())
    text.append(
        f"{measurement.unit} an operation: medians of {effort.repeat} samples of {effort.sample_ns / 1e6:g} ms. {host};"
        f" {setting['time']}."
    )
    blocks[f"{prefix}-setting"] = text[-1]
    return Document(measurement.name, "\n\n".join(text), {**setting, "cores": data}, blocks)
