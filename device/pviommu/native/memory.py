"""Copies to and from guest memory, many runs by one call: see :class:`pviommu.memory.Copier`."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable
from ctypes import addressof, c_char, c_size_t, c_uint64, c_void_p, py_object

from ..engine.results import PackedRuns
from .library import Library

__all__ = ["NativeCopier"]

_new_bytes = ctypes.PYFUNCTYPE(py_object, c_void_p, c_size_t)(("PyBytes_FromStringAndSize", ctypes.pythonapi))
_address_of_bytes = ctypes.PYFUNCTYPE(c_void_p, py_object)(("PyBytes_AsString", ctypes.pythonapi))
"""Of the C API: bytes without contents may be filled by whoever has just made them."""


class NativeCopier:
    """Guest memory that lies in this process."""

    def __init__(self, lib: Library) -> None:
        self._lib = lib
        self._memory = lib.pv_memory_create()
        if not self._memory:
            raise MemoryError("no memory for the native core")
        self._finalizer = weakref.finalize(self, lib.pv_memory_destroy, self._memory)

    def set(self, pieces: Iterable[tuple[int, memoryview]]) -> None:
        """What there is, in order: GPA and bytes. The views stay valid until the next call."""
        numbers: list[int] = []
        for gpa, view in pieces:
            numbers += (gpa, gpa + len(view), addressof(c_char.from_buffer(view)))
        if self._lib.pv_memory_set(self._memory, (c_uint64 * len(numbers))(*numbers), len(numbers) // 3):
            raise MemoryError("no memory for the native core")

    def has(self, runs: PackedRuns) -> bool:
        """Whether all of ``runs`` are there."""
        return bool(self._lib.pv_memory_has(self._memory, runs.address, len(runs)))

    def read(self, runs: PackedRuns) -> bytes | None:
        """The bytes of ``runs``; None if they are not all there."""
        if not self.has(runs):
            return None
        data: bytes = _new_bytes(None, runs.size)
        self._lib.pv_memory_copy(self._memory, runs.address, len(runs), _address_of_bytes(data), runs.size, 0)
        return data

    def write(self, runs: PackedRuns, data: bytes | bytearray | memoryview) -> bool:
        """Spread ``data`` over ``runs``. False, and nothing is written, if they are not all there."""
        if not self.has(runs):
            return False
        source = data if isinstance(data, bytes) else bytes(data)
        self._lib.pv_memory_copy(self._memory, runs.address, len(runs), _address_of_bytes(source), len(source), 1)
        return True
