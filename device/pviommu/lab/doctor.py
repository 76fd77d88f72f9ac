"""``pviommu doctor``: what this machine can run, what will be fetched, and what is missing and how to get it.

It makes and fetches nothing, and uses the network only with ``--network``.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TextIO

from libvfio_user import Generation, LibraryError
from libvfio_user.raw import SONAME

from .. import c_library, resources
from ..cache import CacheError
from ..exit_status import ExitStatus
from . import accelerator, kernels
from .apt import choose_mirror, require_tools
from .build import find_sandbox
from .guest_settings import KERNELS
from .problems import EnvironmentProblem
from .processes import Run, run
from .provision import Toolbox, cache_folder, find_toolbox
from .vm import nic_backend

__all__ = ["Finding", "Host", "Status", "add_arguments", "examine", "main"]

_GIB = 1 << 30
_ROOT_BYTES = 1_500_000_000
_KERNEL_BYTES = 5_000_000_000
_MEMORY_BYTES = 2 * _GIB  # what a guest of the default size touches, with server and QEMU
_NETWORK_SECONDS = 10.0
_HOW_KERNEL = {name: f"pviommu lab run --kernel {name} --only-setup" for name in KERNELS}


class Status(Enum):
    """What a finding means for ``pviommu lab run``."""

    OK = "ok"
    LATER = "will be fetched"
    NOTE = "note"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: ``how`` says how to get what is not there."""

    status: Status
    subject: str
    text: str
    how: str = ""


@dataclass(frozen=True, slots=True)
class Host:
    """The machine that is examined, so that tests can put another in its place."""

    run: Run = run
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    machine: str = platform.machine()
    memory_information: Path = Path("/proc/meminfo")
    kvm: Path = accelerator.KVM
    qemu: str | None = None
    libvfio_user: str = SONAME
    """what the dynamic linker is asked for"""
    open_url: Callable[[str], None] | None = None
    """opens an address, or raises OSError; None: the network is not used"""

    @property
    def cache(self) -> Path:
        """The lab's cache folder. Raises EnvironmentProblem."""
        return cache_folder(self.environment)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pviommu doctor``."""
    parser.add_argument("--network", action="store_true", help="also ask the Debian mirror whether it answers")
    parser.add_argument(
        "--qemu",
        metavar="PATH",
        help="the QEMU that would be used; default: the host's own if suitable, else Debian's",
    )


def main(args: argparse.Namespace, *, out: TextIO | None = None, host: Host | None = None) -> int:
    """Examine the machine; the exit status is 0 if ``pviommu lab run`` can work here, else 3."""
    stream = sys.stdout if out is None else out
    examined = host or Host(qemu=args.qemu, open_url=_open_url if args.network else None)
    missing = False
    for finding in examine(examined):
        missing |= finding.status is Status.MISSING
        print(f"{finding.status.value:<15}  {finding.subject:<16}  {finding.text}", file=stream)
        if finding.how:
            print(f"{'':<35}{finding.how}", file=stream)
    print(
        "\npviommu lab run cannot work here: see what is missing" if missing else "\npviommu lab run can work here",
        file=stream,
    )
    return ExitStatus.ENVIRONMENT if missing else ExitStatus.PASSED


def examine(host: Host) -> Iterator[Finding]:
    """Every finding, the most basic first."""
    yield _machine(host)
    yield _python()
    try:
        _ = host.cache
    except EnvironmentProblem as problem:  # without a cache folder nothing can be kept, whatever else there is
        yield _missing("cache", problem)
        yield from _of_the_machine(host)
        return
    try:
        toolbox = find_toolbox(qemu=host.qemu, environment=host.environment, run=host.run)
    except EnvironmentProblem as problem:
        yield _missing("QEMU", problem)
        toolbox = None
    else:
        yield _qemu(host, toolbox)
    yield from _packages(host, toolbox)
    yield _space(host, toolbox)
    yield _sandbox(host, toolbox)
    yield _compiler(toolbox)
    yield from _kernels(host, toolbox)
    yield _accelerator(host, toolbox)
    yield _libvfio_user(host)
    yield from _of_the_machine(host)


def _of_the_machine(host: Host) -> Iterator[Finding]:
    yield _cores()
    yield _memory(host)
    yield _shared_memory()


def _missing(subject: str, problem: EnvironmentProblem) -> Finding:
    return Finding(Status.MISSING, subject, problem.what, problem.how_to_get_it)


def _machine(host: Host) -> Finding:
    if host.machine not in ("x86_64", "amd64") or sys.platform != "linux":
        return Finding(Status.MISSING, "machine", f"{sys.platform} {host.machine}", "use an x86-64 Linux host")
    return Finding(Status.OK, "machine", f"Linux {platform.release()} {host.machine}")


def _python() -> Finding:
    place = (
        f"virtual environment {sys.prefix}"
        if sys.prefix != sys.base_prefix
        else f"no virtual environment, {sys.prefix}"
    )
    return Finding(Status.OK, "Python", f"{platform.python_version()}, {place}")


def _qemu(host: Host, toolbox: Toolbox | None) -> Finding:
    if toolbox is None:
        return Finding(Status.LATER, "QEMU", "with the packages")
    place = "in the cache" if str(toolbox.root) in toolbox.qemu_command[0] else toolbox.qemu_command[0]
    if nic_backend(toolbox, host.run).startswith("user,"):
        return Finding(Status.OK, "QEMU", f"{toolbox.qemu_version} with vfio-user-pci, {place}")
    return Finding(
        Status.NOTE,
        "QEMU",
        f"{toolbox.qemu_version} with vfio-user-pci, {place}, without the user network: the guest's NIC has no peer",
        "use one that was built with libslirp, or remove the host's own, so that the lab fetches Debian's",
    )


def _packages(host: Host, toolbox: Toolbox | None) -> Iterator[Finding]:
    """What fetching packages takes; it is needed only as long as they are not there."""
    needed = toolbox is None
    if toolbox is not None:
        yield Finding(Status.OK, "packages", f"in {toolbox.root}")
    try:
        require_tools(host.run, host.machine)
        mirror = choose_mirror(dict(host.environment), host.run)
    except EnvironmentProblem as problem:
        # What is in the cache works without it; other kernels would have to be fetched.
        status = Status.MISSING if needed else Status.NOTE
        yield Finding(status, "Debian packages", problem.what, problem.how_to_get_it)
        return
    if needed:
        yield Finding(Status.LATER, "packages", f"about 150 MB from {mirror}")
    yield Finding(Status.OK, "Debian packages", f"apt and dpkg are here, the mirror is {mirror}")
    if host.open_url is not None:
        yield _mirror_answers(mirror, host.open_url, needed=needed)


def _mirror_answers(mirror: str, open_url: Callable[[str], None], *, needed: bool) -> Finding:
    address = f"{mirror.removeprefix('mirror+')}/dists/trixie/InRelease"
    try:
        open_url(address)
    except (OSError, ValueError) as problem:
        status = Status.MISSING if needed else Status.NOTE
        return Finding(status, "mirror", f"{address}: {problem}", "name another one with PVIOMMU_DEBIAN_MIRROR")
    return Finding(Status.OK, "mirror", "it answers")


def _open_url(address: str) -> None:
    with urllib.request.urlopen(address, timeout=_NETWORK_SECONDS) as answer:
        answer.read(1)


def _space(host: Host, toolbox: Toolbox | None) -> Finding:
    place = host.cache
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    text = f"{host.cache}, {free / 1e9:.1f} GB free"
    how = "free some space, or set XDG_CACHE_HOME to a folder that has it"
    if not os.access(place, os.W_OK | os.X_OK):
        return Finding(Status.MISSING, "cache", f"{place} cannot be written", how)
    if toolbox is None and free < _ROOT_BYTES:
        return Finding(Status.MISSING, "cache", f"{text}, {_ROOT_BYTES / 1e9:.1f} GB are needed", how)
    if free < _KERNEL_BYTES:
        return Finding(Status.NOTE, "cache", f"{text}: building a kernel needs {_KERNEL_BYTES / 1e9:.0f} GB", how)
    return Finding(Status.OK, "cache", text)


def _sandbox(host: Host, toolbox: Toolbox | None) -> Finding:
    try:
        find_sandbox(toolbox.root if toolbox else Path("/"), host.run)
    except EnvironmentProblem as problem:
        return _missing("change of root", problem)
    return Finding(Status.OK, "change of root", "modules can be built in the private root")


def _compiler(toolbox: Toolbox | None) -> Finding:
    own = "with make of the host for --kernel PATH" if shutil.which("make") else "no make of the host for --kernel PATH"
    if toolbox is None:
        return Finding(Status.LATER, "compiler", f"with the packages; {own}")
    return Finding(Status.OK, "compiler", f"gcc of the private root; {own}")


def _kernels(host: Host, toolbox: Toolbox | None) -> Iterator[Finding]:
    for name in KERNELS:
        if toolbox is not None and kernels.has_kernel(
            toolbox, name, resources.guest_tools(), environment=host.environment
        ):
            release = f"Linux {toolbox.kernel_release}" if name == toolbox.kernel else "ready"
            yield Finding(Status.OK, f"kernel {name}", release)
        else:
            text = "built when first needed" if name.startswith("lab") else "when first needed"
            yield Finding(Status.LATER, f"kernel {name}", text, _HOW_KERNEL[name])


def _accelerator(host: Host, toolbox: Toolbox | None) -> Finding:
    how = "enable (nested) virtualisation and give this user access, for guests that run several times faster"
    if not host.kvm.exists():
        return Finding(Status.NOTE, "KVM", f"there is no {host.kvm}: TCG is used", how)
    if not os.access(host.kvm, os.R_OK | os.W_OK):
        return Finding(Status.NOTE, "KVM", f"{host.kvm} is not for this user: TCG is used", how)
    known = None if toolbox is None else accelerator.remembered_trial(toolbox, host.cache)
    if known is None:
        return Finding(Status.OK, "KVM", f"{host.kvm} is there; the first run tries whether a guest runs under it")
    if not known:
        return Finding(Status.NOTE, "KVM", f"{host.kvm} is there, but no guest ran under it: TCG is used", how)
    return Finding(Status.OK, "KVM", "a guest ran under it")


def _libvfio_user(host: Host) -> Finding:
    """The lab does not need it."""
    try:
        found = c_library.find(host.environment, soname=host.libvfio_user)
    except LibraryError as problem:
        return Finding(Status.NOTE, "libvfio-user", f"{problem.path}: {problem.problem}", problem.how)
    except CacheError as problem:
        return Finding(Status.NOTE, "libvfio-user", str(problem))
    age = (
        "of 2022, as QEMU bundles it" if found.generation is Generation.OF_2022 else "of a newer interface, never tried"
    )
    return Finding(Status.OK, "libvfio-user", f"{age}: {found.path}")


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        return Finding(Status.NOTE, "cores", "1: server and guest take turns", "give this machine 2 or more")
    return Finding(Status.OK, "cores", str(cores))


def _memory(host: Host) -> Finding:
    values = dict(line.split(":", 1) for line in host.memory_information.read_text().splitlines() if ":" in line)
    available = int(values.get("MemAvailable", "0 kB").split()[0]) * 1024
    text = f"{available / _GIB:.1f} GiB available"
    if available < _MEMORY_BYTES:
        return Finding(Status.NOTE, "memory", text, "use --memory 1G; tests above 4 GiB then fail")
    return Finding(Status.OK, "memory", text)


def _shared_memory() -> Finding:
    try:
        os.close(os.memfd_create("pviommu-doctor"))
    except OSError as problem:
        return Finding(Status.MISSING, "shared memory", f"memfd_create: {problem.strerror}", "allow memfd_create")
    shm = Path("/dev/shm")
    tail = f"; /dev/shm, which is not needed, has {shutil.disk_usage(shm).free / _GIB:.1f} GiB" if shm.is_dir() else ""
    return Finding(Status.OK, "shared memory", f"memfd works{tail}")
