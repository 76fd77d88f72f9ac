"""A terminal joined with a guest's console: both ways, and every way that it ends."""

from __future__ import annotations

import os
import pty
import socket
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pviommu.lab.console import Terminal, attach
from pviommu.lab.problems import RunError


class Guest:
    """The far ends of what a terminal is joined with: QEMU's console socket and the guest's report."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "console"
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.path))
        self._listening.listen(1)
        self.report, self.host_report = socket.socketpair()
        self.console = socket.socket(socket.AF_UNIX)

    def accept(self) -> None:
        self.console.close()
        self.console, _ = self._listening.accept()

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes of what was typed."""
        return self.console.recv(size, socket.MSG_WAITALL)

    def close(self) -> None:
        for end in (self._listening, self.report, self.host_report, self.console):
            end.close()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    made = Guest(tmp_path)
    yield made
    made.close()


@pytest.fixture
def keyboard() -> Iterator[tuple[int, Terminal]]:
    """The end at which one types, and a terminal whose output goes nowhere."""
    reading, writing = os.pipe()
    null = os.open(os.devnull, os.O_WRONLY)
    yield writing, Terminal(reading, null)
    for descriptor in (reading, writing, null):
        os.close(descriptor)


def joined(guest: Guest, terminal: Terminal, play: Callable[[], None]) -> None:
    """Attach ``terminal`` while ``play`` does what guest and user do once they are joined; fails if ``play`` does."""
    problems: list[BaseException] = []
    ready = threading.Event()

    def run() -> None:
        try:
            guest.accept()
            assert ready.wait(20)
            play()
        except BaseException as problem:
            problems.append(problem)
        finally:
            guest.console.close()

    player = threading.Thread(target=run)
    player.start()
    attach(guest.path, guest.host_report.fileno(), terminal, ready.set)
    player.join()
    assert problems == []


def test_what_is_typed_reaches_the_guest_and_what_it_says_the_terminal(guest: Guest, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with (tmp_path / "shown").open("wb") as shown:

        def play() -> None:
            os.write(writing, b"uname\n")
            assert guest.read(6) == b"uname\n"
            guest.console.sendall(b"Linux\r\n~ # ")

        joined(guest, Terminal(reading, shown.fileno()), play)
    assert (tmp_path / "shown").read_bytes() == b"Linux\r\n~ # "
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("key", [b"x", b"X"])
def test_ctrl_a_x_leaves_a_guest_that_goes_on(guest: Guest, keyboard: tuple[int, Terminal], key: bytes) -> None:
    typing, terminal = keyboard

    def play() -> None:
        os.write(typing, b"\x01")
        os.write(typing, key)
        assert guest.console.recv(1) == b""  # the host closed it, nothing was typed

    joined(guest, terminal, play)


def test_ctrl_a_twice_types_one(guest: Guest, keyboard: tuple[int, Terminal]) -> None:
    typing, terminal = keyboard

    def play() -> None:
        os.write(typing, b"a\x01\x01b\x01cd")
        assert guest.read(4) == b"a\x01bd"

    joined(guest, terminal, play)


def test_end_of_input_leaves_the_console_joined_until_the_guest_ends(guest: Guest, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"poweroff -f\n")
    os.close(writing)
    with (tmp_path / "shown").open("wb") as shown:

        def play() -> None:
            assert guest.read(12) == b"poweroff -f\n"
            guest.console.sendall(b"reboot: Power down\r\n")

        joined(guest, Terminal(reading, shown.fileno()), play)
    assert (tmp_path / "shown").read_bytes() == b"reboot: Power down\r\n"
    os.close(reading)


def test_guest_that_goes_on_reporting_is_never_held_up(guest: Guest, keyboard: tuple[int, Terminal]) -> None:
    def play() -> None:
        guest.report.sendall(bytes(1 << 20))  # more than a socket holds: it is being read
        guest.report.close()
        guest.console.sendall(b"done")

    joined(guest, keyboard[1], play)


def test_terminal_is_raw_while_it_is_joined_and_as_before_afterwards(guest: Guest) -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)

    def play() -> None:
        assert not termios.tcgetattr(slave)[3] & (termios.ISIG | termios.ICANON | termios.ECHO)
        os.write(master, b"\x03")
        assert guest.read(1) == b"\x03"  # Ctrl-C is for the guest

    joined(guest, Terminal(slave, slave), play)
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_console_that_is_not_there_is_an_error(tmp_path: Path, keyboard: tuple[int, Terminal]) -> None:
    with pytest.raises(RunError, match="console cannot be reached: No such file"):
        attach(tmp_path / "none", 0, keyboard[1], lambda: None)
