import pytest

from pviommu.dma.fault import DmaRefusedError
from pviommu.guest.xen_2024 import UNTOUCHED
from pviommu.interfaces.pv.xen_v7 import XenV7State
from pviommu.topology import ReservedSection
from pviommu_abi.registers import Profile
from pviommu_abi.shared import EventReason
from pviommu_abi.slots import Errno, OpClass
from pviommu_abi.vendor import Binding, VendorOp
from pviommu_abi.xen_v7 import (
    DOMID_SELF,
    XEN_V7_RECORDS,
    V7Alloc,
    V7Capabilities,
    V7Capability,
    V7MapPages,
    V7ReattachDevice,
    V7RemoteCmd,
    V7UnmapPages,
    XenV7Op,
)
from vfio_user import DmaMapping

from ...conftest import reason_of
from .conftest import PLACE

RAM_END = 0x1000
REGION = {"dma0": (ReservedSection(0x200000, 0x2000),)}
SHARED_REGION = dict.fromkeys(("dma0", "dma1"), (ReservedSection(0x200000, 0x2000),))


@pytest.fixture
def ctx(v7):
    result, ctx = v7.alloc()
    assert result == 0
    return ctx


def refusal(v7, name, iova, length=1):
    with pytest.raises(DmaRefusedError) as caught:
        v7.driver.dma_read(name, iova, length)
    return reason_of(caught.value)


# -- noop, unknown, query ---------------------------------------------------------------------------------------------


@pytest.mark.row("xen", 1)
def test_noop_is_0_and_changes_nothing(v7):
    before = v7.driver.iommu.engine.usage()
    assert v7.call(XenV7Op.NOOP)[0] == 0
    assert v7.driver.iommu.engine.usage() == before


@pytest.mark.row("xen", 2)
@pytest.mark.parametrize("op", [13, 99, 255])
def test_an_unknown_suboperation_is_eopnotsupp(v7, op):
    assert v7.call(op)[0] == -Errno.EOPNOTSUPP


@pytest.mark.row("xen", 57)
@pytest.mark.parametrize("op", [XenV7Op.ALLOC_NESTED, XenV7Op.FLUSH_NESTED, XenV7Op.ATTACH_PASID, XenV7Op.DETACH_PASID])
def test_nested_and_pasid_operations_are_eopnotsupp(v7, op):
    assert v7.call(op, b"\xff" * 24)[0] == -Errno.EOPNOTSUPP


@pytest.mark.row("xen", 7)
def test_query_tells_no_contexts_before_init_and_the_limits_after(make_v7):
    v7 = make_v7()
    assert v7.query() == V7Capabilities(
        0x7F_FFFF_FFFF, int(V7Capability.DEFAULT_IDENTITY | V7Capability.IDENTITY), 0x1000, 0, 0, 0
    )
    assert v7.init(128, 12) == 0
    assert v7.query().max_ctx_no == 128


def test_a_default_context_that_translates_nothing_is_not_told_as_identity(make_v7):
    assert make_v7(default_policy="blocked").query().cap_flags == V7Capability.IDENTITY


# -- init -------------------------------------------------------------------------------------------------------------


@pytest.mark.row("xen", 8)
def test_the_second_init_is_eacces_and_does_nothing(v7):
    assert v7.init(5, 3) == -Errno.EACCES
    assert v7.query().max_ctx_no == 128
    usage = v7.driver.iommu.engine.usage()
    assert (usage.domains, usage.pool_pages_total) == (0, 4096)


@pytest.mark.row("xen", 9)
@pytest.mark.parametrize("count", [256, 65535, 65536, 0xFFFFFFFE, 0xFFFFFFFF])
def test_init_for_more_contexts_than_there_are_is_e2big_and_does_not_count_as_init(make_v7, count):
    v7 = make_v7()
    assert v7.init(count) == -Errno.E2BIG
    assert (v7.query().max_ctx_no, v7.alloc()[0]) == (0, -Errno.ENOSPC)
    assert v7.init(255) == 0


@pytest.mark.row("xen", 9)
def test_the_most_contexts_that_init_takes_are_65534(make_v7):
    v7 = make_v7(contexts=65535)
    assert v7.init(65535) == -Errno.E2BIG
    assert v7.init(65534) == 0
    assert v7.query().max_ctx_no == 65534


@pytest.mark.parametrize(("order", "result"), [(13, -Errno.ENOMEM), (31, -Errno.ENOMEM), (32, -Errno.EINVAL)])
def test_init_for_a_larger_pool_than_there_is_is_refused(make_v7, order, result):
    v7 = make_v7()
    assert v7.init(8, order) == result
    assert v7.init(8, 12) == 0


def test_init_limits_contexts_and_pool(make_v7):
    v7 = make_v7()
    assert v7.init(2, 2) == 0
    assert [v7.alloc() for _ in range(3)] == [(0, 1), (0, 2), (-Errno.ENOSPC, UNTOUCHED)]
    assert v7.map(1, 0x1FE, 0x10, 4) == (-Errno.ENOMEM, 2)


def test_init_with_order_0_leaves_one_page(make_v7):
    v7 = make_v7()
    assert v7.init(2, 0) == 0
    assert [v7.alloc()[0], v7.alloc()[0]] == [0, -Errno.ENOMEM]


def test_init_for_no_contexts_is_an_init(make_v7):
    v7 = make_v7()
    assert v7.init(0) == 0
    assert (v7.alloc(), v7.init(1)) == ((-Errno.ENOSPC, UNTOUCHED), -Errno.EACCES)


def test_alloc_before_init_is_enospc_and_leaves_ctx_no(make_v7):
    assert make_v7().alloc() == (-Errno.ENOSPC, UNTOUCHED)


@pytest.mark.row("xen", 59)
def test_after_a_reset_a_guest_that_was_kexeced_does_its_init_again(v7):
    ctx = v7.attached()
    v7.map(ctx, 0x100, 0x10, 1)
    v7.driver.dma_read("dma0", 0x100000, 1)
    v7.driver.write("RESET", 1)
    assert refusal(v7, "dma0", 0x100000) is EventReason.BLOCKED
    v7.driver.start(profile=Profile.XEN_V7)
    assert v7.query().max_ctx_no == 0
    assert v7.init(7, 5) == 0
    assert v7.query().max_ctx_no == 7
    assert v7.attached() == ctx
    assert refusal(v7, "dma0", 0x100000) is EventReason.NOT_MAPPED


# -- flags and padding ------------------------------------------------------------------------------------------------


@pytest.mark.row("xen", 58)
@pytest.mark.parametrize(
    ("op", "offset"),
    [
        (op, offset)
        for op, offsets in {
            XenV7Op.QUERY_CAPABILITIES: (24, 47),
            XenV7Op.INIT: (8, 47),
            XenV7Op.ALLOC_CONTEXT: (2, 3, 5, 7, 8, 47),
            XenV7Op.FREE_CONTEXT: (2, 3, 5, 7, 8, 47),
            XenV7Op.REATTACH_DEVICE: (6, 7, 12, 47),
            XenV7Op.MAP_PAGES: (2, 4, 7, 25, 27, 40, 47),
            XenV7Op.UNMAP_PAGES: (2, 4, 7, 28, 31, 32, 47),
            XenV7Op.REMOTE_CMD: (4, 7, 16, 47),
        }.items()
        for offset in offsets
    ],
)
def test_padding_that_is_not_zero_and_unknown_flags_are_einval(make_v7, op, offset):
    v7 = make_v7()
    payload = bytearray(48)
    payload[offset] = 1
    assert v7.call(op, bytes(payload))[0] == -Errno.EINVAL
    assert v7.query().max_ctx_no == 0


@pytest.mark.row("xen", 58)
@pytest.mark.parametrize(
    ("op", "offset", "bit"),
    [(XenV7Op.ALLOC_CONTEXT, 4, 2), (XenV7Op.FREE_CONTEXT, 4, 2), (XenV7Op.MAP_PAGES, 24, 4)],
)
def test_the_first_flag_without_a_meaning_is_einval(v7, ctx, op, offset, bit):
    payload = bytearray(48)
    payload[0] = ctx
    payload[offset] = bit
    assert v7.call(op, bytes(payload))[0] == -Errno.EINVAL
    assert v7.driver.iommu.engine.domains() == (ctx,)


# -- alloc and free ---------------------------------------------------------------------------------------------------


@pytest.mark.row("xen", 10)
def test_alloc_gives_the_lowest_free_number_from_1_on(v7):
    assert [v7.alloc() for _ in range(3)] == [(0, 1), (0, 2), (0, 3)]
    assert v7.free(2) == 0
    assert v7.alloc() == (0, 2)


@pytest.mark.row("xen", 11)
def test_alloc_beyond_the_last_number_is_enospc_leaves_ctx_no_and_recovers(make_v7):
    v7 = make_v7()
    v7.init(2)
    v7.alloc(), v7.alloc()
    assert v7.alloc() == (-Errno.ENOSPC, UNTOUCHED)
    assert v7.free(1) == 0
    assert v7.alloc() == (0, 1)


@pytest.mark.row("xen", 12)
def test_an_identity_context_is_1_to_1_of_all_guest_ram_and_follows_it(v7):
    assert v7.query().cap_flags & V7Capability.IDENTITY
    result, ctx = v7.alloc(flags=1)
    assert result == 0
    assert [v7.lookup(ctx, gfn) for gfn in (0, RAM_END - 1, RAM_END)] == [0, RAM_END - 1, None]
    v7.driver.iommu.dma_map(DmaMapping(0x10000000, 0x2000, 0, True, True, v7.driver.more_ram(0x2000)))
    assert v7.lookup(ctx, 0x10001) == 0x10001
    v7.driver.iommu.dma_unmap(0x10000000, 0x2000)
    assert v7.lookup(ctx, 0x10001) is None


def test_an_identity_context_that_the_pool_cannot_hold_is_enomem(make_v7):
    v7 = make_v7()
    v7.init(8, 1)
    assert v7.alloc(flags=1) == (-Errno.ENOMEM, UNTOUCHED)
    assert v7.driver.iommu.engine.usage().pool_pages_used == 0


@pytest.mark.row("xen", 13)
def test_dma_in_a_fresh_context_faults_but_for_reserved_regions(make_v7):
    v7 = make_v7(reserved=REGION)
    v7.init()
    v7.attached()
    assert refusal(v7, "dma0", 0x1000) is EventReason.NOT_MAPPED
    v7.driver.dma_write("dma0", 0x200000, b"x")
    assert v7.driver.ram[0x200000] == ord("x")


@pytest.mark.row("xen", 14)
def test_the_default_context_cannot_be_freed(v7):
    assert [v7.free(0), v7.free(0, 1)] == [-Errno.EINVAL] * 2


@pytest.mark.row("xen", 15)
@pytest.mark.parametrize("unknown", [7, 65535])
def test_free_of_an_unallocated_context_is_enoent(v7, unknown):
    assert v7.free(unknown) == -Errno.ENOENT


@pytest.mark.row("xen", 16)
def test_free_with_an_endpoint_attached_is_ebusy_and_changes_nothing(v7):
    ctx = v7.attached()
    v7.map(ctx, 0x100, 0x10, 1)
    assert v7.free(ctx) == -Errno.EBUSY
    assert (v7.lookup(ctx, 0x100), v7.driver.iommu.engine.endpoints()[1]) == (0x10, ctx)
    assert v7.reattach("dma0", ctx) == 0


@pytest.mark.row("xen", 17)
def test_free_with_the_flag_moves_all_endpoints_to_the_default_context(v7):
    ctx = v7.attached("dma0")
    v7.attached("dma1", ctx)
    v7.map(ctx, 0x100, 0x10, 1)
    assert v7.free(ctx, 1) == 0
    v7.driver.ram[0x3000:0x3004] = b"here"
    assert v7.driver.dma_read("dma0", 0x3000, 4) == v7.driver.dma_read("dma1", 0x3000, 4) == b"here"
    assert v7.alloc() == (0, ctx)
    assert v7.lookup(ctx, 0x100) is None


@pytest.mark.row("xen", 18)
def test_free_returns_the_pool_in_full(v7, ctx):
    v7.map(ctx, 0x100, 0x10, 5)
    assert v7.free(ctx) == 0
    assert v7.driver.iommu.engine.usage().pool_pages_used == 0


@pytest.mark.row("xen", 19)
def test_the_second_free_is_enoent(v7, ctx):
    assert [v7.free(ctx), v7.free(ctx)] == [0, -Errno.ENOENT]


# -- reattach ---------------------------------------------------------------------------------------------------------


@pytest.mark.row("xen", 20)
def test_an_unknown_device_is_enodev_and_outranks_an_unknown_context(v7):
    assert v7.reattach("dma0", 9) == -Errno.ENODEV


@pytest.mark.row("xen", 21)
def test_reattach_to_an_unallocated_context_is_enoent_and_leaves_the_endpoint(v7):
    ctx = v7.attached()
    v7.map(ctx, 0x100, 0x10, 1)
    v7.driver.ram[0x10000:0x10004] = b"here"
    assert v7.reattach("dma0", 9) == -Errno.ENOENT
    assert v7.driver.dma_read("dma0", 0x100000, 4) == b"here"


@pytest.mark.row("xen", 22)
def test_reattach_to_the_default_context_is_0(v7):
    v7.attached()
    assert v7.reattach("dma0", 0) == 0
    assert v7.driver.iommu.engine.endpoints()[1] == 0


@pytest.mark.row("xen", 23)
def test_reattach_to_the_same_context_has_no_effect(make_v7):
    v7 = make_v7(reserved=REGION)
    v7.init()
    ctx = v7.attached()
    v7.map(ctx, 0x100, 0x10, 1)
    assert v7.reattach("dma0", ctx) == 0
    assert v7.lookup(ctx, 0x100) == 0x10
    assert v7.driver.dma_read("dma0", 0x201000, 1) == b"\0"


@pytest.mark.row("xen", 57)
def test_a_pasid_is_eopnotsupp(v7):
    ctx = v7.attached()
    assert v7.reattach("dma0", 0, pasid=1) == -Errno.EOPNOTSUPP
    assert v7.driver.iommu.engine.endpoints()[1] == ctx


@pytest.mark.row("xen", 24)
def test_reattach_is_einval_if_another_frame_is_mapped_in_its_region_and_nothing_moves(make_v7):
    v7 = make_v7(reserved=REGION)
    v7.init()
    _, ctx = v7.alloc()
    v7.driver.bind("dma0")
    v7.map(ctx, 0x201, 0x10, 1)
    usage = v7.driver.iommu.engine.usage()
    assert v7.reattach("dma0", ctx) == -Errno.EINVAL
    assert (v7.driver.iommu.engine.endpoints()[1], v7.driver.iommu.engine.usage()) == (0, usage)
    assert (v7.lookup(ctx, 0x201), v7.lookup(ctx, 0x200)) == (0x10, None)


@pytest.mark.row("xen", "24b")
def test_a_region_of_two_endpoints_stays_until_the_last_one_leaves(make_v7):
    v7 = make_v7(reserved=SHARED_REGION)
    v7.init()
    ctx = v7.attached("dma0")
    v7.attached("dma1", ctx)
    v7.reattach("dma0", 0)
    assert v7.driver.dma_read("dma1", 0x200000, 1) == b"\0"
    assert v7.map(ctx, 0x200, 0x200, 1) == (-Errno.EADDRNOTAVAIL, 0)
    v7.reattach("dma1", 0)
    assert v7.map(ctx, 0x200, 0x10, 1) == (0, 1)


@pytest.mark.row("xen", 60)
def test_a_function_that_is_no_endpoint_has_an_errno(v7, ctx):
    own = Binding(0, 0, 0x20, 0xFFFFFFFF)
    assert v7.driver.call(own.pack(), OpClass.VENDOR, VendorOp.BIND)[0] == -Errno.ENODEV
    answer = v7.call(XenV7Op.REATTACH_DEVICE, V7ReattachDevice(ctx, 0, 0, 0x20, 0, 0).pack())
    assert answer[0] == -Errno.ENODEV


# -- map --------------------------------------------------------------------------------------------------------------


@pytest.mark.row("xen", 25)
def test_map_counts_its_pages_and_dma_reaches_them(v7):
    ctx = v7.attached()
    assert v7.map(ctx, 0x100, 0x10, 3) == (0, 3)
    v7.driver.dma_write("dma0", 0x100FFE, b"abcd")
    assert v7.driver.ram[0x10FFE:0x11002] == b"abcd"
    assert refusal(v7, "dma0", 0x103000) is EventReason.NOT_MAPPED


@pytest.mark.row("xen", 26)
def test_map_and_unmap_of_no_pages_are_0_and_leave_the_count(v7, ctx):
    assert v7.map(ctx, 0x100, 0x10, 0, flags=0, mapped=7) == (0, 7)
    assert v7.unmap(ctx, 0x100, 0, unmapped=7) == (0, 7)


@pytest.mark.row("xen", 27)
def test_there_is_no_limit_of_pages(make_v7):
    v7 = make_v7(max_pages_per_op=256)
    v7.init()
    _, ctx = v7.alloc()
    assert v7.map(ctx, 0x1000, 0, 256) == (0, 256)
    assert v7.map(ctx, 0x2000, 0, 257) == (0, 257)
    assert v7.unmap(ctx, 0x2000, 257) == (0, 257)


@pytest.mark.row("xen", 28)
@pytest.mark.row("xen", 29)
@pytest.mark.row("xen", 30)
@pytest.mark.parametrize("bad", [0, 9], ids=["default", "unallocated"])
@pytest.mark.parametrize("nr", [0, 3, 257, 70000])
def test_editing_the_default_or_an_unallocated_context_is_einval_with_counts_untouched(v7, bad, nr):
    assert v7.map(bad, 0x100, 0x10, nr, mapped=5) == (-Errno.EINVAL, 5)
    assert v7.unmap(bad, 0x100, nr, unmapped=5) == (-Errno.EINVAL, 5)


@pytest.mark.row("xen", 31)
def test_map_up_to_a_live_page_is_eaddrinuse_and_keeps_the_prefix(v7, ctx):
    v7.map(ctx, 0x102, 0x99, 1)
    assert v7.map(ctx, 0x100, 0x10, 5) == (-Errno.EADDRINUSE, 2)
    assert [v7.lookup(ctx, dfn) for dfn in range(0x100, 0x104)] == [0x10, 0x11, 0x99, None]


@pytest.mark.row("xen", 32)
def test_mapping_the_same_page_again_is_eaddrinuse_with_0_pages(v7, ctx):
    v7.map(ctx, 0x100, 0x10, 1)
    assert v7.map(ctx, 0x100, 0x10, 1) == (-Errno.EADDRINUSE, 0)


@pytest.mark.row("xen", 33)
def test_a_gfn_without_ram_is_enoent_after_the_prefix(v7, ctx):
    assert v7.map(ctx, 0x100, RAM_END - 2, 4) == (-Errno.ENOENT, 2)
    assert v7.lookup(ctx, 0x101) == RAM_END - 1


@pytest.mark.row("xen", 34)
def test_a_gfn_without_ram_outranks_a_live_page(v7, ctx):
    v7.map(ctx, 0x100, 0x10, 1)
    assert v7.map(ctx, 0x100, RAM_END, 1) == (-Errno.ENOENT, 0)


@pytest.mark.row(
    "xen",
    35,
    deviation="the reference maps all MMIO under xen-v7 and none under xen-2024; here BARs of the machine's own "
    "functions are mapped under both, and under none the memory of other devices, which comes without a file and "
    "cannot be reached",
)
def test_the_memory_of_another_device_is_enoent(v7, ctx):
    v7.driver.iommu.dma_map(DmaMapping(0xE0000000, 0x1000, 0, True, True, None))  # a BAR: without a file
    assert v7.map(ctx, 0x100, 0xE0000, 1) == (-Errno.ENOENT, 0)
    assert v7.lookup(ctx, 0x100) is None


@pytest.mark.row("xen", 36)
def test_pool_exhaustion_is_enomem_with_exact_count_and_recovers(make_v7):
    v7 = make_v7()
    assert v7.init(4, 2) == 0  # root, one table a GiB, two tables a 2 MiB
    _, ctx = v7.alloc()
    assert v7.map(ctx, 0x3FE, 0x10, 4) == (0, 4)
    assert v7.map(ctx, 0x5FE, 0x20, 4) == (-Errno.ENOMEM, 2)
    assert (v7.lookup(ctx, 0x5FF), v7.lookup(ctx, 0x600)) == (0x21, None)
    assert v7.unmap(ctx, 0x3FE, 2) == (0, 2)
    assert v7.map(ctx, 0x600, 0x22, 2) == (0, 2)


@pytest.mark.row("xen", 37)
def test_a_read_only_page_refuses_writes_and_a_write_only_one_reads(v7):
    ctx = v7.attached()
    v7.map(ctx, 0x100, 0x10, 1, flags=1)
    v7.map(ctx, 0x101, 0x11, 1, flags=2)
    assert v7.driver.dma_read("dma0", 0x100000, 1) == b"\0"
    v7.driver.dma_write("dma0", 0x101000, b"w")
    with pytest.raises(DmaRefusedError) as caught:
        v7.driver.dma_write("dma0", 0x100000, b"w")
    assert reason_of(caught.value) is EventReason.PERMISSION
    assert refusal(v7, "dma0", 0x101000) is EventReason.PERMISSION


@pytest.mark.row("xen", 38)
def test_map_neither_readable_nor_writeable_is_einval_and_maps_nothing(v7, ctx):
    assert v7.map(ctx, 0x100, 0x10, 1, flags=0, mapped=5) == (-Errno.EINVAL, 5)
    assert v7.lookup(ctx, 0x100) is None


@pytest.mark.row("xen", 39)
@pytest.mark.parametrize(
    ("dfn", "nr"),
    [((1 << 27) - 1, 2), (1 << 27, 1), ((1 << 64) - 1, 2), ((1 << 27) - 70000, 70001), (1, 0xFFFFFFFF)],
)
def test_a_range_past_the_aperture_is_erange_before_anything_changes(v7, ctx, dfn, nr):
    assert v7.map(ctx, dfn, 0x10, nr, mapped=5) == (-Errno.ERANGE, 5)
    assert v7.unmap(ctx, dfn, nr, unmapped=5) == (-Errno.ERANGE, 5)
    assert v7.driver.iommu.engine.usage().mapped_pages == 0


@pytest.mark.row("xen", 39)
def test_the_last_frame_of_the_aperture_can_be_mapped(v7, ctx):
    assert v7.map(ctx, (1 << 27) - 1, 0x10, 1) == (0, 1)


@pytest.mark.row("xen", 40)
@pytest.mark.parametrize("pgsize", [0, 1, 2048, 8192, 0x200000, 0xFFFFFFFF])
def test_another_page_size_is_einval_before_anything_changes(v7, ctx, pgsize):
    assert v7.map(ctx, 0x100, 0x10, 1, pgsize=pgsize, mapped=5) == (-Errno.EINVAL, 5)
    v7.map(ctx, 0x100, 0x10, 1)
    assert v7.unmap(ctx, 0x100, 1, pgsize=pgsize, unmapped=5) == (-Errno.EINVAL, 5)
    assert v7.lookup(ctx, 0x100) == 0x10


@pytest.mark.row("xen", 41)
def test_counts_are_added_to_what_the_guest_put_there_and_wrap_at_32_bits(v7, ctx):
    assert v7.map(ctx, 0x100, 0x10, 3, mapped=5) == (0, 8)
    assert v7.map(ctx, 0x103, 0x13, 3, mapped=0xFFFFFFFF) == (0, 2)
    assert v7.unmap(ctx, 0x100, 4, unmapped=0xFFFFFFFE) == (0, 2)


@pytest.mark.row("xen", 41)
def test_in_fields_of_a_map_and_an_unmap_read_back_as_submitted(v7, ctx):
    op = V7MapPages(ctx, 0, 0, 0x10, 0x100, 3, 4096, 3, 5)
    answer = v7.call(XenV7Op.MAP_PAGES, op.pack())[1]
    assert V7MapPages.unpack(answer) == V7MapPages(ctx, 0, 0, 0x10, 0x100, 3, 4096, 3, 8)
    op = V7UnmapPages(ctx, 0, 0, 0x100, 4096, 2, 1, 0)
    answer = v7.call(XenV7Op.UNMAP_PAGES, op.pack())[1]
    assert V7UnmapPages.unpack(answer) == V7UnmapPages(ctx, 0, 0, 0x100, 4096, 2, 3, 0)


@pytest.mark.row("xen", 42)
def test_map_and_unmap_stop_at_any_reserved_page_with_eaddrnotavail_after_the_prefix(make_v7):
    v7 = make_v7(reserved=REGION)
    v7.init()
    ctx = v7.attached()
    assert v7.map(ctx, 0x1FE, 0x10, 4) == (-Errno.EADDRNOTAVAIL, 2)
    assert v7.unmap(ctx, 0x1FE, 4) == (-Errno.EADDRNOTAVAIL, 2)
    assert v7.map(ctx, 0xFEDFF, 0x10, 4) == (-Errno.EADDRNOTAVAIL, 1)
    assert v7.unmap(ctx, 0xFEDFF, 4) == (-Errno.EADDRNOTAVAIL, 1)
    assert v7.driver.dma_read("dma0", 0x200000, 1) == b"\0"


@pytest.mark.row("xen", 42)
@pytest.mark.parametrize("dfn", [0x200, 0xFEE00])
def test_a_reserved_page_outranks_a_gfn_without_ram(make_v7, dfn):
    v7 = make_v7(reserved=REGION)
    v7.init()
    ctx = v7.attached()
    assert v7.map(ctx, dfn, RAM_END, 1) == (-Errno.EADDRNOTAVAIL, 0)
    assert v7.map(ctx, dfn - 1, RAM_END, 1) == (-Errno.ENOENT, 0)


# -- unmap ------------------------------------------------------------------------------------------------------------


@pytest.mark.row("xen", 43)
@pytest.mark.row("xen", 47)
def test_unmap_stops_at_a_hole_with_enoent_and_the_prefix_is_gone(v7):
    ctx = v7.attached()
    v7.map(ctx, 0x100, 0x10, 2)
    v7.map(ctx, 0x103, 0x13, 2)
    v7.driver.dma_read("dma0", 0x100000, 8192)  # now it is in the IOTLB
    assert v7.unmap(ctx, 0x100, 5) == (-Errno.ENOENT, 2)
    assert refusal(v7, "dma0", 0x100000) is EventReason.NOT_MAPPED
    assert [v7.lookup(ctx, dfn) for dfn in range(0x100, 0x105)] == [None, None, None, 0x13, 0x14]


@pytest.mark.row("xen", 44)
def test_unmap_takes_exactly_a_slice_of_two_maps(v7, ctx):
    v7.map(ctx, 0x100, 0x10, 3)
    v7.map(ctx, 0x103, 0x20, 3)
    assert v7.unmap(ctx, 0x102, 2) == (0, 2)
    assert [v7.lookup(ctx, dfn) for dfn in range(0x100, 0x106)] == [0x10, 0x11, None, None, 0x21, 0x22]


@pytest.mark.row("xen", 45)
def test_unmap_of_what_is_not_mapped_is_enoent_with_the_count_untouched(v7, ctx):
    assert v7.unmap(ctx, 0x100, 1, unmapped=5) == (-Errno.ENOENT, 5)


@pytest.mark.row("xen", 48)
def test_an_invalidation_that_fails_is_not_a_success(v7, ctx, monkeypatch):
    v7.map(ctx, 0x100, 0x10, 1)
    monkeypatch.setattr(type(v7.driver.iommu.engine._iotlb), "invalidate", lambda *_: 1 // 0)
    assert v7.unmap(ctx, 0x100, 1)[0] == -Errno.EIO


@pytest.mark.row("xen", 54)
def test_two_contexts_translate_one_dfn_to_their_own_pages(v7):
    first, second = v7.attached("dma0"), v7.attached("dma1")
    v7.map(first, 0x100, 0x10, 1)
    v7.map(second, 0x100, 0x20, 1)
    v7.driver.dma_write("dma0", 0x100000, b"first")
    v7.driver.dma_write("dma1", 0x100000, b"other")
    assert (v7.driver.ram[0x10000:0x10005], v7.driver.ram[0x20000:0x20005]) == (b"first", b"other")


@pytest.mark.row("xen", 55)
def test_one_map_serves_two_endpoints_and_its_unmap_ends_both(v7):
    ctx = v7.attached("dma0")
    v7.attached("dma1", ctx)
    v7.map(ctx, 0x100, 0x10, 1)
    v7.driver.dma_write("dma0", 0x100000, b"x")
    assert v7.driver.dma_read("dma1", 0x100000, 1) == b"x"
    v7.unmap(ctx, 0x100, 1)
    assert refusal(v7, "dma0", 0x100000) is EventReason.NOT_MAPPED
    assert refusal(v7, "dma1", 0x100000) is EventReason.NOT_MAPPED


# -- remote_cmd -------------------------------------------------------------------------------------------------------


def remote(v7, subop, structure=b"", domid=DOMID_SELF, address=PLACE):
    v7.driver.ram[PLACE : PLACE + len(structure)] = structure
    result, _ = v7.call(XenV7Op.REMOTE_CMD, V7RemoteCmd(domid, subop, 0, address).pack())
    return result, v7.driver.ram[PLACE : PLACE + len(structure)]


@pytest.mark.parametrize("domid", [0, DOMID_SELF])
def test_a_remote_command_for_the_guest_itself_is_carried_out_and_copied_back(v7, domid):
    result, answer = remote(v7, XenV7Op.ALLOC_CONTEXT, V7Alloc(UNTOUCHED, 0, 0).pack(), domid)
    assert (result, V7Alloc.unpack(answer).ctx_no) == (0, 1)
    assert v7.driver.iommu.engine.domains() == (1,)


@pytest.mark.row("xen", 56)
def test_a_remote_command_inside_one_is_einval(v7):
    inner = V7RemoteCmd(DOMID_SELF, XenV7Op.NOOP, 0, 0).pack()
    assert remote(v7, XenV7Op.REMOTE_CMD, inner)[0] == -Errno.EINVAL


@pytest.mark.row("xen", 56)
@pytest.mark.parametrize("domid", [1, 0x7FF1, 0xFFFF])
def test_a_remote_command_for_another_domain_is_enoent(v7, domid):
    alloc = V7Alloc(UNTOUCHED, 0, 0).pack()
    assert remote(v7, XenV7Op.ALLOC_CONTEXT, alloc, domid) == (-Errno.ENOENT, alloc)
    assert v7.driver.iommu.engine.domains() == ()


@pytest.mark.row("xen", 56)
def test_a_remote_command_of_a_guest_that_may_not_is_eperm(make_v7):
    v7 = make_v7(remote_cmd=False)
    assert remote(v7, XenV7Op.NOOP, domid=1)[0] == -Errno.EPERM
    assert v7.init() == 0


@pytest.mark.row("xen", 4)
@pytest.mark.parametrize("address", [RAM_END << 12, (RAM_END << 12) - 4, (1 << 64) - 4])
def test_a_remote_command_with_a_structure_outside_guest_memory_is_efault(v7, address):
    assert remote(v7, XenV7Op.ALLOC_CONTEXT, address=address)[0] == -Errno.EFAULT
    assert v7.driver.iommu.engine.domains() == ()


@pytest.mark.parametrize(
    ("subop", "result"), [(XenV7Op.NOOP, 0), (XenV7Op.ALLOC_NESTED, -Errno.EOPNOTSUPP), (0xFFFF, -Errno.EOPNOTSUPP)]
)
def test_a_remote_command_without_a_structure_reads_none(v7, subop, result):
    assert remote(v7, subop, address=1 << 63)[0] == result


# -- what the guest may not do ----------------------------------------------------------------------------------------


@pytest.mark.row("xen", 3)
@pytest.mark.parametrize("op", [*XenV7Op, 99])
def test_a_guest_that_is_not_allowed_gets_enodev_for_everything(make_v7, op):
    v7 = make_v7(allowed=False)
    submitted = b"\xff" * 48
    assert v7.call(op, submitted) == (-Errno.ENODEV, submitted)


# -- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", list(XenV7Op))
def test_only_what_changes_contexts_or_moves_endpoints_reorders(v7, op):
    expected = op in (
        XenV7Op.INIT,
        XenV7Op.ALLOC_CONTEXT,
        XenV7Op.FREE_CONTEXT,
        XenV7Op.REATTACH_DEVICE,
        XenV7Op.REMOTE_CMD,
    )
    assert v7.driver.iommu._profiles[Profile.XEN_V7].reorders(op, bytes(48)) is expected


def test_operations_and_pages_are_counted(v7, ctx):
    v7.map(ctx, 0x100, 0x10, 3)
    v7.unmap(ctx, 0x100, 5)
    counters = v7.driver.counters
    assert (counters.ops["init"], counters.ops["map_pages"], counters.ops["unmap_pages"]) == (1, 1, 1)
    assert (counters.pages_mapped, counters.pages_unmapped, counters.ops_failed) == (3, 3, 1)


def test_every_structure_fits_a_slot():
    assert max(record.SIZE for record in XEN_V7_RECORDS.values() if record) <= 48


def test_init_is_part_of_the_state_and_reset_forgets_it(v7, make_v7):
    state = v7.driver.iommu._profiles[Profile.XEN_V7].save()
    assert state == XenV7State(True, 128)
    other = make_v7()
    profile = other.driver.iommu._profiles[Profile.XEN_V7]

    profile.load(state)

    assert (other.init(5, 3), other.query().max_ctx_no) == (-Errno.EACCES, 128)
    profile.reset()
    assert profile.save() == XenV7State()
    assert other.init(5, 3) == 0
