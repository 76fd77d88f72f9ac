"""The translation of one transaction: STE, CD, stage 1 and the guest's own stage 2, up to an address of the parent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from smmuv3.events import Event, EventClass, EventType
from smmuv3.registers import Cr0
from smmuv3.structures import SteConfig

from ...engine import Access, Parent, ParentRefusal, Refusal, Run, Stage1Run
from ...engine.nested import Stage1Answer
from ...engine.results import ADDRESS_LIMIT
from ...engine.stages import Stage, Stages, StageWalker
from ...engine.walk import Leaf, ReadRefusal, Tables, Update, WalkFault, WalkFaultKind, walk
from .caches import Cache, Tag, Translations, number_of
from .config import MAX_CACHE_ENTRIES, SmmuConfig
from .configuration import Context, Refused, Stage2, Stream, StreamTable, fetch_context, substream
from .memory import Abort, GuestReader, Structure
from .registers import SmmuRegisters

__all__ = ["Caches", "Found", "Request", "Stale", "StreamWalker", "World", "pretended"]

_BOTH = Access.READ | Access.WRITE
_NOT_GLOBAL = 1 << 11
_TYPE = {
    WalkFaultKind.INPUT: EventType.F_TRANSLATION,
    WalkFaultKind.NOT_PRESENT: EventType.F_TRANSLATION,
    WalkFaultKind.OUTPUT: EventType.F_ADDR_SIZE,
    WalkFaultKind.ACCESS_FLAG: EventType.F_ACCESS,
    WalkFaultKind.PERMISSION: EventType.F_PERMISSION,
    WalkFaultKind.CONTENDED: EventType.F_ACCESS,  # the flag could not be set
}
_REFUSAL = {
    EventType.F_TRANSLATION: Refusal.NOT_MAPPED,
    EventType.F_ADDR_SIZE: Refusal.OUT_OF_APERTURE,
    EventType.F_ACCESS: Refusal.NOT_MAPPED,
    EventType.F_PERMISSION: Refusal.NO_PERMISSION,
}


class Stale(NamedTuple):
    """Something that was used as it is cached, and is otherwise in memory: an invalidation is missing. Only a strict
    cache looks.
    """

    what: str
    """"STE", "CD", "stage 1", "stage 2", or "ATC", which is the endpoint's """
    sid: int
    ssid: int | None
    address: int
    """the input address of the transaction"""
    cached: Any
    now: object
    """the same as memory has it; a refusal or a fault if it is not valid there"""


class Caches:
    """All caches of an SMMU."""

    def __init__(self, config: SmmuConfig, stages: Stages | None = None) -> None:
        """``stages``: of a core that remembers translations."""
        limit = MAX_CACHE_ENTRIES if config.strict else config.cache_entries
        self.streams: Cache[int, Stream] = Cache(limit)
        self.contexts: Cache[tuple[int, int], Context] = Cache(limit)
        """by StreamID and index of the CD"""
        self.stage1 = Translations(limit, stages)
        self.stage2 = Translations(limit, stages)

    def looked_at(self) -> int:
        """Entries that were looked at to find those to be forgotten, ever: what invalidations cost."""
        configurations = self.streams.looked_at + self.contexts.looked_at
        return configurations + self.stage1.remembered.looked_at + self.stage2.remembered.looked_at

    def clear(self) -> None:
        """Forget everything."""
        for each in (self.streams, self.contexts, self.stage1, self.stage2):
            each.clear()


@dataclass(frozen=True)
class World:
    """What all streams of an SMMU share."""

    config: SmmuConfig
    registers: SmmuRegisters
    memory: GuestReader
    table: StreamTable
    caches: Caches
    on_stale: Callable[[Stale], None] = field(default=lambda _: None)
    stages: Stages | None = None
    """of a core that walks by itself"""


class _Faulted(ReadRefusal):
    """A descriptor of stage 1 that stage 2 refused."""

    __slots__ = ("refused",)

    def __init__(self, refused: Refused) -> None:
        self.refused = refused


class Request(NamedTuple):
    """One address of a transaction."""

    address: int
    access: Access
    stream: Stream
    on_stale: Callable[[Stale], None]


class Found(NamedTuple):
    """What a stage makes of an address."""

    output: int
    shift: int
    """within a block of so many bits"""
    access: Access


class StreamWalker:
    """The first stage of the domains of one stream, or one substream: an :class:`.engine.Stage1Walker`."""

    def __init__(self, world: World, sid: int, ssid: int | None) -> None:
        self._world = world
        self.sid = sid
        self._ssid = ssid
        self.refused: Refused | None = None
        """why the last walk was refused, if it was"""
        self._walkers: dict[bool | None, tuple[Stream, Context | None, StageWalker | None]] = {}
        """of a core, by which half of the addresses they are for; None: without stage 1"""
        self._last: tuple[tuple[int, int], int, StageWalker] | None = None
        """the one that was used last, if addresses are its input as they are: by which versions of the caches of
        configurations it was chosen, and the first address that it is not for. A strict cache looks at memory instead
        """

    def walk(self, iova: int, length: int, access: Access, _parent: Parent) -> Stage1Answer:
        """See :class:`.engine.Stage1Walker`. Tables are read as all that the SMMU reads, through the same parent."""
        return self._answered(iova, self._translate(iova, access))

    def _answered(self, iova: int, found: Found | Refused) -> Stage1Run | Refusal | ParentRefusal:
        """What was found, as the engine takes it."""
        if isinstance(found, Found):
            self.refused = None
            return Stage1Run(found.output, (1 << found.shift) - (iova & (1 << found.shift) - 1), found.access)
        self.refused = found
        if found.parent is not None:
            return found.parent
        return Refusal.BLOCKED if found.event is None else _REFUSAL.get(found.event.type, Refusal.BLOCKED)

    def kept(self, iova: int, access: Access) -> Stale | None:
        """What an endpoint's ATC has otherwise than it would be told now."""
        return None

    def span(self, address: int, length: int, access: Access) -> tuple[Sequence[Run], int]:
        """See :class:`.engine.stages.StageWalker`. Whatever the guest or somebody else has to be told of is left to
        :meth:`walk`, and so is all that needs no tables.
        """
        world = self._world
        versions = world.caches.streams.version, world.caches.contexts.version
        last = self._last
        if last is not None and last[0] == versions and address + length <= last[1] and world.registers.has(Cr0.SMMUEN):
            return last[2].span(address, length, access)
        chosen = self._choose(address, length, access)
        if chosen is None:
            return (), address
        walker, inner, end = chosen
        if inner == address and world.config.cache_entries and not world.config.strict:
            self._last = (world.caches.streams.version, world.caches.contexts.version), end, walker
        runs, position = walker.span(inner, length, access)
        return runs, address + position - inner

    def _choose(self, address: int, length: int, access: Access) -> tuple[StageWalker, int, int] | None:
        """A core's walker for a request, the address that it is to translate, and the first one that it cannot."""
        world = self._world
        told: list[Stale] = []
        if world.stages is None or not world.registers.has(Cr0.SMMUEN):
            return None
        stream = self._stream(address, told.append)
        if isinstance(stream, Refused) or stream.config is SteConfig.ABORT:
            return None
        index, context, half, inner, end = substream(stream, self.sid, self._ssid), None, None, address, ADDRESS_LIMIT
        if index is not None:
            request = Request(address, access, stream, told.append)
            found = index if isinstance(index, Refused) else self._context(request, index)
            chosen = None if isinstance(found, Refused) else found.halves.choose(address)
            if isinstance(found, Refused) or chosen is None:
                return None
            context, half, inner, end = found, bool(address >> 55 & 1), chosen[1], 1 << chosen[0].input_bits
            if inner + length > end:
                return None
        elif stream.stage2 is None:
            return None
        walker = None if told else self._walker(world.stages, stream, context, half)
        return None if walker is None else (walker, inner, end)

    def _walker(self, stages: Stages, stream: Stream, context: Context | None, half: bool | None) -> StageWalker | None:
        """None if tables are to be updated: a core only reads."""
        known = self._walkers.get(half)
        if known is not None and known[0] == stream and known[1] == context:
            return known[2]
        walker = None if _updates(stream, context) else self._make_walker(stages, stream, context, half)
        self._walkers[half] = stream, context, walker
        return walker

    def _make_walker(self, stages: Stages, stream: Stream, context: Context | None, half: bool | None) -> StageWalker:
        config, caches, every = self._world.config, self._world.caches, number_of(Tag(stream.vmid, None))
        first = second = None
        if context is not None:
            tables = context.halves.high if half else context.halves.low
            assert tables is not None  # it was chosen
            tag, base = number_of(Tag(stream.vmid, context.asid)), _canonical(bool(half) << 55, tables, 0)
            first = Stage(tables, caches.stage1.remembered, tag, every, _NOT_GLOBAL, base)
        if stream.stage2 is not None:
            second = Stage(stream.stage2.tables, caches.stage2.remembered, every, every)
        return stages.walker(first, second, config.address_bits, compares=config.strict)

    def _translate(self, iova: int, access: Access) -> Found | Refused:
        registers, bits = self._world.registers, self._world.config.address_bits
        if not registers.has(Cr0.SMMUEN):
            is_refused = registers.aborts_all or iova >> bits
            return Refused(None) if is_refused else Found(iova, bits, _BOTH)
        stream = self._stream(iova, self._world.on_stale)
        if isinstance(stream, Refused):
            return stream
        if stream.config is SteConfig.ABORT:
            return Refused(None)
        found = self._both(Request(iova, access, stream, self._world.on_stale))
        return found if isinstance(found, Refused) else found[1]

    def _both(self, request: Request) -> tuple[Found, Found] | Refused:
        """What stage 1 makes of a request, and what both stages make of it."""
        stream, iova, bits = request.stream, request.address, self._world.config.address_bits
        index = substream(stream, self.sid, self._ssid)
        if isinstance(index, Refused):
            return index
        if index is None:
            found: Found | Refused = Found(iova, bits, _BOTH)
            if iova >> bits:
                return Refused(self._event(EventType.F_ADDR_SIZE, request, EventClass.IN))
        else:
            found = self._stage1(request, index)
        if isinstance(found, Refused):
            return found
        if stream.stage2 is None:
            return found, found
        second = self._stage2(request, stream.stage2, found.output, request.access, EventClass.IN)
        if isinstance(second, Refused):
            return second
        return found, Found(second.output, min(found.shift, second.shift), found.access & second.access)

    # -- configuration ----------------------------------------------------------------------------------------------

    def _stream(self, iova: int, on_stale: Callable[[Stale], None]) -> Stream | Refused:
        world = self._world
        cached = world.caches.streams.get(self.sid)
        if cached is not None and not world.config.strict:
            return cached
        found = world.table.find(self.sid, self._ssid)
        if cached is not None:
            if found != cached:
                on_stale(Stale("STE", self.sid, self._ssid, iova, cached, found))
            return cached
        if isinstance(found, Stream):
            world.caches.streams.put(self.sid, found)
        return found

    def _context(self, request: Request, index: int) -> Context | Refused:
        world, key = self._world, (self.sid, index)
        cached = world.caches.contexts.get(key)
        if cached is not None and not world.config.strict:
            return cached

        def fetch(structure: Structure, address: int, size: int) -> bytes | Refused:
            stage2 = request.stream.stage2
            if stage2 is not None:
                where = self._stage2(request, stage2, address, Access.READ, EventClass.CD)
                if isinstance(where, Refused):
                    return where
                address = where.output
            data = world.memory.fetch(structure, address, size)
            if isinstance(data, Abort):
                return Refused(Event(EventType.F_CD_FETCH, self.sid, self._ssid, fetch=address), data.parent)
            return data

        found = fetch_context(world.config, request.stream, index, self.sid, self._ssid, fetch)
        if cached is not None:
            if found != cached:
                request.on_stale(Stale("CD", self.sid, self._ssid, request.address, cached, found))
            return cached
        if isinstance(found, Context):
            world.caches.contexts.put(key, found)
        return found

    # -- the stages -------------------------------------------------------------------------------------------------

    def _stage1(self, request: Request, index: int) -> Found | Refused:
        context = self._context(request, index)
        if isinstance(context, Refused):
            return context
        chosen = context.halves.choose(request.address)
        if chosen is None:
            event = self._event(EventType.F_TRANSLATION, request, EventClass.IN)
            return Refused(event, None, context.records, context.stalls)
        stage2 = request.stream.stage2

        def read(place: int) -> int | ReadRefusal:
            if stage2 is not None:
                where = self._stage2(request, stage2, place, Access.READ, EventClass.TT)
                if isinstance(where, Refused):
                    return _Faulted(where)
                place = where.output
            return self._world.memory.descriptor(place)

        def update(place: int, before: int, after: int) -> int | ReadRefusal:
            if stage2 is not None:
                where = self._stage2(request, stage2, place, Access.WRITE, EventClass.TT)
                if isinstance(where, Refused):
                    return _Faulted(where)
                place = where.output
            return self._world.memory.exchange(place, before, after)

        tag, address = Tag(request.stream.vmid, context.asid), _canonical(request.address, *chosen)
        leaf = self._cached(
            *(self._world.caches.stage1, "stage 1", tag, request, address, request.access, chosen, read, update)
        )
        if isinstance(leaf, Found):
            return leaf
        if isinstance(leaf.cause, _Faulted):
            return leaf.cause.refused
        if isinstance(leaf.cause, Abort):
            event = self._event(EventType.F_WALK_EABT, request, EventClass.TT, fetch=leaf.cause.address)
            return Refused(event, leaf.cause.parent)
        event = self._event(_TYPE[leaf.kind], request, EventClass.IN)
        return Refused(event, None, context.records, context.stalls)

    def _stage2(self, request: Request, stage2: Stage2, ipa: int, access: Access, kind: EventClass) -> Found | Refused:
        """The guest's own stage 2, for an input address, a table of stage 1 or a CD."""
        tag = Tag(request.stream.vmid, None)
        chosen, memory = (stage2.tables, ipa), self._world.memory
        leaf = self._cached(
            *(self._world.caches.stage2, "stage 2", tag, request, ipa, access, chosen),
            *(memory.descriptor, memory.exchange),
        )
        if isinstance(leaf, Found):
            return leaf
        if isinstance(leaf.cause, Abort):
            event = self._event(EventType.F_WALK_EABT, request, kind, stage_2=True, fetch=leaf.cause.address)
            return Refused(event, leaf.cause.parent)
        is_table = leaf.kind is WalkFaultKind.PERMISSION and kind is EventClass.TT and access is Access.READ
        event = self._event(_TYPE[leaf.kind], request, kind, stage_2=True, is_table_read=is_table, ipa=ipa)
        return Refused(event, None, stage2.records, stage2.stalls)

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
        update: Update,
    ) -> Found | WalkFault:
        """What the cache has for an address, or what a walk finds."""
        known = cache.find(tag, address, access)
        if known is not None and not self._world.config.strict:
            return Found(*known)
        tables, inner = chosen
        leaf = walk(tables, inner, access, read, update if known is None else pretended)
        if known is not None:
            now = (leaf.output, leaf.access) if isinstance(leaf, Leaf) else leaf
            if now != (known[0], known[2]):
                stale = Stale(what, self.sid, self._ssid, request.address, (known[0], known[2]), now)
                request.on_stale(stale)
            return Found(*known)
        if isinstance(leaf, WalkFault):
            return leaf
        is_global = tag.asid is not None and not leaf.descriptor & _NOT_GLOBAL
        cache.add(Tag(tag.vmid, None) if is_global else tag, address, leaf)
        return Found(leaf.output, leaf.shift, leaf.access)

    def _event(
        self,
        kind: EventType,
        request: Request,
        event_class: EventClass,
        *,
        stage_2: bool = False,
        is_table_read: bool = False,
        fetch: int = 0,
        ipa: int = 0,
    ) -> Event:
        is_read = not request.access & Access.WRITE
        where = (self.sid, self._ssid, request.address)
        return Event(kind, *where, is_read, stage_2, event_class, is_table_read, fetch, ipa)


def _updates(stream: Stream, context: Context | None) -> bool:
    """Whether a walk may change tables of the guest."""
    halves = (context.halves.low, context.halves.high) if context is not None else ()
    tables = (*halves, stream.stage2.tables if stream.stage2 is not None else None)
    return any(each is not None and (each.updates_access or each.updates_dirty) for each in tables)


def pretended(_: int, before: int, __: int) -> int:
    """An update that succeeds and changes nothing: for a walk that is only to see what another one would find."""
    return before


def _canonical(address: int, tables: Tables, inner: int) -> int:
    """An address of one of the halves, of which ``inner`` is what ``tables`` translate, without a tag at its top."""
    return inner | (1 << 64) - (1 << tables.input_bits) if address >> 55 & 1 else inner
