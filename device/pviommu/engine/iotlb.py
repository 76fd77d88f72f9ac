"""The IOTLB: translations that were found before, by context and 2 MiB block.

A block holds runs by the DFN they begin at; no run leaves its block, so invalidating a range means dropping the
blocks that it touches. Refusals are not cached, hence mapping a page needs no invalidation.
"""

BLOCK_SHIFT = 9
BLOCK_PAGES = 1 << BLOCK_SHIFT

CachedRun = tuple[int, int, int]
"""gfn, pages, access bits."""


class Iotlb:
    """A bounded cache; when it is full the block that was filled first goes."""

    __slots__ = ("_blocks", "_capacity", "_entries")

    def __init__(self, capacity: int) -> None:
        """`capacity`: runs held at most."""
        self._capacity = capacity
        self._entries = 0
        self._blocks: dict[tuple[int, int], dict[int, CachedRun]] = {}

    def __len__(self) -> int:
        return self._entries

    def get(self, ctx: int, dfn: int) -> CachedRun | None:
        block = self._blocks.get((ctx, dfn >> BLOCK_SHIFT))
        return None if block is None else block.get(dfn)

    def put(self, ctx: int, dfn: int, run: CachedRun) -> None:
        """Remember the run at `dfn`. Raises ValueError for a run that leaves its block: it would outlive an unmap."""
        if (dfn & BLOCK_PAGES - 1) + run[1] > BLOCK_PAGES:
            raise ValueError(f"cache ctx {ctx} dfn {dfn:#x}+{run[1]}: a run must stay inside its 2 MiB block")
        key = (ctx, dfn >> BLOCK_SHIFT)
        if dfn not in self._blocks.get(key, ()):
            if self._entries >= self._capacity:
                self._drop(next(iter(self._blocks)))
            self._entries += 1
        self._blocks.setdefault(key, {})[dfn] = run

    def invalidate(self, ctx: int, dfn: int, nr: int) -> None:
        """Forget every translation of pages dfn..dfn+nr-1 of a context."""
        if nr < 1:
            return
        first, last = dfn >> BLOCK_SHIFT, dfn + nr - 1 >> BLOCK_SHIFT
        if last - first < len(self._blocks):
            for block in range(first, last + 1):
                self._drop((ctx, block))
        else:
            for key in [key for key in self._blocks if key[0] == ctx and first <= key[1] <= last]:
                self._drop(key)

    def invalidate_context(self, ctx: int) -> None:
        for key in [key for key in self._blocks if key[0] == ctx]:
            self._drop(key)

    def clear(self) -> None:
        self._blocks.clear()
        self._entries = 0

    def _drop(self, key: tuple[int, int]) -> None:
        self._entries -= len(self._blocks.pop(key, ()))
