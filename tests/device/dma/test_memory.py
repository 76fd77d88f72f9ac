"""Guest memory, on real files."""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pviommu.dma.access import GuestMemoryError
from pviommu.dma.memory import GuestMemory
from pviommu.dma.policy import MAX_MAPPING_SIZE
from pviommu.dma.usage import PROBED_SIZE
from pviommu.inputs import LiveInputs
from vfio_user import DmaMapping, RequestError

PAGE = 4096


def memory_file(size: int, *, sealed: bool = True) -> int:
    """A memory file of ``size`` bytes, as a memory backend makes it."""
    fd = os.memfd_create("ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if sealed:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


def mapping(
    address: int,
    size: int,
    fd: int | None,
    *,
    offset: int = 0,
    readable: bool = True,
    writable: bool = True,
) -> DmaMapping:
    """A DMA_MAP with a descriptor of its own, as one comes over a socket."""
    return DmaMapping(address, size, offset, readable, writable, None if fd is None else os.dup(fd))


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(LiveInputs())
    yield memory
    memory.clear()


@pytest.fixture
def file() -> Iterator[int]:
    """Sixteen sealed pages."""
    fd = memory_file(16 * PAGE)
    yield fd
    os.close(fd)


@pytest.fixture
def unsealed() -> Iterator[int]:
    """Sixteen pages that may shrink."""
    fd = memory_file(16 * PAGE, sealed=False)
    yield fd
    os.close(fd)


def outcome(steps: Generator[None, None, bool]) -> tuple[bool, int]:
    """What steps come to, and how many there were before the last."""
    count = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, count
        count += 1


def is_used(memory: GuestMemory) -> bool:
    return outcome(memory.is_used_by_guest(10**9))[0]


def refusal(memory: GuestMemory, request: DmaMapping) -> RequestError:
    """The error that ``request`` gets."""
    with pytest.raises(RequestError) as caught:
        memory.map(request)
    return caught.value


# -- map and unmap -----------------------------------------------------------------------------------------------------


def test_what_is_written_is_in_the_file_and_read_back(memory: GuestMemory, file: int) -> None:
    memory.map(mapping(0x10000, 4 * PAGE, file, offset=2 * PAGE))

    memory.write([(0x10FFE, 4)], b"abcd")

    assert os.pread(file, 4, 3 * PAGE - 2) == b"abcd"
    assert memory.read([(0x10FFE, 4)]) == b"abcd"


@pytest.mark.row("wire", 45)
def test_the_identical_map_again_is_a_success(memory: GuestMemory, file: int) -> None:
    memory.map(mapping(0, PAGE, file))
    before = open_descriptors()

    memory.map(mapping(0, PAGE, file))

    assert len(list(memory)) == 1
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("address", "size", "offset", "writable"),
    [
        (0x4000, 0x4000, 0x1000, True),  # elsewhere in the file
        (0x4000, 0x4000, 0, False),  # other permissions
        (0x4000, 0x3000, 0, True),  # shorter
        (0x3000, 0x2000, 0, True),  # over its start
        (0x7000, 0x2000, 0, True),  # over its end
        (0x5000, 0x1000, 0, True),  # inside
        (0x0000, 0x10000, 0, True),  # around it
    ],
)
@pytest.mark.row("defect", "C12")
@pytest.mark.row("wire", 45)
def test_any_other_overlap_exists_and_changes_nothing(
    memory: GuestMemory, file: int, address: int, size: int, offset: int, writable: bool
) -> None:
    memory.map(mapping(0x4000, 0x4000, file))
    before = open_descriptors()

    error = refusal(memory, mapping(address, size, file, offset=offset, writable=writable))

    assert error.errno == errno.EEXIST
    assert str(error) == f"map [{address:#x}, +{size:#x}): overlaps map [0x4000, +0x4000)"
    assert memory.ram_ranges() == [(0x4000, 0x7FFF)]
    assert open_descriptors() == before


def test_the_same_range_of_another_file_exists(memory: GuestMemory, file: int, unsealed: int) -> None:
    memory.map(mapping(0, PAGE, file))
    before = open_descriptors()

    assert refusal(memory, mapping(0, PAGE, unsealed)).errno == errno.EEXIST
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("address", "size"),
    [
        (0x4000, 0x1000),  # its beginning
        (0x5000, 0x1000),  # its end
        (0x4800, 0x800),  # inside
        (0x3000, 0x2000),  # over its beginning
        (0x5000, 0x8000),  # over its end, and all of the next
        (0, 0xB000),  # all of it, and part of the next
        (0x4FFF, 0x6001),
        (0x5000, 1 << 64),
    ],
)
@pytest.mark.row("wire", 47)
@pytest.mark.row("server", 53)
@pytest.mark.row("defect", "C4")
def test_an_unmap_that_would_cut_a_range_changes_nothing(
    memory: GuestMemory, file: int, address: int, size: int
) -> None:
    memory.map(mapping(0x4000, 0x2000, file))
    memory.map(mapping(0xA000, 0x2000, file))

    with pytest.raises(RequestError, match=r"it would cut map \[0x[4a]000, \+0x2000\)") as caught:
        memory.unmap(address, size)

    assert caught.value.errno == errno.EINVAL
    assert memory.ram_ranges() == [(0x4000, 0x5FFF), (0xA000, 0xBFFF)]
    assert memory.read([(0x4000, 1), (0xBFFF, 1)]) == b"\0\0"


@pytest.mark.parametrize(
    ("address", "size"), [(0x4000, 0), (0x5000, 0), (0x6000, 0x4000), (0, 0x4000), (0xC000, 1 << 64)]
)
@pytest.mark.row("wire", 47)
def test_an_unmap_where_nothing_is_mapped_is_told_so(memory: GuestMemory, file: int, address: int, size: int) -> None:
    memory.map(mapping(0x4000, 0x2000, file))
    memory.map(mapping(0xA000, 0x2000, file))

    with pytest.raises(RequestError, match="no such range is mapped") as caught:
        memory.unmap(address, size)

    assert caught.value.errno == errno.ENOENT
    assert len(list(memory)) == 2


@pytest.mark.row("server", 53)
@pytest.mark.row("defect", "C5")
def test_an_unmap_takes_every_range_inside_it(memory: GuestMemory, file: int, unsealed: int) -> None:
    before = open_descriptors()
    for page in range(8):
        memory.map(mapping(0x10000 + 2 * page * PAGE, PAGE, unsealed if page == 5 else file, offset=page * PAGE))
    memory.map(mapping(0x30000, PAGE, None))
    memory.map(mapping(0, PAGE, file))
    memory.map(mapping((1 << 64) - PAGE, PAGE, file))

    assert memory.unmap(0x1000, 0x40000) == 9

    assert [held.address for held in memory] == [0, (1 << 64) - PAGE]
    assert memory.ram_ranges() == [(0, PAGE - 1), ((1 << 64) - PAGE, (1 << 64) - 1)]
    for page in range(8):
        with pytest.raises(GuestMemoryError):
            memory.read([(0x10000 + 2 * page * PAGE, 1)])
    assert memory.unmap(0, 1 << 64) == 2
    assert open_descriptors() == before


@pytest.mark.row("server", 53)
def test_a_range_of_a_file_that_has_grown_is_accepted(memory: GuestMemory, unsealed: int) -> None:
    memory.map(mapping(0, PAGE, unsealed))
    os.ftruncate(unsealed, 32 * PAGE)

    memory.map(mapping(PAGE, 16 * PAGE, unsealed, offset=16 * PAGE))
    memory.write([(17 * PAGE - 4, 4)], b"last")

    assert os.pread(unsealed, 4, 32 * PAGE - 4) == b"last"


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 40), st.integers(1, 12)),
        max_size=60,
    )
)
@pytest.mark.row("server", 50)
def test_what_is_ram_follows_every_map_and_unmap(requests: list[tuple[bool, int, int]]) -> None:
    fd = memory_file(64 * PAGE)
    changed: set[int] = set()
    memory = GuestMemory(LiveInputs(), lambda first, nr: changed.update(range(first, first + nr)))
    model: dict[int, int] = {}

    for is_map, first, pages in requests:
        before = {frame for start, count in model.items() for frame in range(start, start + count)}
        span = set(range(first, first + pages))
        changed.clear()
        inside = [start for start, count in model.items() if {*range(start, start + count)} <= span]
        cut = [start for start, count in model.items() if {*range(start, start + count)} & span and start not in inside]
        try:
            if is_map:
                memory.map(mapping(first * PAGE, pages * PAGE, fd, offset=first * PAGE))
                assert not before & span or model.get(first) == pages
                model[first] = pages
            else:
                assert memory.unmap(first * PAGE, pages * PAGE) == len(inside) > 0
                assert not cut
                for start in inside:
                    del model[start]
        except RequestError:
            assert (before & span) if is_map else (cut or not inside)
        after = {frame for start, count in model.items() for frame in range(start, start + count)}
        assert {frame for low, high in memory.ram for frame in range(low, high + 1)} == after
        assert before ^ after <= changed
        assert [(held.address, held.size) for held in memory] == [
            (start * PAGE, count * PAGE) for start, count in sorted(model.items())
        ]
    memory.clear()
    os.close(fd)


def test_an_unmapped_range_cannot_be_reached(memory: GuestMemory, file: int) -> None:
    memory.map(mapping(0, PAGE, file))
    memory.map(mapping(PAGE, PAGE, file, offset=PAGE))

    memory.unmap(0, PAGE)

    with pytest.raises(GuestMemoryError, match="GPA 0xfff: not guest RAM"):
        memory.read([(PAGE - 1, 2)])
    assert memory.read([(PAGE, 2)]) == b"\0\0"


@pytest.mark.parametrize(("address", "size", "offset"), [(1, PAGE, 0), (0, PAGE + 1, 0), (0, PAGE, 512)])
@pytest.mark.row("defect", "C12")
def test_maps_are_whole_pages(memory: GuestMemory, file: int, address: int, size: int, offset: int) -> None:
    error = refusal(memory, mapping(address, size, file, offset=offset))

    assert error.errno == errno.EINVAL
    assert "not a multiple of 4096" in str(error)


@pytest.mark.parametrize(("size", "offset"), [(17 * PAGE, 0), (PAGE, 16 * PAGE), (2 * PAGE, 15 * PAGE)])
def test_a_map_past_the_end_of_its_file_is_refused(memory: GuestMemory, file: int, size: int, offset: int) -> None:
    before = open_descriptors()

    error = refusal(memory, mapping(0, size, file, offset=offset))

    assert error.errno == errno.EINVAL
    assert "past the end of a file of 65536 bytes" in str(error)
    assert open_descriptors() == before


def test_a_map_of_more_than_8_tib_is_refused(memory: GuestMemory) -> None:
    error = refusal(memory, mapping(0, MAX_MAPPING_SIZE + PAGE, None))

    assert (error.errno, str(error)) == (errno.ENOSPC, "map [0x0, +0x80000001000): larger than 8 TiB")


def test_more_ranges_than_announced_are_refused(memory: GuestMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pviommu.dma.policy.MAX_MAPPINGS", 2)
    memory.map(mapping(0, PAGE, None))
    memory.map(mapping(PAGE, PAGE, None))

    assert refusal(memory, mapping(2 * PAGE, PAGE, None)).errno == errno.ENOSPC
    memory.map(mapping(PAGE, PAGE, None))  # known already


def test_what_is_no_memory_is_refused_and_closed(memory: GuestMemory, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    folder = os.open(tmp_path, os.O_RDONLY)
    event = os.eventfd(0)
    before = open_descriptors()

    for fd in (reading, writing, folder, event):
        error = refusal(memory, mapping(0, PAGE, fd))
        assert error.errno == errno.EINVAL
        assert "the file descriptor is not memory" in str(error)

    assert open_descriptors() == before
    for fd in (reading, writing, folder, event):
        os.close(fd)


@pytest.mark.row("server", 3)
def test_files_are_bounded_and_ranges_of_one_file_are_not(memory: GuestMemory) -> None:
    files = [memory_file(64 * PAGE) for _ in range(3)]
    memory.policy.max_files = 2
    before = open_descriptors()
    for page in range(64):
        memory.map(mapping(page * PAGE, PAGE, files[0], offset=page * PAGE))
    memory.map(mapping(64 * PAGE, PAGE, files[1]))

    error = refusal(memory, mapping(65 * PAGE, PAGE, files[2]))

    assert error.errno == errno.EMFILE
    assert "its file is one too many: this client has 2 already" in str(error)
    assert open_descriptors() == before + 4
    memory.unmap(64 * PAGE, PAGE)
    memory.map(mapping(65 * PAGE, PAGE, files[2]))
    for fd in files:
        os.close(fd)


@pytest.mark.row("wire", 45)
def test_the_identical_map_again_is_a_success_though_its_file_has_shrunk(memory: GuestMemory) -> None:
    file = memory_file(4 * PAGE, sealed=False)
    assert memory.map(mapping(0, 4 * PAGE, file))
    os.ftruncate(file, PAGE)
    assert not memory.map(mapping(0, 4 * PAGE, file))
    assert refusal(memory, mapping(4 * PAGE, 4 * PAGE, file)).errno == errno.EINVAL
    os.close(file)


@pytest.mark.row("server", 3)
def test_a_file_that_grows_and_grows_takes_no_descriptors_of_others(memory: GuestMemory) -> None:
    file = os.memfd_create("ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    memory.policy.max_files = 2
    before = open_descriptors()
    for page in range(3):
        os.ftruncate(file, (page + 1) * PAGE)
        memory.map(mapping(page * PAGE, PAGE, file, offset=page * PAGE))
    os.ftruncate(file, 4 * PAGE)

    error = refusal(memory, mapping(3 * PAGE, PAGE, file, offset=3 * PAGE))

    assert error.errno == errno.EMFILE
    assert "its file has grown, and this client has 4 descriptors in use already" in str(error)
    assert open_descriptors() == before + 4
    memory.unmap(0, 3 * PAGE)
    memory.map(mapping(0, 4 * PAGE, file))
    os.close(file)


@pytest.mark.row("server", 4)
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EPERM])
def test_memory_that_cannot_be_mapped_is_not_called_something_else(
    memory: GuestMemory, file: int, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    before = open_descriptors()
    with monkeypatch.context() as full:
        full.setattr(mmap, "mmap", fails)
        error = refusal(memory, mapping(0, PAGE, file))
    assert error.errno == number
    assert str(error) == f"map [0x0, +0x1000): the file cannot be mapped: {os.strerror(number)}"
    assert open_descriptors() == before
    memory.map(mapping(0, PAGE, file))


@pytest.mark.row("defect", "A11")
@pytest.mark.row("defect", "A12")
def test_a_thousand_maps_and_unmaps_leak_no_descriptor(memory: GuestMemory, file: int, unsealed: int) -> None:
    before = open_descriptors()

    for turn in range(1000):
        fd = unsealed if turn % 100 == 0 else file
        memory.map(mapping(0, PAGE, fd))
        memory.map(mapping(PAGE, PAGE, fd, offset=PAGE))
        refusal(memory, mapping(0, 3 * PAGE, fd))
        memory.unmap(0, PAGE)
        memory.unmap(PAGE, PAGE)

    assert open_descriptors() == before


def test_clear_forgets_everything_and_closes_it(memory: GuestMemory, file: int, unsealed: int) -> None:
    before = open_descriptors()
    memory.map(mapping(0, PAGE, file))
    memory.map(mapping(PAGE, PAGE, unsealed))

    memory.clear()

    assert list(memory) == []
    assert memory.ram_ranges() == []
    assert open_descriptors() == before


# -- what is RAM -------------------------------------------------------------------------------------------------------


def test_ram_ranges_are_merged_and_in_order(memory: GuestMemory, file: int) -> None:
    memory.map(mapping(0x100000, 2 * PAGE, file, offset=PAGE))
    memory.map(mapping(PAGE, PAGE, file, offset=8 * PAGE))
    memory.map(mapping(0, PAGE, file))
    memory.map(mapping(3 * PAGE, PAGE, None))

    assert memory.ram_ranges() == [(0, 2 * PAGE - 1), (0x100000, 0x101FFF)]


def test_ranges_that_overlap_an_interval_come_in_order(memory: GuestMemory, file: int) -> None:
    for page in (1, 2, 5):
        memory.map(mapping(page * PAGE, PAGE, file, offset=page * PAGE))

    assert [found.address for found in memory.overlapping(2 * PAGE - 1, 3 * PAGE + 1)] == [PAGE, 2 * PAGE]
    assert [found.address for found in memory.overlapping(0, PAGE)] == []
    assert [found.address for found in memory.overlapping(5 * PAGE, 1)] == [5 * PAGE]


@pytest.mark.parametrize(("readable", "writable"), [(True, False), (False, True), (False, False)])
def test_a_range_that_is_not_both_readable_and_writable_is_unreachable(
    memory: GuestMemory, file: int, readable: bool, writable: bool
) -> None:
    memory.map(mapping(0, PAGE, file, readable=readable, writable=writable))

    assert memory.ram_ranges() == []
    with pytest.raises(GuestMemoryError):
        memory.read([(0, 1)])


def test_a_range_without_descriptor_is_unreachable_and_can_be_unmapped(memory: GuestMemory) -> None:
    memory.map(mapping(0, PAGE, None))

    with pytest.raises(GuestMemoryError):
        memory.write([(0, 1)], b"x")
    memory.unmap(0, PAGE)
    assert list(memory) == []


def test_a_file_opened_only_for_reading_is_unreachable(memory: GuestMemory, file: int) -> None:
    read_only = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
    memory.map(mapping(0, PAGE, read_only, writable=False))
    assert "opened for reading only, and the range is one to write to" in str(
        refusal(memory, mapping(PAGE, PAGE, read_only))
    )
    os.close(read_only)

    assert memory.ram_ranges() == []
    memory.map(mapping(PAGE, PAGE, file))
    assert memory.ram_ranges() == [(PAGE, 2 * PAGE - 1)]


def test_every_change_of_ram_is_told_and_no_other(file: int) -> None:
    seen: list[tuple[int, int, list[tuple[int, int]]]] = []
    memory = GuestMemory(LiveInputs(), lambda first, nr: seen.append((first, nr, memory.ram_ranges())))

    memory.map(mapping(0, PAGE, file))
    memory.map(mapping(0, PAGE, file))
    memory.map(mapping(PAGE, PAGE, None))
    memory.unmap(PAGE, PAGE)
    memory.unmap(0, PAGE)
    memory.clear()

    assert seen == [(0, 1, [(0, PAGE - 1)]), (0, 1, [])]


def test_memory_of_zeros_is_not_used_by_the_guest(memory: GuestMemory, file: int) -> None:
    memory.map(mapping(0, PAGE, file))
    assert not is_used(memory)

    os.pwrite(file, b"guest", 100)

    assert is_used(memory)


def test_a_private_copy_leaves_zeros_even_where_it_was_read(memory: GuestMemory, file: int) -> None:
    memory.map(mapping(0, PAGE, file))
    with mmap.mmap(file, PAGE, mmap.MAP_PRIVATE) as private:
        private[0] = private[100] + 1

        assert os.fstat(file).st_blocks > 0
        assert not is_used(memory)


@pytest.mark.row("server", 38)
def test_looking_for_use_leaves_the_holes_of_a_file(memory: GuestMemory, file: int) -> None:
    memory.map(mapping(0, 16 * PAGE, file))

    assert not is_used(memory)

    assert os.fstat(file).st_blocks == 0


@pytest.mark.row("server", 38)
def test_looking_for_use_takes_a_step_for_each_range_if_that_is_its_time(memory: GuestMemory, file: int) -> None:
    for place in range(5):
        memory.map(mapping(2 * place * PAGE, PAGE, file, offset=place * PAGE))
    os.pwrite(file, b"guest", 3 * PAGE)

    assert outcome(memory.is_used_by_guest(-1)) == (True, 3)


@pytest.mark.row("server", 38)
def test_looking_for_use_goes_on_though_ranges_go_and_come(memory: GuestMemory, file: int) -> None:
    for place in range(5):
        memory.map(mapping(2 * place * PAGE, PAGE, file, offset=place * PAGE))
    steps = memory.is_used_by_guest(-1)
    next(steps)
    memory.unmap(0, PAGE)
    memory.unmap(2 * PAGE, PAGE)
    memory.map(mapping(0, PAGE, file))
    os.pwrite(file, b"guest", 4 * PAGE)

    assert outcome(steps)[0]


def test_of_adjacent_ranges_the_first_bytes_of_all_together_are_looked_at(memory: GuestMemory, tmp_path: Path) -> None:
    with open(tmp_path / "ram", "w+b") as ram:
        ram.truncate(3 * PROBED_SIZE)
        for first, size in ((0, PAGE), (PAGE, 2 * PROBED_SIZE)):
            memory.map(DmaMapping(first, size, first, True, True, os.dup(ram.fileno())))
        os.pwrite(ram.fileno(), b"far", PROBED_SIZE)
        assert not is_used(memory)
        os.pwrite(ram.fileno(), b"near", PROBED_SIZE - 4)
        assert is_used(memory)


# -- access ------------------------------------------------------------------------------------------------------------


@pytest.mark.row("defect", "A16")
@pytest.mark.row("defect", "C3")
@pytest.mark.row("wire", 46)
def test_one_access_may_span_adjacent_ranges_of_different_files(memory: GuestMemory, file: int, unsealed: int) -> None:
    memory.map(mapping(0, PAGE, file, offset=5 * PAGE))
    memory.map(mapping(PAGE, PAGE, unsealed, offset=7 * PAGE))

    memory.write([(PAGE - 3, 6)], b"abcdef")

    assert os.pread(file, 3, 6 * PAGE - 3) == b"abc"
    assert os.pread(unsealed, 3, 7 * PAGE) == b"def"
    assert memory.read([(PAGE - 3, 6)]) == b"abcdef"


def test_runs_are_read_one_after_the_other(memory: GuestMemory, file: int) -> None:
    memory.map(mapping(0, 4 * PAGE, file))

    for data in (b"abcde", b"fghij"):  # the second time in the range of the access before
        memory.write([(3 * PAGE, 2), (0, 3)], data)

        assert memory.read([(0, 3), (3 * PAGE, 2)]) == data[2:] + data[:2]

    memory.unmap(0, 4 * PAGE)
    with pytest.raises(GuestMemoryError):
        memory.read([(0, 3), (3 * PAGE, 2)])


def test_nothing_is_written_if_a_later_run_is_not_ram(memory: GuestMemory, file: int) -> None:
    memory.map(mapping(0, PAGE, file))

    for _ in range(2):
        with pytest.raises(GuestMemoryError) as caught:
            memory.write([(0, 4), (PAGE - 2, 4)], b"abcdefgh")
        assert caught.value.gpa == PAGE
        assert memory.read([(0, PAGE)]) == bytes(PAGE)  # which makes it the range of the last access


def test_check_names_the_first_address_that_is_not_ram(memory: GuestMemory, file: int) -> None:
    memory.map(mapping(0, PAGE, file))
    memory.map(mapping(2 * PAGE, PAGE, file))

    memory.check([(0, PAGE), (2 * PAGE, PAGE)])
    with pytest.raises(GuestMemoryError) as caught:
        memory.check([(2 * PAGE, 16), (8, 3 * PAGE)])

    assert caught.value.gpa == PAGE


def test_an_unsealed_file_is_read_and_written_by_system_calls(
    memory: GuestMemory, unsealed: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        memory.map(mapping(0, PAGE, unsealed, offset=PAGE))

    memory.write([(16, 4)], b"abcd")

    assert memory.read([(15, 6)]) == b"\0abcd\0"
    assert os.pread(unsealed, 4, PAGE + 16) == b"abcd"
    assert [getattr(record, "event", None) for record in caplog.records] == ["memory-not-sealed"]


@pytest.mark.row("defect", "C17")
@pytest.mark.row("wire", 48)
def test_an_unsealed_file_that_shrank_reads_as_zeros(memory: GuestMemory, unsealed: int) -> None:
    memory.map(mapping(0, 2 * PAGE, unsealed))
    memory.write([(0, 2 * PAGE)], b"x" * 2 * PAGE)

    os.ftruncate(unsealed, PAGE)

    assert memory.read([(PAGE - 2, 4)]) == b"xx\0\0"
    memory.write([(PAGE, 2)], b"yy")
    assert memory.read([(PAGE - 2, 4)]) == b"xxyy"


def test_a_file_sealed_against_writes_meanwhile_fails_only_the_access(memory: GuestMemory, unsealed: int) -> None:
    memory.map(mapping(0, PAGE, unsealed))
    fcntl.fcntl(unsealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)

    with pytest.raises(GuestMemoryError, match="GPA 0x10: its file cannot be written"):
        memory.write([(16, 4)], b"abcd")

    assert memory.read([(16, 4)]) == bytes(4)


def test_a_file_that_cannot_be_read_fails_only_the_access(unsealed: int) -> None:
    class Broken(LiveInputs):
        @staticmethod
        def pread(fd: int, length: int, offset: int) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    memory = GuestMemory(Broken())
    memory.map(mapping(0, PAGE, unsealed))

    with pytest.raises(GuestMemoryError, match="GPA 0x8: its file cannot be read: Input/output error"):
        memory.read([(8, 4)])
    memory.clear()


@given(st.lists(st.tuples(st.integers(0, 4 * PAGE - 1), st.binary(min_size=1, max_size=3 * PAGE)), max_size=12))
def test_guest_memory_behaves_as_one_array(writes: list[tuple[int, bytes]]) -> None:
    sealed, loose = memory_file(4 * PAGE), memory_file(4 * PAGE, sealed=False)
    memory = GuestMemory(LiveInputs())
    for page, fd in enumerate((sealed, loose, sealed, loose)):
        memory.map(mapping(page * PAGE, PAGE, fd, offset=(3 - page) * PAGE))
    model = bytearray(4 * PAGE)

    for gpa, data in writes:
        if gpa + len(data) <= len(model):
            memory.write([(gpa, len(data))], data)
            model[gpa : gpa + len(data)] = data
        else:
            with pytest.raises(GuestMemoryError) as caught:
                memory.write([(gpa, len(data))], data)
            assert caught.value.gpa == len(model)

    assert memory.read([(0, len(model))]) == model
    memory.clear()
    os.close(sealed)
    os.close(loose)
