"""Guest memory that a saved state expects."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pviommu.dma.expected import MemoryRange, check_memory, memory_ranges
from pviommu.dma.memory import GuestMemory
from pviommu.guest.memory import memory_file
from pviommu.inputs import LiveInputs
from vfio_user import DmaMapping

PAGE = 0x1000


@pytest.fixture
def fd() -> Iterator[int]:
    fd = memory_file(64 * PAGE)
    yield fd
    os.close(fd)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(LiveInputs())
    yield memory
    memory.clear()


def plug(memory: GuestMemory, fd: int, first: int, pages: int, writable: bool = True) -> None:
    memory.map(DmaMapping(first * PAGE, pages * PAGE, first * PAGE, True, writable, os.dup(fd)))


def expected(*ranges: tuple[int, int, bool]) -> list[MemoryRange]:
    return [MemoryRange(first * PAGE, pages * PAGE, True, writable) for first, pages, writable in ranges]


def test_ranges_are_the_same_however_they_are_divided(memory: GuestMemory, fd: int) -> None:
    for first, pages, writable in ((0, 2, True), (2, 3, True), (5, 1, False), (6, 2, True), (9, 1, True)):
        plug(memory, fd, first, pages, writable)
    memory.map(DmaMapping(20 * PAGE, PAGE, 0, True, True))  # out of reach, and so of no matter

    assert list(memory_ranges(memory)) == expected((0, 5, True), (5, 1, False), (6, 2, True), (9, 1, True))
    check_memory(memory_ranges(memory), memory)


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (
            [(0, 4, True), (8, 2, True)],
            "guest memory of 0x2000 bytes at 0x8000, readable and writable is expected, and there is nothing",
        ),
        (
            [(0, 5, True)],
            "guest memory of 0x5000 bytes at 0x0, readable and writable is expected, and there is 0x4000 bytes at 0x0, "
            "readable and writable",
        ),
        ([(0, 4, False)], "guest memory of 0x4000 bytes at 0x0, readable is expected, and there is 0x4000 bytes at"),
        ([], "guest memory of 0x4000 bytes at 0x0, readable and writable is there, and none is expected"),
    ],
    ids=["missing", "shorter", "access", "more"],
)
def test_what_differs_is_named(memory: GuestMemory, fd: int, wanted: list[tuple[int, int, bool]], text: str) -> None:
    plug(memory, fd, 0, 4)

    with pytest.raises(ValueError, match=text):
        check_memory(expected(*wanted), memory)
