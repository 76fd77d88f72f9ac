import os

import pytest

from pviommu.dma.fault import Fault, FaultKind
from pviommu.engine import Access
from pviommu.interfaces.pv.events import EventRing, EventRingState
from pviommu.pci.shared_memory import SharedMemory
from pviommu_abi.shared import (
    CACHE_LINE,
    EVENT_ENTRIES,
    EVENT_INDEX_OFFSET,
    EVENT_OFFSET,
    SHARED_BAR_SIZE,
    Event,
    EventReason,
)

from ...conftest import Inputs

CONSUMER = EVENT_INDEX_OFFSET // 4
ARM = CONSUMER + 1
PRODUCER = CONSUMER + CACHE_LINE // 4
LOST = PRODUCER + 1


@pytest.fixture
def shared():
    memory = SharedMemory("events", SHARED_BAR_SIZE)
    yield memory
    memory.close()


@pytest.fixture
def ring(shared):
    return EventRing(shared, Inputs())


def put(ring, count=1):
    return [ring.put(Event(ring.sequence, EventReason.NOT_MAPPED, 1)) for _ in range(count)]


def sequence_at(shared, place):
    return Event.unpack(shared.view, EVENT_OFFSET + place * Event.SIZE).sequence


def test_an_event_is_written_where_the_index_says_and_counted(ring, shared):
    put(ring, 3)
    assert [sequence_at(shared, place) for place in range(3)] == [0, 1, 2]
    assert (shared.words[PRODUCER], shared.words[LOST]) == (3, 0)


def test_the_interrupt_is_asked_for_only_when_the_index_passes_the_armed_one(ring, shared):
    shared.words[ARM] = 2
    assert put(ring, 5) == [False, False, True, False, False]


@pytest.mark.row("defect", "B5")
def test_a_full_ring_counts_what_it_loses_and_overwrites_nothing(ring, shared):
    put(ring, EVENT_ENTRIES)
    before = bytes(shared.view[EVENT_OFFSET : EVENT_OFFSET + EVENT_ENTRIES * Event.SIZE])
    shared.words[ARM] = EVENT_ENTRIES
    assert put(ring, 3) == [False] * 3
    assert bytes(shared.view[EVENT_OFFSET : EVENT_OFFSET + EVENT_ENTRIES * Event.SIZE]) == before
    assert (ring.lost, shared.words[LOST], shared.words[PRODUCER]) == (3, 3, EVENT_ENTRIES)


def test_a_gap_in_the_sequence_shows_what_was_lost(ring, shared):
    put(ring, EVENT_ENTRIES + 3)
    shared.words[CONSUMER] = 1
    put(ring)
    assert sequence_at(shared, 0) == EVENT_ENTRIES + 3
    assert sequence_at(shared, EVENT_ENTRIES - 1) == EVENT_ENTRIES - 1


@pytest.mark.parametrize("nonsense", [1, 0x80000000, 0xFFFFFF00 - 1])
@pytest.mark.row("defect", "B3")
@pytest.mark.row("defect", "B5")
def test_an_impossible_consumer_index_loses_events_and_overwrites_nothing(ring, shared, nonsense):
    shared.words[CONSUMER] = nonsense
    assert put(ring) == [False]
    assert (ring.lost, shared.words[PRODUCER]) == (1, 0)


def test_reset_begins_anew(ring, shared):
    put(ring, EVENT_ENTRIES + 1)
    ring.reset()
    shared.clear()
    put(ring)
    assert (ring.lost, ring.sequence, shared.words[PRODUCER], sequence_at(shared, 0)) == (0, 1, 1, 0)


def test_the_event_vector_is_raised_only_when_the_guest_armed_for_it(driver):
    fd = driver.msix(0)
    try:
        driver.words[ARM] = 1
        driver.iommu.stream(1).report(Fault(FaultKind.NOT_MAPPED, 1, 0x1000, Access.READ, 1))
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fd)
        driver.iommu.stream(1).report(Fault(FaultKind.NOT_MAPPED, 1, 0x1000, Access.READ, 1))
        assert os.eventfd_read(fd) == 1
    finally:
        os.close(fd)


def test_a_ring_goes_on_where_another_one_was_saved(ring, shared):
    put(ring, EVENT_ENTRIES + 2)
    state = ring.save()
    assert state == EventRingState(EVENT_ENTRIES, EVENT_ENTRIES + 2, 2)
    other = EventRing(shared, Inputs())

    other.load(state)
    shared.words[CONSUMER] = EVENT_ENTRIES
    put(other)

    assert other.save() == EventRingState(EVENT_ENTRIES + 1, EVENT_ENTRIES + 3, 2)
    assert (shared.words[PRODUCER], shared.words[LOST]) == (EVENT_ENTRIES + 1, 2)
    assert Event.unpack(shared.view, EVENT_OFFSET).sequence == EVENT_ENTRIES + 2
    other.reset()
    assert other.save() == EventRingState()
