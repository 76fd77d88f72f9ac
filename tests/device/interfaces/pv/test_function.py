import errno
import os
import struct

import pytest

from pviommu.dma.fault import DmaRefusedError
from pviommu.engine import Access
from pviommu_abi import registers as abi
from pviommu_abi.dma_test import Descriptor, DescriptorStatus, DmaOp
from pviommu_abi.registers import Feature, Profile, RingStatus, Status
from pviommu_abi.shared import (
    CAPABILITY_MAGIC,
    CAPABILITY_OFFSET,
    MAX_RING_ENTRIES,
    RING_AREA_OFFSET,
    RING_AREA_SIZE,
    Event,
    EventReason,
)
from pviommu_abi.slots import OpClass
from pviommu_abi.xen_2024 import MapPages, PvIommuOp, Xen2024Op
from vfio_user import DmaMapping, RequestError

from ...conftest import DEVFN, ENTRIES, reason_of

NOOP = PvIommuOp(Xen2024Op.NOOP, 0, 0).pack()
ALLOC = PvIommuOp(Xen2024Op.ALLOC_CONTEXT, 0, 0).pack()


def refused(driver):
    return bool(driver.read("STATUS") & Status.REFUSED)


def refusal(driver, name, iova):
    with pytest.raises(DmaRefusedError) as caught:
        driver.dma_read(name, iova, 1)
    return reason_of(caught.value)


def map_op(ctx, dfn, gfn, nr=1):
    return MapPages(Xen2024Op.MAP_PAGES, ctx, 3, gfn, dfn, nr).pack()


def test_an_endpoint_of_an_unknown_stream_is_refused(driver):
    with pytest.raises(ValueError, match="stream 9"):
        driver.iommu.stream(9)


# -- registers --------------------------------------------------------------------------------------------------------


def test_doorbells_are_counted_for_as_long_as_the_device_runs(driver):
    before = driver.read("DOORBELLS")
    driver.write("DOORBELL", 1)
    driver.write("RESET", 1)
    driver.write("DOORBELL", 1)
    assert driver.read("DOORBELLS") == before + 2


def test_read_only_registers_tell_what_the_device_is(make_driver):
    driver = make_driver(instance=7, rings=2)
    assert driver.read("MAGIC") == abi.MAGIC
    assert driver.read("VERSION") == abi.ABI_VERSION
    every = Feature.PROFILE_XEN_2024 | Feature.PROFILE_XEN_V7 | Feature.BATCH_2014 | Feature.POSTED
    assert Feature(driver.read("FEATURES")) == every | Feature.GUEST_TABLES
    assert (driver.read("INSTANCE"), driver.read("MAX_RINGS")) == (7, 2)
    assert (driver.read("RING_AREA"), driver.read("RING_AREA_SIZE")) == (RING_AREA_OFFSET, RING_AREA_SIZE)
    driver.write("MAGIC", 0)
    assert driver.read("MAGIC") == abi.MAGIC
    assert not refused(driver)


def test_no_profile_is_selected_at_power_on_and_no_ring_can_be_enabled(make_driver):
    driver = make_driver()
    assert driver.read("PROFILE") == Profile.NONE
    assert driver.set_up_ring() == Status.REFUSED


@pytest.mark.parametrize("value", [3, 0xFFFFFFFF])
def test_an_unknown_profile_is_refused(driver, value):
    driver.write("RING_CONTROL", 0)
    driver.write("PROFILE", value)
    assert (refused(driver), driver.read("PROFILE")) == (True, Profile.XEN_2024)


@pytest.mark.parametrize(
    ("profile", "other"),
    [(Profile.XEN_2024, OpClass.XEN_V7), (Profile.XEN_V7, OpClass.XEN_2024)],
    ids=["xen-2024", "xen-v7"],
)
def test_slots_of_the_other_profile_are_einval(make_driver, profile, other):
    driver = make_driver().start(profile=profile)
    assert driver.read("PROFILE") == profile
    assert driver.call(NOOP, other)[0] == -errno.EINVAL


def test_another_profile_is_selected_with_the_rings_off_and_begins_at_power_on(driver):
    driver.attached()
    driver.write("RING_CONTROL", 0)
    driver.start(profile=Profile.XEN_V7)
    assert (driver.iommu.engine.domains(), driver.read("PROFILE")) == ((), Profile.XEN_V7)
    assert driver.call(NOOP)[0] == -errno.EINVAL
    assert driver.call(b"", OpClass.XEN_V7)[0] == 0


def test_a_profile_is_refused_while_a_ring_is_on(driver):
    ctx = driver.attached()
    driver.write("PROFILE", Profile.NONE)
    assert driver.read("STATUS") == Status.REFUSED | Status.RINGS_ON
    assert (driver.read("PROFILE"), driver.iommu.engine.domains()) == (Profile.XEN_2024, (ctx,))


def test_selecting_a_profile_resets(driver):
    driver.attached()
    driver.write("RING_CONTROL", 0)
    driver.write("PROFILE", Profile.XEN_2024)
    assert driver.read("PROFILE") == Profile.XEN_2024
    assert (driver.iommu.engine.domains(), len(driver.iommu.bindings)) == ((), 0)
    assert driver.read("RING_ENTRIES") == 0


def test_the_next_accepted_write_clears_refused(driver):
    driver.write("RING_SELECT", 99)
    assert refused(driver)
    driver.write("RING_SELECT", 1)
    assert not refused(driver)


def test_reset_takes_no_other_value(driver):
    driver.write("RESET", 3)
    assert (refused(driver), driver.read("RING_CONTROL")) == (True, 1)
    assert driver.read("RESET") == 0


def test_ring_registers_are_banked_and_locked_while_the_ring_is_on(driver):
    for name in ("RING_ENTRIES", "RING_TYPE", "RING_BASE_LO", "RING_BASE_HI"):
        before = driver.read(name)
        driver.write(name, 0x40)
        assert (refused(driver), driver.read(name)) == (True, before)
    driver.write("RING_SELECT", 1)
    driver.write("RING_BASE_HI", 3)
    assert (refused(driver), driver.read("RING_BASE_HI"), driver.read("RING_ENTRIES")) == (False, 3, 0)
    driver.write("RING_SELECT", 0)
    assert (driver.read("RING_BASE_HI"), driver.read("RING_ENTRIES")) == (0, ENTRIES)


@pytest.mark.parametrize(
    ("register", "value"),
    [
        ("RING_ENTRIES", 0),
        ("RING_ENTRIES", 8),
        ("RING_ENTRIES", 24),
        ("RING_ENTRIES", 2 * MAX_RING_ENTRIES),
        ("RING_TYPE", 1),
        ("RING_BASE_LO", RING_AREA_OFFSET + 64),
        ("RING_BASE_LO", RING_AREA_OFFSET - 4096),
        ("RING_BASE_LO", RING_AREA_OFFSET + RING_AREA_SIZE),
        ("RING_BASE_LO", RING_AREA_OFFSET + RING_AREA_SIZE - 4096),
        ("RING_BASE_HI", 1),
    ],
)
@pytest.mark.row("defect", "B3")
def test_a_ring_that_breaks_a_rule_is_not_enabled(driver, register, value):
    driver.write("RING_CONTROL", 0)
    driver.words[0] = 0
    driver.write(register, value)
    driver.write("RING_CONTROL", 1)
    assert (refused(driver), driver.read("RING_STATUS"), driver.read("RING_CONTROL")) == (True, 0, 0)


def test_a_ring_that_is_not_rewound_is_not_enabled(driver):
    driver.write("RING_CONTROL", 0)
    driver.words[0] = 1
    driver.write("RING_CONTROL", 1)
    assert (refused(driver), driver.read("RING_STATUS")) == (True, 0)


def test_a_ring_over_another_one_is_not_enabled(driver):
    driver.write("RING_SELECT", 1)
    driver.write("RING_ENTRIES", 16)
    driver.write("RING_BASE_LO", RING_AREA_OFFSET + ENTRIES * 64 - 4096)
    driver.write("RING_CONTROL", 1)
    assert refused(driver)
    driver.write("RING_BASE_LO", RING_AREA_OFFSET + ENTRIES * 64)
    driver.write("RING_CONTROL", 1)
    assert not refused(driver)


def test_enabling_twice_is_refused_and_other_control_bits_are(driver):
    for value in (1, 2, 3):
        driver.write("RING_CONTROL", value)
        assert (refused(driver), driver.read("RING_STATUS")) == (True, RingStatus.ENABLED)


def test_the_doorbell_of_every_ring_is_counted_and_reads_0(driver):
    driver.write("DOORBELL", 0, index=0)
    driver.write("DOORBELL", 123, index=7)
    assert (driver.counters.doorbells, driver.read("DOORBELL")) == (2, 0)


# -- guest memory -----------------------------------------------------------------------------------------------------


@pytest.mark.row("wire", 50)
def test_memory_files_without_data_are_not_what_the_guest_uses(make_driver):
    driver = make_driver()
    fd = os.memfd_create("unused", 0)
    os.truncate(fd, 1 << 20)
    driver.iommu.dma_map(DmaMapping(0, 1 << 20, 0, True, True, fd))
    driver.write("PROFILE", Profile.XEN_2024)
    assert driver.set_up_ring() == Status.REFUSED | Status.MEMORY_NOT_SHARED
    [mapped] = driver.iommu.memory
    os.pwrite(mapped.file.fd, b"boot", 0)
    assert driver.set_up_ring() == Status.RINGS_ON


def test_a_client_whose_memory_has_no_files_is_refused_with_the_remedy(make_driver, caplog):
    driver = make_driver()
    driver.iommu.dma_map(DmaMapping(0, 1 << 20, 0, True, True, None))
    with pytest.raises(RequestError) as caught:
        driver.iommu.describe()
    assert caught.value.errno == errno.EINVAL
    assert "share=on" in caplog.records[-1].getMessage()
    assert len(caplog.records) == 1


def test_a_client_without_memory_is_described(make_driver):
    assert make_driver().iommu.describe().num_regions == 9


# -- translation and faults -------------------------------------------------------------------------------------------


def test_dma_is_refused_only_after_all_rings_are_drained(make_driver):
    driver = make_driver().start(rings=2)
    ctx = driver.attached()
    driver.put(map_op(ctx, 0x100, 0x10), ring=1)
    driver.put(map_op(ctx, 0x101, 0x11), ring=0)
    assert driver.dma_read("dma0", 0x100000, 8192) == bytes(8192)
    assert (driver.completed(1), driver.counters.faults) == (1, 0)


def test_a_translation_that_succeeds_drains_nothing(driver):
    ctx = driver.attached()
    driver.map(ctx, 0x100, 0x10, 1)
    before = driver.completed()
    driver.put(NOOP)
    driver.dma_read("dma0", 0x100000, 1)
    assert driver.completed() == before


def test_a_fault_is_one_event_with_exact_address(driver):
    ctx = driver.attached()
    driver.map(ctx, 0x100, 0x10, 2)
    with pytest.raises(DmaRefusedError):
        driver.dma_write("dma0", 0x100123, bytes(10000))
    (event,) = driver.events()
    assert event == Event(
        sequence=0,
        reason=EventReason.NOT_MAPPED,
        access=Access.WRITE,
        stream=1,
        sbdf=DEVFN["dma0"],
        iova=0x102000,
        length=10000,
        ctx_no=ctx,
        time_ns=event.time_ns,
    )
    assert not any(driver.ram[0x10000:0x12000])


@pytest.mark.parametrize(
    ("iova", "reason"),
    [
        (0x100000, EventReason.NOT_MAPPED),
        (0xFEE00000, EventReason.RESERVED),
        (1 << 39, EventReason.OUT_OF_APERTURE),
    ],
)
def test_the_event_names_the_rule_that_was_broken(driver, iova, reason):
    driver.attached()
    assert refusal(driver, "dma0", iova) is reason
    assert [(event.reason, event.iova) for event in driver.events()] == [(reason, iova)]


# -- reset ------------------------------------------------------------------------------------------------------------


def test_reset_returns_to_the_state_after_power_on(make_driver):
    driver = make_driver().start(rings=2)
    ctx = driver.attached()
    driver.map(ctx, 0x100, 0x10, 3)
    refusal(driver, "dma0", 0)
    driver.write("RESET", 1)
    usage = driver.iommu.engine.usage()
    assert (usage.domains, usage.pool_pages_used, usage.mapped_pages, len(driver.iommu.bindings)) == (0, 0, 0, 0)
    names = ("STATUS", "PROFILE", "RING_SELECT", "RING_CONTROL", "RING_STATUS", "RING_ENTRIES", "RING_BASE_LO")
    assert [driver.read(name) for name in names] == [0] * len(names)
    assert not any(driver.view[:CAPABILITY_OFFSET])
    assert not any(driver.view[RING_AREA_OFFSET:])
    assert struct.unpack_from("<I", driver.view, CAPABILITY_OFFSET) == (CAPABILITY_MAGIC,)


@pytest.mark.row("xen", 59)
@pytest.mark.parametrize("how", ["register", "device", "function-level", "profile"])
@pytest.mark.row("defect", "B10")
@pytest.mark.row("defect", "D13")
def test_every_reset_blocks_endpoints_that_were_outside_the_default_context(driver, how):
    driver.attached("dma0")
    driver.bind("dma1")
    driver.master("dma1")
    if how == "register":
        driver.write("RESET", 1)
    elif how == "device":
        driver.iommu.reset()
    elif how == "function-level":
        control = driver.iommu._pcie + 8
        driver.iommu.region_write(7, control, b"\x00\x80")
    else:
        driver.write("RING_CONTROL", 0)
        driver.write("PROFILE", Profile.NONE)
    assert refusal(driver, "dma0", 0) is EventReason.BLOCKED
    assert driver.dma_read("dma1", 0, 1) == b"\1"


@pytest.mark.parametrize("how", ["reset", "bus master", "reattach"])
def test_a_blocked_endpoint_is_unblocked_by_its_own_reset_bus_mastering_or_a_reattach(driver, how):
    driver.attached("dma0")
    driver.write("RESET", 1)
    endpoint = driver.machine.endpoints["dma0"]
    if how == "reset":
        endpoint.reset()
        assert not driver.iommu.engine.is_blocked(1)
    elif how == "bus master":
        endpoint.region_write(7, 4, b"\x02\x00")
        assert driver.iommu.engine.is_blocked(1)
    else:
        driver.start()
        assert (driver.bind("dma0"), driver.reattach("dma0", 0)) == (0, 0)
    driver.master("dma0")
    assert driver.dma_read("dma0", 0, 1) == b"\1"


def test_reset_cancels_the_queued_dma_of_endpoints_that_were_outside_the_default_context(driver):
    driver.attached("dma0")
    endpoint = driver.machine.endpoints["dma0"]
    endpoint.shared.view[: Descriptor.SIZE] = Descriptor(DmaOp.FILL, 0, 0, 8, 0, 0x3000, 0xFF).pack()
    endpoint.region_write(0, 0x14, struct.pack("<I", 1))
    endpoint.region_write(0, 0x18, struct.pack("<I", 1))
    driver.write("RESET", 1)
    assert not endpoint.work()
    assert Descriptor.unpack(endpoint.shared.view).status == DescriptorStatus.CANCELLED
    assert driver.ram[0x3000] == 0


@pytest.mark.row("server", 14)
def test_a_reset_by_the_client_while_rings_are_on_is_one_line_and_any_other_is_none(make_driver, caplog):
    caplog.set_level("INFO")
    driver = make_driver()
    driver.iommu.reset()
    driver.start()
    driver.write("RESET", 1)
    driver.set_up_ring()
    driver.write("PROFILE", abi.Profile.XEN_2024)
    driver.set_up_ring()
    driver.iommu.disconnected()
    assert "reset by the client" not in caplog.text
    driver.start()
    driver.iommu.reset()
    driver.iommu.reset()
    assert caplog.text.count("reset by the client while rings were on: the guest was reset, or a saved state") == 1


def test_reset_first_drains_the_rings(driver):
    driver.put(NOOP)
    driver.write("RESET", 1)
    assert driver.counters.ops["noop"] == 1


def test_events_and_their_sequence_begin_anew_after_reset(driver):
    driver.attached("dma0")
    refusal(driver, "dma0", 0)
    driver.write("RESET", 1)
    driver.forget_events()
    refusal(driver, "dma0", 0)
    assert [(event.sequence, event.reason) for event in driver.events()] == [(0, EventReason.BLOCKED)]


def test_a_client_that_is_gone_leaves_power_on_state_and_no_memory(driver):
    ctx = driver.attached("dma0")
    driver.map(ctx, 0x100, 0x10, 1)
    fd = driver.msix(0)
    driver.iommu.disconnected()
    os.close(fd)
    assert (list(driver.iommu.memory), driver.iommu.engine.ram) == ([], ())
    assert (driver.iommu.engine.domains(), len(driver.iommu.bindings)) == ((), 0)
    assert driver.read("PROFILE") == Profile.NONE
    assert struct.unpack_from("<I", driver.view, CAPABILITY_OFFSET) == (CAPABILITY_MAGIC,)
    assert refusal(driver, "dma0", 0) is EventReason.BLOCKED
