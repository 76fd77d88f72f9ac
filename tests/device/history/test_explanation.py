"""Why DMA was refused, told of a machine that a guest drives."""

import pytest

from pviommu.dma.fault import DmaRefusedError
from pviommu.engine.translation import READ_WRITE
from pviommu.history.explanation import Asked, Explainer, in_words
from pviommu.history.records import History, Kind
from pviommu_abi.slots import OpClass
from pviommu_abi.vendor import Batch, MapOp, VendorOp
from pviommu_abi.xen_2024 import MapFlags

from ..conftest import RAM_PAGES

PAGE = 1 << 12
READ, BOTH = int(MapFlags.READABLE), int(MapFlags.READABLE | MapFlags.WRITEABLE)


@pytest.fixture
def history():
    return History(64)


@pytest.fixture
def faults(driver, history):
    return driver.iommu.keep_history(history)


@pytest.fixture
def ctx(driver, faults):
    return driver.attached()


def refused(driver, iova, length=1, name="dma0"):
    with pytest.raises(DmaRefusedError):
        driver.dma_write(name, iova, bytes(length))


def explained(explainer, asked):
    """What comes of it in the end."""
    return finished(explainer.begin(asked))


def finished(steps):
    """What steps return."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def map_pages(driver, ctx, dfn, nr=1, gfn=0x100, flags=BOTH):
    assert driver.map(ctx, dfn, gfn, nr, flags)[0] == 0


def unmap_pages(driver, ctx, dfn, nr=1):
    assert driver.unmap(ctx, dfn, nr)[0] == 0


def why(faults):
    said = faults.kept[-1].explanation
    return said.cause.value, said.text


def test_an_address_never_mapped(driver, faults, ctx):
    refused(driver, 0x5000)

    cause, text = why(faults)
    assert cause == "never-mapped"
    assert text.startswith(f"context {ctx} has never mapped it since the beginning of context {ctx} (operation ")


def test_use_after_unmap_tells_when_and_by_which_slot(driver, faults, ctx):
    map_pages(driver, ctx, 0x10, 4)
    driver.dma_write("dma0", 0x11000, b"x")
    slot = driver.rings[0].producer
    unmap_pages(driver, ctx, 0x11, 2)
    refused(driver, 0x11000)

    cause, text = why(faults)
    assert cause == "unmapped"
    assert f"use after unmap: context {ctx} had it until " in text
    assert (
        f"unmap of 2 pages at 0x11000 (operation {faults.explainer.history.count - 1}, slot {slot} of ring 0)" in text
    )
    assert [each["operation"] for each in faults.kept[-1].explanation.operations] == ["unmap", "map", "attach"]


def test_what_was_before_and_after_an_operation_is_recorded(driver, faults, history, ctx):
    map_pages(driver, ctx, 0x10, 2, gfn=0x123, flags=READ)
    unmap_pages(driver, ctx, 0x10, 2)

    unmap, mapped = list(history.back())[:2]
    assert (mapped.kind, mapped.before, mapped.after, mapped.done) == (Kind.MAP, 0, 0x123 << 2 | 1, 2)
    assert (unmap.kind, unmap.before, unmap.after, unmap.done) == (Kind.UNMAP, 0x123 << 2 | 1, 0, 2)
    assert (mapped.ring, mapped.sequence, unmap.sequence) == (0, mapped.slot + 100, mapped.slot + 101)


def test_a_slot_that_failed_is_recorded_with_its_answer(driver, faults, history, ctx):
    map_pages(driver, ctx, 0x10)
    assert driver.map(ctx, 0x10, 0x200, 1, BOTH)[0] == -98

    failed = next(history.back())
    assert (failed.done, failed.result, failed.before, failed.after) == (0, -98, 0x100 << 2 | 3, 0x100 << 2 | 3)


def test_a_write_to_what_is_mapped_for_reading(driver, faults, ctx):
    map_pages(driver, ctx, 0x10, flags=READ)
    refused(driver, 0x10004)

    cause, text = why(faults)
    assert cause == "wrong-permission"
    assert text.startswith(f"context {ctx} maps it for READ only, by map of 1 pages at 0x10000 for READ (operation ")


def test_an_address_of_another_context(driver, faults, ctx):
    other = driver.attached("dma1")
    map_pages(driver, other, 0x10)
    refused(driver, 0x10000)

    assert why(faults) == ("wrong-context", f"it is mapped in context {other}, and the request went to context {ctx}")


def test_a_request_that_goes_past_the_end(driver, faults, ctx):
    map_pages(driver, ctx, 0x10, 2)
    refused(driver, 0x11F00, 0x180)

    assert why(faults) == (
        "past-the-end",
        "the request goes 128 bytes past the end of the mapping at 0x10000, which has 8192 bytes",
    )


def test_an_address_a_little_past_the_end(driver, faults, ctx):
    map_pages(driver, ctx, 0x10, 2)
    refused(driver, 0x12345)

    assert why(faults) == (
        "past-the-end",
        "it is 837 bytes past the end of the mapping at 0x10000, which has 8192 bytes",
    )


def test_a_map_that_failed(driver, faults, ctx):
    map_pages(driver, ctx, 0x11)
    assert driver.map(ctx, 0x10, 0x200, 3, BOTH)[0] == -98
    driver.unmap(ctx, 0x11, 1)
    refused(driver, 0x12000)

    cause, text = why(faults)
    assert cause == "map-failed"
    assert "map of 3 pages at 0x10000 for READ|WRITE" in text
    assert "result -98" in text


def test_a_context_that_was_freed_and_its_number_used_again(driver, faults, ctx):
    map_pages(driver, ctx, 0x10)
    assert driver.reattach("dma0", 0) == 0
    assert driver.free(ctx) == 0
    assert driver.attached(ctx=driver.alloc()[1]) == ctx
    refused(driver, 0x10000)

    cause, text = why(faults)
    assert cause == "context-gone"
    assert text.startswith(f"context {ctx} had it until all that it had went ")
    assert f" ago, by the end of context {ctx} (operation " in text


def test_what_an_earlier_context_of_the_same_number_unmapped_does_not_matter(driver, faults, ctx):
    map_pages(driver, ctx, 0x10)
    unmap_pages(driver, ctx, 0x10)
    assert (driver.reattach("dma0", 0), driver.free(ctx)) == (0, 0)
    assert driver.attached(ctx=driver.alloc()[1]) == ctx
    refused(driver, 0x10000)

    cause, text = why(faults)
    assert cause == "never-mapped"
    assert f"since the beginning of context {ctx} (operation " in text


def test_a_map_that_comes_later_is_found_when_it_is_asked(driver, faults, ctx):
    refused(driver, 0x10000)
    seen = faults.kept[-1]
    map_pages(driver, ctx, 0x10)

    later = finished(faults.explainer.mapped_since(seen.operations, ctx, 0x10))
    faults.explainer.came_late(seen.explanation, later, seen.time_ns)
    assert why(faults)[0] == "mapped-later"
    assert why(faults)[1].startswith("its map came ")


def test_a_blocked_stream(driver, faults, ctx):
    driver.machine.iommu.reset()
    driver.master("dma1")
    driver.iommu.contexts.hold(1)
    refused(driver, 0x1000)

    cause, text = why(faults)
    assert cause == "blocked"
    assert "stream 1 is blocked, since the block of stream 1 (operation " in text


def test_an_address_beyond_the_aperture(driver, faults, ctx):
    refused(driver, 1 << 63)

    assert why(faults)[0] == "out-of-aperture"


def test_a_history_that_does_not_reach_back_says_so(driver, faults, history, ctx):
    map_pages(driver, ctx, 0x800)
    unmap_pages(driver, ctx, 0x800)
    for _ in range(40):
        map_pages(driver, ctx, 0x10)
        unmap_pages(driver, ctx, 0x10)
    refused(driver, 0x800000)

    assert why(faults) == ("not-mapped", f"context {ctx} does not map it, and has not in the last 64 operations")


def test_without_a_history_it_tells_what_is_there(driver):
    faults = driver.iommu.keep_history(None)
    ctx = driver.attached()
    map_pages(driver, ctx, 0x10)
    refused(driver, 0x800000)

    said = faults.kept[-1].explanation
    assert said.cause.value == "not-mapped"
    assert said.below == {
        "iova": 0x10000,
        "length": PAGE,
        "gfn": 0x100,
        "access": "READ|WRITE",
        "distance": 0x800000 - 0x11000,
    }
    assert (said.above, said.operations, said.history) == (None, [], {})


def test_faults_of_one_address_are_explained_once_as_long_as_nothing_is_done(driver, faults, ctx):
    for _ in range(3):
        refused(driver, 0x5000)
    map_pages(driver, ctx, 0x10)
    refused(driver, 0x5000)

    first, second, third, fourth = faults.kept
    assert first.explanation is second.explanation is third.explanation
    assert fourth.explanation is not first.explanation
    assert [each.number for each in faults.kept] == [1, 2, 3, 4]


def test_what_cannot_be_explained_soon_is_counted_and_told_all_the_same(driver, faults, ctx):
    told = []
    faults.find_out = lambda steps: False
    faults.told.append(told.append)
    refused(driver, 0x5000)

    assert (faults.unexplained, told, told[0].explanation) == (1, [faults.kept[0]], None)


def test_a_batch_is_recorded_element_by_element(driver, faults, history, ctx):
    elements = b"".join(MapOp(0x20 + place, 0x300 + place, BOTH, 0).pack() for place in range(3))
    driver.ram[0x8000 : 0x8000 + len(elements)] = elements
    slot = driver.rings[0].producer
    assert driver.call(Batch(0x8000, 3, 0, ctx).pack(), OpClass.VENDOR, VendorOp.BATCH)[0] == 0

    records = [record for record in history.back() if record.slot == slot and record.ring == 0]
    assert [(record.dfn, record.gfn) for record in records] == [(0x22, 0x302), (0x21, 0x301), (0x20, 0x300)]


def test_a_long_operation_is_recorded_in_pieces_of_one_slot(driver, faults, history, ctx):
    other = driver.set_up_ring(1)
    assert other
    driver.inputs.time_step = 2_000_000  # each piece in a step of its own
    slot = driver.rings[0].producer
    driver.iommu.engine.set_ram([(0, 0xFFFFF)])
    position = driver.put(driver.map_payload(ctx, 0x10001, 0, 0x11000))
    driver.put(driver.map_payload(ctx, 0x90000, 0, 1), ring=1)
    while driver.outcome(position)[0].completed != position + 100:
        driver.iommu.work()

    maps = [(record.ring, record.slot, record.done) for record in history.back() if record.kind == Kind.MAP]
    assert set(maps) >= {(1, 0, 1)}
    assert sum(done for ring, number, done in maps if (ring, number) == (0, slot)) == 0x11000
    assert len(maps) > 3


@pytest.mark.parametrize("pages", [1, 2, 511, 512, 5000, 70000])
def test_the_nearest_mappings_are_whole(make_driver, pages):
    driver = make_driver(max_pages_per_op=1 << 18).start()
    engine = driver.iommu.engine
    engine.set_ram([(0, (1 << 20) - 1)])
    ctx = driver.alloc()[1]
    engine.map(ctx, 0x1000, 0x1000, pages, READ_WRITE)
    engine.map(ctx, 0x900000, 0x1001, 3, READ_WRITE)
    explainer = Explainer(engine, None, lambda: 0)

    said = explained(explainer, Asked(ctx, 0x700000 << 12 | 1))

    assert said.below is not None
    assert said.below["iova"] + said.below["length"] == 0x1000 + pages << 12
    assert said.below["iova"] == 0x1000000 or pages > 256
    assert said.above is not None
    assert (said.above["iova"], said.above["length"]) == (0x900000 << 12, 3 << 12)
    assert said.above["distance"] == (0x200000 << 12) - 1


def test_the_nearest_mapping_begins_where_its_map_call_did(driver, faults, ctx):
    map_pages(driver, ctx, 0x10, 3, gfn=0x100)
    map_pages(driver, ctx, 0x13, 2, gfn=0x103)  # goes on, by another call
    refused(driver, 0x20000)

    below = faults.kept[-1].explanation.below
    assert (below["iova"], below["length"], below["gfn"]) == (0x13000, 2 * PAGE, 0x103)


def test_times_are_told_as_people_say_them():
    assert [in_words(ns) for ns in (17, 1234, 5_000_000, 2_500_000_000)] == ["17 ns", "1.23 us", "5 ms", "2.5 s"]


# -- tables of the guest ----------------------------------------------------------------------------------------------


@pytest.mark.row("tables", 17)
def test_tables_of_the_guest_are_shown_entry_by_entry(driver, faults, make_guest):
    guest = make_guest()
    guest.tables.map(0x3000, 0x9000)
    guest.tables.unmap(0x3000)
    refused(driver, 0x3010)
    cause, text = why(faults)
    assert cause == "not-in-guest-tables"
    place = 8 * guest.tables.place(0x3000)
    assert text == f"the guest owns the tables of context 1; the walk ended at entry 4, 0x0 at GPA {place:#x}"
    entries = faults.kept[-1].explanation.now["entries"]
    assert entries[0]["gpa"] == guest.tables.root
    assert [each["entry"] & 3 for each in entries] == [3, 3, 3, 0]


@pytest.mark.row("tables", 17)
def test_tables_of_the_guest_that_map_it_by_now_say_so(driver, faults, make_guest):
    guest = make_guest()
    guest.tables.map(0x3000, 0x9000)
    said = explained(faults.explainer, Asked(guest.ctx, 0x3000, "NOT_MAPPED"))
    assert said.text.endswith("and maps it by now, not when this DMA was refused: gfn 0x9, for READ|WRITE")
    assert said.below is None
    assert explained(faults.explainer, Asked(guest.ctx, 0x3000)).text == "it is mapped: gfn 0x9, for READ|WRITE"


@pytest.mark.row("tables", 17)
def test_tables_of_the_guest_without_a_root_say_so(driver, faults, make_guest):
    guest = make_guest()
    driver.iommu.dma_unmap(0, RAM_PAGES << 12)
    driver.iommu.settle()
    said = explained(faults.explainer, Asked(guest.ctx, 0x3000, "NOT_MAPPED"))
    assert said.text.endswith("no entry of them can be read: the root is not in guest RAM any more")


def test_the_beginning_of_such_a_context_is_in_the_history(driver, faults, history, make_guest):
    guest = make_guest()
    [record] = [each for each in history.back() if each.kind == Kind.ALLOC]
    assert (record.domain, record.after, record.done) == (guest.ctx, guest.tables.root, 1)
