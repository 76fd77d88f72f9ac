"""Boots of the lab for all tests that look at them, each once, from the wheel and from an empty folder.

A machine's files (results, console, server log, command line) stay in ``lab-results/tests`` of the checkout.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ..workers import Once

TIME_LIMIT = 300
"""Seconds for server and guest of the lab's defaults, which are the lab's own."""

LONG_TIME_LIMIT = 600
"""The same for a guest that runs its long tests too."""

CYCLES = 4
"""How often each guest unloads and loads its drivers. Whatever one time leaks is seen after the second."""

PLAIN = ("--kernel", "lab", "--memory", "1G")
"""Options of guests whose tests are about something else: of its boot the lab's kernel needs a third of the processor
time that Debian's needs, and there is less memory to set up.
"""

GRACE = 60
"""Seconds that the command may need beyond that; then it is killed."""


@dataclass(frozen=True)
class LabRun:
    """A finished ``pviommu lab run``."""

    status: int
    output: str
    folder: Path

    @property
    def results(self) -> dict[str, Any]:
        """What is in ``results.json``."""
        found: dict[str, Any] = json.loads((self.folder / "results.json").read_text())
        return found

    @property
    def passed(self) -> set[str]:
        """Names of the guest's tests that passed."""
        return {name for _, name in self._passed()}

    def passed_in(self, group: str) -> set[str]:
        """Names of the tests below ``group`` that passed."""
        return {name for found, name in self._passed() if found == f"guest.{group}"}

    def _passed(self) -> Iterator[tuple[str, str]]:
        for case in ElementTree.parse(self.folder / "junit.xml").getroot().iter("testcase"):
            if case.find("failure") is None and case.find("skipped") is None:
                yield case.get("classname", ""), case.get("name", "")

    @property
    def console(self) -> str:
        """The guest's serial console."""
        return (self.folder / "console.log").read_text(errors="replace")


@pytest.fixture(scope="session")
def artefacts(checkout: Path, once: Once) -> Path:
    """Where the files of machines that tests boot stay, emptied at the start."""
    folder = checkout / "lab-results" / "tests"

    def empty(_: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    once("artefacts", empty)
    return folder


@dataclass(frozen=True)
class Command:
    """``pviommu lab run`` as a user has it: from the wheel, in an empty folder."""

    words: list[str]
    environment: dict[str, str]
    folder: Path

    def run(self, results: Path, limit: int, *options: str, encoding: str = "utf-8") -> LabRun:
        """One run, whose files stay in ``results``. Raises TimeoutExpired when its own limit did not end it."""
        done = self._done(limit, "lab", "run", "--results", str(results), "--timeout", str(limit), *options)
        output = (done.stdout + done.stderr).decode(encoding)
        return LabRun(done.returncode, output, (results / "latest").resolve())

    def sweep(self, results: Path, limit: int, *options: str) -> tuple[int, str]:
        """``pviommu faults sweep`` over the lab's guest: its status, and all that it printed."""
        done = self._done(limit, "faults", "sweep", "--workload", "lab", "--results", str(results), *options)
        return done.returncode, (done.stdout + done.stderr).decode()

    def _done(self, limit: int, *words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*self.words, *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            timeout=limit + GRACE,
            check=False,
        )

    def run_binary(self, results: Path, limit: int, *options: str) -> LabRun:
        """The same for a run that writes any bytes: its output has a character for each byte (Latin-1)."""
        return self.run(results, limit, *options, encoding="latin-1")


@pytest.fixture(scope="session")
def command(
    wheel_environment: dict[str, str], pviommu_command: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Command:
    """The lab's command."""
    return Command(pviommu_command, wheel_environment, tmp_path_factory.mktemp("empty"))


@pytest.fixture(scope="session")
def lab_run(command: Command, artefacts: Path) -> LabRun:
    """The lab with its defaults, on two vCPUs."""
    return command.run(artefacts, TIME_LIMIT, "--vcpus", "2", "--cycles", str(CYCLES))


@pytest.fixture(scope="session")
def strict_run(command: Command, artefacts: Path) -> LabRun:
    """The other settings on the lab's own kernel: strict, xen-v7, the long tests too, which end in a second kernel."""
    options = ("--kernel", "lab", "--mode", "strict", "--profile", "xen-v7", "--vcpus", "2")
    return command.run(artefacts / "strict", LONG_TIME_LIMIT, *options, "--long", "--cycles", str(CYCLES))
