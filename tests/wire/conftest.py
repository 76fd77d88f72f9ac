from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .guest import CHECKOUT, Guest, Serve

TOPOLOGY = CHECKOUT / "qemu-configs" / "lab.toml"


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
