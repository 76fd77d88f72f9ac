"""Split rings (section 2.7): descriptor table, available ring and used ring."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ..pci.shared_memory import fence
from .ring import (
    DESCRIPTOR,
    MAX_CHAIN,
    MAX_DESCRIPTORS,
    Buffer,
    Flags,
    Ring,
    RingError,
    Spans,
    Used,
    need_event,
    plain_buffer,
)

__all__ = ["ALIGNMENT", "SplitRing"]

ALIGNMENT = (16, 2, 4)
"""of descriptor table, available ring and used ring"""
_MASK = 0xFFFF
_NO_INTERRUPT = 1
_NO_NOTIFY = 1
_HEADER = 4
"""bytes of flags and idx"""
_USED = struct.Struct("<LL")
_NOT_PLAIN = (0, 0, 0, 0)
"""in the place of a descriptor that there is not"""
_Chain = tuple[Spans, int, tuple[int, int] | None]
"""The spans of a chain, how many descriptors it has in the ring, and the indirect table that it ends with, if it does.
"""


class SplitRing(Ring):
    """See :class:`.ring.Ring`. ``next_avail`` and ``next_used`` count as the ``idx`` fields do."""

    def _fetch(self, count: int) -> list[Buffer]:
        state = self.state
        begin = (state.next_avail + len(self.fetched)) & _MASK
        idx = int.from_bytes(self._dma.read([(state.driver + 2, 2)]), "little")
        there = (idx - begin) & _MASK
        if not there:
            return []
        if there + len(self.fetched) > state.size:
            raise RingError(f"available idx {idx}: {there} more than {begin}, in a ring of {state.size} entries")
        count = min(there, count)
        heads, table = self._read_heads(begin, count)
        buffers = []
        for head in heads:
            place = head * DESCRIPTOR.size
            address, length, flags, _ = DESCRIPTOR.unpack_from(table, place) if place < len(table) else _NOT_PLAIN
            buffer = plain_buffer(head, address, length, flags)
            if buffer is None:
                return self._read_chains(heads, table)
            buffers.append(buffer)
        return buffers

    def _read_chains(self, heads: Sequence[int], table: bytes) -> list[Buffer]:
        """The buffers at ``heads``, whatever they are."""
        chains: list[_Chain] = []
        looked = 0
        for head in heads:
            chains.append(self._chain(table, head))
            looked += chains[-1][1]
            if looked > MAX_DESCRIPTORS:  # chains may overlap: there can be more than the ring has
                break
        tables = self._read_tables([indirect for *_, indirect in chains])
        buffers = []
        for head, (spans, taken, indirect), content in zip(heads, chains, tables, strict=False):
            if indirect:
                self._walk(content, 0, spans, len(content) // DESCRIPTOR.size, may_refer=False)
            buffers.append(Buffer(head, taken, spans.readable, spans.writable))
        return buffers

    def _read_heads(self, begin: int, count: int) -> tuple[list[int], bytes]:
        """The entries of the available ring from ``begin`` on, and then the descriptor table, all of it."""
        size = self.state.size
        place = begin % size
        first = min(count, size - place)
        ring = self.state.driver + _HEADER
        spans = [(ring + 2 * place, 2 * first)]
        if count > first:
            spans.append((ring, 2 * (count - first)))
        data = self._dma.read([*spans, (self.state.desc, DESCRIPTOR.size * size)])
        return list(struct.unpack_from(f"<{count}H", data)), data[2 * count :]

    def _chain(self, table: bytes, head: int) -> _Chain:
        spans = Spans()
        taken, indirect = self._walk(table, head, spans, min(self.state.size, MAX_CHAIN), may_refer=True)
        return spans, taken, indirect

    def _walk(
        self, table: bytes, index: int, spans: Spans, most: int, *, may_refer: bool
    ) -> tuple[int, tuple[int, int] | None]:
        entries = len(table) // DESCRIPTOR.size
        for taken in range(1, most + 1):
            if index >= entries:
                raise RingError(f"descriptor {index} of a table of {entries}")
            address, length, flags, index = DESCRIPTOR.unpack_from(table, index * DESCRIPTOR.size)
            if flags & Flags.INDIRECT:
                if not may_refer:
                    raise RingError("an indirect table in an indirect table")
                if flags & Flags.NEXT:
                    raise RingError("a descriptor with INDIRECT and NEXT")
                return taken, self._check_table(address, length)
            spans.add(address, length, flags)
            if not flags & Flags.NEXT:
                return taken, None
        raise RingError(f"a chain of more than {most} descriptors")

    def _advance(self, buffers: int, descriptors: int) -> None:
        self.state.next_avail = (self.state.next_avail + buffers) & _MASK

    def _write_used(self, used: Sequence[Used]) -> None:
        state = self.state
        entries = b"".join([_USED.pack(each.id, each.written) for each in used])
        place = state.next_used % state.size
        first = min(len(used), state.size - place)
        ring = state.device + _HEADER
        spans = [(ring + _USED.size * place, _USED.size * first)]
        if len(used) > first:
            spans.append((ring, _USED.size * (len(used) - first)))
        idx = (state.next_used + len(used)) & _MASK
        self._dma.write([*spans, (state.device + 2, 2)], entries + idx.to_bytes(2, "little"))  # in this order
        state.next_used = idx
        state.untold += len(used)

    def _wants_interrupt(self, entries: int) -> bool:
        state = self.state
        fence()  # used idx first, as the driver says what it wants before it looks at that
        if not self._event_idx:
            return not self._dma.read([(state.driver, 1)])[0] & _NO_INTERRUPT
        event = self._dma.read([(state.driver + _HEADER + 2 * state.size, 2)])
        return need_event(int.from_bytes(event, "little"), state.next_used, state.next_used - entries)

    def _ask(self) -> None:
        if self._event_idx:
            self._write_event(0)
        else:
            self._dma.write([(self.state.device, 2)], bytes(2))
        fence()

    def _write_event(self, offset: int) -> None:
        """Name the buffer of which there is to be a notification, so many after those that were fetched."""
        state = self.state
        event = (state.next_avail + len(self.fetched) + offset) & _MASK
        place = state.device + _HEADER + _USED.size * state.size
        self._dma.write([(place, 2)], event.to_bytes(2, "little"))

    def hush(self) -> None:
        if self._event_idx:  # an index that is just past
            self._write_event(-1)
        else:
            self._dma.write([(self.state.device, 2)], _NO_NOTIFY.to_bytes(2, "little"))

    def notified(self) -> None:
        if not self._event_idx:  # with it, the index that was asked for is past
            self.hush()
