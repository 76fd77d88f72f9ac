"""Areas against a list of them, and what each of the three rules of removal does."""

import random
import sys

import pytest

from pviommu.engine import areas as module
from pviommu.engine.areas import BLOCK_AREAS, Areas, ByteArea, Cutting

LAST = (1 << 64) - 1


def area(first, last, target=None, tag="t"):
    return ByteArea(first, last, 0x100000 + first if target is None else target, tag)


def made(*spans):
    areas = Areas()
    for first, last in spans:
        areas.add(area(first, last))
    return areas


def spans(areas):
    return [(found.first, found.last) for found in areas]


def test_areas_come_in_order_with_what_they_carry():
    areas = Areas()
    areas.add(area(0x30, 0x3F, 7, "b"))
    areas.add(area(0x10, 0x2F, 9, "a"))

    assert list(areas) == [ByteArea(0x10, 0x2F, 9, "a"), ByteArea(0x30, 0x3F, 7, "b")]
    assert len(areas) == 2
    assert next(iter(areas)).length == 0x20


@pytest.mark.parametrize("span", [(0x1F, 0x1F), (0, 0x10), (0x18, 0x27), (0, 0x100), (0x10, 0x1F), (0x11, 0x12)])
def test_no_two_overlap(span):
    areas = made((0x10, 0x1F), (0x30, 0x3F))

    with pytest.raises(ValueError, match="overlaps 0x10"):
        areas.add(area(*span))
    assert spans(areas) == [(0x10, 0x1F), (0x30, 0x3F)]


def test_the_whole_of_64_bits_can_be_one_area():
    areas = made((0, LAST))

    assert areas.cover(LAST, LAST) == [area(LAST, LAST)]
    assert list(areas.gaps(0, LAST, 1)) == []
    assert areas.remove(0, LAST, Cutting.STOPS).size == 1 << 64
    with pytest.raises(ValueError, match="64-bit"):
        areas.add(area(0, LAST + 1))


def test_iommufd_removes_whole_areas_up_to_one_that_it_would_cut():
    areas = made((0x10, 0x1F), (0x30, 0x3F), (0x50, 0x5F), (0x70, 0x7F))

    removal = areas.remove(0x8, 0x57, Cutting.STOPS)

    assert removal == ([area(0x10, 0x1F), area(0x30, 0x3F)], area(0x50, 0x5F))
    assert removal.size == 0x20
    assert spans(areas) == [(0x50, 0x5F), (0x70, 0x7F)]
    assert areas.remove(0x58, 0x7F, Cutting.STOPS) == ([], area(0x50, 0x5F))
    assert areas.remove(0x60, 0x6F, Cutting.STOPS) == ([], None)
    assert areas.remove(0x50, 0x7F, Cutting.STOPS).size == 0x20
    assert not len(areas)


def test_type1v2_removes_nothing_if_an_end_would_cut():
    areas = made((0x10, 0x1F), (0x30, 0x3F), (0x50, 0x5F))

    for first, last, cut in ((0x18, 0x5F, 0x10), (0x10, 0x57, 0x50), (0x38, 0x3A, 0x30)):
        removal = areas.remove(first, last, Cutting.REFUSED)
        assert removal.gone == []
        assert removal.cut is not None
        assert removal.cut.first == cut
    assert len(areas) == 3

    assert areas.remove(0, 0x4F, Cutting.REFUSED).size == 0x20
    assert spans(areas) == [(0x50, 0x5F)]


def test_type1_removes_areas_whole_if_they_begin_in_the_range():
    areas = made((0x10, 0x1F), (0x30, 0x3F), (0x50, 0x5F))

    assert areas.remove(0x18, 0x5F, Cutting.WHOLE).gone == []
    assert len(areas) == 3
    assert areas.remove(0x20, 0x50, Cutting.WHOLE).gone == [area(0x30, 0x3F), area(0x50, 0x5F)]
    assert spans(areas) == [(0x10, 0x1F)]


def test_cover_is_all_or_nothing():
    areas = made((0x10, 0x1F), (0x20, 0x2F), (0x40, 0x4F))

    assert areas.cover(0x18, 0x27) == [area(0x18, 0x1F), area(0x20, 0x27)]
    assert areas.cover(0x10, 0x2F) == [area(0x10, 0x1F), area(0x20, 0x2F)]
    for first, last in ((0xF, 0x10), (0x20, 0x30), (0x20, 0x4F), (0x30, 0x3F)):
        assert areas.cover(first, last) is None


def test_how_far_areas_follow_each_other():
    areas = made((0x10, 0x1F), (0x20, 0x2F), (0x40, 0x4F))

    assert areas.covered_up_to(0x18, 0x100) == 0x2F
    assert areas.covered_up_to(0x10, 0x17) == 0x17
    assert areas.covered_up_to(0x8, 0x100) == 0x7
    assert areas.covered_up_to(0x40, 0x4F) == 0x4F


def test_a_split_leaves_both_parts_where_they_led():
    areas = made((0x10, 0x1F))

    areas.split(0x18)
    assert list(areas) == [area(0x10, 0x17), area(0x18, 0x1F)]
    for nowhere in (0x10, 0x18, 0x20, 0x8):
        areas.split(nowhere)
    assert len(areas) == 2


def test_gaps_are_those_that_are_long_enough():
    areas = made((0x10, 0x1F), (0x28, 0x2F), (0x50, 0x5F))

    assert list(areas.gaps(0, 0xFF, 1)) == [(0, 0xF), (0x20, 0x27), (0x30, 0x4F), (0x60, 0xFF)]
    assert list(areas.gaps(0, 0xFF, 0x10)) == [(0, 0xF), (0x30, 0x4F), (0x60, 0xFF)]
    assert list(areas.gaps(0x14, 0x3F, 9)) == [(0x30, 0x3F)]
    assert list(areas.gaps(0x14, 0x1B, 1)) == []
    assert list(areas.gaps(0x60, 0x67, 9)) == []


class Plain:
    """The same as a sorted list."""

    def __init__(self):
        self.areas = []

    def overlapping(self, first, last):
        return [found for found in self.areas if found.first <= last and first <= found.last]

    def add(self, new):
        if self.overlapping(new.first, new.last):
            return False
        self.areas = sorted([*self.areas, new])
        return True

    def remove(self, first, last, cutting):
        hit = self.overlapping(first, last)
        if cutting is Cutting.STOPS:
            ends = [place for place, one in enumerate(hit) if one.first < first or one.last > last]
            hit = hit[: ends[0]] if ends else hit
        elif any(one.first < first or (one.last > last and cutting is Cutting.REFUSED) for one in hit):
            hit = []
        self.areas = [one for one in self.areas if one not in hit]
        return hit

    def split(self, begin):
        [*hit] = [one for one in self.overlapping(begin, begin) if one.first < begin]
        for one in hit:
            self.areas.remove(one)
            self.areas += [one.clipped(one.first, begin - 1), one.clipped(begin, one.last)]
        self.areas.sort()

    def free(self, first, last):
        return [at for at in range(first, last + 1) if not self.overlapping(at, at)]


def check_alike(areas, plain, probe, length):
    """All questions have the same answers."""
    last = probe + length - 1
    assert list(areas) == plain.areas
    assert len(areas) == len(plain.areas)
    assert list(areas.overlapping(probe, last)) == plain.overlapping(probe, last)
    free = plain.free(probe, last)
    gaps = list(areas.gaps(probe, last, 1))
    assert [at for begin, end in gaps for at in range(begin, end + 1)] == free
    assert (areas.cover(probe, last) is None) == bool(free)
    assert areas.covered_up_to(probe, last) == (free[0] - 1 if free else last)
    wide = [(begin, end) for begin, end in areas.gaps(0, 99, 1) if end - begin >= 2]
    assert list(areas.gaps(0, 99, 3)) == wide


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("size", [2, 3])
def test_histories_are_those_of_a_list(seed, size, monkeypatch):
    """With small blocks, so that they come and go."""
    monkeypatch.setattr(module, "BLOCK_AREAS", size)
    chance, areas, plain = random.Random(seed), Areas(), Plain()
    for number in range(120):
        what = chance.choice(("add",) * 8 + ("split", *Cutting))
        first = chance.randrange(70)
        last = first + chance.randrange(4 if what == "add" else 40)
        if what == "add":
            new = area(first, last, 1000 * number, number)
            if plain.add(new):
                areas.add(new)
        elif what == "split":
            areas.split(first)
            plain.split(first)
        else:
            assert areas.remove(first, last, what).gone == plain.remove(first, last, what)
        check_alike(areas, plain, chance.randrange(80), 1 + chance.randrange(30))


def test_a_space_that_is_filled_in_order_has_full_blocks():
    areas = made(*((16 * place, 16 * place + 15) for place in range(3 * BLOCK_AREAS)))

    assert [len(block.firsts) for block in areas._blocks] == [BLOCK_AREAS] * 3


def test_a_hundred_thousand_areas_take_less_than_200_bytes_each():
    areas, page = Areas(), 4096
    order = sorted(range(100_000), key=lambda place: place * 7919 % 100_003)
    for place in order:
        areas.add(area(2 * page * place, 2 * page * place + page - 1, 0x7F0000000000 + page * place))

    size = sum(sys.getsizeof(part) for part in (areas._blocks, areas._heads))
    for block in areas._blocks:
        size += sum(map(sys.getsizeof, (block, block.firsts, block.lasts, block.targets, block.tags)))
    assert size / len(areas) < 100  # tags are shared; 200 are promised
