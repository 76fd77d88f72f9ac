"""A program and a device with registers: regions, interrupts, resets and DMA, as from vfio-pci of Linux 7.3."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pviommu.endpoints.endpoint import Endpoint
from pviommu.interfaces.iommufd import LocalProcess, System
from pviommu.interfaces.iommufd import structures as s
from pviommu.interfaces.iommufd import vfio_structures as v
from pviommu.interfaces.iommufd.device_file import DeviceFile
from pviommu.interfaces.iommufd.pci_device import Mappable
from pviommu.interfaces.iommufd.places import refusal
from pviommu.topology import Topology
from pviommu.topology import load as load_topology
from pviommu.vfio_run.machine import DeviceMachine, build
from pviommu_abi import dma_test as abi
from pviommu_abi.registers import DMA_TEST_DEVICE_ID, VENDOR_ID
from vfio_user import RegionFlags

from .conftest import BOTH, fails

pytestmark = pytest.mark.row("space", 62)

PAGE = 4096
CONFIG, BAR0, SHARED, MSIX_BAR = 7 << 40, 0, 2 << 40, 4 << 40
COMMAND, MEMORY, MASTER = 4, 2, 4
MSIX, ERR = 2, 3
NONE, BOOL, EVENTFD, MASK, TRIGGER = 1, 2, 4, 8, 32
NAME = "0000:01:00.0"


class Setup:
    """A program with the first of two engines, bound and attached."""

    def __init__(self, topology: Topology) -> None:
        self.system: System
        self.machine: DeviceMachine
        self.system, self.machine = build(topology)
        self.program = LocalProcess(self.system)
        self.iommu = self.program.open("/dev/iommu")
        self.fd = self.program.open("/dev/vfio/devices/vfio0")
        self.data = bytearray(64 * PAGE)
        self.va = self.program.memory.add(self.data)

    def bind(self) -> int:
        return self.program.call(self.fd, v.BindIommufd, iommufd=self.iommu).out_devid

    def attach(self) -> int:
        space = self.program.call(self.iommu, s.IoasAlloc).out_ioas_id
        self.program.call(self.fd, v.AttachIommufdPt, pt_id=space)
        return space

    @property
    def file(self) -> DeviceFile:
        found = self.program.file(self.fd)
        assert isinstance(found, DeviceFile)
        return found

    @property
    def engine(self) -> Endpoint:
        return self.machine.endpoints["dma0"]

    def read(self, offset: int, count: int) -> bytes:
        return self.file.read(offset, count)

    def write(self, offset: int, data: bytes) -> int:
        count, steps = self.file.write(offset, data)
        for _ in steps:
            pass
        self.file.settle()
        return count

    def word(self, offset: int, value: int | None = None) -> int:
        if value is not None:
            self.write(offset, struct.pack("<I", value))
        return int.from_bytes(self.read(offset, 4), "little")

    def set_irqs(
        self, index: int, start: int, count: int, flags: int, data: bytes = b"", argsz: int | None = None
    ) -> int:
        header = struct.pack("<IIIII", 20 + len(data) if argsz is None else argsz, flags, index, start, count)
        self.data[: 20 + len(data)] = header + data
        return self.program.ioctl(self.fd, v.VfioRequest.DEVICE_SET_IRQS, self.va)

    def run(self) -> None:
        while self.engine.step():
            pass

    def copy(self, source: int, destination: int, length: int, flags: int = 0) -> int:
        """Let the engine copy; the status."""
        place = self.word(BAR0 + 0x18) % abi.ENTRIES * abi.Descriptor.SIZE
        fields = {"op": int(abi.DmaOp.COPY), "flags": flags, "length": length, "src": source, "dst": destination}
        values = {field.name: 0 for field in abi.Descriptor.FIELDS} | fields
        for field in abi.Descriptor.FIELDS:
            if field.format[-1] == "s":
                values[field.name] = bytes(field.size)
        self.write(SHARED + place, abi.Descriptor(**values).pack())
        self.word(BAR0 + 0x18, self.word(BAR0 + 0x18) + 1)
        self.run()
        return abi.Descriptor.unpack(self.read(SHARED + place, abi.Descriptor.SIZE)).status


@pytest.fixture
def setup() -> Iterator[Setup]:
    made = Setup(load_topology(Path("lab")))
    yield made
    made.program.exit()
    assert made.system.hardware.engine.domains() == ()
    made.machine.close()


def eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def told(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def test_nothing_is_reached_before_the_device_is_bound(setup: Setup) -> None:
    for request in (v.VfioRequest.DEVICE_GET_INFO, v.VfioRequest.DEVICE_RESET):
        with fails("EINVAL", "not bound"):
            setup.program.ioctl(setup.fd, request, setup.va)
    for call in (lambda: setup.read(CONFIG, 4), lambda: setup.file.mapped(SHARED, PAGE)):
        with fails("EINVAL", "it is not bound"):
            call()


def test_what_a_device_is(setup: Setup) -> None:
    setup.bind()
    info = setup.program.call(setup.fd, v.DeviceInfo)
    assert (info.flags, info.num_regions, info.num_irqs, info.cap_offset) == (3, 9, 5, 0)
    setup.data[16:24] = b"\xaa" * 8
    setup.data[:16] = struct.pack("<IIII", 16, 0xFF, 0, 0)
    setup.program.ioctl(setup.fd, v.VfioRequest.DEVICE_GET_INFO, setup.va)
    assert setup.data[8:24] == struct.pack("<II", 9, 5) + b"\xaa" * 8, "older callers have no more"
    with fails("EINVAL", "at least 16"):
        setup.program.call(setup.fd, v.DeviceInfo, argsz=15)


def test_regions_and_the_parts_that_can_be_mapped(setup: Setup) -> None:
    setup.bind()
    found = {}
    for index in range(8):
        info = setup.program.call(setup.fd, v.RegionInfo, index=index)
        assert info.offset == index << 40
        found[index] = info.size, info.flags
    assert found == {
        0: (PAGE, 3),
        1: (0, 0),
        2: (0x10000, 15),
        3: (0, 0),
        4: (PAGE, 3),
        5: (0, 0),
        6: (0, 0),
        7: (PAGE, 3),
    }
    for index in (8, 9, 1 << 31):
        with fails("EINVAL"):
            setup.program.call(setup.fd, v.RegionInfo, index=index)
    short = setup.program.call(setup.fd, v.RegionInfo, index=2)
    assert (short.argsz, short.cap_offset) == (64, 0), "what it takes"
    setup.data[:32] = v.RegionInfo(64, 0, 2, 0, 0, 0).pack()
    setup.program.ioctl(setup.fd, v.VfioRequest.DEVICE_GET_REGION_INFO, setup.va)
    assert v.RegionInfo.unpack(setup.data[:32]).cap_offset == 32
    assert struct.unpack_from("<HHIIIQQ", setup.data, 32) == (1, 1, 0, 1, 0, 0, 0x10000)


def test_config_space_is_that_of_vfio_pci(setup: Setup) -> None:
    setup.bind()
    assert struct.unpack("<HH", setup.read(CONFIG, 4)) == (VENDOR_ID, DMA_TEST_DEVICE_ID)
    assert setup.read(CONFIG + COMMAND, 2) == bytes([MEMORY, 0]), "it decodes, and does no DMA"
    setup.write(CONFIG + COMMAND, bytes([MEMORY | MASTER, 0]))
    assert setup.engine.config.bus_master
    place = setup.word(CONFIG + 0x10)
    assert place
    assert setup.word(CONFIG + 0x10, 0xFFFFFFFF) == 0xFFFFF000
    assert setup.word(CONFIG + 0x10, place) == place
    for offset, count in ((PAGE, 1), (PAGE - 2, 4)):
        with fails("EFAULT"):
            setup.read(CONFIG + offset, count)
    assert setup.read(CONFIG + PAGE, 0) == b""


def test_msi_x_is_set_up_by_requests_only(setup: Setup) -> None:
    setup.bind()
    at = setup.read(CONFIG + 0x34, 1)[0]
    while setup.read(CONFIG + at, 1) != b"\x11":
        at = setup.read(CONFIG + at + 1, 1)[0]
    before = setup.read(CONFIG + at, 12)
    setup.write(CONFIG + at, b"\xff" * 12)
    assert setup.read(CONFIG + at, 12) == before
    fd = eventfd()
    setup.set_irqs(MSIX, 0, 1, EVENTFD | TRIGGER, struct.pack("<i", fd))
    assert setup.read(CONFIG + at + 2, 2) == bytes([before[2], before[3] | 0x80])
    assert setup.read(MSIX_BAR, 16) == b"\xff" * 16
    assert setup.read(MSIX_BAR + 16, 16) == bytes(16)
    os.close(fd)


def test_bars_are_read_and_written_as_far_as_they_go(setup: Setup) -> None:
    setup.bind()
    assert setup.word(BAR0) == abi.MAGIC
    assert struct.unpack("<IIII", setup.read(BAR0, 16)) == (abi.MAGIC, abi.VERSION, abi.ENTRIES, abi.SG_ENTRIES)
    assert setup.write(SHARED + 0x10000 - 2, b"four") == 2
    assert setup.read(SHARED + 0x10000 - 2, 4) == b"fo"
    for offset in (BAR0 + PAGE, 1 << 40, 6 << 40, 8 << 40, 9 << 40, 1 << 62):
        with fails("EINVAL"):
            setup.read(offset, 4)
    setup.write(CONFIG + COMMAND, bytes(2))
    with fails("EIO", "memory decoding is off"):
        setup.read(BAR0, 4)
    with fails("EIO"):
        setup.write(SHARED, b"data")


def test_only_shared_memory_is_mapped(setup: Setup) -> None:
    setup.bind()
    fd, offset, size = setup.file.mapped(SHARED + PAGE, PAGE)
    assert (fd is not None, size) == (True, PAGE)
    os.pwrite(fd or 0, b"there", offset)
    assert setup.read(SHARED + PAGE, 5) == b"there"
    for place, length in ((BAR0, PAGE), (SHARED, 0), (SHARED, 0x11000), (CONFIG, PAGE), (9 << 40, PAGE)):
        with fails("EINVAL"):
            setup.file.mapped(place, length)


def flags_of(setup: Setup, index: int) -> RegionFlags:
    return RegionFlags(setup.program.call(setup.fd, v.RegionInfo, index=index).flags)


def test_registers_are_mapped_if_accesses_to_them_are_caught(setup: Setup) -> None:
    setup.bind()
    assert not flags_of(setup, 0) & RegionFlags.MMAP
    pci = setup.system.devices["0000:01:00.0"].pci
    assert pci
    pci.mappable = Mappable.EVERYTHING
    assert flags_of(setup, 0) & (RegionFlags.MMAP | RegionFlags.CAPS) == RegionFlags.MMAP
    setup.data[:40] = v.RegionInfo(40, 0, 4, 0, 0, 0).pack() + bytes(8)
    setup.program.ioctl(setup.fd, v.VfioRequest.DEVICE_GET_REGION_INFO, setup.va)
    assert v.RegionInfo.unpack(setup.data[:32]).cap_offset == 32
    mappable = v.CapabilityHeader(v.RegionCapabilityId.MSIX_MAPPABLE, 1, 0)
    assert v.CapabilityHeader.unpack(setup.data[32:40]) == mappable  # the BAR with the table
    assert setup.file.mapped(BAR0, PAGE) == (None, 0, PAGE)
    shared = setup.file.mapped(SHARED, 0x10000)
    assert (shared.fd is not None, shared.size) == (True, 0x10000)
    for place, length in ((BAR0, 2 * PAGE), (BAR0 + PAGE, PAGE), (1 << 40, PAGE), (CONFIG, PAGE)):
        with fails("EINVAL"):
            setup.file.mapped(place, length)
    pci.mappable = Mappable.NOTHING
    assert not any(flags_of(setup, index) & RegionFlags.MMAP for index in range(6))
    with fails("EINVAL"):
        setup.file.mapped(SHARED, PAGE)


def test_a_bar_of_registers_and_shared_memory_is_mapped_in_pieces(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.bind()
    pci = setup.system.devices["0000:01:00.0"].pci
    assert pci
    pci.mappable = Mappable.EVERYTHING
    whole = pci.function.region(2)
    mixed = replace(whole, size=4 * PAGE + 256, areas=((PAGE, PAGE), (3 * PAGE, PAGE)))
    monkeypatch.setattr(pci.function, "region", lambda index: mixed if index == 2 else whole)
    pieces, position = [], 0
    while position < 5 * PAGE:
        piece = setup.file.mapped(SHARED + position, 5 * PAGE - position)
        pieces.append((piece.fd is not None, piece.size))
        if piece.fd is not None:
            assert piece.place == whole.file_offset + position
        position += piece.size
    assert pieces == [(False, PAGE), (True, PAGE), (False, PAGE), (True, PAGE), (False, PAGE)]


def test_interrupts_of_each_index(setup: Setup) -> None:
    setup.bind()
    found = []
    for index in range(5):
        info = setup.program.call(setup.fd, v.IrqInfo, index=index)
        found.append((info.flags, info.count))
    assert found == [(7, 0), (9, 0), (1, 1), (9, 1), (9, 1)]
    with fails("EINVAL"):
        setup.program.call(setup.fd, v.IrqInfo, index=5)


def test_eventfds_are_given_triggered_and_taken_away(setup: Setup) -> None:
    setup.bind()
    first, second = eventfd(), eventfd()
    with fails("EINVAL", "not set up"):
        setup.set_irqs(MSIX, 0, 1, NONE | TRIGGER)
    setup.set_irqs(MSIX, 0, 1, EVENTFD | TRIGGER, struct.pack("<i", first))
    setup.set_irqs(MSIX, 0, 1, NONE | TRIGGER)
    setup.set_irqs(MSIX, 0, 1, BOOL | TRIGGER, b"\0")
    setup.set_irqs(MSIX, 0, 1, BOOL | TRIGGER, b"\1")
    assert told(first) == 2
    setup.set_irqs(MSIX, 0, 1, EVENTFD | TRIGGER, struct.pack("<i", second))
    setup.engine.interrupt(0)
    assert (told(first), told(second)) == (0, 1)
    setup.set_irqs(MSIX, 0, 1, EVENTFD | TRIGGER, struct.pack("<i", -1))
    setup.set_irqs(MSIX, 0, 1, NONE | TRIGGER)
    assert told(second) == 0
    setup.set_irqs(MSIX, 0, 0, NONE | TRIGGER)
    with fails("EINVAL"):
        setup.set_irqs(MSIX, 0, 0, NONE | TRIGGER)
    for fd in (first, second):
        os.close(fd)


def test_errors_are_signalled_to_one_eventfd(setup: Setup) -> None:
    setup.bind()
    fd = eventfd()
    with fails("EINVAL"):
        setup.set_irqs(ERR, 0, 1, NONE | TRIGGER)
    setup.set_irqs(ERR, 0, 1, EVENTFD | TRIGGER, struct.pack("<i", fd))
    setup.set_irqs(ERR, 0, 1, NONE | TRIGGER)
    setup.set_irqs(ERR, 0, 1, BOOL | TRIGGER, b"\1")
    assert told(fd) == 2
    setup.set_irqs(ERR, 0, 0, NONE | TRIGGER)
    with fails("EINVAL"):
        setup.set_irqs(ERR, 0, 1, NONE | TRIGGER)
    os.close(fd)


def test_what_brings_no_data_needs_no_room(setup: Setup) -> None:
    """So interrupts can always be ended."""
    setup.bind()
    number = eventfd()
    setup.set_irqs(MSIX, 0, 1, EVENTFD | TRIGGER, struct.pack("<i", number))

    def meet(place: str) -> None:
        if place == "interrupt":
            raise refusal(place, "ENOMEM")

    setup.program.system.places.intercept(meet)
    with fails("ENOMEM", "on purpose"):
        setup.set_irqs(MSIX, 0, 1, EVENTFD | TRIGGER, struct.pack("<i", -1))
    setup.set_irqs(MSIX, 0, 1, NONE | TRIGGER)
    assert told(number) == 1
    setup.set_irqs(MSIX, 0, 0, NONE | TRIGGER)
    os.close(number)


@pytest.mark.parametrize(
    ("index", "start", "count", "flags", "data", "argsz", "error"),
    [
        (5, 0, 1, NONE | TRIGGER, b"", None, "EINVAL"),
        (MSIX, 1, 1, NONE | TRIGGER, b"", None, "EINVAL"),
        (MSIX, 0, 2, NONE | TRIGGER, b"", None, "EINVAL"),
        (MSIX, 0xFFFFFFFF, 1, NONE | TRIGGER, b"", None, "EINVAL"),
        (0, 0, 0, NONE | TRIGGER, b"", None, "EINVAL"),
        (MSIX, 0, 1, TRIGGER, b"", None, "EINVAL"),
        (MSIX, 0, 1, NONE | BOOL | TRIGGER, b"\0", None, "EINVAL"),
        (MSIX, 0, 1, NONE | TRIGGER | 64, b"", None, "EINVAL"),
        (MSIX, 0, 1, NONE | TRIGGER, b"", 19, "EINVAL"),
        (MSIX, 0, 1, EVENTFD | TRIGGER, bytes(4), 23, "EINVAL"),
        (MSIX, 0, 0, EVENTFD | TRIGGER, b"", None, "ERANGE"),
        (MSIX, 0, 1, EVENTFD | TRIGGER, struct.pack("<i", 1 << 20), None, "EBADF"),
        (MSIX, 0, 1, EVENTFD | TRIGGER, struct.pack("<i", 0), None, "EINVAL"),
        (MSIX, 0, 1, NONE | MASK, b"", None, "ENOTTY"),
        (MSIX, 0, 1, NONE, b"", None, "ENOTTY"),
        (ERR, 0, 1, NONE | TRIGGER | MASK, b"", None, "ENOTTY"),
        (ERR, 0, 0, EVENTFD | TRIGGER, b"", None, "EINVAL"),
    ],
)
def test_interrupts_that_cannot_be_set(
    setup: Setup, index: int, start: int, count: int, flags: int, data: bytes, argsz: int | None, error: str
) -> None:
    setup.bind()
    with fails(error):
        setup.set_irqs(index, start, count, flags, data, argsz)
    assert not setup.engine.interrupts.save()


def test_dma_goes_through_the_page_table_into_the_program(setup: Setup) -> None:
    setup.bind()
    space = setup.attach()
    fd = eventfd()
    setup.set_irqs(MSIX, 0, 1, EVENTFD | TRIGGER, struct.pack("<i", fd))
    setup.word(BAR0 + 0x14, 1)
    fields = {"user_va": setup.va, "length": 8 * PAGE, "iova": 0x100000}
    setup.program.call(setup.iommu, s.IoasMap, ioas_id=space, flags=BOTH | s.MapFlag.FIXED_IOVA, **fields)
    setup.data[PAGE : PAGE + 5] = b"hello"
    assert setup.copy(0x101000, 0x102FFE, 5) != abi.DescriptorStatus.DONE, "bus mastering is off"
    setup.write(CONFIG + COMMAND, bytes([MEMORY | MASTER, 0]))
    assert setup.copy(0x101000, 0x102FFE, 5, int(abi.DescriptorFlags.INTERRUPT)) == abi.DescriptorStatus.DONE
    assert setup.data[3 * PAGE - 2 : 3 * PAGE + 3] == b"hello"
    assert told(fd) == 1
    assert setup.copy(0x101000, 0x107FFE, 5) != abi.DescriptorStatus.DONE, "past the end of what is mapped"
    setup.program.call(setup.iommu, s.IoasUnmap, ioas_id=space, iova=0x100000, length=8 * PAGE)
    assert setup.copy(0x101000, 0x102000, 5) != abi.DescriptorStatus.DONE
    os.close(fd)


def test_memory_that_a_program_has_given_back_is_refused(setup: Setup) -> None:
    setup.bind()
    space = setup.attach()
    setup.word(BAR0 + 0x14, 1)
    setup.write(CONFIG + COMMAND, bytes([MEMORY | MASTER, 0]))
    gone = setup.program.memory.add(bytearray(PAGE))
    fields = {"user_va": gone, "length": PAGE, "iova": 0x100000}
    setup.program.call(setup.iommu, s.IoasMap, ioas_id=space, flags=BOTH | s.MapFlag.FIXED_IOVA, **fields)
    assert setup.copy(0x100000, 0x100100, 8) == abi.DescriptorStatus.DONE
    setup.program.memory.remove(gone)
    assert setup.copy(0x100000, 0x100100, 8) != abi.DescriptorStatus.DONE
    assert not setup.engine.failed


@pytest.mark.parametrize("by_config", [False, True], ids=["by request", "by config space"])
def test_a_reset_leaves_the_header_and_the_interrupts(setup: Setup, by_config: bool) -> None:
    setup.bind()
    fd = eventfd()
    setup.set_irqs(MSIX, 0, 1, EVENTFD | TRIGGER, struct.pack("<i", fd))
    setup.write(CONFIG + COMMAND, bytes([MEMORY | MASTER, 0]))
    bars = setup.read(CONFIG + 0x10, 24)
    setup.word(BAR0 + 0x14, 1)
    if by_config:
        at = setup.read(CONFIG + 0x34, 1)[0]
        while setup.read(CONFIG + at, 1) != b"\x10":
            at = setup.read(CONFIG + at + 1, 1)[0]
        setup.write(CONFIG + at + 8, b"\x00\x80")
    else:
        setup.program.ioctl(setup.fd, v.VfioRequest.DEVICE_RESET)
    assert setup.word(BAR0 + 0x14) == 0
    assert setup.read(CONFIG + COMMAND, 2) == bytes([MEMORY | MASTER, 0])
    assert setup.read(CONFIG + 0x10, 24) == bars
    setup.engine.interrupt(0)
    assert told(fd) == 1
    os.close(fd)


def test_which_devices_a_reset_of_the_bus_concerns(setup: Setup) -> None:
    number = setup.bind()
    setup.data[:24] = struct.pack("<IIIIII", 24, 0, 0, 0, 0, 0)
    setup.program.ioctl(setup.fd, v.VfioRequest.DEVICE_GET_PCI_HOT_RESET_INFO, setup.va)
    assert struct.unpack_from("<IIIIHBB", setup.data) == (24, 3, 1, number, 0, 1, 0)
    with fails("ENOSPC"):
        setup.program.call(setup.fd, v.HotResetHeader)


def test_a_reset_of_the_bus_by_a_device_of_its_own_file(setup: Setup) -> None:
    """As vfio_pci_ioctl_pci_hot_reset() of Linux: who has opened the device itself names no group."""
    setup.bind()
    setup.write(CONFIG + COMMAND, bytes([MEMORY | MASTER, 0]))
    setup.word(BAR0 + 0x14, 1)
    for argsz, flags, count in ((11, 0, 0), (12, 1, 0), (16, 0, 1)):
        setup.data[:16] = struct.pack("<IIIi", argsz, flags, count, setup.iommu)
        with fails("EINVAL"):
            setup.program.ioctl(setup.fd, v.VfioRequest.DEVICE_PCI_HOT_RESET, setup.va)
    assert setup.word(BAR0 + 0x14) == 1
    setup.data[:12] = struct.pack("<III", 12, 0, 0)
    assert setup.program.ioctl(setup.fd, v.VfioRequest.DEVICE_PCI_HOT_RESET, setup.va) == 0
    assert setup.word(BAR0 + 0x14) == 0
    assert setup.read(CONFIG + COMMAND, 2) == bytes([MEMORY | MASTER, 0]), "the header is put back"


def test_a_reset_of_the_bus_by_a_group(setup: Setup) -> None:
    program = setup.program
    program.close(setup.fd)
    container, group = program.open("/dev/vfio/vfio"), program.open("/dev/vfio/0")
    other = program.open("/dev/vfio/1")
    setup.data[:4] = struct.pack("<i", container)
    program.ioctl(group, v.VfioRequest.GROUP_SET_CONTAINER, setup.va)
    program.ioctl(container, v.VfioRequest.SET_IOMMU, v.Extension.TYPE1V2)
    setup.data[:16] = b"0000:01:00.0\0".ljust(16, b"\0")
    device = program.ioctl(group, v.VfioRequest.GROUP_GET_DEVICE_FD, setup.va)
    for fds, code in (
        ((), "EINVAL"),
        ((other,), "EINVAL"),
        ((device,), "EINVAL"),
        ((99,), "EBADF"),
        ((group,) * 2, "EINVAL"),
    ):
        setup.data[: 12 + 4 * len(fds)] = struct.pack(f"<III{len(fds)}i", 12 + 4 * len(fds), 0, len(fds), *fds)
        with fails(code):
            program.ioctl(device, v.VfioRequest.DEVICE_PCI_HOT_RESET, setup.va)
    setup.data[:16] = struct.pack("<IIIi", 16, 0, 1, group)
    assert program.ioctl(device, v.VfioRequest.DEVICE_PCI_HOT_RESET, setup.va) == 0


def test_features_that_there_are_not(setup: Setup) -> None:
    setup.bind()
    for flags in (0, 1 | 1 << 18, 1 << 16, 9 | 1 << 17, 6 | 7 << 16):
        with fails("ENOTTY"):
            setup.program.call(setup.fd, v.DeviceFeature, flags=flags)
    for flags in (1 << 19, 3 << 16):
        with fails("EINVAL"):
            setup.program.call(setup.fd, v.DeviceFeature, flags=flags)
    with fails("ENOTTY"):
        setup.program.ioctl(setup.fd, 0x3B74, setup.va)


def test_a_device_that_is_closed_is_as_new(setup: Setup) -> None:
    setup.bind()
    setup.attach()
    fd = eventfd()
    setup.set_irqs(MSIX, 0, 1, EVENTFD | TRIGGER, struct.pack("<i", fd))
    setup.write(CONFIG + COMMAND, bytes([MEMORY | MASTER, 0]))
    setup.write(SHARED, b"secret")
    setup.word(BAR0 + 0x14, 1)
    bars = setup.read(CONFIG + 0x10, 24)
    setup.program.close(setup.fd)
    setup.engine.interrupt(0)
    assert told(fd) == 0
    os.close(fd)
    setup.fd = setup.program.open("/dev/vfio/devices/vfio0")
    setup.bind()
    assert setup.read(SHARED, 6) == bytes(6)
    assert setup.word(BAR0 + 0x14) == 0
    assert setup.read(CONFIG + COMMAND, 2) == bytes([MEMORY, 0])
    assert setup.read(CONFIG + 0x10, 24) == bars


def test_a_group_gives_the_same_device_to_each_of_its_files(setup: Setup) -> None:
    program = setup.program
    container, group = program.open("/dev/vfio/vfio"), program.open("/dev/vfio/0")
    setup.data[:4] = struct.pack("<i", container)
    program.ioctl(group, v.VfioRequest.GROUP_SET_CONTAINER, setup.va)
    program.ioctl(container, v.VfioRequest.SET_IOMMU, 3)
    setup.data[: len(NAME) + 1] = NAME.encode() + b"\0"
    program.close(setup.fd)
    setup.fd = program.ioctl(group, v.VfioRequest.GROUP_GET_DEVICE_FD, setup.va)
    again = program.ioctl(group, v.VfioRequest.GROUP_GET_DEVICE_FD, setup.va)
    setup.write(SHARED, b"shared")
    program.close(again)
    assert setup.read(SHARED, 6) == b"shared"
    setup.data[:24] = struct.pack("<IIIIII", 24, 0, 0, 0, 0, 0)
    program.ioctl(setup.fd, v.VfioRequest.DEVICE_GET_PCI_HOT_RESET_INFO, setup.va)
    assert struct.unpack_from("<IIIIHBB", setup.data) == (24, 0, 1, 0, 0, 1, 0)
