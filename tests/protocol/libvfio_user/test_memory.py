"""Guest memory: copies and views of what is mapped, messages for what is not, and what the client takes away."""

from __future__ import annotations

import errno
from collections.abc import Callable
from ctypes import c_byte
from pathlib import Path

import pytest

from libvfio_user import ArgumentError, Device, DmaRange, Library, Region, StateError, VfuError
from vfio_user import DmaMapFlags, RemoteError
from vfio_user.client import Client

from .conftest import PAGE, Beside, Card

Attach = Callable[[Device], Beside]
GUEST = 0x10_0000


class Noting(Card):
    def dma_mapped(self, memory: DmaRange) -> None:
        self.told.append(("mapped", memory))

    def dma_unmapped(self, memory: DmaRange) -> None:
        self.told.append(("unmapped", memory.address))


@pytest.fixture
def card(library: Library, tmp_path: Path) -> Card:  # closed by the fixture below
    return Noting(tmp_path / "card.sock", library).setup()


@pytest.fixture
def it(card: Card, beside: Attach, memory: int):  # type: ignore[no-untyped-def]
    """Two ranges one after the other, of file pages 2 and 3 and of 0 and 1."""
    with card:
        made = beside(card)
        made.during(lambda: made.client.dma_map(GUEST, 2 * PAGE, memory, 2 * PAGE))
        made.during(lambda: made.client.dma_map(GUEST + 2 * PAGE, 2 * PAGE, memory, 0))
        yield made


def test_ranges_are_told_and_known(card: Card, it: Beside) -> None:
    first = card.ranges[GUEST]
    assert first == DmaRange(GUEST, 2 * PAGE, first.pointer, True, True, PAGE)
    assert first.is_mapped
    assert card.told[0] == ("mapped", first)
    it.during(lambda: it.client.dma_unmap(GUEST, 2 * PAGE))
    assert card.told[-1] == ("unmapped", GUEST)
    assert list(card.ranges) == [GUEST + 2 * PAGE]


def test_copies_go_over_the_end_of_a_range(card: Card, it: Beside) -> None:
    assert card.read_memory(GUEST + 2 * PAGE - 2, 4) == b"\3\3\0\0"
    card.write_memory(GUEST + 2 * PAGE - 1, b"ab")
    assert card.read_memory(GUEST + 2 * PAGE - 2, 4) == b"\3ab\0"


def test_a_view_is_the_memory_itself(card: Card, it: Beside) -> None:
    with card.view(GUEST, 4, writable=True) as view:
        view[1:3] = b"xy"
    assert card.read_memory(GUEST, 4) == b"\2xy\2"
    with pytest.raises(ValueError, match="released"):
        view[0]
    with card.view(GUEST, 4) as view, pytest.raises(TypeError, match="read-only"):
        view[0] = 1


@pytest.mark.parametrize(
    ("address", "size", "number"),
    [(0, 1, errno.ENOENT), (GUEST - 1, 2, errno.ENOENT), (GUEST + 4 * PAGE - 1, 2, errno.ENOENT)],
)
def test_memory_that_nobody_registered_is_enoent(card: Card, it: Beside, address: int, size: int, number: int) -> None:
    with pytest.raises(VfuError, match="vfu_addr_to_sgl") as caught:
        card.read_memory(address, size)
    assert caught.value.errno == number


def test_a_view_lies_in_one_range(card: Card, it: Beside) -> None:
    with pytest.raises(ArgumentError, match=r"memory 0x101ffe\+0x4 is not within one range"):
        with card.view(GUEST + 2 * PAGE - 2, 4):
            raise AssertionError


def test_memory_that_may_only_be_read_is_eacces(card: Card, it: Beside, memory: int) -> None:
    it.during(lambda: it.client.dma_map(0x2000, PAGE, memory, 0, DmaMapFlags.READ))
    assert card.read_memory(0x2000, 1) == b"\0"
    with pytest.raises(VfuError) as caught:
        card.write_memory(0x2000, b"1")
    assert caught.value.errno == errno.EACCES


@pytest.mark.parametrize(("address", "size"), [(GUEST, 0), (-1, 1), (1 << 64, 1), ((1 << 64) - 1, 2)])
def test_a_range_that_is_none_is_refused(card: Card, it: Beside, address: int, size: int) -> None:
    with pytest.raises(ArgumentError, match="memory"):
        with card.view(address, size):
            raise AssertionError


def test_a_view_ends_when_the_client_takes_the_memory_away(card: Card, it: Beside) -> None:
    with card.view(GUEST, PAGE) as view, card.view(GUEST + 2 * PAGE, 1) as other:
        it.during(lambda: it.client.dma_unmap(GUEST, 2 * PAGE))
        with pytest.raises(ValueError, match="released"):
            view[0]
        assert other[0] == 0


def test_a_view_ends_when_the_client_goes(card: Card, it: Beside) -> None:
    with card.view(GUEST, 1) as view:
        it.leave()
        with pytest.raises(ValueError, match="released"):
            view[0]
    assert card.ranges == {}


def test_a_view_ends_with_the_device(card: Card, it: Beside) -> None:
    with card.view(GUEST, 1) as view:
        card.close()
        with pytest.raises(ValueError, match="released"):
            view[0]


@pytest.mark.parametrize("make", [memoryview, lambda view: view[1:], lambda view: (c_byte * 4).from_buffer(view)])
def test_something_made_of_a_view_that_outlives_the_memory_is_logged(
    card: Card, it: Beside, caplog: pytest.LogCaptureFixture, make: Callable[[memoryview], object]
) -> None:
    with card.view(GUEST, PAGE, writable=True) as view:
        made = make(view)
        it.during(lambda: it.client.dma_unmap(GUEST, 2 * PAGE))
    assert "a view of 0x100000+0x1000 has ended, and something still refers to it" in caplog.text
    del made


def test_a_view_that_was_used_up_is_not_logged(card: Card, it: Beside, caplog: pytest.LogCaptureFixture) -> None:
    with card.view(GUEST, PAGE) as view:
        assert view[1:3] == b"\2\2"
    assert caplog.text == ""


def answer(client: Client, data: bytes, error: int = 0) -> bytes:
    """Serve one DMA_READ or DMA_WRITE of the device; what it sent."""
    frame = client.receive()
    header = frame.header
    body = frame.payload[:16] + data
    client.send(
        b"".join(
            (
                header.id.to_bytes(2, "little"),
                header.command.to_bytes(2, "little"),
                *(value.to_bytes(4, "little") for value in (16 + len(body), 0x21 if error else 1, error)),
                body,
            )
        )
    )
    return frame.payload


def test_memory_without_a_descriptor_is_reached_by_messages(card: Card, it: Beside) -> None:
    it.during(lambda: it.client.dma_map(0x5000, PAGE))
    asked = it.pool.submit(lambda: answer(it.client, b"abcd"))
    assert card.read_memory(0x5000, 4) == b"abcd"
    assert asked.result() == (0x5000).to_bytes(8, "little") + (4).to_bytes(8, "little")

    told = it.pool.submit(lambda: answer(it.client, b""))
    card.write_memory(0x5000, b"wxyz")
    assert told.result()[16:] == b"wxyz"


def test_the_client_serves_messages_while_nothing_else_happens(card: Card, it: Beside) -> None:
    memory = bytearray(b"guest" * PAGE)
    it.during(lambda: it.client.dma_map(0x5000, PAGE, memory=memory))
    asked = it.pool.submit(it.client.serve, 10)
    assert card.read_memory(0x5000, 7) == b"guestgu"
    assert asked.result() == 1
    told = it.pool.submit(it.client.serve, 10)
    card.write_memory(0x5000, b"card")
    assert (told.result(), memory[:5]) == (1, b"cardt")


class Fetching(Card):
    """Puts what the guest has at 0x5000 where the client writes."""

    def write(self, region: Region, offset: int, data: bytes) -> None:
        super().write(region, offset, self.read_memory(0x5000, len(data)))


def test_the_client_serves_messages_between_its_request_and_the_reply(
    library: Library, tmp_path: Path, beside: Attach
) -> None:
    with Fetching(tmp_path / "fetching.sock", library) as card:
        it = beside(card.setup())
        it.during(lambda: it.client.dma_map(0x5000, PAGE, memory=bytearray(b"guest" * PAGE)))
        it.during(lambda: it.client.region_write(Region.BAR2, 3, bytes(5)))
        assert it.during(lambda: it.client.region_read(Region.BAR2, 3, 5)) == b"guest"
        it.during(lambda: it.client.dma_unmap(0x5000, PAGE))
        it.during(lambda: it.client.dma_map(0x5000, PAGE))
        with pytest.raises(RemoteError) as caught:
            it.during(lambda: it.client.region_write(Region.BAR2, 3, bytes(5)))
        assert caught.value.errno == errno.ENODEV
        it.leave()


def test_the_clients_refusal_of_a_message_is_an_error(card: Card, it: Beside) -> None:
    it.during(lambda: it.client.dma_map(0x5000, PAGE))
    refused = it.pool.submit(lambda: answer(it.client, b"", errno.EPERM))
    with pytest.raises(VfuError, match="vfu_sgl_write") as caught:
        card.write_memory(0x5000, b"wxyz")
    refused.result()
    assert caught.value.errno == errno.EPERM


def test_messages_of_the_old_library_reach_the_beginning_of_a_range_only(card: Card, it: Beside) -> None:
    it.during(lambda: it.client.dma_map(0x5000, PAGE))
    with pytest.raises(VfuError, match="reaches 0x5004 only at the beginning of its range") as caught:
        card.read_memory(0x5004, 4)
    assert caught.value.errno == errno.ENOTSUP


def test_a_view_of_memory_without_a_descriptor_is_efault(card: Card, it: Beside) -> None:
    it.during(lambda: it.client.dma_map(0x5000, PAGE))
    with pytest.raises(VfuError, match="vfu_sgl_get") as caught:
        with card.view(0x5000, 4):
            raise AssertionError
    assert caught.value.errno == errno.EFAULT


def test_without_dma_there_is_no_memory(library: Library, tmp_path: Path) -> None:
    with Card(tmp_path / "no.sock", library) as card:
        card.pci(1, 2)
        card.realize()
        with pytest.raises(StateError, match="DMA is not set up"):
            card.read_memory(0, 1)


@pytest.mark.parametrize(("address", "size"), [(GUEST, -5), (GUEST, 0), (-1, 1), ((1 << 64) - 1, 2)])
def test_what_is_no_memory_cannot_be_read(card: Card, it: Beside, address: int, size: int) -> None:
    with pytest.raises(ArgumentError, match="is not at least one byte below 2\\^64"):
        card.read_memory(address, size)


def test_nothing_cannot_be_written(card: Card, it: Beside) -> None:
    with pytest.raises(ArgumentError, match="is not at least one byte"):
        card.write_memory(GUEST, b"")
