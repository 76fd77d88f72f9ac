"""Xen's rules over the engine: numbers, reattachment, limits, holds, reset."""

import pytest

from pviommu.engine import (
    Access,
    Engine,
    EngineConfig,
    EngineUsage,
    Outcome,
    Refusal,
    ReservedFrames,
    Stop,
    TranslationFault,
)
from pviommu.interfaces.pv.contexts import Contexts, ContextStop, DefaultPolicy

R, W, RW = Access.READ, Access.WRITE, Access.READ | Access.WRITE
STREAM = 7
REGION = ReservedFrames(0x500, 0x503, "direct")


def new_contexts(*regions, max_contexts=255, policy=DefaultPolicy.IDENTITY, **fields):
    """256 MiB of RAM (gfn 0..0xffff), context 1 and endpoint 7 in it."""
    contexts = Contexts(Engine(EngineConfig(**fields)), max_contexts, policy)
    contexts.engine.set_ram([(0, 0xFFFF)])
    contexts.add_endpoint(STREAM, regions)
    contexts.alloc()
    contexts.attach(STREAM, 1)
    return contexts


def dma(contexts, dfn, access=R, stream=STREAM):
    """The gpa that one byte at the beginning of `dfn` reaches, or the refusal."""
    answer = contexts.engine.translate(stream, dfn << 12, 1, access)
    return answer.refusal if isinstance(answer, TranslationFault) else answer[0].gpa


# numbers


def test_the_lowest_free_number_is_used_from_1_on():
    contexts = Contexts(Engine(), 3, DefaultPolicy.IDENTITY)
    assert [contexts.alloc().context for _ in range(3)] == [1, 2, 3]

    contexts.free(2, reattach=False)

    assert contexts.alloc() == (2, None)
    assert contexts.engine.domains() == (1, 2, 3)


@pytest.mark.row("defect", "C9")
def test_running_out_of_numbers_recovers_when_one_is_freed():
    contexts = Contexts(Engine(), 1, DefaultPolicy.IDENTITY)
    contexts.alloc()

    assert contexts.alloc() == (None, ContextStop.NO_FREE_CONTEXT)
    contexts.free(1, reattach=False)

    assert contexts.alloc() == (1, None)


def test_a_context_needs_a_pool_page_and_returns_it():
    contexts = Contexts(Engine(EngineConfig(pool_pages=1)), 3, DefaultPolicy.IDENTITY)
    contexts.alloc()

    assert contexts.alloc() == (None, Stop.POOL_EXHAUSTED)
    contexts.free(1, reattach=False)

    assert contexts.engine.usage() == EngineUsage(0, 0, 1, 0)


@pytest.mark.row("defect", "D8")
@pytest.mark.row("defect", "D9")
@pytest.mark.row("defect", "D18")
def test_a_clone_that_exhausts_the_pool_leaves_nothing_behind():
    contexts = new_contexts(pool_pages=100)

    assert contexts.alloc(clone=True) == (None, Stop.POOL_EXHAUSTED)

    assert contexts.engine.usage() == EngineUsage(1, 1, 100, 0)
    assert contexts.alloc() == (2, None)


def test_a_clone_maps_all_ram():
    contexts = new_contexts()

    assert contexts.alloc(clone=True) == (2, None)

    assert contexts.engine.lookup(2, 0xFFFF) == (0xFFFF, RW)


@pytest.mark.row("defect", "D12")
@pytest.mark.row("defect", "D3")
def test_a_number_that_is_used_again_brings_nothing_back():
    contexts = new_contexts()
    contexts.engine.map(1, 0x100, 0x10, 1, RW)
    assert dma(contexts, 0x100) == 0x10000

    contexts.free(1, reattach=True)
    assert contexts.alloc() == (1, None)
    contexts.attach(STREAM, 1)

    assert dma(contexts, 0x100) is Refusal.NOT_MAPPED
    assert contexts.engine.usage() == EngineUsage(1, 1, 4096, 0)


# who is where


def test_free_with_an_endpoint_attached_changes_nothing_without_reattach():
    contexts = new_contexts()
    contexts.engine.map(1, 0x100, 0x10, 1, RW)

    assert contexts.free(1, reattach=False) is Stop.ENDPOINTS_ATTACHED

    assert dma(contexts, 0x100) == 0x10000
    assert contexts.attach(STREAM, 1) is None
    contexts.attach(STREAM, 0)
    assert contexts.free(1, reattach=False) is None


@pytest.mark.row("defect", "D13")
@pytest.mark.parametrize("policy", list(DefaultPolicy))
def test_free_with_reattach_moves_every_endpoint_to_the_default_context(policy):
    contexts = new_contexts(policy=policy)
    contexts.add_endpoint(8)
    contexts.attach(8, 1)

    assert contexts.free(1, reattach=True) is None

    assert contexts.endpoints() == {7: 0, 8: 0}
    reached = 0x100000 if policy is DefaultPolicy.IDENTITY else Refusal.BLOCKED
    assert [dma(contexts, 0x100, stream=stream) for stream in (7, 8)] == [reached, reached]


@pytest.mark.parametrize("reattach", [False, True])
def test_free_of_what_a_nested_domain_stands_on_changes_nothing(reattach):
    contexts = new_contexts()
    contexts.alloc()
    contexts.attach(STREAM, 2 - reattach)
    contexts.engine.alloc_nested(9, 1, None)

    assert contexts.free(1, reattach) is Stop.NESTED_ATTACHED

    assert contexts.endpoints() == {STREAM: 2 - reattach}
    contexts.engine.free_domain(9)
    assert contexts.free(1, reattach) is None


def test_the_default_and_unknown_contexts_cannot_be_freed():
    contexts = new_contexts()

    assert contexts.free(0, reattach=True) is ContextStop.DEFAULT_CONTEXT
    assert contexts.free(9, reattach=True) is Stop.NO_DOMAIN
    assert (0 in contexts, 1 in contexts, 9 in contexts) == (True, True, False)
    assert contexts.engine.domains() == (1,)


def test_an_unknown_stream_outranks_an_unknown_context():
    contexts = new_contexts()

    assert contexts.attach(99, 9) is Stop.NO_ENDPOINT
    assert contexts.attach(STREAM, 9) is Stop.NO_DOMAIN
    assert contexts.endpoints() == {STREAM: 1}
    assert (contexts.of(STREAM), contexts.of(99)) == (1, 0)


def test_attaching_again_to_the_same_context_changes_nothing():
    contexts = new_contexts()
    contexts.engine.map(1, 0x100, 0x10, 1, RW)

    assert contexts.attach(STREAM, 1) is None

    assert dma(contexts, 0x100) == 0x10000


def test_a_blocked_default_context_is_context_0_all_the_same():
    contexts = new_contexts(policy=DefaultPolicy.BLOCKED)

    contexts.attach(STREAM, 0)

    assert dma(contexts, 0x100) is Refusal.BLOCKED
    assert (contexts.endpoints(), contexts.engine.is_blocked(STREAM)) == ({STREAM: 0}, False)


# blocks and holds


def test_a_blocked_endpoint_reaches_nothing_until_it_is_unblocked_or_attached():
    contexts = new_contexts()
    engine = contexts.engine
    engine.map(1, 0x100, 0x10, 1, RW)

    for release in (lambda: contexts.unblock(STREAM), lambda: contexts.attach(STREAM, 1)):
        assert engine.block(STREAM) is None
        assert engine.is_blocked(STREAM)
        assert dma(contexts, 0x100) is Refusal.BLOCKED
        release()
        assert not engine.is_blocked(STREAM)
        assert dma(contexts, 0x100) == 0x10000


def test_a_refused_attachment_leaves_the_old_context_and_a_block_in_place():
    contexts = new_contexts(REGION)
    contexts.alloc()
    contexts.engine.map(2, 0x503, 0x10, 1, RW)
    contexts.engine.block(STREAM)

    assert contexts.attach(STREAM, 2) is Stop.RESERVED_CONFLICT

    assert contexts.engine.is_blocked(STREAM)
    contexts.unblock(STREAM)
    assert dma(contexts, 0x500) == 0x500000


@pytest.mark.row("driver", 40)
def test_what_is_held_leaves_its_context_with_its_regions_which_are_mapped_nowhere():
    contexts = new_contexts(REGION)

    assert contexts.hold(STREAM) is None

    engine = contexts.engine
    assert (contexts.endpoints()[STREAM], engine.direct(0), engine.direct(1)) == (0, (), ())
    assert dma(contexts, 0x500) is Refusal.BLOCKED
    contexts.unblock(STREAM)
    assert dma(contexts, 0x500) is Refusal.BLOCKED


def test_two_endpoints_whose_regions_are_in_conflict_can_both_be_held():
    contexts = new_contexts(REGION)
    contexts.add_endpoint(8, (ReservedFrames(0x503, 0x504, "direct"),))
    contexts.alloc()
    contexts.attach(8, 2)

    assert (contexts.hold(STREAM), contexts.hold(8)) == (None, None)

    assert contexts.engine.usage().pool_pages_used == 2


def test_a_hold_ends_with_an_attachment_that_succeeds():
    contexts = new_contexts(REGION)
    contexts.alloc()
    contexts.engine.map(2, 0x503, 0x10, 1, RW)
    contexts.hold(STREAM)

    assert contexts.attach(STREAM, 2) is Stop.RESERVED_CONFLICT
    assert contexts.engine.is_blocked(STREAM)

    assert contexts.attach(STREAM, 1) is None
    assert dma(contexts, 0x500) == 0x500000
    contexts.engine.block(STREAM)
    contexts.unblock(STREAM)
    assert not contexts.engine.is_blocked(STREAM)


def test_no_unknown_endpoint_is_held():
    contexts = new_contexts()

    assert contexts.hold(9) is Stop.NO_ENDPOINT
    assert not contexts.engine.is_blocked(9)


# reset


def test_reset_returns_to_power_on_and_blocks_what_was_outside_the_default_context():
    contexts = new_contexts()
    contexts.add_endpoint(8)
    contexts.engine.map(1, 0x100, 0x10, 1, RW)
    assert dma(contexts, 0x100) == 0x10000

    contexts.reset()

    assert (contexts.engine.usage(), contexts.max_contexts) == (EngineUsage(0, 0, 4096, 0), 255)
    assert contexts.endpoints() == {7: 0, 8: 0}
    assert dma(contexts, 0x100) is Refusal.BLOCKED
    assert dma(contexts, 0x100, stream=8) == 0x100000
    contexts.unblock(STREAM)
    assert dma(contexts, 0x100) == 0x100000


@pytest.mark.row("defect", "D12")
def test_a_number_that_is_used_again_after_reset_brings_nothing_back():
    contexts = new_contexts()
    contexts.engine.map(1, 0x100, 0x10, 1, RW)
    assert dma(contexts, 0x100) == 0x10000

    contexts.reset()
    contexts.alloc()
    contexts.attach(STREAM, 1)

    assert dma(contexts, 0x100) is Refusal.NOT_MAPPED


def test_reset_makes_a_hold_a_block():
    contexts = new_contexts()
    contexts.hold(STREAM)

    contexts.reset()

    assert contexts.engine.is_blocked(STREAM)
    contexts.unblock(STREAM)
    assert not contexts.engine.is_blocked(STREAM)


def test_reset_returns_to_a_blocked_default_context():
    contexts = new_contexts(policy=DefaultPolicy.BLOCKED)

    contexts.reset()
    contexts.unblock(STREAM)

    assert (contexts.endpoints(), dma(contexts, 0x100)) == ({STREAM: 0}, Refusal.BLOCKED)


def test_free_and_reset_drop_regions_and_return_their_pages():
    contexts = new_contexts(REGION)
    contexts.alloc()
    contexts.free(1, reattach=True)
    assert contexts.engine.usage()[:2] == (1, 1)

    contexts.attach(STREAM, 2)
    contexts.reset()
    assert contexts.engine.usage()[:2] == (0, 0)

    contexts.alloc()
    assert contexts.attach(STREAM, 1) is None
    assert dma(contexts, 0x500) == 0x500000


# limits


def test_lower_limits_are_in_force_and_shown_until_reset():
    contexts = new_contexts(max_contexts=3, pool_pages=9)
    engine = contexts.engine

    contexts.set_limits(2, 5)

    assert (engine.usage(), contexts.max_contexts) == (EngineUsage(1, 1, 5, 0), 2)
    assert engine.map(1, 0, 0, 1, RW).ok
    assert contexts.alloc() == (2, None)
    assert contexts.alloc() == (None, ContextStop.NO_FREE_CONTEXT)
    assert engine.map(2, 0, 0, 1, RW) == Outcome(0, Stop.POOL_EXHAUSTED, 0)
    contexts.reset()
    assert (engine.usage(), contexts.max_contexts) == (EngineUsage(0, 0, 9, 0), 3)


def test_limits_can_be_nothing_and_can_be_raised_again_to_what_is_configured():
    contexts = Contexts(Engine(EngineConfig(pool_pages=9)), 3, DefaultPolicy.IDENTITY)

    contexts.set_limits(0, 0)
    assert contexts.alloc() == (None, ContextStop.NO_FREE_CONTEXT)
    contexts.set_limits(3, 0)
    assert contexts.alloc() == (None, Stop.POOL_EXHAUSTED)
    contexts.set_limits(3, 9)

    assert (contexts.engine.usage(), contexts.max_contexts) == (EngineUsage(0, 0, 9, 0), 3)


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ((4, 9), r"limit of 4 contexts: must be 2\.\.3"),
        ((1, 9), r"limit of 1 contexts: must be 2\.\.3"),
        ((3, 10), r"limit of 10 pool pages: must be 3\.\.9"),
        ((2, 2), r"limit of 2 pool pages: must be 3\.\.9"),
    ],
)
def test_limits_beyond_the_configured_ones_or_below_what_is_in_use_are_refused(limits, text):
    contexts = Contexts(Engine(EngineConfig(pool_pages=9)), 3, DefaultPolicy.IDENTITY)
    contexts.alloc()
    contexts.alloc()
    contexts.free(1, reattach=False)
    contexts.engine.set_ram([(0, 0)])
    contexts.engine.map(2, 0, 0, 1, RW)

    with pytest.raises(ValueError, match=text):
        contexts.set_limits(*limits)

    assert (contexts.engine.usage(), contexts.max_contexts) == (EngineUsage(1, 3, 9, 1), 3)
