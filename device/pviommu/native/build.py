"""Builds the native core's library with whatever C compiler there is, once for each version of its sources.

It lies in the user's cache folder under a digest of the sources, the options and the platform.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

__all__ = [
    "OPTIONS",
    "SOURCES",
    "BuildError",
    "Compile",
    "add_arguments",
    "build",
    "find_compiler",
    "find_library",
    "library_path",
    "main",
]

SOURCES = Path(__file__).with_name("src")
OPTIONS = (
    *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"),
    *("-shared", "-fPIC", "-fvisibility=hidden", "-fno-stack-protector", "-U_FORTIFY_SOURCE"),
)
"""No stack protector and no fortified functions: a library built beside a newer C library loads with an older one."""
COMPILERS = ("cc", "gcc", "clang")
EXIT_ENVIRONMENT = 3

Compile = Callable[[Sequence[str], Path], subprocess.CompletedProcess[str]]
"""Runs a compiler with these arguments in a folder that holds the sources, and returns what it said."""


class BuildError(Exception):
    """The library cannot be built; the text has what the compiler said, or that there is none."""


def library_path(environment: Mapping[str, str] = os.environ, sources: Path = SOURCES) -> Path:
    """Where the library of these sources is, if it was built."""
    base = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base).resolve() / "pviommu" / f"core-{_digest(sources)}.so"


def find_library(environment: Mapping[str, str] = os.environ, sources: Path = SOURCES) -> Path | None:
    """The library of these sources, if it was built."""
    path = library_path(environment, sources)
    return path if path.is_file() else None


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
    """The library, made if it is not there yet.

    ``compile_with`` runs a compiler that is not the host's, one in another root for instance; ``options`` are added
    to :data:`OPTIONS`, and do not count for the name. Raises :class:`BuildError`.
    """
    target = library_path(environment, sources)
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="building-core-", dir=target.parent) as folder:
            made = compile_sources(Path(folder), compile_with or _host_compiler(environment), sources, options)
            made.rename(target)  # at once or not at all; two builds make the same
    except OSError as error:
        raise BuildError(f"the native core cannot be built in {target.parent}: {error.strerror}") from error
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
        return EXIT_ENVIRONMENT
    return 0
