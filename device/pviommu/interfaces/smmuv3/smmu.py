"""One SMMU: registers, queues, caches, and the streams behind it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from smmuv3.events import Event
from smmuv3.registers import FRAME_SIZE, Cr0, Vector

from ...dma.atc import Atc
from ...dma.memory import GuestMemory
from ...dma.pages import PageRequester
from ...engine import Access, Engine, ParentRefusal, Run, Stop, TranslationFault
from ...engine.stages import Stages
from .ats import AtsWalker, Invalidations, Timer
from .command_table import CommandTable
from .commands import Commands
from .config import MissingCoreError, SmmuConfig
from .configuration import Stream, StreamTable
from .explanation import Explained, explain
from .memory import GuestReader
from .page_requests import PageRequests
from .queues import MAX_LOOKED_AT, CommandQueue, EventQueue, PageRequestQueue
from .registers import SmmuRegisters
from .stalls import Stalls
from .stream import ParentFault, SmmuStream
from .translation import Caches, Stale, StreamWalker, World

__all__ = ["FRAME_SIZE", "KEPT", "Smmu"]

_MSI_SIZE = 4

KEPT = 256
"""Reports that are kept, of each kind."""


def _ignore(_: object) -> None:
    pass


Later = Callable[[Callable[[], None]], Timer | None]
"""Calls back when something has taken too long."""


class Smmu:
    """An SMMU over a domain of an engine, its *parent*: the addresses that the guest takes for physical ones are those
    of the parent.

    The owner makes the parent and calls :meth:`work` in each turn. Streams of the engine become the SMMU's by
    :meth:`bind` and :meth:`attach`.
    """

    def __init__(
        self,
        config: SmmuConfig,
        engine: Engine,
        memory: GuestMemory,
        parent: int,
        *,
        own_stream: int,
        first_domain: int,
        interrupt: Callable[[Vector], None] = _ignore,
        on_parent_fault: Callable[[ParentFault], None] = _ignore,
        on_stale: Callable[[Stale], None] = _ignore,
        before: Callable[[], None] = lambda: None,
        stages: Stages | None = None,
        later: Later = lambda _: None,
    ) -> None:
        """``parent``: a paging domain. ``own_stream``: by which the engine knows the SMMU's own accesses; it is added
        and attached here. ``first_domain``: numbers of domains from there on are the SMMU's, one for each stream and
        substream. ``before`` is called before a request of theirs is translated. ``stages``: of the engine's core, for
        tables in the parent. ``later`` calls back, if ever, when a CMD_SYNC has waited for an ATC as long as it may.
        Raises ValueError if the parent is no paging domain, or the stream exists;
        :class:`.config.MissingCoreError` for HTTU where memory cannot be compared and exchanged.
        """
        if not engine.is_paging(parent):
            raise ValueError(f"domain {parent}: only a paging domain can be the parent of an SMMU")
        if config.httu and not memory.has_exchange:
            raise MissingCoreError(
                f"httu {config.httu}: only the native core can update tables that the guest writes to "
                "(pviommu build-core)"
            )
        self.config = config
        self._engine = engine
        self._parent = parent
        self._own_stream = own_stream
        engine.add_endpoint(own_stream)
        engine.attach(own_stream, parent)
        self._interrupt = interrupt
        self._on_parent_fault = on_parent_fault
        self._before = before
        self.registers = SmmuRegisters(config, self)
        self.memory = GuestReader(memory, self._translate_own, config.address_bits)
        self.caches = Caches(config, stages)
        streams = StreamTable(config, self.registers, self.memory)
        self._world = World(config, self.registers, self.memory, streams, self.caches, on_stale, stages)
        self.events = EventQueue(self.registers, self.memory)
        self.stalls = Stalls(config.stalls, self._record)
        self.page_queue = PageRequestQueue(
            self.registers,
            self.memory,
            lambda sid: self.caches.streams.get(sid) is not None or isinstance(streams.find(sid, None), Stream),
        )
        self.requests = PageRequests(lambda asked: self.page_queue.record(asked))
        self.invalidations = Invalidations(self._atc_of, later)
        commands = Commands(
            *(config, self.caches, self.stalls, self.invalidations, self.requests),
            is_on=lambda: self.registers.has(Cr0.SMMUEN),
            hold=lambda *held: self.commands.hold(*held),
        )
        caches, core = self.caches, None
        if stages is not None:
            table = CommandTable(config.stage2, config.msi, MAX_LOOKED_AT)
            core = stages.commands(table, caches.stage1.remembered, caches.stage2.remembered)
        budget = config.commands_per_turn
        self.commands = CommandQueue(
            *(self.registers, self.memory, commands, budget, caches.looked_at, core),
            has_msi=config.msi,
            may_wait=lambda: self.invalidations.are_outstanding,
        )
        self.told: deque[tuple[Event, bool]] = deque(maxlen=KEPT)
        """the last events, and whether there was room for each"""
        self._sids: dict[int, int] = {}
        self._atcs: dict[int, Atc] = {}
        """of endpoints that have one, by StreamID"""
        self._next_domain = first_domain
        self._streams: dict[tuple[int, int | None], SmmuStream] = {}

    # -- its function's side ----------------------------------------------------------------------------------------

    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes of the register frame; zeros where it has no register of that size."""
        return self.registers.file.read(offset, count)

    def write(self, offset: int, data: bytes) -> None:
        """Write to the register frame; ignored where it has no register of that size. Commands are left to
        :meth:`work`."""
        self.registers.file.write(offset, data)

    def work(self) -> bool:
        """Carry out commands, a bounded number. Returns whether more are waiting."""
        return self.commands.work()

    def is_waiting(self) -> bool:
        """Whether there is work."""
        return self.commands.is_waiting()

    def reset(self) -> None:
        """Registers as at power-on, nothing cached, and what is stalled aborted. Streams stay bound and attached."""
        self.registers.file.reset()
        self.caches.clear()
        self.stalls.abort()
        self.invalidations.clear()

    def interrupt(self, vector: Vector) -> None:
        """Raise an interrupt, whatever IRQ_CTRL says."""
        self._interrupt(vector)

    def write_msi(self, address: int, data: int) -> bool:
        """Write an MSI; whether that was possible. Bits beyond the output size do not count (IHI 0070, 3.4.3)."""
        address &= (1 << self.config.address_bits) - 1
        return self.memory.write(address, data.to_bytes(_MSI_SIZE, "little")) is None

    def _record(self, event: Event) -> bool:
        is_told = self.events.record(event)  # looked up for each, as a rule may stand before it
        if is_told or event.stag is None:  # one of a stall is tried again
            self.told.append((event, is_told))
        return is_told

    def _translate_own(self, address: int, length: int, access: Access) -> Sequence[Run] | ParentRefusal:
        found = self._engine.translate(self._own_stream, address, length, access)
        if isinstance(found, TranslationFault):
            return ParentRefusal(found.iova, found.refusal)
        return found if isinstance(found, Sequence) else []

    # -- streams ----------------------------------------------------------------------------------------------------

    def _atc_of(self, sid: int) -> Atc | None:
        return self._atcs.get(sid)

    def bind(self, stream: int, sid: int, atc: Atc | None = None, requester: PageRequester | None = None) -> None:
        """Let the endpoint of the engine's ``stream`` have this StreamID; ``atc``: of one that has ATS,
        ``requester``: of one that has page requests too. Raises ValueError for one out of range, for
        one that another has, and for a stream that has one.
        """
        if not 0 <= sid < 1 << self.config.sid_bits:
            raise ValueError(f"StreamID {sid:#x}: must be below {1 << self.config.sid_bits:#x}")
        if stream in self._sids:
            raise ValueError(f"stream {stream}: has StreamID {self._sids[stream]:#x} already")
        if sid in self._sids.values():
            raise ValueError(f"StreamID {sid:#x}: belongs to another stream")
        self._sids[stream] = sid
        if atc is not None:
            self._atcs[sid] = atc
        if requester is not None:
            self.requests.add(sid, requester)

    def attach(self, stream: int) -> Stop | None:
        """Let the SMMU translate for a stream from now on. NO_ENDPOINT if it has no StreamID, or as of
        :meth:`.Engine.attach`; nothing is changed then.
        """
        return self._attach(stream, None)

    def _attach(self, stream: int, ssid: int | None) -> Stop | None:
        if stream not in self._sids or stream not in self._engine.endpoints():
            return Stop.NO_ENDPOINT
        if (stream, ssid) in self._streams:
            return None
        sid = self._sids[stream]
        atc = self._atcs.get(sid)
        if atc is None:
            walker = StreamWalker(self._world, sid, ssid)
        else:
            walker = AtsWalker(self._world, sid, ssid, atc, self._record, self.requests)
        domain = self._next_domain
        whole = walker if self._world.stages else None
        stop = self._engine.alloc_nested(domain, self._parent, walker, whole)
        stop = stop or self._engine.attach(stream, domain, ssid)
        if stop is not None:
            self._engine.free_domain(domain)
            return stop
        self._next_domain += 1
        self._streams[stream, ssid] = SmmuStream(
            *(self._engine, walker, self._parent, stream, ssid, self._record, self.stalls),
            *(self._on_parent_fault, self._before),
        )
        return None

    def explain(self, stream: int, iova: int, access: Access, ssid: int | None = None) -> Explained:
        """What memory makes of an access of a stream, and what is cached otherwise. Raises KeyError for one without a
        StreamID.
        """
        found = explain(self._world, self._sids[stream], ssid, iova, access)
        attached = self._streams.get((stream, ssid))
        kept = attached and attached.kept(iova, access)
        if kept:
            found.cached.append(f"{kept.what}: {iova:#x} leads to {kept.cached[0]:#x}")
        return found

    def translator(self, stream: int, ssid: int | None = None) -> SmmuStream:
        """What translates the requests of an attached stream, those with a SubstreamID or those without. Raises
        ValueError for a stream that is not attached.
        """
        if (stream, None) not in self._streams:
            raise ValueError(f"stream {stream}: not attached to this SMMU")
        if stop := self._attach(stream, ssid):
            raise ValueError(f"stream {stream}, SubstreamID {ssid}: {stop.value}")
        return self._streams[stream, ssid]
