"""An endpoint's address translation cache (ATC): what its IOMMU has told it by ATS (PCI Express, chapter 10).

The IOMMU's owner says when entries are not true any more, by invalidations; until then they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..engine import Access

__all__ = ["ATC_ENTRIES", "Atc", "AtcEntry", "Invalidation"]

ATC_ENTRIES = 32
"""of an ATC"""


class Invalidation(NamedTuple):
    """What an ATC is to forget."""

    first: int
    last: int
    """device address of the last byte"""
    pasid: int | None = None
    """entries with this PASID; None: all, with one and without"""
    every_pasid: bool = False
    """with a PASID: entries with any"""

    def concerns(self, pasid: int | None) -> bool:
        """Whether entries of this PASID are meant."""
        return self.pasid is None or (pasid is not None and (self.every_pasid or self.pasid == pasid))


class AtcEntry(NamedTuple):
    """A translation."""

    output: int
    """where the block begins"""
    shift: int
    """log2 of the block's bytes"""
    access: Access
    """what the IOMMU allows"""


class Atc:
    """The ATC of one endpoint. What has been there longest makes room."""

    def __init__(self, entries: int = ATC_ENTRIES) -> None:
        self._limit = entries
        self._entries: dict[tuple[int | None, int, int], AtcEntry] = {}
        """by PASID, log2 of the block's bytes, and number of the block"""
        self.is_enabled: Callable[[], bool] = lambda: False
        """whether the guest has turned ATS on at the endpoint"""
        self.unit: Callable[[], int] = lambda: 12
        """log2 of the least bytes that an entry may have, as the guest has chosen it (STU)"""

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, pasid: int | None, iova: int, access: Access) -> AtcEntry | None:
        """What is known of an address and allows ``access``."""
        for shift in sorted({each[1] for each in self._entries}):
            entry = self._entries.get((pasid, shift, iova >> shift))
            if entry is not None and not access & ~entry.access:
                return entry
        return None

    def add(self, pasid: int | None, iova: int, output: int, shift: int, access: Access) -> AtcEntry:
        """Keep the answer to a translation request: ``iova`` leads to ``output``, in a block of 2 ** ``shift`` bytes.
        One that is smaller than :attr:`unit` is used once and not kept.
        """
        entry = AtcEntry(output & -(1 << shift), shift, access)
        if shift >= self.unit():
            key = pasid, shift, iova >> shift
            self._entries.pop(key, None)
            if len(self._entries) >= self._limit:
                del self._entries[next(iter(self._entries))]
            self._entries[key] = entry
        return entry

    def invalidate(self, told: Invalidation) -> None:
        """Forget what the IOMMU's owner says."""
        for key in list(self._entries):
            pasid, shift, number = key
            begin = number << shift
            if told.concerns(pasid) and begin <= told.last and told.first < begin + (1 << shift):
                del self._entries[key]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
