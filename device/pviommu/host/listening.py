"""The listening sockets of a server, and what becomes of clients when the system has no room for one more."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
from collections.abc import Callable

from vfio_user import transport

from ..pci.function import PciFunction

__all__ = ["REST_NS", "Listeners"]

log = logging.getLogger(__name__)

REST_NS = 100_000_000
"""For how long a socket is not looked at after accept failed: its client stays in the queue, so that looking again at
once would fail again, for ever."""
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


class Listeners:
    """Sockets that clients connect to, one a function."""

    def __init__(
        self,
        poller: select.epoll,
        now_ns: Callable[[], int],
        close: Callable[[socket.socket, PciFunction], None],
    ) -> None:
        """``close`` closes a client that wanted to be one of a function."""
        self._poller = poller
        self._now_ns = now_ns
        self._close_client = close
        self._sockets: dict[int, tuple[socket.socket, PciFunction]] = {}
        self._rest_until: dict[int, int] = {}
        self._complained: set[tuple[int, int]] = set()
        self._spare = _spare()

    def add(self, sock: socket.socket, function: PciFunction) -> None:
        """Look at ``sock`` from now on."""
        self._sockets[sock.fileno()] = (sock, function)
        self._poller.register(sock, select.EPOLLIN)

    def __contains__(self, fd: int) -> bool:
        return fd in self._sockets

    def function(self, fd: int) -> PciFunction:
        """What clients of the socket with descriptor ``fd`` want."""
        return self._sockets[fd][1]

    def rest(self, fd: int) -> None:
        """Do not look at a socket for :data:`REST_NS`: whoever waits there cannot be served yet."""
        self._poller.unregister(fd)
        self._rest_until[fd] = self._now_ns() + REST_NS

    def accept(self, fd: int) -> tuple[socket.socket, PciFunction] | None:
        """The client that waits at the socket with descriptor ``fd``, if there is one and the system allows it."""
        sock, function = self._sockets[fd]
        try:
            client = transport.accept(sock)
        except OSError as error:
            self._failed(fd, error)
            return None
        self._complained = {(complained, number) for complained, number in self._complained if complained != fd}
        return None if client is None else (client, function)

    def _failed(self, fd: int, error: OSError) -> None:
        """Tell the client at once by hanging up, with a descriptor that was kept for that; or rest."""
        sock, function = self._sockets[fd]
        number = error.errno or 0
        refused = number in _NO_DESCRIPTOR and self._hang_up(sock, function)
        if (fd, number) not in self._complained:
            self._complained.add((fd, number))
            log.error(
                "%s: no client can be accepted: %s%s",
                *(function.name, error.strerror, "; those who try are hung up on" if refused else ""),
                extra={"event": "accept-failed", "fields": {"function": function.name, "errno": number}},
            )
        if not refused:
            self.rest(fd)

    def _hang_up(self, sock: socket.socket, function: PciFunction) -> bool:
        """Accept a client and drop it. False if there was no room even for that."""
        if self._spare is None:
            self._spare = _spare()
        if self._spare is None:
            return False
        os.close(self._spare)
        try:
            client = transport.accept(sock)
        except OSError:
            return False
        finally:
            self._spare = None
        if client is not None:
            self._close_client(client, function)
        self._spare = _spare()
        return True

    def wake_ms(self) -> float | None:
        """Look again at those that have rested. After how many milliseconds this is to be called anew, if at all."""
        if not self._rest_until:
            return None
        now = self._now_ns()
        for fd in [fd for fd, until in self._rest_until.items() if until <= now]:
            del self._rest_until[fd]
            self._poller.register(fd, select.EPOLLIN)
        return min(((until - now) / 1e6 for until in self._rest_until.values()), default=None)

    def close(self) -> None:
        """Forget the sockets, which stay open."""
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None


def _spare() -> int | None:
    """A descriptor that is only there to be closed when one is needed."""
    with contextlib.suppress(OSError):
        return os.eventfd(0, os.EFD_CLOEXEC)
    return None
