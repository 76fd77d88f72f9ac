"""Registers: words of their own, inside their BAR."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pviommu_abi import dma_test, registers
from pviommu_abi.registers import EndpointCapability
from wire_layout.registers import Register


@pytest.mark.parametrize("declared", [registers.REGISTERS, dma_test.REGISTERS], ids=["pviommu", "dma_test"])
def test_no_two_registers_share_a_word(declared: Sequence[Register]) -> None:
    places = [register.offset + 4 * index for register in declared for index in range(register.count)]

    assert len(set(places)) == len(places)
    assert all(place % 4 == 0 and place < registers.REGISTER_BAR_SIZE for place in places)
    assert len({register.name for register in declared}) == len(declared)


def test_registers_lie_where_drivers_look_for_them() -> None:
    offsets = {name: registers.REGISTER[name].offset for name in ("MAGIC", "STATUS", "RING_SELECT", "DOORBELL")}

    assert offsets == {"MAGIC": 0, "STATUS": 0x10, "RING_SELECT": 0x80, "DOORBELL": 0x100}


def test_magic_numbers_read_as_text_in_memory() -> None:
    assert registers.MAGIC.to_bytes(4, "little") == b"PVIM"
    assert registers.ENDPOINT_SIGNATURE.to_bytes(4, "little") == b"PVIU"
    assert dma_test.MAGIC.to_bytes(4, "little") == b"PVDT"


def test_the_msix_table_ends_before_its_pending_bits() -> None:
    assert registers.MSIX_VECTORS * 16 <= registers.MSIX_PBA_OFFSET < registers.MSIX_BAR_SIZE


def test_the_endpoint_capability_is_16_bytes_with_the_stream_last() -> None:
    assert EndpointCapability.SIZE == 16
    assert EndpointCapability.offset_of("stream") == 12
