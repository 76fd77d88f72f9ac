"""Who in the guest waits for operations, as far as that can be told."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from ...counters import Counters
from .ring import CommandRing

__all__ = ["Waits", "WaitsState"]


class WaitsState(Struct, frozen=True):
    """The saved state of :class:`Waits`."""

    is_told: bool = False
    count: int = 0
    rung: bool = False


class Waits:
    """Counts how many times somebody began to wait."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self.load(WaitsState())

    def save(self) -> WaitsState:
        """The state."""
        return WaitsState(self.is_told, self.count, self._rung)

    def load(self, state: WaitsState) -> None:
        """Take over a state."""
        self.is_told = state.is_told
        """whether the guest says when it polls; one that does not is assumed to wait for all slots that are not
        posted"""
        self.count = state.count
        self._rung = state.rung

    def rung(self) -> None:
        """A doorbell was rung: by somebody who waits, unless the guest says when it does."""
        self._rung = not self.is_told

    def seen(self, count: int) -> None:
        """Somebody was seen to begin to poll ``count`` times."""
        if count:
            self.count += count
            self.is_told = True

    def take(self, rings: Iterable[CommandRing]) -> int:
        """How many waits began since the last call, after a look at ``rings``."""
        self.seen(sum(ring.is_awaited_anew() for ring in rings))
        count, self.count = self.count or int(self._rung), 0
        self._rung = False
        self._counters.waits += count
        return count
