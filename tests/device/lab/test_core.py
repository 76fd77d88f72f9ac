"""The server's native core: built once, with the host's compiler or inside the private root."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from pviommu.lab.core import STEPS, build_core
from pviommu.lab.problems import RunError
from pviommu.lab.processes import Outcome
from pviommu.lab.progress import Progress
from pviommu.lab.provision import Toolbox


class FakeRoot:
    """Stands in for the private root and its gcc, whose output is the names of its sources."""

    def __init__(self, root: Path, complaint: str = "") -> None:
        self.root = root
        self.complaint = complaint
        self.calls = 0

    def __call__(self, command: Sequence[str]) -> Outcome:
        if not any("exec gcc" in word for word in command):
            return Outcome(0, "")
        self.calls += 1
        if self.complaint:
            return Outcome(1, self.complaint)
        inside = command[list(command).index("sh", command.index("-c") + 2) + 1]
        folder = self.root / inside.lstrip("/") if inside.startswith("/build") else self._folder(command)
        (folder / "core.so").write_text(" ".join(sorted(path.name for path in folder.glob("*.c"))))
        return Outcome(0, "")

    def _folder(self, command: Sequence[str]) -> Path:
        return next(self.root / word.lstrip("/") for word in command if word.startswith("/build/"))


@pytest.fixture
def toolbox(tmp_path: Path) -> Toolbox:
    (tmp_path / "root/build").mkdir(parents=True)
    return Toolbox(tmp_path / "root", ("qemu",), {}, "11.1", tmp_path / "k", "6.12", tmp_path / "b")


def progress() -> Progress:
    return Progress(io.StringIO(), STEPS)


def test_without_a_compiler_of_the_host_that_of_the_root_is_used_and_nothing_stays_there(
    toolbox: Toolbox, tmp_path: Path
) -> None:
    fake = FakeRoot(toolbox.root)

    made = build_core(toolbox, tmp_path / "pviommu", progress(), fake, environment={"PATH": str(tmp_path)})

    assert made.parent == tmp_path / "pviommu"
    assert {"engine.c", "ring.c", "table.c"} <= set(made.read_text().split())
    assert list((toolbox.root / "build").iterdir()) == []


def test_it_is_built_once(toolbox: Toolbox, tmp_path: Path) -> None:
    fake = FakeRoot(toolbox.root)
    for _ in range(2):
        build_core(toolbox, tmp_path / "pviommu", progress(), fake, environment={"PATH": str(tmp_path)})

    assert fake.calls == 1


def test_what_the_compiler_says_is_in_the_error(toolbox: Toolbox, tmp_path: Path) -> None:
    fake = FakeRoot(toolbox.root, "core.h: wrong")

    with pytest.raises(RunError) as caught:
        build_core(toolbox, tmp_path / "pviommu", progress(), fake, environment={"PATH": str(tmp_path)})

    assert "core.h: wrong" in caught.value.detail


def test_the_hosts_compiler_comes_first(toolbox: Toolbox, tmp_path: Path) -> None:
    fake = FakeRoot(toolbox.root)

    made = build_core(toolbox, tmp_path / "pviommu", progress(), fake, environment={"PATH": os.environ["PATH"]})

    assert made.read_bytes()[:4] == b"\x7fELF"
    assert fake.calls == 0
