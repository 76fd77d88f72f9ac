"""Many spans that are translated by one call, beside the same ones translated one by one."""

import random

import pytest

from pviommu.dma.plan import MANY_SPANS, SpanRuns, translate_each
from pviommu.engine import IDENTITY, Access, Engine, EngineConfig, Run
from pviommu.engine.results import PackedRuns
from pviommu.native.core import NativeCore

R, W, RW = Access.READ, Access.WRITE, Access.READ | Access.WRITE
PAGE, STREAM, PAGES = 4096, 7, 64


@pytest.fixture
def engine(native_library):
    """Domain 1 maps most of the dfns below 64, some of them read-only, to frames of which a few are adjacent."""
    engine = Engine(EngineConfig(reserved=()), NativeCore(native_library))
    engine.set_ram([(0, 0xFFFF)])
    engine.add_endpoint(STREAM)
    engine.alloc_paging(1)
    chance = random.Random(1)
    for dfn in range(PAGES):
        if chance.random() < 0.9:
            engine.map(1, dfn, 0x100 + 2 * dfn + chance.choice((0, 0, 1)), 1, RW if chance.random() < 0.9 else R)
    engine.attach(STREAM, 1)
    return engine


def one_by_one(engine, spans, access):
    return translate_each(STREAM, [(spans, access)], engine.translate, lambda *_: None)


def test_they_come_to_the_same_or_are_left_to_be_translated_one_by_one(engine):
    chance = random.Random(2)
    together = 0
    for _ in range(2000):
        spans = []
        for _ in range(chance.randrange(1, 9)):
            at = chance.randrange(PAGES * PAGE)
            spans.append((at, chance.choice((1, 64, 1536, PAGE - at % PAGE, PAGE, 3 * PAGE))))
        access = chance.choice((R, W, RW))
        found = engine.translate_spans(STREAM, spans, access)
        expected = one_by_one(engine, spans, access)
        if found is None:
            assert isinstance(expected, tuple) or any(len(runs) > 1 for runs in expected[0].translations)
            continue
        together += 1
        [plan] = expected
        assert [[run] for run in found] == plan.translations
        assert found.size == sum(length for _, length in spans)
    assert together > 200


@pytest.mark.parametrize(
    "span", [(0, 0), (1 << 64, 1), (-1, 4), ((1 << 64) - 1, 2), (0, 1 << 64), (1 << 40, 8)], ids=str
)
def test_what_is_no_span_of_one_run_is_left_to_be_refused_as_it_always_was(engine, span):
    assert engine.translate_spans(STREAM, [(0, 16), span], R) is None


def test_what_decides_besides_the_tables_is_asked(engine):
    spans = [(0, 16)] * MANY_SPANS
    assert engine.translate_spans(STREAM, spans, R) == one_by_one(engine, spans, R)[0].runs()
    assert engine.translate_spans(STREAM + 1, spans, R) is None
    engine.block(STREAM)
    assert engine.translate_spans(STREAM, spans, R) is None
    engine.unblock(STREAM)
    engine.track_dirty(1)
    assert engine.translate_spans(STREAM, spans, W) is None  # each write must be noted
    engine.track_dirty(1, enabled=False)
    engine.iotlb(is_used=True)
    assert engine.translate_spans(STREAM, spans, R) is None
    engine.iotlb(is_used=False)
    engine.attach(STREAM, IDENTITY)
    assert list(engine.translate_spans(STREAM, spans, R)) == [Run(0, 16)] * MANY_SPANS


def test_a_core_of_python_translates_one_by_one():
    engine = Engine(EngineConfig(reserved=()))
    engine.set_ram([(0, 0xFFFF)])
    engine.add_endpoint(STREAM)
    assert engine.translate_spans(STREAM, [(0, 16)] * MANY_SPANS, R) is None


def test_a_plan_of_many_spans_is_as_any_other(engine):
    spans = [(dfn * PAGE + 8, 100) for dfn in range(PAGES) if engine.lookup(1, dfn)]
    [plan] = translate_each(STREAM, [(spans, R)], engine.translate, engine.translate_spans)
    [expected] = one_by_one(engine, spans, R)
    assert isinstance(plan.translations, SpanRuns)
    assert isinstance(plan.runs(), PackedRuns)
    assert plan.runs() == expected.runs()
    assert list(plan.translations) == list(expected.translations)
    assert plan.translations[1:3] == expected.translations[1:3]
    gpa = expected.translations[5][0].gpa + 7
    assert plan.locate(gpa) == expected.locate(gpa)
