"""The engine: contexts, page tables and translation behind one interface.

Pure and single-threaded: no sockets, files, clock or randomness. It does not know which guest interface called it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

from pviommu.engine.clone import Clone
from pviommu.engine.config import EngineConfig, ReservedRegion
from pviommu.engine.contexts import DEFAULT_CONTEXT, Contexts, Endpoints
from pviommu.engine.core import Core, PythonCore
from pviommu.engine.iotlb import BLOCK_PAGES, CachedRun, Iotlb
from pviommu.engine.ranges import FrameRanges
from pviommu.engine.results import (
    ADDRESS_LIMIT,
    FRAME_LIMIT,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    Access,
    AllocResult,
    DefaultPolicy,
    Fault,
    Outcome,
    Refusal,
    Run,
    Stop,
    UnmapMode,
    Usage,
    whole,
)
from pviommu.engine.results import Mapping as MappedRun
from pviommu.engine.table import ACCESS_MASK

READ_WRITE = Access.READ | Access.WRITE
_new_tuple = tuple.__new__
"""Makes a Run in half the time that Run() takes."""


class Engine:
    """Contexts 1..max_contexts, the default context 0, and the endpoints attached to them.

    Frame numbers and counts are in 4 KiB pages, from 0; `iova`, `gpa` and `length` are in bytes.
    """

    def __init__(self, config: EngineConfig | None = None, core: Core | None = None) -> None:
        """`core`: one that no other engine has; Python's if none is given."""
        self.config = config or EngineConfig()
        self._limit = self.config.aperture_frames
        self._reserved = FrameRanges((region.first, region.last) for region in self.config.reserved)
        self._ram = FrameRanges()
        self._core = core or PythonCore()
        self._hits = self._core.hits
        """(stream, dfn, access bits): gpa of the page, bytes from there on. Empty after any change but a map."""
        self._pool = self._core.start(self.config)
        self._iotlb = Iotlb(self.config.iotlb_entries)
        self._contexts = Contexts(self.config.max_contexts, self._core, self._pool, self._limit, self._reserved)
        self._endpoints = Endpoints()

    @property
    def core_name(self) -> str:
        """Of what does the work for each page."""
        return self._core.name

    # Guest RAM

    @property
    def ram(self) -> tuple[tuple[int, int], ...]:
        """Guest RAM as merged (first gfn, last gfn inclusive) ranges."""
        return tuple(self._ram)

    def set_ram(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Replace guest RAM by (first gfn, last gfn inclusive) ranges, in any order.

        The default context follows at once, and clones do: they lose what they had mapped 1:1 of memory that went, and
        map memory that came, as far as the pool reaches, where the guest has not edited them. Other mappings stay: they
        are the guest's. Raises ValueError for a range that is backwards or beyond 64-bit addresses, and then changes
        nothing.
        """
        before, self._ram = self._ram, FrameRanges(ranges)
        self._core.set_ram(self._ram)
        self._hits.clear()
        with self._iotlb.deferred():
            self._iotlb.invalidate_context(DEFAULT_CONTEXT)
            gone = list(before.without(self._limit, self._ram))
            come = list(self._ram.without(self._limit, before, self._reserved))
            for ctx, clone in self._contexts.clones():
                for first, count in gone:
                    self._iotlb.invalidate(ctx, first, count)
                    clone.remove(first, count)
            # Only now: what one clone returned to the pool, another may need.
            for _, clone in self._contexts.clones():
                _grow(clone, come)

    def is_ram(self, gfn: int, nr: int = 1) -> bool:
        """Whether all of gfn..gfn+nr-1 is guest RAM."""
        return self._ram.inside(gfn) >= nr

    # Endpoints

    def add_endpoint(self, stream: int, reserved: Sequence[ReservedRegion] = ()) -> None:
        """A new endpoint with its direct regions, in the default context.

        Raises ValueError for a stream that exists already, for a region of another kind or outside the aperture, and
        for one that overlaps another of its own or of the configuration.
        """
        self.config.check_direct(stream, reserved)
        self._endpoints.add(stream, reserved)

    def endpoints(self) -> Mapping[int, int]:
        """stream -> context, read only, always current."""
        return self._endpoints.view()

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
        self._endpoints.unblock(stream)
        return None

    def block(self, stream: int) -> Stop | None:
        """Refuse every translation of an endpoint until it is unblocked or attached; NO_ENDPOINT if unknown."""
        if self._endpoints.get(stream) is None:
            return Stop.NO_ENDPOINT
        self._hits.clear()
        self._endpoints.block(stream)
        return None

    def unblock(self, stream: int) -> Stop | None:
        if self._endpoints.get(stream) is None:
            return Stop.NO_ENDPOINT
        self._endpoints.unblock(stream)
        return None

    def is_blocked(self, stream: int) -> bool:
        return self._endpoints.is_blocked(stream)

    # Contexts

    def has_context(self, ctx: int) -> bool:
        return ctx == DEFAULT_CONTEXT or self._contexts.get(ctx) is not None

    def contexts(self) -> tuple[int, ...]:
        """Numbers of the allocated contexts in order, the default context not among them."""
        return tuple(self._contexts)

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

    @property
    def iotlb_flushes(self) -> int:
        """IOTLB invalidations carried out so far; those deferred together count once."""
        return self._iotlb.flushes

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
        backed = self._ram.inside(gfn) if ram_only else max(0, FRAME_LIMIT - gfn)
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

    def lookup(self, ctx: int, dfn: int) -> tuple[int, Access] | None:
        """(gfn, access) of a page; None when it is not mapped or there is no such context (see has_context)."""
        run = self._find_run(ctx, dfn, 1)
        return None if isinstance(run, Refusal) else (run[0], Access(run[2]))

    def mappings(self, ctx: int) -> Iterator[MappedRun]:
        """What a context maps, in order: runs of adjacent frames and one access, each from one map call.

        Direct regions are not among them; see direct(). The default context yields guest RAM as it is reachable, one
        run a range. Nothing for an unknown context.
        """
        context = self._contexts.get(ctx)
        if context:
            yield from context.mappings()
        elif ctx == DEFAULT_CONTEXT and self.config.default_policy is DefaultPolicy.IDENTITY:
            for first, count in self._ram.without(FRAME_LIMIT, self._reserved):
                yield MappedRun(first, first, count, READ_WRITE, True)

    def direct(self, ctx: int) -> tuple[tuple[int, int], ...]:
        """Merged (first dfn, last dfn inclusive) ranges that direct regions map 1:1 in a context, over its mappings."""
        context = self._contexts.get(ctx)
        return tuple(context.direct) if context else ()

    def usage(self) -> Usage:
        contexts, pool = self._contexts, self._pool
        return Usage(len(contexts), pool.used, pool.total, contexts.mapped_pages(), contexts.limit)

    def _no_table(self, ctx: int) -> Outcome:
        return Outcome(0, Stop.DEFAULT_CONTEXT if ctx == DEFAULT_CONTEXT else Stop.NO_CONTEXT, None)

    def _out_of_aperture(self, dfn: int) -> Outcome:
        return Outcome(0, Stop.OUT_OF_APERTURE, self._limit if 0 <= dfn < self._limit else dfn)

    # Translation

    def translate(self, stream: int, iova: int, length: int, access: Access) -> Sequence[Run] | Fault:
        """Where an endpoint's DMA of `length` bytes at `iova` goes: runs in order, or the first byte refused.

        The whole span is checked: one refused page refuses all. Adjacent frames come as one run; length 0 is [].
        A span that wraps past 64 bits is refused at its first byte. Cost grows with the leaves in the span, so the
        caller bounds `length`.
        """
        key = (stream, iova >> PAGE_SHIFT, access._value_)  # int() takes three times as long
        offset = iova & PAGE_MASK
        hit = self._hits.get(key)
        if hit is not None and 0 < length <= hit[1] - offset:
            return [_new_tuple(Run, (hit[0] + offset, length))]
        runs = self._translate(stream, iova, length, access)
        if not isinstance(runs, Fault) and len(runs) == 1:
            if len(self._hits) >= self.config.iotlb_entries:
                self._hits.clear()
            self._hits[key] = (runs[0].gpa - offset, -(-(offset + length) // PAGE_SIZE) * PAGE_SIZE)
        return runs

    def _translate(self, stream: int, iova: int, length: int, access: Access) -> Sequence[Run] | Fault:
        ctx = self._endpoints.get(stream)
        if ctx is None:
            return Fault(iova, Refusal.NO_ENDPOINT, access, stream, DEFAULT_CONTEXT)
        if length < 1:
            return []
        if self._endpoints.is_blocked(stream):
            return Fault(iova, Refusal.BLOCKED, access, stream, ctx)
        end = iova + length
        if iova < 0 or end > ADDRESS_LIMIT:
            return Fault(iova, Refusal.OUT_OF_APERTURE, access, stream, ctx)
        wanted = int(access)
        last_dfn = end - 1 >> PAGE_SHIFT
        if self._core.walks:
            walked = self._core.walk(ctx, iova, end, wanted)
            if isinstance(walked, tuple):
                return Fault(walked[0], walked[1], access, stream, ctx)
            return walked
        runs: list[Run] = []
        position = iova
        while position < end:
            dfn = position >> PAGE_SHIFT
            found = self._iotlb.get(ctx, dfn) or self._fill(ctx, dfn, last_dfn)
            if isinstance(found, Refusal):
                return Fault(position, found, access, stream, ctx)
            gfn, pages, allowed = found
            if wanted & ~allowed:
                return Fault(position, Refusal.NO_PERMISSION, access, stream, ctx)
            gpa = gfn << PAGE_SHIFT | position & PAGE_MASK
            size = min(end, dfn + pages << PAGE_SHIFT) - position
            if runs and sum(runs[-1]) == gpa:
                runs[-1] = Run(runs[-1].gpa, runs[-1].length + size)
            else:
                runs.append(Run(gpa, size))
            position += size
        return runs

    def _fill(self, ctx: int, dfn: int, last_dfn: int) -> CachedRun | Refusal:
        """Find the run at `dfn`, up to `last_dfn` and inside its 2 MiB block, and cache it; refusals are not cached."""
        run = self._find_run(ctx, dfn, min(last_dfn, dfn | BLOCK_PAGES - 1) - dfn + 1)
        if not isinstance(run, Refusal):
            self._iotlb.put(ctx, dfn, run)
        return run

    def _find_run(self, ctx: int, dfn: int, nr: int) -> CachedRun | Refusal:
        context = self._contexts.get(ctx)
        if context is None:
            return self._find_default_run(ctx, dfn, nr)
        if not 0 <= dfn < self._limit:
            return Refusal.OUT_OF_APERTURE
        if context.closed.inside(dfn):
            pages = min(nr, context.direct.inside(dfn))
            return (dfn, pages, ACCESS_MASK) if pages else Refusal.RESERVED
        return context.table.run(dfn, nr) or Refusal.NOT_MAPPED

    def _find_default_run(self, ctx: int, dfn: int, nr: int) -> CachedRun | Refusal:
        """1:1 of guest RAM, whatever the aperture of the other contexts; nothing for a context that is not there."""
        if ctx != DEFAULT_CONTEXT or self.config.default_policy is DefaultPolicy.BLOCKED:
            return Refusal.BLOCKED
        if not 0 <= dfn < FRAME_LIMIT:
            return Refusal.OUT_OF_APERTURE
        clear = self._reserved.outside(dfn)
        if not clear:
            return Refusal.RESERVED
        pages = min(nr, clear, self._ram.inside(dfn))
        return (dfn, pages, ACCESS_MASK) if pages else Refusal.NOT_MAPPED


def _grow(clone: Clone, ranges: Iterable[tuple[int, int]]) -> bool:
    """Let a clone map (first, count) ranges in order, as far as the pool reaches; whether it reached the end."""
    return all(clone.add(first, count) for first, count in ranges)
