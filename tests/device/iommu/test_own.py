import pytest

from pviommu.endpoints.dma import DmaRefusedError
from pviommu.engine import Access
from pviommu.iommu.own import OwnOperations
from pviommu_abi.own import Binding, OwnOp, Reserve, Usage
from pviommu_abi.shared import EventReason
from pviommu_abi.slots import Errno, OpClass
from pviommu_abi.xen_2024 import PvIommuOp, Xen2024Op

from ..conftest import DEVFN, STREAM


def own(driver, op, payload=b""):
    return driver.call(payload, OpClass.OWN, op)


def binding(name="dma0", **fields):
    return Binding(0, 0, DEVFN[name], **({"stream": STREAM[name]} | fields)).pack()


@pytest.mark.parametrize("op", [0, 8, 255])
@pytest.mark.row("defect", "C10")
def test_an_unknown_own_operation_is_eopnotsupp(driver, op):
    assert own(driver, op)[0] == -Errno.EOPNOTSUPP


def test_bind_unknown_stream_bound_elsewhere_and_again(driver):
    assert driver.bind("dma0") == 0
    assert driver.bind("dma0") == 0
    assert own(driver, OwnOp.BIND, binding("dma1", stream=9))[0] == -Errno.ENODEV
    assert own(driver, OwnOp.BIND, binding("dma0", stream=2))[0] == -Errno.EEXIST
    assert own(driver, OwnOp.BIND, binding("dma1", stream=1))[0] == -Errno.EEXIST


@pytest.mark.parametrize("op", [OwnOp.BIND, OwnOp.UNBIND])
@pytest.mark.parametrize("field", ["ctx_no", "blocked", "pad0"])
@pytest.mark.row("defect", "C11")
def test_a_field_that_is_not_input_must_be_zero(driver, op, field):
    driver.bind("dma0")
    assert own(driver, op, binding(**{field: 1}))[0] == -Errno.EINVAL
    assert len(driver.iommu.bindings) == 1


@pytest.mark.parametrize(("op", "size"), [(OwnOp.QUERY_ENDPOINT, Binding.SIZE), (OwnOp.QUERY_USAGE, Usage.SIZE)])
def test_payload_past_a_query_must_be_zero(driver, op, size):
    assert own(driver, op, bytes(size) + b"\1")[0] == -Errno.EINVAL


def test_unbind_takes_the_endpoint_to_the_default_context(driver):
    ctx = driver.attached("dma0")
    assert own(driver, OwnOp.UNBIND, binding())[0] == 0
    assert driver.iommu.engine.endpoints()[1] == 0
    assert driver.free(ctx) == 0
    assert own(driver, OwnOp.UNBIND, binding())[0] == -Errno.ENOENT


def test_unbind_does_not_unblock_an_endpoint_that_waits_for_its_reset(driver):
    driver.attached("dma0")
    driver.write("RESET", 1)
    driver.start()
    driver.bind("dma0")
    assert own(driver, OwnOp.UNBIND, binding())[0] == 0
    with pytest.raises(DmaRefusedError) as caught:
        driver.dma_read("dma0", 0, 1)
    assert caught.value.reason is EventReason.BLOCKED


def test_query_endpoint_tells_stream_context_and_whether_it_is_blocked(driver):
    ctx = driver.attached("dma0")
    result, answer = own(driver, OwnOp.QUERY_ENDPOINT, binding(stream=0))
    assert (result, Binding.unpack(answer)) == (0, Binding(0, 0, DEVFN["dma0"], 1, ctx, 0))
    driver.write("RESET", 1)
    driver.start()
    driver.bind("dma0")
    assert Binding.unpack(own(driver, OwnOp.QUERY_ENDPOINT, binding())[1]).blocked == 1


def test_query_of_an_unbound_function_is_enoent(driver):
    assert own(driver, OwnOp.QUERY_ENDPOINT, binding())[0] == -Errno.ENOENT


def test_query_usage_counts_what_is_in_use(driver):
    ctx = driver.attached("dma0")
    driver.map(ctx, 0x100, 0x10, 5)
    result, answer = own(driver, OwnOp.QUERY_USAGE)
    assert (result, Usage.unpack(answer)) == (0, Usage(1, 1, 3, 4096, 5, 0))


def test_query_usage_counts_lost_events(driver):
    for _ in range(258):
        driver.iommu.report(EventReason.NOT_MAPPED, Access.READ, 1, 0, 1)
    assert Usage.unpack(own(driver, OwnOp.QUERY_USAGE)[1]).events_lost == 2


def reserve(driver, ctx, pages):
    return own(driver, OwnOp.RESERVE, Reserve(ctx, 0, pages).pack())[0]


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

    assert own(driver, OwnOp.RESERVE, Reserve(ctx, 1, 1).pack())[0] == -Errno.EINVAL
    assert own(driver, OwnOp.RESERVE, Reserve(ctx, 0, 1).pack() + b"\x01")[0] == -Errno.EINVAL


def test_only_what_moves_endpoints_or_may_do_so_waits_for_all_rings():
    assert [op for op in OwnOp if OwnOperations.reorders(op)] == [OwnOp.UNBIND, OwnOp.CALL]


def test_own_operations_are_not_found_under_xen_numbers(driver):
    assert driver.call(PvIommuOp(Xen2024Op.ALLOC_CONTEXT, 0, 0).pack(), OpClass.OWN, OwnOp.UNBIND)[0] != 0
    assert driver.iommu.engine.contexts() == ()
