"""Memory of a Python program."""

from __future__ import annotations

import pytest

from pviommu.interfaces.iommufd import LocalMemory
from pviommu.interfaces.iommufd.user_memory import ADDRESS_LIMIT

from .conftest import fails


@pytest.fixture
def memory() -> LocalMemory:
    return LocalMemory()


def test_a_buffer_is_read_and_written_in_place(memory: LocalMemory) -> None:
    buffer = bytearray(b"0123456789")
    at = memory.add(buffer)

    memory.write(at + 2, b"ab")

    assert buffer == b"01ab456789"
    assert memory.read(at + 1, 3) == b"1ab"
    assert memory.holds(at, 10, writeable=True)


def test_buffers_have_places_of_their_own_with_gaps_between(memory: LocalMemory) -> None:
    first, second = memory.add(1 << 21), memory.add(1)

    assert first % (1 << 21) == second % (1 << 21) == 0
    assert second >= first + (1 << 21) + 4096
    for address, length in ((first + (1 << 21), 1), (first + (1 << 21) - 1, 2), (second, 2), (first - 1, 1)):
        with fails("EFAULT", "not in one buffer"):
            memory.read(address, length)
        assert not memory.holds(address, length, writeable=False)


def test_bytes_cannot_be_written(memory: LocalMemory) -> None:
    at = memory.add(b"abc")

    assert memory.holds(at, 3, writeable=False)
    assert not memory.holds(at, 3, writeable=True)
    with fails("EFAULT", "read-only"):
        memory.write(at, b"x")


def test_a_buffer_that_was_removed_is_not_there(memory: LocalMemory) -> None:
    at = memory.add(16)
    memory.remove(at)

    assert not memory.holds(at, 1, writeable=False)
    with pytest.raises(ValueError, match="no buffer begins"):
        memory.remove(at)


@pytest.mark.parametrize(("size", "address"), [(0, 0x1000), (16, 0x100F), (16, 0xFF1), (2, ADDRESS_LIMIT - 1), (2, -1)])
def test_a_place_that_a_buffer_cannot_have_is_refused(memory: LocalMemory, size: int, address: int) -> None:
    memory.add(16, 0x1000)

    with pytest.raises(ValueError, match=f"buffer of {size} bytes"):
        memory.add(size, address)
    assert memory.add(16, 0x1010) == 0x1010
