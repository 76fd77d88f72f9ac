"""The driver of a command ring."""

from __future__ import annotations

import struct

from pviommu_abi.registers import DOORBELL_STRIDE, REGISTER, RingControl
from pviommu_abi.shared import CACHE_LINE, RING_AREA_OFFSET, RING_INDEX_STRIDE
from pviommu_abi.slots import PAYLOAD_OFFSET, PAYLOAD_SIZE, SLOT_SIZE, Slot

from .function import WORD, Function

__all__ = ["MASK", "Ring"]

MASK = 0xFFFFFFFF
"""Mask of indices: they wrap at 32 bits."""
_HEAD = struct.Struct("<BBHI8x")
_TAIL = struct.Struct("<iI")
_RESULT = Slot.offset_of("result")


class Ring:
    """Slots in shared memory, and how far each side is: the guest at :attr:`producer`, the device at :attr:`completed`.

    Positions count all slots ever submitted, modulo 2**32.
    """

    def __init__(self, function: Function, number: int = 0, entries: int = 256, base: int = RING_AREA_OFFSET) -> None:
        """``entries``: number of slots, a power of two, 16 to 1024; ``base``: where they begin, in bytes into the
        shared BAR."""
        self.function = function
        self.number = number
        self.entries = entries
        self.base = base
        self.producer = 0
        self._line = number * RING_INDEX_STRIDE // WORD
        self._device_line = self._line + CACHE_LINE // WORD

    def turn_on(self) -> None:
        """Rewind the ring, and turn it on at position 0."""
        self.rewind()
        for register, value in (
            ("RING_SELECT", self.number),
            ("RING_ENTRIES", self.entries),
            ("RING_BASE_LO", self.base),
            ("RING_CONTROL", RingControl.ENABLE),
        ):
            self.function.write(register, value)

    def rewind(self) -> None:
        """What a driver does before it turns a ring on again."""
        self.producer = 0
        self.function.words[self._line] = 0

    def place(self, position: int) -> int:
        """Where a slot is, in bytes into the shared BAR."""
        return self.base + position % self.entries * SLOT_SIZE

    def put(self, op_class: int, op: int, flags: int, payload: bytes, sequence: int | None = None) -> int:
        """Submit a slot, without a doorbell; returns its position, which is its sequence number too unless one is
        given."""
        position = self.producer
        at = self.place(position)
        head = _HEAD.pack(op_class, op, flags, position if sequence is None else sequence)
        self.function.view[at : at + SLOT_SIZE] = head + payload.ljust(PAYLOAD_SIZE, b"\0")
        self.producer = position + 1 & MASK
        self.function.words[self._line] = self.producer
        return position

    @property
    def completed(self) -> int:
        """How far the device says it is."""
        return int(self.function.words[self._device_line])

    def is_complete(self, position: int) -> bool:
        """Whether a slot, one of the last :attr:`entries`, is complete."""
        return self.completed - position - 1 & MASK < self.entries

    def result(self, position: int) -> tuple[int, int, bytes]:
        """Result, sequence and payload of a completed slot."""
        at = self.place(position)
        result, sequence = _TAIL.unpack_from(self.function.view, at + _RESULT)
        return result, sequence, bytes(self.function.view[at + PAYLOAD_OFFSET : at + SLOT_SIZE])

    def doorbell_wanted(self, first: int) -> bool:
        """Whether the device asked to be told of a slot from ``first`` on. Submit, then a fence, then this."""
        wish = self.function.words[self._device_line + 1]
        return self.producer - wish - 1 & MASK < self.producer - first & MASK

    def ring_doorbell(self) -> None:
        """Tell the device, whether it asked or not."""
        self.function.write_at(REGISTER["DOORBELL"].offset + self.number * DOORBELL_STRIDE, 0)
