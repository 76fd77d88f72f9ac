"""The way into the loop from other threads."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from ..hosted import MayGoOn, Owner
from ..inputs import InputKind, Inputs, Source, WorkOutcome
from .watches import Watches
from .workers import Workers

__all__ = ["Calls"]

_T = TypeVar("_T")
_NAME = "calls of other threads"


class Calls:
    """Calls that other threads hand to the loop: an eventfd that the loop watches ends its sleep."""

    def __init__(self, inputs: Inputs, watches: Watches) -> None:
        self._left: deque[Callable[[], None]] = deque()
        self._workers = Workers(inputs, self._wake)
        self._end = threading.Lock()
        self._read = inputs.of(Source(InputKind.READY, _NAME), os.eventfd_read)
        self._close = inputs.of(Source(InputKind.CLOSED, _NAME), os.close)
        self.fd = inputs.of(Source(InputKind.OPENED, _NAME), os.eventfd)(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """-1 after the end"""
        self._watch = watches.add(self.fd, self._go_on)

    def call(self, callback: Callable[[], None]) -> None:
        """See :meth:`pviommu.hosted.Host.call`."""
        self._left.append(callback)
        self._wake()

    def submit(self, owner: Owner, work: Callable[[], _T], callback: Callable[[WorkOutcome[_T]], None]) -> None:
        """See :meth:`pviommu.hosted.Host.submit`."""
        self._workers.submit(owner, work, callback)

    def _wake(self) -> None:
        with self._end:
            if self.fd >= 0:
                os.eventfd_write(self.fd, 1)

    def _go_on(self, events: int, may_go_on: MayGoOn) -> None:
        if events:
            self._read(self.fd)
            self._left.extend(self._workers.take())
        while self._left:
            self._left.popleft()()
            if not may_go_on():
                break
        self._watch.has_more = bool(self._left)

    def close(self) -> None:
        """Nobody is woken any more."""
        self._workers.close()
        with self._end:  # so that nobody writes to the file that gets this number next
            if self.fd >= 0:
                self._watch.close()
                self._close(self.fd)
                self.fd = -1
