"""The XOR endpoint: an example with an option, short enough to read at once."""

from __future__ import annotations

import inspect
import os
from typing import Any

import pytest

from pviommu.endpoints import xor
from pviommu.endpoints.xor import Xor
from pviommu.engine import Access
from pviommu_abi.xor import MAX_LENGTH, REGISTER, Status

KEY = 0x5A
IOVA = 0x12_3450_0000
"""More than 32 bits."""
PAGE = 4096


@pytest.fixture
def device(guest: Any) -> Xor:
    device = guest.make(Xor, "xor", 1)
    guest.plug(device)
    guest.map(IOVA >> 12, 0x20, MAX_LENGTH // PAGE)
    return device


def write(device: Xor, name: str, value: int) -> None:
    register = REGISTER[name]
    device.region_write(0, register.offset, value.to_bytes(register.size, "little"))


def read(device: Xor, name: str) -> int:
    register = REGISTER[name]
    return int.from_bytes(device.region_read(0, register.offset, register.size), "little")


def start(device: Xor, address: int, length: int) -> None:
    write(device, "ADDRESS", address)
    write(device, "LENGTH", length)
    write(device, "START", 1)


def test_what_is_written_after_the_start_is_of_the_next_one(guest: Any, device: Xor) -> None:
    guest.poke(0x20000, bytes(PAGE))
    start(device, IOVA, 16)
    start(device, IOVA + 0x100, 1)
    write(device, "LENGTH", 256 << 20)
    write(device, "ADDRESS", 0)

    device.step()

    assert read(device, "STATUS") == Status.DONE
    assert guest.peek(0x20000, PAGE) == bytes([KEY]) * 16 + bytes(PAGE - 16)


def test_it_is_short() -> None:
    assert len(inspect.getsource(xor).splitlines()) <= 60


def test_every_byte_of_the_buffer_and_no_other_is_xored(guest: Any, device: Xor) -> None:
    fd = guest.arm_interrupt(device)
    data = bytes(range(256)) * 2
    guest.poke(0x20000, data)
    start(device, IOVA + 1, 300)
    assert read(device, "STATUS") == Status.BUSY

    assert [device.step(), device.step()] == [True, False]

    assert read(device, "STATUS") == Status.DONE
    expected = data[:1] + bytes(byte ^ KEY for byte in data[1:301]) + data[301:]
    assert guest.peek(0x20000, 512) == expected
    assert os.eventfd_read(fd) == 1
    os.close(fd)


@pytest.mark.parametrize("length", [0, MAX_LENGTH + 1])
def test_a_length_that_is_not_allowed_starts_nothing(device: Xor, length: int) -> None:
    start(device, IOVA, length)

    assert read(device, "STATUS") == Status.IDLE
    assert device.step() is False


def test_the_longest_buffer_is_one_request(guest: Any, device: Xor) -> None:
    start(device, IOVA, MAX_LENGTH)

    assert device.step() is True

    assert guest.peek(0x20000, MAX_LENGTH) == bytes([KEY]) * MAX_LENGTH
    assert guest.counters.dma_requests == 2


@pytest.mark.parametrize("allowed", [Access.READ, Access.WRITE])
def test_a_buffer_that_is_not_readable_and_writable_stays_as_it_is(guest: Any, device: Xor, allowed: Access) -> None:
    guest.map(0x500, 0x80, 1, allowed)
    guest.poke(0x80000, b"data")
    start(device, 0x500000, 4)

    assert device.step() is True

    assert (read(device, "STATUS"), guest.peek(0x80000, 4)) == (Status.REFUSED, b"data")
    assert [event.iova for event in guest.events()] == [0x500000]


def test_what_is_cancelled_is_not_done(guest: Any, device: Xor) -> None:
    start(device, IOVA, 4)

    device.cancel()

    assert device.step() is False
    assert (read(device, "STATUS"), guest.peek(0x20000, 4)) == (Status.CANCELLED, bytes(4))
    device.cancel()
    assert read(device, "STATUS") == Status.CANCELLED


def test_a_reset_clears_all_registers_but_the_key(device: Xor) -> None:
    start(device, IOVA, 4)

    device.reset()

    assert [read(device, name) for name in REGISTER] == [KEY, 0, 0, 0, Status.IDLE]
    assert device.step() is False
