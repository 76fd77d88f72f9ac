"""BATCH: the interface of 2014."""

import fcntl
import os

import pytest

from pviommu.dma.fault import DmaRefusedError
from pviommu.interfaces.pv.batch import ELEMENTS
from pviommu_abi.shared import EventReason
from pviommu_abi.slots import Errno, OpClass
from pviommu_abi.vendor import Batch, BatchFlags, MapOp, VendorOp
from vfio_user import DmaMapping

from ...conftest import reason_of
from .conftest import PLACE, Memory

UNSET = 77
"""Status of an element that nobody looked at."""
RAM_END = 0x1000
UNMAP = int(BatchFlags.UNMAP)


@pytest.fixture
def memory(driver):
    assert driver.alloc() == (0, 1)
    return Memory(driver)


def elements(*pages, flags=3):
    return [MapOp(bfn, mfn, flags, UNSET) for bfn, mfn in pages]


def run(driver, op):
    """Submit a batch and carry it out to the end: result and done."""
    position = driver.put(op.pack(), OpClass.VENDOR, VendorOp.BATCH)
    while driver.iommu.work():
        pass
    slot, answer = driver.outcome(position)
    return slot.result, Batch.unpack(answer).done


def test_every_element_is_mapped_with_a_status_of_its_own(driver, memory):
    assert memory.batch(1, elements((0x100, 0x10), (0x200, 0x99), (0x101, 0x11))) == (0, 3)
    assert memory.statuses(3) == [0, 0, 0]
    assert [driver.lookup(1, dfn)[1] for dfn in (0x100, 0x200, 0x101)] == [0x10, 0x99, 0x11]


def test_the_first_element_that_fails_ends_it_with_efault_and_later_ones_are_not_looked_at(driver, memory):
    driver.map(1, 0x200, 0x99, 1)
    assert memory.batch(1, elements((0x100, 0x10), (0x200, 0x20), (0x300, 0x30))) == (-Errno.EFAULT, 1)
    assert memory.statuses(3) == [0, -Errno.EADDRINUSE, UNSET]
    assert [driver.lookup(1, dfn)[0] for dfn in (0x100, 0x200, 0x300)] == [0, 0, -Errno.ENOENT]


def test_unmap_ignores_mfn_and_flags(driver, memory):
    driver.map(1, 0x100, 0x10, 2)
    assert memory.batch(1, elements((0x101, 1 << 60), (0x100, 5), flags=0xFFFFFFFF), UNMAP) == (0, 2)
    assert memory.batch(1, elements((0x100, 0)), UNMAP) == (-Errno.EFAULT, 0)
    assert memory.statuses(1) == [-Errno.ENOENT]


@pytest.mark.parametrize(
    ("element", "status"),
    [
        (MapOp(0x100, 0x10, 0), -Errno.EINVAL),
        (MapOp(0x100, 0x10, 4), -Errno.EINVAL),
        (MapOp(1 << 27, 0x10, 3), -Errno.ERANGE),
        (MapOp((1 << 64) - 1, 0x10, 3), -Errno.ERANGE),
        (MapOp(0x100, RAM_END, 3), -Errno.EPERM),
        (MapOp(0xFEE00, 0x10, 3), -Errno.EADDRINUSE),
    ],
)
def test_statuses_are_those_of_the_profile_xen_2024(memory, element, status):
    assert memory.batch(1, [element]) == (-Errno.EFAULT, 0)
    assert memory.statuses(1) == [status]


@pytest.mark.parametrize(
    ("element", "flags", "status"),
    [
        (MapOp(0x100, RAM_END, 3), 0, -Errno.ENOENT),
        (MapOp(0xFEE00, 0x10, 3), 0, -Errno.EADDRNOTAVAIL),
        (MapOp(0xFEE00, RAM_END, 3), 0, -Errno.EADDRNOTAVAIL),
        (MapOp(0xFEE00, 0x10, 3), UNMAP, -Errno.EADDRNOTAVAIL),
    ],
)
def test_statuses_are_those_of_the_profile_xen_v7(v7, element, flags, status):
    v7.alloc()
    memory = Memory(v7.driver)
    assert memory.batch(1, [element], flags) == (-Errno.EFAULT, 0)
    assert memory.statuses(1) == [status]


@pytest.mark.parametrize("ctx", [0, 9])
def test_the_default_or_an_unallocated_context_is_einval_and_no_element_is_looked_at(memory, ctx):
    assert memory.batch(ctx, elements((0x100, 0x10))) == (-Errno.EINVAL, 0)
    assert memory.statuses(1) == [UNSET]


@pytest.mark.parametrize(
    "payload",
    [
        Batch(PLACE, 1, 2, 1).pack(),
        Batch(PLACE, 1, 0, 1, 1).pack(),
        Batch(PLACE + 4, 1, 0, 1).pack(),
        Batch(PLACE, 1, 0, 1).pack() + b"\1",
    ],
    ids=["flag", "padding", "alignment", "rest"],
)
def test_unknown_flags_padding_and_a_misaligned_address_are_einval(driver, memory, payload):
    memory.put_array(elements((0x100, 0x10)))
    assert driver.call(payload, OpClass.VENDOR, VendorOp.BATCH)[0] == -Errno.EINVAL
    assert memory.statuses(1) == [UNSET]


def test_no_elements_are_a_success_wherever_they_are(memory):
    assert memory.batch(1, [], address=1 << 63) == (0, 0)


@pytest.mark.parametrize(
    ("address", "count"),
    [(RAM_END << 12, 1), ((RAM_END << 12) - 48, 3), ((1 << 64) - 24, 1), ((1 << 64) - 8, 1), (0, 0xFFFFFFFF)],
)
def test_an_array_not_wholly_in_guest_memory_is_efault_before_anything_changes(driver, memory, address, count):
    driver.ram[-48:] = b"".join(element.pack() for element in elements((0x100, 0x10), (0x101, 0x11)))
    assert memory.batch(1, [], address=address, count=count) == (-Errno.EFAULT, 0)
    assert driver.lookup(1, 0x100)[0] == -Errno.ENOENT


def test_an_array_across_two_ranges_of_memory_is_read_and_answered(driver, memory):
    end = RAM_END << 12
    driver.iommu.dma_map(DmaMapping(end, 0x1000, 0, True, True, driver.more_ram(0x1000)))
    array = b"".join(element.pack() for element in elements((0x100, 0x10), (0x101, 0x11)))
    driver.iommu.memory.write([(end - 24, 48)], array)
    assert memory.batch(1, [], address=end - 24, count=2) == (0, 2)
    answered = driver.iommu.memory.read([(end - 24, 48)])
    assert [MapOp.unpack(answered, at).status for at in (0, 24)] == [0, 0]


def test_statuses_that_cannot_be_written_are_efault_and_what_was_done_is_counted(driver, memory):
    fd = os.memfd_create("sealed later", os.MFD_ALLOW_SEALING)
    os.truncate(fd, 0x1000)
    driver.iommu.dma_map(DmaMapping(0x40000000, 0x1000, 0, True, True, os.dup(fd)))
    os.pwrite(fd, elements((0x100, 0x10))[0].pack(), 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0x8)  # F_SEAL_WRITE
    os.close(fd)
    assert memory.batch(1, [], address=0x40000000, count=1) == (-Errno.EFAULT, 1)
    assert driver.lookup(1, 0x100) == (0, 0x10)


def test_only_statuses_are_written_to_the_array(driver, memory):
    array = elements((0x100, 0x10), (0x101, 0x11))
    memory.put_array(array)
    copies = []

    def change():
        copies.append(1)
        if len(copies) == 2:  # the slot, the array
            driver.ram[PLACE : PLACE + 8] = b"\xff" * 8

    driver.inputs.after_copy = change
    assert driver.call(Batch(PLACE, 2, 0, 1).pack(), OpClass.VENDOR, VendorOp.BATCH)[0] == 0
    driver.inputs.after_copy = None
    assert driver.ram[PLACE : PLACE + 8] == b"\xff" * 8
    assert MapOp.unpack(driver.ram, PLACE + 24) == MapOp(0x101, 0x11, 3, 0)
    assert driver.lookup(1, 0x100) == (0, 0x10)


@pytest.mark.row("xen", 47)
def test_one_flush_a_batch_and_no_old_translation_afterwards(driver):
    ctx = driver.attached()
    driver.map(ctx, 0x100, 0x10, 8)
    driver.dma_read("dma0", 0x100000, 8 * 4096)
    before = driver.iommu.engine.iotlb_flushes
    memory = Memory(driver)
    assert memory.batch(ctx, elements(*((0x100 + page, 0) for page in range(5))), UNMAP) == (0, 5)
    assert driver.iommu.engine.iotlb_flushes - before == 1
    for page in range(5):
        with pytest.raises(DmaRefusedError) as caught:
            driver.dma_read("dma0", 0x100000 + page * 4096, 1)
        assert reason_of(caught.value) is EventReason.NOT_MAPPED
    assert driver.dma_read("dma0", 0x105000, 1) == b"\0"


@pytest.mark.row("xen", 47)
def test_a_batch_that_stops_has_flushed_too(driver):
    ctx = driver.attached()
    driver.map(ctx, 0x100, 0x10, 1)
    driver.dma_read("dma0", 0x100000, 1)
    assert Memory(driver).batch(ctx, elements((0x100, 0), (0x500, 0)), UNMAP) == (-Errno.EFAULT, 1)
    with pytest.raises(DmaRefusedError):
        driver.dma_read("dma0", 0x100000, 1)


@pytest.mark.parametrize(("settings", "result"), [({"allowed": False}, -Errno.EPERM)])
def test_a_guest_that_is_not_allowed_gets_what_the_profile_gives(make_driver, settings, result):
    assert Memory(make_driver(**settings).start()).batch(1, elements((0x100, 0x10)))[0] == result


def test_a_guest_that_is_not_allowed_gets_enodev_under_xen_v7(make_v7):
    memory = Memory(make_v7(allowed=False).driver)
    assert memory.batch(1, elements((0x100, 0x10))) == (-Errno.ENODEV, 0)


# -- long batches -----------------------------------------------------------------------------------------------------


def long_array(count):
    return elements(*((0x1000 + page, page % RAM_END) for page in range(count)))


@pytest.mark.row("xen", 52)
def test_a_long_batch_lets_others_have_a_turn_flushes_once_a_piece_and_counts_all(make_driver):
    driver = make_driver().start(rings=2)
    driver.alloc()
    memory = Memory(driver)
    count = 2 * ELEMENTS + 5
    memory.put_array(long_array(count))
    assert run(driver, Batch(PLACE, count, 0, 1)) == (0, count)
    flushes = driver.iommu.engine.iotlb_flushes
    memory.put_array(long_array(count))
    driver.inputs.time_step = 10_000_000
    position = driver.put(Batch(PLACE, count, UNMAP, 1).pack(), OpClass.VENDOR, VendorOp.BATCH)
    driver.iommu.work()
    assert (driver.completed(), memory.statuses(count).count(0)) == (position, ELEMENTS)
    assert driver.call(b"", ring=1)[0] == 0
    while driver.iommu.work():
        pass
    slot, answer = driver.outcome(position)
    assert (slot.result, Batch.unpack(answer)) == (0, Batch(PLACE, count, UNMAP, 1, 0, count))
    assert driver.iommu.engine.iotlb_flushes - flushes == 3


@pytest.mark.row("xen", 53)
def test_a_failure_in_a_later_piece_counts_all_pieces(driver, memory):
    array = long_array(ELEMENTS + 10)
    array[ELEMENTS + 3] = array[0]
    memory.put_array(array)
    assert run(driver, Batch(PLACE, len(array), 0, 1)) == (-Errno.EFAULT, ELEMENTS + 3)
    assert memory.statuses(len(array))[ELEMENTS:] == [0, 0, 0, -Errno.EADDRINUSE, *[UNSET] * 6]


def test_an_array_that_goes_away_between_two_pieces_is_efault_with_what_was_done(driver, memory):
    count = ELEMENTS + 1
    driver.iommu.dma_map(DmaMapping(0x40000000, 0x10000, 0, True, True, driver.more_ram(0x10000)))
    array = b"".join(element.pack() for element in long_array(count))
    driver.iommu.memory.write([(0x40000000, len(array))], array)
    driver.inputs.time_step = 10_000_000
    position = driver.put(Batch(0x40000000, count, 0, 1).pack(), OpClass.VENDOR, VendorOp.BATCH)
    driver.iommu.work()
    driver.iommu.dma_unmap(0x40000000, 0x10000)
    while driver.iommu.work():
        pass
    slot, answer = driver.outcome(position)
    assert (slot.result, Batch.unpack(answer).done) == (-Errno.EFAULT, ELEMENTS)
