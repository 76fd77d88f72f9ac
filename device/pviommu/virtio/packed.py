"""Packed rings (section 2.8): descriptors that both sides write, and a word of each side about notifications."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ..pci.shared_memory import fence
from .ring import DESCRIPTOR, MAX_CHAIN, Buffer, Flags, Ring, RingError, Spans, Used, need_event

__all__ = ["ALIGNMENT", "PackedRing"]

ALIGNMENT = (16, 4, 4)
"""of descriptor ring, driver event suppression and device event suppression"""
_ENABLE, _DISABLE, _DESC = 0, 1, 2
"""``RING_EVENT_FLAGS_...``"""
_WRAP = 1 << 15
_EVENT = struct.Struct("<HH")
"""``pvirtq_event_suppress``: offset with wrap counter, flags"""
_USED = struct.Struct("<LHH")
"""what the device writes of a descriptor: length, buffer ID, flags"""
_USED_OFFSET = 8
_FLAGS_OFFSET = 14
_Chain = tuple[Spans, int, int, tuple[int, int] | None]
"""The spans of a list of descriptors, how many they are, their buffer ID, and the indirect table, if it is one."""


class PackedRing(Ring):
    """See :class:`.ring.Ring`. ``next_avail`` and ``next_used`` are places in the ring, each with its wrap counter."""

    def _fetch(self, count: int) -> list[Buffer]:
        """The flags of a buffer's first descriptor say that all of it is there. So they are looked at before what they
        tell of is copied.
        """
        state = self.state
        whole = [(state.desc, DESCRIPTOR.size * state.size)]
        place, wrap = self._after(sum(each.descriptors for each in self.fetched))
        if not self._is_available(self._dma.read([(state.desc + DESCRIPTOR.size * place + _FLAGS_OFFSET, 2)]), 0, wrap):
            return []
        seen, ring = self._dma.read(whole), self._dma.read(whole)
        chains: list[_Chain] = []
        free = state.size - sum(each.descriptors for each in self.fetched)
        while len(chains) < count and free:
            if not self._is_available(seen, DESCRIPTOR.size * place + _FLAGS_OFFSET, wrap):
                break
            chain = self._chain(ring, place, free)
            chains.append(chain)
            free -= chain[1]
            place, wrap = self._past(place, wrap, chain[1])
        tables = self._read_tables([indirect for *_, indirect in chains])
        buffers = []
        for (spans, taken, buffer_id, indirect), content in zip(chains, tables, strict=False):
            if indirect:
                for address, length, _, flags in DESCRIPTOR.iter_unpack(content):
                    spans.add(address, length, flags)
            buffers.append(Buffer(buffer_id, taken, spans.readable, spans.writable))
        return buffers

    @staticmethod
    def _is_available(data: bytes, offset: int, wrap: bool) -> bool:
        flags = int.from_bytes(data[offset : offset + 2], "little")
        return bool(flags & Flags.AVAIL) is wrap and bool(flags & Flags.USED) is not wrap

    def _past(self, place: int, wrap: bool, descriptors: int) -> tuple[int, bool]:
        place += descriptors
        return (place - self.state.size, not wrap) if place >= self.state.size else (place, wrap)

    def _after(self, descriptors: int) -> tuple[int, bool]:
        """The place so many descriptors after the next one that is not used."""
        return self._past(self.state.next_avail, self.state.avail_wrap, descriptors)

    def _chain(self, ring: bytes, place: int, free: int) -> _Chain:
        spans = Spans()
        most = min(free, MAX_CHAIN)
        for taken in range(1, most + 1):
            address, length, buffer_id, flags = DESCRIPTOR.unpack_from(ring, place * DESCRIPTOR.size)
            if flags & Flags.INDIRECT:
                if taken > 1 or flags & Flags.NEXT:
                    raise RingError("an indirect table in a list of descriptors")
                return spans, taken, buffer_id, self._check_table(address, length)
            spans.add(address, length, flags)
            if not flags & Flags.NEXT:
                return spans, taken, buffer_id, None
            place, _ = self._past(place, True, 1)
        raise RingError(f"a list of more than {most} descriptors")

    def _advance(self, buffers: int, descriptors: int) -> None:
        self.state.next_avail, self.state.avail_wrap = self._after(descriptors)

    def _write_used(self, used: Sequence[Used]) -> None:
        """The first one is written last: before that the driver sees none of them."""
        state = self.state
        place, wrap = state.next_used, state.used_wrap
        entries = []
        for each in used:
            flags = (Flags.AVAIL | Flags.USED if wrap else 0) | (Flags.WRITE if each.has_writable else 0)
            offset = state.desc + DESCRIPTOR.size * place + _USED_OFFSET
            entries.append(((offset, _USED.size), _USED.pack(each.written, each.id, flags)))
            place, wrap = self._past(place, wrap, each.descriptors)
        entries.append(entries.pop(0))
        self._dma.write([span for span, _ in entries], b"".join([data for _, data in entries]))
        state.next_used, state.used_wrap = place, wrap
        state.untold += sum(each.descriptors for each in used)

    def _wants_interrupt(self, entries: int) -> bool:
        fence()  # used descriptors first, as the driver says what it wants before it looks at them
        place, flags = _EVENT.unpack(self._dma.read([(self.state.driver, _EVENT.size)]))
        kind: int = flags & 3
        if kind != _DESC or not self._event_idx:
            return kind != _DISABLE
        event = place & ~_WRAP
        if bool(place & _WRAP) is not self.state.used_wrap:
            event -= self.state.size
        return need_event(event, self.state.next_used, self.state.next_used - entries)

    def _ask(self) -> None:
        if self._event_idx:
            place, wrap = self._after(sum(each.descriptors for each in self.fetched))
            event = _EVENT.pack(place | (_WRAP if wrap else 0), _DESC)
        else:
            event = _EVENT.pack(0, _ENABLE)
        self._dma.write([(self.state.device, _EVENT.size)], event)
        fence()

    def hush(self) -> None:
        self._dma.write([(self.state.device, _EVENT.size)], _EVENT.pack(0, _DISABLE))
