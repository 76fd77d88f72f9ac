"""The page table of one domain: a radix tree from DFN to GFN.

One walk serves every operation: `_reach` descends to the table whose entry decides about a DFN, the operation works
along that table's entries as far as they go, and only then descends again. Geometry is data: the shifts of the levels.

An entry holds 0 (nothing), a leaf or a lower table. A leaf is one int, so one store publishes it:

    gfn << 4 | CLONE | START | access      START: a map call begins at this leaf; CLONE: see clone.py

A map stores the largest leaves that fit (4 KiB, 2 MiB, 1 GiB), so a leaf never spans two map calls. What a leaf or a
table is charged is explained in pool.py.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .core import PagePool

ENTRIES = 512
LEVEL_BITS = 9
INDEX_MASK = ENTRIES - 1

ACCESS_MASK = 0b0011
START = 0b0100
CLONE = 0b1000
KIND_MASK = CLONE | ACCESS_MASK
GFN_SHIFT = 4

LEAF_CHARGE = {0: 0, 9: 1, 18: 1 + ENTRIES}
"""Pool pages a leaf stands for (the tables its 4 KiB form would need), by the shift of its level."""
LARGEST_LEAF = max(LEAF_CHARGE)

Leaf = tuple[int, int, int, int, bool]
"""dfn, gfn, pages, kind (access bits, perhaps CLONE), whether a map call begins here."""


class Table:
    """One node: 512 entries, and how many of them are in use."""

    __slots__ = ("entries", "live")

    def __init__(self, entries: "list[int | Table]", live: int) -> None:
        self.entries = entries
        self.live = live


def _empty() -> Table:
    return Table([0] * ENTRIES, 0)


class PageTable:
    """Maps DFNs of one domain. Callers have checked RAM, reserved regions and the aperture; `nr` counts pages.

    Raises MemoryError from the constructor when the pool has no page for the root, and from nowhere else.
    """

    __slots__ = ("_charged", "_limit", "_pool", "_root", "mapped", "reserved", "shifts")

    def __init__(self, pool: "PagePool", frames: int) -> None:
        """`frames`: DFNs of this table are below it; it decides the number of levels, three or more."""
        if not pool.take(1):
            raise MemoryError("page pool exhausted: no page is left for a root table")
        levels = max(3, -(-(frames - 1).bit_length() // LEVEL_BITS))
        self.shifts = tuple(LEVEL_BITS * level for level in range(levels - 1, 0, -1))
        """Of the levels above the lowest: a DFN shifted by one names a table there."""
        self._limit = frames
        self._pool = pool
        self._charged = 1
        self._root = _empty()
        self.reserved = 0
        """Pool pages that are held at least: see reserve()."""
        self.mapped = 0
        """Pages mapped."""

    def _reach(self, dfn: int) -> tuple[Table, int]:
        """The table whose entry holds `dfn`'s leaf or nothing, and the shift of its level."""
        table = self._root
        for shift in self.shifts:
            entry = table.entries[dfn >> shift & INDEX_MASK]
            if isinstance(entry, int):
                return table, shift
            table = entry
        return table, 0

    def _leaf_at(self, dfn: int) -> tuple[int, int]:
        """The leaf that covers `dfn` (0: none) and the page's offset inside it."""
        if dfn >= self._limit:
            return 0, 0
        table, shift = self._reach(dfn)
        entry = table.entries[dfn >> shift & INDEX_MASK]
        return (entry, dfn & (1 << shift) - 1) if isinstance(entry, int) else (0, 0)

    def lookup(self, dfn: int) -> tuple[int, int] | None:
        """(gfn, access bits) of a mapped page; None when it is not mapped."""
        leaf, offset = self._leaf_at(dfn)
        return ((leaf >> GFN_SHIFT) + offset, leaf & ACCESS_MASK) if leaf else None

    def map(self, dfn: int, gfn: int, nr: int, kind: int, *, starts: bool = True) -> int:
        """Map pages in order until one is mapped already or the pool is exhausted; returns how many were mapped.

        Without `starts` they go on from the call of the page before them, which `joins` has told to be possible.
        """
        position, end = dfn, dfn + nr
        flags = START | kind if starts else kind
        while position < end:
            table, shift = self._reach(position)
            entries = table.entries
            index = position >> shift & INDEX_MASK
            if entries[index]:
                break
            count = end - position if not shift else self._large_leaves(position, gfn, end, shift)
            if not count:
                # All tables below are missing too: take them together or not at all.
                if self._free() < shift // LEVEL_BITS:
                    break
                self._charge(1)
                entries[index] = _empty()
                table.live += 1
                continue
            if count == 1:
                entries[index] = gfn << GFN_SHIFT | flags
            else:
                count = _store(entries, index, count, gfn << GFN_SHIFT | flags, shift)
            if shift:
                self._charge(count * LEAF_CHARGE[shift])
            table.live += count
            flags = kind
            position += count << shift
            gfn += count << shift
        self.mapped += position - dfn
        return position - dfn

    def joins(self, dfn: int, gfn: int, kind: int) -> bool:
        """Whether the page before `dfn` is mapped to the frame before `gfn`, and of the same kind."""
        leaf, offset = self._leaf_at(dfn - 1) if dfn else (0, 0)
        return leaf != 0 and (leaf >> GFN_SHIFT) + offset == gfn - 1 and leaf & KIND_MASK == kind

    def _large_leaves(self, position: int, gfn: int, end: int, shift: int) -> int:
        """How many leaves of this level a map may store from here on, as far as alignment and pool allow."""
        if shift > LARGEST_LEAF or (position | gfn) & (1 << shift) - 1:
            return 0
        return min((end - position) >> shift, self._free() // LEAF_CHARGE[shift])

    def unmap(self, dfn: int, nr: int, *, past_holes: bool) -> int:
        """Remove pages in order, splitting leaves at both ends; returns how many were removed.

        Without `past_holes` the first page that is not mapped ends it. Takes nothing from the pool.
        """
        before = self.mapped
        position, end = dfn, dfn + nr
        while position < end:
            table, shift = self._reach(position)
            entries = table.entries
            index = position >> shift & INDEX_MASK
            unit = 1 << shift
            if not entries[index]:
                if not past_holes:
                    break
                position = (position | unit - 1) + 1
            elif shift and (position & unit - 1 or end - position < unit):
                self._split(table, index, shift)
            else:
                count = _clear(entries, index, (end - position) >> shift)
                table.live -= count
                self.mapped -= count << shift
                if shift:
                    self._charge(-count * LEAF_CHARGE[shift])
                if not table.live:
                    self._prune(position)
                position += count << shift
        if self.mapped != before:
            self._begin_call(position)
        return before - self.mapped

    def _begin_call(self, dfn: int) -> None:
        """What a cut left over from `dfn` on is a map call of its own, lest it joins one that is made before it."""
        if dfn >= self._limit:
            return
        table, shift = self._reach(dfn)
        index = dfn >> shift & INDEX_MASK
        entry = table.entries[index]
        if isinstance(entry, int) and entry and not dfn & (1 << shift) - 1:
            table.entries[index] = entry | START

    def cut_point(self, dfn: int, nr: int) -> int | None:
        """First page in the range of the map call that removing the range would cut; None when it cuts none."""
        if self._inside_call(dfn):
            return dfn
        if not self._inside_call(dfn + nr):
            return None
        return max(leaf[0] for leaf in self.leaves(dfn, nr) if leaf[4])

    def _inside_call(self, dfn: int) -> bool:
        """Whether `dfn` and the page before it come from one map call."""
        leaf, offset = self._leaf_at(dfn)
        return leaf != 0 and (offset != 0 or not leaf & START)

    def leaves(self, dfn: int, nr: int) -> Iterator[Leaf]:
        """The leaves in a range, in order, clipped to it."""
        position, end = dfn, min(dfn + nr, self._limit)
        while position < end:
            table, shift = self._reach(position)
            for index in range(position >> shift & INDEX_MASK, ENTRIES):
                entry = table.entries[index]
                if not isinstance(entry, int) or position >= end:
                    break
                following = (position >> shift) + 1 << shift
                if entry:
                    offset = position & (1 << shift) - 1
                    starts = bool(entry & START) and not offset
                    pages = min(following, end) - position
                    yield position, (entry >> GFN_SHIFT) + offset, pages, entry & KIND_MASK, starts
                position = following

    def holes(self, dfn: int, nr: int) -> list[tuple[int, int]]:
        """(first, count) of what is not mapped in a range, in order."""
        holes = []
        position = dfn
        for first, _, pages, _, _ in self.leaves(dfn, nr):
            if first > position:
                holes.append((position, first - position))
            position = first + pages
        if position < dfn + nr:
            holes.append((position, dfn + nr - position))
        return holes

    def run(self, dfn: int, nr: int) -> tuple[int, int, int] | None:
        """(gfn, pages, access bits) of the mapped run at `dfn`: adjacent frames, one access, at most `nr` pages."""
        leaf, offset = self._leaf_at(dfn)
        if not leaf:
            return None
        start, access, pages = (leaf >> GFN_SHIFT) + offset, leaf & ACCESS_MASK, 0
        for position, gfn, count, kind, _ in self.leaves(dfn, nr):
            if position != dfn + pages or gfn != start + pages or kind & ACCESS_MASK != access:
                break
            pages += count
        return start, pages, access

    def release(self) -> None:
        """Drop every mapping and return all pages, the root's too. The table is not used after that."""
        self.reserve(0)
        self._charge(-self._charged)

    def reserve(self, pages: int) -> bool:
        """Hold at least `pages` pages from now on, the root's included; False and no change when the pool is
        exhausted.
        """
        if not self._pool.take(max(pages, self._charged) - max(self.reserved, self._charged)):
            return False
        self.reserved = pages
        return True

    def _free(self) -> int:
        """Pages that this table may still take."""
        return self._pool.free + max(0, self.reserved - self._charged)

    def _charge(self, pages: int) -> None:
        before = max(self.reserved, self._charged)
        self._charged += pages
        self._pool.give(before - max(self.reserved, self._charged))

    def _split(self, table: Table, index: int, shift: int) -> None:
        """Replace a leaf by a table of the next smaller ones. Charges nothing: the leaf stood for that table."""
        leaf = table.entries[index]
        if isinstance(leaf, int):
            step = 1 << GFN_SHIFT + shift - LEVEL_BITS
            first = leaf & ~START
            lower: list[int | Table] = list(range(first, first + ENTRIES * step, step))
            lower[0] = leaf
            table.entries[index] = Table(lower, ENTRIES)

    def _prune(self, dfn: int) -> None:
        """Free the empty tables on the way to `dfn`, from the bottom up."""
        path: list[tuple[Table, int]] = []
        table = self._root
        for shift in self.shifts:
            index = dfn >> shift & INDEX_MASK
            entry = table.entries[index]
            path.append((table, index))
            if isinstance(entry, int):
                path.pop()
                break
            table = entry
        while path and not table.live:
            table, index = path.pop()
            table.entries[index] = 0
            table.live -= 1
            self._charge(-1)


def _store(entries: list[int | Table], index: int, count: int, leaf: int, shift: int) -> int:
    """Store up to `count` leaves of adjacent frames from `index` on, as far as entries are empty; returns how many."""
    count = min(count, ENTRIES - index)
    if any(entries[index : index + count]):
        count = next(used for used in range(count) if entries[index + used])
    step = 1 << GFN_SHIFT + shift
    entries[index] = leaf
    leaf &= ~START
    entries[index + 1 : index + count] = range(leaf + step, leaf + count * step, step)
    return count


def _clear(entries: list[int | Table], index: int, count: int) -> int:
    """Empty up to `count` entries from `index` on, as far as they hold leaves; returns how many."""
    if count == 1:
        entries[index] = 0
        return 1
    count = min(count, ENTRIES - index)
    for used in range(1, count):
        entry = entries[index + used]
        if not entry or not isinstance(entry, int):
            count = used
            break
    entries[index : index + count] = [0] * count
    return count
