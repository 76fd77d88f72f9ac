"""What rules make of page tables, contexts, the pool and the IOTLB."""

from __future__ import annotations

import pytest

from pviommu.dma.fault import DmaRefusedError
from pviommu_abi.slots import Errno, OpClass
from pviommu_abi.vendor import Binding, Reserve, VendorOp

from .conftest import Load


def test_the_pool_is_exhausted_in_the_middle_of_a_large_map(load: Load) -> None:
    do = {"partial": 0x1000, "then": "POOL_EXHAUSTED"}
    faulty = load({"on": "table.map.apply", "where": {"nr": 0x1000}, "do": {"log": "a piece"}})
    _, ctx = faulty.driver.alloc()
    assert faulty.driver.map(ctx, 0x100000, 0, 0x1000) == (0, 0x1000)
    assert faulty.fired() == [1]

    faulty = load({"on": "table.map.apply", "do": {**do, "partial": 0x10}})
    _, ctx = faulty.driver.alloc()
    assert faulty.driver.map(ctx, 0x100000, 0, 0x800) == (-Errno.ENOMEM, 0x10)
    assert faulty.driver.lookup(ctx, 0x10000F)[0] == 0
    assert faulty.driver.lookup(ctx, 0x100010)[0] == -Errno.ENOENT


def test_a_page_table_entry_is_corrupted_and_dma_goes_elsewhere(load: Load) -> None:
    faulty = load({"on": "table.map.pre", "do": {"corrupt": "gfn", "xor": 2}})
    driver = faulty.driver
    ctx = driver.attached()
    assert driver.map(ctx, 0x100, 0x10, 1) == (0, 1)

    driver.dma_write("dma0", 0x100000, b"stray")
    assert driver.ram[0x12000:0x12005] == b"stray"


@pytest.mark.parametrize("action", ["fail", "lie"])
def test_an_unmap_that_fails_or_lies_leaves_the_page(load: Load, action: str) -> None:
    side, do = ("pre", {"fail": "NOT_MAPPED"}) if action == "fail" else ("apply", {"lie": True})
    faulty = load({"on": f"table.unmap.{side}", "do": do})
    _, ctx = faulty.driver.alloc()
    faulty.driver.map(ctx, 0x100, 0x10, 2)

    expected = (-Errno.ENOENT, 0) if action == "fail" else (0, 2)
    assert faulty.driver.unmap(ctx, 0x100, 2) == expected
    assert faulty.driver.lookup(ctx, 0x100) == (0, 0x10)


@pytest.mark.parametrize(("error", "errno"), [("POOL_EXHAUSTED", Errno.ENOMEM), ("NO_FREE_CONTEXT", Errno.ENOSPC)])
def test_no_context_is_to_be_had(load: Load, error: str, errno: Errno) -> None:
    faulty = load({"on": "context.alloc.pre", "schedule": {"times": 1}, "do": {"fail": error}})

    assert faulty.driver.alloc()[0] == -errno
    assert faulty.driver.alloc() == (0, 1)


def test_the_first_attach_is_refused(load: Load) -> None:
    rule = {"on": "context.attach.pre", "where": {"device": "00:05.0"}, "schedule": {"nth": 1}}
    faulty = load({**rule, "do": {"fail": "POOL_EXHAUSTED"}})
    driver = faulty.driver
    driver.bind("dma0")
    _, ctx = driver.alloc()

    assert driver.reattach("dma0", ctx) == -Errno.ENOMEM
    assert driver.reattach("dma0", ctx) == 0
    assert faulty.events()[0]["before"] == {"function": "iommu", "stream": 1, "ctx": 1, "device": "0000:00:05.0"}


def test_an_attach_that_lies_leaves_the_endpoint_where_it_was(load: Load) -> None:
    faulty = load({"on": "context.attach.apply", "do": {"lie": True}})
    driver = faulty.driver
    driver.attached()

    driver.dma_write("dma0", 0x5000, b"identity")
    assert driver.ram[0x5000:0x5008] == b"identity"


def test_a_context_is_not_freed(load: Load) -> None:
    faulty = load({"on": "context.free.pre", "do": {"fail": "ENDPOINTS_ATTACHED"}})
    _, ctx = faulty.driver.alloc()

    assert faulty.driver.free(ctx) == -Errno.EBUSY
    assert faulty.driver.alloc() == (0, ctx + 1)


def test_a_block_that_lies_leaves_the_endpoint_unblocked(load: Load) -> None:
    faulty = load({"on": "context.hold.apply", "do": {"lie": True}})
    driver = faulty.driver
    ctx = driver.attached()
    driver.map(ctx, 0x100, 0x10, 1)
    assert driver.call(Binding(0, 0, 0x28).pack(), OpClass.VENDOR, VendorOp.BLOCK)[0] == 0
    driver.dma_write("dma0", 0x100000, b"on")
    assert driver.ram[0x10000:0x10002] == b"on"


def test_pages_cannot_be_set_aside(load: Load) -> None:
    faulty = load({"on": "pool.reserve.pre", "where": {"count": 8}, "do": {"fail": "POOL_EXHAUSTED"}})
    _, ctx = faulty.driver.alloc()

    assert faulty.driver.call(Reserve(ctx, 0, 8).pack(), OpClass.VENDOR, VendorOp.RESERVE)[0] == -Errno.ENOMEM
    assert faulty.driver.call(Reserve(ctx, 0, 9).pack(), OpClass.VENDOR, VendorOp.RESERVE)[0] == 0


def test_a_lost_invalidation_leaves_a_stale_entry_in_the_iotlb(load: Load) -> None:
    faulty = load({"on": "iotlb.invalidate.apply", "where": {"dfn": 0x100}, "do": {"drop": True}})
    driver = faulty.driver
    ctx = driver.attached()
    driver.map(ctx, 0x100, 0x10, 1)
    driver.dma_write("dma0", 0x100000, b"first")
    driver.unmap(ctx, 0x100, 1)

    driver.dma_write("dma0", 0x100000, b"stale")
    assert driver.ram[0x10000:0x10005] == b"stale"


def test_the_iotlb_forgets_and_misremembers(load: Load) -> None:
    faulty = load(
        {"on": "iotlb.lookup.pre", "schedule": {"every": 2}, "do": {"miss": True}},
        {"on": "iotlb.fill.pre", "schedule": {"nth": 2}, "do": {"corrupt": "gfn", "xor": 2}},
    )
    driver = faulty.driver
    ctx = driver.attached()
    driver.map(ctx, 0x100, 0x10, 1)
    for number in range(4):
        driver.dma_write("dma0", 0x100000 + 16 * number, b"somewhere")
        driver.map(ctx, 0x200 + number, 0x20, 1)
        driver.unmap(ctx, 0x200 + number, 1)  # so that the next one asks the IOTLB
    assert faulty.fired()[0] >= 1
    assert faulty.fired()[1] == 1
    with pytest.raises(DmaRefusedError):
        driver.dma_write("dma0", 0x300000, b"nowhere")


@pytest.mark.parametrize(
    ("place", "do"),
    [
        ("op.map_pages.pre", {"fail": "ENOMEM"}),
        ("op.map_pages.apply", {"partial": 1, "then": "ENOMEM"}),
        ("table.map.pre", {"fail": "POOL_EXHAUSTED"}),
        ("table.map.apply", {"partial": 1, "then": "POOL_EXHAUSTED"}),
    ],
)
def test_no_map_lacks_memory_that_was_reserved_for_its_context(load: Load, place: str, do: dict[str, object]) -> None:
    faulty = load({"on": place, "do": do}, {"on": "op.map_pages.post", "do": {"status": "ENOMEM"}, "where": {"nr": 2}})
    driver = faulty.driver
    _, ctx = driver.alloc()
    _, other = driver.alloc()
    assert driver.call(Reserve(ctx, 0, 8).pack(), OpClass.VENDOR, VendorOp.RESERVE)[0] == 0

    assert driver.map(ctx, 0x100, 0x10, 3) == (0, 3)
    assert faulty.fired() == [0, 0]
    [result, _] = faulty.faults.verdict().rules
    assert result.passed == 0
    assert result.problems[0].endswith("; maps in a context with a reservation (op.reserve) do not count")
    assert driver.map(other, 0x100, 0x10, 3)[0] == -Errno.ENOMEM
    assert driver.map(ctx, 0x200, 0x10, 2)[0] == -Errno.ENOMEM  # said all the same: no correct IOMMU does that
    assert faulty.fired() == [1, 1]
