"""Builds the native core's library with whatever C compiler there is, once for each version of its sources.

It is in the user's cache folder, with two digests in its name: one of the sources, the options and the platform, and
one of its own content, which is checked before it is loaded. A library that was cut short or comes from elsewhere would
not fail to load, but crash the process.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..cache import HOW, CacheError, cache_folder, check_folder, content_digest, library_problem
from ..exit_status import ExitStatus

__all__ = [
    "OPTIONS",
    "SOURCES",
    "BuildError",
    "Compile",
    "LibraryError",
    "NotBuiltError",
    "add_arguments",
    "build",
    "find_compiler",
    "find_library",
    "main",
]

SOURCES = Path(__file__).with_name("src")
OPTIONS = (
    *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"),
    *("-shared", "-fPIC", "-fvisibility=hidden", "-fno-stack-protector", "-U_FORTIFY_SOURCE"),
)
"""No stack protector and no fortified functions: a library built beside a newer C library loads with an older one."""
COMPILERS = ("cc", "gcc", "clang")

Compile = Callable[[Sequence[str], Path], subprocess.CompletedProcess[str]]
"""Runs a compiler with these arguments in a folder that holds the sources, and returns what it said."""


class BuildError(Exception):
    """The library cannot be built; the text has what the compiler said, or that there is none."""


class LibraryError(Exception):
    """There is no library that could be loaded; the text says why and what to do."""


class NotBuiltError(LibraryError):
    """Nobody has built one yet."""


def find_library(environment: Mapping[str, str] = os.environ, sources: Path = SOURCES) -> Path:
    """The library of these sources, whole and safe to load. Raises :class:`LibraryError`."""
    try:
        folder = cache_folder(environment)
        check_folder(folder)
        found = _built(folder, sources)
        problems = [library_problem(path) for path in found]
    except CacheError as error:
        raise LibraryError(f"{error}; {HOW}") from error
    except OSError as error:
        raise LibraryError(f"{error.filename} cannot be read: {error.strerror}; {HOW}") from error
    whole = (path for path, problem in zip(found, problems, strict=True) if not problem)
    if (path := next(whole, None)) is not None:
        return path
    if found:
        raise LibraryError(f"{found[0]} {problems[0]}; build it again: pviommu build-core")
    raise NotBuiltError("the native core is not built, run: pviommu build-core")


def _built(folder: Path, sources: Path) -> list[Path]:
    """Every library of these sources. Raises OSError."""
    beginning = f"core-{_digest(sources)}-"
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except FileNotFoundError:
        return []
    return [folder / name for name in sorted(names) if name.startswith(beginning) and name.endswith(".so")]


def find_compiler(environment: Mapping[str, str] = os.environ) -> str | None:
    """``$CC``, else the first compiler in ``$PATH``."""
    names = (environment["CC"],) if environment.get("CC") else COMPILERS
    found = (shutil.which(name, path=environment.get("PATH")) for name in names)
    return next(filter(None, found), None)


def build(
    environment: Mapping[str, str] = os.environ,
    *,
    compile_with: Compile | None = None,
    sources: Path = SOURCES,
    options: Sequence[str] = (),
) -> Path:
    """The library, built if it is not there yet.

    ``compile_with`` runs a compiler that is not the host's, one in another root for instance; ``options`` are added
    to :data:`OPTIONS`, and do not count for the name. Raises :class:`BuildError`.
    """
    with contextlib.suppress(LibraryError):
        return find_library(environment, sources)
    try:
        folder = cache_folder(environment)
        check_folder(folder)
    except CacheError as error:
        raise BuildError(f"the native core cannot be built: {error}; {HOW}") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        damaged = _built(folder, sources)
        with tempfile.TemporaryDirectory(prefix="building-core-", dir=folder) as work:
            made = compile_sources(Path(work), compile_with or _host_compiler(environment), sources, options)
            target = folder / f"core-{_digest(sources)}-{content_digest(made.read_bytes())}.so"
            made.rename(target)  # all or nothing
        for path in damaged:
            if path != target:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise BuildError(f"the native core cannot be built in {folder}: {error.strerror}; {HOW}") from error
    return target


def compile_sources(folder: Path, compile_with: Compile, sources: Path, options: Sequence[str]) -> Path:
    """Copy the sources to ``folder`` and compile them there; the library. Raises :class:`BuildError`."""
    names = []
    for source in _files(sources):
        shutil.copyfile(source, folder / source.name)
        if source.suffix == ".c":
            names.append(source.name)
    outcome = compile_with((*OPTIONS, *options, "-o", "core.so", *names), folder)
    made = folder / "core.so"
    if outcome.returncode != 0 or not made.is_file():
        raise BuildError(f"the native core does not compile:\n{outcome.stdout}{outcome.stderr}")
    return made


def _host_compiler(environment: Mapping[str, str]) -> Compile:
    compiler = find_compiler(environment)
    if compiler is None:
        raise BuildError(f"no C compiler: none of {', '.join(COMPILERS)} is in PATH, and CC names none")

    def run(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([compiler, *arguments], cwd=folder, capture_output=True, text=True, check=False)

    return run


def _files(sources: Path) -> list[Path]:
    return sorted(path for path in sources.iterdir() if path.suffix in (".c", ".h"))


def _digest(sources: Path) -> str:
    digest = hashlib.sha256(f"{platform.machine()} {' '.join(OPTIONS)}".encode())
    for path in _files(sources):
        content = path.read_bytes()
        digest.update(b"%s %d:" % (path.name.encode(), len(content)) + content)
    return digest.hexdigest()[:16]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pviommu build-core``: none."""
    parser.description = (
        "Compile the native core, which makes the device fast, into the cache folder; `pviommu serve` uses it from "
        "then on. Needs a C compiler. Exit status: 0 built, 3 it cannot be built here."
    )


def main(args: argparse.Namespace) -> int:
    """Run ``pviommu build-core``; returns its exit status."""
    try:
        print(build())
    except BuildError as error:
        print(f"pviommu: {error}", file=sys.stderr)
        return ExitStatus.ENVIRONMENT
    return 0
