"""How the tests are spread over processes that run side by side (pytest-xdist).

``scripts/test`` asks for ``-n auto``, which is :data:`WORKERS` processes for everything or for whole folders, and one
for files or single tests. A file is the unit that a process takes, but for :data:`TOGETHER`, which share a machine,
and :data:`APART`, whose tests take long and share nothing. What takes long begins first.

What all processes need once is made by the fixture ``once``; nothing else may be shared between tests of two files.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

__all__ = ["WORKERS", "Once", "is_worker", "next_unit", "number_of_workers", "rank", "unit_of"]

WORKERS = 2

TOGETHER = {
    "tests/vm/test_bars.py": "tests/vm/test_lab.py",
    "tests/vm/test_driver_ring.py": "tests/vm/test_lab.py",
    "tests/vm/test_lab_kernel.py": "tests/vm/test_lab.py",
}
"""Files whose tests look at the machines of another file."""
_WAITS = "tests/vm/test_program.py::test_program_that_reads_without_end"
APART = (
    "tests/device/engine/test_model.py",
    "tests/device/native/test_model.py",
    "tests/packaging/test_dkms.py",
    "tests/packaging/test_driver_checks.py",
    "tests/vm/test_lab_kernel.py::test_kernels_own_tests_of_vfio_pass",
    _WAITS,
)
"""Beginnings of the names of tests, each of which is a unit."""
FIRST = (
    "tests/vm/test_lab.py",
    "tests/vm/test_lab_kernel.py::test_kernels_own_tests_of_vfio_pass",
    "tests/vm",
    "tests/packaging/test_driver_checks.py",
    "tests/packaging",
    *("tests/device/native/test_model.py", "tests/device/engine/test_model.py"),
    *("tests/breakages", "tests/coverage", "tests/conformance"),
)
"""Beginnings of the names of units, in the order in which they begin; all others come behind, as they were found."""


def unit_of(name: str) -> str:
    """The unit that a test belongs to."""
    if name.startswith(APART):
        return name
    file = name.partition("::")[0]
    return TOGETHER.get(file, file)


def rank(name: str) -> int:
    """The place of a test's unit in :data:`FIRST`."""
    unit = unit_of(name)
    return next((place for place, begin in enumerate(FIRST) if unit.startswith(begin)), len(FIRST))


def next_unit(waiting: Iterable[str], running: Iterable[str]) -> str | None:
    """Which of the ``waiting`` units a process begins while others have ``running`` ones. None if none fits.

    One machine at a time: two share two processors badly, as a processor of a guest that was put aside holds locks
    that the guest's other one spins for. The one that only waits for its time limit does not count.
    """
    is_busy = any(map(_is_machine, running))
    return next((unit for unit in waiting if not (is_busy and _is_machine(unit))), None)


def _is_machine(unit: str) -> bool:
    return unit.startswith("tests/vm/") and not unit.startswith(_WAITS)


def is_worker(config: pytest.Config) -> bool:
    """Whether this is one of several processes."""
    return hasattr(config, "workerinput")


def number_of_workers(config: pytest.Config) -> int:
    """What ``-n auto`` means: 0 is this process alone."""
    given = [Path(str(name).partition("::")[0]) for name in config.option.file_or_dir]
    return WORKERS if all(path.is_dir() for path in given) else 0


class Once:
    """``once(name, make)``: a folder that ``make`` has filled, for all processes: the first one makes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, name: str, make: Callable[[Path], None]) -> Path:
        """What ``make`` raises is raised here, and the next process tries again."""
        self._folder.mkdir(exist_ok=True)
        folder, complete = self._folder / name, self._folder / f"{name}.complete"
        lock = os.open(self._folder / f"{name}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            if not complete.exists():
                folder.mkdir(exist_ok=True)
                make(folder)
                complete.touch()
        finally:
            os.close(lock)
        return folder
