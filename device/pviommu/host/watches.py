"""The descriptors that the loop watches, and how long serving them may take."""

from __future__ import annotations

import select
from collections.abc import Callable

from ..hosted import HUNG_UP, MayGoOn
from ..inputs import Inputs
from .fairness import Fairness

__all__ = ["SOCKETS_NS", "Watch", "Watches"]

SOCKETS_NS = 1_000_000
"""A look at the descriptors ends with the callback, or the piece of one, that takes it past this."""


def _nothing(_: int, __: MayGoOn) -> None:
    """The callback of a closed watch."""


class Watch:
    """One of them: see :class:`pviommu.hosted.Watch`."""

    def __init__(self, among: Watches, fd: int, callback: Callable[[int, MayGoOn], None]) -> None:
        self.fd = fd
        self.callback = callback
        self.closed = False
        self._among = among
        self._events = select.EPOLLIN

    @property
    def events(self) -> int:
        return self._events

    @events.setter
    def events(self, events: int) -> None:
        if events != self._events and not self.closed:
            self._among.poller.modify(self.fd, events)
            self._events = events

    @property
    def has_more(self) -> bool:
        return self in self._among.unfinished

    @has_more.setter
    def has_more(self, has_more: bool) -> None:
        if has_more and not self.closed:
            self._among.unfinished[self] = None
        else:
            self._among.unfinished.pop(self, None)

    def close(self) -> None:
        if not self.closed:
            self.has_more = False
            self.closed = True
            self.callback = _nothing  # often a method of this watch's owner: a busy loop collects no cycles
            self._among.forget(self)


class Watches:
    """All of them. Of those that are ready, the ones that have used least time so far come first."""

    def __init__(self, inputs: Inputs) -> None:
        self.poller = inputs.poller()
        self.unfinished: dict[Watch, None] = {}
        """what goes on in the next look, because others were to have a turn first"""
        self._inputs = inputs
        self._watches: dict[int, Watch] = {}
        self._fairness: Fairness[Watch] = Fairness()

    def add(self, fd: int, callback: Callable[[int, MayGoOn], None]) -> Watch:
        """Look at ``fd`` from now on."""
        watch = Watch(self, fd, callback)
        self.poller.register(fd, select.EPOLLIN)
        self._watches[fd] = watch
        return watch

    def forget(self, watch: Watch) -> None:
        """Called by :meth:`Watch.close`."""
        del self._watches[watch.fd]
        self._fairness.forget(watch)
        if not self.poller.closed:
            self.poller.unregister(watch.fd)

    def hung_up(self) -> list[Watch]:
        """Those whose other end is closed."""
        seen = self._inputs.wait(self.poller, 0)
        return [self._watches[fd] for fd, events in seen if events & HUNG_UP]

    def wait(self, timeout_ms: float) -> dict[Watch, int]:
        """What is ready, with its events, after at most ``timeout_ms``; at once if something is unfinished."""
        ready = dict.fromkeys(self.unfinished, 0)
        for fd, events in self._inputs.wait(self.poller, 0 if ready else timeout_ms):
            ready[self._watches[fd]] = events
        return ready

    def serve(self, ready: dict[Watch, int], is_stopping: Callable[[], bool]) -> None:
        """Make the callbacks, until :data:`SOCKETS_NS` are over. The next look finds those that are left.

        Several of them share half the time equally: even if each takes more than its part, the last one is not kept
        waiting.
        """
        deadline = until = self._inputs.now_ns() + SOCKETS_NS

        def may_go_on() -> bool:
            return self._inputs.now_ns() <= until and not is_stopping()

        worked = self._inputs.worked_ns()
        for watch in self._fairness.order(ready) if len(ready) > 1 else ready:
            if not watch.closed:  # another one's callback may have closed it
                if len(ready) > 1:
                    until = min(deadline, self._inputs.now_ns() + SOCKETS_NS // (2 * len(ready)))
                watch.callback(ready[watch], may_go_on)
            before, worked = worked, self._inputs.worked_ns()
            if not watch.closed:
                self._fairness.charge(watch, worked - before)
            if self._inputs.now_ns() > deadline or is_stopping():
                break
