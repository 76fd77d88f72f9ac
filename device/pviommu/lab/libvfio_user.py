"""``pviommu build-libvfio-user``: the C library libvfio-user, from the source package of Debian's QEMU.

No distribution has a package of it, but QEMU's source has a copy of 2022 under ``subprojects/libvfio-user``
(BSD-3-Clause). That folder alone is unpacked; it is compiled in a private root, with json-c inside, so that the result
needs a C library only, also an older one. It lies in the cache in a folder named by what it was built from and with,
beside its source; the library's own name has a digest of its content, which is compared before it is loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from libvfio_user import Library, LibraryError, find_library
from libvfio_user.raw import SONAME

from ..c_library import HOW, whole_library
from ..cache import CacheError, content_digest
from ..exit_status import ExitStatus
from .apt import PrivateApt, choose_mirror, require_tools
from .build import find_sandbox
from .kept import keep
from .problems import EnvironmentProblem, RunError
from .processes import Run, run
from .progress import Progress
from .provision import cache_folder, find_toolbox
from .roots import STEPS as ROOT_STEPS
from .roots import locked, private_root

__all__ = [
    "SAMPLE_STEPS",
    "STEPS",
    "add_arguments",
    "build",
    "compile_in",
    "compiler_root",
    "headers",
    "main",
    "provide",
    "samples",
]

STEPS = ROOT_STEPS + 3
SAMPLE_STEPS = ROOT_STEPS + 1

_LAYOUT = "2"  # change it to have it made anew
_PACKAGE = "qemu"
_SUITES = ("trixie", "trixie-updates")  # those whose QEMU has the copy; a backport need not
_FOLDER = "subprojects/libvfio-user/"
_JSON_C = ("libjson-c-dev",)
_COMPILER = ("gcc", "libc6-dev", "dash", "coreutils", "base-files", "libc-bin")
_NOT_BUILT = ("tran_pipe.c",)  # for the library's own tests
_LANGUAGE = ("-std=gnu99", "-D_GNU_SOURCE", "-O2", "-Iinclude", "-Ilib", "-I/usr/include/json-c")
_OPTIONS = (
    *(*_LANGUAGE, "-shared", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE", "-fno-stack-protector"),
    *("-Wl,-soname,libvfio-user.so.0", "-Wl,--exclude-libs,ALL"),
)
_LIBRARIES = ("-l:libjson-c.a",)
_SAMPLES: dict[str, tuple[str, ...]] = {
    "client": ("lib/migration.c", "lib/tran.c", "lib/tran_sock.c"),  # which the library does not export
    "gpio-pci-idio-16": (),
    "lspci": (),
    "null": (),
    "server": (),
}
_SAMPLE_OPTIONS = (*_LANGUAGE, "-Wl,-rpath,$ORIGIN")
# json-c of Debian 13 calls what glibc before 2.38 has not, by the name that its own headers give to strtol and others.
_OLDER_GLIBC = """\
#define PLAIN(type, name) \\
    extern type plain_##name(const char *, char **, int) __asm__(#name); \\
    type __isoc23_##name(const char *text, char **end, int base); \\
    type __isoc23_##name(const char *text, char **end, int base) { return plain_##name(text, end, base); }
PLAIN(long, strtol)
PLAIN(unsigned long, strtoul)
PLAIN(long long, strtoll)
PLAIN(unsigned long long, strtoull)
"""
_ADDED = "older-glibc.c"


def headers(library: Path) -> Path:
    """The folder of the headers that a library in the cache was built with."""
    return library.parent / "source/include"


def compiler_root(progress: Progress, environment: Mapping[str, str] = os.environ, run: Run = run) -> Path:
    """A private root with a C compiler and json-c: a layer upon the lab's, or a small one without the lab's packages.

    Raises EnvironmentProblem.
    """
    folder = cache_folder(environment)
    toolbox = None
    with contextlib.suppress(EnvironmentProblem):  # about QEMU, which this does not need
        toolbox = find_toolbox(environment=environment, run=run)
    if toolbox is None:
        return private_root(folder, (*_COMPILER, *_JSON_C), progress, environment, run)
    return private_root(folder, _JSON_C, progress, environment, run, base=toolbox.root)


def build(progress: Progress, environment: Mapping[str, str] = os.environ, run: Run = run) -> Path:
    """The library, made if it is not there yet. Raises EnvironmentProblem, and RunError with the compiler's output."""
    folder = cache_folder(environment)
    kept = _kept(folder)
    if (found := _whole(kept)) is not None:
        progress.skip(STEPS)
        return found
    root = compiler_root(progress, environment, run)
    try:
        with locked(folder):
            if (found := _whole(kept)) is None:
                found = _make(kept, root, progress, environment, run)
    except OSError as problem:
        raise EnvironmentProblem(
            f"libvfio-user cannot be built in {folder}: {problem}", "give the cache folder 200 MB of space"
        ) from problem
    return found


def provide(
    progress: Progress, environment: Mapping[str, str] = os.environ, run: Run = run, *, soname: str = SONAME
) -> Library:
    """The library that LIBVFIO_USER names, an installed one, or one that is built if it is not there yet.

    Raises EnvironmentProblem, and RunError with the compiler's output.
    """
    is_built = False

    def built() -> Iterator[Path]:  # only asked if neither of the others is there
        nonlocal is_built
        is_built = True
        yield build(progress, environment, run)

    try:
        found = find_library(environment, built(), soname)
    except LibraryError as problem:
        raise EnvironmentProblem(str(problem), HOW) from problem
    if not is_built:
        progress.skip(STEPS)
    return found


def samples(library: Path, progress: Progress, environment: Mapping[str, str] = os.environ, run: Run = run) -> Path:
    """The folder of the programs that come with ``library``, which is one in the cache; made if they are not there yet.

    Raises EnvironmentProblem, and RunError with the compiler's output.
    """
    kept = (
        library.parent / f"samples-{hashlib.sha256(json.dumps([_SAMPLES, _SAMPLE_OPTIONS]).encode()).hexdigest()[:16]}"
    )
    if kept.is_dir():
        progress.skip(SAMPLE_STEPS)
        return kept
    root = compiler_root(progress, environment, run)
    progress.step("compiling its samples")
    with tempfile.TemporaryDirectory(prefix="making-", dir=library.parent) as made:
        work, products = Path(made, "source"), Path(made, "products")
        shutil.copytree(library.parent / "source", work)
        shutil.copyfile(library, work / SONAME)
        products.mkdir()
        shutil.copyfile(library, products / SONAME)
        for name, more in _SAMPLES.items():
            arguments = [*_SAMPLE_OPTIONS, f"samples/{name}.c", *more, _ADDED, SONAME, *_LIBRARIES]
            (products / name).write_bytes(compile_in(root, work, arguments, run))
        keep(products.iterdir(), kept, mode=0o755)
    progress.done()
    return kept


def _whole(kept: Path) -> Path | None:
    try:
        return whole_library(kept)
    except CacheError as problem:
        raise EnvironmentProblem(str(problem), "build it again") from problem


def _kept(folder: Path) -> Path:
    recipe = json.dumps([_LAYOUT, platform.machine(), _PACKAGE, _SUITES, _OPTIONS, _LIBRARIES, _OLDER_GLIBC])
    return folder / f"libvfio-user-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"


def _make(kept: Path, root: Path, progress: Progress, environment: Mapping[str, str], run: Run) -> Path:
    making = Path(tempfile.mkdtemp(prefix="making-", dir=kept.parent))
    try:
        archive = _fetch(making, progress, environment, run)
        progress.step(f"unpacking libvfio-user from {archive.name}")
        source = making / "source"
        _unpack(archive, source)
        progress.done()
        progress.step("compiling libvfio-user")
        product = _compile(source, root, run)
        new = making / "new"
        shutil.copytree(source, new / "source")
        (new / "origin").write_text(f"{archive.name}\n")
        library = new / f"libvfio-user-{content_digest(product)}.so"
        library.write_bytes(product)
        shutil.rmtree(kept, ignore_errors=True)  # a damaged one
        new.rename(kept)
        progress.done()
        return kept / library.name
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _fetch(making: Path, progress: Progress, environment: Mapping[str, str], run: Run) -> Path:
    progress.step(f"fetching the source of Debian's {_PACKAGE}, 40 MB")
    require_tools(run, platform.machine())
    mirror = choose_mirror(dict(environment), run)
    apt = PrivateApt(making / "apt", mirror, run, kind="deb-src", suites=_SUITES)
    apt.update()
    archives = [file for file in apt.source(_PACKAGE, progress.update) if ".orig.tar" in file.name]
    if len(archives) != 1:
        raise EnvironmentProblem(
            f"the source of {_PACKAGE} has {len(archives)} archives .orig.tar, not one", "name another mirror"
        )
    progress.done()
    return archives[0]


def _unpack(archive: Path, target: Path) -> None:
    """Unpack only the library's folder. Raises EnvironmentProblem if the archive has none, or is no archive."""
    found = False
    try:
        with tarfile.open(archive) as members:
            for member in members:
                _, _, name = member.name.partition(f"/{_FOLDER}")
                content = members.extractfile(member) if name and member.isfile() else None
                if content is not None:
                    _write(target, name, content.read())
                    found = True
                elif found and _FOLDER not in member.name:
                    break  # its files follow each other, and the archive is large
    except (tarfile.TarError, EOFError) as problem:
        raise EnvironmentProblem(f"{archive.name} cannot be unpacked: {problem}", "name another mirror") from problem
    if not (target / "include/libvfio-user.h").is_file():
        raise EnvironmentProblem(
            f"{archive.name} has no {_FOLDER}include/libvfio-user.h",
            "name a mirror of Debian 13, or a library of your own with LIBVFIO_USER",
        )


def _write(target: Path, name: str, content: bytes) -> None:
    """A file of an archive. ``tarfile`` itself checks names only from Python 3.11.4 on, and Debian 12 has 3.11.2."""
    if ".." in Path(name).parts or name.startswith("/"):
        raise tarfile.TarError(f"{name} leads out of its folder")
    path = target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _compile(source: Path, root: Path, run: Run) -> bytes:
    """The library's content. Raises RunError, EnvironmentProblem and OSError."""
    (source / _ADDED).write_text(_OLDER_GLIBC)
    files = sorted(f"lib/{file.name}" for file in (source / "lib").glob("*.c") if file.name not in _NOT_BUILT)
    return compile_in(root, source, [*_OPTIONS, *files, _ADDED, *_LIBRARIES], run)


def compile_in(root: Path, folder: Path, arguments: Sequence[str], run: Run = run) -> bytes:
    """What the compiler of ``root`` makes in a copy of ``folder``, whose files ``arguments`` name.

    Raises RunError with the compiler's output, EnvironmentProblem and OSError.
    """
    sandbox = find_sandbox(root, run)
    work = Path(tempfile.mkdtemp(dir=root / "build"))
    try:
        shutil.copytree(folder, work, dirs_exist_ok=True)
        enter = ["sh", "-c", 'cd "/$1" && shift && exec gcc -o product "$@"', "sh", str(work.relative_to(root))]
        outcome = run(sandbox.command(root, [*enter, *arguments]))
        product = work / "product"
        if outcome.status != 0 or not product.is_file():
            raise RunError("libvfio-user does not compile", outcome.output)
        return product.read_bytes()
    finally:
        shutil.rmtree(work, ignore_errors=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pviommu build-libvfio-user``."""
    parser.description = (
        "Build the C library libvfio-user into the cache folder, from the source package of Debian's QEMU, and print "
        "its path. Python bindings: package libvfio_user (docs/libvfio-user.md). They prefer LIBVFIO_USER=PATH, then "
        "an installed library. Exit status: 0 built, 1 it does not compile, 3 it cannot be built here."
    )
    parser.add_argument(
        "--samples", action="store_true", help="build the programs that come with it too, and print their folder"
    )


def main(args: argparse.Namespace) -> int:
    """Run ``pviommu build-libvfio-user``; returns its exit status."""
    progress = Progress(sys.stderr, STEPS + (SAMPLE_STEPS if args.samples else 0))
    try:
        library = build(progress)
        print(samples(library, progress) if args.samples else library)
    except EnvironmentProblem as problem:
        progress.close()
        print(f"pviommu: {problem}", file=sys.stderr)
        return ExitStatus.ENVIRONMENT
    except RunError as problem:
        progress.close()
        print(f"pviommu: {problem.what}\n{problem.detail}", file=sys.stderr)
        return ExitStatus.FAILED
    return ExitStatus.PASSED
