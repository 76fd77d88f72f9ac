"""The only way from an endpoint to guest memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from pviommu_abi.shared import EventReason

from ..counters import Counters
from ..engine import Access, Engine, Fault, Run
from .memory import AbortedAccessError, GuestMemory, GuestMemoryError
from .patience import DmaPendingError, Patience
from .windows import MAX_REGISTER_BYTES

__all__ = [
    "PIECE_BYTES",
    "PIECE_SPANS",
    "DmaPendingError",
    "DmaPlan",
    "DmaPort",
    "DmaRefusedError",
    "DmaRequest",
    "DmaSteps",
    "Span",
    "Translator",
]

PIECE_SPANS = 8
PIECE_BYTES = 64 << 10
"""What a request in steps does at once. One that is no larger is carried out in one step."""
_REGISTER_SPANS = 64
"""Spans of registers that a request in steps writes at once, at its end: of any but odd ones that is all of them."""

_T = TypeVar("_T")

DmaSteps = Generator[bool, None, _T]
"""DMA in steps. Each item says whether the next one may be taken at once; False: not before the next turn."""

Span = tuple[int, int]
"""Device address and length in bytes."""

DmaRequest = tuple[Sequence[Span], Access]
"""The spans of one request, in order, and what it does to them."""


class Translator(Protocol):
    """What translates: see :class:`pviommu.interfaces.pv.function.PvIommu`."""

    @property
    def engine(self) -> Engine: ...
    def translate(
        self, stream: int, iova: int, length: int, access: Access, patience: Patience
    ) -> Sequence[Run] | Fault: ...
    def catch_up(self, patience: Patience) -> None: ...
    def report_fault(self, fault: Fault, length: int) -> EventReason: ...
    def report(self, reason: EventReason, access: Access, stream: int, iova: int, length: int) -> EventReason: ...


class DmaRefusedError(Exception):
    """A DMA request that was refused: whole, unless it was in steps and the guest unmapped part of it meanwhile.

    ``reason`` is ``None`` if bus mastering is off: no request left the function.
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


class _Objection(NamedTuple):
    """Why a request is refused that the IOMMU allows: arguments of :meth:`DmaPort._refused_at`."""

    plan: DmaPlan
    gpa: int
    length: int
    reason: EventReason


class DmaPort:
    """DMA of one stream. Every request is translated over its whole span before a byte moves.

    What is called ``in_steps`` is for requests of any size. The others are carried out at once, and may raise
    :class:`DmaPendingError` instead: then nothing has happened, and the same request is made again in a later step.
    """

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
        self._patience = Patience()

    def give_up(self) -> None:
        """A request that raised :class:`DmaPendingError`, or is not at its last step, is not made again."""
        self._patience.end()

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
        self._check_bus_master(requests)
        plans = self._translate(requests, self._translate_span)
        if sum(len(spans) for spans, _ in requests) > 1:
            # A translation that is refused at first executes what the rings hold, and that may unmap a span
            # translated before it. Once all are through, the engine alone decides: nothing changes it meanwhile.
            plans = self._translate(requests, self._translator.engine.translate)
        self._patience.end()
        return plans

    def _check_bus_master(self, requests: Sequence[DmaRequest]) -> None:
        if not self._is_bus_master():
            spans, access = requests[0]
            raise DmaRefusedError(spans[0][0], access, None)

    def _translate_span(self, stream: int, iova: int, length: int, access: Access) -> Sequence[Run] | Fault:
        return self._translator.translate(stream, iova, length, access, self._patience)

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
                    raise self._fault(result, length)
                translations.append(result)
            plans.append(DmaPlan(spans, access, translations))
        return plans

    def _fault(self, fault: Fault, length: int) -> DmaRefusedError:
        """What to raise for a request with a span of ``length`` that is refused for good."""
        self._patience.end()
        return DmaRefusedError(fault.iova, fault.access, self._translator.report_fault(fault, length))

    def _refused(self, plan: DmaPlan, error: GuestMemoryError) -> DmaRefusedError:
        reason = EventReason.ABORTED if isinstance(error, AbortedAccessError) else EventReason.NOT_RAM
        return self._refused_at(plan, error.gpa, plan.locate(error.gpa)[1], reason)

    def _refused_at(self, plan: DmaPlan, gpa: int, length: int, reason: EventReason) -> DmaRefusedError:
        """Tell the guest that what ``plan`` has at ``gpa``, in a span of ``length``, was refused; what to raise."""
        iova, _ = plan.locate(gpa)
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
        runs = self._translator.translate(self.stream, iova, length, Access.READ, self._patience)
        if isinstance(runs, Fault):
            raise self._fault(runs, length)
        self._patience.end()
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
        runs = self._translator.translate(self.stream, iova, length, Access.WRITE, self._patience)
        if isinstance(runs, Fault):
            raise self._fault(runs, length)
        self._patience.end()
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

    # -- in steps ---------------------------------------------------------------------------------------------------

    def read_in_steps(self, spans: Sequence[Span]) -> DmaSteps[bytes | bytearray]:
        """The bytes of ``spans``, one after the other."""
        if _is_short(spans):
            return (yield from _patiently(partial(self.read, spans)))
        yield from self._check((spans, Access.READ))
        return (yield from self._gather(spans))

    def write_in_steps(self, spans: Sequence[Span], data: bytes | memoryview) -> DmaSteps[None]:
        """Spread ``data`` over ``spans``, whose lengths add up to its own."""
        if _is_short(spans):
            yield from _patiently(partial(self.write, spans, data))
            return
        yield from self._check((spans, Access.WRITE))
        yield from self._scatter(spans, data)

    def copy_in_steps(self, source: Sequence[Span], destination: Sequence[Span]) -> DmaSteps[None]:
        """Read all of ``source`` and then write it to ``destination``; their lengths add up to the same."""
        requests = (source, Access.READ), (destination, Access.WRITE)
        if _is_short(source) and _is_short(destination):
            yield from _patiently(partial(self._copy, *requests))
            return
        yield from self._check(*requests)
        data = yield from self._gather(source)
        yield from self._scatter(destination, data)

    def _copy(self, *requests: DmaRequest) -> None:
        plan_in, plan_out = self.plan(*requests)
        self.write_plan(plan_out, self.read_plan(plan_in))

    def _check(self, *requests: DmaRequest) -> DmaSteps[None]:
        """As :meth:`plan`, but for the plans: each piece is translated anew in the step in which its bytes move.

        What the rings held when the request began is done first. Only if the guest unmaps something later, before the
        request is over, may a piece be refused then, and what came before it has moved.
        """
        self._check_bus_master(requests)
        yield from _patiently(partial(self._translator.catch_up, self._patience))
        objections = [_Objections() for _ in requests]
        for (spans, access), found in zip(requests, objections, strict=True):
            for iova, length in spans:
                for start in range(0, length, PIECE_BYTES):
                    piece = iova + start, min(PIECE_BYTES, length - start)
                    runs = yield from _patiently(partial(self._translate_span, self.stream, *piece, access))
                    if isinstance(runs, Fault):
                        raise self._fault(runs, length)
                    found.look(self._memory, DmaPlan([piece], access, [runs]), length)
                    yield True
        self._patience.end()
        for found in objections:  # those of the IOMMU, raised above, outrank them
            if found.first is not None:
                raise self._refused_at(*found.first)
        self._counters.dma_requests += len(requests)

    def _gather(self, spans: Sequence[Span]) -> DmaSteps[bytearray]:
        data = bytearray(sum(length for _, length in spans))
        position = 0
        for piece in _pieces(spans):
            part = yield from _patiently(partial(self._read_piece, piece))
            data[position : position + len(part)] = part
            position += len(part)
            yield True
        return data

    def _read_piece(self, spans: Sequence[Span]) -> bytes:
        [plan] = self._plan([(spans, Access.READ)])
        return self.read_plan(plan)

    def _scatter(self, spans: Sequence[Span], data: bytes | bytearray | memoryview) -> DmaSteps[None]:
        """Registers come last, as in any request: what is written to them may start something that needs the rest."""
        registers: list[tuple[Span, memoryview]] = []
        rest = memoryview(data)
        for piece in _pieces(spans):
            length = sum(length for _, length in piece)
            if not (yield from _patiently(partial(self._write_ram, piece, rest[:length]))):
                registers += yield from self._scatter_ram(piece, rest[:length])
            rest = rest[length:]
            yield True
        for number, (span, part) in enumerate(registers, 1):
            yield from _patiently(partial(self._write_piece, [span], part))
            if number % _REGISTER_SPANS == 0:
                yield False  # they are delivered when the step is over

    def _scatter_ram(self, piece: Sequence[Span], data: memoryview) -> DmaSteps[list[tuple[Span, memoryview]]]:
        """Write the spans of a piece that are RAM. The others, with what belongs there."""
        others: list[tuple[Span, memoryview]] = []
        for span in piece:
            part, data = data[: span[1]], data[span[1] :]
            if not (yield from _patiently(partial(self._write_ram, [span], part))):
                others.append((span, part))
        return others

    def _write_ram(self, spans: Sequence[Span], data: memoryview) -> bool:
        """Write ``data``, unless part of ``spans`` is registers: then nothing, and False."""
        [plan] = self._plan([(spans, Access.WRITE)])
        try:
            if self._memory.find_registers(plan.runs())[0]:
                return False
        except GuestMemoryError as error:
            raise self._refused(plan, error) from error
        self.write_plan(plan, data)
        return True

    def _write_piece(self, spans: Sequence[Span], data: memoryview) -> None:
        [plan] = self._plan([(spans, Access.WRITE)])
        self.write_plan(plan, data)


class _Objections:
    """What guest memory objects to in one request that is looked at piece by piece."""

    def __init__(self) -> None:
        self._register_bytes = 0
        self._first_register: _Objection | None = None
        self._not_ram: _Objection | None = None
        self._aborted: _Objection | None = None

    @property
    def first(self) -> _Objection | None:
        """The one that is told."""
        return self._not_ram or self._aborted

    def look(self, memory: GuestMemory, plan: DmaPlan, length: int) -> None:
        """At the next piece, of a span of ``length``."""
        try:
            count, gpa = memory.find_registers(plan.runs())
        except GuestMemoryError as error:
            self._not_ram = self._not_ram or _Objection(plan, error.gpa, length, EventReason.NOT_RAM)
            return
        if count:
            self._first_register = self._first_register or _Objection(plan, gpa, length, EventReason.ABORTED)
            self._register_bytes += count
            if self._register_bytes > MAX_REGISTER_BYTES:
                self._aborted = self._first_register


def _is_short(spans: Sequence[Span]) -> bool:
    return len(spans) <= PIECE_SPANS and sum(length for _, length in spans) <= PIECE_BYTES


def _pieces(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """``spans``, in parts that are carried out at once."""
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
