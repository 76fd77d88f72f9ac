"""Memory shared with a guest."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator

import pytest

from pviommu.pci.shared_memory import SharedMemory, fence, pages_of


@pytest.fixture
def shared() -> Iterator[SharedMemory]:
    shared = SharedMemory("test", 0x2000)
    yield shared
    shared.close()


def test_words_and_bytes_are_the_same_memory(shared: SharedMemory) -> None:
    shared.words[2] = 0x01020304

    assert bytes(shared.view[8:12]) == b"\x04\x03\x02\x01"


def test_another_map_of_the_descriptor_sees_every_write(shared: SharedMemory) -> None:
    with mmap.mmap(shared.fd, shared.size) as guest:
        shared.view[:5] = b"hello"
        guest[5:10] = b"world"

        assert guest[:5] == b"hello"
        assert bytes(shared.view[5:10]) == b"world"


def test_whoever_has_the_descriptor_can_neither_resize_nor_seal_it(shared: SharedMemory) -> None:
    for size in (0x1000, 0x3000):
        with pytest.raises(PermissionError):
            os.ftruncate(shared.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(shared.fd, fcntl.F_ADD_SEALS, 0x10)  # F_SEAL_FUTURE_WRITE


def test_clear_leaves_zeros(shared: SharedMemory) -> None:
    shared.view[0x1FFF] = 1

    shared.clear()

    assert bytes(shared.view) == bytes(0x2000)


def test_close_gives_all_descriptors_back() -> None:
    before = len(os.listdir("/proc/self/fd"))

    SharedMemory("test", 0x1000).close()

    assert len(os.listdir("/proc/self/fd")) == before


def test_a_fence_can_follow_a_fence() -> None:
    fence()
    fence()


def test_pages_of_zeros_are_not_saved_and_are_there_again() -> None:
    shared = SharedMemory("pages", 4 * 4096)
    shared.view[5000] = 7
    shared.view[-1] = 8
    before = bytes(shared.view)
    pages = pages_of(before)
    shared.view[:] = b"\xff" * shared.size

    shared.load(pages)

    assert bytes(shared.view) == before
    assert [offset for offset, _ in pages] == [4096, 3 * 4096]
    shared.close()


def test_pages_that_lie_outside_are_not_loaded(shared: SharedMemory) -> None:
    shared.view[0] = 9

    with pytest.raises(ValueError, match=f"2 bytes at {shared.size - 1:#x}, and it has {shared.size:#x}"):
        shared.load(((0, b"x"), (shared.size - 1, b"xx")))

    assert shared.view[0] == 9
