"""The file of events stops nobody: neither a FIFO that is not read nor a full disk."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

import pytest

from pviommu.process.event_file import EventFile

from ..test_host_errors import no_room

LINE = "x" * 99


def test_a_fifo_that_is_not_read_loses_events_and_has_whole_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    file = EventFile(path)
    for _ in range(2000):
        file.write(LINE)
    assert file.lost > 0

    with open(reader, "rb") as opened:
        read = opened.read() + b""
        file.write("last")
        read += opened.read()
    file.close()

    *lines, last, rest = read.decode().split("\n")
    assert set(lines) == {LINE}
    assert (len(lines), last, rest) == (2000 - file.lost, "last", "")
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert "nobody reads it; events are lost" in caplog.text
    assert f"{file.lost} events were lost" in caplog.text


def test_a_fifo_without_a_reader_is_told_at_the_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")

    with pytest.raises(OSError, match="nobody reads this FIFO"):
        EventFile(tmp_path / "fifo")


def test_a_slow_reader_of_a_fifo_gets_everything_and_one_that_does_not_read_is_waited_for_once(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", closefd=True) as reader:
        read: list[bytes] = []
        thread = threading.Timer(0.05, lambda: read.append(reader.read()))
        thread.start()
        with EventFile(path, patience_s=30.0) as file:
            for _ in range(1000):
                file.write(LINE)
            thread.join()
            assert file.lost == 0
        assert b"".join([*read, reader.read()]).decode() == f"{LINE}\n" * 1000

        with EventFile(path, patience_s=0.05) as file:
            began = time.monotonic()
            for _ in range(1000):
                file.write(LINE)
            assert file.lost > 0
            assert time.monotonic() - began < 5  # 17 s if each of the 345 that find no room were waited for


def test_a_full_disk_loses_events_and_raises_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = EventFile(tmp_path / "events")
    with no_room():
        for _ in range(100):
            file.write(LINE)
    file.write("last")
    file.close()

    assert file.lost == 59
    assert (tmp_path / "events").read_text() == f"{LINE}\n" * 41 + "last\n"
    assert "File too large; events are lost" in caplog.text
