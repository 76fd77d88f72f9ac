"""What a run leaves behind: the verdict, ``results.json``, ``junit.xml`` and a summary to read.

``results.json`` holds ``verdict`` (passed, failed, timeout or error), ``tests`` (numbers passed, failed, skipped),
``seconds``, ``versions``, ``counts`` (the server's own summary) and ``problems`` (sentences; empty after a run that
passed). A run of the user's own program has ``program`` too: its ``name``, its ``status`` (null if it did not end), and
``output``, the ``file`` and the ``bytes`` in it. A run of a suite has ``suite``: its ``name`` and the numbers of its
own tests. A run with a scenario of faults has ``scenario``: its ``name``, ``events_file``, the file of its events, and
its ``verdict`` (null: there is none). A run that did not pass has ``faults`` if DMA was refused that no test
expected: each with its ``test`` and its ``explanation``; and ``faults_left_out``, how many more there were.
``faults.txt`` has the same for people.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ..host_errors import write_whole
from ..reports import junit
from ..reports.ktap import Counts, KtapRun
from ..transports import LIBRARY
from . import faults
from .scenario import DEFAULT, Played

__all__ = [
    "SUITE_PREFIX",
    "ProgramRecord",
    "RunRecord",
    "exit_line",
    "judge",
    "new_results_folder",
    "program_line",
    "summary_text",
    "write_results",
]

SUITE_PREFIX = "selftests/"
"""What the name of a suite is put behind, as the test that all of it is below."""

_PROGRAM_LINE = re.compile(r"# lab: program (\d{1,3})$")
_EXIT_LINE = re.compile(r"# lab: exit (\d{1,3})$")


@dataclass(frozen=True, slots=True)
class ProgramRecord:
    """What became of the user's program: ``status`` None means that it did not end; ``output`` is a file's name."""

    name: str
    status: int | None
    output: str
    size: int


@dataclass(slots=True)
class RunRecord:
    """One judged run. ``counts`` is the server's summary as it came."""

    verdict: str
    ktap: KtapRun
    problems: list[str]
    seconds: float
    versions: dict[str, str]
    counts: dict[str, Any] = field(default_factory=dict)
    program: ProgramRecord | None = None
    suite: str = ""
    unexpected: faults.Unexpected = field(default_factory=faults.Unexpected)
    scenario: Played | None = None

    def suite_counts(self) -> Counts:
        """How many tests of the suite passed, failed and were skipped."""
        return self.ktap.counts(f"{SUITE_PREFIX}{self.suite}")


def exit_line(line: str) -> int | None:
    """The status of a ``# lab: exit N`` line, which the guest's init writes last; None for any other line."""
    match = _EXIT_LINE.match(line.strip())
    return int(match[1]) if match else None


def program_line(line: str) -> int | None:
    """The status of a ``# lab: program N`` line, which tells what the user's program ended with; None for others."""
    match = _PROGRAM_LINE.match(line.strip())
    return int(match[1]) if match else None


def judge(ktap: KtapRun, exit_status: int | None, problems: Sequence[str], suite: str = "") -> list[str]:
    """Everything that speaks against the run, as sentences; empty means that it passed."""
    against = [*problems, *ktap.problems]
    counts = ktap.counts()
    if suite and not ktap.counts(f"{SUITE_PREFIX}{suite}").passed:
        against.append(f"no test of the suite {suite} passed")
    if counts.passed + counts.failed == 0:
        against.append("no test ran")
    if counts.failed:
        against.append(f"{counts.failed} of {counts.total} tests failed")
    if exit_status is None:
        against.append('the guest ended without its "# lab: exit" line: it crashed or was cut off')
    elif exit_status != 0:
        against.append(f"the guest's tests ended with status {exit_status}")
    return against


def new_results_folder(base: Path, now: datetime) -> Path:
    """Make ``base/<UTC time>`` and point ``base/latest`` at it. Raises OSError."""
    base.mkdir(parents=True, exist_ok=True)
    stamp = now.strftime("%Y-%m-%dT%H-%M-%SZ")
    for number in range(1, 1000):
        folder = base / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        link = base / f".latest-{folder.name}"
        link.symlink_to(folder.name)
        link.replace(base / "latest")
        return folder
    raise FileExistsError(f"{base}: a thousand runs began at {stamp}")


def write_results(folder: Path, record: RunRecord) -> None:
    """Write ``results.json``, ``junit.xml`` and perhaps ``faults.txt``, each whole or not at all. Raises OSError."""
    results: dict[str, Any] = {
        "verdict": record.verdict,
        "tests": asdict(record.ktap.counts()),
        "seconds": round(record.seconds, 3),
        "versions": record.versions,
        "counts": record.counts,
        "problems": record.problems,
    }
    if record.program is not None:
        program = record.program
        output = {"file": program.output, "bytes": program.size}
        results["program"] = {"name": program.name, "status": program.status, "output": output}
    if record.suite:
        results["suite"] = {"name": record.suite, **asdict(record.suite_counts())}
    if record.scenario is not None:
        results["scenario"] = record.scenario.as_dict()
    if record.unexpected.faults:
        results["faults"] = record.unexpected.faults
        results["faults_left_out"] = record.unexpected.left_out
    try:
        write_whole(folder / "results.json", json.dumps(results, indent=2) + "\n")
    finally:  # there may be room for one of them
        write_whole(folder / "junit.xml", _junit(record))
    if record.unexpected.faults:
        write_whole(folder / "faults.txt", faults.told(record.unexpected))


def _junit(record: RunRecord) -> bytes:
    broken = [] if record.verdict == "passed" or record.ktap.counts().failed else record.problems
    scenario = record.scenario.name if record.scenario else DEFAULT
    prefix = "guest" if scenario == DEFAULT else f"guest.{scenario}"
    versions = {f"version.{name}": value for name, value in record.versions.items()}
    return junit.written(
        "pviommu lab", record.ktap, prefix=prefix, seconds=record.seconds, properties=versions, broken=broken
    )


def summary_text(record: RunRecord, folder: Path) -> str:
    """The closing lines for a reader: tests, ops by kind, pages mapped, DMA bytes, faults, problems, the folder."""
    counts = record.ktap.counts()
    lines = [f"tests   {counts.passed} passed, {counts.failed} failed, {counts.skipped} skipped"]
    if record.suite:
        suite = record.suite_counts()
        lines.append(f"suite   {record.suite}: {suite.passed} passed, {suite.failed} failed, {suite.skipped} skipped")
    if record.program is not None:
        program = record.program
        ended = "did not end" if program.status is None else f"ended with status {program.status}"
        lines.append(f"program {program.name} {ended}; {_number(program.size)} bytes of output in {program.output}")
    ops = record.counts.get("ops")
    if isinstance(ops, dict):
        lines.append("ops     " + (", ".join(f"{name} {count}" for name, count in sorted(ops.items())) or "none"))
    for key, label, unit in (
        ("pages_mapped", "mapped", " pages"),
        ("dma_bytes", "DMA", " bytes"),
        ("faults", "faults", ""),
    ):
        if key in record.counts:
            lines.append(f"{label:<7} {_number(record.counts[key])}{unit}")
    lines += faults.shown(record.unexpected)
    lines += [f"problem {problem}" for problem in record.problems]
    lines.append(f"results {folder}")
    versions = record.versions
    setting = (
        f"QEMU {versions.get('qemu', '?')} {versions.get('accelerator', '?')}, Linux {versions.get('kernel', '?')}"
    )
    if LIBRARY in versions:
        setting += f", behind {LIBRARY}"
    scenario = f", {record.scenario.line}" if record.scenario else ""
    lines.append(f"verdict {record.verdict} in {record.seconds:.1f} s{scenario} ({setting})")
    return "\n".join(lines)


def _number(value: Any) -> str:
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else str(value)
