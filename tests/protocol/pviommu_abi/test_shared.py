"""The shared BAR: its areas do not overlap, and no cache line has two writers."""

from __future__ import annotations

import itertools

import pytest

from pviommu_abi import shared
from pviommu_abi.shared import DeviceEventLine, DeviceRingLine, Event, GuestEventLine, GuestRingLine, name_hash


def test_areas_lie_behind_each_other() -> None:
    areas = [
        (shared.INDEX_OFFSET, shared.MAX_RINGS * shared.RING_INDEX_STRIDE),
        (shared.EVENT_INDEX_OFFSET, shared.RING_INDEX_STRIDE),
        (shared.CAPABILITY_OFFSET, shared.CAPABILITY_SIZE),
        (shared.EVENT_OFFSET, shared.EVENT_ENTRIES * Event.SIZE),
        (shared.RING_AREA_OFFSET, shared.RING_AREA_SIZE),
        (shared.SHARED_BAR_SIZE, 0),
    ]

    for (start, size), (following, _) in itertools.pairwise(areas):
        assert start + size <= following


def test_each_writer_has_cache_lines_of_its_own() -> None:
    for line in (GuestRingLine, DeviceRingLine, GuestEventLine, DeviceEventLine):
        assert line.SIZE <= shared.CACHE_LINE
    assert shared.RING_INDEX_STRIDE == 2 * shared.CACHE_LINE


def test_an_event_fills_a_cache_line_with_aligned_fields() -> None:
    assert Event.SIZE == shared.CACHE_LINE
    assert all(field.offset % field.size == 0 for field in Event.FIELDS)
    assert {name: Event.offset_of(name) for name in ("sequence", "stream", "sbdf", "iova", "length", "time_ns")} == {
        "sequence": 0,
        "stream": 8,
        "sbdf": 12,
        "iova": 16,
        "length": 24,
        "time_ns": 48,
    }


def test_the_ring_area_holds_all_rings_at_their_largest() -> None:
    assert shared.RING_AREA_SIZE == shared.MAX_RINGS * shared.MAX_RING_ENTRIES * 64
    assert shared.SHARED_BAR_SIZE & (shared.SHARED_BAR_SIZE - 1) == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [("", 0xCBF29CE484222325), ("a", 0xAF63DC4C8601EC8C), ("foobar", 0x85944171F73967E8)],  # FNV-1a's own test vectors
)
def test_names_are_told_by_their_fnv_1a_hash(name: str, expected: int) -> None:
    assert name_hash(name) == expected
