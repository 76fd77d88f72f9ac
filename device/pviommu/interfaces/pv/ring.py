"""A command ring in shared memory, as the device sees it.

The guest can write every byte of it at any time. Slots are therefore copied out before anything is checked, the
device keeps its own indices and never reads back what it wrote, and an impossible producer index stops the
ring.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from msgspec import Struct

from pviommu_abi.registers import RingType
from pviommu_abi.shared import (
    CACHE_LINE,
    INDEX_OFFSET,
    RING_INDEX_STRIDE,
    DeviceRingLine,
    GuestRingLine,
)
from pviommu_abi.slots import PAYLOAD_OFFSET, PAYLOAD_SIZE, SLOT_SIZE, Slot

from ...inputs import InputKind, Inputs, Source
from ...pci.shared_memory import SharedMemory, fence
from .profile import Held, Progress
from .ring_setup import RingSetup

__all__ = ["MASK", "CommandRing", "CommandRingState", "Operation", "passed"]

MASK = 0xFFFFFFFF
"""Indices wrap at 2**32."""

_RESULT = struct.Struct("<iI")  # result and completed, side by side
_RESULT_OFFSET = Slot.offset_of("result")


def passed(event: int, new: int, old: int) -> bool:
    """Whether an index that went from ``old`` to ``new`` passed ``event``, as 32-bit numbers that wrap."""
    return (new - event - 1) & MASK < (new - old) & MASK


class Operation(Struct, frozen=True):
    """A long operation in progress: its slot, which is the oldest of its ring that is not completed, and how far it is.
    The guest may have changed the slot in the ring since.
    """

    op_class: int
    op: int
    flags: int
    sequence: int
    payload: bytes
    progress: Progress


@dataclass(frozen=True)
class CommandRingState:
    """The saved state of a :class:`CommandRing`, without the shared memory."""

    base: int = 0
    """bytes from the start of the shared memory"""
    entries: int = 0
    """slots; 0 while the ring is off"""
    broken: bool = False
    completed: int = 0
    awaited: int = 0
    operation: Operation | None = None


class CommandRing:
    """Ring ``number`` of the shared BAR."""

    def __init__(self, number: int, shared: SharedMemory, inputs: Inputs) -> None:
        base = INDEX_OFFSET + number * RING_INDEX_STRIDE
        self.number = number
        self._shared = shared
        self._word = inputs.words(Source(InputKind.RING_INDEX, number))
        self._copy = inputs.copies(Source(InputKind.RING_SLOTS, number))
        self._producer_word = (base + GuestRingLine.offset_of("producer")) // 4
        self._event_word = (base + GuestRingLine.offset_of("completion_event")) // 4
        self._awaited_word = (base + GuestRingLine.offset_of("awaited")) // 4
        self._completed_word = (base + CACHE_LINE + DeviceRingLine.offset_of("completed")) // 4
        self._doorbell_word = (base + CACHE_LINE + DeviceRingLine.offset_of("doorbell_event")) // 4
        self._base = 0
        self.entries = 0
        """slots; 0 while the ring is off"""
        self.broken = False
        self.busy = False
        """whether slots of this ring are being executed"""
        self.operation: Operation | None = None
        """the long one in progress, if there is one: no other slot begins before it is over"""
        self.completed = 0
        self.awaited = 0
        """the index that was last seen to be polled for"""

    @property
    def enabled(self) -> bool:
        """Whether the ring is on."""
        return self.entries > 0

    def is_rewound(self) -> bool:
        """Whether the guest has set its producer index to 0, as it must before it turns the ring on."""
        return self._word(self._shared.words, self._producer_word) == 0

    def enable(self, base: int, entries: int) -> None:
        """Turn the ring on: ``entries`` slots (a power of two) at byte ``base`` of the shared memory."""
        self._base, self.entries = base, entries
        self.broken = False
        self.completed = self.awaited = 0
        words = self._shared.words
        words[self._completed_word] = 0
        self.disarm()

    def save(self) -> CommandRingState:
        """The state. Raises ValueError while slots are being executed, or an operation is held."""
        if self.busy:
            raise ValueError(f"ring {self.number} cannot be saved while its slots are being executed")
        if self.operation and isinstance(self.operation.progress, Held):
            raise ValueError(f"ring {self.number} cannot be saved while a rule holds an operation of it")
        return CommandRingState(self._base, self.entries, self.broken, self.completed, self.awaited, self.operation)

    def load(self, state: CommandRingState) -> None:
        """Take over a state; somebody else restores the shared memory.

        Raises ValueError, and then changes nothing, for a ring at a place where none may be, and for an operation in
        progress of a ring that is off, or without a whole slot.
        """
        place = RingSetup(RingType.SHARED_BAR, state.entries, state.base & MASK, state.base >> 32)
        if state.entries and not place.is_legal():
            raise ValueError(f"ring {self.number}: {state.entries} slots at {state.base:#x}: no place for a ring")
        if state.operation and not (state.entries and len(state.operation.payload) == PAYLOAD_SIZE):
            raise ValueError(f"ring {self.number}: an operation in progress of a ring that is off, or of no slot")
        self._base, self.entries = state.base, state.entries
        self.broken = state.broken
        self.completed, self.awaited = state.completed, state.awaited
        self.operation = state.operation

    def disable(self) -> None:
        """Turn the ring off. An operation in progress ends half done."""
        self.entries = 0
        self.broken = False
        self.operation = None

    def pending(self) -> int:
        """Slots submitted and not completed. An impossible number breaks the ring, which then has none."""
        if not self.entries or self.broken:
            return 0
        distance = (self._word(self._shared.words, self._producer_word) - self.completed) & MASK
        if distance > self.entries:
            self.broken = True
            return 0
        return distance

    def is_awaited_anew(self) -> bool:
        """Whether somebody in the guest has begun to poll for an index since the last call.

        An index that was completed meanwhile counts as well: whoever has waited briefly will do so again.
        """
        before, self.awaited = self.awaited, self._word(self._shared.words, self._awaited_word)
        return self.awaited != before

    def is_awaited(self) -> bool:
        """Whether somebody in the guest polls for an index that is not completed yet."""
        awaited = self._word(self._shared.words, self._awaited_word)
        return 0 < (awaited - self.completed) & MASK <= self.entries

    def fetch(self, limit: int) -> bytes:
        """A private copy of the next slots: at most ``limit`` of them, none past the end of the ring's memory."""
        place = self.completed & (self.entries - 1)
        count = min(limit, self.entries - place)
        start = self._base + place * SLOT_SIZE
        return self._copy(self._shared.view[start : start + count * SLOT_SIZE])

    def finish(self, position: int, result: int, sequence: int, payload: bytes) -> None:
        """Write the outcome of the slot ``position`` places after the last completed one, without completing it."""
        place = self._base + ((self.completed + position) & (self.entries - 1)) * SLOT_SIZE
        if payload:
            start = place + PAYLOAD_OFFSET
            self._shared.view[start : start + len(payload)] = payload
        _RESULT.pack_into(self._shared.view, place + _RESULT_OFFSET, result, sequence)

    def publish(self, count: int) -> bool:
        """Complete the next ``count`` slots. Returns whether the guest asked to be interrupted."""
        old = self.completed
        self.completed = (old + count) & MASK
        self._shared.words[self._completed_word] = self.completed
        fence()
        return passed(self._word(self._shared.words, self._event_word), self.completed, old)

    def arm(self) -> None:
        """Ask for the doorbell at the next slot. The caller then fences and asks :meth:`pending` once more."""
        self._shared.words[self._doorbell_word] = self.completed

    def disarm(self) -> None:
        """Ask for no doorbell: an index just passed is the farthest away from being passed again."""
        self._shared.words[self._doorbell_word] = (self.completed - 1) & MASK
