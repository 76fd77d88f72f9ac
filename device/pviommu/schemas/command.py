"""``pviommu schema``."""

from __future__ import annotations

import argparse
import sys

from . import paths

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pviommu schema``."""
    parser.description = "Print the JSON Schema (draft 2020-12) of what pviommu reads or writes."
    parser.add_argument(
        "name",
        choices=paths(),
        help="a topology file, a scenario file, results.json of the lab, what "
        "`pviommu serve --print-capabilities` prints, or a line of its log with --log-format json",
    )


def main(args: argparse.Namespace) -> int:
    """Run ``pviommu schema``; returns its exit status."""
    sys.stdout.write(paths()[args.name].read_text())
    return 0
