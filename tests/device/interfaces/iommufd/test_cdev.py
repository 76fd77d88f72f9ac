"""Character devices of VFIO, and descriptors."""

from __future__ import annotations

import pytest

from pviommu.interfaces.iommufd import MSI_REGION, DeviceConfig, DmaRefusedError, Region, RegionKind, System
from pviommu.interfaces.iommufd import structures as s
from pviommu.interfaces.iommufd import vfio_structures as v
from pviommu.interfaces.iommufd.process import blank
from pviommu.interfaces.iommufd.vfio_structures import VfioRequest

from .conftest import PAGE, Handle, Program, fails

NODE = "/dev/vfio/devices/vfio0"


def test_nothing_works_before_the_device_is_bound(program: Program) -> None:
    fd = program.open(NODE)

    for request in (VfioRequest.DEVICE_ATTACH_IOMMUFD_PT, VfioRequest.DEVICE_DETACH_IOMMUFD_PT, 0x3B6B):
        with fails("EINVAL", "not bound"):
            program.ioctl(fd, request, program.va)
    for fields, error in (
        ({"argsz": 15}, "EINVAL"),
        ({"flags": 2}, "EINVAL"),
        ({"flags": 3}, "EINVAL"),
        ({"flags": 1}, "EFAULT"),
        ({"flags": 1, "token_uuid_ptr": program.va, "iommufd": 77}, "EINVAL"),
        ({"iommufd": -1}, "EINVAL"),
        ({"iommufd": 77}, "EBADF"),
        ({"iommufd": fd}, "EBADFD"),
    ):
        with fails(error):
            program.call(fd, v.BindIommufd, **{"iommufd": program.fd, **fields})
    assert program.call(fd, v.BindIommufd, iommufd=program.fd).out_devid == 1
    with fails("EINVAL", "bound already"):
        program.call(fd, v.BindIommufd, iommufd=program.fd)
    with fails("ENOTTY"):
        program.ioctl(fd, 0x3B6B, program.va)


def test_a_longer_structure_is_bound_with_if_nothing_is_in_it(program: Program) -> None:
    fd, request = program.open(NODE), VfioRequest.DEVICE_BIND_IOMMUFD
    data = bytearray(blank(v.BindIommufd, argsz=v.BindIommufd.SIZE + 8, iommufd=program.fd).pack() + bytes(7) + b"\1")
    place = program.memory.add(data)
    with fails("E2BIG"):
        program.ioctl(fd, request, place)
    data[-1] = 0
    program.ioctl(fd, request, place)
    assert v.BindIommufd.unpack(bytes(data[: v.BindIommufd.SIZE])).out_devid == 1
    data[-1] = 1  # which outranks that it is bound
    with fails("E2BIG"):
        program.ioctl(fd, request, place)
    program.memory.remove(place)
    with fails("EFAULT"):
        program.ioctl(fd, request, program.memory.add(data[: v.BindIommufd.SIZE]))


def test_a_pasid_needs_its_size_before_its_bytes(program: Program, dma0: Handle) -> None:
    for record, request in (
        (v.AttachIommufdPt, VfioRequest.DEVICE_ATTACH_IOMMUFD_PT),
        (v.DetachIommufdPt, VfioRequest.DEVICE_DETACH_IOMMUFD_PT),
    ):
        for argsz, error in ((record.SIZE, "EINVAL"), (record.SIZE + 4, "EFAULT")):
            place = program.memory.add(blank(record, argsz=argsz, flags=v.AttachFlag.PASID).pack())
            with fails(error):
                program.ioctl(dma0.fd, request, place)


def test_structures_that_are_refused(program: Program, dma0: Handle) -> None:
    for record in (v.AttachIommufdPt, v.DetachIommufdPt):
        for fields in ({"argsz": record.SIZE - 1}, {"flags": 1}):
            with fails("EINVAL"):
                program.call(dma0.fd, record, **fields)


def test_what_cannot_be_written_back_is_undone(program: Program, system: System) -> None:
    fd = program.open(NODE)
    bind = program.memory.add(v.BindIommufd(24, 0, program.fd, 0, 0).pack())
    with fails("EFAULT"):
        program.ioctl(fd, VfioRequest.DEVICE_BIND_IOMMUFD, bind)
    assert system.devices["dma0"].owner is None

    program.close(fd)
    dma0 = program.device("dma0")
    ioas = program.ioas()
    program.map(ioas, PAGE, 0x10000)
    attach = program.memory.add(v.AttachIommufdPt(12, 0, ioas).pack())
    with fails("EFAULT"):
        program.ioctl(dma0.fd, VfioRequest.DEVICE_ATTACH_IOMMUFD_PT, attach)
    with pytest.raises(DmaRefusedError):
        dma0.read(0x10000)
    program.iommu(s.Destroy, id=ioas)


def test_paths_that_there_are(program: Program) -> None:
    for path in ("/dev/iommu", NODE):
        program.close(program.open(path))
    for path in ("/dev/vfio/devices/vfio70", "/dev/null"):
        with fails("ENOENT", "no such file"):
            program.open(path)


def test_descriptors_are_the_lowest_free_ones_and_limited(program: Program) -> None:
    first = program.open("/dev/iommu")
    second = program.dup(first)
    assert second == first + 1
    program.close(first)
    with fails("EBADF"):
        program.close(first)
    with fails("EBADF"):
        program.dup(first)
    assert program.open("/dev/iommu") == first

    with fails("EMFILE"):
        for _ in range(2000):
            program.dup(second)
    with fails("EMFILE"):
        program.open("/dev/iommu")


def test_a_call_takes_the_fields_of_its_structure(program: Program) -> None:
    with pytest.raises(TypeError, match="nonsense"):
        program.iommu(s.IoasAlloc, nonsense=1)
    with pytest.raises(KeyError):
        program.iommu(s.IovaRange)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"aperture": (0x800, 0xFFFF)}, "pages of 4 KiB"),
        ({"aperture": (0, 1 << 48)}, "pages of 4 KiB"),
        ({"aperture": (0x2000, 0xFFF)}, "pages of 4 KiB"),
        ({"page_sizes": 0x10000}, "smallest must be of 4 KiB"),
        ({"page_sizes": 0}, "smallest must be of 4 KiB"),
    ],
)
def test_a_device_that_cannot_be_is_refused(settings: dict[str, int], why: str) -> None:
    with pytest.raises(ValueError, match=f"device odd: .*{why}"):
        DeviceConfig("odd", **settings)  # type: ignore[arg-type]


def test_two_devices_of_one_name_and_a_region_backwards_are_refused() -> None:
    with pytest.raises(ValueError, match="two of this name"):
        System([DeviceConfig("dma0"), DeviceConfig("dma0")])
    with pytest.raises(ValueError, match="first must not exceed last"):
        Region(5, 4, RegionKind.MSI)


@pytest.mark.row("space", 43)
def test_a_region_is_a_line_of_sysfs() -> None:
    assert str(MSI_REGION) == "0x00000000fee00000 0x00000000feefffff msi"
