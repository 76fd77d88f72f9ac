"""Tables of all contexts that a guest owns: what the model says of an operation is stored in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..guest.tables import PageTables
from .model import Model
from .operations import Alloc, Batch, Map, Operation, Plug, Posted, SlotOperation, Unmap, Usage
from .oracle import Verdict

__all__ = ["OwnTables"]

_PAGE = 4096
_SHIFTS = (30, 21, 12)
_STALE = (0x40 << 12 | 3).to_bytes(8, "little") * (_PAGE // 8)
"""What a table is filled with once its context is gone: whoever still walks it arrives somewhere wrong."""

_Page = tuple[int, int] | None
"""gfn and access bits, or none"""


class OwnTables:
    """The tables of the contexts that the model has."""

    def __init__(self, model: Model, memory: memoryview, frames: range) -> None:
        """``frames``: those of ``memory``, for tables."""
        self._model = model
        self._memory = memory
        self._base = frames.start << 12
        self._fresh = iter(frames)
        self._free: list[int] = []
        self._taken: dict[int, list[int]] = {}
        self._tables: dict[int, PageTables] = {}

    def __getitem__(self, ctx: int) -> PageTables:
        """The tables of a context."""
        return self._tables[ctx]

    def usage(self) -> tuple[int, int, int, int]:
        """Contexts, pool pages used, all of them, pages that the device has mapped: the pool has nothing of these."""
        contexts, _, pool, _ = self._model.usage()
        return contexts, 0, pool, 0

    def close(self) -> None:
        """Let go of the memory."""
        for tables in self._tables.values():
            tables.close()
        self._memory.release()

    def can_be(self, op: Operation, verdict: Verdict) -> tuple[Operation, Verdict]:
        """An operation as far as such a guest has it: no pool is ever too small for a context."""
        if isinstance(op, Alloc) and not verdict.refused and verdict.outcome[1] == "POOL_EXHAUSTED":
            return Usage(), Verdict(0, (0, None, None))
        if isinstance(op, Posted):
            *before, last = verdict.outcome
            then, last = self.can_be(op.then, last)
            assert isinstance(then, SlotOperation | type(op.then))
            return op._replace(then=then), verdict._replace(outcome=[*before, last])
        return op, verdict

    def store(self, op: Operation, verdict: Verdict) -> None:
        """Store what ``op`` changes, and make the tables of a context that it allocates."""
        if verdict.refused:
            return
        self._store(op, verdict.outcome)
        if isinstance(op, Plug):  # clones follow
            for ctx in self._model.pages:
                self._settle(ctx)

    def _store(self, op: Operation, outcome: Any) -> None:
        match op:
            case Posted():
                for each, verdict in zip((*op.operations, op.then), outcome, strict=True):
                    self.store(each, verdict)
            case Alloc() if outcome[0]:
                ctx = outcome[0]
                self._forget(ctx)
                self._tables[ctx] = PageTables(self._memory, self._frames(ctx), base=self._base)
                if op.clone:
                    self._settle(ctx)
            case Map():
                self._put(op.ctx, {op.dfn + place: (op.gfn + place, op.access) for place in range(outcome[0])})
            case Unmap():
                self._put(op.ctx, dict.fromkeys(range(op.dfn, op.dfn + outcome[0])))
            case Batch():
                for (bfn, mfn, access), (done, _, _) in zip(op.elements, outcome.answers, strict=False):
                    self._put(op.ctx, {bfn: None if op.unmap else (mfn, access & 3)} if done else {})

    def forget_others(self) -> None:
        """The tables of contexts that are gone are memory like any other: what they were comes again soon."""
        for ctx in [ctx for ctx in self._tables if ctx not in self._model.pages]:
            self._forget(ctx)

    def _forget(self, ctx: int) -> None:
        if tables := self._tables.pop(ctx, None):
            tables.close()
        for frame in (frames := self._taken.pop(ctx, [])):
            at = (frame << 12) - self._base
            self._memory[at : at + _PAGE] = _STALE
        self._free += frames

    def _frames(self, ctx: int) -> Iterator[int]:
        taken = self._taken.setdefault(ctx, [])
        while True:
            taken.append(self._free.pop() if self._free else next(self._fresh))
            yield taken[-1]

    def _settle(self, ctx: int) -> None:
        """Let the tables of a context be what the model has."""
        pages, found = self._model.pages[ctx], self.pages(ctx)
        gone = dict.fromkeys(found.keys() - pages.keys())
        self._put(ctx, {**gone, **{dfn: page for dfn, page in pages.items() if found.get(dfn) != page}})

    def pages(self, ctx: int) -> dict[int, tuple[int, int]]:
        """What the tables of a context map, page by page."""
        found: dict[int, tuple[int, int]] = {}
        for iova, entry, shift in self._tables[ctx].leaves():
            first, access = (entry & (1 << 52) - (1 << 12)) >> 12, entry & 3
            found |= {(iova >> 12) + place: (first + place, access) for place in range(1 << shift - 12)}
        return found

    def _put(self, ctx: int, pages: Mapping[int, _Page]) -> None:
        """Store pages, or that there are none, by the largest leaves that runs of them allow."""
        items = sorted(pages.items())
        place = 0
        while place < len(items):
            dfn, page = items[place]
            shift = next(shift for shift in _SHIFTS if _is_run(items, place, 1 << shift - 12))
            tables, iova = self._tables[ctx], dfn << 12
            if page is not None:  # all of it is free, so a table that is in the way is empty
                tables.map(iova, page[0] << 12, page[1], shift)
            elif leaf := tables.leaf(iova):
                shift = min(shift, leaf[1])
                tables.unmap(iova, shift)
            else:
                shift = 12
            place += 1 << shift - 12


def _is_run(items: list[tuple[int, _Page]], place: int, nr: int) -> bool:
    """Whether the ``nr`` pages from a place on are those of one leaf."""
    dfn, page = items[place]
    if dfn % nr or place + nr > len(items) or (page and page[0] % nr):
        return False
    return all(items[place + each] == (dfn + each, page and (page[0] + each, page[1])) for each in range(nr))
