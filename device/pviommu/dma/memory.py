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
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from vfio_user import DmaMapping, RequestError
from vfio_user.memory_kind import NotMemoryError, check_memory

from ..engine.ranges import FrameRanges
from ..engine.results import ADDRESS_LIMIT, PAGE_SHIFT, PAGE_SIZE, PackedRuns
from ..inputs import Inputs
from .memory_file import MOST_FILES, PER_FILE, Area, MemoryFile, MemoryFiles
from .windows import MAX_REGISTER_BYTES, Place, Windows

__all__ = ["AbortedAccessError", "ForeignMemoryError", "GuestMemory", "GuestMemoryError", "Mapping"]

log = logging.getLogger(__name__)

MAX_ADDRESS = ADDRESS_LIMIT - 1
MAX_MAPPINGS = 65535
"""Ranges that one connection may have, as announced to the client."""
MAX_MAPPING_SIZE = 8 << 40
PROBED_SIZE = 1 << 20
"""Bytes of each RAM range that are looked at to tell whether the guest uses it."""
_ZEROS = bytes(PROBED_SIZE)

GONE = "its file has become shorter, or the machine has no page for it"


class GuestMemoryError(Exception):
    """An access that guest memory cannot serve: ``gpa`` is the first address concerned."""

    def __init__(self, gpa: int, text: str) -> None:
        super().__init__(f"GPA {gpa:#x}: {text}")
        self.gpa = gpa


class AbortedAccessError(GuestMemoryError):
    """An access that the BAR which it leads to does not allow."""


class ForeignMemoryError(RequestError):
    """A map of other memory than another function of this machine has there: its client is of another machine."""


@dataclass(slots=True)
class Mapping:
    """One DMA_MAP: ``size`` bytes at GPA ``address`` lie at ``offset`` of ``file``, or nowhere reachable."""

    address: int
    size: int
    offset: int
    readable: bool
    writable: bool
    file: MemoryFile | None
    area: Area | None = field(default=None, compare=False)
    """the file's bytes, if they are mapped"""

    @property
    def end(self) -> int:
        """The first GPA after the range."""
        return self.address + self.size

    @property
    def is_ram(self) -> bool:
        """Whether DMA may both read and write it directly."""
        return self.file is not None and self.readable and self.writable

    @property
    def backing(self) -> tuple[tuple[int, int], int] | None:
        """The file and where in it GPA 0 would be: equal for overlapping ranges of one guest's memory."""
        return None if self.file is None else (self.file.key, self.offset - self.address)


class _Piece(NamedTuple):
    """A part of an access that lies in one range: ``length`` bytes at ``offset`` of ``file``, which are at ``gpa``.
    ``area`` is the file's, if it is mapped.
    """

    gpa: int
    file: MemoryFile
    area: Area | None
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

    def add(self, gpa: int, size: int, address: int) -> None:
        """The ``size`` bytes at ``gpa`` are at ``address`` of this process, and stay there until they are removed."""

    def remove(self, gpa: int, size: int) -> None:
        """Forget what was added from ``gpa`` on, for ``size`` bytes. Nothing that was added is cut."""

    def has(self, runs: PackedRuns) -> bool: ...
    def read(self, runs: PackedRuns) -> bytes | None: ...
    def write(self, runs: PackedRuns, data: bytes | bytearray | memoryview) -> bool: ...


class GuestMemory:
    """The guest memory of one connection.

    A request costs two searches and the move of what follows in a few arrays, whatever the number of ranges; what is
    derived from them (RAM, the copier's ranges) is told what changed and never made anew.
    """

    def __init__(
        self,
        inputs: Inputs,
        changed: Callable[[int, int], None] = lambda _first, _nr: None,
        files: MemoryFiles | None = None,
    ) -> None:
        """``changed`` is called after each change of what is RAM: it lies among so many frames from the first on.
        ``files``: those of the machine; otherwise no other function shares them.
        """
        self._inputs = inputs
        self._changed = changed
        self._files = MemoryFiles() if files is None else files
        self._starts = array("Q")
        self._mappings: list[Mapping] = []
        self.ram = FrameRanges()
        """frames that DMA may both read and write"""
        self.max_files = MOST_FILES
        """files in which ranges may lie at a time; ranges of a file that is known already cost nothing"""
        self._ranges_in: Counter[MemoryFile] = Counter()
        """ranges by their file"""
        self._neighbours: list[GuestMemory] = []
        self.copier: Copier | None = None
        """copies without passing the inputs; none has to. Set it before anything is mapped."""
        self._last: _Reached = _NOWHERE
        self.windows: Windows | None = None
        """what is reached where there is no RAM"""

    def belongs_with(self, other: GuestMemory) -> None:
        """Both are views of one guest's memory: neither may map a GPA to something else than the other does."""
        self._neighbours.append(other)
        other._neighbours.append(self)

    # -- what the client says ---------------------------------------------------------------------------------------

    def map(self, request: DmaMapping) -> bool:
        """DMA_MAP. Takes ownership of ``request.fd``, also when it raises. Whether the range is new.

        The identical range again is a success; any other overlap is EEXIST. Raises :class:`vfio_user.RequestError`.
        """
        file = self._open(request)
        try:
            new = Mapping(request.address, request.size, request.offset, request.readable, request.writable, file)
            if self._check(new):
                return False
            if file is not None:
                if new.is_ram:
                    self._make_ram(new, file)
                file.users += 1
                self._ranges_in[file] += 1
        finally:
            if file is not None:
                self._files.release(file)
        place = bisect_right(self._starts, new.address)
        self._starts.insert(place, new.address)
        self._mappings[place:place] = (new,)  # a third of the time of insert(), if there are many
        return True

    def _open(self, request: DmaMapping) -> MemoryFile | None:
        if request.fd is None:
            return None
        try:
            kind = request.kind or check_memory(request.fd, request.writable, _range(request))
        except BaseException:
            os.close(request.fd)
            raise
        return self._files.open(request.fd, request.writable, kind)

    def _make_ram(self, new: Mapping, file: MemoryFile) -> None:
        try:
            new.area = self._files.area(file)
        except NotMemoryError as error:
            raise RequestError(errno.EINVAL, f"{_range(new)}: the file cannot be used as memory: {error}") from error
        except OSError as error:
            text = f"{_range(new)}: the file cannot be mapped: {error.strerror or error}"
            raise RequestError(error.errno or errno.EINVAL, text) from error
        if self.copier and new.area:
            self.copier.add(new.address, new.size, new.area.address + new.offset)
        frames = _frames(new.address, new.size)
        self.ram.add(*frames)
        self._changed(*frames)

    def _check(self, new: Mapping) -> bool:
        """Whether ``new`` is there already; raises :class:`vfio_user.RequestError` if it cannot be added."""
        if new.size > MAX_MAPPING_SIZE:
            raise RequestError(errno.ENOSPC, f"{_range(new)}: larger than 8 TiB")
        if (new.address | new.size | new.offset) % PAGE_SIZE:
            raise RequestError(errno.EINVAL, f"{_range(new)} offset {new.offset:#x}: not a multiple of 4096")
        if new.file is not None and new.offset + new.size > new.file.size:
            if new in self.overlapping(new.address, new.size):  # the file has shrunk since, which undoes no map
                return True
            raise RequestError(
                errno.EINVAL, f"{_range(new)} offset {new.offset:#x}: past the end of a file of {new.file.size} bytes"
            )
        for old in self.overlapping(new.address, new.size):
            if old == new:
                return True
            raise RequestError(errno.EEXIST, f"{_range(new)}: overlaps {_range(old)}")
        if len(self._mappings) >= MAX_MAPPINGS:
            raise RequestError(errno.ENOSPC, f"{_range(new)}: {MAX_MAPPINGS} ranges are mapped already")
        if new.file and new.file not in self._ranges_in and len(self._ranges_in) >= self.max_files:
            text = f"{_range(new)}: its file is one too many: this client has {self.max_files} already"
            raise RequestError(errno.EMFILE, text)
        if new.is_ram and new.file and new.file.has_outgrown:
            held = sum(file.descriptors for file in self._ranges_in)
            if held >= PER_FILE * self.max_files:
                text = f"{_range(new)}: its file has grown, and this client has {held} descriptors in use already"
                raise RequestError(errno.EMFILE, text)
        self._check_neighbours(new)
        return False

    def _check_neighbours(self, new: Mapping) -> None:
        for neighbour in self._neighbours:
            for other in neighbour.overlapping(new.address, new.size):
                if new.file and other.file and new.backing != other.backing:
                    text = f"{_range(new)}: the client of another function of this machine has other memory there"
                    raise ForeignMemoryError(errno.EINVAL, text)

    def unmap(self, address: int, size: int) -> int:
        """DMA_UNMAP: every range inside ``[address, address + size)`` goes. How many these were.

        Raises :class:`vfio_user.RequestError`, and then nothing has changed: EINVAL if a range would be cut, ENOENT if
        there is none. The protocol asks for one range exactly as it was mapped, but QEMU maps in pieces what it then
        unmaps at once (virtio-mem), and takes no refusal for an answer.
        """
        what = f"unmap [{address:#x}, +{size:#x})"
        end = address + size
        first = bisect_left(self._starts, address)
        last = bisect_left(self._starts, end) if end <= MAX_ADDRESS else len(self._starts)
        edges = (first - 1, last - 1) if size else ()
        for place in edges:
            cut = self._mappings[place] if place >= 0 else None
            if cut and cut.end > address and (cut.address < address or cut.end > end):
                raise RequestError(errno.EINVAL, f"{what}: it would cut {_range(cut)}, and ranges go whole")
        if first >= last:
            raise RequestError(errno.ENOENT, f"{what}: no range was mapped so")
        self._remove(first, last)
        return last - first

    def clear(self) -> None:
        """Forget everything and close every file that no other function uses."""
        if self._mappings:
            self._remove(0, len(self._mappings))

    def _remove(self, first: int, last: int) -> None:
        """Forget the ranges from place ``first`` to before ``last``."""
        gone = self._mappings[first:last]
        address, size = gone[0].address, gone[-1].end - gone[0].address
        del self._mappings[first:last]
        del self._starts[first:last]
        self._last = _NOWHERE
        if self.copier:
            self.copier.remove(address, min(size, MAX_ADDRESS))
        frames = _frames(address, size)
        if self.ram.within(*frames):
            self.ram.remove(*frames)
            self._changed(*frames)
        for file, ranges in Counter(map(_file_of, gone)).items():
            if file is not None:
                self._ranges_in[file] -= ranges
                if not self._ranges_in[file]:
                    del self._ranges_in[file]
                self._files.release(file, ranges)

    # -- what there is ----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Mapping]:
        return iter(self._mappings)

    def overlapping(self, address: int, size: int) -> Sequence[Mapping]:
        """The ranges that share an address with ``[address, address + size)``, in order."""
        first = bisect_right(self._starts, address)
        last = bisect_left(self._starts, address + size, first)
        if first and self._mappings[first - 1].end > address:
            first -= 1
        return self._mappings[first:last]

    def ram_ranges(self) -> list[tuple[int, int]]:
        """RAM as ``(first GPA, last GPA)``, inclusive, merged and in order."""
        return [(first << PAGE_SHIFT, (last + 1 << PAGE_SHIFT) - 1) for first, last in self.ram]

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
        data = self.copier.read(runs) if self.copier and isinstance(runs, PackedRuns) else None
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
        if self.copier and isinstance(runs, PackedRuns) and self.copier.write(runs, data):
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
        if self.copier and isinstance(runs, PackedRuns) and self.copier.has(runs):
            return 0, 0
        return _registers([piece for gpa, length in runs for piece in self._pieces(gpa, length)])

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
                area, origin = mapping.area, mapping.offset - mapping.address
                if area is not None and area.guard is None:
                    self._last = _Reached(mapping.address, mapping.end, area.view, origin)
                pieces.append(_Piece(gpa, mapping.file, area, origin + gpa, take))
            gpa += take
            place += 1
        return pieces

    def _read_piece(self, piece: _Piece | _PeerPiece) -> bytes:
        if isinstance(piece, _PeerPiece):
            return piece.place.read()
        gpa, file, area, offset, length = piece
        if area is not None and area.guard is not None:
            data, there = area.guard.read(area.address + offset, length)
            if there < length:
                raise GuestMemoryError(gpa + there, GONE)
            return data
        if area is not None:
            return self._inputs.copy(area.view[offset : offset + length])
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
        gpa, file, area, offset, length = piece
        if area is not None and area.guard is not None:
            written = area.guard.write(area.address + offset, data)
            if written < length:
                raise GuestMemoryError(gpa + written, GONE)
            return
        if area is not None:
            area.view[offset : offset + length] = data
            return
        done = 0
        while done < length:
            try:
                done += os.pwrite(file.fd, data[done:], offset + done)
            except OSError as error:
                raise GuestMemoryError(gpa + done, f"its file cannot be written: {error.strerror}") from error


def _file_of(mapping: Mapping) -> MemoryFile | None:
    return mapping.file


def _frames(address: int, size: int) -> tuple[int, int]:
    """(first frame, frames) of whole pages."""
    return address >> PAGE_SHIFT, size >> PAGE_SHIFT


def _registers(pieces: Iterable[_Piece | _PeerPiece]) -> tuple[int, int]:
    """Bytes of registers, and the GPA of the first."""
    found = [piece for piece in pieces if isinstance(piece, _PeerPiece) and not piece.place.window.is_memory]
    return sum(piece.length for piece in found), found[0].gpa if found else 0


def _check_registers(count: int, first: int, most: int) -> None:
    if count > most:
        raise AbortedAccessError(first, f"more than {MAX_REGISTER_BYTES} bytes of registers at once")


def _range(mapping: Mapping | DmaMapping) -> str:
    return f"map [{mapping.address:#x}, +{mapping.size:#x})"
