"""``pviommu faults scenarios``."""

from __future__ import annotations

import argparse

from .. import resources
from ..faults.catalogue import marked
from ..faults.scenario import load

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pviommu faults scenarios``: none."""
    parser.description = (
        "List the shipped scenarios, and what failure each stands for. Their names can be given wherever a scenario "
        "file is expected. Marked with ! is one with a rule that does what no correct IOMMU does (adversarial)."
    )


def main(args: argparse.Namespace) -> int:
    """Run ``pviommu faults scenarios``; returns its exit status."""
    lines = []
    for name, path in resources.scenarios().items():
        scenario = load(path)
        lines.append((marked(name, scenario.nature), scenario.text))
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        print(f"{name:<{width}}  {text}")
    return 0
