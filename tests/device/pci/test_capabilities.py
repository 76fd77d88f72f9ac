"""Capability bodies, as a guest decodes them."""

from __future__ import annotations

import struct

import pytest

from pviommu.pci.capabilities import endpoint, msix, pcie
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
