"""Bytes of a fuzzer become numbers and pieces; and the other way round, for the corpus.

Unlike atheris' own provider it takes everything from the front in a fixed layout, so that a seed can be written by
hand and a crashing input read.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["Feed"]

_T = TypeVar("_T")
_FORMAT = {1: struct.Struct("<B"), 2: struct.Struct("<H"), 4: struct.Struct("<I"), 8: struct.Struct("<Q")}


class Feed:
    """Takes ``data`` apart from the front. Past its end there are zeros, without end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        """At most ``size`` bytes, fewer at the end."""
        piece = self._data[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))

    def _number(self, size: int) -> int:
        number: int = _FORMAT[size].unpack(self.take(size).ljust(size, b"\0"))[0]
        return number

    def u8(self) -> int:
        return self._number(1)

    def u16(self) -> int:
        return self._number(2)

    def u32(self) -> int:
        return self._number(4)

    def u64(self) -> int:
        return self._number(8)

    def pick(self, choices: Sequence[_T]) -> _T:
        """One of ``choices`` (256 at most), by one byte."""
        return choices[self.u8() % len(choices)]
