"""Output onto a full disk, into a closed pipe or nowhere: one true line, status 3, and the work is done."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

LISTING = [
    ["doctor"],
    ["serve", "--print-capabilities"],
    ["topology", "list"],
    ["topology", "show", "lab"],
    ["--version"],
    ["--help"],
    ["serve", "--help"],
]


def run(words: Sequence[str], output: int | None, close: str = "") -> tuple[int, str]:
    """The status of ``pviommu words``, whose standard output is the descriptor ``output``, and what it said."""
    command = [sys.executable, "-m", "pviommu", *words]
    if close:  # a shell closes it as users do
        command = ["sh", "-c", f'exec "$@" {close}', "sh", *command]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.PIPE, text=True, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.row("server", 128)
@pytest.mark.parametrize("words", LISTING, ids=" ".join)
def test_a_full_disk_is_one_line_and_status_3(words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        ended = run(words, full.fileno())

    assert ended == (3, "pviommu: standard output cannot be written: No space left on device\n")


@pytest.mark.row("server", 128)
@pytest.mark.parametrize("words", LISTING, ids=" ".join)
def test_a_reader_that_left_is_one_line_and_status_3(words: list[str]) -> None:
    near, far = os.pipe()
    os.close(near)
    try:
        ended = run(words, far)
    finally:
        os.close(far)

    assert ended == (3, "pviommu: standard output cannot be written: Broken pipe\n")


@pytest.mark.row("server", 128)
def test_output_that_was_closed_before_the_start_is_one_line_and_status_3() -> None:
    ended = run(["serve", "--print-capabilities"], None, ">&-")

    assert ended == (3, "pviommu: standard output cannot be written: Bad file descriptor\n")


@pytest.mark.row("server", 128)
def test_a_mistake_keeps_its_status_where_nothing_can_be_said_at_all() -> None:
    assert run(["serve", "--dance"], None, ">&- 2>&-") == (2, "")
    assert run(["serve", "--dance"], None, ">/dev/full 2>/dev/full") == (2, "")


@pytest.mark.row("server", 128)
def test_no_file_gets_the_number_of_a_stream_that_was_closed() -> None:
    program = (
        "import os, sys, pviommu.streams as s\n"
        "with s.Streams():\n"
        "    print('text')\n"
        "    sys.exit(0 if os.open('/', os.O_RDONLY) > 2 else 9)"
    )
    command = ["sh", "-c", 'exec "$@" >&- 2>&- <&-', "sh", sys.executable, "-c", program]

    assert subprocess.run(command, check=False).returncode == 0


@pytest.mark.row("server", 128)
def test_what_can_be_written_arrives_whole_through_a_pipe_that_does_not_block() -> None:
    """Whoever shares a pipe may have made it non-blocking."""
    near, far = os.pipe()
    os.set_blocking(far, False)
    text = "x" * (1 << 20)
    program = f"import pviommu.streams as s\nwith s.Streams() as t:\n    print('x' * {len(text)})\nexit(t.status(0))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=far) as writer, open(near, "rb") as reader:
        os.close(far)
        assert reader.read().decode() == text + "\n"
    assert writer.returncode == 0
