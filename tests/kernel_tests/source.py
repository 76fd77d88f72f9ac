"""What the kernel's own test programs are built from, and what they say."""

from __future__ import annotations

import argparse
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pviommu.cache import cache_folder
from pviommu.lab.kept import keep

Compile = Callable[[Path, Path], Iterable[Path]]
"""Compiles a kernel source, which is a folder, to programs in the folder that is its second argument."""


def built(name: str, source: Path, parts: Sequence[str], identity: bytes, compiled: Compile) -> Path:
    """The folder of the programs of a kernel source, which is a folder or an archive, of which only ``parts`` are
    unpacked. Those of an archive are kept in the cache, as long as ``identity`` is the same.
    """
    status = source.stat()
    digest = hashlib.sha256(f"{source.resolve()} {status.st_size} {status.st_mtime_ns} ".encode() + identity)
    kept = cache_folder(os.environ) / f"{name}-{digest.hexdigest()[:16]}"
    if not kept.is_dir() or source.is_dir():
        with tempfile.TemporaryDirectory(prefix=f"{name}-") as temporary:
            folder = Path(temporary)
            shutil.rmtree(kept, ignore_errors=True)
            keep(list(compiled(_unpacked(source, parts, folder), folder)), kept, mode=0o755)
    return kept


def _unpacked(source: Path, parts: Sequence[str], folder: Path) -> Path:
    if not source.is_file():
        return source
    top = source.name.removesuffix(".tar.xz")
    options = ["-x", "-C", folder, "--strip-components=1", "--wildcards"]
    names = [f"{top}/{part}" for part in parts]
    with subprocess.Popen(["tar", *options, *names], stdin=subprocess.PIPE) as tar, lzma.open(source) as archive:
        assert tar.stdin
        shutil.copyfileobj(archive, tar.stdin, 1 << 20)
    return folder


def outcomes(said: str) -> dict[str, str]:
    """What became of each test, "passed", "failed" or "skipped", by fixture and name, from a program's output."""
    lines = re.findall(r"(?m)^(not ok|ok) \d+ (\S+)( # SKIP)?", said)
    return {test: "skipped" if skipped else {"ok": "passed"}.get(ok, "failed") for ok, test, skipped in lines}


def options(program: str, description: str | None) -> argparse.ArgumentParser:
    """The options of a command that builds from a source."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("source", nargs="?", type=Path, help="a kernel source, folder or linux-source-*.tar.xz")
    return parser


def chosen_source(program: str, given: Path | None) -> Path | None:
    """The source that a command was told to use, or the newest that the lab has fetched. If there is none, that is
    said.
    """
    found = [given] if given else sorted(cache_folder(os.environ).glob("root-*/usr/src/linux-source-*.tar.xz"))
    if not found:
        print(f"{program}: no kernel source: name one, or run `pviommu lab run --kernel lab`", file=sys.stderr)
        return None
    return found[-1]
