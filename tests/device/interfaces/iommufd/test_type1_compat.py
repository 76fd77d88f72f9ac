"""The requests of VFIO's type1 on /dev/iommu."""

from __future__ import annotations

import errno

import pytest

from pviommu.interfaces.iommufd import DmaRefusedError
from pviommu.interfaces.iommufd import structures as s
from pviommu.interfaces.iommufd import vfio_structures as v
from pviommu.interfaces.iommufd.vfio_structures import VfioRequest

from .conftest import LAST, PAGE, Handle, Program, fails

TYPE1, TYPE1V2 = v.Extension.TYPE1, v.Extension.TYPE1V2
READ, WRITE = v.DmaMapFlag
LAST48 = (1 << 48) - 1


@pytest.fixture
def ioas(program: Program) -> int:
    """The one that requests are about."""
    number = program.ioas()
    program.iommu(s.VfioIoas, op=s.VfioIoasOp.SET, ioas_id=number)
    return number


def chosen(program: Program) -> int:
    return program.iommu(s.VfioIoas, op=s.VfioIoasOp.GET).ioas_id


def dma_map(program: Program, iova: int, size: int, va: int = 0, flags: int = READ | WRITE) -> None:
    program.iommu(v.DmaMap, flags=flags, vaddr=program.va + va, iova=iova, size=size)


def dma_unmap(program: Program, iova: int, size: int, flags: int = 0) -> int:
    return program.iommu(v.DmaUnmap, flags=flags, iova=iova, size=size).size


def test_the_chosen_ioas(program: Program) -> None:
    with fails("ENODEV"):
        chosen(program)
    first, second = program.ioas(), program.ioas()
    with fails("ENOENT"):
        program.iommu(s.VfioIoas, op=s.VfioIoasOp.SET, ioas_id=99)
    program.iommu(s.VfioIoas, op=s.VfioIoasOp.SET, ioas_id=first)
    assert chosen(program) == first
    program.iommu(s.Destroy, id=first)
    with fails("ENODEV"):
        chosen(program)
    assert program.ioas() == first
    with fails("ENODEV"):
        chosen(program)
    program.iommu(s.VfioIoas, op=s.VfioIoasOp.SET, ioas_id=second)
    program.iommu(s.VfioIoas, op=s.VfioIoasOp.CLEAR)
    with fails("ENODEV"):
        chosen(program)


def test_requests_without_an_ioas(program: Program) -> None:
    assert program.ioctl(program.fd, VfioRequest.GET_API_VERSION) == 0
    extensions = {number: 0 for number in range(12) if number != v.Extension.DMA_CC}
    for number in extensions:
        extensions[number] = program.ioctl(program.fd, VfioRequest.CHECK_EXTENSION, number)
    assert [number for number, there in extensions.items() if there] == [1, 3, 9]
    with fails("EINVAL"):
        program.ioctl(program.fd, VfioRequest.SET_IOMMU, 2)
    for request in (
        lambda: program.ioctl(program.fd, VfioRequest.CHECK_EXTENSION, v.Extension.DMA_CC),
        lambda: program.ioctl(program.fd, VfioRequest.SET_IOMMU, TYPE1V2),
        lambda: dma_map(program, 0, PAGE),
        lambda: dma_unmap(program, 0, PAGE),
        lambda: program.iommu(v.Type1Info),
    ):
        with fails("ENODEV"):
            request()
    with fails("ENOTTY"):
        program.ioctl(program.fd, 0x3B75, program.va)


def test_structures_that_are_refused(program: Program, ioas: int) -> None:
    for fields in ({"argsz": 31}, {"flags": 4}):
        with fails("EINVAL"):
            program.iommu(v.DmaMap, **{"flags": 1, "size": PAGE, **fields})
    for fields in ({"argsz": 23}, {"flags": 1}, {"flags": 4}):
        with fails("EINVAL"):
            program.iommu(v.DmaUnmap, **{"size": PAGE, **fields})
    for request in (VfioRequest.IOMMU_MAP_DMA, VfioRequest.IOMMU_UNMAP_DMA, VfioRequest.IOMMU_GET_INFO):
        with fails("EFAULT"):
            program.ioctl(program.fd, request, 0)


def test_maps_have_the_errnos_of_iommufd(program: Program, ioas: int, dma0: Handle) -> None:
    dma0.attach(ioas)
    dma_map(program, 0x10000, PAGE)
    dma0.write(0x10000, b"type1")
    assert program.data[:5] == b"type1"

    for iova, size, error in (
        (0x10000, PAGE, "EEXIST"),
        (0x20000, 0, "EINVAL"),
        (0x20800, PAGE, "EINVAL"),
        (0xFEE00000, PAGE, "EINVAL"),
        (LAST - PAGE + 1, 2 * PAGE, "EOVERFLOW"),
    ):
        with fails(error):
            dma_map(program, iova, size)
    with fails("EINVAL", "neither readable nor writeable"):
        dma_map(program, 0x20000, PAGE, flags=0)


@pytest.mark.row("space", 53)
def test_unmapping_nothing_succeeds(program: Program, ioas: int) -> None:
    assert dma_unmap(program, 0x10000, PAGE) == 0
    assert dma_unmap(program, 0, 0, v.DmaUnmapFlag.ALL) == 0


@pytest.mark.row("space", 52)
def test_an_unmap_that_would_cut_removes_what_is_before_it(program: Program, ioas: int, dma0: Handle) -> None:
    dma0.attach(ioas)
    dma_map(program, 0x10000, PAGE)
    dma_map(program, 0x11000, 2 * PAGE, PAGE)

    with fails("ENOENT", "would cut"):
        dma_unmap(program, 0x10000, 2 * PAGE)

    with pytest.raises(DmaRefusedError):
        dma0.read(0x10000)
    assert dma0.read(0x11000) == bytes(4)
    assert dma_unmap(program, 0, 0, v.DmaUnmapFlag.ALL) == 2 * PAGE


def test_the_size_of_a_failed_unmap_is_what_was_unmapped(program: Program, ioas: int) -> None:
    dma_map(program, 0x10000, PAGE)
    dma_map(program, 0x11000, 2 * PAGE)
    for iova, size, error, unmapped in (
        (0, 0, errno.EINVAL, 0),
        (LAST, 2, errno.EOVERFLOW, 0),
        (0x10000, 2 * PAGE, errno.ENOENT, PAGE),
    ):
        request = bytearray(v.DmaUnmap(24, 0, iova, size).pack())
        with pytest.raises(OSError, match="0x") as caught:
            program.ioctl(program.fd, VfioRequest.IOMMU_UNMAP_DMA, program.memory.add(request))
        assert caught.value.errno == error
        assert v.DmaUnmap.unpack(request).size == unmapped
    with fails("EINVAL", "both must be 0"):
        dma_unmap(program, 0, PAGE, v.DmaUnmapFlag.ALL)


def test_type1_cuts_at_any_page(program: Program, ioas: int, dma0: Handle) -> None:
    program.ioctl(program.fd, VfioRequest.SET_IOMMU, TYPE1)
    dma0.attach(ioas)
    dma_map(program, 0x200000, 512 * PAGE)

    assert dma_unmap(program, 0x210000, PAGE) == PAGE

    with pytest.raises(DmaRefusedError):
        dma0.read(0x210000)
    for iova in (0x20F000, 0x211000):
        dma0.write(iova, b"here")
        assert program.data[iova - 0x200000 :][:4] == b"here"
    assert dma_unmap(program, 0x20F000, 3 * PAGE) == 2 * PAGE
    assert dma_unmap(program, 0x200000, 512 * PAGE) == 509 * PAGE
    dma_map(program, 0, 2 * PAGE)
    with fails("EINVAL", "cannot be cut"):
        dma_unmap(program, 0, PAGE + 8)
    assert dma_unmap(program, 0, PAGE) == PAGE


def test_type1_comes_before_the_page_tables_are_filled(program: Program, ioas: int, dma0: Handle) -> None:
    program.ioctl(program.fd, VfioRequest.SET_IOMMU, TYPE1V2)
    dma0.attach(ioas)
    dma_map(program, 0x10000, PAGE)

    with fails("EINVAL", "filled already"):
        program.ioctl(program.fd, VfioRequest.SET_IOMMU, TYPE1)


def test_coherence_is_that_of_all_page_tables(program: Program, ioas: int, dma0: Handle) -> None:
    dma0.attach(ioas)
    assert program.ioctl(program.fd, VfioRequest.CHECK_EXTENSION, v.Extension.DMA_CC) == 1


@pytest.mark.row("space", 34)
@pytest.mark.row("space", 35)
def test_info_is_a_chain_of_two_capabilities_as_far_as_it_fits(program: Program, ioas: int, dma0: Handle) -> None:
    """Byte by byte as Linux 7.3 writes them: what of the chain fits is there, but only a whole one is pointed to."""
    dma0.attach(ioas)
    avail = bytes.fromhex("0300 0100 28000000 ffffffff")
    ranges = bytes.fromhex("0100 0100 00000000 02000000 00000000") + b"".join(
        word.to_bytes(8, "little") for word in (0, 0xFEDFFFFF, 0xFEF00000, LAST48)
    )
    whole = 40 + len(ranges)
    for argsz in range(whole + 9):
        request = bytearray(argsz.to_bytes(4, "little") + b"\xee" * 100)
        place = program.memory.add(request)
        if argsz < 16:
            with fails("EINVAL"):
                program.ioctl(program.fd, VfioRequest.IOMMU_GET_INFO, place)
            assert request == argsz.to_bytes(4, "little") + b"\xee" * 100
            continue
        program.ioctl(program.fd, VfioRequest.IOMMU_GET_INFO, place)

        expected = bytearray(b"\xee" * 104)
        fixed = v.Type1Info(whole, 3, 0x40201000, 24 if argsz >= whole else 0, 0).pack()
        expected[: min(argsz, 24)] = fixed[:argsz]
        if argsz >= 36:
            expected[24:36] = avail if argsz >= 40 else avail[:4] + bytes(4) + avail[8:]
        for end in (72, 88):  # each range as it fits, and their number with all of them
            if argsz >= end:
                expected[end - 16 : end] = ranges[end - 56 : end - 40]
        if argsz >= whole:
            expected[40:whole] = ranges
        assert request == expected


def test_page_sizes_are_those_that_all_page_tables_have(program: Program, ioas: int, dma0: Handle) -> None:
    assert program.iommu(v.Type1Info).iova_pgsizes == LAST & ~0xFFF
    dma0.attach(ioas)
    assert program.iommu(v.Type1Info).iova_pgsizes == 0x40201000
