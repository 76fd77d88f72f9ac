"""What builds keep: named by everything that went in, whole or not there, and never mixed of two runs."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pviommu.lab import kept
from pviommu.lab.kept import copy_sources, keep, source_files, sources_digest


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "driver"
    (folder / "part").mkdir(parents=True)
    (folder / "pviommu.c").write_text("int x;")
    (folder / "part/more.c").write_text("int y;")
    return folder


def test_digest_depends_on_kernel_and_names_but_not_on_products(sources: Path) -> None:
    before = sources_digest(sources, "6.12")
    (sources / "pviommu.o").touch()
    assert sources_digest(sources, "6.12") == before
    assert sources_digest(sources, "6.13") != before
    (sources / "pviommu.c").rename(sources / "other.c")
    assert sources_digest(sources, "6.12") != before


def test_digest_tells_where_one_file_ends_and_the_next_begins(sources: Path) -> None:
    before = sources_digest(sources, "")
    (sources / "part/more.c").write_text("int y;10:pviommu.c6:int x;")
    (sources / "pviommu.c").unlink()
    assert sources_digest(sources, "") != before


def test_copy_has_folders_and_contents_and_leaves_products_out(sources: Path, tmp_path: Path) -> None:
    (sources / "pviommu.ko").touch()
    copy_sources(sources, tmp_path / "copy")
    assert [path.relative_to(tmp_path / "copy") for path in source_files(tmp_path / "copy")] == [
        Path("part/more.c"),
        Path("pviommu.c"),
    ]
    assert (tmp_path / "copy/part/more.c").read_text() == "int y;"


def test_second_of_two_runs_leaves_the_first_ones_result(sources: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    keep([sources / "pviommu.c"], kept)
    (sources / "pviommu.c").write_text("changed")
    keep([sources / "pviommu.c"], kept)
    assert (kept / "pviommu.c").read_text() == "int x;"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["driver", "kept"]


def test_mode_is_that_asked_for(sources: Path, tmp_path: Path) -> None:
    keep([sources / "pviommu.c"], tmp_path / "kept", mode=0o755)
    assert (tmp_path / "kept/pviommu.c").stat().st_mode & 0o777 == 0o755


@pytest.mark.row("server", 115)
def test_products_for_which_there_is_no_room_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"a part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(kept.shutil, "copyfile", full)

    with pytest.raises(OSError, match="No space left on device"):
        kept.keep([tmp_path / "a.ko"], tmp_path / "modules-1")

    assert list(tmp_path.iterdir()) == []
