"""Copies what a program in the guest writes, unchanged, to a file and to the user's terminal.

It comes over a virtio-serial port of its own. A slow reader holds the program back; nothing is dropped, and nothing is
kept in memory.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from .problems import UsageError

__all__ = ["PORT_NAME", "GuestOutput"]

PORT_NAME = "org.pviommu.output"
_CHUNK = 65536
_LAST_SECONDS = 2.0  # how long to wait for a terminal that takes nothing any more


class GuestOutput:
    """One program's output; a context manager whose thread ends with the machine.

    ``far`` is the machine's end. ``terminal`` is a descriptor; the file has everything even if the terminal is closed.
    """

    def __init__(self, path: Path, terminal: int) -> None:
        self._near, self.far = socket.socketpair()
        self._path = path
        self._terminal: int | None = terminal
        self.problems: list[str] = []
        """why the file is incomplete; the program is not held up by that"""
        self._count = 0
        self._ended = False
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="guest output", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._file: IO[bytes] = self._path.open("wb", buffering=0)
        except OSError as problem:
            self._close()
            raise UsageError(f"{self._path}: {problem.strerror}") from problem
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The machine is gone, and what it wrote is still in the socket. A terminal that blocks holds up only the
        # thread.
        self.far.close()
        self._thread.join(_LAST_SECONDS)
        if not self._thread.is_alive():
            self._near.close()
            self._file.close()

    @property
    def count(self) -> int:
        """Bytes that have been written to the file and to the terminal."""
        return self._count

    def wait_for(self, count: int, deadline: float) -> bool:
        """Wait until ``count`` bytes have come, no more can come, or ``deadline``; returns whether they have come.

        ``deadline`` is a time of ``time.monotonic``.
        """
        with self._moved:
            left = max(0.0, deadline - time.monotonic()) if math.isfinite(deadline) else None
            self._moved.wait_for(lambda: self._ended or self._count >= count, left)
            return self._count >= count

    def _run(self) -> None:
        with contextlib.suppress(ConnectionResetError):
            while data := self._near.recv(_CHUNK):
                self._take(data)
        with self._moved:
            self._ended = True
            self._moved.notify_all()

    def _take(self, data: bytes) -> None:
        if not self.problems:
            try:
                _write_all(self._file.fileno(), data)
            except OSError as problem:
                self.problems.append(f"{self._path.name} is incomplete: {problem.strerror}")
        if self._terminal is not None:
            try:
                _write_all(self._terminal, data)
            except OSError:  # as with `| head`: the reader has seen enough; the file still gets everything
                self._terminal = None
        with self._moved:
            self._count += len(data)
            self._moved.notify_all()

    def _close(self) -> None:
        self._near.close()
        self.far.close()


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
