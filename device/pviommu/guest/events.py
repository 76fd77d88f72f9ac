"""The driver of the event ring."""

from __future__ import annotations

from pviommu_abi.shared import CACHE_LINE, EVENT_ENTRIES, EVENT_INDEX_OFFSET, EVENT_OFFSET, DeviceEventLine, Event

from .function import WORD, Function
from .ring import MASK

__all__ = ["EventRing"]

_CONSUMER = EVENT_INDEX_OFFSET // WORD
_PRODUCER = (EVENT_INDEX_OFFSET + CACHE_LINE) // WORD
_LOST = (EVENT_INDEX_OFFSET + CACHE_LINE + DeviceEventLine.offset_of("lost")) // WORD


class EventRing:
    """Takes what the device reports."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.consumer = 0
        """events taken so far, modulo 2**32; 0 again after a reset"""

    @property
    def is_empty(self) -> bool:
        return bool(self.function.words[_PRODUCER] == self.consumer)

    @property
    def lost(self) -> int:
        """Events that found no room."""
        return int(self.function.words[_LOST])

    def take(self) -> list[Event]:
        """All events that are there, at most as many as the ring has room for; their places are free afterwards."""
        words = self.function.words
        found: list[Event] = []
        producer = words[_PRODUCER]
        while self.consumer != producer and len(found) < EVENT_ENTRIES:
            place = EVENT_OFFSET + self.consumer % EVENT_ENTRIES * Event.SIZE
            found.append(Event.unpack(self.function.view, place))
            self.consumer = self.consumer + 1 & MASK
        words[_CONSUMER] = self.consumer
        return found
