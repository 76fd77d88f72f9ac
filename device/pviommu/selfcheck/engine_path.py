"""Histories through the engine and its contexts alone, by their own calls and result types."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from ..engine import Access, Area, Engine, EngineConfig, Outcome, Stop, TranslationFault, TranslationPending
from ..engine.guest_tables import TablesDomain
from ..interfaces.pv.contexts import Contexts, ContextStop, DefaultPolicy
from .difference import require
from .operations import (
    Alloc,
    Attach,
    Batch,
    Bind,
    Block,
    Dma,
    Free,
    Lookup,
    Map,
    Operation,
    Plug,
    Posted,
    Reset,
    Revive,
    Unbind,
    Unmap,
)
from .oracle import BatchOutcome, DmaOutcome, Oracle, Verdict
from .settings import LARGE_MODULE, RAM, STREAMS

__all__ = ["EnginePath", "areas_of", "compare_pages", "compare_tables", "engine_config"]

_ACCESS = tuple(Access(bits) for bits in range(4))
_READ, _WRITE = _ACCESS[1], _ACCESS[2]
_WALKS = 1 << 12
"""How many are made for a part of what a table maps."""


def engine_config(oracle: Oracle) -> EngineConfig:
    """The limits of the oracle's setting."""
    setting = oracle.setting
    return EngineConfig(
        pool_pages=setting.pool_pages,
        aperture_bits=setting.aperture_bits,
        iotlb_entries=16,
    )


class EnginePath:
    """The path to an engine of its own."""

    name = "engine"

    def __init__(
        self,
        oracle: Oracle,
        make: Callable[[EngineConfig], Engine] = Engine,
        contexts: Callable[[Engine, int, DefaultPolicy], Contexts] = Contexts,
    ) -> None:
        """``make`` builds the engine and ``contexts`` its contexts; tests give some that are wrong on purpose."""
        self._oracle = oracle
        self._make, self._make_contexts = make, contexts
        self.build()
        self._plug(Plug(False))
        self._bound: dict[int, int] = {}
        self._calls: dict[type, Callable[[Any], Any]] = {
            Alloc: lambda op: self.contexts.alloc(op.clone),
            Free: lambda op: self.contexts.free(op.ctx, op.reattach),
            Attach: lambda op: self.contexts.attach(self._bound.get(op.devfn, 99), op.ctx),
            Map: lambda op: self.engine.map(op.ctx, op.dfn, op.gfn, op.nr, _ACCESS[op.access]),
            Unmap: lambda op: self.engine.unmap(op.ctx, op.dfn, op.nr),
        }

    def build(self) -> None:
        """A new engine, with its endpoints and contexts."""
        setting = self._oracle.setting
        self.engine = self._make(engine_config(self._oracle))
        policy = DefaultPolicy.IDENTITY if setting.identity else DefaultPolicy.BLOCKED
        self.contexts = self._make_contexts(self.engine, setting.max_contexts, policy)
        for stream in STREAMS:
            self.contexts.add_endpoint(stream)

    def run(self, op: Operation, verdict: Verdict) -> None:
        """Carry out ``op`` and compare the outcome."""
        if verdict.refused:
            return
        outcome = verdict.outcome
        call = self._calls.get(type(op))
        if call is not None:
            require(self.name, f"result of {op}", outcome, _answer(call(op)))
            return
        match op:
            case Dma():
                self._dma(op, outcome)
            case Lookup():
                found = self.engine.lookup(op.ctx, op.dfn) if op.ctx in self._oracle.model.pages else None
                expected = None if isinstance(outcome, str) or not op.ctx else outcome
                require(self.name, f"result of {op}", expected, found and (found[0], int(found[1])))
            case Batch():
                self._batch(op, outcome)
            case Posted():
                for each, expected in zip((*op.operations, op.then), outcome, strict=True):
                    self.run(each, expected)
            case _:
                self._other(op, outcome)

    def _other(self, op: Operation, outcome: Any) -> None:
        match op:
            case Bind() if outcome[1] is None:
                self._bound[op.devfn] = op.stream
            case Unbind() if outcome[1] is None:
                self.contexts.hold(self._bound.pop(op.devfn))
            case Block() if outcome[1] is None:
                self.contexts.hold(self._bound[op.devfn])
            case Revive():
                self.contexts.unblock(op.stream)
            case Reset():
                self.contexts.reset()
                self._bound.clear()
            case Plug():
                self._plug(op)

    def _plug(self, op: Plug) -> None:
        parts = [*RAM, LARGE_MODULE] if op.present else RAM
        self.engine.set_ram([(part.start, part.stop - 1) for part in parts])

    def _batch(self, op: Batch, outcome: BatchOutcome) -> None:
        with self.engine.deferred_invalidation():
            for (bfn, mfn, access), expected in zip(op.elements, outcome.answers, strict=False):
                if op.unmap:
                    found = self.engine.unmap(op.ctx, bfn, 1)
                elif access & ~3:
                    continue
                else:
                    found = self.engine.map(op.ctx, bfn, mfn, 1, _ACCESS[access])
                require(self.name, f"element {bfn:#x} of {op}", expected, _answer(found))

    def _dma(self, op: Dma, outcome: DmaOutcome) -> None:
        found = self.engine.translate(op.stream, op.iova, op.length, _WRITE if op.write else _READ)
        expected = outcome.translation
        if isinstance(found, TranslationFault):
            require(self.name, f"refusal of {op}", expected, (found.iova, found.refusal.name))
            require(self.name, f"context of {op}", outcome.ctx, self.contexts.of(found.stream))
        elif not isinstance(found, TranslationPending):
            merged = _merged(expected) if isinstance(expected, list) else expected
            require(self.name, f"translation of {op}", merged, [tuple(run) for run in found])

    def compare_touched(self, ctx: int, dfns: Iterable[int]) -> None:
        """Compare single pages, and what is in use."""
        compare_pages(self.name, self.contexts, self._oracle, ctx, dfns)

    def compare_all(self) -> None:
        """Compare every page of every context."""
        compare_tables(self.name, self.contexts, self._oracle)

    def close(self) -> None:
        """Nothing to give back."""


class SeenEngine(Protocol):
    """The part of an :class:`Engine` that is compared."""

    def lookup(self, domain: int, dfn: int, /) -> tuple[int, int] | None: ...
    def usage(self) -> tuple[int, ...]: ...
    def is_blocked(self, stream: int, /) -> bool: ...
    def domains(self) -> tuple[int, ...]: ...
    def areas(self, domain: int, /) -> Iterable[Area]: ...
    def guest_tables(self, domain: int, /) -> TablesDomain | None: ...


class SeenContexts(Protocol):
    """The part of :class:`Contexts` that is compared."""

    @property
    def engine(self) -> SeenEngine: ...
    def endpoints(self) -> dict[int, int]: ...


def compare_pages(
    name: str,
    contexts: SeenContexts,
    oracle: Oracle,
    ctx: int,
    dfns: Iterable[int],
    in_use: tuple[int, ...] | None = None,
) -> None:
    """Compare these pages of a context, what is in use, and where the endpoints are. ``in_use``: if it is not what the
    model has.
    """
    model, engine = oracle.model, contexts.engine
    pages = model.pages.get(ctx)
    if pages is not None:
        for dfn in dfns:
            found = engine.lookup(ctx, dfn)
            if pages.get(dfn) != found:  # Access compares equal to a number
                require(name, f"context {ctx} dfn {dfn:#x}", pages.get(dfn), found)
    usage, in_use = tuple(engine.usage()), in_use or model.usage()
    if usage != in_use:
        require(name, "contexts, pool pages used, pool pages, pages mapped", in_use, usage)
    if contexts.endpoints() != model.attached:
        require(name, "contexts of the endpoints", model.attached, contexts.endpoints())
    blocked = {stream for stream in model.attached if engine.is_blocked(stream)}
    if blocked != model.blocked:
        require(name, "blocked endpoints", model.blocked, blocked)


def compare_tables(name: str, contexts: SeenContexts, oracle: Oracle, in_use: tuple[int, ...] | None = None) -> None:
    """Compare every page of every context, and which there are. ``in_use``: see :func:`compare_pages`."""
    model, engine = oracle.model, contexts.engine
    require(name, "contexts", tuple(sorted(model.pages)), engine.domains())
    for ctx, pages in model.pages.items():
        found: dict[int, tuple[int, int]] = {}
        for run in areas_of(engine, ctx):
            access = int(run.access)
            found.update((run.dfn + place, (run.gfn + place, access)) for place in range(run.nr))
        if found != pages:
            wrong = min(dfn for dfn in found.keys() | pages.keys() if found.get(dfn) != pages.get(dfn))
            require(name, f"context {ctx} dfn {wrong:#x}", pages.get(wrong), found.get(wrong))
    compare_pages(name, contexts, oracle, 0, (), in_use)


def areas_of(engine: SeenEngine, context: int) -> Iterator[Area]:
    """What a context maps, whoever owns its tables."""
    tables = engine.guest_tables(context)
    if tables is None:
        yield from engine.areas(context)
        return
    following: int | None = 0
    while following is not None:
        areas, following = tables.scan(following, _WALKS)
        yield from areas


def _answer(result: Any) -> tuple[int, str | None, int | None]:
    if isinstance(result, Outcome):
        return result.done, result.stop.name if result.stop else None, result.at
    if result is None or isinstance(result, Stop | ContextStop):
        return 0, result.name if result else None, None
    return result.context or 0, result.stop.name if result.stop else None, None


def _merged(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged = [pieces[0]]
    for (before, size), (gpa, length) in itertools.pairwise(pieces):
        if before + size == gpa:
            merged[-1] = (merged[-1][0], merged[-1][1] + length)
        else:
            merged.append((gpa, length))
    return merged
