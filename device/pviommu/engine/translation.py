"""What an engine's contexts translate to, for DMA and for whoever asks: everything that only looks."""

from collections.abc import Iterator, Mapping, Sequence

from pviommu.engine.config import EngineConfig
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
    DefaultPolicy,
    Fault,
    Refusal,
    Run,
    Usage,
)
from pviommu.engine.results import Mapping as MappedRun
from pviommu.engine.table import ACCESS_MASK

READ_WRITE = Access.READ | Access.WRITE
_new_tuple = tuple.__new__
"""Makes a Run in half the time that Run() takes."""


class Translation:
    """The state of an engine and all questions about it. What changes it is `engine.Engine`, which see for the units.

    It caches what was found: in the IOTLB by context, in `core.hits` by endpoint. The engine invalidates both.
    """

    def __init__(self, config: EngineConfig | None = None, core: Core | None = None) -> None:
        """`core`: one that no other engine has; Python's if none is given."""
        self.config = config or EngineConfig()
        self._limit = self.config.aperture_frames
        self._reserved = FrameRanges((region.first, region.last) for region in self.config.reserved)
        self._ram = FrameRanges()
        self._mmio = FrameRanges()
        self._backed = self._ram
        """Both: what may be mapped, and what the default context reaches. While there is no MMIO, it is RAM itself."""
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

    @property
    def ram(self) -> tuple[tuple[int, int], ...]:
        """Guest RAM as merged (first gfn, last gfn inclusive) ranges."""
        return tuple(self._ram)

    def is_ram(self, gfn: int, nr: int = 1) -> bool:
        """Whether all of gfn..gfn+nr-1 is guest RAM."""
        return self._ram.inside(gfn) >= nr

    @property
    def mmio(self) -> tuple[tuple[int, int], ...]:
        """Other frames that may be mapped, as merged (first gfn, last gfn inclusive) ranges."""
        return tuple(self._mmio)

    def endpoints(self) -> Mapping[int, int]:
        """stream -> context, read only, always current."""
        return self._endpoints.view()

    def is_blocked(self, stream: int) -> bool:
        return self._endpoints.is_blocked(stream)

    def has_context(self, ctx: int) -> bool:
        return ctx == DEFAULT_CONTEXT or self._contexts.get(ctx) is not None

    def contexts(self) -> tuple[int, ...]:
        """Numbers of the allocated contexts in order, the default context not among them."""
        return tuple(self._contexts)

    def usage(self) -> Usage:
        contexts, pool = self._contexts, self._pool
        return Usage(len(contexts), pool.used, pool.total, contexts.mapped_pages(), contexts.limit)

    @property
    def iotlb_flushes(self) -> int:
        """IOTLB invalidations carried out so far; those deferred together count once."""
        return self._iotlb.flushes

    def lookup(self, ctx: int, dfn: int) -> tuple[int, Access] | None:
        """(gfn, access) of a page; None when it is not mapped or there is no such context (see has_context)."""
        run = self._find_run(ctx, dfn, 1)
        return None if isinstance(run, Refusal) else (run[0], Access(run[2]))

    def mappings(self, ctx: int) -> Iterator[MappedRun]:
        """What a context maps, in order: runs of adjacent frames and one access, each from one map call.

        Direct regions are not among them; see direct(). The default context yields what is reachable, one run a range.
        Nothing for an unknown context.
        """
        context = self._contexts.get(ctx)
        if context:
            yield from context.mappings()
        elif ctx == DEFAULT_CONTEXT and self.config.default_policy is DefaultPolicy.IDENTITY:
            for first, count in self._backed.without(FRAME_LIMIT, self._reserved):
                yield MappedRun(first, first, count, READ_WRITE, True)

    def direct(self, ctx: int) -> tuple[tuple[int, int], ...]:
        """Merged (first dfn, last dfn inclusive) ranges that direct regions map 1:1 in a context, over its mappings."""
        context = self._contexts.get(ctx)
        return tuple(context.direct) if context else ()

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
        """1:1 of RAM and MMIO, whatever the aperture of the other contexts; nothing for a context that is not there."""
        if ctx != DEFAULT_CONTEXT or self.config.default_policy is DefaultPolicy.BLOCKED:
            return Refusal.BLOCKED
        if not 0 <= dfn < FRAME_LIMIT:
            return Refusal.OUT_OF_APERTURE
        clear = self._reserved.outside(dfn)
        if not clear:
            return Refusal.RESERVED
        pages = min(nr, clear, self._backed.inside(dfn))
        return (dfn, pages, ACCESS_MASK) if pages else Refusal.NOT_MAPPED
