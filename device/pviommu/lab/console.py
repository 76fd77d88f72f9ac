"""Connects a terminal with the serial console of a guest that was kept."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import termios
import tty
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .problems import RunError

__all__ = ["HOW_TO_LEAVE", "STANDARD", "Terminal", "attach"]

HOW_TO_LEAVE = "the guest's console is here; it ends with `poweroff -f` in the guest, or Ctrl-A X"

_ESCAPE = 0x01  # Ctrl-A, as in QEMU's own multiplexer
_MAX_PENDING = 1 << 16


@dataclass(frozen=True, slots=True)
class Terminal:
    """The two descriptors of a terminal, or of whatever stands for one."""

    reads: int
    writes: int


STANDARD = Terminal(0, 1)
"""The terminal that the lab itself was started on."""


def attach(path: Path, report: int, terminal: Terminal, joined: Callable[[], None]) -> None:
    """Connect ``terminal`` with the console socket at ``path`` until QEMU ends or Ctrl-A X is typed.

    ``joined`` is called when the console is connected: from then on nothing that the guest writes is lost. The console
    stays connected when the terminal's input ends. What still comes on ``report``, the descriptor of the guest's
    report, is thrown away, so that nothing in the guest waits for a reader. Raises RunError when there is no console.
    """
    with socket.socket(socket.AF_UNIX) as console:
        try:
            console.connect(str(path))
        except OSError as problem:
            raise RunError(f"the guest's console cannot be reached: {problem.strerror}") from problem
        console.setblocking(False)
        with _raw(terminal.reads):
            joined()
            _Joint(console, report, terminal).run()


@contextlib.contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    """Hand each key on as it comes, Ctrl-C too; a descriptor that is not a terminal stays as it is."""
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


class _Joint:
    """Moves bytes between terminal and console."""

    def __init__(self, console: socket.socket, report: int, terminal: Terminal) -> None:
        self._console = console
        self._report = report
        self._terminal = terminal
        self._pending = bytearray()
        self._escaped = False
        self._left = False
        self._poll = select.poll()
        self._poll.register(terminal.reads, select.POLLIN)
        self._poll.register(report, select.POLLIN)

    def run(self) -> None:
        """Run until the console ends or the user leaves."""
        while not self._left:
            self._poll.register(self._console, select.POLLIN | (select.POLLOUT if self._pending else 0))
            for descriptor, events in self._poll.poll():
                if descriptor == self._terminal.reads:
                    self._take_input()
                elif descriptor == self._report:
                    self._drop_report()
                elif not self._serve_console(events):
                    return

    def _take_input(self) -> None:
        try:
            data = os.read(self._terminal.reads, 4096)
        except OSError:  # the terminal was closed
            data = b""
        if not data:
            self._poll.unregister(self._terminal.reads)
        for byte in data:
            if self._escaped:
                self._escaped = False
                if byte in b"xX":
                    self._left = True
                elif byte == _ESCAPE:
                    self._type(byte)
            elif byte == _ESCAPE:
                self._escaped = True
            else:
                self._type(byte)

    def _type(self, byte: int) -> None:
        if len(self._pending) < _MAX_PENDING:  # if the guest reads nothing, what is typed is lost, as by a full tty
            self._pending.append(byte)

    def _drop_report(self) -> None:
        if not os.read(self._report, 4096):
            self._poll.unregister(self._report)

    def _serve_console(self, events: int) -> bool:
        """Move bytes both ways; returns whether the console is still there."""
        try:
            if events & select.POLLOUT:
                del self._pending[: self._console.send(self._pending)]
            if events & ~select.POLLOUT:
                data = self._console.recv(65536)
                _write_all(self._terminal.writes, data)
                return bool(data)
        except BlockingIOError:
            return True
        except OSError:  # the console ended, or nothing can be written on the terminal any more
            return False
        return True


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
