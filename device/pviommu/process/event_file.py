"""The file of ``--events``, for which a server never waits."""

from __future__ import annotations

import errno
import logging
import os
import select
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["EventFile"]

log = logging.getLogger(__name__)


class EventFile:
    """Takes lines. Those for which there is no room, on the disk or in a FIFO, are lost, which the log tells: the first
    one at once, their number at the end. What is written is whole lines; the last one may lack its end. A context
    manager; closes the file.
    """

    def __init__(self, path: Path, patience_s: float = 0.0) -> None:
        """``patience_s``: how long a reader of a FIFO may let it wait for room, until the first time that this is not
        enough. Raises OSError; of a FIFO that nobody has open for reading, too.
        """
        self._path = path
        self._patience_ms = 1000 * patience_s
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            raise OSError(errno.ENXIO, "nobody reads this FIFO", str(path)) from error
        self._rest = b""
        """of the last line"""
        self.lost = 0
        """lines"""

    def write(self, line: str) -> None:
        """One more."""
        data = line.encode() + b"\n"
        try:
            while self._rest:
                self._rest = self._rest[self._write(self._rest) :]
            self._rest = data[self._write(data) :]
        except OSError as error:
            self.lost += 1
            self._patience_ms = 0
            if self.lost == 1:
                reason = "nobody reads it" if isinstance(error, BlockingIOError) else error.strerror
                log.error("--events %s: %s; events are lost", self._path, reason, extra={"event": "events-lost"})

    def _write(self, data: bytes) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            room = select.poll()
            room.register(self._fd, select.POLLOUT)
            if not self._patience_ms or not room.poll(self._patience_ms):
                raise
            return os.write(self._fd, data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Tell how many were lost."""
        os.close(self._fd)
        if self.lost:
            log.error("--events %s: %d events were lost", self._path, self.lost, extra={"event": "events-lost"})
