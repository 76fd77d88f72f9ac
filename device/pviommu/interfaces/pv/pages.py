"""Mapping and unmapping for the profiles: any number of pages, in pieces that leave the loop time for others."""

from __future__ import annotations

from collections.abc import Callable

from ...counters import Counters
from ...engine import Access, Engine, Outcome
from .profile import BEGUN, Answer, Progress, Reply

__all__ = ["PIECE", "PageOperations"]

PIECE = 1 << 12
"""Pages after which an operation lets others have a turn: less than a millisecond, even if each page needs an entry of
its own."""
_TABLE = 1 << 9
_GIB = 1 << 18
"""How many pages 2 MiB and 1 GiB have. Pieces end at multiples of these, so that they do not split large leaves by
themselves."""


def _piece(dfn: int, nr: int, grain: int) -> int:
    """Pages of the next piece of the ``nr`` from ``dfn`` on."""
    end = -(-(dfn + PIECE) // grain) * grain
    return min(nr, end - dfn)


class PageOperations:
    """Maps and unmaps; ``reply`` turns the engine's outcome, summed over all pieces, into a profile's reply."""

    def __init__(self, engine: Engine, counters: Counters) -> None:
        self._engine = engine
        self._counters = counters

    def map(self, ctx: int, dfn: int, gfn: int, nr: int, access: Access, reply: Callable[[Outcome], Reply]) -> Answer:
        """Map ``nr`` pages from ``gfn`` at ``dfn``. A range outside the aperture is refused before anything changes."""
        if PIECE < nr <= self._engine.config.aperture_frames - dfn:
            return BEGUN
        outcome = self._engine.map(ctx, dfn, gfn, nr, access)
        self._counters.pages_mapped += outcome.done
        return reply(outcome)

    def go_on_mapping(
        self, ctx: int, dfn: int, gfn: int, nr: int, access: Access, done: int, reply: Callable[[Outcome], Reply]
    ) -> Answer:
        """The next piece of a long map of which ``done`` pages are done."""
        grain = _TABLE if (dfn ^ gfn) % _GIB else _GIB
        count = _piece(dfn + done, nr - done, grain)
        outcome = self._engine.map(ctx, dfn + done, gfn + done, count, access, continues=done > 0)
        self._counters.pages_mapped += outcome.done
        return _answer(outcome, done, nr, reply)

    def unmap(self, ctx: int, dfn: int, nr: int, reply: Callable[[Outcome], Reply]) -> Answer:
        """Unmap ``nr`` pages from ``dfn`` on, until one that is not mapped."""
        if PIECE < nr <= self._engine.config.aperture_frames - dfn:
            return BEGUN
        outcome = self._engine.unmap(ctx, dfn, nr)
        self._counters.pages_unmapped += outcome.done
        return reply(outcome)

    def go_on_unmapping(self, ctx: int, dfn: int, nr: int, done: int, reply: Callable[[Outcome], Reply]) -> Answer:
        """The next piece of a long unmap of which ``done`` pages are done."""
        outcome = self._engine.unmap(ctx, dfn + done, _piece(dfn + done, nr - done, _TABLE))
        self._counters.pages_unmapped += outcome.done
        return _answer(outcome, done, nr, reply)


def _answer(piece: Outcome, before: int, nr: int, reply: Callable[[Outcome], Reply]) -> Answer:
    """The answer of an operation on ``nr`` pages, ``before`` of which were done before this piece."""
    done = before + piece.done
    if piece.stop or done >= nr:
        return reply(Outcome(done, piece.stop, piece.at))
    return Progress(done)
