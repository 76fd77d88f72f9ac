"""The eventfds by which a device interrupts its client, installed and taken away by SET_IRQS."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from .device import IrqAction, IrqKind, IrqRequest
from .errors import RequestError
from .foreign import is_eventfd
from .framing import close_fds
from .signals import signal

__all__ = ["Eventfds", "InterruptTable", "Vector"]


class Eventfds(NamedTuple):
    """The calls that are made on eventfds."""

    is_eventfd: Callable[[int], bool] = is_eventfd
    signal: Callable[[int], None] = signal
    close: Callable[[list[int]], None] = close_fds


class Vector(NamedTuple):
    """One that the client has set up."""

    kind: int
    """an interrupt index"""
    number: int
    is_owed: bool = False
    """whether it was triggered while there was no eventfd yet"""


class InterruptTable:
    """Owns at most one eventfd per vector."""

    def __init__(self, counts: Mapping[int, int], eventfds: Eventfds | None = None) -> None:
        self._is_eventfd, self._signal, self._close = eventfds or Eventfds()
        self.counts = dict(counts)
        """vectors by interrupt index; an index that is not there has none"""
        self._fds: dict[tuple[int, int], int] = {}
        self._awaited: dict[tuple[int, int], bool] = {}
        """vectors of a saved state whose eventfds the client has not brought yet, and whether they were triggered"""
        self.elsewhere: Callable[[int, int], bool] | None = None
        """does what :meth:`trigger` does for vectors without an eventfd here, if somebody else keeps those"""

    def armed(self, index: int, vector: int) -> bool:
        """Whether a vector has an eventfd."""
        return (index, vector) in self._fds

    def eventfd(self, index: int, vector: int) -> int | None:
        """The eventfd of a vector, to be signalled at once and never blocking, as :meth:`trigger` does."""
        return self._fds.get((index, vector))

    def save(self) -> tuple[Vector, ...]:
        """Which vectors are set up. The eventfds are the client's."""
        owed = dict.fromkeys(self._fds, False) | self._awaited
        return tuple(Vector(*key, owed[key]) for key in sorted(owed))

    def load(self, state: Iterable[Vector]) -> None:
        """Take over ``state``. A vector that has an eventfd already is triggered now if an interrupt is owed; one that
        has none, when the client brings it, if an interrupt is owed by then. Raises ValueError, and then changes
        nothing, for vectors that do not exist.
        """
        owed = {(index, vector): is_owed for index, vector, is_owed in state}
        for index, vector in owed:
            if not 0 <= vector < self.counts.get(index, 0):
                raise ValueError(f"vector {vector} of index {index}: it has {self.counts.get(index, 0)}")
        self._awaited = {key: is_owed for key, is_owed in owed.items() if key not in self._fds}
        for key, is_owed in owed.items():
            if is_owed and key in self._fds:
                self.trigger(*key)

    def set_irqs(self, request: IrqRequest) -> None:
        """Carry out ``request`` and take its descriptors; RequestError(EINVAL) closes them and changes nothing.

        MASK and UNMASK are accepted without effect: the client itself masks MSI-X.
        """
        vectors = range(request.start, request.start + request.count)
        there_are = self.counts.get(request.index, 0)
        if vectors.stop > there_are:
            self._close(list(request.fds))
            text = f"index {request.index} vectors {request.start}+{request.count}"
            raise RequestError(errno.EINVAL, f"{text}: it has {there_are}")
        if request.action is not IrqAction.TRIGGER:
            self._close(list(request.fds))
        elif request.kind is IrqKind.EVENTFD:
            self._install(request, vectors)
        elif request.count == 0:
            self._remove([key for key in (*self._fds, *self._awaited) if key[0] == request.index])
        else:
            for position, vector in enumerate(vectors):
                if request.kind is IrqKind.NONE or request.flags[position]:
                    self.trigger(request.index, vector)

    def trigger(self, index: int, vector: int) -> bool:
        """Interrupt the client now, or, for a vector of a saved state, when it brings the eventfd. Returns False, and
        does nothing, if the vector is not set up. Never blocks.
        """
        fd = self._fds.get((index, vector))
        if fd is None:
            if self.elsewhere is not None:
                return self.elsewhere(index, vector)
            if (index, vector) not in self._awaited:
                return False
            self._awaited[index, vector] = True
            return True
        self._signal(fd)
        return True

    def close(self) -> None:
        """Close every eventfd."""
        self._remove([*self._fds, *self._awaited])

    def _install(self, request: IrqRequest, vectors: range) -> None:
        if not request.fds:
            self._remove([(request.index, vector) for vector in vectors])
            return
        if not all(self._is_eventfd(fd) for fd in request.fds):
            self._close(list(request.fds))
            text = f"index {request.index} vectors {request.start}+{request.count}: not every descriptor is an eventfd"
            raise RequestError(errno.EINVAL, text)
        for vector, fd in zip(vectors, request.fds, strict=True):
            old = self._fds.get((request.index, vector))
            self._fds[request.index, vector] = fd
            if old is not None:
                self._close([old])
            if self._awaited.pop((request.index, vector), False):
                self._signal(fd)

    def _remove(self, keys: Sequence[tuple[int, int]]) -> None:
        for key in keys:
            self._awaited.pop(key, None)
        self._close([fd for key in keys if (fd := self._fds.pop(key, None)) is not None])
