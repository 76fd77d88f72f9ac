"""/dev/iommu as it was first proposed: the flow of its documentation, with DMA, and each of its rules."""

from __future__ import annotations

from typing import Any

import pytest

from pviommu.interfaces.iommufd import DeviceConfig, DmaRefusedError, LocalProcess, System
from pviommu.interfaces.iommufd import rfc_structures as r
from pviommu.interfaces.iommufd import vfio_structures as v
from pviommu.interfaces.iommufd.process import blank
from pviommu.interfaces.iommufd.rfc_structures import RfcRequest

from .conftest import LAST, PAGE, fails

READ, WRITE = v.DmaMapFlag
GIB = 1 << 30
ATTACH, DETACH = RfcRequest.DEVICE_ATTACH_IOASID, RfcRequest.DEVICE_DETACH_IOASID


class Proposed(LocalProcess):
    """A program on the proposed interface."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.iommu = self.open("/dev/iommu")
        self.data = bytearray(64 * PAGE)
        self.va = self.memory.add(self.data)

    def bind(self, name: str, cookie: int, **fields: int) -> int:
        fd = self.open(f"/dev/vfio/devices/{name}")
        self.call(fd, r.BindIommufd, **{"iommu_fd": self.iommu, "dev_cookie": cookie, **fields})
        return fd

    def alloc(self, width: int = 48, **fields: int) -> int:
        values = {"flags": r.IoasidFlag.ENFORCE_SNOOP, "type": r.IoasidType.KERNEL_TYPE1V2, "addr_width": width}
        return self.returned(self.iommu, RfcRequest.IOASID_ALLOC, blank(r.IoasidAlloc, **{**values, **fields}))

    def free(self, number: int) -> None:
        place = self.memory.add(number.to_bytes(4, "little", signed=True))
        self.ioctl(self.iommu, RfcRequest.IOASID_FREE, place)

    def move(self, request: int, device: int, number: int, **fields: int) -> None:
        values = {"iommu_fd": self.iommu, "ioasid": number, **fields}
        self.returned(device, request, blank(r.AttachIoasid, **values))

    def map(self, number: int, iova: int, length: int, va: int = 0, **fields: Any) -> None:
        values = {"map_flags": READ | WRITE, "vaddr": self.va + va, "map_argsz": 32, **fields}
        self.call(self.iommu, r.MapDma, ioasid=number, iova=iova, length=length, **values)

    def unmap(self, number: int, iova: int, length: int, **fields: Any) -> int:
        values = {"ioasid": number, "iova": iova, "length": length, "unmap_argsz": 24, **fields}
        return self.call(self.iommu, r.UnmapDma, **values).length


@pytest.fixture
def proposed() -> Proposed:
    devices = (
        DeviceConfig("dma0"),
        DeviceConfig("dma1"),
        DeviceConfig("narrow", aperture=(0, (1 << 32) - 1)),
        DeviceConfig("incoherent", enforces_snoop=False),
        DeviceConfig("twin0", group="twins"),
        DeviceConfig("twin1", group="twins"),
    )
    return Proposed(System(devices, rfc=True))


@pytest.mark.row("space", 45)
def test_the_flow_of_its_documentation_with_dma(proposed: Proposed) -> None:
    """As in Documentation/userspace-api/iommufd.rst of the series, for two devices. There, no DMA was done."""
    system, memory = proposed.system, bytearray(1 << 20)
    devices = [proposed.bind("dma0", 0x11), proposed.bind("dma1", 0x22)]
    info = proposed.call(proposed.iommu, r.DeviceInfo, dev_cookie=0x11)
    assert info.flags & r.DeviceInfoFlag.ENFORCE_SNOOP
    assert proposed.ioctl(proposed.iommu, RfcRequest.CHECK_EXTENSION, r.Extension.MAP_TYPE1V2) == 1
    assert proposed.ioctl(proposed.iommu, RfcRequest.CHECK_EXTENSION, r.Extension.DMA_NO_SNOOP) == 0
    gpa = proposed.alloc(info.addr_width)
    for device in devices:
        proposed.move(ATTACH, device, gpa)

    proposed.map(gpa, 0, len(memory), vaddr=proposed.memory.add(memory))
    system.write("dma0", 0x1000, b"from one device")
    assert memory[0x1000:0x100F] == b"from one device"
    assert system.read("dma1", 0x1000, 15) == b"from one device"

    assert proposed.unmap(gpa, 0, len(memory)) == len(memory)
    for name in ("dma0", "dma1"):
        with pytest.raises(DmaRefusedError, match="not mapped"):
            system.read(name, 0x1000, 1)
    for device in devices:
        proposed.move(DETACH, device, gpa)
    proposed.free(gpa)
    for device in devices:
        proposed.close(device)
    proposed.close(proposed.iommu)
    assert system.hardware.engine.domains() == ()


@pytest.mark.row("space", 45)
def test_requests_that_there_are_not(proposed: Proposed) -> None:
    device = proposed.bind("dma0", 1)
    for number in (0x3B6A, 0x3B80, 0):
        with fails("EINVAL", "none of this number"):
            proposed.ioctl(proposed.iommu, number, proposed.va)
    with fails("ENOTTY"):
        proposed.ioctl(device, 0x3B6B, proposed.va)
    for path in ("/dev/vfio/vfio", "/dev/vfio/0", "/dev/vfio/devices/vfio0"):
        with fails("ENOENT"):
            proposed.open(path)


@pytest.mark.row("space", 45)
def test_a_device_is_bound_once_and_by_a_cookie_of_its_own(proposed: Proposed) -> None:
    first = proposed.bind("dma0", 7)
    with fails("EBUSY", "bound already"):
        proposed.call(first, r.BindIommufd, iommu_fd=proposed.iommu, dev_cookie=8)
    with fails("EBUSY", "claimed"):
        proposed.bind("dma0", 8)
    with fails("EBUSY", "cookie 0x7 is that of dma0"):
        proposed.bind("dma1", 7)
    for fields in ({"iommu_fd": -1}, {"iommu_fd": 99}, {"iommu_fd": first}, {"flags": 1}, {"argsz": 23}):
        with fails("EINVAL"):
            proposed.bind("dma1", 9, **fields)
    proposed.close(first)
    proposed.bind("dma1", 7)


@pytest.mark.row("space", 45)
def test_what_an_address_space_must_be(proposed: Proposed) -> None:
    for fields in ({"flags": 0}, {"flags": 3}, {"type": 0}, {"type": 2}, {"width": 0}, {"argsz": 15}):
        with fails("EINVAL"):
            proposed.alloc(**fields)
    assert [proposed.alloc() for _ in range(3)] == [0, 1, 2]
    proposed.free(1)
    for number in (1, 9, -1):
        with fails("EINVAL", "none of this number"):
            proposed.free(number)
    assert proposed.alloc() == 1
    with fails("EFAULT"):
        proposed.ioctl(proposed.iommu, RfcRequest.IOASID_FREE, 0)


@pytest.mark.row("space", 45)
def test_nothing_is_mapped_before_a_device_is_attached(proposed: Proposed) -> None:
    number = proposed.alloc()
    for request in (lambda: proposed.map(number, 0, PAGE), lambda: proposed.unmap(number, 0, PAGE)):
        with fails("EINVAL", "no device is attached"):
            request()
    with fails("EINVAL"):
        proposed.map(9, 0, PAGE)
    proposed.move(ATTACH, proposed.bind("dma0", 1), number)
    for fields in ({"argsz": 15}, {"flags": 1}, {"map_argsz": 31}, {"map_flags": 0}, {"map_flags": 4}):
        with fails("EINVAL"):
            proposed.map(number, 0, PAGE, **fields)
    with fails("EINVAL", "beyond 64-bit"):
        proposed.map(number, LAST - PAGE + 1, 2 * PAGE)
    proposed.map(number, 0, PAGE)
    with fails("EEXIST"):
        proposed.map(number, 0, PAGE)
    assert proposed.unmap(number, PAGE, PAGE) == 0


@pytest.mark.row("space", 45)
def test_what_cannot_be_attached(proposed: Proposed) -> None:
    number, other = proposed.alloc(), proposed.alloc()
    unbound = proposed.open("/dev/vfio/devices/dma1")
    for request in (ATTACH, DETACH):
        with fails("EINVAL", "not bound there"):
            proposed.move(request, unbound, number)
    device = proposed.bind("dma0", 1)
    for fields in ({"iommu_fd": 77}, {"ioasid": -1}, {"ioasid": 9}, {"flags": 1}, {"argsz": 15}):
        with fails("EINVAL"):
            proposed.move(ATTACH, device, number, **fields)
    with fails("EINVAL", "it is in -1"):
        proposed.move(DETACH, device, number)
    proposed.move(ATTACH, device, number)
    for again in (number, other):
        with fails("EBUSY", "attached to IOASID 0"):
            proposed.move(ATTACH, device, again)
    with fails("EBUSY", "dma0 is attached"):
        proposed.free(number)
    with fails("EINVAL", "it is in 0"):
        proposed.move(DETACH, device, other)
    proposed.move(DETACH, device, number)
    proposed.free(number)


@pytest.mark.row("space", 45)
def test_a_device_that_does_not_suit_is_refused_and_nothing_changes(proposed: Proposed) -> None:
    wide, small = proposed.alloc(48), proposed.alloc(32)
    proposed.move(ATTACH, proposed.bind("dma0", 1), wide)
    proposed.map(wide, 1 << 40, PAGE)
    narrow, incoherent = proposed.bind("narrow", 2), proposed.bind("incoherent", 3)

    with fails("EINVAL", "it has 32 bits, and 48 bits are asked for"):
        proposed.move(ATTACH, narrow, wide)
    with fails("EINVAL", "no coherent DMA"):
        proposed.move(ATTACH, incoherent, small)
    assert proposed.system.read("dma0", 1 << 40, 1) == b"\0"
    with pytest.raises(DmaRefusedError):
        proposed.system.read("narrow", 0, 1)
    with fails("EINVAL", "no device is attached"):
        proposed.map(small, 0, PAGE)
    proposed.move(ATTACH, narrow, small)
    proposed.map(small, 0, PAGE)
    with fails("EINVAL", "reserves some of it"):
        proposed.map(small, 1 << 32, PAGE)


@pytest.mark.row("space", 45)
def test_closing_a_device_detaches_it(proposed: Proposed) -> None:
    number = proposed.alloc()
    device = proposed.bind("dma0", 1)
    proposed.move(ATTACH, device, number)
    proposed.map(number, 0, PAGE)

    proposed.close(device)

    with pytest.raises(DmaRefusedError):
        proposed.system.read("dma0", 0, 1)
    proposed.free(number)


def test_dma_goes_on_while_only_the_device_is_open(proposed: Proposed) -> None:
    number = proposed.alloc()
    device = proposed.bind("dma0", 1)
    proposed.move(ATTACH, device, number)
    proposed.map(number, 0, PAGE)

    proposed.close(proposed.iommu)
    assert proposed.system.read("dma0", 0, 1) == b"\0"
    proposed.close(device)
    assert proposed.system.hardware.engine.domains() == ()


@pytest.mark.row("space", 46)
def test_half_of_a_mapping_cannot_be_unmapped(proposed: Proposed) -> None:
    number = proposed.alloc()
    proposed.move(ATTACH, proposed.bind("dma0", 1), number)
    proposed.map(number, 0x10000, 2 * PAGE)

    for iova in (0x10000, 0x11000):
        with fails("EINVAL", "would cut"):
            proposed.unmap(number, iova, PAGE)
    for iova in (0x10000, 0x11000):
        proposed.system.write("dma0", iova, b"still here")
    assert proposed.unmap(number, 0, 0x20000) == 2 * PAGE


@pytest.mark.row("space", 46)
def test_the_last_device_that_leaves_takes_the_mappings_with_it(proposed: Proposed) -> None:
    number = proposed.alloc()
    first, second = proposed.bind("dma0", 1), proposed.bind("dma1", 2)
    proposed.move(ATTACH, first, number)
    proposed.move(ATTACH, second, number)
    proposed.map(number, 0x10000, PAGE)

    proposed.move(DETACH, first, number)
    assert proposed.system.read("dma1", 0x10000, 1) == b"\0"
    proposed.move(DETACH, second, number)
    proposed.move(ATTACH, first, number)

    with pytest.raises(DmaRefusedError, match="not mapped"):
        proposed.system.read("dma0", 0x10000, 1)
    proposed.map(number, 0x10000, PAGE)


def test_a_group_is_in_one_address_space(proposed: Proposed) -> None:
    number, other = proposed.alloc(), proposed.alloc()
    first, second = proposed.bind("twin0", 1), proposed.bind("twin1", 2)
    proposed.move(ATTACH, first, number)
    proposed.map(number, 0, PAGE)

    with fails("EBUSY", "somewhere else"):
        proposed.move(ATTACH, second, other)
    proposed.move(ATTACH, second, number)
    proposed.move(DETACH, first, number)
    assert proposed.system.read("twin0", 0, 1) == b"\0"
    proposed.move(DETACH, second, number)
    with pytest.raises(DmaRefusedError):
        proposed.system.read("twin0", 0, 1)


def test_the_info_of_a_device_has_its_iova_ranges(proposed: Proposed) -> None:
    proposed.bind("dma0", 0x1122334455667788)
    with fails("EINVAL", "none is bound"):
        proposed.call(proposed.iommu, r.DeviceInfo, dev_cookie=1)
    whole = bytes.fromhex(
        "50000000 0f000000 8877665544332211 0010204000000000 30000000 20000000"
        "0100 0100 00000000 02000000 00000000"
        "0000000000000000 ffffdffe00000000 0000f0fe00000000 ffffffffffff0000"
    )
    for argsz in (31, 32, 79, 80):
        data = bytearray(whole[:16].ljust(100, b"\xee"))
        data[:8] = argsz.to_bytes(4, "little") + bytes(4)
        place = proposed.memory.add(data)
        if argsz < 32:
            with fails("EINVAL"):
                proposed.ioctl(proposed.iommu, RfcRequest.DEVICE_GET_INFO, place)
            continue
        proposed.ioctl(proposed.iommu, RfcRequest.DEVICE_GET_INFO, place)
        expected = whole if argsz == 80 else whole[:28] + bytes(4)
        assert data == expected.ljust(100, b"\xee")
