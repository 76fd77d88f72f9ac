from array import array

import pytest

from pviommu.engine import Access, Engine, EngineConfig, Refusal, ReservedFrames, Run, Stage1Run, TranslationFault
from pviommu.engine.core import PythonCore
from pviommu.engine.ranges import FrameRanges
from pviommu.engine.results import FRAME_LIMIT, PackedRuns

R = Access.READ
STREAM = 7


class WalkingCore(PythonCore):
    """One that translates by itself, to one frame or not at all, and remembers what it was told."""

    name = "walking"
    walks = True

    def __init__(self):
        super().__init__()
        self.told = []
        self.answer = [Run(0x5000, 0x10)]

    def change_backed(self, first, nr, backed):
        self.told.append(("backed", first, nr, list(backed)))

    def show(self, ctx, table, direct, closed, is_clone):
        self.told.append(("show", ctx, list(direct), list(closed), is_clone))

    def hide(self, ctx):
        self.told.append(("hide", ctx))

    def walk(self, ctx, iova, end, wanted):
        self.told.append(("walk", ctx, iova, end, wanted))
        return self.answer

    def walk_spans(self, ctx, spans, wanted):
        self.told.append(("walk_spans", ctx, spans, wanted))
        return PackedRuns(array("Q", [0x5000, 0x10] * len(spans)))


@pytest.fixture
def core():
    return WalkingCore()


@pytest.fixture
def engine(core):
    made = Engine(EngineConfig(reserved=()), core)
    made.set_ram([(0, 0xFF)])
    made.add_endpoint(STREAM, [ReservedFrames(0x20, 0x2F, "direct")])
    made.alloc_paging(1)
    core.told.clear()
    return made


def test_the_engine_says_which_core_it_has(engine):
    assert (engine.core_name, Engine().core_name) == ("walking", "python")


def test_a_core_that_walks_is_asked_once_for_a_request_that_comes_again(engine, core):
    engine.attach(STREAM, 1)
    core.told.clear()

    for _ in range(2):
        assert engine.translate(STREAM, 0x1000, 0x10, R) == [Run(0x5000, 0x10)]

    assert core.told == [("walk", 1, 0x1000, 0x1010, 1)]


def test_a_core_that_walks_translates_many_spans_at_once_if_the_tables_alone_decide(engine, core):
    spans = [(0x1000, 0x10), (0x9000, 0x10)]
    assert engine.translate_spans(STREAM + 1, spans, R) is None
    engine.attach(STREAM, 1)
    core.told.clear()

    assert list(engine.translate_spans(STREAM, spans, R)) == [Run(0x5000, 0x10)] * 2
    assert core.told == [("walk_spans", 1, spans, 1)]

    core.told.clear()
    engine.alloc_nested(2, 1, lambda iova, access: (iova, 12, access))
    engine.attach(STREAM, 2)
    assert engine.translate_spans(STREAM, spans, R) is None
    engine.attach(STREAM, 1)
    engine.block(STREAM)
    assert engine.translate_spans(STREAM, spans, R) is None
    assert not [told for told in core.told if told[0] == "walk_spans"]


def test_a_core_that_walks_is_left_out_while_the_iotlb_is_used(engine, core):
    engine.attach(STREAM, 1)
    engine.map(1, 0x30, 0x10, 1, R)
    iotlb = engine.iotlb(is_used=True)
    core.told.clear()

    assert engine.translate(STREAM, 0x30000, 0x10, R) == [Run(0x10000, 0x10)]
    assert (core.told, len(iotlb)) == ([], 1)
    engine.iotlb(is_used=False)
    assert engine.translate(STREAM, 0x30000, 0x10, R) == [Run(0x5000, 0x10)]


def test_what_a_core_refuses_is_a_fault_and_not_remembered(engine, core):
    core.answer = (0x1008, Refusal.NOT_MAPPED)

    for _ in range(2):
        assert engine.translate(STREAM, 0x1000, 0x10, R) == TranslationFault(0x1008, Refusal.NOT_MAPPED, R, STREAM, 0)

    assert len(core.told) == 2


def test_a_core_is_told_of_domains_and_what_lies_over_them(engine, core):
    engine.alloc_paging(2, clone=True)
    engine.attach(STREAM, 2)
    engine.attach(STREAM, 1)
    engine.free_domain(2)

    region = [(0x20, 0x2F)]
    assert core.told == [
        ("show", 2, [], [], False),
        ("show", 2, [], [], True),
        ("show", 2, region, region, True),
        ("show", 1, region, region, False),
        ("show", 2, [], [], True),
        ("hide", 2),
    ]


def test_a_core_is_told_of_ram_and_mmio_together(engine, core):
    engine.set_ram([(4, 5), (6, 7)])
    engine.set_mmio([(0x20, 0x21), (7, 9)])
    engine.set_ram([])

    everything = (0, FRAME_LIMIT)
    assert core.told == [
        ("backed", *everything, [4, 8]),
        ("backed", *everything, [4, 10, 0x20, 0x22]),
        ("backed", *everything, [7, 10, 0x20, 0x22]),
    ]


@pytest.mark.row("server", 50)
def test_of_a_change_of_ram_a_core_is_told_no_more_than_that(engine, core):
    engine.set_ram([(page, page) for page in range(0, 2000, 2)])
    engine.set_mmio([(0x10, 0x10), (0x1000, 0x1FFF)])
    core.told.clear()

    engine.change_ram(FrameRanges([(0x11, 0x11)]), [(0x11, 1)])
    engine.change_ram(FrameRanges(), [(0x10, 4), (0x20, 1)])

    assert core.told == [
        ("backed", 0x11, 1, [0x11, 0x12]),
        ("backed", 0x10, 4, [0x10, 0x11]),
        ("backed", 0x20, 1, []),
    ]
    assert (0x21, 0x21) not in engine.ram
    assert engine.is_ram(0x22)


def change(engine, name):
    if name == "unmap":
        engine.unmap(1, 0x100, 1)
    elif name == "attach":
        engine.attach(STREAM, 0)
    elif name == "block":
        engine.block(STREAM)
    elif name == "set_ram":
        engine.set_ram([(0, 0xFF)])
    elif name == "set_mmio":
        engine.set_mmio([(0x100, 0x1FF)])
    elif name == "free":
        engine.attach(STREAM, 0)
        engine.free_domain(1)
    else:
        engine.reset()


@pytest.mark.parametrize("name", ["unmap", "attach", "block", "set_ram", "set_mmio", "free", "reset"])
def test_after_a_change_no_request_is_answered_from_memory(engine, core, name):
    engine.attach(STREAM, 1)
    engine.translate(STREAM, 0x1000, 0x10, R)
    assert core.hits

    change(engine, name)

    assert not core.hits


def test_requests_are_remembered_by_endpoint_page_and_access_and_never_longer_than_they_were():
    engine = Engine()
    engine.set_ram([(0, 0xFF)])
    for stream in (1, 2):
        engine.add_endpoint(stream)
        engine.alloc_paging(stream)
        engine.attach(stream, stream)
    engine.map(1, 0x10, 0x50, 1, R)
    engine.map(2, 0x10, 0x60, 1, R)

    assert engine.translate(1, 0x10008, 8, R) == [Run(0x50008, 8)]
    assert engine.translate(1, 0x10FF8, 8, R) == [Run(0x50FF8, 8)]
    assert engine.translate(2, 0x10008, 8, R) == [Run(0x60008, 8)]
    assert engine.translate(1, 0x10008, 8, Access.WRITE).refusal is Refusal.NO_PERMISSION
    assert engine.translate(1, 0x10008, 4096, R).iova == 0x11000
    assert engine.translate(1, 0x10008, 0, R) == []


def test_so_many_requests_are_remembered_as_the_iotlb_has_entries():
    core = PythonCore()
    engine = Engine(EngineConfig(iotlb_entries=4), core)
    engine.set_ram([(0, 0xFF)])
    engine.add_endpoint(STREAM)

    for dfn in range(20):
        engine.translate(STREAM, dfn << 12, 1, R)
        assert 1 <= len(core.hits) <= 4


def test_the_plain_core_leaves_walking_to_the_engine():
    with pytest.raises(NotImplementedError, match="the engine walks the tables of this core"):
        PythonCore().walk(1, 0, 1, 1)
    with pytest.raises(NotImplementedError, match="the engine walks the tables of this core"):
        PythonCore().walk_spans(1, [(0, 1)], 1)


class Whole:
    """Translates 1:1 up to some address, and tells what it was asked."""

    def __init__(self, end):
        self.end = end
        self.asked = []

    def span(self, address, length, access):
        self.asked.append((address, length, access))
        end = min(address + length, self.end)
        return (Run(address, end - address),) if end > address else (), max(end, address)


class Beyond:
    """A first stage that adds 0x100000."""

    def __init__(self):
        self.asked = []

    def walk(self, iova, length, access, parent):
        self.asked.append(iova)
        return Stage1Run(iova + 0x100000, 0x1000, access)


@pytest.fixture
def nested(engine):
    """What translates whole requests up to 0x3000, and what is asked for the rest."""
    whole, walker = Whole(0x3000), Beyond()
    assert engine.alloc_nested(2, 1, walker, whole) is None
    engine.attach(STREAM, 2)
    return whole, walker


def test_what_translates_whole_requests_is_asked_first_and_the_walker_for_the_rest(engine, core, nested):
    whole, walker = nested

    assert engine.translate(STREAM, 0x1000, 0x2000, R) == (Run(0x1000, 0x2000),)
    assert (whole.asked, walker.asked) == ([(0x1000, 0x2000, R)], [])
    assert engine.translate(STREAM, 0x2000, 0x1800, R) == (Run(0x2000, 0x1000), Run(0x5000, 0x10))
    assert walker.asked == [0x3000]
    assert core.told[-1] == ("walk", 1, 0x103000, 0x103800, 1)


def test_it_is_not_asked_where_somebody_has_to_look_at_each_translation(engine, nested):
    whole, walker = nested
    engine.iotlb(is_used=True)
    engine.map(1, 0x101, 5, 1, R)
    assert engine.translate(STREAM, 0x1000, 0x10, R) == (Run(0x5000, 0x10),)
    engine.iotlb(is_used=False)
    engine.track_dirty(1)
    assert engine.translate(STREAM, 0x1000, 0x10, R) == (Run(0x5000, 0x10),)

    assert (whole.asked, walker.asked) == ([], [0x1000, 0x1000])


def test_the_plain_core_walks_no_tables_by_itself():
    assert PythonCore().stages(object(), 1, 1 << 48) is None
