"""What endpoints are attached to, by number: two fixed domains, and those that an interface allocates.

`IDENTITY` is 1:1 of guest RAM and MMIO, `BLOCKED` reaches nothing. A paging domain has a page table; a nested one (see
nested.py) stands on a paging domain; one with tables of the guest (see guest_tables.py) has none of its own.
"""

from collections.abc import Iterator, Sequence

from .clone import Clone
from .config import MAX_DOMAIN, ReservedFrames
from .core import Core, PagePool
from .pool import tables_touched
from .ranges import FrameRanges
from .results import FRAME_LIMIT, Access, Area, Outcome, Stop, UnmapMode, whole
from .state import PagingState, TableState
from .table import ACCESS_MASK, CLONE, KIND_MASK, Leaf

IDENTITY = 0
BLOCKED = MAX_DOMAIN + 1


class RegionedDomain:
    """The direct regions of the endpoints that are inside, which lie over whatever else the domain maps."""

    __slots__ = ("_reserved", "_users", "closed", "direct")

    def __init__(self, reserved: FrameRanges) -> None:
        """`reserved`: closed to every domain."""
        self._reserved = reserved
        self._users: dict[ReservedFrames, int] = {}
        self.direct = FrameRanges()
        """DFNs that the direct regions translate 1:1."""
        self.closed = reserved
        """DFNs that the guest may not edit: reserved everywhere, or direct."""

    def enter(self, regions: Sequence[ReservedFrames]) -> Stop | None:
        """Count a user of each region. RESERVED_CONFLICT or POOL_EXHAUSTED change nothing."""
        new = [region for region in regions if region not in self._users]
        if any(self._conflicts(region) for region in new):
            return Stop.RESERVED_CONFLICT
        users = {**self._users, **{region: self._users.get(region, 0) + 1 for region in regions}}
        return None if self._settle(users) else Stop.POOL_EXHAUSTED

    def leave(self, regions: Sequence[ReservedFrames]) -> None:
        """Count a user of each region less; a region without users goes."""
        users = {**self._users, **{region: self._users[region] - 1 for region in regions}}
        self._settle({region: count for region, count in users.items() if count})

    def _conflicts(self, region: ReservedFrames) -> bool:
        """Whether another region is in the way."""
        return any(other.first <= region.last and region.first <= other.last for other in self._users)

    def _settle(self, users: dict[ReservedFrames, int]) -> bool:
        """Let these be the regions and their numbers of users; False and no change when the pool is exhausted."""
        self._users = users
        self.direct = FrameRanges((region.first, region.last) for region in users)
        self.closed = FrameRanges([*self._reserved, *self.direct])
        return True


class PagingDomain(RegionedDomain):
    """What the guest mapped, and direct regions over it.

    A direct region lies over the page table, in tables of its own as far as the pool is concerned: what the guest had
    mapped beneath, to the same frames, reappears when the region goes.
    """

    __slots__ = ("_charged", "_frames", "_pool", "clone", "table")

    def __init__(self, core: Core, pool: PagePool, frames: int, reserved: FrameRanges) -> None:
        """`reserved`: closed to every domain. Raises MemoryError when the pool has no page for the root."""
        super().__init__(reserved)
        self._pool = pool
        self._frames = frames
        self._charged = 0
        self.table = core.table(pool, frames)
        self.clone: Clone | None = None

    def unmap_pages(self, dfn: int, nr: int) -> Outcome:
        """UnmapMode.UNTIL_HOLE."""
        done = self.table.unmap(dfn, min(nr, self.closed.outside(dfn)), past_holes=False)
        if done == nr:
            return whole(done)
        hole = dfn + done
        return Outcome(done, Stop.RESERVED if self.closed.inside(hole) else Stop.NOT_MAPPED, hole)

    def unmap_calls(self, dfn: int, nr: int, mode: UnmapMode) -> Outcome:
        """UnmapMode.CHECK_ENDS and UNTIL_CUT."""
        cut = self.table.cut_point(dfn, nr)
        if cut is None:
            return whole(self.table.unmap(dfn, nr, past_holes=True))
        if mode is UnmapMode.CHECK_ENDS:
            return Outcome(0, Stop.CUT, cut)
        return Outcome(self.table.unmap(dfn, cut - dfn, past_holes=True), Stop.CUT, cut)

    def areas(self) -> Iterator[Area]:
        """Runs of adjacent frames and one access, each from one map call, in order."""
        return map(_area, self._runs())

    def pieces(self, dfn: int) -> Iterator[Area]:
        """The same from `dfn` on, a leaf at a time."""
        return map(_area, self.table.leaves(dfn, self._frames - dfn))

    def _runs(self) -> Iterator[Leaf]:
        held: Leaf | None = None
        for leaf in self.table.leaves(0, self._frames):
            dfn, gfn, nr, _, starts = leaf
            if held and not starts and (held[0] + held[2], held[1] + held[2]) == (dfn, gfn):
                # A leaf that starts no call goes on from the one before it, hence with the same access.
                held = (*held[:2], held[2] + nr, *held[3:])
                continue
            if held:
                yield held
            held = leaf
        if held:
            yield held

    def save(self, number: int) -> PagingState:
        """The state, as that of the domain of this number."""
        table = TableState(tuple(self._runs()), self.table.reserved)
        return PagingState(number, table, self.clone.save() if self.clone else None)

    def load(self, state: PagingState) -> None:
        """Take over a state; this domain is new. Raises ValueError for one that it cannot have."""
        for dfn, gfn, nr, kind, starts in state.table.entries:
            where = f"domain {state.number} dfn {dfn:#x}+{nr} to gfn {gfn:#x} as {kind:#x}"
            if not (0 <= dfn < dfn + nr <= self._frames and 0 <= gfn <= FRAME_LIMIT - nr):
                raise ValueError(f"{where}: outside the aperture, or no frames")
            if kind & ~KIND_MASK or not kind & ACCESS_MASK:
                raise ValueError(f"{where}: not a kind of page")
            if kind & CLONE and (state.clone is None or gfn != dfn):
                raise ValueError(f"{where}: only a clone has such pages, and maps them 1:1")
            if not starts and not self.table.joins(dfn, gfn, kind):
                raise ValueError(f"{where}: no map call begins here, and none goes on")
            if self.table.map(dfn, gfn, nr, kind, starts=starts) < nr:
                raise ValueError(f"{where}: the pool is exhausted, or pages are mapped twice")
        if not self.table.reserve(state.table.reserved):
            raise ValueError(f"domain {state.number}: the pool has no {state.table.reserved} pages for it")
        if state.clone:
            self.clone = Clone(self.table)
            self.clone.load(state.clone)

    def release(self) -> None:
        """Return every page to the pool. The domain is not used after that."""
        self._settle({})
        self.table.release()

    def _conflicts(self, region: ReservedFrames) -> bool:
        """Whether another region is in the way, or a mapping that differs from what the region would be."""
        if super()._conflicts(region):
            return True
        leaves = self.table.leaves(region.first, region.last - region.first + 1)
        return any(gfn != dfn or kind & ACCESS_MASK != ACCESS_MASK for dfn, gfn, _, kind, _ in leaves)

    def _settle(self, users: dict[ReservedFrames, int]) -> bool:
        direct = FrameRanges((region.first, region.last) for region in users)
        charge = tables_touched(direct, self.table.shifts)
        if not self._pool.take(charge - self._charged):
            return False
        self._charged = charge
        return super()._settle(users)


def _area(leaf: Leaf) -> Area:
    dfn, gfn, nr, kind, starts = leaf
    return Area(dfn, gfn, nr, Access(kind & ACCESS_MASK), starts)
