"""Module builds: kept by what went in, loud when the compiler complains, refused where no root can be entered."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pviommu.lab.build import build_modules, find_sandbox
from pviommu.lab.problems import EnvironmentProblem, RunError
from pviommu.lab.processes import Outcome
from pviommu.lab.progress import Progress
from pviommu.lab.provision import Toolbox


class FakeKernelTree:
    """Stands in for unshare and make: turns each .c of the work folder into a .ko."""

    def __init__(self, root: Path, *, complaint: str = "") -> None:
        self.root = root
        self.complaint = complaint
        self.makes: list[list[str]] = []

    def __call__(self, command: Sequence[str]) -> Outcome:
        if "make" not in command:
            return Outcome(0, "")
        self.makes.append(list(command))
        if self.complaint:
            return Outcome(2, self.complaint)
        work = next(word for word in command if word.startswith("M=")).removeprefix("M=/")
        for source in (self.root / work).glob("*.c"):
            source.with_suffix(".ko").write_text(source.read_text())
        return Outcome(0, "")


@pytest.fixture
def toolbox(tmp_path: Path) -> Toolbox:
    (tmp_path / "root/build").mkdir(parents=True)
    return Toolbox(tmp_path / "root", ("qemu",), {}, "11.1", tmp_path / "k", "6.12", tmp_path / "b")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "driver"
    folder.mkdir()
    (folder / "pviommu.c").write_text("int x;")
    (folder / "Kbuild").write_text("obj-m := pviommu.o")
    return folder


def progress() -> Progress:
    return Progress(io.StringIO(), 1)


def test_second_build_of_the_same_sources_comes_from_the_cache(toolbox: Toolbox, sources: Path, tmp_path: Path) -> None:
    tree = FakeKernelTree(toolbox.root)
    first = build_modules(toolbox, sources, tmp_path, progress(), tree)
    second = build_modules(toolbox, sources, tmp_path, progress(), tree)
    assert first == second
    assert [path.name for path in first] == ["pviommu.ko"]
    assert len(tree.makes) == 1
    assert "KCFLAGS=-Werror" in tree.makes[0]


def test_changed_source_is_built_anew(toolbox: Toolbox, sources: Path, tmp_path: Path) -> None:
    tree = FakeKernelTree(toolbox.root)
    build_modules(toolbox, sources, tmp_path, progress(), tree)
    (sources / "pviommu.c").write_text("int y;")
    (module,) = build_modules(toolbox, sources, tmp_path, progress(), tree)
    assert module.read_text() == "int y;"


def test_kernel_within_the_root_is_built_against_with_the_compiler_of_the_root(
    toolbox: Toolbox, sources: Path, tmp_path: Path
) -> None:
    kernel = toolbox.root / "kernels/lab-1/build"
    kernel.mkdir(parents=True)
    (kernel / "Module.symvers").write_text("a symbol")
    tree = FakeKernelTree(toolbox.root)
    build_modules(replace(toolbox, kernel_tree=kernel), sources, tmp_path, progress(), tree)
    (make,) = tree.makes
    assert make[make.index("-C") + 1] == "/kernels/lab-1/build"
    assert str(toolbox.root) in make


def test_compilers_words_come_with_the_failure(toolbox: Toolbox, sources: Path, tmp_path: Path) -> None:
    tree = FakeKernelTree(toolbox.root, complaint="pviommu.c:3: error: unused variable 'x'\n")
    with pytest.raises(RunError, match="do not build") as caught:
        build_modules(toolbox, sources, tmp_path, progress(), tree)
    assert "unused variable" in caught.value.detail


def test_build_leaves_nothing_in_the_root_and_nothing_beside_the_sources(
    toolbox: Toolbox, sources: Path, tmp_path: Path
) -> None:
    build_modules(toolbox, sources, tmp_path, progress(), FakeKernelTree(toolbox.root))
    assert list((toolbox.root / "build").iterdir()) == []
    assert sorted(path.name for path in sources.iterdir()) == ["Kbuild", "pviommu.c"]


def test_user_without_namespaces_is_told_what_to_allow(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"user namespaces .* or run as root"):
        find_sandbox(tmp_path, lambda command: Outcome(1, "unshare: Operation not permitted"), user=1000)


def test_ordinary_user_maps_itself_to_root(tmp_path: Path) -> None:
    command = find_sandbox(tmp_path, lambda command: Outcome(0, ""), user=1000).command(tmp_path, ["true"])
    assert command[:3] == ["unshare", "--map-root-user", "--mount"]


def test_root_without_namespaces_enters_by_plain_chroot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pviommu.lab.build._make_null_device", lambda root: True)

    def run(command: Sequence[str]) -> Outcome:
        return Outcome(1 if command[0] == "unshare" else 0, "")

    assert find_sandbox(tmp_path, run, user=0).command(tmp_path, ["true"])[:2] == ["chroot", str(tmp_path)]
