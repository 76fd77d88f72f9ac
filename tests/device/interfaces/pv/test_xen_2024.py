import pytest

from pviommu.dma.fault import DmaRefusedError
from pviommu.guest.xen_2024 import UNTOUCHED
from pviommu.topology import ReservedSection
from pviommu_abi.registers import Profile
from pviommu_abi.shared import EventReason
from pviommu_abi.slots import Errno, OpClass
from pviommu_abi.vendor import Binding, VendorOp
from pviommu_abi.xen_2024 import (
    LookupPage,
    MapPages,
    PvIommuOp,
    QueryCapabilities,
    ReattachDevice,
    UnmapPages,
    Xen2024Op,
)
from vfio_user import DmaMapping

from ...conftest import reason_of

PAGE = 4096
RAM_END = 0x1000


@pytest.fixture
def ctx(driver):
    result, ctx = driver.alloc()
    assert result == 0
    return ctx


def refusal(driver, name, iova, length=1):
    with pytest.raises(DmaRefusedError) as caught:
        driver.dma_read(name, iova, length)
    return reason_of(caught.value)


# -- noop, unknown, query ---------------------------------------------------------------------------------------------


@pytest.mark.row("xen", 1)
def test_noop_is_0_and_changes_nothing(driver):
    before = driver.iommu.engine.usage()
    assert driver.call(PvIommuOp(Xen2024Op.NOOP, 7, 0).pack())[0] == 0
    assert driver.iommu.engine.usage() == before


@pytest.mark.parametrize("op", [8, 99, 0xFFFF])
@pytest.mark.row("xen", 2)
def test_an_unknown_suboperation_is_einval(driver, op):
    assert driver.call(PvIommuOp(op, 0, 0).pack())[0] == -Errno.EINVAL


@pytest.mark.row("xen", 6)
def test_query_tells_the_limits_and_leaves_ctx_no_and_flags(make_driver):
    driver = make_driver(max_pages_per_op=256).start()
    result, answer = driver.call(QueryCapabilities(Xen2024Op.QUERY_CAPABILITIES, 0x77, 0).pack())
    assert result == 0
    assert QueryCapabilities.unpack(answer) == QueryCapabilities(1, 0x77, 0, 255, 0, 256, 0x7F_FFFF_FFFF)


def test_query_tells_a_configured_aperture_and_context_count(make_driver):
    driver = make_driver(contexts=7, aperture_bits=48).start()
    _, answer = driver.call(QueryCapabilities(Xen2024Op.QUERY_CAPABILITIES, 0, 0).pack())
    caps = QueryCapabilities.unpack(answer)
    assert (caps.max_ctx_no, caps.max_nr_pages, caps.max_iova_addr) == (7, 262144, (1 << 48) - 1)


@pytest.mark.parametrize(
    "payload",
    [
        QueryCapabilities(1, 0, 1),
        PvIommuOp(2, 0, 2),
        PvIommuOp(3, 1, 2),
        ReattachDevice(4, 0, 1, 0, 0, 0x28),
        MapPages(5, 1, 4, 0, 0, 1),
        UnmapPages(6, 1, 1, 0, 1),
        LookupPage(7, 1, 1, 0, 0),
    ],
    ids=lambda payload: type(payload).__name__,
)
@pytest.mark.row("xen", 58)
@pytest.mark.row("defect", "C11")
def test_an_unknown_flag_is_einval(driver, ctx, payload):
    assert driver.call(payload.pack())[0] == -Errno.EINVAL
    assert driver.iommu.engine.domains() == (ctx,)


@pytest.mark.parametrize("op", [op for op in Xen2024Op if op is not Xen2024Op.NOOP])
@pytest.mark.parametrize("position", [32, 47])
@pytest.mark.row("xen", 58)
def test_payload_past_the_xen_structure_is_einval(driver, ctx, op, position):
    payload = bytearray(PvIommuOp(op, ctx, 0).pack().ljust(48, b"\0"))
    payload[position] = 1
    assert driver.call(bytes(payload))[0] == -Errno.EINVAL


@pytest.mark.row("xen", 58)
@pytest.mark.row("defect", "C11")
def test_padding_after_a_short_structure_is_einval(driver):
    assert driver.call(PvIommuOp(Xen2024Op.ALLOC_CONTEXT, 0, 0).pack() + b"\1")[0] == -Errno.EINVAL
    assert driver.iommu.engine.domains() == ()


# -- alloc and free ---------------------------------------------------------------------------------------------------


@pytest.mark.row("xen", 10)
def test_alloc_gives_the_lowest_free_number_from_1_on(driver):
    assert [driver.alloc() for _ in range(3)] == [(0, 1), (0, 2), (0, 3)]
    assert driver.free(2) == 0
    assert driver.alloc() == (0, 2)


@pytest.mark.row("xen", 11)
def test_alloc_beyond_the_last_number_is_enospc_leaves_ctx_no_and_recovers(make_driver):
    driver = make_driver(contexts=2).start()
    driver.alloc(), driver.alloc()
    assert driver.alloc() == (-Errno.ENOSPC, UNTOUCHED)
    assert driver.free(1) == 0
    assert driver.alloc() == (0, 1)


def test_alloc_without_a_pool_page_is_enomem_and_leaves_ctx_no(make_driver):
    driver = make_driver(pool_pages=1).start()
    assert driver.alloc() == (0, 1)
    assert driver.alloc() == (-Errno.ENOMEM, UNTOUCHED)


@pytest.mark.row("xen", 12)
def test_a_clone_is_1_to_1_of_all_guest_ram(driver):
    result, ctx = driver.alloc(flags=1)
    assert result == 0
    assert driver.lookup(ctx, 0) == (0, 0)
    assert driver.lookup(ctx, RAM_END - 1) == (0, RAM_END - 1)
    assert driver.lookup(ctx, RAM_END)[0] == -Errno.ENOENT


@pytest.mark.row("xen", 13)
def test_dma_in_a_fresh_context_faults(driver):
    driver.attached("dma0")
    assert refusal(driver, "dma0", 0x1000) is EventReason.NOT_MAPPED


@pytest.mark.row("xen", 14)
def test_the_default_context_cannot_be_freed(driver):
    assert driver.free(0) == -Errno.EINVAL
    assert driver.free(0, 1) == -Errno.EINVAL


@pytest.mark.parametrize("unknown", [7, 65535])
@pytest.mark.row("xen", 15)
@pytest.mark.row("defect", "C13")
def test_free_of_an_unallocated_context_is_enoent(driver, unknown):
    assert driver.free(unknown) == -Errno.ENOENT


@pytest.mark.row("xen", 16)
def test_free_with_an_endpoint_attached_is_ebusy_and_changes_nothing(driver):
    ctx = driver.attached("dma0")
    driver.map(ctx, 0x100, 0x10, 1)
    assert driver.free(ctx) == -Errno.EBUSY
    assert driver.lookup(ctx, 0x100) == (0, 0x10)
    assert driver.iommu.engine.endpoints()[1] == ctx
    assert driver.reattach("dma0", ctx) == 0


@pytest.mark.row("xen", 17)
@pytest.mark.row("defect", "D13")
def test_free_with_the_flag_moves_all_endpoints_to_the_default_context(driver):
    ctx = driver.attached("dma0")
    driver.attached("dma1", ctx)
    driver.map(ctx, 0x100, 0x10, 1)
    assert driver.free(ctx, 1) == 0
    driver.ram[0x3000:0x3004] = b"here"
    assert driver.dma_read("dma0", 0x3000, 4) == driver.dma_read("dma1", 0x3000, 4) == b"here"
    assert driver.alloc() == (0, ctx)
    assert driver.lookup(ctx, 0x100)[0] == -Errno.ENOENT


@pytest.mark.row("xen", 18)
def test_free_returns_the_pool_in_full(driver, ctx):
    driver.map(ctx, 0x100, 0x10, 5)
    assert driver.free(ctx) == 0
    assert driver.iommu.engine.usage().pool_pages_used == 0


@pytest.mark.row("xen", 19)
def test_the_second_free_is_enoent(driver, ctx):
    assert [driver.free(ctx), driver.free(ctx)] == [0, -Errno.ENOENT]


# -- reattach ---------------------------------------------------------------------------------------------------------


@pytest.mark.row("xen", 20)
def test_an_unknown_device_outranks_an_unknown_context(driver):
    assert driver.reattach("dma0", 9) == -Errno.ENOENT


@pytest.mark.row("xen", 21)
@pytest.mark.row("defect", "C13")
@pytest.mark.row("defect", "C19")
def test_reattach_to_an_unallocated_context_is_enoent_and_leaves_the_endpoint(driver):
    ctx = driver.attached("dma0")
    driver.map(ctx, 0x100, 0x10, 1)
    driver.ram[0x10000:0x10004] = b"here"
    assert driver.reattach("dma0", 9) == -Errno.ENOENT
    assert driver.dma_read("dma0", 0x100000, 4) == b"here"


@pytest.mark.row("xen", 22)
def test_reattach_to_the_default_context_is_0(driver):
    driver.attached("dma0")
    assert driver.reattach("dma0", 0) == 0
    assert driver.iommu.engine.endpoints()[1] == 0


@pytest.mark.row("xen", 23)
def test_reattach_to_the_same_context_has_no_effect(driver):
    ctx = driver.attached("dma0")
    driver.map(ctx, 0x100, 0x10, 1)
    assert driver.reattach("dma0", ctx) == 0
    assert driver.lookup(ctx, 0x100) == (0, 0x10)
    assert driver.iommu.engine.endpoints()[1] == ctx


@pytest.mark.row("defect", "C19")
@pytest.mark.row("defect", "C20")
@pytest.mark.row("defect", "D1")
def test_reattach_moves_the_endpoint_at_once(driver):
    first = driver.attached("dma0")
    _, second = driver.alloc()
    driver.map(first, 0x100, 0x10, 1)
    driver.map(second, 0x100, 0x20, 1)
    driver.ram[0x10000:0x10001], driver.ram[0x20000:0x20001] = b"1", b"2"
    assert driver.dma_read("dma0", 0x100000, 1) == b"1"
    assert driver.reattach("dma0", second) == 0
    assert driver.dma_read("dma0", 0x100000, 1) == b"2"


# -- map --------------------------------------------------------------------------------------------------------------


@pytest.mark.row("xen", 25)
def test_map_counts_its_pages_and_dma_reaches_them(driver):
    ctx = driver.attached("dma0")
    assert driver.map(ctx, 0x100, 0x10, 3) == (0, 3)
    driver.dma_write("dma0", 0x100FFE, b"abcd")
    driver.dma_write("dma0", 0x102FFF, b"z")
    assert driver.ram[0x10FFE:0x11002] == b"abcd"
    assert driver.ram[0x12FFF:0x13000] == b"z"
    assert refusal(driver, "dma0", 0x103000) is EventReason.NOT_MAPPED


@pytest.mark.row("xen", 26)
def test_map_of_no_pages_is_0_and_assigns_the_count(driver, ctx):
    assert driver.map(ctx, 0x100, 0x10, 0) == (0, 0)


@pytest.mark.row("xen", 27)
def test_map_of_the_most_pages_works_and_one_more_is_e2big_with_the_count_untouched(make_driver):
    driver = make_driver(max_pages_per_op=256).start()
    _, ctx = driver.alloc()
    assert driver.map(ctx, 0x100, 0, 256) == (0, 256)
    assert driver.map(ctx, 0x1000, 0, 257) == (-Errno.E2BIG, UNTOUCHED)
    assert driver.lookup(ctx, 0x1000)[0] == -Errno.ENOENT
    assert driver.unmap(ctx, 0x100, 257) == (-Errno.E2BIG, UNTOUCHED)
    assert driver.unmap(ctx, 0x100, 256) == (0, 256)


@pytest.mark.row("xen", 28)
def test_too_many_pages_outrank_an_unknown_context(make_driver):
    driver = make_driver(max_pages_per_op=256).start()
    assert driver.map(9, 0, 0, 257) == (-Errno.E2BIG, UNTOUCHED)


@pytest.mark.parametrize("bad", [0, 9], ids=["default", "unallocated"])
@pytest.mark.row("xen", 29)
@pytest.mark.row("xen", 30)
@pytest.mark.row("defect", "C13")
def test_editing_the_default_or_an_unallocated_context_is_einval_with_counts_untouched(driver, bad):
    assert driver.map(bad, 0x100, 0x10, 3) == (-Errno.EINVAL, UNTOUCHED)
    assert driver.unmap(bad, 0x100, 3) == (-Errno.EINVAL, UNTOUCHED)


@pytest.mark.row("xen", 31)
def test_map_up_to_a_live_page_is_eaddrinuse_and_keeps_the_prefix(driver, ctx):
    driver.map(ctx, 0x102, 0x99, 1)
    assert driver.map(ctx, 0x100, 0x10, 5) == (-Errno.EADDRINUSE, 2)
    looked_up = [driver.lookup(ctx, dfn) for dfn in range(0x100, 0x104)]
    assert looked_up == [(0, 0x10), (0, 0x11), (0, 0x99), (-Errno.ENOENT, UNTOUCHED)]


@pytest.mark.row("xen", 32)
def test_mapping_the_same_page_again_is_eaddrinuse_with_0_pages(driver, ctx):
    driver.map(ctx, 0x100, 0x10, 1)
    assert driver.map(ctx, 0x100, 0x10, 1) == (-Errno.EADDRINUSE, 0)


@pytest.mark.row("xen", 33)
def test_a_gfn_without_ram_is_eperm_after_the_prefix(driver, ctx):
    assert driver.map(ctx, 0x100, RAM_END - 2, 4) == (-Errno.EPERM, 2)
    assert driver.lookup(ctx, 0x101) == (0, RAM_END - 1)


@pytest.mark.row("xen", 34)
def test_a_gfn_without_ram_outranks_a_live_page(driver, ctx):
    driver.map(ctx, 0x100, 0x10, 1)
    assert driver.map(ctx, 0x100, RAM_END, 1) == (-Errno.EPERM, 0)


@pytest.mark.row("xen", 36)
def test_pool_exhaustion_is_enomem_with_exact_count_and_recovers(make_driver):
    driver = make_driver(pool_pages=3).start()  # root, one table a GiB, one a 2 MiB
    _, ctx = driver.alloc()
    assert driver.map(ctx, 0x1FE, 0x10, 4) == (-Errno.ENOMEM, 2)
    assert driver.lookup(ctx, 0x1FF) == (0, 0x11)
    assert driver.unmap(ctx, 0x1FE, 2) == (0, 2)
    assert driver.map(ctx, 0x200, 0x10, 4) == (0, 4)


@pytest.mark.row("xen", 37)
def test_a_read_only_page_refuses_writes_and_a_write_only_one_reads(driver):
    ctx = driver.attached("dma0")
    driver.map(ctx, 0x100, 0x10, 1, flags=1)
    driver.map(ctx, 0x101, 0x11, 1, flags=2)
    assert driver.dma_read("dma0", 0x100000, 1) == b"\0"
    driver.dma_write("dma0", 0x101000, b"w")
    with pytest.raises(DmaRefusedError) as caught:
        driver.dma_write("dma0", 0x100000, b"w")
    assert reason_of(caught.value) is EventReason.PERMISSION
    assert refusal(driver, "dma0", 0x101000) is EventReason.PERMISSION
    assert driver.ram[0x10000] == 0


@pytest.mark.row("xen", 38)
def test_map_neither_readable_nor_writeable_is_einval_and_maps_nothing(driver, ctx):
    assert driver.map(ctx, 0x100, 0x10, 1, flags=0) == (-Errno.EINVAL, 0)
    assert driver.lookup(ctx, 0x100)[0] == -Errno.ENOENT


@pytest.mark.parametrize(
    "dfn", [(1 << 27) - 1, 1 << 27, (1 << 64) - 1], ids=["crossing the aperture", "outside it", "wrapping"]
)
@pytest.mark.row("xen", 39)
@pytest.mark.row("defect", "C1")
@pytest.mark.row("defect", "C14")
def test_a_range_past_the_aperture_is_erange_before_anything_changes(driver, ctx, dfn):
    assert driver.map(ctx, dfn, 0x10, 2) == (-Errno.ERANGE, 0)
    assert driver.unmap(ctx, dfn, 2) == (-Errno.ERANGE, 0)
    assert driver.iommu.engine.usage().mapped_pages == 0


@pytest.mark.row("xen", 39)
def test_the_last_frame_of_the_aperture_can_be_mapped(driver, ctx):
    assert driver.map(ctx, (1 << 27) - 1, 0x10, 1) == (0, 1)


@pytest.mark.row("xen", 42)
def test_the_msi_window_is_eaddrinuse_after_the_prefix(driver, ctx):
    assert driver.map(ctx, 0xFEDFE, 0x10, 4) == (-Errno.EADDRINUSE, 2)


@pytest.mark.row("xen", 41)
def test_the_count_is_assigned_not_added_to(driver, ctx):
    assert driver.map(ctx, 0x100, 0x10, 3)[1] == 3  # submitted as UNTOUCHED


def test_in_fields_of_a_map_read_back_as_submitted(driver, ctx):
    op = MapPages(Xen2024Op.MAP_PAGES, ctx, 3, 0x10, 0x100, 3, 5)
    assert MapPages.unpack(driver.call(op.pack())[1]) == MapPages(Xen2024Op.MAP_PAGES, ctx, 3, 0x10, 0x100, 3, 3)


# -- unmap and lookup -------------------------------------------------------------------------------------------------


@pytest.mark.row("xen", 43)
@pytest.mark.row("xen", 47)
def test_unmap_stops_at_a_hole_with_enoent_and_the_prefix_is_gone(driver):
    ctx = driver.attached("dma0")
    driver.map(ctx, 0x100, 0x10, 2)
    driver.map(ctx, 0x103, 0x13, 2)
    driver.dma_read("dma0", 0x100000, 8192)  # now it is in the IOTLB
    assert driver.unmap(ctx, 0x100, 5) == (-Errno.ENOENT, 2)
    assert refusal(driver, "dma0", 0x100000) is EventReason.NOT_MAPPED
    assert [driver.lookup(ctx, dfn)[0] for dfn in range(0x100, 0x105)] == [-2, -2, -2, 0, 0]


@pytest.mark.row("xen", 44)
def test_unmap_takes_exactly_a_slice_of_two_maps(driver, ctx):
    driver.map(ctx, 0x100, 0x10, 3)
    driver.map(ctx, 0x103, 0x20, 3)
    assert driver.unmap(ctx, 0x102, 2) == (0, 2)
    assert [driver.lookup(ctx, dfn)[0] for dfn in range(0x100, 0x106)] == [0, 0, -2, -2, 0, 0]


@pytest.mark.row("xen", 45)
def test_unmap_of_what_is_not_mapped_is_enoent_with_0_pages(driver, ctx):
    assert driver.unmap(ctx, 0x100, 1) == (-Errno.ENOENT, 0)


def test_unmap_of_no_pages_is_0(driver, ctx):
    assert driver.unmap(ctx, 0x100, 0) == (0, 0)


@pytest.mark.row("xen", 46)
def test_unmap_reads_its_dfn_at_byte_8(driver, ctx):
    driver.map(ctx, 0x100, 0x10, 1)
    payload = Xen2024Op.UNMAP_PAGES.to_bytes(2, "little") + ctx.to_bytes(2, "little") + bytes(4)
    payload += (0x100).to_bytes(8, "little") + (1).to_bytes(4, "little") + (0xAA).to_bytes(4, "little")
    result, answer = driver.call(payload)
    assert (result, answer[20:24]) == (0, b"\1\0\0\0")


@pytest.mark.row("xen", 47)
def test_unmapped_memory_is_out_of_reach_when_unmap_completes(driver):
    ctx = driver.attached("dma0")
    driver.map(ctx, 0x100, 0x10, 1)
    driver.dma_write("dma0", 0x100000, b"a")
    assert driver.unmap(ctx, 0x100, 1) == (0, 1)
    assert refusal(driver, "dma0", 0x100000) is EventReason.NOT_MAPPED


@pytest.mark.row("xen", 49)
def test_lookup_gives_the_frame_and_keeps_flags_and_dfn(driver, ctx):
    driver.map(ctx, 0x100, 0x10, 2)
    result, answer = driver.call(LookupPage(7, ctx, 0, 0, 0x101).pack())
    assert (result, LookupPage.unpack(answer)) == (0, LookupPage(7, ctx, 0, 0x11, 0x101))


@pytest.mark.parametrize("dfn", [0x100, 0xFEE00, 1 << 27, (1 << 64) - 1])
@pytest.mark.row("xen", 50)
@pytest.mark.row("xen", 51)
def test_lookup_of_what_is_not_mapped_is_enoent_with_gfn_untouched(driver, ctx, dfn):
    assert driver.lookup(ctx, dfn) == (-Errno.ENOENT, UNTOUCHED)


@pytest.mark.row("xen", 50)
@pytest.mark.row("defect", "C13")
def test_lookup_in_an_unallocated_context_is_einval_with_gfn_untouched(driver):
    assert driver.lookup(9, 0x100) == (-Errno.EINVAL, UNTOUCHED)


@pytest.mark.row("xen", 51)
def test_lookup_in_the_default_context_is_enoent(driver):
    assert driver.lookup(0, 1) == (-Errno.ENOENT, UNTOUCHED)


# -- reserved regions -------------------------------------------------------------------------------------------------

REGION = {"dma0": (ReservedSection(0x200000, 0x2000),)}
SHARED_REGION = dict.fromkeys(("dma0", "dma1"), (ReservedSection(0x200000, 0x2000),))


@pytest.mark.row("xen", 13)
def test_dma_to_a_reserved_region_goes_through_in_a_fresh_context(make_driver):
    driver = make_driver(reserved=REGION).start()
    driver.attached("dma0")
    driver.dma_write("dma0", 0x201FFF, b"x")
    assert driver.ram[0x201FFF] == ord("x")
    assert refusal(driver, "dma0", 0x202000) is EventReason.NOT_MAPPED


@pytest.mark.row("xen", 24)
def test_reattach_is_einval_if_another_frame_is_mapped_in_its_region_and_nothing_moves(make_driver):
    driver = make_driver(reserved=REGION).start()
    _, ctx = driver.alloc()
    driver.bind("dma0")
    driver.map(ctx, 0x201, 0x10, 1)
    usage = driver.iommu.engine.usage()
    assert driver.reattach("dma0", ctx) == -Errno.EINVAL
    assert (driver.iommu.engine.endpoints()[1], driver.iommu.engine.usage()) == (0, usage)
    assert driver.lookup(ctx, 0x201) == (0, 0x10)
    assert driver.lookup(ctx, 0x200)[0] == -Errno.ENOENT


@pytest.mark.row("xen", "24b")
def test_a_region_of_two_endpoints_stays_until_the_last_one_leaves(make_driver):
    driver = make_driver(reserved=SHARED_REGION).start()
    ctx = driver.attached("dma0")
    driver.attached("dma1", ctx)
    driver.reattach("dma0", 0)
    assert driver.dma_read("dma1", 0x200000, 1) == b"\0"
    assert driver.map(ctx, 0x200, 0x200, 1) == (-Errno.EADDRINUSE, 0)
    driver.reattach("dma1", 0)
    assert driver.map(ctx, 0x200, 0x10, 1) == (0, 1)


@pytest.mark.row("xen", 23)
def test_reattach_to_the_same_context_keeps_the_reserved_region(make_driver):
    driver = make_driver(reserved=REGION).start()
    ctx = driver.attached("dma0")
    assert driver.reattach("dma0", ctx) == 0
    assert driver.dma_read("dma0", 0x200000, 1) == b"\0"


@pytest.mark.row("xen", 42)
def test_map_and_unmap_stop_at_a_reserved_page_after_the_prefix(make_driver):
    driver = make_driver(reserved=REGION).start()
    ctx = driver.attached("dma0")
    assert driver.map(ctx, 0x1FE, 0x10, 4) == (-Errno.EADDRINUSE, 2)
    assert driver.unmap(ctx, 0x1FE, 4) == (-Errno.ENOENT, 2)
    assert driver.dma_read("dma0", 0x200000, 1) == b"\0"


def test_a_region_is_charged_and_without_pool_pages_reattach_is_enomem(make_driver):
    driver = make_driver(reserved=REGION, pool_pages=2).start()
    _, ctx = driver.alloc()
    driver.bind("dma0")
    assert driver.reattach("dma0", ctx) == -Errno.ENOMEM
    assert driver.iommu.engine.endpoints()[1] == 0


# -- what the guest may not do ----------------------------------------------------------------------------------------


@pytest.mark.row("xen", 3)
@pytest.mark.parametrize("op", [*Xen2024Op, 99])
def test_a_guest_that_is_not_allowed_gets_eperm_for_everything(make_driver, op):
    driver = make_driver(allowed=False).start()
    submitted = PvIommuOp(op, 1, 0xFFFFFFFF).pack().ljust(48, b"\1")
    assert driver.call(submitted) == (-Errno.EPERM, submitted)
    assert driver.iommu.engine.domains() == ()


@pytest.mark.row("xen", 35)
def test_the_memory_of_another_device_is_eperm(driver, ctx):
    driver.iommu.dma_map(DmaMapping(0xE0000000, 0x1000, 0, True, True, None))  # a BAR: without a file
    assert driver.map(ctx, 0x100, 0xE0000, 1) == (-Errno.EPERM, 0)


@pytest.mark.row("xen", 48)
def test_an_invalidation_that_fails_is_not_a_success(driver, ctx, monkeypatch):
    driver.map(ctx, 0x100, 0x10, 1)
    monkeypatch.setattr(type(driver.iommu.engine._iotlb), "invalidate", lambda *_: 1 // 0)
    assert driver.unmap(ctx, 0x100, 1)[0] == -Errno.EIO


@pytest.mark.row("xen", 60)
def test_a_function_that_is_no_endpoint_has_an_errno(driver, ctx):
    """The PV-IOMMU's own function, a bridge: nothing with their SBDF is bound, and their stream does not exist."""
    own = Binding(0, 0, 0x20, 0xFFFFFFFF)
    assert driver.call(own.pack(), OpClass.VENDOR, VendorOp.BIND)[0] == -Errno.ENODEV
    assert driver.call(ReattachDevice(4, ctx, 0, 0, 0, 0x20).pack())[0] == -Errno.ENOENT


@pytest.mark.row("xen", 59)
def test_after_a_reset_contexts_are_gone_and_nothing_translates_as_before(driver):
    ctx = driver.attached("dma0")
    driver.map(ctx, 0x100, 0x10, 1)
    driver.dma_read("dma0", 0x100000, 1)
    driver.write("RESET", 1)
    assert (driver.iommu.engine.domains(), driver.iommu.engine.endpoints()[1]) == ((), 0)
    assert refusal(driver, "dma0", 0x100000) is EventReason.BLOCKED
    driver.start()
    assert driver.alloc() == (0, ctx)
    assert driver.lookup(ctx, 0x100)[0] == -Errno.ENOENT


# -- clones follow memory ---------------------------------------------------------------------------------------------


@pytest.mark.row("xen", 12)
def test_a_clone_follows_memory_that_is_added_and_removed(driver):
    _, ctx = driver.alloc(flags=1)
    driver.iommu.dma_map(DmaMapping(0x10000000, 0x2000, 0, True, True, driver.more_ram(0x2000)))
    assert driver.lookup(ctx, 0x10001) == (0, 0x10001)
    driver.iommu.dma_unmap(0x10000000, 0x2000)
    assert driver.lookup(ctx, 0x10001)[0] == -Errno.ENOENT
    assert driver.lookup(ctx, 1) == (0, 1)


def test_a_page_that_the_guest_put_into_a_clone_is_not_touched_by_memory_that_comes(driver):
    _, ctx = driver.alloc(flags=1)
    driver.map(ctx, 0x10001, 0x10, 1)
    driver.iommu.dma_map(DmaMapping(0x10000000, 0x2000, 0, True, True, driver.more_ram(0x2000)))
    assert driver.lookup(ctx, 0x10000) == (0, 0x10000)
    assert driver.lookup(ctx, 0x10001) == (0, 0x10)


# -- isolation --------------------------------------------------------------------------------------------------------


@pytest.mark.row("xen", 54)
def test_two_contexts_translate_one_dfn_to_their_own_pages(driver):
    first, second = driver.attached("dma0"), driver.attached("dma1")
    driver.map(first, 0x100, 0x10, 1)
    driver.map(second, 0x100, 0x20, 1)
    driver.dma_write("dma0", 0x100000, b"first")
    driver.dma_write("dma1", 0x100000, b"other")
    assert (driver.ram[0x10000:0x10005], driver.ram[0x20000:0x20005]) == (b"first", b"other")


@pytest.mark.row("xen", 55)
@pytest.mark.row("defect", "C20")
def test_one_map_serves_two_endpoints_and_its_unmap_ends_both(driver):
    ctx = driver.attached("dma0")
    driver.attached("dma1", ctx)
    driver.map(ctx, 0x100, 0x10, 1)
    driver.dma_write("dma0", 0x100000, b"x")
    assert driver.dma_read("dma1", 0x100000, 1) == b"x"
    driver.unmap(ctx, 0x100, 1)
    assert refusal(driver, "dma0", 0x100000) is EventReason.NOT_MAPPED
    assert refusal(driver, "dma1", 0x100000) is EventReason.NOT_MAPPED


@pytest.mark.parametrize("op", list(Xen2024Op))
def test_only_what_changes_contexts_or_moves_endpoints_reorders(driver, op):
    expected = op in (Xen2024Op.ALLOC_CONTEXT, Xen2024Op.FREE_CONTEXT, Xen2024Op.REATTACH_DEVICE)
    profile = driver.iommu._profiles[Profile.XEN_2024]
    assert profile.reorders(0, PvIommuOp(op, 0, 0).pack()) is expected


def test_operations_and_pages_are_counted(driver, ctx):
    driver.map(ctx, 0x100, 0x10, 3)
    driver.unmap(ctx, 0x100, 5)
    assert (driver.counters.ops["map_pages"], driver.counters.ops["unmap_pages"]) == (1, 1)
    assert (driver.counters.pages_mapped, driver.counters.pages_unmapped) == (3, 3)
    assert driver.counters.ops_failed == 1
