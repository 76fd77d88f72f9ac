"""Split rings (virtio 1.2, section 2.7): what the others do not have, and what a hostile driver may write there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pviommu.guest.virtio import INDIRECT, INDIRECT_DESC, NEXT, RING_EVENT_IDX, WRITE
from pviommu.virtio.ring import MAX_DESCRIPTORS, RingError

from .conftest import DATA, TABLE

Pairs = Callable[..., Any]


@pytest.mark.row("virtio", 36)
def test_a_chain_that_is_a_loop_breaks_the_ring(pair: Pairs) -> None:
    ring = pair()
    ring.driver.write_descriptor(0, DATA, 1, NEXT, 1)
    ring.driver.write_descriptor(1, DATA, 1, NEXT, 0)
    ring.driver.offer(0)

    with pytest.raises(RingError, match="a chain of more than 8 descriptors"):
        ring.device.peek()


@pytest.mark.row("virtio", 38)
@pytest.mark.parametrize("where", ["head", "next"])
def test_an_index_past_the_table_breaks_the_ring(pair: Pairs, where: str) -> None:
    ring = pair()
    ring.driver.write_descriptor(0, DATA, 1, NEXT, 8)
    ring.driver.offer(8 if where == "head" else 0)

    with pytest.raises(RingError, match="descriptor 8 of a table of 8"):
        ring.device.peek()


@pytest.mark.row("virtio", 38)
@pytest.mark.parametrize("idx", [9, 0x8000, 0xFFFF])
def test_an_available_index_that_is_further_than_the_ring_is_long_breaks_it(pair: Pairs, idx: int) -> None:
    ring = pair()
    ring.driver.put_word(ring.driver.driver + 2, idx)

    with pytest.raises(RingError, match=f"available idx {idx}"):
        ring.device.peek()


@pytest.mark.row("virtio", 38)
def test_buffers_that_were_fetched_count_too_when_the_index_runs_away(pair: Pairs) -> None:
    ring = pair()
    for _ in range(5):
        ring.driver.add([(DATA, 1)])
    ring.device.peek()
    ring.driver.put_word(ring.driver.driver + 2, 9)

    with pytest.raises(RingError, match="available idx 9"):
        ring.device.peek(6)


def test_the_wrap_of_16_bits_is_no_end(pair: Pairs) -> None:
    ring = pair(RING_EVENT_IDX)
    ring.driver.avail_idx = ring.driver.last_used = ring.state.next_avail = ring.state.next_used = 0xFFF8
    ring.driver.put_word(ring.driver.device + 2, 0xFFF8)
    for number in range(20):
        ring.driver.want_interrupt(True)
        buffer_id = ring.driver.add([(DATA, 1)])
        assert ring.use_all(number) == 1
        assert ring.device.publish() is True
        assert ring.driver.take() == (buffer_id, number)
    assert ring.state.next_used == 0xFFF8 + 20 - 0x10000


def test_a_full_ring_is_all_right(pair: Pairs) -> None:
    ring = pair()
    for _ in range(8):
        ring.driver.add([(DATA, 1)])

    assert ring.use_all() == 8


@pytest.mark.row("virtio", 37)
def test_an_indirect_table_in_an_indirect_table_breaks_the_ring(pair: Pairs) -> None:
    ring = pair(INDIRECT_DESC)
    ring.driver.add([(DATA, 1)], table=TABLE)
    ring.memory.write(TABLE + 12, INDIRECT.to_bytes(2, "little"))

    with pytest.raises(RingError, match="an indirect table in an indirect table"):
        ring.device.peek()


def test_a_descriptor_with_indirect_and_next_breaks_the_ring(pair: Pairs) -> None:
    ring = pair(INDIRECT_DESC)
    ring.driver.write_descriptor(0, TABLE, 16, INDIRECT | NEXT, 1)
    ring.driver.offer(0)

    with pytest.raises(RingError, match="INDIRECT and NEXT"):
        ring.device.peek()


@pytest.mark.row("virtio", 8)
def test_the_write_flag_of_a_descriptor_that_refers_to_a_table_is_ignored(pair: Pairs) -> None:
    ring = pair(INDIRECT_DESC)
    ring.driver.add([(DATA, 4)], table=TABLE)
    ring.driver.write_descriptor(0, TABLE, 16, INDIRECT | WRITE)

    assert ring.device.peek()[0].readable == [(DATA, 4)]


@pytest.mark.row("virtio", 9)
def test_normal_descriptors_may_be_followed_by_a_table(pair: Pairs) -> None:
    ring = pair(INDIRECT_DESC)
    ring.driver.add([(DATA + 8, 2)], [(DATA + 16, 3)], table=TABLE)
    ring.driver.write_descriptor(3, DATA, 1, NEXT, 0)
    ring.driver.put_word(ring.driver.driver + 4, 3)

    [buffer] = ring.device.peek()

    assert buffer.readable == [(DATA, 1), (DATA + 8, 2)]
    assert (buffer.writable, buffer.id, buffer.descriptors) == ([(DATA + 16, 3)], 3, 2)


@pytest.mark.row("virtio", 36)
@pytest.mark.parametrize("following", [0, 2, 0xFFFF])
def test_a_table_whose_chain_is_a_loop_or_leaves_it_breaks_the_ring(pair: Pairs, following: int) -> None:
    ring = pair(INDIRECT_DESC)
    ring.driver.add([(DATA, 1), (DATA, 1)], table=TABLE)
    ring.memory.write(TABLE + 12, NEXT.to_bytes(2, "little") + following.to_bytes(2, "little"))

    with pytest.raises(
        RingError, match="more than 2 descriptors" if following == 0 else f"descriptor {following} of a table of 2"
    ):
        ring.device.peek()


@pytest.mark.row("virtio", 12)
def test_the_used_index_is_written_after_the_entries(pair: Pairs) -> None:
    ring = pair()
    for _ in range(3):
        ring.driver.add([(DATA, 1)])
    ring.use_all()
    ring.device.publish()

    used = ring.driver.device
    assert ring.dma.written == [(used + 4, 24), (used + 2, 2)]


@pytest.mark.row("virtio", 14)
@pytest.mark.parametrize("events", [0, RING_EVENT_IDX])
def test_the_device_writes_only_flags_that_there_are(pair: Pairs, events: int) -> None:
    ring = pair(events)
    flags = set()
    for _ in range(10):
        ring.device.ask()
        flags.add(ring.driver.word(ring.driver.device))
        ring.device.hush()
        flags.add(ring.driver.word(ring.driver.device))

    assert flags == ({0} if events else {0, 1})


@pytest.mark.row("virtio", 10)
def test_the_used_event_is_ignored_without_event_index(pair: Pairs) -> None:
    ring = pair()
    ring.driver.put_word(ring.driver.driver + 4 + 2 * 8, 0x1234)
    ring.driver.add([(DATA, 1)])
    ring.use_all()

    assert ring.device.publish() is True


@pytest.mark.row("virtio", 11)
def test_the_flags_are_ignored_with_event_index(pair: Pairs) -> None:
    ring = pair(RING_EVENT_IDX)
    ring.driver.put_word(ring.driver.driver, 1)
    ring.driver.add([(DATA, 1)])
    ring.use_all()

    assert ring.device.publish() is True


def test_chains_that_overlap_are_fetched_a_few_at_a_time(pair: Pairs) -> None:
    """A driver can offer more descriptors than its ring has; a look at it takes no longer."""
    ring = pair(0, 256)
    for index in range(256):
        ring.driver.write_descriptor(index, DATA, 1, NEXT if index < 255 else 0, index + 1)
    for _ in range(64):
        ring.driver.offer(0)

    assert len(ring.device.peek()) == MAX_DESCRIPTORS // 256 + 1
    assert ring.use_all() == 64


def test_the_same_head_twice_is_two_buffers(pair: Pairs) -> None:
    ring = pair()
    ring.driver.add([(DATA, 1)])
    ring.driver.offer(0)

    assert ring.use_all() == 2
    ring.device.publish()
    assert [ring.driver.take(), ring.driver.take(), ring.driver.take()] == [(0, 0), (0, 0), None]
