"""The process at the other end of a socket, identified even if it is in another pid namespace."""

from __future__ import annotations

import errno
import functools
import os
import select
import socket
import struct
from dataclasses import dataclass

from ..process_status import status_of

__all__ = ["Peer", "is_gone", "peer_of"]

_CREDENTIALS = struct.Struct("3i")
_SO_PEERPIDFD = 77  # since Linux 6.5; Python has no name for it


@dataclass(frozen=True)
class Peer:
    """The process that connected a socket."""

    pid: int
    """0 if it is in a pid namespace that cannot be seen from here"""
    user: int
    group: int
    process: int | None = None
    """a number that no other process has or had; None if this kernel does not give any (before 6.9)"""
    started: int | None = None
    """when, in clock ticks after the start of the host; None if that cannot be told"""

    def may_be(self, other: Peer) -> bool:
        """Whether both may be one process. Without :attr:`process`, users and groups must do across namespaces."""
        if self.process is not None and other.process is not None:
            return self.process == other.process
        return (self.pid, self.user, self.group) == (other.pid, other.user, other.group)

    def __str__(self) -> str:
        if self.pid:
            return f"process {self.pid} of user {self.user}"
        return f"a process of user {self.user} in another pid namespace"


def peer_of(sock: socket.socket) -> Peer:
    """The other end of a connected Unix socket."""
    packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, user, group = _CREDENTIALS.unpack(packed)
    status = status_of(pid)
    return Peer(pid, user, group, _process_of(sock), status.started if status else None)


def is_gone(sock: socket.socket, peer: Peer) -> bool:
    """Whether the process that connected ``sock``, ``peer`` at that time, has ended. False if that cannot be told.

    The connection may go on without it: others may have been given the socket.
    """
    try:
        fd = _pidfd_of(sock)
    except OSError as error:
        return error.errno == errno.ESRCH or _has_gone(peer)
    try:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        return bool(poller.poll(0))
    finally:
        os.close(fd)


def _has_gone(peer: Peer) -> bool:
    """As :func:`is_gone`, by number and time of start: this kernel gives no pidfd (before 6.5), or none is left."""
    if not peer.pid:
        return False
    try:
        os.kill(peer.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        pass
    status = status_of(peer.pid)
    return status is not None and (status.has_ended or peer.started not in (None, status.started))


def _pidfd_of(sock: socket.socket) -> int:
    """A descriptor of the process that connected ``sock``; the caller closes it. Raises :class:`OSError`.

    ESRCH: the process is gone. Newer kernels give a descriptor then, too.
    """
    return sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)


def _process_of(sock: socket.socket) -> int | None:
    try:
        fd = _pidfd_of(sock)
    except OSError:  # an older kernel, a process that is gone, or no descriptor left
        return None
    try:
        return os.fstat(fd).st_ino if _pidfds_have_inodes() else None
    except OSError:  # no descriptor left to find out
        return None
    finally:
        os.close(fd)


@functools.cache
def _pidfds_have_inodes() -> bool:
    """Whether each process has an inode of its own: formerly, all pidfds shared one with all other anonymous files."""
    own, other = os.pidfd_open(os.getpid()), os.eventfd(0, os.EFD_CLOEXEC)
    try:
        return os.fstat(own).st_dev != os.fstat(other).st_dev
    finally:
        os.close(own)
        os.close(other)
