"""Guest memory in huge pages. The host must have some to spare, or let this process reserve them."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pviommu.dma.access import GuestMemoryError
from pviommu.dma.memory import GuestMemory
from pviommu.dma.memory_file import MemoryFiles
from pviommu.engine import Access
from pviommu.engine.formats import vtd_second_stage
from pviommu.engine.results import PackedRuns
from pviommu.engine.stages import Stage
from pviommu.engine.walk import WalkFaultKind
from pviommu.inputs import LiveInputs
from pviommu.native.library import Library
from pviommu.native.memory import NativeCopier, NativeGuard
from pviommu.native.walk import NativeWalker, Place
from vfio_user import DmaMapping, RequestError

row = pytest.mark.row
HUGE = 2 << 20
PAGES = 2
SIZE = PAGES * HUGE
COUNT = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")


@pytest.fixture(scope="module", autouse=True)
def huge_pages() -> Iterator[None]:
    """Two huge pages of 2 MiB, which the host gets back afterwards."""
    try:
        before = int((COUNT / "nr_hugepages").read_text())
    except OSError:
        pytest.skip("this kernel has no huge pages of 2 MiB")
    missing = PAGES - int((COUNT / "free_hugepages").read_text())
    if missing > 0:
        try:
            (COUNT / "nr_hugepages").write_text(str(before + missing))
        except OSError as error:
            pytest.skip(f"this host has no free huge pages, and none can be reserved: {error.strerror}")
    try:
        free = int((COUNT / "free_hugepages").read_text())
        if free < PAGES:
            pytest.skip(f"this host has {free} free huge pages of 2 MiB, and these tests need {PAGES}")
        yield
    finally:
        if missing > 0:
            (COUNT / "nr_hugepages").write_text(str(before))


def huge_file(*seals: int) -> int:
    fd = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    os.ftruncate(fd, SIZE)
    for seal in seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seal)
    return fd


@pytest.fixture(params=[(), (fcntl.F_SEAL_SHRINK,)], ids=["unsealed", "sealed"])
def huge(request: pytest.FixtureRequest) -> Iterator[int]:
    fd = huge_file(*request.param)
    yield fd
    os.close(fd)


@pytest.fixture
def memory(native_library: Library) -> Iterator[GuestMemory]:
    files = MemoryFiles()
    files.guard = NativeGuard(native_library)
    memory = GuestMemory(LiveInputs(), files=files)
    memory.copier = NativeCopier(native_library)
    yield memory
    memory.clear()


def mapping(fd: int, address: int = 0, size: int = SIZE, offset: int = 0) -> DmaMapping:
    return DmaMapping(address, size, offset, True, True, os.dup(fd))


def packed(*numbers: int) -> PackedRuns:
    from array import array

    return PackedRuns(array("Q", numbers))


@row("server", 55)
def test_a_file_in_huge_pages_is_read_and_written(
    memory: GuestMemory, huge: int, caplog: pytest.LogCaptureFixture
) -> None:
    memory.map(mapping(huge, 0, 4096, 8192))  # QEMU announces pieces of 4 KiB, whatever the pages are
    memory.map(mapping(huge, 4096, SIZE - 12288, 12288))

    memory.write([(4000, 200)], b"x" * 200)
    memory.write(packed(0, 8, 3 << 20, 8), b"abcdefghijklmnop")

    with mmap.mmap(huge, SIZE) as own:
        assert own[8192 + 4000 : 8192 + 4200] == b"x" * 200
        assert (own[8192:8200], own[8192 + (3 << 20) :][:8]) == (b"abcdefgh", b"ijklmnop")
    assert memory.read(packed(3 << 20, 8, 0, 8)) == b"ijklmnopabcdefgh"
    assert memory.read([(0, 8)]) == b"abcdefgh"
    assert not caplog.records


@row("server", 58)
def test_a_file_in_huge_pages_that_shrinks_fails_only_the_access(memory: GuestMemory) -> None:
    fd = huge_file()
    memory.map(mapping(fd))
    memory.write([(0, 16)], b"y" * 16)
    os.ftruncate(fd, HUGE)

    for access in (
        lambda: memory.read([(HUGE - 8, 16)]),
        lambda: memory.write([(HUGE - 8, 16)], bytes(16)),
        lambda: memory.read(packed(0, 16, HUGE, 16)),
        lambda: memory.write(packed(0, 16, HUGE, 16), bytes(32)),
    ):
        with pytest.raises(GuestMemoryError, match="its file has become shorter") as caught:
            access()
        assert caught.value.gpa == HUGE
    assert memory.read([(16, 4)]) == bytes(4)
    os.close(fd)


def test_a_table_in_huge_pages_that_are_gone_cannot_be_read(memory: GuestMemory, native_library: Library) -> None:
    fd = huge_file()
    memory.map(mapping(fd))
    for place, word in ((0x1000, 0x2003), (0x2000, HUGE | 3), (HUGE, 0x5003)):
        memory.write([(place, 8)], word.to_bytes(8, "little"))
    assert isinstance(memory.copier, NativeCopier)
    walker = NativeWalker(native_library, Place(memory.copier), Stage(vtd_second_stage(3, 0x1000, 46)))
    assert walker.translate(0x10, 4, Access.READ) == [(0x5010, 4)]

    os.ftruncate(fd, HUGE)

    assert walker.walk(0x10, Access.READ)[:3] == (WalkFaultKind.READ, 1, HUGE)
    os.close(fd)


@row("server", 55)
def test_without_the_native_core_an_unsealed_one_is_refused_and_says_what_helps() -> None:
    fd = huge_file()
    memory = GuestMemory(LiveInputs())
    with pytest.raises(RequestError, match=r"in huge pages and not sealed against shrinking.*build-core") as caught:
        memory.map(mapping(fd))
    assert caught.value.errno == errno.EINVAL
    assert list(memory) == []
    os.close(fd)


@row("server", 55)
def test_without_the_native_core_a_sealed_one_is_read_and_written() -> None:
    fd = huge_file(fcntl.F_SEAL_SHRINK)
    memory = GuestMemory(LiveInputs())
    memory.map(mapping(fd))
    memory.write([(HUGE - 2, 4)], b"abcd")
    assert memory.read([(HUGE - 2, 4)]) == b"abcd"
    memory.clear()
    os.close(fd)


@row("server", 55)
def test_an_endpoint_of_a_machine_with_the_native_core_reaches_huge_pages(make_driver, huge: int) -> None:
    driver = make_driver().start()
    ctx = driver.attached()
    frame = 1 << 20
    for function in driver.machine.functions():
        function.dma_map(mapping(huge, frame << 12))
    driver.iommu.engine.map(ctx, 0x100, frame, SIZE >> 12, Access.READ | Access.WRITE)

    driver.dma_write("dma0", 0x100000 + HUGE - 2, b"abcd")

    assert driver.dma_read("dma0", 0x100000 + HUGE - 3, 6) == b"\0abcd\0"
    with mmap.mmap(huge, SIZE) as own:
        assert own[HUGE - 2 : HUGE + 2] == b"abcd"
