"""What DMA waits for: operations that the guest has put into its rings already."""

from __future__ import annotations

from collections.abc import Callable

from ...hosted import STOPPED_NS
from ...inputs import Inputs
from .execution import Backlog, Executor

__all__ = ["CATCH_UP_NS", "Patience"]

CATCH_UP_NS = 500_000_000
"""How long DMA waits for the rings after a stop: full rings of small operations take less. A guest that had filled them
with large ones harms its own DMA.
"""


class Patience:
    """Brings the rings of one PV-IOMMU up to date for DMA."""

    def __init__(self, executor: Executor, settle: Callable[[], None], inputs: Inputs) -> None:
        """``settle`` is called before anything is executed."""
        self._executor = executor
        self._settle = settle
        self._inputs = inputs
        self._worked_at = inputs.now_ns()
        self._missed: Backlog | None = None
        """what the rings held when the process went on after a stop"""
        self._catch_up_until = 0

    def look_for_stop(self) -> None:
        """Called at each step of the rings, and before DMA."""
        now = self._inputs.now_ns()
        if now - self._worked_at > STOPPED_NS:
            self._missed = self._executor.backlog()
            self._catch_up_until = now + CATCH_UP_NS
        self._worked_at = now

    def rested(self) -> None:
        """The loop has slept: that was no stop of the process."""
        self._worked_at = self._inputs.now_ns()

    def has_caught_up(self) -> bool:
        """Whether nothing is left of what the rings held after a stop of the process: the guest may have given it up
        and unmapped what DMA in progress goes to.
        """
        self.look_for_stop()
        return self._missed is None or self._catches_up(self._missed)

    def _catches_up(self, missed: Backlog) -> bool:
        if self._worked_at < self._catch_up_until and not self._drain(missed):
            return False
        self._missed = None
        return True

    def drained(self, since: Backlog | None) -> Backlog | None:
        """Execute what the rings hold, or held when this gave ``since``, as far as a turn has time for. What to call it
        with in a later step, if something is left.
        """
        backlog = self._executor.backlog() if since is None or not self._executor.is_current(since) else since
        return None if self._drain(backlog) else backlog

    def _drain(self, backlog: Backlog) -> bool:
        self._settle()
        return self._executor.drain(backlog)
