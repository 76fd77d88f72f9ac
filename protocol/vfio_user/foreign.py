"""Descriptors that a peer sent: what kind they are, found out without touching what is behind them, and their end.

A peer may send any descriptor. Asking a file of a network or FUSE file system for its size, reading it, or closing it
waits for whoever serves that file system; closing a socket may wait for its linger time. None of that may happen where
others wait.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import socket
import stat
import struct
import termios
import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from .errors import RequestError

__all__ = ["Closer", "Status", "check_memory", "describe", "is_eventfd", "is_memory_file", "status"]

_AT_EMPTY_PATH, _AT_STATX_DONT_SYNC = 0x1000, 0x4000
_STATX_BASIC_STATS = 0x7FF
_STATX = struct.Struct("<28xH2xQQ80xIIII")
_STATX_SIZE = 256
_REMOTE = ("fuse", "nfs", "cifs", "smb", "9p", "ceph", "afs", "virtiofs", "gfs2", "ocfs2", "lustre", "coda")
"""How names of file systems begin that wait for another process or machine."""


def describe(fd: int) -> str:
    """What /proc calls it, for messages: ``socket:[1]``, ``/a/file``. What no line should hold is escaped."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}").encode("unicode_escape").decode()
    except OSError:
        return "a descriptor of which nothing is known"


def is_eventfd(fd: int) -> bool:
    """Whether it is an eventfd. No file can have that name: those of files begin with a slash."""
    return describe(fd) == "anon_inode:[eventfd]"


def is_memory_file(fd: int) -> bool:
    """Whether it is a file of tmpfs or hugetlbfs, a memfd for one: only those have seals."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


MOST_LEFT = 64
"""Closes that wait for another one before a peer is to be kept out."""


class Status(NamedTuple):
    """What statx tells of a file without asking the one who serves its file system."""

    mode: int
    inode: int
    size: int
    """bytes; 0 for devices"""
    device: tuple[int, int]
    """major and minor number of its file system"""


@functools.cache
def _statx() -> Callable[..., int]:
    function: Callable[..., int] = ctypes.CDLL(None, use_errno=True).statx
    return function


def status(fd: int) -> Status:
    """As :func:`os.fstat`, from what the kernel has at hand. Raises :class:`OSError`."""
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    if _statx()(fd, b"", _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, _STATX_BASIC_STATS, buffer):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    mode, inode, size, _, _, major, minor = _STATX.unpack_from(buffer.raw)
    return Status(mode, inode, size, (major, minor))


def _file_system(device: tuple[int, int]) -> str | None:
    """Type of the file system with this device number; ``None`` if it is not mounted where this process sees it."""
    wanted = f"{device[0]}:{device[1]}"
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-", 6) + 1]
    return None


def check_memory(fd: int, what: str) -> None:
    """Refuse what cannot be memory, or cannot be looked at without waiting for somebody else. ``what`` wants it.

    Accepted are regular files and block devices, but not those of file systems that another process or machine
    serves. One without a block device that is not mounted here either may be such a one. Raises
    :class:`RequestError` (EINVAL).
    """
    if is_memory_file(fd):
        return
    try:
        found = status(fd)
    except OSError as error:
        raise RequestError(errno.EINVAL, f"{what}: the file descriptor is not memory: {error.strerror}") from error
    if stat.S_ISBLK(found.mode):
        return
    name = describe(fd)
    if not stat.S_ISREG(found.mode):
        raise RequestError(errno.EINVAL, f"{what}: the file descriptor is not memory: it is {name}")
    try:
        kind = _file_system(found.device)
    except OSError as error:
        raise RequestError(error.errno or errno.EIO, f"{what}: {name} cannot be looked at: {error.strerror}") from error
    if kind is None and found.device[0] == 0:
        text = f"{name} is on a file system that is not mounted here, so that it may stand still at any access"
        raise RequestError(errno.EINVAL, f"{what}: the file descriptor is not memory: {text}")
    if kind is not None and kind.startswith(_REMOTE):
        text = f"{name} is on {kind}, which may stand still at any access"
        raise RequestError(errno.EINVAL, f"{what}: the file descriptor is not memory: {text}")


class Closer:
    """Closes what one peer has sent, without waiting where it is called.

    Eventfds and memory files are closed at once. Whatever else it is, is closed in a thread, which is there as long
    as there is something to close, and in which at most this peer's descriptors wait for each other.
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
        """End a connection: at once for its peer. What it had sent and nobody read may hold descriptors, too."""
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        if _has_unread(sock):
            self._later(sock.close)
        else:
            sock.close()

    def wait(self, seconds: float) -> bool:
        """Wait at most so long for what is left to be closed; whether nothing is."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)
        return not self.busy

    def _later(self, close: Callable[[], object]) -> None:
        with self._lock:
            self._left.append(close)
        self._start()

    def _start(self) -> None:
        """See that the thread runs. If there can be none now, it is tried again whenever somebody asks."""
        with self._lock:
            if self._is_running:
                return
            thread = threading.Thread(target=self._work, name="closer", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return
            self._thread, self._is_running = thread, True

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
