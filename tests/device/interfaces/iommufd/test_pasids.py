"""Page tables that devices are attached to with a PASID."""

from __future__ import annotations

import pytest

from pviommu.interfaces.iommufd import DeviceConfig, DmaRefusedError, System
from pviommu.interfaces.iommufd import structures as s
from pviommu.interfaces.iommufd import vfio_structures as v

from .conftest import PAGE, Handle, Program, fails

PASID = s.HwptAllocFlag.PASID
SIZE = v.AttachIommufdPasid.SIZE
IOVA = 0x10000


def attach(device: Handle, table: int, pasid: int) -> int:
    fields = {"flags": v.AttachFlag.PASID, "pt_id": table, "pasid": pasid}
    return device.program.call(device.fd, v.AttachIommufdPasid, **fields).pt_id


def detach(device: Handle, pasid: int) -> None:
    device.program.call(device.fd, v.DetachIommufdPasid, flags=v.AttachFlag.PASID, pasid=pasid)


@pytest.fixture
def program() -> Program:
    twins = [DeviceConfig(name, pasid_bits=8, group="twins") for name in ("twin0", "twin1")]
    return Program(System([DeviceConfig("dev", pasid_bits=8), DeviceConfig("none"), *twins]))


@pytest.fixture
def device(program: Program) -> Handle:
    return program.device("dev")


def tables(program: Program, device: Handle) -> tuple[int, int]:
    """Two that take PASIDs, one page further each."""
    found = []
    for number in range(2):
        ioas = program.ioas()
        program.map(ioas, PAGE, IOVA, program.va + number * PAGE)
        found.append(device.table(ioas, PASID))
    return found[0], found[1]


def test_dma_with_a_pasid_goes_through_its_page_table(program: Program, device: Handle) -> None:
    first, second = tables(program, device)
    device.attach(first)
    assert attach(device, second, 7) == second

    program.system.write("dev", IOVA, b"first")
    program.system.write("dev", IOVA, b"second", pasid=7)

    assert (program.data[:5], program.data[PAGE : PAGE + 6]) == (b"first", b"second")
    with pytest.raises(DmaRefusedError, match="PASID"):
        program.system.read("dev", IOVA, 1, pasid=8)


def test_another_page_table_replaces_it_and_nothing_ends_it(program: Program, device: Handle) -> None:
    first, second = tables(program, device)
    attach(device, first, 7)
    attach(device, first, 7)
    attach(device, second, 7)

    program.system.write("dev", IOVA, b"second", pasid=7)
    assert program.data[PAGE : PAGE + 6] == b"second"
    for table, errno in ((first, None), (second, "EBUSY")):
        if errno is None:
            program.iommu(s.Destroy, id=table)
        else:
            with fails(errno):
                program.iommu(s.Destroy, id=table)
    detach(device, 7)
    detach(device, 7)
    with pytest.raises(DmaRefusedError):
        program.system.read("dev", IOVA, 1, pasid=7)
    program.iommu(s.Destroy, id=second)


def test_what_takes_no_pasids(program: Program, device: Handle) -> None:
    first, _ = tables(program, device)
    ioas = program.ioas()
    plain = device.table(ioas)

    for number in (plain, ioas):
        with fails("EINVAL"):
            attach(device, number, 7)
    with fails("EINVAL", "8 bits"):
        attach(device, first, 256)
    with fails("ENOENT"):
        attach(device, 99, 7)
    none = program.device("none")
    with fails("EINVAL", "0 bits"):
        attach(none, first, 7)
    with fails("EOPNOTSUPP", "has not all of it"):
        none.table(ioas, PASID)
    device.attach(plain)
    with fails("EINVAL", "takes none"):
        attach(device, first, 7)
    device.attach(first)
    attach(device, first, 7)
    with fails("EINVAL", "it has PASIDs"):
        device.attach(plain)


def test_pasids_have_20_bits_at_most() -> None:
    with pytest.raises(ValueError, match=r"device x: PASIDs of 21 bits: must be 0\.\.20"):
        DeviceConfig("x", pasid_bits=21)


def test_sizes_of_the_structures(program: Program, device: Handle) -> None:
    first, _ = tables(program, device)
    for record in (v.AttachIommufdPasid, v.DetachIommufdPasid):
        with fails("EINVAL"):
            program.call(device.fd, record, argsz=record.SIZE - 4, flags=v.AttachFlag.PASID)
        with fails("EINVAL"):
            program.call(device.fd, record, flags=2)
    place = program.memory.add(v.AttachIommufdPasid(SIZE, 1, first, 7).pack())
    with fails("EFAULT"):
        program.ioctl(device.fd, v.VfioRequest.DEVICE_ATTACH_IOMMUFD_PT, place)
    program.iommu(s.Destroy, id=first)  # nothing is attached


def test_devices_of_a_group_share_what_a_pasid_goes_through(program: Program) -> None:
    twins = [program.device("twin0"), program.device("twin1")]
    first, second = tables(program, twins[0])
    attach(twins[0], first, 7)

    with fails("EINVAL", "is attached to"):
        attach(twins[1], second, 7)
    program.system.write("twin1", IOVA, b"x", pasid=7)
    attach(twins[1], first, 7)
    detach(twins[0], 7)
    program.system.write("twin0", IOVA, b"x", pasid=7)
    twins[1].close()
    with pytest.raises(DmaRefusedError):
        program.system.read("twin0", IOVA, 1, pasid=7)
    program.iommu(s.Destroy, id=first)


def test_pasid_0_is_dma_without_one_but_remembered_apart(program: Program, device: Handle) -> None:
    first, second = tables(program, device)
    assert attach(device, first, 0) == first
    device.write(IOVA, b"first")
    assert program.data[:5] == b"first"
    with fails("EBUSY"):
        device.attach(second)
    device.detach()  # which it is not, in this way
    assert attach(device, second, 0) == second
    device.write(IOVA, b"second")
    assert program.data[PAGE : PAGE + 6] == b"second"

    detach(device, 0)
    with pytest.raises(DmaRefusedError):
        device.read(IOVA)
    device.attach(first)
    with fails("EBUSY"):
        attach(device, second, 0)
    detach(device, 0)
    assert device.read(IOVA, 5) == b"first"


def test_a_pasid_that_linux_cannot_remember_outranks_what_it_is_attached_to(program: Program, device: Handle) -> None:
    for pasid in (1 << 31, (1 << 32) - 1):
        with fails("ENOSPC", "31 bits"):
            attach(device, 99, pasid)
        detach(device, pasid)
    with fails("ENOENT"):
        attach(device, 99, (1 << 31) - 1)


def test_pasid_0_needs_no_pasids(program: Program) -> None:
    none, ioas = program.device("none"), program.ioas()
    table = attach(none, ioas, 0)
    assert none.table(ioas) == table + 1
    none.close()
    with fails("ENOENT"):
        program.iommu(s.Destroy, id=table)  # it came by itself, and has gone so
