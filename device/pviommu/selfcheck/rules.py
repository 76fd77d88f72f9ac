"""What is tried: the rules by which the numbers of each kind of operation are chosen, so that something happens.

The only randomness is the :class:`random.Random` that the rules are given.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from random import Random

from .model import Model
from .operations import (
    Alloc,
    Attach,
    Batch,
    Bind,
    Block,
    Dma,
    Free,
    Lookup,
    Malformed,
    Map,
    Operation,
    Plug,
    Posted,
    Reset,
    Revive,
    SlotOperation,
    Unbind,
    Unmap,
    Usage,
)
from .settings import DEVFNS, LARGE_MODULE, STREAMS

__all__ = ["WEIGHTS", "Rules"]

WEIGHTS = {
    "map": 250,
    "unmap": 230,
    "dma": 220,
    "lookup": 60,
    "posted": 60,
    "batch": 30,
    "reuse": 12,
    "alloc": 40,
    "free": 25,
    "attach": 45,
    "bind": 40,
    "unbind": 3,
    "block": 3,
    "usage": 5,
    "malformed": 10,
    "revive": 5,
    "reset": 2,
    "clone": 1,
    "huge": 0.03,
}
"""How often each rule is used, relative to the others."""

_ANCHORS = (0, 0x1FF, 0x200, 0x3FF, 0x400, 0x5FF, 0x7FF, 0x800, 0xFFF, 0x3FE00, 0x40000, 0xFEDFE, 0xFEF00)
"""Frames where something changes: edges of tables, of RAM and of the reserved window."""
_LARGE_COUNTS = (255, 256, 257, 510, 512, 513, 700, 1024, 1500)
_REMEMBERED = 12
_BAD_CONTEXTS = (0, 0, 9, 0x8000, 0xFFFF)
_ALL = (1 << 64) - 1
_FAR = (1 << 52, (1 << 64) - 2, 1 << 63)


class Rules:
    """Draws operations for the state that ``model`` is in. A rule ``NAME`` is the method ``rule_NAME``."""

    def __init__(self, random: Random, model: Model, malformed: Sequence[Malformed]) -> None:
        self.random = random
        """may be replaced between two draws"""
        self._malformed = malformed
        self._model = model
        self._recent: list[tuple[int, int, int]] = [(1, 0x200, 4)]
        """context, dfn and count of the last maps"""
        self._rules: list[Callable[[], Sequence[Operation]]] = [getattr(self, f"rule_{name}") for name in WEIGHTS]
        self._sums = list(accumulate(WEIGHTS.values()))

    def draw(self) -> Sequence[Operation]:
        """The next operations: most rules give one, some a few that belong together."""
        if not self._model.pages and self._often(0.5):
            return self.rule_alloc()
        return self._rules[bisect_right(self._sums, self.random.random() * self._sums[-1])]()

    # -- numbers ----------------------------------------------------------------------------------------------------

    def _often(self, chance: float) -> bool:
        return self.random.random() < chance

    def _context(self) -> int:
        random, live = self.random, self._model.pages
        if live and random.random() < 0.93:
            return random.choice(list(live))
        return random.choice(_BAD_CONTEXTS)

    def _last(self) -> tuple[int, int, int]:
        """Context, dfn and count of one of the last maps; of another context if that one is gone."""
        ctx, dfn, nr = self.random.choice(self._recent)
        return (ctx if ctx in self._model.pages else self._context()), dfn, nr

    def _dfn(self) -> int:
        random = self.random
        anchor = self._model.limit if random.random() < 0.05 else random.choice(_ANCHORS)
        if random.random() < 0.005:
            return random.choice(_FAR)
        return max(0, anchor + random.randrange(-3, 4))

    def _gfn(self, dfn: int) -> int:
        random = self.random
        if random.random() < 0.3:
            return dfn if dfn < 1 << 63 else 0  # 1:1, so large leaves are possible
        anchor = random.choice((0, 0x200, 0x400, 0x5FE, 0x7FF, 0x800, 0xA00, 0xFFC))
        return anchor + random.randrange(0, 3) if random.random() < 0.95 else random.choice((0x1000, 0xFEE00, *_FAR))

    def _count(self) -> int:
        random = self.random
        if random.random() < 0.015:
            return random.choice(_LARGE_COUNTS)
        return random.randrange(0, 7) if random.random() < 0.99 else random.choice((0xFFFFFFFF, 1 << 31))

    def _devfn(self) -> int:
        return self.random.choice((*DEVFNS.values(), *DEVFNS.values(), *DEVFNS.values(), 0x40))

    # -- rules ------------------------------------------------------------------------------------------------------

    def rule_map(self) -> Sequence[Operation]:
        return (self._map(),)

    def _map(self) -> Map:
        random = self.random
        ctx, dfn, nr = self._context(), self._dfn(), self._count()
        if random.random() < 0.3:  # right behind the last map, or overlapping it
            ctx, before, count = self._last()
            dfn = max(0, before + min(count, 2000) + random.randrange(-1, 2))
        access = random.choice((3, 3, 3, 1, 2)) if random.random() < 0.97 else random.choice((0, 4, 7))
        if ctx in self._model.pages:
            self._recent = [*self._recent[1 - _REMEMBERED :], (ctx, dfn, nr)]
        return Map(ctx, dfn & _ALL, self._gfn(dfn) & _ALL, nr, access)

    def rule_unmap(self) -> Sequence[Operation]:
        return (self._unmap(),)

    def _unmap(self) -> Unmap:
        random = self.random
        if random.random() < 0.75:
            ctx, dfn, nr = self._last()
            if random.random() < 0.4:  # a part, or more than that
                dfn, nr = max(0, dfn + random.randrange(-1, 3)), max(0, nr + random.randrange(-3, 3))
            return Unmap(ctx, dfn & _ALL, nr & 0xFFFFFFFF)
        return Unmap(self._context(), self._dfn() & _ALL, self._count())

    def rule_lookup(self) -> Sequence[Operation]:
        ctx, dfn, nr = self._last()
        if self._often(0.3):
            ctx, dfn, nr = self._context(), self._dfn(), 0
        return (Lookup(ctx, dfn + nr // 2 & _ALL),)

    def rule_dma(self) -> Sequence[Operation]:
        return (self._dma(),)

    def _dma(self) -> Dma:
        random = self.random
        stream = random.choice(STREAMS)
        ctx = self._model.attached[stream]
        places = [recent[1] for recent in self._recent if recent[0] == ctx]
        dfn = random.choice(places) if places and random.random() < 0.8 else self._dfn()
        if ctx == 0 and random.random() < 0.6:
            dfn = self._gfn(dfn)
        length = random.randrange(1, 65) if random.random() < 0.8 else random.randrange(1, 13000)
        iova = (dfn << 12) + random.choice((0, 0, 4090, random.randrange(4096)))
        write = random.random() < 0.6
        pattern = random.getrandbits(64) | 1
        return Dma(stream, iova & _ALL, length, write, pattern)

    def rule_reuse(self) -> Sequence[Operation]:
        """DMA to a page, again after it was unmapped, and again after it was mapped to another frame."""
        random = self.random
        stream, ctx = random.choice(STREAMS), self._context()
        dfn = random.choice((0x40, 0x1FE, 0x200, 0x3FE, self._dfn() & _ALL))
        gfn, nr = random.choice((0x40, 0x200, 0x800)), random.choice((1, 2, 3, 512))
        before = Dma(stream, (dfn << 12) + 4000 & _ALL, random.choice((8, 200, 5000)), True, random.getrandbits(64) | 1)
        after = before._replace(pattern=random.getrandbits(64) | 1, write=self._often(0.5))
        return (
            Bind(DEVFNS[stream], stream),
            Attach(DEVFNS[stream], ctx),
            Map(ctx, dfn, gfn, nr),
            before,
            Unmap(ctx, dfn, random.choice((1, nr))),
            after,
            Map(ctx, dfn, gfn + 0x100, 1, random.choice((1, 3, 3))),
            after,
        )

    def rule_posted(self) -> Sequence[Operation]:
        random = self.random
        choice = random.random()
        if choice < 0.4:  # maps and the DMA that needs them
            maps = tuple(self._map() for _ in range(random.randrange(1, 4)))
            dma = self._dma()
            return (Posted(maps, dma._replace(iova=(maps[-1].dfn << 12) & _ALL) if choice < 0.3 else dma),)
        operations = tuple(self._map() if self._often(0.5) else self._unmap() for _ in range(random.randrange(1, 6)))
        then: SlotOperation = self._unmap()
        if choice > 0.7:
            then = random.choice((Alloc(), Free(self._context(), True), Attach(self._devfn(), self._context())))
            then = Block(self._devfn()) if self._often(0.1) else then
        return (Posted(operations, then),)

    def rule_batch(self) -> Sequence[Operation]:
        random = self.random
        unmap = random.random() < 0.5
        ctx, dfn, _ = self._last()
        elements = []
        for place in range(random.choice((0, 1, 2, 3, 5, 8))):
            frame = dfn + place if random.random() < 0.9 else self._dfn()
            elements.append((frame & _ALL, self._gfn(frame), 3 if self._often(0.9) else random.randrange(5)))
        return (Batch(ctx if random.random() < 0.8 else self._context(), unmap, tuple(elements)),)

    def rule_alloc(self) -> Sequence[Operation]:
        return (Alloc(),)

    def rule_clone(self) -> Sequence[Operation]:
        return (Alloc(clone=True),)

    def rule_free(self) -> Sequence[Operation]:
        return (Free(self._context(), self._often(0.5)),)

    def rule_attach(self) -> Sequence[Operation]:
        return (Attach(self._devfn(), self._context() if self._often(0.8) else 0),)

    def rule_bind(self) -> Sequence[Operation]:
        stream = self.random.choice(STREAMS)
        if self._often(0.8):
            return (Bind(DEVFNS[stream], stream),)
        return (Bind(self._devfn(), self.random.choice((*STREAMS, 3))),)

    def rule_unbind(self) -> Sequence[Operation]:
        return (Unbind(self._devfn()),)

    def rule_block(self) -> Sequence[Operation]:
        """A block alone, or followed by something that does not unblock, or that does, and by the DMA that shows it."""
        stream = self.random.choice(STREAMS)
        devfn = DEVFNS[stream]
        if self._often(0.4):
            return (Block(self._devfn()),)
        then = self.random.choice((Revive(stream), Reset(), Bind(devfn, stream), Attach(devfn, self._context())))
        dma = self._dma()._replace(stream=stream)
        return (Bind(devfn, stream), self.random.choice((Block(devfn), Unbind(devfn))), dma, then, dma)

    def rule_usage(self) -> Sequence[Operation]:
        return (Usage(),)

    def rule_revive(self) -> Sequence[Operation]:
        return (Revive(self.random.choice(STREAMS)),)

    def rule_reset(self) -> Sequence[Operation]:
        return (Reset(),)

    def rule_malformed(self) -> Sequence[Operation]:
        return (self.random.choice(self._malformed),)

    def rule_huge(self) -> Sequence[Operation]:
        """A gigabyte is plugged, mapped by the largest leaf, split, and unplugged while it is mapped."""
        model, first, nr = self._model, LARGE_MODULE.start, len(LARGE_MODULE)
        ctx = next((ctx for ctx in range(1, model.max_contexts + 1) if ctx not in model.pages), 1)
        return (
            Plug(True),
            Alloc(clone=self._often(0.5)),
            Map(ctx, first, first, nr, 3),
            Attach(DEVFNS[1], ctx),
            Dma(1, (first + 0x200 << 12) - 3, 9, True, 0x0123456789ABCDEF),
            Unmap(ctx, first + self.random.randrange(1, nr - 600), self.random.choice((1, 512, 513))),
            Plug(False),
            Dma(1, (first + 0x200 << 12) - 3, 9, False, 1),
            Unmap(ctx, first, nr),
            Free(ctx, True),
        )
