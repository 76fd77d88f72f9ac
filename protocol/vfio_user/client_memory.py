"""The memory that a client has registered, for a server that reaches it by messages (DMA_READ, DMA_WRITE)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from .errors import RequestError
from .framing import Frame
from .messages import Command, DmaAccess, DmaMapFlags

__all__ = ["Buffer", "ClientMemory", "Range", "unusable"]

Buffer = bytearray | memoryview | mmap.mmap


@dataclass(slots=True)
class _File:
    """A duplicate of a descriptor, one for all ranges of the same file."""

    key: tuple[int, int, int]
    fd: int
    ranges: int = 0

    def check_end(self, end: int) -> None:
        """Raise ValueError if a write to ``end`` would make it longer."""
        status = os.fstat(self.fd)
        if stat.S_ISREG(status.st_mode) and status.st_size < end:
            raise ValueError(f"the file has {status.st_size:#x} bytes, not {end:#x}")


@dataclass(frozen=True, slots=True)
class Range:
    """What DMA_MAP says of a range, and what there is of it here: a file, a buffer, or neither."""

    address: int
    size: int
    flags: int
    offset: int
    file: _File | None
    memory: Buffer | None

    @property
    def end(self) -> int:
        return self.address + self.size


def unusable(memory: Buffer, size: int, flags: int) -> str:
    """Why ``memory`` cannot be ``size`` bytes that are accessed as ``flags`` say; empty if it can."""
    with memoryview(memory) as view:
        if view.nbytes < size:
            return f"has {view.nbytes:#x} bytes"
        if not view.c_contiguous:
            return "is not contiguous"
        return "is read-only: map it without WRITE" if view.readonly and flags & DmaMapFlags.WRITE else ""


class ClientMemory:
    """Ranges by address and size, as the server has taken them.

    Refusals have the errno that QEMU 11.1 answers with: ENODEV where there is no memory, or none that may be accessed
    so, E2BIG for more than a message may carry, EINVAL for a message that is no request, ENOSYS for another command.
    """

    def __init__(self) -> None:
        self._ranges: dict[tuple[int, int], Range] = {}
        self._files: dict[tuple[int, int, int], _File] = {}

    def __len__(self) -> int:
        return len(self._ranges)

    def __contains__(self, place: tuple[int, int]) -> bool:
        return place in self._ranges

    def prepare(self, address: int, size: int, flags: int, fd: int | None, offset: int, memory: Buffer | None) -> Range:
        """A range to :meth:`add`, or to :meth:`drop`. ``memory`` is preferred to ``fd``, of which a duplicate is kept.
        Raises OSError."""
        file = None if fd is None or memory is not None else self._file(fd)
        return Range(address, size, flags, offset, file, memory)

    def add(self, prepared: Range) -> None:
        """It is there now, instead of one of the same place."""
        place = prepared.address, prepared.size
        if place in self._ranges:
            self.drop(self._ranges[place])
        self._ranges[place] = prepared

    def drop(self, gone: Range) -> None:
        """Let go what was kept for it."""
        if gone.file is not None:
            gone.file.ranges -= 1
            if not gone.file.ranges:
                os.close(self._files.pop(gone.file.key).fd)

    def remove(self, address: int, size: int) -> None:
        """The range of exactly that place; if there is none, all inside it."""
        places = [(address, size)]
        if places[0] not in self._ranges:
            places = [place for place in self._ranges if address <= place[0] and sum(place) <= address + size]
        for place in places:
            self.drop(self._ranges.pop(place))

    def clear(self) -> None:
        """Forget all. May be called again."""
        while self._ranges:
            self.drop(self._ranges.popitem()[1])

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
        self._files[key].ranges += 1
        return self._files[key]

    def _pieces(self, address: int, count: int, access: DmaMapFlags) -> list[tuple[Range, int, int]]:
        """Each with the place in its range, and its length."""
        pieces: list[tuple[Range, int, int]] = []
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
                with _refusing(found), memoryview(found.memory) as whole, whole.cast("B") as view:
                    data = bytes(view[at : at + length])
            elif found.file is not None:
                with _refusing(found):
                    data = os.pread(found.file.fd, length, found.offset + at)
            if len(data) != length:
                raise RequestError(errno.ENODEV, f"the memory of {found.address:#x} has no {length} bytes at {at:#x}")
            yield data

    def _write(self, address: int, data: bytes) -> None:
        done = 0
        for found, at, length in self._pieces(address, len(data), DmaMapFlags.WRITE):
            part = data[done : done + length]
            done += length
            if found.memory is not None:
                with _refusing(found), memoryview(found.memory) as whole, whole.cast("B") as view:
                    view[at : at + length] = part
            elif found.file is not None:
                with _refusing(found):
                    found.file.check_end(found.offset + at + length)
                    os.pwrite(found.file.fd, part, found.offset + at)


@contextlib.contextmanager
def _refusing(found: Range) -> Iterator[None]:
    """Refuse what the system refuses, or what a buffer that was closed or has shrunk does."""
    try:
        yield
    except OSError as error:
        raise RequestError(error.errno or errno.EIO, f"memory of {found.address:#x}: {error}") from error
    except ValueError as error:
        raise RequestError(errno.ENODEV, f"memory of {found.address:#x}: {error}") from error
