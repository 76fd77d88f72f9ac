"""The only way from an endpoint to guest memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pviommu_abi.shared import EventReason

from ..counters import Counters
from ..engine import Access, Engine, Fault, Run
from ..memory import AbortedAccessError, GuestMemory, GuestMemoryError

__all__ = ["DmaPlan", "DmaPort", "DmaRefusedError", "DmaRequest", "Span", "Translator"]

Span = tuple[int, int]
"""Device address and length in bytes."""

DmaRequest = tuple[Sequence[Span], Access]
"""The spans of one request, in order, and what it does to them."""


class Translator(Protocol):
    """What translates: see :class:`pviommu.iommu.function.PvIommu`."""

    @property
    def engine(self) -> Engine: ...
    def translate(self, stream: int, iova: int, length: int, access: Access) -> Sequence[Run] | Fault: ...
    def report_fault(self, fault: Fault, length: int) -> EventReason: ...
    def report(self, reason: EventReason, access: Access, stream: int, iova: int, length: int) -> EventReason: ...


class DmaRefusedError(Exception):
    """A DMA request that was refused whole. ``reason`` is ``None`` if bus mastering is off: no request left the
    function.
    """

    def __init__(self, iova: int, access: Access, reason: EventReason | None) -> None:
        super().__init__(f"{access.name} at {iova:#x}: {reason.name if reason else 'bus mastering is off'}")
        self.iova = iova
        self.access = access
        self.reason = reason


@dataclass(frozen=True)
class DmaPlan:
    """A translated request: for each span the runs of guest memory that it is. Good for the step it was made in."""

    spans: Sequence[Span]
    access: Access
    translations: Sequence[Sequence[Run]]

    def runs(self) -> Sequence[Run]:
        """All runs in order."""
        if len(self.translations) == 1:
            return self.translations[0]
        return [run for runs in self.translations for run in runs]

    def locate(self, gpa: int) -> tuple[int, int]:
        """The device address that was translated to ``gpa``, and the length of the span that it is in."""
        for (iova, length), runs in zip(self.spans, self.translations, strict=True):
            for run in runs:
                if run.gpa <= gpa < run.gpa + run.length:
                    return iova + gpa - run.gpa, length
                iova += run.length
        raise ValueError(f"GPA {gpa:#x} is not part of the request")


class DmaPort:
    """DMA of one stream. Every request is translated over its whole span before a byte moves."""

    def __init__(
        self,
        stream: int,
        translator: Translator,
        memory: GuestMemory,
        counters: Counters,
        is_bus_master: Callable[[], bool],
    ) -> None:
        self.stream = stream
        self._translator = translator
        self._memory = memory
        self._counters = counters
        self._is_bus_master = is_bus_master

    def plan(self, *requests: DmaRequest) -> list[DmaPlan]:
        """Translate ``requests``, which are carried out together or not at all.

        Use the result in the same step: the next operation of the guest may change what it stands for. Raises
        :class:`DmaRefusedError` with the first refused address.
        """
        plans = self._plan(requests)
        for plan in plans:
            try:
                self._memory.check(plan.runs())
            except GuestMemoryError as error:
                raise self._refused(plan, error) from error
        self._counters.dma_requests += len(plans)
        return plans

    def _plan(self, requests: Sequence[DmaRequest]) -> list[DmaPlan]:
        """As :meth:`plan`, but whether it is RAM remains to be seen."""
        if not self._is_bus_master():
            spans, access = requests[0]
            raise DmaRefusedError(spans[0][0], access, None)
        plans = self._translate(requests, self._translator.translate)
        if sum(len(spans) for spans, _ in requests) > 1:
            # A translation that is refused at first executes what the rings hold, and that may unmap a span
            # translated before it. Once all are through, the engine alone decides: nothing changes it meanwhile.
            plans = self._translate(requests, self._translator.engine.translate)
        return plans

    def _translate(
        self,
        requests: Iterable[DmaRequest],
        translate: Callable[[int, int, int, Access], Sequence[Run] | Fault],
    ) -> list[DmaPlan]:
        plans = []
        for spans, access in requests:
            translations = []
            for iova, length in spans:
                result = translate(self.stream, iova, length, access)
                if isinstance(result, Fault):
                    raise DmaRefusedError(result.iova, access, self._translator.report_fault(result, length))
                translations.append(result)
            plans.append(DmaPlan(spans, access, translations))
        return plans

    def _refused(self, plan: DmaPlan, error: GuestMemoryError) -> DmaRefusedError:
        iova, length = plan.locate(error.gpa)
        reason = EventReason.ABORTED if isinstance(error, AbortedAccessError) else EventReason.NOT_RAM
        self._translator.report(reason, plan.access, self.stream, iova, length)
        return DmaRefusedError(iova, plan.access, reason)

    def read(self, spans: Sequence[Span]) -> bytes:
        """The bytes of ``spans``, one after the other."""
        if len(spans) == 1 and self._is_bus_master():
            return self._read_span(*spans[0])
        [plan] = self._plan([(spans, Access.READ)])  # reading finds out by itself whether all of it is RAM
        data = self.read_plan(plan)
        self._counters.dma_requests += 1
        return data

    def _read_span(self, iova: int, length: int) -> bytes:
        """What :meth:`read` comes to for one span, in as few steps."""
        runs = self._translator.translate(self.stream, iova, length, Access.READ)
        if isinstance(runs, Fault):
            raise DmaRefusedError(runs.iova, Access.READ, self._translator.report_fault(runs, length))
        try:
            data = self._memory.read(runs)
        except GuestMemoryError as error:
            raise self._refused(DmaPlan([(iova, length)], Access.READ, [runs]), error) from error
        self._counters.dma_requests += 1
        self._counters.dma_bytes += len(data)
        return data

    def write(self, spans: Sequence[Span], data: bytes | memoryview) -> None:
        """Spread ``data`` over ``spans``, whose lengths add up to its own."""
        if len(spans) == 1 and self._is_bus_master():
            self._write_span(*spans[0], data)
            return
        [plan] = self._plan([(spans, Access.WRITE)])  # writing looks before it begins
        self.write_plan(plan, data)
        self._counters.dma_requests += 1

    def _write_span(self, iova: int, length: int, data: bytes | memoryview) -> None:
        """What :meth:`write` comes to for one span, in as few steps."""
        runs = self._translator.translate(self.stream, iova, length, Access.WRITE)
        if isinstance(runs, Fault):
            raise DmaRefusedError(runs.iova, Access.WRITE, self._translator.report_fault(runs, length))
        try:
            self._memory.write(runs, data)
        except GuestMemoryError as error:
            raise self._refused(DmaPlan([(iova, length)], Access.WRITE, [runs]), error) from error
        self._counters.dma_requests += 1
        self._counters.dma_bytes += len(data)

    def read_plan(self, plan: DmaPlan) -> bytes:
        """The bytes of a request that :meth:`plan` translated. Raises :class:`DmaRefusedError` if its file fails."""
        try:
            data = self._memory.read(plan.runs())
        except GuestMemoryError as error:
            raise self._refused(plan, error) from error
        self._counters.dma_bytes += len(data)
        return data

    def write_plan(self, plan: DmaPlan, data: bytes | memoryview) -> None:
        """Write to a request that :meth:`plan` translated. Raises :class:`DmaRefusedError` if its file fails."""
        try:
            self._memory.write(plan.runs(), data)
        except GuestMemoryError as error:
            raise self._refused(plan, error) from error
        self._counters.dma_bytes += len(data)
