"""The engine: contexts, page tables and translation behind one interface.

Pure and single-threaded: no sockets, files, clock or randomness. It does not know which guest interface called it.
"""

from collections.abc import Iterator, Mapping, Sequence

from pviommu.engine.config import EngineConfig
from pviommu.engine.contexts import DEFAULT_CONTEXT, Contexts, Endpoints
from pviommu.engine.iotlb import BLOCK_PAGES, CachedRun, Iotlb
from pviommu.engine.pool import Pool
from pviommu.engine.ranges import FrameRanges
from pviommu.engine.results import (
    ADDRESS_LIMIT,
    FRAME_LIMIT,
    PAGE_MASK,
    PAGE_SHIFT,
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
from pviommu.engine.table import PageTable

READ_WRITE = Access.READ | Access.WRITE
_READ_WRITE_BITS = int(READ_WRITE)


class Engine:
    """Contexts 1..max_contexts, the default context 0, and the endpoints attached to them.

    Frame numbers and counts are in 4 KiB pages, from 0; `iova`, `gpa` and `length` are in bytes.
    """

    def __init__(self, config: EngineConfig | None = None) -> None:
        self.config = config or EngineConfig()
        self._limit = self.config.aperture_frames
        self._reserved = FrameRanges((region.first, region.last) for region in self.config.reserved)
        self._ram = FrameRanges()
        self._pool = Pool(self.config.pool_pages)
        self._iotlb = Iotlb(self.config.iotlb_entries)
        self._contexts = Contexts(self.config.max_contexts, self._pool, self._limit)
        self._endpoints = Endpoints()

    # Guest RAM

    @property
    def ram(self) -> tuple[tuple[int, int], ...]:
        """Guest RAM as merged (first gfn, last gfn inclusive) ranges."""
        return tuple(self._ram)

    def set_ram(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Replace guest RAM by (first gfn, last gfn inclusive) ranges, in any order.

        The default context follows at once. What is mapped in other contexts stays: they hold mappings, not RAM.
        Raises ValueError for a range that is backwards or beyond 64-bit addresses, and then changes nothing.
        """
        self._ram = FrameRanges(ranges)
        self._iotlb.invalidate_context(DEFAULT_CONTEXT)

    def is_ram(self, gfn: int, nr: int = 1) -> bool:
        """Whether all of gfn..gfn+nr-1 is guest RAM."""
        return self._ram.inside(gfn) >= nr

    # Endpoints

    def add_endpoint(self, stream: int) -> None:
        """A new endpoint, in the default context. Raises ValueError for a stream that exists already."""
        self._endpoints.add(stream)

    def endpoints(self) -> Mapping[int, int]:
        """stream -> context, read only, always current."""
        return self._endpoints.view()

    def attach(self, stream: int, ctx: int) -> Stop | None:
        """Move an endpoint to a context and unblock it. NO_ENDPOINT outranks NO_CONTEXT; neither changes anything.

        Cached translations are kept by context, so none of the context left can serve the endpoint afterwards.
        """
        if self._endpoints.get(stream) is None:
            return Stop.NO_ENDPOINT
        if not self.has_context(ctx):
            return Stop.NO_CONTEXT
        self._endpoints.move(stream, ctx)
        self._endpoints.unblock(stream)
        return None

    def block(self, stream: int) -> Stop | None:
        """Refuse every translation of an endpoint until it is unblocked or attached; NO_ENDPOINT if unknown."""
        if self._endpoints.get(stream) is None:
            return Stop.NO_ENDPOINT
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

        A clone leaves out RAM beyond the aperture and reserved regions. NO_FREE_CONTEXT or POOL_EXHAUSTED leave
        nothing behind.
        """
        result = self._contexts.alloc()
        table = None if result.context is None else self._contexts.get(result.context)
        if result.context is None or table is None or not clone:
            return result
        for first, count in self._ram.without(self._reserved, self._limit):
            if table.map(first, first, count, _READ_WRITE_BITS) < count:
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
        self._iotlb.invalidate_context(ctx)
        self._contexts.free(ctx)
        return None

    def reset(self) -> None:
        """Back to power-on: no context but 0, all endpoints in it; those that were outside it are blocked."""
        self._iotlb.clear()
        for ctx in self.contexts():
            self._contexts.free(ctx)
        self._endpoints.reset()

    # Mappings

    def map(self, ctx: int, dfn: int, gfn: int, nr: int, access: Access, *, ram_only: bool = True) -> Outcome:
        """Map dfn..dfn+nr-1 to gfn..gfn+nr-1, page by page until one is refused; the pages before it stay.

        Before anything changes: DEFAULT_CONTEXT, NO_CONTEXT, NO_ACCESS (at dfn), OUT_OF_APERTURE (whole range).
        Then for each page NOT_RAM, RESERVED, MAPPED, POOL_EXHAUSTED, in this rank. Without `ram_only`, NOT_RAM is left
        to frames beyond 64-bit addresses.
        """
        table = self._contexts.get(ctx)
        if table is None:
            return self._no_table(ctx)
        if nr < 1:
            return whole(0)
        bits = int(access) & _READ_WRITE_BITS
        if not bits:
            return Outcome(0, Stop.NO_ACCESS, dfn)
        if not 0 <= dfn < dfn + nr <= self._limit:
            return self._out_of_aperture(dfn)
        backed = self._ram.inside(gfn) if ram_only else max(0, FRAME_LIMIT - gfn)
        clear = self._reserved.outside(dfn)
        possible = min(nr, backed, clear)
        done = table.map(dfn, gfn, possible, bits)
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
        the map call that it would CUT. The latter two pass over holes and may end with nothing done and no stop.
        No cached translation of the range outlives the call.
        """
        table = self._contexts.get(ctx)
        if table is None:
            return self._no_table(ctx)
        if nr < 1:
            return whole(0)
        if not 0 <= dfn < dfn + nr <= self._limit:
            return self._out_of_aperture(dfn)
        self._iotlb.invalidate(ctx, dfn, nr)
        if mode is not UnmapMode.UNTIL_HOLE:
            return self._unmap_calls(table, dfn, nr, mode)
        done = table.unmap(dfn, nr, past_holes=False)
        if done == nr:
            return whole(done)
        hole = dfn + done
        return Outcome(done, Stop.RESERVED if self._reserved.inside(hole) else Stop.NOT_MAPPED, hole)

    def _unmap_calls(self, table: PageTable, dfn: int, nr: int, mode: UnmapMode) -> Outcome:
        cut = table.cut_point(dfn, nr)
        if cut is None:
            return whole(table.unmap(dfn, nr, past_holes=True))
        if mode is UnmapMode.CHECK_ENDS:
            return Outcome(0, Stop.CUT, cut)
        return Outcome(table.unmap(dfn, cut - dfn, past_holes=True), Stop.CUT, cut)

    def lookup(self, ctx: int, dfn: int) -> tuple[int, Access] | None:
        """(gfn, access) of a page; None when it is not mapped or there is no such context (see has_context)."""
        run = self._find_run(ctx, dfn, 1)
        return None if isinstance(run, Refusal) else (run[0], Access(run[2]))

    def mappings(self, ctx: int) -> Iterator[MappedRun]:
        """What a context maps, in order: runs of adjacent frames and one access, each from one map call.

        The default context yields guest RAM as it is reachable, one run a range. Nothing for an unknown context.
        """
        table = self._contexts.get(ctx)
        if table is None:
            if ctx == DEFAULT_CONTEXT and self.config.default_policy is DefaultPolicy.IDENTITY:
                for first, count in self._ram.without(self._reserved, FRAME_LIMIT):
                    yield MappedRun(first, first, count, READ_WRITE, True)
            return
        held: MappedRun | None = None
        for dfn, gfn, nr, bits, starts in table.leaves(0, self._limit):
            if held and not starts and (held.dfn + held.nr, held.gfn + held.nr) == (dfn, gfn):
                # A leaf that starts no call goes on from the one before it, hence with the same access.
                held = held._replace(nr=held.nr + nr)
                continue
            if held:
                yield held
            held = MappedRun(dfn, gfn, nr, Access(bits), starts)
        if held:
            yield held

    def usage(self) -> Usage:
        return Usage(len(self._contexts), self._pool.used, self._pool.total, self._contexts.mapped_pages())

    def _no_table(self, ctx: int) -> Outcome:
        return Outcome(0, Stop.DEFAULT_CONTEXT if ctx == DEFAULT_CONTEXT else Stop.NO_CONTEXT, None)

    def _out_of_aperture(self, dfn: int) -> Outcome:
        return Outcome(0, Stop.OUT_OF_APERTURE, self._limit if 0 <= dfn < self._limit else dfn)

    # Translation

    def translate(self, stream: int, iova: int, length: int, access: Access) -> list[Run] | Fault:
        """Where an endpoint's DMA of `length` bytes at `iova` goes: runs in order, or the first byte refused.

        The whole span is checked: one refused page refuses all. Adjacent frames come as one run; length 0 is [].
        A span that wraps past 64 bits is refused at its first byte. Cost grows with the leaves in the span, so the
        caller bounds `length`.
        """
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
        table = self._contexts.get(ctx)
        if table is None and (ctx or self.config.default_policy is DefaultPolicy.BLOCKED):
            return Refusal.BLOCKED
        if not 0 <= dfn < (FRAME_LIMIT if table is None else self._limit):
            return Refusal.OUT_OF_APERTURE
        clear = self._reserved.outside(dfn)
        if not clear:
            return Refusal.RESERVED
        if table is not None:
            return table.run(dfn, nr) or Refusal.NOT_MAPPED
        # The default context: 1:1 of guest RAM, whatever the aperture of the others.
        pages = min(nr, clear, self._ram.inside(dfn))
        return (dfn, pages, _READ_WRITE_BITS) if pages else Refusal.NOT_MAPPED
