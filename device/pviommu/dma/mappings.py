"""What DMA_MAP announced: ranges of guest physical addresses (GPAs), and where their bytes are."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vfio_user import DmaMapping

from ..engine.results import ADDRESS_LIMIT
from .memory_file import FileArea, MemoryFile

__all__ = ["Mapping", "Mappings", "WouldCutError", "in_words"]


@dataclass(slots=True)
class Mapping:
    """One DMA_MAP: ``size`` bytes at GPA ``address`` are at ``offset`` of ``file``; without a file they cannot be
    reached."""

    address: int
    size: int
    offset: int
    readable: bool
    writable: bool
    file: MemoryFile | None
    area: FileArea | None = field(default=None, compare=False)
    """the file's bytes, if they are mapped"""

    @property
    def end(self) -> int:
        """The first GPA after the range."""
        return self.address + self.size

    @property
    def is_ram(self) -> bool:
        """Whether DMA may both read and write it directly."""
        return self.file is not None and self.readable and self.writable

    @property
    def backing(self) -> tuple[tuple[int, int], int] | None:
        """The file and where in it GPA 0 would be: equal for overlapping ranges of one guest's memory."""
        return None if self.file is None else (self.file.key, self.offset - self.address)


class WouldCutError(Exception):
    """Ranges are removed as a whole, and only a part of ``mapping`` was to be removed."""

    def __init__(self, mapping: Mapping) -> None:
        super().__init__(in_words(mapping))
        self.mapping = mapping


class Mappings:
    """The ranges of one connection in order, no two of which overlap.

    A request costs two searches and the move of what follows in two arrays, whatever the number of ranges.
    """

    def __init__(self) -> None:
        self._starts = array("Q")
        self._mappings: list[Mapping] = []

    def __len__(self) -> int:
        return len(self._mappings)

    def __iter__(self) -> Iterator[Mapping]:
        return iter(self._mappings)

    def at(self, gpa: int) -> Mapping | None:
        """The range that ``gpa`` is in."""
        place = bisect_right(self._starts, gpa) - 1
        return self._mappings[place] if place >= 0 and gpa < self._mappings[place].end else None

    def next_from(self, gpa: int) -> Mapping | None:
        """The first range that begins at ``gpa`` or later."""
        place = bisect_left(self._starts, gpa) if gpa < ADDRESS_LIMIT else len(self._starts)
        return self._mappings[place] if place < len(self._mappings) else None

    def overlapping(self, address: int, size: int) -> Sequence[Mapping]:
        """The ranges that share an address with ``[address, address + size)``, in order."""
        first = bisect_right(self._starts, address)
        last = bisect_left(self._starts, address + size, first)
        if first and self._mappings[first - 1].end > address:
            first -= 1
        return self._mappings[first:last]

    def add(self, new: Mapping) -> None:
        """The caller has checked that it overlaps none."""
        place = bisect_right(self._starts, new.address)
        self._starts.insert(place, new.address)
        self._mappings[place:place] = (new,)  # a third of the time of insert(), if there are many

    def remove(self, address: int, size: int) -> list[Mapping]:
        """Remove and return the ranges inside ``[address, address + size)``. Raises :class:`WouldCutError`, and removes
        none, if only a part of one is inside.
        """
        end = address + size
        first, last = bisect_left(self._starts, address), bisect_left(self._starts, end)
        for place in (first - 1, last - 1) if size else ():
            edge = self._mappings[place] if place >= 0 else None
            if edge and edge.end > address and (edge.address < address or edge.end > end):
                raise WouldCutError(edge)
        gone = self._mappings[first:last]
        del self._mappings[first:last]
        del self._starts[first:last]
        return gone


def in_words(mapping: Mapping | DmaMapping) -> str:
    """A range as messages name it."""
    return f"map [{mapping.address:#x}, +{mapping.size:#x})"
