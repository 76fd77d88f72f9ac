"""Private roots: folders that hold unpacked Debian packages, made once in the user's cache folder.

A root is named by a digest of what was asked for. It is made under another name and renamed when complete, so a killed
run leaves no half root; a lock makes the second of two runs wait for the first. What was downloaded stays until the
root is complete, and the next run goes on with it. A layer is a root that begins as a copy of another one, made of hard
links, and gets only the packages that this one lacks: it takes no more space than they do.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from .apt import SUITES, Package, PrivateApt, choose_mirror, require_tools
from .problems import EnvironmentProblem
from .processes import Run
from .progress import Progress

__all__ = ["BACKPORTS", "STEPS", "archives_in", "find_root", "locked", "private_root"]

STEPS = 3
"""Progress steps that making a root takes."""

BACKPORTS = "trixie-backports"
"""The suite of packages that are newer than Debian 13 itself."""

_HOST = ("amd64",)
_LAYOUT = "1"  # change it to have every root made anew
_COMPLETE = ".complete"
_DOWNLOADS = "downloads"
_KERNELS = "linux-"
"""How the names of their packages begin."""
_MOUNT_POINTS = ("dev", "proc", "tmp", "build")
_DOCUMENTS = tuple(f"usr/share/{name}" for name in ("bug", "doc", "info", "lintian", "locale", "man"))


def private_root(
    folder: Path,
    packages: Sequence[str],
    progress: Progress,
    environment: Mapping[str, str],
    run: Run,
    *,
    base: Path | None = None,
    architectures: Sequence[str] = _HOST,
) -> Path:
    """The root in ``folder`` that holds ``packages`` and what they need; with ``base``, a layer on that root.

    ``architectures``: as of :class:`.PrivateApt`. It is made if it is missing. Raises EnvironmentProblem.
    """
    root = folder / f"root-{_digest(packages, base, architectures)}"
    if _is_complete(root):
        progress.skip(STEPS)
        return root
    try:
        with locked(folder):
            if _is_complete(root):
                progress.skip(STEPS)
            else:
                _make(root, packages, progress, dict(environment), run, base, architectures)
    except OSError as problem:
        raise EnvironmentProblem(
            f"the cache folder {folder} cannot be filled: {problem}",
            "give it about 1.5 GB of space, or set XDG_CACHE_HOME to a folder that has it",
        ) from problem
    return root


def find_root(folder: Path, packages: Sequence[str], *, base: Path | None = None) -> Path | None:
    """The root, if :func:`private_root` has made it already for this host's architecture, else None."""
    root = folder / f"root-{_digest(packages, base, _HOST)}"
    return root if _is_complete(root) else None


def archives_in(root: Path) -> list[str]:
    """File names of the package archives that were unpacked in ``root``, those of a layer's base included."""
    return (root / _COMPLETE).read_text().splitlines()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only maker in ``folder``, which is created if missing; a killed maker's ``making-*`` are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Whoever holds the lock is the only maker, so anything unfinished is left from a killed run.
        for leftover in folder.glob("making-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def _digest(packages: Sequence[str], base: Path | None, architectures: Sequence[str]) -> str:
    recipe: dict[str, object] = {"layout": _LAYOUT, "packages": packages, "suites": SUITES}
    if base is not None:
        recipe["base"] = base.name
    if tuple(architectures) != _HOST:
        recipe["architectures"] = architectures
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]


def _is_complete(root: Path) -> bool:
    return (root / _COMPLETE).is_file()


def _make(
    root: Path,
    packages: Sequence[str],
    progress: Progress,
    environment: dict[str, str],
    run: Run,
    base: Path | None,
    architectures: Sequence[str],
) -> None:
    progress.step("reading the package indices")
    require_tools(run, platform.machine())
    mirror = choose_mirror(environment, run)
    present = [] if base is None else archives_in(base)
    downloads = root.parent / _DOWNLOADS
    making = Path(tempfile.mkdtemp(prefix="making-", dir=root.parent))
    try:
        apt = PrivateApt(downloads, mirror, run, architectures=architectures)
        apt.update()
        wanted = [archive for archive in _resolved(apt, packages) if archive.file_name not in present]
        progress.done()

        size = sum(archive.size for archive in wanted) // 1_000_000
        progress.step(f"downloading {len(wanted)} packages, {size} MB")
        files = apt.download(wanted, progress.update)
        progress.done()

        progress.step(f"unpacking {len(files)} packages")
        new = making / "root"
        _begin(new, base)
        _unpack(files, new, progress, run)
        progress.done()

        names = [*present, *(archive.file_name for archive in wanted)]
        (new / _COMPLETE).write_text("\n".join(names) + "\n")
        shutil.rmtree(root, ignore_errors=True)
        new.rename(root)
        shutil.rmtree(downloads, ignore_errors=True)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _resolved(apt: PrivateApt, packages: Sequence[str]) -> list[Package]:
    """The archives for ``packages``. Of those of another architecture, and of what these need, all but kernels is left
    out unless it is asked for: it would not run here, and a compiler for instance would take the cross compiler's
    place.
    """
    foreign = [package for package in packages if ":" in package]
    native = [package for package in packages if package not in foreign]
    found = apt.resolve(native) if native else []
    if foreign:
        names = [package.partition(":")[0] for package in foreign]
        for archive in apt.resolve(foreign):
            is_usable = archive.architecture in (*_HOST, "all")
            if is_usable or archive.name in names or archive.name.startswith(_KERNELS):
                found += [archive] if archive not in found else []
    return found


def _begin(new: Path, base: Path | None) -> None:
    if base is None:
        new.mkdir()
        return
    # Folders that runs write to, and the list of packages, are not shared with the base; nothing else is ever changed
    # in place. Documents are of no use, and where one version of a package has a folder, a newer one may have a link.
    own = {base / name for name in (_COMPLETE, *_MOUNT_POINTS, *_DOCUMENTS)}

    def skipped(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if Path(folder, name) in own}

    shutil.copytree(base, new, symlinks=True, copy_function=os.link, ignore=skipped)


def _unpack(files: list[Path], root: Path, progress: Progress, run: Run) -> None:
    # base-files brings the links /bin -> usr/bin and so on; a package that is unpacked before it could make folders of
    # them.
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
    for mount_point in _MOUNT_POINTS:
        (root / mount_point).mkdir(exist_ok=True)


def _unpack_one(file: Path, root: Path, run: Run) -> None:
    # tar, which does the work, removes a file before it writes one of that name, so the base's file does not change.
    outcome = run(["dpkg-deb", "-x", str(file), str(root)])
    if outcome.status != 0:
        raise EnvironmentProblem(
            f"{file.name} cannot be unpacked: {outcome.output.strip()[-200:]}", "check the space in the cache folder"
        )
