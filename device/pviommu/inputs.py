"""The one interface through which all inputs reach the device.

Socket bytes, ring words, slots, guest memory, the clock, kinds of descriptors and outcomes of writes come from here and
nowhere else, each from a :class:`Source` that says what it is. So what the device does is a function of the results of
these calls. Recording, replaying (:mod:`pviommu.journal`) and injecting faults rely on this.
"""

from __future__ import annotations

import enum
import operator
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, ParamSpec, Protocol, TypeVar

from vfio_user import transport

__all__ = ["InputKind", "Inputs", "LiveInputs", "Poller", "Source", "WorkOutcome"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_T_co = TypeVar("_T_co", covariant=True)

_MOST_SELECTED = 1024
"""Descriptors below this can be waited for with select()."""


@dataclass(frozen=True)
class WorkOutcome(Generic[_T_co]):
    """The outcome of work in another thread: a value, or the exception that ended it."""

    job: int
    """number of the work, in the order of submission, from 1 on"""
    value: Any = None
    error: Exception | None = None

    def result(self) -> _T_co:
        """The value. Raises the exception."""
        if self.error is not None:
            raise self.error
        value: _T_co = self.value
        return value


class InputKind(enum.Enum):
    """Kinds of input."""

    CLOCK = "clock"
    PROCESSOR_TIME = "processor time"
    READY = "descriptors that are ready"
    FINISHED = "results of workers"
    RING_INDEX = "index of ring"
    RING_SLOTS = "slots of ring"
    EVENT_INDEX = "index of the event ring"
    SHARED_MEMORY = "shared memory of"
    GUEST_MEMORY = "guest memory of"
    WRITTEN = "writes to guest memory of"
    RECEIVED = "bytes from the client of"
    SENT = "bytes to the client of"
    CLIENT = "clients of"
    PEER = "process of the client of"
    DESCRIPTOR = "kind of a descriptor from the client of"
    OPENED = "descriptor for"
    MAPPED = "mapping of"
    CLOSED = "closing of descriptors of"
    INTERRUPT = "interrupts of"
    WORKER = "work for a thread"
    CAPTURED = "capture file of"
    FRAMES = "frames of the link of"


class Source(NamedTuple):
    """The source of an input."""

    kind: InputKind
    owner: str | int = ""
    """the function, or the number, that it belongs to, if there are several"""

    def __str__(self) -> str:
        return f"{self.kind.value} {self.owner}".rstrip()


class Poller(Protocol):
    """As :class:`select.epoll`."""

    @property
    def closed(self) -> bool: ...
    def fileno(self) -> int: ...
    def register(self, fd: int, events: int) -> None: ...
    def modify(self, fd: int, events: int) -> None: ...
    def unregister(self, fd: int) -> None: ...
    def close(self) -> None: ...


class Inputs(Protocol):
    """All inputs of the device. Sizes are in bytes, times in nanoseconds of a monotonic clock."""

    @property
    def may_be_bypassed(self) -> bool:
        """Whether rings and copies of guest memory may be left to a native core, which bypasses this."""

    def now_ns(self) -> int:
        """The time."""

    def worked_ns(self) -> int:
        """Processor time of this thread."""

    def of(self, source: Source, call: Callable[_P, _R]) -> Callable[_P, _R]:
        """What to call instead of ``call``, whose result is an input: ``call`` itself, unless inputs are recorded or
        replayed. Bind it once where it is called often.
        """

    def words(self, source: Source) -> Callable[[memoryview, int], int]:
        """A function that reads the 32-bit word at an index, once, of shared memory in format ``I``."""

    def copies(self, source: Source) -> Callable[[memoryview], bytes]:
        """A function that makes a private copy of shared or guest memory, reading it once: what is checked afterwards
        cannot change any more.
        """

    def files(self, source: Source) -> Callable[[int, int, int], bytes]:
        """A function that reads so many bytes at an offset from the file of a descriptor, fewer if it has become
        shorter: for files that are not safe to map.
        """

    def received(self, source: Source) -> Callable[[socket.socket, int], tuple[bytes, list[int]] | None]:
        """A function that receives at most so many bytes from a socket, with file descriptors; ``None`` at its end."""

    def poller(self) -> Poller:
        """A new, empty poller for :meth:`wait`."""

    def wait(self, poller: Any, timeout_ms: float) -> Sequence[tuple[int, int]]:
        """The descriptors that are ready: ``(fd, events)`` pairs, after at most ``timeout_ms`` (-1: no limit)."""

    def outcomes(self, finished: deque[WorkOutcome[Any]]) -> Sequence[WorkOutcome[Any]]:
        """The outcomes that other threads have added to ``finished`` since the last call, in this order."""


_word: Callable[[memoryview, int], int] = operator.getitem


class LiveInputs:
    """Live inputs. Their calls are those of the system themselves, so that sources cost nothing."""

    may_be_bypassed = True

    now_ns = staticmethod(time.monotonic_ns)
    worked_ns = staticmethod(time.thread_time_ns)
    pread = staticmethod(os.pread)
    receive = staticmethod(transport.receive)
    copy = staticmethod(bytes)
    word = staticmethod(_word)
    poller = staticmethod(select.epoll)

    def of(self, _source: Source, call: Callable[_P, _R]) -> Callable[_P, _R]:
        return call

    def words(self, _source: Source) -> Callable[[memoryview, int], int]:
        return self.word

    def copies(self, _source: Source) -> Callable[[memoryview], bytes]:
        return self.copy

    def files(self, _source: Source) -> Callable[[int, int, int], bytes]:
        return self.pread

    def received(self, _source: Source) -> Callable[[socket.socket, int], tuple[bytes, list[int]] | None]:
        return self.receive

    @staticmethod
    def wait(poller: select.epoll, timeout_ms: float) -> Sequence[tuple[int, int]]:
        if 0 < timeout_ms < 1 and poller.fileno() < _MOST_SELECTED:  # the poller itself counts whole milliseconds
            select.select((poller,), (), (), timeout_ms / 1000)
            timeout_ms = 0
        return poller.poll(None if timeout_ms < 0 else timeout_ms / 1000)

    @staticmethod
    def outcomes(finished: deque[WorkOutcome[Any]]) -> Sequence[WorkOutcome[Any]]:
        return [finished.popleft() for _ in range(len(finished))]
