"""The user's files: checked before anything is booted; dynamic programs bring loader and libraries."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pviommu.elf import X86_64
from pviommu.lab.added import FOLDER, LIBRARIES, Added, applets, check_interpreter, collect
from pviommu.lab.problems import UsageError
from pviommu.lab.processes import Outcome

Make = Callable[..., Path]


def elf(machine: int = X86_64, kind: int = 3, entry: int = 0x1000, loader: bytes = b"") -> bytes:
    """An ELF file of one segment, its loader's path if it has one."""
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, kind, machine, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 3 if loader else 1, 4, 120, 0, 0, len(loader), len(loader), 1)
    return header + segment + loader


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a file, in a folder if one is named."""

    def made(name: str, content: bytes = b"#!/bin/sh\n", *, executable: bool = True) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o755 if executable else 0o644)
        return path

    return made


class Loader:
    """Stands in for the host's loader."""

    def __init__(self, *lines: str, status: int = 0) -> None:
        self.lines = lines
        self.status = status
        self.commands: list[Sequence[str]] = []

    def __call__(self, command: Sequence[str]) -> Outcome:
        self.commands.append(command)
        return Outcome(self.status, "".join(f"\t{line}\n" for line in self.lines))


def test_files_and_program_are_in_one_folder_and_executables_stay_so(make: Make) -> None:
    data, script = make("data", b"\0\1", executable=False), make("go.sh")
    added = collect([data], script)

    assert added.files == {f"{FOLDER}/data": data, f"{FOLDER}/go.sh": script}
    assert added.executable == {f"{FOLDER}/go.sh"}
    assert (added.program, added.size) == ("go.sh", 12)


def test_program_that_was_added_too_is_the_same(make: Make) -> None:
    script = make("go.sh")
    assert list(collect([script], script).files) == [f"{FOLDER}/go.sh"]


def test_two_files_of_one_name_are_refused(make: Make) -> None:
    make("a/x")
    with pytest.raises(
        UsageError, match=r"--add .*/b/x: .*/a/x has the same name; in the guest all files are in /lab/add"
    ):
        collect([make("a/x"), make("b/x")], None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "no such file or directory"),
        (".", "a folder; give the files in it, or an archive"),
        ("pipe", "not a regular file"),
        ("two\nlines", "a name with control characters"),
    ],
)
def test_what_is_no_file_is_refused(make: Make, tmp_path: Path, name: str, words: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    make("two\nlines")
    with pytest.raises(UsageError, match=f"--add .*{words}"):
        collect([tmp_path / name], None)


@pytest.mark.parametrize(
    ("content", "executable", "words"),
    [
        (b"#!/bin/sh\n", False, r"--run .*/go: not executable; chmod \+x .*/go"),
        (b"echo\n", True, "neither a program nor a script, whose first line is like #!/bin/sh"),
        (elf(machine=183), True, "no program for amd64, which the guest is"),
        (elf(entry=0), True, "no program for amd64"),
    ],
)
def test_what_cannot_be_run_is_refused(make: Make, content: bytes, executable: bool, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        collect([], make("go", content, executable=executable))


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        (b"#!/usr/bin/python3 -u\n", "/usr/bin/python3"),
        (b"#!/usr/bin/env perl\n", "perl"),
        (b"#!/bin/sh -e\n", None),
        (b"#! /usr/bin/env awk\n", None),
        (b"#!/usr/bin/env helper\n", None),  # which was added
        (elf(kind=2), None),
    ],
)
def test_interpreter_must_be_in_the_guest(make: Make, line: bytes, missing: str | None) -> None:
    added = collect([make("helper")], make("go", line))
    programs = {"/bin/sh", "/usr/bin/env", "/usr/bin/awk"}
    if missing is None:
        check_interpreter(added, programs)
        return
    words = re.escape(f"its first line names {missing}, which the guest does not have")
    with pytest.raises(UsageError, match=words):
        check_interpreter(added, programs)


def test_nothing_to_run_needs_no_interpreter() -> None:
    check_interpreter(Added(), ())


def test_applets_are_paths_in_the_guest() -> None:
    assert applets(Path("busybox"), lambda command: Outcome(0, "bin/sh\nusr/bin/awk\n")) == {"/bin/sh", "/usr/bin/awk"}


def dynamic(make: Make, name: str = "prog") -> tuple[Path, Path]:
    """A dynamic program and its loader."""
    loader = make("ld-linux-x86-64.so.2")
    return make(name, elf(loader=str(loader).encode() + b"\0")), loader


def test_dynamic_program_brings_its_loader_and_libraries(make: Make) -> None:
    program, loader = dynamic(make)
    library = make("libm.so.6.1", elf(entry=0))
    said = Loader("linux-vdso.so.1 (0x7f)", f"libm.so.6 => {library} (0x00007f12)", f"{loader} (0x7f)")
    added = collect([], program, said)

    assert added.files[f"{LIBRARIES}/libm.so.6"] == library
    assert added.files[str(loader)] == loader
    assert added.executable == {f"{FOLDER}/prog", str(loader)}
    # libraries for newer processors than the guest's are left out
    assert "--glibc-hwcaps-mask" in said.commands[0]


def test_libraries_that_were_added_are_looked_for_first(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    program, _ = dynamic(make)
    said = Loader()
    collect([make("own/libown.so.1", elf(entry=0))], program, said)

    search = next(word for word in said.commands[0] if word.startswith("LD_LIBRARY_PATH="))
    assert re.fullmatch(r"LD_LIBRARY_PATH=/.*/own:/opt/lib", search)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (Loader("libx.so.1 => not found"), "its library libx.so.1 is not on this host; link it statically, or add"),
        (Loader("cannot open shared object", status=127), "cannot list its libraries .*; link it statically"),
        (Loader(status=1), r"cannot list its libraries \(it printed nothing\)"),
    ],
)
def test_library_that_cannot_be_found_is_named_with_the_rule(make: Make, said: Loader, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        collect([], dynamic(make)[0], said)


def test_loader_that_the_host_lacks_is_named(make: Make) -> None:
    program = make("prog", elf(loader=b"/lib/ld-none.so.1\0"))
    with pytest.raises(UsageError, match=r"its loader /lib/ld-none.so.1 is not on this host; link it statically"):
        collect([], program)


def test_two_libraries_of_one_name_are_refused(make: Make) -> None:
    first, _ = dynamic(make, "one")
    second, _ = dynamic(make, "two")
    libraries = iter([make("a/libz.so", b"1"), make("b/libz.so", b"2")])
    with pytest.raises(UsageError, match=r"two libraries of the name libz\.so are needed"):
        collect([first, second], None, lambda command: Outcome(0, f"\tlibz.so => {next(libraries)} (0x7f)\n"))


def test_a_real_dynamic_program_of_this_host_is_complete() -> None:
    added = collect([Path("/bin/ls")], Path("/bin/ls"))

    assert "/lib64/ld-linux-x86-64.so.2" in added.files
    assert any(place.startswith(f"{LIBRARIES}/libc.so") for place in added.files)


def test_program_for_another_machine_that_is_only_added_is_data(make: Make) -> None:
    program = make("arm", elf(machine=183, loader=b"/lib/ld-linux-aarch64.so.1\0"))
    assert X86_64 != 183
    assert list(collect([program], None).files) == [f"{FOLDER}/arm"]
