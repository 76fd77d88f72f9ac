"""Guests that own their tables, through whole machines, and devices that are wrong about them."""

from __future__ import annotations

from functools import partial

import pytest

from pviommu.engine.guest_tables import TablesDomain
from pviommu.interfaces.pv.in_flight import InFlight
from pviommu.machine import Machine
from pviommu.native.core import NativeCore
from pviommu.native.library import Library
from pviommu.selfcheck import tables_guest
from pviommu.selfcheck.checker import Run, run_history
from pviommu.selfcheck.operations import Alloc, Attach, Bind, Dma, Free, Map, Operation, Unmap
from pviommu.selfcheck.settings import Setting
from pviommu.selfcheck.tables_guest import TablesMachinePath, TablesRingPath, TablesWirePath

from ..native.conftest import native_library

__all__ = ["native_library"]

WRITE = Dma(1, 0x200010, 8, True, 1)
HISTORY: list[Operation] = [Alloc(), Bind(0x28, 1), Attach(0x28, 1), Map(1, 0x200, 0x40, 3), WRITE, Unmap(1, 0x200, 1)]


def native_ring(library: Library) -> partial[TablesRingPath]:
    def machine(topology, environment):  # type: ignore[no-untyped-def]
        return Machine.build(topology, environment, NativeCore(library))

    return partial(TablesRingPath, make=machine, dirty=True)


@pytest.mark.parametrize("profile", ["xen-2024", "xen-v7"])
@pytest.mark.row("tables", 4)
@pytest.mark.row("tables", 6)
def test_histories_agree_through_a_ring(profile: str) -> None:
    assert Run("t", profile).check(400, [TablesRingPath]) is None


@pytest.mark.row("tables", 16)
def test_histories_agree_when_c_walks_and_sets_bits(native_library: Library) -> None:
    path = native_ring(native_library)
    assert run_history(Setting(), [*HISTORY, WRITE], [path]) is None
    assert Run("t", "xen-2024").check(400, [path]) is None


@pytest.mark.row("tables", 12)
def test_histories_agree_over_snapshots() -> None:
    made: list[TablesMachinePath] = []

    def path(oracle):  # type: ignore[no-untyped-def]
        made.append(TablesMachinePath(oracle, every=7))
        return made[-1]

    assert Run("t", "xen-v7").check(70, [path]) is None
    assert made[0].snapshots > 8


def test_histories_agree_over_the_wire() -> None:
    assert Run("t", "xen-2024").check(150, [TablesWirePath]) is None


def test_a_large_leaf_is_written_cut_up_and_written_again() -> None:
    over = Dma(1, (0x2BC << 12) - 3, 6, True, 7)
    history = [Alloc(), Bind(0x28, 1), Attach(0x28, 1), Map(1, 0x200, 0x800, 512), over, Unmap(1, 0x2BC, 1), over]
    history += [Unmap(1, 0x200, 0xBC), Unmap(1, 0x2BD, 512), Map(1, 0x200, 0xA00, 512), over, Free(1, True), over]
    assert run_history(Setting(pool_pages=1200), history, [TablesRingPath]) is None


def test_a_translation_that_outlives_an_unmap_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[tuple[int, int], object] = {}
    walk = TablesDomain.walk

    def remembers(self, iova, end, wanted):  # type: ignore[no-untyped-def]
        if (iova, end) not in kept:
            kept[iova, end] = walk(self, iova, end, wanted)
        return kept[iova, end]

    monkeypatch.setattr(TablesDomain, "walk", remembers)
    difference = run_history(Setting(), [*HISTORY, WRITE], [TablesRingPath])
    assert difference is not None
    assert "status of Dma" in str(difference)


def test_a_step_that_does_not_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InFlight, "end", lambda _self, _use: None)
    monkeypatch.setattr(tables_guest, "PATIENCE_S", 0.01)
    difference = run_history(Setting(), HISTORY, [TablesRingPath])
    assert difference is not None
    assert "step and pending of context 1: expected 'even, 0', found (1, 0)" in str(difference)


def test_a_page_that_is_dirty_without_a_write_is_found(native_library: Library) -> None:
    """The guest is the one that is wrong here: it takes reads for writes."""

    class Wrong(TablesRingPath):
        def _compare_bits(self, op, outcome, before):  # type: ignore[no-untyped-def]
            super()._compare_bits(op._replace(write=True), outcome, before)

    path = partial(Wrong, make=native_ring(native_library).keywords["make"], dirty=True)
    assert run_history(Setting(), HISTORY, [path]) is None
    history = [*HISTORY[:4], WRITE._replace(write=False)]
    difference = run_history(Setting(), history, [path])
    assert difference is not None
    assert "leaf of 0x200 after Dma" in str(difference)
