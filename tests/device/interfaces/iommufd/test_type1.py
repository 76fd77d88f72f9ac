"""VFIO's containers, groups and type1 as Linux 7.3 has them: the IOVA ranges that seed of an aperture became."""

from __future__ import annotations

import errno

import pytest

from pviommu.interfaces.iommufd import DeviceConfig, DmaRefusedError, OpenFile, Region, RegionKind, RequestError, System
from pviommu.interfaces.iommufd import structures as s
from pviommu.interfaces.iommufd import type1 as module
from pviommu.interfaces.iommufd import vfio_structures as v
from pviommu.interfaces.iommufd.vfio_structures import VfioRequest

from .conftest import LAST, PAGE, Program, fails

READ, WRITE = v.DmaMapFlag
MSI = (0xFEE00000, 0xFEEFFFFF)
LAST48 = (1 << 48) - 1


class Client:
    """A program with a container, and short ways to make requests."""

    def __init__(self, system: System, *groups: int, version: int | None = 2) -> None:
        self.program = Program(system)
        self.container = self.program.open("/dev/vfio/vfio")
        self.groups = {number: self.open_group(number) for number in groups}
        for group in self.groups.values():
            self.enter(group)
        if version:
            self.set_iommu(version)

    def open_group(self, number: int) -> int:
        return self.program.open(f"/dev/vfio/{number}")

    def enter(self, group: int, container: int | None = None) -> None:
        number = (self.container if container is None else container).to_bytes(4, "little", signed=True)
        self.program.ioctl(group, VfioRequest.GROUP_SET_CONTAINER, self.program.memory.add(number))

    def set_iommu(self, version: int) -> None:
        self.program.ioctl(self.container, VfioRequest.SET_IOMMU, {1: 1, 2: 3}[version])

    def map(self, iova: int, size: int, va: int = 0, **fields: int) -> None:
        values = {"flags": READ | WRITE, "vaddr": self.program.va + va, "iova": iova, "size": size, **fields}
        self.program.call(self.container, v.DmaMap, **values)

    def unmap(self, iova: int, size: int, **fields: int) -> int:
        return self.program.call(self.container, v.DmaUnmap, iova=iova, size=size, **fields).size

    def info(self, argsz: int, room: int = 200) -> bytearray:
        """The bytes behind argsz bytes are 0xee."""
        data = bytearray(argsz.to_bytes(4, "little").ljust(room, b"\xee"))
        place = self.program.memory.add(data)
        try:
            self.program.ioctl(self.container, VfioRequest.IOMMU_GET_INFO, place)
        finally:
            self.program.memory.remove(place)
        return data

    def ranges(self) -> list[tuple[int, int]]:
        """By the chain."""
        data = self.info(200)
        assert v.Type1Info.unpack(data).cap_offset == 24
        at = 24
        while True:
            header = v.CapabilityHeader.unpack(data, at)
            if header.id == v.CapabilityId.IOVA_RANGE:
                count = v.IovaRangeCapability.unpack(data, at + 8).nr_iovas
                return [(r.start, r.last) for r in (s.IovaRange.unpack(data, at + 16 + 16 * n) for n in range(count))]
            at = header.next

    def device(self, group: int, name: str) -> int:
        place = self.program.memory.add(name.encode() + b"\0")
        return self.program.ioctl(self.groups[group], VfioRequest.GROUP_GET_DEVICE_FD, place)

    def status(self, group: int) -> int:
        return self.program.call(group, v.GroupStatus).flags


DMA0, DMA1, NARROW, TWINS, UNSAFE = 0, 1, 3, 4, 5


@pytest.fixture
def client(system: System) -> Client:
    return Client(system, DMA0)


# Information


WHOLE = bytes.fromhex(
    "78000000 03000000 0010204000000000 18000000 00000000"  # 120 bytes, sizes and capabilities, 4K 2M 1G, at 24
    "0200 0100 38000000 00000000 00000000 0010000000000000 0000001000000000"  # migration: 4K, 256 MiB of bitmap
    "0300 0100 48000000 ffff0000 00000000"  # 65535 mappings can be made; the next begins at a multiple of 8
    "0100 0100 00000000 02000000 00000000"  # two ranges
    "0000000000000000 ffffdffe00000000 0000f0fe00000000 ffffffffffff0000"
)
"""As a C program reads it on Linux 7.3 behind an IOMMU of 48 bits with the interrupt window of x86."""


@pytest.mark.row("space", 34)
def test_the_chain_has_capabilities_2_3_and_1_byte_by_byte(client: Client) -> None:
    assert client.info(120, 126) == WHOLE + b"\xee" * 6
    assert client.info(140) == (140).to_bytes(4, "little") + WHOLE[4:] + b"\xee" * 80


@pytest.mark.row("space", 34)
@pytest.mark.parametrize("argsz", [0, 15])
def test_too_little_for_the_page_sizes_is_einval(client: Client, argsz: int) -> None:
    with fails("EINVAL"):
        client.info(argsz)


@pytest.mark.row("space", 34)
@pytest.mark.row("space", 35)
def test_less_than_all_of_it_says_what_is_needed_and_writes_nothing_beyond(client: Client) -> None:
    for argsz in range(16, 120):
        expected = WHOLE[:16] + bytes(8)
        assert client.info(argsz) == expected[:argsz].ljust(200, b"\xee")


def test_mappings_that_can_be_made_are_counted(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MAPPINGS", 3)
    for number in range(3):
        assert client.info(120)[64:68] == (3 - number).to_bytes(4, "little")
        client.map(number * PAGE, PAGE)
    with fails("ENOSPC", "3 mappings already"):
        client.map(0x10000, PAGE)
    with fails("EEXIST"):
        client.map(0, PAGE)
    client.unmap(0, PAGE)
    client.map(0, PAGE)


# Ranges


@pytest.mark.row("space", 33)
@pytest.mark.row("space", 38)
@pytest.mark.row("space", 43)
def test_ranges_follow_the_groups(client: Client) -> None:
    assert client.ranges() == [(0, MSI[0] - 1), (MSI[1] + 1, LAST48)]
    client.map(1 << 32, PAGE)
    narrow = client.open_group(NARROW)

    with fails("EINVAL", "is mapped"):
        client.enter(narrow)
    assert client.ranges() == [(0, MSI[0] - 1), (MSI[1] + 1, LAST48)]

    client.unmap(1 << 32, PAGE)
    client.enter(narrow)
    assert client.ranges() == [(0, MSI[0] - 1), (MSI[1] + 1, (1 << 32) - 1)]
    with fails("EINVAL", "reserves some of it"):
        client.map(1 << 32, PAGE)
    client.program.ioctl(narrow, VfioRequest.GROUP_UNSET_CONTAINER)
    assert client.ranges() == [(0, MSI[0] - 1), (MSI[1] + 1, LAST48)]


@pytest.mark.row("space", 39)
@pytest.mark.parametrize("kind", RegionKind)
def test_all_kinds_of_regions_are_taken_out_but_relaxable_ones(kind: RegionKind) -> None:
    client = Client(System([DeviceConfig("dma0", regions=(Region(0x100000, 0x1FFFFF, kind),))]), DMA0)

    relaxed = kind is RegionKind.DIRECT_RELAXABLE
    assert client.ranges() == ([(0, LAST48)] if relaxed else [(0, 0xFFFFF), (0x200000, LAST48)])


@pytest.mark.row("space", 40)
def test_groups_without_a_common_iova_are_not_in_one_container() -> None:
    low, high = (0, 0xFFFFFFF), (0x10000000, 0xFFFFFFFF)
    system = System([DeviceConfig("low", aperture=low), DeviceConfig("high", aperture=high)])
    client = Client(system, 0)

    with fails("EINVAL", "no IOVA is left"):
        client.enter(client.open_group(1))
    assert client.ranges() == [low]


@pytest.mark.row("space", 36)
def test_a_map_is_inside_one_range(client: Client) -> None:
    for iova, size in ((MSI[0] - PAGE, 2 * PAGE), (MSI[0], PAGE), (LAST48 + 1, PAGE)):
        with fails("EINVAL", "reserves some of it"):
            client.map(iova, size)
    for iova in (MSI[0] - PAGE, MSI[1] + 1, LAST48 - PAGE + 1):
        client.map(iova, PAGE)
        assert client.unmap(iova, PAGE) == PAGE


# Maps


@pytest.mark.row("space", 37)
def test_a_map_beyond_64_bits_is_eoverflow(client: Client) -> None:
    with fails("EOVERFLOW"):
        client.map(LAST - PAGE + 1, 2 * PAGE)
    with fails("EOVERFLOW"):
        client.map(0, 2 * PAGE, vaddr=LAST - PAGE + 1)


def test_maps_that_are_refused(client: Client) -> None:
    client.map(0x10000, 2 * PAGE)
    for fields, error in (
        ({"size": 0}, "EINVAL"),
        ({"flags": 0}, "EINVAL"),
        ({"flags": 4}, "EINVAL"),
        ({"argsz": 31}, "EINVAL"),
        ({"iova": 0x800}, "EINVAL"),
        ({"size": 0x800}, "EINVAL"),
        ({"va": 0x800}, "EINVAL"),
        ({"vaddr": 0x1000}, "EFAULT"),
        ({"iova": 0x11000}, "EEXIST"),
    ):
        with fails(error):
            client.map(**{"iova": 0x20000, "size": PAGE, **fields})
    assert client.unmap(0, 0, flags=v.DmaUnmapFlag.ALL) == 2 * PAGE


def test_dma_reaches_what_is_mapped_in_all_groups(system: System, client: Client) -> None:
    client.map(0x10000, PAGE)
    client.enter(client.open_group(NARROW))
    client.map(0x20000, PAGE, PAGE)

    for name in ("dma0", "narrow"):
        system.write(name, 0x10000, name.encode())
        assert client.program.data[: len(name)] == name.encode()
        system.write(name, 0x20000, name.encode())
    with pytest.raises(DmaRefusedError):
        system.read("dma1", 0x10000, 1)
    assert client.unmap(0x10000, PAGE) == PAGE
    for name in ("dma0", "narrow"):
        with pytest.raises(DmaRefusedError):
            system.read(name, 0x10000, 1)


def test_a_map_that_one_page_table_has_no_room_for_is_in_none(system: System, client: Client) -> None:
    client.enter(client.open_group(NARROW))
    engine = system.hardware.engine
    engine.resize_pool(engine.pool_pages()[0] + 3)

    with fails("ENOMEM"):
        client.map(0x10000, PAGE)
    with pytest.raises(DmaRefusedError):
        system.read("dma0", 0x10000, 1)
    engine.resize_pool(engine.pool_pages()[0] + 6)
    client.map(0x10000, PAGE)


# Unmaps


@pytest.mark.row("space", 52)
def test_type1v2_unmaps_nothing_if_an_end_would_cut(system: System, client: Client) -> None:
    for number in (1, 2, 3):
        client.map(number * 0x10000, 2 * PAGE)

    for iova, size in ((0x10000, 0x20000 + PAGE), (0x11000, 0x20000), (0x11000, PAGE)):
        request = bytearray(v.DmaUnmap(24, 0, iova, size).pack())
        with fails("EINVAL", "would cut"):
            client.program.ioctl(client.container, VfioRequest.IOMMU_UNMAP_DMA, client.program.memory.add(request))
        assert v.DmaUnmap.unpack(request).size == size
        for place in (0x10000, 0x11000, 0x20000, 0x31000):
            system.read("dma0", place, 1)
    assert client.unmap(0, 0x100000) == 6 * PAGE


@pytest.mark.row("space", 52)
def test_type1_unmaps_maps_whole_that_begin_in_the_range(system: System) -> None:
    client = Client(system, DMA0, version=1)
    client.map(0x10000, 4 * PAGE)
    client.map(0x20000, 4 * PAGE)

    assert client.unmap(0x11000, 0x20000) == 0
    assert client.unmap(0x8000, 0x9000) == 4 * PAGE
    with pytest.raises(DmaRefusedError):
        system.read("dma0", 0x13000, 1)
    system.read("dma0", 0x20000, 1)


@pytest.mark.row("space", 53)
def test_unmapping_nothing_succeeds(client: Client) -> None:
    assert client.unmap(0x10000, PAGE) == 0
    assert client.unmap(0, 0, flags=v.DmaUnmapFlag.ALL) == 0


def test_unmaps_that_are_refused(client: Client) -> None:
    for fields, error in (
        ({"iova": 0, "size": 0}, "EINVAL"),
        ({"iova": 0x800, "size": PAGE}, "EINVAL"),
        ({"iova": 0, "size": 0x800}, "EINVAL"),
        ({"iova": LAST - PAGE + 1, "size": 2 * PAGE}, "EOVERFLOW"),
        ({"iova": PAGE, "size": 0, "flags": v.DmaUnmapFlag.ALL}, "EINVAL"),
        ({"iova": 0, "size": PAGE, "flags": v.DmaUnmapFlag.ALL}, "EINVAL"),
        ({"iova": 0, "size": PAGE, "flags": v.DmaUnmapFlag.GET_DIRTY_BITMAP}, "EINVAL"),
        ({"iova": 0, "size": PAGE, "argsz": 23}, "EINVAL"),
    ):
        with fails(error):
            client.unmap(**fields)


# Containers and groups


def test_a_container_gets_its_iommu_once_it_has_a_group(system: System) -> None:
    client = Client(system, version=None)
    program, container = client.program, client.container
    assert program.ioctl(container, VfioRequest.GET_API_VERSION) == 0
    assert [number for number in range(12) if program.ioctl(container, VfioRequest.CHECK_EXTENSION, number)] == [
        1,
        3,
        9,
    ]
    for request in (VfioRequest.SET_IOMMU, VfioRequest.IOMMU_GET_INFO):
        with fails("EINVAL"):
            program.ioctl(container, request, 3)
    group = client.open_group(DMA0)
    client.enter(group)
    for kind, error in ((2, "ENODEV"), (9, "EINVAL")):
        with fails(error):
            program.ioctl(container, VfioRequest.SET_IOMMU, kind)
    client.set_iommu(2)
    assert program.ioctl(container, VfioRequest.CHECK_EXTENSION, v.Extension.DMA_CC) == 1
    with fails("EINVAL", "has one already"):
        client.set_iommu(2)
    with fails("ENOTTY"):
        program.ioctl(container, 0x3B74, program.va)


def test_the_last_group_takes_the_iommu_with_it(system: System, client: Client) -> None:
    client.map(0x10000, PAGE)
    group = client.groups[DMA0]

    client.program.ioctl(group, VfioRequest.GROUP_UNSET_CONTAINER)

    with fails("EINVAL", "no IOMMU yet"):
        client.map(0x20000, PAGE)
    with pytest.raises(DmaRefusedError):
        system.read("dma0", 0x10000, 1)
    assert system.hardware.engine.domains() == ()
    client.enter(group)
    client.set_iommu(2)
    client.map(0x10000, PAGE)


@pytest.mark.row("space", 43)
def test_a_group_that_can_interrupt_others_is_not_given_away(system: System) -> None:
    client = Client(system, UNSAFE, version=None)
    with fails("EPERM", "unsafe"):
        client.set_iommu(2)
    assert system.hardware.engine.domains() == ()
    trusting = System([DeviceConfig("unsafe", isolated_msi=False)], allows_unsafe_interrupts=True)
    Client(trusting, 0).map(0, PAGE)


def test_groups_that_were_attached_are_detached_if_another_one_is_refused(system: System) -> None:
    client = Client(system, DMA0, UNSAFE, version=None)

    with fails("EPERM"):
        client.set_iommu(2)
    with pytest.raises(DmaRefusedError):
        system.read("dma0", 0, 1)
    assert system.hardware.engine.domains() == ()


def test_the_status_of_a_group(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(system, version=None)
    viable, with_container = v.GroupFlag.VIABLE, v.GroupFlag.VIABLE | v.GroupFlag.CONTAINER_SET
    group = client.open_group(DMA0)
    assert client.status(group) == viable
    with fails("EINVAL"):
        client.program.call(group, v.GroupStatus, argsz=7)
    with fails("EINVAL", "has none"):
        client.program.ioctl(group, VfioRequest.GROUP_UNSET_CONTAINER)
    client.enter(group)
    assert client.status(group) == with_container
    with fails("EINVAL", "has one already"):
        client.enter(group)
    with fails("EBADF"):
        client.enter(group, 77)

    def file(fd: int) -> OpenFile:
        raise RequestError(errno.EBADFD, f"descriptor {fd}: a file of the program, and none of the model's")

    with monkeypatch.context() as patch:
        patch.setattr(client.program, "file", file)
        with fails("EINVAL", "has one already"):
            client.enter(group)
    with fails("ENOTTY"):
        client.program.ioctl(group, 0x3B70, client.program.va)
    other = client.open_group(DMA1)
    for fd, error in ((99, "EBADF"), (group, "EBADFD")):
        with fails(error):
            client.enter(other, fd)


def test_a_group_is_open_once_and_not_beside_its_devices(system: System) -> None:
    client = Client(system, DMA0)
    with fails("EBUSY"):
        client.open_group(DMA0)
    with fails("EBUSY", "its group is open"):
        client.program.device("dma0")
    bound = client.program.device("dma1")
    with fails("EBUSY"):
        client.open_group(DMA1)
    bound.close()
    client.open_group(DMA1)


def test_devices_come_from_their_group(system: System) -> None:
    client = Client(system, DMA0, version=None)
    with fails("EINVAL", "no IOMMU yet"):
        client.device(DMA0, "dma0")
    client.set_iommu(2)
    with fails("ENODEV", "none of this name"):
        client.device(DMA0, "dma1")
    with fails("EINVAL", "no end"):
        client.device(DMA0, "x" * 5000)
    device = client.device(DMA0, "dma0")
    with fails("EINVAL", "through its group"):
        client.program.call(device, v.BindIommufd, iommufd=client.program.fd)
    with fails("ENOTTY"):
        client.program.ioctl(device, 0x3B6B, client.program.va)
    with fails("EBUSY", "devices of it are open"):
        client.program.ioctl(client.groups[DMA0], VfioRequest.GROUP_UNSET_CONTAINER)

    client.map(0x10000, PAGE)
    client.program.close(client.groups[DMA0])
    client.program.close(client.container)
    system.read("dma0", 0x10000, 1)
    client.program.close(device)
    with pytest.raises(DmaRefusedError):
        system.read("dma0", 0x10000, 1)
    client.open_group(DMA0)


def test_a_group_on_an_open_iommu_uses_the_chosen_ioas(system: System) -> None:
    client = Client(system, version=None)
    program = client.program
    group = client.groups[DMA0] = client.open_group(DMA0)
    client.enter(group, program.fd)
    client.container = program.fd
    client.set_iommu(2)
    client.map(0x10000, PAGE)
    device = client.device(DMA0, "dma0")

    system.write("dma0", 0x10000, b"compat")

    assert program.data[:6] == b"compat"
    assert program.iommu(s.VfioIoas, op=s.VfioIoasOp.GET).ioas_id == 1
    program.close(program.fd)
    system.read("dma0", 0x10000, 1)
    program.close(device)
    program.close(group)
    assert system.hardware.engine.domains() == ()


@pytest.mark.row("space", 61)
def test_a_device_is_opened_again_through_its_group(system: System) -> None:
    """It is bound at the first time, and is so until the last descriptor is closed."""
    client = Client(system, version=None)
    program = client.program
    group = client.groups[DMA0] = client.open_group(DMA0)
    client.enter(group, program.fd)
    client.container = program.fd
    client.map(0x10000, PAGE)
    devices = [client.device(DMA0, "dma0") for _ in range(3)]
    for device in devices[1:]:
        system.read("dma0", 0x10000, 1)
        program.close(device)
    system.read("dma0", 0x10000, 1)
    program.close(devices[0])
    with pytest.raises(DmaRefusedError):
        system.read("dma0", 0x10000, 1)
    assert system.devices["dma0"].owner is None
    client.device(DMA0, "dma0")
    system.read("dma0", 0x10000, 1)


@pytest.mark.row("space", 61)
def test_a_device_that_is_open_stays_with_the_iommu_that_it_was_opened_on(system: System) -> None:
    client = Client(system, version=None)
    program = client.program
    group = client.groups[DMA0] = client.open_group(DMA0)
    client.enter(group, program.fd)
    client.container = program.fd
    client.map(0x10000, PAGE)
    devices = [client.device(DMA0, "dma0")]
    program.ioctl(group, VfioRequest.GROUP_UNSET_CONTAINER)
    client.enter(group, program.open("/dev/iommu"))
    devices.append(client.device(DMA0, "dma0"))
    system.read("dma0", 0x10000, 1)
    for device in devices:
        program.close(device)
    assert system.devices["dma0"].owner is None


def test_a_device_that_cannot_be_attached_is_not_opened(system: System) -> None:
    client = Client(system, version=None)
    group = client.groups[DMA0] = client.open_group(DMA0)
    client.enter(group, client.program.fd)
    client.container = client.program.fd
    client.map(MSI[0], PAGE)

    with fails("EADDRINUSE"):
        client.device(DMA0, "dma0")
    assert system.devices["dma0"].owner is None
    client.unmap(MSI[0], PAGE)
    client.device(DMA0, "dma0")


def test_a_group_that_somebody_else_has_claimed(system: System) -> None:
    client = Client(system, version=None)
    group = client.groups[TWINS] = client.open_group(TWINS)
    client.enter(group, client.program.fd)
    client.device(TWINS, "twin0")
    client.program.ioctl(group, VfioRequest.GROUP_UNSET_CONTAINER)

    assert client.status(group) == 0
    with fails("EPERM", "claimed"):
        client.enter(group)
