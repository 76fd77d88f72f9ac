"""What rules make of operations, and what the guest sees of it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from pviommu_abi.registers import Profile
from pviommu_abi.slots import Errno, OpClass
from pviommu_abi.vendor import Call, VendorOp
from pviommu_abi.xen_2024 import PvIommuOp, UnmapPages, Xen2024Op
from pviommu_abi.xen_v7 import V7Alloc, V7Init, V7RemoteCmd, XenV7Op

from ..conftest import Driver
from .conftest import Load

PRE, APPLY, POST = "op.map_pages.pre", "op.map_pages.apply", "op.map_pages.post"


def test_the_second_map_of_a_range_fails_and_changes_nothing(load: Load) -> None:
    where = {"ctx": 1, "dfn": "0x1000..0x1fff"}
    faulty = load({"on": PRE, "where": where, "schedule": {"nth": 2}, "do": {"fail": "ENOMEM"}})
    driver = faulty.driver
    _, ctx = driver.alloc()

    assert driver.map(ctx, 0x100, 0x10, 3) == (0, 3)
    assert driver.map(ctx, 0x1000, 0x10, 3) == (0, 3)
    assert driver.map(ctx, 0xFFF, 0x10, 2) == (-Errno.ENOMEM, 0)
    assert driver.lookup(ctx, 0xFFF)[0] == -Errno.ENOENT
    assert driver.map(ctx, 0x1800, 0x10, 2) == (0, 2)
    assert faulty.fired() == [1]


def test_other_operations_go_on_as_they_are(load: Load) -> None:
    faulty = load({"on": "op.unmap_pages.pre", "do": {"status": "EBUSY"}})
    _, ctx = faulty.driver.alloc()

    assert faulty.driver.map(ctx, 0x100, 0x10, 3) == (0, 3)
    assert faulty.driver.unmap(ctx, 0x100, 3)[0] == -Errno.EBUSY
    assert faulty.driver.lookup(ctx, 0x102) == (0, 0x12)


@pytest.mark.parametrize("pages", [8, 0x3000])
def test_a_part_is_done_and_counted_and_then_it_fails(load: Load, pages: int) -> None:
    faulty = load({"on": APPLY, "do": {"partial": 5, "then": "ENOMEM"}})
    driver = faulty.driver
    _, ctx = driver.alloc()

    assert driver.map(ctx, 0x4000, 0, pages) == (-Errno.ENOMEM, 5)
    assert driver.lookup(ctx, 0x4004)[0] == 0
    assert driver.lookup(ctx, 0x4005)[0] == -Errno.ENOENT
    assert driver.map(ctx, 0x5000, 0, 5) == (0, 5)  # nothing is left to fail
    assert faulty.fired() == [1]


def test_a_lie_answers_success_with_all_pages_and_does_nothing(load: Load) -> None:
    faulty = load({"on": APPLY, "do": {"lie": True}})
    _, ctx = faulty.driver.alloc()

    assert faulty.driver.map(ctx, 0x100, 0x10, 3) == (0, 3)
    assert faulty.driver.lookup(ctx, 0x100)[0] == -Errno.ENOENT


def test_a_status_after_the_call_hides_what_was_done(load: Load) -> None:
    faulty = load({"on": POST, "do": {"status": 77}})
    _, ctx = faulty.driver.alloc()

    assert faulty.driver.map(ctx, 0x100, 0x10, 3) == (-77, 3)
    assert faulty.driver.lookup(ctx, 0x100) == (0, 0x10)


def test_a_repeated_map_meets_itself(load: Load) -> None:
    faulty = load({"on": APPLY, "do": {"duplicate": 1}})
    _, ctx = faulty.driver.alloc()

    assert faulty.driver.map(ctx, 0x100, 0x10, 3) == (-Errno.EADDRINUSE, 0)
    assert faulty.driver.lookup(ctx, 0x100) == (0, 0x10)


@pytest.mark.parametrize(
    ("do", "lookup"),
    [({"corrupt": "gfn", "xor": 0x100}, 0x110), ({"corrupt": "gfn", "value": 7}, 7), ({"corrupt": 9, "xor": 1}, 0x110)],
)
def test_a_field_or_a_byte_of_the_request_is_changed(load: Load, do: dict[str, object], lookup: int) -> None:
    faulty = load({"on": PRE, "do": do})
    _, ctx = faulty.driver.alloc()

    assert faulty.driver.map(ctx, 0x100, 0x10, 1)[0] == 0
    assert faulty.driver.lookup(ctx, 0x100) == (0, lookup)


def test_an_answer_is_changed(load: Load) -> None:
    faulty = load({"on": "op.lookup_page.post", "do": {"corrupt": "gfn", "xor": 1}})
    _, ctx = faulty.driver.alloc()
    faulty.driver.map(ctx, 0x100, 0x10, 1)

    assert faulty.driver.lookup(ctx, 0x100) == (0, 0x11)


def submit_map(driver: Driver, ctx: int, dfn: int, ring: int = 0) -> int:
    return driver.put(driver.map_payload(ctx, dfn, 0x10, 1), ring=ring)


@pytest.mark.parametrize("side", ["pre", "post"])
def test_a_delayed_operation_holds_its_ring_and_no_other(load: Load, side: str) -> None:
    faulty = load({"on": f"op.map_pages.{side}", "where": {"dfn": 0x100}, "do": {"delay": "5ms"}})
    driver = faulty.driver
    _, ctx = driver.alloc()
    submit_map(driver, ctx, 0x100)
    submit_map(driver, ctx, 0x101)
    submit_map(driver, ctx, 0x102, ring=1)

    for _ in range(5):
        assert not driver.iommu.work() or driver.completed(1) == 1
    assert (driver.completed(0), driver.completed(1)) == (1, 1)
    assert driver.iommu.arm()  # the loop sleeps: nothing can be done

    faulty.agenda.run(5_000_000)
    assert not driver.iommu.arm()
    assert driver.iommu.work()
    assert driver.completed(0) == 3
    assert driver.outcome(1)[0].result == 0


def test_a_delay_in_virtual_time_waits_for_nobody_and_is_seen_in_the_log(load: Load) -> None:
    faulty = load({"on": PRE, "do": {"delay": "5s", "clock": "virtual"}})
    _, ctx = faulty.driver.alloc()

    assert faulty.driver.map(ctx, 0x100, 0x10, 1) == (0, 1)
    assert faulty.driver.map(ctx, 0x101, 0x10, 1) == (0, 1)
    first, second = faulty.events()
    assert 5_000_000_000 <= second["time_ns"] - first["time_ns"] < 5_100_000_000


def test_what_is_suspended_goes_on_when_another_call_resumes_it(load: Load) -> None:
    faulty = load(
        {"on": PRE, "where": {"dfn": 0x100}, "do": {"suspend": "one"}},
        {"on": "op.unmap_pages.pre", "do": {"resume": "one"}},
    )
    driver = faulty.driver
    _, ctx = driver.alloc()
    submit_map(driver, ctx, 0x100)
    driver.iommu.work()
    assert driver.completed() == 1
    assert not faulty.faults.verdict().ok
    assert "still suspended at the end: one" in faulty.faults.verdict().problems[0]

    driver.put(UnmapPages(Xen2024Op.UNMAP_PAGES, ctx, 0, 0x200, 1, 0).pack(), ring=1)
    driver.iommu.work()
    driver.iommu.work()
    assert driver.completed(0) == 2
    assert faulty.faults.verdict().ok


def test_who_waits_for_a_tag_goes_on_once_somebody_is_suspended_under_it(load: Load) -> None:
    faulty = load(
        {"on": PRE, "where": {"dfn": 0x100}, "do": {"wait": "one"}},
        {"on": PRE, "where": {"dfn": 0x200}, "do": {"suspend": "one"}},
    )
    driver = faulty.driver
    _, ctx = driver.alloc()
    submit_map(driver, ctx, 0x100)
    driver.iommu.work()
    assert driver.completed(0) == 1
    submit_map(driver, ctx, 0x200, ring=1)
    driver.iommu.work()
    driver.iommu.work()
    assert (driver.completed(0), driver.completed(1)) == (2, 0)
    assert faulty.faults.holds.resume("one") == 1


def test_two_rings_change_places(load: Load) -> None:
    faulty = load({"on": PRE, "schedule": {"nth": 1}, "do": {"reorder": 1, "within": "1s"}})
    driver = faulty.driver
    _, ctx = driver.alloc()
    submit_map(driver, ctx, 0x100)
    submit_map(driver, ctx, 0x100, ring=1)
    driver.iommu.work()
    driver.iommu.work()

    assert driver.outcome(1)[0].result == -Errno.EADDRINUSE
    assert driver.outcome(0, ring=1)[0].result == 0


def test_what_hangs_hangs_until_a_reset(load: Load) -> None:
    faulty = load({"on": PRE, "schedule": {"nth": 1}, "do": {"hang": True}})
    driver = faulty.driver
    _, ctx = driver.alloc()
    submit_map(driver, ctx, 0x100)
    driver.iommu.work()
    faulty.agenda.run(3_600_000_000_000)
    driver.iommu.work()
    assert driver.completed() == 1

    steps = driver.write("RESET", 1)
    assert steps is None
    driver.forget_events()
    driver.write("PROFILE", Profile.XEN_2024)
    driver.set_up_ring()
    _, ctx = driver.alloc()
    assert driver.map(ctx, 0x100, 0x10, 1) == (0, 1)


def test_a_bandwidth_lets_so_many_pages_a_second_through(load: Load) -> None:
    faulty = load({"on": PRE, "do": {"bandwidth": "1000/s"}})
    driver = faulty.driver
    driver.inputs.time_step = 1
    _, ctx = driver.alloc()
    driver.put(driver.map_payload(ctx, 0x100, 0, 100))
    driver.put(driver.map_payload(ctx, 0x200, 0, 100))
    driver.iommu.work()
    seen = []
    for _ in range(6):
        faulty.agenda.run(40_000_000)
        driver.iommu.work()
        seen.append(driver.completed())

    assert seen == [1, 1, 2, 2, 2, 3]  # 100 ms each, the second after the first


def test_every_slot_meets_the_probe_of_slots(load: Load) -> None:
    where = {"class": int(OpClass.VENDOR), "op": 4}
    faulty = load({"on": "ring.decode.pre", "where": where, "do": {"fail": "EIO"}})

    assert faulty.driver.call(b"", OpClass.VENDOR, 4)[0] == -Errno.EIO
    assert faulty.driver.alloc()[0] == 0
    assert faulty.events()[0]["before"] == {"function": "iommu", "class": 128, "op": 4, "flags": 0}


def test_a_machine_is_not_saved_while_a_rule_holds_an_operation(load: Load) -> None:
    faulty = load({"on": PRE, "do": {"delay": "5ms"}})
    driver = faulty.driver
    _, ctx = driver.alloc()
    submit_map(driver, ctx, 0x100)
    driver.iommu.work()

    with pytest.raises(ValueError, match="ring 0 cannot be saved while a rule holds an operation of it"):
        driver.iommu.rings[0].save()
    faulty.agenda.run(5_000_000)
    driver.iommu.work()
    driver.iommu.rings[0].save()


def test_an_operation_that_must_wait_for_a_held_ring_is_held_too(load: Load) -> None:
    faulty = load({"on": PRE, "do": {"suspend": "it"}})
    driver = faulty.driver
    _, ctx = driver.alloc()
    submit_map(driver, ctx, 0x100)
    driver.put(PvIommuOp(Xen2024Op.FREE_CONTEXT, ctx, 0).pack(), ring=1)
    for _ in range(3):
        driver.iommu.work()
    assert (driver.completed(0), driver.completed(1)) == (1, 0)
    assert driver.iommu.arm()

    faulty.faults.holds.resume("it")
    driver.iommu.work()
    driver.iommu.work()
    assert (driver.completed(0), driver.completed(1)) == (2, 1)
    assert driver.outcome(1)[0].result == 0


@pytest.mark.parametrize("do", [{"suspend": "it"}, {"hang": True}, {"delay": "5ms"}])
def test_a_reset_waits_for_other_rings_and_not_for_one_that_is_held(load: Load, do: dict[str, Any]) -> None:
    faulty = load({"on": PRE, "where": {"dfn": 0x100}, "do": do})
    driver = faulty.driver
    _, ctx = driver.alloc()
    submit_map(driver, ctx, 0x100)
    submit_map(driver, ctx, 0x200, ring=1)
    before = driver.iommu.engine.domains()
    steps = driver.write("RESET", 1) or ()
    assert len(list(itertools.islice(steps, 100))) < 100
    assert driver.iommu.counters.pages_mapped == 1
    assert (before, driver.iommu.engine.domains()) == ((ctx,), ())


def test_an_operation_in_guest_memory_is_held_with_what_called_it(load: Load) -> None:
    faulty = load({"on": PRE, "do": {"delay": "5ms"}}, {"on": POST, "do": {"log": "done"}})
    driver = faulty.driver
    _, ctx = driver.alloc()
    driver.ram[0x3000:0x3020] = driver.map_payload(ctx, 0x8000, 0, 0x1000 - 8).ljust(32, b"\0")
    driver.put(Call(0x3000, 0).pack(), OpClass.VENDOR, VendorOp.CALL)
    driver.iommu.work()
    assert driver.completed() == 1
    faulty.agenda.run(5_000_000)
    for _ in range(8):
        driver.iommu.work()
    assert driver.completed() == 2
    assert driver.outcome(1)[0].result == 0
    assert faulty.fired() == [1, 1]


@pytest.mark.parametrize("held", [["op.alloc_context.pre"], ["op.remote_cmd.pre", "op.alloc_context.post"]])
def test_the_answer_of_an_operation_in_guest_memory_that_was_held_is_copied_there(load: Load, held: list[str]) -> None:
    rules = [{"on": place, "do": {"delay": "1ms"}} for place in held]
    faulty = load(*rules)
    driver = faulty.driver
    driver.write("RESET", 1)
    driver.write("PROFILE", Profile.XEN_V7)
    driver.set_up_ring()
    assert driver.call(V7Init(128, 12).pack(), OpClass.XEN_V7, XenV7Op.INIT)[0] == 0
    driver.ram[0x3000 : 0x3000 + V7Alloc.SIZE] = V7Alloc(0xFFFF, 0, 0).pack()
    position = driver.put(V7RemoteCmd(0, XenV7Op.ALLOC_CONTEXT, 0, 0x3000).pack(), OpClass.XEN_V7, XenV7Op.REMOTE_CMD)
    for _ in range(4):
        driver.iommu.work()
        faulty.agenda.run(1_000_000)
    driver.iommu.work()

    assert faulty.fired() == [1] * len(held)
    assert (driver.completed(), driver.outcome(position)[0].result) == (position + 1, 0)
    assert V7Alloc.unpack(bytes(driver.ram[0x3000 : 0x3000 + V7Alloc.SIZE])).ctx_no == 1
