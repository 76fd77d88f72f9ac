"""The reader of the capability area on areas that no device would leave; tests of the PV-IOMMU read right ones."""

import struct

import pytest

from pviommu.guest.capabilities import capabilities
from pviommu_abi.shared import CAPABILITY_MAGIC, CAPABILITY_OFFSET, CAPABILITY_SIZE, CapabilityArea


def shared(magic: int, generation: int) -> memoryview:
    bar = bytearray(CAPABILITY_OFFSET + CAPABILITY_SIZE)
    struct.pack_into("<IIII", bar, CAPABILITY_OFFSET, magic, generation, CapabilityArea.SIZE, 0)
    return memoryview(bar)


def test_an_area_without_capabilities_has_none() -> None:
    assert capabilities(shared(CAPABILITY_MAGIC, 2)) == {}


@pytest.mark.parametrize(("magic", "generation"), [(0, 0), (CAPABILITY_MAGIC, 3)], ids=["not-there", "being-written"])
def test_what_is_no_area_to_read_is_refused(magic: int, generation: int) -> None:
    with pytest.raises(ValueError, match="no capability area, or one that is being written"):
        capabilities(shared(magic, generation))
