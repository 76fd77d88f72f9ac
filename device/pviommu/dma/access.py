"""Reading and writing guest memory: ranges that were mapped with a descriptor, and the BARs of the same machine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from ..engine.results import PackedRuns
from ..inputs import InputKind, Inputs, Source
from .mappings import Mappings
from .memory_file import FileArea, MemoryFile
from .windows import MAX_REGISTER_BYTES, Place, Windows

__all__ = ["GONE", "AbortedAccessError", "Copier", "GuestMemoryError", "MemoryAccess"]

GONE = "its file has become shorter, or the machine has no page for it"


class GuestMemoryError(Exception):
    """An access that guest memory cannot serve: ``gpa`` is the first address concerned."""

    def __init__(self, gpa: int, text: str) -> None:
        super().__init__(f"GPA {gpa:#x}: {text}")
        self.gpa = gpa


class AbortedAccessError(GuestMemoryError):
    """An access that leads to a BAR, which does not allow it."""


class Copier(Protocol):
    """Copies requests of many runs, if all of them are in mapped files."""

    def add(self, gpa: int, size: int, address: int, *, may_vanish: bool = False) -> None:
        """The ``size`` bytes at ``gpa`` are at ``address`` of this process, and stay there until they are removed; or
        they may vanish, if their file becomes shorter.
        """

    def remove(self, gpa: int, size: int) -> None:
        """Remove what was added from ``gpa`` on, for ``size`` bytes. This never cuts anything that was added."""

    def exchange(self, gpa: int, before: int, after: int) -> int | None:
        """Replace the 64 bits at ``gpa``, a multiple of 8, if they are ``before``, as one atomic step. What was there;
        None if nothing was added there.
        """

    def has(self, runs: PackedRuns) -> bool: ...
    def read(self, runs: PackedRuns) -> bytes | None: ...
    def write(self, runs: PackedRuns, data: bytes | bytearray | memoryview) -> bool: ...


class _Piece(NamedTuple):
    """A part of an access that lies in one range: ``length`` bytes at ``offset`` of ``file``, which are at ``gpa``.
    ``area`` is the file's, if it is mapped.
    """

    gpa: int
    file: MemoryFile
    area: FileArea | None
    offset: int
    length: int


class _PeerPiece(NamedTuple):
    """A part of an access that lies in a BAR: ``length`` bytes, which are at ``gpa``."""

    gpa: int
    place: Place
    length: int


class _Reached(NamedTuple):
    """The range of the last access: its first and its end GPA, the bytes of its file, and where GPA 0 would be."""

    first: int
    end: int
    view: memoryview
    origin: int


_NOWHERE = _Reached(0, 0, memoryview(b""), 0)


class MemoryAccess:
    """Access to the ranges of one connection."""

    def __init__(self, inputs: Inputs, name: str = "") -> None:
        """``name``: of the function."""
        self._source, self._written = Source(InputKind.GUEST_MEMORY, name), Source(InputKind.WRITTEN, name)
        self._inputs = inputs
        self._copy = inputs.copies(self._source)
        self._pread = inputs.files(self._source)
        self._mappings = Mappings()
        self.copier: Copier | None = None
        """copies without passing through the inputs; optional. Set it before anything is mapped."""
        self._last: _Reached = _NOWHERE
        self.windows: Windows | None = None
        """what is reached at addresses without RAM"""

    def _forget_last(self) -> None:
        """Ranges go."""
        self._last = _NOWHERE

    def read(self, runs: Sequence[tuple[int, int]]) -> bytes:
        """The bytes of ``runs``, ``(GPA, length)`` each, in order. Raises :class:`GuestMemoryError`."""
        first, end, view, origin = self._last
        if len(runs) == 1:  # most are, and a megabyte is copied in the time of some lines of Python
            gpa, length = runs[0]
            if first <= gpa and gpa + length <= end:
                return self._copy(view[gpa + origin : gpa + origin + length])
        elif not isinstance(runs, PackedRuns) and all(first <= gpa and gpa + length <= end for gpa, length in runs):
            copy = self._copy
            return b"".join([copy(view[gpa + origin : gpa + origin + length]) for gpa, length in runs])
        data = self.copier.read(runs) if self.copier and isinstance(runs, PackedRuns) else None
        if data is not None:
            return data
        return b"".join([self._read_piece(piece) for piece in self._pieces_of(runs, MAX_REGISTER_BYTES)])

    def write(self, runs: Sequence[tuple[int, int]], data: bytes | bytearray | memoryview) -> None:
        """Spread ``data`` over ``runs``. Nothing is written if part of them is not RAM (:class:`GuestMemoryError`).

        Registers of BARs are written by :meth:`.windows.Windows.deliver`, after everything else.

        Writing to a file that is not mapped may also fail in the middle, if it has no space or was sealed meanwhile;
        what was written before stays, and the error is the same.
        """
        first, end, view, origin = self._last
        if len(runs) == 1:
            gpa, length = runs[0]
            if first <= gpa and gpa + length <= end and len(data) == length:
                view[gpa + origin : gpa + origin + length] = data
                return
        elif not isinstance(runs, PackedRuns) and all(first <= gpa and gpa + length <= end for gpa, length in runs):
            source, position = memoryview(data), 0
            for gpa, length in runs:
                view[gpa + origin : gpa + origin + length] = source[position : position + length]
                position += length
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

    def _peer_piece(self, gpa: int, end: int) -> _PeerPiece:
        """What is at ``gpa``, which is not RAM, as far as there is none and at most up to ``end``."""
        place = self.windows.find(gpa, end) if self.windows else None
        if place is None:
            raise GuestMemoryError(gpa, "not guest RAM")
        for mapping in self._mappings.overlapping(gpa, place.length):
            if mapping.is_ram:
                return _PeerPiece(gpa, place._replace(length=mapping.address - gpa), mapping.address - gpa)
        return _PeerPiece(gpa, place, place.length)

    def _pieces(self, gpa: int, length: int) -> list[_Piece | _PeerPiece]:
        """``[gpa, gpa + length)``, as one piece per range."""
        pieces: list[_Piece | _PeerPiece] = []
        end = gpa + length
        while gpa < end:
            mapping = self._mappings.at(gpa)
            if mapping is None or mapping.file is None or not mapping.is_ram:
                peer = self._peer_piece(gpa, end)
                pieces.append(peer)
                gpa += peer.length
                continue
            take = min(end, mapping.end) - gpa
            area, origin = mapping.area, mapping.offset - mapping.address
            if area is not None and area.guard is None:
                self._last = _Reached(mapping.address, mapping.end, area.view, origin)
            pieces.append(_Piece(gpa, mapping.file, area, origin + gpa, take))
            gpa += take
        return pieces

    def address_of(self, gpa: int) -> int | None:
        """Where the 64 bits at ``gpa`` are in this process; None if they are not in a file that is mapped."""
        mapping = self._mappings.at(gpa)
        if mapping is None or not mapping.is_ram or mapping.area is None or gpa + 8 > mapping.end:
            return None
        return mapping.area.address + mapping.offset - mapping.address + gpa

    def _read_piece(self, piece: _Piece | _PeerPiece) -> bytes:
        if isinstance(piece, _PeerPiece):
            return piece.place.read()
        gpa, file, area, offset, length = piece
        if area is not None and area.guard is not None:
            data, there = self._inputs.of(self._source, area.guard.read)(area.address + offset, length)
            if there < length:
                raise GuestMemoryError(gpa + there, GONE)
            return data
        if area is not None:
            return self._copy(area.view[offset : offset + length])
        try:
            data = self._pread(file.fd, length, offset)
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
            written = self._inputs.of(self._written, area.guard.write)(area.address + offset, data)
            if written < length:
                raise GuestMemoryError(gpa + written, GONE)
            return
        if area is not None:
            area.view[offset : offset + length] = data
            return
        write, done = self._inputs.of(self._written, os.pwrite), 0
        while done < length:
            try:
                done += write(file.fd, data[done:], offset + done)
            except OSError as error:
                raise GuestMemoryError(gpa + done, f"its file cannot be written: {error.strerror}") from error


def _registers(pieces: Iterable[_Piece | _PeerPiece]) -> tuple[int, int]:
    """Bytes of registers, and the GPA of the first."""
    found = [piece for piece in pieces if isinstance(piece, _PeerPiece) and not piece.place.window.is_memory]
    return sum(piece.length for piece in found), found[0].gpa if found else 0


def _check_registers(count: int, first: int, most: int) -> None:
    if count > most:
        raise AbortedAccessError(first, f"more than {MAX_REGISTER_BYTES} bytes of registers at once")
