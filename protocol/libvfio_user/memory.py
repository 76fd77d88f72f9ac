"""Guest memory: the ranges that a client has registered, and what of them Python holds."""

from __future__ import annotations

import ctypes
import mmap
import weakref
from dataclasses import dataclass

from .raw import DmaInfo

__all__ = ["DmaRange", "View"]


@dataclass(frozen=True, slots=True)
class DmaRange:
    """A range of guest addresses that the client has registered, in bytes."""

    address: int
    size: int
    pointer: int | None
    """where it is mapped; None if the client gave no descriptor, and memory is reached by messages"""
    is_readable: bool
    is_writable: bool
    page_size: int
    """of the mapping; 0 if there is none"""

    @classmethod
    def of(cls, info: DmaInfo) -> DmaRange:
        """The range that a callback is about."""
        readable, writable = bool(info.prot & mmap.PROT_READ), bool(info.prot & mmap.PROT_WRITE)
        return cls(info.iova.iov_base or 0, info.iova.iov_len, info.vaddr, readable, writable, info.page_size)

    @property
    def is_mapped(self) -> bool:
        """Whether the client gave a descriptor."""
        return self.pointer is not None

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.address + self.size

    def overlaps(self, address: int, size: int) -> bool:
        """Whether it has one of these bytes."""
        return self.address < address + size and address < self.end


class View:
    """Bytes of mapped guest memory, as ``memory``, until the ``with`` ends or the client takes the range away.

    From then on a use of ``memory`` raises ValueError. What was made of it (slices, casts, arrays) must be given up
    earlier.
    """

    def __init__(self, address: int, pointer: int, size: int, is_writable: bool) -> None:
        self.address = address
        self.size = size
        array = (ctypes.c_ubyte * size).from_address(pointer)
        self._array = weakref.ref(array)
        with memoryview(array) as whole, whole.cast("B") as plain:
            self.memory = plain[:] if is_writable else plain.toreadonly()

    def release(self) -> bool:
        """End it. False if something that was made of it is still there, and would reach what is there no more."""
        try:
            self.memory.release()
        except BufferError:
            return False
        return self._array() is None
