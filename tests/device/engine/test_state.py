"""An engine is saved, and another one goes on from that."""

from dataclasses import asdict, replace

import msgspec
import pytest

from pviommu.engine import (
    BLOCKED,
    IDENTITY,
    Access,
    Engine,
    EngineConfig,
    EngineState,
    EngineUsage,
    Outcome,
    Refusal,
    ReservedFrames,
    Run,
    Stage1Run,
    Stop,
    TranslationFault,
    UnmapMode,
)
from pviommu.engine.clone import Clone
from pviommu.engine.pool import Pool
from pviommu.engine.state import CloneState, NestedState, PagingState, TableState
from pviommu.engine.table import CLONE, PageTable

R, W, RW = Access.READ, Access.WRITE, Access.READ | Access.WRITE
REGION = ReservedFrames(0x500, 0x503, "direct")


class Shifted:
    """A first stage that adds 1 MiB."""

    def walk(self, iova, length, access, parent):
        return Stage1Run(iova + (1 << 20), length, RW)


def new_engine(**fields):
    """An engine with endpoints 1, which has a direct region, and 2, as it is after power-on."""
    engine = Engine(EngineConfig(**fields))
    engine.add_endpoint(1, [REGION])
    engine.add_endpoint(2, (), BLOCKED)
    return engine


def used_engine():
    """One that has some of everything."""
    engine = new_engine()
    engine.set_ram([(0, 0xFFF), (0x2000, 0x2FFF)])
    engine.set_mmio([(0x8000, 0x8003)])
    engine.resize_pool(100)
    engine.alloc_paging(1)
    engine.alloc_paging(7, clone=True)
    engine.alloc_nested(3, 1, Shifted())
    engine.map(1, 0x1FE, 0x10, 4, RW)
    engine.map(1, 0x202, 0x14, 2, RW)
    engine.map(1, 0x300, 0x8000, 1, R)
    engine.map(1, 0x600, 0x600, 0x200, W)
    engine.unmap(1, 0x610, 2)
    engine.reserve_pool(1, 20)
    engine.unmap(7, 0x1FF, 2)
    engine.map(7, 0x200, 0x30, 1, R)
    assert engine.attach(1, 1) is None
    engine.attach(1, 3, pasid=9)
    engine.attach(2, 7)
    engine.block(2)
    return engine


def again(engine, **fields):
    """Another engine that goes on from what this one is saved as, by way of JSON."""
    other = new_engine(**fields)
    state = msgspec.json.decode(msgspec.json.encode(engine.save()), type=EngineState)
    other.load(state, {3: Shifted()})
    return other


def test_what_is_saved_again_is_the_same_and_so_is_what_can_be_seen():
    engine = used_engine()

    other = again(engine)

    assert other.save() == engine.save()
    assert (other.usage(), other.ram, other.mmio) == (engine.usage(), engine.ram, engine.mmio)
    assert (other.domains(), dict(other.endpoints()), other.iotlb_flushes) == (
        (1, 3, 7),
        {1: 1, 2: 7},
        engine.iotlb_flushes,
    )
    assert [list(other.areas(domain)) for domain in (IDENTITY, 1, 7)] == [
        list(engine.areas(domain)) for domain in (IDENTITY, 1, 7)
    ]
    assert other.direct(1) == ((0x500, 0x503),)
    assert (other.is_blocked(1), other.is_blocked(2)) == (False, True)


def test_both_go_on_alike():
    for engine in (used_engine(), again(used_engine())):
        assert engine.translate(1, 0x1FE800, 0x1000, R) == [Run(0x10800, 0x1000)]
        assert engine.translate(1, 0x500000, 4, R) == [Run(0x500000, 4)]
        assert list(engine.translate(1, 0x102000, 4, R, pasid=9)) == [Run(0x14000, 4)]
        assert engine.translate(2, 0, 4, R) == TranslationFault(0, Refusal.BLOCKED, R, 2, 7)
        assert engine.unmap(1, 0x200, 3, UnmapMode.UNTIL_CUT) == Outcome(0, Stop.CUT, 0x200)
        assert engine.unmap(1, 0x202, 2, UnmapMode.CHECK_ENDS) == Outcome(2, None, None)
        assert engine.map(1, 0x204, 0x16, 1, RW, continues=True) == Outcome(1, None, None)
        engine.set_ram([])
        engine.set_ram([(0, 0xFFF)])
        assert [(area.dfn, area.gfn, area.nr) for area in engine.areas(7)] == [
            (0, 0, 0x1FF),
            (0x200, 0x30, 1),
            (0x201, 0x201, 0xDFF),
        ]
        assert engine.usage().pool_pages_used == 20 + 2 + 10
        assert engine.free_domain(1) is Stop.ENDPOINTS_ATTACHED


def test_a_state_is_numbers_texts_lists_and_nothing_else():
    def plain(value):
        if isinstance(value, dict):
            return all(type(key) is str and plain(each) for key, each in value.items())
        return all(map(plain, value)) if type(value) in (tuple, list) else type(value) in (int, bool, str, type(None))

    assert plain(asdict(used_engine().save()))


def test_whatever_an_engine_did_before_a_load_is_gone():
    state = new_engine().save()
    engine = used_engine()
    engine.translate(1, 0x1FE000, 4, R)

    engine.load(state)

    assert engine.save() == state
    assert engine.usage() == EngineUsage(0, 0, 4096, 0)
    assert engine.translate(1, 0x1FE000, 4, R) == TranslationFault(0x1FE000, Refusal.NOT_MAPPED, R, 1, IDENTITY)


def test_reset_is_the_state_after_power_on_but_for_memory():
    engine = used_engine()
    fresh = new_engine()
    fresh.set_ram([(0, 0xFFF), (0x2000, 0x2FFF)])
    fresh.set_mmio([(0x8000, 0x8003)])

    engine.reset()

    assert replace(engine.save(), iotlb=None) == replace(fresh.save(), iotlb=None)


def test_what_defers_invalidations_cannot_be_saved():
    engine = used_engine()

    with engine.deferred_invalidation(), pytest.raises(ValueError, match="invalidations are being deferred"):
        engine.save()

    assert engine.save() == used_engine().save()


def with_paging(state, *paging):
    return replace(state, domains=replace(state.domains, paging=paging))


def with_entries(*entries, reserved=0):
    return lambda state: with_paging(state, PagingState(1, TableState(entries, reserved)))


def with_nested(*nested):
    return lambda state: replace(state, domains=replace(state.domains, nested=nested))


def with_attachments(**fields):
    return lambda state: replace(state, attachments=replace(state.attachments, **fields))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda state: replace(state, pool=replace(state.pool, total=4097)), r"limit of 4097 pool pages"),
        (lambda state: with_paging(state, PagingState(0)), "domain 0: must be"),
        (lambda state: with_paging(state, PagingState(1), PagingState(1)), "domain 1: exists already"),
        (lambda state: with_paging(state, *map(PagingState, range(1, 102))), "domain 101: the pool is exhausted"),
        (with_entries((1 << 27, 0, 1, 3, True)), "outside the aperture"),
        (with_entries((-1, 0, 1, 3, True)), "outside the aperture"),
        (with_entries((0, 0, 0, 3, True)), "outside the aperture"),
        (with_entries((0, 1 << 52, 1, 3, True)), "no frames"),
        (with_entries((0, -1, 1, 3, True)), "no frames"),
        (with_entries((0, 0, 1, 16 + 3, True)), "0x13: not a kind of page"),
        (with_entries((0, 0, 1, CLONE, True)), "0x8: not a kind of page"),
        (with_entries((0, 0, 1, CLONE | 3, True)), "only a clone has such pages"),
        (
            lambda state: with_paging(state, PagingState(1, TableState(((0, 9, 1, CLONE | 3, True),)), CloneState())),
            "maps them 1:1",
        ),
        (with_entries((5, 5, 1, 3, False)), "no map call begins here, and none goes on"),
        (with_entries((4, 4, 1, 3, True), (5, 6, 1, 3, False)), "no map call begins here, and none goes on"),
        (with_entries((4, 4, 1, 1, True), (5, 5, 1, 3, False)), "no map call begins here, and none goes on"),
        (with_entries((0, 0, 2, 3, True), (1, 9, 1, 3, True)), "mapped twice"),
        (with_entries(*((place << 18, 0, 1, 3, True) for place in range(50))), "the pool is exhausted"),
        (with_entries(reserved=101), "domain 1: the pool has no 101 pages"),
        (lambda state: with_paging(state), "domain 3 on 1: no such parent"),
        (with_nested(NestedState(1, 1)), "domain 1: exists already"),
        (with_nested(NestedState(0, 1)), "domain 0: must be"),
        (with_attachments(streams=((1, 0),)), r"endpoints \[1, 2\]: the state has"),
        (with_attachments(streams=((1, 0), (2, 9))), "stream 2 pasid None in domain 9: no such domain"),
        (with_attachments(pasids=((9, 1, 1),)), "stream 9 pasid 1 in domain 1: no such endpoint"),
        (with_attachments(pasids=((1, 1 << 20, 1),)), "it has 20 bits"),
        (with_attachments(blocked=(9,)), "stream 9 blocked: no such endpoint"),
        (
            lambda state: with_entries((0x500, 9, 1, 3, True))(with_attachments(streams=((1, 1), (2, 0)))(state)),
            "stream 1 pasid None in domain 1: a reserved region",
        ),
    ],
)
def test_a_state_that_cannot_be_is_refused_and_leaves_an_engine_as_after_reset(change, text):
    state = used_engine().save()
    state = replace(state, attachments=replace(state.attachments, streams=((1, 0), (2, 0)), pasids=()))
    engine = used_engine()

    with pytest.raises(ValueError, match=text):
        engine.load(change(state), dict.fromkeys(range(4), Shifted()))

    assert (engine.domains(), engine.usage()) == ((), EngineUsage(0, 0, 4096, 0))
    assert (dict(engine.endpoints()), engine.is_blocked(2)) == ({1: IDENTITY, 2: BLOCKED}, False)


def test_an_entry_may_be_the_last_page_and_lead_to_the_last_frame():
    engine = new_engine()
    last = (1 << 27) - 1

    engine.load(with_entries((last, (1 << 52) - 1, 1, 3, True))(new_engine().save()))

    assert engine.lookup(1, last) == ((1 << 52) - 1, RW)


def test_an_entry_may_go_on_with_the_one_before_it():
    engine = new_engine()

    engine.load(with_entries((4, 4, 2, 3, True), (6, 6, 1, 3, False))(new_engine().save()))

    assert [tuple(area)[:3] for area in engine.areas(1)] == [(4, 4, 3)]
    assert engine.unmap(1, 4, 3, UnmapMode.UNTIL_CUT) == Outcome(3, None, None)


def test_a_nested_domain_needs_its_walker():
    state = used_engine().save()
    assert state.domains.nested == (NestedState(3, 1),)

    with pytest.raises(ValueError, match="domain 3 on 1: no such parent, or no walker for it"):
        new_engine().load(state)


def test_what_a_clone_remembers_goes_on_across_blocks():
    clone = Clone(PageTable(Pool(64), 1 << 36))
    clone.edit(0x1FF, 2)
    clone.edit(0x400, 0x203)
    clone.edit(0x605, 1)
    clone.edit(0x7FF, 1)

    state = clone.save()
    assert state == CloneState(((0x1FF, 1), (0x200, 1), (0x400, 0x200), (0x600, 3), (0x605, 1), (0x7FF, 1)), True)

    table = PageTable(Pool(64), 1 << 36)
    other = Clone(table)
    other.load(state)
    assert other.save() == state
    other.add(0x1FE, 0x602)
    looked_at = (0x1FE, 0x1FF, 0x200, 0x201, 0x5FF, 0x602, 0x603, 0x605, 0x606, 0x7FF)
    assert [dfn for dfn in looked_at if table.lookup(dfn)] == [0x1FE, 0x201, 0x603, 0x606]


def test_a_clone_that_grows_no_more_does_not_begin_again():
    table = PageTable(Pool(64), 1 << 36)
    clone = Clone(table)
    clone.load(CloneState((), False))

    clone.add(0, 4)

    assert (table.mapped, clone.save()) == (0, CloneState((), False))
