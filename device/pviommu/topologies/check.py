"""``pviommu topology check``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..exit_status import ExitStatus
from ..topology import TopologyError, load

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pviommu topology check``."""
    parser.description = "Check topology files as `pviommu serve` does. Exit status: 0 all are valid, 2 one is not."
    parser.add_argument("topology", metavar="FILE", type=Path, nargs="+", help="a file, or the name of a shipped one")


def main(args: argparse.Namespace) -> int:
    """Run ``pviommu topology check``; returns its exit status."""
    status = 0
    for given in args.topology:
        try:
            topology = load(given)
        except TopologyError as error:
            print(f"pviommu: {error}", file=sys.stderr)
            status = ExitStatus.USAGE
        else:
            print(f"{given}: right, {', '.join(topology.names())}")
    return status
