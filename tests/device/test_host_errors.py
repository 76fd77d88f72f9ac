"""What the machine refuses is one line and status 3; a file is written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from pviommu import cli
from pviommu.cli import main
from pviommu.host_errors import write_whole


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """No file can grow beyond 4 KiB, as on a full disk: for one call, as the report of the tests may be a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.row("server", 116)
def test_a_file_for_which_there_is_no_room_stays_as_it_was_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_whole(path, "before")

    with no_room(), pytest.raises(OSError, match="File too large") as caught:
        write_whole(path, "x" * 8192)

    assert caught.value.filename == str(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.row("server", 115)
def test_a_core_for_which_there_is_no_room_is_one_line_and_status_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    with no_room():
        assert main(["build-core"]) == 3

    said = capsys.readouterr().err
    what = f"the native core cannot be built in {tmp_path}/pviommu: File too large"
    assert said == f"pviommu: {what}; set XDG_CACHE_HOME to a folder of your own\n"
    assert list((tmp_path / "pviommu").iterdir()) == []


@pytest.mark.row("server", 115)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EMFILE])
def test_whatever_the_machine_refuses_any_command_is_one_line_and_status_3(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(words: list[str]) -> int:
        raise OSError(number, os.strerror(number), "/some/file")

    monkeypatch.setattr(cli, "_run", refused)

    assert main(["doctor"]) == 3
    assert capsys.readouterr().err == f"pviommu: /some/file: {os.strerror(number)}\n"


def test_a_mistake_of_this_program_is_no_error_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(words: list[str]) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(cli, "_run", wrong)

    with pytest.raises(OSError, match="Bad file descriptor"):
        main(["doctor"])


def test_what_is_no_regular_file_is_written_into_and_stays_what_it_is(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(fifo, "text")
        assert os.read(reader, 16) == b"text"
    finally:
        os.close(reader)
    assert fifo.is_fifo()
    assert [each.name for each in tmp_path.iterdir()] == ["fifo"]


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("file")

    write_whole(link, "text")

    assert link.is_symlink()
    assert (tmp_path / "file").read_text() == "text"
