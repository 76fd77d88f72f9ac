"""Where BARs are, which of two is reached, and when what is written to them arrives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pviommu.dma.windows import MAX_REGISTER_BYTES, Window, Windows

Access = tuple[str, int, bytes | int]


class Bar:
    """A BAR that notes how it is accessed; words of it read as their offset."""

    def __init__(self, first: int, size: int = 0x1000, *, is_memory: bool = False) -> None:
        self.seen: list[Access] = []
        self.window = Window(first, size, is_memory, self._read, self._write)

    def _read(self, offset: int, length: int) -> bytes:
        self.seen.append(("read", offset, length))
        return bytes(range(offset, offset + length))

    def _write(self, offset: int, data: bytes) -> None:
        self.seen.append(("write", offset, data))


def windows_with(*bars: Bar) -> Windows:
    windows = Windows()
    windows.replace(bar.window for bar in bars)
    return windows


def test_an_address_leads_to_its_offset_up_to_the_end_that_was_asked_for_or_the_bars() -> None:
    bar = Bar(0x10000)
    windows = windows_with(bar)

    assert windows.find(0x10010, 0x10020) == (bar.window, 0x10, 0x10)
    assert windows.find(0x10FF0, 0x20000) == (bar.window, 0xFF0, 0x10)
    assert windows.find(0xFFFF, 0x10010) is None
    assert windows.find(0x11000, 0x11001) is None


def test_where_two_overlap_the_earlier_one_is_reached() -> None:
    inner, outer = Bar(0x11000), Bar(0x10000, 0x4000)
    windows = windows_with(inner, outer)

    assert windows.find(0x10800, 0x20000) == (outer.window, 0x800, 0x800)
    assert windows.find(0x11000, 0x20000) == (inner.window, 0, 0x1000)
    assert windows.find(0x12000, 0x20000) == (outer.window, 0x2000, 0x2000)
    assert windows.frames() == [(0x10, 0x10), (0x11, 0x11), (0x12, 0x13)]


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from([1, 2, 4, 16])), max_size=6))
def test_every_frame_leads_to_the_first_bar_that_covers_it(places: list[tuple[int, int]]) -> None:
    bars = [Bar(first << 12, pages << 12) for first, pages in places]
    windows = windows_with(*bars)
    frames = {frame for first, last in windows.frames() for frame in range(first, last + 1)}

    for frame in range(60):
        covering = [
            bar.window for bar, (first, pages) in zip(bars, places, strict=True) if first <= frame < first + pages
        ]
        found = windows.find(frame << 12, (frame << 12) + 8)
        assert (found and found.window) == (covering[0] if covering else None)
        assert (frame in frames) == bool(covering)


def test_memory_is_read_and_written_at_once_and_whole() -> None:
    bar = Bar(0x10000, is_memory=True)
    windows = windows_with(bar)
    place = windows.find(0x10003, 0x1000A)
    assert place is not None

    assert place.read() == bytes(range(3, 10))
    windows.write(place, b"abcdefg")

    assert bar.seen == [("read", 3, 7), ("write", 3, b"abcdefg")]
    assert windows.room() == MAX_REGISTER_BYTES


def test_registers_are_read_in_words_and_what_is_left_of_a_word() -> None:
    bar = Bar(0x10000)
    place = windows_with(bar).find(0x10002, 0x1000D)
    assert place is not None

    assert place.read() == bytes(range(2, 13))
    assert bar.seen == [("read", 2, 2), ("read", 4, 4), ("read", 8, 4), ("read", 12, 1)]


def test_registers_are_written_in_order_when_they_are_delivered_and_once() -> None:
    bar = Bar(0x10000)
    windows = windows_with(bar)
    for start, data in ((0x10006, b"abcdefgh"), (0x10000, b"wxyz")):
        place = windows.find(start, start + len(data))
        assert place is not None
        windows.write(place, data)
    assert (bar.seen, windows.room()) == ([], MAX_REGISTER_BYTES - 12)

    windows.deliver()
    windows.deliver()

    assert bar.seen == [("write", 6, b"ab"), ("write", 8, b"cdef"), ("write", 12, b"gh"), ("write", 0, b"wxyz")]
    assert windows.room() == MAX_REGISTER_BYTES


def test_what_a_delivery_writes_waits_for_the_next_one() -> None:
    windows = Windows()
    seen = []

    def write(offset: int, data: bytes) -> None:
        seen.append(offset)
        place = windows.find(0x10000 + offset + 4, 0x10000 + offset + 8)
        assert place is not None
        windows.write(place, data)

    windows.replace([Window(0x10000, 0x1000, False, lambda _, length: bytes(length), write)])
    first = windows.find(0x10000, 0x10004)
    assert first is not None
    windows.write(first, b"abcd")

    windows.deliver()
    assert seen == [0]
    windows.deliver()
    assert seen == [0, 4]


@pytest.mark.row("driver", 46)
def test_what_waits_for_a_bar_that_goes_away_is_not_written_and_what_moved_in_is_spared() -> None:
    """A reset takes the BAR away; its next driver must not find what the last one had on its way."""
    bar, other, memory = Bar(0x10000), Bar(0x20000), Bar(0x10000, is_memory=True)
    windows = windows_with(bar, other)
    for first in (0x10000, 0x20000):
        place = windows.find(first, first + 8)
        assert place is not None
        windows.write(place, b"abcdefgh")

    assert windows.deliver(lambda: False) is False
    windows.replace([memory.window, other.window])
    assert windows.deliver() is True

    assert bar.seen == [("write", 0, b"abcd")]
    assert memory.seen == []
    assert other.seen == [("write", 0, b"abcd"), ("write", 4, b"efgh")]


@pytest.mark.parametrize("gpa", [0, 0xFFFF_FFFF_FFFF_F000])
def test_without_windows_there_is_nothing(gpa: int) -> None:
    assert Windows().find(gpa, gpa + 1) is None
    assert Windows().frames() == []
