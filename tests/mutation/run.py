"""Mutation tests of ``device/pviommu/engine``: `scripts/mutation --help`.

Each mutant is put into a copy of the engine and its tests; a child of this process, which has pytest loaded, runs
the unit tests against it, those of the mutated module first, then, if they pass, random histories and the short ones
against the model. A mutant is killed by a failing test or by the time limit.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import hypothesis.stateful  # noqa: F401  loaded once, for all children
import pytest

from .mutants import Mutant, mutants

ENGINE = "device/pviommu/engine"
TESTS = "tests/device/engine"
NEEDED = ["pyproject.toml", "device/pviommu", TESTS]
HISTORIES = {"PVIOMMU_ENGINE_HISTORIES": "50x40", "PVIOMMU_ENGINE_DEPTH": "2"}
"""What test_model.py reads from the environment: fewer histories, the same ones each time."""
UNIT_SECONDS, MODEL_SECONDS = 6, 60
"""Processor time, of which the tests need a tenth; a mutant that takes more runs in circles, and is killed."""
MEMORY_LIMIT = 3 << 30
LOADED_EARLY = "ignore::pytest.PytestAssertRewriteWarning"


class Job(NamedTuple):
    module: str
    mutant: Mutant


class Verdict(NamedTuple):
    job: Job
    killer: str | None
    """What noticed: "unit tests", "model" or "time limit"; None: survived."""


def all_jobs(checkout: Path) -> list[Job]:
    return [
        Job(path.name, mutant)
        for path in sorted((checkout / ENGINE).glob("*.py"))
        for mutant in mutants(path.read_text())
    ]


def copy_engine(checkout: Path, target: Path) -> Path:
    """A tree that has the package, whose contexts and reference model the engine's tests need, and these tests."""
    for name in NEEDED:
        source, place = checkout / name, target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place)
    return target


def run_tests(tree: Path, tests: Sequence[str], seconds: int, *, keep_bytecode: bool = False) -> str | None:
    """None when the tests pass in a child process; else "tests" or "time limit".

    Byte code is not kept from mutants: it is found again by time and size, in which two mutants may agree.
    """
    child = os.fork()
    if not child:
        status = 99
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            os.chdir(tree)
            sys.dont_write_bytecode = not keep_bytecode
            os.environ.update(HISTORIES)
            sys.path[:0] = [str(tree / "device")]
            status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-W", LOADED_EARLY, *tests]))
        finally:
            os._exit(status)
    _, result = os.waitpid(child, 0)
    if os.WIFSIGNALED(result) and os.WTERMSIG(result) == signal.SIGXCPU:
        return "time limit"
    return None if result == 0 else "tests"


def judge(tree: Path, job: Job) -> Verdict:
    target = tree / ENGINE / job.module
    original = target.read_text()
    tests = sorted((tree / TESTS).glob("test_*.py"))
    model, own = tree / TESTS / "test_model.py", tree / TESTS / f"test_{job.module}"
    stages = (
        ("unit tests", [path for path in tests if path == own], UNIT_SECONDS),
        ("unit tests", [path for path in tests if path not in (own, model)], UNIT_SECONDS),
        ("model", [model], MODEL_SECONDS),
    )
    target.write_text(job.mutant.source)
    try:
        for stage, paths, seconds in stages:
            killer = run_tests(tree, [str(path.relative_to(tree)) for path in paths], seconds) if paths else None
            if killer:
                return Verdict(job, stage if killer == "tests" else killer)
        return Verdict(job, None)
    finally:
        target.write_text(original)


def worker(tree: Path, jobs: Sequence[Job], deadline: float, report: Path) -> None:
    """Judge jobs until the deadline; a line for each in `report`: its number and what killed it."""
    with report.open("w") as lines:
        for number, job in enumerate(jobs):
            if time.monotonic() > deadline:
                return
            lines.write(f"{number} {judge(tree, job).killer or 'survived'}\n")
            lines.flush()


def judged(jobs: Sequence[Job], report: Path) -> Iterator[Verdict]:
    for line in report.read_text().splitlines():
        number, _, killer = line.partition(" ")
        yield Verdict(jobs[int(number)], None if killer == "survived" else killer)


def run_all(checkout: Path, jobs: Sequence[Job], workers: int, deadline: float) -> list[Verdict]:
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        shares = [jobs[number::workers] for number in range(workers)]
        trees = [copy_engine(checkout, Path(folder, str(number))) for number in range(workers)]
        if any(run_tests(tree, [TESTS], MODEL_SECONDS, keep_bytecode=True) for tree in trees):
            raise SystemExit(
                "mutation: the tests of the engine fail without a mutant; see `pytest tests/device/engine`"
            )
        for tree in trees:
            shutil.rmtree(tree / ENGINE / "__pycache__")
        reports = [Path(folder, f"report-{number}") for number in range(workers)]
        children = []
        for tree, share, report in zip(trees, shares, reports, strict=True):
            child = os.fork()
            if not child:
                try:
                    worker(tree, share, deadline, report)
                finally:
                    os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        for share, report in zip(shares, reports, strict=True):
            verdicts += judged(share, report)
    return verdicts


def print_report(verdicts: Sequence[Verdict], total: int, seconds: float, seed: int) -> float:
    """Markdown on standard output; the score in percent."""
    killers = Counter(verdict.killer for verdict in verdicts)
    survivors = sorted((job.module, job.mutant.line, job.mutant.change) for job, killer in verdicts if not killer)
    killed = len(verdicts) - len(survivors)
    score = 100 * killed / max(1, len(verdicts))
    print(f"{len(verdicts)} of {total} mutants (seed {seed}) in {seconds:.0f} s: {killed} killed, {score:.1f} %")
    print(", ".join(f"{killer}: {number}" for killer, number in killers.most_common() if killer))
    print("\n| module | mutants | killed |\n| --- | --- | --- |")
    for module in sorted({verdict.job.module for verdict in verdicts}):
        own = [verdict for verdict in verdicts if verdict.job.module == module]
        print(f"| `{module}` | {len(own)} | {sum(verdict.killer is not None for verdict in own)} |")
    print("\n| survivor | line | change |\n| --- | --- | --- |")
    for module, line, change in survivors:
        text = " ".join(change.split()).replace("|", "\\|")
        print(f"| `{module}` | {line} | `{text}` |")
    return score


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 when the score is below the limit."""
    parser = argparse.ArgumentParser(prog="scripts/mutation", description="Mutation tests of the engine.")
    parser.add_argument("--minutes", type=float, default=30, help="stop after this time; the rest is not judged (30)")
    parser.add_argument("--seed", type=int, default=1, help="order of the mutants (1)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (one a processor)")
    parser.add_argument("--module", help="only mutants of this module, such as table.py")
    parser.add_argument("--at-least", type=float, default=85, help="score in percent below which it fails (85)")
    options = parser.parse_args(arguments)
    checkout = Path(__file__).resolve().parents[2]
    begin = time.monotonic()
    jobs = [job for job in all_jobs(checkout) if options.module in (None, job.module)]
    random.Random(options.seed).shuffle(jobs)
    sys.stdout.flush()
    verdicts = run_all(checkout, jobs, options.workers, begin + 60 * options.minutes)
    score = print_report(verdicts, len(jobs), time.monotonic() - begin, options.seed)
    return int(score < options.at_least)


if __name__ == "__main__":
    raise SystemExit(main())
