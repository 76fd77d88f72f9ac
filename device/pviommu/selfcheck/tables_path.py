"""Histories through tables that the guest owns: what maps and unmaps would do is stored in them, page by page."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable

from ..engine import Access, Engine, EngineConfig, GuestTables, Stop
from ..engine.formats import vtd_second_stage
from ..engine.walk import ENTRY_SIZE, ReadRefusal
from .difference import require
from .engine_path import EnginePath, compare_pages, compare_tables
from .operations import Alloc, Batch, Map, Operation, Posted, Unmap
from .oracle import BatchOutcome, Oracle, Verdict
from .own_tables import OwnTables

__all__ = ["TablesPath"]

MEMORY = 1 << 27
"""Bytes that tables may lie in; what nobody has written to takes none."""
_DEPTH, _ADDRESS_BITS = 4, 52
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
        view = memoryview(mmap.mmap(-1, MEMORY))
        self._words = view.cast("Q")
        self._core_memory = memory(view)
        self._own = OwnTables(oracle.model, view, range(MEMORY >> 12))
        super().__init__(oracle, make)

    def run(self, op: Operation, verdict: Verdict) -> None:
        """Carry out ``op`` and compare the outcome."""
        parts = [(op, verdict)]
        if isinstance(op, Posted):
            parts = list(zip((*op.operations, op.then), verdict.outcome, strict=True))
        for part in parts:
            each, its_verdict = self._own.can_be(*part)
            self._own.store(each, its_verdict)
            self._run(each, its_verdict)
        self._own.forget_others()

    def _run(self, op: Operation, verdict: Verdict) -> None:
        match op:
            case _ if verdict.refused:
                return
            case Alloc():
                self._alloc(op, verdict.outcome)
            case Map():
                self._is_refused(op, self.engine.map(op.ctx, 0, 0, 1, _READ_WRITE).stop)
            case Unmap():
                self._is_refused(op, self.engine.unmap(op.ctx, 0, 1).stop)
            case _:
                super().run(op, verdict)

    def _alloc(self, op: Alloc, outcome: tuple[int, str | None, int | None]) -> None:
        ctx, stop, _ = outcome
        if stop is not None:
            return
        frames = 1 << self._oracle.setting.aperture_bits - 12
        tables = vtd_second_stage(_DEPTH, self._own[ctx].root, _ADDRESS_BITS)
        found = self.contexts.alloc_tables(GuestTables(tables, frames, self._read, memory=self._core_memory))
        require(self.name, f"result of {op}", (ctx, None), found)

    def _read(self, address: int) -> int | ReadRefusal:
        return int(self._words[address // ENTRY_SIZE]) if address < MEMORY else _NoMemory()

    def _is_refused(self, op: Map | Unmap, stop: Stop | None) -> None:
        """The engine maps and unmaps nothing in such a context."""
        if op.ctx in self._oracle.model.pages:
            require(self.name, f"stop of {op}", Stop.GUEST_TABLES, stop)

    def _batch(self, op: Batch, outcome: BatchOutcome) -> None:
        """There is none at this level."""

    def compare_touched(self, ctx: int, dfns: Iterable[int]) -> None:
        """Compare single pages, and where the endpoints are."""
        compare_pages(self.name, self.contexts, self._oracle, ctx, dfns, self._own.usage())

    def compare_all(self) -> None:
        """Compare every page of every context, and which there are."""
        compare_tables(self.name, self.contexts, self._oracle, self._own.usage())
