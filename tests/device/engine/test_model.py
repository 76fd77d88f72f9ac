"""The engine against its page-by-page definition: random histories, and all short ones."""

import itertools
import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pviommu.engine import Access, Engine, EngineConfig, EngineUsage, ReservedFrames, TranslationFault, UnmapMode
from pviommu.interfaces.pv.contexts import Contexts, DefaultPolicy

from .extended_model import ExtendedModel

PythonEngine = Engine
LIMIT = 1 << 27
MODES = [mode.name for mode in UnmapMode]
RAM = [
    [(0, 0x5FF), (0x800, 0x11FF), (0x3FFF0, 0x4000F)],
    [(0, 0x3FE), (0x500, 0xFFF)],
    [(0x200, 0x1400), (0xFEDFC, 0xFEF04)],
]
"""What the guest's memory may be, (first, last) each."""
REGIONS = {1: [(0x3FE, 0x401)], 2: [(0x3FE, 0x401), (0x9000, 0x9001)], 3: [(0x400, 0x402)], 4: []}
"""Direct regions by stream: 1 and 2 share one, which 3 overlaps; frames are RAM at times."""
# Places where something happens: region boundaries, the reserved window, the end of the aperture.
ANCHORS = [0, 0x1FE, 0x200, 0x3FF, 0x400, 0x7FF, 0x9000, 0x3FE00, 0x40000, 0x401FF, 0xFEDFE, 0xFEF00, LIMIT - 2]
DFNS = st.builds(lambda anchor, offset: max(0, anchor + offset), st.sampled_from(ANCHORS), st.integers(-2, 3))
GFNS = st.one_of(DFNS, st.sampled_from([0x800, 0x1000, 0x11FE]))
COUNTS = st.one_of(st.integers(0, 6), st.sampled_from([510, 512, 513, 1024, 1500]))
CONTEXTS = st.integers(0, 4)
EXAMPLES, STEPS = (int(number) for number in os.environ.get("PVIOMMU_ENGINE_HISTORIES", "120x40").split("x"))
"""Random histories and their length."""
FEWER = "PVIOMMU_ENGINE_HISTORIES" in os.environ
"""Mutation tests ask for fewer histories, the same ones each time, and not for the shortest that fails."""


def triple(outcome):
    return outcome.done, outcome.stop.name if outcome.stop else None, outcome.at


def ranges(pairs):
    return [range(first, last + 1) for first, last in pairs]


class EngineHistory(RuleBasedStateMachine):
    @initialize(pool_pages=st.one_of(st.integers(2, 30), st.just(64)), ram=st.sampled_from(RAM))
    def start(self, pool_pages, ram):
        self.config = EngineConfig(pool_pages=pool_pages, iotlb_entries=7)
        self.build(Engine)
        self.engine.set_ram(ram)
        self.model = ExtendedModel(
            3, pool_pages, ranges(ram), {stream: ranges(pairs) for stream, pairs in REGIONS.items()}
        )
        self.touched = [0, 0, 0, 0]
        self.deferral = None
        for stream in REGIONS:
            self.model.attached[stream] = 0
        for stream in (4, 1):
            self.alloc(False)
            self.attach(stream, len(self.model.pages))

    def build(self, make):
        self.engine = make(self.config)
        self.contexts = Contexts(self.engine, 3, DefaultPolicy.IDENTITY)
        for stream, pairs in REGIONS.items():
            self.contexts.add_endpoint(stream, [ReservedFrames(*pair, "direct") for pair in pairs])

    def teardown(self):
        if self.deferral is not None:
            self.deferral.__exit__(None, None, None)

    def touch(self, dfn, nr):
        """Remember the ends of what was mapped lately: stale translations would show there."""
        self.touched = [*self.touched, dfn, max(0, dfn + nr - 1)][-4:]

    # contexts and endpoints

    @rule(clone=st.booleans())
    def alloc(self, clone):
        context, stop = self.contexts.alloc(clone)
        ctx, why, _ = self.model.alloc(clone)
        assert (context, stop and stop.name) == (ctx or None, why)

    @rule(ctx=CONTEXTS, reattach=st.booleans())
    def free(self, ctx, reattach):
        stop = self.contexts.free(ctx, reattach)
        assert (stop and stop.name) == self.model.free(ctx, reattach)[1]

    @rule(stream=st.integers(1, 5), ctx=CONTEXTS)
    def attach(self, stream, ctx):
        stop = self.contexts.attach(stream, ctx)
        assert (stop and stop.name) == self.model.attach(stream, ctx)[1]

    @rule(stream=st.integers(1, 4))
    def block(self, stream):
        self.engine.block(stream)
        self.model.blocked.add(stream)

    @rule(stream=st.integers(1, 5))
    def hold(self, stream):
        stop = self.contexts.hold(stream)
        assert (stop and stop.name) == self.model.hold(stream)[1]

    @rule(stream=st.integers(1, 4))
    def unblock(self, stream):
        self.contexts.unblock(stream)
        self.model.unblock(stream)

    @rule(ram=st.sampled_from(RAM))
    def set_ram(self, ram):
        self.engine.set_ram(ram)
        self.model.set_ram(ranges(ram))

    @rule(mmio=st.sampled_from([[], [(0x600, 0x601)], [(0x5FE, 0x603), (0x1FF, 0x1FF)], [(0x40000, 0x40FFF)]]))
    def set_mmio(self, mmio):
        self.engine.set_mmio(mmio)
        self.model.mmio = ranges(mmio)

    @rule(less_contexts=st.integers(0, 1), less_pages=st.integers(0, 5))
    def limit(self, less_contexts, less_pages):
        model, config = self.model, self.engine.config
        contexts, pages = 3 - less_contexts, config.pool_pages - less_pages
        if contexts >= max(model.pages, default=0) and pages >= model.usage()[1]:
            self.contexts.set_limits(contexts, pages)
            model.max_contexts, model.pool_pages = contexts, pages

    @precondition(lambda self: self.deferral is None)
    @rule(python=st.booleans())
    def go_on_in_another_engine(self, python):
        """Which has the same core or, where these tests are those of another core, Python's."""
        engine, contexts = self.engine.save(), self.contexts.save()
        self.build(PythonEngine if python else Engine)
        self.engine.load(engine)
        self.contexts.load(contexts)
        assert (self.engine.save(), self.contexts.save()) == (engine, contexts)

    @rule()
    def reset(self):
        self.contexts.reset()
        self.model.reset()
        self.model.max_contexts, self.model.pool_pages = 3, self.engine.config.pool_pages

    # mappings

    @rule(ctx=CONTEXTS, dfn=DFNS, gfn=GFNS, nr=COUNTS, access=st.integers(0, 3), ram_only=st.booleans())
    def map(self, ctx, dfn, gfn, nr, access, ram_only):
        self.touch(dfn, nr)
        outcome = self.engine.map(ctx, dfn, gfn, nr, Access(access), ram_only=ram_only)
        assert triple(outcome) == self.model.map(ctx, dfn, gfn, nr, access, ram_only)

    @rule(ctx=st.integers(1, 3), region=st.sampled_from([0, 0x200, 0x400, 0x40000]), nr=COUNTS)
    def map_aligned(self, ctx, region, nr):
        self.touch(region, nr)
        outcome = self.engine.map(ctx, region, 0x800, nr, Access.READ)
        assert triple(outcome) == self.model.map(ctx, region, 0x800, nr, 1)

    @rule(ctx=st.integers(1, 3), dfn=DFNS, nr=st.integers(1, 6))
    def map_identically(self, ctx, dfn, nr):
        self.touch(dfn, nr)
        outcome = self.engine.map(ctx, dfn, dfn, nr, Access(3), ram_only=False)
        assert triple(outcome) == self.model.map(ctx, dfn, dfn, nr, 3, False)

    @rule(ctx=st.integers(1, 3), dfn=DFNS, gfn=GFNS, pieces=st.lists(COUNTS, min_size=2, max_size=3))
    def map_in_pieces(self, ctx, dfn, gfn, pieces):
        self.touch(dfn, sum(pieces))
        done = 0
        for nr in pieces:
            piece = (ctx, dfn + done, gfn + done, nr)
            outcome = self.engine.map(*piece, Access(3), continues=done > 0)
            assert triple(outcome) == self.model.map(*piece, 3, continues=done > 0)
            done += nr
            if outcome.stop:
                break

    @rule(ctx=CONTEXTS, dfn=DFNS, nr=COUNTS, mode=st.sampled_from(MODES))
    def unmap(self, ctx, dfn, nr, mode):
        outcome = self.engine.unmap(ctx, dfn, nr, UnmapMode[mode])
        assert triple(outcome) == self.model.unmap(ctx, dfn, nr, mode)

    @rule(ctx=st.integers(1, 2), which=st.integers(0, 3), nr=st.integers(1, 3), mode=st.sampled_from(MODES))
    def unmap_what_was_mapped(self, ctx, which, nr, mode):
        outcome = self.engine.unmap(ctx, self.touched[which], nr, UnmapMode[mode])
        assert triple(outcome) == self.model.unmap(ctx, self.touched[which], nr, mode)

    # translation

    @precondition(lambda self: self.deferral is None)
    @rule()
    def begin_deferral(self):
        self.deferral = self.engine.deferred_invalidation()
        self.deferral.__enter__()

    @precondition(lambda self: self.deferral is not None)
    @rule()
    def end_deferral(self):
        self.deferral.__exit__(None, None, None)
        self.deferral = None

    @rule(
        stream=st.integers(1, 4),
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
        expected = self.model.translate(stream, iova, length, want)
        if isinstance(answer, TranslationFault):
            assert (answer.iova, answer.refusal.name) == expected
            assert (answer.stream, answer.domain, answer.access) == (stream, self.model.attached[stream], want)
        else:
            assert all(a.gpa + a.length != b.gpa for a, b in itertools.pairwise(answer))
            assert [run.gpa + i for run in answer for i in range(run.length)] == [
                gpa + i for gpa, size in expected for i in range(size)
            ]

    # after every step

    @invariant()
    def usage_agrees(self):
        assert self.engine.usage() == EngineUsage(*self.model.usage())
        assert self.contexts.max_contexts == self.model.max_contexts
        assert self.engine.endpoints() == self.model.attached
        assert {stream for stream in self.model.attached if self.engine.is_blocked(stream)} == self.model.blocked
        assert self.engine.domains() == tuple(sorted(self.model.pages))

    @invariant()
    def nothing_stale_is_reached(self):
        for stream in self.model.attached:
            for dfn in (*self.touched, 0x3FF, 0x402):
                self.check_translation(stream, dfn, 0, 1, 1)

    @invariant()
    def mappings_agree(self):
        for ctx in self.model.pages:
            areas = list(self.engine.areas(ctx))
            assert [(run.dfn, run.gfn, run.nr, run.access) for run in areas] == self.model.runs(ctx)
            assert all(run.starts_call for run in areas)
            pages = {dfn for region in self.model.direct.get(ctx, ()) for dfn in region}
            assert {dfn for first, last in self.engine.direct(ctx) for dfn in range(first, last + 1)} == pages


EngineHistory.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=FEWER,
    phases=[Phase.generate] if FEWER else list(Phase),
    database=None,
)
TestEngineHistory = EngineHistory.TestCase


PAGES = range(0x1FE, 0x202)
"""Four pages around a 2 MiB boundary."""


def small_operations(contexts=(1, 2)):
    """(method, context, first page, pages, mode): 3 maps, 5 unmaps and a renewal for each context.

    Where an unmap covers all pages there is nothing to cut, so UNTIL_CUT does what CHECK_ENDS does.
    """
    for ctx in contexts:
        for first, nr in ((0x1FE, 4), (0x1FF, 1), (0x200, 2)):
            yield "map", ctx, first, nr, None
        for first, nr, modes in ((0x1FE, 4, MODES[:2]), (0x1FF, 2, MODES)):
            for mode in modes:
                yield "unmap", ctx, first, nr, mode
        yield "renew", ctx, 0, 0, None


def perform(contexts, model, operation):
    """What both answer to an operation."""
    method, ctx, first, nr, mode = operation
    engine = contexts.engine
    if method == "map":
        return triple(engine.map(ctx, first, first + ctx, nr, Access(3))), model.map(ctx, first, first + ctx, nr, 3)
    if method == "unmap":
        return triple(engine.unmap(ctx, first, nr, UnmapMode[mode])), model.unmap(ctx, first, nr, mode)
    contexts.free(ctx, True)
    model.free(ctx, True)
    got, want = contexts.alloc().context, model.alloc(False)[0]
    contexts.attach(ctx, ctx)
    model.attach(ctx, ctx)
    return got, want


def translations(engine):
    """What the pages of both contexts translate to: gpas by (context, dfn)."""
    answers = [(ctx, dfn, engine.translate(ctx, dfn << 12, 1, Access.WRITE)) for ctx in (1, 2) for dfn in PAGES]
    return {(ctx, dfn): answer[0].gpa for ctx, dfn, answer in answers if not isinstance(answer, TranslationFault)}


@pytest.mark.parametrize(("pool_pages", "depth"), [(7, 4), (4, 3), (64, 3)])
def test_every_short_history_over_two_contexts_and_four_pages_agrees(pool_pages, depth):
    """All sequences of the 18 operations, but those that begin in context 2: they mirror the others.

    Those of four steps begin with a map: shorter ones show that nothing else changes an empty context. Every page is
    translated after every step, so that what is cached matters; a sequence is compared after its last step, as its
    beginnings are sequences too. A pool of 7 pages runs out within a map, one of 4 before it.
    """
    first, others = list(small_operations((1,))), list(small_operations())
    maps = [operation for operation in first if operation[0] == "map"]
    config = EngineConfig(pool_pages=pool_pages)
    lengths = range(min(depth, int(os.environ.get("PVIOMMU_ENGINE_DEPTH", depth))))
    products = (itertools.product(first if more < 3 else maps, *[others] * more) for more in lengths)
    for history in itertools.chain(*products):
        engine, model = Engine(config), ExtendedModel(255, pool_pages, [range(0x600)])
        contexts = Contexts(engine, 255, DefaultPolicy.IDENTITY)
        engine.set_ram([(0, 0x5FF)])
        for ctx in (1, 2):
            engine.add_endpoint(ctx)
            contexts.alloc()
            contexts.attach(ctx, ctx)
            model.alloc(False)
            model.attached[ctx] = ctx
        for operation in history:
            got, want = perform(contexts, model, operation)
            reached = translations(engine)
        assert got == want, history
        assert reached == {
            (ctx, dfn): page[0] << 12 for ctx, pages in model.pages.items() for dfn, page in pages.items()
        }, history
        assert engine.usage() == model.usage(), history
