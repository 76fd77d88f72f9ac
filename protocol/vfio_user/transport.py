"""Unix stream sockets that carry descriptors: the only module here that touches a socket."""

from __future__ import annotations

import array
import contextlib
import enum
import errno
import logging
import os
import socket
import stat
from collections import deque
from collections.abc import Callable, Sequence

from .framing import FDS_TRUNCATED, close_fds
from .server import Outgoing

__all__ = ["Flush", "Listener", "accept", "connect", "flush", "listen", "receive", "send"]

logger = logging.getLogger(__name__)

_CHUNK = 64 << 10
_FD_SIZE = array.array("i").itemsize
# Room for as many as Linux passes at once (SCM_MAX_FD): it would close any that do not fit here and now.
_ANCILLARY = socket.CMSG_SPACE(253 * _FD_SIZE)
_CUT_SHORT = int(socket.MSG_CTRUNC)  # IntFlag arithmetic takes a microsecond, and every message needs it
_PATH_LIMIT = 107  # sun_path less its NUL
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ECONNABORTED)


class Flush(enum.Enum):
    """What became of queued messages. True only for DRAINED."""

    DRAINED = "drained"
    """all sent"""
    BLOCKED = "blocked"
    """the socket is full; try again when it is writable"""
    CLOSED = "closed"
    """the peer is gone; close the socket at once"""

    def __bool__(self) -> bool:
        return self is Flush.DRAINED


def receive(sock: socket.socket, size: int = _CHUNK) -> tuple[bytes, list[int]] | None:
    """Read at most ``size`` bytes and the descriptors that came with them (the caller owns them).

    None if the peer is gone; no bytes if a non-blocking socket has none. If the kernel kept descriptors back, the
    list ends in a negative errno that says why. TimeoutError if the socket has a timeout that ran out.
    """
    try:
        data, ancillary, flags, _ = sock.recvmsg(size, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        return b"", []
    except ConnectionError:
        return None
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.extend(array.array("i", payload[: len(payload) - len(payload) % _FD_SIZE]))
    if flags & _CUT_SHORT:
        fds.append(_why_kept_back(sock))
    if not data:
        close_fds(fds)
        return None
    return data, fds


def _why_kept_back(sock: socket.socket) -> int:
    """Why the kernel did not hand over descriptors, as a negative errno. The kernel does not say; this finds out."""
    try:
        os.close(os.dup(sock.fileno()))
    except OSError as error:
        return -error.errno if error.errno else FDS_TRUNCATED
    return -errno.EACCES  # a security module


def send(sock: socket.socket, data: bytes, fds: Sequence[int]) -> int:
    """Send as much of a message as the socket takes; returns how many bytes. Raises OSError, also if the peer is gone:
    no SIGPIPE."""
    if not fds:
        return sock.send(data, socket.MSG_NOSIGNAL)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    return sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def flush(
    sock: socket.socket,
    outgoing: deque[Outgoing],
    send: Callable[[socket.socket, bytes, Sequence[int]], int] = send,
) -> Flush:
    """Send from the front of ``outgoing`` what the socket takes; what is left, in part or whole, stays there.

    A vanished peer is :data:`Flush.CLOSED`, never an exception or a signal. Descriptors ride on the first byte of their
    message, in a ``sendmsg`` of its own; messages without any that follow each other share one, up to 64 KiB.
    """
    while outgoing:
        if len(outgoing) > 1:
            _join_first(outgoing)
        item = outgoing[0]
        try:
            sent = send(sock, item.data, item.fds)
        except BlockingIOError:
            return Flush.BLOCKED
        except TimeoutError:
            raise
        except OSError as error:
            if error.errno not in _GONE:
                logger.warning("cannot send %d bytes with %d descriptors: %s", len(item.data), len(item.fds), error)
            return Flush.CLOSED
        if sent == len(item.data):
            outgoing.popleft()
        else:
            outgoing[0] = Outgoing(item.data[sent:])
    return Flush.DRAINED


def _join_first(outgoing: deque[Outgoing]) -> None:
    """Join the messages at the front that have no descriptors into one."""
    pieces: list[bytes] = []
    size = 0
    while outgoing and not outgoing[0].fds and size + len(outgoing[0].data) <= _CHUNK:
        pieces.append(outgoing.popleft().data)
        size += len(pieces[-1])
    if pieces:
        outgoing.appendleft(Outgoing(b"".join(pieces)))


class Listener(socket.socket):
    """A listening socket that knows which file is its own."""

    def __init__(self) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._path = ""
        self._identity = (0, 0)

    def bind_file(self, name: str) -> None:
        """Bind to ``name``, whose file is this socket's from now on."""
        self.bind(name)
        self._path, self._identity = name, _identity(name)

    def remove_file(self) -> None:
        """Unlink its file, unless there is another one in its place."""
        with contextlib.suppress(FileNotFoundError):
            if self._path and _identity(self._path) == self._identity:
                os.unlink(self._path)

    def remove(self) -> None:
        """:meth:`remove_file`, and close."""
        self.remove_file()
        self.close()


def _identity(name: str) -> tuple[int, int]:
    status = os.lstat(name)
    return status.st_dev, status.st_ino


def listen(path: str | os.PathLike[str], mode: int = 0o600, group: int | None = None) -> Listener:
    """A non-blocking listening socket at ``path``, whose file has ``mode`` and, if given, the group of that number.

    :meth:`Listener.remove` ends it.

    A socket file that nobody listens on is replaced. OSError EADDRINUSE if somebody does, or if another kind of
    file is there; ENAMETOOLONG above 107 bytes. The backlog is the largest, so that a client that comes while
    another is served waits.
    """
    name = os.fspath(path)
    _check_length(name)
    sock = Listener()
    try:
        # The file gets the mode of the unbound socket, so there is no moment in which others may connect.
        os.fchmod(sock.fileno(), mode if group is None else 0)
        try:
            sock.bind_file(name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise OSError(error.errno, os.strerror(error.errno or 0), name) from error
            _remove_stale(name)
            sock.bind_file(name)
        if group is not None:
            _give_to(name, group)
        os.chmod(name, mode)
        sock.listen(socket.SOMAXCONN)
    except BaseException:
        sock.remove()
        raise
    return sock


def accept(listener: socket.socket) -> socket.socket | None:
    """The next waiting client, as a non-blocking socket; None if none waits. Raises OSError if the system refuses."""
    try:
        sock, _ = listener.accept()
    except (BlockingIOError, ConnectionAbortedError):
        return None
    sock.setblocking(False)
    return sock


def connect(path: str | os.PathLike[str], timeout: float | None) -> socket.socket:
    """A connection to the server at ``path`` whose operations take at most ``timeout`` seconds. Raises OSError."""
    name = os.fspath(path)
    _check_length(name)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(timeout)
        sock.connect(name)
    except OSError as error:
        sock.close()
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), name) from error
    return sock


def _give_to(name: str, group: int) -> None:
    try:
        os.chown(name, -1, group, follow_symlinks=False)
    except OSError as error:
        text = f"cannot give it to group {group}: {os.strerror(error.errno or 0)}"
        raise OSError(error.errno, text, name) from error


def _check_length(name: str) -> None:
    length = len(os.fsencode(name))
    if length > _PATH_LIMIT:
        text = f"a socket path has at most {_PATH_LIMIT} bytes, this one {length}"
        raise OSError(errno.ENAMETOOLONG, text, name)


def _remove_stale(name: str) -> None:
    """Remove the socket file of a server that is gone; OSError EADDRINUSE if that is not what is there."""
    try:
        is_socket = stat.S_ISSOCK(os.lstat(name).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise OSError(errno.EADDRINUSE, "a file of that name is not a socket", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(name)
        except ConnectionRefusedError:
            os.unlink(name)
            return
        except BlockingIOError:  # its backlog is full: somebody listens
            pass
    raise OSError(errno.EADDRINUSE, "another server listens on this socket", name)
