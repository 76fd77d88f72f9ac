"""Files in memory that are mapped by their descriptor."""

from __future__ import annotations

import pytest

from pviommu.interfaces.iommufd import DmaRefusedError, FileMemory
from pviommu.interfaces.iommufd import structures as s

from .conftest import BOTH, FIXED, PAGE, READABLE, Handle, Program, fails

IOVA = 0x10000


def map_file(program: Program, ioas: int, fd: int, start: int, length: int, **fields: int) -> int:
    request = {"ioas_id": ioas, "fd": fd, "start": start, "length": length, "flags": BOTH, **fields}
    return program.iommu(s.IoasMapFile, **request).iova


@pytest.fixture
def content() -> bytearray:
    return bytearray(4 * PAGE)


@pytest.fixture
def fd(program: Program, content: bytearray) -> int:
    return program.install(FileMemory(content))


def test_dma_reaches_the_file(program: Program, dma0: Handle, content: bytearray, fd: int) -> None:
    ioas = program.ioas()
    dma0.attach(ioas)
    iova = map_file(program, ioas, fd, PAGE, 2 * PAGE)
    assert map_file(program, ioas, fd, 0, PAGE, flags=BOTH | FIXED, iova=0x800000) == 0x800000
    program.close(fd)

    dma0.write(iova + 8, b"data")
    dma0.write(0x800000, b"begin")
    assert (content[PAGE + 8 : PAGE + 12], content[:5]) == (b"data", b"begin")
    program.unmap(ioas, iova, 2 * PAGE)
    with pytest.raises(DmaRefusedError):
        dma0.read(iova)


def test_what_cannot_be_mapped(program: Program, dma0: Handle, fd: int) -> None:
    ioas = program.ioas()
    for wrong, errno in (
        ({"flags": 0}, "EINVAL"),
        ({"flags": 8}, "EOPNOTSUPP"),
        ({"iova": (1 << 64) - 1}, "EOVERFLOW"),
        ({"ioas_id": 99, "fd": 99}, "ENOENT"),
        ({"length": 0, "fd": 99}, "EINVAL"),
        ({"start": (1 << 64) - 1, "length": 2}, "EOVERFLOW"),
        ({"start": PAGE, "length": (1 << 64) - PAGE}, "EINVAL"),
        ({"fd": 99}, "EBADF"),
    ):
        with fails(errno):
            map_file(program, **{"ioas": ioas, "fd": fd, "start": 0, "length": PAGE, **wrong})
    iova = map_file(program, ioas, fd, 3 * PAGE, 2 * PAGE)  # it ends too early, which only a page table minds
    with fails("EINVAL", "not there"):
        dma0.attach(ioas)
    program.unmap(ioas, iova, 2 * PAGE)
    iova = map_file(program, ioas, program.fd, 0, PAGE)  # nor that it is no memory at all
    with fails("EINVAL", "not there"):
        dma0.attach(ioas)
    program.unmap(ioas, iova, PAGE)
    dma0.attach(ioas)
    with fails("EINVAL", "not there"):
        map_file(program, ioas, program.fd, 0, PAGE)
    with fails("EINVAL", "not there"):
        map_file(program, ioas, fd, 3 * PAGE, 2 * PAGE)


def test_a_file_that_is_only_read(program: Program, dma0: Handle) -> None:
    fd = program.install(FileMemory(memoryview(bytes(PAGE))))
    ioas = program.ioas()
    dma0.attach(ioas)

    with fails("EINVAL", "read-only"):
        map_file(program, ioas, fd, 0, PAGE)
    map_file(program, ioas, fd, 0, PAGE, flags=READABLE)
    with fails("ENOTTY"):
        program.ioctl(fd, 0x3B80)


def test_another_process_takes_over_if_everything_is_files(program: Program, fd: int) -> None:
    ioas = program.ioas()
    map_file(program, ioas, fd, 0, PAGE)
    program.iommu(s.IoasChangeProcess)
    iova = program.map(ioas, PAGE)

    with fails("EINVAL", "maps no file"):
        program.iommu(s.IoasChangeProcess)
    program.unmap(ioas, iova, PAGE)
    program.iommu(s.IoasChangeProcess)
    with fails("EOPNOTSUPP"):
        program.iommu(s.IoasChangeProcess, reserved=1)
