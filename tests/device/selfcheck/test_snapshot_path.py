"""Engines that are saved and loaded in the middle of a history, and some that are not saved well."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from pviommu.engine import Engine, EngineConfig, EngineState
from pviommu.engine.state import TableState
from pviommu.native.core import NativeCore
from pviommu.native.library import Library
from pviommu.selfcheck.checker import Run
from pviommu.selfcheck.operations import Alloc, Usage
from pviommu.selfcheck.oracle import Oracle
from pviommu.selfcheck.settings import Setting
from pviommu.selfcheck.snapshot_path import SNAPSHOT_EVERY, SnapshotPath

from ..native.conftest import native_library

__all__ = ["native_library"]

STEPS = 1500


@pytest.mark.parametrize("profile", ["xen-2024", "xen-v7"])
def test_histories_go_on_in_engines_of_either_core(profile: str, native_library: Library) -> None:
    made: list[str] = []

    def native(config: EngineConfig) -> Engine:
        made.append("native")
        return Engine(config, NativeCore(native_library))

    def python(config: EngineConfig) -> Engine:
        made.append("python")
        return Engine(config)

    assert Run("s", profile).check(STEPS, [partial(SnapshotPath, makes=(native, python))]) is None

    assert len(made) > STEPS // SNAPSHOT_EVERY / 2
    assert made[:6] == ["native", "python", "python", "native", "native", "python"]


class Forgets(Engine):
    """Saves all but who is blocked."""

    def save(self) -> EngineState:
        state = super().save()
        return replace(state, attachments=replace(state.attachments, blocked=()))


def _permissive(table: TableState) -> TableState:
    return replace(table, entries=tuple((*entry[:3], entry[3] | 3, entry[4]) for entry in table.entries))


class Permits(Engine):
    """Saves every page as readable and writeable."""

    def save(self) -> EngineState:
        state = super().save()
        paging = tuple(replace(domain, table=_permissive(domain.table)) for domain in state.domains.paging)
        return replace(state, domains=replace(state.domains, paging=paging))


@pytest.mark.parametrize("wrong", [Forgets, Permits])
def test_what_is_not_saved_well_is_caught(wrong: type[Engine]) -> None:
    runs = (Run(f"w{number}", "xen-2024") for number in range(8))

    found = next(filter(None, (run.check(2500, [partial(SnapshotPath, makes=(wrong,))]) for run in runs)))

    assert found.path == "snapshot"


def test_a_snapshot_is_taken_every_so_many_operations() -> None:
    oracle = Oracle(Setting())
    path = SnapshotPath(oracle)
    first = path.engine

    for _ in range(SNAPSHOT_EVERY - 1):
        path.run(Usage(), oracle.apply(Usage()))
    assert (path.engine is first, path.snapshots) == (True, 0)
    path.run(Alloc(), oracle.apply(Alloc()))

    assert (path.engine is first, path.snapshots) == (False, 1)
    assert path.engine.domains() == (1,)
    path.compare_all()
