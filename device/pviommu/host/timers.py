"""Calls that the loop makes at a certain time."""

from __future__ import annotations

import heapq
from collections.abc import Callable

__all__ = ["Timer", "Timers"]

LEAST_KEPT = 64
"""How many timers may be kept before the cancelled ones are looked for."""


class Timer:
    """One call: see :class:`pviommu.hosted.Timer`."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback

    def run(self) -> None:
        """Make it, once."""
        callback, self._callback = self._callback, None
        if callback:
            callback()

    def cancel(self) -> None:
        self._callback = None

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to be done any more."""
        return self._callback is None


class Timers:
    """All calls to come, in order of time, and those of the same time in the order in which they were asked for."""

    def __init__(self) -> None:
        self._due: list[tuple[int, int, Timer]] = []
        self._count = 0
        self._most = LEAST_KEPT

    def __bool__(self) -> bool:
        """Whether there may be any; to be asked in each turn."""
        return bool(self._due)

    def add(self, time_ns: int, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` at ``time_ns``."""
        if len(self._due) >= self._most:
            self._drop_cancelled()
        self._count += 1
        timer = Timer(callback)
        heapq.heappush(self._due, (time_ns, self._count, timer))
        return timer

    def _drop_cancelled(self) -> None:
        """Forget those that were cancelled. This is done again when there are twice as many as are left now."""
        self._due = [each for each in self._due if not each[2].is_over]
        heapq.heapify(self._due)
        self._most = max(LEAST_KEPT, 2 * len(self._due))

    def run(self, now_ns: int) -> None:
        """Make the calls that are due, but not those that they ask for."""
        due = []
        while self._due and self._due[0][0] <= now_ns:
            due.append(heapq.heappop(self._due)[2])
        for timer in due:
            timer.run()

    def next_ns(self) -> int | None:
        """When the next one is due, if there is one."""
        while self._due and self._due[0][2].is_over:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None
