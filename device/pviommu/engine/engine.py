"""The engine: contexts, page tables and translation behind one interface.

Pure and single-threaded: no sockets, files, clock or randomness. It does not know which guest interface called it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

from pviommu.engine.clone import Clone
from pviommu.engine.config import ReservedRegion
from pviommu.engine.contexts import DEFAULT_CONTEXT
from pviommu.engine.ranges import FrameRanges
from pviommu.engine.results import (
    FRAME_LIMIT,
    Access,
    AllocResult,
    Outcome,
    Stop,
    UnmapMode,
    whole,
)
from pviommu.engine.table import ACCESS_MASK
from pviommu.engine.translation import Translation


class Engine(Translation):
    """Contexts 1..max_contexts, the default context 0, and the endpoints attached to them.

    Frame numbers and counts are in 4 KiB pages, from 0; `iova`, `gpa` and `length` are in bytes. What only looks is in
    the base class, what changes something is here.
    """

    # Guest RAM

    def set_ram(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Replace guest RAM by (first gfn, last gfn inclusive) ranges, in any order.

        The default context follows at once, and clones do: they lose what they had mapped 1:1 of memory that went, and
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
            self._iotlb.invalidate_context(DEFAULT_CONTEXT)
            clones = self._contexts.clones()
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
            for ctx, clone in clones:
                for first, count in gone:
                    self._iotlb.invalidate(ctx, first, count)
                    clone.remove(first, count)
            # Only now: what one clone returned to the pool, another may need.
            for _, clone in clones:
                _grow(clone, come)

    def set_mmio(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Replace the frames beside RAM that may be mapped: (first gfn, last gfn inclusive) ranges, in any order.

        The default context follows at once; clones are of RAM only. Mappings stay, whether their frames are there or
        not: they are the guest's. Raises ValueError as set_ram() does.
        """
        self._mmio = FrameRanges(ranges)
        self._backed = FrameRanges() if self._mmio else self._ram
        self._back(0, FRAME_LIMIT, self._ram.bounds)
        self._hits.clear()
        self._iotlb.invalidate_context(DEFAULT_CONTEXT)

    def _back(self, first: int, nr: int, ram: array[int]) -> None:
        """RAM, which lies within these bounds now, or MMIO is another among these frames."""
        if self._mmio:
            self._backed.replace(first, nr, ram)
            for begin, count in self._mmio.overlap(first, nr):
                self._backed.add(begin, count)
            ram = self._backed.within(first, nr)
        self._core.change_backed(first, nr, ram)

    # Endpoints

    def add_endpoint(self, stream: int, reserved: Sequence[ReservedRegion] = ()) -> None:
        """A new endpoint with its direct regions, in the default context.

        Raises ValueError for a stream that exists already, for a region of another kind or outside the aperture, and
        for one that overlaps another of its own or of the configuration.
        """
        self.config.check_direct(stream, reserved)
        self._endpoints.add(stream, reserved)

    def attach(self, stream: int, ctx: int) -> Stop | None:
        """Move an endpoint with its direct regions to a context and unblock it; into its own context it only unblocks.

        NO_ENDPOINT, NO_CONTEXT, RESERVED_CONFLICT (a region overlaps another one there, or pages that are not mapped
        1:1 readable and writeable) and POOL_EXHAUSTED (before the old context's regions are returned), in this rank;
        each changes nothing. A region that two endpoints share goes with the last of them.
        Cached translations are kept by context, so none of the context left can serve the endpoint afterwards.
        """
        self._hits.clear()
        current = self._endpoints.get(stream)
        if current is None:
            return Stop.NO_ENDPOINT
        if not self.has_context(ctx):
            return Stop.NO_CONTEXT
        if ctx != current:
            regions = self._endpoints.regions(stream)
            target, left = self._contexts.get(ctx), self._contexts.get(current)
            stop = target.enter(regions) if target else None
            if stop:
                return stop
            if left:
                for region in regions:
                    self._iotlb.invalidate(current, region.first, region.last - region.first + 1)
                left.leave(regions)
            for changed in (ctx, current):
                if regions and self._contexts.get(changed):
                    self._contexts.show(changed)
            self._endpoints.move(stream, ctx)
        self._endpoints.let_go(stream)
        return None

    def block(self, stream: int) -> Stop | None:
        """Refuse every translation of an endpoint until it is unblocked or attached; NO_ENDPOINT if unknown."""
        if self._endpoints.get(stream) is None:
            return Stop.NO_ENDPOINT
        self._hits.clear()
        self._endpoints.block(stream)
        return None

    def hold(self, stream: int) -> Stop | None:
        """Take an endpoint out of its context, with its direct regions, and refuse every translation until it is
        attached again; :meth:`unblock` does not end that. NO_ENDPOINT if unknown; nothing else can fail.
        """
        stop = self.attach(stream, DEFAULT_CONTEXT)
        if stop is None:
            self._endpoints.hold(stream)
        return stop

    def unblock(self, stream: int) -> Stop | None:
        """End what :meth:`block` or a reset began, but not :meth:`hold`; NO_ENDPOINT if unknown."""
        if self._endpoints.get(stream) is None:
            return Stop.NO_ENDPOINT
        self._endpoints.unblock(stream)
        return None

    # Contexts

    def alloc_context(self, clone: bool = False) -> AllocResult:
        """A context under the lowest free number, empty or, with `clone`, mapping all guest RAM 1:1.

        A clone leaves out RAM beyond the aperture and the configuration's reserved regions, and follows set_ram.
        NO_FREE_CONTEXT or POOL_EXHAUSTED leave nothing behind.
        """
        result = self._contexts.alloc()
        context = None if result.context is None else self._contexts.get(result.context)
        if result.context is None or context is None or not clone:
            return result
        context.clone = Clone(context.table)
        self._contexts.show(result.context)
        if not _grow(context.clone, self._ram.without(self._limit, self._reserved)):
            self._contexts.free(result.context)
            return AllocResult(None, Stop.POOL_EXHAUSTED)
        return result

    def free_context(self, ctx: int, reattach: bool) -> Stop | None:
        """Drop a context and its mappings; with `reattach` its endpoints move to the default context.

        In this order: DEFAULT_CONTEXT, NO_CONTEXT, ENDPOINTS_ATTACHED (only without `reattach`); each changes nothing.
        """
        if ctx == DEFAULT_CONTEXT:
            return Stop.DEFAULT_CONTEXT
        if self._contexts.get(ctx) is None:
            return Stop.NO_CONTEXT
        attached = self._endpoints.inside(ctx)
        if attached and not reattach:
            return Stop.ENDPOINTS_ATTACHED
        for stream in attached:
            self._endpoints.move(stream, DEFAULT_CONTEXT)
        # The number may be used again at once: nothing may be left under it.
        self._hits.clear()
        self._iotlb.invalidate_context(ctx)
        self._contexts.free(ctx)
        return None

    def reset(self) -> None:
        """Back to power-on: no context but 0, all endpoints in it; those that were outside it are blocked.

        The limits are the configured ones again. Guest RAM stays.
        """
        self._hits.clear()
        self._iotlb.clear()
        for ctx in self.contexts():
            self._contexts.free(ctx)
        self._endpoints.reset()
        self.limit(self.config.max_contexts, self.config.pool_pages)

    def limit(self, max_contexts: int, pool_pages: int) -> None:
        """Set the limits of contexts and of the pool, until reset.

        Raises ValueError, and then changes nothing, for limits beyond the configured ones or below what is in use.
        """
        highest = max(self._contexts, default=0)
        if not highest <= max_contexts <= self.config.max_contexts:
            raise ValueError(
                f"limit of {max_contexts} contexts: must be {highest}..{self.config.max_contexts},"
                " from the highest number in use to what is configured"
            )
        if not self._pool.used <= pool_pages <= self.config.pool_pages:
            raise ValueError(
                f"limit of {pool_pages} pool pages: must be {self._pool.used}..{self.config.pool_pages},"
                " from what is in use to what is configured"
            )
        self._contexts.limit = max_contexts
        self._pool.resize(pool_pages)

    def deferred_invalidation(self) -> AbstractContextManager[None]:
        """Inside it the IOTLB invalidations of all operations are collected; they are done as one at the end.

        Also on an exception. translate() inside is correct, but uses no cache. May be nested: the outermost counts.
        """
        return self._iotlb.deferred()

    # Mappings

    def map(
        self,
        ctx: int,
        dfn: int,
        gfn: int,
        nr: int,
        access: Access,
        *,
        ram_only: bool = True,
        continues: bool = False,
    ) -> Outcome:
        """Map dfn..dfn+nr-1 to gfn..gfn+nr-1, page by page until one is refused; the pages before it stay.

        Before anything changes: DEFAULT_CONTEXT, NO_CONTEXT, NO_ACCESS (at dfn), OUT_OF_APERTURE (whole range).
        Then for each page NOT_RAM, RESERVED, MAPPED, POOL_EXHAUSTED, in this rank. Without `ram_only`, NOT_RAM is left
        to frames beyond 64-bit addresses. `continues`: a later piece of one map call, which goes on if the page before
        dfn still is as the earlier piece left it; a call of its own otherwise.
        """
        context = self._contexts.get(ctx)
        if context is None:
            return self._no_table(ctx)
        if nr < 1:
            return whole(0)
        bits = int(access) & ACCESS_MASK
        if not bits:
            return Outcome(0, Stop.NO_ACCESS, dfn)
        if not 0 <= dfn < dfn + nr <= self._limit:
            return self._out_of_aperture(dfn)
        backed = self._backed.inside(gfn) if ram_only else max(0, FRAME_LIMIT - gfn)
        clear = context.closed.outside(dfn)
        possible = min(nr, backed, clear)
        table = context.table
        done = table.map(dfn, gfn, possible, bits, starts=not (continues and table.joins(dfn, gfn, bits)))
        if done == nr:
            return whole(done)
        if done < possible:
            stop = Stop.MAPPED if table.lookup(dfn + done) else Stop.POOL_EXHAUSTED
        else:
            stop = Stop.NOT_RAM if backed <= clear else Stop.RESERVED
        return Outcome(done, stop, dfn + done)

    def unmap(self, ctx: int, dfn: int, nr: int, mode: UnmapMode = UnmapMode.UNTIL_HOLE) -> Outcome:
        """Remove pages of dfn..dfn+nr-1 as `mode` says. Never for lack of memory does it fail.

        Before anything changes: DEFAULT_CONTEXT, NO_CONTEXT, OUT_OF_APERTURE (whole range). UNTIL_HOLE stops at a page
        that is RESERVED or NOT_MAPPED; CHECK_ENDS does all or, with CUT, nothing; UNTIL_CUT stops at the first page of
        the map call that it would CUT. The latter two pass over holes and may end with nothing done and no stop; what
        the guest had mapped beneath a direct region they remove too, the region stays.
        No cached translation of the range outlives the call.
        """
        context = self._contexts.get(ctx)
        if context is None:
            return self._no_table(ctx)
        if nr < 1:
            return whole(0)
        if not 0 <= dfn < dfn + nr <= self._limit:
            return self._out_of_aperture(dfn)
        self._iotlb.invalidate(ctx, dfn, nr)
        self._hits.clear()
        pages = mode is UnmapMode.UNTIL_HOLE
        outcome = context.unmap_pages(dfn, nr) if pages else context.unmap_calls(dfn, nr, mode)
        if context.clone and outcome.done:
            for first, count in self._ram.overlap(dfn, nr if outcome.at is None else outcome.at - dfn):
                context.clone.edit(first, count)
        return outcome

    def reserve(self, ctx: int, pages: int) -> Stop | None:
        """Let a context hold at least `pages` pool pages, its root's included, until it is freed.

        DEFAULT_CONTEXT, NO_CONTEXT and POOL_EXHAUSTED change nothing. Direct regions are charged beside it.
        """
        context = self._contexts.get(ctx)
        if context is None:
            return Stop.DEFAULT_CONTEXT if ctx == DEFAULT_CONTEXT else Stop.NO_CONTEXT
        return None if context.table.reserve(pages) else Stop.POOL_EXHAUSTED

    def _no_table(self, ctx: int) -> Outcome:
        return Outcome(0, Stop.DEFAULT_CONTEXT if ctx == DEFAULT_CONTEXT else Stop.NO_CONTEXT, None)

    def _out_of_aperture(self, dfn: int) -> Outcome:
        return Outcome(0, Stop.OUT_OF_APERTURE, self._limit if 0 <= dfn < self._limit else dfn)


def _set_of(bounds: array[int]) -> FrameRanges:
    found = FrameRanges()
    found.bounds = bounds
    return found


def _grow(clone: Clone, ranges: Iterable[tuple[int, int]]) -> bool:
    """Let a clone map (first, count) ranges in order, as far as the pool reaches; whether it reached the end."""
    return all(clone.add(first, count) for first, count in ranges)
