"""What an engine's domains translate to, for DMA and for whoever asks: everything that only looks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from .attachments import Attachments
from .config import EngineConfig
from .core import Core, PythonCore
from .dirty import DirtyPages
from .domain import BLOCKED, IDENTITY
from .domains import Domains
from .guest_tables import TablesDomain
from .iotlb import BLOCK_PAGES, CachedRun, Iotlb
from .nested import NestedDomain, ParentRefusal, Wait
from .ranges import FrameRanges
from .results import (
    ADDRESS_LIMIT,
    FRAME_LIMIT,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    Access,
    Area,
    EngineUsage,
    PackedRuns,
    Refusal,
    Run,
    TranslationFault,
    TranslationPending,
    add_run,
)
from .table import ACCESS_MASK

READ_WRITE = Access.READ | Access.WRITE
FIXED = (IDENTITY, BLOCKED)
_WRITE = int(Access.WRITE)
_new_tuple = tuple.__new__
"""Makes a Run in half the time that Run() takes."""


class Translation:
    """The state of an engine and all questions about it. What changes it is `engine.Engine`, which see for the units.

    It caches what was found: in the IOTLB by domain, in `core.hits` by endpoint. The engine invalidates both.
    """

    def __init__(self, config: EngineConfig | None = None, core: Core | None = None) -> None:
        """`core`: one that no other engine has; Python's if none is given."""
        self.config = config or EngineConfig()
        self._limit = self.config.aperture_frames
        self._reserved = FrameRanges((region.first, region.last) for region in self.config.reserved)
        self._ram = FrameRanges()
        self._mmio = FrameRanges()
        self._backed = self._ram
        """Both: what may be mapped, and what the identity domain reaches. While there is no MMIO, it is RAM itself."""
        self._core = core or PythonCore()
        self._walks = self._core.walks
        self._hits = self._core.hits
        """(stream, dfn, access bits): gpa of the page, bytes from there on; of requests without a PASID. Empty after
        any change but a map."""
        self._pool = self._core.start(self.config)
        self._iotlb = Iotlb(self.config.iotlb_entries)
        self._domains = Domains(self._core, self._pool, self._limit, self._reserved)
        self._attachments = Attachments()
        self._tracked: dict[int, DirtyPages] = {}
        """Pages that DMA wrote, of the paging domains that are tracked. A request in `core.hits` has marked its own."""

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
        """stream -> domain of its requests without a PASID, read only, always current."""
        return self._attachments.view()

    def is_blocked(self, stream: int) -> bool:
        return stream in self._attachments.blocked

    def has_domain(self, domain: int) -> bool:
        """Whether there is such a domain, IDENTITY and BLOCKED among them."""
        return domain in FIXED or domain in self._domains

    def has_nested(self, domain: int) -> bool:
        """Whether nested domains stand on this one."""
        return self._domains.has_children(domain)

    def is_paging(self, domain: int) -> bool:
        """Whether it is a domain that can be mapped into."""
        return domain in self._domains.paging

    def has_guest_tables(self, domain: int) -> bool:
        """Whether it is a domain whose tables the guest owns."""
        return domain in self._domains.tables

    def guest_tables(self, domain: int) -> TablesDomain | None:
        """Such a domain, to look into; None for any other number."""
        return self._domains.tables.get(domain)

    def walked_by_core(self, stream: int) -> int | None:
        """The domain of an endpoint's requests, if they are not blocked and the core walks its tables of the guest."""
        domain = self._attachments.domains.get(stream)
        if domain not in self._domains.tables or stream in self._attachments.blocked or not self._is_of_core(domain):
            return None
        return domain

    def domains(self) -> tuple[int, ...]:
        """Numbers of the allocated domains in order, the fixed ones not among them."""
        return tuple(self._domains)

    def usage(self) -> EngineUsage:
        domains, pool = self._domains, self._pool
        return EngineUsage(len(domains.paging) + len(domains.tables), pool.used, pool.total, domains.mapped_pages())

    def pool_pages(self) -> tuple[int, int]:
        """Pages of the pool that are in use, and the limit in force."""
        return self._pool.used, self._pool.total

    def iotlb(self, *, is_used: bool) -> Iotlb:
        """The IOTLB. `is_used`: translations pass it from now on; otherwise only if the core does not walk itself."""
        self._hits.clear()
        self._iotlb.clear()
        self._walks = self._core.walks and not is_used
        return self._iotlb

    @property
    def iotlb_flushes(self) -> int:
        """IOTLB invalidations carried out so far; those deferred together count once."""
        return self._iotlb.flushes

    def lookup(self, domain: int, dfn: int) -> tuple[int, Access] | None:
        """(gfn, access) of a page; None when it is not mapped or there is no such domain with pages (see is_paging)."""
        run = self._find_run(domain, dfn, 1)
        return None if isinstance(run, Refusal) else (run[0], Access(run[2]))

    def areas(self, domain: int) -> Iterator[Area]:
        """What a domain maps, in order: runs of adjacent frames and one access, each from one map call.

        Direct regions are not among them; see direct(). IDENTITY yields what is reachable, one run a range. Nothing for
        others.
        """
        paging = self._domains.paging.get(domain)
        return paging.areas() if paging else self._identical_areas(domain, 0)

    def pieces(self, domain: int, dfn: int = 0) -> Iterator[Area]:
        """As areas(), from a page on, and an area may come in several pieces, of which the later ones begin no call.

        Each costs about the same, however many make an area. The domain must not change before the last one is taken.
        """
        paging = self._domains.paging.get(domain)
        return paging.pieces(dfn) if paging else self._identical_areas(domain, dfn)

    def _identical_areas(self, domain: int, dfn: int) -> Iterator[Area]:
        if domain == IDENTITY and dfn < FRAME_LIMIT:
            rest = FrameRanges()
            rest.bounds = self._backed.within(dfn, FRAME_LIMIT - dfn)
            for first, count in rest.without(FRAME_LIMIT, self._reserved):
                yield Area(first, first, count, READ_WRITE, True)

    def mapped_pages(self, domain: int) -> int:
        """Pages that map calls, or a clone, mapped in a domain; 0 for one without a table."""
        paging = self._domains.paging.get(domain)
        return paging.table.mapped if paging else 0

    def is_clone(self, domain: int) -> bool:
        """Whether it is a paging domain that began with all guest RAM and follows it."""
        paging = self._domains.paging.get(domain)
        return paging is not None and paging.clone is not None

    def direct(self, domain: int) -> tuple[tuple[int, int], ...]:
        """Merged (first dfn, last dfn inclusive) ranges that direct regions map 1:1 in a domain, over its mappings."""
        found = self._domains.paging.get(domain) or self._domains.tables.get(domain)
        return tuple(found.direct) if found else ()

    def translate(
        self, stream: int, iova: int, length: int, access: Access, pasid: int | None = None
    ) -> Sequence[Run] | TranslationFault | TranslationPending:
        """Where an endpoint's DMA of `length` bytes at `iova` goes: runs in order, the first byte refused, or the first
        one that must wait, which only happens in nested domains.

        The whole span is checked: one refused page refuses all. Adjacent frames come as one run; length 0 is [].
        A span that wraps past 64 bits is refused at its first byte. Cost grows with the leaves in the span, so the
        caller bounds `length`.
        """
        if pasid is not None:
            return self._translate(stream, pasid, iova, length, access)
        key = (stream, iova >> PAGE_SHIFT, access._value_)  # int() takes three times as long
        offset = iova & PAGE_MASK
        hit = self._hits.get(key)
        if hit is not None and 0 < length <= hit[1] - offset:
            return [_new_tuple(Run, (hit[0] + offset, length))]
        runs = self._translate(stream, None, iova, length, access)
        # Nobody here knows when the guest changes tables of its own (a first stage, or all there is): such runs do not
        # come as a list.
        if isinstance(runs, list) and len(runs) == 1:
            if len(self._hits) >= self.config.iotlb_entries:
                self._hits.clear()
            self._hits[key] = (runs[0].gpa - offset, -(-(offset + length) // PAGE_SIZE) * PAGE_SIZE)
        return runs

    def translate_spans(self, stream: int, spans: Sequence[tuple[int, int]], access: Access) -> PackedRuns | None:
        """What translate() would give for each (iova, length), as far as that is a single run for each of them and the
        core walks by itself; otherwise None, and translate() is to be asked.
        """
        domain = self.core_domain(stream)
        return None if domain is None else self._core.walk_spans(domain, spans, access._value_)

    def core_domain(self, stream: int) -> int | None:
        """The domain of an endpoint's requests without a PASID, if the core translates them by itself, and nobody has
        to be told which pages they write.
        """
        domain = self._attachments.domains.get(stream)
        if domain is None or not self._walks or stream in self._attachments.blocked or self._tracked:
            return None
        if domain in self._domains.nested or (domain in self._domains.tables and not self._is_of_core(domain)):
            return None
        return domain

    def _translate(
        self, stream: int, pasid: int | None, iova: int, length: int, access: Access
    ) -> Sequence[Run] | TranslationFault | TranslationPending:
        attachments = self._attachments
        domain = attachments.domains.get(stream) if pasid is None else attachments.pasids.get((stream, pasid))
        if domain is None:
            known = stream in attachments.domains
            return TranslationFault(
                iova, Refusal.NO_PASID if known else Refusal.NO_ENDPOINT, access, stream, BLOCKED, pasid
            )
        if length < 1:
            return []
        if stream in attachments.blocked:
            return TranslationFault(iova, Refusal.BLOCKED, access, stream, domain, pasid)
        end = iova + length
        if iova < 0 or end > ADDRESS_LIMIT:
            return TranslationFault(iova, Refusal.OUT_OF_APERTURE, access, stream, domain, pasid)
        nested = self._domains.nested.get(domain)
        if nested is not None:
            begun: Sequence[Run] = ()
            position = iova
            if nested.whole is not None and self._walks and not self._tracked:
                begun, position = nested.whole.span(iova, length, access)
                if position == end:
                    return begun
            request = TranslationPending(iova, access, stream, domain, pasid)
            return self._translate_nested(nested, request, begun, position, end)
        if domain in self._domains.tables:
            return self._translate_by_guest(domain, TranslationPending(iova, access, stream, domain, pasid), end)
        found = self._walk(domain, iova, end, access._value_)
        if isinstance(found, tuple):
            return TranslationFault(found[0], found[1], access, stream, domain, pasid)
        return found

    def _is_of_core(self, domain: int) -> bool:
        """Whether the core walks these tables of the guest."""
        return self._walks and self._domains.tables[domain].is_of_core

    def _translate_by_guest(
        self, domain: int, request: TranslationPending, end: int
    ) -> Sequence[Run] | TranslationFault:
        """By tables of the guest, which are never cached."""
        walk = partial(self._core.walk, domain) if self._is_of_core(domain) else self._domains.tables[domain].walk
        found = walk(request.iova, end, request.access._value_)
        if isinstance(found, tuple):
            return TranslationFault(found[0], found[1], request.access, request.stream, domain, request.pasid)
        return found if isinstance(found, PackedRuns) else tuple(found)

    def _walk(self, domain: int, iova: int, end: int, wanted: int) -> Sequence[Run] | tuple[int, Refusal]:
        """The runs of [iova, end) in a domain that is not nested, or the first refused address and why."""
        found = self._core.walk(domain, iova, end, wanted) if self._walks else self._find(domain, iova, end, wanted)
        if self._tracked and wanted & _WRITE and domain in self._tracked and not isinstance(found, tuple):
            self._tracked[domain].mark(iova >> PAGE_SHIFT, end - 1 >> PAGE_SHIFT)
        return found

    def _find(self, domain: int, iova: int, end: int, wanted: int) -> Sequence[Run] | tuple[int, Refusal]:
        """What a core that walks would find."""
        last_dfn = end - 1 >> PAGE_SHIFT
        runs: list[Run] = []
        position = iova
        while position < end:
            dfn = position >> PAGE_SHIFT
            found = self._iotlb.get(domain, dfn) or self._fill(domain, dfn, last_dfn)
            if isinstance(found, Refusal):
                return position, found
            gfn, pages, allowed = found
            if wanted & ~allowed:
                return position, Refusal.NO_PERMISSION
            gpa = gfn << PAGE_SHIFT | position & PAGE_MASK
            size = min(end, dfn + pages << PAGE_SHIFT) - position
            add_run(runs, gpa, size)
            position += size
        return runs

    def _translate_nested(
        self, nested: NestedDomain, request: TranslationPending, begun: Sequence[Run], position: int, end: int
    ) -> Sequence[Run] | TranslationFault | TranslationPending:
        """Both stages, run by run of the first one, from a position on, before which are the runs `begun`; never as a
        list.
        """

        def parent(ipa: int, length: int, access: Access) -> Sequence[Run] | ParentRefusal:
            if ipa < 0 or ipa + length > ADDRESS_LIMIT:
                return ParentRefusal(ipa, Refusal.OUT_OF_APERTURE)
            found = self._walk(nested.parent, ipa, ipa + length, access._value_) if length > 0 else []
            return ParentRefusal(*found) if isinstance(found, tuple) else found

        def refused(iova: int, why: Refusal, ipa: int | None = None, *, during_walk: bool = False) -> TranslationFault:
            where = (request.stream, request.domain, request.pasid)
            return TranslationFault(iova, why, access, *where, ipa, during_walk)

        access, runs = request.access, list(begun)
        while position < end:
            answer = nested.walker.walk(position, end - position, access, parent)
            if isinstance(answer, Wait):
                return replace(request, iova=position)
            if isinstance(answer, Refusal):
                return refused(position, answer)
            if isinstance(answer, ParentRefusal):
                return refused(position, answer.refusal, answer.ipa, during_walk=True)
            if access & ~answer.access:
                return refused(position, Refusal.NO_PERMISSION)
            size = min(answer.length, end - position)
            if size < 1:
                raise ValueError(f"stage 1 of domain {request.domain} at {position:#x}: a run has at least one byte")
            there = parent(answer.ipa, size, access)
            if isinstance(there, ParentRefusal):
                return refused(position + there.ipa - answer.ipa, there.refusal, there.ipa)
            runs += there
            position += size
        return _joined(runs)

    def _fill(self, domain: int, dfn: int, last_dfn: int) -> CachedRun | Refusal:
        """Find the run at `dfn`, up to `last_dfn` and inside its 2 MiB block, and cache it; refusals are not cached."""
        run = self._find_run(domain, dfn, min(last_dfn, dfn | BLOCK_PAGES - 1) - dfn + 1)
        if not isinstance(run, Refusal):
            self._iotlb.put(domain, dfn, run)
        return run

    def _find_run(self, domain: int, dfn: int, nr: int) -> CachedRun | Refusal:
        paging = self._domains.paging.get(domain)
        if paging is None:
            tables = self._domains.tables.get(domain)
            if tables is not None:
                return tables.find(dfn, nr)
            return self._find_identical_run(dfn, nr) if domain == IDENTITY else Refusal.BLOCKED
        if not 0 <= dfn < self._limit:
            return Refusal.OUT_OF_APERTURE
        if paging.closed.inside(dfn):
            pages = min(nr, paging.direct.inside(dfn))
            return (dfn, pages, ACCESS_MASK) if pages else Refusal.RESERVED
        return paging.table.run(dfn, nr) or Refusal.NOT_MAPPED

    def _find_identical_run(self, dfn: int, nr: int) -> CachedRun | Refusal:
        """1:1 of RAM and MMIO, whatever the aperture of paging domains."""
        if not 0 <= dfn < FRAME_LIMIT:
            return Refusal.OUT_OF_APERTURE
        clear = self._reserved.outside(dfn)
        if not clear:
            return Refusal.RESERVED
        pages = min(nr, clear, self._backed.inside(dfn))
        return (dfn, pages, ACCESS_MASK) if pages else Refusal.NOT_MAPPED


def _joined(runs: list[Run]) -> tuple[Run, ...]:
    """Adjacent runs as one."""
    joined: list[Run] = []
    for run in runs:
        add_run(joined, *run)
    return tuple(joined)
