"""Whether a running guest uses the memory that its client announced."""

from __future__ import annotations

from collections.abc import Callable, Generator

from ..inputs import InputKind, Inputs, Source
from .mappings import Mapping, Mappings

__all__ = ["PROBED_SIZE", "is_used_by_guest"]

PROBED_SIZE = 1 << 20
"""Bytes of each RAM range that are read to find out whether the guest uses it."""
_ZEROS = bytes(PROBED_SIZE)


def is_used_by_guest(mappings: Mappings, inputs: Inputs, step_ns: int, name: str = "") -> Generator[None, None, bool]:
    """Whether the start of some RAM range is not all zeros, since a running guest has written there long ago; true if
    there is no range at all. Yields each time that ``step_ns`` are over.

    All is zeros if the hypervisor passed files of which it uses private copies. The disk usage of the files does not
    tell: reading a hole through a private map fills it with zeros. The files are read, not their shared maps, so that
    this check does not fill holes either.
    """
    if not mappings:
        return True
    read = inputs.files(Source(InputKind.GUEST_MEMORY, name))
    deadline = inputs.now_ns() + step_ns
    next_start, end, left = 0, -1, 0
    while (mapping := mappings.next_from(next_start)) is not None:  # they may change between steps
        next_start = mapping.address + 1
        if mapping.is_ram:
            if mapping.address != end:
                left = PROBED_SIZE
            end, length = mapping.end, min(left, mapping.size)
            left -= length
            if length and _holds_data(mapping, length, read):
                return True
        if inputs.now_ns() > deadline:
            yield
            deadline = inputs.now_ns() + step_ns
    return False


def _holds_data(mapping: Mapping, length: int, read: Callable[[int, int, int], bytes]) -> bool:
    """Whether there is anything but zeros in the first bytes of a range."""
    if mapping.file is None:
        return False
    try:
        return not _ZEROS.startswith(read(mapping.file.fd, length, mapping.offset))
    except OSError:
        return False
