"""The translator of one endpoint behind an SMMU, or of one of its substreams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from smmuv3.events import Event, EventClass, EventType

from ...dma.fault import KIND, Fault, FaultKind
from ...dma.plan import DmaPlan, DmaRequest, translate_each
from ...dma.translator import PENDING, Pending, Translator
from ...engine import Access, Engine, Run, TranslationFault, TranslationPending
from .stalls import Outcome, Stall, Stalls
from .translation import Stale, StreamWalker

__all__ = ["ParentFault", "SmmuStream"]

_EVENTS = {
    FaultKind.NOT_MAPPED: EventType.F_TRANSLATION,
    FaultKind.PERMISSION: EventType.F_PERMISSION,
    FaultKind.OUT_OF_APERTURE: EventType.F_ADDR_SIZE,
}


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
        stalls: Stalls,
        on_parent_fault: Callable[[ParentFault], None],
        before: Callable[[], None],
    ) -> None:
        """``record`` writes an event for the guest; ``before`` is called before the engine is asked."""
        self._engine = engine
        self._walker = walker
        self._parent = parent
        self.stream = stream
        self._pasid = pasid
        self._record = record
        self._stalls = stalls
        self._stall: tuple[Stall, Fault] | None = None
        """what the request in progress waits for, and is refused with if it is aborted"""
        self._on_parent_fault = on_parent_fault
        self._before = before
        self._is_told = False
        """whether the guest knows of the refusal already"""
        self.given_up = 0
        """how many times a request in progress, if there was one, was given up"""
        self.cancel: Callable[[], None] = lambda: None
        """finishes what the endpoint has queued as cancelled"""
        self._fault: TranslationFault | None = None
        """of the last request, if it was refused by a translation"""

    def translate(self, requests: Sequence[DmaRequest]) -> list[DmaPlan] | Fault | Pending:
        self._walker.refused, self._fault, self._is_told = None, None, False
        if self._stall is not None:
            stall, fault = self._stall
            if stall.outcome is None:
                return PENDING
            self._stall = None
            if stall.outcome is Outcome.ABORT:  # whatever is mapped by now
                self._is_told = True
                return fault
        self._before()
        found = translate_each(self.stream, requests, self._translate)
        if not isinstance(found, tuple):
            return found
        refused, length = found
        if isinstance(refused, TranslationPending):
            return PENDING
        fault = Fault(KIND[refused.refusal], self.stream, refused.iova, refused.access, length)
        why = self._walker.refused
        if why is not None and why.stalls and why.event is not None:
            begun = self._stalls.begin(why.event)
            self._stall = None if begun is None else (begun, fault)
            return PENDING
        self._fault = refused
        return fault

    def _translate(
        self, stream: int, iova: int, length: int, access: Access
    ) -> Sequence[Run] | TranslationFault | TranslationPending:
        return self._engine.translate(stream, iova, length, access, self._pasid)

    def kept(self, iova: int, access: Access) -> Stale | None:
        """What the endpoint uses instead of asking, if that is not what it would be told."""
        return self._walker.kept(iova, access)

    def report(self, fault: Fault) -> None:
        """Tell the guest, if it is its stage that refused, and the owner of the parent otherwise, or both: of a table
        that cannot be read both are told.
        """
        if self._is_told:
            return
        refused, found = self._walker.refused, self._fault
        if refused is None and found is None and fault.kind in _EVENTS:  # a rule has refused it in our stead
            is_read = not fault.access & Access.WRITE
            sid = self._walker.sid
            self._record(Event(_EVENTS[fault.kind], sid, self._pasid, fault.iova, is_read, kind=EventClass.IN))
        if refused is not None and refused.event is not None and refused.is_recorded:
            self._record(refused.event)
        ipa = fault.gpa if found is None else found.ipa
        if ipa is not None:
            during_walk = found is not None and found.during_walk
            where = (self._parent, self.stream, fault.iova, ipa)
            self._on_parent_fault(ParentFault(*where, fault.access, during_walk))

    def give_up(self) -> None:
        self._stall = None
        self.given_up += 1

    def on_lost(self, cancel: Callable[[], None]) -> None:
        self.cancel = cancel

    def endpoint_failed(self) -> None:
        """Until its reset it is refused everything."""
        self._engine.block(self.stream)

    def endpoint_begins(self) -> None:
        self._engine.unblock(self.stream)
