"""The matrix as a table: text for a terminal, Markdown for documents, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from ..host_errors import write_whole
from .cells import Cell, Outcome

__all__ = ["as_markdown", "as_text", "write_table"]

_HEADINGS = (
    "kernel",
    "profile",
    "mode",
    "vCPUs",
    "tables",
    "tests",
    "verdict",
    "passed",
    "failed",
    "skipped",
    "seconds",
    "date (UTC)",
)
_FIRST_NUMBER = 7  # from here on all columns but the last are aligned to the right
_LEVELS = ("pviommu", "python", "qemu", "accelerator")


def as_text(outcomes: Mapping[Cell, Outcome]) -> str:
    """Aligned columns, one line per cell, and what was wrong with those that did not pass."""
    rows = [_HEADINGS, *(_row(cell, outcome) for cell, outcome in outcomes.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, *_failures(outcomes), _total(outcomes)])


def as_markdown(outcomes: Mapping[Cell, Outcome], date: str) -> str:
    """A page with the versions, the table and what was wrong. ``date`` is when it was made."""
    numbers = ["---:" if _is_number(column) else "---" for column in range(len(_HEADINGS))]
    rows = [_HEADINGS, numbers, *(_row(cell, outcome) for cell, outcome in outcomes.items())]
    lines = [f"# Matrix of {date}", "", *(f"- {line}" for line in _versions(outcomes)), ""]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *(f"- {line}" for line in _failures(outcomes)), _total(outcomes)]
    return "\n".join(lines) + "\n"


def write_table(folder: Path, outcomes: Mapping[Cell, Outcome], date: str) -> None:
    """Write ``matrix.json`` and ``matrix.md``. Raises OSError."""
    cells = [{"cell": cell.name, **asdict(cell), **asdict(outcome)} for cell, outcome in outcomes.items()]
    write_whole(folder / "matrix.json", json.dumps({"date": date, "cells": cells}, indent=2) + "\n")
    write_whole(folder / "matrix.md", as_markdown(outcomes, date))


def _row(cell: Cell, outcome: Outcome) -> tuple[str, ...]:
    counts = (outcome.passed, outcome.failed, outcome.skipped)
    place = (cell.machine, cell.profile, cell.mode, str(cell.vcpus), cell.tables, cell.tests)
    return (*place, outcome.verdict, *map(str, counts), f"{outcome.seconds:.1f}", outcome.date)


def _is_number(column: int) -> bool:
    return _FIRST_NUMBER <= column < len(_HEADINGS) - 1


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        text.rjust(width) if _is_number(column) else text.ljust(width)
        for column, (text, width) in enumerate(zip(row, widths, strict=True))
    ]


def _failures(outcomes: Mapping[Cell, Outcome]) -> list[str]:
    bad = [(cell, outcome) for cell, outcome in outcomes.items() if outcome.verdict != "passed"]
    return [f"{cell.name}: {'; '.join(outcome.problems) or outcome.verdict}" for cell, outcome in bad]


def _total(outcomes: Mapping[Cell, Outcome]) -> str:
    passed = sum(outcome.verdict == "passed" for outcome in outcomes.values())
    tests = sum(outcome.passed for outcome in outcomes.values())
    return f"{passed} of {len(outcomes)} cells passed, with {tests} tests"


def _versions(outcomes: Mapping[Cell, Outcome]) -> list[str]:
    """One line per component with all values that occur; kernels have a line per name."""
    lines = []
    for name in _LEVELS:
        found = dict.fromkeys(outcome.versions[name] for outcome in outcomes.values() if name in outcome.versions)
        if found:
            lines.append(f"{name}: {', '.join(found)}")
    kernels: dict[str, dict[str, None]] = {}
    for cell, outcome in outcomes.items():
        if "kernel" in outcome.versions:
            kernels.setdefault(cell.kernel, {})[outcome.versions["kernel"]] = None
    lines += [f"kernel {name}: Linux {', '.join(releases)}" for name, releases in kernels.items()]
    return lines
