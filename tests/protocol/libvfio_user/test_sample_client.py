"""The library's sample client, a program in C, against this project's server."""

from __future__ import annotations

import os
import select
import struct
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vfio_user import (
    DeviceInfo,
    DmaMapping,
    Frame,
    InterruptTable,
    Irq,
    IrqIndex,
    IrqRequest,
    Region,
    RegionFlags,
    RegionIndex,
    Session,
    State,
    transport,
)
from vfio_user.commands import Answer, Reply
from vfio_user.messages import Command, DeviceFlags, GetInfo, GetRegionInfo
from vfio_user.server import CarryOut

from .conftest import PAGE

PATIENCE_S = 10
RW = RegionFlags.READ | RegionFlags.WRITE


class Counterpart:
    """The device that the sample client expects: ids, a clock in BAR0, BAR1 of which two pages can be mapped, INTx."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.shared = os.memfd_create("bar1", os.MFD_CLOEXEC)
        os.ftruncate(self.shared, 3 * PAGE)
        self.interrupts = InterruptTable({IrqIndex.INTX: 1})
        self.config = struct.pack("<HH40xHH208x", 0xDEAD, 0xBEEF, 0xCAFE, 0xBABE)

    def describe(self) -> DeviceInfo:
        return DeviceInfo()

    def region(self, index: int) -> Region:
        areas = ((0, PAGE), (2 * PAGE, PAGE))
        return {
            RegionIndex.BAR0: Region(8, RW),
            RegionIndex.BAR1: Region(3 * PAGE, RW | RegionFlags.MMAP, areas, self.shared),
            RegionIndex.CONFIG: Region(len(self.config), RW),
        }.get(RegionIndex(index), Region())

    def irq(self, index: int) -> Irq:
        return Irq(int(index == IrqIndex.INTX))

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        self.told.append(("read", index, offset, count))
        return self.config[offset : offset + count]

    def region_write(self, index: int, offset: int, data: bytes) -> None:
        self.told.append(("write", index, offset, data))

    def set_irqs(self, request: IrqRequest) -> None:
        self.interrupts.set_irqs(request)
        self.told.append(("armed", self.interrupts.armed(IrqIndex.INTX, 0)))

    def dma_map(self, mapping: DmaMapping) -> bool:
        assert mapping.fd is not None
        os.close(mapping.fd)
        self.told.append(("map", mapping.address, mapping.size, mapping.offset))
        return True

    def dma_unmap(self, address: int, size: int) -> int:
        raise AssertionError

    def dma_unmap_all(self) -> None:
        raise AssertionError

    def reset(self) -> None:
        self.told.append("reset")

    def settle(self) -> None:
        pass

    def disconnected(self) -> None:
        self.interrupts.close()
        os.close(self.shared)


def with_a_tenth_region(carry_out: CarryOut) -> CarryOut:
    """An absent one: this package serves no region after the ninth, and announces none."""

    def carry(frame: Frame) -> Answer:
        if frame.header.command == Command.DEVICE_GET_INFO:
            return Reply(GetInfo(GetInfo.SIZE, DeviceFlags.PCI | DeviceFlags.RESET, 10, 5).pack())
        if frame.header.command == Command.DEVICE_GET_REGION_INFO and GetRegionInfo.unpack(frame.payload).index == 9:
            return Reply(GetRegionInfo(GetRegionInfo.SIZE, 0, 9, 0, 0, 0).pack())
        return carry_out(frame)

    return carry


@pytest.fixture
def run(samples: Path, tmp_path: Path) -> Callable[[Session], str]:
    """``run(session)``: serve the sample client to its end; what it says last."""

    def begin(session: Session) -> str:
        path = tmp_path / "s"
        listener = transport.listen(path)
        with ThreadPoolExecutor(1) as pool, listener:
            command = [samples / "client", path]
            client = pool.submit(subprocess.run, command, capture_output=True, text=True, timeout=PATIENCE_S)
            assert select.select([listener], [], [], PATIENCE_S)[0]
            sock = transport.accept(listener)
            assert sock is not None
            with sock:
                while session.state is not State.CLOSED and select.select([sock], [], [], PATIENCE_S)[0]:
                    chunk = transport.receive(sock)
                    session.eof() if chunk is None else session.receive(*chunk)
                    transport.flush(sock, session.outgoing)
            ended = client.result()
        assert ended.returncode == 1
        return ended.stderr.splitlines()[-1]

    return begin


def test_it_wants_ten_regions_where_the_protocol_has_at_least_nine(run: Callable[[Session], str]) -> None:
    assert run(Session(Counterpart())) == "client: bad number of device regions 9"


def test_with_ten_it_comes_to_dirty_pages_which_the_protocol_has_no_more(run: Callable[[Session], str]) -> None:
    device = Counterpart()
    said = run(Session(device, around=with_a_tenth_region))
    assert said == "client: failed to start dirty page logging: Invalid argument"
    maps = [("map", number * PAGE, PAGE, number * PAGE) for number in range(32)]
    assert device.told == [("read", RegionIndex.CONFIG, 0, 64), "reset", *maps, ("armed", True)]
