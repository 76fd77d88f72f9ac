"""The last operations of an engine, in a ring of records that Python and the native core write alike.

A record says who did what when, and what it changed: its number is a sequence without gaps, `before` and `after` are
what the first page (or the endpoint) had and has. What reads it never waits for what writes it: old records go.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from ..engine import Stop

__all__ = ["ENTRY", "HEADER", "NOBODY", "STOPS", "History", "Kind", "Record", "entry_of"]

HEADER = struct.Struct("<4Q")
"""Records so far, place of the next one, places, time of the native core's records: `struct pv_history` of ring.h."""
ENTRY = struct.Struct("<7Q5IiI4B")
"""The fields of :class:`Record` but for its number: `struct pv_record` of ring.h."""
NOBODY = 0xFFFFFFFF
"""A ring or stream that there is none of."""
_CHUNK = 256
_COUNT, _NEXT = 0, 1
_DFN, _NR, _KIND = 1, 3, 14
"""Places in an entry."""
_FROM_SLOT = struct.Struct("<IIi")
_SLOT_AT = struct.calcsize("<7Q3I")

STOPS = (
    None,
    Stop.NO_ACCESS,
    Stop.OUT_OF_APERTURE,
    Stop.NOT_RAM,
    Stop.RESERVED,
    Stop.MAPPED,
    Stop.POOL_EXHAUSTED,
    Stop.NOT_MAPPED,
    "no memory in this process",
    *(Stop.NO_DOMAIN, Stop.NOT_PAGING, Stop.ENDPOINTS_ATTACHED, Stop.NESTED_ATTACHED, Stop.NO_ENDPOINT),
    *(Stop.CUT, Stop.RESERVED_CONFLICT, Stop.GUEST_TABLES),
)
"""By :attr:`Record.stop`: why an operation stopped; the first ones in the order of `enum pv_stop` of core.h."""


class Kind(IntEnum):
    """What was done. The first two are those of `enum pv_kind` of ring.h."""

    MAP = 0
    UNMAP = 1
    ALLOC = 2
    FREE = 3
    ATTACH = 4
    BLOCK = 5
    UNBLOCK = 6
    RESET = 7
    RAM = 8


def entry_of(page: tuple[int, int] | None) -> int:
    """What :attr:`Record.before` and :attr:`Record.after` say of a page, (gfn, access bits): 0 of an unmapped one."""
    return 0 if page is None else page[0] << 2 | page[1]


class Record(NamedTuple):
    """One operation. Frames and counts are pages of 4 KiB, times nanoseconds of the inputs' clock."""

    number: int
    """from 0 on, without gaps"""
    time_ns: int
    """when; of what the native core carried out, when it last looked at the clock: a few microseconds earlier"""
    dfn: int
    gfn: int
    nr: int
    """pages asked for"""
    done: int
    """pages changed"""
    before: int
    """of the first page: gfn << 2 | access bits, 0 if it was not mapped; of an attachment: the domain left"""
    after: int
    domain: int
    stream: int
    """:data:`NOBODY` if it concerns none"""
    ring: int
    """number of the ring that it came by; :data:`NOBODY`: by none"""
    slot: int
    """index of its slot, as the ring's producer index counts"""
    sequence: int
    """of its slot, as the guest wrote it there"""
    result: int
    """what the guest was answered: 0 or a negative errno"""
    spare: int
    kind: int
    access: int
    stop: int
    """place in :data:`STOPS`"""
    padding: int

    def covers(self, dfn: int) -> bool:
        """Whether it changed this page."""
        return self.dfn <= dfn < self.dfn + self.done

    def asks_for(self, dfn: int) -> bool:
        """Whether this page was among those that it was to change."""
        return self.dfn <= dfn < self.dfn + self.nr


class History:
    """The last operations, at most :attr:`size` of them; each takes 88 bytes."""

    def __init__(self, size: int) -> None:
        """Raises ValueError for a size below 1."""
        if size < 1:
            raise ValueError(f"a history of {size} operations: must be 1 or more")
        self.size = size
        self.buffer = bytearray(HEADER.size + size * ENTRY.size)
        """where the native core writes too; never resized"""
        self._head = memoryview(self.buffer)[: HEADER.size].cast("Q")
        HEADER.pack_into(self.buffer, 0, 0, 0, size, 0)

    @property
    def count(self) -> int:
        """Operations so far: the number of the next record."""
        return self._head[_COUNT]

    @property
    def oldest(self) -> int:
        """Number of the oldest record that is left."""
        return max(0, self.count - self.size)

    def add(
        self,
        time_ns: int,
        kind: Kind,
        domain: int,
        *,
        dfn: int = 0,
        gfn: int = 0,
        nr: int = 0,
        done: int = 0,
        before: int = 0,
        after: int = 0,
        access: int = 0,
        stop: int = 0,
        stream: int = NOBODY,
        ring: int = NOBODY,
    ) -> int:
        """A new record, whose slot is not known yet; its number. Numbers that do not fit 64 bits are cut."""
        head = self._head
        place = head[_NEXT]
        ENTRY.pack_into(
            self.buffer,
            HEADER.size + place * ENTRY.size,
            *(time_ns, dfn & _64, gfn & _64, nr & _64, done, before & _64, after & _64, domain, stream, ring),
            *(0, 0, 0, 0, kind, access, stop, 0),
        )
        head[_NEXT] = place + 1 if place + 1 < self.size else 0
        head[_COUNT] += 1
        return head[_COUNT] - 1

    def complete(self, number: int, slot: int, sequence: int, result: int) -> None:
        """Say which slot a record came from, and what was answered; nothing if the record is gone."""
        if number >= self.oldest:
            place = HEADER.size + number % self.size * ENTRY.size + _SLOT_AT
            _FROM_SLOT.pack_into(self.buffer, place, slot, sequence, result)

    def back(self, number: int | None = None) -> Iterator[Record]:
        """Records before ``number``, or all, the last one first. What goes meanwhile is left out."""
        for first, entries in self.chunks(number):
            for place in range(len(entries) - 1, -1, -1):
                yield Record(first + place, *entries[place])

    def on_page(self, dfn: int, number: int | None = None, least: int = 0) -> Iterator[list[Record]]:
        """As :meth:`back`, down to ``least``, without maps and unmaps that were not about this page: in bounded steps,
        most of which give nothing.
        """
        for first, entries in self.chunks(number, least):
            yield [
                Record(first + place, *entries[place])
                for place in range(len(entries) - 1, -1, -1)
                if entries[place][_KIND] > Kind.UNMAP or 0 <= dfn - entries[place][_DFN] < entries[place][_NR]
            ]

    def chunks(self, number: int | None = None, least: int = 0) -> Iterator[tuple[int, list[tuple[int, ...]]]]:
        """The same as (number of the first one, records without their numbers), each chunk in order."""
        position = self.count if number is None else min(number, self.count)
        while position > (oldest := max(self.oldest, least)):
            last = (position - 1) % self.size
            first = max(oldest, position - _CHUNK, position - 1 - last)  # not across the end of the buffer
            begin = HEADER.size + first % self.size * ENTRY.size
            raw = bytes(memoryview(self.buffer)[begin : begin + (position - first) * ENTRY.size])
            yield first, list(ENTRY.iter_unpack(raw))
            position = first


_64 = (1 << 64) - 1
