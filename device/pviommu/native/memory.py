"""Copies to and from guest memory: of many runs by one call (see :class:`pviommu.dma.access.Copier`), and copies that
survive memory that goes away meanwhile (see :class:`pviommu.dma.memory_file.Guard`).
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import addressof, c_size_t, c_uint64, c_void_p, py_object

from ..engine.results import PackedRuns
from .library import Library

__all__ = ["NativeCopier", "NativeGuard", "address_of_bytes", "new_bytes", "place_of"]

_bytes_from = ctypes.PYFUNCTYPE(py_object, c_void_p, c_size_t)(("PyBytes_FromStringAndSize", ctypes.pythonapi))
address_of_bytes = ctypes.PYFUNCTYPE(c_void_p, py_object)(("PyBytes_AsString", ctypes.pythonapi))
"""Part of Python's C API, whose rules allow filling a new bytes object before anybody else has it."""


def new_bytes(size: int) -> bytes:
    """So many bytes, to be filled by C before anybody else has them."""
    data: bytes = _bytes_from(None, size)
    return data


class NativeGuard:
    """Single copies, and exchanges. A SIGBUS in one ends that one; elsewhere the signal has its usual effect."""

    def __init__(self, lib: Library) -> None:
        self._lib = lib

    def read(self, address: int, length: int) -> tuple[bytes, int]:
        """``length`` bytes from ``address`` on, and how many of them are there."""
        data: bytes = new_bytes(length)
        return data, int(self._lib.pv_guarded_copy(address_of_bytes(data), address, length))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> int:
        """Write ``data``; returns how many bytes come before the first that could not be written."""
        source = data if isinstance(data, bytes) else bytes(data)
        return int(self._lib.pv_guarded_copy(address, address_of_bytes(source), len(source)))

    def exchange(self, address: int, before: int, after: int) -> int | None:
        """Replace the 64 bits at ``address``, a multiple of 8, by ``after`` if they are ``before``, as one atomic step.
        Returns those that were there, None if there are none.
        """
        found = c_uint64(before)
        return found.value if self._lib.pv_guarded_exchange(address, ctypes.byref(found), after) else None


class NativeCopier:
    """Guest memory that lies in this process."""

    def __init__(self, lib: Library) -> None:
        self._lib = lib
        self._memory = lib.pv_memory_create()
        if not self._memory:
            raise MemoryError("no memory for the native core")
        self._finalizer = weakref.finalize(self, lib.pv_memory_destroy, self._memory)

    @property
    def address(self) -> int:
        """Of the ``struct pv_memory``."""
        return int(self._memory)

    def add(self, gpa: int, size: int, address: int, *, may_vanish: bool = False) -> None:
        """The ``size`` bytes at ``gpa`` are at ``address`` of this process, and stay there until they are removed, or
        perhaps not all of them.
        """
        if self._lib.pv_memory_add(self._memory, gpa, size, address, may_vanish):
            raise MemoryError("no memory for the native core")

    def remove(self, gpa: int, size: int) -> None:
        """Remove what was added from ``gpa`` on, for ``size`` bytes. This never cuts anything that was added."""
        self._lib.pv_memory_remove(self._memory, gpa, size)

    def exchange(self, gpa: int, before: int, after: int) -> int | None:
        """Replace the 64 bits at ``gpa``, a multiple of 8, if they are ``before``, as one atomic step. What was there;
        None if nothing is.
        """
        found = c_uint64(before)
        return found.value if self._lib.pv_memory_exchange(self._memory, gpa, addressof(found), after) else None

    def has(self, runs: PackedRuns) -> bool:
        """Whether all of ``runs`` are there."""
        return bool(self._lib.pv_memory_has(self._memory, *place_of(runs)))

    def read(self, runs: PackedRuns) -> bytes | None:
        """The bytes of ``runs``; None if they are not all there."""
        place = place_of(runs)
        if not self._lib.pv_memory_has(self._memory, *place):
            return None
        data: bytes = new_bytes(runs.size)
        copied = self._lib.pv_memory_copy(self._memory, *place, address_of_bytes(data), runs.size, 0)
        return data if copied == runs.size else None

    def write(self, runs: PackedRuns, data: bytes | bytearray | memoryview) -> bool:
        """Spread ``data`` over ``runs``. False if they are not all there; then nothing is written, unless memory went
        away meanwhile.
        """
        place = place_of(runs)
        if not self._lib.pv_memory_has(self._memory, *place):
            return False
        source = data if isinstance(data, bytes) else bytes(data)
        copied = self._lib.pv_memory_copy(self._memory, *place, address_of_bytes(source), len(source), 1)
        return bool(copied == len(source))


def place_of(runs: PackedRuns) -> tuple[int, int]:
    """Runs as C takes them: address, valid while ``runs`` lives, and number."""
    address, numbers = runs.numbers.buffer_info()
    return address, numbers // 2
