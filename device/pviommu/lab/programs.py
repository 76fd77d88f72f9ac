"""Builds the programs that run in the guest's user space, statically, with the compiler of the private root.

A program is one file ``NAME.c``, or one folder ``NAME`` with all its ``.c`` files. Its sources find the device's
generated headers at ``../driver`` as seen from the folder of programs, as they do in the checkout.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pviommu_abi.interface import INTERFACES

from .build import find_sandbox
from .kept import copy_sources, keep, sources_digest
from .problems import RunError
from .processes import Run, run
from .progress import Progress
from .provision import Toolbox

__all__ = ["STEPS", "Program", "build_programs", "find_programs"]

STEPS = 1
_HEADERS = tuple(interface.header for interface in INTERFACES)
_OPTIONS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-D_GNU_SOURCE")


@dataclass(frozen=True, slots=True)
class Program:
    """One program: its name, and its ``.c`` files relative to the folder of programs."""

    name: str
    sources: tuple[Path, ...]


def find_programs(sources: Path) -> list[Program]:
    """The programs of the folder ``sources``, sorted by name."""
    found = []
    for entry in sorted(sources.iterdir()) if sources.is_dir() else ():
        files = sorted(entry.glob("*.c")) if entry.is_dir() else [entry] if entry.suffix == ".c" else []
        if files:
            found.append(Program(entry.stem, tuple(path.relative_to(sources) for path in files)))
    return found


def build_programs(toolbox: Toolbox, sources: Path, cache: Path, progress: Progress, run: Run = run) -> list[Path]:
    """The built programs of ``sources``, sorted by name; from ``cache`` if nothing changed.

    A warning is an error. Raises RunError with the compiler's output, and EnvironmentProblem.
    """
    programs = find_programs(sources)
    kept = cache / f"programs-{_digest(toolbox, sources)}"
    if kept.is_dir():
        progress.skip(STEPS)
    else:
        progress.step(f"building {len(programs)} guest programs")
        _build(toolbox, programs, sources, kept, run)
        progress.done()
    return [kept / program.name for program in programs]


def _headers(sources: Path) -> list[Path]:
    return [path for path in (sources.parent / "driver" / name for name in _HEADERS) if path.is_file()]


def _digest(toolbox: Toolbox, sources: Path) -> str:
    """The root's name stands for its compiler and C library."""
    headers = hashlib.sha256(b"".join(path.read_bytes() for path in _headers(sources))).hexdigest()
    return sources_digest(sources, " ".join((toolbox.root.name, headers, *_compile(toolbox))))


def _compile(toolbox: Toolbox) -> tuple[str, ...]:
    return (f"{toolbox.architecture.prefix}gcc", *_OPTIONS)


def _build(toolbox: Toolbox, programs: Sequence[Program], sources: Path, kept: Path, run: Run) -> None:
    work = Path(tempfile.mkdtemp(dir=toolbox.root / "build"))
    try:
        copy_sources(sources, work / "programs")
        for folder in ("driver", "out"):
            (work / folder).mkdir()
        for header in _headers(sources):
            shutil.copyfile(header, work / "driver" / header.name)
        inside = Path("/") / work.relative_to(toolbox.root)
        sandbox = find_sandbox(toolbox.root, run)
        for program in programs:
            files = [str(inside / "programs" / path) for path in program.sources]
            compile_it = [*_compile(toolbox), "-o", str(inside / "out" / program.name), *files]
            outcome = run(sandbox.command(toolbox.root, compile_it))
            if outcome.status != 0 or not (work / "out" / program.name).is_file():
                said = outcome.output.replace(f"{inside}/programs/", "")
                raise RunError(f"the guest program {program.name} in {sources} does not build", said)
        keep(sorted((work / "out").iterdir()), kept, mode=0o755)
    finally:
        shutil.rmtree(work, ignore_errors=True)
