"""What DMA waits for: operations that are in the guest's rings already."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from ...hosted import STOPPED_NS
from ...inputs import Inputs
from .order import Backlog, Order
from .profile import Targets

__all__ = ["CATCH_UP_NS", "Patience", "PatienceState"]

CATCH_UP_NS = 500_000_000
"""How long DMA waits for the rings after a stop of the process: full rings of small operations take less. A guest that
has filled them with large ones harms its own DMA.
"""


class PatienceState(Struct, frozen=True):
    """The saved state of :class:`Patience`."""

    missed: Targets | None = None
    left_ns: int = 0
    """how much longer DMA waits for what the rings held after a stop"""


class Patience:
    """Brings the rings of one PV-IOMMU up to date for DMA."""

    def __init__(self, order: Order, settle: Callable[[], None], inputs: Inputs) -> None:
        """``settle`` is called before anything is executed."""
        self.order = order
        self._settle = settle
        self._inputs = inputs
        self._worked_at = inputs.now_ns()
        self._missed: Backlog | None = None
        """what the rings held when the process went on after a stop"""
        self._catch_up_until = 0

    def save(self) -> PatienceState:
        """The state."""
        missed = self.order.save(self._missed)
        return PatienceState(missed, max(0, self._catch_up_until - self._worked_at) if missed else 0)

    def load(self, state: PatienceState) -> None:
        """Take over a state. Raises ValueError if it names rings that do not exist."""
        self._missed = self.order.load(state.missed)
        self._worked_at = self._inputs.now_ns()
        self._catch_up_until = self._worked_at + state.left_ns

    def look_for_stop(self) -> None:
        """Called at each step of the rings, and before DMA."""
        now = self._inputs.now_ns()
        if now - self._worked_at > STOPPED_NS:
            self._missed = self.order.backlog()
            self._catch_up_until = now + CATCH_UP_NS
        self._worked_at = now

    def rested(self) -> None:
        """The loop has slept, so the time that has passed was no stop of the process."""
        self._worked_at = self._inputs.now_ns()

    def has_caught_up(self) -> bool:
        """Whether everything is done that the rings held after a stop of the process. During the stop the guest may
        have given DMA in progress up, and unmapped what it goes to.
        """
        self.look_for_stop()
        return self._missed is None or self._catches_up(self._missed)

    def _catches_up(self, missed: Backlog) -> bool:
        if self._worked_at < self._catch_up_until and not self._drain(missed):
            return False
        self._missed = None
        return True

    def drained(self, since: Backlog | None) -> Backlog | None:
        """Execute what the rings hold, or what they held when this returned ``since``, as far as a turn has time for.
        If something is left, returns what to call it with in a later step.
        """
        backlog = self.order.backlog() if since is None or not self.order.is_current(since) else since
        return None if self._drain(backlog) else backlog

    def _drain(self, backlog: Backlog) -> bool:
        self._settle()
        return self.order.drain(backlog)
