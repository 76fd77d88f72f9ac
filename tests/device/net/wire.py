"""A tap that needs no privileges, and what a card asks of its loop for it."""

from __future__ import annotations

import select
import socket
from typing import Any

from pviommu.net.tap import Tap

__all__ = ["Poller", "Wire"]


class Wire(Tap):
    """A tap whose other end is a socket that keeps the boundaries of frames."""

    far: socket.socket

    def _make(self) -> None:
        near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.setblocking(False)
        self.far.setblocking(False)
        self._fds.append(near.detach())
        self.is_up = True

    def close(self) -> None:
        super().close()
        self.far.close()

    def sent(self) -> list[bytes]:
        """The frames of the card since the last call, with their headers."""
        found = []
        while True:
            try:
                found.append(self.far.recv(1 << 17))
            except BlockingIOError:
                return found


class Poller:
    """The part of a card's loop that watches its tap."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.fd = -1
        self._events = 0

    def watch(self, fd: int, callback: Any) -> Poller:
        self.fd, self.callback, self._events = fd, callback, select.EPOLLIN
        self.epoll.register(fd, select.EPOLLIN)
        return self

    def look(self) -> None:
        """Tell the card that there may be frames."""
        if self.fd >= 0:
            self.callback(select.EPOLLIN, lambda: True)

    @property
    def events(self) -> int:
        return self._events

    @events.setter
    def events(self, events: int) -> None:
        self._events = events
        self.epoll.modify(self.fd, events)

    def close(self) -> None:
        """Watch it no more."""
        self.epoll.unregister(self.fd)
        self.fd = -1
