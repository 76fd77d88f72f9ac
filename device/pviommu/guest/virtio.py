"""The driver of a virtio device: negotiation, and the driver's side of split and packed rings.

It knows the specification and nothing of the device that it judges. What it writes into a ring can be given word by
word, so that a test may break any rule.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

__all__ = [
    "ACCESS_PLATFORM",
    "INDIRECT_DESC",
    "RING_EVENT_IDX",
    "RING_PACKED",
    "RING_RESET",
    "VERSION_1",
    "DriverRing",
    "Memory",
    "PackedDriver",
    "Returned",
    "SplitDriver",
    "VirtioFunction",
    "VirtioGuest",
]

INDIRECT_DESC, RING_EVENT_IDX, VERSION_1, ACCESS_PLATFORM = 1 << 28, 1 << 29, 1 << 32, 1 << 33
RING_PACKED, RING_RESET = 1 << 34, 1 << 40
NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 1 << 7, 1 << 15
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 0x40

Span = tuple[int, int]
_DESCRIPTOR = struct.Struct("<QLHH")

COMMON = {
    "DEVICE_FEATURE_SELECT": (0x00, 4),
    "DEVICE_FEATURE": (0x04, 4),
    "DRIVER_FEATURE_SELECT": (0x08, 4),
    "DRIVER_FEATURE": (0x0C, 4),
    "CONFIG_MSIX_VECTOR": (0x10, 2),
    "NUM_QUEUES": (0x12, 2),
    "DEVICE_STATUS": (0x14, 1),
    "CONFIG_GENERATION": (0x15, 1),
    "QUEUE_SELECT": (0x16, 2),
    "QUEUE_SIZE": (0x18, 2),
    "QUEUE_MSIX_VECTOR": (0x1A, 2),
    "QUEUE_ENABLE": (0x1C, 2),
    "QUEUE_NOTIFY_OFF": (0x1E, 2),
    "QUEUE_DESC": (0x20, 8),
    "QUEUE_DRIVER": (0x28, 8),
    "QUEUE_DEVICE": (0x30, 8),
    "QUEUE_RESET": (0x3A, 2),
}
"""The common configuration: offset and size (section 4.1.4.3)."""


class Memory(Protocol):
    """Memory by the addresses that the device uses."""

    def read(self, address: int, length: int) -> bytes: ...
    def write(self, address: int, data: bytes) -> None: ...


class Returned(NamedTuple):
    """A buffer that the device gave back."""

    id: int
    written: int


class DriverRing(ABC):
    """The driver's side of one queue, in memory at ``base``: one page for each of the three parts, or more."""

    def __init__(self, memory: Memory, base: int, size: int, features: int) -> None:
        self.memory, self.size = memory, size
        self.event_idx = bool(features & RING_EVENT_IDX)
        part = 0x1000 * max(1, size // 128)
        self.desc, self.driver, self.device = base, base + part, base + 2 * part
        self.end = base + 3 * part
        memory.write(base, bytes(3 * part))

    @abstractmethod
    def add(self, readable: Sequence[Span] = (), writable: Sequence[Span] = (), table: int | None = None) -> int:
        """Make a buffer available; ``table`` is where its descriptors go if they are to be indirect. Its ID."""

    @abstractmethod
    def take(self) -> Returned | None:
        """The next buffer that came back."""

    @abstractmethod
    def needs_notification(self) -> bool:
        """Whether the device wants to be notified of the buffers that were added since this was last asked."""

    @abstractmethod
    def want_interrupt(self, wanted: bool) -> None:
        """Say whether the next used buffer is to raise an interrupt."""

    def word(self, address: int) -> int:
        return int.from_bytes(self.memory.read(address, 2), "little")

    def put_word(self, address: int, value: int) -> None:
        self.memory.write(address, (value & 0xFFFF).to_bytes(2, "little"))


def _elements(readable: Sequence[Span], writable: Sequence[Span]) -> list[tuple[int, int, int]]:
    return [(*span, 0) for span in readable] + [(*span, WRITE) for span in writable]


class SplitDriver(DriverRing):
    """Section 2.7. IDs are numbers of descriptors, handed out one after the other."""

    def __init__(self, memory: Memory, base: int, size: int, features: int) -> None:
        super().__init__(memory, base, size, features)
        self.avail_idx = self.last_used = self._told = self._free = 0

    def write_descriptor(self, index: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        self.memory.write(self.desc + 16 * index, _DESCRIPTOR.pack(address, length, flags, following))

    def offer(self, head: int) -> None:
        """Put a head into the available ring."""
        self.put_word(self.driver + 4 + 2 * (self.avail_idx % self.size), head)
        self.avail_idx = (self.avail_idx + 1) & 0xFFFF
        self.put_word(self.driver + 2, self.avail_idx)

    def add(self, readable: Sequence[Span] = (), writable: Sequence[Span] = (), table: int | None = None) -> int:
        elements = _elements(readable, writable)
        if table is not None:
            packed = [
                _DESCRIPTOR.pack(address, length, flags | (NEXT if number < len(elements) else 0), number)
                for number, (address, length, flags) in enumerate(elements, 1)
            ]
            self.memory.write(table, b"".join(packed))
            elements = [(table, 16 * len(packed), INDIRECT)]
        head = self._free
        for number, (address, length, flags) in enumerate(elements, 1):
            following = (self._free + 1) % self.size
            more = NEXT if number < len(elements) else 0
            self.write_descriptor(self._free, address, length, flags | more, following if more else 0)
            self._free = following
        self.offer(head)
        return head

    @property
    def used_idx(self) -> int:
        return self.word(self.device + 2)

    def take(self) -> Returned | None:
        if self.last_used == self.used_idx:
            return None
        data = self.memory.read(self.device + 4 + 8 * (self.last_used % self.size), 8)
        self.last_used = (self.last_used + 1) & 0xFFFF
        return Returned(*struct.unpack("<LL", data))

    def needs_notification(self) -> bool:
        old, self._told = self._told, self.avail_idx
        if old == self.avail_idx:
            return False
        if not self.event_idx:
            return not self.word(self.device) & 1
        event = self.word(self.device + 4 + 8 * self.size)
        return (self.avail_idx - event - 1) & 0xFFFF < (self.avail_idx - old) & 0xFFFF

    def want_interrupt(self, wanted: bool) -> None:
        if self.event_idx:
            self.put_word(self.driver + 4 + 2 * self.size, self.last_used if wanted else self.last_used - 1)
        else:
            self.put_word(self.driver, not wanted)


class PackedDriver(DriverRing):
    """Section 2.8. IDs count up."""

    def __init__(self, memory: Memory, base: int, size: int, features: int) -> None:
        super().__init__(memory, base, size, features)
        self.place = self.used_place = self._old = 0
        self.wrap = self.used_wrap = True
        self._next_id = 0
        self._lengths: dict[int, int] = {}

    def write_descriptor(self, index: int, address: int, length: int, buffer_id: int, flags: int) -> None:
        """All but the flags first, as a driver must."""
        packed = _DESCRIPTOR.pack(address, length, buffer_id, flags)
        self.memory.write(self.desc + 16 * index, packed[:14])
        self.memory.write(self.desc + 16 * index + 14, packed[14:])

    def add(self, readable: Sequence[Span] = (), writable: Sequence[Span] = (), table: int | None = None) -> int:
        elements = _elements(readable, writable)
        if table is not None:
            self.memory.write(table, b"".join(_DESCRIPTOR.pack(at, length, 0, flags) for at, length, flags in elements))
            elements = [(table, 16 * len(elements), INDIRECT)]
        buffer_id = self._next_id
        self._next_id = (self._next_id + 1) & 0x7FFF
        self._lengths[buffer_id] = len(elements)
        place, wrap, written = self.place, self.wrap, []
        for number, (address, length, flags) in enumerate(elements, 1):
            flags |= AVAIL if wrap else USED
            flags |= NEXT if number < len(elements) else 0
            written.append((place, address, length, flags))
            place += 1
            if place == self.size:
                place, wrap = 0, not wrap
        for index, address, length, flags in reversed(written):
            self.write_descriptor(index, address, length, buffer_id, flags)
        self.place, self.wrap = place, wrap
        return buffer_id

    def take(self) -> Returned | None:
        _, length, buffer_id, flags = _DESCRIPTOR.unpack(self.memory.read(self.desc + 16 * self.used_place, 16))
        if not bool(flags & AVAIL) is bool(flags & USED) is self.used_wrap:
            return None
        self.used_place += self._lengths.pop(buffer_id)
        if self.used_place >= self.size:
            self.used_place, self.used_wrap = self.used_place - self.size, not self.used_wrap
        return Returned(buffer_id, length)

    def needs_notification(self) -> bool:
        old, new = self._old, self.place
        self._old = new
        if old == new:
            return False
        at, flags = map(int, struct.unpack("<HH", self.memory.read(self.device, 4)))
        if flags != 2:
            return flags == 0
        event = at & 0x7FFF
        if bool(at >> 15) is not self.wrap:
            event -= self.size
        if new < old:
            old -= self.size
        return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF

    def want_interrupt(self, wanted: bool) -> None:
        if not wanted:
            word = 0, 1
        elif self.event_idx:
            word = self.used_place | (self.used_wrap << 15), 2
        else:
            word = 0, 0
        self.memory.write(self.driver, struct.pack("<HH", *word))


class VirtioFunction:
    """The registers of a virtio device, found by its capabilities."""

    def __init__(self, read: Callable[[int, int, int], bytes], write: Callable[[int, int, bytes], object]) -> None:
        """``read`` and ``write``: an access to a region: its number, offset, and how many bytes or which; the region of
        configuration space is 7.
        """
        self.read_region, self.write_region = read, write
        self.places: dict[int, tuple[int, int, int, int]] = {}
        """BAR, offset, length and place of the capability, by cfg_type"""
        place = self.config(0x34, 1)
        while place:
            if self.config(place, 1) == 0x09 and (bar := self.config(place + 4, 1)) < 6:
                kind = self.config(place + 3, 1)
                found = bar, self.config(place + 8, 4), self.config(place + 12, 4), place
                self.places.setdefault(kind, found)
            place = self.config(place + 1, 1)

    def config(self, offset: int, size: int) -> int:
        return int.from_bytes(self.read_region(7, offset, size), "little")

    def read(self, kind: int, offset: int, size: int) -> int:
        bar, first, _, _ = self.places[kind]
        return int.from_bytes(self.read_region(bar, first + offset, size), "little")

    def write(self, kind: int, offset: int, size: int, value: int) -> None:
        bar, first, _, _ = self.places[kind]
        self.write_region(bar, first + offset, value.to_bytes(size, "little"))

    def __getitem__(self, name: str) -> int:
        offset, size = COMMON[name]
        if size == 8:
            return self.read(1, offset, 4) | self.read(1, offset + 4, 4) << 32
        return self.read(1, offset, size)

    def __setitem__(self, name: str, value: int) -> None:
        offset, size = COMMON[name]
        if size == 8:  # as Linux does it
            self.write(1, offset, 4, value & 0xFFFFFFFF)
            self.write(1, offset + 4, 4, value >> 32)
        else:
            self.write(1, offset, size, value)

    def device_config(self, offset: int, size: int) -> int:
        return self.read(4, offset, size)

    def notify(self, queue: int) -> None:
        self["QUEUE_SELECT"] = queue
        place = self.places[2][3]
        self.write(2, self["QUEUE_NOTIFY_OFF"] * self.config(place + 16, 4), 2, queue)


class VirtioGuest:
    """A driver that takes a device to DRIVER_OK."""

    def __init__(self, function: VirtioFunction, memory: Memory, base: int) -> None:
        """``base``: where its rings go, page by page."""
        self.function, self.memory = function, memory
        self.rings: dict[int, DriverRing] = {}
        self.features = 0
        self._base = base

    @property
    def status(self) -> int:
        return self.function["DEVICE_STATUS"]

    def offered(self) -> int:
        found = 0
        for select in (0, 1):
            self.function["DEVICE_FEATURE_SELECT"] = select
            found |= self.function["DEVICE_FEATURE"] << 32 * select
        return found

    def negotiate(self, features: int) -> bool:
        """Reset, and accept these features. Returns whether the device agrees."""
        function = self.function
        function["DEVICE_STATUS"] = 0
        for status in (ACKNOWLEDGE, ACKNOWLEDGE | DRIVER):
            function["DEVICE_STATUS"] = status
        for select in (0, 1):
            function["DRIVER_FEATURE_SELECT"] = select
            function["DRIVER_FEATURE"] = features >> 32 * select & 0xFFFFFFFF
        self.features = features
        function["DEVICE_STATUS"] = ACKNOWLEDGE | DRIVER | FEATURES_OK
        return bool(self.status & FEATURES_OK)

    def set_up(self, queue: int, size: int, vector: int = 0xFFFF) -> DriverRing:
        """Enable a queue."""
        kind = PackedDriver if self.features & RING_PACKED else SplitDriver
        ring = kind(self.memory, self._base, size, self.features)
        self._base = ring.end
        self.enable(queue, ring, vector)
        return ring

    def enable(self, queue: int, ring: DriverRing, vector: int = 0xFFFF) -> None:
        function = self.function
        function["QUEUE_SELECT"] = queue
        function["QUEUE_SIZE"] = ring.size
        function["QUEUE_MSIX_VECTOR"] = vector
        function["QUEUE_DESC"], function["QUEUE_DRIVER"], function["QUEUE_DEVICE"] = ring.desc, ring.driver, ring.device
        function["QUEUE_ENABLE"] = 1
        self.rings[queue] = ring

    def go(self) -> None:
        """DRIVER_OK."""
        self.function["DEVICE_STATUS"] = self.status | DRIVER_OK
