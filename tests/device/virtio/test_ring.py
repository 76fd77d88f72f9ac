"""What holds for split and packed rings alike (virtio 1.2, sections 2.6 to 2.8), played by a driver without a guest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from pviommu.dma.fault import DmaPendingError
from pviommu.guest.virtio import INDIRECT_DESC, RING_EVENT_IDX, RING_PACKED
from pviommu.virtio.ring import BATCH, MAX_CHAIN, MAX_DESCRIPTORS, QueueState, RingError, need_event

from .conftest import DATA, TABLE

LAYOUTS = [pytest.param(0, id="split"), pytest.param(RING_PACKED, id="packed")]
NOTIFICATIONS = [pytest.param(0, id="flags"), pytest.param(RING_EVENT_IDX, id="event-index")]
layouts = pytest.mark.parametrize("layout", LAYOUTS)
notifications = pytest.mark.parametrize("events", NOTIFICATIONS)
Pairs = Callable[..., Any]


@pytest.mark.row("virtio", 19)
@layouts
def test_a_buffer_comes_with_its_spans_and_goes_back_with_its_length(pair: Pairs, layout: int) -> None:
    ring = pair(layout)
    buffer_id = ring.driver.add([(DATA, 10), (DATA + 100, 20)], [(DATA + 200, 30)])

    [buffer] = ring.device.peek()
    assert (buffer.id, buffer.readable, buffer.writable) == (
        buffer_id,
        [(DATA, 10), (DATA + 100, 20)],
        [(DATA + 200, 30)],
    )
    ring.device.use(7)
    assert ring.driver.take() is None
    ring.device.publish()

    assert ring.driver.take() == (buffer_id, 7)
    assert ring.driver.take() is None
    assert not ring.device.peek()


@pytest.mark.row("virtio", 16)
@layouts
@pytest.mark.parametrize("size", [1, 2, 8, 32])
def test_buffers_are_used_in_order_however_often_the_ring_wraps(pair: Pairs, layout: int, size: int) -> None:
    ring = pair(layout, size)
    for number in range(5 * size + 3):
        count = number % size + 1
        added = [ring.driver.add([(DATA, 1 + each)]) for each in range(count)]

        assert [each.readable for each in ring.device.peek(count)] == [[(DATA, 1 + each)] for each in range(count)]
        assert ring.device.is_full is (count == size)
        assert ring.use_all(3) == count
        ring.device.publish()

        assert [ring.driver.take() for _ in added] == [(each, 3) for each in added]
    assert ring.driver.take() is None


@pytest.mark.row("virtio", 16)
@layouts
def test_chains_of_several_descriptors_wrap_too(pair: Pairs, layout: int) -> None:
    ring = pair(layout, 8)
    for number in range(40):
        spans = [(DATA + 16 * each, 1 + each) for each in range(number % 3 + 1)]
        ring.driver.add(spans, [(DATA, 5)])

        [buffer] = ring.device.peek()

        assert (buffer.readable, buffer.descriptors) == (spans, len(spans) + 1)
        ring.device.use(0)
        ring.device.publish()
        assert ring.driver.take() is not None


@layouts
def test_an_indirect_table_is_a_buffer_of_one_descriptor(pair: Pairs, layout: int) -> None:
    ring = pair(layout | INDIRECT_DESC)
    spans = [(DATA + 16 * each, 3) for each in range(12)]
    buffer_id = ring.driver.add(spans[:7], spans[7:], table=TABLE)

    [buffer] = ring.device.peek()

    assert (buffer.readable, buffer.writable, buffer.descriptors) == (spans[:7], spans[7:], 1)
    ring.device.use(9)
    ring.device.publish()
    assert ring.driver.take() == (buffer_id, 9)


@pytest.mark.row("virtio", 37)
@layouts
def test_an_indirect_table_that_is_not_negotiated_breaks_the_ring(pair: Pairs, layout: int) -> None:
    ring = pair(layout)
    ring.driver.add([(DATA, 1)], table=TABLE)

    with pytest.raises(RingError, match="not negotiated"):
        ring.device.peek()


@layouts
def test_a_readable_descriptor_after_a_writable_one_breaks_the_ring(pair: Pairs, layout: int) -> None:
    ring = pair(layout | INDIRECT_DESC)
    ring.driver.add([], [(DATA, 1), (DATA, 1)], table=TABLE)
    ring.memory.write(TABLE + 16 + (14 if layout else 12), bytes(2))  # the second one's flags

    with pytest.raises(RingError, match="to read after one to write"):
        ring.device.peek()


@layouts
def test_empty_descriptors_are_no_spans(pair: Pairs, layout: int) -> None:
    ring = pair(layout)
    ring.driver.add([(DATA, 0), (DATA, 4)], [(0, 0)])

    [buffer] = ring.device.peek()

    assert (buffer.readable, buffer.writable, buffer.descriptors) == ([(DATA, 4)], [], 3)


@layouts
@pytest.mark.parametrize(
    ("spans", "text"),
    [
        ([((1 << 64) - 4, 5)], "past the last address"),
        ([(0, 0xFFFFFFFF), (0, 2)], "more than 4 GiB"),
    ],
)
def test_a_buffer_that_no_memory_has_room_for_breaks_the_ring(
    pair: Pairs, layout: int, spans: list[tuple[int, int]], text: str
) -> None:
    ring = pair(layout)
    ring.driver.add(spans)

    with pytest.raises(RingError, match=text):
        ring.device.peek()


@pytest.mark.row("virtio", 37)
@layouts
@pytest.mark.parametrize("length", [0, 15, 17, 16 * MAX_CHAIN + 16, 0xFFFFFFF0])
def test_an_indirect_table_of_a_wrong_size_breaks_the_ring_before_it_is_read(
    pair: Pairs, layout: int, length: int
) -> None:
    ring = pair(layout | INDIRECT_DESC)
    ring.driver.add([(DATA, 1)], table=TABLE)
    ring.memory.write(ring.driver.desc + 8, length.to_bytes(4, "little"))

    with pytest.raises(RingError, match=f"an indirect table of {length} bytes"):
        ring.device.peek()


@layouts
def test_as_many_buffers_as_a_batch_are_fetched_at_once(pair: Pairs, layout: int) -> None:
    ring = pair(layout, 256)
    for _ in range(200):
        ring.driver.add([(DATA, 1)])

    assert len(ring.device.peek()) == BATCH
    requests = ring.memory.requests
    for _ in range(BATCH):
        ring.device.peek()
        ring.device.use(0)

    assert ring.memory.requests == requests


@layouts
def test_large_tables_are_fetched_a_few_at_a_time(pair: Pairs, layout: int) -> None:
    ring = pair(layout | INDIRECT_DESC, 64)
    spans = [(DATA, 1)] * MAX_CHAIN
    for _ in range(40):
        ring.driver.add(spans, table=TABLE)

    assert len(ring.device.peek()) == MAX_DESCRIPTORS // MAX_CHAIN
    assert ring.use_all() == 40


@pytest.mark.row("virtio", 39)
@layouts
def test_what_the_driver_changes_after_it_was_looked_at_does_not_matter(pair: Pairs, layout: int) -> None:
    ring = pair(layout)
    ring.driver.add([(DATA, 4)], [(DATA + 8, 4)])
    [buffer] = ring.device.peek()

    ring.memory.write(ring.driver.desc, b"\xff" * 128)

    assert list(ring.device.peek()) == [buffer]
    assert buffer.readable == [(DATA, 4)]


@layouts
@notifications
def test_dma_that_is_put_off_at_any_point_changes_nothing(pair: Pairs, layout: int, events: int) -> None:
    ring = pair(layout | events | INDIRECT_DESC)
    for _ in range(3):
        ring.driver.add([(DATA, 4)], [(DATA + 8, 4)], table=TABLE)

    def patiently(call: Callable[[], object]) -> object:
        for tries in range(20):
            ring.memory.pending = 0
            try:
                ring.memory.pending = max(0, 3 - tries)
                return call()
            except DmaPendingError:
                continue
        raise AssertionError("it never ends")

    for _ in range(3):
        patiently(ring.device.peek)
        ring.device.use(4)
    wanted = patiently(ring.device.publish)

    assert wanted is True
    assert [ring.driver.take() is not None for _ in range(4)] == [True, True, True, False]
    assert patiently(ring.device.ask) is True


@pytest.mark.row("virtio", 10)
@layouts
@notifications
def test_the_driver_gets_an_interrupt_exactly_if_it_wants_one(pair: Pairs, layout: int, events: int) -> None:
    ring = pair(layout | events, 4)
    for number in range(30):
        ring.driver.want_interrupt(number % 3 == 0)
        ring.driver.add([(DATA, 1)])
        ring.use_all()

        assert ring.device.publish() is (number % 3 == 0), number
        assert ring.driver.take() is not None
        assert ring.device.publish() is False


@pytest.mark.row("virtio", 11)
@layouts
def test_an_interrupt_at_an_index_comes_with_the_batch_that_reaches_it(pair: Pairs, layout: int) -> None:
    ring = pair(layout | RING_EVENT_IDX, 8)
    ring.driver.want_interrupt(True)
    for _ in range(3):
        ring.driver.add([(DATA, 1)])
    ring.use_all()
    assert ring.device.publish() is True

    ring.driver.add([(DATA, 1)])
    ring.use_all()

    assert ring.device.publish() is False  # the index is past


@layouts
@notifications
def test_a_driver_that_was_asked_notifies_and_one_that_was_hushed_does_not(
    pair: Pairs, layout: int, events: int
) -> None:
    ring = pair(layout | events, 4)
    for _ in range(12):
        assert ring.device.ask() is True
        ring.driver.add([(DATA, 1)])
        assert ring.driver.needs_notification()

        ring.device.hush()
        ring.driver.add([(DATA, 1)])
        assert not ring.driver.needs_notification()

        assert ring.use_all() == 2
        ring.device.publish()
        ring.driver.take()
        ring.driver.take()


@layouts
@notifications
def test_a_buffer_that_comes_while_the_driver_is_asked_is_found(pair: Pairs, layout: int, events: int) -> None:
    ring = pair(layout | events)
    written = len(ring.dma.written)

    def add() -> None:
        if len(ring.dma.written) == written:
            ring.driver.add([(DATA, 1)])
            ring.memory.after_read = lambda: None

    ring.memory.after_read = add
    assert not ring.device.peek()  # it comes right after this look

    assert ring.device.ask() is False
    assert ring.state.asked is False
    assert ring.use_all() == 1


@layouts
@notifications
def test_another_device_goes_on_from_the_state(pair: Pairs, layout: int, events: int) -> None:
    ring = pair(layout | events, 8)
    for turn in range(20):
        ids = [ring.driver.add([(DATA, turn + 1)]) for _ in range(3)]
        ring.device.peek(3)
        ring.device.use(1)
        saved = msgspec.json.encode(ring.state)

        ring.state = msgspec.json.decode(saved, type=QueueState)
        ring.device = ring.ring_of(ring.state)
        assert ring.use_all(2) == 2
        ring.device.publish()

        assert [ring.driver.take() for _ in ids] == [(ids[0], 1), (ids[1], 2), (ids[2], 2)]


@pytest.mark.row("virtio", 11)
@pytest.mark.parametrize(
    ("event", "new", "old", "wanted"),
    [
        (0, 1, 0, True),
        (0, 0, 0, False),
        (1, 1, 0, False),
        (0, 3, 1, False),
        (2, 3, 0, True),
        (0xFFFF, 0, 0xFFFF, True),
        (0xFFFE, 2, 0xFFFF, False),
        (0, 2, 0xFFFF, True),
    ],
)
def test_an_event_is_wanted_if_it_is_among_the_new_entries(event: int, new: int, old: int, wanted: bool) -> None:
    assert need_event(event, new, old) is wanted
