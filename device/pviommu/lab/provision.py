"""Provides QEMU, Debian's guest kernel with its headers, a compiler and busybox, once, in the user's cache folder."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import cache
from .architecture import AMD64, ARM64, Architecture
from .problems import EnvironmentProblem
from .processes import Run, run
from .progress import Progress
from .roots import BACKPORTS, STEPS, find_root, private_root

__all__ = [
    "STEPS",
    "Qemu",
    "Toolbox",
    "architectures",
    "arm_qemu",
    "cache_folder",
    "find_qemu",
    "find_toolbox",
    "provision",
]

MINIMUM_QEMU = (10, 1)
_ARM_PACKAGES = tuple(f"{name}/{BACKPORTS}" for name in ARM64.emulator_packages)
"""On demand, in a layer of their own: without what guests are built with."""


@dataclass(frozen=True, slots=True)
class Toolbox:
    """What a lab run needs. Paths are absolute; ``root`` holds an amd64 Debian with compiler and kernel headers, of a
    foreign guest a cross compiler and the headers of its kernel.
    """

    root: Path
    qemu_command: tuple[str, ...]
    qemu_environment: Mapping[str, str]
    qemu_version: str
    kernel_image: Path
    kernel_release: str
    busybox: Path
    kernel_tree: Path | None = None
    """build tree of a kernel that is not from a package; None: Debian's kernel, whose headers are in ``root``. The
    compiler of ``root`` has built a tree that lies within it"""
    kernel: str = "debian"
    """the kernel's name among the lab's, or ``own``"""
    kernel_arguments: tuple[str, ...] = ()
    """the boot arguments of this kernel"""
    kernel_modules: Path | None = None
    """folder of the kernel's own modules: an installed one or a build tree; None: the package's in ``root``"""
    vmlinux: Path | None = None
    """the kernel with its symbols, for a debugger, if there is one"""
    architecture: Architecture = AMD64
    """the guest's"""
    host_busybox: Path | None = None
    """one with the same applets that runs here, where the guest's does not"""

    @property
    def runnable_busybox(self) -> Path:
        """A busybox that can be asked here what it can."""
        return self.host_busybox or self.busybox

    @property
    def modules(self) -> Path:
        """The kernel's own modules."""
        return self.kernel_modules or self.root / "usr/lib/modules" / self.kernel_release

    @property
    def versions(self) -> dict[str, str]:
        """Version strings for the results."""
        return {"qemu": self.qemu_version, "kernel": self.kernel_release}


@dataclass(frozen=True, slots=True)
class Qemu:
    """A QEMU that runs here."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    version: str


def cache_folder(environment: Mapping[str, str]) -> Path:
    """The lab's cache folder, which need not exist. Raises EnvironmentProblem if nothing can be run from it."""
    try:
        folder = cache.cache_folder(environment)
        cache.check_folder(folder)
    except cache.CacheError as problem:
        raise EnvironmentProblem(str(problem), cache.HOW) from problem
    return folder


def find_qemu(program: str, run: Run = run) -> str | None:
    """The version of ``program`` if it can attach vfio-user devices (QEMU 10.1 or later), else None."""
    version = _qemu_version(run([program, "--version"]).output)
    if version is None or tuple(int(n) for n in version.split(".")[:2]) < MINIMUM_QEMU:
        return None
    return version if run([program, "-machine", "none", "-device", "vfio-user-pci,help"]).status == 0 else None


def provision(
    progress: Progress,
    *,
    qemu: str | None = None,
    architecture: Architecture = AMD64,
    environment: Mapping[str, str] = os.environ,
    run: Run = run,
) -> Toolbox:
    """Return the toolbox for guests of ``architecture``, after making what is missing. A foreign one's is a layer on
    this host's.

    ``qemu`` names a QEMU to use; without it, the host's own is used if it is suitable, else Debian's in the private
    root. Raises EnvironmentProblem.
    """
    if architecture.is_foreign:
        base = provision(progress, environment=environment, run=run)
        host = _host_qemu(qemu, architecture, run)
        root = private_root(
            *(cache_folder(environment), _packages(architecture, host), progress, environment, run),
            base=base.root,
            architectures=architectures(architecture),
        )
        return _foreign_toolbox(base, root, architecture, host or _private_qemu(root, architecture, run))
    host = _host_qemu(qemu, architecture, run)
    root = private_root(cache_folder(environment), _packages(architecture, host), progress, environment, run)
    return _toolbox(root, host or _private_qemu(root, architecture, run))


def find_toolbox(
    *, qemu: str | None = None, environment: Mapping[str, str] = os.environ, run: Run = run
) -> Toolbox | None:
    """The toolbox, if :func:`provision` would not have to fetch anything for it, else None.

    Raises EnvironmentProblem.
    """
    host = _host_qemu(qemu, AMD64, run)
    root = find_root(cache_folder(environment), _packages(AMD64, host))
    return None if root is None else _toolbox(root, host or _private_qemu(root, AMD64, run))


def architectures(architecture: Architecture) -> tuple[str, ...]:
    """Whose packages apt has to know for guests of ``architecture``."""
    return tuple(dict.fromkeys((AMD64.name, architecture.name)))


def _packages(architecture: Architecture, host: Qemu | None) -> tuple[str, ...]:
    if host:
        return architecture.packages
    emulator = (*(f"{name}/{BACKPORTS}" for name in architecture.emulator_packages), "ipxe-qemu")
    return (*emulator, *architecture.packages)


def arm_qemu(progress: Progress, *, environment: Mapping[str, str] = os.environ, run: Run = run) -> Qemu:
    """Debian's QEMU for machines of Arm, after fetching what is missing. Raises EnvironmentProblem."""
    base = provision(progress, environment=environment, run=run).root
    root = private_root(cache_folder(environment), _ARM_PACKAGES, progress, environment, run, base=base)
    return _private_qemu(root, ARM64, run)


def _qemu_version(output: str) -> str | None:
    match = re.search(r"version (\d+\.\d+(?:\.\d+)?)", output)
    return match[1] if match else None


def _host_qemu(named: str | None, architecture: Architecture, run: Run) -> Qemu | None:
    program = named or shutil.which(architecture.emulator)
    if program is None:
        return None
    version = find_qemu(program, run)
    if version is not None:
        return Qemu((program,), {}, version)
    if named is None:
        return None
    if shutil.which(program) is None:
        what = f"--qemu {program}: no such program"
    else:
        what = f"--qemu {program} is not a QEMU >= 10.1 with the device vfio-user-pci"
    raise EnvironmentProblem(what, "leave --qemu out to let the lab fetch one")


def _private_qemu(root: Path, architecture: Architecture, run: Run) -> Qemu:
    libraries = root / "usr/lib/x86_64-linux-gnu"
    # Run through the root's own loader: the host's C library may be older than QEMU needs.
    command = (
        *(str(root / "lib64/ld-linux-x86-64.so.2"), "--library-path", str(libraries)),
        str(root / "usr/bin" / architecture.emulator),
        *("-L", str(root / "usr/share/qemu"), "-L", str(root / "usr/share/seabios")),
    )
    environment = {"QEMU_MODULE_DIR": str(libraries / "qemu")}
    outcome = run([*command, "--version"])
    version = _qemu_version(outcome.output)
    if version is None:
        raise EnvironmentProblem(
            f"the QEMU in {root} does not run: {outcome.output.strip()[-200:]}",
            f"remove {root} to have it made again, or name your own with --qemu",
        )
    return Qemu(command, environment, version)


def _toolbox(root: Path, qemu: Qemu) -> Toolbox:
    images = sorted((root / "boot").glob("vmlinuz-*"))
    busybox = root / "usr/bin/busybox"
    if not images or not busybox.is_file():
        raise EnvironmentProblem(f"{root} holds no kernel or no busybox", f"remove {root} to have it made again")
    release = images[-1].name.removeprefix("vmlinuz-")
    return Toolbox(root, qemu.command, qemu.environment, qemu.version, images[-1], release, busybox)


def _foreign_toolbox(base: Toolbox, root: Path, architecture: Architecture, qemu: Qemu) -> Toolbox:
    images = sorted((root / "boot").glob(f"vmlinuz-*-{architecture.flavours[base.kernel]}"))
    busybox = root / "usr/bin/busybox"
    if not images or not busybox.is_file():
        raise EnvironmentProblem(
            f"{root} holds no kernel or no busybox for {architecture.name}", f"remove {root} to have it made again"
        )
    release = images[-1].name.removeprefix("vmlinuz-")
    return Toolbox(
        *(root, qemu.command, qemu.environment, qemu.version, images[-1], release, busybox),
        architecture=architecture,
        host_busybox=base.busybox,
    )
