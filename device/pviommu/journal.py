"""Recording inputs, and replaying them: a session again, without sockets, files or descriptors.

What the device learns in a session depends on the descriptors and sockets behind it, and on when it looked. Recorded,
it is a list of :class:`Entry`; a machine that is built alike and driven by the same turns does the same again with it.
The rings, the copier and the walks of a native core bypass the inputs, so a machine with such inputs uses its tables
only.

Work of other threads is not done again: its outcome is recorded.
"""

from __future__ import annotations

import copy
import mmap
import socket
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, ParamSpec, TypeVar

from .inputs import InputKind, Inputs, Poller, Source, WorkOutcome

__all__ = ["DivergedError", "Entry", "JournalEndError", "JournalInputs", "ReplayInputs", "Unconnected"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

_CLOCK = Source(InputKind.CLOCK)
_PROCESSOR_TIME = Source(InputKind.PROCESSOR_TIME)
_READY = Source(InputKind.READY)
_FINISHED = Source(InputKind.FINISHED)


class JournalEndError(BaseException):
    """The journal has no more entries. Handlers of device failures must not catch this."""


class DivergedError(BaseException):
    """The device asked for something else than was recorded: it was built differently, or depends on something that is
    no input. Handlers of device failures must not catch this.
    """


class Entry(NamedTuple):
    """One input."""

    source: Source
    value: Any = None
    error: Exception | None = None
    """raised instead of a value"""


class _Mapped(NamedTuple):
    """Memory, in the journal: its content is recorded where it is read."""

    size: int


class Unconnected:
    """Stands for a socket in a replay: it has its number, and nothing can be done with it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """The number it had."""
        return self._fd


class JournalInputs:
    """Records the values of other inputs in :attr:`entries`."""

    may_be_bypassed = False

    def __init__(self, inputs: Inputs) -> None:
        self.entries: list[Entry] = []
        self._inputs = inputs
        self.now_ns = self.of(_CLOCK, inputs.now_ns)
        self.worked_ns = self.of(_PROCESSOR_TIME, inputs.worked_ns)
        self.wait = self.of(_READY, inputs.wait)
        self.outcomes = self.of(_FINISHED, inputs.outcomes)
        self.poller = inputs.poller

    def of(self, source: Source, call: Callable[_P, _R]) -> Callable[_P, _R]:
        call = self._inputs.of(source, call)

        def recorded(*arguments: _P.args, **named: _P.kwargs) -> _R:
            try:
                value = call(*arguments, **named)
            except Exception as error:
                self.entries.append(Entry(source, error=copy.copy(error)))  # without what its traceback holds
                raise
            self.entries.append(Entry(source, _kept(value)))
            return value

        return recorded

    def words(self, source: Source) -> Callable[[memoryview, int], int]:
        return self.of(source, self._inputs.words(source))

    def copies(self, source: Source) -> Callable[[memoryview], bytes]:
        return self.of(source, self._inputs.copies(source))

    def files(self, source: Source) -> Callable[[int, int, int], bytes]:
        return self.of(source, self._inputs.files(source))

    def received(self, source: Source) -> Callable[[socket.socket, int], tuple[bytes, list[int]] | None]:
        return self.of(source, self._inputs.received(source))


class ReplayInputs:
    """Returns what was recorded, in order. Nothing outside is touched: the functions that it is given are not called.

    Raises :class:`DivergedError` at the first call for another source than the one recorded, :class:`JournalEndError`
    after the last entry. Memory that the device maps is its own, and holds what it wrote and what it has read there.
    """

    may_be_bypassed = False

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries
        self.position = 0
        """entries given back so far"""
        self.now_ns: Callable[[], int] = partial(self._next, _CLOCK)
        self.worked_ns: Callable[[], int] = partial(self._next, _PROCESSOR_TIME)

    def _next(self, source: Source) -> Any:
        if self.position == len(self._entries):
            raise JournalEndError(f"after {self.position} entries, at {source}")
        entry = self._entries[self.position]
        if entry.source != source:
            raise DivergedError(f"entry {self.position} is of {entry.source}, and the device asks for {source}")
        self.position += 1
        if entry.error is not None:
            raise copy.copy(entry.error)
        return _given(entry.value)

    def of(self, source: Source, _call: Callable[_P, _R]) -> Callable[_P, _R]:
        def replayed(*_arguments: _P.args, **_named: _P.kwargs) -> _R:
            value: _R = self._next(source)
            return value

        return replayed

    def words(self, source: Source) -> Callable[[memoryview, int], int]:
        def word(words: memoryview, index: int) -> int:
            words[index] = value = self._next(source)
            return int(value)

        return word

    def copies(self, source: Source) -> Callable[[memoryview], bytes]:
        def read(view: memoryview) -> bytes:
            data: bytes = self._next(source)
            if len(data) != len(view):
                text = f"entry {self.position - 1} has {len(data)} bytes of {source}, and the device asks for"
                raise DivergedError(f"{text} {len(view)}")
            view[:] = data
            return data

        return read

    def files(self, source: Source) -> Callable[[int, int, int], bytes]:
        return partial(self._given_for, source)

    def received(self, source: Source) -> Callable[[socket.socket, int], tuple[bytes, list[int]] | None]:
        return partial(self._given_for, source)

    def _given_for(self, source: Source, *_arguments: object) -> Any:
        return self._next(source)

    def poller(self) -> Poller:
        return _NoPoller()

    def wait(self, _poller: Any, _timeout_ms: float) -> Sequence[tuple[int, int]]:
        ready: Sequence[tuple[int, int]] = self._next(_READY)
        return ready

    def outcomes(self, _finished: deque[WorkOutcome[Any]]) -> Sequence[WorkOutcome[Any]]:
        outcomes: Sequence[WorkOutcome[Any]] = self._next(_FINISHED)
        return outcomes


class _NoPoller:
    """Of a replay, which is told what was ready."""

    closed = False

    def fileno(self) -> int:
        return -1

    def register(self, fd: int, events: int) -> None: ...
    def modify(self, fd: int, events: int) -> None: ...
    def unregister(self, fd: int) -> None: ...
    def close(self) -> None: ...


def _kept(value: Any) -> Any:
    """What stays of a value: the device may change a list, and a replay can have neither sockets nor mappings."""
    if isinstance(value, mmap.mmap):
        return _Mapped(len(value))
    if isinstance(value, socket.socket):
        return Unconnected(value.fileno())
    if isinstance(value, list):
        return list(value)
    if type(value) is tuple:
        return tuple(map(_kept, value))
    return value


def _given(value: Any) -> Any:
    if isinstance(value, _Mapped):
        return mmap.mmap(-1, value.size)
    if isinstance(value, list):
        return list(value)
    if type(value) is tuple:
        return tuple(map(_given, value))
    return value
