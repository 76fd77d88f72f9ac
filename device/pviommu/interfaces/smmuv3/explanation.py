"""What the structures and tables in memory make of an address, step by step: for people, who ask why DMA is refused.

It is looked up as a transaction would be with nothing cached, and changes nothing: no event, no flag, no cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from struct import Struct
from typing import Any

from smmuv3.events import EventType
from smmuv3.registers import Cr0
from smmuv3.structures import Cd0, Cd1, Cd2, L1Cd, L1Std, Ste0, Ste1, Ste2, Ste3
from wire_layout.registers import BitField, BitFields

from ...engine import Access
from ...engine.walk import ReadRefusal, Tables, Update, WalkFault
from .caches import Tag, Translations
from .configuration import Refused, Stream, StreamTable
from .memory import Abort, GuestReader, Structure
from .translation import Caches, Found, Request, Stale, StreamWalker, World, pretended

__all__ = ["Explained", "Seen", "explain"]

_FIELDS: dict[Structure, tuple[type[BitFields], ...]] = {
    Structure.L1STD: (L1Std,),
    Structure.STE: (Ste0, Ste1, Ste2, Ste3),
    Structure.L1CD: (L1Cd,),
    Structure.CD: (Cd0, Cd1, Cd2),
}
_ADDRESS_BITS = 32
"""A field of so many bits or more is an address, without its lowest ones."""
_TEXT = {
    EventType.C_BAD_STREAMID: "its StreamID is not in the stream table",
    EventType.F_STE_FETCH: "its stream table entry cannot be read",
    EventType.C_BAD_STE: "its stream table entry is illegal",
    EventType.F_STREAM_DISABLED: "its stream table entry allows no transactions without a SubstreamID",
    EventType.C_BAD_SUBSTREAMID: "its SubstreamID has no context descriptor",
    EventType.F_CD_FETCH: "its context descriptor cannot be read",
    EventType.C_BAD_CD: "its context descriptor is illegal",
    EventType.F_WALK_EABT: "a translation table cannot be read",
    EventType.F_TRANSLATION: "the address is not mapped",
    EventType.F_ADDR_SIZE: "an address is beyond the output size",
    EventType.F_ACCESS: "the access flag is not set",
    EventType.F_PERMISSION: "the access is not allowed",
}
"""Why a transaction is refused, by its event."""


@dataclass(frozen=True)
class Seen:
    """Something that was read."""

    what: str
    """"L1STD", "STE", "L1CD", "CD", "stage 1" or "stage 2" """
    address: int
    """where; of stage 1 below a stage 2, before that translates it"""
    value: bytes
    """empty if it cannot be read"""
    level: int | None = None
    """of a descriptor of a table"""
    fields: dict[str, int] = field(default_factory=dict)
    """of a structure: those that are not 0"""

    def report(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        value = self.value[::-1].hex() if self.level is not None else self.value.hex()
        fields = " ".join(f"{name}={number:#x}" for name, number in self.fields.items())
        return vars(self) | {"value": value, "fields": fields}


@dataclass
class Explained:
    """What was found."""

    sid: int
    event: EventType | None = None
    """why the transaction is refused; None if it is not, or nobody is told"""
    text: str = ""
    """one sentence"""
    leads_to: int | None = None
    """the address of the parent; None if it is refused"""
    reads: list[Seen] = field(default_factory=list)
    """in order"""
    cached: list[str] = field(default_factory=list)
    """what the SMMU has cached otherwise: an invalidation is missing"""

    def report(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        event = None if self.event is None else self.event.name
        return vars(self) | {"event": event, "reads": [seen.report() for seen in self.reads]}


class _NotingReader(GuestReader):
    """Reads through another one, and notes structures."""

    def __init__(self, reader: GuestReader, note: Callable[[Seen], None]) -> None:
        self._reader = reader
        self._note = note

    def read(self, address: int, size: int) -> bytes | Abort:
        return self._reader.read(address, size)

    def exchange(self, address: int, before: int, after: int) -> int | Abort:
        raise NotImplementedError("it only reads")

    def fetch(self, structure: Structure, address: int, size: int) -> bytes | Abort:
        found = self.read(address, size)
        if isinstance(found, Abort):
            self._note(Seen(structure.name, address, b""))
            return found
        words = Struct(f"<{size // 8}Q").unpack(found)
        fields: dict[str, int] = {}
        for kind, word in zip(_FIELDS[structure], words, strict=False):
            fields |= {each.name: _shown(word, each) for each in kind.fields if word & each}
        self._note(Seen(structure.name, address, found, fields=fields))
        return found


class _Tracer(StreamWalker):
    """A walker that notes what it reads of tables, and compares with what a real one has cached."""

    def __init__(self, world: World, sid: int, ssid: int | None, real: Caches, explained: Explained) -> None:
        super().__init__(world, sid, ssid)
        self._real = {"stage 1": real.stage1, "stage 2": real.stage2}
        self._explained = explained
        self.stream: Stream | Refused | None = None
        """what the STE says"""

    def look(self, iova: int, access: Access) -> Found | Refused:
        return self._translate(iova, access)

    def _stream(self, iova: int, on_stale: Callable[[Stale], None]) -> Stream | Refused:
        self.stream = super()._stream(iova, on_stale)
        return self.stream

    def _cached(
        self,
        cache: Translations,
        what: str,
        tag: Tag,
        request: Request,
        address: int,
        access: Access,
        chosen: tuple[Tables, int],
        read: Callable[[int], int | ReadRefusal],
        _: Update,
    ) -> Found | WalkFault:
        levels = iter(chosen[0].levels)

        def noted(place: int) -> int | ReadRefusal:
            number, found = next(levels).number, read(place)
            value = b"" if isinstance(found, ReadRefusal) else found.to_bytes(8, "little")
            self._explained.reads.append(Seen(what, place, value, number))
            return found

        found = super()._cached(cache, what, tag, request, address, access, chosen, noted, pretended)
        known = self._real[what].find(tag, address, access)
        if known is not None and (isinstance(found, WalkFault) or known[0] != found.output):
            self._explained.cached.append(f"{what}: {address:#x} leads to {known[0]:#x}")
        return found


def explain(world: World, sid: int, ssid: int | None, iova: int, access: Access) -> Explained:
    """What becomes of an access of a stream of the SMMU whose ``world`` is this."""
    explained = Explained(sid)
    if not world.registers.has(Cr0.SMMUEN):
        explained.leads_to = None if world.registers.aborts_all or iova >> world.config.address_bits else iova
        refused = "everything is aborted" if world.registers.aborts_all else "addresses pass as they are"
        explained.text = f"translation is off (CR0.SMMUEN), and {refused}"
        return explained
    reader = _NotingReader(world.memory, explained.reads.append)
    config = replace(world.config, cache_entries=0, strict=False)
    table = StreamTable(config, world.registers, reader)
    bare = replace(world, config=config, memory=reader, table=table, caches=Caches(config))
    tracer = _Tracer(bare, sid, ssid, world.caches, explained)
    found = tracer.look(iova, access)
    explained.text = _in_words(found, explained)
    if isinstance(found, Found):
        explained.leads_to = found.output
    elif found.event is not None:
        explained.event = found.event.type
    known = world.caches.streams.get(sid)
    if known is not None and known != tracer.stream:
        explained.cached.append("STE")
    return explained


def _shown(word: int, part: BitField) -> int:
    """The value of a field; of an address all of it."""
    return word & part if part.high - part.low >= _ADDRESS_BITS else (word & part) >> part.low


def _in_words(found: Found | Refused, explained: Explained) -> str:
    if isinstance(found, Found):
        stages = list(dict.fromkeys(seen.what for seen in explained.reads if seen.level is not None))
        return f"it leads to {found.output:#x}" + (f" by {' and '.join(stages)}" if stages else ", as it is")
    if found.event is None:
        return "its stream table entry aborts everything"
    event, last = found.event, explained.reads[-1] if explained.reads else None
    text = _TEXT[event.type]
    if event.stage_2:
        text += f", says stage 2 of the address {event.ipa or event.fetch:#x}"
    if last is not None and last.level is not None:
        text += f": {last.what} read {last.value[::-1].hex() or 'nothing'} at {last.address:#x} (level {last.level})"
    elif last is not None and event.type is not EventType.F_TRANSLATION:
        text += f": {last.what} at {last.address:#x}"
    told = "" if found.is_recorded else "; nobody is told"
    return f"{event.type.name}: {text}{told}"
