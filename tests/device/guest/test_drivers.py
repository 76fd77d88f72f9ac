"""The guest's drivers on memory that nobody serves: what they write, where, and what they make of what they find."""

from __future__ import annotations

import struct

import pytest

from pviommu.guest.dma_test import DescriptorRing
from pviommu.guest.events import EventRing
from pviommu.guest.function import Function
from pviommu.guest.ring import Ring
from pviommu_abi import dma_test
from pviommu_abi.dma_test import Descriptor, DescriptorStatus, DmaOp
from pviommu_abi.registers import DOORBELL_STRIDE, REGISTER
from pviommu_abi.shared import (
    CACHE_LINE,
    EVENT_ENTRIES,
    EVENT_INDEX_OFFSET,
    EVENT_OFFSET,
    RING_AREA_OFFSET,
    RING_INDEX_STRIDE,
    SHARED_BAR_SIZE,
    Event,
)
from pviommu_abi.slots import SLOT_SIZE, OpClass, Slot


class Memory(Function):
    """A function that is memory and a list of what was written to its registers."""

    def __init__(self, registers=REGISTER):
        self.registers = registers
        self.written = []
        self.config = bytearray(256)
        self._view = memoryview(bytearray(SHARED_BAR_SIZE))
        self._words = self._view.cast("I")

    view = property(lambda self: self._view)
    words = property(lambda self: self._words)

    def read_at(self, offset):
        return offset

    def write_at(self, offset, value):
        self.written.append((offset, value))

    def read_config(self, offset, size):
        return int.from_bytes(self.config[offset : offset + size], "little")

    def write_config(self, offset, size, value):
        self.config[offset : offset + size] = value.to_bytes(size, "little")

    def set_bus_master(self, on):
        self.written.append(("master", on))

    def plug(self, address, size, fd, offset=0):
        raise NotImplementedError

    def unplug(self, address, size):
        raise NotImplementedError

    def close(self):
        """Nothing is open."""


def test_a_ring_is_turned_on_at_position_0_wherever_it_was():
    function = Memory()
    ring = Ring(function, number=2, entries=16, base=0x20000)
    ring.put(OpClass.VENDOR, 0, 0, b"")

    ring.turn_on()

    assert (ring.producer, function.words[2 * RING_INDEX_STRIDE // 4]) == (0, 0)
    names = ("RING_SELECT", "RING_ENTRIES", "RING_BASE_LO", "RING_CONTROL")
    assert function.written == [
        (REGISTER[name].offset, value) for name, value in zip(names, (2, 16, 0x20000, 1), strict=True)
    ]


def test_slots_follow_each_other_and_the_index_wraps_at_32_bits():
    function = Memory()
    ring = Ring(function, entries=16)
    ring.producer = 0xFFFFFFFF

    assert [ring.put(OpClass.VENDOR, 7, 1, b"payload"), ring.put(OpClass.VENDOR, 8, 0, b"", 99)] == [0xFFFFFFFF, 0]

    last = RING_AREA_OFFSET + 15 * SLOT_SIZE
    assert Slot.unpack(function.view, last) == Slot(OpClass.VENDOR, 7, 1, 0xFFFFFFFF)
    assert bytes(function.view[last + Slot.SIZE : last + SLOT_SIZE]) == b"payload".ljust(48, b"\0")
    assert Slot.unpack(function.view, RING_AREA_OFFSET) == Slot(OpClass.VENDOR, 8, 0, 99)
    assert function.words[0] == ring.producer == 1


@pytest.mark.parametrize(("completed", "complete"), [(4, False), (5, True), (20, True), (21, False)])
def test_a_slot_is_complete_until_its_place_is_used_again(completed, complete):
    function = Memory()
    function.words[CACHE_LINE // 4] = completed

    assert Ring(function, entries=16).is_complete(4) is complete


def test_a_result_is_what_the_device_wrote_into_the_slot():
    function = Memory()
    ring = Ring(function, entries=16)
    struct.pack_into("<iI", function.view, ring.place(17) + Slot.offset_of("result"), -22, 17)

    assert ring.result(17) == (-22, 17, bytes(48))


@pytest.mark.parametrize(("wish", "wanted"), [(4, False), (5, True), (7, True), (8, False)])
def test_a_doorbell_is_rung_for_the_slots_that_the_device_asked_to_be_told_of(wish, wanted):
    function = Memory()
    ring = Ring(function, number=1, entries=16)
    ring.producer = 8
    function.words[(RING_INDEX_STRIDE + CACHE_LINE) // 4 + 1] = wish

    assert ring.doorbell_wanted(first=5) is wanted
    ring.ring_doorbell()
    assert function.written == [(REGISTER["DOORBELL"].offset + DOORBELL_STRIDE, 0)]


def test_events_are_taken_once_and_their_places_given_back():
    function = Memory()
    events = EventRing(function)
    events.consumer = EVENT_ENTRIES - 1
    function.words[(EVENT_INDEX_OFFSET + CACHE_LINE) // 4] = EVENT_ENTRIES + 1
    for sequence in (EVENT_ENTRIES - 1, EVENT_ENTRIES):
        struct.pack_into(
            "<I",
            function.view,
            EVENT_OFFSET + sequence % EVENT_ENTRIES * Event.SIZE + Event.offset_of("sequence"),
            sequence,
        )

    assert not events.is_empty
    assert [event.sequence for event in events.take()] == [EVENT_ENTRIES - 1, EVENT_ENTRIES]
    assert function.words[EVENT_INDEX_OFFSET // 4] == EVENT_ENTRIES + 1
    assert (events.is_empty, events.take(), events.lost) == (True, [], 0)


def test_descriptors_are_queued_then_started_and_done_when_their_status_says_so():
    function = Memory(dma_test.REGISTER)
    engine = DescriptorRing(function)
    engine.producer = dma_test.ENTRIES

    place = engine.put(DmaOp.FILL, 4096, dst=0x5000, pattern=7)

    assert (place, function.written) == (0, [])
    assert engine.descriptor(place) == Descriptor(DmaOp.FILL, 0, 0, 4096, 0, 0x5000, 7)
    engine.start()
    assert function.written == [(dma_test.REGISTER["PRODUCER"].offset, dma_test.ENTRIES + 1)]
    assert not engine.is_done(place)
    function.words[Descriptor.offset_of("status") // 4] = DescriptorStatus.DONE
    assert engine.is_done(place)
