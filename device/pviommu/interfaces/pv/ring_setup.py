"""The banked registers of a command ring, and the rules for turning it on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pviommu_abi.registers import RingType
from pviommu_abi.shared import MAX_RING_ENTRIES, MIN_RING_ENTRIES, RING_AREA_OFFSET, RING_AREA_SIZE
from pviommu_abi.slots import SLOT_SIZE

if TYPE_CHECKING:
    from .ring import CommandRing

__all__ = ["RING_PAGE", "RingSetup", "overlaps"]

RING_PAGE = 4096


@dataclass
class RingSetup:
    """What the guest has written to the registers of one ring."""

    kind: int = 0
    entries: int = 0
    base_low: int = 0
    base_high: int = 0

    @property
    def base(self) -> int:
        """Bytes from the start of the shared memory."""
        return self.base_high << 32 | self.base_low

    @property
    def end(self) -> int:
        """The first byte after the slots."""
        return self.base + self.entries * SLOT_SIZE

    def is_legal(self) -> bool:
        """Whether a ring may be there, whatever other rings there are."""
        return (
            self.kind == RingType.SHARED_BAR
            and MIN_RING_ENTRIES <= self.entries <= MAX_RING_ENTRIES
            and self.entries & (self.entries - 1) == 0
            and self.base % RING_PAGE == 0
            and self.base >= RING_AREA_OFFSET
            and self.end <= RING_AREA_OFFSET + RING_AREA_SIZE
        )


def overlaps(setup: RingSetup, rings: Sequence[CommandRing], setups: Sequence[RingSetup]) -> bool:
    """Whether ``setup`` shares a byte with a ring that is on."""
    return any(
        ring.enabled and place.base < setup.end and setup.base < place.base + ring.entries * SLOT_SIZE
        for ring, place in zip(rings, setups, strict=True)
    )
