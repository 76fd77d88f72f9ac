"""Programs of the guest: what counts as one, static builds with warnings as errors, kept by what went in."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pytest

from pviommu import resources
from pviommu.lab.problems import RunError
from pviommu.lab.processes import Outcome
from pviommu.lab.programs import build_programs, find_programs
from pviommu.lab.progress import Progress
from pviommu.lab.provision import Toolbox


class FakeCompiler:
    """Stands in for unshare and gcc: an output is the text of its sources and of the header beside them."""

    def __init__(self, root: Path, *, complaint: str = "") -> None:
        self.root = root
        self.complaint = complaint
        self.commands: list[list[str]] = []

    def __call__(self, command: Sequence[str]) -> Outcome:
        if "gcc" not in command:
            return Outcome(0, "")
        self.commands.append(list(command))
        files = [self._outside(word) for word in command if word.endswith(".c")]
        if self.complaint:
            return Outcome(1, f"{files[0]}: {self.complaint}".replace(str(self.root), ""))
        output = self._outside(command[command.index("-o") + 1])
        output.write_text("".join(path.read_text() for path in files))
        return Outcome(0, "")

    def _outside(self, inside: str) -> Path:
        return self.root / inside.lstrip("/")


@pytest.fixture
def toolbox(tmp_path: Path) -> Toolbox:
    (tmp_path / "root/build").mkdir(parents=True)
    return Toolbox(tmp_path / "root", ("qemu",), {}, "11.1", tmp_path / "k", "6.12", tmp_path / "b")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "guest-tools/programs"
    (folder / "large").mkdir(parents=True)
    (folder / "large/one.c").write_text("one;")
    (folder / "large/two.c").write_text("two;")
    (folder / "large/both.h").write_text("both;")
    (folder / "small.c").write_text("small;")
    (folder / "notes.md").write_text("not a program")
    (folder.parent / "driver").mkdir()
    (folder.parent / "driver/pviommu_dma_test.h").write_text("#define PVDT_MAGIC 1")
    return folder


def progress() -> Progress:
    return Progress(io.StringIO(), 1)


def test_file_and_folder_are_programs_and_nothing_else(sources: Path) -> None:
    (sources / "empty").mkdir()
    large, small = find_programs(sources)
    assert (large.name, large.sources) == ("large", (Path("large/one.c"), Path("large/two.c")))
    assert (small.name, small.sources) == ("small", (Path("small.c"),))


def test_no_folder_means_no_programs(toolbox: Toolbox, tmp_path: Path) -> None:
    assert build_programs(toolbox, tmp_path / "none", tmp_path, progress(), FakeCompiler(toolbox.root)) == []


def test_programs_are_executable_static_and_built_with_warnings_as_errors(
    toolbox: Toolbox, sources: Path, tmp_path: Path
) -> None:
    compiler = FakeCompiler(toolbox.root)
    large, small = build_programs(toolbox, sources, tmp_path, progress(), compiler)
    assert (large.name, large.read_text()) == ("large", "one;two;")
    assert (small.name, small.read_text()) == ("small", "small;")
    assert large.stat().st_mode & 0o111 == 0o111
    for command in compiler.commands:
        assert {"-O2", "-Wall", "-Wextra", "-Werror", "-static"} <= set(command)


def test_second_build_comes_from_the_cache(toolbox: Toolbox, sources: Path, tmp_path: Path) -> None:
    compiler = FakeCompiler(toolbox.root)
    first = build_programs(toolbox, sources, tmp_path, progress(), compiler)
    assert build_programs(toolbox, sources, tmp_path, progress(), compiler) == first
    assert len(compiler.commands) == 2


@pytest.mark.parametrize("changed", ["programs/large/both.h", "programs/small.c", "driver/pviommu_dma_test.h"])
def test_any_changed_source_is_built_anew(toolbox: Toolbox, sources: Path, tmp_path: Path, changed: str) -> None:
    compiler = FakeCompiler(toolbox.root)
    first = build_programs(toolbox, sources, tmp_path, progress(), compiler)
    (sources.parent / changed).write_text("changed;")
    assert build_programs(toolbox, sources, tmp_path, progress(), compiler) != first


def test_compilers_words_come_with_the_failure_and_name_files_as_in_the_checkout(
    toolbox: Toolbox, sources: Path, tmp_path: Path
) -> None:
    compiler = FakeCompiler(toolbox.root, complaint="3: error: unused variable 'x'")
    with pytest.raises(RunError, match=r"the guest program large in .* does not build") as caught:
        build_programs(toolbox, sources, tmp_path, progress(), compiler)
    assert caught.value.detail == "large/one.c: 3: error: unused variable 'x'"
    assert list(tmp_path.glob("programs-*")) == []


def test_build_leaves_nothing_in_the_root(toolbox: Toolbox, sources: Path, tmp_path: Path) -> None:
    build_programs(toolbox, sources, tmp_path, progress(), FakeCompiler(toolbox.root))
    assert list((toolbox.root / "build").iterdir()) == []


def test_guest_tools_have_the_vfio_program() -> None:
    assert "pviommu_vfio" in [program.name for program in find_programs(resources.guest_tools() / "programs")]
