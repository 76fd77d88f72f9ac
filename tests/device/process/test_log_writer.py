"""Lines reach their descriptor in order, and whoever logs never waits for whoever reads."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pviommu.process.log_writer import QUEUE_BYTES, LogWriter, open_log

PATIENCE_S = 10.0


class Pipe:
    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 4096)

    def read_all(self) -> bytes:
        """What comes until the last writer has closed."""
        found = b""
        while piece := os.read(self.reader, 1 << 16):
            found += piece
        return found


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.reader)


def notice(text: str) -> bytes:
    return f"notice: {text}\n".encode()


def read_while_closing(pipe: Pipe, writer: LogWriter) -> list[str]:
    """The lines that a reader gets who begins to read when the writer is closed."""

    def close() -> None:
        writer.close(PATIENCE_S)
        os.close(pipe.writer)

    closing = threading.Thread(target=close)
    closing.start()
    lines = pipe.read_all().decode().splitlines()
    closing.join()
    return lines


def test_lines_come_out_in_order_and_all_of_them_before_close_returns(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "log", notice)
    for number in range(5000):
        writer.put(b"%d\n" % number)
    writer.close(PATIENCE_S)
    assert (tmp_path / "log").read_text().splitlines() == [str(number) for number in range(5000)]


@pytest.mark.row("server", 82)
def test_a_reader_who_does_not_read_costs_the_oldest_lines_and_no_more_memory_than_the_bound(pipe: Pipe) -> None:
    writer = LogWriter(pipe.writer, notice)
    line = b"x" * 999 + b"\n"
    for _ in range(3 * QUEUE_BYTES // len(line)):
        writer.put(line)
        assert writer.waiting <= QUEUE_BYTES
    writer.put(b"the last words\n")

    lines = read_while_closing(pipe, writer)

    said = [text for text in lines if text.startswith("notice: ")]
    lost = [int(text.split()[1]) for text in said]
    assert said == [f"notice: {count} lines of the log were lost: nothing read them" for count in lost]
    assert sum(lost) > QUEUE_BYTES // len(line)
    assert lines[-1] == "the last words"
    assert len(lines) - 1 - len(said) + sum(lost) == 3 * QUEUE_BYTES // len(line)


def test_what_was_put_before_a_flush_is_written_when_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def slow(fd: int, data: memoryview) -> int:
        threading.Event().wait(0.02)
        return real(fd, data)

    monkeypatch.setattr(os, "write", slow)
    writer = LogWriter(tmp_path / "log", notice)
    for size in (1, 5000):  # the second one is more than one piece
        writer.put(b"x" * size + b"\n")
        writer.put(b"y\n")
        assert writer.flush(PATIENCE_S)
        assert (tmp_path / "log").read_text().endswith("x" * size + "\ny\n")
    writer.close(PATIENCE_S)


def test_a_flush_waits_only_for_a_moment_for_a_reader_who_does_not_read(pipe: Pipe) -> None:
    writer = LogWriter(pipe.writer, notice)
    writer.put(b"x" * 10000 + b"\n")
    assert not writer.flush(0.01)
    read_while_closing(pipe, writer)


@pytest.mark.row("server", 82)
def test_closing_leaves_a_reader_behind_who_does_not_read(pipe: Pipe) -> None:
    writer = LogWriter(pipe.writer, notice)
    for _ in range(100):
        writer.put(b"x" * 1000 + b"\n")

    writer.close(0.01)  # returns, though the pipe is full

    read_while_closing(pipe, writer)


@pytest.mark.row("server", 82)
def test_closing_again_closes_nothing_else(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "log", notice)
    writer.close()
    others = os.open(tmp_path / "log", os.O_RDONLY)  # has the number of the first one now
    writer.close()
    os.fstat(others)
    os.close(others)


@pytest.mark.row("server", 82)
def test_the_flags_of_a_descriptor_that_others_share_stay_and_a_non_blocking_one_loses_nothing(pipe: Pipe) -> None:
    before = fcntl.fcntl(pipe.writer, fcntl.F_GETFL)
    blocking = LogWriter(pipe.writer, notice)
    blocking.put(b"one\n")
    blocking.close(PATIENCE_S)
    assert fcntl.fcntl(pipe.writer, fcntl.F_GETFL) == before

    os.set_blocking(pipe.writer, False)  # as another process may do
    writer = LogWriter(pipe.writer, notice)
    for number in range(5000):
        writer.put(b"%d\n" % number)
    assert read_while_closing(pipe, writer) == ["one", *(str(number) for number in range(5000))]


@pytest.mark.row("server", 82)
def test_a_reader_who_is_gone_ends_nothing() -> None:
    reader, end = os.pipe()
    os.close(reader)
    writer = LogWriter(end, notice)
    writer.put(b"one\n")
    writer.put(b"two\n")
    writer.close(PATIENCE_S)
    os.close(end)
    assert writer.waiting == 0


@pytest.mark.row("server", 82)
def test_lines_that_a_full_disk_refused_are_counted_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = threading.Event()
    real = os.write

    path = tmp_path / "log"

    def write(fd: int, data: memoryview) -> int:
        if not refused.is_set() and path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
            refused.set()
            raise OSError(errno.ENOSPC, "no space")
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    writer = LogWriter(path, notice)
    writer.put(b"one\n")
    assert refused.wait(PATIENCE_S)
    writer.put(b"two\n")
    writer.close(PATIENCE_S)
    assert path.read_text() == "notice: 1 lines of the log were lost: No space left on device\ntwo\n"


@pytest.mark.row("server", 86)
def test_a_file_that_was_renamed_is_left_at_reopening(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writer = LogWriter(path, notice)
    writer.put(b"before\n")
    while path.read_bytes() != b"before\n":
        threading.Event().wait(0.001)
    path.rename(tmp_path / "log.1")
    writer.reopen()
    while not path.exists():
        threading.Event().wait(0.001)
    writer.put(b"after\n")
    writer.close(PATIENCE_S)
    assert [(tmp_path / name).read_text() for name in ("log.1", "log")] == ["before\n", "after\n"]


@pytest.mark.row("server", 86)
def test_a_file_that_cannot_be_reopened_keeps_the_old_one_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "log"
    path.parent.mkdir()
    writer = LogWriter(path, notice)
    path.parent.rename(tmp_path / "moved")
    writer.reopen()
    while not (tmp_path / "moved" / "log").read_bytes():
        threading.Event().wait(0.001)
    writer.put(b"after\n")
    writer.close(PATIENCE_S)
    said = (tmp_path / "moved" / "log").read_text().splitlines()
    assert said == [f"notice: the log stays in the old file: cannot open {path}: No such file or directory", "after"]


@pytest.mark.row("server", 86)
def test_a_log_file_is_appended_to_and_a_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("yesterday\n")
    writer = LogWriter(path, notice)
    writer.put(b"today\n")
    writer.close(PATIENCE_S)
    assert path.read_text() == "yesterday\ntoday\n"

    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(OSError, match="must be a regular file"):
        open_log(tmp_path / "fifo")
    os.close(reader)
    with pytest.raises(OSError, match="No such device"):  # and one without a reader is not waited for
        open_log(tmp_path / "fifo")
