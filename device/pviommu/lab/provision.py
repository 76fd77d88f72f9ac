"""Provides QEMU, a guest kernel with its headers, a compiler and busybox, once, in the user's cache folder.

The packages are unpacked into a private root, named by a digest of what was asked for. It is made under another name
and renamed when complete, so a killed run leaves no half root; a lock makes the second of two runs wait for the first.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pviommu.lab.apt import SUITES, PrivateApt, choose_mirror, require_tools
from pviommu.lab.problems import EnvironmentProblem
from pviommu.lab.processes import Run, run
from pviommu.lab.progress import Progress

__all__ = ["STEPS", "Toolbox", "cache_folder", "find_qemu", "provision"]

STEPS = 3
"""Progress steps that provisioning may take."""

MINIMUM_QEMU = (10, 1)
_LAYOUT = "1"  # change it to have every root made anew
_BACKPORTS = "trixie-backports"
_QEMU_PACKAGES = (
    *(f"{name}/{_BACKPORTS}" for name in ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")),
    "ipxe-qemu",
)
_GUEST_PACKAGES = (
    *("linux-image-cloud-amd64", "linux-headers-cloud-amd64", "busybox-static"),
    *("make", "gcc", "libc6-dev", "dash", "bash", "coreutils", "base-files", "libc-bin"),
    *("mawk", "sed", "grep", "findutils", "kmod"),
)


@dataclass(frozen=True, slots=True)
class Toolbox:
    """What a lab run needs. Paths are absolute; ``root`` holds an amd64 Debian with compiler and kernel headers."""

    root: Path
    qemu_command: tuple[str, ...]
    qemu_environment: Mapping[str, str]
    qemu_version: str
    kernel_image: Path
    kernel_release: str
    busybox: Path
    kernel_tree: Path | None = None
    """build tree of the user's own kernel; None: Debian's, whose headers are in ``root``"""

    @property
    def modules(self) -> Path:
        """The kernel package's own modules."""
        return self.root / "usr/lib/modules" / self.kernel_release

    @property
    def versions(self) -> dict[str, str]:
        """Version strings for the results."""
        return {"qemu": self.qemu_version, "kernel": self.kernel_release}


@dataclass(frozen=True, slots=True)
class _Qemu:
    command: tuple[str, ...]
    environment: Mapping[str, str]
    version: str


def cache_folder(environment: Mapping[str, str]) -> Path:
    """``$XDG_CACHE_HOME/pviommu``, else ``~/.cache/pviommu``."""
    base = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base).resolve() / "pviommu"


def find_qemu(program: str, run: Run = run) -> str | None:
    """The version of ``program`` if it can attach vfio-user devices (QEMU 10.1 or later), else None."""
    version = _qemu_version(run([program, "--version"]).output)
    if version is None or tuple(int(n) for n in version.split(".")[:2]) < MINIMUM_QEMU:
        return None
    return version if run([program, "-device", "vfio-user-pci,help"]).status == 0 else None


def provision(
    progress: Progress, *, qemu: str | None = None, environment: Mapping[str, str] = os.environ, run: Run = run
) -> Toolbox:
    """Give the toolbox, making what is missing.

    ``qemu`` names a QEMU to use; without it the host's own is used if it is able, else Debian's in the private root.
    Raises EnvironmentProblem.
    """
    host = _host_qemu(qemu, run)
    packages = _GUEST_PACKAGES if host else (*_QEMU_PACKAGES, *_GUEST_PACKAGES)
    folder = cache_folder(environment)
    root = folder / f"root-{_digest(packages)}"
    if _complete(root):
        progress.skip(STEPS)
    else:
        try:
            with _locked(folder):
                if _complete(root):
                    progress.skip(STEPS)
                else:
                    _make_root(root, packages, progress, dict(environment), run)
        except OSError as problem:
            raise EnvironmentProblem(
                f"the cache folder {folder} cannot be filled: {problem}",
                "give it about 1.5 GB of space, or set XDG_CACHE_HOME to a folder that has it",
            ) from problem
    return _toolbox(root, host or _private_qemu(root, run))


def _qemu_version(output: str) -> str | None:
    match = re.search(r"version (\d+\.\d+(?:\.\d+)?)", output)
    return match[1] if match else None


def _host_qemu(named: str | None, run: Run) -> _Qemu | None:
    program = named or shutil.which("qemu-system-x86_64")
    if program is None:
        return None
    version = find_qemu(program, run)
    if version is not None:
        return _Qemu((program,), {}, version)
    if named is None:
        return None
    if shutil.which(program) is None:
        what = f"--qemu {program}: no such program"
    else:
        what = f"--qemu {program} is not a QEMU >= 10.1 with the device vfio-user-pci"
    raise EnvironmentProblem(what, "leave --qemu out to let the lab fetch one")


def _private_qemu(root: Path, run: Run) -> _Qemu:
    libraries = root / "usr/lib/x86_64-linux-gnu"
    # Run through the root's own loader: the host's C library may be older than QEMU needs.
    command = (
        *(str(root / "lib64/ld-linux-x86-64.so.2"), "--library-path", str(libraries)),
        str(root / "usr/bin/qemu-system-x86_64"),
        *("-L", str(root / "usr/share/qemu"), "-L", str(root / "usr/share/seabios")),
    )
    environment = {"QEMU_MODULE_DIR": str(libraries / "qemu")}
    outcome = run([*command, "--version"])
    version = _qemu_version(outcome.output)
    if version is None:
        raise EnvironmentProblem(
            f"the QEMU in {root} does not run: {outcome.output.strip()[-200:]}",
            f"remove {root} to have it made anew, or name your own with --qemu",
        )
    return _Qemu(command, environment, version)


def _digest(packages: tuple[str, ...]) -> str:
    recipe = json.dumps({"layout": _LAYOUT, "packages": packages, "suites": SUITES})
    return hashlib.sha256(recipe.encode()).hexdigest()[:16]


def _complete(root: Path) -> bool:
    return (root / ".complete").is_file()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _remove_leftovers(folder)
        yield


def _remove_leftovers(folder: Path) -> None:
    # Whoever holds the lock is the only maker, so any unfinished root is a killed run's.
    for leftover in folder.glob("making-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _make_root(
    root: Path, packages: tuple[str, ...], progress: Progress, environment: dict[str, str], run: Run
) -> None:
    progress.step("reading the package indices")
    require_tools(run, platform.machine())
    mirror = choose_mirror(environment, run)
    making = Path(tempfile.mkdtemp(prefix="making-", dir=root.parent))
    try:
        apt = PrivateApt(making / "apt", mirror, run)
        apt.update()
        archives = apt.resolve(packages)
        progress.done()

        size = sum(archive.size for archive in archives) // 1_000_000
        progress.step(f"downloading {len(archives)} packages, {size} MB")
        files = apt.download(packages, progress.update)
        progress.done()

        progress.step(f"unpacking {len(files)} packages")
        new = making / "root"
        new.mkdir()
        _unpack(files, new, progress, run)
        progress.done()

        (new / ".complete").write_text("\n".join(archive.file_name for archive in archives) + "\n")
        shutil.rmtree(root, ignore_errors=True)
        new.rename(root)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _unpack(files: list[Path], root: Path, progress: Progress, run: Run) -> None:
    # base-files brings the links /bin -> usr/bin and so on; whatever comes before it could make them folders.
    first = [file for file in files if file.name.startswith("base-files_")]
    for file in first:
        _unpack_one(file, root, run)
    others = [file for file in files if file not in first]
    with ThreadPoolExecutor(max_workers=2) as pool:
        for count, _ in enumerate(pool.map(lambda file: _unpack_one(file, root, run), others), start=1):
            progress.update(count / len(others))
    awk = root / "usr/bin/awk"  # made by an alternative's script that does not run here
    if not awk.is_symlink():
        awk.symlink_to("mawk")
    for mount_point in ("dev", "proc", "tmp", "build"):
        (root / mount_point).mkdir(exist_ok=True)


def _unpack_one(file: Path, root: Path, run: Run) -> None:
    outcome = run(["dpkg-deb", "-x", str(file), str(root)])
    if outcome.status != 0:
        raise EnvironmentProblem(
            f"{file.name} cannot be unpacked: {outcome.output.strip()[-200:]}", "check the space in the cache folder"
        )


def _toolbox(root: Path, qemu: _Qemu) -> Toolbox:
    images = sorted((root / "boot").glob("vmlinuz-*"))
    busybox = root / "usr/bin/busybox"
    if not images or not busybox.is_file():
        raise EnvironmentProblem(f"{root} holds no kernel or no busybox", f"remove {root} to have it made anew")
    release = images[-1].name.removeprefix("vmlinuz-")
    return Toolbox(root, qemu.command, qemu.environment, qemu.version, images[-1], release, busybox)
