"""Devices that do not exist, as kernels have them for tests of iommufd. The kernel's own tests judge the rest."""

from __future__ import annotations

import mmap
from typing import Any

import pytest

from pviommu.interfaces.iommufd import DeviceConfig, System
from pviommu.interfaces.iommufd import mock as m
from pviommu.interfaces.iommufd import structures as s
from pviommu.interfaces.iommufd.holdings import changes, holdings
from pviommu.interfaces.iommufd.places import refusal
from wire_layout import Record

from .conftest import BOTH, FIXED, LAST, PAGE, Program, fails

REQUEST = 0x3BA0
FIRST = 1 << 24
HALF = PAGE // 2
T = m.TestOperation


class Unreal(Program):
    """A program that makes the requests of tests."""

    def ask(self, operation: int, number: int, body: Record | None = None) -> bytes:
        """The body as it is afterwards."""
        data = (body.pack() if body else b"").ljust(48, b"\0")
        self._scratch[: m.TestCmd.SIZE] = m.TestCmd(m.TestCmd.SIZE, operation, number, 0, data, 0, 0).pack()
        self.returned_value = self.ioctl(self.fd, REQUEST, self._argument)
        return m.TestCmd.unpack(self._scratch).body

    def new(self, on: int, flags: int = 0) -> m._NewDevice:
        operation = T.MOCK_DOMAIN_FLAGS if flags else T.MOCK_DOMAIN
        return m._unpack(m._NewDevice, self.ask(operation, on, m._NewDevice(0, 0, 0, flags)))

    def check_map(self, hwpt: int, iova: int, length: int, address: int) -> None:
        self.ask(T.MD_CHECK_MAP, hwpt, m._CheckMap(iova, length, address))


@pytest.fixture
def unreal() -> Unreal:
    return Unreal(System(mock=True))


@pytest.fixture
def ioas(unreal: Unreal) -> int:
    return unreal.ioas()


def test_only_a_system_that_is_told_so_has_them(program: Program) -> None:
    with fails("ENOTTY"):
        program.ioctl(program.fd, REQUEST, program.va)
    with pytest.raises(ValueError, match="not part of /dev/iommu as it was first proposed"):
        System(rfc=True, mock=True)


def test_an_answer_that_cannot_be_written_is_undone(unreal: Unreal, ioas: int) -> None:
    """Of a device, an access and pinned pages."""
    unreal.map(ioas, PAGE, FIRST)
    access = unreal.ask(T.CREATE_ACCESS, ioas, m._NewAccess(0, 1))
    number = m._unpack(m._NewAccess, access).out_access_fd

    def meet(place: str) -> None:
        if place == "copy_out":
            raise refusal(place, "EFAULT")

    def all_there_is() -> dict[str, object]:
        return holdings(unreal.system, [unreal.find_file(unreal.fd)]) | {"descriptors": unreal.descriptors()}

    unreal.system.places.intercept(meet)
    before = all_there_is()
    for operation, on, body in (
        (T.MOCK_DOMAIN, ioas, None),
        (T.CREATE_ACCESS, ioas, m._NewAccess(0, 1)),
        (T.ACCESS_PAGES, number, m._AccessPages(0, 0, FIRST, PAGE, 0)),
    ):
        with fails("EFAULT", "on purpose"):
            unreal.ask(operation, on, body)
        assert changes(before, all_there_is()) == []


def test_its_pages_are_half_as_large(unreal: Unreal, ioas: int) -> None:
    new = unreal.new(ioas)
    assert unreal.ranges_and_alignment(ioas) == ([(FIRST, (1 << 31) - 1)], HALF)

    unreal.map(ioas, 3 * HALF, FIRST + HALF, unreal.va + HALF)
    unreal.check_map(new.out_hwpt_id, FIRST + HALF, 3 * HALF, unreal.va + HALF)
    for wrong in ((FIRST + HALF, HALF, unreal.va), (FIRST, HALF, unreal.va), (FIRST + 1, HALF, unreal.va)):
        with fails("EINVAL"):
            unreal.check_map(new.out_hwpt_id, *wrong)
    with fails("EINVAL"):
        unreal.map(ioas, HALF + 1)


def test_its_dma_reaches_half_pages(unreal: Unreal, ioas: int) -> None:
    unreal.new(ioas)
    unreal.map(ioas, HALF, FIRST, unreal.va + HALF)
    hardware, stream = unreal.system.hardware, 0

    hardware.write(stream, FIRST + 2040, b"the  end")
    assert unreal.data[PAGE - 8 : PAGE] == b"the  end"
    with pytest.raises(Exception, match=f"{FIRST + HALF:#x}: not mapped"):
        hardware.read(stream, FIRST + HALF, 1)


def test_a_device_that_is_destroyed_is_gone_and_its_place_is_used_again(unreal: Unreal, ioas: int) -> None:
    for _ in range(3):
        new = unreal.new(ioas)
        with fails("EBUSY"):
            unreal.iommu(s.Destroy, id=ioas)
        unreal.iommu(s.Destroy, id=new.out_stdev_id)
    assert len(unreal.system.hardware._streams) == 1
    with fails("ENOENT"):
        unreal.new(99)
    with fails("EINVAL"):
        unreal.new(ioas, 8)
    unreal.iommu(s.Destroy, id=ioas)


def test_what_is_pinned_is_counted_once_for_each_mapping(unreal: Unreal, ioas: int) -> None:
    def check(refs: int, length: int = PAGE) -> None:
        unreal.ask(T.MD_CHECK_REFS, 0, m._CheckRefs(length, unreal.va, refs, 0))

    iova = unreal.map(ioas, PAGE, FIRST)
    check(0)
    unreal.new(ioas)
    unreal.new(ioas, m.DeviceFlag.NO_DIRTY)
    check(1)
    with fails("EIO"):
        check(2)
    other = unreal.ioas()
    unreal.iommu(s.IoasCopy, src_ioas_id=ioas, dst_ioas_id=other, src_iova=iova, length=PAGE, flags=BOTH)
    check(1)
    unreal.map(ioas, PAGE)
    check(2)
    for length in (1, PAGE + 1):
        with fails("EINVAL"):
            check(0, length)
    with fails("EFAULT"):
        unreal.ask(T.MD_CHECK_REFS, 0, m._CheckRefs(PAGE, PAGE, 0, 0))
    unreal.close(unreal.fd)
    unreal.fd = unreal.open("/dev/iommu")
    check(0)


def access(unreal: Unreal, ioas: int, flags: int = 1) -> int:
    return m._unpack(m._NewAccess, unreal.ask(T.CREATE_ACCESS, ioas, m._NewAccess(0, flags))).out_access_fd


def pin(unreal: Unreal, fd: int, iova: int, length: int = PAGE, **fields: Any) -> int:
    body = m._AccessPages(fields.get("flags", 0), 0, iova, length, fields.get("uptr", 0))
    return m._unpack(m._AccessPages, unreal.ask(T.ACCESS_PAGES, fd, body)).out_access_pages_id


def test_an_access_pins_what_is_mapped(unreal: Unreal, ioas: int) -> None:
    fd = access(unreal, ioas)
    iova = unreal.map(ioas, 2 * PAGE)
    number = pin(unreal, fd, iova, uptr=unreal.va)

    unreal.ask(T.MD_CHECK_REFS, 0, m._CheckRefs(PAGE, unreal.va, 1, 0))
    unreal.ask(T.DESTROY_ACCESS_PAGES, fd, m._Number(number))
    with fails("ENOENT"):
        unreal.ask(T.DESTROY_ACCESS_PAGES, fd, m._Number(number))
    number = pin(unreal, fd, iova)
    unreal.unmap(ioas, iova, 2 * PAGE)  # it gives the pages back
    with fails("ENOENT"):
        unreal.ask(T.DESTROY_ACCESS_PAGES, fd, m._Number(number))
    with fails("EBUSY"):
        unreal.iommu(s.Destroy, id=ioas)
    unreal.close(fd)
    unreal.iommu(s.Destroy, id=ioas)


def test_what_an_access_cannot_pin(unreal: Unreal, ioas: int) -> None:
    fd, reader = access(unreal, ioas), access(unreal, ioas, 0)
    iova = unreal.map(ioas, PAGE, flags=s.MapFlag.READABLE)
    pin(unreal, fd, iova)

    for wrong, errno in (
        ({"length": 0}, "EINVAL"),
        ({"iova": LAST, "length": 2}, "EOVERFLOW"),
        ({"length": 2 * PAGE}, "ENOENT"),
        ({"flags": 1}, "EPERM"),
        ({"flags": 2}, "EOPNOTSUPP"),
        ({"length": (16 << 20) + 1}, "ENOMEM"),
        ({"uptr": unreal.va + PAGE}, "EBADE"),
        ({"fd": reader}, "EOPNOTSUPP"),
        ({"fd": unreal.fd}, "EBADFD"),
        ({"fd": 99}, "EBADFD"),
    ):
        with fails(errno):
            pin(unreal, **{"fd": fd, "iova": iova, **wrong})
    with fails("EOPNOTSUPP"):
        access(unreal, ioas, 2)
    with fails("ENOENT"):
        access(unreal, 99)
    with fails("ENOTTY"):
        unreal.ioctl(fd, REQUEST)


def test_areas_that_are_not_of_pages_keep_an_access_out(unreal: Unreal, ioas: int) -> None:
    unreal.map(ioas, HALF)
    with fails("EADDRINUSE"):
        access(unreal, ioas)
    access(unreal, ioas, 0)
    with fails("EADDRINUSE"):
        unreal.ask(T.ACCESS_REPLACE_IOAS, access(unreal, unreal.ioas()), m._Number(ioas))


def test_an_access_moves_to_another_ioas(unreal: Unreal, ioas: int) -> None:
    fd, other = access(unreal, ioas, 0), unreal.ioas()
    iova = unreal.map(other, PAGE)
    unreal.ask(T.ACCESS_REPLACE_IOAS, fd, m._Number(other))

    unreal.data[:4] = b"data"
    place = unreal.memory.add(bytearray(4))
    unreal.ask(T.ACCESS_RW, fd, m._AccessRw(iova, 4, place, 0, 0))
    assert unreal.memory.read(place, 4) == b"data"
    unreal.memory.write(place, b"more")
    unreal.ask(T.ACCESS_RW, fd, m._AccessRw(iova + 1, 4, place, 1, 0))
    assert unreal.data[:5] == b"dmore"
    unreal.iommu(s.Destroy, id=ioas)
    for body, errno in (
        (m._AccessRw(iova, 2 * PAGE, place, 0, 0), "ENOENT"),
        (m._AccessRw(iova, 4, place, 2, 0), "EOPNOTSUPP"),
        (m._AccessRw(iova, (16 << 20) + 1, place, 0, 0), "ENOMEM"),
    ):
        with fails(errno):
            unreal.ask(T.ACCESS_RW, fd, body)


def nested(unreal: Unreal, ioas: int) -> tuple[m._NewDevice, int, int]:
    """A device, a virtual IOMMU, and the page table that maps the guest's memory."""
    new = unreal.new(ioas)
    parent = unreal.iommu(s.HwptAlloc, dev_id=new.out_idev_id, pt_id=ioas, flags=1).out_hwpt_id
    viommu = unreal.iommu(s.ViommuAlloc, type=m._KIND, dev_id=new.out_idev_id, hwpt_id=parent).out_viommu_id
    return new, viommu, parent


def test_memory_of_a_hardware_queue_stays_mapped(unreal: Unreal, ioas: int) -> None:
    _, viommu, _ = nested(unreal, ioas)
    unreal.map(ioas, PAGE, FIRST)
    unreal.map(ioas, PAGE, FIRST + PAGE)
    unreal.map(ioas, PAGE, FIRST + 2 * PAGE, unreal.va + 8 * PAGE)

    def queue(index: int, iova: int = FIRST, length: int = PAGE) -> int:
        fields = {"viommu_id": viommu, "type": m._KIND, "index": index}
        return unreal.iommu(s.HwQueueAlloc, nesting_parent_iova=iova, length=length, **fields).out_hw_queue_id

    with fails("EFAULT", "in pieces"):
        queue(0, FIRST + PAGE, 2 * PAGE)
    first = queue(0)
    with fails("EBUSY", "is in use"):
        unreal.unmap(ioas, FIRST, 3 * PAGE)
    with fails("EBUSY"):
        unreal.unmap(ioas, 0, LAST)
    second = queue(1, FIRST + HALF, 100)
    with fails("EBUSY"):
        unreal.iommu(s.Destroy, id=first)
    for number in (second, first):
        unreal.iommu(s.Destroy, id=number)
    assert unreal.unmap(ioas, FIRST, 3 * PAGE) == 3 * PAGE


def test_areas_before_one_that_is_kept_are_unmapped(unreal: Unreal, ioas: int) -> None:
    _, viommu, _ = nested(unreal, ioas)
    for page in range(2):
        unreal.map(ioas, PAGE, FIRST + page * PAGE)
    fields = {"viommu_id": viommu, "type": m._KIND, "nesting_parent_iova": FIRST + PAGE, "length": PAGE}
    unreal.iommu(s.HwQueueAlloc, **fields)

    with fails("EBUSY"):
        unreal.unmap(ioas, FIRST, 2 * PAGE)
    unreal.map(ioas, PAGE, FIRST)


def test_what_a_virtual_iommu_shows_can_be_mapped_and_keeps_it(unreal: Unreal, ioas: int) -> None:
    new, _, parent = nested(unreal, ioas)
    place = unreal.memory.add(bytearray(m._ViommuData(0xBEEF, 0, 0, 0).pack()))
    request = {"type": m._KIND, "dev_id": new.out_idev_id, "hwpt_id": parent, "data_len": 24, "data_uptr": place}
    viommu = unreal.iommu(s.ViommuAlloc, **request).out_viommu_id
    data = m._ViommuData.unpack(unreal.memory.read(place, 24))
    file = unreal.file(unreal.fd)
    assert isinstance(file, m.MockIommufd)
    assert data.out_data == 0xBEEF

    for offset, length in ((0, PAGE), (data.out_mmap_offset, PAGE), (data.out_mmap_offset + PAGE, PAGE)):
        with fails("ENXIO"):
            file.mapped(offset, length)
    descriptor, start = file.mapped(data.out_mmap_offset, data.out_mmap_length)
    with mmap.mmap(descriptor, data.out_mmap_length, offset=start) as mapped:
        assert mapped[:4] == b"\xef\xbe\0\0"
        with fails("EBUSY", "mmap"):
            unreal.iommu(s.Destroy, id=viommu)
    unreal.iommu(s.Destroy, id=viommu)


def test_a_dma_buf_is_mapped_and_taken_back(unreal: Unreal, ioas: int) -> None:
    unreal.ask(T.DMABUF_GET, 0, m._NewAccess(PAGE - 1, 0))
    fd = unreal.returned_value
    unreal.new(ioas)

    def map_it(length: int = PAGE, **fields: int) -> int:
        return unreal.iommu(s.IoasMapFile, ioas_id=ioas, fd=fd, length=length, flags=BOTH, **fields).iova

    iova = map_it()
    with fails("EINVAL", "dma-buf of 4096 bytes"):
        map_it(PAGE + HALF)
    with fails("EINVAL", "maps no file"):
        unreal.iommu(s.IoasChangeProcess)
    unreal.ask(T.DMABUF_REVOKE, 0, m._Revoke(fd, 1))
    with fails("ENODEV"):
        map_it()
    with fails("EFAULT", "taken back"):
        unreal.system.hardware.read(0, iova, 4)
    unreal.ask(T.DMABUF_REVOKE, 0, m._Revoke(fd, 0))
    assert unreal.system.hardware.read(0, iova, 4) == bytes(4)
    with fails("EOPNOTSUPP"):
        unreal.ask(T.DMABUF_REVOKE, 0, m._Revoke(unreal.fd, 1))
    for size in (0, (2 << 20) + 1):
        with fails("EINVAL"):
            unreal.ask(T.DMABUF_GET, 0, m._NewAccess(size, 0))


@pytest.mark.parametrize(
    ("operation", "number", "body", "errno"),
    [
        (99, 0, None, "EOPNOTSUPP"),
        (T.ADD_RESERVED, 1, m._Range(0, 0), "EINVAL"),
        (T.ADD_RESERVED, 1, m._Range(2, LAST), "EOVERFLOW"),
        (T.ADD_RESERVED, 9, m._Range(0, 1), "ENOENT"),
        (T.SET_TEMP_MEMORY_LIMIT, 0, m._Number(11), "EINVAL"),
        (T.MOCK_DOMAIN_REPLACE, 1, m._Number(1), "ENOENT"),
        (T.MD_CHECK_IOTLB, 1, m._CheckCache(0, 0), "ENOENT"),
        (T.DEV_CHECK_CACHE, 1, m._CheckCache(0, 0), "ENOENT"),
        (T.PASID_CHECK_HWPT, 1, m._Pasid(1, 1), "ENOENT"),
        (T.TRIGGER_IOPF, 0, m._TriggerIopf(1, 0, 0, 0, 0), "ENOENT"),
        (T.TRIGGER_VEVENT, 0, m._Number(1), "ENOENT"),
        (T.DIRTY, 1, m._Dirty(0, 0, 0, PAGE, 0, 1, 0), "EINVAL"),
        (T.DIRTY, 1, m._Dirty(0, 0, 0, 1 << 40, 1, 1, 0), "EOVERFLOW"),
    ],
)
def test_requests_that_are_refused(
    unreal: Unreal, ioas: int, operation: int, number: int, body: Record | None, errno: str
) -> None:
    with fails(errno):
        unreal.ask(operation, number, body)


def test_a_bound_device_is_no_mock_device(ioas: int) -> None:
    unreal = Unreal(System([DeviceConfig("dev")], mock=True))
    device = unreal.device("dev")
    for operation, body in ((T.DEV_CHECK_CACHE, m._CheckCache(0, 0)), (T.TRIGGER_IOPF, None)):
        with fails("EINVAL", "no mock device"):
            unreal.ask(operation, device.id, body or m._TriggerIopf(device.id, 0, 0, 0, 0))


def test_a_process_that_ends_takes_all_devices_along(unreal: Unreal, ioas: int) -> None:
    new, viommu, parent = nested(unreal, ioas)
    unreal.iommu(s.VdeviceAlloc, viommu_id=viommu, dev_id=new.out_idev_id, virt_id=1)
    unreal.new(parent)
    fd = access(unreal, ioas)
    unreal.map(ioas, PAGE, FIRST, flags=BOTH | FIXED)
    pin(unreal, fd, FIRST)
    unreal.exit()

    assert not list(unreal.system.hardware.engine.domains())
    assert len(unreal.system.hardware._free_streams) == len(unreal.system.hardware._streams)


def test_pages_that_are_not_mapped_do_not_become_dirty(unreal: Unreal, ioas: int) -> None:
    """That is no error, and ends nothing: a server would be gone with all its programs."""
    new = unreal.new(ioas)
    hwpt = unreal.iommu(
        s.HwptAlloc, dev_id=new.out_idev_id, pt_id=ioas, flags=s.HwptAllocFlag.DIRTY_TRACKING
    ).out_hwpt_id
    unreal.iommu(s.HwptSetDirtyTracking, hwpt_id=hwpt, flags=s.DirtyTrackingFlag.ENABLE)
    unreal.map(ioas, PAGE, FIRST)
    bits = unreal.memory.add(b"\xff")
    answer = unreal.ask(T.DIRTY, hwpt, m._Dirty(0, 0, FIRST, 8 * HALF, HALF, bits, 0))
    assert m._unpack(m._Dirty, answer).out_nr_dirty == 8
    found = bytearray(1)
    unreal.iommu(
        s.HwptGetDirtyBitmap,
        hwpt_id=hwpt, iova=FIRST, length=8 * HALF, page_size=HALF, data=unreal.memory.add(found),
    )  # fmt: skip
    assert found[0] == 0b11
    with fails("EOVERFLOW"):
        unreal.ask(T.DIRTY, hwpt, m._Dirty(0, 0, LAST - HALF + 1, 8 * HALF, HALF, bits, 0))
