"""Histories through tables of the guest, and engines that are wrong about them."""

from __future__ import annotations

from functools import partial

import pytest

from pviommu.engine import Engine, EngineConfig
from pviommu.engine import Run as Piece
from pviommu.native.core import NativeCore
from pviommu.native.library import Library
from pviommu.selfcheck.checker import Run, run_history
from pviommu.selfcheck.command import native_memory
from pviommu.selfcheck.operations import Alloc, Attach, Bind, Dma, Map, Unmap
from pviommu.selfcheck.settings import Setting
from pviommu.selfcheck.tables_path import TablesPath

from ..native.conftest import native_library

__all__ = ["native_library"]

STEPS = 1500


@pytest.mark.parametrize("profile", ["xen-2024", "xen-v7"])
@pytest.mark.row("tables", 6)
def test_histories_agree(profile: str) -> None:
    assert Run("t", profile).check(STEPS, [TablesPath]) is None


@pytest.mark.row("tables", 6)
def test_histories_agree_when_c_walks(native_library: Library) -> None:
    made: list[Engine] = []

    def native(config: EngineConfig) -> Engine:
        made.append(Engine(config, NativeCore(native_library)))
        return made[-1]

    path = partial(TablesPath, make=native, memory=partial(native_memory, native_library))
    history = [Alloc(), Bind(0x28, 1), Attach(0x28, 1), Map(1, 0x200, 0x40, 3), Dma(1, 0x200FFE, 8, True, 1)]
    assert run_history(Setting(), history, [path]) is None
    assert made[0].walked_by_core(1) == 1
    assert Run("t", "xen-2024").check(STEPS, [path]) is None


def test_a_translation_that_outlives_an_unmap_is_found() -> None:
    class Remembers(Engine):
        """Keeps the runs that it has found."""

        def translate(self, stream, iova, length, access, pasid=None):  # type: ignore[no-untyped-def]
            kept = self.__dict__.setdefault("kept", {})
            found = kept.get((stream, iova, length)) or super().translate(stream, iova, length, access, pasid)
            if isinstance(found, tuple) and all(isinstance(run, Piece) for run in found):
                kept[stream, iova, length] = found
            return found

    dma = Dma(1, 0x200010, 8, True, 1)
    history = [Alloc(), Bind(0x28, 1), Attach(0x28, 1), Map(1, 0x200, 0x40, 3), dma, Unmap(1, 0x200, 1), dma]
    assert run_history(Setting(), history, [TablesPath]) is None
    difference = run_history(Setting(), history, [partial(TablesPath, make=Remembers)])
    assert difference is not None
    assert "translation of" in str(difference)
