"""The capability area has room for all that a topology may have, and says of RAM what still fits."""

from __future__ import annotations

import pytest

from pviommu.engine import EngineConfig, ReservedFrames
from pviommu.engine.ranges import FrameRanges
from pviommu.interfaces.pv.capability_area import Chain
from pviommu.interfaces.pv.config import MAX_ENDPOINTS, MAX_RESERVED
from pviommu_abi.shared import CAPABILITY_SIZE, SBDF_UNBOUND, AddressRange, CapabilityArea, EndpointEntry, Limits

LEAST_RAM_RANGES = 64


@pytest.mark.row("driver", 27)
def test_all_endpoints_and_regions_fit_and_ram_ranges_besides() -> None:
    endpoints = [EndpointEntry(stream, 0, SBDF_UNBOUND) for stream in range(MAX_ENDPOINTS)]
    regions = {
        stream: (ReservedFrames(0x10000 + 2 * stream, 0x10000 + 2 * stream, "direct"),)
        for stream in range(MAX_RESERVED)
    }
    limits = Limits(1 << 12, 1, 1, 1, 1, 39, 1)
    ram = FrameRanges([(first << 8, first << 8) for first in range(1000)])

    chain = Chain(EngineConfig(), limits, endpoints, regions)
    without = CapabilityArea.SIZE + len(chain.with_ram(FrameRanges()))
    full = CapabilityArea.SIZE + len(chain.with_ram(ram))

    assert without + LEAST_RAM_RANGES * AddressRange.SIZE <= full <= CAPABILITY_SIZE


@pytest.mark.row("server", 50)
def test_a_change_that_is_said_not_to_reach_the_area_leaves_it_as_it_is() -> None:
    arguments = (EngineConfig(), Limits(1 << 12, 1, 1, 1, 1, 39, 1), [])
    ranges = [(first, first) for first in range(0, 2000, 2)]
    chain, other = Chain(*arguments), Chain(*arguments)
    assert chain.reaches(2000)
    area = chain.with_ram(FrameRanges(ranges))
    assert not chain.reaches(1999)

    for frame in range(2000):
        changed = FrameRanges(ranges)
        (changed.add if frame % 2 else changed.remove)(frame, 1)
        assert chain.reaches(frame) == (other.with_ram(changed) != area)
