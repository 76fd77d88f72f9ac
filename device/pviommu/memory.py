"""Guest memory: what DMA_MAP brought, and nothing else.

A :class:`GuestMemory` belongs to one connection. It holds the ranges of guest physical addresses (GPAs) that
the client announced and gives access to those that came with a file descriptor. Ranges without one (ROMs, BARs
of other devices) are remembered, because they must be unmapped exactly as they were mapped, but they cannot be
reached.

Beside it, DMA of an endpoint reaches what :attr:`GuestMemory.windows` has: BARs of its machine's functions.
"""

from __future__ import annotations

import errno
import logging
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from vfio_user import DmaMapping, RequestError

from .engine.results import PackedRuns
from .inputs import Inputs
from .memory_file import MemoryFile, is_writable
from .windows import MAX_REGISTER_BYTES, Place, Windows

__all__ = ["AbortedAccessError", "GuestMemory", "GuestMemoryError", "Mapping"]

log = logging.getLogger(__name__)

PAGE_SIZE = 4096
MAX_MAPPINGS = 65535
"""Ranges that one connection may have, as announced to the client."""
MAX_MAPPING_SIZE = 8 << 40
PROBED_SIZE = 1 << 20
"""Bytes of each RAM range that are looked at to tell whether the guest uses it."""
_ZEROS = bytes(PROBED_SIZE)


class GuestMemoryError(Exception):
    """An access that guest memory cannot serve: ``gpa`` is the first address concerned."""

    def __init__(self, gpa: int, text: str) -> None:
        super().__init__(f"GPA {gpa:#x}: {text}")
        self.gpa = gpa


class AbortedAccessError(GuestMemoryError):
    """An access that the BAR which it leads to does not allow."""


@dataclass(frozen=True)
class Mapping:
    """One DMA_MAP: ``size`` bytes at GPA ``address`` lie at ``offset`` of ``file``, or nowhere reachable."""

    address: int
    size: int
    offset: int
    readable: bool
    writable: bool
    file: MemoryFile | None

    @property
    def end(self) -> int:
        """The first GPA after the range."""
        return self.address + self.size

    @property
    def is_ram(self) -> bool:
        """Whether DMA may both read and write it directly."""
        return self.file is not None and self.file.writable and self.readable and self.writable

    @property
    def backing(self) -> tuple[tuple[int, int], int] | None:
        """The file and where in it GPA 0 would be: equal for overlapping ranges of one guest's memory."""
        return None if self.file is None else (self.file.key, self.offset - self.address)


class _Piece(NamedTuple):
    """A part of an access that lies in one range: ``length`` bytes at ``offset`` of ``file``, which are at ``gpa``."""

    gpa: int
    file: MemoryFile
    offset: int
    length: int


class _PeerPiece(NamedTuple):
    """A part of an access that lies in a BAR: ``length`` bytes, which are at ``gpa``."""

    gpa: int
    place: Place
    length: int


class _Reached(NamedTuple):
    """A range that was accessed last: its first and its end GPA, the bytes of its file, and where GPA 0 would be."""

    first: int
    end: int
    view: memoryview
    origin: int


_NOWHERE = _Reached(0, 0, memoryview(b""), 0)


class Copier(Protocol):
    """What copies requests of many runs, as long as they stay in files that are mapped."""

    def set(self, pieces: Iterable[tuple[int, memoryview]]) -> None:
        """What is mapped, in order: GPA and bytes. The views stay valid until the next call."""

    def has(self, runs: PackedRuns) -> bool: ...
    def read(self, runs: PackedRuns) -> bytes | None: ...
    def write(self, runs: PackedRuns, data: bytes | bytearray | memoryview) -> bool: ...


class GuestMemory:
    """The guest memory of one connection. ``changed`` is called after each change of what is RAM."""

    def __init__(self, inputs: Inputs, changed: Callable[[], None] = lambda: None) -> None:
        self._inputs = inputs
        self.changed = changed
        self._starts: list[int] = []
        self._mappings: list[Mapping] = []
        self._files: dict[tuple[tuple[int, int], bool], MemoryFile] = {}
        """by key, and whether opened for writing"""
        self._neighbours: list[GuestMemory] = []
        self.copier: Copier | None = None
        """copies without passing the inputs; none has to"""
        self._copier_knows = False
        self._last: _Reached = _NOWHERE
        self.windows: Windows | None = None
        """what is reached where there is no RAM"""

    def belongs_with(self, other: GuestMemory) -> None:
        """Both are views of one guest's memory: neither may map a GPA to something else than the other does."""
        self._neighbours.append(other)
        other._neighbours.append(self)

    def _changed_maps(self) -> None:
        """Forget what was derived from the ranges: one came or goes."""
        self._copier_knows = False
        self._last = _NOWHERE

    # -- what the client says ---------------------------------------------------------------------------------------

    def map(self, request: DmaMapping) -> None:
        """DMA_MAP. Takes ownership of ``request.fd``, also when it raises.

        The identical range again is a success; any other overlap is EEXIST. Raises :class:`vfio_user.RequestError`.
        """
        try:
            file = self._open(request)
        except OSError as error:
            raise RequestError(
                errno.EINVAL, f"{_range(request)}: the file descriptor is not memory: {error}"
            ) from error
        try:
            mapping = Mapping(request.address, request.size, request.offset, request.readable, request.writable, file)
            if self._check(mapping):
                return
            place = bisect_right(self._starts, mapping.address)
            self._starts.insert(place, mapping.address)
            self._mappings.insert(place, mapping)
            self._changed_maps()
            if file is not None:
                file.users += 1
        finally:
            self._drop_unused(file)
        if mapping.is_ram:
            self.changed()

    def _open(self, request: DmaMapping) -> MemoryFile | None:
        if request.fd is None:
            return None
        status = os.fstat(request.fd)
        known = self._files.get(((status.st_dev, status.st_ino), is_writable(request.fd)))
        if known is not None:
            os.close(request.fd)
            return known
        try:
            file = MemoryFile(request.fd)
        except OSError:
            os.close(request.fd)
            raise
        self._files[file.key, file.writable] = file
        return file

    def _check(self, new: Mapping) -> bool:
        """Whether ``new`` is there already; raises :class:`vfio_user.RequestError` if it cannot be added."""
        if new.size > MAX_MAPPING_SIZE:
            raise RequestError(errno.ENOSPC, f"{_range(new)}: larger than 8 TiB")
        if (new.address | new.size | new.offset) % PAGE_SIZE:
            raise RequestError(errno.EINVAL, f"{_range(new)} offset {new.offset:#x}: not a multiple of 4096")
        if new.file is not None and new.offset + new.size > new.file.size:
            raise RequestError(
                errno.EINVAL, f"{_range(new)} offset {new.offset:#x}: past the end of a file of {new.file.size} bytes"
            )
        for old in self.overlapping(new.address, new.size):
            if old == new:
                return True
            raise RequestError(errno.EEXIST, f"{_range(new)}: overlaps {_range(old)}")
        if len(self._mappings) >= MAX_MAPPINGS:
            raise RequestError(errno.ENOSPC, f"{_range(new)}: {MAX_MAPPINGS} ranges are mapped already")
        self._check_neighbours(new)
        return False

    def _check_neighbours(self, new: Mapping) -> None:
        for neighbour in self._neighbours:
            for other in neighbour.overlapping(new.address, new.size):
                if new.file and other.file and new.backing != other.backing:
                    text = f"{_range(new)}: the client of another function of this machine has other memory there"
                    log.error("client refused: %s", text, extra={"event": "client-refused"})
                    raise RequestError(errno.EINVAL, text)

    def unmap(self, address: int, size: int) -> None:
        """DMA_UNMAP of exactly one earlier range; anything else is ENOENT (:class:`vfio_user.RequestError`)."""
        place = bisect_right(self._starts, address) - 1
        if place < 0 or self._mappings[place].address != address or self._mappings[place].size != size:
            raise RequestError(errno.ENOENT, f"unmap [{address:#x}, +{size:#x}): no range was mapped so")
        mapping = self._mappings.pop(place)
        self._changed_maps()
        del self._starts[place]
        if mapping.is_ram:
            self.changed()
        if mapping.file is not None:
            mapping.file.users -= 1
        self._drop_unused(mapping.file)

    def clear(self) -> None:
        """Forget everything and close every file."""
        had_ram = any(mapping.is_ram for mapping in self._mappings)
        self._starts.clear()
        self._mappings.clear()
        self._changed_maps()
        if had_ram:
            self.changed()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _drop_unused(self, file: MemoryFile | None) -> None:
        if file is not None and file.users == 0:
            del self._files[file.key, file.writable]
            file.close()

    # -- what there is ----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Mapping]:
        return iter(self._mappings)

    def overlapping(self, address: int, size: int) -> Iterator[Mapping]:
        """The ranges that share an address with ``[address, address + size)``, in order."""
        place = max(bisect_right(self._starts, address) - 1, 0)
        for mapping in self._mappings[place:]:
            if mapping.address >= address + size:
                return
            if mapping.end > address:
                yield mapping

    def ram_ranges(self) -> list[tuple[int, int]]:
        """RAM as ``(first GPA, last GPA)``, inclusive, merged and in order."""
        ranges: list[tuple[int, int]] = []
        for mapping in self._mappings:
            if not mapping.is_ram:
                continue
            if ranges and ranges[-1][1] + 1 == mapping.address:
                ranges[-1] = (ranges[-1][0], mapping.end - 1)
            else:
                ranges.append((mapping.address, mapping.end - 1))
        return ranges

    def is_used_by_guest(self, step_ns: int) -> Generator[None, None, bool]:
        """Whether there is anything but zeros at the start of some RAM range, where a running guest has written
        long ago; also if there is no range at all. Yields each time that ``step_ns`` are over.

        There is nothing if the hypervisor gave away files of which it uses private copies. What the files take
        of the disk does not tell: reading a hole through a private map fills it with zeros. So the files are read, not
        their shared maps: a look must not fill holes either.
        """
        if not self._mappings:
            return True
        deadline = self._inputs.now_ns() + step_ns
        next_start, end, left = 0, -1, 0
        while (place := bisect_left(self._starts, next_start)) < len(self._mappings):  # they may change between steps
            mapping = self._mappings[place]
            next_start = mapping.address + 1
            if mapping.is_ram:
                if mapping.address != end:
                    left = PROBED_SIZE
                end, length = mapping.end, min(left, mapping.size)
                left -= length
                if length and self._holds_data(mapping, length):
                    return True
            if self._inputs.now_ns() > deadline:
                yield
                deadline = self._inputs.now_ns() + step_ns
        return False

    def _holds_data(self, mapping: Mapping, length: int) -> bool:
        """Whether there is anything but zeros in the first bytes of a range."""
        if mapping.file is None:
            return False
        try:
            return not _ZEROS.startswith(self._inputs.pread(mapping.file.fd, length, mapping.offset))
        except OSError:
            return False

    # -- access -----------------------------------------------------------------------------------------------------

    def read(self, runs: Sequence[tuple[int, int]]) -> bytes:
        """The bytes of ``runs``, ``(GPA, length)`` each, one after the other. Raises :class:`GuestMemoryError`."""
        if len(runs) == 1:  # most are, and a megabyte is copied in the time of some lines of Python
            gpa, length = runs[0]
            first, end, view, origin = self._last
            if first <= gpa and gpa + length <= end:
                return self._inputs.copy(view[gpa + origin : gpa + origin + length])
        copier = self._copier_for(runs)
        data = copier.read(runs) if copier and isinstance(runs, PackedRuns) else None
        if data is not None:
            return data
        return b"".join([self._read_piece(piece) for piece in self._pieces_of(runs, MAX_REGISTER_BYTES)])

    def write(self, runs: Sequence[tuple[int, int]], data: bytes | bytearray | memoryview) -> None:
        """Spread ``data`` over ``runs``. Nothing is written if part of them is not RAM (:class:`GuestMemoryError`).

        Registers of BARs are written by :meth:`.windows.Windows.deliver`, after everything else.

        A file that is not mapped may also refuse in the middle, for want of space or because it was sealed
        meanwhile; what was written before stays, and the error is the same.
        """
        if len(runs) == 1:
            gpa, length = runs[0]
            first, end, view, origin = self._last
            if first <= gpa and gpa + length <= end and len(data) == length:
                view[gpa + origin : gpa + origin + length] = data
                return
        copier = self._copier_for(runs)
        if copier and isinstance(runs, PackedRuns) and copier.write(runs, data):
            return
        pieces = self._pieces_of(runs, self.windows.room() if self.windows else 0)
        source, position = memoryview(data), 0
        for piece in pieces:
            self._write_piece(piece, source[position : position + piece.length])
            position += piece.length

    def check(self, runs: Sequence[tuple[int, int]]) -> None:
        """Raise :class:`GuestMemoryError` if part of ``runs`` is not RAM."""
        count, first = self.find_registers(runs)
        _check_registers(count, first, MAX_REGISTER_BYTES)

    def find_registers(self, runs: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Bytes of registers among ``runs``, and the GPA of the first. Raises :class:`GuestMemoryError` if part of
        them is neither RAM nor in a BAR.
        """
        copier = self._copier_for(runs)
        if copier and isinstance(runs, PackedRuns) and copier.has(runs):
            return 0, 0
        return _registers([piece for gpa, length in runs for piece in self._pieces(gpa, length)])

    def _copier_for(self, runs: Sequence[tuple[int, int]]) -> Copier | None:
        """The copier, if it can do anything with ``runs``; it has been told what is mapped."""
        if self.copier is None or not isinstance(runs, PackedRuns):
            return None
        if not self._copier_knows:
            self.copier.set(
                (mapping.address, mapping.file.view[mapping.offset : mapping.offset + mapping.size])
                for mapping in self._mappings
                if mapping.is_ram and mapping.file is not None and mapping.file.view is not None
            )
            self._copier_knows = True
        return self.copier

    def _pieces_of(self, runs: Sequence[tuple[int, int]], register_bytes: int) -> list[_Piece | _PeerPiece]:
        """All of ``runs``; no more than ``register_bytes`` of them may be registers."""
        pieces = [piece for gpa, length in runs for piece in self._pieces(gpa, length)]
        _check_registers(*_registers(pieces), register_bytes)
        return pieces

    def _peer_piece(self, gpa: int, end: int, next_mapping: int) -> _PeerPiece:
        """What is at ``gpa``, which is not RAM, as far as there is none and at most up to ``end``."""
        place = self.windows.find(gpa, end) if self.windows else None
        if place is None:
            raise GuestMemoryError(gpa, "not guest RAM")
        while next_mapping < len(self._mappings) and self._starts[next_mapping] < gpa + place.length:
            if self._mappings[next_mapping].is_ram:
                place = place._replace(length=self._starts[next_mapping] - gpa)
            next_mapping += 1
        return _PeerPiece(gpa, place, place.length)

    def _pieces(self, gpa: int, length: int) -> list[_Piece | _PeerPiece]:
        """``[gpa, gpa + length)``, one piece for each range it crosses."""
        pieces: list[_Piece | _PeerPiece] = []
        end = gpa + length
        place = bisect_right(self._starts, gpa) - 1
        while gpa < end:
            mapping = self._mappings[place] if 0 <= place < len(self._mappings) else None
            if mapping is None or not mapping.address <= gpa < mapping.end or not mapping.is_ram:
                peer = self._peer_piece(gpa, end, bisect_right(self._starts, gpa))
                pieces.append(peer)
                gpa += peer.length
                place = bisect_right(self._starts, gpa) - 1
                continue
            take = min(end, mapping.end) - gpa
            if mapping.file is not None:
                if mapping.file.view is not None:
                    origin = mapping.offset - mapping.address
                    self._last = _Reached(mapping.address, mapping.end, mapping.file.view, origin)
                pieces.append(_Piece(gpa, mapping.file, mapping.offset + gpa - mapping.address, take))
            gpa += take
            place += 1
        return pieces

    def _read_piece(self, piece: _Piece | _PeerPiece) -> bytes:
        if isinstance(piece, _PeerPiece):
            return piece.place.read()
        gpa, file, offset, length = piece
        if file.view is not None:
            return self._inputs.copy(file.view[offset : offset + length])
        try:
            data = self._inputs.pread(file.fd, length, offset)
        except OSError as error:
            raise GuestMemoryError(gpa, f"its file cannot be read: {error.strerror}") from error
        return data + bytes(length - len(data))  # a file that shrank reads as zeros, as a hole would

    def _write_piece(self, piece: _Piece | _PeerPiece, data: memoryview) -> None:
        if isinstance(piece, _PeerPiece):
            if self.windows:
                self.windows.write(piece.place, bytes(data))
            return
        gpa, file, offset, length = piece
        if file.view is not None:
            file.view[offset : offset + length] = data
            return
        done = 0
        while done < length:
            try:
                done += os.pwrite(file.fd, data[done:], offset + done)
            except OSError as error:
                raise GuestMemoryError(gpa + done, f"its file cannot be written: {error.strerror}") from error


def _registers(pieces: Iterable[_Piece | _PeerPiece]) -> tuple[int, int]:
    """Bytes of registers, and the GPA of the first."""
    found = [piece for piece in pieces if isinstance(piece, _PeerPiece) and not piece.place.window.is_memory]
    return sum(piece.length for piece in found), found[0].gpa if found else 0


def _check_registers(count: int, first: int, most: int) -> None:
    if count > most:
        raise AbortedAccessError(first, f"more than {MAX_REGISTER_BYTES} bytes of registers at once")


def _range(mapping: Mapping | DmaMapping) -> str:
    return f"map [{mapping.address:#x}, +{mapping.size:#x})"
