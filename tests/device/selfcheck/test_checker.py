"""Histories through the right device agree; through a wrong one they do not, and become short."""

from __future__ import annotations

from functools import partial

import pytest

from pviommu.engine import Engine
from pviommu.interfaces.pv.contexts import Contexts
from pviommu.selfcheck.checker import PATHS, Checker, MakePath, Run, run_history, shortened
from pviommu.selfcheck.difference import Difference
from pviommu.selfcheck.engine_path import EnginePath
from pviommu.selfcheck.operations import Alloc, Attach, Bind, Dma, Map, Unmap, Usage
from pviommu.selfcheck.ring_path import RingPath
from pviommu.selfcheck.settings import Setting

from .wrong import WRONG, HastyEngine, LeakyEngine, PermissiveEngine, StaleEngine, machine_with

STEPS = 2500
ATTACHED = [Alloc(), Bind(0x28, 1), Attach(0x28, 1)]


def wrong_paths(wrong: type[Engine] | type[Contexts]) -> dict[str, MakePath]:
    return {
        "engine": partial(EnginePath, make=wrong) if issubclass(wrong, Engine) else partial(EnginePath, contexts=wrong),
        "ring": partial(RingPath, make=machine_with(wrong)),
    }


@pytest.mark.parametrize("profile", ["xen-2024", "xen-v7"])
def test_engine_and_ring_agree_with_the_model(profile: str) -> None:
    run = Run("a", profile)

    assert run.check(STEPS, [PATHS["engine"], PATHS["ring"]]) is None
    assert len(run.history) >= STEPS


@pytest.mark.parametrize("profile", ["xen-2024", "xen-v7"])
def test_the_wire_agrees_with_the_model(profile: str) -> None:
    assert Run("w", profile).check(600, [PATHS["wire"]]) is None


@pytest.mark.parametrize("path", ["engine", "ring"])
@pytest.mark.parametrize("engine", WRONG, ids=lambda engine: engine.__name__)
def test_a_wrong_engine_is_caught(engine: type[Engine] | type[Contexts], path: str) -> None:
    run = Run("c", "xen-2024")

    difference = run.check(STEPS, [wrong_paths(engine)[path]])

    assert difference is not None
    assert difference.path == path


@pytest.mark.parametrize(
    ("engine", "history"),
    [
        (StaleEngine, [Map(1, 5, 9, 1), Dma(1, 0x5000, 1, False, 1), Unmap(1, 5, 1), Dma(1, 0x5000, 1, False, 1)]),
        (PermissiveEngine, [Map(1, 5, 9, 1, 1), Dma(1, 0x5000, 1, True, 1)]),
        (HastyEngine, [Map(1, 5, 9, 1), Dma(1, 0x5FFF, 2, True, 1)]),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
@pytest.mark.parametrize("path", ["engine", "ring"])
def test_the_history_that_shows_a_mistake_shows_it(
    engine: type[Engine], history: list[Map | Unmap | Dma], path: str
) -> None:
    assert run_history(Setting(), [*ATTACHED, *history], [wrong_paths(engine)[path]]) is not None
    assert run_history(Setting(), [*ATTACHED, *history], [PATHS[path]]) is None


def test_a_history_that_differs_becomes_as_short_as_it_can_be() -> None:
    paths = [wrong_paths(LeakyEngine)["engine"]]
    run = Run("c", "xen-2024")
    assert run.check(STEPS, paths) is not None

    short = shortened(run.setting, run.history, paths)

    assert [type(op).__name__ for op in short] == ["Alloc"] * (len(short) - 1) + ["Free"]
    for place in range(len(short)):
        assert run_history(run.setting, short[:place] + short[place + 1 :], paths) is None
    assert run_history(run.setting, short, paths) is not None


def test_shortening_ends_after_the_replays_it_was_given() -> None:
    paths = [wrong_paths(LeakyEngine)["engine"]]
    run = Run("c", "xen-2024")
    run.check(STEPS, paths)

    short = shortened(run.setting, run.history, paths, replays=1)

    assert 2 < len(short) <= len(run.history)


def test_what_is_touched_is_compared_at_once() -> None:
    with Checker(Setting(), [EnginePath]) as checker:
        for op in (Alloc(), Map(1, 5, 9, 1)):
            checker.step(op)
        checker.oracle.model.pages[1][5] = (10, 3)

        with pytest.raises(Difference, match=r"context 1 dfn 0x5: expected \(10, 3\)"):
            checker.step(Unmap(1, 6, 1))


def test_what_is_not_touched_is_compared_with_the_whole_tables() -> None:
    with Checker(Setting(), [EnginePath, RingPath]) as checker:
        for op in (Alloc(), Map(1, 5, 9, 1)):
            checker.step(op)
        checker.oracle.model.pages[1][5] = (10, 3)
        checker.step(Usage())

        with pytest.raises(Difference, match="context 1 dfn 0x5"):
            checker.compare_all()
