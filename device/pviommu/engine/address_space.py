"""An address space that user space maps into: what is mapped, what it may use, what its devices cannot.

Three things narrow it. *Reserved* is what some owner, a device or a page table, cannot translate: nothing is mapped
there, and an owner comes only if nothing is in its way. *Allowed* is what user space promised to keep to when it lets
addresses be chosen for it, and in return no owner may reserve any of it. *Areas* are what is mapped.

The rules are those of Linux' iommufd (drivers/iommu/iommufd/io_pagetable.c, 7.3), the wider of two: VFIO's container
has the same without an allowed list. Which errno a misfit is, each interface says.
"""

from collections.abc import Hashable, Iterable
from enum import Enum
from typing import Generic, TypeVar

from .areas import Areas, ByteArea
from .frames import PAGE_MASK, PAGE_SIZE
from .spans import LAST_ADDRESS, Span, complement, intersection, merged

T = TypeVar("T")

HUGE_PAGE_SIZE = 1 << 21
"""Addresses that are chosen are not aligned further than to this, a page of the level above the lowest."""
LENGTH_LIMIT = LAST_ADDRESS // 2
"""A range whose address is chosen is shorter."""


class Misfit(Enum):
    """Why a range cannot be mapped."""

    LENGTH = "the length is 0, or no multiple of the alignment"
    MISALIGNED = "not aligned"
    OVERFLOW = "beyond 64-bit addresses"
    RESERVED = "a device or a page table reserves some of it"
    OCCUPIED = "some of it is mapped"
    NO_ROOM = "no free range is long enough"


class AddressSpace(Generic[T]):
    """Addresses of 64 bits, by the byte. `T` is what an area carries, see `areas.ByteArea`."""

    __slots__ = ("_allowed", "_owners", "_reserved", "alignment", "areas")

    def __init__(self) -> None:
        self.areas: Areas[T] = Areas()
        self.alignment = 1
        """Areas begin at a multiple of it, a power of two, and are as long; see :meth:`align`."""
        self._owners: dict[Hashable, tuple[Span, ...]] = {}
        self._reserved: tuple[Span, ...] = ()
        self._allowed: tuple[Span, ...] = ()

    # What is allowed

    @property
    def reserved(self) -> tuple[Span, ...]:
        """What somebody reserves, as a set."""
        return self._reserved

    @property
    def allowed(self) -> tuple[Span, ...]:
        """What user space lets be chosen, as a set; empty: everything."""
        return self._allowed

    def ranges(self) -> tuple[Span, ...]:
        """What can be mapped as far as owners are concerned, as a set."""
        return complement(self._reserved)

    def reserve(self, owner: Hashable, spans: Iterable[Span]) -> Span | None:
        """Add to what an owner reserves: all of it, or nothing. Returns what is in the way, an area or allowed, if
        something is. Raises ValueError as spans.check_span() does.
        """
        spans = merged(spans)
        for first, last in spans:
            area = self.areas.first_in(first, last)
            if area:
                return area.first, area.last
            for span in intersection(self._allowed, first, last):
                return span
        self._own({**self._owners, owner: merged((*self._owners.get(owner, ()), *spans))})
        return None

    def release(self, owner: Hashable) -> None:
        """The owner reserves nothing any more."""
        self._own({other: spans for other, spans in self._owners.items() if other != owner})

    def _own(self, owners: dict[Hashable, tuple[Span, ...]]) -> None:
        self._owners = owners
        self._reserved = merged(span for spans in owners.values() for span in spans)

    def allow(self, spans: Iterable[Span]) -> Span | None:
        """Replace what is allowed; nothing: everything. Returns what is in the way, a reserved span, if something is,
        and then changes nothing. Raises ValueError as spans.check_span() does.
        """
        allowed = merged(spans)
        for first, last in allowed:
            for span in intersection(self._reserved, first, last):
                return span
        self._allowed = allowed
        return None

    def align(self, alignment: int) -> ByteArea[T] | None:
        """Let areas be aligned to this power of two from now on. Returns one that is not, and then changes nothing.

        Where in its page an area's target is counts too: page tables have no smaller unit.
        """
        mask = alignment - 1
        if alignment > self.alignment:
            for area in self.areas:
                if (area.first | area.last + 1 | area.target & PAGE_MASK) & mask:
                    return area
        self.alignment = alignment
        return None

    # Room for a mapping

    def check(self, first: int, length: int) -> Misfit | None:
        """Whether `length` bytes can be mapped at `first`: LENGTH, MISALIGNED, OVERFLOW, RESERVED, OCCUPIED, in this
        rank.
        """
        mask = self.alignment - 1
        if length < 1 or length & mask:
            return Misfit.LENGTH
        if first & mask:
            return Misfit.MISALIGNED
        last = first + length - 1
        if last > LAST_ADDRESS:
            return Misfit.OVERFLOW
        if any(intersection(self._reserved, first, last)):
            return Misfit.RESERVED
        if self.areas.first_in(first, last):
            return Misfit.OCCUPIED
        return None

    def find(self, length: int, target: int) -> int | Misfit:
        """An address where `length` bytes that are mapped to `target` fit: LENGTH, OVERFLOW, MISALIGNED or NO_ROOM.

        It is in the lowest range that has room: allowed, neither reserved nor mapped, and not in the first or last
        page. It is the first one there that is aligned to the smallest power of two that is no less than the length,
        but no further than the target is, nor than HUGE_PAGE_SIZE; then bits of the target's place in its page are set
        in it. MISALIGNED: the target is aligned less than areas must be.
        """
        if length < 1 or length & self.alignment - 1:
            return Misfit.LENGTH
        if length >= LENGTH_LIMIT:
            return Misfit.OVERFLOW
        power = 1 << (length - 1).bit_length()
        alignment = min(power, target & -target if target else power, HUGE_PAGE_SIZE)
        if alignment < self.alignment:
            return Misfit.MISALIGNED
        offset = target & PAGE_MASK
        windows = self._allowed or ((0, LAST_ADDRESS),)
        for window in intersection(windows, PAGE_SIZE, LAST_ADDRESS - PAGE_SIZE):
            begin = _aligned(window, length, alignment, offset)
            if begin is None:
                continue
            for gap in self.areas.gaps(begin, window[1], length):
                for span in complement(self._reserved, *gap):
                    found = _aligned(span, length, alignment, offset)
                    if found is not None:
                        return found
        return Misfit.NO_ROOM


def _aligned(span: Span, length: int, alignment: int, offset: int) -> int | None:
    """The first address in a span that is aligned and has room behind it. A span of one byte has room for none."""
    first, last = span
    begin = -(-first // alignment) * alignment | offset
    return begin if begin < last and last - begin >= length - 1 else None
