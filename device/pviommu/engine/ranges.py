"""Sets of frames as sorted ranges: guest RAM, reserved regions."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from pviommu.engine.results import FRAME_LIMIT


class FrameRanges:
    """An unchanging set of frame numbers, kept as merged ranges."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """`ranges` are (first, last inclusive), in any order; touching and overlapping ones are merged.

        Raises ValueError for a range that is backwards or does not fit 64-bit addresses.
        """
        firsts: list[int] = []
        lasts: list[int] = []
        for first, last in sorted(ranges):
            if not 0 <= first <= last < FRAME_LIMIT:
                raise ValueError(
                    f"range {first:#x}..{last:#x}: first must not exceed last,"
                    f" and both must be frames below {FRAME_LIMIT:#x}"
                )
            if lasts and first <= lasts[-1] + 1:
                lasts[-1] = max(lasts[-1], last)
            else:
                firsts.append(first)
                lasts.append(last)
        self._firsts = firsts
        self._lasts = lasts

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._firsts, self._lasts, strict=True)

    def inside(self, frame: int) -> int:
        """Frames from `frame` on that belong to the set without a gap; 0 when `frame` does not."""
        at = bisect_right(self._firsts, frame) - 1
        if at < 0 or self._lasts[at] < frame:
            return 0
        return self._lasts[at] - frame + 1

    def outside(self, frame: int) -> int:
        """Frames from `frame` on that do not belong to the set; 0 when `frame` does."""
        at = bisect_right(self._firsts, frame)
        if at and frame <= self._lasts[at - 1]:
            return 0
        return (self._firsts[at] if at < len(self._firsts) else FRAME_LIMIT) - frame

    def overlap(self, first: int, nr: int) -> Iterator[tuple[int, int]]:
        """(first, count) of what is in this set and among nr frames from `first` on, in order."""
        frame, end = first, first + nr
        while frame < end:
            held = min(self.inside(frame), end - frame)
            if held:
                yield frame, held
            frame += held or self.outside(frame)

    def without(self, limit: int, *others: "FrameRanges") -> Iterator[tuple[int, int]]:
        """(first, count) of what is in this set, below `limit`, and in none of the others, in order."""
        for first, last in self:
            frame, end = first, min(last + 1, limit)
            while frame < end:
                clear = min(other.outside(frame) for other in others)
                if clear:
                    yield frame, min(clear, end - frame)
                frame += clear or max(other.inside(frame) for other in others)
