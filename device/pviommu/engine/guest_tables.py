"""Domains whose tables lie in guest memory: the guest owns them and changes them as it likes. Each DMA walks them.

Nothing of a walk is kept: what was translated is good for the one request that asked. Where the guest's tables are, and
who reads them, an interface says; of a table nothing is trusted (see `walk`).
"""

from dataclasses import dataclass, replace

from .domain import RegionedDomain
from .iotlb import CachedRun
from .ranges import FrameRanges
from .results import PAGE_MASK, PAGE_SHIFT, Access, Area, Refusal, Run, add_run
from .table import ACCESS_MASK
from .walk import Read, ReadRefusal, Tables, Update, WalkFault, WalkFaultKind, walk

REFUSALS = {
    WalkFaultKind.INPUT: Refusal.OUT_OF_APERTURE,
    WalkFaultKind.READ: Refusal.NOT_RAM,
    WalkFaultKind.NOT_PRESENT: Refusal.NOT_MAPPED,
    WalkFaultKind.MALFORMED: Refusal.NOT_MAPPED,
    WalkFaultKind.OUTPUT: Refusal.NOT_RAM,
    WalkFaultKind.ACCESS_FLAG: Refusal.NOT_MAPPED,
    WalkFaultKind.PERMISSION: Refusal.NO_PERMISSION,
    WalkFaultKind.CONTENDED: Refusal.NOT_MAPPED,
}
"""What a walk that ends without a result is to DMA. An entry that the format does not allow maps nothing."""


@dataclass(frozen=True)
class GuestTables:
    """Tables of the guest, and how far device addresses go."""

    tables: Tables
    frames: int
    """DFNs are below it."""
    read: Read
    """A descriptor of guest memory. What is not RAM it refuses."""
    update: Update | None = None
    """None: tables are only read."""
    memory: object = None
    """What a core that walks by itself reads and updates them through; None: no core can."""


class TablesDomain(RegionedDomain):
    """Such tables, and the direct regions of the endpoints that are inside, which lie over them."""

    __slots__ = ("_as_seen", "guest", "is_of_core")

    def __init__(self, guest: GuestTables, reserved: FrameRanges) -> None:
        """`reserved`: closed to every domain."""
        super().__init__(reserved)
        self.guest = guest
        self._as_seen = replace(guest.tables, updates_access=False, updates_dirty=False)
        """For who only looks: a page may be written whether it was written before or not."""
        self.is_of_core = False
        """Whether the core walks them; otherwise walk() does."""

    def walk(self, iova: int, end: int, wanted: int) -> list[Run] | tuple[int, Refusal]:
        """The runs of [iova, end) for these access bits, or the first refused address and why."""
        runs: list[Run] = []
        position = iova
        while position < end:
            found = self._run(position, wanted)
            if isinstance(found, Refusal):
                return position, found
            gpa, length = found
            length = min(length, end - position)
            add_run(runs, gpa, length)
            position += length
        return runs

    def find(self, dfn: int, nr: int) -> CachedRun | Refusal:
        """Up to `nr` pages that one leaf or direct region gives from `dfn` on, without changing a table."""
        if isinstance(closed := self._closed_run(dfn), Refusal):
            return closed
        if closed:
            return dfn, min(nr, closed), ACCESS_MASK
        leaf = walk(self._as_seen, dfn << PAGE_SHIFT, Access(0), self.guest.read)
        if isinstance(leaf, WalkFault):
            return REFUSALS[leaf.kind]
        pages = min(nr, (1 << leaf.shift - PAGE_SHIFT) - (dfn & (1 << leaf.shift - PAGE_SHIFT) - 1), self._clear(dfn))
        return leaf.output >> PAGE_SHIFT, pages, int(leaf.access)

    def trace(self, dfn: int) -> list[tuple[int, int]]:
        """The entries that a walk reads, the highest level first: where each is, and what it is."""
        entries: list[tuple[int, int]] = []

        def read(address: int) -> int | ReadRefusal:
            found = self.guest.read(address)
            if not isinstance(found, ReadRefusal):
                entries.append((address, found))
            return found

        walk(self._as_seen, dfn << PAGE_SHIFT, Access(0), read)
        return entries

    def scan(self, dfn: int, walks: int) -> tuple[list[Area], int | None]:
        """What the tables map from `dfn` on, a leaf at a time, as far as so many walks tell; and where to go on, None
        at the end. The tables may change meanwhile, so nothing ties one leaf to the next.
        """
        areas: list[Area] = []
        shifts = {level.number: level.shift - PAGE_SHIFT for level in self.guest.tables.levels}
        for _ in range(walks):
            if dfn >= self.guest.frames:
                return areas, None
            leaf = walk(self._as_seen, dfn << PAGE_SHIFT, Access(0), self.guest.read)
            shift = shifts[leaf.level]
            following = min((dfn >> shift) + 1 << shift, self.guest.frames)
            if not isinstance(leaf, WalkFault):
                areas.append(Area(dfn, leaf.output >> PAGE_SHIFT, following - dfn, leaf.access, True))
            dfn = following
        return areas, dfn

    def _run(self, position: int, wanted: int) -> tuple[int, int] | Refusal:
        """Where a byte leads, and how many follow it there."""
        dfn = position >> PAGE_SHIFT
        if isinstance(closed := self._closed_run(dfn), Refusal):
            return closed
        if closed:
            return position, (closed << PAGE_SHIFT) - (position & PAGE_MASK)
        guest = self.guest
        leaf = walk(guest.tables, position, Access(wanted), guest.read, guest.update)
        if isinstance(leaf, WalkFault):
            return REFUSALS[leaf.kind]
        size = (1 << leaf.shift) - (position & (1 << leaf.shift) - 1)
        return leaf.output, min(size, (self._clear(dfn) << PAGE_SHIFT) - (position & PAGE_MASK))

    def _closed_run(self, dfn: int) -> int | Refusal:
        """Pages that a direct region gives, 0 if the tables are to be asked."""
        if not 0 <= dfn < self.guest.frames:
            return Refusal.OUT_OF_APERTURE
        if not self.closed.inside(dfn):
            return 0
        return min(self.direct.inside(dfn), self.guest.frames - dfn) or Refusal.RESERVED

    def _clear(self, dfn: int) -> int:
        """Pages for which the tables decide."""
        return min(self.closed.outside(dfn), self.guest.frames - dfn)
