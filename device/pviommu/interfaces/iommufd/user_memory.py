"""Memory of the process that makes requests: where its structures are, and what it maps for DMA."""

from __future__ import annotations

import errno
from bisect import bisect_right
from typing import Protocol

from ...engine import PAGE_SIZE
from .request_error import RequestError

__all__ = ["ADDRESS_LIMIT", "LocalMemory", "UserMemory"]

ADDRESS_LIMIT = 1 << 48
"""Addresses of a process are below."""
_FIRST = 0x7F0000000000
_SPACING = 1 << 21


class UserMemory(Protocol):
    """Addresses of one process, in bytes."""

    def read(self, address: int, length: int) -> bytes:
        """Raises OSError (EFAULT) if a byte of it is not there."""

    def write(self, address: int, data: bytes) -> None:
        """Raises OSError (EFAULT) if a byte of it is not there or cannot be written; then perhaps some were."""

    def holds(self, address: int, length: int, *, writeable: bool) -> bool:
        """Whether all of it is there, and can be written if it must."""


class LocalMemory:
    """Buffers of this process at addresses that it chooses for them: the memory of a Python program.

    Each begins at a multiple of 2 MiB, and between two of them is a gap.
    """

    def __init__(self) -> None:
        self._addresses: list[int] = []
        self._buffers: list[memoryview] = []
        self._next = _FIRST

    def add(self, buffer: bytearray | bytes | memoryview | int, address: int | None = None) -> int:
        """The address of a buffer, or of so many bytes of new memory. Bytes, and views that are read-only, stay so.

        Raises ValueError for an empty one, and for an address where something is or that no process has.
        """
        view = memoryview(bytearray(buffer) if isinstance(buffer, int) else buffer).cast("B")
        at = self._next if address is None else address
        place = bisect_right(self._addresses, at)
        before = self._addresses[place - 1] + len(self._buffers[place - 1]) if place else 0
        behind = self._addresses[place] if place < len(self._addresses) else ADDRESS_LIMIT
        if not len(view) or not before <= at <= behind - len(view):
            raise ValueError(
                f"buffer of {len(view)} bytes at {at:#x}: must not be empty, nor overlap another one,"
                f" nor leave addresses below {ADDRESS_LIMIT:#x}"
            )
        self._addresses.insert(place, at)
        self._buffers.insert(place, view)
        self._next = max(self._next, (at + len(view) + PAGE_SIZE) // _SPACING * _SPACING + _SPACING)
        return at

    def remove(self, address: int) -> None:
        """Take a buffer away. Raises ValueError for an address where none begins."""
        if address not in self._addresses:
            raise ValueError(f"no buffer begins at {address:#x}")
        place = self._addresses.index(address)
        del self._addresses[place], self._buffers[place]

    def read(self, address: int, length: int) -> bytes:
        """See :class:`UserMemory`."""
        return bytes(self._find(address, length))

    def write(self, address: int, data: bytes) -> None:
        """See :class:`UserMemory`."""
        view = self._find(address, len(data))
        if view.readonly:
            raise RequestError(errno.EFAULT, f"write {len(data)} bytes at {address:#x}: that memory is read-only")
        view[:] = data

    def holds(self, address: int, length: int, *, writeable: bool) -> bool:
        """See :class:`UserMemory`."""
        try:
            view = self._find(address, length)
        except RequestError:
            return False
        return not (writeable and view.readonly)

    def _find(self, address: int, length: int) -> memoryview:
        place = bisect_right(self._addresses, address) - 1
        if place >= 0:
            offset = address - self._addresses[place]
            if offset + length <= len(self._buffers[place]):
                return self._buffers[place][offset : offset + length]
        raise RequestError(errno.EFAULT, f"memory at {address:#x}: {length} bytes are not in one buffer")
