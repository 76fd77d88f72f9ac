"""``pviommu lab matrix``: kernels x profiles x lazy and strict x vCPUs, each a run of its own; two of each kernel with
the long tests; the kernel's own tests; network cards; guests of arm64, and their kernel's own driver of an SMMU. One
table at the end.

Each cell is a ``pviommu lab run`` in a process of its own, so that none can spoil the next. Each outcome is kept at
once; the next matrix runs only cells that did not pass, or passed with other code or another kernel.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from .. import resources
from ..exit_status import ExitStatus
from . import cells, scenario, table
from .architecture import AMD64, ARCHITECTURES, ARM64
from .boot import Setup
from .cells import Cell, Outcome
from .guest_settings import KERNELS, GuestSettings
from .problems import EnvironmentProblem, RunError, UsageError
from .processes import Child
from .run import Provide, Wanted, guarded, prepare, set_up, time_limit
from .server import PROGRAM

__all__ = ["add_arguments", "main"]

_GRACE = 60.0
"""Seconds beyond its own limit that a run may take to end and to report."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pviommu lab matrix``."""
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        action="append",
        default=[],
        help=f"only cells whose name ({'/'.join(cells.AXES)}) matches this shell pattern; may be repeated; "
        "default: all",
    )
    parser.add_argument(
        "--kernels",
        metavar="NAME",
        nargs="+",
        default=list(dict.fromkeys((*KERNELS, *ARM64.kernels))),
        help="only these kernels; default: all",
    )
    parser.add_argument(
        "--arch",
        choices=ARCHITECTURES,
        nargs="+",
        default=list(ARCHITECTURES),
        help="only guests of these architectures; default: all",
    )
    parser.add_argument(
        "--results", metavar="DIR", type=Path, default=Path("lab-results/matrix"), help="folder of the results"
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--resume", action="store_true", help="keep cells that passed with the same code and kernel (the default)"
    )
    again.add_argument("--fresh", action="store_true", help="run every cell again")
    parser.add_argument("--timeout", metavar="SECONDS", type=float, help="hard limit of a cell; default: by its kernel")
    parser.add_argument("--accel", choices=("auto", "kvm", "tcg"), default="auto", help="QEMU's accelerator")
    parser.add_argument(
        "--qemu",
        metavar="PATH",
        help="QEMU to use for guests of amd64 (10.1 or later, with vfio-user-pci); default: the host's own if "
        "suitable, else Debian's",
    )


def main(
    args: argparse.Namespace,
    *,
    out: TextIO | None = None,
    program: Sequence[str] = PROGRAM,
    provide: Provide = prepare,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> int:
    """Run the matrix with parsed options; returns the exit status: 1 if a cell did not pass."""
    stream = sys.stdout if out is None else out
    return guarded("pviommu lab matrix", lambda: _run(args, stream, program, provide, now))


@dataclass(frozen=True, slots=True)
class _Matrix:
    """What all cells share."""

    args: argparse.Namespace
    stream: TextIO
    program: Sequence[str]
    provide: Provide
    now: Callable[[], datetime]
    code: str

    @property
    def kept(self) -> Path:
        return Path(self.args.results) / "cells"

    def date(self) -> str:
        return self.now().strftime("%Y-%m-%d %H:%M")


def _run(
    args: argparse.Namespace,
    stream: TextIO,
    program: Sequence[str],
    provide: Provide,
    now: Callable[[], datetime],
) -> int:
    wanted = cells.pick(cells.all_cells(list(dict.fromkeys(args.kernels)), args.arch), args.only)
    time_limit(args.timeout, GuestSettings())
    package = Path(resources.__file__).resolve().parent
    topologies = (resources.topologies()[name] for name in ("lab", *cells.PROGRAMS.values()))
    configs = *topologies, resources.scenarios()[scenario.DEFAULT]
    code = cells.code_digest(package, resources.guest_tools(), *configs)
    matrix = _Matrix(args, stream, program, provide, now, code)
    try:
        matrix.kept.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UsageError(f"--results {args.results}: {problem.strerror}") from problem
    outcomes: dict[Cell, Outcome] = {}
    for cell, outcome in _outcomes(matrix, wanted):
        outcomes[cell] = outcome
        table.write_table(args.results, outcomes, matrix.date())
    print(f"\n{table.as_text(outcomes)}\ntable   {args.results / 'matrix.md'}", file=stream)
    passed = all(outcome.verdict == "passed" for outcome in outcomes.values())
    return ExitStatus.PASSED if passed else ExitStatus.FAILED


def _outcomes(matrix: _Matrix, wanted: Sequence[Cell]) -> Iterator[tuple[Cell, Outcome]]:
    """Each cell with its outcome, as it comes; prints one line per cell."""
    ready: dict[tuple[str, str, str], Setup | Outcome] = {}
    for number, cell in enumerate(wanted, start=1):
        needs = (cell.kernel, "" if cell.suite in cells.PROGRAMS else cell.suite, cell.arch)
        if needs not in ready:
            ready[needs] = _made_ready(matrix, *needs)
        setup = ready[needs]
        note = ""
        if isinstance(setup, Outcome):
            outcome = setup
        else:
            inputs = _inputs(matrix, setup, cell)
            known = cells.read_outcome(matrix.kept, cell)
            if known is not None and not matrix.args.fresh and (known.verdict, known.inputs) == ("passed", inputs):
                outcome, note = known, f", kept from {known.date}"
            else:
                outcome = _run_cell(matrix, setup, cell, inputs)
                cells.write_outcome(matrix.kept, cell, outcome)
        print(f"[{number}/{len(wanted)}] {_line(cell, outcome)}{note}", file=matrix.stream, flush=True)
        yield cell, outcome


def _line(cell: Cell, outcome: Outcome) -> str:
    if outcome.verdict == "passed":
        return f"{cell.name} passed, {outcome.passed} tests in {outcome.seconds:.1f} s"
    return f"{cell.name} {outcome.verdict.upper()}: {'; '.join(outcome.problems)}"


def _made_ready(matrix: _Matrix, kernel: str, suite: str, arch: str) -> Setup | Outcome:
    """The set-up for runs with ``kernel`` and ``suite`` on ``arch``; if it fails, the outcome of each of those."""
    args = matrix.args
    try:
        qemu = args.qemu if arch == AMD64.name else None
        wanted = Wanted(qemu, args.accel, kernel, suite or None, ARCHITECTURES[arch])
        return set_up(matrix.stream, matrix.provide, wanted)
    except (EnvironmentProblem, RunError) as problem:
        return Outcome("error", date=matrix.date(), problems=[str(problem)])


def _inputs(matrix: _Matrix, setup: Setup, cell: Cell) -> str:
    """A digest of what the outcome of ``cell`` depends on."""
    toolbox = setup.toolbox
    parts = [matrix.code, cell.name, setup.accelerator, *toolbox.qemu_command, *toolbox.versions.values()]
    parts.append(hashlib.sha256(toolbox.kernel_image.read_bytes()).hexdigest())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _run_cell(matrix: _Matrix, setup: Setup, cell: Cell, inputs: str) -> Outcome:
    folder = Path(matrix.args.results) / "runs" / cell.file_name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    settings = GuestSettings(kernel=cell.kernel, long=cell.is_long, suite=cell.suite)
    limit = time_limit(matrix.args.timeout, settings, ARCHITECTURES[cell.arch])
    command = [*matrix.program, "lab", "run", *_options(matrix, setup, cell), "--results", str(folder)]
    date = matrix.date()
    child = Child()
    log = folder / "output.txt"
    try:
        with log.open("wb") as output:
            child.start([*command, "--timeout", f"{limit:g}"], output=output)
        status = child.wait(limit + _GRACE)
    finally:
        child.stop(grace=10.0)
    if status is None:
        return Outcome("timeout", date=date, inputs=inputs, problems=[f"the run did not end within {limit:g} s"])
    try:
        return Outcome.of_results(json.loads((folder / "latest/results.json").read_text()), date, inputs)
    except (OSError, ValueError, KeyError, TypeError):
        said = log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
        problem = f"the run ended with status {status} and no results: {said[-1]}"
        return Outcome("error", date=date, inputs=inputs, problems=[problem])


def _options(matrix: _Matrix, setup: Setup, cell: Cell) -> list[str]:
    options = ["--kernel", cell.kernel, "--profile", cell.profile, "--mode", cell.mode, "--vcpus", str(cell.vcpus)]
    options += ["--accel", setup.accelerator, "--tables", cell.tables]
    if cell.msi:
        options += ["--arch", cell.arch, "--msi", cell.msi]
    elif matrix.args.qemu is not None:
        options += ["--qemu", matrix.args.qemu]
    if cell.suite in cells.PROGRAMS:
        return [*options, "--topology", cells.PROGRAMS[cell.suite], *_program(cell)]
    options += ["--long"] if cell.is_long else ["--suite", cell.suite] if cell.suite else []
    return [*options, "--topology", "lab"]


def _program(cell: Cell) -> list[str]:
    """What the guest runs in place of a suite. The long variant of the cards' would take a kernel that checks itself
    hours.
    """
    programs = resources.guest_tools() / "programs"
    if cell.suite == cells.SMMU:
        return ["--run", str(programs / "smmu.sh")]
    short, long = programs / "net.sh", programs / "net-long.sh"
    run = ["--run", str(short)] if cell.kernel == "lab-debug" else ["--add", str(short), "--run", str(long)]
    return ["--scenario", str(programs / "net-faults.toml"), *run]
