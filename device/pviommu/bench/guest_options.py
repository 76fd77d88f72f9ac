"""What the benchmarks that boot guests have in common: options, and folders for results."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

from ..lab.problems import UsageError
from ..lab.report import new_results_folder

__all__ = ["add_boot_options", "add_repeat_option", "add_results_option", "check_limits", "results_folder"]


def add_repeat_option(parser: argparse.ArgumentParser) -> None:
    """``--repeat``, how often all is booted."""
    parser.add_argument(
        "--repeat",
        metavar="N",
        type=int,
        default=3,
        help="boot all in turn, N times, every other time in reverse order",
    )


def add_results_option(parser: argparse.ArgumentParser) -> None:
    """``--results``, where :func:`results_folder` makes a folder."""
    parser.add_argument(
        "--results",
        metavar="DIR",
        type=Path,
        default=Path("bench-results"),
        help="folder in which a new folder is made for the results and logs",
    )


def add_boot_options(parser: argparse.ArgumentParser, *, timeout: float) -> None:
    """QEMU, its accelerator, the guest's memory, and the limit of a boot in seconds."""
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=timeout, help="hard limit of one boot")
    parser.add_argument("--accel", choices=("auto", "kvm", "tcg"), default="auto", help="QEMU's accelerator")
    parser.add_argument("--memory", metavar="SIZE", default="1G", help="guest memory")
    parser.add_argument(
        "--qemu",
        metavar="PATH",
        help="QEMU to use (10.1 or later, with vfio-user-pci); default: the host's own if suitable, else Debian's",
    )


def check_limits(timeout: float, *limits: tuple[str, int, int, int]) -> None:
    """Each option, its value, and the least and most that it may be. Raises UsageError."""
    for option, value, least, most in limits:
        if not least <= value <= most:
            raise UsageError(f"{option} {value}: give {least} to {most}")
    if timeout <= 0:
        raise UsageError(f"--timeout {timeout:g}: give a number of seconds above 0")


def results_folder(results: Path, began: datetime) -> Path:
    """A new folder in that of ``--results``. Raises UsageError."""
    try:
        return new_results_folder(results, began)
    except OSError as problem:
        raise UsageError(f"--results {results}: {problem.strerror}") from problem
