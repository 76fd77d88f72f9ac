"""Copies of many runs in C, beside those in Python."""

import ctypes
import os
import random
from array import array

import pytest

from pviommu.dma.fault import DmaRefusedError
from pviommu.dma.memory import GuestMemory
from pviommu.engine import Access, Engine, EngineConfig, Run
from pviommu.engine.core import PythonCore
from pviommu.engine.ranges import FrameRanges
from pviommu.engine.results import PackedRuns
from pviommu.inputs import LiveInputs
from pviommu.native.core import NativeCore
from pviommu.native.memory import NativeCopier, place_of
from pviommu_abi.shared import EventReason
from vfio_user import DmaMapping

from ..conftest import RAM_PAGES, reason_of

RW = Access.READ | Access.WRITE
PAGES = 40


@pytest.fixture
def scattered(make_driver):
    """An endpoint, and PAGES pages of its context that lie all over RAM."""
    driver = make_driver().start()
    ctx = driver.attached()
    driver.frames = random.Random(1).sample(range(1, RAM_PAGES), PAGES)
    for place, frame in enumerate(driver.frames):
        driver.iommu.engine.map(ctx, 0x100 + place, frame, 1, RW)
    return driver


def test_a_write_over_many_pages_reaches_each_and_a_read_gives_it_back(scattered):
    data = os.urandom(PAGES * 4096 - 300)

    scattered.dma_write("dma0", 0x100064, data)

    assert scattered.dma_read("dma0", 0x100064, len(data)) == data
    first, last = scattered.frames[0] << 12, scattered.frames[-1] << 12
    assert scattered.ram[first + 0x64 : first + 4096] == data[: 4096 - 0x64]
    assert scattered.ram[last : last + 4096 - 200] == data[-(4096 - 200) :]


def test_many_runs_are_what_they_would_be_one_by_one(scattered):
    runs = scattered.iommu.engine.translate(1, 0x100000, 3 * 4096, Access.READ)

    assert isinstance(runs, PackedRuns)
    assert runs == [Run(frame << 12, 4096) for frame in scattered.frames[:3]]
    assert (len(runs), runs.size, runs[1]) == (3, 3 * 4096, Run(scattered.frames[1] << 12, 4096))


def test_more_runs_than_one_call_finds_come_all(make_driver):
    driver = make_driver().start()
    ctx = driver.attached()
    pages = 2500
    for place in range(pages):
        driver.iommu.engine.map(ctx, 0x1000 + place, pages - place, 1, RW)

    runs = driver.iommu.engine.translate(1, 0x1000000, pages << 12, Access.READ)

    assert runs == [Run(pages - place << 12, 4096) for place in range(pages)]


def test_memory_that_went_is_refused_and_nothing_is_written(scattered):
    size = RAM_PAGES << 12
    scattered.machine.endpoints["dma0"].dma_unmap(0, size)
    before = scattered.ram[:]

    with pytest.raises(DmaRefusedError) as caught:
        scattered.dma_write("dma0", 0x100000, bytes(PAGES << 12))

    assert (caught.value.fault.iova, reason_of(caught.value)) == (0x100000, EventReason.NOT_RAM)
    assert scattered.ram[:] == before


def test_files_that_are_not_mapped_are_read_and_written_by_system_calls(scattered, native_library, tmp_path):
    size = RAM_PAGES << 12
    path = tmp_path / "ram"
    path.write_bytes(bytes(size))
    memory = GuestMemory(LiveInputs())
    memory.copier = NativeCopier(native_library)
    memory.map(DmaMapping(0, size, 0, True, True, os.open(path, os.O_RDWR)))
    runs = scattered.iommu.engine.translate(1, 0x100000, PAGES << 12, RW)
    data = os.urandom(PAGES << 12)

    memory.check(runs)
    memory.write(runs, data)

    assert memory.read(runs) == data
    assert path.read_bytes()[scattered.frames[0] << 12 :][:4096] == data[:4096]
    memory.clear()


def test_runs_across_two_ranges_of_memory(make_driver):
    driver = make_driver().start()
    ctx = driver.attached()
    size = 1 << 20
    fd = driver.more_ram(size)
    for function in driver.machine.functions():
        function.dma_map(DmaMapping(RAM_PAGES << 12, size, 0, True, True, os.dup(fd)))
    driver.iommu.engine.map(ctx, 0x100, RAM_PAGES - 2, 4, RW)
    driver.iommu.engine.map(ctx, 0x104, 5, 1, RW)
    data = os.urandom(5 << 12)

    driver.dma_write("dma0", 0x100000, data)

    assert driver.dma_read("dma0", 0x100000, 5 << 12) == data
    assert os.pread(fd, 8192, 0) == data[2 << 12 : 4 << 12]
    os.close(fd)


@pytest.mark.row("server", 50)
def test_what_is_ram_follows_changes_as_in_python(native_library):
    chance = random.Random(3)
    engines = [Engine(EngineConfig(reserved=()), core) for core in (NativeCore(native_library), PythonCore())]
    for engine in engines:
        engine.add_endpoint(1)
        engine.set_mmio([(30, 33), (50, 50)])

    for _ in range(300):
        first, nr = chance.randrange(60), chance.randrange(1, 20)
        ram = FrameRanges((frame, frame) for frame in chance.sample(range(80), chance.randrange(60)))
        for engine in engines:
            engine.change_ram(ram, [(first, nr)])
        found = [[engine.translate(1, gfn << 12, 4096, RW) for gfn in range(82)] for engine in engines]
        assert found[0] == found[1]
        assert engines[0].ram == engines[1].ram


@pytest.mark.row("server", 50)
def test_a_copier_reaches_what_was_added_and_not_removed(native_library):
    chance = random.Random(4)
    copier = NativeCopier(native_library)
    room = ctypes.create_string_buffer(64 * 4096)
    held: set[int] = set()
    for _ in range(500):
        first, nr = chance.randrange(60), chance.randrange(1, 6)
        span = set(range(first, first + nr))
        if chance.random() < 0.6:
            for page in span - held:
                copier.add(page << 12, 4096, ctypes.addressof(room) + (page << 12))
            held |= span
        else:
            copier.remove(first << 12, nr << 12)
            held -= span
        assert {page for page in range(66) if copier.has(PackedRuns(array("Q", [page << 12, 4096])))} == held
    top = (1 << 64) - 4096
    copier.add(top, 4096, ctypes.addressof(room))
    assert copier.read(PackedRuns(array("Q", [top, 4096]))) == room.raw[:4096]
    copier.remove(0, (1 << 64) - 1)
    assert not copier.has(PackedRuns(array("Q", [top, 1])))


def test_the_numbers_of_packed_runs_are_where_they_say():
    runs = PackedRuns(array("Q", [1, 2, 3, 4]))
    address, count = place_of(runs)

    assert count == len(runs)
    assert list((ctypes.c_uint64 * 4).from_address(address)) == [1, 2, 3, 4]
