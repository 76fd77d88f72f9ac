"""A small device in memory, and a check that a test leaks no descriptor."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator

import pytest

from vfio_user import (
    DeviceInfo,
    DmaMapping,
    InterruptTable,
    Irq,
    IrqIndex,
    IrqRequest,
    Region,
    RegionFlags,
    RegionIndex,
    RequestError,
)

PAGE = 4096
BAR2_SIZE = 4 * PAGE
FILE_OFFSET = PAGE


class MemoryDevice:
    """BAR0 4 KiB trapped, BAR2 16 KiB of a memfd with two mappable pages, 4 KiB configuration, 4 MSI-X vectors."""

    def __init__(self) -> None:
        self.memory = {
            RegionIndex.BAR0: bytearray(PAGE),
            RegionIndex.CONFIG: bytearray(b"\xf4\x1a\x01\x11" + bytes(PAGE - 4)),
        }
        self.shared = os.memfd_create("bar2", os.MFD_CLOEXEC)
        os.ftruncate(self.shared, FILE_OFFSET + BAR2_SIZE)
        self.interrupts = InterruptTable({IrqIndex.MSIX: 4, IrqIndex.ERR: 1})
        self.maps: dict[tuple[int, int], DmaMapping] = {}
        self.calls: list[str] = []
        self.refusal: RequestError | None = None
        self.failure: Exception | None = None

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.refusal is not None:
            raise self.refusal
        if self.failure is not None:
            raise self.failure

    def describe(self) -> DeviceInfo:
        self._called("describe")
        return DeviceInfo()

    def region(self, index: int) -> Region:
        read_write = RegionFlags.READ | RegionFlags.WRITE
        if index == RegionIndex.BAR2:
            areas = ((0, PAGE), (2 * PAGE, PAGE))
            return Region(BAR2_SIZE, read_write | RegionFlags.MMAP, areas, self.shared, FILE_OFFSET)
        memory = self.memory.get(RegionIndex(index))
        return Region() if memory is None else Region(len(memory), read_write)

    def irq(self, index: int) -> Irq:
        return Irq({IrqIndex.MSIX: 4, IrqIndex.ERR: 1}.get(IrqIndex(index), 0))

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        self._called("region_read")
        if index == RegionIndex.BAR2:
            return os.pread(self.shared, count, FILE_OFFSET + offset)
        return bytes(self.memory[RegionIndex(index)][offset : offset + count])

    def region_write(self, index: int, offset: int, data: bytes) -> None:
        self._called("region_write")
        if index == RegionIndex.BAR2:
            os.pwrite(self.shared, data, FILE_OFFSET + offset)
        else:
            self.memory[RegionIndex(index)][offset : offset + len(data)] = data

    def set_irqs(self, request: IrqRequest) -> None:
        self.interrupts.set_irqs(request)
        self._called("set_irqs")

    def dma_map(self, mapping: DmaMapping) -> bool:
        if mapping.fd is not None:
            os.close(mapping.fd)
        self._called("dma_map")
        is_new = (mapping.address, mapping.size) not in self.maps
        self.maps[mapping.address, mapping.size] = mapping
        return is_new

    def dma_unmap(self, address: int, size: int) -> int:
        self._called("dma_unmap")
        inside = [key for key in self.maps if address <= key[0] and sum(key) <= address + size]
        if not inside:
            raise RequestError(errno.ENOENT, f"no map at {address:#x}+{size:#x}")
        for key in inside:
            del self.maps[key]
        return len(inside)

    def dma_unmap_all(self) -> None:
        self._called("dma_unmap_all")
        self.maps.clear()

    def reset(self) -> None:
        self._called("reset")

    def settle(self) -> None:
        pass

    def disconnected(self) -> None:
        self.calls.append("disconnected")
        self.interrupts.close()
        self.maps.clear()

    def close(self) -> None:
        self.interrupts.close()
        os.close(self.shared)


@pytest.fixture
def device() -> Iterator[MemoryDevice]:
    found = MemoryDevice()
    yield found
    found.close()


@pytest.fixture
def no_fd_leak() -> Iterator[None]:
    """Fails the test if it leaves more or fewer descriptors open than it found. Name it before what opens some."""
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    for thread in threading.enumerate():
        if thread.name == "closer":
            thread.join(10)
    assert sorted(os.listdir("/proc/self/fd")) == before
