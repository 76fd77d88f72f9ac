"""The cells of the lab's matrix: their axes, how some are chosen, and their outcomes."""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..host_errors import write_whole
from .architecture import AMD64, ARM64
from .guest_settings import KERNELS, PROFILES
from .problems import UsageError

__all__ = [
    "AXES",
    "CARDS",
    "PROGRAMS",
    "SMMU",
    "Cell",
    "Outcome",
    "all_cells",
    "code_digest",
    "pick",
    "read_outcome",
    "write_outcome",
]

AXES: Mapping[str, Sequence[str]] = {
    "kernel": KERNELS,
    "profile": PROFILES,
    "mode": ("lazy", "strict"),
    "vCPUs": ("1", "2"),
}
"""What a cell is made of, in the order of its name."""

_LONG = (("xen-2024", "lazy", 2), ("xen-v7", "strict", 2))
"""Cells that also run the long tests: the first ends with a stopped server, the second with a killed one."""
CARDS = "net"
"""What takes the place of a suite in cells that try network cards."""
SMMU = "smmu"
"""The same, in cells where the kernel's own driver of an SMMU is tried."""
PROGRAMS = {CARDS: "net", SMMU: "lab-smmu"}
"""What takes the place of a suite and is a program of ``guest-tools`` instead, with its topology."""
_SUITES = (("lab", "vfio"), *((kernel, CARDS) for kernel in KERNELS))
"""Kernels with the suites that they run, each in cells of its own."""
_SUITE_PLACES = tuple((profile, "lazy", 2) for profile in PROFILES)
_TABLES = {"xen-2024": "on", "xen-v7": "off"}
"""The parameter ``tables`` of the driver, which does not fall back from ``on``. So each kernel, mode, number of vCPUs
and suite is tried with the guest's tables and with the device's; besides, a guest's own tests change to the other kind
when they change the profile."""
_OTHER_TABLES = {"on": "off", "off": "on"}
_CROSSED = (("xen-2024", "strict", 2), ("xen-v7", "lazy", 2))
"""Cells that there are with the kind of tables that is usual for the other profile as well."""
_CODE = ("pviommu", "pviommu_abi", "vfio_user", "wire_layout")
_NOT_OF_A_RUN = frozenset(("bench", "selfcheck", "data", "__pycache__"))


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination; with ``suite``, that is run instead of the lab's own tests. ``msi`` is the interrupt controller
    of a guest of another architecture than this host's. ``crossed``: with the kind of tables that is usual for the
    other profile.
    """

    kernel: str
    profile: str
    mode: str
    vcpus: int
    suite: str = ""
    arch: str = AMD64.name
    msi: str = ""
    crossed: bool = False

    @property
    def name(self) -> str:
        """``KERNEL/PROFILE/MODE/VCPUS``, followed by ``/SUITE`` if it has one, and by ``/tables-KIND`` if these are not
        the usual ones of its profile; preceded by ``ARCH-MSI/`` if it has these.
        """
        kind = f"tables-{self.tables}" if self.crossed else ""
        place = f"{self.machine}/{self.profile}/{self.mode}/{self.vcpus}"
        return "/".join(filter(None, (place, self.suite, kind)))

    @property
    def machine(self) -> str:
        """The kernel, and on which machine if that is not as usual."""
        return f"{self.arch}-{self.msi}/{self.kernel}" if self.msi else self.kernel

    @property
    def is_long(self) -> bool:
        """Whether the long tests are run as well, as in two cells of each kernel."""
        is_usual = not (self.suite or self.msi or self.crossed)
        return is_usual and (self.profile, self.mode, self.vcpus) in _LONG

    @property
    def tables(self) -> str:
        """The driver's parameter of this name."""
        usual = _TABLES[self.profile]
        return _OTHER_TABLES[usual] if self.crossed else usual

    @property
    def tests(self) -> str:
        """Which tests are run, in a word: ``own``, ``long`` or the name of a suite."""
        return self.suite or ("long" if self.is_long else "own")

    @property
    def file_name(self) -> str:
        """The name as one part of a path."""
        return self.name.replace("/", "_")


_OF_ARM64 = tuple(
    Cell(kernel, profile, mode, vcpus, suite, ARM64.name, msi)
    for msi, kernel, profile, mode, vcpus, suite in (
        ("its", "debian", "xen-2024", "lazy", 1, ""),
        ("its", "debian", "xen-v7", "strict", 2, ""),
        ("gicv2m", "debian", "xen-v7", "lazy", 2, ""),
        ("gicv2m", "debian", "xen-2024", "strict", 1, ""),
        ("its", "debian-7", "xen-2024", "lazy", 2, ""),
        ("gicv2m", "debian-7", "xen-v7", "strict", 1, ""),
        ("its", "debian-16k", "xen-v7", "lazy", 2, ""),
        ("gicv2m", "debian-16k", "xen-2024", "strict", 1, ""),
        ("its", "lab-64k", "xen-2024", "lazy", 1, ""),
        ("gicv2m", "lab-64k", "xen-v7", "strict", 2, ""),
        ("its", "lab-64k", "xen-2024", "lazy", 1, "vfio"),
        ("its", "debian-7", "xen-2024", "lazy", 1, SMMU),
        ("its", "debian-7", "xen-2024", "strict", 2, SMMU),
        ("gicv2m", "lab-64k", "xen-2024", "lazy", 2, SMMU),
    )
)
"""An emulated processor of another architecture is slow, so there each value is in a cell, and not each combination.
Linux 6.12 of Debian cannot take an SMMU into its device tree."""


@dataclass(slots=True)
class Outcome:
    """The outcome of a cell's run. ``inputs`` is a digest of everything that it depends on, ``date`` is UTC."""

    verdict: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    date: str = ""
    inputs: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of_results(cls, results: Mapping[str, Any], date: str, inputs: str) -> Outcome:
        """From the content of a ``results.json``. Raises KeyError when it lacks a part."""
        tests = results["tests"]
        return cls(
            verdict=results["verdict"],
            passed=tests["passed"],
            failed=tests["failed"],
            skipped=tests["skipped"],
            seconds=results["seconds"],
            date=date,
            inputs=inputs,
            versions=results["versions"],
            problems=results["problems"],
        )


def all_cells(kernels: Sequence[str] = KERNELS, arches: Sequence[str] = (AMD64.name,)) -> list[Cell]:
    """Every combination with ``kernels``, in the order of the axes, then those that are crossed, then their suites,
    then those of arm64.

    Raises UsageError for an unknown kernel.
    """
    known = dict.fromkeys([*KERNELS, *(ARM64.kernels if ARM64.name in arches else ())])
    for kernel in kernels:
        if kernel not in known:
            raise UsageError(f"--kernels {kernel}: must be some of {', '.join(known)}")
    cells: list[Cell] = []
    if AMD64.name in arches:
        own = [kernel for kernel in kernels if kernel in KERNELS]
        axes = (own, AXES["profile"], AXES["mode"], AXES["vCPUs"])
        cells += [Cell(kernel, profile, mode, int(vcpus)) for kernel, profile, mode, vcpus in itertools.product(*axes)]
        cells += [Cell(kernel, *place, crossed=True) for kernel in own for place in _CROSSED]
        places = itertools.product(_SUITES, _SUITE_PLACES)
        cells += [Cell(kernel, *place, suite) for (kernel, suite), place in places if kernel in own]
    if ARM64.name in arches:
        cells += [cell for cell in _OF_ARM64 if cell.kernel in kernels]
    return cells


def pick(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """The cells whose names match one of ``patterns`` (those of a shell); all without one.

    Raises UsageError for a pattern that matches no cell.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(cell.name, pattern) for cell in cells):
            kernels = dict.fromkeys(cell.kernel for cell in cells)
            axes = " ".join(
                f"{name}: {', '.join(kernels if name == 'kernel' else values)};" for name, values in AXES.items()
            )
            raise UsageError(f"--only {pattern}: matches no cell, whose names are {'/'.join(AXES)} ({axes[:-1]})")
    wanted = [cell for cell in cells if any(fnmatch.fnmatchcase(cell.name, pattern) for pattern in patterns)]
    return wanted if patterns else list(cells)


def code_digest(package: Path, guest_tools: Path, *configs: Path) -> str:
    """A digest of everything of the project that a run depends on: server, lab, guest driver, tests, and ``configs``:
    topology and scenario.

    ``package`` is the folder of the package ``pviommu``; the protocol packages are found beside it, or in the checkout
    that it is part of.
    """
    digest = hashlib.sha256()
    roots = [package.parent, package.parent.parent / "protocol"]
    trees = [root / name for root in roots for name in _CODE if (root / name).is_dir()]
    files = [path for tree in trees for path in _files(tree)]
    for path in [*files, *_files(guest_tools), *configs]:
        content = path.read_bytes()
        digest.update(b"%d:%b%d:%b" % (len(path.name), path.name.encode(), len(content), content))
    return digest.hexdigest()


def _files(tree: Path) -> Iterator[Path]:
    for path in sorted(tree.rglob("*")):
        if path.is_file() and not _NOT_OF_A_RUN.intersection(path.relative_to(tree).parts[:-1]):
            yield path


def write_outcome(folder: Path, cell: Cell, outcome: Outcome) -> None:
    """Keep ``outcome`` in ``folder``; a reader sees all of it or none. Raises OSError."""
    write_whole(folder / f"{cell.file_name}.json", json.dumps(asdict(outcome), indent=2) + "\n")


def read_outcome(folder: Path, cell: Cell) -> Outcome | None:
    """The outcome that was kept for ``cell``; None if there is none, or it has another form."""
    try:
        return Outcome(**json.loads((folder / f"{cell.file_name}.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
