"""Who is at the other end of a socket: told apart by process, also if that one lives in another pid namespace."""

from __future__ import annotations

import functools
import os
import socket
import struct
from dataclasses import dataclass

__all__ = ["Peer", "peer_of"]

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
    return Peer(pid, user, group, _process_of(sock))


def _process_of(sock: socket.socket) -> int | None:
    try:
        fd = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
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
