import pytest

from pviommu.dma.fault import DmaRefusedError, Fault, FaultKind
from pviommu.engine import Access
from pviommu.interfaces.pv.vendor import VendorOperations
from pviommu_abi.dma_test import REGISTER as DMA_REGISTER
from pviommu_abi.dma_test import Descriptor, DescriptorStatus
from pviommu_abi.registers import Reset
from pviommu_abi.shared import EventReason
from pviommu_abi.slots import Errno, OpClass
from pviommu_abi.vendor import Binding, Reserve, Usage, VendorOp
from pviommu_abi.xen_2024 import PvIommuOp, Xen2024Op

from ...conftest import DEVFN, STREAM, reason_of


def vendor(driver, op, payload=b""):
    return driver.call(payload, OpClass.VENDOR, op)


def binding(name="dma0", **fields):
    return Binding(0, 0, DEVFN[name], **({"stream": STREAM[name]} | fields)).pack()


@pytest.mark.parametrize("op", [0, 11, 255])
@pytest.mark.row("defect", "C10")
def test_an_unknown_own_operation_is_eopnotsupp(driver, op):
    assert vendor(driver, op)[0] == -Errno.EOPNOTSUPP


def test_bind_unknown_stream_bound_elsewhere_and_again(driver):
    assert driver.bind("dma0") == 0
    assert driver.bind("dma0") == 0
    assert vendor(driver, VendorOp.BIND, binding("dma1", stream=9))[0] == -Errno.ENODEV
    assert vendor(driver, VendorOp.BIND, binding("dma0", stream=2))[0] == -Errno.EEXIST
    assert vendor(driver, VendorOp.BIND, binding("dma1", stream=1))[0] == -Errno.EEXIST


@pytest.mark.parametrize("op", [VendorOp.BIND, VendorOp.UNBIND, VendorOp.BLOCK])
@pytest.mark.parametrize("field", ["ctx_no", "blocked", "pad0"])
@pytest.mark.row("defect", "C11")
def test_a_field_that_is_not_input_must_be_zero(driver, op, field):
    driver.bind("dma0")
    assert vendor(driver, op, binding(**{field: 1}))[0] == -Errno.EINVAL
    assert len(driver.iommu.bindings) == 1
    assert not driver.iommu.engine.is_blocked(1)


@pytest.mark.parametrize(("op", "size"), [(VendorOp.QUERY_ENDPOINT, Binding.SIZE), (VendorOp.QUERY_USAGE, Usage.SIZE)])
def test_payload_past_a_query_must_be_zero(driver, op, size):
    assert vendor(driver, op, bytes(size) + b"\1")[0] == -Errno.EINVAL


def refused(driver):
    """Why DMA to RAM, which the default context would let through, is refused; None if it is not."""
    try:
        driver.dma_read("dma0", 0, 1)
    except DmaRefusedError as error:
        return reason_of(error)
    return None


def query(driver):
    result, answer = vendor(driver, VendorOp.QUERY_ENDPOINT, binding(stream=0))
    return result or Binding.unpack(answer)


LEAVE = pytest.mark.parametrize("leave", [VendorOp.UNBIND, VendorOp.BLOCK])


@LEAVE
@pytest.mark.row("driver", 40)
def test_what_is_unbound_or_blocked_leaves_its_context_and_reaches_nothing(driver, leave):
    ctx = driver.attached("dma0")
    assert vendor(driver, leave, binding())[0] == 0
    assert driver.iommu.engine.endpoints()[1] == 0
    assert driver.free(ctx) == 0
    assert refused(driver) is EventReason.BLOCKED


@LEAVE
@pytest.mark.row("driver", 40)
def test_what_never_was_in_a_context_reaches_nothing_either_after_it(driver, leave):
    driver.bind("dma0")
    driver.master("dma0")
    assert refused(driver) is None
    assert vendor(driver, leave, binding())[0] == 0
    assert refused(driver) is EventReason.BLOCKED


@LEAVE
@pytest.mark.parametrize("how", ["reset", "bus master", "bind"])
@pytest.mark.row("driver", 41)
def test_only_a_reattach_ends_it(driver, leave, how):
    driver.attached("dma0")
    endpoint = driver.machine.endpoints["dma0"]
    vendor(driver, leave, binding())
    if how == "reset":
        endpoint.reset()
    elif how == "bus master":
        endpoint.region_write(7, 4, bytes(2))
    else:
        assert driver.bind("dma0") == 0
        assert query(driver) == Binding(0, 0, DEVFN["dma0"], 1, 0, 1)
    driver.master("dma0")
    assert refused(driver) is EventReason.BLOCKED

    assert (driver.bind("dma0"), driver.reattach("dma0", 0)) == (0, 0)
    assert query(driver) == Binding(0, 0, DEVFN["dma0"], 1, 0, 0)
    assert refused(driver) is None


@LEAVE
@pytest.mark.row("driver", 41)
def test_a_refused_reattach_does_not_end_it(driver, leave):
    driver.attached("dma0")
    vendor(driver, leave, binding())
    driver.bind("dma0")
    assert driver.reattach("dma0", 7) == -Errno.ENOENT
    assert refused(driver) is EventReason.BLOCKED


@LEAVE
@pytest.mark.row("driver", 42)
def test_a_reset_of_the_iommu_makes_it_the_block_that_the_endpoints_own_reset_ends(driver, leave):
    driver.attached("dma0")
    vendor(driver, leave, binding())
    driver.write("RESET", 1)
    assert refused(driver) is EventReason.BLOCKED
    driver.machine.endpoints["dma0"].reset()
    driver.master("dma0")
    assert refused(driver) is None


@LEAVE
@pytest.mark.row("driver", 42)
def test_what_was_queued_while_it_reached_nothing_is_cancelled_by_a_reset_of_the_iommu(driver, leave):
    driver.attached("dma0")
    endpoint = driver.machine.endpoints["dma0"]
    vendor(driver, leave, binding())
    endpoint.region_write(0, DMA_REGISTER["CONTROL"].offset, (1).to_bytes(4, "little"))
    endpoint.region_write(0, DMA_REGISTER["PRODUCER"].offset, (1).to_bytes(4, "little"))
    driver.write("RESET", 1)
    assert Descriptor.unpack(endpoint.shared.view).status == DescriptorStatus.CANCELLED


def test_free_that_moves_endpoints_to_the_default_context_leaves_held_ones_held_and_unblocks_none(driver):
    ctx = driver.attached("dma0")
    driver.bind("dma1")
    driver.master("dma1")
    assert driver.reattach("dma1", ctx) == 0
    vendor(driver, VendorOp.BLOCK, binding())
    assert driver.free(ctx, 1) == 0
    assert refused(driver) is EventReason.BLOCKED
    assert driver.dma_read("dma1", 0, 1) == b"\1"


def test_block_again_changes_nothing(driver):
    driver.attached("dma0")
    assert [vendor(driver, VendorOp.BLOCK, binding())[0] for _ in range(2)] == [0, 0]
    assert refused(driver) is EventReason.BLOCKED


@LEAVE
def test_what_is_not_bound_cannot_be_unbound_or_blocked(driver, leave):
    assert vendor(driver, leave, binding())[0] == -Errno.ENOENT
    assert not driver.iommu.engine.is_blocked(1)


def test_what_the_topology_binds_can_be_blocked_but_not_unbound(make_driver):
    driver = make_driver(fixed={"dma0": "00:05.0"}).start()
    assert vendor(driver, VendorOp.UNBIND, binding())[0] == -Errno.EPERM
    assert not driver.iommu.engine.is_blocked(1)
    assert vendor(driver, VendorOp.BLOCK, binding())[0] == 0
    assert driver.iommu.engine.is_blocked(1)


def test_unbind_does_not_unblock_an_endpoint_that_waits_for_its_reset(driver):
    driver.attached("dma0")
    driver.write("RESET", 1)
    driver.start()
    driver.bind("dma0")
    assert vendor(driver, VendorOp.UNBIND, binding())[0] == 0
    assert refused(driver) is EventReason.BLOCKED


def test_query_endpoint_tells_stream_context_and_whether_it_is_blocked(driver):
    ctx = driver.attached("dma0")
    result, answer = vendor(driver, VendorOp.QUERY_ENDPOINT, binding(stream=0))
    assert (result, Binding.unpack(answer)) == (0, Binding(0, 0, DEVFN["dma0"], 1, ctx, 0))
    driver.write("RESET", 1)
    driver.start()
    driver.bind("dma0")
    assert Binding.unpack(vendor(driver, VendorOp.QUERY_ENDPOINT, binding())[1]).blocked == 1


def test_query_of_an_unbound_function_is_enoent(driver):
    assert vendor(driver, VendorOp.QUERY_ENDPOINT, binding())[0] == -Errno.ENOENT


def test_query_usage_counts_what_is_in_use(driver):
    ctx = driver.attached("dma0")
    driver.map(ctx, 0x100, 0x10, 5)
    result, answer = vendor(driver, VendorOp.QUERY_USAGE)
    assert (result, Usage.unpack(answer)) == (0, Usage(1, 1, 3, 4096, 5, 0))


def test_query_usage_counts_lost_events(driver):
    for _ in range(258):
        driver.iommu.stream(1).report(Fault(FaultKind.NOT_MAPPED, 1, 0, Access.READ, 1))
    assert Usage.unpack(vendor(driver, VendorOp.QUERY_USAGE)[1]).events_lost == 2


def reserve(driver, ctx, pages):
    return vendor(driver, VendorOp.RESERVE, Reserve(ctx, 0, pages).pack())[0]


def test_reserve_sets_pool_pages_aside_until_the_context_is_freed(driver):
    _, ctx = driver.alloc()

    assert reserve(driver, ctx, 4096) == 0
    assert driver.iommu.engine.usage().pool_pages_used == 4096
    assert driver.call(PvIommuOp(Xen2024Op.ALLOC_CONTEXT, 0, 0).pack())[0] == -Errno.ENOMEM
    driver.free(ctx)
    assert driver.iommu.engine.usage().pool_pages_used == 0


def test_reserve_beyond_the_pool_is_enomem_and_changes_nothing(driver):
    _, ctx = driver.alloc()

    assert reserve(driver, ctx, 4097) == -Errno.ENOMEM
    assert driver.iommu.engine.usage().pool_pages_used == 1


def test_reserve_for_no_context_or_the_default_one_is_einval(driver):
    assert reserve(driver, 0, 1) == -Errno.EINVAL
    assert reserve(driver, 7, 1) == -Errno.EINVAL


def test_reserve_with_padding_is_einval(driver):
    _, ctx = driver.alloc()

    assert vendor(driver, VendorOp.RESERVE, Reserve(ctx, 1, 1).pack())[0] == -Errno.EINVAL
    assert vendor(driver, VendorOp.RESERVE, Reserve(ctx, 0, 1).pack() + b"\x01")[0] == -Errno.EINVAL


def test_only_what_moves_endpoints_or_makes_contexts_or_may_do_so_waits_for_all_rings():
    assert [op for op in VendorOp if VendorOperations.reorders(op, b"")] == [
        VendorOp.UNBIND,
        VendorOp.CALL,
        VendorOp.BLOCK,
        VendorOp.ALLOC_TABLES,
    ]


def test_own_operations_are_not_found_under_xen_numbers(driver):
    assert driver.call(PvIommuOp(Xen2024Op.ALLOC_CONTEXT, 0, 0).pack(), OpClass.VENDOR, VendorOp.UNBIND)[0] != 0
    assert driver.iommu.engine.domains() == ()


def _blocked_twice(driver, end):
    """Attach dma0, let ``end`` take the IOMMU's state away, then reset dma0 itself. Whether it is blocked before and
    after its own reset."""
    driver.attached("dma0")
    stream = driver.iommu.settings.streams[0]
    end()
    before = driver.iommu.engine.is_blocked(stream)
    driver.machine.endpoints["dma0"].reset()
    return before, driver.iommu.engine.is_blocked(stream)


@pytest.mark.row("driver", 7)
def test_after_a_reset_that_blocks_no_reset_of_its_own_lets_a_function_reach_memory(driver):
    assert _blocked_twice(driver, lambda: driver.write("RESET", Reset.BLOCKED)) == (True, True)


@pytest.mark.row("driver", 7)
def test_after_the_loss_of_the_client_no_reset_of_its_own_lets_a_function_reach_memory(driver):
    assert _blocked_twice(driver, driver.iommu.disconnected) == (True, True)


@pytest.mark.row("driver", 7)
def test_after_a_function_level_reset_no_reset_of_its_own_lets_a_function_reach_memory(driver):
    assert _blocked_twice(driver, driver.iommu.on_function_reset) == (True, True)


def test_after_a_reset_to_power_on_its_own_reset_unblocks_a_function(driver):
    assert _blocked_twice(driver, lambda: driver.write("RESET", Reset.POWER_ON)) == (True, False)


def test_the_next_reset_to_power_on_ends_the_hold(driver):
    def blocked_then_power_on():
        driver.write("RESET", Reset.BLOCKED)
        driver.write("RESET", Reset.POWER_ON)

    assert _blocked_twice(driver, blocked_then_power_on) == (True, False)
