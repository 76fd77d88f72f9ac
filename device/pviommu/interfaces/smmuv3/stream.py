"""The translator of one endpoint behind an SMMU, or of one of its substreams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from smmuv3.events import Event

from ...dma.fault import KIND, Fault
from ...dma.plan import DmaPlan, DmaRequest, translate_each
from ...dma.translator import PENDING, Pending, Translator
from ...engine import Access, Engine, Run, TranslationFault, TranslationPending
from .translation import StreamWalker

__all__ = ["ParentFault", "SmmuStream"]


class ParentFault(NamedTuple):
    """An access that the SMMU let through, or made itself, and that the parent refused. The guest's event queue does
    not tell it: the parent is not the guest's.
    """

    domain: int
    """the parent"""
    stream: int
    """the endpoint that made the request"""
    iova: int
    """device address of the first refused byte"""
    ipa: int
    """the address that was refused"""
    access: Access
    """what the endpoint asked for"""
    during_walk: bool = False
    """whether the SMMU wanted to read a table or a structure there"""


class SmmuStream(Translator):
    """Translates the requests of one stream, those with one PASID or those without. Refusals are believed at once: an
    SMMU promises nothing about commands that it has not consumed.
    """

    def __init__(
        self,
        engine: Engine,
        walker: StreamWalker,
        parent: int,
        stream: int,
        pasid: int | None,
        record: Callable[[Event], object],
        on_parent_fault: Callable[[ParentFault], None],
        before: Callable[[], None],
    ) -> None:
        """``record`` writes an event for the guest; ``before`` is called before the engine is asked."""
        self._engine = engine
        self._walker = walker
        self._parent = parent
        self._stream = stream
        self._pasid = pasid
        self._record = record
        self._on_parent_fault = on_parent_fault
        self._before = before
        self.cancel: Callable[[], None] = lambda: None
        """finishes what the endpoint has queued as cancelled"""
        self._fault: TranslationFault | None = None
        """of the last request, if it was refused by a translation"""

    def translate(self, requests: Sequence[DmaRequest]) -> list[DmaPlan] | Fault | Pending:
        self._before()
        self._walker.refused, self._fault = None, None
        found = translate_each(self._stream, requests, self._translate)
        if not isinstance(found, tuple):
            return found
        refused, length = found
        if isinstance(refused, TranslationPending):
            return PENDING
        self._fault = refused
        return Fault(KIND[refused.refusal], self._stream, refused.iova, refused.access, length)

    def _translate(
        self, stream: int, iova: int, length: int, access: Access
    ) -> Sequence[Run] | TranslationFault | TranslationPending:
        return self._engine.translate(stream, iova, length, access, self._pasid)

    def report(self, fault: Fault) -> None:
        """Tell the guest, if it is its stage that refused, and the owner of the parent otherwise, or both: of a table
        that cannot be read both are told.
        """
        refused = self._walker.refused
        if refused is not None and refused.event is not None and refused.is_recorded:
            self._record(refused.event)
        found = self._fault
        ipa = fault.gpa if found is None else found.ipa
        if ipa is not None:
            during_walk = found is not None and found.during_walk
            where = (self._parent, self._stream, fault.iova, ipa)
            self._on_parent_fault(ParentFault(*where, fault.access, during_walk))

    def on_lost(self, cancel: Callable[[], None]) -> None:
        self.cancel = cancel

    def endpoint_failed(self) -> None:
        """Until its reset it is refused everything."""
        self._engine.block(self._stream)

    def endpoint_begins(self) -> None:
        self._engine.unblock(self._stream)
