"""``pviommu topology list``."""

from __future__ import annotations

import argparse

from .. import resources

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pviommu topology list``: none."""
    parser.description = "List the shipped topologies. Their names can be given wherever a topology file is expected."


def main(args: argparse.Namespace) -> int:
    """Run ``pviommu topology list``; returns its exit status."""
    topologies = resources.topologies()
    width = max(map(len, topologies))
    for name, path in topologies.items():
        about = path.read_text().partition("\n")[0].removeprefix("#").strip()
        print(f"{name:<{width}}  {about}")
    return 0
