"""Lines are written to a descriptor by a separate thread: logging never waits for a reader of the log.

The standard library's ``QueueListener`` does not bound the bytes that wait, and waits without end for a reader when
it is stopped.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

__all__ = ["GRACE_S", "QUEUE_BYTES", "LogWriter", "open_log"]

QUEUE_BYTES = 1 << 20
"""Bytes that may wait for a reader. Beyond that the oldest lines are dropped: the last ones explain most."""
GRACE_S = 0.5
"""How long a process waits at its end for its last lines to be read."""
_PIECE = select.PIPE_BUF
"""Bytes that a pipe takes whole, so that lines of several processes do not mix within."""


def open_log(path: Path) -> int:
    """A descriptor that appends to the regular file at ``path``, made if it is missing. Raises :class:`OSError`."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o640)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "must be a regular file", os.fspath(path))
    return fd


class LogWriter:
    """Writes lines to ``fd``, which stays the caller's, or to the file ``path``, which :meth:`reopen` opens anew.

    The descriptor's flags are not touched: a terminal or a pipe is shared with other processes.
    """

    def __init__(
        self,
        target: int | Path,
        notice: Callable[[str], bytes],
        tick: Callable[[], float | None] = lambda: None,
    ) -> None:
        """``notice`` makes a line of what the writer itself has to say.

        ``tick`` is called by the thread whenever it has been woken, and gives the seconds until it wants to be called
        again at the latest, if any. Raises :class:`OSError` for a file that cannot be opened.
        """
        self._path = None if isinstance(target, int) else target
        self._fd = target if isinstance(target, int) else open_log(target)
        self._notice = notice
        self._tick = tick
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._written = threading.Condition(lock)
        self._is_writing = False
        self._lines: deque[bytes] = deque()
        self._waiting = 0
        self._lost = 0
        self._lost_to = ""
        self._reopening = self._closing = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Bytes that wait."""
        return self._waiting

    def put(self, line: bytes) -> None:
        """Queue a line, its newline included. Never blocks."""
        with self._changed:
            self._lines.append(line)
            self._waiting += len(line)
            while self._waiting > QUEUE_BYTES:
                self._waiting -= len(self._lines.popleft())
                self._lose(1, "nothing read them")
            self._changed.notify()

    def reopen(self) -> None:
        """Go on in a new file of the same name, if it is a file that is written. May be called by a signal handler."""
        with self._changed:
            self._reopening = True
            self._changed.notify()

    def flush(self, grace_s: float = GRACE_S) -> bool:
        """Wait until what has been put is written, for at most ``grace_s``. Whether it is."""
        with self._changed:
            return self._written.wait_for(lambda: not (self._lines or self._is_writing), grace_s)

    def close(self, grace_s: float = GRACE_S) -> None:
        """Write what waits, for at most ``grace_s``; a thread whose reader does not read is left behind."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(grace_s)
        if self._path and not self._thread.is_alive():
            self._path = None  # its number may be another file's at the next call
            os.close(self._fd)

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the loop's
        while True:
            timeout = self._tick()
            with self._changed:
                if not (self._lines or self._reopening or self._closing):
                    self._changed.wait(timeout)
                reopening, self._reopening = self._reopening, False
                if self._closing and not self._lines and not self._lost:
                    return
                piece, count = self._take()
            if reopening and self._path:
                self._open_anew(self._path)
            if piece:
                self._write_out(piece, count)
                with self._changed:
                    self._is_writing = False
                    self._written.notify_all()

    def _take(self) -> tuple[bytes, int]:
        """The next lines, with what is to be said of those that were lost before them, and how many they stand for."""
        if not self._lines and not self._closing:
            return b"", 0
        lost, self._lost = self._lost, 0
        taken = [self._notice(f"{lost} lines of the log were lost: {self._lost_to}")] if lost else []
        count, size = lost, 0
        while self._lines and (not size or size + len(self._lines[0]) <= _PIECE):
            line = self._lines.popleft()
            taken.append(line)
            size += len(line)
            count += 1
        self._waiting -= size
        self._is_writing = True
        return b"".join(taken), count

    def _write_out(self, piece: bytes, count: int) -> None:
        left = memoryview(piece)
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:  # somebody else made the file non-blocking
                poller = select.poll()
                poller.register(self._fd, select.POLLOUT)
                poller.poll()
            except OSError as error:
                with self._changed:
                    if not self._closing:  # nobody will read of them
                        self._lose(count, os.strerror(error.errno or 0))
                return

    def _open_anew(self, path: Path) -> None:
        try:
            fd = open_log(path)
        except OSError as error:
            self.put(self._notice(f"the log stays in the old file: cannot open {path}: {error.strerror}"))
            return
        os.close(self._fd)
        self._fd = fd

    def _lose(self, count: int, reason: str) -> None:
        self._lost += count
        self._lost_to = reason
