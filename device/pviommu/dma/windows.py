"""BARs as targets of DMA: peer-to-peer between the functions of one machine.

A :class:`Window` is a BAR while its address decoding is on. Memory that a function shares with the guest is read and
written at once. Registers are read at once, word by word, but written only after the step: writes of PCI Express are
posted too, and so no register handler runs inside the step of a function, whose own queue or reset it might affect.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Iterable
from typing import NamedTuple

from vfio_user import Steps

from ..engine.results import PAGE_SHIFT

__all__ = ["MAX_REGISTER_BYTES", "Place", "Window", "Windows"]

WORD = 4
MAX_REGISTER_BYTES = 4096
"""Bytes of registers that one request may read, and that may wait to be written. Each word costs as much as a page of
RAM, and a request may lead to one page a thousand times."""


class Window(NamedTuple):
    """``size`` bytes from GPA ``first`` on that belong to a BAR."""

    first: int
    size: int
    is_memory: bool
    """whether it is memory, of which any bytes can be accessed at once; otherwise registers"""
    read: Callable[[int, int], bytes]
    """offset, bytes"""
    write: Callable[[int, bytes], Steps | None]
    """offset, data; returns the remaining steps"""


class _Part(NamedTuple):
    """The part of a window that no other one covers."""

    first: int
    end: int
    window: Window


class Place(NamedTuple):
    """Where an address leads, and for how many bytes."""

    window: Window
    offset: int
    length: int

    def read(self) -> bytes:
        """The bytes. Registers have aligned whole words only; anything else reads as 0."""
        window, offset, length = self
        if window.is_memory:
            return window.read(offset, length)
        return b"".join(window.read(at, size) for at, size in _words(offset, length))


class Windows:
    """The windows of one machine."""

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self._posted: list[tuple[Place, bytes]] = []
        self._posted_bytes = 0
        self._delivery: Steps | None = None

    def replace(self, windows: Iterable[Window]) -> None:
        """Replace the windows. Where two overlap, the earlier one is reached."""
        self._parts = []
        for window in windows:
            self._add(window)

    def _add(self, window: Window) -> None:
        position, end = window.first, window.first + window.size
        clear = []
        for part in self._parts[self._place(position) :]:
            if part.first >= end:
                break
            if position < part.first:
                clear.append(_Part(position, part.first, window))
            position = max(position, part.end)
        if position < end:
            clear.append(_Part(position, end, window))
        for part in clear:
            insort(self._parts, part, key=_first)

    def _place(self, gpa: int) -> int:
        """The index of the first part that ends after ``gpa``."""
        place = bisect_right(self._parts, gpa, key=_first)
        return place - 1 if place and self._parts[place - 1].end > gpa else place

    def frames(self) -> list[tuple[int, int]]:
        """(first frame, last frame inclusive) of each part."""
        return [(part.first >> PAGE_SHIFT, (part.end - 1) >> PAGE_SHIFT) for part in self._parts]

    def find(self, gpa: int, end: int) -> Place | None:
        """What is at ``gpa``, up to ``end`` at most; None if there is no window."""
        place = self._place(gpa)
        if place == len(self._parts) or self._parts[place].first > gpa:
            return None
        part = self._parts[place]
        return Place(part.window, gpa - part.window.first, min(end, part.end) - gpa)

    # -- writing ----------------------------------------------------------------------------------------------------

    def room(self) -> int:
        """Bytes of registers that :meth:`write` still takes before :meth:`deliver`."""
        return MAX_REGISTER_BYTES - self._posted_bytes

    def write(self, place: Place, data: bytes) -> None:
        """Write ``data``; registers at the next :meth:`deliver`. The caller has checked that there is room."""
        if place.window.is_memory:
            place.window.write(place.offset, data)
        else:
            self._posted.append((place, data))
            self._posted_bytes += len(data)

    def forget(self) -> None:
        """Nothing was posted."""
        self._posted, self._posted_bytes, self._delivery = [], 0, None

    @property
    def is_waiting(self) -> bool:
        """Whether something is left for :meth:`deliver`: register handlers may post, too."""
        return bool(self._posted) or self._delivery is not None

    def deliver(self, may_go_on: Callable[[], bool] = lambda: True) -> bool:
        """Write what was posted, in order; parts that are not a whole aligned word, or whose registers are gone, change
        nothing.

        ``may_go_on`` is called after each word. Returns whether everything is written; the rest is left for the next
        call, before which no endpoint may write.
        """
        if self._delivery is None:
            if not self._posted:
                return True
            posted, self._posted, self._posted_bytes = self._posted, [], 0
            self._delivery = self._write_words(posted)
        for _ in self._delivery:
            if not may_go_on():
                return False
        self._delivery = None
        return True

    def _write_words(self, posted: list[tuple[Place, bytes]]) -> Steps:
        for (window, offset, length), data in posted:
            for at, size in _words(offset, length):
                # a reset or a new client since then has removed the BAR, and must not see earlier writes
                place = self.find(window.first + at, window.first + at + size)
                if place is None or place.window.is_memory or place.length < size:
                    continue
                steps = place.window.write(place.offset, data[at - offset : at - offset + size])
                if steps is not None:
                    yield from steps
                yield


def _first(part: _Part) -> int:
    return part.first


def _words(offset: int, length: int) -> Iterable[tuple[int, int]]:
    """(offset, bytes) of the pieces into which word boundaries cut a range."""
    end = offset + length
    while offset < end:
        size = min(WORD - offset % WORD, end - offset)
        yield offset, size
        offset += size
