"""The only way from an endpoint to guest memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from pviommu_abi.shared import EventReason

from ..counters import Counters
from ..engine import Access, Fault, Run
from ..memory import GuestMemory, GuestMemoryError

__all__ = ["DmaPort", "DmaRefusedError", "Translator"]

Span = tuple[int, int]
"""Device address and length in bytes."""


class Translator(Protocol):
    """What translates: see :class:`pviommu.iommu.function.PvIommu`."""

    def translate(self, stream: int, iova: int, length: int, access: Access) -> list[Run] | Fault: ...
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

    def plan(self, spans: Sequence[Span], access: Access) -> list[Run]:
        """Translate ``spans`` for ``access``: the runs of guest memory they are, in order.

        Use the result in the same step: the next operation of the guest may change what it stands for. Raises
        :class:`DmaRefusedError` with the first refused address.
        """
        if not self._is_bus_master():
            raise DmaRefusedError(spans[0][0], access, None)
        runs: list[Run] = []
        for iova, length in spans:
            result = self._translator.translate(self.stream, iova, length, access)
            if isinstance(result, Fault):
                raise DmaRefusedError(result.iova, access, self._translator.report_fault(result, length))
            try:
                self._memory.check(result)
            except GuestMemoryError as error:
                at = _address_of(error.gpa, result, iova)
                reason = self._translator.report(EventReason.NOT_RAM, access, self.stream, at, length)
                raise DmaRefusedError(at, access, reason) from error
            runs += result
        self._counters.dma_requests += 1
        return runs

    def read(self, spans: Sequence[Span]) -> bytes:
        """The bytes of ``spans``, one after the other."""
        return self.read_runs(self.plan(spans, Access.READ))

    def write(self, spans: Sequence[Span], data: bytes | memoryview) -> None:
        """Spread ``data`` over ``spans``, whose lengths add up to its own."""
        self.write_runs(self.plan(spans, Access.WRITE), data)

    def read_runs(self, runs: Sequence[Run]) -> bytes:
        """The bytes of runs that :meth:`plan` gave."""
        data = self._memory.read(runs)
        self._counters.dma_bytes += len(data)
        return data

    def write_runs(self, runs: Sequence[Run], data: bytes | memoryview) -> None:
        """Write to runs that :meth:`plan` gave."""
        self._memory.write(runs, data)
        self._counters.dma_bytes += len(data)


def _address_of(gpa: int, runs: Sequence[Run], iova: int) -> int:
    """The device address that was translated to ``gpa``."""
    for run in runs:
        if run.gpa <= gpa < run.gpa + run.length:
            return iova + gpa - run.gpa
        iova += run.length
    return iova
