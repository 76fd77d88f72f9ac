"""What ``pviommu bench engine`` measures with a whole machine in this process: rings, and DMA through the tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter_ns

from ..engine import Access, TranslationFault
from ..lab.problems import RunError
from .local_guest import AT_ONCE, LocalGuest, map_slot, scattered, unmap_slot
from .samples import Case, Work

__all__ = [
    "DMA_BYTES",
    "GUESTS_4K",
    "WALK_DEVICE",
    "WALK_GUEST",
    "buffers",
    "dma_cases",
    "guest_walk_cases",
    "ring_cases",
]

DMA_BYTES = 1 << 20
GUESTS_4K = "4K pages, guest tables"
WALK_DEVICE, WALK_GUEST = "translate 4K, many at once", "translate 4K, guest tables, many at once"
_PAGES = DMA_BYTES >> 12
_FAR_DFN = 1 << 20
_SOURCE_PAGE = 1 << 13  # where buffers() begins; no DMA case reaches that far


def ring_cases(guest: LocalGuest) -> list[Case]:
    """One-page maps and unmaps through ring 0, from the moment that they are visible until they are complete.

    An operation is one slot. The slots are made beforehand, so the cost of a guest's driver is not included.
    """
    frames = scattered(AT_ONCE)

    def slots(posted: bool) -> tuple[list[bytes], list[bytes]]:
        ctx = guest.context
        maps = [map_slot(ctx, dfn, gfn, posted=posted) for dfn, gfn in enumerate(frames)]
        return maps, [unmap_slot(ctx, dfn, posted=posted) for dfn in range(AT_ONCE)]

    def batches(posted: bool) -> Work:
        maps, unmaps = (b"".join(part) for part in slots(posted))

        def work(count: int) -> int:
            failed = guest.failed()
            taken = sum(guest.submit(maps) + guest.submit(unmaps) for _ in range(count // (2 * AT_ONCE)))
            return _accepted(guest, failed, taken)

        return work

    def one_by_one(count: int) -> int:
        maps, unmaps = slots(False)
        failed = guest.failed()
        taken = sum(guest.submit(maps[0]) + guest.submit(unmaps[0]) for _ in range(count // 2))
        return _accepted(guest, failed, taken)

    return [
        Case("ring, waited, one by one", one_by_one, least_count=2),
        Case(f"ring, waited, {AT_ONCE} at a time", batches(False), least_count=2 * AT_ONCE),
        Case(f"ring, posted, {AT_ONCE} at a time", batches(True), least_count=2 * AT_ONCE),
    ]


def _accepted(guest: LocalGuest, failed: int, taken: int) -> int:
    if guest.failed() != failed:
        raise RunError(f"{guest.failed() - failed} operations of the measurement failed")
    return taken


def buffers(guest: LocalGuest) -> tuple[memoryview, memoryview]:
    """A buffer that has been written to, and guest memory of the same size, for a memcpy between the two."""
    start = _SOURCE_PAGE << 12
    return memoryview(b"\xa5" * DMA_BYTES), memoryview(guest.ram)[start : start + DMA_BYTES]


def dma_cases(guest: LocalGuest) -> list[Case]:
    """DMA of 1 MiB by an endpoint, each one operation: translated over its whole span, then copied."""
    data = memoryview(bytes(DMA_BYTES))
    dma = guest.endpoint.dma
    cases = []
    for place, (name, mapped) in enumerate(_layouts().items()):
        dfn = _FAR_DFN + place * 1024
        for offset, gfn, pages in mapped:
            guest.map(dfn + offset, gfn, pages)
        spans = [(dfn << 12, DMA_BYTES)]
        cases += [
            Case(f"DMA write, {name}", _repeated(partial(dma.write, spans, data)), DMA_BYTES, "bytes"),
            Case(f"DMA read, {name}", _repeated(partial(dma.read, spans)), DMA_BYTES, "bytes"),
        ]
    guest_dfn = _FAR_DFN
    for offset, gfn in enumerate(scattered(_PAGES, _SOURCE_PAGE)):
        guest.tables.map(guest_dfn + offset << 12, gfn << 12)
    spans, dma = [(guest_dfn << 12, DMA_BYTES)], guest.walked.dma
    return [
        *cases,
        Case(f"DMA write, {GUESTS_4K}", _repeated(partial(dma.write, spans, data)), DMA_BYTES, "bytes"),
        Case(f"DMA read, {GUESTS_4K}", _repeated(partial(dma.read, spans)), DMA_BYTES, "bytes"),
    ]


def guest_walk_cases(guest: LocalGuest) -> list[Case]:
    """Translations of scattered pages, many asked for at once: an operation is one of them."""
    dfn = _FAR_DFN + 4096
    for offset, gfn in enumerate(scattered(_PAGES, _SOURCE_PAGE)):
        guest.map(dfn + offset, gfn, 1)
        guest.tables.map(dfn + offset << 12, gfn << 12)
    spans = [(dfn + offset << 12, 1 << 12) for offset in range(_PAGES)]

    def case(name: str, stream: int) -> Case:
        def translate() -> None:
            engine = guest.engine
            if engine.translate_spans(stream, spans, Access.READ) is not None:
                return
            found = [engine.translate(stream, *span, Access.READ) for span in spans]
            if any(isinstance(each, TranslationFault) for each in found):
                raise RunError(f"{name}: {found[0]}")

        once = _repeated(translate)
        return Case(name, lambda count: once(count // _PAGES), least_count=_PAGES)

    return [case(WALK_DEVICE, guest.endpoint.stream), case(WALK_GUEST, guest.walked.stream)]


def _repeated(call: Callable[[], object]) -> Work:
    def work(count: int) -> int:
        start = perf_counter_ns()
        for _ in range(count):
            call()
        return perf_counter_ns() - start

    return work


def _layouts() -> dict[str, list[tuple[int, int, int]]]:
    """The maps that each DMA uses, as (dfn, gfn, pages) with dfns from 0."""
    return {
        "4K pages": [(dfn, gfn, 1) for dfn, gfn in enumerate(scattered(_PAGES, _SOURCE_PAGE))],
        "2M page": [(0, 512, 512)],
        "contiguous": [(0, 2049, _PAGES)],
    }
