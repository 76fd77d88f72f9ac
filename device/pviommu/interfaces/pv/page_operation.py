"""Maps and unmaps as a profile declares them: only numbers, used by Python's rings and by those of a native core alike.

Whoever carries out a slot keeps this order: the header and :attr:`PageOperation.must_read` (-EINVAL), then
:attr:`PageOperation.most`, then what :meth:`pviommu.engine.Engine.map` and ``unmap`` check.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntFlag
from functools import cached_property, reduce
from operator import itemgetter, or_
from typing import Any, NamedTuple

from pviommu_abi.slots import PAYLOAD_OFFSET, PAYLOAD_SIZE, Slot, SlotFlags
from wire_layout import Field, Record

from ...engine import Access, Stop
from ...probes import Probes

__all__ = [
    "MAP_STOPS",
    "UNMAP_STOPS",
    "PageKinds",
    "PageOperation",
    "PageRules",
    "access_by",
    "bits_of",
    "must_be_zero",
    "watched_kinds",
]

MAP_STOPS = frozenset(
    (
        *(Stop.NO_DOMAIN, Stop.NOT_PAGING, Stop.GUEST_TABLES, Stop.NO_ACCESS, Stop.OUT_OF_APERTURE),
        *(Stop.NOT_RAM, Stop.RESERVED, Stop.MAPPED, Stop.POOL_EXHAUSTED),
    )
)
"""What may stop a map."""
UNMAP_STOPS = frozenset(
    (Stop.NO_DOMAIN, Stop.NOT_PAGING, Stop.GUEST_TABLES, Stop.OUT_OF_APERTURE, Stop.RESERVED, Stop.NOT_MAPPED)
)
"""What may stop an unmap."""
_WORD = 8
"""Bytes that a native core reads at once."""
_HEADER = int.from_bytes(Slot(0xFF, 0xFF, 0xFFFF & ~int(SlotFlags.POSTED), 0).pack(), "little")
"""Bits of a slot's header that are fixed."""


class PageKinds(IntFlag):
    """A set of operations on pages."""

    MAP = 1
    UNMAP = 2
    BOTH = 3


_WATCHED = {
    "op.map_pages": PageKinds.MAP,
    "op.unmap_pages": PageKinds.UNMAP,
    "table.map": PageKinds.MAP,
    "table.unmap": PageKinds.UNMAP,
    "iotlb.lookup": PageKinds.UNMAP,
    "iotlb.fill": PageKinds.UNMAP,
    "iotlb.invalidate": PageKinds.UNMAP,
    "ring.fetch": PageKinds.BOTH,
    "ring.decode": PageKinds.BOTH,
    "ring.complete": PageKinds.BOTH,
}
"""Probes that a core would go past, by kind."""


def watched_kinds(probes: Probes) -> PageKinds:
    """The kinds whose slots somebody watches, so that no core may carry them out."""
    return reduce(or_, (kind for name, kind in _WATCHED.items() if probes.is_watched(name)), PageKinds(0))


def bits_of(field: Field) -> int:
    """The bits of a field in a payload that is read as a little-endian number."""
    return ((1 << 8 * field.size) - 1) << 8 * field.offset


def access_by(read: int, write: int) -> dict[int, Access]:
    """What access flags allow, for every combination of their two bits ``read`` and ``write``."""
    return {0: Access(0), read: Access.READ, write: Access.WRITE, read | write: Access.READ | Access.WRITE}


def must_be_zero(record: type[Record], flags: str = "", allowed: int = 0, *, is_answer: bool = False) -> int:
    """The bits of a payload that an operation with the structure ``record`` requires to be 0: what lies behind it, its
    padding, and the bits of its field ``flags`` that are not ``allowed``. Padding of an answer is not checked, because
    it is written.
    """
    mask = (1 << 8 * PAYLOAD_SIZE) - (1 << 8 * record.SIZE)
    for each in record.FIELDS:
        if each.name == flags:
            mask |= bits_of(each) & ~(allowed << 8 * each.offset)
        elif each.name.startswith("pad") and not is_answer:
            mask |= bits_of(each)
    return mask


@dataclass(frozen=True, eq=False, kw_only=True)
class PageOperation:
    """A map or an unmap of one profile. Raises ValueError for a declaration that not every core could carry out."""

    op_class: int
    op: int
    """number in the slot's header"""
    record: type[Record]
    """the payload's structure, with fields ``ctx_no``, ``dfn``, ``nr_pages`` and, of a map, ``gfn``; fields named pad
    are 0
    """
    count: str
    """the field to which the pages done are written"""
    results: Mapping[Stop, int]
    """a negative errno for each of :data:`MAP_STOPS` or :data:`UNMAP_STOPS`"""
    fixed: Mapping[str, int] = field(default_factory=dict)
    """values that fields must have"""
    flags: str = ""
    """the field with the access flags of a map, whose other bits must be 0; an unmap has none"""
    readable: int = 0
    """the bit of ``flags`` for reading"""
    writeable: int = 0
    """the bit for writing, another one"""
    adds: bool = False
    """whether the pages done are added to what ``count`` held"""
    uncounted: tuple[Stop, ...] = ()
    """outcomes after which the payload stays as it was"""
    most: int = (1 << 64) - 1
    """pages"""
    too_many: int = 0
    """result for more pages than ``most``, and then nothing changes"""
    reserved_first: bool = False
    """whether a reserved page outranks a frame that is not RAM"""

    def __post_init__(self) -> None:
        fields = {each.name: each for each in self.record.FIELDS}
        name = self.record.__name__
        for used in (*self._operands(), *self.fixed):
            if used not in fields:
                raise ValueError(f"{name} has no field {used!r}, which a map or an unmap needs")
            if fields[used].offset // _WORD != (fields[used].offset + fields[used].size - 1) // _WORD:
                raise ValueError(f"{name}.{used}: at byte {fields[used].offset} it would be read in two parts")
        if missing := (MAP_STOPS if self.is_map else UNMAP_STOPS) - set(self.results):
            raise ValueError(f"{name}: no result for {', '.join(sorted(stop.name for stop in missing))}")
        for stop, result in self.results.items():
            if result >= 0:
                raise ValueError(f"{name}: {stop.name} is {result}, a result is a negative errno")
        if self.is_map:
            bits = (int(self.readable), int(self.writeable))
            limit = 1 << 8 * fields[self.flags].size
            if bits[0] == bits[1] or not all(bit.bit_count() == 1 and 0 < bit < limit for bit in bits):
                raise ValueError(f"{name}.{self.flags}: {bits[0]:#x} to read, {bits[1]:#x} to write: not a bit each")

    @property
    def is_map(self) -> bool:
        """Whether it maps."""
        return bool(self.flags)

    def _operands(self) -> tuple[str, ...]:
        return ("ctx_no", "dfn", "nr_pages", self.count, *(("gfn", self.flags) if self.is_map else ()))

    @cached_property
    def must_read(self) -> tuple[int, int]:
        """(mask, value) of the bits of the payload, as a little-endian number, that are fixed."""
        mask = must_be_zero(self.record, self.flags, self.readable | self.writeable)
        value = 0
        for name, number in self.fixed.items():
            field = self.record.field_named(name)
            mask |= bits_of(field)
            value |= number << 8 * field.offset
        return mask, value

    @cached_property
    def slot_must_read(self) -> tuple[int, int]:
        """As :attr:`must_read`, for the whole slot."""
        fixed, value = self.must_read
        header = int.from_bytes(Slot(self.op_class, self.op, 0, 0).pack(), "little")
        return _HEADER | fixed << 8 * PAYLOAD_OFFSET, header | value << 8 * PAYLOAD_OFFSET

    @cached_property
    def access(self) -> Mapping[int, Access]:
        """What is allowed, by the value of ``flags``."""
        return access_by(int(self.readable), int(self.writeable))

    @cached_property
    def operands(self) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
        """Picks ``ctx_no``, ``dfn``, ``nr_pages``, ``count`` and, for a map, ``gfn`` and ``flags`` out of the values
        that :attr:`unpack` gives.
        """
        names = [each.name for each in self.record.FIELDS]
        return itemgetter(*map(names.index, self._operands()))

    @cached_property
    def unpack(self) -> Callable[[bytes], tuple[Any, ...]]:
        """All values of the structure at the beginning of a payload."""
        return self.record.STRUCT.unpack_from

    @cached_property
    def place(self) -> tuple[int, int, int, int]:
        """Offset and size of the count, in bytes, its largest value, and a mask of the bits of its old value to which
        the pages done are added.
        """
        field = self.record.field_named(self.count)
        largest = (1 << 8 * field.size) - 1
        return field.offset, field.size, largest, largest if self.adds else 0


class _PageRules(NamedTuple):
    map: PageOperation
    unmap: PageOperation


class PageRules(_PageRules):
    """The maps and the unmaps of a profile. Raises ValueError if one slot could be both."""

    __slots__ = ()

    def __new__(cls, map: PageOperation, unmap: PageOperation) -> PageRules:
        (fixed, value), (fixed_too, value_too) = map.slot_must_read, unmap.slot_must_read
        if not fixed & fixed_too & (value ^ value_too):
            raise ValueError(f"{map.record.__name__} and {unmap.record.__name__}: one slot could be both")
        return super().__new__(cls, map, unmap)
