"""The one path of all DMA: translation, refusal, accounting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from ..counters import Counters
from ..engine import Access
from .access import AbortedAccessError, Copier, GuestMemoryError
from .fault import DmaPendingError, DmaRefusedError, Fault, FaultKind
from .plan import DmaPlan, DmaRequest, Span
from .translator import PENDING, Lent, Translator

__all__ = ["DmaPath", "Memory"]


class Memory(Protocol):
    """What translated addresses lead to. Runs are (address, bytes) each; all methods raise
    :class:`.access.GuestMemoryError` for what cannot be reached: see :class:`.access.MemoryAccess`.
    """

    def read(self, runs: Sequence[tuple[int, int]], /) -> bytes: ...
    def write(self, runs: Sequence[tuple[int, int]], data: bytes | bytearray | memoryview, /) -> None: ...
    def check(self, runs: Sequence[tuple[int, int]], /) -> None: ...
    def find_registers(self, runs: Sequence[tuple[int, int]], /) -> tuple[int, int]: ...
    @property
    def copier(self) -> Copier | None: ...


class DmaPath:
    """DMA of one stream, carried out at once. Every request is translated over its whole span before a byte moves.

    Any request may raise :class:`.fault.DmaRefusedError`, after the guest was told, or :class:`.fault.DmaPendingError`:
    then nothing has happened, and the same request is to be made again in a later step.
    """

    def __init__(
        self,
        stream: int,
        translator: Translator,
        memory: Memory,
        counters: Counters,
        is_bus_master: Callable[[], bool],
    ) -> None:
        self.stream = stream
        self._translator = translator
        self._memory = memory
        self._counters = counters
        self._is_bus_master = is_bus_master
        self._has_plans = False
        """whether somebody has plans that are good until the end of the step"""

    def give_up(self) -> None:
        """The caller will not repeat a request that raised :class:`.fault.DmaPendingError`, or that is not at its last
        step."""
        self._translator.give_up()

    def plan(self, *requests: DmaRequest) -> list[DmaPlan]:
        """Translate ``requests``, which are carried out together or not at all.

        Use the result in the same step: the next operation of the guest may change what it stands for.
        """
        self._has_plans = True
        return self._checked(requests)

    def end_step(self) -> None:
        """The step of the endpoint is over, and with it all plans."""
        self._has_plans = False
        self._translator.finished()

    def read_plan(self, plan: DmaPlan) -> bytes:
        """The bytes of a request that :meth:`plan` translated. Refused if its file fails."""
        try:
            data = self._memory.read(plan.runs())
        except GuestMemoryError as error:
            raise self._objected(plan, error) from error
        self._counters.dma_bytes += len(data)
        return data

    def write_plan(self, plan: DmaPlan, data: bytes | memoryview) -> None:
        """Write to a request that :meth:`plan` translated. Refused if its file fails."""
        try:
            self._memory.write(plan.runs(), data)
        except GuestMemoryError as error:
            raise self._objected(plan, error) from error
        self._counters.dma_bytes += len(data)

    def read(self, spans: Sequence[Span]) -> bytes:
        """The bytes of ``spans``, in order."""
        if self._translator.transfers and (found := self._at_once(spans)) is not None:
            self._counters.dma_requests += 1
            return found
        data = self.read_plan(self._begin(((spans, Access.READ),))[0])  # which looks whether all of it is memory
        self._finished()
        return data

    def write(self, spans: Sequence[Span], data: bytes | memoryview) -> None:
        """Spread ``data`` over ``spans``, whose lengths add up to its own."""
        if self._translator.transfers and self._at_once(spans, data) is not None:
            self._counters.dma_requests += 1
            return
        self.write_plan(self._begin(((spans, Access.WRITE),))[0], data)  # which looks before it begins
        self._finished()

    def lend(self) -> Lent | None:
        """See :meth:`.translator.Translator.lend`."""
        return self._translator.lend() if self._is_bus_master() and not self._has_plans else None

    def refusal(self, plan: DmaPlan, byte: int, kind: FaultKind) -> DmaRefusedError:
        """Refuse what :meth:`plan` translated, from this byte on, for what it leads to. The guest is told; what to
        raise.
        """
        left = byte
        for run in plan.runs():
            if left < run.length:
                return self._refused(self._fault_at(plan, run.gpa + left, kind))
            left -= run.length
        raise ValueError(f"byte {byte} is not part of the request")

    # -- what all of it is made of ----------------------------------------------------------------------------------

    def _begin(self, requests: Sequence[DmaRequest]) -> list[DmaPlan]:
        plans = self._translate(requests)
        self._counters.dma_requests += len(plans)
        return plans

    def _at_once(self, spans: Sequence[Span], data: bytes | memoryview | None = None) -> bytes | None:
        """See :meth:`.translator.Translator.transfer`."""
        if not self._is_bus_master():
            return None
        found = self._translator.transfer(spans, self._memory.copier, data)
        if found is not None:
            self._counters.dma_bytes += len(found)
        return found

    def _checked(self, requests: Sequence[DmaRequest]) -> list[DmaPlan]:
        """Plans that lead to memory."""
        plans = self._begin(requests)
        for plan in plans:
            try:
                self._memory.check(plan.runs())
            except GuestMemoryError as error:
                raise self._objected(plan, error) from error
        return plans

    def _finished(self) -> None:
        """A plan of our own is used up. So is everything, unless others have plans."""
        if not self._has_plans:
            self._translator.finished()

    def _translate(self, requests: Sequence[DmaRequest], span_length: int = 0) -> list[DmaPlan]:
        """Plans for this step; whether they lead to memory remains to be seen. ``span_length``: of the span that all of
        it is a piece of.
        """
        if not self._is_bus_master():
            self._translator.give_up()
            [(iova, length), *_], access = requests[0]
            raise self._refused(Fault(FaultKind.NO_BUS_MASTER, self.stream, iova, access, length))
        found = self._translator.translate(requests)
        if found is PENDING:
            raise DmaPendingError
        if isinstance(found, Fault):
            raise self._refused(replace(found, length=span_length) if span_length else found)
        return found

    def _refused(self, fault: Fault) -> DmaRefusedError:
        """Tell the guest; returns what to raise."""
        self._finished()
        if fault.kind is not FaultKind.NO_BUS_MASTER:
            self._translator.report(fault)
        return DmaRefusedError(fault)

    def _objected(self, plan: DmaPlan, error: GuestMemoryError) -> DmaRefusedError:
        """As :meth:`_refused`, for a plan that guest memory refuses."""
        kind = FaultKind.ABORTED if isinstance(error, AbortedAccessError) else FaultKind.NOT_RAM
        return self._refused(self._fault_at(plan, error.gpa, kind))

    def _fault_at(self, plan: DmaPlan, gpa: int, kind: FaultKind) -> Fault:
        iova, length = plan.locate(gpa)
        return Fault(kind, self.stream, iova, plan.access, length, gpa)
