"""A machine of QEMU without a guest, whose bus a program drives by the qtest protocol: a line for each access, and a
line that answers it.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from ..lab.processes import Child
from ..lab.provision import Qemu

__all__ = ["Qtest", "QtestError"]

TIMEOUT_S = 60.0
"""How long QEMU may take for an answer, its start included."""


class QtestError(Exception):
    """QEMU has ended, does not answer, or answers otherwise than the protocol says."""


class Qtest:
    """A QEMU with the accelerator qtest. A context manager, which ends it."""

    def __init__(self, qemu: Qemu, arguments: Sequence[str], descriptors: Sequence[int] = ()) -> None:
        """``arguments``: those of the machine, its memory and its devices, which may name ``descriptors``. Raises
        :class:`QtestError`.
        """
        here, there = socket.socketpair()
        here.settimeout(TIMEOUT_S)
        self._socket, self._rest = here, b""
        self._waiting: list[str] = []
        """writes that are not sent yet"""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 -- close() does
        self._child = Child()
        channel = ["-chardev", f"socket,id=qtest,fd={there.fileno()}", "-qtest", "chardev:qtest"]
        quiet = ["-nodefaults", "-display", "none", "-accel", "qtest", "-qtest-log", "none"]
        with there:
            self._child.start(
                [*qemu.command, *quiet, *channel, *arguments],
                output=self._errors,
                pass_fds=(*descriptors, there.fileno()),
                environment=qemu.environment,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End QEMU."""
        self._socket.close()
        with suppress(ProcessLookupError):
            self._child.kill()
        self._errors.close()

    def ask(self, *commands: str) -> list[str]:
        """What QEMU answers to each command, without its "OK". Raises :class:`QtestError`."""
        try:
            waiting, self._waiting = self._waiting, []
            self._socket.sendall("".join(f"{command}\n" for command in (*waiting, *commands)).encode())
            return [self._answer(command) for command in (*waiting, *commands)][len(waiting) :]
        except OSError as error:
            asked = (*waiting, *commands)[0]
            raise QtestError(f"QEMU does not answer {asked!r}: {error}; it said: {self._said()}") from error

    def _answer(self, command: str) -> str:
        while True:
            line = self._line()
            if line.startswith("OK"):
                return line[2:].strip()
            if not line.startswith("IRQ "):
                raise QtestError(f"QEMU answers {line!r} to {command!r}")

    def _line(self) -> str:
        while b"\n" not in self._rest:
            more = self._socket.recv(1 << 16)
            if not more:
                raise QtestError(f"QEMU has ended; it said: {self._said()}")
            self._rest += more
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode("ascii", "replace").strip()

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode("utf-8", "replace").strip()[-400:] or "nothing"

    # -- accesses of the bus ----------------------------------------------------------------------------------------

    def read(self, *places: tuple[int, int]) -> list[int]:
        """What is at each (address, size of 4 or 8 bytes)."""
        found = self.ask(*(f"read{'l' if size == 4 else 'q'} {address:#x}" for address, size in places))
        return [int(value, 16) for value in found]

    def write(self, address: int, size: int, value: int) -> None:
        """Write a value of 4 or 8 bytes; it is sent with the next question, or by :meth:`flush`."""
        self._waiting.append(f"write{'l' if size == 4 else 'q'} {address:#x} {value:#x}")

    def flush(self) -> None:
        """Have all writes done."""
        if self._waiting:
            self.ask()
