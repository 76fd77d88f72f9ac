"""The translator of one endpoint behind the PV-IOMMU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...dma.access import Copier
from ...dma.fault import KIND, Fault
from ...dma.plan import DmaPlan, DmaRequest, Span, translate_each
from ...dma.translator import PENDING, Lent, Pending, Translator
from ...engine import TranslationFault, TranslationPending
from .contexts import Contexts
from .guest_tables import ContextTables
from .in_flight import Use
from .order import Backlog
from .patience import Patience
from .profile import Targets
from .reporting import Reporter

__all__ = ["PvStream"]


class PvStream(Translator):
    """Translates by the context that the stream is attached to.

    A refusal is only believed after all rings are drained: the map may be on its way.
    """

    def __init__(
        self,
        stream: int,
        contexts: Contexts,
        tables: ContextTables,
        settle: Callable[[], None],
        patience: Patience,
        reporter: Reporter,
    ) -> None:
        """``settle`` is called before the engine of ``contexts`` is asked."""
        self.stream = stream
        self._contexts = contexts
        self._engine = contexts.engine
        self._tables = tables
        self._uses: list[Use] = []
        """what is in flight by tables of the guest, until :meth:`finished` in this step"""
        self._kept: list[Use] = []
        """and what goes on in a later step"""
        self._settle = settle
        self._patience = patience
        self._reporter = reporter
        self._backlog: Backlog | None = None
        """what the rings held when the request in progress was first refused"""
        self.given_up = 0
        """how many times a request in progress, if there was one, was given up"""
        self.cancel: Callable[[], None] = lambda: None
        """finishes what the endpoint has queued as cancelled"""

    def save(self) -> Targets | None:
        """What the request in progress waits for, if there is one."""
        return self._patience.order.save(self._backlog)

    def load(self, targets: Targets | None) -> None:
        """Take over a state. Raises ValueError if it names rings that do not exist."""
        self._backlog = self._patience.order.load(targets)

    def translate(self, requests: Sequence[DmaRequest]) -> list[DmaPlan] | Fault | Pending:
        if not self._patience.has_caught_up():
            return PENDING
        self._settle()
        found = self._ask(requests)
        if isinstance(found, tuple):
            if not self.catch_up():
                return PENDING
            # all of them again: what was executed meanwhile may have unmapped a span that was translated before
            found = self._ask(requests)
        self._backlog = None
        if isinstance(found, tuple):
            refused, length = found
            if isinstance(refused, TranslationPending):
                return PENDING
            return Fault(KIND[refused.refusal], self.stream, refused.iova, refused.access, length)
        return found

    def _ask(self, requests: Sequence[DmaRequest]) -> list[DmaPlan] | tuple[TranslationFault | TranslationPending, int]:
        """What the engine says. Plans of guest tables are in flight then, and nothing otherwise."""
        line = self._tables.line(self.stream)
        self.transfers = line is not None and self._tables.transfers
        self._end(self._kept)
        if line is None:
            return translate_each(self.stream, requests, self._engine.translate, self._engine.translate_spans)
        use = self._tables.in_flight.begin(line)
        found = translate_each(self.stream, requests, self._engine.translate, self._engine.translate_spans)
        if isinstance(found, tuple):
            self._tables.in_flight.end(use)  # others of this step may be in use
        else:
            self._uses.append(use)
        return found

    def transfer(self, spans: Sequence[Span], copier: Copier | None, data: bytes | memoryview | None) -> bytes | None:
        if self._uses or self._kept or not self._patience.has_caught_up():
            return None
        self._settle()
        return self._tables.transfer(self.stream, spans, copier, data)

    def lend(self) -> Lent | None:
        if self._uses or self._kept or self._backlog or not self._patience.has_caught_up():
            return None
        self._settle()
        return self._tables.lend(self.stream)

    def finished(self) -> None:
        self._end(self._uses)

    def keep(self) -> None:
        for use in self._uses:
            self._tables.in_flight.keep(use)
        self._kept += self._uses
        self._uses.clear()

    def resume(self) -> None:
        for use in self._kept:
            self._tables.in_flight.resume(use)
        self._uses += self._kept
        self._kept.clear()

    def _end(self, uses: list[Use]) -> None:
        if uses:
            for use in uses:
                self._tables.in_flight.end(use)
            uses.clear()

    def report(self, fault: Fault) -> None:
        self._reporter.fault(fault)

    def catch_up(self) -> bool:
        self._backlog = self._patience.drained(self._backlog)
        return self._backlog is None

    def give_up(self) -> None:
        self._backlog = None
        self._end(self._kept)
        self.given_up += 1

    def on_lost(self, cancel: Callable[[], None]) -> None:
        self.cancel = cancel

    def endpoint_failed(self) -> None:
        self._reporter.stopped(self.stream)

    def endpoint_begins(self) -> None:
        self._settle()
        self._contexts.unblock(self.stream)
