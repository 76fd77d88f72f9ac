"""Histories through tables that the guest owns: what maps and unmaps would do is stored in them, page by page."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Mapping
from itertools import count

from ..engine import Access, Engine, EngineConfig, GuestTables, Stop
from ..engine.formats import vtd_second_stage
from ..engine.walk import ENTRY_SIZE, ReadRefusal
from ..guest.tables import PageTables
from .difference import require
from .engine_path import EnginePath
from .operations import Alloc, Batch, Map, Operation, Plug, Unmap
from .oracle import BatchOutcome, Oracle, Verdict

__all__ = ["TablesPath"]

MEMORY = 1 << 28
"""Bytes that tables may lie in; what nobody has written to takes none."""
_DEPTH, _ADDRESS_BITS = 4, 52
_WALKS = 1 << 12
_READ_WRITE = Access.READ | Access.WRITE

MakeMemory = Callable[[memoryview], object]
"""Makes what a core that walks by itself reads such memory through."""


class _NoMemory(ReadRefusal):
    __slots__ = ()


class TablesPath(EnginePath):
    """The path to an engine of which each context has tables of the guest. The model says what a map or an unmap comes
    to, and the guest stores it; the engine is only told of contexts, endpoints and DMA.
    """

    name = "tables"

    def __init__(
        self,
        oracle: Oracle,
        make: Callable[[EngineConfig], Engine] = Engine,
        memory: MakeMemory = lambda _view: None,
    ) -> None:
        """``memory``: for a core that walks by itself."""
        self._view = memoryview(mmap.mmap(-1, MEMORY))
        self._words = self._view.cast("Q")
        self._frames = count()
        self._core_memory = memory(self._view)
        self._owned: dict[int, PageTables] = {}
        """by context, until its number is used again"""
        super().__init__(oracle, make)

    def run(self, op: Operation, verdict: Verdict) -> None:
        """Carry out ``op`` and compare the outcome."""
        outcome = verdict.outcome
        match op:
            case _ if verdict.refused:
                return
            case Alloc():
                self._alloc(op, outcome)
            case Map():
                self._store(op.ctx, {op.dfn + place: (op.gfn + place, op.access) for place in range(outcome[0])})
                self._is_refused(op, self.engine.map(op.ctx, 0, 0, 1, _READ_WRITE).stop)
            case Unmap():
                self._store(op.ctx, dict.fromkeys(range(op.dfn, op.dfn + outcome[0])))
                self._is_refused(op, self.engine.unmap(op.ctx, 0, 1).stop)
            case _:
                super().run(op, verdict)
        if isinstance(op, Plug):  # clones follow
            for ctx in self._oracle.model.pages:
                self._settle(ctx)

    def _alloc(self, op: Alloc, outcome: tuple[int, str | None, int | None]) -> None:
        ctx, stop, _ = outcome
        if stop is not None:  # of contexts, as here, or of the pool, which these do not need
            return
        owned = self._owned[ctx] = PageTables(self._view, self._frames)
        frames = 1 << self._oracle.setting.aperture_bits - 12
        tables = vtd_second_stage(_DEPTH, owned.root, _ADDRESS_BITS)
        found = self.contexts.alloc_tables(GuestTables(tables, frames, self._read, memory=self._core_memory))
        require(self.name, f"result of {op}", (ctx, None), found)
        if op.clone:
            self._settle(ctx)

    def _read(self, address: int) -> int | ReadRefusal:
        return int(self._words[address // ENTRY_SIZE]) if address < MEMORY else _NoMemory()

    def _is_refused(self, op: Map | Unmap, stop: Stop | None) -> None:
        """The engine maps and unmaps nothing in such a context."""
        if op.ctx in self._oracle.model.pages:
            require(self.name, f"stop of {op}", Stop.GUEST_TABLES, stop)

    def _store(self, ctx: int, pages: Mapping[int, tuple[int, int] | None]) -> None:
        """Store (gfn, access bits) of each page, or that there is none."""
        owned = self._owned.get(ctx)
        if owned is None:
            return
        for dfn, page in pages.items():
            if page is None:
                owned.unmap(dfn << 12)
            else:
                owned.map(dfn << 12, page[0] << 12, page[1])

    def _settle(self, ctx: int) -> None:
        """Let the tables of a context be what the model has."""
        pages, found = self._oracle.model.pages[ctx], self._scanned(ctx)
        gone = dict.fromkeys(found.keys() - pages.keys())
        self._store(ctx, {**gone, **{dfn: page for dfn, page in pages.items() if found.get(dfn) != page}})

    def _scanned(self, ctx: int) -> dict[int, tuple[int, int]]:
        """What the engine finds in the tables of a context."""
        tables, found = self.engine.guest_tables(ctx), dict[int, tuple[int, int]]()
        position: int | None = 0
        while tables is not None and position is not None:
            areas, position = tables.scan(position, _WALKS)
            for area in areas:
                found |= {area.dfn + place: (area.gfn + place, int(area.access)) for place in range(area.nr)}
        return found

    def _batch(self, op: Batch, outcome: BatchOutcome) -> None:
        for (bfn, mfn, access), (done, _, _) in zip(op.elements, outcome.answers, strict=False):
            if done:
                self._store(op.ctx, {bfn: None if op.unmap else (mfn, access & 3)})

    def compare_touched(self, ctx: int, dfns: Iterable[int]) -> None:
        """Compare single pages, and where the endpoints are."""
        model = self._oracle.model
        pages = model.pages.get(ctx)
        for dfn in dfns:
            found = None if pages is None else self.engine.lookup(ctx, dfn)
            if pages is not None and pages.get(dfn) != found:  # Access compares equal to a number
                require(self.name, f"context {ctx} dfn {dfn:#x}", pages.get(dfn), found)
        require(self.name, "contexts of the endpoints", model.attached, self.contexts.endpoints())
        usage = self.engine.usage()
        require(self.name, "pool pages and pages mapped", (0, 0), (usage.pool_pages_used, usage.mapped_pages))

    def compare_all(self) -> None:
        """Compare every page of every context, and which there are."""
        model = self._oracle.model
        require(self.name, "contexts", tuple(sorted(model.pages)), self.engine.domains())
        for ctx, pages in model.pages.items():
            require(self.name, f"pages of context {ctx}", pages, self._scanned(ctx))
        self.compare_touched(0, ())
