"""A ring with both of its sides, in memory without a guest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from pviommu.dma.fault import DmaPendingError
from pviommu.guest.virtio import RING_PACKED, DriverRing, PackedDriver, SplitDriver
from pviommu.virtio.packed import PackedRing
from pviommu.virtio.ring import QueueState, Ring
from pviommu.virtio.split import SplitRing

BASE = 0x10000
DATA = 0x20000
TABLE = 0x28000


class Memory:
    """64 KiB from BASE on, for the driver by address and for the device by spans."""

    def __init__(self) -> None:
        self.bytes = bytearray(0x20000)
        self.pending = 0
        """how many requests of the device are put off from now on"""
        self.after_read: Callable[[], None] = lambda: None
        """called after each request of the device to read"""
        self.requests = 0

    def read(self, address: int, length: int) -> bytes:
        assert BASE <= address <= address + length <= BASE + len(self.bytes), hex(address)
        return bytes(self.bytes[address - BASE : address - BASE + length])

    def write(self, address: int, data: bytes) -> None:
        assert BASE <= address <= address + len(data) <= BASE + len(self.bytes), hex(address)
        self.bytes[address - BASE : address - BASE + len(data)] = data


class Dma:
    """What the device has of it."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.written: list[tuple[int, int]] = []
        """the spans that were written, in order"""

    def _begin(self) -> None:
        self.memory.requests += 1
        if self.memory.pending:
            self.memory.pending -= 1
            raise DmaPendingError

    def read(self, spans: Sequence[tuple[int, int]]) -> bytes:
        self._begin()
        data = b"".join([self.memory.read(*span) for span in spans])
        self.memory.after_read()
        return data

    def write(self, spans: Sequence[tuple[int, int]], data: bytes | memoryview) -> None:
        self._begin()
        assert sum(length for _, length in spans) == len(data)
        for address, length in spans:
            self.memory.write(address, bytes(data[:length]))
            self.written.append((address, length))
            data = data[length:]


class Pair:
    """Driver and device of one ring."""

    def __init__(self, features: int, size: int) -> None:
        self.memory = Memory()
        self.dma = Dma(self.memory)
        kind = PackedDriver if features & RING_PACKED else SplitDriver
        self.driver: DriverRing = kind(self.memory, BASE, size, features)
        self.features = features
        self.state = QueueState(size, desc=self.driver.desc, driver=self.driver.driver, device=self.driver.device)
        self.device = self.ring_of(self.state)

    def ring_of(self, state: QueueState) -> Ring:
        kind = PackedRing if self.features & RING_PACKED else SplitRing
        return kind(state, self.dma, self.features)

    def use_all(self, written: int = 0) -> int:
        """The device uses all buffers; how many."""
        count = 0
        while self.device.peek():
            self.device.use(written)
            count += 1
        return count


@pytest.fixture
def pair() -> Callable[..., Pair]:
    return lambda features=0, size=8: Pair(features, size)
