import pytest

from pviommu.interfaces.pv.ring import CommandRing, CommandRingState, passed
from pviommu.pci.shared_memory import SharedMemory
from pviommu_abi.shared import CACHE_LINE, RING_AREA_OFFSET, RING_INDEX_STRIDE, SHARED_BAR_SIZE
from pviommu_abi.slots import PAYLOAD_OFFSET, SLOT_SIZE, Slot

from ...conftest import Inputs

NUMBER = 2
PRODUCER = NUMBER * RING_INDEX_STRIDE // 4
COMPLETION_EVENT = PRODUCER + 1
COMPLETED = PRODUCER + CACHE_LINE // 4
DOORBELL_EVENT = COMPLETED + 1
ENTRIES = 16
LAST = 0xFFFFFFFF


@pytest.fixture
def shared():
    memory = SharedMemory("ring", SHARED_BAR_SIZE)
    yield memory
    memory.close()


@pytest.fixture
def ring(shared):
    ring = CommandRing(NUMBER, shared, Inputs())
    ring.enable(RING_AREA_OFFSET, ENTRIES)
    return ring


def slot_at(place):
    return RING_AREA_OFFSET + place * SLOT_SIZE


@pytest.mark.parametrize(
    ("event", "new", "old", "expected"),
    [
        (4, 5, 4, True),
        (5, 5, 4, False),
        (3, 5, 4, False),
        (4, 8, 4, True),
        (7, 8, 4, True),
        (8, 8, 4, False),
        (LAST, 0, LAST, True),
        (LAST, 3, LAST - 2, True),
        (0, 3, LAST, True),
        (3, 3, LAST, False),
        (4, 4, 4, False),
    ],
)
def test_an_index_passes_an_event_as_numbers_that_wrap(event, new, old, expected):
    assert passed(event, new, old) is expected


def test_pending_is_what_was_submitted_and_not_completed(ring, shared):
    shared.words[PRODUCER] = 3
    assert ring.pending() == 3
    ring.publish(2)
    assert ring.pending() == 1
    assert shared.words[COMPLETED] == 2


def test_a_ring_that_is_off_has_nothing_pending(ring, shared):
    shared.words[PRODUCER] = 3
    ring.disable()
    assert (ring.pending(), ring.enabled) == (0, False)


@pytest.mark.row("defect", "B3")
def test_indices_wrap_at_32_bits(ring, shared):
    ring.completed = LAST - 1
    shared.words[PRODUCER] = 2
    for place, mark in ((14, 1), (15, 2), (0, 3), (1, 4)):
        shared.words[slot_at(place) // 4 + 1] = mark
    assert ring.pending() == 4
    first = ring.fetch(16)
    assert [Slot.unpack(first, at).sequence for at in range(0, len(first), SLOT_SIZE)] == [1, 2]
    ring.publish(2)
    assert shared.words[COMPLETED] == 0
    second = ring.fetch(ring.pending())
    assert [Slot.unpack(second, at).sequence for at in range(0, len(second), SLOT_SIZE)] == [3, 4]


@pytest.mark.row("defect", "D11")
def test_a_full_ring_is_possible(ring, shared):
    shared.words[PRODUCER] = ENTRIES
    assert (ring.pending(), ring.broken) == (ENTRIES, False)
    assert len(ring.fetch(ENTRIES)) == ENTRIES * SLOT_SIZE


@pytest.mark.parametrize("producer", [ENTRIES + 1, LAST, 0x80000000])
@pytest.mark.row("defect", "B3")
@pytest.mark.row("defect", "B4")
def test_an_impossible_producer_index_breaks_the_ring_for_good(ring, shared, producer):
    shared.words[PRODUCER] = producer
    assert (ring.pending(), ring.broken) == (0, True)
    shared.words[PRODUCER] = 1
    assert (ring.pending(), ring.broken) == (0, True)


def test_enabling_again_repairs_a_broken_ring(ring, shared):
    shared.words[PRODUCER] = LAST
    ring.pending()
    shared.words[PRODUCER] = 0
    ring.disable()
    assert ring.is_rewound()
    ring.enable(RING_AREA_OFFSET, ENTRIES)
    shared.words[PRODUCER] = 1
    assert (ring.pending(), ring.broken) == (1, False)


@pytest.mark.row("defect", "B2")
def test_fetched_slots_are_a_copy(ring, shared):
    shared.words[PRODUCER] = 1
    fetched = ring.fetch(1)
    shared.view[slot_at(0) : slot_at(1)] = b"\xff" * SLOT_SIZE
    assert fetched == bytes(SLOT_SIZE)


def test_the_outcome_lies_in_the_slot_before_the_index_moves(ring, shared):
    shared.words[PRODUCER] = 2
    ring.finish(1, -22, 77, b"out")
    slot = Slot.unpack(shared.view, slot_at(1))
    start = slot_at(1) + PAYLOAD_OFFSET
    assert (slot.result, slot.completed, bytes(shared.view[start : start + 4])) == (-22, 77, b"out\0")
    assert shared.words[COMPLETED] == 0


def test_completion_interrupts_only_when_the_index_passes_the_guests_event(ring, shared):
    shared.words[COMPLETION_EVENT] = 1
    assert [ring.publish(1), ring.publish(1), ring.publish(1)] == [False, True, False]
    shared.words[COMPLETION_EVENT] = 4
    assert ring.publish(5) is True


def test_the_doorbell_is_asked_for_only_while_armed(ring, shared):
    shared.words[PRODUCER] = 3
    ring.publish(3)
    ring.arm()
    assert passed(shared.words[DOORBELL_EVENT], 4, 3)
    ring.disarm()
    assert not passed(shared.words[DOORBELL_EVENT], 4, 3)
    assert not passed(shared.words[DOORBELL_EVENT], 3 + ENTRIES, 3)


def test_a_ring_just_enabled_asks_for_no_doorbell(ring, shared):
    assert not passed(shared.words[DOORBELL_EVENT], 1, 0)


def test_a_ring_goes_on_where_another_one_was_saved(ring, shared):
    ring.publish(5)
    shared.words[PRODUCER] = 7
    state = ring.save()
    assert state == CommandRingState(RING_AREA_OFFSET, ENTRIES, False, 5, 0)
    other = CommandRing(NUMBER, shared, Inputs())

    other.load(state)

    assert (other.enabled, other.pending(), shared.words[COMPLETED]) == (True, 2, 5)
    assert other.save() == state
    shared.words[PRODUCER] = 100
    other.pending()
    assert other.save().broken


def test_a_ring_whose_slots_are_being_executed_cannot_be_saved(ring):
    ring.busy = True

    with pytest.raises(ValueError, match="ring 2 cannot be saved"):
        ring.save()


@pytest.mark.parametrize(
    ("base", "entries"), [(0, 16), (RING_AREA_OFFSET + 64, 16), (RING_AREA_OFFSET, 17), (1 << 40, 16)]
)
def test_a_ring_that_lies_where_none_may_is_not_loaded(ring, base, entries):
    state = ring.save()

    with pytest.raises(ValueError, match="no place for a ring"):
        ring.load(CommandRingState(base, entries))

    assert ring.save() == state
