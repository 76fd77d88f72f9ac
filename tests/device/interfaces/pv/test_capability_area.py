import pytest

from pviommu.engine import EngineConfig
from pviommu.engine.config import MSI_WINDOW, ReservedFrames
from pviommu.engine.ranges import FrameRanges
from pviommu.interfaces.pv.capability_area import CapabilityPublisher, Chain, iova_ranges, reserved_regions
from pviommu.pci.shared_memory import SharedMemory
from pviommu_abi.shared import (
    CAPABILITY_MAGIC,
    CAPABILITY_OFFSET,
    CAPABILITY_SIZE,
    GLOBAL_STREAM,
    SBDF_UNBOUND,
    SHARED_BAR_SIZE,
    AddressRange,
    CapabilityArea,
    CapabilityCount,
    CapabilityHeader,
    CapabilityId,
    EndpointEntry,
    Limits,
    RegionKind,
    ReservedRegion,
)

LIMITS = Limits(1 << 12, 256, 255, 4096, 4, 39, 1)
ENTRY = {
    CapabilityId.IOVA_RANGES: AddressRange,
    CapabilityId.RESERVED_REGIONS: ReservedRegion,
    CapabilityId.RAM_RANGES: AddressRange,
    CapabilityId.ENDPOINTS: EndpointEntry,
}


@pytest.fixture
def shared():
    memory = SharedMemory("capabilities", SHARED_BAR_SIZE)
    yield memory
    memory.close()


def walk(area):
    """Follow the links as a guest does: id -> entries."""
    found, offset = {}, CapabilityArea.unpack(area).first
    while offset:
        header = CapabilityHeader.unpack(area, offset)
        assert header.version == 1
        at = offset + CapabilityHeader.SIZE
        if header.cap_id == CapabilityId.LIMITS:
            found[header.cap_id] = Limits.unpack(area, at)
        else:
            kind, count = ENTRY[header.cap_id], CapabilityCount.unpack(area, at).count
            at += CapabilityCount.SIZE
            found[header.cap_id] = [kind.unpack(area, at + place * kind.SIZE) for place in range(count)]
        offset = header.next
    return found


def published(shared, config, limits, ram, *others):
    """``ram``: (first GPA, last GPA) pairs."""
    frames = FrameRanges((first >> 12, last >> 12) for first, last in ram)
    CapabilityPublisher(shared).publish(Chain(config, limits, *others).with_ram(frames))
    return bytes(shared.view[CAPABILITY_OFFSET : CAPABILITY_OFFSET + CAPABILITY_SIZE])


def test_the_msi_window_splits_the_aperture():
    assert iova_ranges(EngineConfig(aperture_bits=39)) == [
        AddressRange(0, 0xFEDFFFFF),
        AddressRange(0xFEF00000, (1 << 39) - 1),
    ]


def test_reserved_regions_at_both_ends_leave_what_is_between():
    config = EngineConfig(
        aperture_bits=32, reserved=(ReservedFrames(0xFFFFF, 0xFFFFF, "top"), ReservedFrames(0, 0, "bottom"))
    )
    assert iova_ranges(config) == [AddressRange(0x1000, 0xFFFFEFFF)]
    assert [region.kind for region in reserved_regions(config)] == [RegionKind.RESERVED] * 2


def test_overlapping_reserved_regions_are_left_out_once():
    config = EngineConfig(aperture_bits=32, reserved=(ReservedFrames(0, 9, "a"), ReservedFrames(5, 6, "b")))
    assert iova_ranges(config) == [AddressRange(0xA000, 0xFFFFFFFF)]


def test_a_reserved_region_past_the_aperture_does_not_lengthen_it():
    config = EngineConfig(aperture_bits=32, reserved=(ReservedFrames(0x200000, 0x200001, "far"),))
    assert iova_ranges(config) == [AddressRange(0, 0xFFFFFFFF)]


def test_the_msi_window_is_listed_for_every_stream():
    assert reserved_regions(EngineConfig(reserved=(MSI_WINDOW,))) == [
        ReservedRegion(0xFEE00000, 0xFEEFFFFF, RegionKind.MSI, GLOBAL_STREAM)
    ]


def test_the_chain_holds_every_capability_once(shared):
    endpoints = [EndpointEntry(1, 0, SBDF_UNBOUND), EndpointEntry(2, 1, 0x28)]
    area = published(shared, EngineConfig(), LIMITS, [(0, 0xFFF), (1 << 32, (1 << 33) - 1)], endpoints)
    found = walk(area)
    assert set(found) == set(CapabilityId) - {CapabilityId.FAULT_RULES, CapabilityId.GUEST_TABLES}  # there are none
    assert found[CapabilityId.LIMITS] == LIMITS
    assert found[CapabilityId.ENDPOINTS] == endpoints
    assert found[CapabilityId.RAM_RANGES] == [AddressRange(0, 0xFFF), AddressRange(1 << 32, (1 << 33) - 1)]


def test_the_head_tells_the_length_in_use(shared):
    area = published(shared, EngineConfig(), LIMITS, [(0, 0xFFF)], [])
    head = CapabilityArea.unpack(area)
    assert (head.magic, head.first) == (CAPABILITY_MAGIC, CapabilityArea.SIZE)
    assert area[head.length - AddressRange.SIZE : head.length] == AddressRange(0, 0xFFF).pack()
    assert not any(area[head.length :])


def test_more_ram_ranges_than_fit_are_left_out_at_the_end(shared):
    ram = [(place << 13, (place << 13) + 0xFFF) for place in range(2000)]
    endpoints = [EndpointEntry(stream, 0, SBDF_UNBOUND) for stream in range(256)]
    area = published(shared, EngineConfig(), LIMITS, ram, endpoints)
    found = walk(area)
    assert CapabilityArea.unpack(area).length <= CAPABILITY_SIZE
    assert 0 < len(found[CapabilityId.RAM_RANGES]) < 2000
    assert found[CapabilityId.RAM_RANGES][0] == AddressRange(0, 0xFFF)
    assert found[CapabilityId.ENDPOINTS] == endpoints


def test_the_generation_is_even_and_grows_by_two(shared):
    publisher = CapabilityPublisher(shared)
    generations = []
    for _ in range(3):
        publisher.publish(b"")
        generations.append(CapabilityArea.unpack(shared.view, CAPABILITY_OFFSET).generation)
    assert generations == [2, 4, 6]


def test_the_generation_is_odd_while_the_chain_is_written(shared):
    seen = []

    class Body(bytes):
        def __len__(self):
            seen.append(CapabilityArea.unpack(shared.view, CAPABILITY_OFFSET).generation)
            return super().__len__()

    publisher = CapabilityPublisher(shared)
    publisher.publish(b"")
    publisher.publish(Body(b"1234"))
    assert 3 in seen
    assert CapabilityArea.unpack(shared.view, CAPABILITY_OFFSET).generation == 4


def test_regions_of_endpoints_are_listed_with_their_stream_after_the_global_ones(shared):
    of_endpoints = {7: (ReservedFrames(0x300, 0x301, "direct"), ReservedFrames(0x100, 0x100, "direct"))}
    found = walk(published(shared, EngineConfig(), LIMITS, [], [], of_endpoints))
    assert found[CapabilityId.RESERVED_REGIONS] == [
        ReservedRegion(0xFEE00000, 0xFEEFFFFF, RegionKind.MSI, GLOBAL_STREAM),
        ReservedRegion(0x100000, 0x100FFF, RegionKind.DIRECT, 7),
        ReservedRegion(0x300000, 0x301FFF, RegionKind.DIRECT, 7),
    ]


def test_the_most_endpoints_and_regions_leave_room_for_ram_ranges(shared):
    region = ReservedFrames(0, 0, "direct")
    endpoints = [EndpointEntry(stream, 0, SBDF_UNBOUND) for stream in range(256)]
    of_endpoints = dict.fromkeys(range(64), (region,))
    found = walk(
        published(
            shared,
            EngineConfig(),
            LIMITS,
            [(place << 13, (place << 13) + 4095) for place in range(1000)],
            endpoints,
            of_endpoints,
        )
    )
    assert len(found[CapabilityId.RESERVED_REGIONS]) == 65
    assert len(found[CapabilityId.ENDPOINTS]) == 256
    assert len(found[CapabilityId.RAM_RANGES]) >= 100
