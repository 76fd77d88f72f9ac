"""The driver of a DMA test engine."""

from __future__ import annotations

import struct

from pviommu_abi.dma_test import ENTRIES, Control, Descriptor, DescriptorStatus

from .function import WORD, Function
from .ring import MASK

__all__ = ["DescriptorRing"]

_DESCRIPTOR = struct.Struct("<BBHIQQQ")
_STATUS, _PASID = Descriptor.offset_of("status"), Descriptor.offset_of("pasid")


class DescriptorRing:
    """Puts descriptors into the engine's shared memory and reads their outcome."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.producer = 0

    def turn_on(self) -> None:
        """Let it do DMA and take descriptors."""
        self.function.set_bus_master(True)
        self.function.write("CONTROL", Control.ENABLE)

    def put(
        self, op: int, length: int, src: int = 0, dst: int = 0, pattern: int = 0, flags: int = 0, pasid: int = 0
    ) -> int:
        """Queue a descriptor; returns its place, in bytes into the shared BAR."""
        place = self.producer % ENTRIES * Descriptor.SIZE
        packed = _DESCRIPTOR.pack(op, flags, 0, length, src, dst, pattern).ljust(_PASID, b"\0")
        packed += pasid.to_bytes(WORD, "little")
        self.function.view[place : place + Descriptor.SIZE] = packed.ljust(Descriptor.SIZE, b"\0")
        self.producer = self.producer + 1 & MASK
        return place

    def start(self) -> None:
        """Tell it to work on all that was queued."""
        self.function.write("PRODUCER", self.producer)

    def is_done(self, place: int) -> bool:
        return bool(self.function.words[(place + _STATUS) // WORD] != DescriptorStatus.PENDING)

    def descriptor(self, place: int) -> Descriptor:
        """A descriptor, with what the engine wrote into it."""
        return Descriptor.unpack(self.function.view, place)
