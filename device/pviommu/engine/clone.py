"""Clones: domains that map guest RAM 1:1 and go on doing so when memory comes and goes.

What the guest does to a clone lasts. A page that it mapped is its own; one that it unmapped stays unmapped even when
its memory goes away and comes back, as QEMU lets it do for a moment when it rearranges memory.
"""

from collections.abc import Iterator

from .core import DomainTable
from .dirty import mask_runs
from .state import CloneState
from .table import ACCESS_MASK, CLONE, ENTRIES, LEVEL_BITS

FULL = (1 << ENTRIES) - 1
EDITED_BLOCKS = 1 << 16
"""2 MiB blocks in which unmapped pages are remembered; a clone that was edited in more of them grows no more."""


class Clone:
    """What makes a page table a clone. Frames come as (first, count) ranges of guest RAM outside reserved regions."""

    __slots__ = ("_edited", "_grows", "_table")

    def __init__(self, table: DomainTable) -> None:
        self._table = table
        self._edited: dict[int, int] = {}
        self._grows = True

    def add(self, first: int, nr: int) -> bool:
        """Map 1:1 what is not mapped and was not edited. False when the pool was exhausted before the end.

        What did not fit stays unmapped until its memory goes and comes again.
        """
        for unedited, count in self._unedited(first, nr) if self._grows else ():
            for hole, pages in self._table.holes(unedited, count):
                if self._table.map(hole, hole, pages, CLONE | ACCESS_MASK) < pages:
                    return False
        return True

    def remove(self, first: int, nr: int) -> None:
        """Unmap what this clone has mapped in a range and the guest has not edited since."""
        own = [(leaf[0], leaf[2]) for leaf in self._table.leaves(first, nr) if leaf[3] & CLONE]
        for dfn, pages in own:
            self._table.unmap(dfn, pages, past_holes=False)

    def edit(self, first: int, nr: int) -> None:
        """Leave these pages alone from now on: the guest unmapped them."""
        end = first + nr
        while first < end:
            block, offset = first >> LEVEL_BITS, first & ENTRIES - 1
            count = min(ENTRIES - offset, end - first)
            if block not in self._edited and len(self._edited) >= EDITED_BLOCKS:
                self._grows = False
                return
            self._edited[block] = self._edited.get(block, 0) | ((1 << count) - 1) << offset
            first += count

    def save(self) -> CloneState:
        """The state, without the table's."""
        edited = [run for block, mask in sorted(self._edited.items()) for run in mask_runs(mask, block << LEVEL_BITS)]
        return CloneState(tuple(edited), self._grows)

    def load(self, state: CloneState) -> None:
        """Take over the state of another clone; this one is new."""
        for first, nr in state.edited:
            self.edit(first, nr)
        self._grows = self._grows and state.grows

    def _unedited(self, first: int, nr: int) -> Iterator[tuple[int, int]]:
        """(first, count) of what the guest left alone in a range, in order."""
        begin = position = first
        end = first + nr
        while position < end:
            mask = self._edited.get(position >> LEVEL_BITS, 0)
            # Blocks that are all alike are passed over at once.
            following = min(end, (position | ENTRIES - 1) + 1) if mask in (0, FULL) else position + 1
            if mask >> (position & ENTRIES - 1) & 1:
                if begin < position:
                    yield begin, position - begin
                begin = following
            position = following
        if begin < end:
            yield begin, end - begin
