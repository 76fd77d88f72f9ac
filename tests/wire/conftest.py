from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pviommu.lab import libvfio_user as building
from pviommu.lab.progress import Progress
from pviommu.transports import LIBRARY, TRANSPORTS
from vfio_user import RemoteError

from ..forking import forker
from .differences import BEHIND_BOTH, DIFFERENCES, OWN_ONLY
from .guest import CHECKOUT, Guest, Ram, Serve
from .raw import Raw

TOPOLOGY = CHECKOUT / "qemu-configs" / "lab.toml"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "transport" in metafunc.fixturenames and metafunc.module.__name__.rpartition(".")[2] in BEHIND_BOTH:
        served = TRANSPORTS[:1] if metafunc.definition.name in OWN_ONLY else TRANSPORTS
        metafunc.parametrize("transport", served, scope="module")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wrong = {test: each for each in DIFFERENCES for test in each.tests}
    for item in items:
        if isinstance(item, pytest.Function) and _params(item).get("transport") == LIBRARY:
            others = item.callspec.id.replace(LIBRARY, "").strip("-")
            if each := wrong.get(item.originalname) or wrong.get(f"{item.originalname}[{others}]"):
                reason = f"{each.what}: {each.libvfio_user}"
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True, raises=(AssertionError, RemoteError)))


def _params(item: pytest.Function) -> Mapping[str, object]:
    return item.callspec.params if hasattr(item, "callspec") else {}


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


@pytest.fixture(scope="module")
def transport() -> str:
    """What serves the clients, of :data:`TRANSPORTS`."""
    return TRANSPORTS[0]


@pytest.fixture(scope="session")
def library() -> Path:
    """The C library libvfio-user, which a server finds that is told to use it."""
    return building.build(Progress(io.StringIO(), building.STEPS))


@pytest.fixture(scope="module")
def transport_options(transport: str, request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Of ``pviommu serve``."""
    if transport == LIBRARY:
        request.getfixturevalue("library")
    return ("--transport", transport)


@pytest.fixture
def serve(folder: Path, topology: Path, transport_options: tuple[str, ...]) -> Iterator[Serve]:
    """A back end of its own for each test."""
    with Serve(folder, topology, *transport_options) as process:
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
def back_end(transport_options: tuple[str, ...]) -> Iterator[Serve]:
    """One back end for a whole file: each client of it finds power-on state."""
    with (
        tempfile.TemporaryDirectory(prefix="pviommu-") as name,
        Serve(Path(name), TOPOLOGY, *transport_options, silent=True) as process,
    ):
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
