"""The only way from an endpoint to guest memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from ..engine import Access
from .access import GuestMemoryError
from .fault import DmaPendingError, Fault, FaultKind
from .path import DmaPath, Memory
from .plan import DmaPlan, DmaRequest, Span
from .windows import MAX_REGISTER_BYTES

__all__ = ["PIECE_BYTES", "PIECE_SPANS", "DmaPort", "DmaSteps"]

PIECE_SPANS = 8
PIECE_BYTES = 64 << 10
"""How much a request in steps moves at once. One that is no larger is carried out in one step."""
_REGISTER_SPANS = 64
"""Spans of registers that a request in steps writes at once, at its end: all of them, unless a request is unusual."""

_T = TypeVar("_T")

DmaSteps = Generator[bool, None, _T]
"""DMA in steps. Each item says whether the next step may follow at once; False: not before the next turn."""


class DmaPort(DmaPath):
    """DMA of one stream. The methods ``..._in_steps`` are for requests of any size.

    In steps, each piece is translated again in the step in which its bytes move. Before that, operations that the guest
    submitted earlier are carried out, and the whole request is checked. So a piece can only be refused if the guest
    unmaps it while the request is in progress, and then earlier pieces have moved.
    """

    def read_in_steps(self, spans: Sequence[Span]) -> DmaSteps[bytes | bytearray]:
        """The bytes of ``spans``, one after the other."""
        if _is_short(spans):
            return (yield from _patiently(partial(self.read, spans)))
        yield from self._look((spans, Access.READ))
        return (yield from self._gather(spans))

    def write_in_steps(self, spans: Sequence[Span], data: bytes | memoryview) -> DmaSteps[None]:
        """Spread ``data`` over ``spans``, whose lengths add up to its own."""
        if _is_short(spans):
            yield from _patiently(partial(self.write, spans, data))
            return
        yield from self._look((spans, Access.WRITE))
        yield from self._scatter(spans, data)

    def copy_in_steps(self, source: Sequence[Span], destination: Sequence[Span]) -> DmaSteps[None]:
        """Read all of ``source`` and then write it to ``destination``; their lengths add up to the same."""
        requests = (source, Access.READ), (destination, Access.WRITE)
        if _is_short(source) and _is_short(destination):
            if self._translator.transfers and self._copied_at_once(source, destination):
                return
            plan_in, plan_out = yield from _patiently(partial(self._checked, requests))
            self.write_plan(plan_out, self.read_plan(plan_in))
            self._finished()
            return
        yield from self._look(*requests)
        data = yield from self._gather(source)
        yield from self._scatter(destination, data)

    def _copied_at_once(self, source: Sequence[Span], destination: Sequence[Span]) -> bool:
        """Whether that was done. If the second half is refused, nobody has seen what the first has read."""
        data = self._at_once(source)
        if data is None or self._at_once(destination, data) is None:
            return False
        self._counters.dma_requests += 2
        return True

    def _look(self, *requests: DmaRequest) -> DmaSteps[None]:
        """As :meth:`plan`, for any number of pieces, and without giving the plans."""
        while self._is_bus_master() and not self._translator.catch_up():
            yield False
        objections = []
        for spans, access in requests:
            found = _Objections(self._memory, self._fault_at)
            objections.append(found)
            for iova, length in spans:
                for start in range(0, length, PIECE_BYTES):
                    piece = iova + start, min(PIECE_BYTES, length - start)
                    found.look((yield from self._plan_piece([piece], access, length)), length)
                    self._finished()
                    yield True
        self._counters.dma_requests += len(requests)
        for found in objections:  # refusals by the IOMMU, raised above, outrank them
            if found.first is not None:
                raise self._refused(found.first)

    def _gather(self, spans: Sequence[Span]) -> DmaSteps[bytearray]:
        data = bytearray(sum(length for _, length in spans))
        position = 0
        for piece in _pieces(spans):
            part = self._at_once(piece) if self._translator.transfers else None
            if part is None:
                plan = yield from self._plan_piece(piece, Access.READ)
                part = self.read_plan(plan)
                self._finished()
            data[position : position + len(part)] = part
            position += len(part)
            yield True
        return data

    def _scatter(self, spans: Sequence[Span], data: bytes | bytearray | memoryview) -> DmaSteps[None]:
        """Registers come last, as in any request: what is written to them may start something that needs the rest."""
        registers: list[tuple[Span, memoryview]] = []
        rest = memoryview(data)
        for piece in _pieces(spans):
            length = sum(length for _, length in piece)
            if not (yield from self._write_ram(piece, rest[:length])):
                registers += yield from self._scatter_ram(piece, rest[:length])
            rest = rest[length:]
            yield True
        for number, (span, part) in enumerate(registers, 1):
            plan = yield from self._plan_piece([span], Access.WRITE)
            self.write_plan(plan, part)
            self._finished()
            if number % _REGISTER_SPANS == 0:
                yield False  # they are delivered when the step is over

    def _scatter_ram(self, piece: Sequence[Span], data: memoryview) -> DmaSteps[list[tuple[Span, memoryview]]]:
        """Write the spans of a piece that are RAM. Returns the others, with the data that belongs there."""
        others: list[tuple[Span, memoryview]] = []
        for span in piece:
            part, data = data[: span[1]], data[span[1] :]
            if not (yield from self._write_ram([span], part)):
                others.append((span, part))
        return others

    def _write_ram(self, spans: Sequence[Span], data: memoryview) -> DmaSteps[bool]:
        """Write ``data``, unless part of ``spans`` is registers: then nothing is written, and it returns False."""
        if self._translator.transfers and self._at_once(spans, data) is not None:
            return True
        plan = yield from self._plan_piece(spans, Access.WRITE)
        try:
            if self._memory.find_registers(plan.runs())[0]:
                self._finished()
                return False
        except GuestMemoryError as error:
            raise self._objected(plan, error) from error
        self.write_plan(plan, data)
        self._finished()
        return True

    def _plan_piece(self, spans: Sequence[Span], access: Access, span_length: int = 0) -> DmaSteps[DmaPlan]:
        """A plan that is valid for the rest of this step."""
        [plan] = yield from _patiently(partial(self._translate, [(spans, access)], span_length))
        return plan


class _Objections:
    """What guest memory objects to in one request that is checked piece by piece."""

    def __init__(self, memory: Memory, fault_at: Callable[[DmaPlan, int, FaultKind], Fault]) -> None:
        self._memory = memory
        self._fault_at = fault_at
        self._register_bytes = 0
        self._first_register: Fault | None = None
        self._not_ram: Fault | None = None
        self._aborted: Fault | None = None

    @property
    def first(self) -> Fault | None:
        """The one that is reported."""
        return self._not_ram or self._aborted

    def look(self, plan: DmaPlan, length: int) -> None:
        """Check the next piece, of a span of ``length`` bytes."""
        try:
            count, gpa = self._memory.find_registers(plan.runs())
        except GuestMemoryError as error:
            self._not_ram = self._not_ram or self._fault(plan, error.gpa, FaultKind.NOT_RAM, length)
            return
        if count:
            self._first_register = self._first_register or self._fault(plan, gpa, FaultKind.ABORTED, length)
            self._register_bytes += count
            if self._register_bytes > MAX_REGISTER_BYTES:
                self._aborted = self._first_register

    def _fault(self, plan: DmaPlan, gpa: int, kind: FaultKind, length: int) -> Fault:
        return replace(self._fault_at(plan, gpa, kind), length=length)


def _is_short(spans: Sequence[Span]) -> bool:
    return len(spans) <= PIECE_SPANS and sum(length for _, length in spans) <= PIECE_BYTES


def _pieces(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """``spans``, divided into pieces that are carried out at once."""
    piece: list[Span] = []
    room = PIECE_BYTES
    for iova, length in spans:
        while length:
            taken = min(length, room)
            piece.append((iova, taken))
            iova, length, room = iova + taken, length - taken, room - taken
            if not room or len(piece) == PIECE_SPANS:
                yield piece
                piece, room = [], PIECE_BYTES
    if piece:
        yield piece


def _patiently(call: Callable[[], _T]) -> DmaSteps[_T]:
    """Repeat ``call`` in later turns until it has an outcome."""
    while True:
        try:
            return call()
        except DmaPendingError:
            yield False
