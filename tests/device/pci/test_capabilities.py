"""Capability bodies, as a guest decodes them."""

from __future__ import annotations

import struct

import pytest

from pviommu.pci.capabilities import ats, endpoint, msix, pasid, pcie, pri
from pviommu_abi.registers import ENDPOINT_SIGNATURE, EndpointCapability


def test_pcie_is_version_2_of_an_endpoint_with_function_level_reset() -> None:
    capability = pcie()
    cap_id, _, flags, device = struct.unpack_from("<BBHI", capability.body)

    assert (cap_id, flags & 0xF, flags >> 4 & 0xF) == (0x10, 2, 0)
    assert device & 1 << 28
    assert len(capability.body) == 0x3C


def test_pcie_keeps_device_control_but_not_its_reset_bit() -> None:
    writable = pcie().writable

    assert struct.unpack_from("<H", writable, 8) == (0x7FFF,)
    assert sum(writable) == 0x7F + 0xFF


@pytest.mark.parametrize(("vectors", "field"), [(1, 0), (9, 8), (2048, 2047)])
def test_msix_names_table_and_pending_bits(vectors: int, field: int) -> None:
    capability = msix(vectors, 4, 0x800)

    assert struct.unpack("<BBHII", capability.body) == (0x11, 0, field, 4, 0x804)
    assert struct.unpack("<BBHII", capability.writable) == (0, 0, 0xC000, 0, 0)


@pytest.mark.parametrize("vectors", [0, 2049])
def test_an_impossible_number_of_vectors_is_refused(vectors: int) -> None:
    with pytest.raises(ValueError, match=f"{vectors} MSI-X vectors: 1 to 2048 are possible"):
        msix(vectors, 4, 0x800)


def test_the_endpoint_capability_names_instance_and_stream_and_is_read_only() -> None:
    capability = endpoint(7, 0xFFFFFFFF)

    assert EndpointCapability.unpack(capability.body) == EndpointCapability(
        cap_id=0x09, next=0, length=16, version=1, signature=ENDPOINT_SIGNATURE, instance=7, stream=0xFFFFFFFF
    )
    assert not any(capability.writable)


def test_ats_is_off_and_can_be_turned_on_with_a_unit() -> None:
    body, writable, clears = ats()

    assert body.hex() == "0f000100" + "6100" + "0000"
    assert writable.hex() == "00000000" + "0000" + "1f80"
    assert not any(clears)


def test_pri_is_stopped_and_its_failures_are_cleared_by_writing_1() -> None:
    body, writable, clears = pri()

    assert body.hex() == "13000100" + "0000" + "0001" + "40000000" + "00000000"
    assert writable.hex() == "00000000" + "0100" + "0000" + "00000000" + "ffffffff"
    assert clears.hex() == "00000000" + "0000" + "0301" + "00000000" + "00000000"


def test_pasid_says_how_wide_they_are_and_can_be_turned_on() -> None:
    body, writable, _ = pasid(8)

    assert body.hex() == "1b000100" + "0008" + "0000"
    assert writable.hex() == "00000000" + "0000" + "0100"
