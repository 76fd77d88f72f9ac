"""Suites of others: built as they are from the kernel's source, the lab's part in front; kept by what went in."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pytest

from pviommu import resources
from pviommu.lab.architecture import AMD64, ARM64, Architecture
from pviommu.lab.problems import RunError
from pviommu.lab.processes import Outcome
from pviommu.lab.progress import Progress
from pviommu.lab.suites import build_suite

PROGRAMS = ("tar", "gcc", "aarch64-linux-gnu-gcc", "make")


class FakeRoot:
    """Stands in for tar, gcc and make inside the root; ``broken`` is the program that fails."""

    def __init__(self, root: Path, *, broken: str = "") -> None:
        self.root = root
        self.broken = broken
        self.commands: list[list[str]] = []

    def __call__(self, command: Sequence[str]) -> Outcome:
        program = next((word for word in command if word in PROGRAMS), None)
        if program is None:
            return Outcome(0, "")
        words = list(command[command.index(program) :])
        self.commands.append(words)
        if program == self.broken:
            return Outcome(2, "a.c:1: error: no such thing")
        output = next((word.removeprefix("OUTPUT=") for word in words if word.startswith("OUTPUT=")), None)
        if output is not None:
            folder = self.root / output.lstrip("/")
            for name in ("vfio_b_test", "vfio_a_test", "vfio_a_test.o", "vfio_a_test.d"):
                (folder / name).write_text(name)
            (folder / "libvfio").mkdir()
        return Outcome(0, "")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a source package, as far as builds look at it."""
    root = tmp_path / "root"
    for folder in ("usr/src", "build"):
        (root / folder).mkdir(parents=True)
    (root / "usr/src/linux-source-7.3.tar.xz").touch()
    (root / ".complete").write_text("linux-source-7.3_7.3.4-1_all.deb\n")
    return root


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """The part of guest-tools that suites are built from."""
    tools = tmp_path / "guest-tools"
    for name in ("suites/vfio/pviommu_dma_test.c", "driver/pviommu_dma_test.h"):
        (tools / name).parent.mkdir(parents=True)
        (tools / name).write_text(name)
    return tools


def build(root: Path, tools: Path, fake: FakeRoot, architecture: Architecture = AMD64) -> list[Path]:
    cache = root.parent / "cache"
    cache.mkdir(exist_ok=True)
    return build_suite("vfio", root, tools, cache, Progress(io.StringIO(), 2), architecture, fake)


def test_programs_alone_are_kept_and_nothing_is_left_in_the_root(root: Path, tools: Path) -> None:
    programs = build(root, tools, FakeRoot(root))

    assert [path.name for path in programs] == ["vfio_a_test", "vfio_b_test"]
    assert {path.stat().st_mode & 0o777 for path in programs} == {0o755}
    assert list((root / "build").iterdir()) == []


def test_driver_is_linked_in_front_and_the_suite_is_static(root: Path, tools: Path) -> None:
    fake = FakeRoot(root)
    build(root, tools, fake)

    assert [words[0] for words in fake.commands] == ["tar", "make", "gcc", "make"]
    assert fake.commands[1][-1] == "headers"
    compiled = fake.commands[2][fake.commands[2].index("-o") + 1]
    link = next(word for word in fake.commands[3] if word.startswith("USERLDFLAGS="))
    assert link.split() == ["USERLDFLAGS=-static", "-Wl,--wrap=vfio_pci_driver_probe", compiled]


def test_suite_of_another_architecture_is_cross_compiled_and_kept_apart(root: Path, tools: Path) -> None:
    fake = FakeRoot(root)
    kept = {build(root, tools, fake, architecture)[0].parent for architecture in (AMD64, ARM64)}

    assert len(kept) == 2
    assert [words[0] for words in fake.commands[4:]] == ["tar", "make", "aarch64-linux-gnu-gcc", "make"]
    for words in (fake.commands[5], fake.commands[7]):
        assert {"ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-"} <= set(words)


def test_suite_is_built_anew_only_for_another_source_or_driver(root: Path, tools: Path) -> None:
    fake = FakeRoot(root)
    found = [build(root, tools, fake)[0].parent, build(root, tools, fake)[0].parent]
    assert found[0] == found[1]
    assert len(fake.commands) == 4

    (tools / "suites/vfio/pviommu_dma_test.c").write_text("changed")
    found.append(build(root, tools, fake)[0].parent)
    (tools / "driver/pviommu_dma_test.h").write_text("changed")
    found.append(build(root, tools, fake)[0].parent)
    (root / ".complete").write_text("linux-source-7.3_7.3.5-1_all.deb\n")
    found.append(build(root, tools, fake)[0].parent)
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    ("broken", "what"),
    [("tar", "unpacked"), ("make", "given the kernel's headers"), ("gcc", "given the engine's driver")],
)
def test_failing_step_leaves_its_words_and_nothing_else(root: Path, tools: Path, broken: str, what: str) -> None:
    with pytest.raises(RunError, match=f"the suite cannot be {what}") as caught:
        build(root, tools, FakeRoot(root, broken=broken))

    assert "no such thing" in caught.value.detail
    assert list((root / "build").iterdir()) == []
    assert list((root.parent / "cache").iterdir()) == []


def test_driver_of_the_engine_is_there() -> None:
    source = resources.guest_tools() / "suites/vfio/pviommu_dma_test.c"
    assert "__wrap_vfio_pci_driver_probe" in source.read_text()
