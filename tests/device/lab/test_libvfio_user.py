"""Building libvfio-user: what is unpacked, what is kept and taken again, and the words for what goes wrong."""

from __future__ import annotations

import argparse
import io
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pviommu.c_library import whole_library
from pviommu.lab import libvfio_user as building
from pviommu.lab.problems import EnvironmentProblem, RunError
from pviommu.lab.processes import Outcome
from pviommu.lab.progress import Progress

FILES = ("include/libvfio-user.h", "lib/dma.c", "lib/tran_pipe.c", "LICENSE")


def archive(path: Path, files: Sequence[str] = FILES) -> Path:
    with tarfile.open(path, "w:xz") as made:
        for name in ("README", *(f"subprojects/libvfio-user/{file}" for file in files), "zz"):
            member = tarfile.TarInfo(f"qemu-10.0/{name}")
            member.size = 4
            made.addfile(member, io.BytesIO(b"text"))
    return path


@dataclass
class Builder:
    """A machine whose compiler's output is its arguments."""

    folder: Path
    source: Path
    complaint: str = ""
    compiled: int = 0

    @property
    def environment(self) -> dict[str, str]:
        return {"XDG_CACHE_HOME": str(self.folder), "PATH": ""}

    def run(self, command: Sequence[str]) -> Outcome:
        if not any("exec gcc" in word for word in command):
            return Outcome(0, "")
        if self.complaint:
            return Outcome(1, self.complaint)
        self.compiled += 1
        (work,) = (self.folder / "root/build").iterdir()
        (work / "product").write_text(" ".join(command))
        return Outcome(0, "")

    def build(self) -> Path:
        return building.build(Progress(io.StringIO(), building.STEPS), self.environment, self.run)


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    (tmp_path / "root/build").mkdir(parents=True)
    made = Builder(tmp_path, archive(tmp_path / "qemu_10.0.orig.tar.xz"))
    monkeypatch.setattr(building, "compiler_root", lambda *_: tmp_path / "root")
    monkeypatch.setattr(building, "_fetch", lambda *_: made.source)
    return made


def test_it_is_made_once_and_nothing_stays_in_the_root(builder: Builder) -> None:
    made = builder.build()

    assert builder.build() == made
    assert whole_library(made.parent) == made
    assert builder.compiled == 1
    assert list((builder.folder / "root/build").iterdir()) == []
    assert (building.headers(made) / "libvfio-user.h").read_text() == "text"
    assert (made.parent / "origin").read_text() == "qemu_10.0.orig.tar.xz\n"
    assert (made.parent / "source/LICENSE").is_file()
    assert [path.name for path in (builder.folder / "pviommu").iterdir()] in (
        [made.parent.name, "lock"],
        ["lock", made.parent.name],
    )


def test_the_librarys_own_sources_are_compiled_but_for_its_tests(builder: Builder) -> None:
    words = builder.build().read_text().split()

    assert "lib/dma.c" in words
    assert "lib/tran_pipe.c" not in words
    assert "older-glibc.c" in words


def test_samples_are_made_when_asked_for_and_once(builder: Builder) -> None:
    library = builder.build()
    made = [
        building.samples(library, Progress(io.StringIO(), building.SAMPLE_STEPS), builder.environment, builder.run)
        for _ in range(2)
    ]

    assert made[0] == made[1]
    assert builder.compiled == 6
    names = {path.name for path in made[0].iterdir()}
    assert names == {"client", "gpio-pci-idio-16", "libvfio-user.so.0", "lspci", "null", "server"}
    assert all(os.access(path, os.X_OK) for path in made[0].iterdir())
    assert "samples/server.c" in (made[0] / "server").read_text().split()


def test_a_damaged_library_is_not_taken_but_made_again(builder: Builder) -> None:
    made = builder.build()
    made.write_bytes(b"")

    assert whole_library(made.parent) is None
    assert builder.build().read_bytes() != b""
    assert builder.compiled == 2


def test_an_archive_without_the_library_is_refused(builder: Builder) -> None:
    archive(builder.source, ())
    with pytest.raises(EnvironmentProblem, match=r"qemu_10\.0\.orig\.tar\.xz has no subprojects/libvfio-user/include"):
        builder.build()


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", "lib/../../../escaped"])
def test_an_archive_that_leads_out_of_its_folder_is_refused(builder: Builder, name: str) -> None:
    archive(builder.source, [*FILES, name])
    with pytest.raises(EnvironmentProblem, match=r"cannot be unpacked: \S*escaped leads out of its folder"):
        builder.build()
    assert not list(builder.folder.rglob("escaped"))


def test_a_damaged_archive_is_refused(builder: Builder) -> None:
    builder.source.write_bytes(builder.source.read_bytes()[:100])
    with pytest.raises(EnvironmentProblem, match=r"qemu_10\.0\.orig\.tar\.xz cannot be unpacked"):
        builder.build()


def test_what_the_compiler_says_is_shown_and_nothing_is_kept(builder: Builder) -> None:
    builder.complaint = "dma.c:1: error"
    with pytest.raises(RunError) as caught:
        builder.build()
    assert caught.value.detail == "dma.c:1: error"
    assert [path.name for path in (builder.folder / "pviommu").iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("problem", "status", "words"),
    [
        (EnvironmentProblem("no mirror", "name one"), 3, "pviommu: no mirror; name one\n"),
        (RunError("libvfio-user does not compile", "dma.c: error"), 1, "does not compile\ndma.c: error\n"),
    ],
)
def test_the_command_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], problem: Exception, status: int, words: str
) -> None:
    def refuse(progress: Progress) -> Path:
        raise problem

    monkeypatch.setattr(building, "build", refuse)
    assert building.main(argparse.Namespace(samples=False)) == status
    assert capsys.readouterr().err.endswith(words)


def test_the_command_prints_the_path(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(building, "build", lambda progress: Path("/cache/x.so"))
    assert building.main(argparse.Namespace(samples=False)) == 0
    assert capsys.readouterr().out == "/cache/x.so\n"


NOT_INSTALLED = "libvfio-user-of-nobody.so.0"


def steps(stream: io.StringIO) -> Progress:
    return Progress(stream, building.STEPS)


def test_the_lab_builds_a_library_only_if_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    made = building.build(steps(io.StringIO()))
    monkeypatch.setattr(building, "build", lambda *_: made)
    assert building.provide(steps(io.StringIO()), {}, soname=NOT_INSTALLED).path == str(made)

    def refuse(*_: object) -> Path:
        raise AssertionError

    monkeypatch.setattr(building, "build", refuse)
    named = building.provide(steps(io.StringIO()), {"LIBVFIO_USER": str(made)}, soname=NOT_INSTALLED)
    assert named.path == str(made)
    assert building.provide(steps(io.StringIO()), {}, soname=str(made)).path == str(made)


def test_the_lab_passes_over_no_library_that_is_named_and_cannot_be_used(tmp_path: Path) -> None:
    bad = tmp_path / "bad.so"
    bad.touch()
    with pytest.raises(EnvironmentProblem, match=r"bad\.so: it cannot be loaded: .*; build one: pviommu build"):
        building.provide(steps(io.StringIO()), {"LIBVFIO_USER": str(bad)}, soname=NOT_INSTALLED)
