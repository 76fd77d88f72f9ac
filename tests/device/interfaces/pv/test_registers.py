"""The PV-IOMMU's registers, through the BAR."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pviommu.counters import Counters
from pviommu.inputs import LiveInputs
from pviommu.interfaces.pv.function import IommuConfig, PvIommu
from pviommu.pci.function import Environment
from pviommu_abi.registers import REGISTER, REGISTER_BAR, REGISTERS, RingControl, Status
from vfio_user import Steps
from wire_layout.registers import AccessKind
from wire_layout.strategies import RegisterAccess, accesses

CONSTANT = [
    REGISTER[name]
    for name in (
        "MAGIC",
        "VERSION",
        "FEATURES",
        "INSTANCE",
        "MAX_RINGS",
        "MAX_RING_ENTRIES",
        "RING_AREA",
        "RING_AREA_SIZE",
    )
]


def finish(steps: Steps | None) -> None:
    for _ in steps or ():
        pass


@given(st.lists(accesses(REGISTERS), max_size=40))
def test_whatever_is_written_constants_stay_and_bits_that_are_not_read_are_zero(history: list[RegisterAccess]) -> None:
    iommu = PvIommu("iommu", IommuConfig(streams=(1,), instance=9), Environment(LiveInputs(), Counters()))
    before = [iommu.region_read(REGISTER_BAR, each.offset, 4) for each in CONSTANT]

    for access in history:
        if access.data is not None:
            finish(iommu.region_write(REGISTER_BAR, access.offset, access.data))
        assert len(iommu.region_read(REGISTER_BAR, access.offset, access.size)) == access.size

    assert [iommu.region_read(REGISTER_BAR, each.offset, 4) for each in CONSTANT] == before
    for register in REGISTERS:
        for place in register.places:
            (value,) = struct.unpack("<I", iommu.region_read(REGISTER_BAR, place, 4))
            assert value & register.mask(AccessKind.WO, AccessKind.RES0) == 0
    iommu.close()


@pytest.mark.parametrize("value", [2, 3, 0x80000001, 0xFFFFFFFE])
def test_a_reserved_bit_in_ring_control_is_refused_and_not_taken_for_off(driver, value):
    driver.write("RING_CONTROL", value)

    assert driver.read("STATUS") == Status.REFUSED | Status.RINGS_ON
    assert driver.read("RING_CONTROL") == RingControl.ENABLE


@pytest.mark.parametrize("name", ["PROFILE", "RING_SELECT", "RING_ENTRIES"])
def test_an_access_of_another_size_is_neither_accepted_nor_refused(driver, name):
    driver.write("RING_SELECT", 99)
    before = driver.read(name)

    for size in (1, 2, 8):
        driver.iommu.region_write(REGISTER_BAR, REGISTER[name].offset, bytes(size))

    assert (driver.read(name), driver.read("STATUS")) == (before, Status.REFUSED | Status.RINGS_ON)


def test_a_reset_keeps_what_the_device_is_and_clears_what_was_chosen(make_driver):
    driver = make_driver(instance=5, rings=2).start()
    driver.write("RING_SELECT", 1)
    driver.write("RING_BASE_HI", 7)
    doorbells = driver.read("DOORBELLS")
    driver.write("DOORBELL", 0)

    finish(driver.write("RESET", 1))

    assert [driver.read(name) for name in ("INSTANCE", "MAX_RINGS", "DOORBELLS")] == [5, 2, doorbells + 1]
    assert [driver.read(name) for name in ("PROFILE", "RING_SELECT", "STATUS")] == [0, 0, 0]
    driver.write("RING_SELECT", 1)
    assert driver.read("RING_BASE_HI") == 0
