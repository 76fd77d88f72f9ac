"""The whole guest again, behind the C library libvfio-user, and what is different there."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import pytest

from pviommu.lab import libvfio_user as building
from pviommu.lab.progress import Progress
from pviommu.transports.behind_libvfio_user import MOST_RANGES
from vfio_user import Client, RemoteError

from . import test_guest as whole_guest
from .guest import Guest, Ram, Serve, run

OPTIONS = ("--transport", "libvfio-user")


def _again(test: FunctionType) -> FunctionType:
    """The same test. It proves no row of docs/conformance.md, which is about this project's own server."""
    made = FunctionType(test.__code__, test.__globals__, test.__name__, test.__defaults__, test.__closure__)
    vars(made).update(vars(test), pytestmark=[mark for mark in vars(test).get("pytestmark", ()) if mark.name != "row"])
    return made


globals().update({name: _again(test) for name, test in vars(whole_guest).items() if name.startswith("test_")})


@pytest.fixture(scope="module")
def library() -> Path:
    return building.build(Progress(io.StringIO(), building.STEPS))


@pytest.fixture
def serve(folder: Path, topology: Path, library: Path) -> Iterator[Serve]:
    with Serve(folder, topology, *OPTIONS) as process:
        yield process


def test_the_library_is_what_serves(serve: Serve, library: Path) -> None:
    assert str(library) in Path(f"/proc/{serve.process.pid}/maps").read_text()
    assert serve.lines[-1]["message"].endswith("core, behind libvfio-user: for trusted clients only")


def test_the_next_client_has_memory_of_its_own(serve: Serve) -> None:
    with Client.connect(serve.folder / "iommu.sock") as client:
        (area,) = client.map_region(2)
    serve.wait_for("disconnected")
    with Client.connect(serve.folder / "iommu.sock") as client:
        (other,) = client.map_region(2)
        area.memory[0x8000] = 0x77  # of the client that has gone
        assert other.memory[0x8000] == 0
        other.memory.close()
    area.memory.close()


def test_sockets_have_the_permissions_that_are_asked_for_and_go_at_the_end(
    folder: Path, topology: Path, library: Path
) -> None:
    with Serve(folder, topology, *OPTIONS, "--socket-mode", "660"):
        assert (folder / "iommu.sock").stat().st_mode & 0o777 == 0o660
    assert list(folder.glob("*.sock")) == []


def test_the_last_range_that_fits_is_said_before_the_client_fails(serve: Serve) -> None:
    ram = Ram()
    with Client.connect(serve.folder / "dma0.sock") as client:
        for number in range(MOST_RANGES):
            client.dma_map(number << 16, 4096, ram.fd)
        told = serve.wait_for("ranges-full")
        with pytest.raises(RemoteError):
            client.dma_map(1 << 30, 4096, ram.fd)
    assert told["message"].startswith("dma0: its client has registered 16 ranges of memory, all that this libvfio-user")
    ram.close()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--fd", "iommu=0"), "--transport libvfio-user: not with --fd,"),
        (("--scenario", "no.toml"), "--transport libvfio-user: not with --scenario,"),
    ],
)
def test_what_it_cannot_promise_is_refused(topology: Path, options: tuple[str, str], problem: str) -> None:
    done = run(topology, *OPTIONS, *options)
    assert done.returncode == 2
    assert problem in done.stderr


def test_without_a_library_it_ends_with_status_3_and_one_line(
    topology: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "LIBVFIO_USER", "/no/such.so")
    done = run(topology, *OPTIONS, "--socket-dir", str(folder))
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "libvfio-user /no/such.so: LIBVFIO_USER names no file; build one: pviommu build-libvfio-user" in done.stderr


def test_a_path_that_is_too_long_for_a_socket_ends_with_status_3(topology: Path, library: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="x" * 100) as folder:
        done = run(topology, *OPTIONS, "--socket-dir", folder)
    assert done.returncode == 3
    assert "the socket's path" in done.stderr
    assert "bytes, not 1 to 107" in done.stderr


def test_a_path_that_is_taken_ends_with_status_3_and_is_named(topology: Path, folder: Path, library: Path) -> None:
    (folder / "dma1.sock").touch()
    done = run(topology, *OPTIONS, "--socket-dir", str(folder))
    assert done.returncode == 3
    assert f"cannot listen on {folder}/dma1.sock: Address already in use" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["dma1.sock"]


def test_two_guests_one_after_the_other(serve: Serve) -> None:
    for _ in range(2):
        with Guest(serve.folder, "dma0", "dma1") as guest:
            assert guest.start().attach("dma0") > 0
        serve.wait_for("disconnected")
