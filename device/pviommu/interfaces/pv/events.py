"""The event ring: what the guest is told without asking."""

from __future__ import annotations

from dataclasses import dataclass

from pviommu_abi.shared import (
    CACHE_LINE,
    EVENT_ENTRIES,
    EVENT_INDEX_OFFSET,
    EVENT_OFFSET,
    DeviceEventLine,
    Event,
    GuestEventLine,
)

from ...inputs import InputKind, Inputs, Source
from ...pci.shared_memory import SharedMemory, fence
from .ring import MASK, passed

__all__ = ["EventRing", "EventRingState"]

_CONSUMER = (EVENT_INDEX_OFFSET + GuestEventLine.offset_of("consumer")) // 4
_ARM = (EVENT_INDEX_OFFSET + GuestEventLine.offset_of("arm")) // 4
_PRODUCER = (EVENT_INDEX_OFFSET + CACHE_LINE + DeviceEventLine.offset_of("producer")) // 4
_LOST = (EVENT_INDEX_OFFSET + CACHE_LINE + DeviceEventLine.offset_of("lost")) // 4


@dataclass(frozen=True)
class EventRingState:
    """The saved state of an :class:`EventRing`, without the shared memory."""

    producer: int = 0
    sequence: int = 0
    lost: int = 0


class EventRing:
    """Events never overwrite each other and never block: a full ring counts what it loses."""

    def __init__(self, shared: SharedMemory, inputs: Inputs) -> None:
        self._shared = shared
        self._word = inputs.words(Source(InputKind.EVENT_INDEX))
        self._producer = 0
        self.sequence = 0
        """number of the next event, lost ones counted"""
        self.lost = 0

    def reset(self) -> None:
        """Empty; the caller clears the shared memory."""
        self.load(EventRingState())

    def save(self) -> EventRingState:
        """The state."""
        return EventRingState(self._producer, self.sequence, self.lost)

    def load(self, state: EventRingState) -> None:
        """Take over a state; somebody else restores the shared memory."""
        self._producer, self.sequence, self.lost = state.producer, state.sequence, state.lost

    def put(self, event: Event) -> bool:
        """Write ``event``, whose sequence must be :attr:`sequence`. Returns whether the guest asked to be
        interrupted."""
        self.sequence = (self.sequence + 1) & MASK
        consumer = self._word(self._shared.words, _CONSUMER)
        if (self._producer - consumer) & MASK >= EVENT_ENTRIES:
            # full, or the guest's index is nonsense; neither may make records overwrite each other
            self._count_lost()
            return False
        place = EVENT_OFFSET + self._producer % EVENT_ENTRIES * Event.SIZE
        self._shared.view[place : place + Event.SIZE] = event.pack()
        old, self._producer = self._producer, (self._producer + 1) & MASK
        self._shared.words[_PRODUCER] = self._producer
        fence()
        return passed(self._word(self._shared.words, _ARM), self._producer, old)

    def lose(self) -> None:
        """Count an event as lost, whether or not there is room."""
        self.sequence = (self.sequence + 1) & MASK
        self._count_lost()

    def _count_lost(self) -> None:
        self.lost += 1
        self._shared.words[_LOST] = self.lost & MASK
