"""One boot of the lab for all tests that look at it, from the wheel and from an empty folder.

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

HARD_LIMIT = 240
"""Seconds for a whole run; the guest has its own, shorter one."""


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
def artefacts(checkout: Path) -> Path:
    """Where the files of machines that tests boot stay, emptied at the start."""
    folder = checkout / "lab-results" / "tests"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="session")
def lab_run(
    artefacts: Path,
    wheel_environment: dict[str, str],
    pviommu_command: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> LabRun:
    """The lab with its defaults."""
    command = [*pviommu_command, "lab", "run", "--results", str(artefacts), "--timeout", "180"]
    empty = tmp_path_factory.mktemp("empty")
    done = subprocess.run(
        command, cwd=empty, env=wheel_environment, capture_output=True, text=True, timeout=HARD_LIMIT, check=False
    )
    return LabRun(done.returncode, done.stdout + done.stderr, (artefacts / "latest").resolve())
