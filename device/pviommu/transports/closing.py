"""Closers of what clients have sent, whose state is an input: it depends on other threads."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable

from vfio_user.foreign import Closer

from ..inputs import InputKind, Inputs, Source

__all__ = ["Closers", "Closing"]


class Closing(Closer):
    """That of the clients of one function. How it is doing is asked only from when it is given something to when it is
    seen to have nothing left: every guest access waits for this.
    """

    def __init__(self, inputs: Inputs, name: str, done: Callable[[], None]) -> None:
        super().__init__(done)
        source = Source(InputKind.CLOSED, name)
        self._close = inputs.of(source, super().close)
        self._close_socket = inputs.of(source, super().close_socket)
        self._is_busy = inputs.of(source, lambda: super(Closing, self).busy)
        self._is_now_stuck = inputs.of(source, lambda: super(Closing, self).is_stuck)
        self._is_full = inputs.of(source, lambda: super(Closing, self).full)
        self._may_be_busy = False

    @property
    def busy(self) -> bool:
        if self._may_be_busy:
            self._may_be_busy = self._is_busy()
        return self._may_be_busy

    @property
    def is_stuck(self) -> bool:
        return self._may_be_busy and self._is_now_stuck()

    @property
    def full(self) -> bool:
        return self._may_be_busy and self._is_full()

    def close(self, fds: Iterable[int]) -> None:
        self._may_be_busy = True
        self._close(fds)

    def close_socket(self, sock: socket.socket) -> None:
        self._may_be_busy = True
        self._close_socket(sock)


class Closers(dict[str, Closing]):
    """One for each function that has had a client, by its name."""

    def __init__(self, inputs: Inputs, done: Callable[[], None]) -> None:
        """``done`` is called, in another thread, whenever one of them has nothing left."""
        super().__init__()
        self._inputs = inputs
        self._done = done

    def __missing__(self, name: str) -> Closing:
        made = self[name] = Closing(self._inputs, name, self._done)
        return made
