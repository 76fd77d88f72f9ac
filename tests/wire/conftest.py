from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..forking import forker
from .guest import CHECKOUT, Guest, Ram, Serve
from .raw import Raw

TOPOLOGY = CHECKOUT / "qemu-configs" / "lab.toml"


@pytest.fixture(autouse=True, scope="session")
def _forker() -> None:
    """Before the first test counts descriptors or children."""
    forker()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="pviommu-") as name:
        yield Path(name)


@pytest.fixture
def topology() -> Path:
    """The lab's: the PV-IOMMU and two DMA test engines."""
    return TOPOLOGY


@pytest.fixture
def serve(folder: Path, topology: Path) -> Iterator[Serve]:
    """A back end of its own for each test."""
    with Serve(folder, topology) as process:
        yield process


@pytest.fixture
def guest(serve: Serve) -> Iterator[Guest]:
    """A guest whose ring and engines are on."""
    with Guest(serve.folder, "dma0", "dma1") as started:
        yield started.start()


@pytest.fixture
def ram() -> Iterator[Ram]:
    """Guest memory of a client that sets itself up."""
    memory = Ram()
    yield memory
    memory.close()


@pytest.fixture(scope="module")
def back_end() -> Iterator[Serve]:
    """One back end for a whole file: each client of it finds power-on state."""
    with tempfile.TemporaryDirectory(prefix="pviommu-") as name, Serve(Path(name), TOPOLOGY, silent=True) as process:
        yield process


@pytest.fixture
def fresh(back_end: Serve) -> Iterator[Raw]:
    """A client of the PV-IOMMU that has not said anything."""
    with Raw(back_end.folder / "iommu.sock") as connected:
        yield connected


@pytest.fixture
def peer(fresh: Raw) -> Raw:
    """A client of the PV-IOMMU that has negotiated as QEMU does."""
    fresh.negotiate()
    return fresh
