"""The file of ``--events``, for which the server never waits."""

from __future__ import annotations

import logging
import os
from pathlib import Path

__all__ = ["EventFile"]

log = logging.getLogger(__name__)


class EventFile:
    """Takes lines. Those for which there is no room, on the disk or in a FIFO, are lost, which the log tells: the first
    one at once, their number at the end. What is written is whole lines; the last one may lack its end.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError; of a FIFO that nobody reads, too."""
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        self._rest = b""
        """of the last line"""
        self.lost = 0
        """lines"""

    def write(self, line: str) -> None:
        """One more."""
        data = line.encode() + b"\n"
        try:
            while self._rest:
                self._rest = self._rest[os.write(self._fd, self._rest) :]
            self._rest = data[os.write(self._fd, data) :]
        except OSError as error:
            self.lost += 1
            if self.lost == 1:
                reason = "nobody reads it" if isinstance(error, BlockingIOError) else error.strerror
                log.error("--events %s: %s; events are lost", self._path, reason, extra={"event": "events-lost"})

    def close(self) -> None:
        """Tell how many were lost."""
        os.close(self._fd)
        if self.lost:
            log.error("--events %s: %d events were lost", self._path, self.lost, extra={"event": "events-lost"})
