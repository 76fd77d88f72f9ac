"""Spans of addresses: (first byte, last byte inclusive), so that the last byte of 64 bits can belong to one.

A set of addresses is a sorted tuple of spans that neither overlap nor touch. `ranges.FrameRanges` is the same for many
ranges of frames that change often; these are for the few of an address space that are reserved or allowed.
"""

from collections.abc import Iterable, Iterator, Sequence

Span = tuple[int, int]
"""First byte and last byte, inclusive."""
LAST_ADDRESS = (1 << 64) - 1


def check_span(first: int, last: int) -> None:
    """Raises ValueError for a span that is backwards or does not fit 64-bit addresses."""
    if not 0 <= first <= last <= LAST_ADDRESS:
        raise ValueError(f"span {first:#x}..{last:#x}: first must not exceed last, and both must be 64-bit addresses")


def merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The set of these spans, which come in any order and may overlap. Raises ValueError as check_span() does."""
    found: list[Span] = []
    for first, last in sorted(spans):
        check_span(first, last)
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(found[-1][1], last)
        else:
            found.append((first, last))
    return tuple(found)


def complement(spans: Iterable[Span], first: int = 0, last: int = LAST_ADDRESS) -> tuple[Span, ...]:
    """What of first..last belongs to none of the spans, as a set. Raises ValueError as check_span() does."""
    check_span(first, last)
    return tuple(_holes(merged(spans), first, last))


def _holes(spans: Sequence[Span], first: int, last: int) -> Iterator[Span]:
    position = first
    for begin, end in spans:
        if begin > last:
            break
        if begin > position:
            yield position, begin - 1
        position = max(position, end + 1)
    if position <= last:
        yield position, last


def intersection(spans: Sequence[Span], first: int, last: int) -> Iterator[Span]:
    """What of first..last belongs to the spans, in order."""
    for begin, end in spans:
        if begin <= last and first <= end:
            yield max(begin, first), min(end, last)
