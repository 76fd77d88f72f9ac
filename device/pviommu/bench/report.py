"""``pviommu bench report``: puts the figures of earlier runs into a document."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, TextIO

from ..exit_status import ExitStatus
from ..lab.problems import UsageError
from ..lab.run import guarded
from .output import fill, write

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pviommu bench report``."""
    parser.description = (
        "Replace the text between <!-- begin NAME --> and <!-- end NAME --> in a document by the table of that name "
        "from the JSON of bench engine, ring, maps, delays and peers, and write their plots, so that no figure is "
        "copied by hand. If none of the files has a table of that name, the text is kept."
    )
    parser.add_argument(
        "document", type=Path, help="Markdown file to change in place, for instance docs/performance.md"
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="JSON", help="files that --json wrote")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="also write the plots there; default: do not")


def main(args: argparse.Namespace, *, out: TextIO | None = None) -> int:
    """Fill the document; returns the exit status: 0, or 2 for files that cannot be used."""
    return guarded("pviommu bench report", lambda: _run(args, sys.stdout if out is None else out))


def _run(args: argparse.Namespace, out: TextIO) -> int:
    blocks: dict[str, str] = {}
    plots: dict[str, str] = {}
    for path in args.results:
        found = _read(path)
        blocks |= found["blocks"]
        plots |= found["plots"]
    try:
        text = args.document.read_text()
    except OSError as problem:
        raise UsageError(f"{args.document}: {problem.strerror}") from problem
    filled, missing = fill(text, blocks)
    write("document", args.document, filled)
    if args.plots is not None:
        try:
            args.plots.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise UsageError(f"--plots {args.plots}: {problem.strerror}") from problem
        for name, svg in plots.items():
            write("--plots", args.plots / Path(name).name, svg)
    for name in missing:
        print(f"left as it is: {name}", file=out)
    return ExitStatus.PASSED


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except OSError as problem:
        raise UsageError(f"{path}: {problem.strerror}") from problem
    except ValueError as problem:
        raise UsageError(f"{path}: not JSON: {problem}") from problem
    if not isinstance(found, dict) or not all(
        isinstance(found.get(key), dict) and all(isinstance(text, str) for text in found[key].values())
        for key in ("blocks", "plots")
    ):
        raise UsageError(f"{path}: not written by a benchmark: it lacks blocks and plots")
    return found
