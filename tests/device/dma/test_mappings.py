"""Ranges in order, against a plain list of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pviommu.dma.mappings import Mapping, Mappings, WouldCutError

SPAN = 64
"""Addresses are small numbers here: nothing of this looks at pages."""

RANGES = st.lists(st.tuples(st.integers(0, SPAN), st.integers(1, 8)), max_size=12)
ASKED = st.tuples(st.integers(0, SPAN), st.integers(0, 2 * SPAN))


def made(ranges: list[tuple[int, int]]) -> tuple[Mappings, list[Mapping]]:
    """Those of ``ranges`` that overlap no earlier one: in order, and as they came."""
    mappings, plain = Mappings(), list[Mapping]()
    for address, size in ranges:
        new = Mapping(address, size, 0, True, True, None)
        if all(old.end <= address or new.end <= old.address for old in plain):
            mappings.add(new)
            plain.append(new)
    return mappings, sorted(plain, key=lambda mapping: mapping.address)


@given(RANGES, ASKED)
def test_questions_are_answered_as_by_looking_at_each(ranges: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    mappings, plain = made(ranges)
    address, size = asked

    assert (list(mappings), len(mappings)) == (plain, len(plain))
    assert mappings.at(address) == next((each for each in plain if each.address <= address < each.end), None)
    assert mappings.next_from(address) == next((each for each in plain if each.address >= address), None)
    if size:
        shared = [each for each in plain if each.address < address + size and each.end > address]
        assert list(mappings.overlapping(address, size)) == shared


@given(RANGES, ASKED)
def test_ranges_go_whole_or_none_does(ranges: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    mappings, plain = made(ranges)
    address, size = asked
    end = address + size
    gone = [each for each in plain if address <= each.address and each.end <= end]
    cut = [each for each in plain if size and each.address < end and each.end > address and each not in gone]

    if cut:
        with pytest.raises(WouldCutError) as caught:
            mappings.remove(address, size)
        assert caught.value.mapping == cut[0]
        assert list(mappings) == plain
    else:
        assert mappings.remove(address, size) == gone
        assert list(mappings) == [each for each in plain if each not in gone]


def test_the_last_address_has_a_range() -> None:
    mappings = Mappings()
    last = Mapping((1 << 64) - 4096, 4096, 0, True, True, None)
    mappings.add(last)

    assert mappings.at((1 << 64) - 1) == last
    assert mappings.next_from(1 << 64) is None
    assert list(mappings.overlapping(0, 1 << 64)) == [last]
    assert mappings.remove(0, 1 << 64) == [last]
