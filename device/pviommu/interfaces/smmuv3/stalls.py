"""Stalled transactions: a fault holds them up until software says what is to become of them (IHI 0070, 3.12.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from smmuv3.events import Event

__all__ = ["Outcome", "Stall", "Stalls"]


class Outcome(Enum):
    """What software decided."""

    RETRY = "the transaction is tried again"
    ABORT = "it is aborted"


@dataclass
class Stall:
    """One stalled transaction."""

    sid: int
    stag: int
    event: Event
    """by which software was told"""
    outcome: Outcome | None = None
    """None: nobody has decided"""


class Stalls:
    """The stalled transactions of an SMMU. One stays until software decides about it, even if the endpoint has given
    its request up meanwhile, so that no tag is used for another one too early.
    """

    def __init__(self, most: int, record: Callable[[Event], bool]) -> None:
        """``most``: at a time. ``record`` writes an event if that is possible now, and says whether it was."""
        self._most = most
        self._record = record
        self._waiting: dict[int, Stall] = {}
        self._next = 0

    @property
    def waiting(self) -> tuple[Stall, ...]:
        """Those that nobody has decided about."""
        return tuple(self._waiting.values())

    def begin(self, event: Event) -> Stall | None:
        """A transaction stalls: tell software of the fault. None if there are as many already as there can be, or no
        room for the event: neither is lost, it is to be tried again later.
        """
        if len(self._waiting) >= self._most:
            return None
        while self._next in self._waiting:
            self._next = (self._next + 1) % self._most
        told = event._replace(stag=self._next)
        if not self._record(told):
            return None
        stall = self._waiting[self._next] = Stall(event.sid, self._next, told)
        self._next = (self._next + 1) % self._most
        return stall

    def resume(self, sid: int, stag: int, outcome: Outcome) -> None:
        """RESUME; one that does not fit a stalled transaction does nothing."""
        stall = self._waiting.get(stag)
        if stall is not None and stall.sid == sid:
            self._end(stall, outcome)

    def abort(self, sid: int | None = None) -> None:
        """STALL_TERM of a stream; None: of all."""
        for stall in self.waiting:
            if sid in (None, stall.sid):
                self._end(stall, Outcome.ABORT)

    def _end(self, stall: Stall, outcome: Outcome) -> None:
        stall.outcome = outcome
        del self._waiting[stall.stag]
