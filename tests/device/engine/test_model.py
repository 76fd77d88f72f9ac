"""The engine against its page-by-page definition: random histories, and all short ones."""

import itertools

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pviommu.engine import Access, Engine, EngineConfig, Fault, UnmapMode, Usage

from .model import LIMIT, RAM, Model, is_ram, is_reserved

MODES = [mode.name for mode in UnmapMode]
# Places where something happens: region boundaries, the reserved window, the end of the aperture.
ANCHORS = [0, 0x1FE, 0x200, 0x3FF, 0x400, 0x7FF, 0x3FE00, 0x40000, 0x401FF, 0xFEDFE, 0xFEF00, LIMIT - 2]
DFNS = st.builds(lambda anchor, offset: max(0, anchor + offset), st.sampled_from(ANCHORS), st.integers(-2, 3))
GFNS = st.one_of(DFNS, st.sampled_from([0x800, 0x1000, 0x40FFE]))
COUNTS = st.one_of(st.integers(0, 6), st.sampled_from([510, 512, 513, 1024, 1500]))
CONTEXTS = st.integers(0, 4)


def triple(outcome):
    return outcome.done, outcome.stop.name if outcome.stop else None, outcome.at


def pages_of(engine, ctx):
    pages = {}
    for run in engine.mappings(ctx):
        assert run.starts_call
        pages |= {run.dfn + i: (run.gfn + i, int(run.access)) for i in range(run.nr)}
    return pages


class EngineHistory(RuleBasedStateMachine):
    @initialize(pool_pages=st.integers(2, 24))
    def start(self, pool_pages):
        self.engine = Engine(EngineConfig(max_contexts=3, pool_pages=pool_pages, iotlb_entries=7))
        self.engine.set_ram(RAM)
        self.model = Model(3, pool_pages)
        self.attached = {1: 0, 2: 0}
        self.blocked = set()
        self.touched = [0, 0, 0, 0]
        for stream in self.attached:
            self.engine.add_endpoint(stream)
            self.model.alloc()
            self.engine.alloc_context()
            if self.engine.attach(stream, stream) is None:
                self.attached[stream] = stream

    def touch(self, dfn, nr):
        """Remember the ends of what was mapped lately: stale translations would show there."""
        self.touched = [*self.touched, dfn, max(0, dfn + nr - 1)][-4:]

    @rule()
    def alloc(self):
        context, stop = self.engine.alloc_context()
        assert (context, stop and stop.name) == self.model.alloc()

    @rule(ctx=CONTEXTS, reattach=st.booleans())
    def free(self, ctx, reattach):
        stop = self.engine.free_context(ctx, reattach)
        inside = [stream for stream, current in self.attached.items() if current == ctx]
        if not ctx:
            expected = "DEFAULT_CONTEXT"
        elif ctx not in self.model.pages:
            expected = "NO_CONTEXT"
        elif inside and not reattach:
            expected = "ENDPOINTS_ATTACHED"
        else:
            expected = None
            del self.model.pages[ctx]
            self.attached |= dict.fromkeys(inside, 0)
        assert (stop and stop.name) == expected

    @rule(stream=st.integers(1, 3), ctx=CONTEXTS)
    def attach(self, stream, ctx):
        stop = self.engine.attach(stream, ctx)
        if stream not in self.attached:
            expected = "NO_ENDPOINT"
        elif ctx and ctx not in self.model.pages:
            expected = "NO_CONTEXT"
        else:
            expected = None
            self.attached[stream] = ctx
            self.blocked.discard(stream)
        assert (stop and stop.name) == expected

    @rule(ctx=CONTEXTS, dfn=DFNS, gfn=GFNS, nr=COUNTS, access=st.integers(0, 3))
    def map(self, ctx, dfn, gfn, nr, access):
        self.touch(dfn, nr)
        outcome = self.engine.map(ctx, dfn, gfn, nr, Access(access))
        assert triple(outcome) == self.model.map(ctx, dfn, gfn, nr, access)

    @rule(ctx=st.integers(1, 3), region=st.sampled_from([0, 0x200, 0x400, 0x40000]), nr=COUNTS)
    def map_aligned(self, ctx, region, nr):
        self.touch(region, nr)
        outcome = self.engine.map(ctx, region, 0x1000, nr, Access.READ)
        assert triple(outcome) == self.model.map(ctx, region, 0x1000, nr, 1)

    @rule(ctx=CONTEXTS, dfn=DFNS, nr=COUNTS, mode=st.sampled_from(MODES))
    def unmap(self, ctx, dfn, nr, mode):
        outcome = self.engine.unmap(ctx, dfn, nr, UnmapMode[mode])
        assert triple(outcome) == self.model.unmap(ctx, dfn, nr, mode)

    @rule(ctx=st.integers(1, 2), which=st.integers(0, 3), nr=st.integers(1, 3), mode=st.sampled_from(MODES))
    def unmap_what_was_mapped(self, ctx, which, nr, mode):
        outcome = self.engine.unmap(ctx, self.touched[which], nr, UnmapMode[mode])
        assert triple(outcome) == self.model.unmap(ctx, self.touched[which], nr, mode)

    @rule(
        stream=st.integers(1, 2),
        dfn=DFNS,
        offset=st.integers(0, 4095),
        length=st.integers(1, 9000),
        want=st.integers(1, 3),
    )
    def translate(self, stream, dfn, offset, length, want):
        self.check_translation(stream, dfn, offset, length, want)

    def check_translation(self, stream, dfn, offset, length, want):
        iova = (dfn << 12) + offset
        answer = self.engine.translate(stream, iova, length, Access(want))
        expected = self.expect_translation(stream, iova, length, want)
        if isinstance(answer, Fault):
            assert (answer.iova, answer.refusal.name) == expected
            assert (answer.stream, answer.context, answer.access) == (stream, self.attached[stream], want)
        else:
            assert all(a.gpa + a.length != b.gpa for a, b in itertools.pairwise(answer))
            assert [run.gpa + i for run in answer for i in range(run.length)] == expected

    def expect_translation(self, stream, iova, length, want):
        ctx = self.attached[stream]
        if stream in self.blocked:
            return iova, "BLOCKED"
        gpas = []
        for address in range(iova, iova + length):
            dfn = address >> 12
            found = (dfn, 3) if is_ram(dfn) else None
            if ctx:
                found = self.model.pages[ctx].get(dfn, (0,))[:2] if dfn in self.model.pages[ctx] else None
            if ctx and dfn >= LIMIT:
                return address, "OUT_OF_APERTURE"
            if is_reserved(dfn):
                return address, "RESERVED"
            if not found:
                return address, "NOT_MAPPED"
            if want & ~found[1]:
                return address, "NO_PERMISSION"
            gpas.append(found[0] << 12 | address & 0xFFF)
        return gpas

    @rule()
    def reset(self):
        self.engine.reset()
        self.model.pages.clear()
        self.blocked |= {stream for stream, ctx in self.attached.items() if ctx}
        self.attached = dict.fromkeys(self.attached, 0)

    @invariant()
    def usage_agrees(self):
        model = self.model
        expected = Usage(len(model.pages), model.pool_used(), model.pool_pages, model.mapped_pages())
        assert self.engine.usage() == expected
        assert self.engine.endpoints() == self.attached

    @invariant()
    def nothing_stale_is_reached(self):
        for stream in self.attached:
            for dfn in self.touched:
                self.check_translation(stream, dfn, 0, 1, 1)

    @invariant()
    def pages_agree(self):
        for ctx, pages in self.model.pages.items():
            assert pages_of(self.engine, ctx) == {dfn: page[:2] for dfn, page in pages.items()}


EngineHistory.TestCase.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestEngineHistory = EngineHistory.TestCase


def small_operations():
    """Maps, unmaps in every mode and translations, over 2 contexts and the 4 pages around a 2 MiB boundary."""
    for ctx in (1, 2):
        for first, nr in ((0x1FE, 2), (0x1FF, 2), (0x200, 2), (0x1FE, 4)):
            yield "map", ctx, first, nr
        for first, nr in ((0x1FE, 4), (0x1FF, 1), (0x1FF, 2), (0x200, 2)):
            for mode in MODES:
                yield "unmap", ctx, first, nr, mode


@pytest.mark.parametrize("pool_pages", [4, 64])
def test_every_short_history_over_two_contexts_and_four_pages_agrees(pool_pages):
    for history in itertools.product(list(small_operations()), repeat=3):
        engine, model = Engine(EngineConfig(pool_pages=pool_pages)), Model(255, pool_pages)
        engine.set_ram(RAM)
        for ctx in (1, 2):
            engine.add_endpoint(ctx)
            engine.alloc_context()
            model.alloc()
            engine.attach(ctx, ctx)
        for kind, ctx, first, nr, *mode in history:
            if kind == "map":
                got, want = (
                    engine.map(ctx, first, first + ctx, nr, Access(3)),
                    model.map(ctx, first, first + ctx, nr, 3),
                )
            else:
                got, want = engine.unmap(ctx, first, nr, UnmapMode[mode[0]]), model.unmap(ctx, first, nr, mode[0])
            assert triple(got) == want, history
            check_translations(engine, model, history)
        assert engine.usage() == (2, model.pool_used(), pool_pages, model.mapped_pages()), history


def check_translations(engine, model, history):
    for ctx in (1, 2):
        for dfn in range(0x1FE, 0x202):
            answer = engine.translate(ctx, dfn << 12, 1, Access.WRITE)
            page = model.pages[ctx].get(dfn)
            assert isinstance(answer, Fault) if page is None else answer == [(page[0] << 12, 1)], history
