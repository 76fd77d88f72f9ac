"""Memory of a whole machine: what its functions share, and how often what is derived from it is made."""

from __future__ import annotations

import logging
import os

import pytest

from pviommu_abi.shared import CAPABILITY_OFFSET, CapabilityArea
from vfio_user import Command, DmaMapping, Header, Session
from vfio_user.messages import DmaMap, DmaUnmap

from ..conftest import RAM_PAGES

row = pytest.mark.row
PAGE = 4096
GIB = 1 << 30


def generation(driver) -> int:
    return CapabilityArea.unpack(driver.iommu.shared.view, CAPABILITY_OFFSET).generation


def message(command: int, payload: bytes) -> bytes:
    return Header(1, command, Header.SIZE + len(payload), 0, 0).pack() + payload


def client_of(function) -> Session:
    session = Session(function)
    session.receive(message(Command.VERSION, bytes(4)), [])
    session.outgoing.clear()
    return session


def mapped_files() -> int:
    with open("/proc/self/maps") as lines:
        return sum("memfd:more" in line for line in lines)


@row("server", 51)
def test_all_functions_share_one_descriptor_and_one_mapping_of_a_file(make_driver):
    driver = make_driver()
    fd = driver.more_ram(64 * PAGE)
    functions = list(driver.machine.functions())
    functions[0].dma_map(DmaMapping(GIB, PAGE, 0, True, True, os.dup(fd)))
    before = len(os.listdir("/proc/self/fd"))

    for place in range(1, 64):
        for function in functions:
            function.dma_map(DmaMapping(GIB + 2 * place * PAGE, PAGE, place * PAGE, True, True, os.dup(fd)))

    assert (mapped_files(), len(os.listdir("/proc/self/fd"))) == (1, before)
    for function in functions[1:]:
        function.disconnected()
    functions[0].memory.write([(GIB, 4)], b"here")
    assert os.pread(fd, 4, 0) == b"here"
    functions[0].disconnected()
    assert mapped_files() == 0
    os.close(fd)


@row("server", 50)
def test_requests_that_come_together_are_told_to_the_guest_once(make_driver):
    driver = make_driver()
    fd = driver.more_ram(64 * PAGE)
    session = client_of(driver.iommu)
    before = generation(driver)
    maps = [message(Command.DMA_MAP, DmaMap(32, 3, 0, GIB + 2 * place * PAGE, PAGE).pack()) for place in range(16)]

    # a descriptor belongs to the first byte that came with it, so the first of them goes alone
    session.receive(maps[0], [os.dup(fd)])
    assert generation(driver) == before + 2
    unmap = message(Command.DMA_UNMAP, DmaUnmap(24, 0, GIB, PAGE).pack())
    again = [Header(1, Command.DMA_MAP, 48, 0, 0).pack() + DmaMap(32, 3, 0, GIB, PAGE).pack()]
    session.receive(unmap + again[0], [os.dup(fd)])

    assert len(session.outgoing) == 3
    assert generation(driver) == before + 2  # it went and came, and the area is what it was
    assert driver.iommu.engine.ram == ((GIB // PAGE, GIB // PAGE),)
    os.close(fd)


@row("server", 50)
def test_what_is_told_is_true_before_the_reply_is_sent_and_before_a_ring_is_worked(make_driver):
    driver = make_driver()
    fd = driver.more_ram(PAGE)
    told = []
    engine = driver.iommu._engine
    real = engine.change_ram
    engine.change_ram = lambda ram, spans: (told.append(list(spans)), real(ram, spans))
    driver.iommu.dma_map(DmaMapping(GIB, PAGE, 0, True, True, os.dup(fd)))
    assert told == []

    driver.iommu.work()
    driver.iommu.work()

    assert told == [[(GIB // PAGE, 1)]]
    driver.iommu.dma_unmap(GIB, PAGE)
    client_of(driver.iommu)  # any request settles
    assert told == [[(GIB // PAGE, 1)]] * 2
    os.close(fd)


@row("server", 50)
def test_the_65535th_range_is_told_alone(make_driver):
    driver = make_driver()
    fd = driver.more_ram(PAGE)
    for place in range(2000):
        driver.iommu.dma_map(DmaMapping(GIB + 2 * place * PAGE, PAGE, 0, True, True, os.dup(fd)))
    driver.iommu.settle()
    published = []
    driver.iommu._capabilities.publish = published.append

    driver.iommu.dma_map(DmaMapping(2 * GIB, PAGE, 0, True, True, os.dup(fd)))
    driver.iommu.settle()

    assert published == []  # the area lists the first ranges, as many as fit
    assert driver.iommu.engine.is_ram(2 * GIB // PAGE)
    driver.iommu.dma_unmap(GIB, PAGE)
    driver.iommu.settle()
    assert len(published) == 1
    os.close(fd)


@row("server", 50)
def test_a_clone_follows_memory_that_went_in_pieces_and_came_back(make_driver):
    driver = make_driver()
    driver.start()
    ctx = driver.iommu.contexts.alloc(clone=True).context
    fd = driver.more_ram(64 * PAGE)
    first = RAM_PAGES + 100
    for place in range(0, 64, 2):
        driver.iommu.dma_map(DmaMapping((first + place) * PAGE, PAGE, place * PAGE, True, True, os.dup(fd)))
    assert [driver.iommu.engine.lookup(ctx, first + place) is not None for place in range(4)] == [True, False] * 2

    driver.iommu.dma_unmap((first + 10) * PAGE, 20 * PAGE)

    mapped = [place for place in range(64) if driver.iommu.engine.lookup(ctx, first + place)]
    assert mapped == [*range(0, 10, 2), *range(30, 64, 2)]
    os.close(fd)


@row("server", 59)
def test_a_dimm_that_is_not_shared_is_told_of_once(make_driver, caplog):
    driver = make_driver()
    driver.plug_ram()
    caplog.clear()

    for function in driver.machine.functions():
        for _ in range(2):
            function.dma_map(DmaMapping(4 * GIB, GIB, 0, True, True, None))
            function.dma_unmap(4 * GIB, GIB)

    assert [(record.levelno, record.event) for record in caplog.records] == [(logging.WARNING, "memory-not-shared")]
    assert "0x40000000 bytes at 0x100000000 came without a file descriptor, so no DMA reaches them" in caplog.text


@row("server", 59)
@pytest.mark.parametrize(
    ("address", "size", "writable"),
    [(4 * GIB, 4 << 20, True), (0xE0000000, 16 << 20, True), (4 * GIB, GIB, False)],
)
def test_what_is_no_dimm_is_not_told_of(make_driver, caplog, address, size, writable):
    driver = make_driver()
    driver.plug_ram()
    caplog.clear()

    driver.iommu.dma_map(DmaMapping(address, size, 0, True, writable, None))

    assert not caplog.records


@row("server", 59)
def test_a_bar_of_this_machine_is_no_dimm(make_driver, caplog):
    driver = make_driver()
    driver.plug_ram()
    driver.iommu.engine.set_mmio([(4 * GIB // PAGE, 5 * GIB // PAGE - 1)])
    caplog.clear()

    driver.iommu.dma_map(DmaMapping(4 * GIB, GIB, 0, True, True, None))

    assert not caplog.records
