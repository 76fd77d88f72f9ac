"""The DMA test engine, driven through its registers and shared memory as a guest drives it."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pviommu.endpoints import dma_test
from pviommu.endpoints.dma_test import DmaTestEngine
from pviommu.engine import Access
from pviommu_abi import dma_test as abi
from pviommu_abi.dma_test import Control, Descriptor, DescriptorFlags, DescriptorStatus, DmaOp, SgEntry
from pviommu_abi.registers import REGISTER as IOMMU_REGISTER
from pviommu_abi.shared import EventAccess, EventReason
from pviommu_abi.xen_2024 import MapPages, UnmapPages, Xen2024Op

PAGE = 4096
IOVA = 0x10000000
"""Pages 0 to 2047 of guest memory are mapped here."""
DONE, FAULT, INVALID = DescriptorStatus.DONE, DescriptorStatus.FAULT, DescriptorStatus.INVALID
MISMATCH, CANCELLED = DescriptorStatus.MISMATCH, DescriptorStatus.CANCELLED
SRC_SG, DST_SG, INTERRUPT = DescriptorFlags.SRC_SG, DescriptorFlags.DST_SG, DescriptorFlags.INTERRUPT


class Driver:
    """What a guest driver does with the engine."""

    def __init__(self, guest: Any) -> None:
        self.guest = guest
        self.engine = guest.make(DmaTestEngine, "dma0", 1)
        guest.plug(self.engine)
        guest.map(IOVA >> 12, 0, 2048)
        self.producer = 0
        self.write("CONTROL", Control.ENABLE)

    def write(self, name: str, value: int) -> None:
        self.engine.region_write(0, abi.REGISTER[name].offset, value.to_bytes(4, "little"))

    def read(self, name: str) -> int:
        return int.from_bytes(self.engine.region_read(0, abi.REGISTER[name].offset, 4), "little")

    def queue(self, *descriptors: Descriptor) -> None:
        """Submit descriptors and carry nothing out."""
        for descriptor in descriptors:
            place = self.producer % abi.ENTRIES * Descriptor.SIZE
            self.engine.shared.view[place : place + Descriptor.SIZE] = descriptor.pack()
            self.producer += 1
        self.write("PRODUCER", self.producer)

    def run(self, **fields: int) -> Descriptor:
        """Carry one descriptor out and return what became of it."""
        place = self.producer % abi.ENTRIES
        self.queue(descriptor(**fields))
        while self.read("CONSUMER") != self.producer:
            assert self.engine.work() is True
        return self.result(place)

    def result(self, place: int) -> Descriptor:
        return Descriptor.unpack(self.engine.shared.view, place * Descriptor.SIZE)

    def entries(self, first: int, entries: Iterable[tuple[int, int]]) -> int:
        """Write scatter/gather entries; returns what ``src`` or ``dst`` has to be."""
        packed = b"".join(SgEntry(address, length).pack() for address, length in entries)
        start = abi.SG_OFFSET + first * SgEntry.SIZE
        self.engine.shared.view[start : start + len(packed)] = packed
        return first | len(packed) // SgEntry.SIZE << 32


def descriptor(
    op: int = DmaOp.COPY,
    flags: int = 0,
    length: int = 16,
    src: int = IOVA,
    dst: int = IOVA,
    pattern: int = 0,
    pad0: int = 0,
) -> Descriptor:
    return Descriptor(op, flags, pad0, length, src, dst, pattern)


@pytest.fixture
def driver(guest: Any) -> Driver:
    return Driver(guest)


# -- operations --------------------------------------------------------------------------------------------------------


def test_registers_say_what_the_engine_is(driver: Driver) -> None:
    values = [driver.read(name) for name in ("MAGIC", "VERSION", "ENTRIES", "SG_ENTRIES", "MAX_LENGTH")]

    assert values == [0x54445650, 1, 256, 2048, 4 << 20]


@pytest.mark.parametrize("length", [1, 7, PAGE, PAGE + 1, 2 * PAGE + 3])
def test_copy_moves_exactly_its_bytes(driver: Driver, length: int) -> None:
    data = random.Random(length).randbytes(length)
    driver.guest.poke(0x1FFD, data)

    done = driver.run(op=DmaOp.COPY, length=length, src=IOVA + 0x1FFD, dst=IOVA + 0x100FFF)

    assert done.status == DONE
    assert driver.guest.peek(0x100FFE, length + 2) == b"\0" + data + b"\0"


def test_copy_of_overlapping_ranges_reads_all_before_it_writes(driver: Driver) -> None:
    driver.guest.poke(0, b"abcdefgh")

    driver.run(op=DmaOp.COPY, length=8, src=IOVA, dst=IOVA + 2)

    assert driver.guest.peek(0, 10) == b"ababcdefgh"


def test_copy_of_the_largest_length_succeeds(driver: Driver) -> None:
    driver.guest.poke(0, b"x" * abi.MAX_LENGTH)

    done = driver.run(op=DmaOp.COPY, length=abi.MAX_LENGTH, dst=IOVA + abi.MAX_LENGTH)

    assert done.status == DONE
    assert driver.guest.peek(abi.MAX_LENGTH, abi.MAX_LENGTH) == b"x" * abi.MAX_LENGTH
    assert driver.guest.counters.dma_bytes == 2 * abi.MAX_LENGTH


def test_fill_repeats_the_pattern_in_memory_order(driver: Driver) -> None:
    done = driver.run(op=DmaOp.FILL, length=11, dst=IOVA + 0x10, pattern=0x0807060504030201)

    assert done.status == DONE
    assert driver.guest.peek(0x10, 12) == bytes([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 0])


def test_checksum_is_that_of_zlib(driver: Driver) -> None:
    data = random.Random(1).randbytes(5000)
    driver.guest.poke(0x3210, data)

    done = driver.run(op=DmaOp.CHECKSUM, length=5000, src=IOVA + 0x3210)

    assert (done.status, done.checksum) == (DONE, zlib.crc32(data))


@pytest.mark.parametrize("offset", [0, 7, 8, PAGE - 1, PAGE, 2 * PAGE - 1])
def test_verify_names_the_first_byte_that_differs(driver: Driver, offset: int) -> None:
    pattern = 0x1122334455667788
    driver.run(op=DmaOp.FILL, length=2 * PAGE, dst=IOVA + 3, pattern=pattern)
    assert driver.run(op=DmaOp.VERIFY, length=2 * PAGE, src=IOVA + 3, pattern=pattern).status == DONE
    driver.guest.poke(3 + offset, b"\xff" * (2 * PAGE - offset))

    done = driver.run(op=DmaOp.VERIFY, length=2 * PAGE, src=IOVA + 3, pattern=pattern)

    assert (done.status, done.detail) == (MISMATCH, offset)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.data())
@pytest.mark.row("defect", "A16")
def test_scatter_gather_on_both_sides_moves_the_bytes_in_order(driver: Driver, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 3 * PAGE))

    def cut(base: int) -> list[tuple[int, int]]:
        """Spans in pages far enough apart, in any order, that add up to ``length``."""
        cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=5))) if length > 1 else []
        lengths = [end - start for start, end in zip([0, *cuts], [*cuts, length], strict=True)]
        places = data.draw(st.permutations(range(len(lengths))))
        skew = data.draw(st.integers(0, PAGE - 1))
        return [(base + place * 0x10000 + skew, size) for place, size in zip(places, lengths, strict=True)]

    source, target = cut(0x000000), cut(0x400000)
    content = random.Random(length).randbytes(length)
    position = 0
    for gpa, size in source:
        driver.guest.poke(gpa, content[position : position + size])
        position += size

    done = driver.run(
        op=DmaOp.COPY,
        flags=SRC_SG | DST_SG,
        length=length,
        src=driver.entries(5, [(IOVA + gpa, size) for gpa, size in source]),
        dst=driver.entries(100, [(IOVA + gpa, size) for gpa, size in target]),
    )

    assert done.status == DONE
    assert b"".join(driver.guest.peek(gpa, size) for gpa, size in target) == content


def test_the_whole_table_can_be_one_list(driver: Driver) -> None:
    driver.guest.poke(0, bytes(range(256)) * 8)
    source = driver.entries(0, [(IOVA + n, 1) for n in range(abi.SG_ENTRIES)])

    done = driver.run(op=DmaOp.CHECKSUM, flags=SRC_SG, length=abi.SG_ENTRIES, src=source)

    assert (done.status, done.checksum) == (DONE, zlib.crc32(bytes(range(256)) * 8))


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"op": 0},
        {"op": 5},
        {"op": 255},
        {"flags": 8},
        {"flags": 0x80},
        {"pad0": 1},
        {"length": 0},
        {"length": abi.MAX_LENGTH + 1},
        {"length": 0xFFFFFFFF},
        {"flags": SRC_SG, "src": 0},  # no entries
        {"flags": SRC_SG, "src": abi.SG_ENTRIES | 1 << 32},  # past the table
        {"flags": SRC_SG, "src": (abi.SG_ENTRIES - 1) | 2 << 32},
        {"flags": DST_SG, "dst": 0xFFFFFFFF << 32},
        {"flags": DST_SG, "dst": 0xFFFFFFFF | 0xFFFFFFFF << 32},
        {"flags": SRC_SG, "src": 2 << 32},  # an entry of no length
        {"flags": SRC_SG, "src": 1 << 32, "length": 17},  # lengths that do not add up
        {"flags": SRC_SG, "src": 1 << 32, "length": 15},
    ],
)
def test_a_descriptor_that_breaks_a_rule_is_invalid_and_moves_nothing(driver: Driver, fields: dict[str, int]) -> None:
    driver.entries(0, [(IOVA, 16), (IOVA, 0)])
    driver.guest.poke(0, b"before")

    done = driver.run(**({"dst": IOVA + 0x1000} | fields))

    assert done.status == INVALID
    assert driver.guest.peek(0x1000, PAGE) == bytes(PAGE)
    assert driver.guest.counters.dma_requests == 0
    assert driver.guest.events() == []
    assert driver.run(op=DmaOp.COPY, length=6, dst=IOVA + 0x1000).status == DONE, "it fails alone"


@pytest.mark.parametrize(
    ("fields", "address", "access"),
    [
        ({"op": DmaOp.COPY, "src": 0x5000}, 0x5000, EventAccess.READ),
        ({"op": DmaOp.COPY, "dst": 0x5004}, 0x5004, EventAccess.WRITE),
        ({"op": DmaOp.FILL, "dst": 0x5008}, 0x5008, EventAccess.WRITE),
        ({"op": DmaOp.CHECKSUM, "src": 0x500C}, 0x500C, EventAccess.READ),
        ({"op": DmaOp.VERIFY, "src": 0x5010}, 0x5010, EventAccess.READ),
        ({"op": DmaOp.FILL, "dst": IOVA + 0x7FFFF8}, IOVA + 0x800000, EventAccess.WRITE),
    ],
)
def test_a_fault_has_address_access_and_reason_in_descriptor_and_event(
    driver: Driver, fields: dict[str, int], address: int, access: EventAccess
) -> None:
    done = driver.run(**fields)

    assert (done.status, done.detail, done.access, done.reason) == (FAULT, address, access, EventReason.NOT_MAPPED)
    [event] = driver.guest.events()
    assert (event.iova, event.access, event.reason, event.stream) == (address, access, EventReason.NOT_MAPPED, 1)
    assert driver.guest.counters.dma_bytes == 0


def test_a_large_copy_with_one_page_missing_moves_nothing(driver: Driver) -> None:
    driver.guest.poke(0, b"x" * 0x100000)
    driver.guest.iommu.engine.unmap(driver.guest.context, (IOVA + 0x480000) >> 12, 1)

    done = driver.run(op=DmaOp.COPY, length=0x100000, dst=IOVA + 0x400000)

    assert (done.status, done.detail) == (FAULT, IOVA + 0x480000)
    assert driver.guest.peek(0x400000, 0x100000) == bytes(0x100000)


def test_a_write_through_a_read_only_mapping_is_a_permission_fault(driver: Driver) -> None:
    driver.guest.map(0x100, 0x900, access=Access.READ)

    done = driver.run(op=DmaOp.FILL, dst=0x100000, pattern=1)

    assert (done.status, done.reason, done.detail) == (FAULT, EventReason.PERMISSION, 0x100000)
    assert driver.guest.peek(0x900000, 16) == bytes(16)


def test_a_span_that_wraps_is_out_of_the_aperture(driver: Driver) -> None:
    done = driver.run(op=DmaOp.FILL, dst=(1 << 64) - 8)

    assert (done.status, done.reason, done.detail) == (FAULT, EventReason.OUT_OF_APERTURE, (1 << 64) - 8)


def test_without_bus_mastering_the_fault_has_no_reason_and_no_event(driver: Driver) -> None:
    driver.guest.set_bus_master(driver.engine, False)

    done = driver.run(op=DmaOp.FILL, dst=IOVA, pattern=1)

    assert (done.status, done.detail, done.reason, done.access) == (FAULT, IOVA, 0, EventAccess.WRITE)
    assert driver.guest.events() == []
    assert driver.guest.peek(0, 16) == bytes(16)


@pytest.mark.row("defect", "D17")
def test_a_source_unmapped_while_the_destination_is_waited_for_is_not_read(driver: Driver) -> None:
    driver.guest.set_up_ring()
    driver.guest.poke(0x20000, b"freed by the guest")
    driver.guest.map(0x100, 0x20)
    driver.guest.submit(
        UnmapPages(Xen2024Op.UNMAP_PAGES, driver.guest.context, 0, dfn=0x100, nr_pages=1),
        MapPages(Xen2024Op.MAP_PAGES, driver.guest.context, 3, gfn=0x21, dfn=0x101, nr_pages=1),
    )

    done = driver.run(op=DmaOp.COPY, src=0x100000, dst=0x101000)

    assert (done.status, done.detail, done.access) == (FAULT, 0x100000, EventAccess.READ)
    assert driver.guest.peek(0x21000, 16) == bytes(16)


# -- in steps ----------------------------------------------------------------------------------------------------------


def many_pages(driver: Driver, first: int = 0, count: int = 64) -> int:
    """A list of pages, not in the order of their addresses."""
    return driver.entries(first, [(IOVA + (n * 7) % count * PAGE, PAGE) for n in range(count)])


@pytest.mark.row("server", 37)
def test_a_long_request_takes_steps_and_the_queue_waits_for_it(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dma_test, "STEP_NS", -1)
    data = random.Random(1).randbytes(64 * PAGE)
    driver.guest.poke(0, data)
    lists = {
        "src": many_pages(driver),
        "dst": driver.entries(64, [(IOVA + (1024 + n) * PAGE, PAGE) for n in range(64)]),
    }
    driver.queue(
        descriptor(op=DmaOp.COPY, flags=SRC_SG | DST_SG, length=64 * PAGE, **lists), descriptor(op=DmaOp.FILL, length=8)
    )
    steps = 0
    while driver.read("CONSUMER") == 0:
        assert driver.engine.work() is True
        steps += 1
    assert steps > 64
    assert driver.result(1).status == DescriptorStatus.PENDING
    driver.engine.work()

    expected = b"".join(data[n * 7 % 64 * PAGE :][:PAGE] for n in range(64))
    assert [driver.result(place).status for place in (0, 1)] == [DONE, DONE]
    assert driver.guest.peek(1024 * PAGE, 64 * PAGE) == expected
    assert (driver.guest.counters.dma_requests, driver.guest.counters.dma_bytes) == (3, 2 * 64 * PAGE + 8)
    assert driver.guest.events() == []


@pytest.mark.row("server", 37)
@pytest.mark.parametrize("op", list(DmaOp))
@pytest.mark.parametrize("hole", [0, 1, 40, 63])
def test_one_page_that_is_not_mapped_refuses_a_long_request_whole(driver: Driver, op: DmaOp, hole: int) -> None:
    for n in range(64):
        driver.guest.map(0x100 + n, 0x400 + n)
    driver.guest.iommu.engine.unmap(driver.guest.context, 0x100 + hole, 1)
    entries = driver.entries(0, [(0x100000 + n * PAGE, PAGE) for n in range(64)])

    done = driver.run(op=op, flags=SRC_SG | DST_SG, length=64 * PAGE, src=entries, dst=entries, pattern=0x55)

    assert (done.status, done.detail) == (FAULT, 0x100000 + hole * PAGE)
    (event,) = driver.guest.events()
    assert (event.reason, event.iova, event.length) == (EventReason.NOT_MAPPED, 0x100000 + hole * PAGE, PAGE)
    assert driver.guest.peek(0x400 * PAGE, 64 * PAGE) == bytes(64 * PAGE)
    assert (driver.guest.counters.dma_requests, driver.guest.counters.dma_bytes) == (0, 0)


@pytest.mark.row("server", 37)
def test_the_event_of_a_long_span_tells_all_of_its_length(driver: Driver) -> None:
    driver.guest.map(0x100, 0x400, 100)

    done = driver.run(op=DmaOp.FILL, length=1 << 20, dst=0x100000)

    assert (done.status, done.detail) == (FAULT, 0x100000 + 100 * PAGE)
    assert [event.length for event in driver.guest.events()] == [1 << 20]


@pytest.mark.row("server", 37)
def test_what_a_long_request_finds_unmapped_later_stops_it_there(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that unmaps what DMA in progress goes to: nothing is written after the unmap is complete."""
    monkeypatch.setattr(dma_test, "STEP_NS", -1)
    for n in range(64):
        driver.guest.map(0x100 + n, 0x400 + n)
    entries = driver.entries(0, [(0x100000 + n * PAGE, PAGE) for n in range(64)])
    driver.queue(descriptor(op=DmaOp.FILL, flags=DST_SG, length=64 * PAGE, dst=entries, pattern=0x5555555555555555))
    while not any(driver.guest.peek(0x400 * PAGE, PAGE)):
        driver.engine.work()
    driver.guest.iommu.engine.unmap(driver.guest.context, 0x130, 1)
    while driver.read("CONSUMER") == 0:
        driver.engine.work()

    assert (driver.result(0).status, driver.result(0).detail) == (FAULT, 0x130000)
    assert not any(driver.guest.peek(0x430 * PAGE, 16 * PAGE))
    assert len(driver.guest.events()) == 1


@pytest.mark.row("server", 37)
def test_what_was_submitted_before_a_long_request_is_done_before_it_begins(driver: Driver) -> None:
    driver.guest.set_up_ring()
    driver.guest.map(0x100, 0x400, 64)
    driver.guest.submit(UnmapPages(Xen2024Op.UNMAP_PAGES, driver.guest.context, 0, dfn=0x13F, nr_pages=1))

    done = driver.run(op=DmaOp.FILL, length=64 * PAGE, dst=0x100000, pattern=1)

    assert (done.status, done.detail) == (FAULT, 0x13F000)
    assert driver.guest.peek(0x400 * PAGE, 64 * PAGE) == bytes(64 * PAGE)


@pytest.mark.row("server", 37)
@pytest.mark.parametrize("how", ["register", "function", "iommu"])
def test_a_reset_cancels_a_request_in_progress(driver: Driver, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(dma_test, "STEP_NS", -1)
    driver.queue(descriptor(op=DmaOp.FILL, length=64 * PAGE, pattern=0x5555555555555555), descriptor(op=DmaOp.FILL))
    while not driver.guest.peek(0, 1)[0]:
        driver.engine.work()
    {
        "register": lambda: driver.write("CONTROL", Control.RESET),
        "function": driver.engine.reset,
        "iommu": driver.guest.iommu.reset,
    }[how]()

    assert [driver.result(place).status for place in (0, 1)] == [CANCELLED, CANCELLED]
    assert driver.engine.work() is False
    assert not driver.engine.is_in_progress
    assert not any(driver.guest.peek(63 * PAGE, PAGE))


# -- the queue ---------------------------------------------------------------------------------------------------------


def test_nothing_happens_while_the_engine_is_off(driver: Driver) -> None:
    driver.write("CONTROL", 0)
    driver.queue(descriptor(op=DmaOp.FILL))

    assert driver.engine.work() is False

    driver.write("CONTROL", Control.ENABLE)
    assert driver.engine.work() is True
    assert driver.engine.work() is False


def test_one_step_is_one_descriptor_in_order(driver: Driver) -> None:
    driver.queue(*(descriptor(op=DmaOp.FILL, pattern=number) for number in (1, 2, 3)))

    seen = []
    while driver.engine.work():
        seen.append((driver.read("CONSUMER"), driver.guest.peek(0, 1)))

    assert seen == [(1, b"\1"), (2, b"\2"), (3, b"\3")]


def test_the_queue_goes_round(driver: Driver) -> None:
    for turn in range(abi.ENTRIES + 3):
        assert driver.run(op=DmaOp.FILL, dst=IOVA + turn * 8, length=8, pattern=turn + 1).status == DONE

    assert driver.guest.peek((abi.ENTRIES + 2) * 8, 8) == (abi.ENTRIES + 3).to_bytes(8, "little")


@pytest.mark.row("defect", "B3")
@pytest.mark.row("defect", "B4")
def test_a_producer_further_than_the_queue_is_long_is_ignored(driver: Driver) -> None:
    driver.write("PRODUCER", abi.ENTRIES + 1)
    driver.write("PRODUCER", 0xFFFFFFFF)

    assert driver.read("PRODUCER") == 0
    assert driver.engine.work() is False


@pytest.mark.row("defect", "D11")
def test_a_full_queue_is_worked_off(driver: Driver) -> None:
    driver.queue(*[descriptor(op=DmaOp.FILL)] * abi.ENTRIES)

    steps = 0
    while driver.engine.work():
        steps += 1

    assert steps == driver.read("CONSUMER") == abi.ENTRIES


@pytest.mark.row("defect", "B2")
def test_a_descriptor_changed_after_it_was_fetched_changes_nothing(driver: Driver) -> None:
    copy = driver.engine.copy_shared

    def changing(view: memoryview) -> bytes:
        """Overwrites what was just copied, as a guest on another processor may."""
        data = copy(view)
        view[:] = b"\xff" * len(view)
        return data

    driver.engine.copy_shared = changing

    assert driver.run(op=DmaOp.FILL, length=8, pattern=7).status == DONE
    assert driver.guest.peek(0, 9) == b"\x07" + bytes(8)


def test_an_interrupt_comes_only_when_it_was_asked_for(driver: Driver) -> None:
    fd = driver.guest.arm_interrupt(driver.engine)

    driver.run(op=DmaOp.FILL)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(fd)

    for fields in ({"op": DmaOp.FILL}, {"op": 99}, {"op": DmaOp.FILL, "dst": 0}):
        driver.run(**(fields | {"flags": INTERRUPT}))
        assert os.eventfd_read(fd) == 1
    os.close(fd)


# -- reset -------------------------------------------------------------------------------------------------------------


@pytest.mark.row("defect", "B10")
def test_a_reset_by_register_cancels_what_is_queued(driver: Driver) -> None:
    driver.run(op=DmaOp.FILL)
    driver.queue(descriptor(op=DmaOp.FILL, pattern=1), descriptor(op=DmaOp.FILL, pattern=1))

    driver.write("CONTROL", Control.RESET | Control.ENABLE)

    assert [driver.result(place).status for place in range(3)] == [DONE, CANCELLED, CANCELLED]
    assert [driver.read(name) for name in ("CONTROL", "PRODUCER", "CONSUMER")] == [Control.ENABLE, 0, 0]
    assert driver.guest.peek(0, 16) == bytes(16)
    assert driver.engine.work() is False


def test_a_reset_of_the_function_cancels_and_turns_it_off(driver: Driver) -> None:
    driver.queue(descriptor(op=DmaOp.FILL, pattern=1))

    driver.engine.reset()

    assert driver.result(0).status == CANCELLED
    assert [driver.read(name) for name in ("CONTROL", "PRODUCER", "CONSUMER")] == [0, 0, 0]
    assert driver.read("MAGIC") == abi.MAGIC


@pytest.mark.row("defect", "D14")
def test_a_reset_of_the_iommu_cancels_what_was_meant_for_the_lost_context(driver: Driver) -> None:
    driver.queue(descriptor(op=DmaOp.FILL, pattern=1))

    driver.guest.iommu.region_write(0, IOMMU_REGISTER["RESET"].offset, (1).to_bytes(4, "little"))

    assert driver.result(0).status == CANCELLED
    done = driver.run(op=DmaOp.FILL, dst=0, pattern=1)
    assert (done.status, done.reason) == (FAULT, EventReason.BLOCKED)
    assert driver.guest.peek(0, 16) == bytes(16)


def test_a_disconnect_leaves_shared_memory_empty(driver: Driver) -> None:
    driver.run(op=DmaOp.FILL, pattern=1)
    driver.queue(descriptor(op=DmaOp.FILL, pattern=1))

    driver.engine.disconnected()

    assert bytes(driver.engine.shared.view) == bytes(abi.SHARED_BAR_SIZE)
    assert driver.read("CONSUMER") == 0


def test_a_disconnect_of_the_iommu_leaves_a_valid_capability_area(guest: Any) -> None:
    guest.iommu.disconnected()

    assert bytes(guest.iommu.shared.view[0x1000:0x1004]) == b"ICAP"
