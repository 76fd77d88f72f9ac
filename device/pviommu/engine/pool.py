"""The page pool: what page tables may cost a guest.

A mapping is charged what its 4 KiB form needs: one page a 2 MiB region touched, one a 1 GiB region touched (and one a
512 GiB region touched where tables have four levels), besides one root a domain. That holds whatever leaves the table
chose, so splitting a large leaf needs no page and unmap cannot fail; and a model can compute the charge from the
mapped DFNs alone. Direct regions are charged in the same way, in tables of their own without a root.
"""

from collections.abc import Iterable


class Pool:
    """A counter of page-table pages, shared by all domains of an engine."""

    __slots__ = ("free", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total

    @property
    def used(self) -> int:
        return self.total - self.free

    def take(self, pages: int) -> bool:
        """Take `pages`, all or none; False when so many are not left."""
        if pages > self.free:
            return False
        self.free -= pages
        return True

    def give(self, pages: int) -> None:
        self.free += pages

    def resize(self, total: int) -> None:
        """Have `total` pages from now on. Raises ValueError when more are in use."""
        if total < self.used:
            raise ValueError(f"pool of {total} pages: {self.used} are in use; a pool holds at least those")
        self.free += total - self.total
        self.total = total


def tables_touched(ranges: Iterable[tuple[int, int]], shifts: Iterable[int]) -> int:
    """Tables below the root that merged (first, last inclusive) ranges need in 4 KiB form; `shifts` of the levels."""
    held = list(ranges)
    total = 0
    for shift in shifts:
        counted = -1
        for first, last in held:
            total += (last >> shift) - max(first >> shift, counted + 1) + 1
            counted = last >> shift
    return total
