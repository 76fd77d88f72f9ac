"""The IOTLB: translations that were found before, by domain and 2 MiB block.

A block holds runs by the DFN they begin at; no run leaves its block, so invalidating a range means dropping the
blocks that it touches. Refusals are not cached, hence mapping a page needs no invalidation.
"""

from contextlib import AbstractContextManager

from .frames import FRAME_LIMIT
from .state import IotlbState

BLOCK_SHIFT = 9
BLOCK_PAGES = 1 << BLOCK_SHIFT
PENDING_LIMIT = 1024
"""Deferred ranges kept apart; more of them become one invalidation of everything."""

CachedRun = tuple[int, int, int]
"""gfn, pages, access bits."""

Deferred = tuple[int | None, int, int]
"""Domain (None: all), first and last dfn."""

EVERYTHING: Deferred = (None, 0, FRAME_LIMIT - 1)


class Iotlb:
    """A bounded cache; when it is full the block that was filled first goes."""

    __slots__ = ("__dict__", "_blocks", "_capacity", "_deferrals", "_entries", "_pending", "flushes")

    def __init__(self, capacity: int) -> None:
        """`capacity`: runs held at most."""
        self._capacity = capacity
        self._entries = 0
        self._blocks: dict[tuple[int, int], dict[int, CachedRun]] = {}
        self._deferrals = 0
        self._pending: list[Deferred] = []
        self.flushes = 0
        """Invalidations carried out; those deferred together count once."""

    def __len__(self) -> int:
        return self._entries

    def get(self, domain: int, dfn: int) -> CachedRun | None:
        """The run at `dfn`; None when it is not known, or when invalidations are being deferred."""
        if self._deferrals:
            return None
        block = self._blocks.get((domain, dfn >> BLOCK_SHIFT))
        return None if block is None else block.get(dfn)

    def put(self, domain: int, dfn: int, run: CachedRun) -> None:
        """Remember the run at `dfn`, unless invalidations are being deferred.

        Raises ValueError for a run that leaves its block: it would outlive an unmap.
        """
        if (dfn & BLOCK_PAGES - 1) + run[1] > BLOCK_PAGES:
            raise ValueError(f"cache domain {domain} dfn {dfn:#x}+{run[1]}: a run must stay inside its 2 MiB block")
        if self._deferrals:
            return
        key = (domain, dfn >> BLOCK_SHIFT)
        if dfn not in self._blocks.get(key, ()):
            if self._entries >= self._capacity:
                self._drop(next(iter(self._blocks)))
            self._entries += 1
        self._blocks.setdefault(key, {})[dfn] = run

    def invalidate(self, domain: int, dfn: int, nr: int) -> None:
        """Forget every translation of pages dfn..dfn+nr-1 of a domain."""
        if nr > 0:
            self._request((domain, dfn, dfn + nr - 1))

    def invalidate_domain(self, domain: int) -> None:
        self._request((domain, 0, FRAME_LIMIT - 1))

    def clear(self) -> None:
        self._request(EVERYTHING)

    def deferred(self) -> AbstractContextManager[None]:
        """Collect the invalidations asked for inside and carry them out as one at the end, on an exception too.

        Inside, the cache is passed over, so nothing that waits to be forgotten is found. Nested, the outermost ends it.
        """
        return self

    def __enter__(self) -> None:
        self._deferrals += 1

    def __exit__(self, *_: object) -> None:
        self._deferrals -= 1
        if self._pending and not self._deferrals:
            pending, self._pending = self._pending, []
            self.flushes += 1
            for request in pending:
                self._forget(request)

    def save(self) -> IotlbState:
        """The state, without what is cached. Raises ValueError while invalidations are being deferred."""
        if self._deferrals:
            raise ValueError("save: invalidations are being deferred, and what defers them cannot be saved")
        return IotlbState(self.flushes)

    def load(self, state: IotlbState) -> None:
        """Take over a state. What is cached stays: whoever changes domains invalidates it."""
        self.flushes = state.flushes

    def _request(self, request: Deferred) -> None:
        if not self._deferrals:
            self.flushes += 1
            self._forget(request)
        elif request == EVERYTHING or len(self._pending) >= PENDING_LIMIT:
            self._pending = [EVERYTHING]
        else:
            self._pending.append(request)

    def _forget(self, request: Deferred) -> None:
        if not self._blocks:
            return
        domain, first, last = request
        if domain is None:
            self._blocks.clear()
            self._entries = 0
            return
        first, last = first >> BLOCK_SHIFT, last >> BLOCK_SHIFT
        if last - first < len(self._blocks):
            for block in range(first, last + 1):
                self._drop((domain, block))
        else:
            for key in [key for key in self._blocks if key[0] == domain and first <= key[1] <= last]:
                self._drop(key)

    def _drop(self, key: tuple[int, int]) -> None:
        self._entries -= len(self._blocks.pop(key, ()))
