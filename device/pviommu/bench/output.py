"""The results of a benchmark: text to read, JSON, and the tables and plots for documents."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from .. import __version__
from ..host_errors import is_lack_of_room
from ..lab.problems import EnvironmentProblem, UsageError

__all__ = ["Document", "add_targets", "check_targets", "fill", "give", "machine", "show", "siblings", "write"]

_BLOCK = re.compile(r"(<!-- begin ([\w-]+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


@dataclass(slots=True)
class Document:
    """One run of a benchmark. ``blocks`` are Markdown by name, ``plots`` SVG by file name, ``data`` everything else."""

    command: str
    text: str
    data: dict[str, Any]
    blocks: dict[str, str] = field(default_factory=dict)
    plots: dict[str, str] = field(default_factory=dict)

    def json(self) -> str:
        """All of it except the text, as JSON."""
        whole = {"command": self.command, **self.data, "blocks": self.blocks, "plots": self.plots}
        return json.dumps(whole, indent=2) + "\n"


def machine() -> dict[str, str]:
    """What figures depend on: versions and processors of this host."""
    return {
        "pviommu": __version__,
        "python": platform.python_version(),
        "host": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "siblings": siblings(Path("/sys/devices/system/cpu")),
        "pinning": _pinning(),
    }


def siblings(processors: Path) -> str:
    """Which processors are hardware threads of one core: ``0-1 2-3``; ``none`` where each has a core of its own."""
    lists = (path.read_text().strip() for path in processors.glob("cpu[0-9]*/topology/thread_siblings_list"))
    return " ".join(sorted({each for each in lists if not each.isdecimal()})) or "none"


def _pinning() -> str:
    """The processors that this process may use: a benchmark of guests pins nothing, but whoever starts it may have."""
    allowed = sorted(os.sched_getaffinity(0))
    return "none" if len(allowed) == os.cpu_count() else f"to {','.join(map(str, allowed))}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def add_targets(parser: argparse.ArgumentParser) -> None:
    """The options ``--json`` and ``--markdown`` of a measurement."""
    parser.add_argument(
        "--json", metavar="FILE", help="write all figures as JSON, - to standard output; default: do not"
    )
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the tables as Markdown; default: do not")


def check_targets(args: argparse.Namespace) -> None:
    """Fail before measuring, not after it. Raises UsageError."""
    if args.json not in (None, "-"):
        write("--json", Path(args.json), "")
    if args.markdown is not None:
        write("--markdown", args.markdown, "")


def give(document: Document, args: argparse.Namespace, out: TextIO) -> None:
    """Write the files that the options of :func:`add_targets` ask for. Raises UsageError."""
    if args.json == "-":
        out.write(document.json())
    elif args.json is not None:
        write("--json", Path(args.json), document.json())
    if args.markdown is not None:
        write("--markdown", args.markdown, "\n\n".join(document.blocks.values()) + "\n")


def show(document: Document, args: argparse.Namespace, out: TextIO) -> None:
    """Print the text, elsewhere than on ``out`` if that is for JSON, and :func:`give` the rest. Raises UsageError."""
    print(document.text, file=sys.stderr if args.json == "-" else out)
    give(document, args, out)


def write(option: str, path: Path, text: str) -> None:
    """Write the file that ``option`` names. Raises UsageError, or EnvironmentProblem if there is no room for it."""
    try:
        path.write_text(text)
    except OSError as problem:
        if is_lack_of_room(problem):
            what = f"{option} {path}: {problem.strerror}"
            raise EnvironmentProblem(what, "free some space, or name another place") from problem
        raise UsageError(f"{option} {path}: {problem.strerror}") from problem


def fill(text: str, blocks: Mapping[str, str]) -> tuple[str, list[str]]:
    """``text`` with each part between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` replaced by the block of that
    name, and the names in it that ``blocks`` does not have.
    """
    missing: list[str] = []

    def replaced(match: re.Match[str]) -> str:
        block = blocks.get(match[2])
        if block is None:
            missing.append(match[2])
            return match[0]
        return f"{match[1]}{block}\n{match[3]}"

    return _BLOCK.sub(replaced, text), missing
