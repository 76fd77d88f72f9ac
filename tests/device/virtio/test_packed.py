"""Packed rings (virtio 1.2, section 2.8): what the others do not have, and what a hostile driver may write there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pviommu.guest.virtio import AVAIL, INDIRECT, INDIRECT_DESC, NEXT, RING_EVENT_IDX, RING_PACKED, USED, WRITE
from pviommu.virtio.ring import RingError

from .conftest import DATA, TABLE

Pairs = Callable[..., Any]


def test_a_ring_of_any_size_wraps(pair: Pairs) -> None:
    ring = pair(RING_PACKED, 7)
    for number in range(30):
        buffer_id = ring.driver.add([(DATA, 1)] * (number % 7 + 1))
        assert ring.use_all(number) == 1
        ring.device.publish()
        assert ring.driver.take() == (buffer_id, number)


@pytest.mark.row("virtio", 17)
def test_a_descriptor_whose_flags_have_not_changed_is_not_used(pair: Pairs) -> None:
    ring = pair(RING_PACKED)
    for flags in (0, AVAIL | USED, USED):
        ring.driver.write_descriptor(0, DATA, 1, 0, flags)
        assert not ring.device.peek()

    ring.driver.write_descriptor(0, DATA, 1, 0, AVAIL)
    assert len(ring.device.peek()) == 1


@pytest.mark.row("virtio", 36)
def test_a_list_that_never_ends_breaks_the_ring(pair: Pairs) -> None:
    ring = pair(RING_PACKED)
    for index in range(8):
        ring.driver.write_descriptor(index, DATA, 1, 0, AVAIL | NEXT)

    with pytest.raises(RingError, match="a list of more than 8 descriptors"):
        ring.device.peek()


@pytest.mark.row("virtio", 39)
def test_a_list_that_runs_into_buffers_that_were_fetched_breaks_the_ring(pair: Pairs) -> None:
    ring = pair(RING_PACKED)
    ring.driver.add([(DATA, 1)] * 6)
    ring.device.peek()
    for index in (6, 7):
        ring.driver.write_descriptor(index, DATA, 1, 0, AVAIL | NEXT)

    with pytest.raises(RingError, match="a list of more than 2 descriptors"):
        ring.device.peek(2)


@pytest.mark.row("virtio", 37)
@pytest.mark.parametrize("second", [False, True])
def test_a_table_in_a_list_breaks_the_ring(pair: Pairs, second: bool) -> None:
    ring = pair(RING_PACKED | INDIRECT_DESC)
    if second:
        ring.driver.write_descriptor(1, TABLE, 16, 0, AVAIL | INDIRECT)
        ring.driver.write_descriptor(0, DATA, 1, 0, AVAIL | NEXT)
    else:
        ring.driver.write_descriptor(0, TABLE, 16, 0, AVAIL | INDIRECT | NEXT)

    with pytest.raises(RingError, match="an indirect table in a list"):
        ring.device.peek()


def test_flags_of_a_table_other_than_write_are_ignored(pair: Pairs) -> None:
    ring = pair(RING_PACKED | INDIRECT_DESC)
    ring.driver.add([(DATA, 1)], [(DATA + 8, 2)], table=TABLE)
    ring.memory.write(TABLE + 14, (INDIRECT | NEXT | USED).to_bytes(2, "little"))
    ring.memory.write(TABLE + 16 + 12, b"\xff\xff" + (WRITE | INDIRECT | AVAIL).to_bytes(2, "little"))

    [buffer] = ring.device.peek()

    assert (buffer.readable, buffer.writable, buffer.id) == ([(DATA, 1)], [(DATA + 8, 2)], 0)


@pytest.mark.row("virtio", 8)
def test_the_write_flag_of_a_descriptor_that_refers_to_a_table_is_ignored(pair: Pairs) -> None:
    ring = pair(RING_PACKED | INDIRECT_DESC)
    ring.driver.add([(DATA, 4)], table=TABLE)
    ring.driver.write_descriptor(0, TABLE, 16, 0, AVAIL | INDIRECT | WRITE)

    assert ring.device.peek()[0].readable == [(DATA, 4)]


@pytest.mark.row("virtio", 39)
@pytest.mark.row("virtio", 17)
def test_a_buffer_that_appears_between_two_looks_is_not_taken_half_written(pair: Pairs) -> None:
    """Its flags are seen in a later copy than its address: only what the first look saw is taken from the second."""
    ring = pair(RING_PACKED)
    ring.driver.add([(DATA, 1)])
    reads = []

    def write_the_second() -> None:
        reads.append(None)
        if len(reads) == 2:  # flags of the first one, then the first copy of the ring
            ring.driver.write_descriptor(1, 0xBAD, 1, 1, AVAIL)

    ring.memory.after_read = write_the_second

    assert [each.readable for each in ring.device.peek(2)] == [[(DATA, 1)]]


@pytest.mark.row("virtio", 18)
def test_the_first_used_descriptor_is_written_last(pair: Pairs) -> None:
    ring = pair(RING_PACKED)
    for _ in range(3):
        ring.driver.add([(DATA, 1)])
    ring.use_all()
    ring.device.publish()

    desc = ring.driver.desc
    assert ring.dma.written == [(desc + 24, 8), (desc + 40, 8), (desc + 8, 8)]


@pytest.mark.parametrize("writable", [False, True])
def test_a_used_descriptor_says_whether_something_could_be_written(pair: Pairs, writable: bool) -> None:
    ring = pair(RING_PACKED)
    ring.driver.add([] if writable else [(DATA, 4)], [(DATA, 4)] if writable else [])
    ring.use_all()
    ring.device.publish()

    assert ring.driver.word(ring.driver.desc + 14) == AVAIL | USED | (WRITE if writable else 0)


@pytest.mark.row("virtio", 20)
def test_events_at_a_descriptor_are_for_those_who_negotiated_them(pair: Pairs) -> None:
    for features, wanted in ((0, True), (RING_EVENT_IDX, False)):
        ring = pair(RING_PACKED | features)
        ring.memory.write(ring.driver.driver, (5).to_bytes(2, "little") + (2).to_bytes(2, "little"))
        ring.driver.add([(DATA, 1)])
        ring.use_all()

        assert ring.device.publish() is wanted


@pytest.mark.row("virtio", 20)
def test_an_event_with_the_other_wrap_counter_is_of_the_round_before(pair: Pairs) -> None:
    ring = pair(RING_PACKED | RING_EVENT_IDX, 4)
    for _ in range(3):
        ring.driver.add([(DATA, 1)])
        ring.use_all()
        ring.device.publish()
        ring.driver.take()
    ring.driver.want_interrupt(True)  # at 3, the last of this round
    for _ in range(2):
        ring.driver.add([(DATA, 1)])
    ring.use_all()

    assert ring.device.publish() is True
