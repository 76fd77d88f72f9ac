"""Calls that wait: for a time, for a tag, for others of their kind, or for ever.

Nothing blocks. Whoever is held asks :attr:`Hold.is_over` again, or has the rest of its work called back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["MOST_HELD", "Hold", "Holds", "Scheduler"]

MOST_HELD = 1 << 16
"""Calls that wait at a time: interrupts and events that nobody lets go must not fill the memory."""


class Scheduler(Protocol):
    """What calls back at a time: see :class:`pviommu.hosted.Host`."""

    def at(self, time_ns: int, callback: Callable[[], None], /) -> Any: ...


class Hold:
    """One call that waits."""

    def __init__(self, tag: str | None = None) -> None:
        self.tag = tag
        self.is_over = False
        self.is_forgotten = False
        """whether it is over because nobody waits any more: what waited is not to go on"""
        self.function = ""
        """whose reset ends it"""
        self.client: object = None
        """who waits, if it is a client: its end ends it, and no reset, which another one may have asked for"""
        self.timer: Any = None
        """by which it ends, if it does so by itself"""
        self.on_end: Callable[[], None] | None = None
        """called once it is over, for whatever reason"""
        self._callbacks: list[Callable[[], None]] = []

    def then(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once it is over."""
        if self.is_over:
            callback()
        else:
            self._callbacks.append(callback)

    def let_go(self) -> None:
        """It is over. A second time this does nothing."""
        self._end()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def forget(self) -> None:
        """Nobody is held any more: nothing is called back."""
        self._callbacks.clear()
        self.is_forgotten = True
        self._end()
        if self.timer is not None:
            self.timer.cancel()

    def _end(self) -> None:
        self.is_over = True
        on_end, self.on_end = self.on_end, None
        if on_end:
            on_end()


def _tags(holds: list[Hold], waits: bool, client: object = None) -> list[tuple[str, bool]]:
    """Those of holds, of a client if one is given, each beside ``waits``."""
    meant = (hold for hold in holds if client is None or hold.client is client)
    return [(hold.tag, waits) for hold in meant if hold.tag and not hold.is_over]


class Holds:
    """All that is held in one machine."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        """``now_ns``: the clock of :attr:`scheduler`."""
        self._now_ns = now_ns
        self._suspended: list[Hold] = []
        self._awaiting: list[Hold] = []
        """those that wait until something is suspended under their tag"""
        self._behind: dict[object, list[tuple[Hold, int]]] = {}
        """by probe: those that let so many others pass first"""
        self._delayed: dict[Hold, None] = {}
        """in order of their beginning"""
        self._hung: list[Hold] = []
        self._left: dict[tuple[str, bool], None] = {}
        """tags under which calls were suspended, or for which they waited (True), until their clients had gone"""
        self._scheduler: Scheduler | None = None
        self._due: list[tuple[int, Callable[[], None]]] = []
        """what is to be scheduled once there is a scheduler"""

    @property
    def is_full(self) -> bool:
        """Whether no more may wait."""
        count = len(self._suspended) + len(self._awaiting) + len(self._hung) + len(self._delayed)
        return count >= MOST_HELD

    # -- time -------------------------------------------------------------------------------------------------------

    def serve(self, scheduler: Scheduler) -> None:
        """Have ``scheduler`` call back from now on."""
        self._scheduler = scheduler
        due, self._due = self._due, []
        for time_ns, callback in due:
            scheduler.at(time_ns, callback)

    def soon(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when the call in progress is over."""
        self._at(self._now_ns(), callback)

    def _at(self, time_ns: int, callback: Callable[[], None]) -> Any:
        if self._scheduler is not None:
            return self._scheduler.at(time_ns, callback)
        self._due.append((time_ns, callback))
        return None

    def delay(self, ns: int) -> Hold:
        """Over after this time."""
        hold = Hold()
        self._delayed[hold] = None

        def end() -> None:
            self._delayed.pop(hold, None)
            hold.let_go()

        hold.timer = self._at(self._now_ns() + ns, end)
        return hold

    # -- tags -------------------------------------------------------------------------------------------------------

    def suspend(self, tag: str) -> Hold:
        """Over when somebody calls :meth:`resume`."""
        hold = Hold(tag)
        self._suspended.append(hold)
        awaiting = [each for each in self._awaiting if each.tag == tag]
        self._awaiting = [each for each in self._awaiting if each.tag != tag]
        for each in awaiting:
            each.let_go()
        return hold

    def wait(self, tag: str) -> Hold:
        """Over when something is suspended under ``tag``, at once if something is."""
        hold = Hold(tag)
        if tag in self.tags():
            hold.let_go()
        else:
            self._awaiting.append(hold)
        return hold

    def resume(self, tag: str) -> int:
        """Let go what is suspended under ``tag``. How many these were."""
        gone = [hold for hold in self._suspended if hold.tag == tag and not hold.is_over]
        self._suspended = [hold for hold in self._suspended if hold.tag != tag]
        self._left.pop((tag, False), None)
        for hold in gone:
            hold.let_go()
        return len(gone)

    def tags(self) -> list[str]:
        """Those under which something is suspended, in order of time."""
        return list(dict.fromkeys(tag for tag, _ in _tags(self._suspended, False)))

    def never_over(self) -> tuple[list[str], list[str]]:
        """Tags under which something is suspended, or was until its client had gone; and those that something waits
        for, or did.
        """
        held = [*self._left, *_tags(self._suspended, False), *_tags(self._awaiting, True)]
        suspended, awaited = ([tag for tag, waits in dict.fromkeys(held) if waits is which] for which in (False, True))
        return suspended, awaited

    # -- others first -----------------------------------------------------------------------------------------------

    def behind(self, probe: object, others: int, within_ns: int) -> Hold:
        """Over when so many others have passed ``probe``, or after this time."""
        hold = self.delay(within_ns)
        self._behind.setdefault(probe, []).append((hold, others))
        return hold

    def passed(self, probe: object) -> None:
        """A call has passed ``probe``."""
        waiting = self._behind.pop(probe, None)
        if not waiting:
            return
        self._behind[probe] = [(hold, left - 1) for hold, left in waiting if left > 1 and not hold.is_over]
        for hold, left in waiting:
            if left <= 1:
                hold.let_go()

    # -- for ever ---------------------------------------------------------------------------------------------------

    def hang(self) -> Hold:
        """Over at :meth:`forget` at the earliest."""
        hold = Hold()
        self._hung.append(hold)
        return hold

    def release(self) -> None:
        """The rules that held them are gone: all go on, except those that hang until a reset."""
        held = [*self._suspended, *self._awaiting, *self._delayed]  # who lets others pass is delayed, too
        self._suspended, self._awaiting = [], []
        self._delayed.clear()
        self._behind.clear()
        self._left.clear()
        for hold in held:
            hold.let_go()

    def forget(self, function: str) -> None:
        """A function was reset: what was held for it is gone, but for what clients wait for."""
        self._forget(lambda hold: hold.client is None and hold.function == function)

    def forget_client(self, client: object) -> None:
        """A client is gone, and what it waited for."""
        held = [*_tags(self._suspended, False, client), *_tags(self._awaiting, True, client)]
        self._left |= dict.fromkeys(held)
        self._forget(lambda hold: hold.client is client)

    def drop(self, hold: Hold) -> None:
        """What this one held was given up."""
        self._forget(lambda each: each is hold)
        hold.forget()

    def _forget(self, is_meant: Callable[[Hold], bool]) -> None:
        for hold in (*self._suspended, *self._awaiting, *self._hung, *self._delayed):
            if is_meant(hold):
                hold.forget()
        for held in (self._suspended, self._awaiting, self._hung):
            held[:] = [hold for hold in held if not hold.is_forgotten]
        self._delayed = {hold: None for hold in self._delayed if not hold.is_forgotten}
        for probe, waiting in list(self._behind.items()):
            self._behind[probe] = [each for each in waiting if not each[0].is_forgotten]
