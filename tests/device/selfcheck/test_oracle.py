"""What surrounds the model: bindings, batches, memory, refusals by the profile."""

from __future__ import annotations

import pytest

from pviommu.selfcheck.operations import (
    Alloc,
    Attach,
    Batch,
    Bind,
    Block,
    Dma,
    Map,
    Operation,
    Plug,
    Posted,
    Reset,
    Revive,
    Unbind,
    Unmap,
)
from pviommu.selfcheck.oracle import Oracle
from pviommu.selfcheck.settings import LARGE_MODULE, Setting

PATTERN = 0x0807060504030201


@pytest.fixture
def oracle() -> Oracle:
    """Endpoint 1 is bound and in context 1."""
    oracle = Oracle(Setting(max_nr_pages=256))
    for op in (Alloc(), Bind(0x28, 1), Attach(0x28, 1)):
        assert oracle.apply(op).outcome[1] is None
    return oracle


def stop(oracle: Oracle, op: Operation) -> str | None:
    found: str | None = oracle.apply(op).outcome[1]
    return found


def test_bindings_are_one_to_one(oracle: Oracle) -> None:
    assert stop(oracle, Bind(0x28, 1)) is None
    assert stop(oracle, Bind(0x28, 2)) == "BOUND"
    assert stop(oracle, Bind(0x30, 1)) == "BOUND"
    assert stop(oracle, Bind(0x30, 3)) == "NO_ENDPOINT"
    assert stop(oracle, Unbind(0x30)) == "NOT_BOUND"


def test_an_endpoint_whose_binding_is_forgotten_is_in_the_default_context(oracle: Oracle) -> None:
    assert stop(oracle, Unbind(0x28)) is None

    assert oracle.model.attached == {1: 0, 2: 0}


@pytest.mark.parametrize("leave", [Unbind(0x28), Block(0x28)])
def test_what_is_unbound_or_blocked_is_held_until_it_is_attached_or_the_iommu_is_reset(
    oracle: Oracle, leave: Operation
) -> None:
    dma = Dma(1, 0, 1, False, 0)
    oracle.apply(leave)
    oracle.apply(Revive(1))
    assert oracle.apply(dma).outcome.translation == (0, "BLOCKED")

    oracle.apply(Bind(0x28, 1))
    oracle.apply(Attach(0x28, 0))
    assert oracle.apply(dma).outcome.translation == [(0, 1)]

    oracle.apply(leave)
    oracle.apply(Reset())
    assert oracle.apply(dma).outcome.translation == (0, "BLOCKED")
    oracle.apply(Revive(1))
    assert oracle.apply(dma).outcome.translation == [(0, 1)]


def test_what_is_not_bound_is_not_blocked(oracle: Oracle) -> None:
    assert stop(oracle, Block(0x30)) == "NOT_BOUND"
    assert oracle.model.blocked == set()


def test_what_the_profile_refuses_changes_nothing(oracle: Oracle) -> None:
    verdict = oracle.apply(Map(1, 0, 0, 257))

    assert (verdict.refused, oracle.model.pages[1]) == (7, {})


def test_a_batch_stops_at_its_first_failure(oracle: Oracle) -> None:
    outcome = oracle.apply(Batch(1, False, ((5, 5, 3), (5, 6, 3), (6, 6, 3)))).outcome

    assert [answer[1] for answer in outcome.answers] == [None, "MAPPED"]
    assert list(oracle.model.pages[1]) == [5]


def test_a_batch_in_no_context_is_refused_whole(oracle: Oracle) -> None:
    assert oracle.apply(Batch(0, False, ())).refused == 22


def test_dma_is_remembered_across_pages_and_read_back(oracle: Oracle) -> None:
    oracle.apply(Map(1, 0x100, 0x10, 1))
    oracle.apply(Map(1, 0x101, 0x20, 1))

    oracle.apply(Dma(1, 0x100FFD, 6, True, PATTERN))

    assert oracle.apply(Dma(1, 0x100FFD, 6, False, 0)).outcome.data == bytes([1, 2, 3, 4, 5, 6])
    assert (oracle.ram[0x10][-3:], oracle.ram[0x20][:3]) == (b"\1\2\3", b"\4\5\6")


def test_refused_dma_changes_nothing(oracle: Oracle) -> None:
    before = dict(oracle.ram)

    outcome = oracle.apply(Dma(1, 0x100000, 8, True, PATTERN)).outcome

    assert outcome.translation == (0x100000, "NOT_MAPPED")
    assert (outcome.ctx, outcome.devfn) == (1, 0x28)
    assert oracle.ram == before


def test_dma_to_memory_that_went_is_lost_from_its_first_byte_there(oracle: Oracle) -> None:
    oracle.apply(Plug(True))
    oracle.apply(Map(1, 0x100, LARGE_MODULE.start - 0, 1))
    oracle.apply(Map(1, 0xFF, 0x10, 1))
    oracle.apply(Plug(False))

    outcome = oracle.apply(Dma(1, 0xFFFF8, 16, True, PATTERN)).outcome

    assert (outcome.lost, outcome.data) == (0x100000, b"")
    assert 0x10 not in oracle.ram


def test_posted_slots_come_before_what_is_waited_for(oracle: Oracle) -> None:
    first, last = oracle.apply(Posted((Map(1, 5, 5, 1),), Unmap(1, 5, 1))).outcome

    assert (first.outcome, last.outcome) == ((1, None, None), (1, None, None))


def test_an_endpoint_that_a_reset_blocked_is_revived_by_its_driver(oracle: Oracle) -> None:
    oracle.apply(Reset())
    assert oracle.apply(Dma(1, 0, 1, False, 0)).outcome.translation == (0, "BLOCKED")

    oracle.apply(Revive(1))

    assert oracle.apply(Dma(1, 0, 1, False, 0)).outcome.translation == [(0, 1)]
    assert oracle.bound == {}
