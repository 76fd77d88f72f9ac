"""Memory of the process that makes requests: where its structures are, and what it maps for DMA; files in memory."""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator
from typing import NamedTuple, Protocol, TypeVar

from wire_layout import Record

from ...engine import PAGE_SIZE
from .request_error import RequestError

__all__ = [
    "ADDRESS_LIMIT",
    "FileMemory",
    "LocalMemory",
    "Place",
    "UserArray",
    "UserData",
    "UserMemory",
    "located",
    "read_structure",
    "write_back",
]

R = TypeVar("R", bound=Record)

ADDRESS_LIMIT = 1 << 48
"""Addresses of a process are below."""
_FIRST = 0x7F0000000000
_SPACING = 1 << 21
_CHUNK = 1 << 16


class UserMemory(Hashable, Protocol):
    """Addresses of one process, in bytes. Two are the same only if they are one object."""

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


class FileMemory:
    """A file in memory, which a program maps for DMA by its descriptor: bytes from 0 on. This one is of a buffer.

    As an open file it knows no requests.
    """

    is_device = False
    """Whether it is memory of a device (dma-buf), which is not accounted to a process."""

    def __init__(self, buffer: bytearray | memoryview) -> None:
        self.buffer = memoryview(buffer).cast("B")

    def read(self, address: int, length: int) -> bytes:
        """See :class:`UserMemory`."""
        return bytes(self._find(address, length))

    def write(self, address: int, data: bytes) -> None:
        """See :class:`UserMemory`."""
        self._find(address, len(data))[:] = data

    def holds(self, address: int, length: int, *, writeable: bool) -> bool:
        """See :class:`UserMemory`."""
        return address + length <= len(self.buffer) and not (writeable and self.buffer.readonly)

    def check_mapping(self, start: int, length: int) -> None:
        """Before such bytes are mapped in an IOAS, whether or not a page table has them yet. Raises OSError."""

    def ioctl(self, process: object, request: int, argument: int) -> int:
        """Raises OSError (ENOTTY)."""
        raise RequestError(errno.ENOTTY, f"request {request:#x} of a file in memory: it has none")

    def close(self) -> None:
        """What is mapped stays."""

    def _find(self, address: int, length: int) -> memoryview:
        if not self.holds(address, length, writeable=False):
            raise RequestError(errno.EFAULT, f"file in memory: {address:#x}+{length:#x} is beyond its end")
        return self.buffer[address : address + length]


class Place(NamedTuple):
    """Bytes that are the same memory wherever ``of`` and ``offset`` are equal."""

    of: Hashable
    offset: int
    length: int


def located(memory: UserMemory, address: int, length: int) -> list[Place]:
    """Where memory really is: parts of it may be shared with files, or with other processes.

    A memory that knows more than its addresses has a method ``located``. Raises OSError (EFAULT).
    """
    locate = getattr(memory, "located", None)
    if locate is not None:
        found: list[Place] = locate(address, length)
        return found
    if not memory.holds(address, length, writeable=False):
        raise RequestError(errno.EFAULT, f"memory at {address:#x}+{length:#x}: not there")
    return [Place(memory, address, length)]


def read_structure(memory: UserMemory, address: int, size: int, known: int) -> bytes:
    """``known`` bytes of a structure of which a caller has ``size``: what it leaves out is 0, and what it has more must
    be 0. Raises OSError: EFAULT, E2BIG.
    """
    if size == known:
        return memory.read(address, size)
    for offset in range(known, size, _CHUNK):
        if memory.read(address + offset, min(_CHUNK, size - offset)).strip(b"\0"):
            raise RequestError(errno.E2BIG, f"structure of {size} bytes: only {known} are known, and others are not 0")
    data = memory.read(address, size if size < known else known)
    return data if len(data) == known else data.ljust(known, b"\0")


def write_back(memory: UserMemory, address: int, data: bytes) -> None:
    """Write the structure of a request back, as the last thing that it does: nothing is undone if that fails.

    A memory that leaves it to whoever waits for the answer, who then fails with EFAULT, has a method ``write_back``.
    Raises OSError (EFAULT).
    """
    write: Callable[[int, bytes], None] = getattr(memory, "write_back", memory.write)
    write(address, data)


class UserData(NamedTuple):
    """Data of a kind of IOMMU beside a request."""

    kind: int
    """What it is; 0: there is none."""
    memory: UserMemory
    address: int
    length: int

    def read(self, record: type[R], last: str) -> R:
        """As this structure, of which a caller must bring the fields up to ``last``. What is left out is 0.

        Raises OSError: EINVAL for less, or for more than the structure; EFAULT.
        """
        return _read_part(record, last, self.memory, self.address, self.length)


class UserArray:
    """Entries beside a request, which are carried out one after the other."""

    def __init__(self, kind: int, memory: UserMemory, address: int, entry_length: int, number: int) -> None:
        self.kind = kind
        """What they are."""
        self.number = number
        self.done = 0
        """How many were carried out."""
        self._memory = memory
        self._address = address
        self._length = entry_length

    def check_kind(self, kind: int) -> None:
        """Raises OSError (EINVAL) if they are something else."""
        if self.kind != kind:
            raise RequestError(errno.EINVAL, f"entries of type {self.kind:#x}: must be {kind:#x}")

    def each(self, record: type[R], last: str) -> Iterator[R]:
        """One after the other, as UserData.read(); one is done when the next one is asked for."""
        for number in range(self.number):
            yield _read_part(record, last, self._memory, self._address + number * self._length, self._length)
            self.done += 1

    def all(self, record: type[R]) -> list[R]:
        """All of them, before any is carried out; entries may be longer, if what is more is 0.

        Raises OSError: EFAULT, E2BIG.
        """
        size = record.SIZE
        entries: list[R] = []
        for number in range(self.number):  # all of them may be 2 GiB
            data = self._memory.read(self._address + number * self._length, self._length)
            if data[size:].strip(b"\0"):
                text = f"entries of {self._length} bytes: only {size} are known, and others not 0"
                raise RequestError(errno.E2BIG, text)
            entries.append(record.unpack(data[:size].ljust(size, b"\0")))
        return entries


def _read_part(record: type[R], last: str, memory: UserMemory, address: int, length: int) -> R:
    field = record.field_named(last)
    least = field.offset + field.size
    if not least <= length <= record.SIZE:
        raise RequestError(errno.EINVAL, f"{record.__name__} of {length} bytes: must be {least}..{record.SIZE}")
    return record.unpack(memory.read(address, length).ljust(record.SIZE, b"\0"))
