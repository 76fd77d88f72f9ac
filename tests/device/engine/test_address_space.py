"""Address spaces: narrowing, alignment, and the choice of addresses, against a definition byte by byte."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pviommu.engine import address_space as module
from pviommu.engine.address_space import AddressSpace, Misfit
from pviommu.engine.areas import ByteArea, Cutting

LAST = (1 << 64) - 1
PAGE = 4096
MSI = (0xFEE00000, 0xFEEFFFFF)


def mapped(space, first, length, target=0):
    assert space.check(first, length) is None
    space.areas.add(ByteArea(first, first + length - 1, target, None))


@pytest.fixture
def space():
    return AddressSpace()


def test_a_fresh_space_is_all_of_64_bits_by_the_byte(space):
    assert space.ranges() == ((0, LAST),)
    assert space.alignment == 1
    assert space.check(LAST, 1) is None
    assert space.check(3, 5) is None


def test_owners_narrow_it_and_it_widens_when_they_go(space):
    assert space.reserve("table", [(1 << 48, LAST)]) is None
    assert space.reserve("device", iter([MSI, MSI])) is None
    assert space.ranges() == ((0, 0xFEDFFFFF), (0xFEF00000, 0xFFFFFFFFFFFF))

    assert space.reserve("other", [(0xFEE00000, 0xFEFFFFFF)]) is None
    space.release("device")
    assert space.ranges() == ((0, 0xFEDFFFFF), (0xFF000000, 0xFFFFFFFFFFFF))
    assert space.reserved == ((0xFEE00000, 0xFEFFFFFF), (1 << 48, LAST))
    space.release("other")
    space.release("nobody")
    assert space.ranges() == ((0, 0xFFFFFFFFFFFF),)


def test_an_owner_adds_to_what_it_has(space):
    space.reserve("device", [(0, 9)])
    space.reserve("device", [(20, 29)])

    assert space.reserved == ((0, 9), (20, 29))
    space.release("device")
    assert space.reserved == ()


def test_an_owner_comes_whole_or_not_at_all(space):
    mapped(space, 0x10000, PAGE)
    space.reserve("first", [(0, 0xFF)])

    assert space.reserve("second", [(0x5000, 0x5FFF), (0x10FFF, 0x11FFF)]) == (0x10000, 0x10FFF)
    assert space.reserved == ((0, 0xFF),)

    space.areas.remove(0, LAST, Cutting.STOPS)
    assert space.allow([(0x11F00, 0x12000)]) is None
    assert space.reserve("second", [(0x5000, 0x5FFF), (0x10FFF, 0x11FFF)]) == (0x11F00, 0x11FFF)
    assert space.reserved == ((0, 0xFF),)


def test_what_is_allowed_is_replaced_and_never_reserved(space):
    space.reserve("device", [MSI])
    assert space.allow([(0x1000, 0x1FFF), (0x2000, 0x2FFF)]) is None
    assert space.allowed == ((0x1000, 0x2FFF),)

    assert space.allow([(0x8000, 0x8FFF), (0xFEE80000, LAST)]) == (0xFEE80000, MSI[1])
    assert space.allowed == ((0x1000, 0x2FFF),)
    with pytest.raises(ValueError, match="first must not exceed last"):
        space.allow([(2, 1)])
    assert space.allow([]) is None
    assert space.allowed == ()


def test_one_byte_is_enough_to_be_in_the_way(space):
    space.reserve("device", [(0x1000, 0x1000)])
    mapped(space, 0x2001, 1)

    assert space.check(0xF00, 0x100) is None
    assert space.check(0xF00, 0x101) is Misfit.RESERVED
    assert space.check(0x1001, 0x1000) is None
    assert space.check(0x1001, 0x1001) is Misfit.OCCUPIED
    assert space.align(2) == ByteArea(0x2001, 0x2001, 0, None)


def test_what_is_allowed_binds_only_what_is_chosen(space):
    space.allow([(0x10000, 0x1FFFF)])

    assert space.check(0x50000, PAGE) is None
    assert space.find(PAGE, PAGE) == 0x10000
    assert space.find(0x10000, PAGE) == 0x10000
    assert space.find(0x10001, PAGE) is Misfit.NO_ROOM


def test_the_rank_of_misfits(space):
    space.reserve("device", [(0, 0xFFF), (LAST - 1, LAST)])
    mapped(space, 0x1000, 0x1000)
    space.align(PAGE)

    assert space.check(0x1001, 0) is Misfit.LENGTH
    assert space.check(0x1001, 0x800) is Misfit.LENGTH
    assert space.check(0x801, PAGE) is Misfit.MISALIGNED
    assert space.check(LAST - PAGE + 1, 2 * PAGE) is Misfit.OVERFLOW
    assert space.check(0, 2 * PAGE) is Misfit.RESERVED
    assert space.check(LAST - PAGE + 1, PAGE) is Misfit.RESERVED
    assert space.check(PAGE, PAGE) is Misfit.OCCUPIED
    assert space.check(2 * PAGE, PAGE) is None


@pytest.mark.parametrize(("first", "length", "target"), [(0x800, PAGE, 0), (0, 0x800, 0), (0, PAGE, 0x12345800)])
def test_a_space_is_not_aligned_to_more_than_its_areas_are(space, first, length, target):
    mapped(space, first, length, target)

    assert space.align(0x800) is None
    assert space.align(PAGE) == ByteArea(first, first + length - 1, target, None)
    assert space.alignment == 0x800
    assert space.align(0x800) is None
    assert space.align(1) is None
    assert space.alignment == 1


@pytest.mark.row("space", 49)
def test_chosen_addresses_are_aligned_as_length_and_target_are(space):
    """By the lowest bit of the target, the length rounded up to a power of two, and at most 2 MiB."""
    assert space.find(PAGE, 0x7F0000000000) == PAGE
    assert space.find(3 * PAGE, 0x7F0000000000) == 4 * PAGE
    assert space.find(3 * PAGE, 0x7F0000001000) == PAGE
    assert space.find(1 << 30, 0) == space.find(1 << 30, 1 << 30) == 0x200000
    assert space.find(1, 0x7F0000000000) == PAGE
    assert space.find(4, 0x7F0000000123) == PAGE + 0x123
    assert space.find(PAGE, 0x7F0000000800) == PAGE + 0x800


@pytest.mark.row("space", 49)
def test_the_first_hole_that_is_large_enough_is_chosen(space):
    mapped(space, PAGE, PAGE)
    mapped(space, 3 * PAGE, PAGE)
    space.reserve("device", [(4 * PAGE, 104 * PAGE - 1)])

    assert space.find(PAGE, PAGE) == 2 * PAGE
    assert space.find(2 * PAGE, 2 * PAGE) == 104 * PAGE
    mapped(space, 2 * PAGE, PAGE)
    assert space.find(PAGE, PAGE) == 104 * PAGE


@pytest.mark.row("space", 49)
def test_no_hole_is_large_enough(space):
    space.reserve("device", [(0, 0x1FFFF), (0x21000, LAST)])

    assert space.find(2 * PAGE, PAGE) is Misfit.NO_ROOM
    assert space.find(PAGE, PAGE) == 0x20000
    assert space.find((1 << 63) - 1, 0) is Misfit.OVERFLOW
    assert space.find((1 << 63) - 2, 0) is Misfit.NO_ROOM
    assert space.find(0, 0) is Misfit.LENGTH
    assert space.find(1, 0) == space.find(1, PAGE) == 0x20000
    space.align(PAGE)
    assert space.find(PAGE, 0x800) is Misfit.MISALIGNED
    assert space.find(0x800, 0) is Misfit.LENGTH


def test_neither_the_first_nor_the_last_page_is_chosen(space):
    space.reserve("device", [(PAGE, LAST - PAGE)])

    assert space.find(1, 1) is Misfit.NO_ROOM


def runs(numbers):
    """(first, last) of what follows each other in a set."""
    begins = sorted(at for at in numbers if at - 1 not in numbers)
    return [(at, next(end for end in itertools.count(at) if end + 1 not in numbers)) for at in begins]


def first_fit(chosen, taken, length, step, offset):
    """By the words of the kernel: a window, and then a free range in it, is entered at its first multiple of `step`, in
    which the bits of `offset` are set. One that ends a range is never found, even for one byte.
    """

    def entered(first):
        return -(-first // step) * step | offset

    for first, last in runs(chosen):
        if entered(first) >= last or last - entered(first) < length - 1:
            continue
        for begin, end in runs(set(range(entered(first), last + 1)) - taken):
            if entered(begin) < end and end - entered(begin) >= length - 1:
                return entered(begin)
    return Misfit.NO_ROOM


SMALL = st.integers(0, 40)
SPANS = st.lists(st.builds(lambda first, size: (first, first + size), SMALL, st.integers(0, 12)), max_size=3)


@settings(deadline=None, max_examples=300)
@given(
    areas=SPANS,
    reserved=SPANS,
    allowed=SPANS,
    length=st.integers(1, 12),
    target=st.integers(0, 16),
    alignment=st.sampled_from([1, 2, 4]),
)
def test_choices_are_those_of_a_search_byte_by_byte(areas, reserved, allowed, length, target, alignment):
    """In pages of four bytes, huge ones of eight and addresses of 48: each candidate is tried, from the lowest on."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"PAGE_SIZE": 4, "PAGE_MASK": 3, "HUGE_PAGE_SIZE": 8, "LAST_ADDRESS": 47}.items():
            patch.setattr(module, name, value)
        space = AddressSpace()
        space.alignment = alignment
        for first, last in areas:
            if space.areas.first_in(first, last) is None:
                space.areas.add(ByteArea(first, last, 0, None))
        taken = {at for area in space.areas for at in range(area.first, area.last + 1)}
        for number, (first, last) in enumerate(reserved):
            if space.reserve(number, [(first, last)]) is None:
                taken |= set(range(first, last + 1))
        for at in range(48, 64):
            taken.add(at)
        chosen = set(range(48)) if space.allow(allowed) or not allowed else set()
        chosen |= {at for first, last in space.allowed for at in range(first, last + 1)}

        found = space.find(length, target)

        power = 1 << (length - 1).bit_length()
        step = min(power, target & -target or power, 8)
        if length % alignment:
            assert found is Misfit.LENGTH
        elif step < alignment:
            assert found is Misfit.MISALIGNED
        else:
            assert found == first_fit(chosen & set(range(4, 44)), taken, length, step, target & 3)
