"""Areas: what was mapped into an address space, kept as it was mapped, with byte granularity.

A page table knows pages and forgets how they came. VFIO and iommufd hold user space to what it mapped: an area goes
whole, and what happens to one that a request would cut is the difference between their interfaces. This is the record
that they ask, whether page tables are filled from it or not.

Areas stand in blocks of at most 512, side by side in arrays: about 40 bytes each, found in two bisections. A block
remembers its widest gap, so the search for room passes over whole blocks.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from enum import Enum
from operator import sub
from typing import Generic, NamedTuple, TypeVar

from .spans import Span, check_span

T = TypeVar("T")

BLOCK_AREAS = 512


class ByteArea(NamedTuple, Generic[T]):
    """Bytes first..last of an address space, which are mapped to `target` and what follows it."""

    first: int
    last: int
    """Inclusive."""
    target: int
    """Address that `first` is mapped to."""
    tag: T
    """What whoever mapped it wants to be told of it; a split or a clip copies it."""

    @property
    def length(self) -> int:
        """Bytes, at least 1."""
        return self.last - self.first + 1

    def clipped(self, first: int, last: int) -> ByteArea[T]:
        """The part of it inside first..last, which is not empty."""
        begin = max(first, self.first)
        return ByteArea(begin, min(last, self.last), self.target + begin - self.first, self.tag)


class Cutting(Enum):
    """What a removal does about an area that is only partly in its range."""

    STOPS = "iommufd: areas go in order, up to the first one that would be cut"
    REFUSED = "VFIO type1v2: nothing goes if an end of the range would cut an area"
    WHOLE = "VFIO type1: nothing goes if the range begins inside an area; one that begins inside the range goes whole"


class Removal(NamedTuple, Generic[T]):
    """What a removal did."""

    gone: list[ByteArea[T]]
    """In order."""
    cut: ByteArea[T] | None
    """The area that would have been cut, if that stopped it."""

    @property
    def size(self) -> int:
        """Bytes that are gone."""
        return sum(area.last - area.first + 1 for area in self.gone)


class _Block(Generic[T]):
    __slots__ = ("firsts", "gap", "lasts", "tags", "targets")

    def __init__(self, firsts: array[int], lasts: array[int], targets: array[int], tags: list[T]) -> None:
        self.firsts = firsts
        self.lasts = lasts
        self.targets = targets
        self.tags = tags
        self.gap: int | None = None
        """Widest gap between two of these, in bytes; None: not known."""

    def insert(self, at: int, area: ByteArea[T]) -> None:
        self.firsts.insert(at, area.first)
        self.lasts.insert(at, area.last)
        self.targets.insert(at, area.target)
        self.tags.insert(at, area.tag)
        self.gap = None

    def part(self, places: slice) -> _Block[T]:
        return _Block(self.firsts[places], self.lasts[places], self.targets[places], self.tags[places])

    def delete(self, places: slice) -> None:
        del self.firsts[places], self.lasts[places], self.targets[places], self.tags[places]
        self.gap = None

    def widest_gap(self) -> int:
        if self.gap is None:
            self.gap = max(map(sub, self.firsts[1:], self.lasts), default=1) - 1
        return self.gap


class Areas(Generic[T]):
    """Areas in the order of their addresses. No two overlap."""

    __slots__ = ("_blocks", "_heads", "_size")

    def __init__(self) -> None:
        self._blocks: list[_Block[T]] = []
        self._heads = array("Q")
        """First address of each block."""
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[ByteArea[T]]:
        for block in self._blocks:
            yield from map(ByteArea, block.firsts, block.lasts, block.targets, block.tags)

    # Questions

    def overlapping(self, first: int, last: int) -> Iterator[ByteArea[T]]:
        """The areas with a byte in first..last, in order and whole. None may come or go before the last was taken."""
        return self._from(*self._reach(first), last)

    def _from(self, number: int, at: int, last: int) -> Iterator[ByteArea[T]]:
        """The areas from a place on that begin at `last` or before it."""
        while number < len(self._blocks):
            block = self._blocks[number]
            stop = bisect_right(block.firsts, last, at)
            for place in range(at, stop):
                yield ByteArea(block.firsts[place], block.lasts[place], block.targets[place], block.tags[place])
            if stop < len(block.firsts):
                return
            number, at = number + 1, 0

    def first_in(self, first: int, last: int) -> ByteArea[T] | None:
        """The lowest area with a byte in first..last."""
        number, at = self._reach(first)
        if number == len(self._blocks) or self._blocks[number].firsts[at] > last:
            return None
        block = self._blocks[number]
        return ByteArea(block.firsts[at], block.lasts[at], block.targets[at], block.tags[at])

    def cover(self, first: int, last: int) -> list[ByteArea[T]] | None:
        """The areas that first..last consists of, clipped to it; None if a byte of it belongs to none."""
        found: list[ByteArea[T]] = []
        position = first
        for area in self.overlapping(first, last):
            if area.first > position:
                return None
            found.append(area.clipped(first, last))
            position = area.last + 1
        return found if position > last else None

    def covered_up_to(self, first: int, last: int) -> int:
        """Last byte, at most `last`, up to which areas follow each other without a gap; `first` - 1 if none begins."""
        for gap, _ in self.gaps(first, last, 1):
            return gap - 1
        return last

    def gaps(self, first: int, last: int, size: int) -> Iterator[Span]:
        """What of first..last belongs to no area, in order, and is at least `size` bytes long before it is clipped to
        `last`. No area may come or go before the last one was taken.
        """
        position = first
        number, at = self._reach(first)
        while position <= last and number < len(self._blocks):
            block = self._blocks[number]
            if at == 0 and block.widest_gap() < size:
                begin, end = block.firsts[0], block.lasts[-1]
                number += 1
            else:
                begin, end = block.firsts[at], block.lasts[at]
                at += 1
                if at == len(block.firsts):
                    number, at = number + 1, 0
            if begin - position >= size:
                yield position, min(begin - 1, last)
            position = end + 1
        if last - position + 1 >= size:
            yield position, last

    def _reach(self, address: int) -> tuple[int, int]:
        """Block and place in it of the first area that ends at `address` or after it; perhaps behind the last one."""
        number = bisect_right(self._heads, address) - 1
        if number < 0:
            return 0, 0
        block = self._blocks[number]
        at = bisect_left(block.lasts, address)
        return (number, at) if at < len(block.lasts) else (number + 1, 0)

    # Changes

    def add(self, area: ByteArea[T]) -> None:
        """Raises ValueError for an area that is backwards, no range of 64-bit addresses, or overlaps another one."""
        check_span(area.first, area.last)
        number, at = self._reach(area.first)
        if number < len(self._blocks) and self._blocks[number].firsts[at] <= area.last:
            raise ValueError(f"area {area.first:#x}..{area.last:#x}: overlaps {self._blocks[number].firsts[at]:#x}..")
        if not at and number:
            # Behind the block before this one: so a space that is filled in order has full blocks.
            number -= 1
            at = len(self._blocks[number].firsts)
        self._insert(number, at, area)
        self._size += 1

    def _insert(self, number: int, at: int, area: ByteArea[T]) -> None:
        if number == len(self._blocks):
            self._blocks.append(_Block(array("Q"), array("Q"), array("Q"), []))
            self._heads.append(area.first)
        block = self._blocks[number]
        if len(block.firsts) == BLOCK_AREAS:
            half = at if at == BLOCK_AREAS else BLOCK_AREAS // 2
            behind = block.part(slice(half, None))
            block.delete(slice(half, None))
            self._blocks.insert(number + 1, behind)
            self._heads.insert(number + 1, behind.firsts[0] if behind.firsts else area.first)
            if at >= half:
                number, at, block = number + 1, at - half, behind
        block.insert(at, area)
        self._heads[number] = block.firsts[0]

    def remove(self, first: int, last: int, cutting: Cutting) -> Removal[T]:
        """Remove the areas of first..last by one of three rules."""
        gone: list[ByteArea[T]] = []
        cut: ByteArea[T] | None = None
        place = self._reach(first)
        for area in self._from(*place, last):
            if area.first < first or (area.last > last and cutting is not Cutting.WHOLE):
                cut = area
                break
            gone.append(area)
        if cut and cutting is Cutting.REFUSED:
            gone = []
        if gone:
            self._delete(*place, len(gone))
        return Removal(gone, cut)

    def split(self, begin: int) -> None:
        """Let the area around `begin` end before it, and another one begin there; without effect where none is cut."""
        number, at = self._reach(begin)
        if number == len(self._blocks) or self._blocks[number].firsts[at] >= begin:
            return
        block = self._blocks[number]
        target = block.targets[at] + begin - block.firsts[at]
        behind = ByteArea(begin, block.lasts[at], target, block.tags[at])
        block.lasts[at] = begin - 1
        self._insert(number, at + 1, behind)
        self._size += 1

    def _delete(self, number: int, at: int, count: int) -> None:
        self._size -= count
        while count:
            block = self._blocks[number]
            here = min(count, len(block.firsts) - at)
            block.delete(slice(at, at + here))
            if block.firsts:
                self._heads[number] = block.firsts[0]
                number += 1
            else:
                del self._blocks[number], self._heads[number]
            count -= here
            at = 0
