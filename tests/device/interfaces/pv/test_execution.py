import os
from dataclasses import replace

import pytest

from pviommu.dma.fault import DmaPendingError, DmaRefusedError
from pviommu.hosted import STOPPED_NS
from pviommu.interfaces.pv import execution
from pviommu.interfaces.pv.execution import MOST_SLOTS
from pviommu.interfaces.pv.order import DRAIN_NS, STEP_NS
from pviommu.interfaces.pv.pages import PIECE
from pviommu.interfaces.pv.patience import CATCH_UP_NS
from pviommu.interfaces.pv.profile import Progress
from pviommu.interfaces.pv.ring import Operation, passed
from pviommu_abi.registers import RingStatus
from pviommu_abi.shared import (
    CACHE_LINE,
    RING_INDEX_STRIDE,
    SBDF_UNBOUND,
    EventReason,
    GuestRingLine,
)
from pviommu_abi.slots import Errno, OpClass, SlotFlags
from pviommu_abi.vendor import Call, VendorOp
from pviommu_abi.xen_2024 import MapPages, PvIommuOp, ReattachDevice, UnmapPages, Xen2024Op
from pviommu_abi.xen_v7 import V7MapPages, V7UnmapPages, XenV7Op

from ...conftest import DEVFN, ENTRIES, reason_of

NOOP = PvIommuOp(Xen2024Op.NOOP, 0, 0).pack()
ALLOC = PvIommuOp(Xen2024Op.ALLOC_CONTEXT, 0, 0).pack()


@pytest.fixture
def slow(make_driver):
    """Two rings, 4 GiB of RAM, a context, and a clock with which a step is over after each piece or slot."""
    driver = make_driver().start(rings=2)
    driver.iommu.engine.set_ram([(0, (1 << 20) - 1)])
    driver.alloc()
    driver.inputs.time_step = 2 * STEP_NS
    return driver


def finish(driver):
    while driver.iommu.work():
        pass


def refusal(driver, name, iova):
    with pytest.raises(DmaRefusedError) as caught:
        driver.dma_read(name, iova, 1)
    return reason_of(caught.value)


def map_op(ctx, dfn, gfn, nr=1):
    return MapPages(Xen2024Op.MAP_PAGES, ctx, 3, gfn, dfn, nr).pack()


def doorbell_asked(driver, ring=0):
    event = driver.words[(ring * RING_INDEX_STRIDE + CACHE_LINE) // 4 + 1]
    return passed(event, driver.producer[ring] + 1, driver.producer[ring])


# -- slots ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op_class", "op", "flags"),
    [
        (0, 0, 0),
        (OpClass.XEN_V7, 0, 0),
        (0xFF, 0, 0),
        (OpClass.XEN_2024, 1, 0),
        (OpClass.XEN_2024, 0, 2),
        (OpClass.VENDOR, 4, 0x8000),
    ],
)
@pytest.mark.row("defect", "C10")
@pytest.mark.row("defect", "C11")
def test_an_unknown_class_number_or_flag_is_einval(driver, op_class, op, flags):
    assert driver.call(NOOP, op_class, op, flags=flags)[0] == -Errno.EINVAL


@pytest.mark.row("defect", "D10")
def test_the_sequence_is_echoed_as_completed(driver):
    position = driver.put(ALLOC, sequence=0xDEADBEEF)
    driver.iommu.work()
    slot, _ = driver.outcome(position)
    assert (slot.completed, slot.sequence, slot.result) == (0xDEADBEEF, 0xDEADBEEF, 0)


@pytest.mark.row("defect", "D10")
def test_result_and_payload_are_in_place_when_completed_moves(driver, monkeypatch):
    driver.attached()
    seen = []
    publish = driver.iommu.rings[0].publish

    def publish_and_look(count):
        slot, payload = driver.outcome(position)
        seen.append((slot.completed, slot.result, PvIommuOp.unpack(payload).ctx_no))
        return publish(count)

    monkeypatch.setattr(driver.iommu.rings[0], "publish", publish_and_look)
    position = driver.put(ALLOC, sequence=55)
    driver.iommu.work()
    assert seen == [(55, 0, 2)]


@pytest.mark.row("defect", "D3")
def test_unmap_is_published_only_when_no_dma_can_use_the_old_translation(driver, monkeypatch):
    ctx = driver.attached()
    driver.map(ctx, 0x100, 0x10, 1)
    driver.dma_read("dma0", 0x100000, 1)  # now it is in the IOTLB
    seen = []
    publish = driver.iommu.rings[0].publish

    def try_dma_and_publish(count):
        seen.append(refusal(driver, "dma0", 0x100000))
        return publish(count)

    monkeypatch.setattr(driver.iommu.rings[0], "publish", try_dma_and_publish)
    driver.unmap(ctx, 0x100, 1)
    assert seen == [EventReason.NOT_MAPPED]


@pytest.mark.row("defect", "B2")
def test_a_slot_changed_after_it_was_fetched_has_no_effect(driver):
    _, ctx = driver.alloc()
    position = driver.put(map_op(ctx, 0x100, 0x10))
    at = driver.slot_at(position)

    def change():
        driver.view[at + 4 : at + 64] = b"\xff" * 60

    driver.inputs.after_copy = change
    driver.iommu.work()
    driver.inputs.after_copy = None
    slot, _ = driver.outcome(position)
    assert (slot.result, slot.completed) == (0, position + 100)
    assert driver.lookup(ctx, 0x100) == (0, 0x10)


@pytest.mark.row("defect", "B2")
def test_a_slot_changed_while_an_earlier_one_is_executed_has_no_effect(make_driver):
    driver = make_driver().start(rings=2)
    _, ctx = driver.alloc()
    driver.put(ALLOC)  # drains, which looks at ring 1
    position = driver.put(map_op(ctx, 0x100, 0x10))
    at = driver.slot_at(position)

    def change(index):
        if index == RING_INDEX_STRIDE // 4:
            driver.view[at : at + 64] = b"\xff" * 64

    driver.inputs.before_word = change
    driver.iommu.work()
    driver.inputs.before_word = None
    assert driver.iommu.engine.domains() == (ctx, ctx + 1)
    assert driver.lookup(ctx, 0x100) == (0, 0x10)


@pytest.mark.row("defect", "C16")
def test_an_operation_that_fails_inside_the_device_fails_alone(driver, monkeypatch, caplog):
    monkeypatch.setattr(driver.iommu.engine, "usage", lambda: 1 // 0)
    bad = driver.put(b"", OpClass.VENDOR, VendorOp.QUERY_USAGE)
    good = driver.put(NOOP)
    driver.iommu.work()
    monkeypatch.undo()
    assert driver.outcome(bad)[0].result == -Errno.EIO
    assert driver.outcome(good)[0].result == 0
    assert "ZeroDivisionError" in caplog.text


def test_a_step_is_bounded_and_the_rest_follows(make_driver):
    driver = make_driver()
    driver.plug_ram()
    driver.write("PROFILE", 1)
    driver.set_up_ring(entries=1024)
    for _ in range(MOST_SLOTS + 5):
        driver.put(NOOP)
    assert driver.iommu.work()
    assert driver.completed() == MOST_SLOTS
    assert driver.iommu.work()
    assert driver.completed() == MOST_SLOTS + 5
    assert not driver.iommu.work()


def test_slots_across_the_end_of_the_ring_are_executed_in_order(driver):
    for _ in range(ENTRIES - 2):
        driver.call(NOOP)
    positions = [driver.put(ALLOC) for _ in range(4)]
    while driver.iommu.work():
        pass
    assert [PvIommuOp.unpack(driver.outcome(position)[1]).ctx_no for position in positions] == [1, 2, 3, 4]


# -- posted slots -----------------------------------------------------------------------------------------------------


def test_a_posted_failure_is_an_event_with_errno_and_sequence(driver):
    position = driver.put(map_op(9, 0x100, 0x10), flags=SlotFlags.POSTED, sequence=4711)
    driver.iommu.work()
    (event,) = driver.events()
    assert (event.reason, event.result, event.slot) == (EventReason.POSTED_FAILED, -Errno.EINVAL, 4711)
    assert driver.outcome(position)[0].completed == 4711


def test_a_posted_success_is_silent_and_counted(driver):
    driver.put(NOOP, flags=SlotFlags.POSTED)
    driver.iommu.work()
    assert (driver.events(), driver.completed(), driver.counters.slots_posted) == ([], 1, 1)


def test_posted_slots_complete_with_one_interrupt_and_waited_ones_each(driver):
    fd = driver.msix(1)
    try:
        driver.words[1] = 2  # interrupt when completed passes 2
        for _ in range(4):
            driver.put(NOOP, flags=SlotFlags.POSTED)
        driver.iommu.work()
        assert os.eventfd_read(fd) == 1
        driver.words[1] = 4
        driver.put(NOOP)
        driver.iommu.work()
        assert os.eventfd_read(fd) == 1
        driver.put(NOOP)
        driver.iommu.work()
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fd)
    finally:
        os.close(fd)


def test_a_posted_map_is_seen_by_the_dma_that_needs_it(driver):
    ctx = driver.attached()
    driver.ram[0x10000:0x10004] = b"data"
    driver.put(map_op(ctx, 0x100, 0x10), flags=SlotFlags.POSTED)
    assert driver.dma_read("dma0", 0x100000, 4) == b"data"
    assert driver.events() == []


# -- order between rings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["alloc", "free", "reattach", "unbind"])
@pytest.mark.row("defect", "C7")
@pytest.mark.row("defect", "D14")
def test_what_moves_endpoints_or_contexts_first_drains_the_other_rings(make_driver, op):
    driver = make_driver().start(rings=2)
    ctx = driver.attached()
    driver.map(ctx, 0x100, 0x10, 1)
    seen = []
    engine = driver.iommu.engine
    payload = {
        "alloc": ALLOC,
        "free": PvIommuOp(Xen2024Op.FREE_CONTEXT, ctx, 1).pack(),
        "reattach": ReattachDevice(Xen2024Op.REATTACH_DEVICE, 0, 0, 0, 0, DEVFN["dma0"]).pack(),
        "unbind": bytes((0, 0, 0, DEVFN["dma0"])),
    }[op]
    later = driver.put(map_op(ctx, 0x200, 0x20), ring=1)
    sooner = driver.put(
        payload, *((OpClass.VENDOR, VendorOp.UNBIND) if op == "unbind" else (OpClass.XEN_2024, 0)), ring=0
    )
    publish = driver.iommu.rings[0].publish
    driver.iommu.rings[0].publish = lambda count: seen.append(driver.completed(ring=1)) or publish(count)
    driver.iommu.work()
    assert seen == [1]
    assert driver.outcome(later, ring=1)[0].result == 0  # with free it would be -EINVAL afterwards
    assert driver.outcome(sooner)[0].result == 0
    assert engine.domains() == {"free": (), "alloc": (ctx, ctx + 1)}.get(op, (ctx,))


def test_a_map_does_not_wait_for_the_other_rings(make_driver):
    driver = make_driver().start(rings=2)
    _, ctx = driver.alloc()
    driver.put(NOOP, ring=1)
    seen = []
    publish = driver.iommu.rings[0].publish
    driver.iommu.rings[0].publish = lambda count: seen.append(driver.completed(ring=1)) or publish(count)
    driver.map(ctx, 0x100, 0x10, 1)
    assert seen == [0]


def test_two_rings_that_drain_each_other_come_to_an_end(make_driver):
    driver = make_driver().start(rings=2)
    for ring in (0, 1, 0, 1):
        driver.put(ALLOC, ring=ring)
    while driver.iommu.work():
        pass
    assert (driver.completed(0), driver.completed(1)) == (2, 2)
    assert driver.iommu.engine.domains() == (1, 2, 3, 4)


def test_a_drain_ends_at_the_index_it_found(driver):
    ctx = driver.attached()
    driver.put(NOOP)
    added = []

    def add_another():
        if len(added) < 5:
            added.append(driver.put(NOOP))

    driver.inputs.after_copy = add_another
    assert refusal(driver, "dma0", 0x100000) is EventReason.NOT_MAPPED
    driver.inputs.after_copy = None
    assert driver.producer[0] - driver.completed() == 1
    assert ctx == 1


# -- broken rings -----------------------------------------------------------------------------------------------------


@pytest.mark.row("defect", "B3")
@pytest.mark.row("defect", "B4")
def test_an_impossible_producer_index_stops_the_ring_with_one_event(driver):
    driver.words[0] = driver.producer[0] + ENTRIES + 1
    assert not driver.iommu.work()
    assert not driver.iommu.work()
    (event,) = driver.events()
    assert (event.reason, event.slot, event.sbdf) == (EventReason.RING_BROKEN, 0, SBDF_UNBOUND)
    assert driver.read("RING_STATUS") == RingStatus.ENABLED | RingStatus.BROKEN


def test_a_broken_ring_leaves_the_others_and_is_repaired_by_enabling_it_again(make_driver):
    driver = make_driver().start(rings=2)
    driver.words[0] = 0x80000000
    assert driver.call(ALLOC, ring=1)[0] == 0
    driver.write("RING_SELECT", 0)
    driver.write("RING_CONTROL", 0)
    driver.set_up_ring(0)
    assert driver.read("RING_STATUS") == RingStatus.ENABLED
    assert driver.call(ALLOC)[0] == 0


# -- sleeping ---------------------------------------------------------------------------------------------------------


def test_arming_asks_for_doorbells_of_all_rings_and_disarming_for_none(make_driver):
    driver = make_driver().start(rings=2)
    assert not doorbell_asked(driver, 0)
    assert driver.iommu.arm()
    assert doorbell_asked(driver, 0)
    assert doorbell_asked(driver, 1)
    driver.iommu.disarm()
    assert not doorbell_asked(driver, 0)
    assert not doorbell_asked(driver, 1)


def test_a_slot_published_while_arming_is_found_and_sleep_refused(driver):
    """The guest's store lands after the device's, before the look that follows: it saw no need for the doorbell."""
    driver.call(NOOP)

    def publish(index):
        driver.inputs.before_word = None
        driver.put(NOOP)

    driver.inputs.before_word = publish
    assert not driver.iommu.arm()
    assert driver.iommu.work()


def test_a_slot_published_just_before_the_request_for_doorbells_is_found(driver, monkeypatch):
    """The guest looked at the doorbell index a moment too early: nobody but the look after arming finds its slot."""
    arm = driver.iommu.rings[0].arm

    def publish_and_arm():
        driver.put(NOOP)
        arm()

    monkeypatch.setattr(driver.iommu.rings[0], "arm", publish_and_arm)
    assert not driver.iommu.arm()


def test_a_store_that_only_the_fence_makes_visible_is_found(driver, monkeypatch):
    """A stand-in for the store buffer: what the guest published becomes visible at the fence and not before."""
    monkeypatch.setattr(execution, "fence", lambda: driver.put(NOOP))
    assert not driver.iommu.arm()


def test_arming_precedes_its_fence(driver, monkeypatch):
    asked = []
    monkeypatch.setattr(execution, "fence", lambda: asked.append(doorbell_asked(driver)))
    driver.iommu.arm()
    assert asked == [True]


def test_only_a_function_with_rings_on_is_polled(make_driver):
    driver = make_driver()
    assert not driver.iommu.is_polled
    driver.start()
    assert driver.iommu.is_polled


def test_a_step_is_bounded_in_time_and_the_rest_follows(driver):
    for _ in range(3):
        driver.put(NOOP)

    def take_long():
        driver.inputs.time += STEP_NS

    driver.inputs.after_copy = take_long
    assert driver.iommu.work()
    assert driver.completed() == 1
    assert driver.iommu.work()
    assert driver.completed() == 2


# -- who waits --------------------------------------------------------------------------------------------------------

AWAITED = GuestRingLine.offset_of("awaited") // 4


def await_slots(driver, index, ring=0):
    """Say on the ring that somebody polls until ``index`` slots are completed."""
    driver.words[ring * RING_INDEX_STRIDE // 4 + AWAITED] = index


@pytest.mark.row("driver", 72)
def test_a_guest_that_says_nothing_waits_for_all_but_posted_slots(driver):
    driver.iommu.waits()
    driver.put(NOOP)
    driver.put(NOOP, flags=SlotFlags.POSTED)
    driver.put(NOOP)
    driver.iommu.work()
    assert (driver.iommu.waits(), driver.iommu.waits()) == (2, 0)
    assert not driver.iommu.is_told_of_waits


@pytest.mark.row("driver", 72)
def test_a_guest_that_says_nothing_waits_if_it_rings(driver):
    driver.iommu.waits()
    driver.write("DOORBELL", 1)
    driver.put(NOOP, flags=SlotFlags.POSTED)
    driver.iommu.work()
    assert (driver.iommu.waits(), driver.iommu.waits()) == (1, 0)


@pytest.mark.row("driver", 70)
def test_a_guest_that_says_when_it_waits_does_so_at_no_other_time(driver):
    await_slots(driver, 1)
    driver.iommu.waits()
    driver.write("DOORBELL", 1)
    driver.call(NOOP)
    assert driver.iommu.waits() == 0
    await_slots(driver, 2)
    assert (driver.iommu.waits(), driver.iommu.waits()) == (1, 0)
    assert driver.counters.waits >= 2


@pytest.mark.row("driver", 73)
def test_waits_on_every_ring_are_seen(make_driver):
    driver = make_driver().start(rings=3)
    driver.iommu.waits()
    for ring in range(3):
        await_slots(driver, 1, ring)
    assert driver.iommu.waits() == 3


def test_after_a_reset_nothing_is_known_of_waits(driver):
    await_slots(driver, 1)
    driver.put(NOOP)
    driver.iommu.work()
    driver.iommu.waits()
    driver.write("DOORBELL", 1)
    driver.iommu.reset()
    driver.start()
    assert (driver.iommu.waits(), driver.iommu.is_told_of_waits) == (0, False)


# -- long operations --------------------------------------------------------------------------------------------------

LONG = 200000
"""Pages of a map that takes many pieces, in a way that does not allow large leaves."""


def long_map(driver, nr=LONG, **how):
    return driver.put(map_op(1, 0, 1, nr), **how)


@pytest.mark.row("xen", 52)
def test_a_long_map_lets_the_other_ring_have_its_turns_and_reports_the_total(slow):
    position = long_map(slow)
    assert slow.iommu.work()
    assert (slow.completed(), slow.iommu.engine.usage().mapped_pages) == (position, PIECE)
    assert slow.call(NOOP, ring=1)[0] == 0
    assert slow.completed() == position
    finish(slow)
    slot, answer = slow.outcome(position)
    assert (slot.result, slot.completed) == (0, position + 100)
    assert MapPages.unpack(answer) == MapPages(Xen2024Op.MAP_PAGES, 1, 3, 1, 0, LONG, LONG)


@pytest.mark.row("xen", 52)
def test_a_long_unmap_lets_the_other_ring_have_its_turns_and_reports_the_total(slow):
    long_map(slow)
    finish(slow)
    position = slow.put(UnmapPages(Xen2024Op.UNMAP_PAGES, 1, 0, 0, LONG, 9).pack())
    slow.iommu.work()
    assert (slow.completed(), slow.iommu.engine.usage().mapped_pages) == (position, LONG - PIECE)
    assert slow.call(NOOP, ring=1)[0] == 0
    finish(slow)
    slot, answer = slow.outcome(position)
    assert (slot.result, UnmapPages.unpack(answer)) == (0, UnmapPages(6, 1, 0, 0, LONG, LONG))
    assert slow.iommu.engine.usage().pool_pages_used == 1


@pytest.mark.row("xen", 52)
@pytest.mark.row("xen", 53)
def test_a_long_operation_of_xen_v7_adds_its_total_and_keeps_in_fields(v7):
    v7.alloc()
    driver = v7.driver
    driver.iommu.engine.set_ram([(0, (1 << 20) - 1)])
    driver.inputs.time_step = 2 * STEP_NS
    v7.map(1, 150000, 5, 1)
    given = V7MapPages(1, 0, 0, 1, 0, 3, 4096, LONG, 7)
    position = driver.put(given.pack(), OpClass.XEN_V7, XenV7Op.MAP_PAGES)
    driver.iommu.work()
    assert driver.completed() == position
    finish(driver)
    slot, answer = driver.outcome(position)
    assert (slot.result, V7MapPages.unpack(answer)) == (-Errno.EADDRINUSE, replace(given, mapped=150007))
    given = V7UnmapPages(1, 0, 0, 0, 4096, LONG, 3, 0)
    position = driver.put(given.pack(), OpClass.XEN_V7, XenV7Op.UNMAP_PAGES)
    driver.iommu.work()
    assert driver.completed() == position
    finish(driver)
    slot, answer = driver.outcome(position)
    assert (slot.result, V7UnmapPages.unpack(answer)) == (-Errno.ENOENT, replace(given, unmapped=150004))


@pytest.mark.row("xen", 53)
@pytest.mark.parametrize("at", [PIECE - 1, PIECE, 150000, LONG - 1])
def test_a_failure_in_any_piece_of_a_long_map_counts_all_pages_before_it(slow, at):
    slow.map(1, at, 7, 1)
    position = long_map(slow)
    finish(slow)
    slot, answer = slow.outcome(position)
    assert (slot.result, MapPages.unpack(answer).mapped) == (-Errno.EADDRINUSE, at)
    assert slow.lookup(1, at) == (0, 7)


@pytest.mark.parametrize("end", ["finished", "failed", "reset"])
def test_a_ring_is_saved_with_its_long_operation_in_progress(slow, end, monkeypatch):
    ring, other, *_ = slow.iommu.rings
    position = long_map(slow)
    slow.iommu.work()

    operation = ring.save().operation
    slot = OpClass.XEN_2024, 0, 0, position + 100, map_op(1, 0, 1, LONG).ljust(48, b"\0")
    assert operation == Operation(*slot, Progress(PIECE))
    assert other.save().operation is None

    if end == "failed":
        monkeypatch.setattr(type(slow.iommu.engine), "map", lambda *_, **__: 1 // 0)
    if end == "reset":
        slow.iommu.reset()
    finish(slow)
    assert ring.save().operation is None


def test_slots_behind_a_long_operation_wait_for_its_end(slow):
    first = slow.put(NOOP, flags=SlotFlags.POSTED)
    position = long_map(slow)
    later = slow.put(ALLOC)
    slow.iommu.work()  # the posted one ends this step
    slow.iommu.work()
    assert slow.completed() == position == first + 1
    assert slow.iommu.engine.domains() == (1,)
    finish(slow)
    assert slow.outcome(later)[0].result == 0


def test_a_posted_slot_before_a_long_operation_is_completed_when_that_begins(slow):
    slow.inputs.time_step = 1
    slow.put(NOOP, flags=SlotFlags.POSTED)
    seen = []
    engine = slow.iommu.engine
    real, engine.map = engine.map, lambda *a, **k: seen.append(slow.completed()) or real(*a, **k)
    position = long_map(slow)
    slow.iommu.work()
    assert (set(seen), slow.completed()) == ({position}, position + 1)


def test_a_long_operation_within_the_time_of_a_step_is_done_in_one(slow):
    slow.inputs.time_step = 1
    long_map(slow)
    slow.put(NOOP)
    slow.iommu.work()
    assert slow.completed() == slow.producer[0]


def test_a_posted_long_operation_that_fails_is_an_event(slow):
    slow.map(1, 150000, 7, 1)
    long_map(slow, flags=SlotFlags.POSTED, sequence=99)
    finish(slow)
    (event,) = slow.events()
    assert (event.reason, event.result, event.slot) == (EventReason.POSTED_FAILED, -Errno.EADDRINUSE, 99)


def test_a_long_operation_that_fails_inside_the_device_fails_alone(slow, monkeypatch, caplog):
    position = long_map(slow)
    slow.iommu.work()
    monkeypatch.setattr(slow.iommu.engine, "map", lambda *_, **__: 1 // 0)
    finish(slow)
    monkeypatch.undo()
    assert slow.outcome(position)[0].result == -Errno.EIO
    assert "ZeroDivisionError" in caplog.text
    assert slow.call(NOOP)[0] == 0


def test_the_device_does_not_sleep_on_a_long_operation_even_if_the_guest_takes_its_slot_back(slow):
    long_map(slow)
    slow.iommu.work()
    slow.words[0] -= 1
    assert not slow.iommu.arm()
    finish(slow)
    assert slow.iommu.engine.usage().mapped_pages == LONG


def test_a_long_operation_is_finished_before_dma_is_refused(slow):
    slow.attached("dma0", 1)
    position = long_map(slow)
    slow.iommu.work()
    slow.inputs.time_step = 1
    assert slow.dma_read("dma0", 0, 1) == b"\0"
    assert slow.completed() == position  # what it needed was there
    assert slow.dma_read("dma0", (0x900) << 12, 1) == b"\0"
    assert refusal(slow, "dma0", LONG << 12) is EventReason.NOT_MAPPED
    assert slow.completed() == position + 1


@pytest.mark.parametrize("op", ["free", "call"])
def test_a_long_operation_of_another_ring_is_finished_before_contexts_change(slow, op):
    """Otherwise the rest would go to whatever gets the context's number next."""
    position = long_map(slow)
    slow.iommu.work()
    free = PvIommuOp(Xen2024Op.FREE_CONTEXT, 1, 0).pack()
    slow.ram[0x8000:0x8020] = free.ljust(32, b"\0")
    call = (Call(0x8000, 0).pack(), OpClass.VENDOR, VendorOp.CALL)
    freed = slow.put(*(call if op == "call" else (free,)), ring=1)
    finish(slow)
    assert MapPages.unpack(slow.outcome(position)[1]).mapped == LONG
    assert slow.outcome(freed, ring=1)[0].result == 0
    assert slow.iommu.engine.domains() == ()


def test_what_waits_for_other_rings_lets_them_have_turns_and_is_carried_out_in_the_end(slow):
    for start in range(3):
        slow.put(MapPages(Xen2024Op.MAP_PAGES, 1, 3, 1, start * LONG, LONG).pack())
    alloc = slow.put(ALLOC, ring=1)
    steps = 0
    while slow.completed(ring=1) == alloc:
        assert slow.iommu.work()
        steps += 1
        assert slow.iommu.engine.domains() == ((1,) if slow.completed(ring=1) == alloc else (1, 2))
    assert (slow.completed() - alloc > 0, steps > 4) == (True, True)
    assert slow.iommu.engine.usage().mapped_pages == 3 * LONG


def test_two_rings_that_wait_for_each_other_come_to_an_end(slow):
    for ring in (0, 1):
        slow.put(map_op(1, ring * LONG, 1, LONG), ring=ring)
        slow.put(ALLOC, ring=ring)
        slow.put(map_op(1, (2 + ring) * LONG, 1, LONG), ring=ring)
        slow.put(ALLOC, ring=ring)
    finish(slow)
    assert (slow.completed(0), slow.completed(1)) == (slow.producer[0], slow.producer[1])
    assert slow.iommu.engine.domains() == (1, 2, 3, 4, 5)
    assert slow.iommu.engine.usage().mapped_pages == 4 * LONG


def test_a_long_operation_that_waits_for_other_rings_first(slow):
    """A long map by way of memory: it waits, and then it takes pieces itself."""
    slow.ram[0x8000:0x8020] = map_op(1, LONG, 1, LONG)
    long_map(slow)
    position = slow.put(Call(0x8000, 0).pack(), OpClass.VENDOR, VendorOp.CALL, ring=1)
    finish(slow)
    assert slow.outcome(position, ring=1)[0].result == 0
    assert slow.iommu.engine.usage().mapped_pages == 2 * LONG


def test_what_waits_for_a_ring_that_is_turned_off_goes_on(slow):
    long_map(slow)
    slow.put(NOOP)
    alloc = slow.put(ALLOC, ring=1)
    slow.iommu.work()
    slow.write("RING_SELECT", 0)
    slow.write("RING_CONTROL", 0)
    finish(slow)
    assert slow.outcome(alloc, ring=1)[0].result == 0


@pytest.mark.parametrize("how", ["ring off", "reset", "disconnect"])
def test_what_is_left_of_a_long_operation_is_dropped_with_its_ring(slow, how):
    position = long_map(slow)
    slow.iommu.work()
    mapped = slow.iommu.engine.usage().mapped_pages
    assert 0 < mapped < LONG
    if how == "ring off":
        slow.write("RING_SELECT", 0)
        slow.write("RING_CONTROL", 0)
    elif how == "reset":
        slow.iommu.reset()
        mapped = 0
    else:
        slow.iommu.disconnected()
        mapped = 0
    finish(slow)
    assert slow.iommu.arm()
    assert slow.iommu.engine.usage().mapped_pages == mapped
    if how == "ring off":
        assert slow.outcome(position)[0].completed == 0
        slow.set_up_ring(0)
        assert slow.call(NOOP)[0] == 0
        finish(slow)
        assert slow.iommu.engine.usage().mapped_pages == mapped


def test_the_reset_register_finishes_a_long_operation_first(slow):
    position = long_map(slow)
    slow.iommu.work()
    slow.inputs.time_step = 1
    pages = slow.counters.pages_mapped
    slow.write("RESET", 1)
    assert slow.counters.pages_mapped - pages > LONG // 2
    assert position == 1


def test_a_broken_ring_still_finishes_the_operation_in_progress(slow):
    long_map(slow)
    slow.iommu.work()
    slow.words[0] = 0x80000000
    finish(slow)
    assert slow.iommu.engine.usage().mapped_pages == LONG
    assert slow.read("STATUS")


# -- bounds of drains -------------------------------------------------------------------------------------------------


def pending(driver, name, iova):
    with pytest.raises(DmaPendingError):
        driver.dma_read(name, iova, 1)


def turns_of_dma(driver, iova, between=lambda: None):
    """Make a request of ``dma0`` again and again, a step of the rings between; how many turns it takes to succeed."""
    for turn in range(1, 1000):
        between()
        driver.iommu.work()
        try:
            driver.dma_read("dma0", iova, 1)
        except DmaPendingError:
            continue
        return turn
    raise AssertionError("it waits forever")


def put_long_maps(driver, count):
    """``dma0`` attached, and so many posted maps one after the other, each of many pieces; the IOVA after them."""
    driver.attached("dma0", 1)
    for number in range(count):
        driver.put(map_op(1, number * LONG, 1, LONG), flags=SlotFlags.POSTED)
    return (count * LONG) << 12


@pytest.mark.row("wire", 44)
@pytest.mark.row("defect", "A19")
@pytest.mark.row("server", 30)
def test_dma_waits_for_full_rings_and_is_not_refused_because_of_them(slow):
    """However long that takes, and nothing is executed beyond a turn's time for all drains together."""
    last = put_long_maps(slow, 4)
    slow.put(map_op(1, last >> 12, 1), flags=SlotFlags.POSTED)
    pending(slow, "dma0", last)
    begun = slow.counters.pages_mapped
    assert 0 < begun < LONG
    pending(slow, "dma0", last)
    assert slow.counters.pages_mapped == begun  # the turn's time was used up
    assert turns_of_dma(slow, last) > 4
    assert slow.counters.faults == 0
    finish(slow)
    assert slow.counters.pages_mapped == 4 * LONG + 1
    assert slow.counters.drains_continued > 0


@pytest.mark.row("server", 30)
def test_a_step_of_the_rings_gives_drains_their_time_back(slow):
    iova = put_long_maps(slow, 1)
    pending(slow, "dma0", iova)
    slow.iommu.work()
    slow.inputs.time_step = 1
    assert refusal(slow, "dma0", iova) is EventReason.NOT_MAPPED
    assert slow.completed() == slow.producer[0]
    assert len(slow.events()) == 1


@pytest.mark.row("server", 31)
def test_dma_waits_for_what_the_rings_held_when_it_was_refused_and_for_no_more(slow):
    """A guest that always has something in its rings puts its refusal off no further."""
    slow.attached("dma0", 1)
    for _ in range(3):
        slow.put(NOOP, flags=SlotFlags.POSTED)
    pending(slow, "dma0", 0x100000)
    held = slow.producer[0]

    def put_more():
        for _ in range(3):
            slow.put(NOOP, flags=SlotFlags.POSTED)

    with pytest.raises(DmaRefusedError):
        turns_of_dma(slow, 0x100000, put_more)
    assert held <= slow.completed() <= held + 1
    assert slow.completed() < slow.producer[0]


@pytest.mark.row("driver", 5)
@pytest.mark.row("server", 31)
def test_dma_after_a_stop_waits_for_full_rings_but_not_for_as_long_as_those_take(slow):
    slow.attached("dma0", 1)
    slow.map(1, LONG, 1, 1)
    put_long_maps(slow, 1)
    slow.inputs.time += 2 * STOPPED_NS
    pending(slow, "dma0", LONG << 12)
    slow.inputs.time += CATCH_UP_NS // 2 - STOPPED_NS
    slow.iommu.rested()
    pending(slow, "dma0", LONG << 12)
    slow.inputs.time += CATCH_UP_NS // 2 + STOPPED_NS
    slow.iommu.rested()
    assert slow.dma_read("dma0", LONG << 12, 1) == b"\0"
    assert slow.completed() < slow.producer[0]


@pytest.mark.row("server", 31)
def test_dma_does_not_wait_for_a_long_operation_that_came_after_it(slow):
    slow.attached("dma0", 1)
    for _ in range(2):
        slow.put(NOOP, flags=SlotFlags.POSTED)
    pending(slow, "dma0", LONG << 12)
    long_map(slow)
    while slow.iommu.engine.usage().mapped_pages == 0:
        slow.iommu.work()
    assert refusal(slow, "dma0", LONG << 12) is EventReason.NOT_MAPPED
    assert slow.completed() < slow.producer[0]


@pytest.mark.row("server", 31)
def test_each_request_waits_for_what_the_rings_hold_when_it_begins(slow):
    """Not for what they held when the one before it began, which was carried out, refused or cancelled meanwhile."""
    endings = {
        "success": lambda: slow.dma_read("dma0", 0, 1),
        "reset": slow.machine.endpoints["dma0"].reset,
        "cancelled": slow.machine.endpoints["dma0"].cancel,
    }
    slow.attached("dma0", 1)
    slow.map(1, 0, 1, 1)
    for number, end in enumerate(endings.values(), 1):
        slow.put(NOOP, flags=SlotFlags.POSTED)
        slow.put(NOOP, flags=SlotFlags.POSTED)
        pending(slow, "dma0", 0x100000)
        end()
        slow.master("dma0")
        slow.put(map_op(1, 0x100 + number, 1), flags=SlotFlags.POSTED)
        while slow.completed() != slow.producer[0] - 1:
            slow.iommu.work()
        slow.inputs.time_step = 1
        slow.iommu._executor.order.drain_left_ns = DRAIN_NS
        assert slow.dma_read("dma0", (0x100 + number) << 12, 1) == b"\0"
        slow.inputs.time_step = 2 * STEP_NS


@pytest.mark.row("server", 31)
def test_what_the_rings_held_before_a_reset_is_waited_for_no_more(slow):
    slow.attached("dma0", 1)
    for _ in range(2):
        slow.put(NOOP, flags=SlotFlags.POSTED)
    pending(slow, "dma0", 0x100000)
    slow.iommu.reset()
    assert refusal(slow, "dma0", 0x100000) is EventReason.BLOCKED


@pytest.mark.row("server", 32)
def test_the_reset_register_goes_on_in_steps_and_resets_once_the_rings_are_worked_off(slow):
    put_long_maps(slow, 2)
    steps = slow.write("RESET", 1)
    taken = 0
    while next(steps, "end") is None:
        taken += 1
        assert slow.iommu.engine.domains() == (1,)
    assert taken > 4
    assert slow.counters.pages_mapped == 2 * LONG
    assert (slow.iommu.engine.domains(), slow.read("STATUS")) == ((), 0)


@pytest.mark.row("server", 32)
def test_a_reset_whose_client_goes_is_not_done_twice(slow):
    put_long_maps(slow, 2)
    steps = slow.write("RESET", 1)
    slow.iommu.disconnected()
    steps.close()
    assert slow.counters.pages_mapped < 2 * LONG
    assert slow.iommu.engine.domains() == ()


@pytest.mark.row("server", 33)
def test_rings_that_are_busy_together_share_the_time_of_one_step(make_driver):
    driver = make_driver().start(rings=4)
    for ring in range(4):
        for _ in range(200):
            driver.put(NOOP, ring=ring, flags=SlotFlags.POSTED)

    driver.iommu.work()  # which learns how many they are
    for ring in range(4):
        for _ in range(56):
            driver.put(NOOP, ring=ring, flags=SlotFlags.POSTED)
    driver.inputs.time_step = STEP_NS // 64
    begun = driver.inputs.time
    before = [driver.completed(ring) for ring in range(4)]
    driver.iommu.work()
    assert all(driver.completed(ring) > was for ring, was in enumerate(before))
    assert driver.inputs.time - begun < 2 * STEP_NS
