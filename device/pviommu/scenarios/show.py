"""``pviommu faults show``."""

from __future__ import annotations

import argparse
import sys

from .. import resources

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pviommu faults show``."""
    parser.description = "Print a shipped scenario, for instance as the beginning of one's own."
    parser.add_argument(
        "name", choices=resources.scenarios(), metavar="NAME", help="as `pviommu faults scenarios` has it"
    )


def main(args: argparse.Namespace) -> int:
    """Run ``pviommu faults show``; returns its exit status."""
    sys.stdout.write(resources.scenarios()[args.name].read_text(encoding="utf-8"))
    return 0
