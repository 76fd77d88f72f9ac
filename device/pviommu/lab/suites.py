"""Builds tests that others have written, for the guest to run: the kernel's own selftests of VFIO.

They are built unchanged from the kernel source of the private root, statically, with the compiler of that root. What
the lab adds is in ``guest-tools/suites`` and is linked in. Results are kept by a digest of all that.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .architecture import AMD64, Architecture
from .build import find_sandbox
from .guest_settings import SUITES
from .kept import keep, source_files, sources_digest
from .kernel_build import source_archive, source_version
from .problems import RunError
from .processes import Run, run
from .progress import Progress

__all__ = ["KERNELS", "STEPS", "build_suite"]

STEPS = 2
"""Progress steps that building a suite may take."""

KERNELS = ("lab", "lab-debug", "lab-64k", "own")
"""Kernels that a suite can run on: it needs options that the lab's own kernels have."""

_LAYOUT = "1"  # change it to have every suite built anew
_TESTS = "tools/testing/selftests"
_PARTS = (
    # what `make headers` reads, and the headers for programs outside the kernel
    *("Makefile", "Kbuild", "scripts", "include", "usr", "arch/x86/Makefile*", "arch/x86/include"),
    *("arch/x86/entry/syscalls", "arch/x86/tools", "tools/include", "tools/arch/x86/include"),
    *("arch/arm64/Makefile*", "arch/arm64/include", "arch/arm64/tools", "tools/arch/arm64/include"),
    *(f"{_TESTS}/{name}" for name in ("*.h", "lib.mk", "kselftest", "vfio")),
    # the targets of links in the tests of VFIO
    *("drivers/dma/ioat/*.h", "drivers/dma/idxd/*.h", "drivers/net/ethernet/intel/igb/*.h"),
)
_DRIVER = "pviommu_dma_test"
_OPTIONS = ("-std=gnu11", "-O2", "-Wall", "-Werror", "-D_GNU_SOURCE=")


def build_suite(
    name: str,
    root: Path,
    guest_tools: Path,
    cache: Path,
    progress: Progress,
    architecture: Architecture = AMD64,
    run: Run = run,
) -> list[Path]:
    """The programs of the suite ``name`` for ``architecture``, sorted by name; from ``cache`` if nothing changed.

    ``root`` has a kernel source and what builds it. Raises RunError with the compiler's output, and EnvironmentProblem.
    """
    assert name in SUITES
    added = guest_tools / "suites" / name
    header = guest_tools / "driver" / f"{_DRIVER}.h"
    kept = cache / f"suite-{name}-{_digest(root, added, header, architecture)}"
    if kept.is_dir():
        progress.skip(STEPS)
    else:
        work = Path(tempfile.mkdtemp(dir=root / "build"))
        try:
            progress.step(f"unpacking the tests of {source_archive(root).name.removesuffix('.tar.xz')}")
            build = _Build(root, work, architecture, run)
            build.unpack(_PARTS)
            progress.done()
            progress.step(f"building the suite {name}")
            build.make([*source_files(added), header], kept)
            progress.done()
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return sorted(kept.iterdir())


def _digest(root: Path, added: Path, header: Path, architecture: Architecture) -> str:
    """A digest in which the source's version stands for its text, and the root's name for compiler and C library."""
    header_digest = hashlib.sha256(header.read_bytes()).hexdigest()
    parts = (_LAYOUT, root.name, source_version(root), header_digest, *_compile(architecture))
    return sources_digest(added, " ".join(parts))


def _compile(architecture: Architecture) -> tuple[str, ...]:
    return (f"{architecture.prefix}gcc", *_OPTIONS)


class _Build:
    """One build in the folder ``work`` of ``root``."""

    def __init__(self, root: Path, work: Path, architecture: Architecture, run: Run) -> None:
        self._root = root
        self._work = work
        self._architecture = architecture
        self._run = run
        self._sandbox = find_sandbox(root, run)
        self._inside = f"/{work.relative_to(root)}"

    def unpack(self, parts: Sequence[str]) -> None:
        archive = source_archive(self._root)
        top = archive.name.removesuffix(".tar.xz")
        names = [f"{top}/{part}" for part in parts]
        inside = f"/{archive.relative_to(self._root)}"
        options = ["-xf", inside, "-C", self._inside, "--strip-components=1", "--wildcards"]
        self._do(["tar", *options, *names], "unpacked")

    def make(self, added: Sequence[Path], kept: Path) -> None:
        for path in added:
            shutil.copyfile(path, self._work / path.name)
        (self._work / "out").mkdir()
        inside = self._inside
        self._do([*self._make(inside), "headers"], "given the kernel's headers")
        includes = [f"-I{inside}/{path}" for path in ("tools/include", _TESTS, f"{_TESTS}/vfio/lib/include")]
        driver = f"{inside}/{_DRIVER}.o"
        source = f"{inside}/{_DRIVER}.c"
        words = ["-isystem", f"{inside}/usr/include", *includes, "-c", source, "-o", driver]
        self._do([*_compile(self._architecture), *words], "given the engine's driver")
        link = f"USERLDFLAGS=-static -Wl,--wrap=vfio_pci_driver_probe {driver}"
        self._do([*self._make(f"{inside}/{_TESTS}/vfio"), f"OUTPUT={inside}/out", link], "built")
        programs = [path for path in sorted((self._work / "out").iterdir()) if path.is_file() and not path.suffix]
        keep(programs, kept, mode=0o755)

    def _make(self, folder: str) -> tuple[str, ...]:
        return ("make", "-C", folder, *self._architecture.make)

    def _do(self, program: Sequence[str], what: str) -> None:
        outcome = self._run(self._sandbox.command(self._root, program))
        if outcome.status != 0:
            said = outcome.output.replace(f"{self._inside}/", "")
            raise RunError(f"the suite cannot be {what}", "\n".join(said.splitlines()[-40:]))
