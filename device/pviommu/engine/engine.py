"""The engine: domains, page tables and translation behind one interface.

Pure and single-threaded: no sockets, files, clock or randomness. It does not know which guest interface called it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType

from .clone import Clone
from .config import ReservedFrames
from .dirty import DirtyPages
from .domain import IDENTITY
from .guest_tables import GuestTables
from .nested import NestedDomain, Stage1Walker
from .ranges import FrameRanges
from .results import (
    FRAME_LIMIT,
    Access,
    Outcome,
    Stop,
    UnmapMode,
    whole,
)
from .stages import StageWalker
from .state import AttachmentsState, DirtyState, DomainsState, EngineState, PoolState, RamState
from .table import ACCESS_MASK
from .translation import FIXED, Translation

PASID_LIMIT = 1 << 20


class Engine(Translation):
    """Domains, and the endpoints attached to them. Numbers of domains are chosen by whoever allocates them.

    Frame numbers and counts are in 4 KiB pages, from 0; `iova`, `gpa` and `length` are in bytes. What only looks is in
    the base class, what changes something is here.
    """

    # Guest RAM

    def set_ram(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Replace guest RAM by (first gfn, last gfn inclusive) ranges, in any order.

        IDENTITY follows at once, and clones do: they lose what they had mapped 1:1 of memory that went, and
        map memory that came, as far as the pool reaches, where the guest has not edited them. Other mappings stay: they
        are the guest's. Raises ValueError for a range that is backwards or beyond 64-bit addresses, and then changes
        nothing.
        """
        self.change_ram(FrameRanges(ranges), [(0, FRAME_LIMIT)])

    def change_ram(self, ram: FrameRanges, spans: Iterable[tuple[int, int]]) -> None:
        """As set_ram(), but only of the `spans`, (first gfn, frames) each, RAM is what `ram` says.

        Without clones the cost is that of the spans, whatever else is RAM.
        """
        self._hits.clear()
        with self._iotlb.deferred():
            self._iotlb.invalidate_domain(IDENTITY)
            clones = self._domains.clones()
            gone: list[tuple[int, int]] = []
            come: list[tuple[int, int]] = []
            for first, nr in spans:
                inside = ram.within(first, nr)
                if clones:
                    before, after = _set_of(self._ram.within(first, nr)), _set_of(inside)
                    gone += before.without(self._limit, after)
                    come += after.without(self._limit, before, self._reserved)
                self._ram.replace(first, nr, inside)
                self._back(first, nr, inside)
            for number, clone in clones:
                for first, count in gone:
                    self._iotlb.invalidate(number, first, count)
                    clone.remove(first, count)
                    self._forget_dirty(number, first, count)
            # Only now: what one clone returned to the pool, another may need.
            for _, clone in clones:
                _grow(clone, come)

    def set_mmio(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Replace the frames beside RAM that may be mapped: (first gfn, last gfn inclusive) ranges, in any order.

        IDENTITY follows at once; clones are of RAM only. Mappings stay, whether their frames are there or
        not: they are the guest's. Raises ValueError as set_ram() does.
        """
        self._mmio = FrameRanges(ranges)
        self._backed = FrameRanges() if self._mmio else self._ram
        self._back(0, FRAME_LIMIT, self._ram.bounds)
        self._hits.clear()
        self._iotlb.invalidate_domain(IDENTITY)

    def _back(self, first: int, nr: int, ram: array[int]) -> None:
        """RAM, which lies within these bounds now, or MMIO is another among these frames."""
        if self._mmio:
            self._backed.replace(first, nr, ram)
            for begin, count in self._mmio.overlap(first, nr):
                self._backed.add(begin, count)
            ram = self._backed.within(first, nr)
        self._core.change_backed(first, nr, ram)

    # Endpoints

    def add_endpoint(self, stream: int, direct: Sequence[ReservedFrames] = (), domain: int = IDENTITY) -> None:
        """A new endpoint with its direct regions, attached to IDENTITY or BLOCKED.

        Raises ValueError for a stream that exists already, for a region of another kind or outside the aperture, for
        one that overlaps another of its own or of the configuration, and for another domain.
        """
        self.config.check_direct(stream, direct)
        if domain not in FIXED:
            raise ValueError(f"add endpoint: domain {domain}: an endpoint begins in IDENTITY or BLOCKED")
        self._attachments.add(stream, domain, direct)

    def attach(self, stream: int, domain: int, pasid: int | None = None) -> Stop | None:
        """Send an endpoint's requests with a PASID, or those without one, through a domain from now on.

        NO_ENDPOINT, NO_DOMAIN, RESERVED_CONFLICT (a direct region overlaps another one there, or pages of a page table
        that are not mapped 1:1 readable and writeable) and POOL_EXHAUSTED (before the old domain's regions are
        returned), in this rank; each changes nothing. Direct regions are of requests without a PASID and go with
        those, into the parent of a nested domain; one that two endpoints share goes with the last of them. A block
        stays.
        Raises ValueError for a PASID that does not fit 20 bits.
        Cached translations are kept by domain, so none of the domain left can serve the endpoint afterwards.
        """
        current = self._attachments.domains.get(stream)
        if current is None:
            return Stop.NO_ENDPOINT
        if not self.has_domain(domain):
            return Stop.NO_DOMAIN
        if pasid is not None:
            if not 0 <= pasid < PASID_LIMIT:
                raise ValueError(f"attach stream {stream}: pasid {pasid}: must be 0..{PASID_LIMIT - 1}, it has 20 bits")
            self._attachments.pasids[stream, pasid] = domain
            return None
        stop = self._move_regions(stream, current, domain)
        if stop is None:
            self._hits.clear()
            self._attachments.domains[stream] = domain
        return stop

    def detach(self, stream: int, pasid: int) -> None:
        """Refuse the endpoint's requests with this PASID. Those without one are always attached, perhaps to BLOCKED."""
        self._attachments.pasids.pop((stream, pasid), None)

    def _move_regions(self, stream: int, current: int, domain: int) -> Stop | None:
        """Let an endpoint's direct regions leave one domain for another; what attach() may answer."""
        regions = self._attachments.regions(stream)
        left, entered = self._domains.beneath(current), self._domains.beneath(domain)
        if not regions or left == entered:
            return None
        if entered is not None:
            stop = self._domains.regioned(entered).enter(regions)
            if stop:
                return stop
        if left is not None:
            for region in regions:
                self._iotlb.invalidate(left, region.first, region.last - region.first + 1)
            self._domains.regioned(left).leave(regions)
        for changed in (entered, left):
            if changed is not None:
                self._domains.show(changed)
        return None

    def block(self, stream: int) -> Stop | None:
        """Refuse every translation of an endpoint until it is unblocked; NO_ENDPOINT if unknown."""
        if stream not in self._attachments.domains:
            return Stop.NO_ENDPOINT
        self._hits.clear()
        self._attachments.blocked.add(stream)
        return None

    def unblock(self, stream: int) -> Stop | None:
        """End what :meth:`block` began; NO_ENDPOINT if unknown."""
        if stream not in self._attachments.domains:
            return Stop.NO_ENDPOINT
        self._attachments.blocked.discard(stream)
        return None

    # Domains

    def alloc_paging(self, number: int, *, clone: bool = False) -> Stop | None:
        """A paging domain of this number, empty or, with `clone`, mapping all guest RAM 1:1.

        A clone leaves out RAM beyond the aperture and the configuration's reserved regions, and follows set_ram.
        POOL_EXHAUSTED leaves nothing behind. Raises ValueError for a number that is in use or not 1..MAX_DOMAIN.
        """
        stop = self._domains.alloc(number)
        if stop or not clone:
            return stop
        domain = self._domains.paging[number]
        domain.clone = Clone(domain.table)
        self._domains.show(number)
        if _grow(domain.clone, self._ram.without(self._limit, self._reserved)):
            return None
        self._domains.free(number)
        return Stop.POOL_EXHAUSTED

    def alloc_nested(
        self, number: int, parent: int, walker: Stage1Walker, whole: StageWalker | None = None
    ) -> Stop | None:
        """A nested domain of this number: `walker` over a paging domain. NO_DOMAIN; NOT_PAGING or
        GUEST_TABLES for another parent.

        `whole`: translates through both, and is asked first. Raises ValueError as alloc_paging() does.
        """
        if not self.is_paging(parent):
            return self._no_table(parent).stop
        self._domains.check_number(number)
        self._domains.nested[number] = NestedDomain(parent, walker, whole)
        return None

    def alloc_tables(self, number: int, guest: GuestTables) -> None:
        """A domain of this number that translates by tables of the guest. Nothing is mapped in it by operations:
        GUEST_TABLES.

        Raises ValueError as alloc_paging() does, and for more frames than the aperture has.
        """
        self._domains.alloc_tables(number, guest)

    def free_domain(self, number: int) -> Stop | None:
        """Drop a domain and its mappings: NO_DOMAIN (the fixed ones too), ENDPOINTS_ATTACHED (with or without PASID),
        NESTED_ATTACHED, in this rank; each changes nothing.
        """
        if number not in self._domains:
            return Stop.NO_DOMAIN
        if any(self._attachments.inside(number)):
            return Stop.ENDPOINTS_ATTACHED
        if self._domains.has_children(number):
            return Stop.NESTED_ATTACHED
        self._free(number)
        return None

    def _free(self, number: int) -> None:
        # The number may be used again at once: nothing may be left under it.
        self._iotlb.invalidate_domain(number)
        self._tracked.pop(number, None)
        self._domains.free(number)

    # State

    def save(self) -> EngineState:
        """All of the state. Raises ValueError inside :meth:`deferred_invalidation`."""
        return EngineState(
            RamState(self.ram, self.mmio),
            self._iotlb.save(),
            PoolState(self._pool.total),
            self._domains.save(),
            self._attachments.save(),
            tuple(
                DirtyState(number, tuple(pages.runs(0, self._limit - 1)))
                for number, pages in sorted(self._tracked.items())
            ),
        )

    def load(
        self,
        state: EngineState,
        walkers: Mapping[int, Stage1Walker] = MappingProxyType({}),
        tables: Mapping[int, GuestTables] = MappingProxyType({}),
    ) -> None:
        """Go on from a saved state, whatever this engine did before. `walkers`: of nested domains, `tables`: of those
        of the guest, by number.

        Raises ValueError for a state of other endpoints, or one that the configuration does not allow or `walkers` and
        `tables` do not suffice for; the engine is then as after :meth:`reset`, perhaps with the state's RAM.
        """
        self.reset()
        self.set_ram(state.ram.ram)
        self.set_mmio(state.ram.mmio)
        try:
            self._restore(state.pool, state.domains, state.attachments, walkers, tables)
            self._restore_dirty(state.dirty)
        except ValueError:
            self.reset()
            raise
        self._iotlb.load(state.iotlb)

    def reset(self) -> None:
        """Back to power-on: no domains but the fixed ones, every endpoint where it began, nothing blocked, no PASIDs.

        The pool has its configured size again. Guest RAM stays.
        """
        self._restore(PoolState(self.config.pool_pages), DomainsState(), self._attachments.power_on(), {}, {})

    def _restore(
        self,
        pool: PoolState,
        domains: DomainsState,
        attachments: AttachmentsState,
        walkers: Mapping[int, Stage1Walker],
        tables: Mapping[int, GuestTables],
    ) -> None:
        """Be in this state. Raises ValueError, on the way, for one that cannot be."""
        self._hits.clear()
        self._iotlb.clear()
        self._tracked.clear()
        for number in self.domains():
            self._domains.free(number)
        self._attachments.reset()
        self.resize_pool(pool.total)
        self._domains.load(domains, walkers, tables)
        if dict(attachments.streams).keys() != self._attachments.domains.keys():
            raise ValueError(f"endpoints {sorted(self._attachments.domains)}: the state has {attachments.streams}")
        for stream, domain in attachments.streams:
            self._attach_again(stream, domain, None)
        for stream, pasid, domain in attachments.pasids:
            self._attach_again(stream, domain, pasid)
        for stream in attachments.blocked:
            if stop := self.block(stream):
                raise ValueError(f"stream {stream} blocked: {stop.value}")

    def _restore_dirty(self, tracked: tuple[DirtyState, ...]) -> None:
        for state in tracked:
            stop = self.track_dirty(state.domain)
            if stop:
                raise ValueError(f"dirty pages of domain {state.domain}: {stop.value}")
            for first, count in state.runs:
                if not 0 <= first < first + count <= self._limit:
                    raise ValueError(f"dirty pages of domain {state.domain}: dfn {first:#x}+{count} is no range of it")
                self._tracked[state.domain].mark(first, first + count - 1)

    def _attach_again(self, stream: int, domain: int, pasid: int | None) -> None:
        stop = self.attach(stream, domain, pasid)
        if stop:
            raise ValueError(f"stream {stream} pasid {pasid} in domain {domain}: {stop.value}")

    # The pool

    def resize_pool(self, pages: int) -> None:
        """Let the pool have this many pages, until reset.

        Raises ValueError, and then changes nothing, for more than are configured or less than are in use.
        """
        if not self._pool.used <= pages <= self.config.pool_pages:
            raise ValueError(
                f"limit of {pages} pool pages: must be {self._pool.used}..{self.config.pool_pages},"
                " from what is in use to what is configured"
            )
        self._pool.resize(pages)

    def deferred_invalidation(self) -> AbstractContextManager[None]:
        """Inside it the IOTLB invalidations of all operations are collected; they are done as one at the end.

        Also on an exception. translate() inside is correct, but uses no cache. May be nested: the outermost counts.
        """
        return self._iotlb.deferred()

    # Mappings

    def map(
        self,
        domain: int,
        dfn: int,
        gfn: int,
        nr: int,
        access: Access,
        *,
        ram_only: bool = True,
        continues: bool = False,
    ) -> Outcome:
        """Map dfn..dfn+nr-1 to gfn..gfn+nr-1, page by page until one is refused; the pages before it stay.

        Before anything changes: NOT_PAGING, GUEST_TABLES, NO_DOMAIN, NO_ACCESS (at dfn), OUT_OF_APERTURE (whole range).
        Then for each page NOT_RAM, RESERVED, MAPPED, POOL_EXHAUSTED, in this rank. Without `ram_only`, NOT_RAM is left
        to frames beyond 64-bit addresses. `continues`: a later piece of one map call, which goes on if the page before
        dfn still is as the earlier piece left it; a call of its own otherwise.
        """
        paging = self._domains.paging.get(domain)
        if paging is None:
            return self._no_table(domain)
        if nr < 1:
            return whole(0)
        bits = int(access) & ACCESS_MASK
        if not bits:
            return Outcome(0, Stop.NO_ACCESS, dfn)
        if not 0 <= dfn < dfn + nr <= self._limit:
            return self._out_of_aperture(dfn)
        backed = self._backed.inside(gfn) if ram_only else max(0, FRAME_LIMIT - gfn)
        clear = paging.closed.outside(dfn)
        possible = min(nr, backed, clear)
        table = paging.table
        done = table.map(dfn, gfn, possible, bits, starts=not (continues and table.joins(dfn, gfn, bits)))
        if done == nr:
            return whole(done)
        if done < possible:
            stop = Stop.MAPPED if table.lookup(dfn + done) else Stop.POOL_EXHAUSTED
        else:
            stop = Stop.NOT_RAM if backed <= clear else Stop.RESERVED
        return Outcome(done, stop, dfn + done)

    def unmap(self, domain: int, dfn: int, nr: int, mode: UnmapMode = UnmapMode.UNTIL_HOLE) -> Outcome:
        """Remove pages of dfn..dfn+nr-1 as `mode` says. Never for lack of memory does it fail.

        Before anything changes: NOT_PAGING, GUEST_TABLES, NO_DOMAIN, OUT_OF_APERTURE (whole range). UNTIL_HOLE stops
        at a page that is RESERVED or NOT_MAPPED; CHECK_ENDS does all or, with CUT, nothing; UNTIL_CUT stops at the
        first page of the map call that it would CUT. The latter two pass over holes and may end with nothing done and
        no stop; what the guest had mapped beneath a direct region they remove too, the region stays.
        No cached translation of the range outlives the call.
        """
        paging = self._domains.paging.get(domain)
        if paging is None:
            return self._no_table(domain)
        if nr < 1:
            return whole(0)
        if not 0 <= dfn < dfn + nr <= self._limit:
            return self._out_of_aperture(dfn)
        self._iotlb.invalidate(domain, dfn, nr)
        self._hits.clear()
        pages = mode is UnmapMode.UNTIL_HOLE
        outcome = paging.unmap_pages(dfn, nr) if pages else paging.unmap_calls(dfn, nr, mode)
        if paging.clone and outcome.done:
            for first, count in self._ram.overlap(dfn, nr if outcome.at is None else outcome.at - dfn):
                paging.clone.edit(first, count)
        if self._tracked and outcome.done:
            self._forget_dirty(domain, dfn, nr if outcome.at is None else outcome.at - dfn)
        return outcome

    # Pages that DMA wrote

    def track_dirty(self, domain: int, *, enabled: bool = True) -> Stop | None:
        """Note from now on which pages of a paging domain DMA writes, none so far, or do not; NOT_PAGING, GUEST_TABLES,
        NO_DOMAIN.

        Of a parent they are what nested domains lead to. What a core unmaps by itself, without being asked by this
        engine, stays noted.
        """
        if domain not in self._domains.paging:
            return self._no_table(domain).stop
        self._hits.clear()
        if enabled:
            self._tracked[domain] = DirtyPages()
        else:
            self._tracked.pop(domain, None)
        return None

    def tracks_dirty(self, domain: int) -> bool:
        """Whether what DMA writes is noted."""
        return domain in self._tracked

    def dirty(self, domain: int, dfn: int, nr: int, *, clear: bool = True) -> list[tuple[int, int]]:
        """(first dfn, pages) of what DMA wrote among nr pages from dfn on, in order, of a domain that is tracked.

        Since tracking began, `clear` last took them, or they were mapped. Nothing of any other domain. The cost is that
        of what is dirty. Pages are of 4 KiB, whatever leaves the table has.
        """
        pages = self._tracked.get(domain)
        if pages is None or nr < 1:
            return []
        found = list(pages.runs(dfn, dfn + nr - 1))
        if clear and found:
            # A write that was found before does not walk again, as with a translation that hardware has cached.
            self._hits.clear()
            pages.forget(dfn, dfn + nr - 1)
        return found

    def _forget_dirty(self, domain: int, dfn: int, nr: int) -> None:
        """Pages are not mapped any more, except those that are direct."""
        pages = self._tracked.get(domain)
        if pages is not None:
            unmapped = FrameRanges([(dfn, dfn + nr - 1)])
            for first, count in unmapped.without(self._limit, self._domains.paging[domain].closed):
                pages.forget(first, first + count - 1)

    def reserve_pool(self, domain: int, pages: int) -> Stop | None:
        """Let a domain hold at least `pages` pool pages, its root's included, until it is freed.

        NOT_PAGING, GUEST_TABLES, NO_DOMAIN and POOL_EXHAUSTED change nothing. Direct regions are charged beside it.
        """
        paging = self._domains.paging.get(domain)
        if paging is None:
            return self._no_table(domain).stop
        return None if paging.table.reserve(pages) else Stop.POOL_EXHAUSTED

    def has_reservation(self, domain: int) -> bool:
        """Whether a domain holds pool pages by `reserve_pool`; one without a table holds none."""
        paging = self._domains.paging.get(domain)
        return paging is not None and paging.table.reserved > 0

    def _no_table(self, domain: int) -> Outcome:
        if domain in self._domains.tables:
            return Outcome(0, Stop.GUEST_TABLES, None)
        return Outcome(0, Stop.NOT_PAGING if self.has_domain(domain) else Stop.NO_DOMAIN, None)

    def _out_of_aperture(self, dfn: int) -> Outcome:
        return Outcome(0, Stop.OUT_OF_APERTURE, self._limit if 0 <= dfn < self._limit else dfn)


def _set_of(bounds: array[int]) -> FrameRanges:
    found = FrameRanges()
    found.bounds = bounds
    return found


def _grow(clone: Clone, ranges: Iterable[tuple[int, int]]) -> bool:
    """Let a clone map (first, count) ranges in order, as far as the pool reaches; whether it reached the end."""
    return all(clone.add(first, count) for first, count in ranges)
