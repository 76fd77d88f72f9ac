"""Tells a history what an engine does, by whatever interface it was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ..engine import Access, Engine, GuestTables, Outcome, Stop, UnmapMode
from ..engine.ranges import FrameRanges
from .records import NOBODY, STOPS, History, Kind, entry_of

__all__ = ["Recorder"]

_STOP = {stop: place for place, stop in enumerate(STOPS)}


class Recorder:
    """Stands between an engine and those who call it, once :meth:`attach_to` was called."""

    def __init__(self, history: History, now_ns: Callable[[], int], ring: Callable[[], int]) -> None:
        """``ring``: number of the ring whose slot is being carried out, or :data:`NOBODY`."""
        self._history = history
        self._now_ns = now_ns
        self._ring = ring
        self._uncompleted: dict[int, list[int]] = {}
        """by ring: records of slots that are not completed yet"""
        self._is_quiet = False

    def attach_to(self, engine: Engine) -> None:
        """Record what ``engine`` is asked to change from now on."""
        self._engine = engine
        for name, told in (
            *(("map", self._map), ("unmap", self._unmap), ("alloc_paging", self._alloc), ("free_domain", self._free)),
            *(
                ("alloc_tables", self._alloc_tables),
                ("attach", self._attach),
                ("block", self._block),
                ("unblock", self._unblock),
                ("reset", self._reset),
            ),
            ("change_ram", self._change_ram),
        ):
            setattr(engine, name, partial(told, getattr(engine, name)))

    def completed(self, ring: int, index: int, sequence: int, result: int) -> None:
        """The slot of ``ring`` that was being carried out is this one, and is answered."""
        for number in self._uncompleted.pop(ring, ()):
            self._history.complete(number, index, sequence, result)

    def dropped(self, ring: int) -> None:
        """That slot will never be answered."""
        self._uncompleted.pop(ring, None)

    def _add(self, kind: Kind, domain: int, stop: Stop | None = None, **fields: int) -> None:
        if self._is_quiet:
            return
        ring = self._ring()
        number = self._history.add(self._now_ns(), kind, domain, stop=_STOP[stop], ring=ring, **fields)
        if ring != NOBODY:
            self._uncompleted.setdefault(ring, []).append(number)

    def _entry(self, domain: int, dfn: int) -> int:
        found = self._engine.lookup(domain, dfn)
        return entry_of(None if found is None else (found[0], int(found[1])))

    def _map(
        self, call: Callable[..., Outcome], domain: int, dfn: int, gfn: int, nr: int, access: Access, **named: Any
    ) -> Outcome:
        outcome = call(domain, dfn, gfn, nr, access, **named)
        bits = int(access)
        before = 0 if outcome.done else self._entry(domain, dfn)
        after = entry_of((gfn, bits)) if outcome.done else before
        pages = {"dfn": dfn, "gfn": gfn, "nr": nr, "done": outcome.done, "access": bits}
        self._add(Kind.MAP, domain, outcome.stop, before=before, after=after, **pages)
        return outcome

    def _unmap(
        self,
        call: Callable[..., Outcome],
        domain: int,
        dfn: int,
        nr: int,
        mode: UnmapMode = UnmapMode.UNTIL_HOLE,
    ) -> Outcome:
        before = self._entry(domain, dfn)
        outcome = call(domain, dfn, nr, mode)
        gone, after = outcome.done, 0 if outcome.done else before
        if mode is not UnmapMode.UNTIL_HOLE:  # passes over holes: what was asked for is gone, up to where it stopped
            gone, after = nr if outcome.at is None else outcome.at - dfn, self._entry(domain, dfn)
        self._add(Kind.UNMAP, domain, outcome.stop, dfn=dfn, nr=nr, done=gone, before=before, after=after)
        return outcome

    def _alloc(self, call: Callable[..., Stop | None], number: int, *, clone: bool = False) -> Stop | None:
        stop = call(number, clone=clone)
        self._add(Kind.ALLOC, number, stop, after=int(clone), done=int(stop is None))
        return stop

    def _alloc_tables(self, call: Callable[..., None], number: int, guest: GuestTables) -> None:
        call(number, guest)
        self._add(Kind.ALLOC, number, after=guest.tables.root, done=1)

    def _free(self, call: Callable[[int], Stop | None], number: int) -> Stop | None:
        before = self._engine.mapped_pages(number)
        stop = call(number)
        self._add(Kind.FREE, number, stop, before=before, done=int(stop is None))
        return stop

    def _attach(
        self, call: Callable[..., Stop | None], stream: int, domain: int, pasid: int | None = None
    ) -> Stop | None:
        before = self._engine.endpoints().get(stream, domain)
        stop = call(stream, domain, pasid)
        if pasid is None:
            done = int(stop is None)
            self._add(Kind.ATTACH, domain, stop, stream=stream, before=before, after=domain, done=done)
        return stop

    def _block(self, call: Callable[[int], Stop | None], stream: int) -> Stop | None:
        return self._change_block(call, stream, Kind.BLOCK)

    def _unblock(self, call: Callable[[int], Stop | None], stream: int) -> Stop | None:
        return self._change_block(call, stream, Kind.UNBLOCK)

    def _change_block(self, call: Callable[[int], Stop | None], stream: int, kind: Kind) -> Stop | None:
        before = self._engine.is_blocked(stream)
        stop = call(stream)
        after = self._engine.is_blocked(stream)
        if before != after:
            domain = self._engine.endpoints()[stream]
            self._add(kind, domain, stop, stream=stream, before=before, after=after, done=1)
        return stop

    def _reset(self, call: Callable[[], None]) -> None:
        self._is_quiet = True  # what a reset consists of says nothing more
        try:
            call()
        finally:
            self._is_quiet = False
        self._uncompleted.clear()
        self._add(Kind.RESET, 0, done=1)

    def _change_ram(self, call: Callable[..., None], ram: FrameRanges, spans: Iterable[tuple[int, int]]) -> None:
        spans = list(spans)
        call(ram, spans)
        if spans:
            first, end = min(first for first, _ in spans), max(first + nr for first, nr in spans)
            self._add(Kind.RAM, 0, gfn=first, nr=end - first, done=sum(nr for _, nr in spans))
