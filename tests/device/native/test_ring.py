"""Rings in C beside rings in Python: the same slots must leave the same bytes, counts, events and tables."""

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pviommu.dma.fault import DmaRefusedError
from pviommu.interfaces.pv.ring_core import Poll
from pviommu.machine import Machine
from pviommu.native.core import NativeCore
from pviommu_abi.registers import Profile
from pviommu_abi.shared import RING_INDEX_STRIDE, EventReason, GuestRingLine
from pviommu_abi.slots import SLOT_SIZE, Errno, OpClass, Slot, SlotFlags
from pviommu_abi.xen_2024 import CreateFlags, MapPages, PvIommuOp, UnmapPages, Xen2024Op
from pviommu_abi.xen_v7 import V7AllocFlags, V7MapPages, V7UnmapPages, XenV7Op

from .. import conftest as machines
from ..conftest import ENTRIES, RAM_PAGES, Driver
from .conftest import WHOLE

CONTEXTS = 3  # 1 and 2 exist, 2 is a clone; 0 and 3 are errors
NOOP = PvIommuOp(Xen2024Op.NOOP, 0, 0).pack()
ROUND = Poll(20_000, 20_000, 20_000)


def map_op(ctx, dfn, gfn, nr=1, flags=3):
    return MapPages(Xen2024Op.MAP_PAGES, ctx, flags, gfn, dfn, nr).pack()


def unmap_op(ctx, dfn, nr=1):
    return UnmapPages(Xen2024Op.UNMAP_PAGES, ctx, 0, dfn, nr).pack()


@pytest.fixture
def parts():
    return WHOLE


@pytest.fixture
def native(make_driver):
    """A machine with a context, 1, and no clone."""
    driver = make_driver().start(rings=2)
    assert driver.alloc() == (0, 1)
    return driver


def python_driver():
    return Driver(pool_pages=64, contexts=4, max_pages_per_op=2000)


def native_driver(lib):
    class NativeMachine(Machine):
        @classmethod
        def build(cls, topology, environment, core=None):
            return Machine.build(topology, environment, NativeCore(lib))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machines, "Machine", NativeMachine)
        return python_driver()


# -- one slot ---------------------------------------------------------------------------------------------------------

FRAMES = st.one_of(
    st.integers(0, 12),
    st.sampled_from([0x1FE, 0x200, 0x3FF, RAM_PAGES - 2, 0xFEDFE, 0xFEE00, (1 << 27) - 1, 1 << 27, (1 << 64) - 1]),
)
COUNTS = st.one_of(st.integers(0, 5), st.sampled_from([511, 512, 1500, 2000, 2001, 65536, 65537, 0xFFFFFFFF]))
ODD = st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1])
CTX = st.integers(0, CONTEXTS)
FLAGS = st.sampled_from([0, 1, 2, 3, 3, 3, 3, 4, 0x80000000])
U32 = st.sampled_from([0, 0, 0, 7, 0xFFFFFFFF])

MAPS_2024 = st.builds(
    lambda *fields: MapPages(Xen2024Op.MAP_PAGES, *fields).pack(), CTX, FLAGS, FRAMES, FRAMES, COUNTS, U32
)
UNMAPS_2024 = st.builds(
    lambda *fields: UnmapPages(Xen2024Op.UNMAP_PAGES, *fields).pack(), CTX, ODD, FRAMES, COUNTS, U32
)
PAGE = st.sampled_from([4096, 4096, 4096, 4096, 8192])
MAPS_V7 = st.builds(lambda *fields: V7MapPages(*fields).pack(), CTX, ODD, ODD, FRAMES, FRAMES, FLAGS, PAGE, COUNTS, U32)
UNMAPS_V7 = st.builds(lambda *fields: V7UnmapPages(*fields).pack(), CTX, ODD, ODD, FRAMES, PAGE, COUNTS, U32, ODD)
TAILS = st.sampled_from([b"", b"", b"", b"", b"\0" * 7 + b"\1"])
SLOT_FLAGS = st.sampled_from([0, 0, SlotFlags.POSTED, SlotFlags.POSTED, 2])


def slots_of(op_class, maps, unmaps, map_number, unmap_number):
    """(class, op, flags, payload) of slots that mostly make sense."""
    classes = st.sampled_from([op_class, op_class, op_class, op_class, op_class, OpClass.VENDOR, 3 - op_class, 0])
    good = st.one_of(
        st.tuples(classes, st.just(map_number), SLOT_FLAGS, st.builds(lambda a, b: a + b, maps, TAILS)),
        st.tuples(classes, st.just(unmap_number), SLOT_FLAGS, st.builds(lambda a, b: a + b, unmaps, TAILS)),
    )
    wild = st.tuples(classes, st.integers(0, 9), SLOT_FLAGS, st.binary(max_size=48))
    return st.one_of(good, good, good, good, wild)


SLOTS_2024 = slots_of(OpClass.XEN_2024, MAPS_2024, UNMAPS_2024, 0, 0)
SLOTS_V7 = slots_of(OpClass.XEN_V7, MAPS_V7, UNMAPS_V7, XenV7Op.MAP_PAGES, XenV7Op.UNMAP_PAGES)
BATCHES = st.sampled_from([1, 1, 2, 5])


def started(driver, profile):
    """With an empty context 1 and a clone 2; the events asked for, and an interrupt now and then."""
    driver.start(rings=1, profile=profile)
    if profile == Profile.XEN_2024:
        driver.alloc()
        driver.alloc(CreateFlags.CLONE)
    else:
        driver.call((4).to_bytes(4, "little") + (6).to_bytes(4, "little"), OpClass.XEN_V7, XenV7Op.INIT)
        driver.call(bytes(48), OpClass.XEN_V7, XenV7Op.ALLOC_CONTEXT)
        driver.call(int(V7AllocFlags.IDENTITY << 32).to_bytes(8, "little"), OpClass.XEN_V7, XenV7Op.ALLOC_CONTEXT)
    assert driver.iommu.engine.domains() == (1, 2)
    return driver


def state(driver):
    """All that can be seen from outside, time left out."""
    base = driver.ring_base(0)
    counters = {name: value for name, value in driver.counters.report().items() if name != "interrupts"}
    events = [(event.sequence, event.reason, event.result, event.slot) for event in driver.events()]
    engine = driver.iommu.engine
    return (
        bytes(driver.view[base : base + ENTRIES * SLOT_SIZE]),
        driver.completed(),
        counters,
        events,
        engine.usage(),
        [list(engine.areas(ctx)) for ctx in engine.domains()],
    )


def compare(lib, profile, slots, batches):
    plain, native = started(python_driver(), profile), started(native_driver(lib), profile)
    try:
        waiting = iter(slots)
        for number, batch in enumerate(batches):
            for op_class, op, flags, payload in [each for each, _ in zip(waiting, range(batch), strict=False)]:
                for driver in (plain, native):
                    driver.put(payload, op_class, op, flags)
            for driver in (plain, native):
                while (number % 2 and driver.iommu.spin(ROUND)) or driver.iommu.work():
                    pass
            assert state(native) == state(plain)
    finally:
        plain.close()
        native.close()


@given(slots=st.lists(SLOTS_2024, min_size=1, max_size=20), batches=st.lists(BATCHES, min_size=8, max_size=8))
def test_slots_of_xen_2024_leave_the_same_behind(native_library, slots, batches):
    compare(native_library, Profile.XEN_2024, slots, batches)


@given(slots=st.lists(SLOTS_V7, min_size=1, max_size=20), batches=st.lists(BATCHES, min_size=8, max_size=8))
def test_slots_of_xen_v7_leave_the_same_behind(native_library, slots, batches):
    compare(native_library, Profile.XEN_V7, slots, batches)


# -- order and notification -------------------------------------------------------------------------------------------


def test_common_slots_do_not_pass_through_python(native, monkeypatch):
    monkeypatch.setattr(native.iommu._executor.operations, "begin", lambda *_: 1 // 0)

    assert native.map(1, 0x100, 0x10, 3) == (0, 3)
    assert native.unmap(1, 0x100, 3) == (0, 3)
    assert native.map(1, 0x100, RAM_PAGES, 1) == (-Errno.EPERM, 0)


def test_a_slot_for_python_between_others_is_executed_in_its_place(native):
    native.put(map_op(1, 0x100, 0x10))
    lookup = native.put(PvIommuOp(Xen2024Op.FREE_CONTEXT, 1, 0).pack())
    late = native.put(map_op(1, 0x101, 0x11))
    native.iommu.work()

    assert native.completed() == native.producer[0]
    assert native.outcome(lookup)[0].result == 0
    assert native.outcome(late)[0].result == -Errno.EINVAL


def test_a_failed_posted_map_is_an_event_that_names_its_slot(native):
    native.put(map_op(1, 0x100, 0x10), flags=SlotFlags.POSTED)
    native.put(map_op(1, 0x100, 0x11), flags=SlotFlags.POSTED, sequence=0xABC)
    native.put(map_op(1, 0x101, 0x11), flags=SlotFlags.POSTED)
    native.iommu.work()

    (event,) = native.events()
    assert (event.reason, event.result, event.slot) == (EventReason.POSTED_FAILED, -Errno.EADDRINUSE, 0xABC)
    assert native.completed() == native.producer[0]
    assert native.lookup(1, 0x101) == (0, 0x11)


@pytest.mark.parametrize(("asked", "interrupts"), [(0, 1), (2, 1), (3, 0)])
def test_the_guest_is_interrupted_when_the_index_it_named_is_passed(native, asked, interrupts):
    fd = native.msix(1)
    first = native.completed()
    native.words[1] = first + asked
    for place in range(3):
        native.put(map_op(1, 0x100 + place, 0x10), flags=SlotFlags.POSTED)
    native.iommu.work()

    assert native.counters.interrupts == interrupts
    os.close(fd)


def test_dma_after_an_unmap_through_the_ring_is_refused(native):
    ctx = native.attached()
    native.map(ctx, 0x100, 0x10, 1)
    native.dma_read("dma0", 0x100000, 1)

    native.unmap(ctx, 0x100, 1)

    with pytest.raises(DmaRefusedError):
        native.dma_read("dma0", 0x100000, 1)


def test_slots_go_on_at_the_start_of_the_ring_after_its_end(native):
    native.put(NOOP)
    for dfn in range(ENTRIES + 10):
        native.put(map_op(1, dfn, dfn), flags=SlotFlags.POSTED)
        if dfn % 100 == 0:
            native.iommu.work()
    native.iommu.work()

    assert native.completed() == native.producer[0]
    assert native.iommu.engine.usage().mapped_pages == ENTRIES + 10


# -- polling ----------------------------------------------------------------------------------------------------------


def test_a_poll_executes_what_the_rings_hold(native):
    position = native.put(map_op(1, 0x100, 0x10), ring=1)

    assert native.iommu.spin(ROUND)

    assert native.outcome(position, ring=1)[0].result == 0
    assert native.completed(1) == 1
    assert native.counters.ops["map_pages"] == 1
    assert not native.iommu.spin(ROUND)


def test_a_poll_leaves_what_is_for_python(native):
    native.put(NOOP)

    assert not native.iommu.spin(ROUND)
    assert native.iommu.work()
    assert native.completed() == native.producer[0]


def test_a_poll_leaves_an_impossible_index_to_the_next_turn(native):
    native.put(map_op(1, 0x100, 0x10), ring=1)
    native.words[RING_INDEX_STRIDE // 4] = ENTRIES + 1

    assert not native.iommu.spin(ROUND)
    assert not native.iommu.work()
    assert native.completed(1) == 0

    assert [event.reason for event in native.events()] == [EventReason.RING_BROKEN]
    assert not native.iommu.spin(ROUND)


def test_a_ring_that_is_off_is_not_polled(native):
    native.write("RING_SELECT", 1)
    native.write("RING_CONTROL", 0)
    native.words[RING_INDEX_STRIDE // 4] = 1

    assert not native.iommu.spin(ROUND)


def test_after_a_reset_no_slot_is_carried_out(native):
    native.iommu.reset()
    native.words[0] = 1
    native.view[native.slot_at(0) : native.slot_at(0) + SLOT_SIZE] = (
        Slot(OpClass.XEN_2024, 0, 0, 1).pack() + map_op(1, 0x100, 0x10)
    ).ljust(SLOT_SIZE, b"\0")

    assert not native.iommu.spin(ROUND)
    assert not native.iommu.work()


def test_a_device_of_python_does_not_poll_by_itself():
    driver = python_driver()
    try:
        driver.start()
        driver.put(NOOP)
        assert not driver.iommu.spin(ROUND)
    finally:
        driver.close()


AWAITED = GuestRingLine.offset_of("awaited") // 4


@pytest.mark.row("driver", 75)
@pytest.mark.parametrize("polls", [False, True])
def test_waits_are_counted_alike_by_polls_and_by_python(native, polls):
    counts = []
    for awaited, flags in ((0, 0), (0, SlotFlags.POSTED), (5, SlotFlags.POSTED), (5, SlotFlags.POSTED), (0, 0), (7, 0)):
        native.iommu.waits()
        native.words[AWAITED] = awaited
        native.put(map_op(1, 0x100 + len(counts), 0x10), flags=flags)
        assert native.iommu.spin(ROUND) if polls else native.iommu.work()
        counts.append(native.iommu.waits())

    assert counts == [1, 0, 1, 0, 1, 1]
    assert native.iommu.is_told_of_waits


@pytest.mark.row("driver", 75)
@pytest.mark.parametrize("awaited", [0, 1])
def test_a_poll_goes_on_after_a_wait_and_not_after_posted_work(native, awaited):
    """A wait is worth a window; where nobody waits the time that was left is all there is."""
    native.words[AWAITED] = awaited
    native.put(map_op(1, 0x100, 0x10), flags=SlotFlags.POSTED)
    start, used = time.monotonic_ns(), time.thread_time_ns()

    native.iommu.spin(Poll(1_000_000_000, 1000, 20_000_000))

    if awaited:
        assert time.monotonic_ns() - start >= 20_000_000
    else:
        assert time.thread_time_ns() - used < 20_000_000


@pytest.mark.row("driver", 75)
def test_a_poll_ends_after_its_budget_however_often_somebody_waits(native):
    start = time.monotonic_ns()
    native.words[AWAITED] = 1
    native.put(map_op(1, 0x100, 0x10))

    native.iommu.spin(Poll(1_000_000, 1_000_000, 10_000_000_000))

    assert 1_000_000 <= time.monotonic_ns() - start < 1_000_000_000


def test_memory_that_was_renewed_is_where_the_ring_is(native):
    native.iommu.disconnected()
    native.start()
    assert native.alloc() == (0, 1)

    assert native.map(1, 5, 6, 1) == (0, 1)


def test_a_ring_goes_on_where_another_one_was_saved(native_library):
    """The same slots, of which C carries out the second, in the memory of the first machine."""
    drivers = [native_driver(native_library).start(rings=2) for _ in range(2)]
    try:
        first, second = (driver.iommu for driver in drivers)
        assert drivers[0].alloc() == (0, 1)
        second.contexts.alloc()
        second.shared.view[:] = first.shared.view
        second.rings[0].load(first.rings[0].save())

        drivers[1].rings[0].producer = drivers[0].rings[0].producer
        assert drivers[1].call(map_op(1, 5, 5, 2))[0] == 0

        assert (first.rings[0].completed, second.rings[0].completed) == (1, 2)
        assert second.engine.lookup(1, 6) == (6, 3)
    finally:
        for driver in drivers:
            driver.close()
