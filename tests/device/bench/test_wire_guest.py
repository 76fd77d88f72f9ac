"""A driver in this process and a server in another."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pviommu import resources
from pviommu.bench.mechanisms import PythonMechanism
from pviommu.bench.wire_guest import BenchServer, WireGuest, capabilities_ns, processor_time_ns
from pviommu.lab.problems import RunError
from pviommu.lab.server import PROGRAM

TOPOLOGY = resources.qemu_configs() / "lab.toml"


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WireGuest]:
    folder = tmp_path_factory.mktemp("s")
    with BenchServer(PROGRAM, TOPOLOGY, folder) as server:
        assert server.start_ns > 0
        with WireGuest(folder) as connected:
            yield connected


@pytest.mark.parametrize("posted", [False, True])
def test_operations_are_carried_out(guest: WireGuest, posted: bool) -> None:
    ring = guest.use(PythonMechanism(), posted=posted)
    assert guest.run(ring, 200, posted=posted) > 0
    assert guest.run(ring, 3000, posted=posted, complete=False) > 0
    assert ring.submitted == 3000
    ring.close()


def test_a_sleeping_server_is_woken_by_a_doorbell(guest: WireGuest) -> None:
    ring = guest.use(PythonMechanism())
    guest.run(ring, 2)
    guest.wait_until_asleep(ring)
    before = guest.doorbells
    guest.run(ring, 3)
    assert guest.doorbells == before + 1
    ring.close()


def test_a_trapped_register_answers(guest: WireGuest) -> None:
    guest.read_register()


def test_what_one_user_left_mapped_does_not_fail_the_next(guest: WireGuest) -> None:
    for _ in range(2):
        ring = guest.use(PythonMechanism())
        guest.run(ring, 1)
        ring.close()


def test_operations_that_fail_are_no_measurement(guest: WireGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    guest.use(PythonMechanism()).close()  # nothing is left mapped
    monkeypatch.setattr("pviommu.bench.wire_guest._DFN", 0xFEE00)  # the window of interrupts
    ring = guest.use(PythonMechanism())
    with pytest.raises(RunError, match="slot 0 of the measurement has result -"):
        guest.run(ring, 1)
    ring.close()


def test_the_time_of_a_process_grows_with_its_work() -> None:
    process = int(Path("/proc/self/stat").read_text().split()[0])
    before = processor_time_ns(process)
    begun = time.process_time_ns()
    while time.process_time_ns() - begun < 1_000_000:
        pass
    assert processor_time_ns(process) - before >= 1_000_000


def test_capabilities_take_time() -> None:
    assert capabilities_ns(PROGRAM, TOPOLOGY) > 0


def test_the_time_that_a_stop_takes_is_measured(tmp_path: Path) -> None:
    with BenchServer(PROGRAM, TOPOLOGY, tmp_path) as server:
        assert 0 < server.stop_ns(20) < 20e9


def test_a_server_that_does_not_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        with BenchServer(PROGRAM, tmp_path / "none.toml", tmp_path):
            pass
    assert "none.toml" in caught.value.detail
    with pytest.raises(RunError, match="does not print its capabilities"):
        capabilities_ns((sys.executable, "-c", "raise SystemExit(3)"), TOPOLOGY)
