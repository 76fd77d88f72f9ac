"""Tables that the guest owns: a writer of both formats, and the look that ends a strict unmap."""

from __future__ import annotations

from collections.abc import Iterator

from pviommu_abi.shared import IN_FLIGHT_OFFSET, InFlightLine, TableFormat
from pviommu_abi.slots import PAGE_SHIFT

from .function import WORD, Function

__all__ = ["READ", "WRITE", "InFlight", "PageTables"]

READ, WRITE = 1, 2
"""Access bits of a mapping."""
_ENTRY = 8
_ENTRIES = 512
_BITS = 9
_TOP = PAGE_SHIFT + 3 * _BITS
"""The address bits below those that choose an entry of the root."""
_LARGE = 1 << 7
_ADDRESS = (1 << 52) - (1 << 12)
_TABLE = {TableFormat.VTD_SS: 3, TableFormat.X86_64: 3}
"""What leads to a lower table allows everything: read and write, or present and writeable."""


class PageTables:
    """Four levels of tables in guest memory. Each entry is written by one store of 64 bits."""

    def __init__(
        self, ram: memoryview, frames: Iterator[int], format: TableFormat = TableFormat.VTD_SS, base: int = 0
    ) -> None:
        """``ram``: guest memory from GPA ``base`` on; ``frames``: free ones of it, the next for each table that is
        needed.
        """
        self.format = format
        self._base = base
        self._words = ram.cast("Q")
        self._frames = frames
        self.root = self._table()

    def map(self, iova: int, gpa: int, access: int = READ | WRITE, shift: int = PAGE_SHIFT) -> None:
        """Map ``1 << shift`` bytes: 4 KiB, 2 MiB or 1 GiB; what was there before is overwritten."""
        large = 0 if shift == PAGE_SHIFT else _LARGE
        self._words[self.place(iova, shift)] = gpa | large | self._bits(access)

    def unmap(self, iova: int, shift: int = PAGE_SHIFT) -> int:
        """Clear an entry; what it was."""
        place = self.place(iova, shift)
        entry = int(self._words[place])
        self._words[place] = 0
        return entry

    def entry(self, iova: int, shift: int = PAGE_SHIFT) -> int:
        """What maps an address at the level whose entries cover so much."""
        return int(self._words[self.place(iova, shift)])

    def put(self, iova: int, entry: int, shift: int = PAGE_SHIFT) -> None:
        """Write an entry as it is."""
        self._words[self.place(iova, shift)] = entry

    def place(self, iova: int, shift: int = PAGE_SHIFT) -> int:
        """Where that entry is, in entries of ``ram``. Tables on the way that are missing are added; a leaf on the way
        becomes a table of smaller ones.
        """
        table, at = self.root, _TOP
        while at > shift:
            place = self._place_in(table, iova, at)
            entry = int(self._words[place])
            if not entry or self._is_leaf(entry, at):
                self._words[place] = self._table(entry, at) | _TABLE[self.format]
            table = int(self._words[place]) & _ADDRESS
            at -= _BITS
        return self._place_in(table, iova, at)

    def leaf(self, iova: int) -> tuple[int, int] | None:
        """The entry that maps an address, and how many of its bits that leaves; None if nothing does."""
        table, at = self.root, _TOP
        while entry := int(self._words[self._place_in(table, iova, at)]):
            if self._is_leaf(entry, at):
                return entry, at
            table = entry & _ADDRESS
            at -= _BITS
        return None

    def leaves(self) -> Iterator[tuple[int, int, int]]:
        """All that is mapped: the first address, the entry, and how many address bits it leaves."""
        yield from self._leaves(self.root, 0, _TOP)

    def _leaves(self, table: int, iova: int, shift: int) -> Iterator[tuple[int, int, int]]:
        first = (table - self._base) // _ENTRY
        for place, entry in enumerate(self._words[first : first + _ENTRIES].tolist()):
            at = iova + (place << shift)
            if entry and self._is_leaf(entry, shift):
                yield at, entry, shift
            elif entry:
                yield from self._leaves(entry & _ADDRESS, at, shift - _BITS)

    def close(self) -> None:
        """Let go of the memory."""
        self._words.release()

    @staticmethod
    def _is_leaf(entry: int, shift: int) -> bool:
        return shift == PAGE_SHIFT or bool(entry & _LARGE)

    def _place_in(self, table: int, iova: int, shift: int) -> int:
        return (table - self._base) // _ENTRY + (iova >> shift) % _ENTRIES

    def _table(self, leaf: int = 0, shift: int = 0) -> int:
        """A new table: an empty one, or one that maps what a leaf at ``shift`` maps."""
        table = next(self._frames) << PAGE_SHIFT
        first = (table - self._base) // _ENTRY
        if leaf and shift == PAGE_SHIFT + _BITS:
            leaf &= ~_LARGE
        step = 1 << shift - _BITS if leaf else 0
        for place in range(_ENTRIES):
            self._words[first + place] = leaf + place * step
        return table

    def _bits(self, access: int) -> int:
        """VT-d has a bit for reading and one for writing; what x86-64 maps can be read."""
        if self.format is TableFormat.VTD_SS:
            return access
        return READ | access & WRITE


class InFlight:
    """The in-flight line of a context, as the guest looks at it."""

    def __init__(self, function: Function, line: int, offset: int = IN_FLIGHT_OFFSET, stride: int = 64) -> None:
        self._function = function
        self._word = (offset + line * stride) // WORD

    @property
    def step(self) -> int:
        return int(self._function.words[self._word])

    @property
    def pending(self) -> int:
        return int(self._function.words[self._word + InFlightLine.offset_of("pending") // WORD])

    def is_quiet(self) -> bool:
        """Whether no DMA can use entries that were cleared before a full barrier which came before this look."""
        step, pending = self.step, self.pending
        return not step & 1 and not pending
