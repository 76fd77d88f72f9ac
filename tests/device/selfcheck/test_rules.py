"""What is tried: repeatable, legal to submit, and of every kind."""

from __future__ import annotations

from random import Random

import pytest

from pviommu.selfcheck.operations import Batch, Map, Operation, Posted
from pviommu.selfcheck.oracle import Oracle
from pviommu.selfcheck.rules import WEIGHTS, Rules
from pviommu.selfcheck.settings import Setting


def drawn(seed: int, count: int, profile: str = "xen-2024") -> list[Operation]:
    oracle = Oracle(Setting(profile=profile))
    rules = Rules(Random(seed), oracle.model, oracle.interface.malformed)
    history: list[Operation] = []
    while len(history) < count:
        for op in rules.draw():
            oracle.apply(op)
            history.append(op)
    return history


def test_a_seed_stands_for_one_history() -> None:
    assert drawn(5, 300) == drawn(5, 300)
    assert drawn(5, 300) != drawn(6, 300)


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_rule_gives_operations_that_the_model_knows(name: str) -> None:
    oracle = Oracle(Setting())
    rules = Rules(Random(1), oracle.model, oracle.interface.malformed)

    operations = getattr(rules, f"rule_{name}")()

    assert operations
    for op in operations:
        oracle.apply(op)


@pytest.mark.parametrize("profile", ["xen-2024", "xen-v7"])
def test_every_slot_can_be_submitted(profile: str) -> None:
    interface = Oracle(Setting(profile=profile)).interface
    for op in drawn(3, 2000, profile):
        slots = (*op.operations, op.then) if isinstance(op, Posted) else (op,)
        for slot in slots:
            if isinstance(slot, Map):
                assert len(interface.submission(slot).payload) == 48


def test_much_of_what_is_tried_succeeds() -> None:
    oracle = Oracle(Setting())
    rules = Rules(Random(1), oracle.model, oracle.interface.malformed)
    outcomes = []
    while len(outcomes) < 300:
        for op in rules.draw():
            verdict = oracle.apply(op)
            if isinstance(op, Map) and not verdict.refused:
                outcomes.append(verdict.outcome[1])

    assert outcomes.count(None) > 75
    assert {"MAPPED", "NOT_RAM", "RESERVED", "POOL_EXHAUSTED", "OUT_OF_APERTURE", "NO_DOMAIN"} <= set(outcomes)


def test_batches_fail_in_the_middle_too() -> None:
    oracle = Oracle(Setting(pool_pages=2000))
    rules = Rules(Random(2), oracle.model, oracle.interface.malformed)
    oracle.model.alloc(False)
    done = set()
    for _ in range(200):
        for op in rules.rule_batch():
            verdict = oracle.apply(op)
            assert isinstance(op, Batch)
            if not verdict.refused:
                answers = verdict.outcome.answers
                done.add((len(answers) == len(op.elements), bool(answers and answers[-1][1])))

    assert {(True, False), (False, True)} <= done
