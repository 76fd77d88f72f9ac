"""Contexts whose tables the guest owns, from ALLOC_TABLES to the last byte of DMA."""

from __future__ import annotations

import msgspec
import pytest

from pviommu.dma.fault import DmaPendingError
from pviommu.engine import Access
from pviommu.guest.capabilities import capabilities
from pviommu.guest.tables import READ, WRITE, InFlight
from pviommu.guest.xen_2024 import UNTOUCHED
from pviommu.interfaces.pv.guest_tables import TablesState
from pviommu.topology import ReservedSection
from pviommu_abi.registers import Feature, Profile, Reset
from pviommu_abi.shared import CapabilityId, EventReason, TableFormat
from pviommu_abi.shared import GuestTables as Record
from pviommu_abi.slots import Errno, OpClass
from pviommu_abi.vendor import AllocTables, Batch, Flush, MapOp, Reserve, TablesFlags, VendorOp

from ...conftest import RAM_PAGES, STREAM, Driver, TableGuest
from .conftest import V7

READ_ACCESS = Access.READ


@pytest.fixture
def guest(make_guest):
    return make_guest()


def vendor(driver, op, payload):
    return driver.call(payload, OpClass.VENDOR, op)[0]


# -- making them ------------------------------------------------------------------------------------------------------


@pytest.mark.row("tables", 1)
def test_the_capability_says_formats_and_lines(driver):
    assert Feature(driver.read("FEATURES")) & Feature.GUEST_TABLES
    found = capabilities(driver.view)[CapabilityId.GUEST_TABLES]
    assert found == Record(formats=0b11, offset=0x9000, lines=256, stride=64)


@pytest.mark.row("tables", 1)
def test_turned_off_it_is_not_there(make_driver):
    driver = make_driver(guest_tables=False).start()
    assert not Feature(driver.read("FEATURES")) & Feature.GUEST_TABLES
    assert CapabilityId.GUEST_TABLES not in capabilities(driver.view)
    assert driver.alloc_tables(0x1000)[0] == -Errno.EOPNOTSUPP
    assert driver.flush(1) == -Errno.EOPNOTSUPP


@pytest.mark.row("tables", 2)
def test_a_context_gets_the_lowest_number_and_its_line(driver):
    driver.alloc()
    result, answer = driver.alloc_tables(0x1000)
    assert (result, answer) == (0, AllocTables(0, 0, 0x1000, 39, 2, 0, 1))
    assert driver.usage().contexts == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"format": 2},
        {"flags": 2},
        {"root": 0x1001},
        {"root": 1 << 52},
        {"aperture_bits": 11},
        {"aperture_bits": 40},
        {"ctx_no": 1},
        {"pad0": 1},
        {"line": 1},
        {"pad1": 1},
    ],
    ids=str,
)
@pytest.mark.row("tables", 3)
def test_what_is_not_as_declared_is_einval(driver, fields):
    op = AllocTables(**{"format": 0, "flags": 0, "root": 0x1000, "aperture_bits": 39} | fields)
    assert vendor(driver, VendorOp.ALLOC_TABLES, op.pack()) == -Errno.EINVAL
    assert driver.usage().contexts == 0


@pytest.mark.row("tables", 3)
def test_what_follows_the_structure_must_be_zero(driver):
    assert vendor(driver, VendorOp.ALLOC_TABLES, AllocTables(0, 0, 0x1000, 39).pack() + b"\1") == -Errno.EINVAL
    assert vendor(driver, VendorOp.FLUSH, Flush(0).pack() + b"\1") == -Errno.EINVAL


@pytest.mark.row("tables", 3)
def test_an_aperture_is_within_that_of_the_format(make_driver):
    driver = make_driver(aperture_bits=48).start()
    assert driver.alloc_tables(0x1000, 48)[0] == 0
    assert driver.alloc_tables(0x1000, 48, TableFormat.X86_64)[0] == -Errno.EINVAL
    assert driver.alloc_tables(0x1000, 47, TableFormat.X86_64)[0] == 0


@pytest.mark.parametrize("root", [RAM_PAGES << 12, 1 << 51])
@pytest.mark.row("tables", 3)
def test_a_root_outside_guest_memory_is_efault(driver, root):
    assert driver.alloc_tables(root)[0] == -Errno.EFAULT
    assert driver.usage().contexts == 0


@pytest.mark.row("tables", 3)
def test_no_number_left_is_enospc(make_driver):
    driver = make_driver(contexts=1).start()
    assert driver.alloc_tables(0x1000)[0] == 0
    result, answer = driver.alloc_tables(0x1000)
    assert (result, answer.ctx_no) == (-Errno.ENOSPC, 0)


@pytest.mark.row("tables", 3)
def test_dirty_bits_that_nobody_can_set_are_eopnotsupp(driver):
    assert driver.alloc_tables(0x1000, flags=TablesFlags.DIRTY)[0] == -Errno.EOPNOTSUPP


@pytest.mark.row("tables", 3)
def test_who_may_not_use_the_iommu_may_not_do_this(make_driver):
    driver = make_driver(allowed=False).start()
    assert driver.alloc_tables(0x1000)[0] == -Errno.EPERM


@pytest.mark.row("tables", 3)
def test_xen_v7_wants_init_first(make_driver):
    driver = make_driver().start(profile=Profile.XEN_V7)
    assert driver.alloc_tables(0x1000)[0] == -Errno.ENOSPC
    V7(driver).init()
    assert driver.alloc_tables(0x1000)[0] == 0


# -- what others do to them -------------------------------------------------------------------------------------------


@pytest.mark.row("tables", 4)
def test_operations_on_pages_are_eopnotsupp_in_xen_2024(guest, driver):
    guest.tables.map(0x3000, 0x9000)
    assert driver.map(guest.ctx, 4, 4, 1) == (-Errno.EOPNOTSUPP, UNTOUCHED)
    assert driver.unmap(guest.ctx, 3, 1) == (-Errno.EOPNOTSUPP, UNTOUCHED)
    assert driver.lookup(guest.ctx, 3)[0] == -Errno.EOPNOTSUPP
    driver.ram[0x8000 : 0x8000 + MapOp.SIZE] = MapOp(4, 4, 3).pack()
    assert vendor(driver, VendorOp.BATCH, Batch(0x8000, 1, 0, guest.ctx).pack()) == -Errno.EOPNOTSUPP
    assert vendor(driver, VendorOp.RESERVE, Reserve(guest.ctx, 0, 5).pack()) == -Errno.EOPNOTSUPP
    assert guest.refused(0x3000, 1) is None
    assert guest.refused(0x4000, 1) == (EventReason.NOT_MAPPED, 0x4000)


@pytest.mark.row("tables", 4)
def test_operations_on_pages_are_eopnotsupp_in_xen_v7(make_driver):
    driver = make_driver().start(profile=Profile.XEN_V7)
    v7 = V7(driver)
    v7.init()
    _, answer = driver.alloc_tables(0x1000)
    assert v7.map(answer.ctx_no, 4, 4, 1)[0] == -Errno.EOPNOTSUPP
    assert v7.unmap(answer.ctx_no, 4, 1)[0] == -Errno.EOPNOTSUPP


@pytest.mark.row("tables", 5)
def test_they_are_freed_and_left_as_any_other(guest, driver):
    guest.tables.map(0x3000, 0x9000)
    assert driver.free(guest.ctx) == -Errno.EBUSY
    other = driver.attached("dma0")
    assert guest.refused(0x3000, 1) == (EventReason.NOT_MAPPED, 0x3000)
    assert driver.reattach("dma0", guest.ctx) == 0
    assert guest.refused(0x3000, 1) is None
    driver.reattach("dma0", other)
    assert driver.free(guest.ctx) == 0
    assert driver.reattach("dma0", guest.ctx) == -Errno.ENOENT
    assert driver.flush(guest.ctx) == -Errno.EINVAL


@pytest.mark.row("tables", 5)
@pytest.mark.parametrize("iova", [0x5000, 0x5001, 0x5FFF])
def test_a_context_of_the_other_kind_refuses_each_byte_that_is_not_mapped(guest, driver, iova):
    driver.attached("dma0")
    assert guest.refused(iova, 8, write=True) == (EventReason.NOT_MAPPED, iova)
    assert guest.refused(iova, 8) == (EventReason.NOT_MAPPED, iova)


@pytest.mark.row("tables", 5)
def test_a_number_that_is_used_again_is_of_the_new_kind(guest, driver):
    guest.tables.map(0x3000, 0x9000)
    driver.reattach("dma0", 0)
    driver.free(guest.ctx)
    assert driver.alloc() == (0, guest.ctx)
    assert driver.map(guest.ctx, 4, 4, 1) == (0, 1)
    driver.reattach("dma0", guest.ctx)
    assert guest.refused(0x3000, 1) == (EventReason.NOT_MAPPED, 0x3000)
    assert guest.refused(0x4000, 1) is None
    assert guest.line.step % 2 == 0
    assert driver.iommu.save().tables == {}


# -- translation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", list(TableFormat))
@pytest.mark.parametrize("shift", [12, 21])
@pytest.mark.row("tables", 6)
def test_a_map_is_a_store_and_so_is_an_unmap(make_guest, driver, format, shift):
    guest = make_guest(format=format)
    driver.ram[0x400010:0x400014] = b"data"
    iova = 5 << 21
    assert guest.refused(iova, 4) == (EventReason.NOT_MAPPED, iova)
    guest.tables.map(iova, 0x400000, shift=shift)
    assert driver.dma_read("dma0", iova + 0x10, 4) == b"data"
    driver.dma_write("dma0", iova + 0x20, b"more")
    assert bytes(driver.ram[0x400020:0x400024]) == b"more"
    guest.tables.unmap(iova, shift=shift)
    assert guest.refused(iova + 0x10, 4) == (EventReason.NOT_MAPPED, iova + 0x10)
    assert driver.iommu.counters.slots == 3  # alloc, bind, reattach


@pytest.mark.row("tables", 6)
def test_a_gibibyte_at_once(make_guest, driver):
    guest = make_guest()
    guest.tables.map(1 << 30, 0, shift=30)
    driver.ram[0x123456:0x12345A] = b"data"
    assert driver.dma_read("dma0", (1 << 30) + 0x123456, 4) == b"data"
    assert guest.refused((1 << 30) + (RAM_PAGES << 12) - 2, 4) == (EventReason.NOT_RAM, (1 << 30) + (RAM_PAGES << 12))


@pytest.mark.row("tables", 6)
def test_permissions(guest):
    guest.tables.map(0x3000, 0x9000, READ)
    guest.tables.map(0x4000, 0x9000, WRITE)
    assert guest.refused(0x3000, 1) is None
    assert guest.refused(0x3000, 1, write=True) == (EventReason.PERMISSION, 0x3000)
    assert guest.refused(0x4000, 1) == (EventReason.PERMISSION, 0x4000)
    assert guest.refused(0x4000, 1, write=True) is None


@pytest.mark.row("tables", 6)
def test_many_spans_in_one_request(guest, driver):
    for page in range(8):
        guest.tables.map(page << 12, (0x100 + 2 * page) << 12)
        driver.ram[(0x100 + 2 * page) << 12] = page
    data = driver.machine.endpoints["dma0"].dma.read([(page << 12, 1) for page in range(8)])
    assert data == bytes(range(8))


@pytest.mark.row("tables", 7)
def test_tables_and_targets_outside_guest_memory_are_not_ram(guest):
    guest.tables.map(0x3000, RAM_PAGES << 12)
    assert guest.refused(0x3010, 1) == (EventReason.NOT_RAM, 0x3010)
    guest.tables.put(1 << 30, (1 << 45) | 3, shift=30)
    assert guest.refused(1 << 30, 1) == (EventReason.NOT_RAM, 1 << 30)


@pytest.mark.row("tables", 7)
def test_tables_whose_memory_goes_are_not_ram(make_guest, driver):
    guest = make_guest()
    guest.tables.map(0x3000, 0x9000)
    driver.iommu.dma_unmap(0, RAM_PAGES << 12)
    assert guest.refused(0x3000, 1) == (EventReason.NOT_RAM, 0x3000)


@pytest.mark.row("tables", 8)
def test_the_aperture_of_the_context(make_guest):
    guest = make_guest(aperture_bits=30)
    guest.tables.map((1 << 30) - 0x1000, 0x9000)
    guest.tables.map(1 << 30, 0xA000)
    assert guest.refused((1 << 30) - 1, 1) is None
    assert guest.refused((1 << 30) - 1, 2) == (EventReason.OUT_OF_APERTURE, 1 << 30)


@pytest.mark.row("tables", 8)
def test_the_msi_window_is_not_translated(guest):
    guest.tables.map(0xFEE00000, 0x9000)
    assert guest.refused(0xFEE00000, 4, write=True) == (EventReason.RESERVED, 0xFEE00000)


@pytest.mark.row("tables", 8)
def test_direct_regions_come_before_the_tables(make_driver, make_guest):
    region = ReservedSection(0x20000, 0x1000)
    guest = make_guest(make_driver(reserved={"dma0": (region,)}).start())
    guest.tables.map(0x20000, 0x9000)
    guest.driver.ram[0x20000:0x20004] = b"here"
    assert guest.driver.dma_read("dma0", 0x20000, 4) == b"here"


# -- in flight --------------------------------------------------------------------------------------------------------


@pytest.mark.row("tables", 9)
def test_the_step_is_odd_until_the_last_byte_is_copied(guest, driver):
    guest.tables.map(0x3000, 0x9000)
    seen = []
    driver.inputs.after_copy = lambda: seen.append(guest.line.step)
    before = guest.line.step
    driver.dma_read("dma0", 0x3000, 8)
    assert before % 2 == 0
    assert seen == [before + 1] * 5  # four entries and the bytes
    assert guest.line.step == before + 2
    driver.dma_write("dma0", 0x3000, b"x")
    assert guest.line.step == before + 4
    assert guest.line.is_quiet()


@pytest.mark.row("tables", 9)
def test_it_is_even_after_a_refusal_of_either_kind(guest):
    assert guest.refused(0x3000, 1) is not None
    assert guest.line.is_quiet()
    guest.tables.map(0x3000, RAM_PAGES << 12)
    assert guest.refused(0x3000, 1) is not None
    assert guest.refused(0x3000, 1, write=True) is not None
    assert guest.line.is_quiet()


@pytest.mark.row("tables", 9)
def test_plans_are_in_flight_until_the_step_ends(guest, driver):
    guest.tables.map(0x3000, 0x9000)
    endpoint = driver.machine.endpoints["dma0"]
    endpoint.dma.plan(([(0x3000, 8)], READ_ACCESS))
    assert guest.line.step % 2 == 1
    driver.dma_read("dma0", 0x3000, 8)
    assert guest.line.step % 2 == 1
    endpoint.step()
    assert guest.line.is_quiet()


@pytest.mark.row("tables", 9)
def test_plans_stay_in_flight_while_the_rings_are_drained_for_another_request(guest, driver):
    guest.tables.map(0x3000, 0x9000)
    endpoint = driver.machine.endpoints["dma0"]
    endpoint.dma.plan(([(0x3000, 8)], READ_ACCESS))
    step = guest.line.step
    position = driver.put(Flush(guest.ctx).pack(), OpClass.VENDOR, VendorOp.FLUSH)
    with pytest.raises(DmaPendingError):  # what is refused waits for the rings, and these for the plan
        driver.dma_read("dma0", 0x4000, 8)
    assert (driver.completed(), guest.line.step) == (position, step)
    endpoint.step()
    assert guest.line.is_quiet()
    driver.iommu.work()
    assert driver.completed() == position + 1
    assert guest.refused(0x4000, 8) == (EventReason.NOT_MAPPED, 0x4000)


@pytest.mark.row("tables", 9)
def test_plans_of_two_contexts_in_one_step_are_in_flight_in_both(guest, driver):
    guest.tables.map(0x3000, 0x9000)
    _, other = driver.alloc_tables(guest.tables.root)
    lines = guest.line, InFlight(driver._function, other.line)
    endpoint = driver.machine.endpoints["dma0"]
    endpoint.dma.plan(([(0x3000, 8)], READ_ACCESS))
    driver.reattach("dma0", other.ctx_no)
    endpoint.dma.plan(([(0x3000, 8)], READ_ACCESS))
    assert [line.step % 2 for line in lines] == [1, 1]
    endpoint.step()
    assert all(line.is_quiet() for line in lines)


@pytest.mark.row("tables", 9)
def test_an_endpoint_that_fails_with_plans_ends_them(guest, driver):
    guest.tables.map(0x3000, 0x9000)
    endpoint = driver.machine.endpoints["dma0"]

    def fail():
        endpoint.dma.plan(([(0x3000, 8)], READ_ACCESS))
        raise ZeroDivisionError

    endpoint.work = fail
    endpoint.step()
    assert endpoint.failed
    assert guest.line.is_quiet()


@pytest.mark.row("tables", 9)
def test_dma_of_a_hook_ends_with_it(guest, driver):
    guest.tables.map(0x3000, 0x9000)
    endpoint = driver.machine.endpoints["dma0"]
    endpoint.attempts.make("a hook", endpoint.dma.plan, ([(0x3000, 8)], READ_ACCESS))
    assert guest.line.is_quiet()


@pytest.mark.row("tables", 9)
def test_each_piece_of_a_long_request_is_in_flight_by_itself(guest, driver):
    for page in range(64):
        guest.tables.map(page << 12, (0x100 + page) << 12)
    steps = driver.machine.endpoints["dma0"].dma.copy_in_steps([(0, 0x20000)], [(0x20000, 0x20000)])
    before = guest.line.step
    for _ in steps:
        assert guest.line.is_quiet()
    assert guest.line.step > before + 4


@pytest.mark.row("tables", 9)
def test_dma_in_other_contexts_is_nobody_elses_business(guest, driver):
    driver.attached("dma1")
    driver.map(2, 3, 9, 1)
    before = guest.line.step
    driver.dma_read("dma1", 0x3000, 8)
    assert guest.line.step == before


@pytest.mark.row("tables", 10)
def test_a_flush_with_nothing_in_flight_is_done_at_once(guest, driver):
    assert driver.flush(guest.ctx) == 0


@pytest.mark.parametrize("ctx", [0, 2, 3])
@pytest.mark.row("tables", 10)
def test_a_flush_of_a_context_without_such_tables_is_einval(guest, driver, ctx):
    driver.alloc()
    assert driver.flush(ctx) == -Errno.EINVAL


@pytest.mark.parametrize("field", ["pad0", "pad1"])
@pytest.mark.row("tables", 10)
def test_fields_of_a_flush_that_are_not_input_must_be_zero(guest, driver, field):
    assert vendor(driver, VendorOp.FLUSH, Flush(guest.ctx, **{field: 1}).pack()) == -Errno.EINVAL


@pytest.mark.row("tables", 10)
def test_a_flush_waits_for_what_outlives_its_step_and_for_nothing_later(guest, driver):
    guest.tables.map(0x3000, 0x9000)
    stream = driver.iommu.stream(STREAM["dma0"])
    request = [([(0x3000, 8)], READ_ACCESS)]
    stream.translate(request)
    stream.keep()
    stream.finished()
    assert (guest.line.step % 2, guest.line.pending) == (1, 1)

    position = driver.put(Flush(guest.ctx).pack(), OpClass.VENDOR, VendorOp.FLUSH)
    driver.iommu.work()
    assert driver.completed() == position
    stream.resume()
    stream.finished()
    assert guest.line.is_quiet()
    driver.iommu.work()
    assert driver.completed() == position + 1
    assert driver.outcome(position)[0].result == 0


@pytest.mark.row("tables", 10)
def test_a_request_that_is_given_up_is_not_in_flight(guest, driver):
    guest.tables.map(0x3000, 0x9000)
    stream = driver.iommu.stream(STREAM["dma0"])
    stream.translate([([(0x3000, 8)], READ_ACCESS)])
    stream.keep()
    stream.give_up()
    assert guest.line.is_quiet()


@pytest.mark.row("tables", 10)
def test_another_request_ends_what_was_kept(guest, driver):
    guest.tables.map(0x3000, 0x9000)
    stream = driver.iommu.stream(STREAM["dma0"])
    stream.translate([([(0x3000, 8)], READ_ACCESS)])
    stream.keep()
    driver.dma_read("dma0", 0x3000, 8)
    assert guest.line.is_quiet()


# -- resets and states ------------------------------------------------------------------------------------------------


@pytest.mark.row("tables", 11)
def test_a_reset_makes_an_odd_step_the_next_even_one(guest, driver):
    guest.tables.map(0x3000, 0x9000)
    driver.dma_read("dma0", 0x3000, 8)
    stream = driver.iommu.stream(STREAM["dma0"])
    stream.translate([([(0x3000, 8)], READ_ACCESS)])
    stream.keep()
    assert guest.line.step == 3
    driver.write("RESET", Reset.POWER_ON)
    assert (guest.line.step, guest.line.pending) == (4, 0)
    assert driver.iommu.engine.domains() == ()
    stream.finished()
    stream.give_up()
    assert guest.line.step == 4


@pytest.mark.row("tables", 11)
@pytest.mark.parametrize("is_kept", [False, True])
def test_a_machine_is_closed_in_the_middle_of_a_request(is_kept):
    driver = Driver().start()
    guest = TableGuest(driver)
    guest.tables.map(0x3000, 0x9000)
    stream = driver.iommu.stream(STREAM["dma0"])
    assert isinstance(stream.translate([([(0x3000, 8)], READ_ACCESS)]), list)
    if is_kept:
        stream.keep()
    guest.tables.close()
    driver.close()
    stream.finished()
    stream.give_up()


@pytest.mark.row("tables", 11)
def test_a_new_client_finds_even_lines(guest, driver):
    guest.tables.map(0x3000, 0x9000)
    driver.dma_read("dma0", 0x3000, 8)
    driver.iommu.disconnected()
    driver.iommu.shared.renew()
    driver.iommu.on_shared_renewed()
    assert guest.line.is_quiet()


@pytest.mark.row("tables", 12)
def test_a_saved_state_has_tables_and_steps(make_guest, driver, make_driver):
    guest = make_guest(aperture_bits=38)
    guest.tables.map(0x3000, 0x9000)
    driver.ram[0x9000:0x9004] = b"data"
    driver.dma_read("dma0", 0x3000, 4)
    state = driver.iommu.save()
    assert state.tables == {guest.ctx: TablesState(0, 0, guest.tables.root, 38)}
    assert state.steps == {0: 2}

    other = make_driver()
    other.ram[:] = driver.ram[:]
    other.plug_ram()
    other.iommu.load(state)
    other.master("dma0")
    assert other.dma_read("dma0", 0x3000, 4) == b"data"
    assert InFlight(other._function, 0).step == 4
    assert other.iommu.save().tables == state.tables


@pytest.mark.row("tables", 12)
def test_a_state_with_tables_that_cannot_be_walked_is_refused(guest, driver, make_driver):
    state = driver.iommu.save()
    bad = msgspec.structs.replace(state, tables={guest.ctx: TablesState(7, 0, 0x1000, 38)})
    other = make_driver()
    other.plug_ram()
    with pytest.raises(ValueError, match=r"context 1: .*are no tables that this device walks"):
        other.iommu.load(bad)
