"""The native core, built once for all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from pviommu.engine import Engine
from pviommu.machine import Machine
from pviommu.native import build, library
from pviommu.native.core import NativeCore

from .. import conftest as machines
from ..conftest import Driver
from ..interfaces.pv.conftest import make_v7, v7

if TYPE_CHECKING:
    from ...workers import Once

__all__ = ["make_v7", "v7"]


def make_library(folder: Path) -> library.Library:
    """The library, from the sources as they are."""
    return library.load(build.build(os.environ | {"XDG_CACHE_HOME": str(folder)}))


def _build(folder: Path) -> None:
    make_library(folder)


@pytest.fixture(scope="session")
def native_library(once: Once) -> library.Library:
    """Built once for all modules and processes of a run."""
    return make_library(once("native-library", _build))


@pytest.fixture(scope="module")
def native_engines(native_library: library.Library, request: pytest.FixtureRequest) -> Iterator[None]:
    """Engines that the tests of module ``ORIGINAL`` make have a native core."""
    tests: ModuleType = request.module.ORIGINAL

    class NativeEngine(Engine):
        def __init__(self, config=None):  # type: ignore[no-untyped-def]
            super().__init__(config, NativeCore(native_library))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tests, "Engine", NativeEngine)
        yield


WHOLE = {"rings": True, "copier": True}
TABLES = {"rings": False, "copier": False}


@pytest.fixture(params=[WHOLE, TABLES], ids=["whole", "tables"])
def parts(request: pytest.FixtureRequest) -> dict[str, bool]:
    """What the native core of a machine has beside its tables. Modules about rings in C have a fixture of their own."""
    chosen: dict[str, bool] = request.param
    return chosen


@pytest.fixture
def make_driver(
    native_library: library.Library, parts: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Driver]]:
    """As the one of the folder above, but the machines have a native core."""

    class NativeMachine(Machine):
        @classmethod
        def build(cls, topology, environment, core=None):  # type: ignore[no-untyped-def]
            return Machine.build(topology, environment, core or NativeCore(native_library, **parts))

    monkeypatch.setattr(machines, "Machine", NativeMachine)
    made: list[Driver] = []

    def make(**settings: Any) -> Driver:
        made.append(Driver(**settings))
        return made[-1]

    yield make
    for driver in made:
        driver.close()
