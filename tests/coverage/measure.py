"""Which lines and branches of engine and protocol their unit tests reach: ``scripts/coverage``.

Prints a table, and ends with status 1 below the limits. Tests of volume are left out: what only they reach is not
tested, it is only visited.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["LIMIT", "MEASURED", "Share", "main", "shares"]

CHECKOUT = Path(__file__).parents[2]
MEASURED = {
    "device/pviommu/engine": "tests/device/engine",
    "protocol/wire_layout": "tests/protocol/wire_layout",
    "protocol/vfio_user": "tests/protocol/vfio_user",
    "protocol/pviommu_abi": "tests/protocol/pviommu_abi",
}
"""Package, and the tests that have to reach it."""
VOLUME = ("tests/device/engine/test_model.py",)
LIMIT = {"lines": 100.0, "branches": 95.0}
"""Percent."""


@dataclass(frozen=True)
class Share:
    """How much of a package is reached."""

    package: str
    what: str
    """lines or branches"""
    reached: int
    total: int

    @property
    def percent(self) -> float:
        """0 to 100; all of nothing is 100."""
        return 100.0 * self.reached / self.total if self.total else 100.0

    @property
    def is_enough(self) -> bool:
        return self.percent >= LIMIT[self.what]

    def __str__(self) -> str:
        verdict = "" if self.is_enough else f"  below {LIMIT[self.what]:.0f} %"
        return f"{self.package:24} {self.what:8} {self.reached:5} of {self.total:5} {self.percent:6.1f} %{verdict}"


def shares(files: Mapping[str, Any], packages: Iterable[str]) -> list[Share]:
    """Two for each package, from the ``files`` of coverage's JSON report. A package without files is none reached."""
    found = []
    for package in packages:
        summaries = [file["summary"] for name, file in files.items() if name.startswith(f"{package}/")]
        for what, reached, total in (
            ("lines", "covered_lines", "num_statements"),
            ("branches", "covered_branches", "num_branches"),
        ):
            share = Share(package, what, sum(s[reached] for s in summaries), sum(s[total] for s in summaries))
            found.append(share if summaries else Share(package, what, 0, 1))
    return found


def _coverage(*arguments: str, data: Path) -> subprocess.CompletedProcess[str]:
    sources = (CHECKOUT / "protocol", CHECKOUT / "device")
    environment = os.environ | {"COVERAGE_FILE": str(data), "PYTHONPATH": os.pathsep.join(map(str, sources))}
    command = [sys.executable, "-m", "coverage", *arguments]
    return subprocess.run(command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, text=True, check=False)


def main() -> int:
    """The command; see the module text."""
    with tempfile.TemporaryDirectory(prefix="pviommu-coverage-") as folder:
        data, report = Path(folder, "data"), Path(folder, "report.json")
        tests = [*MEASURED.values(), *(f"--ignore={path}" for path in VOLUME)]
        run = ("run", "--branch", f"--source={','.join(MEASURED)}", "-m", "pytest", "-q", "-p", "no:cacheprovider")
        tested = _coverage(*run, *tests, data=data)
        if tested.returncode:
            print(tested.stdout, "the tests fail, so nothing was measured", sep="\n")
            return 1
        print(_coverage("report", "--show-missing", "--skip-covered", data=data).stdout)
        _coverage("json", "-q", "-o", str(report), data=data)
        found = shares(json.loads(report.read_text())["files"], MEASURED)
    print(*found, sep="\n")
    return 0 if all(share.is_enough for share in found) else 1


if __name__ == "__main__":
    sys.exit(main())
