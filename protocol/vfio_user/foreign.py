"""Descriptors that a peer sent: what kind they are, found out without touching what is behind them, and their end.

A peer may send any descriptor. Asking a file of a network or FUSE file system for its size, reading it, or closing it
waits for whoever serves that file system; closing a socket may wait for its linger time. None of that may happen where
others wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import termios
import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

__all__ = ["MOST_LEFT", "Closer", "is_eventfd", "is_memory_file", "name_of", "seals_of"]

MOST_LEFT = 64
"""How many descriptors of a peer may wait to be closed before it is kept out."""


def name_of(fd: int) -> str:
    """What /proc calls it, for messages: ``socket:[1]``, ``/a/file``. Characters that do not belong into a line are
    escaped."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}").encode("unicode_escape").decode()
    except OSError:
        return "a descriptor of which nothing is known"


def is_eventfd(fd: int) -> bool:
    """Whether it is an eventfd, by its name in /proc. No file can have that name: those of files begin with a slash."""
    return name_of(fd) == "anon_inode:[eventfd]"


def seals_of(fd: int) -> int | None:
    """Its ``F_SEAL_*`` bits; None if it cannot have seals. Files of tmpfs and hugetlbfs can, whoever made them."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return None


def is_memory_file(fd: int) -> bool:
    """Whether it is a file of tmpfs or hugetlbfs, a memfd for one."""
    return seals_of(fd) is not None


class Closer:
    """Closes what one peer has sent, without waiting where it is called.

    Eventfds and memory files are closed at once. Everything else is closed in a thread, which exists as long as there
    is something to close, and which belongs to this peer: no other peer's descriptors wait for its.
    """

    def __init__(self, done: Callable[[], None] = lambda: None) -> None:
        """``done`` is called, in that thread, whenever nothing is left."""
        self._done = done
        self._left: deque[Callable[[], object]] = deque()
        self._lock = threading.Lock()
        self._is_running = False
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether something waits to be closed. Take no more descriptors from this peer meanwhile."""
        if self._left and not self._is_running:
            self._start()
        return self._is_running or bool(self._left)

    @property
    def is_stuck(self) -> bool:
        """Whether something waits to be closed and no thread could be started for it, at this call neither: ask again
        later."""
        return bool(self._left) and not self._start()

    @property
    def full(self) -> bool:
        """Whether so much waits that this peer should not even connect anew."""
        return len(self._left) >= MOST_LEFT

    def close(self, fds: Iterable[int]) -> None:
        """Close descriptors; negative numbers, which stand for none, are passed over."""
        for fd in fds:
            if fd < 0:
                continue
            if is_memory_file(fd) or is_eventfd(fd):
                os.close(fd)
            else:
                self._later(partial(os.close, fd))

    def close_socket(self, sock: socket.socket) -> None:
        """End a connection; its peer sees that at once. Unread messages may hold descriptors, which are closed as by
        :meth:`close`."""
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        if _has_unread(sock):
            self._later(sock.close)
        else:
            sock.close()

    def wait(self, seconds: float) -> bool:
        """Wait at most ``seconds`` until everything is closed; returns whether it is."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)
        return not self.busy

    def _later(self, close: Callable[[], object]) -> None:
        with self._lock:
            self._left.append(close)
        self._start()

    def _start(self) -> bool:
        """Start the thread unless it runs; returns whether it runs. If it cannot start, the next call tries again."""
        with self._lock:
            if self._is_running:
                return True
            thread = threading.Thread(target=self._work, name="closer", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return False
            self._thread, self._is_running = thread, True
            return True

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._left:
                    self._is_running = False
                    break
                close = self._left.popleft()
            with contextlib.suppress(OSError):
                close()
            del close
        self._done()


def _has_unread(sock: socket.socket) -> bool:
    try:
        return any(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))
    except OSError:  # it listens: those who wait to be accepted may have sent anything
        return True
