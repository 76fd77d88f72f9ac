"""What a client may map."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Sequence

from vfio_user import RequestError

from ..engine.results import PAGE_SIZE
from .mappings import Mapping, Mappings, in_words
from .memory_file import MOST_FILES, PER_FILE, MemoryFile

__all__ = ["ForeignMemoryError", "MapPolicy"]

MAX_MAPPINGS = 65535
"""Ranges that one connection may have, as announced to the client."""
MAX_MAPPING_SIZE = 8 << 40


class ForeignMemoryError(RequestError):
    """A map of other memory than another function of this machine has there: its client is of another machine."""


class MapPolicy:
    """The rules for the ranges of one connection."""

    def __init__(self, mappings: Mappings) -> None:
        self._mappings = mappings
        self._neighbours: list[Mappings] = []
        self.max_files = MOST_FILES
        """files in which ranges may lie at a time; ranges of a file that is known already cost nothing"""
        self._ranges_in: Counter[MemoryFile] = Counter()
        """ranges by their file"""

    def belongs_with(self, other: MapPolicy) -> None:
        """Both are about one guest's memory: neither may map a GPA to something else than the other does."""
        self._neighbours.append(other._mappings)
        other._neighbours.append(self._mappings)

    def admits(self, new: Mapping) -> bool:
        """Whether ``new`` is to be added; False if it is there already. Raises :class:`vfio_user.RequestError` if it
        cannot be added.
        """
        if new.size > MAX_MAPPING_SIZE:
            raise RequestError(errno.ENOSPC, f"{in_words(new)}: larger than 8 TiB")
        if (new.address | new.size | new.offset) % PAGE_SIZE:
            raise RequestError(errno.EINVAL, f"{in_words(new)} offset {new.offset:#x}: not a multiple of 4096")
        overlapping = self._mappings.overlapping(new.address, new.size)
        if new.file is not None and new.offset + new.size > new.file.size:
            if new in overlapping:  # the file has shrunk since, which undoes no map
                return False
            text = f"{in_words(new)} offset {new.offset:#x}: past the end of a file of {new.file.size} bytes"
            raise RequestError(errno.EINVAL, text)
        for old in overlapping:
            if old == new:
                return False
            raise RequestError(errno.EEXIST, f"{in_words(new)}: overlaps {in_words(old)}")
        if len(self._mappings) >= MAX_MAPPINGS:
            raise RequestError(errno.ENOSPC, f"{in_words(new)}: {MAX_MAPPINGS} ranges are mapped already")
        if new.file is not None:
            self._check_file(new, new.file)
        return True

    def _check_file(self, new: Mapping, file: MemoryFile) -> None:
        if file not in self._ranges_in and len(self._ranges_in) >= self.max_files:
            text = f"{in_words(new)}: its file is one too many: this client has {self.max_files} already"
            raise RequestError(errno.EMFILE, text)
        if new.is_ram and file.has_outgrown:
            held = sum(file.descriptors for file in self._ranges_in)
            if held >= PER_FILE * self.max_files:
                text = f"{in_words(new)}: its file has grown, and this client has {held} descriptors in use already"
                raise RequestError(errno.EMFILE, text)
        for neighbour in self._neighbours:
            for other in neighbour.overlapping(new.address, new.size):
                if other.file and new.backing != other.backing:
                    text = f"{in_words(new)}: the client of another function of this machine has other memory there"
                    raise ForeignMemoryError(errno.EINVAL, text)

    def added(self, file: MemoryFile) -> None:
        """A range of ``file`` was added."""
        self._ranges_in[file] += 1

    def removed(self, gone: Sequence[Mapping]) -> dict[MemoryFile, int]:
        """Ranges went: how many, by their file."""
        ranges_in: dict[MemoryFile, int] = {}
        for mapping in gone:
            if mapping.file is not None:
                ranges_in[mapping.file] = ranges_in.get(mapping.file, 0) + 1
        for file, ranges in ranges_in.items():
            self._ranges_in[file] -= ranges
            if not self._ranges_in[file]:
                del self._ranges_in[file]
        return ranges_in
