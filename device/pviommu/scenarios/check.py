"""``pviommu faults check``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..exit_status import ExitStatus
from ..faults.scenario import ScenarioError, load
from .run import known_workload

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pviommu faults check``."""
    parser.description = "Read scenario files as a run would. Exit status: 0 all are right, 2 one is not."
    parser.add_argument(
        "scenario",
        metavar="FILE",
        type=Path,
        nargs="+",
        help="TOML, or JSON if its name ends so, or a name of `pviommu faults scenarios`",
    )


def main(args: argparse.Namespace) -> int:
    """Run ``pviommu faults check``; returns its exit status."""
    status = 0
    for path in args.scenario:
        try:
            scenario = load(path)
            known_workload(path, scenario)
        except ScenarioError as error:
            print(f"pviommu: {error}", file=sys.stderr)
            status = ExitStatus.USAGE
        else:
            rules = [f"{rule.id} ({rule.nature.value})" for rule in scenario.rule]
            print(f"{path}: right, {', '.join(rules)}")
    return status
