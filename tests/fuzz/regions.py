"""Accesses to configuration space, registers and shared memory, with the rings working in between.

Input: u8 whose lowest bit picks the function; then accesses, each a u8 (low nibble what, high nibble the region),
a u32 offset, a u8 length, and the bytes of a write.
"""

from __future__ import annotations

import os

from pviommu.host.work import Work
from pviommu.pci.function import PciFunction
from pviommu_abi.registers import MAGIC, REGISTER
from pviommu_abi.shared import RING_AREA_OFFSET
from vfio_user import Command, RegionIndex
from vfio_user.messages import RegionAccess

from .feed import Feed
from .machine import Talk, sealed_memory, small_machine

__all__ = ["TOKENS", "target"]

MAX_ACCESSES = 64
READ, WRITE, READ_INSIDE, WRITE_INSIDE, RESET, WORK, INFO = range(7)
TOKENS = (
    *(register.offset.to_bytes(4, "little") for register in REGISTER.values()),
    RING_AREA_OFFSET.to_bytes(4, "little"),
)


def target(data: bytes) -> None:
    """Each access is answered with what was asked for or refused; identity and read-only registers stay."""
    feed = Feed(data)
    name = "dma0" if feed.u8() & 1 else "iommu"
    ram = sealed_memory()
    try:
        with small_machine(ram=ram) as machine:
            work = Work(machine).step
            function = next(function for function in machine.functions() if function.name == name)
            talk = Talk(function)
            identity = talk.request(Command.REGION_READ, RegionAccess(0, RegionIndex.CONFIG, 4).pack())
            for _ in range(MAX_ACCESSES):
                if not feed:
                    break
                if _access(talk, function, feed) == WORK:
                    work()
            for _ in machine.iommu.drain():
                pass
            assert talk.request(Command.REGION_READ, RegionAccess(0, RegionIndex.CONFIG, 4).pack()) == identity
            assert machine.iommu.region_read(0, REGISTER["MAGIC"].offset, 4) == MAGIC.to_bytes(4, "little")
            talk.close()
    finally:
        os.close(ram)


def _access(talk: Talk, function: PciFunction, feed: Feed) -> int:
    head, offset, count = feed.u8(), feed.u32(), feed.u8()
    what, index = head & 0xF, head >> 4
    size = function.region(index).size if index <= RegionIndex.VGA else 0
    if what in (READ_INSIDE, WRITE_INSIDE) and size:
        offset %= size
        count = min(count, size - offset)
    if what in (READ, READ_INSIDE):
        reply = talk.request(Command.REGION_READ, RegionAccess(offset, index, count).pack())
        allowed = bool(size) and offset + count <= size
        assert (reply is not None) is allowed, f"read of region {index} {offset:#x}+{count:#x}: answered {reply!r}"
        assert reply is None or len(reply) == RegionAccess.SIZE + count
    elif what in (WRITE, WRITE_INSIDE):
        written = feed.take(count)
        reply = talk.request(Command.REGION_WRITE, RegionAccess(offset, index, len(written)).pack() + written)
        allowed = bool(size) and offset + len(written) <= size
        assert (reply is not None) is allowed, f"write of region {index} {offset:#x}+{count:#x}: answered {reply!r}"
    elif what == RESET:
        assert talk.request(Command.DEVICE_RESET, b"") == b""
    elif what == INFO:
        talk.request(Command.DEVICE_GET_REGION_INFO, feed.take(32))
    return what
