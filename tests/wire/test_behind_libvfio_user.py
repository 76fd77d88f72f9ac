"""What is different behind the C library libvfio-user. What is not, the tests of other files show: differences.py."""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
from pathlib import Path

import pytest

from pviommu.control.client import Client as Control
from pviommu.control.description import CommandError
from pviommu.transports import LIBRARY, TRANSPORTS
from pviommu.transports.behind_libvfio_user import MOST_RANGES
from pviommu_abi.shared import AddressRange, CapabilityId
from vfio_user import Client, RemoteError

from . import raw
from .differences import BEHIND_BOTH, DIFFERENCES, OWN_ONLY, Difference, table
from .guest import CHECKOUT, Guest, Iommu, Ram, Serve, run
from .raw import Raw

OPTIONS = ("--transport", LIBRARY)


@pytest.fixture(scope="module")
def transport(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", LIBRARY)


@pytest.mark.parametrize("transport", TRANSPORTS, indirect=True)
@pytest.mark.parametrize("each", DIFFERENCES, ids=lambda each: each.what)
def test_where_the_two_answer_differently(transport: str, peer: Raw, ram: Ram, each: Difference) -> None:
    assert each.ask(peer, ram) == (each.theirs if transport == LIBRARY else each.ours)


def test_the_differences_are_documented_and_their_tests_exist() -> None:
    modules = [importlib.import_module(f"{__package__}.{name}") for name in BEHIND_BOTH]
    named = {name.partition("[")[0] for each in DIFFERENCES for name in each.tests} | set(OWN_ONLY)
    assert {name for name in named if not any(hasattr(module, name) for module in modules)} == set()
    assert table() in (CHECKOUT / "docs/libvfio-user.md").read_text(), f"the table there must be:\n{table()}"


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


def test_a_guest_finds_its_memory_in_the_capability_area_once_its_client_is_answered(serve: Serve, ram: Ram) -> None:
    with contextlib.closing(Iommu(serve.folder / "iommu.sock", ram)) as iommu:
        for place in range(1, 50):
            iommu.client.dma_map(place << 30, 4096, ram.fd)
            more = AddressRange(place << 30, (place << 30) + 4095)
            assert iommu.capabilities()[CapabilityId.RAM_RANGES] == [AddressRange(0, ram.size - 1), more]
            iommu.client.dma_unmap(place << 30, 4096)
            assert iommu.capabilities()[CapabilityId.RAM_RANGES] == [AddressRange(0, ram.size - 1)]


def test_a_second_client_waits_until_the_first_has_gone(serve: Serve) -> None:
    path = serve.folder / "dma0.sock"
    with Client.connect(path) as first, Raw(path) as second:
        second.send(raw.VERSION, raw.version(0, 0, None))
        first.config_read(0, 4)
        second.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            second.sock.recv(1)
        first.close()
        second.sock.settimeout(raw.PATIENCE_S)
        assert second.receive().command == raw.VERSION


def test_a_rule_that_is_loaded_later_hangs_up_on_a_client_and_the_next_is_served(folder: Path, topology: Path) -> None:
    rule = {"id": "away", "on": "reset.post", "schedule": {"nth": 1}, "do": {"disconnect": True}}
    with Serve(folder, topology, *OPTIONS, "--ctl", str(folder / "ctl")) as serve:
        with Control(folder / "ctl", 10.0) as control:
            control.call("rules-load", {"scenario": {"version": 1, "rule": [rule]}})
        with Client.connect(serve.folder / "dma0.sock") as client:
            client.reset()
            assert serve.wait_for("disconnected")["function"] == "dma0"
        with Client.connect(serve.folder / "dma0.sock") as client:
            client.reset()


@pytest.mark.parametrize("command", ["snapshot", "restore"])
def test_snapshots_are_refused_since_interrupts_would_be_lost(folder: Path, topology: Path, command: str) -> None:
    with (
        Serve(folder, topology, *OPTIONS, "--ctl", str(folder / "ctl")),
        Control(folder / "ctl", 10.0) as control,
        pytest.raises(CommandError, match="no snapshots here: behind --transport libvfio-user the library keeps"),
    ):
        control.call(command, {"file": str(folder / "saved")})


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
