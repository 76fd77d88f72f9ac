"""What rules make of rings, events, interrupts, registers and resets."""

from __future__ import annotations

import os
import select

import pytest

from pviommu.dma.fault import DmaRefusedError
from pviommu_abi.shared import EventReason
from pviommu_abi.slots import Errno, SlotFlags
from pviommu_abi.xen_2024 import PvIommuOp, Xen2024Op
from vfio_user import IrqAction, IrqIndex, IrqKind, IrqRequest

from ..conftest import Driver
from .conftest import Load

NOOP = PvIommuOp(Xen2024Op.NOOP, 0, 0).pack()


def refused(driver: Driver, iova: int = 0x700000) -> None:
    with pytest.raises(DmaRefusedError):
        driver.dma_write("dma0", iova, b"x")


def rung(fd: int) -> int:
    """How many times an eventfd was signalled."""
    return os.eventfd_read(fd) if select.select([fd], [], [], 0)[0] else 0


def test_a_completion_is_not_told_until_the_next_one(load: Load) -> None:
    faulty = load({"on": "ring.complete.apply", "where": {"ring": 0, "index": 1}, "do": {"drop": True}})
    driver = faulty.driver
    _, ctx = driver.alloc()
    driver.put(driver.map_payload(ctx, 0x100, 0x10, 1))
    driver.iommu.work()
    assert driver.completed() == 1
    assert driver.outcome(1)[0].result == 0

    driver.put(driver.map_payload(ctx, 0x101, 0x10, 1))
    driver.iommu.work()
    assert driver.completed() == 3
    assert driver.outcome(2)[0].result == 0


def test_a_completion_comes_late_with_its_interrupt(load: Load) -> None:
    faulty = load({"on": "ring.complete.pre", "where": {"index": 1}, "do": {"delay": "1ms"}})
    driver = faulty.driver
    fd = driver.msix(1)
    _, ctx = driver.alloc()
    rung(fd)
    driver.words[driver.rings[0]._line + 1] = 1
    driver.put(driver.map_payload(ctx, 0x100, 0x10, 1))
    driver.iommu.work()
    assert (driver.completed(), rung(fd)) == (1, 0)
    faulty.agenda.run(1_000_000)
    assert (driver.completed(), rung(fd)) == (2, 1)
    assert driver.map(ctx, 0x100, 0x10, 1)[0] == -Errno.EADDRINUSE
    os.close(fd)


def test_more_is_told_complete_than_is(load: Load) -> None:
    faulty = load({"on": "ring.complete.apply", "where": {"index": 1}, "do": {"duplicate": 1}})
    driver = faulty.driver
    _, ctx = driver.alloc()
    driver.put(driver.map_payload(ctx, 0x100, 0x10, 1))
    driver.iommu.work()
    assert driver.completed() == 3
    driver.put(driver.map_payload(ctx, 0x101, 0x10, 1))
    driver.iommu.work()
    assert driver.outcome(2)[0].result == 0


def test_a_slot_changes_after_the_guest_has_written_it(load: Load) -> None:
    faulty = load({"on": "ring.fetch.post", "schedule": {"nth": 2}, "do": {"corrupt": 2, "xor": 0x80}})
    driver = faulty.driver
    _, ctx = driver.alloc()

    assert driver.map(ctx, 0x100, 0x10, 1)[0] == -Errno.EINVAL  # a flag that there is not
    assert driver.map(ctx, 0x100, 0x10, 1)[0] == 0


def test_slots_come_one_by_one(load: Load) -> None:
    faulty = load({"on": "ring.fetch.post", "do": {"truncate": 1}})
    driver = faulty.driver
    _, ctx = driver.alloc()
    for number in range(3):
        driver.put(driver.map_payload(ctx, 0x100 + number, 0x10, 1), flags=SlotFlags.POSTED)
    driver.iommu.work()
    assert driver.completed() == 2
    driver.iommu.work()
    assert driver.completed() == 3


def test_a_fault_is_not_recorded(load: Load) -> None:
    faulty = load({"on": "fault.record.apply", "where": {"reason": "NOT_*"}, "do": {"drop": True}})
    driver = faulty.driver
    driver.attached()
    refused(driver)
    assert driver.events() == []
    assert driver.counters.faults == 0


def test_an_event_is_late_and_comes_with_an_interrupt(load: Load) -> None:
    faulty = load({"on": "fault.deliver.pre", "where": {"iova": 0x700000}, "do": {"delay": "1ms"}})
    driver = faulty.driver
    fd = driver.msix(0)
    driver.attached()
    refused(driver)
    refused(driver, 0x800000)
    assert [event.iova for event in driver.events()] == [0x800000]
    rung(fd)
    driver.words[(0x400 >> 2) + 1] = 1
    faulty.agenda.run(1_000_000)
    (event,) = driver.events()
    assert (event.iova, event.sequence) == (0x700000, 1)
    assert rung(fd) == 1
    os.close(fd)


def test_a_late_completion_is_not_told_to_a_ring_that_was_set_up_again(load: Load) -> None:
    faulty = load({"on": "ring.complete.pre", "schedule": {"nth": 1}, "do": {"delay": "1ms"}})
    driver = faulty.driver
    driver.put(NOOP)
    driver.iommu.work()
    driver.iommu.reset()
    driver.start()
    fd = driver.msix(1)
    driver.call(NOOP)
    driver.words[driver.rings[0]._line + 1] = 0
    rung(fd)
    faulty.agenda.run(1_000_000)
    assert (driver.completed(), rung(fd)) == (1, 0)
    os.close(fd)


@pytest.mark.parametrize("on", ["fault.record.pre", "fault.deliver.pre"])
def test_a_report_that_is_late_is_not_for_whoever_comes_after_a_reset(load: Load, on: str) -> None:
    faulty = load({"on": on, "do": {"delay": "1ms"}})
    driver = faulty.driver
    driver.attached()
    refused(driver)
    driver.iommu.reset()
    driver.start()
    faulty.agenda.run(1_000_000)
    assert driver.events() == []


def test_events_overflow_though_there_is_room(load: Load) -> None:
    faulty = load({"on": "fault.deliver.apply", "schedule": {"nth": 1}, "do": {"overflow": True}})
    driver = faulty.driver
    driver.attached()
    refused(driver)
    refused(driver)
    (event,) = driver.events()
    assert event.sequence == 1  # the gap tells of the first
    assert driver._events.lost == 1
    assert driver.counters.events_lost == 1


def test_an_event_tells_something_else(load: Load) -> None:
    faulty = load({"on": "fault.deliver.pre", "do": {"corrupt": "iova", "xor": 0x1000}})
    driver = faulty.driver
    driver.attached()
    refused(driver)
    assert driver.events()[0].iova == 0x701000


def test_an_event_comes_twice(load: Load) -> None:
    faulty = load({"on": "fault.deliver.apply", "do": {"duplicate": 1}})
    driver = faulty.driver
    driver.attached()
    refused(driver)
    assert [event.reason for event in driver.events()] == [EventReason.NOT_MAPPED] * 2


@pytest.mark.parametrize(("do", "count"), [({"drop": True}, 0), ({"duplicate": 2}, 3)])
def test_an_interrupt_is_lost_or_comes_again(load: Load, do: dict[str, object], count: int) -> None:
    faulty = load({"on": "interrupt.apply", "where": {"vector": 1, "function": "iommu"}, "do": do})
    fd = faulty.driver.msix(1)
    faulty.driver.iommu.interrupt(1)
    assert rung(fd) == count
    os.close(fd)


@pytest.mark.parametrize("do", [{"suspend": "it"}, {"delay": "1ms"}], ids=["suspend", "delay"])
@pytest.mark.parametrize(("function", "other"), [("dma0", "iommu"), ("iommu", "dma0")])
def test_an_interrupt_that_is_held_is_lost_by_a_reset_of_its_own_function_only(
    load: Load, do: dict[str, str], function: str, other: str
) -> None:
    faulty = load({"on": "interrupt.pre", "where": {"function": function}, "do": do})
    functions = {each.name: each for each in faulty.driver.machine.functions()}
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    irqs = (os.dup(fd),)
    functions[function].set_irqs(IrqRequest(IrqIndex.MSIX, 0, 1, IrqAction.TRIGGER, IrqKind.EVENTFD, irqs))
    for reset, comes in ((other, 1), (function, 0)):
        functions[function].interrupt(0)
        functions[reset].reset()
        faulty.agenda.run(2_000_000)
        faulty.faults.holds.resume("it")
        assert rung(fd) == comes
    os.close(fd)


def test_an_endpoint_that_hangs_goes_on_after_its_own_reset(load: Load) -> None:
    faulty = load({"on": "endpoint.work.pre", "schedule": {"nth": 1}, "do": {"hang": True}})
    engine = faulty.driver.machine.endpoints["dma0"]
    engine.step()
    faulty.driver.iommu.reset()
    engine.step()
    assert faulty.fired() == [1]
    assert [rule.passed for rule in faulty.faults.verdict().rules] == [1]  # it still hangs

    engine.reset()
    engine.step()
    assert [rule.passed for rule in faulty.faults.verdict().rules] == [2]


def test_no_more_is_held_than_there_is_room_for(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pviommu.faults.holds.MOST_HELD", 3)
    faulty = load({"on": "interrupt.pre", "do": {"suspend": "it"}})
    fd = faulty.driver.msix(1)
    for _ in range(5):
        faulty.driver.iommu.interrupt(1)

    assert rung(fd) == 2
    assert [event["after"] for event in faulty.events()][2:] == [{"suspended": "it"}, *["not held: too many are"] * 2]
    assert faulty.faults.holds.resume("it") == 3
    os.close(fd)


def test_a_spurious_interrupt_comes_after_the_call(load: Load) -> None:
    faulty = load({"on": "op.alloc_context.pre", "do": {"interrupt": 2}})
    fd = faulty.driver.msix(2)
    faulty.driver.alloc()
    assert rung(fd) == 0
    faulty.agenda.run(1)
    assert rung(fd) == 1
    os.close(fd)


def test_a_register_reads_wrong_or_does_not_take_a_write(load: Load) -> None:
    faulty = load(
        {"on": "register.read.post", "where": {"register": "MAX_RINGS"}, "do": {"corrupt": 0, "value": 9}},
        {"on": "register.read.apply", "where": {"register": "INSTANCE"}, "do": {"lie": True}},
        {"on": "register.write.apply", "where": {"register": "RING_SELECT", "value": 1}, "do": {"drop": True}},
    )
    driver = faulty.driver
    assert driver.read("MAX_RINGS") == 9
    assert driver.read("INSTANCE") == 0xFFFFFFFF
    driver.write("RING_SELECT", 0)
    driver.write("RING_SELECT", 1)
    assert driver.read("RING_SELECT") == 0


def test_a_reset_is_ignored(load: Load) -> None:
    faulty = load({"on": "reset.apply", "where": {"function": "iommu"}, "do": {"drop": True}})
    faulty.driver.iommu.reset()
    assert faulty.driver.read("STATUS") & 2


def test_the_device_resets_by_itself(load: Load) -> None:
    faulty = load({"on": "op.alloc_context.post", "do": {"reset": True}})
    assert faulty.driver.alloc()[0] == 0
    assert faulty.driver.read("STATUS") & 2
    faulty.agenda.run(1)
    assert not faulty.driver.read("STATUS") & 2


def test_a_client_is_hung_up_on_and_the_process_ends(load: Load) -> None:
    faulty = load(
        {"on": "op.alloc_context.post", "do": {"disconnect": True}},
        {"on": "op.free_context.pre", "do": {"crash": True}},
    )
    done: list[str] = []
    faulty.faults.hang_up = done.append
    faulty.faults.crash = lambda: done.append("crash")
    _, ctx = faulty.driver.alloc()
    faulty.agenda.run(1)
    faulty.driver.free(ctx)
    assert done == ["iommu", "crash"]
