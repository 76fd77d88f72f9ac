"""Walks of tables in guest memory, in C: see :mod:`pviommu.engine.walk`, whose functions say what is right, and
:mod:`pviommu.engine.stages`.
"""

from __future__ import annotations

import os
import weakref
from array import array
from ctypes import addressof, c_uint64
from typing import TYPE_CHECKING, NamedTuple

from ..engine import Access
from ..engine.results import ADDRESS_LIMIT, PackedRuns, Refusal, Run
from ..engine.stages import Stage
from ..engine.walk import Leaf, Level, Pattern, ReadRefusal, Tables, WalkFault, WalkFaultKind
from . import library
from .library import REFUSALS, WALK_LEVELS, Library
from .memory import NativeCopier

if TYPE_CHECKING:
    from .core import NativeCore

__all__ = ["NativeRemembered", "NativeWalker", "Place", "Unreadable", "in_c"]

_ROOM = 1024
"""Most runs that one call finds."""
_KINDS = tuple(WalkFaultKind)
"""In the order of ``enum pv_fault_kind``, which begins with 1."""
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS, 1)}
_ACCESSES = tuple(Access(bits) for bits in range(4))
_MOST_BITS = 63
_new_tuple = tuple.__new__
"""Makes a run in half the time of ``Run()``."""
_REFUSED = 2
"""Of ``enum pv_span_end``; 0: that was all."""


class Unreadable(ReadRefusal):
    """Why a descriptor cannot be read, or what an output leads to: the stage below refuses the address, or the domain
    does, or there is no memory.
    """

    __slots__ = ("address", "below", "refusal")

    def __init__(self, address: int, refusal: Refusal | None = None, below: WalkFault | None = None) -> None:
        self.address = address
        self.refusal = refusal
        self.below = below


class Place(NamedTuple):
    """Where tables lie, and what they lead to: addresses of a domain, or of the guest itself."""

    copier: NativeCopier
    core: NativeCore | None = None
    """of the domain; None: addresses are the guest's"""
    domain: int = 0
    end: int = ADDRESS_LIMIT - 1
    """no descriptor lies there or above"""

    def in_c(self) -> library.Place:
        """It must live as long as what it is part of."""
        return library.Place(self.core.address if self.core else None, self.copier.address, self.end, self.domain)


class NativeRemembered:
    """See :class:`pviommu.engine.stages.Remembered`."""

    def __init__(self, lib: Library, limit: int) -> None:
        self._lib = lib
        address = lib.pv_tlb_create(limit, int.from_bytes(os.urandom(8), "little"))
        if not address:
            raise MemoryError("no memory for the native core")
        self._finalizer = weakref.finalize(self, lib.pv_tlb_destroy, address)
        self.address: int = address
        """of the ``struct pv_tlb``"""
        self._counts = library.Tlb.from_address(address)
        self._found, self._leaf = library.Translation(), library.Walked()
        self._found_address, self._leaf_address = addressof(self._found), addressof(self._leaf)

    def __len__(self) -> int:
        return int(self._counts.count)

    @property
    def looked_at(self) -> int:
        return int(self._counts.looked_at)

    def find(self, tag: int, every: int, address: int, access: Access) -> tuple[int, int, Access] | None:
        if not self._lib.pv_tlb_find(self.address, tag, every, address, access, self._found_address):
            return None
        found = self._found
        return found.output, found.shift, _ACCESSES[found.access]

    def add(self, tag: int, address: int, leaf: Leaf) -> None:
        self._leaf.output, self._leaf.access = leaf.output, leaf.access
        self._leaf.shift, self._leaf.contiguous = leaf.shift, leaf.contiguous
        self._lib.pv_tlb_add(self.address, tag, address, self._leaf_address)

    def drop(self, first: int, last: int, mask: int, tags: tuple[int, int]) -> None:
        self._lib.pv_tlb_drop(self.address, first, last, mask, *tags)

    def clear(self) -> None:
        self._lib.pv_tlb_clear(self.address)


class NativeWalker:
    """See :class:`pviommu.engine.stages.StageWalker`."""

    def __init__(
        self,
        lib: Library,
        place: Place,
        first: Stage | None,
        second: Stage | None = None,
        *,
        pass_bits: int = 0,
        compares: bool = False,
        updates: bool = False,
    ) -> None:
        """``updates``: as far as the tables say so, access flags are set and leaves become dirty, each descriptor by
        one atomic step. The others as of :meth:`pviommu.engine.stages.Stages.walker`. Raises ValueError for a format
        that C has no room for.
        """
        self._lib = lib
        self._kept = place, first, second
        self._tables = [in_c(stage.tables) if stage else None for stage in (first, second)]
        self._first_level = first.tables.levels[0].number if first else 0
        self._walker = library.Walker(
            _stage(first, self._tables[0]),
            _stage(second, self._tables[1]),
            place.in_c(),
            pass_bits=pass_bits,
            updates=updates,
            compares=compares,
        )
        self.address = addressof(self._walker)
        """of the ``struct pv_walker``"""
        self._leaf, self._report = library.Walked(), library.WalkReport()
        self._answers = addressof(self._leaf), addressof(self._report)
        self._runs = (c_uint64 * (2 * _ROOM))()
        self._run_bytes = memoryview(self._runs).cast("B")
        self._span = library.Span(addressof(self._runs), _ROOM)
        self._span_address = addressof(self._span)

    def walk(self, address: int, access: Access) -> Leaf | WalkFault:
        """What the first tables make of an address of 64 bits. See :func:`pviommu.engine.walk.walk`."""
        if self._lib.pv_walker_leaf(self.address, address, access, *self._answers):
            return _fault_of_first(self._report)
        leaf = self._leaf
        access = _ACCESSES[leaf.access]
        return Leaf(leaf.output, leaf.shift, access, leaf.contiguous, leaf.level, leaf.descriptor)

    def translate(
        self, address: int, length: int, access: Access
    ) -> list[Run] | PackedRuns | tuple[int, WalkFault | Unreadable]:
        """See :func:`pviommu.engine.walk.translate`; through all stages and the domain. The fault is of the first
        tables; or of the second ones, if they refuse what the first lead to; or what the domain refuses.
        """
        end = address + length
        runs, position = self.span(address, min(end, ADDRESS_LIMIT) - address, access)
        if position == end:
            return list(runs) if isinstance(runs, tuple) else runs
        if position == ADDRESS_LIMIT:
            return ADDRESS_LIMIT, WalkFault(WalkFaultKind.INPUT, self._first_level)
        return position, _fault(self._span.report)

    def span(self, address: int, length: int, access: Access) -> tuple[tuple[Run, ...] | PackedRuns, int]:
        span, position, last, bits = self._span, address, address + length - 1, access._value_
        found: array[int] | None = None
        while position <= last:
            count = self._lib.pv_walker_span(self.address, position, last, bits, self._span_address)
            position = span.position if span.end else last + 1  # which may be more than C can say
            if found is None:
                if count == 1 and not span.end:
                    return (_new_tuple(Run, (self._runs[0], length)),), position
                found = array("Q")
            found.frombytes(self._run_bytes[: 16 * count])
            if span.end == _REFUSED:
                break
        return PackedRuns(array("Q") if found is None else found), position


def _stage(stage: Stage | None, tables: library.Tables | None) -> library.Stage:
    if stage is None or tables is None:
        return library.Stage()
    if not isinstance(stage.remembered, NativeRemembered | None):
        raise TypeError("a native walker remembers in C")
    tlb = stage.remembered.address if stage.remembered is not None else None
    return library.Stage(addressof(tables), tlb, stage.tag, stage.every, stage.own, stage.base)


def _fault_of_first(report: library.WalkReport) -> WalkFault:
    if report.second.kind:
        return _in_words(report.first, Unreadable(report.first.place, None, _fault_of_second(report)))
    return _in_words(report.first, _unreadable(report))


def _fault_of_second(report: library.WalkReport) -> WalkFault:
    return _in_words(report.second, _unreadable(report))


def _unreadable(report: library.WalkReport) -> Unreadable:
    return Unreadable(report.refused_at, REFUSALS.get(report.refusal))


def _fault(report: library.WalkReport) -> WalkFault | Unreadable:
    if report.first.kind:
        return _fault_of_first(report)
    return _fault_of_second(report) if report.second.kind else _unreadable(report)


def _in_words(fault: library.Fault, cause: Unreadable) -> WalkFault:
    if fault.kind > len(_KINDS):
        raise ValueError("the lowest level of a format has leaves only")
    kind = _KINDS[fault.kind - 1]
    place = None if kind is WalkFaultKind.INPUT else fault.place
    return WalkFault(kind, fault.level, place, cause if kind is WalkFaultKind.READ else None)


def in_c(tables: Tables) -> library.Tables:
    """Tables as C takes them. Raises ValueError for a format that it has no room for."""
    levels, rules = tables.levels, tables.rules
    if not 1 <= len(levels) <= WALK_LEVELS:
        raise ValueError(f"tables of {len(levels)} levels: must be 1..{WALK_LEVELS}")
    shifts = [shift for level in levels for shift in (level.shift, level.shift + level.contiguous)]
    for bits in (tables.input_bits, tables.output_bits, rules.high_shift, *shifts):
        if not 0 <= bits <= _MOST_BITS:
            raise ValueError(f"{tables}: a shift or a width of {bits} bits: must be 0..{_MOST_BITS}")
    found = library.Tables(
        root=tables.root,
        count=len(levels),
        input_bits=tables.input_bits,
        output_bits=tables.output_bits,
        is_signed=tables.signed,
        updates_access=tables.updates_access,
        updates_dirty=tables.updates_dirty,
        leaf_read=_pattern(rules.leaf_grants.read),
        leaf_write=_pattern(rules.leaf_grants.write),
        table_read=_pattern(rules.table_grants.read),
        table_write=_pattern(rules.table_grants.write),
        clean=_pattern(rules.clean),
        needs_accessed=rules.needs_accessed,
        neither=_NUMBERS[rules.neither],
        **{name: getattr(rules, name) for name in _NAMED_ALIKE},
    )
    found.levels[: len(levels)] = [_level(level) for level in levels]
    return found


_NAMED_ALIKE = (
    *("present", "table_address", "table_reserved", "high", "high_shift"),
    *("table_accessed", "leaf_accessed", "dirty", "contiguous"),
)
"""Rules that are numbers, and have the same name in C."""


def _pattern(pattern: Pattern) -> library.Pattern:
    return library.Pattern(*pattern)


def _level(level: Level) -> library.Level:
    return library.Level(
        _pattern(level.leaf),
        _pattern(level.table),
        level.index_mask,
        level.leaf_address,
        level.leaf_reserved,
        level.number,
        level.shift,
        level.contiguous,
    )
