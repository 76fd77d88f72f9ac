"""CALL: operations whose structure lies in guest memory."""

import fcntl
import os

import pytest

from pviommu.guest.xen_2024 import UNTOUCHED
from pviommu_abi.registers import Profile
from pviommu_abi.slots import Errno, OpClass
from pviommu_abi.vendor import Call, VendorOp
from pviommu_abi.xen_2024 import LookupPage, MapPages, PvIommuOp, QueryCapabilities, Xen2024Op
from pviommu_abi.xen_v7 import V7Alloc, V7Free, V7MapPages, V7RemoteCmd, XenV7Op
from vfio_user import DmaMapping

from .conftest import PLACE, Memory

RAM_SIZE = 0x1000000
OUTSIDE = [RAM_SIZE, RAM_SIZE - 16, (1 << 64) - 16]
F_SEAL_WRITE = 0x8


def plug_memory_that_cannot_be_written(driver, address):
    """Memory that is read and written by system calls, and that was sealed against writing afterwards."""
    fd = os.memfd_create("sealed later", os.MFD_ALLOW_SEALING)
    os.truncate(fd, 0x1000)
    driver.iommu.dma_map(DmaMapping(address, 0x1000, 0, True, True, os.dup(fd)))
    return fd


def seal(fd):
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, F_SEAL_WRITE)
    os.close(fd)


# -- xen-2024 ---------------------------------------------------------------------------------------------------------


def test_an_operation_in_guest_memory_is_carried_out_and_its_structure_written_back(driver):
    result, answer = Memory(driver).call(PvIommuOp(Xen2024Op.ALLOC_CONTEXT, UNTOUCHED, 0).pack().ljust(32, b"\0"))
    assert (result, PvIommuOp.unpack(answer).ctx_no) == (0, 1)


@pytest.mark.row("xen", 5)
def test_a_failed_operation_writes_the_whole_structure_back(driver):
    memory = Memory(driver)
    driver.alloc()
    driver.map(1, 0x102, 0x99, 1)
    result, answer = memory.call(MapPages(Xen2024Op.MAP_PAGES, 1, 3, 0x10, 0x100, 5, UNTOUCHED).pack())
    assert (result, MapPages.unpack(answer).mapped) == (-Errno.EADDRINUSE, 2)
    lookup = LookupPage(Xen2024Op.LOOKUP_PAGE, 9, 0, UNTOUCHED, 5).pack() + bytes(8)
    assert memory.call(lookup) == (-Errno.EINVAL, lookup)


@pytest.mark.row("xen", 4)
@pytest.mark.parametrize("address", OUTSIDE)
def test_a_structure_outside_guest_memory_is_efault_and_does_nothing(driver, address):
    assert Memory(driver).call(b"", address=address)[0] == -Errno.EFAULT


@pytest.mark.row("xen", 4)
def test_a_structure_that_cannot_be_written_back_is_efault_and_what_was_done_stays(driver):
    driver.alloc()
    fd = plug_memory_that_cannot_be_written(driver, 0x40000000)
    os.pwrite(fd, MapPages(Xen2024Op.MAP_PAGES, 1, 3, 0x10, 0x100, 1).pack(), 0)
    seal(fd)
    assert Memory(driver).call(b"", address=0x40000000)[0] == -Errno.EFAULT
    assert driver.lookup(1, 0x100) == (0, 0x10)


@pytest.mark.row("xen", 3)
def test_a_guest_that_is_not_allowed_gets_eperm_after_its_structure_was_read(make_driver):
    memory = Memory(make_driver(allowed=False).start())
    structure = PvIommuOp(99, UNTOUCHED, 7).pack() + bytes(range(24))
    assert memory.call(structure) == (-Errno.EPERM, structure)
    assert memory.call(b"", address=RAM_SIZE)[0] == -Errno.EFAULT


def test_a_number_in_the_slot_is_einval_under_xen_2024(driver):
    noop = bytes(32)
    assert Memory(driver).call(noop, op=1) == (-Errno.EINVAL, noop)


@pytest.mark.parametrize(
    "payload",
    [
        Call(PLACE + 4, 0).pack(),
        Call(PLACE, 0, 1).pack(),
        Call(PLACE, 0).pack() + b"\1",
        Call(PLACE, 0).pack().ljust(47, b"\0") + b"\1",
    ],
)
def test_a_misaligned_address_or_padding_is_einval(driver, payload):
    assert driver.call(payload, OpClass.VENDOR, VendorOp.CALL)[0] == -Errno.EINVAL


def test_the_structure_is_read_once(driver):
    """What changes after the copy is not seen, and is overwritten by the answer."""
    memory = Memory(driver)
    copies = []

    def change():
        copies.append(1)
        if len(copies) == 2:  # the slot, the structure
            driver.ram[PLACE : PLACE + 32] = b"\xff" * 32

    driver.inputs.after_copy = change
    result, answer = memory.call(QueryCapabilities(Xen2024Op.QUERY_CAPABILITIES, 5, 0).pack().ljust(32, b"\0"))
    assert (result, QueryCapabilities.unpack(answer).ctx_no, len(copies)) == (0, 5, 2)


def test_a_call_waits_for_the_other_rings(make_driver):
    driver = make_driver().start(rings=2)
    driver.put(PvIommuOp(Xen2024Op.ALLOC_CONTEXT, 0, 0).pack(), ring=1)
    _, answer = Memory(driver).call(PvIommuOp(Xen2024Op.ALLOC_CONTEXT, 0, 0).pack().ljust(32, b"\0"))
    assert PvIommuOp.unpack(answer).ctx_no == 2


# -- xen-v7 -----------------------------------------------------------------------------------------------------------


@pytest.mark.row("xen", 5)
def test_query_alloc_map_and_unmap_are_written_back_on_failure_too(v7):
    memory = Memory(v7.driver)
    assert memory.call(V7Alloc(UNTOUCHED, 0, 0).pack(), XenV7Op.ALLOC_CONTEXT) == (0, V7Alloc(1, 0, 0).pack())
    v7.map(1, 0x102, 0x99, 1)
    given = V7MapPages(1, 0, 0, 0x10, 0x100, 3, 4096, 5, 7)
    result, answer = memory.call(given.pack(), XenV7Op.MAP_PAGES)
    assert (result, V7MapPages.unpack(answer).mapped) == (-Errno.EADDRINUSE, 9)


@pytest.mark.row("xen", 4)
@pytest.mark.parametrize(
    ("op", "address"),
    [
        *((op, address) for op in XenV7Op if 1 <= op <= 8 for address in (RAM_SIZE, (1 << 64) - 8)),
        *((op, RAM_SIZE - 8) for op in (XenV7Op.MAP_PAGES, XenV7Op.UNMAP_PAGES, XenV7Op.REATTACH_DEVICE)),
    ],
)
def test_a_structure_of_xen_v7_outside_guest_memory_is_efault(v7, op, address):
    assert Memory(v7.driver).call(b"", op, address)[0] == -Errno.EFAULT
    assert v7.driver.iommu.engine.domains() == ()


@pytest.mark.row("xen", 4)
def test_only_what_is_written_back_needs_memory_that_can_be_written(v7):
    driver = v7.driver
    fd = plug_memory_that_cannot_be_written(driver, 0x40000000)
    os.pwrite(fd, V7Free(1, 0, 0).pack(), 0)
    seal(fd)
    assert v7.alloc() == (0, 1)
    memory = Memory(driver)
    assert memory.call(b"", XenV7Op.FREE_CONTEXT, 0x40000000)[0] == 0
    assert memory.call(b"", XenV7Op.QUERY_CAPABILITIES, 0x40000000)[0] == -Errno.EFAULT


@pytest.mark.row("xen", 3)
@pytest.mark.parametrize("op", [*XenV7Op, 99])
def test_a_guest_that_is_not_allowed_gets_enodev_and_nothing_is_read(make_v7, op):
    v7 = make_v7(allowed=False)
    copies = []
    v7.driver.inputs.after_copy = lambda: copies.append(1)
    assert Memory(v7.driver).call(b"", op, RAM_SIZE)[0] == -Errno.ENODEV
    assert len(copies) == 1  # the slot


@pytest.mark.parametrize(
    ("op", "result"), [(XenV7Op.NOOP, 0), (XenV7Op.ALLOC_NESTED, -Errno.EOPNOTSUPP), (0xFFFFFFFF, -Errno.EOPNOTSUPP)]
)
def test_what_has_no_structure_reads_none(v7, op, result):
    assert Memory(v7.driver).call(b"", op, 1 << 63)[0] == result


def test_a_remote_command_may_come_by_way_of_memory_too(v7):
    inner = PLACE + 0x100
    v7.driver.ram[inner : inner + 8] = V7Alloc(UNTOUCHED, 0, 0).pack()
    outer = V7RemoteCmd(0, XenV7Op.ALLOC_CONTEXT, 0, inner).pack()
    assert Memory(v7.driver).call(outer, XenV7Op.REMOTE_CMD)[0] == 0
    assert V7Alloc.unpack(v7.driver.ram, inner).ctx_no == 1


@pytest.mark.row("xen", 52)
def test_a_long_map_by_way_of_memory_is_written_back_once_at_its_end(make_v7):
    v7 = make_v7()
    v7.init()
    v7.alloc()
    driver = v7.driver
    driver.iommu.engine.set_ram([(0, (1 << 20) - 1)])
    driver.inputs.time_step = 10_000_000
    given = V7MapPages(1, 0, 0, 1, 0, 3, 4096, 200000, 4)
    driver.ram[PLACE : PLACE + given.SIZE] = given.pack()
    position = driver.put(Call(PLACE, XenV7Op.MAP_PAGES).pack(), OpClass.VENDOR, VendorOp.CALL)
    driver.iommu.work()
    assert driver.completed() == position
    assert V7MapPages.unpack(driver.ram, PLACE) == given
    while driver.iommu.work():
        pass
    assert driver.outcome(position)[0].result == 0
    assert V7MapPages.unpack(driver.ram, PLACE) == V7MapPages(1, 0, 0, 1, 0, 3, 4096, 200000, 200004)


@pytest.mark.row("xen", 4)
def test_memory_that_goes_away_before_a_long_map_is_written_back_is_efault_and_the_pages_stay(v7):
    v7.alloc()
    driver = v7.driver
    driver.iommu.dma_map(DmaMapping(0x40000000, 0x1000, 0, True, True, driver.more_ram(0x1000)))
    driver.iommu.memory.write([(0x40000000, V7MapPages.SIZE)], V7MapPages(1, 0, 0, 1, 0, 3, 4096, 200000, 0).pack())
    driver.iommu.engine.set_ram([(0, (1 << 20) - 1)])
    driver.inputs.time_step = 10_000_000
    position = driver.put(Call(0x40000000, XenV7Op.MAP_PAGES).pack(), OpClass.VENDOR, VendorOp.CALL)
    driver.iommu.work()
    driver.iommu.memory.changed = lambda: None
    driver.iommu.dma_unmap(0x40000000, 0x1000)
    while driver.iommu.work():
        pass
    assert driver.outcome(position)[0].result == -Errno.EFAULT
    assert v7.lookup(1, 199999) == 200000


def test_an_operation_under_no_profile_is_impossible(make_driver):
    driver = make_driver()
    driver.write("PROFILE", Profile.NONE)
    assert (
        driver.iommu._executor.operations._vendor.op_call(Call(PLACE, 0).pack().ljust(48, b"\0")).result
        == -Errno.EINVAL
    )
    assert driver.iommu._executor.operations._vendor.op_batch(bytes(48)).result == -Errno.EINVAL
