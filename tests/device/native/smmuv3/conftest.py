"""SMMUs with the native core, which walks their guests' tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pviommu.interfaces.smmuv3.function import SmmuFunction
from pviommu.machine import Machine
from pviommu.native.core import NativeCore
from pviommu.native.library import Library

from ...interfaces.smmuv3 import test_function, test_machine
from ...interfaces.smmuv3.conftest import Guest, guest, make_guest, started

__all__ = ["guest", "make_guest", "started"]


@pytest.fixture(scope="package", autouse=True)
def native(native_library: Library) -> Iterator[None]:
    """Whatever the tests of the SMMU make has a native core."""

    def core() -> NativeCore:
        return NativeCore(native_library)

    class NativeFunction(SmmuFunction):
        def __init__(self, *settings: Any, **others: Any) -> None:
            super().__init__(*settings, **others, core=core(), copier=core().copier())

    class NativeMachine(Machine):
        @classmethod
        def build(cls, topology, environment, chosen=None):  # type: ignore[no-untyped-def, override]
            return Machine.build(topology, environment, chosen or core())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Guest, "make_core", staticmethod(core))
        patch.setattr(test_function, "SmmuFunction", NativeFunction)
        patch.setattr(test_machine, "Machine", NativeMachine)
        yield
