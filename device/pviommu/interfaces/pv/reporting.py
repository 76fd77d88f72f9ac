"""What the guest is told without asking: refused DMA and failures, in the log and in the event ring."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from pviommu_abi.shared import SBDF_UNBOUND, Event, EventReason

from ...dma.fault import REASON, Fault
from ...pci.function import Environment
from .bindings import Bindings, format_sbdf
from .config import NO_STREAM
from .contexts import Contexts
from .events import EventRing

__all__ = ["Reporter"]

log = logging.getLogger(__name__)

VECTOR_EVENTS = 0


class InterruptSource(Protocol):
    """See :class:`pviommu.pci.function.PciFunction`."""

    name: str

    def interrupt(self, vector: int) -> None: ...


class Reporter:
    """The reports of one PV-IOMMU, which is ``source``."""

    def __init__(
        self,
        contexts: Contexts,
        bindings: Bindings,
        events: EventRing,
        environment: Environment,
        source: InterruptSource,
    ) -> None:
        self.name = source.name
        self._contexts = contexts
        self._bindings = bindings
        self._events = events
        self._inputs = environment.inputs
        self._counters = environment.counters
        self._source = source
        self.on_fault: Callable[[Fault], None] | None = None
        """who else is told about refused requests"""

    def interrupt(self, vector: int) -> None:
        """Raise MSI-X ``vector``, if the guest has set it up."""
        self._source.interrupt(vector)

    def fault(self, fault: Fault) -> None:
        """Tell the guest about a refused request, of a kind that is in :data:`pviommu.dma.fault.REASON`."""
        self._counters.faults += 1
        if self.on_fault:
            self.on_fault(fault)
        reason = REASON[fault.kind]
        context = self._contexts.of(fault.stream)
        sbdf = self._bindings.sbdf(fault.stream)
        log.info(
            "fault: stream %d (%s) context %d %s of %d bytes refused at %#x: %s",
            *(fault.stream, format_sbdf(sbdf), context, fault.access.name, fault.length, fault.iova, reason.name),
            extra={
                "event": "fault",
                "fields": {
                    "stream": fault.stream,
                    "sbdf": format_sbdf(sbdf),
                    "context": context,
                    "iova": fault.iova,
                    "access": fault.access.name,
                    "reason": reason.name,
                    "length": fault.length,
                },
            },
        )
        self.event(
            reason=reason,
            access=int(fault.access),
            stream=fault.stream,
            sbdf=sbdf,
            iova=fault.iova,
            length=fault.length,
            ctx_no=context,
        )

    def stopped(self, stream: int) -> None:
        """Tell the guest that an endpoint failed: all its DMA is blocked until its reset. No request was refused."""
        context = self._contexts.of(stream)
        self.event(reason=EventReason.BLOCKED, stream=stream, sbdf=self._bindings.sbdf(stream), ctx_no=context)

    def event(
        self,
        *,
        reason: EventReason,
        access: int = 0,
        stream: int = NO_STREAM,
        sbdf: int = SBDF_UNBOUND,
        iova: int = 0,
        length: int = 0,
        ctx_no: int = 0,
        result: int = 0,
        slot: int = 0,
    ) -> None:
        """Put an event with these fields (:class:`pviommu_abi.shared.Event`) into the event ring."""
        event = Event(
            sequence=self._events.sequence,
            reason=reason,
            access=access,
            stream=stream,
            sbdf=sbdf,
            iova=iova,
            length=length,
            ctx_no=ctx_no,
            result=result,
            slot=slot,
            time_ns=self._inputs.now_ns(),
        )
        lost = self._events.lost
        self._counters.events += 1
        if self._events.put(event):
            self.interrupt(VECTOR_EVENTS)
        self._counters.events_lost += self._events.lost - lost

    def lose(self) -> None:
        """Count an event as lost, whether or not the event ring has room."""
        self._counters.events += 1
        self._counters.events_lost += 1
        self._events.lose()
