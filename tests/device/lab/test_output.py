"""The output of the user's program: every byte, to the file and to the terminal, and known to have come."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pviommu.lab.output import GuestOutput
from pviommu.lab.problems import UsageError

EVERY_BYTE = bytes(range(256)) * 5000
SOON = 20.0


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A terminal that is a pipe: what is read from it, and what is written to."""
    reads, writes = os.pipe()
    yield reads, writes
    for descriptor in (reads, writes):
        try:
            os.close(descriptor)
        except OSError:
            continue  # a test has closed it


def write(far: socket.socket, data: bytes) -> threading.Thread:
    thread = threading.Thread(target=far.sendall, args=(data,), daemon=True)
    thread.start()
    return thread


def read(descriptor: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += os.read(descriptor, count - len(data))
    return data


def test_every_byte_goes_to_file_and_terminal(tmp_path: Path, pipe: tuple[int, int]) -> None:
    with GuestOutput(tmp_path / "out", pipe[1]) as output:
        write(output.far, EVERY_BYTE)
        assert read(pipe[0], len(EVERY_BYTE)) == EVERY_BYTE
        assert output.wait_for(len(EVERY_BYTE), time.monotonic() + SOON)

    assert (tmp_path / "out").read_bytes() == EVERY_BYTE
    assert output.count == len(EVERY_BYTE)


def test_it_is_shown_as_it_comes(tmp_path: Path, pipe: tuple[int, int]) -> None:
    with GuestOutput(tmp_path / "out", pipe[1]) as output:
        for word in (b"one", b"two"):
            output.far.sendall(word)
            assert read(pipe[0], 3) == word


def test_terminal_that_was_closed_does_not_cost_the_file_a_byte(tmp_path: Path, pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    with GuestOutput(tmp_path / "out", pipe[1]) as output:
        write(output.far, EVERY_BYTE)
        assert output.wait_for(len(EVERY_BYTE), time.monotonic() + SOON)

    assert (tmp_path / "out").read_bytes() == EVERY_BYTE


def test_terminal_that_takes_nothing_ends_the_wait_at_its_deadline(tmp_path: Path, pipe: tuple[int, int]) -> None:
    with GuestOutput(tmp_path / "out", pipe[1]) as output:
        output.far.sendall(bytes(70000))  # a pipe holds 65536
        assert not output.wait_for(70000, time.monotonic() + 0.2)
        read(pipe[0], 70000)
        assert output.wait_for(70000, time.monotonic() + SOON)


def test_output_that_ends_early_ends_the_wait(tmp_path: Path, pipe: tuple[int, int]) -> None:
    with GuestOutput(tmp_path / "out", pipe[1]) as output:
        output.far.sendall(b"half")
        output.far.close()
        assert not output.wait_for(8, float("inf"))
        assert output.count == 4


def test_file_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"out: No such file or directory"), GuestOutput(tmp_path / "no/out", 1):
        pytest.fail("it was opened")
