"""The compiled library: its structures and functions as ctypes sees them. Names and fields are those of ``core.h``,
``ring.h``, ``walk.h``, ``commands.h`` and ``virtio.h``."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_int, c_int32, c_int64, c_uint8, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from ..engine import Refusal

__all__ = [
    "FRAME_OFFSET",
    "KINDS",
    "LEAF_FIELDS",
    "OPCODES",
    "REFUSALS",
    "SLOT_WORDS",
    "STOPS",
    "WALK_ATTEMPTS",
    "WALK_LEVELS",
    "Card",
    "Command",
    "Commands",
    "Fault",
    "Field",
    "Level",
    "Library",
    "Operation",
    "Pattern",
    "Place",
    "Pool",
    "Port",
    "Report",
    "Ring",
    "Rings",
    "Span",
    "Split",
    "Stage",
    "Table",
    "Tables",
    "Tlb",
    "Translation",
    "Used",
    "WalkReport",
    "Walked",
    "Walker",
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
WALK_LEVELS, WALK_ATTEMPTS = 6, 8
"""Most levels of a format, and updates of one descriptor: ``PV_WALK_LEVELS`` and ``PV_WALK_ATTEMPTS``."""
OPCODES = 256
"""Opcodes of commands: ``PV_OPCODES``."""
REFUSALS = {
    1: Refusal.NOT_MAPPED,
    2: Refusal.NO_PERMISSION,
    3: Refusal.OUT_OF_APERTURE,
    4: Refusal.RESERVED,
    5: Refusal.BLOCKED,
    6: Refusal.NOT_RAM,
}
"""By the numbers of ``enum pv_refusal``."""


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


class Pattern(Structure):
    """``struct pv_pattern``."""

    _fields_ = (("mask", c_uint64), ("value", c_uint64))


class Level(Structure):
    """``struct pv_level``."""

    _fields_ = (
        ("leaf", Pattern),
        ("table", Pattern),
        ("index_mask", c_uint64),
        ("leaf_address", c_uint64),
        ("leaf_reserved", c_uint64),
        ("number", c_int32),
        ("shift", c_uint32),
        ("contiguous", c_uint32),
    )


class Tables(Structure):
    """``struct pv_tables``."""

    _fields_ = (
        ("root", c_uint64),
        ("levels", Level * WALK_LEVELS),
        ("leaf_read", Pattern),
        ("leaf_write", Pattern),
        ("table_read", Pattern),
        ("table_write", Pattern),
        ("clean", Pattern),
        ("present", c_uint64),
        ("table_address", c_uint64),
        ("table_reserved", c_uint64),
        ("high", c_uint64),
        ("table_accessed", c_uint64),
        ("leaf_accessed", c_uint64),
        ("dirty", c_uint64),
        ("contiguous", c_uint64),
        ("high_shift", c_uint32),
        ("needs_accessed", c_uint32),
        ("neither", c_uint32),
        ("count", c_uint32),
        ("input_bits", c_uint32),
        ("output_bits", c_uint32),
        ("is_signed", c_uint32),
        ("updates_access", c_uint32),
        ("updates_dirty", c_uint32),
    )


class Fault(Structure):
    """``struct pv_fault``."""

    place: int
    kind: int
    level: int
    _fields_ = (("place", c_uint64), ("kind", c_uint32), ("level", c_int32))


class Walked(Structure):
    """``struct pv_walked``."""

    output: int
    descriptor: int
    shift: int
    contiguous: int
    access: int
    level: int
    _fields_ = (
        ("output", c_uint64),
        ("descriptor", c_uint64),
        ("shift", c_uint32),
        ("contiguous", c_uint32),
        ("access", c_uint32),
        ("level", c_int32),
    )


class WalkReport(Structure):
    """``struct pv_walk_report``."""

    first: Fault
    second: Fault
    refused_at: int
    refusal: int
    _fields_ = (("first", Fault), ("second", Fault), ("refused_at", c_uint64), ("refusal", c_uint32))


class Tlb(Structure):
    """The beginning of ``struct pv_tlb``."""

    count: int
    looked_at: int
    _fields_ = (("count", c_uint64), ("looked_at", c_uint64))


class Translation(Structure):
    """``struct pv_translation``."""

    output: int
    shift: int
    access: int
    _fields_ = (("output", c_uint64), ("shift", c_uint32), ("access", c_uint32))


class Stage(Structure):
    """``struct pv_stage``."""

    _fields_ = (
        ("tables", c_void_p),
        ("tlb", c_void_p),
        ("tag", c_uint64),
        ("every", c_uint64),
        ("own", c_uint64),
        ("base", c_uint64),
    )


class Place(Structure):
    """``struct pv_place``."""

    _fields_ = (("core", c_void_p), ("memory", c_void_p), ("end", c_uint64), ("ctx", c_uint32))


class Walker(Structure):
    """``struct pv_walker``."""

    _fields_ = (
        ("first", Stage),
        ("second", Stage),
        ("place", Place),
        ("pass_bits", c_uint32),
        ("updates", c_uint32),
        ("compares", c_uint32),
    )


class Command(Structure):
    """``struct pv_command``."""

    _fields_ = (("effect", c_uint32), ("scope", c_uint32), ("stages", c_uint32))


class Commands(Structure):
    """``struct pv_commands``."""

    _fields_ = (
        ("place", Place),
        ("tlbs", c_void_p * 2),
        ("commands", Command * OPCODES),
        ("opcode", Field),
        ("guest", Field),
        ("space", Field),
        ("number", Field),
        ("scale", Field),
        ("granule", Field),
        ("level", Field),
        ("completion", Field),
        ("signal", Field),
        ("signal_address", c_uint64),
        ("address", c_uint64),
        ("levels", c_uint64),
        ("silent", c_uint64),
        ("level_bits", c_uint32),
        ("page_shift", c_uint32),
        ("told", c_uint32),
        ("guest_shift", c_uint32),
        ("every", c_uint32),
        ("most_looked_at", c_uint64),
    )


class Span(Structure):
    """``struct pv_span``."""

    position: int
    end: int
    report: WalkReport
    _fields_ = (
        ("runs", c_void_p),
        ("room", c_uint64),
        ("position", c_uint64),
        ("end", c_uint32),
        ("report", WalkReport),
    )


_CHAIN, _ENTRY_COUNT = 256, 64
_FRAME_ROOM = 12 + (64 << 10) + 64


class Port(Structure):
    """``struct pv_port``."""

    _fields_ = (
        ("core", c_void_p),
        ("memory", c_void_p),
        ("line", c_void_p),
        ("step", c_void_p),
        ("requests", c_uint64),
        ("bytes", c_uint64),
        ("ctx", c_uint32),
    )


class Used(Structure):
    """``struct pv_used``."""

    _fields_ = (("id", c_uint32), ("written", c_uint32))


class Split(Structure):
    """``struct pv_split``."""

    _fields_ = (
        ("desc", c_uint64),
        ("driver", c_uint64),
        ("device", c_uint64),
        ("size", c_uint32),
        ("event_idx", c_uint32),
        ("indirect", c_uint32),
        ("next_avail", c_uint32),
        ("next_used", c_uint32),
        ("count", c_uint32),
        ("untold", c_uint32),
        ("taken", c_uint32),
        ("there", c_uint32),
        ("is_dry", c_uint32),
        ("interrupts", c_uint32),
        ("eventfd", c_int32),
        ("entries", Used * _ENTRY_COUNT),
    )


class Card(Structure):
    """``struct pv_card``."""

    _fields_ = (
        ("port", Port),
        ("rx", Split),
        ("tx", Split),
        ("sent", c_uint64),
        ("sent_bytes", c_uint64),
        ("received", c_uint64),
        ("received_bytes", c_uint64),
        ("interrupts", c_uint64),
        ("signals", c_uint64),
        ("completed", c_void_p),
        ("may_send", c_uint32),
        ("may_receive", c_uint32),
        ("reads_tap", c_uint32),
        ("merges", c_uint32),
        ("header_of_guest", c_uint32),
        ("header_for_guest", c_uint32),
        ("accepts", c_uint32),
        ("longest", c_uint32),
        ("tap", c_int32),
        ("error", c_int32),
        ("held", c_uint32),
        ("is_unusual", c_uint32),
        ("is_empty", c_uint32),
        ("may_expect", c_uint32),
        ("answer_ns", c_uint64),
        ("expected_at", c_uint64),
        ("expected_for", c_uint64),
        ("expected_after", c_uint32),
        ("mac", c_uint8 * 6),
        ("buffer", c_uint8 * _FRAME_ROOM),
        ("count", c_uint64),
        ("spans", c_uint64 * (4 * _CHAIN)),
        ("runs", c_uint64 * (4 * _CHAIN)),
        ("table", c_uint8 * (16 * _CHAIN)),
    )


FRAME_OFFSET = Card.buffer.offset
"""of the frame that a card holds, in its structure"""

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
    "pv_core_show_tables": (*(c_int, c_void_p, c_uint32, c_void_p, c_uint64, c_void_p, c_uint64, c_void_p, c_uint64),),
    "pv_core_transfer": (
        *(c_uint32, c_void_p, c_uint32, c_void_p, c_void_p, c_uint32, c_void_p, c_uint64),
        *(c_void_p, c_uint64, c_void_p, c_uint64, c_uint32),
    ),
    "pv_memory_exchange": (c_int, c_void_p, c_uint64, c_void_p, c_uint64),
    "pv_ring_execute": (None, c_void_p, c_uint32, c_uint32, c_uint64, c_void_p),
    "pv_spin": (None, c_void_p, c_uint64, c_uint64, c_uint64, c_int, c_void_p),
    "pv_memory_create": (c_void_p,),
    "pv_memory_destroy": (None, c_void_p),
    "pv_guarded_copy": (c_uint64, c_void_p, c_void_p, c_uint64),
    "pv_guarded_exchange": (c_int, c_void_p, c_void_p, c_uint64),
    "pv_memory_add": (c_int, c_void_p, c_uint64, c_uint64, c_void_p, c_uint32),
    "pv_memory_remove": (None, c_void_p, c_uint64, c_uint64),
    "pv_memory_has": (c_int, c_void_p, c_void_p, c_uint64),
    "pv_memory_copy": (c_uint64, c_void_p, c_void_p, c_uint64, c_void_p, c_uint64, c_uint32),
    "pv_core_walk": (
        *(c_int64, c_void_p, c_uint32, c_void_p, c_uint64, c_uint64),
        *(c_void_p, c_uint64, c_void_p),
    ),
    "pv_walker_leaf": (c_uint32, c_void_p, c_uint64, c_uint32, c_void_p, c_void_p),
    "pv_walker_span": (c_uint64, c_void_p, c_uint64, c_uint64, c_uint32, c_void_p),
    "pv_commands_run": (c_uint64, c_void_p, c_uint64, c_uint64),
    "pv_tlb_create": (c_void_p, c_uint32, c_uint64),
    "pv_tlb_destroy": (None, c_void_p),
    "pv_tlb_find": (c_int, c_void_p, c_uint64, c_uint64, c_uint64, c_uint32, c_void_p),
    "pv_tlb_add": (None, c_void_p, c_uint64, c_uint64, c_void_p),
    "pv_tlb_drop": (None, c_void_p, c_uint64, c_uint64, c_uint64, c_uint64, c_uint64),
    "pv_tlb_clear": (None, c_void_p),
    "pv_core_walk_spans": (c_uint32, c_void_p, c_uint32, c_void_p, c_uint64, c_uint64, c_void_p),
    "pv_card_step": (c_uint32, c_void_p, c_uint64),
}
"""Types of result and arguments."""
_SLEEPING: dict[str, tuple[Any, ...]] = {
    "pv_cards_wait": (c_uint32, c_void_p, c_uint64, c_int, c_int64, c_int64, c_int64, c_uint64),
}
"""The same of those during which other threads go on."""


class Library:
    """The functions, by their names."""

    def __init__(self, path: Path) -> None:
        """Raises :class:`OSError` for a file that does not load here."""
        # PyDLL: the calls are short, and giving the interpreter's lock away and back would be much of them
        self._library = ctypes.PyDLL(str(path))
        for library, functions in ((self._library, _FUNCTIONS), (ctypes.CDLL(str(path)), _SLEEPING)):
            for name, (result, *arguments) in functions.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
                setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the native library has no function {name}")


@cache
def load(path: Path) -> Library:
    """The library at ``path``, loaded once."""
    return Library(path)
