"""The engine's path notices each kind of difference."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pviommu.selfcheck.difference import Difference
from pviommu.selfcheck.engine_path import EnginePath
from pviommu.selfcheck.operations import Alloc, Attach, Batch, Bind, Dma, Lookup, Map, Operation
from pviommu.selfcheck.oracle import Oracle
from pviommu.selfcheck.settings import Setting


@pytest.fixture
def oracle() -> Oracle:
    return Oracle(Setting())


@pytest.fixture
def path(oracle: Oracle) -> EnginePath:
    """Endpoint 1 is in context 1, which maps dfn 5."""
    path = EnginePath(oracle)
    for op in (Alloc(), Bind(0x28, 1), Attach(0x28, 1), Map(1, 5, 9, 1)):
        path.run(op, oracle.apply(op))
    return path


def _other_target(oracle: Oracle) -> None:
    oracle.model.pages[1][5] = (8, 3)


def _not_there(oracle: Oracle) -> None:
    oracle.model.pages[1].clear()


@pytest.mark.parametrize(
    ("mistake", "op", "what"),
    [
        (_other_target, Lookup(1, 5), "result of Lookup"),
        (_not_there, Lookup(1, 5), "result of Lookup"),
        (_not_there, Map(1, 5, 9, 1), "result of Map"),
        (_not_there, Batch(1, False, ((5, 9, 3),)), "element 0x5"),
        (_other_target, Dma(1, 0x5000, 1, False, 0), "translation of Dma"),
        (_not_there, Dma(1, 0x5000, 1, False, 0), "translation of Dma"),
        (_other_target, Dma(1, 0x6000, 1, False, 0), None),
    ],
)
def test_an_engine_that_does_something_else_differs(
    path: EnginePath, oracle: Oracle, mistake: Callable[[Oracle], None], op: Operation, what: str | None
) -> None:
    mistake(oracle)
    verdict = oracle.apply(op)

    if what is None:
        path.run(op, verdict)
    else:
        with pytest.raises(Difference, match=what):
            path.run(op, verdict)


@pytest.mark.parametrize("mistake", [_other_target, _not_there])
def test_pages_and_tables_that_differ_are_noticed(
    path: EnginePath, oracle: Oracle, mistake: Callable[[Oracle], None]
) -> None:
    mistake(oracle)

    with pytest.raises(Difference, match="context 1 dfn 0x5"):
        path.compare_touched(1, [4, 5])
    with pytest.raises(Difference, match="context 1 dfn 0x5"):
        path.compare_all()


def test_sums_and_places_that_differ_are_noticed(path: EnginePath, oracle: Oracle) -> None:
    oracle.model.pool_pages -= 1
    with pytest.raises(Difference, match="pool pages"):
        path.compare_touched(0, [])
    oracle.model.pool_pages += 1

    oracle.model.attached[1] = 0

    with pytest.raises(Difference, match="contexts of the endpoints"):
        path.compare_touched(0, [])


def test_contexts_that_differ_are_noticed(path: EnginePath, oracle: Oracle) -> None:
    oracle.model.pages[2] = {}

    with pytest.raises(Difference, match=r"contexts: expected \(1, 2\), found \(1,\)"):
        path.compare_all()
