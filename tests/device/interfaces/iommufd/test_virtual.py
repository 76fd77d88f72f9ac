"""Virtual IOMMUs, their devices and hardware queues."""

from __future__ import annotations

import gc

import pytest

from pviommu.interfaces.iommufd import DeviceConfig, System
from pviommu.interfaces.iommufd import structures as s
from pviommu.interfaces.iommufd.context import Iommufd
from pviommu.interfaces.iommufd.nesting import KIND, NESTING
from pviommu.interfaces.iommufd.virtual import Viommu

from .conftest import PAGE, Handle, Program, fails
from .test_nesting import BASE, DATA, Guest

NEST = s.HwptAllocFlag.NEST_PARENT


@pytest.fixture
def guest() -> Guest:
    configs = [DeviceConfig("dev", model=NESTING), DeviceConfig("more", model=NESTING), DeviceConfig("other")]
    program = Program(System(configs))
    return Guest(program, program.device("dev"))


def viommu(guest: Guest, **fields: int) -> int:
    request = {"type": KIND, "dev_id": guest.device.id, "hwpt_id": guest.parent, **fields}
    return guest.program.iommu(s.ViommuAlloc, **request).out_viommu_id


def vdevice(guest: Guest, number: int, name: int, device: Handle | None = None) -> int:
    dev_id = (device or guest.device).id
    return guest.program.iommu(s.VdeviceAlloc, viommu_id=number, dev_id=dev_id, virt_id=name).out_vdevice_id


@pytest.mark.row("space", 58)
def test_what_a_virtual_iommu_cannot_be_allocated_for(guest: Guest) -> None:
    other = guest.program.device("other")
    for wrong, errno in (
        ({"flags": 1}, "EOPNOTSUPP"),
        ({"type": 0}, "EOPNOTSUPP"),
        ({"type": KIND + 1, "hwpt_id": 99}, "EOPNOTSUPP"),
        ({"dev_id": other.id}, "EOPNOTSUPP"),
        ({"dev_id": 99}, "ENOENT"),
        ({"hwpt_id": 99}, "ENOENT"),
        ({"hwpt_id": guest.device.table(guest.ioas)}, "EINVAL"),
        ({"data_len": 4}, "EINVAL"),
    ):
        with fails(errno):
            viommu(guest, **wrong)


@pytest.mark.row("space", 58)
def test_a_device_and_a_name_are_there_once(guest: Guest) -> None:
    number, more = viommu(guest), guest.program.device("more")
    first = vdevice(guest, number, 0x99)

    with fails("EEXIST", "it has one"):
        vdevice(guest, number, 0x88)
    with fails("EEXIST", "of this name"):
        vdevice(guest, number, 0x99, more)
    with fails("EBUSY"):
        guest.program.iommu(s.Destroy, id=number)
    guest.program.iommu(s.Destroy, id=first)
    vdevice(guest, number, 0x88)
    vdevice(guest, number, 0x99, more)


def test_devices_behind_another_iommu_are_refused(guest: Guest) -> None:
    number, other = viommu(guest), guest.program.device("other")

    with fails("EINVAL", "behind another IOMMU"):
        vdevice(guest, number, 1, other)
    with fails("EINVAL", "behind another IOMMU"):
        guest.nested(number, dev_id=other.id)
    for fields in ({"number": 99}, {"device": None}):
        with fails("ENOENT"):
            if "number" in fields:
                vdevice(guest, 99, 1)
            else:
                guest.program.iommu(s.VdeviceAlloc, viommu_id=number, dev_id=99)


@pytest.mark.row("space", 58)
def test_a_page_table_of_a_virtual_iommu_is_for_its_devices(guest: Guest) -> None:
    number = viommu(guest)
    nested = guest.nested(number)
    guest.leaf(3, DATA)
    with fails("ENOENT", "has no such device"):
        guest.device.attach(nested)
    vdevice(guest, number, 0x99)
    guest.device.attach(nested)

    guest.device.write(3 * PAGE, b"data")
    assert guest.program.data[DATA * PAGE : DATA * PAGE + 4] == b"data"


def test_an_invalidation_of_a_virtual_iommu_is_of_all_its_page_tables(guest: Guest) -> None:
    number = viommu(guest)
    nested = guest.nested(number)
    vdevice(guest, number, 1)
    guest.leaf(3, DATA)
    guest.device.attach(nested)
    guest.device.write(3 * PAGE, b"old")
    guest.leaf(3, DATA + 1)

    guest.device.write(3 * PAGE, b"more")
    assert guest.invalidate(number, [(3 * PAGE, 1)]) == (0, 1)
    guest.device.write(3 * PAGE, b"new")
    assert guest.program.data[DATA * PAGE :][:4] == b"more"
    assert guest.program.data[(DATA + 1) * PAGE :][:4] == b"new\0"
    assert guest.invalidate(number, [(0, 0), (1, 0)]) == (22, 1)


def test_everything_keeps_what_it_stands_on(guest: Guest) -> None:
    number = viommu(guest)
    nested = guest.nested(number)
    for busy in (guest.parent, number):
        with fails("EBUSY"):
            guest.program.iommu(s.Destroy, id=busy)
    for gone in (nested, number, guest.parent):
        guest.program.iommu(s.Destroy, id=gone)


def test_a_device_that_leaves_takes_its_virtual_device_and_keeps_the_id(guest: Guest) -> None:
    number = viommu(guest)
    gone = vdevice(guest, number, 1)
    guest.device.close()

    with fails("ENOENT"):
        guest.program.iommu(s.Destroy, id=gone)
    guest.program.iommu(s.Destroy, id=number)
    ids = {guest.program.ioas() for _ in range(8)}
    assert gone not in ids
    assert number in ids


def test_this_kind_has_no_hardware_queues(guest: Guest) -> None:
    number = viommu(guest)
    for fields, errno in (
        ({"type": 0}, "EOPNOTSUPP"),
        ({"length": 0}, "EINVAL"),
        ({"nesting_parent_iova": (1 << 64) - 1}, "EOVERFLOW"),
        ({"viommu_id": 99}, "ENOENT"),
        ({}, "EOPNOTSUPP"),
    ):
        request = {"viommu_id": number, "type": 1, "nesting_parent_iova": BASE, "length": PAGE, **fields}
        with fails(errno):
            guest.program.iommu(s.HwQueueAlloc, **request)


def test_page_tables_that_are_gone_are_forgotten(guest: Guest) -> None:
    number = viommu(guest)
    for _ in range(3):
        guest.program.iommu(s.Destroy, id=guest.nested(number))
    found = guest.program.file(guest.program.fd)
    assert isinstance(found, Iommufd)
    stages = found.objects.get(Viommu, number).is_like._stages  # type: ignore[attr-defined]
    gc.collect()
    assert not len(stages)
