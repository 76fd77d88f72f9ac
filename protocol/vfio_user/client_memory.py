"""The memory that a client has registered, for a server that reaches it by messages (DMA_READ, DMA_WRITE)."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass

from .errors import RequestError
from .framing import Frame
from .messages import Command, DmaAccess, DmaMapFlags

__all__ = ["Buffer", "ClientMemory"]

Buffer = bytearray | memoryview | mmap.mmap


@dataclass(slots=True)
class _File:
    """A duplicate of a descriptor, one for all ranges of the same file."""

    key: tuple[int, int, int]
    fd: int
    ranges: int = 0


@dataclass(frozen=True, slots=True)
class _Range:
    address: int
    size: int
    flags: int
    offset: int
    file: _File | None
    memory: Buffer | None

    @property
    def end(self) -> int:
        return self.address + self.size


class ClientMemory:
    """Ranges by address and size, as the server has taken them.

    Refusals have the errno that QEMU 11.1 answers with: ENODEV where there is no memory, or none that may be accessed
    so, E2BIG for more than a message may carry, EINVAL for a message that is no request, ENOSYS for another command.
    """

    def __init__(self) -> None:
        self._ranges: dict[tuple[int, int], _Range] = {}
        self._files: dict[tuple[int, int, int], _File] = {}

    def __len__(self) -> int:
        return len(self._ranges)

    def __contains__(self, place: tuple[int, int]) -> bool:
        return place in self._ranges

    def add(self, address: int, size: int, flags: int, fd: int | None, offset: int, memory: Buffer | None) -> None:
        """The range of that address and size, instead of the one that was there. ``memory`` is preferred to ``fd``,
        of which a duplicate is kept. Raises OSError."""
        file = None if fd is None or memory is not None else self._file(fd)
        if (address, size) in self._ranges:
            self._drop(address, size)
        if file is not None:
            file.ranges += 1
        self._ranges[address, size] = _Range(address, size, flags, offset, file, memory)

    def remove(self, address: int, size: int) -> None:
        """The range of exactly that place; if there is none, all inside it."""
        if (address, size) in self._ranges:
            self._drop(address, size)
            return
        for place in [place for place in self._ranges if address <= place[0] and sum(place) <= address + size]:
            self._drop(*place)

    def clear(self) -> None:
        """Forget all. May be called again."""
        for place in list(self._ranges):
            self._drop(*place)

    def answer(self, frame: Frame, most: int) -> bytes:
        """Carry a request of the server out, of at most ``most`` bytes of data; what to reply. RequestError if it is
        refused."""
        command = frame.header.command
        if command not in (Command.DMA_READ, Command.DMA_WRITE):
            raise RequestError(errno.ENOSYS, f"command {command}: a server sends DMA_READ and DMA_WRITE only")
        if frame.fds or frame.fds_lost or len(frame.payload) < DmaAccess.SIZE:
            raise RequestError(errno.EINVAL, f"{len(frame.payload)} bytes and {len(frame.fds)} descriptors")
        request = DmaAccess.unpack(frame.payload)
        data = frame.payload[DmaAccess.SIZE :]
        if request.count > most:
            raise RequestError(errno.E2BIG, f"{request.count} bytes: at most {most}")
        if command == Command.DMA_READ:
            return request.pack() + b"".join(self._read(request.address, request.count))
        if len(data) != request.count:
            raise RequestError(errno.EINVAL, f"{len(data)} bytes of data announced as {request.count}")
        self._write(request.address, data)
        return request.pack()

    def _file(self, fd: int) -> _File:
        status = os.fstat(fd)
        key = status.st_dev, status.st_ino, fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        if key not in self._files:
            self._files[key] = _File(key, os.dup(fd))
        return self._files[key]

    def _drop(self, address: int, size: int) -> None:
        file = self._ranges.pop((address, size)).file
        if file is not None:
            file.ranges -= 1
            if not file.ranges:
                os.close(self._files.pop(file.key).fd)

    def _pieces(self, address: int, count: int, access: DmaMapFlags) -> list[tuple[_Range, int, int]]:
        """Each with the place in its range, and its length."""
        pieces: list[tuple[_Range, int, int]] = []
        while count:
            found = next((each for each in self._ranges.values() if each.address <= address < each.end), None)
            if found is None or not found.flags & access or (found.file is None and found.memory is None):
                raise RequestError(errno.ENODEV, f"no memory at {address:#x} for {access.name}")
            length = min(count, found.end - address)
            pieces.append((found, address - found.address, length))
            address, count = address + length, count - length
        return pieces

    def _read(self, address: int, count: int) -> Iterator[bytes]:
        for found, at, length in self._pieces(address, count, DmaMapFlags.READ):
            if found.memory is not None:
                with memoryview(found.memory) as whole, whole.cast("B") as view:
                    yield bytes(view[at : at + length])
            elif found.file is not None:
                try:
                    data = os.pread(found.file.fd, length, found.offset + at)
                except OSError as error:
                    raise RequestError(error.errno or errno.EIO, f"{address:#x}: {error}") from error
                if len(data) != length:
                    raise RequestError(errno.ENODEV, f"the file of {found.address:#x} has no {length} bytes at {at:#x}")
                yield data

    def _write(self, address: int, data: bytes) -> None:
        done = 0
        for found, at, length in self._pieces(address, len(data), DmaMapFlags.WRITE):
            part = data[done : done + length]
            done += length
            if found.memory is not None:
                with memoryview(found.memory) as whole, whole.cast("B") as view:
                    view[at : at + length] = part
            elif found.file is not None:
                try:
                    os.pwrite(found.file.fd, part, found.offset + at)
                except OSError as error:
                    raise RequestError(error.errno or errno.EIO, f"{address:#x}: {error}") from error
