"""Address spaces: mapping, unmapping, copying, and what narrows them."""

from __future__ import annotations

import pytest

from pviommu.interfaces.iommufd import DeviceConfig, DmaRefusedError, Region, RegionKind, System
from pviommu.interfaces.iommufd import structures as s
from pviommu.interfaces.iommufd import vfio_structures as v

from .conftest import BOTH, FIXED, LAST, PAGE, READABLE, WRITEABLE, Handle, Program, fails

MSI = (0xFEE00000, 0xFEEFFFFF)
LAST48 = (1 << 48) - 1


@pytest.fixture
def ioas(program: Program) -> int:
    return program.ioas()


# Maps


def test_an_ioas_has_an_id_and_goes_by_it(program: Program) -> None:
    first, second = program.ioas(), program.ioas()
    assert (first, second) == (1, 2)

    program.iommu(s.Destroy, id=first)
    with fails("ENOENT", "no object has this id"):
        program.iommu(s.Destroy, id=first)
    assert program.ioas() == first


@pytest.mark.row("space", 47)
def test_object_0_is_never_there(program: Program) -> None:
    with fails("ENOENT"):
        program.iommu(s.Destroy, id=0)


@pytest.mark.row("space", 50)
@pytest.mark.parametrize(("page", "count"), [(16, 2), (16, 1), (17, 1), (15, 2), (15, 3), (10, 20)])
def test_a_map_never_replaces_another_one(program: Program, ioas: int, page: int, count: int) -> None:
    program.map(ioas, 2 * PAGE, 16 * PAGE)

    with fails("EEXIST", "some of it is mapped"):
        program.map(ioas, count * PAGE, page * PAGE)
    assert program.unmap(ioas, 16 * PAGE, 2 * PAGE) == 2 * PAGE


@pytest.mark.row("space", 50)
@pytest.mark.parametrize("page", [16, 17])
def test_a_part_of_a_map_cannot_be_unmapped(program: Program, ioas: int, page: int) -> None:
    program.map(ioas, 2 * PAGE, 16 * PAGE)

    with fails("ENOENT", "would be cut"):
        program.unmap(ioas, page * PAGE, PAGE)
    assert program.unmap(ioas, 16 * PAGE, 2 * PAGE) == 2 * PAGE


def test_the_rank_of_what_is_wrong_with_a_map(program: Program) -> None:
    wrong = {"ioas_id": 99, "flags": FIXED | WRITEABLE, "iova": LAST, "length": PAGE, "user_va": LAST}
    with fails("EOVERFLOW"):
        program.iommu(s.IoasMap, **wrong)
    with fails("EOVERFLOW"):
        program.iommu(s.IoasMap, **{**wrong, "iova": 0, "length": LAST})
    with fails("EINVAL", "neither readable nor writeable"):
        program.iommu(s.IoasMap, **{**wrong, "iova": 0, "flags": FIXED})
    with fails("ENOENT", "IOAS 99"):
        program.iommu(s.IoasMap, **{**wrong, "iova": 0})
    ioas = program.ioas()
    with fails("EOVERFLOW", "beyond 64-bit"):
        program.iommu(s.IoasMap, **{**wrong, "iova": 0, "ioas_id": ioas})
    with fails("EINVAL", "at least 1"):
        program.map(ioas, 0, 0)
    with fails("EINVAL", "at least 1"):
        program.map(ioas, LAST - 1, 0, va=0)


@pytest.mark.row("space", 37)
def test_a_map_beyond_64_bits_is_eoverflow(program: Program, ioas: int) -> None:
    with fails("EOVERFLOW"):
        program.map(ioas, 2 * PAGE, LAST - PAGE + 1)
    program.map(ioas, PAGE, LAST - PAGE + 1)
    assert program.unmap(ioas, LAST - PAGE + 1, PAGE) == PAGE


@pytest.mark.row("space", 48)
def test_without_a_page_table_any_length_is_mapped_anywhere_but_at_0(program: Program, ioas: int) -> None:
    for length in (1, 3, 100, 4095, 4096, 4097, 8191):
        iova = program.map(ioas, length)
        assert iova
        assert program.unmap(ioas, iova, length) == length
    program.map(ioas, 5, 3)
    assert program.ranges_and_alignment(ioas) == ([(0, LAST)], 1)


@pytest.mark.row("space", 48)
def test_with_a_page_table_everything_is_of_pages(program: Program, ioas: int, dma0: Handle) -> None:
    dma0.attach(ioas)

    for length, iova, va in ((0x800, None, 0), (PAGE, 0x800, 0), (PAGE, None, 0x800), (PAGE, PAGE, 0x800)):
        with fails("EINVAL"):
            program.map(ioas, length, iova, program.va + va)
    program.map(ioas, PAGE)
    assert program.ranges_and_alignment(ioas)[1] == PAGE


@pytest.mark.row("space", 48)
@pytest.mark.parametrize(("length", "iova", "va"), [(0x800, 0, 0), (PAGE, 0x800, 0), (PAGE, 0, 0x800)])
def test_what_is_less_aligned_than_pages_keeps_page_tables_out(
    program: Program, ioas: int, dma0: Handle, length: int, iova: int, va: int
) -> None:
    program.map(ioas, length, iova, program.va + va)

    with fails("EADDRINUSE", "less aligned"):
        dma0.attach(ioas)
    assert program.ranges_and_alignment(ioas) == ([(0, LAST)], 1)
    program.unmap(ioas, iova, length)
    dma0.attach(ioas)


@pytest.mark.row("space", 49)
def test_chosen_iovas_are_aligned_to_the_length_and_avoid_what_is_allowed_not(program: Program, ioas: int) -> None:
    for pages in range(1, 10):
        iova = program.map(ioas, pages * PAGE)
        assert iova % (PAGE << (pages - 1).bit_length()) == 0
    program.unmap(ioas, 0, LAST)
    program.allow(ioas, [(0x10000, 0x1FFFF), (0x100000, 0x17FFFF)])
    assert [program.map(ioas, 8 * PAGE) for _ in range(3)] == [0x10000, 0x18000, 0x100000]
    with fails("ENOSPC", "no free range"):
        program.map(ioas, 0x80000)
    program.allow(ioas, [])
    program.map(ioas, 0x80000)


@pytest.mark.row("space", 49)
def test_lengths_that_no_iova_is_chosen_for(program: Program, ioas: int) -> None:
    with fails("EOVERFLOW"):
        program.map(ioas, LAST // 2, va=0)


# Unmaps


@pytest.mark.row("space", 51)
def test_areas_with_holes_between_go_together_if_none_is_cut(program: Program, ioas: int) -> None:
    base = 64 * PAGE
    for number in range(4):
        program.map(ioas, 8 * PAGE, base + number * 16 * PAGE)

    with fails("ENOENT"):
        program.unmap(ioas, base - 4 * PAGE, 8 * PAGE)
    assert program.unmap(ioas, base - 4 * PAGE, (3 * 16 + 8 + 8) * PAGE) == 32 * PAGE


@pytest.mark.row("space", 52)
def test_areas_before_one_that_would_be_cut_are_gone(program: Program, ioas: int, dma0: Handle) -> None:
    dma0.attach(ioas)
    for number in (1, 2, 3):
        program.map(ioas, 2 * PAGE, number * 0x10000)
    request = bytearray(s.IoasUnmap(24, ioas, 0x10000, 0x20000 + PAGE).pack())

    with fails("ENOENT", "0x30000..0x31fff would be cut"):
        program.ioctl(program.fd, 0x3B86, program.memory.add(request))

    assert request[16:24] == (0x20000 + PAGE).to_bytes(8, "little")
    for iova in (0x10000, 0x21000):
        with pytest.raises(DmaRefusedError, match="not mapped"):
            dma0.read(iova)
    assert dma0.read(0x31000) == bytes(4)
    assert program.unmap(ioas, 0x30000, 2 * PAGE) == 2 * PAGE


@pytest.mark.row("space", 53)
def test_unmapping_nothing_succeeds_only_for_everything(program: Program, ioas: int) -> None:
    assert program.unmap(ioas, 0, LAST) == 0
    with fails("ENOENT", "nothing is mapped there"):
        program.unmap(ioas, 0, LAST & ~0xFFF)
    with fails("ENOENT"):
        program.unmap(ioas, PAGE, PAGE)
    with fails("EINVAL"):
        program.unmap(ioas, 0, 0)
    for iova, length in ((LAST, 1), (1, LAST), (LAST - 1, 3)):
        with fails("EOVERFLOW"):
            program.unmap(ioas, iova, length)
    with fails("ENOENT", "IOAS 9"):
        program.unmap(9, 0, LAST)


@pytest.mark.row("space", 53)
def test_unmapping_everything_says_how_much_it_was(program: Program, ioas: int) -> None:
    program.map(ioas, 3)
    program.map(ioas, 2 * PAGE)

    assert program.unmap(ioas, 0, LAST) == 3 + 2 * PAGE


# Copies


def copy(
    program: Program, source: int, target: int, where: int, length: int, to: int | None = None, flags: int = BOTH
) -> int:
    """Returns the IOVA; ``to`` is None for one that is chosen."""
    fixed = 0 if to is None else FIXED
    fields = {"src_ioas_id": source, "dst_ioas_id": target, "src_iova": where, "dst_iova": to or 0, "length": length}
    return program.iommu(s.IoasCopy, flags=flags | fixed, **fields).dst_iova


@pytest.mark.row("space", 54)
def test_a_copy_is_the_same_memory(program: Program, ioas: int, dma0: Handle) -> None:
    program.map(ioas, 2 * PAGE, 0x10000)
    program.map(ioas, 2 * PAGE, 0x12000, program.va + 8 * PAGE)
    other = program.ioas()
    dma0.attach(other)

    assert copy(program, ioas, other, 0x11000, 2 * PAGE, 0x55000) == 0x55000
    dma0.write(0x55FFE, b"abcd")

    assert program.data[2 * PAGE - 2 : 2 * PAGE] == b"ab"
    assert program.data[8 * PAGE : 8 * PAGE + 2] == b"cd"
    iova = copy(program, ioas, other, 0x10000, PAGE, flags=READABLE)
    assert dma0.read(iova) == bytes(4)
    with pytest.raises(DmaRefusedError, match="does not allow"):
        dma0.write(iova, b"x")
    # each piece of what was copied is an area of its own
    assert program.unmap(other, 0x55000, PAGE) == PAGE


@pytest.mark.row("space", 54)
def test_what_cannot_be_copied(program: Program, ioas: int) -> None:
    program.map(ioas, 2 * PAGE, 0x10000)
    program.map(ioas, PAGE, 0x20000, flags=READABLE)
    other = program.ioas()
    program.map(other, PAGE, 0x10000)

    for where, length in ((0xFFFF, PAGE), (0x10000, 2 * PAGE + 1), (0x1F000, PAGE)):
        with fails("ENOENT", "some of it is not mapped"):
            copy(program, ioas, other, where, length, 0x80000)
    with fails("EPERM", "read-only"):
        copy(program, ioas, other, 0x20000, PAGE, 0x80000)
    assert copy(program, ioas, other, 0x20000, PAGE, 0x80000, READABLE) == 0x80000
    with fails("EEXIST"):
        copy(program, ioas, other, 0x10000, PAGE, 0x10000)
    with fails("EINVAL"):
        copy(program, ioas, other, 0x10000, 0, 0)
    with fails("EINVAL", "neither"):
        copy(program, ioas, other, 0x10000, PAGE, flags=0)
    with fails("EOVERFLOW"):
        copy(program, ioas, other, LAST - PAGE, 2 * PAGE)
    for fields in ((LAST, 1, 0), (0, LAST, 0), (0, 1, LAST)):
        with fails("EOVERFLOW"):
            copy(program, ioas, other, *fields)
    with fails("ENOENT", "IOAS 9"):
        copy(program, 9, other, 0x10000, PAGE)
    with fails("ENOENT", "IOAS 9"):
        copy(program, ioas, 9, 0x10000, PAGE)


@pytest.mark.row("space", 54)
def test_a_copy_that_fails_in_the_middle_leaves_nothing(program: Program, ioas: int, dma0: Handle) -> None:
    program.map(ioas, PAGE, 0x10000)
    program.map(ioas, PAGE, 0x11000, va=0x1000)
    other = program.ioas()
    dma0.attach(other)

    with fails("EFAULT"):
        copy(program, ioas, other, 0x10000, 2 * PAGE, 0x10000)
    with pytest.raises(DmaRefusedError):
        dma0.read(0x10000)
    program.map(other, PAGE, 0x10000)


# What narrows an address space


@pytest.mark.row("space", 33)
def test_a_fresh_space_is_everything_and_a_device_narrows_it(program: Program, ioas: int, dma0: Handle) -> None:
    assert program.ranges_and_alignment(ioas) == ([(0, LAST)], 1)

    dma0.attach(ioas)
    assert program.ranges_and_alignment(ioas) == ([(0, MSI[0] - 1), (MSI[1] + 1, LAST48)], PAGE)

    dma0.detach()
    assert program.ranges_and_alignment(ioas) == ([(0, LAST)], 1)


@pytest.mark.row("space", 36)
def test_a_map_is_inside_one_range(program: Program, ioas: int, dma0: Handle) -> None:
    dma0.attach(ioas)

    for iova, length in ((0xFEDFF000, 2 * PAGE), (0xFEE00000, PAGE), (0xFEDFF000, 0x102000), (LAST48 + 1, PAGE)):
        with fails("EINVAL", "reserves some of it"):
            program.map(ioas, length, iova)
    for iova in (0xFEDFF000, 0xFEF00000, 0xFFFFFFFFF000):
        program.map(ioas, PAGE, iova)
        assert program.unmap(ioas, iova, PAGE) == PAGE


@pytest.mark.row("space", 38)
def test_what_is_mapped_keeps_a_narrower_device_out(program: Program, ioas: int, dma0: Handle) -> None:
    dma0.attach(ioas)
    program.map(ioas, PAGE, 1 << 32)
    narrow = program.device("narrow")
    before = program.ranges(ioas)

    with fails("EADDRINUSE", "is in use"):
        narrow.attach(ioas)
    assert program.ranges(ioas) == before

    program.unmap(ioas, 1 << 32, PAGE)
    narrow.attach(ioas)
    assert program.ranges(ioas) == [(0, MSI[0] - 1), (MSI[1] + 1, (1 << 32) - 1)]
    narrow.detach()
    assert program.ranges(ioas) == before


@pytest.mark.row("space", 39)
@pytest.mark.parametrize("kind", RegionKind)
def test_all_kinds_of_regions_are_reserved_but_relaxable_ones(kind: RegionKind) -> None:
    region = Region(0x100000, 0x1FFFFF, kind)
    program = Program(System([DeviceConfig("dma0", regions=(region,))]))
    ioas = program.ioas()

    program.device("dma0").attach(ioas)

    whole = [(0, LAST48)]
    assert program.ranges(ioas) == (
        whole if kind is RegionKind.DIRECT_RELAXABLE else [(0, 0xFFFFF), (0x200000, LAST48)]
    )
    assert str(region) == f"0x0000000000100000 0x00000000001fffff {kind.value}"


@pytest.mark.row("space", 41)
def test_ranges_that_do_not_fit_are_counted_and_the_first_ones_written(
    program: Program, ioas: int, dma0: Handle
) -> None:
    dma0.attach(ioas)
    array = bytearray(b"\xee" * 48)
    place = program.memory.add(array)
    for room in (0, 1):
        request = bytearray(s.IoasIovaRanges(32, ioas, room, 0, place, 0).pack())
        with fails("EMSGSIZE", "there are 2"):
            program.ioctl(program.fd, 0x3B84, program.memory.add(request))
        answer = s.IoasIovaRanges.unpack(request)
        assert (answer.num_iovas, answer.out_iova_alignment) == (2, PAGE)
        expected = s.IovaRange(0, MSI[0] - 1).pack() if room else b""
        assert array == expected.ljust(48, b"\xee")


@pytest.mark.row("space", 41)
def test_what_cannot_be_allowed_leaves_what_was(program: Program, ioas: int, dma0: Handle) -> None:
    dma0.attach(ioas)
    program.allow(ioas, [(0x10000, 0x1FFFF)])

    with fails("EADDRINUSE", "is reserved"):
        program.allow(ioas, [(0x20000, 0x2FFFF), (0xFEE80000, 0xFEE8FFFF)])
    for spans in ([(5, 5)], [(6, 5)], [(0, 9), (9, 20)], [(10, 20), (0, 10)]):
        with fails("EINVAL"):
            program.allow(ioas, spans)
    end = program.memory.add(s.IovaRange(0x20000, 0x2FFFF).pack() + s.IovaRange(5, 5).pack())
    for number in (2, 3, 1 << 31):  # what is wrong is found before what is not there
        with fails("EINVAL", "0x5..0x5"):
            program.iommu(s.IoasAllowIovas, ioas_id=ioas, num_iovas=number, allowed_iovas=end)
    one = program.memory.add(s.IovaRange(0x20000, 0x2FFFF).pack())
    for number in (2, 5000, 1 << 31):
        with fails("EFAULT"):
            program.iommu(s.IoasAllowIovas, ioas_id=ioas, num_iovas=number, allowed_iovas=one)
    assert program.map(ioas, PAGE) == 0x10000


@pytest.mark.row("space", 41)
def test_what_is_allowed_keeps_a_device_out_that_reserves_it(program: Program, ioas: int, dma0: Handle) -> None:
    program.allow(ioas, [(0xFEE00000, 0xFEE0FFFF)])

    with fails("EADDRINUSE"):
        dma0.attach(ioas)
    program.allow(ioas, [])
    dma0.attach(ioas)


def test_a_map_in_a_region_keeps_the_device_out(program: Program, ioas: int, dma0: Handle) -> None:
    program.map(ioas, PAGE, MSI[0])

    with fails("EADDRINUSE"):
        dma0.attach(ioas)
    assert program.ranges(ioas) == [(0, LAST)]
    # a page table is no device: only its aperture counts
    dma0.table(ioas)


@pytest.mark.row("space", 44)
def test_dma_to_the_msi_window_reaches_nothing(program: Program, ioas: int, dma0: Handle) -> None:
    dma0.attach(ioas)
    program.map(ioas, PAGE, MSI[0] - PAGE)
    program.map(ioas, PAGE, MSI[1] + 1)

    for iova in (MSI[0], MSI[0] - 1, MSI[1] - 2):
        with pytest.raises(DmaRefusedError, match="not mapped"):
            dma0.write(iova, b"1234")
    assert not any(program.data)


# Memory


def test_memory_that_is_not_there_is_noticed_when_there_is_a_page_table(
    program: Program, ioas: int, dma0: Handle
) -> None:
    program.map(ioas, PAGE, 0x10000)
    program.map(ioas, PAGE, 0x20000, va=0x1000)

    with fails("EFAULT"):
        dma0.attach(ioas)
    assert program.ranges(ioas) == [(0, LAST)]
    program.unmap(ioas, 0x20000, PAGE)
    dma0.attach(ioas)
    assert dma0.read(0x10000) == bytes(4)
    for va in (0x1000, program.va + len(program.data), 1 << 48, 1 << 63):
        with fails("EFAULT"):
            program.map(ioas, PAGE, va=va)
    read_only = program.memory.add(bytes(PAGE))
    with fails("EFAULT", "read-only"):
        program.map(ioas, PAGE, va=read_only)
    program.map(ioas, PAGE, va=read_only, flags=READABLE)


def test_no_page_for_page_tables_is_enomem_and_nothing_changes(program: Program, ioas: int, dma0: Handle) -> None:
    dma0.attach(ioas)
    used, _ = program.system.hardware.engine.pool_pages()
    program.system.hardware.engine.resize_pool(used + 3)
    program.map(ioas, PAGE, 0x10000)

    with fails("ENOMEM"):
        program.map(ioas, 1024 * PAGE, 512 * PAGE - PAGE)
    with fails("ENOENT"):
        program.unmap(ioas, 512 * PAGE - PAGE, 1024 * PAGE)
    with fails("ENOMEM"):
        dma0.table(ioas)
    assert dma0.read(0x10000) == bytes(4)


# Options


def option(program: Program, op: s.OptionOp, kind: int, number: int, value: int = 0) -> int:
    return program.iommu(s.Option, op=op, option_id=kind, object_id=number, val64=value).val64


def test_huge_pages_are_an_option_of_an_ioas(program: Program, ioas: int, dma0: Handle) -> None:
    get, put, kind = s.OptionOp.GET, s.OptionOp.SET, s.OptionId.HUGE_PAGES
    assert option(program, get, kind, ioas) == 1
    option(program, put, kind, ioas, 0)
    assert option(program, get, kind, ioas) == 0
    assert program.ranges_and_alignment(ioas)[1] == PAGE
    option(program, put, kind, ioas, 1)
    assert program.ranges_and_alignment(ioas)[1] == 1

    with fails("EINVAL", "must be 0 or 1"):
        option(program, put, kind, ioas, 2)
    with fails("ENOENT"):
        option(program, get, kind, 99)
    with fails("EOPNOTSUPP", "neither GET nor SET"):
        program.iommu(s.Option, op=2, option_id=kind, object_id=ioas)
    program.map(ioas, 5, 5)
    with fails("EADDRINUSE"):
        option(program, put, kind, ioas, 0)
    assert option(program, get, kind, ioas) == 1
    program.unmap(ioas, 0, LAST)
    dma0.attach(ioas)
    program.map(ioas, PAGE)
    with fails("EINVAL", "filled already"):
        option(program, put, kind, ioas, 0)


def test_the_rlimit_mode_is_an_option_of_the_file(program: Program) -> None:
    get, put, kind = s.OptionOp.GET, s.OptionOp.SET, s.OptionId.RLIMIT_MODE
    assert option(program, get, kind, 0) == 0
    option(program, put, kind, 0, 1)
    assert option(program, get, kind, 0) == 1

    with fails("EINVAL", "must be 0 or 1"):
        option(program, put, kind, 0, 2)
    with fails("EOPNOTSUPP", "whole file"):
        option(program, get, kind, 1)
    with fails("EOPNOTSUPP", "neither GET nor SET"):
        program.iommu(s.Option, op=2, option_id=kind)
    program.ioas()
    with fails("EBUSY"):
        option(program, put, kind, 0, 0)


def test_as_many_bytes_as_there_are_addresses_are_0(program: Program, ioas: int) -> None:
    half = 1 << 63
    program.iommu(s.VfioIoas, op=s.VfioIoasOp.SET, ioas_id=ioas)
    for unmap in (
        lambda: program.unmap(ioas, 0, LAST),
        lambda: program.iommu(v.DmaUnmap, flags=v.DmaUnmapFlag.ALL).size,
    ):
        program.map(ioas, half, 0, va=0)
        program.map(ioas, half, half, va=0)
        assert unmap() == 0
        program.map(ioas, half, half, va=0)
        assert program.unmap(ioas, 0, LAST) == half


def test_ranges_behind_two_that_overlap_are_not_looked_at(program: Program, ioas: int) -> None:
    """There may be 2**32 of them, all in one page."""
    same = program.memory.add(s.IovaRange(PAGE, 2 * PAGE).pack() * 4096)
    with fails("EINVAL", "overlaps another one"):
        program.iommu(s.IoasAllowIovas, ioas_id=ioas, num_iovas=(1 << 32) - 1, allowed_iovas=same)
    for spans in ([(8, 9), (0, 8)], [(0, 8), (8, 9)], [(0, 9), (3, 4)], [(3, 4), (0, 9)]):
        with fails("EINVAL", "overlaps another one"):
            program.allow(ioas, spans)
    program.allow(ioas, [(8, 9), (0, 7), (20, 30), (10, 19)])
