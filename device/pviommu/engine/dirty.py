"""Which pages of a domain DMA wrote: one bit a page, in 2 MiB blocks of which only those are held that have one.

Reading costs what is dirty, not what is mapped. A bit is set by the translation of a write, as a walker in hardware
sets it: before the write, and also if others that belong to it are refused later.
"""

from collections.abc import Iterator

from .table import INDEX_MASK, LEVEL_BITS


class DirtyPages:
    """Page numbers, as runs of (first, count)."""

    __slots__ = ("_blocks",)

    def __init__(self) -> None:
        self._blocks: dict[int, int] = {}
        """2 MiB block -> mask of its pages, not 0."""

    def mark(self, first: int, last: int) -> None:
        """Pages first..last are dirty."""
        blocks = self._blocks
        for block, mask in _masks(first, last):
            blocks[block] = blocks.get(block, 0) | mask

    def forget(self, first: int, last: int) -> None:
        """They are not, whatever became of them."""
        for block in self._within(first, last):
            rest = self._blocks[block] & ~_mask(block, first, last)
            if rest:
                self._blocks[block] = rest
            else:
                del self._blocks[block]

    def runs(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """(first, count) of the dirty ones among first..last, in order."""
        begin = end = 0
        for block in sorted(self._within(first, last)):
            for page, count in mask_runs(self._blocks[block] & _mask(block, first, last), block << LEVEL_BITS):
                if page != end:
                    if begin < end:
                        yield begin, end - begin
                    begin = page
                end = page + count
        if begin < end:
            yield begin, end - begin

    def _within(self, first: int, last: int) -> list[int]:
        """The blocks that are held, of those that pages first..last are in."""
        begin, end = first >> LEVEL_BITS, last >> LEVEL_BITS
        if end - begin < len(self._blocks):
            return [block for block in range(begin, end + 1) if block in self._blocks]
        return [block for block in self._blocks if begin <= block <= end]


def _masks(first: int, last: int) -> Iterator[tuple[int, int]]:
    for block in range(first >> LEVEL_BITS, (last >> LEVEL_BITS) + 1):
        yield block, _mask(block, first, last)


def _mask(block: int, first: int, last: int) -> int:
    """The pages of a block, which has some of them, that are among first..last."""
    begin = max(first - (block << LEVEL_BITS), 0)
    end = min(last - (block << LEVEL_BITS), INDEX_MASK)
    return (1 << end + 1) - (1 << begin)


def mask_runs(mask: int, base: int) -> Iterator[tuple[int, int]]:
    """(first, count) of each run of bits that are 1, from the lowest on; the lowest bit is `base`."""
    position = 0
    while rest := mask >> position:
        first = position + (rest & -rest).bit_length() - 1
        rest = ~(mask >> first)
        count = (rest & -rest).bit_length() - 1
        yield base + first, count
        position = first + count
