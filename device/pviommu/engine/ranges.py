"""Sets of frames as sorted ranges: guest RAM, reserved regions."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from .frames import FRAME_LIMIT

BOUND = "Q"
"""Type code of a bound."""


class FrameRanges:
    """A set of frame numbers, kept as merged ranges: the frame that begins one, the frame after its end, and so on.

    The bounds rise strictly, so the place of a frame among them tells by its parity whether the frame is in the set.
    A change costs two searches and the move of what follows, whatever the number of ranges.
    """

    __slots__ = ("bounds",)

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """`ranges` are (first, last inclusive), in any order; touching and overlapping ones are merged.

        Raises ValueError for a range that is backwards or does not fit 64-bit addresses.
        """
        bounds: list[int] = []
        for first, last in sorted(ranges):
            _check(first, last + 1)
            if bounds and first <= bounds[-1]:
                bounds[-1] = max(bounds[-1], last + 1)
            else:
                bounds += (first, last + 1)
        self.bounds = array(BOUND, bounds)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(first, last inclusive) of each range."""
        return zip(self.bounds[::2], (end - 1 for end in self.bounds[1::2]), strict=True)

    def spans(self) -> Iterator[tuple[int, int]]:
        """(first, count) of each range."""
        for at in range(0, len(self.bounds), 2):
            yield self.bounds[at], self.bounds[at + 1] - self.bounds[at]

    def __bool__(self) -> bool:
        return bool(self.bounds)

    # Changes

    def add(self, first: int, nr: int) -> None:
        """The nr frames from `first` on belong to the set. Raises ValueError as the constructor does."""
        _check(first, first + nr)
        self.replace(first, nr, array(BOUND, (first, first + nr)))

    def remove(self, first: int, nr: int) -> None:
        """They do not belong to it. Raises ValueError as the constructor does."""
        _check(first, first + nr)
        self.replace(first, nr, array(BOUND))

    def replace(self, first: int, nr: int, inside: array[int]) -> None:
        """Of the nr frames from `first` on those belong to the set that are in `inside`, as `within` gives them."""
        end = first + nr
        at, following = bisect_left(self.bounds, first), bisect_right(self.bounds, end)
        if at % 2:
            inside = _toggled(array(BOUND, (first,)), inside)
        if following % 2:
            inside = _toggled(inside, array(BOUND, (end,)))
        self.bounds[at:following] = inside

    # Questions

    def within(self, first: int, nr: int) -> array[int]:
        """The bounds of what is in the set and among nr frames from `first` on."""
        end = first + nr
        at, following = bisect_right(self.bounds, first), bisect_left(self.bounds, end)
        found = self.bounds[at:following]
        if at % 2:
            found.insert(0, first)
        if following % 2:
            found.append(end)
        return found

    def inside(self, frame: int) -> int:
        """Frames from `frame` on that belong to the set without a gap; 0 when `frame` does not."""
        at = bisect_right(self.bounds, frame)
        return self.bounds[at] - frame if at % 2 else 0

    def outside(self, frame: int) -> int:
        """Frames from `frame` on that do not belong to the set; 0 when `frame` does."""
        at = bisect_right(self.bounds, frame)
        if at % 2:
            return 0
        return (self.bounds[at] if at < len(self.bounds) else FRAME_LIMIT) - frame

    def overlap(self, first: int, nr: int) -> Iterator[tuple[int, int]]:
        """(first, count) of what is in this set and among nr frames from `first` on, in order."""
        found = FrameRanges()
        found.bounds = self.within(first, nr)
        yield from found.spans()

    def without(self, limit: int, *others: FrameRanges) -> Iterator[tuple[int, int]]:
        """(first, count) of what is in this set, below `limit`, and in none of the others, in order."""
        for first, last in self:
            frame, end = first, min(last + 1, limit)
            while frame < end:
                clear = min(other.outside(frame) for other in others)
                if clear:
                    yield frame, min(clear, end - frame)
                frame += clear or max(other.inside(frame) for other in others)


def _check(first: int, end: int) -> None:
    if not 0 <= first < end <= FRAME_LIMIT:
        raise ValueError(
            f"range {first:#x}..{end - 1:#x}: first must not exceed last,"
            f" and both must be frames below {FRAME_LIMIT:#x}"
        )


def _toggled(left: array[int], right: array[int]) -> array[int]:
    """Bounds one after the other. A range that ends where the next one begins goes on: both bounds vanish."""
    if left and right and left[-1] == right[0]:
        return left[:-1] + right[1:]
    return left + right
