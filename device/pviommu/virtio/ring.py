"""What split and packed rings have in common: buffers in order, and when to notify.

A ring is in guest memory, all of it written by the guest at any time. So the device looks at each part once, checks
its copy, and goes on with that. All of it is DMA of the endpoint: any method may raise
:class:`pviommu.dma.fault.DmaPendingError`, after which it is called again, and
:class:`pviommu.dma.fault.DmaRefusedError`.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from ..dma.plan import Span
from .features import INDIRECT_DESC, RING_EVENT_IDX
from .layout import NO_VECTOR

__all__ = [
    "BATCH",
    "DESCRIPTOR",
    "MAX_CHAIN",
    "MAX_DESCRIPTORS",
    "Buffer",
    "Dma",
    "Flags",
    "QueueState",
    "Ring",
    "RingError",
    "Spans",
    "Used",
    "need_event",
    "plain_buffer",
]

MAX_CHAIN = 256
"""Descriptors of one buffer, at most: more would take a step too long."""
BATCH = 64
"""Buffers that are fetched at once, at most."""
MAX_DESCRIPTORS = 512
"""Descriptors that are looked at in one fetch, but for those of its first buffer, so that a fetch takes no longer."""
DESCRIPTOR = struct.Struct("<QLHH")
"""A descriptor: address, length, then flags and next in a split ring, buffer ID and flags in a packed one."""


class Flags:
    """``VIRTQ_DESC_F_...``."""

    NEXT = 1
    WRITE = 2
    INDIRECT = 4
    AVAIL = 1 << 7
    USED = 1 << 15


class RingError(Exception):
    """The driver broke a rule of the ring, so that nothing is certain there any more. The text says which."""


class Buffer(NamedTuple):
    """What the driver made available as one: a chain of descriptors."""

    id: int
    """by which it is given back"""
    descriptors: int
    """how many entries of the ring's descriptor area it takes"""
    readable: list[Span]
    writable: list[Span]
    """which begin where the readable ones end; none is empty"""


_new_buffer = tuple.__new__
"""Makes a :class:`Buffer` in half the time of ``Buffer()``."""


def plain_buffer(buffer_id: int, address: int, length: int, flags: int) -> Buffer | None:
    """A buffer of one descriptor that refers to memory, as most are; None for anything else, and for what must be
    looked at more closely.
    """
    if flags & (Flags.NEXT | Flags.INDIRECT) or not length or address >> 63:
        return None
    span = [(address, length)]
    return _new_buffer(Buffer, (buffer_id, 1, [], span) if flags & Flags.WRITE else (buffer_id, 1, span, []))


class Used(msgspec.Struct, array_like=True):
    """A buffer that the device is done with."""

    id: int
    descriptors: int
    written: int
    has_writable: bool


class QueueState(msgspec.Struct):
    """One queue. Buffers that were fetched and not used are fetched again by whoever goes on from such a state."""

    size: int = 0
    """entries; 0 for a queue that there is not"""
    vector: int = NO_VECTOR
    enabled: bool = False
    desc: int = 0
    driver: int = 0
    device: int = 0
    next_avail: int = 0
    """where the next buffer that is not used yet begins; in a split ring it counts up to 65535"""
    next_used: int = 0
    """where the next used buffer is to be written"""
    avail_wrap: bool = True
    used_wrap: bool = True
    """the wrap counters of a packed ring, at those places"""
    used: list[Used] = msgspec.field(default_factory=list)
    """what the driver has not been told yet"""
    untold: int = 0
    """entries that are in the used ring, without it having been decided whether that needs an interrupt"""
    asked: bool = False
    """the driver was asked to notify of the next buffer, and has not done so yet"""


class Dma(Protocol):
    """See :class:`pviommu.dma.port.DmaPort`."""

    def read(self, spans: Sequence[Span]) -> bytes: ...
    def write(self, spans: Sequence[Span], data: bytes | memoryview) -> None: ...


def need_event(event: int, new: int, old: int) -> bool:
    """Whether ``event`` is among the entries from ``old`` on, before ``new``; all of 16 bits (section 2.7.10)."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


class Ring(ABC):
    """The device's side of one queue that is enabled. Buffers are used in the order in which they came."""

    def __init__(self, state: QueueState, dma: Dma, features: int) -> None:
        self.state = state
        self._dma = dma
        self._event_idx = bool(features & RING_EVENT_IDX)
        self._indirect = bool(features & INDIRECT_DESC)
        self.features = self._event_idx, self._indirect
        """what was negotiated of notifications by index, and of indirect tables"""
        self.fetched: deque[Buffer] = deque()
        """copies of the next buffers, as far as they were looked for"""
        self.is_dry = False
        """whether the last look found fewer buffers than there was room for; whoever looks may set it to False"""
        self.used = 0
        """how many were used"""

    # -- available buffers ------------------------------------------------------------------------------------------

    def peek(self, count: int = 1) -> Sequence[Buffer]:
        """The next buffers, ``count`` of them or, if there are less or :data:`BATCH` is less, fewer."""
        if len(self.fetched) < min(count, BATCH):
            room = BATCH - len(self.fetched)
            more = self._fetch(room)
            self.is_dry = len(more) < room
            self.fetched.extend(more)
        return self.fetched

    @property
    def is_full(self) -> bool:
        """Whether the driver cannot make more buffers available before some of those fetched are used."""
        return len(self.fetched) >= BATCH or sum(each.descriptors for each in self.fetched) >= self.state.size

    @property
    def is_untold(self) -> bool:
        """Whether there is something that :meth:`publish` would tell the driver."""
        return bool(self.state.used or self.state.untold)

    def use(self, *written: int) -> None:
        """The next buffers are done with, so many bytes of each of them written. :meth:`publish` tells the driver."""
        state, next_buffer, total = self.state, self.fetched.popleft, 0
        for length in written:
            buffer_id, descriptors, _, writable = next_buffer()
            total += descriptors
            state.used.append(Used(buffer_id, descriptors, length, bool(writable)))
        self.used += len(written)
        self._advance(len(written), total)

    @abstractmethod
    def _fetch(self, count: int) -> list[Buffer]:
        """Up to ``count`` buffers after those in :attr:`fetched`. Raises :class:`RingError`."""

    @abstractmethod
    def _advance(self, buffers: int, descriptors: int) -> None:
        """Move ``next_avail`` past so many buffers, which have so many descriptors together."""

    # -- used buffers -----------------------------------------------------------------------------------------------

    def publish(self) -> bool:
        """Tell the driver of all used buffers. Returns whether it wants an interrupt for them."""
        if self.state.used:
            self._write_used(self.state.used)
            self.state.used.clear()
        if not self.state.untold:
            return False
        wanted = self._wants_interrupt(self.state.untold)
        self.state.untold = 0
        return wanted

    @abstractmethod
    def _write_used(self, used: Sequence[Used]) -> None:
        """Write them to the ring, so that the driver sees the first of them last, or all at once."""

    @abstractmethod
    def _wants_interrupt(self, entries: int) -> bool:
        """Whether the driver wants an interrupt for the last so many entries."""

    # -- notifications of the driver --------------------------------------------------------------------------------

    def ask(self) -> bool:
        """Ask the driver to notify the device of the next buffer. Returns whether there is none yet beyond those that
        were fetched."""
        fetched = len(self.fetched)
        self._ask()
        if len(self.peek(fetched + 1)) > fetched:
            return False
        self.state.asked = True
        return True

    @abstractmethod
    def _ask(self) -> None:
        """Write that. A look at the ring afterwards sees every buffer of which there will be no notification."""

    @abstractmethod
    def hush(self) -> None:
        """Ask the driver not to notify the device."""

    def notified(self) -> None:
        """The driver has notified: as :meth:`hush`."""
        self.hush()

    # -- descriptors ------------------------------------------------------------------------------------------------

    def _read_tables(self, heads: Sequence[tuple[int, int] | None]) -> list[bytes]:
        """The indirect tables of the first of ``heads``, as many as are fetched at once; empty for a head without."""
        taken, total = 0, 0
        for table in heads:
            total += table[1] // DESCRIPTOR.size if table else 0
            if taken and total > MAX_DESCRIPTORS:
                break
            taken += 1
        spans = [table for table in heads[:taken] if table]
        data = memoryview(self._dma.read(spans)) if spans else memoryview(b"")
        tables = []
        for table in heads[:taken]:
            length = table[1] if table else 0
            tables.append(bytes(data[:length]))
            data = data[length:]
        return tables

    def _check_table(self, address: int, length: int) -> tuple[int, int]:
        """Where an indirect table is."""
        if not self._indirect:
            raise RingError("an indirect table, which is not negotiated")
        if not length or length % DESCRIPTOR.size or length > MAX_CHAIN * DESCRIPTOR.size:
            raise RingError(f"an indirect table of {length} bytes: 16 each for 1 to {MAX_CHAIN} descriptors")
        return address, length


class Spans:
    """The spans of one buffer while its descriptors are read."""

    def __init__(self) -> None:
        self.readable: list[Span] = []
        self.writable: list[Span] = []
        self._total = 0
        self._has_writable = False

    def add(self, address: int, length: int, flags: int) -> None:
        """One descriptor that refers to memory. Raises :class:`RingError`."""
        self._total += length
        if self._total > 1 << 32:
            raise RingError("a buffer of more than 4 GiB")
        if address + length > 1 << 64:
            raise RingError(f"a descriptor of {length:#x} bytes at {address:#x}: past the last address")
        if flags & Flags.WRITE:
            self._has_writable = True
            if length:
                self.writable.append((address, length))
        elif self._has_writable:
            raise RingError("a descriptor to read after one to write")
        elif length:
            self.readable.append((address, length))
