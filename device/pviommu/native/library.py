"""The compiled library: its structures and functions as ctypes sees them. Names and fields are those of ``core.h`` and
``ring.h``."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_int, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

__all__ = [
    "KINDS",
    "LEAF_FIELDS",
    "SLOT_WORDS",
    "STOPS",
    "Field",
    "Library",
    "Operation",
    "Pool",
    "Report",
    "Ring",
    "Rings",
    "Table",
    "load",
]

LEAF_FIELDS = 5
"""How many numbers describe a leaf: dfn, gfn, pages, kind, whether a map call begins here."""
SLOT_WORDS = 8
"""64-bit words in a slot."""
STOPS = 9
"""Number of outcomes of a map or an unmap: ``enum pv_stop``."""
KINDS = 2
"""Map and unmap: ``enum pv_kind``."""


class Pool(Structure):
    """``struct pv_pool``."""

    _fields_ = (
        ("free", c_int64),
        ("total", c_int64),
        ("out_of_memory", c_uint64),
        ("spares", c_uint64),
        ("spare", c_void_p),
    )


class Table(Structure):
    """``struct pv_table``."""

    _fields_ = (
        ("mapped", c_uint64),
        ("pool", c_void_p),
        ("limit", c_uint64),
        ("charged", c_int64),
        ("reserve", c_int64),
        ("top", c_uint64),
        ("root", c_void_p),
    )


class Field(Structure):
    """``struct pv_field``."""

    _fields_ = (("mask", c_uint64), ("word", c_uint32), ("shift", c_uint32))


class Operation(Structure):
    """``struct pv_operation``."""

    _fields_ = (
        ("fixed", c_uint64 * SLOT_WORDS),
        ("value", c_uint64 * SLOT_WORDS),
        ("ctx", Field),
        ("dfn", Field),
        ("gfn", Field),
        ("nr", Field),
        ("count", Field),
        ("added", c_uint64),
        ("readable", c_uint64),
        ("writeable", c_uint64),
        ("most", c_uint64),
        ("access_word", c_uint32),
        ("carried_out", c_uint32),
        ("counted", c_uint32),
        ("reserved_first", c_uint32),
        ("result", c_int32 * STOPS),
    )


class Ring(Structure):
    """``struct pv_ring``."""

    _fields_ = (
        ("slots", c_void_p),
        ("guest_line", c_void_p),
        ("device_line", c_void_p),
        ("entries", c_uint32),
        ("completed", c_uint32),
        ("broken", c_uint32),
        ("number", c_uint32),
        ("awaited", c_uint32),
    )


class Rings(Structure):
    """``struct pv_rings``."""

    _fields_ = (
        ("core", c_void_p),
        ("rings", c_void_p),
        ("count", c_uint64),
        ("operations", Operation * KINDS),
        ("history", c_void_p),
    )


class Report(Structure):
    """``struct pv_report``."""

    slots: int
    posted: int
    failed: int
    maps: int
    unmaps: int
    pages_mapped: int
    pages_unmapped: int
    waits: int
    reason: int
    interrupt: int
    unpublished: int
    ring: int
    sequence: int
    result: int
    _fields_ = (
        ("slots", c_uint64),
        ("posted", c_uint64),
        ("failed", c_uint64),
        ("maps", c_uint64),
        ("unmaps", c_uint64),
        ("pages_mapped", c_uint64),
        ("pages_unmapped", c_uint64),
        ("waits", c_uint64),
        ("reason", c_uint32),
        ("interrupt", c_uint32),
        ("unpublished", c_uint32),
        ("ring", c_uint32),
        ("sequence", c_uint32),
        ("result", c_int32),
    )


_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "pv_pool_destroy": (None, c_void_p),
    "pv_table_init": (c_int, c_void_p, c_void_p, c_uint64, c_uint32),
    "pv_table_destroy": (None, c_void_p),
    "pv_table_reserve": (c_int, c_void_p, c_int64),
    "pv_table_release": (None, c_void_p),
    "pv_table_map": (c_uint64, c_void_p, c_uint64, c_uint64, c_uint64, c_uint64, c_uint32),
    "pv_table_joins": (c_int, c_void_p, c_uint64, c_uint64, c_uint64),
    "pv_table_unmap": (c_uint64, c_void_p, c_uint64, c_uint64, c_uint32),
    "pv_table_leaves": (c_uint64, c_void_p, c_void_p, c_uint64, c_void_p, c_uint64),
    "pv_table_last_start": (c_int, c_void_p, c_uint64, c_uint64, c_void_p),
    "pv_table_run": (c_int, c_void_p, c_uint64, c_uint64, c_void_p),
    "pv_table_leaf": (c_int, c_void_p, c_uint64, c_void_p),
    "pv_core_create": (c_void_p, c_uint64),
    "pv_core_destroy": (None, c_void_p),
    "pv_core_change_backed": (c_int, c_void_p, c_uint64, c_uint64, c_void_p, c_uint64),
    "pv_core_set_reserved": (c_int, c_void_p, c_void_p, c_uint64),
    "pv_core_hide": (None, c_void_p, c_uint32),
    "pv_core_show": (c_int, c_void_p, c_uint32, c_void_p, c_void_p, c_uint64, c_void_p, c_uint64, c_uint32),
    "pv_ring_execute": (None, c_void_p, c_uint32, c_uint32, c_uint64, c_void_p),
    "pv_spin": (None, c_void_p, c_uint64, c_uint64, c_uint64, c_int, c_void_p),
    "pv_memory_create": (c_void_p,),
    "pv_memory_destroy": (None, c_void_p),
    "pv_guarded_copy": (c_uint64, c_void_p, c_void_p, c_uint64),
    "pv_memory_add": (c_int, c_void_p, c_uint64, c_uint64, c_void_p),
    "pv_memory_remove": (None, c_void_p, c_uint64, c_uint64),
    "pv_memory_has": (c_int, c_void_p, c_void_p, c_uint64),
    "pv_memory_copy": (c_uint64, c_void_p, c_void_p, c_uint64, c_void_p, c_uint64, c_uint32),
    "pv_core_walk": (
        *(c_int64, c_void_p, c_uint32, c_void_p, c_uint64, c_uint64),
        *(c_void_p, c_uint64, c_void_p),
    ),
    "pv_core_walk_spans": (c_uint32, c_void_p, c_uint32, c_void_p, c_uint64, c_uint64, c_void_p),
}
"""Types of result and arguments."""


class Library:
    """The functions, by their names."""

    def __init__(self, path: Path) -> None:
        """Raises :class:`OSError` for a file that does not load here."""
        # PyDLL: the calls are short, and giving the interpreter's lock away and back would be much of them
        self._library = ctypes.PyDLL(str(path))
        for name, (result, *arguments) in _FUNCTIONS.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the native library has no function {name}")


@cache
def load(path: Path) -> Library:
    """The library at ``path``, loaded once."""
    return Library(path)
