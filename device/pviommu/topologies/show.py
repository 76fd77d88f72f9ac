"""``pviommu topology show``."""

from __future__ import annotations

import argparse
import sys

from .. import resources

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pviommu topology show``."""
    parser.description = "Print a shipped topology, for instance as the beginning of one's own."
    parser.add_argument(
        "name", choices=resources.topologies(), metavar="NAME", help="as `pviommu topology list` has it"
    )


def main(args: argparse.Namespace) -> int:
    """Run ``pviommu topology show``; returns its exit status."""
    sys.stdout.write(resources.topologies()[args.name].read_text())
    return 0
