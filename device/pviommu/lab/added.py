"""Files that the user brings into the guest, one of which may be run there.

In the guest they are in ``/lab/add``, under their own names. A program that is linked dynamically gets its loader and
its libraries from this host: the loader itself says which they are, as it would load them here. Only what it names is
brought along: nobody can know what a program opens by itself at run time (plug-ins, name services, locales).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..elf import ElfProgram, read_elf
from .architecture import AMD64, Architecture
from .problems import UsageError
from .processes import Run, run

__all__ = ["FOLDER", "LIBRARIES", "Added", "applets", "check_interpreter", "collect"]

FOLDER = "/lab/add"
"""Where the guest finds what was added."""

LIBRARIES = "/lab/add.lib"
"""Where it finds the libraries of dynamic programs, under the names by which programs ask for them."""

_FOUND = re.compile(r"\s*(\S+) => (/.*) \(0x[0-9a-f]+\)$")
_MISSING = re.compile(r"\s*(\S+) => not found$")
_RULE = "link it statically, or add the library as a file"


@dataclass(slots=True)
class Added:
    """What was collected: guest paths with the files of this host that hold their contents, and the program to run."""

    files: dict[str, Path] = field(default_factory=dict)
    executable: set[str] = field(default_factory=set)
    program: str = ""

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return sum(path.stat().st_size for path in self.files.values())


def collect(
    files: Sequence[Path], program: Path | None, run: Run = run, *, architecture: Architecture = AMD64
) -> Added:
    """Check ``files``, and ``program``, which is to be run by a guest of ``architecture``, and find what they need.
    Raises UsageError in one line.
    """
    added = Added()
    for path in files:
        _add(added, "--add", path)
    if program is not None:
        _add(added, "--run", program)
        _check_program(program, architecture)
        added.program = program.name
    for name in list(added.files):
        _add_libraries(added, added.files[name], run, architecture)
    return added


def applets(busybox: Path, run: Run = run) -> set[str]:
    """Paths in the guest of the commands that busybox implements."""
    return {f"/{line.lstrip('/')}" for line in run([str(busybox), "--list-full"]).output.split()}


def check_interpreter(added: Added, guest_programs: Collection[str]) -> None:
    """Check that the guest has what the first line of the script names; ``guest_programs`` are paths that it has.

    Raises UsageError.
    """
    if not added.program:
        return
    with added.files[f"{FOLDER}/{added.program}"].open("rb") as file:
        line = file.readline(256)
    words = line[2:].decode(errors="replace").split() if line.startswith(b"#!") else []
    has = {*guest_programs, *added.files}
    names = {Path(path).name for path in has}
    if words and words[0] not in has:
        missing = words[0]
    elif len(words) > 1 and words[0] == "/usr/bin/env" and words[1] not in names:
        missing = words[1]
    else:
        return
    raise UsageError(
        f"--run {added.program}: its first line names {missing}, which the guest does not have; "
        "it has busybox (#!/bin/sh)"
    )


def _add(added: Added, option: str, path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as problem:
        raise UsageError(f"{option} {path}: {(problem.strerror or '').lower()}") from problem
    if stat.S_ISDIR(mode):
        raise UsageError(f"{option} {path}: a folder; give the files in it, or an archive (the guest has tar)")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{option} {path}: not a regular file")
    if not os.access(path, os.R_OK):
        raise UsageError(f"{option} {path}: permission denied")
    name = path.name
    if not name.isprintable():
        raise UsageError(f"{option} {path!r}: a name with control characters")
    place = f"{FOLDER}/{name}"
    other = added.files.get(place)
    if other is not None and not other.samefile(path):
        raise UsageError(f"{option} {path}: {other} has the same name; in the guest all files are in {FOLDER}")
    added.files[place] = path
    if mode & stat.S_IXUSR:
        added.executable.add(place)


def _check_program(path: Path, architecture: Architecture) -> None:
    if not path.stat().st_mode & stat.S_IXUSR:
        raise UsageError(f"--run {path}: not executable; chmod +x {path}")
    with path.open("rb") as file:
        begin = file.read(2)
    elf = _elf(path)
    if elf is None and begin != b"#!":
        raise UsageError(f"--run {path}: neither a program nor a script, whose first line is like #!/bin/sh")
    if elf is not None and not (elf.is_program and elf.machine == architecture.elf):
        raise UsageError(f"--run {path}: no program for {architecture.name}, which the guest is")


def _elf(path: Path) -> ElfProgram | None:
    with path.open("rb") as file:
        begin = file.read(4)
        return read_elf(begin + file.read()) if begin == b"\x7fELF" else None


def _add_libraries(added: Added, path: Path, run: Run, architecture: Architecture) -> None:
    elf = _elf(path)
    if elf is None or not elf.is_program or elf.machine != architecture.elf or elf.loader is None:
        return
    if architecture.is_foreign:  # nothing here can say which libraries its loader would take
        raise UsageError(f"{path}: a dynamic program for {architecture.name}; link it statically (-static)")
    loader = Path(elf.loader)
    if not loader.is_file():
        raise UsageError(f"{path}: its loader {loader} is not on this host; link it statically (-static)")
    _add_needed(added, str(loader), loader)
    added.executable.add(str(loader))
    for name, library in _libraries(added, path, loader, run):
        _add_needed(added, f"{LIBRARIES}/{name}", library)


def _libraries(added: Added, path: Path, loader: Path, run: Run) -> Iterable[tuple[str, Path]]:
    """Names and paths of the libraries that the loader would load here for the program at ``path``."""
    # The guest's processor may be older than this one: variants for newer processors stay here. Only glibc has such.
    portable = ["--glibc-hwcaps-mask", ""] if loader.name.startswith("ld-linux") else []
    # Libraries that were added come first, as in the guest.
    libraries = [file for place, file in added.files.items() if place.startswith(f"{FOLDER}/") and ".so" in place]
    folders = dict.fromkeys(str(library.resolve().parent) for library in libraries)
    search = ":".join([*folders, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
    command = ["env", "-u", "LD_PRELOAD", f"LD_LIBRARY_PATH={search}", str(loader), *portable, "--list"]
    outcome = run([*command, str(path.resolve())])
    for line in outcome.output.splitlines():
        if missing := _MISSING.match(line):
            raise UsageError(f"{path}: its library {missing[1]} is not on this host; {_RULE}")
    if outcome.status != 0 and not any(map(_FOUND.match, outcome.output.splitlines())):
        said = (outcome.output.strip().splitlines() or ["it printed nothing"])[-1]
        raise UsageError(f"{path}: {loader} cannot list its libraries ({said}); link it statically (-static)")
    for line in outcome.output.splitlines():
        if found := _FOUND.match(line):
            yield found[1], Path(found[2])


def _add_needed(added: Added, place: str, path: Path) -> None:
    other = added.files.get(place)
    if other is not None and not other.samefile(path):
        name = Path(place).name
        raise UsageError(f"--add: two libraries of the name {name} are needed, {other} and {path}; {_RULE}")
    added.files[place] = path
