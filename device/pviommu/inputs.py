"""The one interface through which anything from outside reaches the device.

Socket bytes, ring words, slots, guest memory and the clock are read here and nowhere else. What a run of the
device did is thus a function of what these methods returned, which is what recording, replaying and injecting
faults stand on.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from vfio_user import transport

__all__ = ["Inputs", "LiveInputs", "Outcome"]

_T_co = TypeVar("_T_co", covariant=True)

_MOST_SELECTED = 1024
"""Descriptors below this can be waited for with select()."""


@dataclass(frozen=True)
class Outcome(Generic[_T_co]):
    """What came of work in another thread: a value, or the exception that ended it."""

    job: int
    """in the order in which the work was asked for, from 1 on"""
    value: Any = None
    error: Exception | None = None

    def result(self) -> _T_co:
        """The value. Raises the exception."""
        if self.error is not None:
            raise self.error
        value: _T_co = self.value
        return value


class Inputs(Protocol):
    """What the device reads. All sizes are in bytes, all times in nanoseconds of a monotonic clock."""

    def now_ns(self) -> int:
        """The time."""

    def worked_ns(self) -> int:
        """Processor time of this thread, which unlike the time does not go on while others have the processor."""

    def word(self, words: memoryview, index: int) -> int:
        """The 32-bit word ``index`` of shared memory (``words`` has format ``I``), read once."""

    def copy(self, view: memoryview) -> bytes:
        """A private copy of shared or guest memory, made in one go: what is checked afterwards cannot change any
        more.
        """

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """``length`` bytes of a file that is not safe to map; fewer if it has become shorter."""

    def receive(self, sock: socket.socket, size: int) -> tuple[bytes, list[int]] | None:
        """What a socket has to give, at most ``size`` bytes, with its file descriptors; ``None`` at its end."""

    def wait(self, poller: select.epoll, timeout_ms: float) -> Sequence[tuple[int, int]]:
        """The descriptors that are ready: ``(fd, events)`` pairs, after at most ``timeout_ms`` (-1: no limit)."""

    def outcomes(self, finished: deque[Outcome[Any]]) -> Sequence[Outcome[Any]]:
        """What other threads have finished since the last call, taken out of ``finished``: the device learns of it in
        this order.
        """


class LiveInputs:
    """The real world."""

    now_ns = staticmethod(time.monotonic_ns)
    worked_ns = staticmethod(time.thread_time_ns)
    pread = staticmethod(os.pread)
    receive = staticmethod(transport.receive)
    copy = staticmethod(bytes)

    @staticmethod
    def word(words: memoryview, index: int) -> int:
        value: int = words[index]
        return value

    @staticmethod
    def wait(poller: select.epoll, timeout_ms: float) -> Sequence[tuple[int, int]]:
        if 0 < timeout_ms < 1 and poller.fileno() < _MOST_SELECTED:  # the poller itself counts whole milliseconds
            select.select((poller,), (), (), timeout_ms / 1000)
            timeout_ms = 0
        return poller.poll(None if timeout_ms < 0 else timeout_ms / 1000)

    @staticmethod
    def outcomes(finished: deque[Outcome[Any]]) -> Sequence[Outcome[Any]]:
        return [finished.popleft() for _ in range(len(finished))]
