"""The checks that kernel developers expect of C code: no warnings from the compiler, from sparse or from checkpatch.

The modules are compiled against the headers of Debian's kernels (6.12 and 7.x), in a private root that also holds
sparse, and the kernel source that checkpatch is taken from: no package has it by itself. What was checked before, and
has not changed since, is not checked again (see :mod:`pviommu.lab.series`).

Run as a program (``scripts/driver-check``) it checks the guest's sources of this checkout; exit status 1 if there was
any complaint.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from .. import resources
from ..exit_status import ExitStatus
from . import provision
from .build import Sandbox, find_sandbox
from .kept import keep, source_files
from .kernels import BUILD_PACKAGES
from .problems import EnvironmentProblem
from .processes import Run, run
from .progress import Progress
from .roots import BACKPORTS, private_root
from .roots import STEPS as ROOT_STEPS
from .run import guarded
from .series import FOLDER, Series, forget

__all__ = ["PACKAGES", "STEPS", "DriverChecks", "main", "prepare_checks", "written_sources"]

PACKAGES = (
    *("sparse", "dkms", "openssl", "diffutils", "perl", "tar", "xz-utils"),
    f"linux-headers-cloud-amd64/{BACKPORTS}",
)
"""Packages of the checks' root besides those that building kernels and modules takes. DKMS is for the tests of the
packaging."""

STEPS = 3 * ROOT_STEPS + 1
"""Progress steps that :func:`prepare_checks` may take."""

_CHECKPATCH = ("checkpatch.pl", "spelling.txt", "const_structs.checkpatch")
_CHECKPATCH_FOLDER = "usr/src/checkpatch"
_GENERATED = "Generated from the declarations of pviommu_abi"
# Debian's sparse 0.6.4 knows neither an operator that Linux 7 uses nor the constant expressions in the static
# assertions of its MODULE_INFO(). The compiler has checked both already.
_SPARSE_FLAGS = "-D__typeof_unqual__=__typeof__ '-D_Static_assert(...)='"
_NOT_IN_6_12 = "ALLOC_WITH_SIZEOF"  # recommends kmalloc_obj(), which is newer
_KERNEL_ONLY = "PREFER_KERNEL_TYPES,PREFER_DEFINED_ATTRIBUTE_MACRO,CAMELCASE,VOLATILE,NAKED_SSCANF"
"""Advice that has no meaning in user space, which lacks such macros and types, and where device memory is mapped
volatile."""

_COMPLAINT = re.compile(r"\b(warning|error): ")
_LAST_LINES = 10


class DriverChecks:
    """The checks, in a root that :func:`prepare_checks` made. A check gives its complaints, one line each.

    ``ran`` counts checks whose result was not known from an earlier run.
    """

    def __init__(self, root: Path, sandbox: Sandbox, run: Run = run) -> None:
        self.root = root
        self._sandbox = sandbox
        self._run = run
        self.ran = 0

    @property
    def releases(self) -> list[str]:
        """The kernels whose headers the root has, as ``uname -r`` names them, sorted."""
        return sorted(link.parent.name for link in (self.root / "usr/lib/modules").glob("*/build"))

    def series(self, files: Mapping[str, Path]) -> Series:
        """Programs to be run inside the root, on ``files``, one after the other."""
        return Series(self.root, self._sandbox, files, self._run)

    def modules(self, sources: Path, release: str) -> list[str]:
        """Compile the modules of ``sources`` for ``release`` with W=1, and run sparse on each of their files."""
        with self.series({str(path.relative_to(sources)): path for path in source_files(sources)}) as series:
            outcome = series.run(
                *("make", f"-j{os.cpu_count() or 1}", "-C", f"/lib/modules/{release}/build", f"M={FOLDER}"),
                # Not C=2: that runs a script to find out whether sparse is new enough, which Debian's headers lack.
                *("W=1", "KCFLAGS=-Werror", "KBUILD_CHECKSRC=2", f"CF={_SPARSE_FLAGS}", "modules"),
            )
        self.ran += not series.is_recalled
        lines = outcome.output.replace(f"{FOLDER}/", "").splitlines()
        complaints = [line for line in lines if _COMPLAINT.search(line)]
        if outcome.status != 0 and not complaints:
            complaints = [f"make ended with status {outcome.status}", *lines[-_LAST_LINES:]]
        seen = {match[1] for line in lines if (match := re.fullmatch(r"\s+CHECK\s+(\S+)", line))}
        expected = {path.name for path in source_files(sources) if path.suffix == ".c" and path.parent == sources}
        unseen = sorted(expected - seen)
        return complaints or [f"{name}: sparse was not run on it" for name in unseen]

    def style(self, guest_tools: Path) -> list[str]:
        """Run checkpatch --strict on all C files of ``guest_tools`` that are not generated."""
        programs = guest_tools / "programs"
        sources = written_sources(guest_tools)
        of_programs = [path for path in sources if path.is_relative_to(programs)]
        of_kernel = [path for path in sources if path not in of_programs]
        return [
            *self._checkpatch(guest_tools, of_kernel, _NOT_IN_6_12),
            *self._checkpatch(guest_tools, of_programs, f"{_NOT_IN_6_12},{_KERNEL_ONLY}"),
        ]

    def _checkpatch(self, guest_tools: Path, sources: Sequence[Path], ignored: str) -> list[str]:
        if not sources:
            return []
        names = [str(path.relative_to(guest_tools)) for path in sources]
        own = {f"checkpatch/{path.name}": path for path in (self.root / _CHECKPATCH_FOLDER).iterdir()}
        # It looks for names with capitals in the headers of a kernel, and leaves a list of them where it runs.
        script = 'mkdir checkpatch/include && exec perl checkpatch/checkpatch.pl --no-tree --root=checkpatch "$@"'
        options = ("--strict", "--terse", "--show-types", "--no-summary", "--quiet", "--ignore", ignored)
        with self.series({**own, **dict(zip(names, sources, strict=True))}) as series:
            outcome = series.run("env", "-C", FOLDER, "sh", "-c", script, "checkpatch", *options, "-f", *names)
        self.ran += not series.is_recalled
        lines = [line for line in outcome.output.splitlines() if line.strip()]
        if outcome.status != 0 and not lines:
            return [f"checkpatch ended with status {outcome.status}"]
        return lines

    def take_checkpatch(self, progress: Progress) -> None:
        """Unpack checkpatch from the kernel source unless that is done already. Raises EnvironmentProblem."""
        if (self.root / _CHECKPATCH_FOLDER).is_dir():
            progress.skip(1)
            return
        archives = sorted((self.root / "usr/src").glob("linux-source-*.tar.xz"))
        if not archives:
            raise EnvironmentProblem(f"{self.root} holds no kernel source", f"remove {self.root} to have it made again")
        progress.step("taking checkpatch out of the kernel source")
        top = archives[-1].name.removesuffix(".tar.xz")
        names = [f"{top}/scripts/{name}" for name in _CHECKPATCH]
        with tempfile.TemporaryDirectory(prefix="unpacking-", dir=self.root / "build") as folder:
            work = Path(folder)
            # --occurrence: stop reading after the last of them
            unpack = ["tar", "-xJf", f"/usr/src/{archives[-1].name}", "-C", f"/{work.relative_to(self.root)}"]
            outcome = self._run(self._sandbox.command(self.root, [*unpack, "--occurrence=1", *names]))
            if outcome.status != 0:
                raise EnvironmentProblem(
                    f"checkpatch cannot be taken out of {archives[-1]}: {outcome.output.strip()[-200:]}",
                    f"remove {self.root} to have it made anew",
                )
            keep([work / name for name in names], self.root / _CHECKPATCH_FOLDER)
        progress.done()


Provide = Callable[[Progress], DriverChecks]
"""Makes what the checks need; :func:`prepare_checks` is the real one."""


def written_sources(guest_tools: Path) -> list[Path]:
    """All ``.c`` and ``.h`` files below ``guest_tools`` but the generated ones, sorted."""
    found = (path for path in source_files(guest_tools) if path.suffix in (".c", ".h"))
    return [path for path in found if _GENERATED not in path.read_text()]


def prepare_checks(progress: Progress, *, environment: Mapping[str, str] = os.environ, run: Run = run) -> DriverChecks:
    """Provide the root of the checks. Raises EnvironmentProblem."""
    base = provision.provision(progress, environment=environment, run=run).root
    folder = provision.cache_folder(environment)
    # The lab's own kernels are built from the same source package in the same layer: it is fetched once for both.
    building = private_root(folder, BUILD_PACKAGES, progress, environment, run, base=base)
    root = private_root(folder, PACKAGES, progress, environment, run, base=building)
    checks = DriverChecks(root, find_sandbox(root, run), run)
    checks.take_checkpatch(progress)
    return checks


def main(
    arguments: Sequence[str] | None = None, *, out: TextIO | None = None, provide: Provide = prepare_checks
) -> int:
    """Check the guest's sources; returns the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/driver-check", description=__doc__)
    parser.add_argument("--only-setup", action="store_true", help="provide everything that the checks need, then stop")
    parser.add_argument("--again", action="store_true", help="also what was looked at before and has not changed")
    args = parser.parse_args(arguments)
    stream = sys.stdout if out is None else out
    return guarded("driver-check", lambda: _check_all(stream, provide, args))


def _check_all(stream: TextIO, provide: Provide, args: argparse.Namespace) -> int:
    progress = Progress(stream, STEPS)
    try:
        checks = provide(progress)
    finally:
        progress.close()
    if args.only_setup:
        return ExitStatus.PASSED
    if args.again:
        forget(checks.root)
    guest_tools = resources.guest_tools()
    count = 0
    for release in checks.releases:
        ran, complaints = checks.ran, checks.modules(guest_tools / "driver", release)
        count += _show(f"modules for {release}, W=1 and sparse", complaints, stream, known=checks.ran == ran)
    ran, complaints = checks.ran, checks.style(guest_tools)
    count += _show("checkpatch --strict", complaints, stream, known=checks.ran == ran)
    return ExitStatus.FAILED if count else ExitStatus.PASSED


def _show(what: str, complaints: Sequence[str], stream: TextIO, *, known: bool) -> int:
    for line in complaints:
        print(line, file=stream)
    number = f"{len(complaints) or 'no'} complaint{'' if len(complaints) == 1 else 's'}"
    print(f"{what}: {number}{' (known, nothing has changed)' if known else ''}", file=stream, flush=True)
    return len(complaints)


if __name__ == "__main__":
    sys.exit(main())
