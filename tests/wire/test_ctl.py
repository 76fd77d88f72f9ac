"""The control socket of a server process, with the clients that it is for and with others."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError, QMPClient

from pviommu.bench.wire_guest import processor_time_ns
from pviommu.control.client import Client
from pviommu.control.description import CommandError
from pviommu.exit_status import ExitStatus
from pviommu.lab.faults import Spans, ask
from pviommu_abi.dma_test import DescriptorStatus, DmaOp
from pviommu_abi.slots import OpClass
from pviommu_abi.vendor import Batch, MapOp, VendorOp

from .. import forking
from .guest import PATIENCE_S, Guest, Serve, environment, run, spin_until

RUNS = 1 << 15


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "ctl"


@pytest.fixture
def serve(folder: Path, topology: Path, path: Path) -> Iterator[Serve]:
    with Serve(folder, topology, "--ctl", str(path), "--history", "4096") as process:
        yield process


@pytest.fixture
def client(serve: Serve, path: Path) -> Iterator[Client]:
    with Client(path, PATIENCE_S) as connected:
        yield connected


def ctl(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``pviommu ctl`` as a user starts it."""
    return forking.run(["ctl", *arguments], environment() | {"PVIOMMU_CTL": str(path)}, 2 * PATIENCE_S)


def refused_write(guest: Guest, iova: int, name: str = "dma0") -> None:
    done = guest.engines[name].run(DmaOp.FILL, 16, dst=iova)
    assert done.status == DescriptorStatus.FAULT


def test_the_package_of_qemu_talks_to_it(serve: Serve, path: Path, guest: Guest) -> None:
    async def talk() -> None:
        qmp = QMPClient("pviommu")
        await qmp.connect(str(path))
        assert qmp.greeting is not None
        assert str(qmp.greeting.QMP.version["package"]).startswith("pviommu ")
        status = await qmp.execute("status")
        assert [each["name"] for each in status["functions"]] == ["iommu", "dma0", "dma1"]  # type: ignore[index]
        commands = await qmp.execute("query-commands")
        assert {"name": "explain"} in commands  # type: ignore[operator]
        with pytest.raises(ExecuteError, match="there is no context 9") as error:
            await qmp.execute("dump", {"context": 9})
        assert error.value.error.error.class_ == "DeviceNotFound"
        with qmp.listener("FAULT") as faults:
            refused_write(guest, 0xABC000)
            event = await asyncio.wait_for(faults.get(), PATIENCE_S)
        assert event["data"]["iova"] == 0xABC000  # type: ignore[index]
        with qmp.listener("SHUTDOWN") as ends:
            await qmp.execute("quit")
            await asyncio.wait_for(ends.get(), PATIENCE_S)
        with contextlib.suppress(EOFError):  # that the server hung up
            await qmp.disconnect()

    guest.attach("dma0")
    asyncio.run(talk())
    assert serve.process.wait(PATIENCE_S) == 0
    assert not path.exists()


def test_a_use_after_unmap_is_explained_from_the_command_line(serve: Serve, path: Path, guest: Guest) -> None:
    ctx = guest.attach("dma0")
    assert guest.iommu.map(ctx, 0x10, 0x100, 2)[0] == 0
    assert guest.engines["dma0"].run(DmaOp.FILL, 16, dst=0x10000).status == DescriptorStatus.DONE
    assert guest.iommu.unmap(ctx, 0x10, 1)[0] == 0
    refused_write(guest, 0x10010)

    said = ctl(path, "explain", "0x10010", "--stream", "1")
    assert said.returncode == 0, said.stderr
    assert f"use after unmap: context {ctx} had it until " in said.stdout
    assert "unmap of 1 pages at 0x10000 (operation " in said.stdout
    as_json = json.loads(ctl(path, "--json", "explain", "0x10010", "--context", str(ctx)).stdout)
    assert (as_json["cause"], as_json["fault"]["stream"]) == ("unmapped", 1)
    assert [each["operation"] for each in as_json["operations"]] == ["unmap", "map"]
    assert all(each["ring"] == 0 for each in as_json["operations"])
    logged = serve.wait_for("explained")
    assert (logged["cause"], logged["iova"]) == ("unmapped", 0x10010)


def test_a_dump_of_many_areas_is_whole(client: Client, path: Path, guest: Guest) -> None:
    ctx = guest.iommu.alloc()
    for place in range(600):
        assert guest.iommu.map(ctx, 2 * place, place, 1)[0] == 0

    lines = ctl(path, "dump", str(ctx)).stdout.splitlines()
    dfns = [int(line.split()[0], 16) for line in lines if line.startswith("  0x")]
    assert dfns == [2 * place for place in range(600)]
    said = client.call("dump", {"context": ctx, "limit": 10})
    assert (len(said["areas"]), said["next"]) == (10, 20)


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("dump", "7"), 1, "pviommu ctl: there is no context 7\n"),
        (("dump", "page"), 2, "page: must be a number, such as 4096 or 0x1000"),
        (("trace", "maybe"), 2, "invalid choice: 'maybe'"),
        (("--socket", "/nowhere/ctl", "status"), 3, "pviommu ctl: /nowhere/ctl: No such file or directory\n"),
    ],
)
def test_what_goes_wrong_has_a_status_and_a_line(
    serve: Serve, path: Path, arguments: tuple[str, ...], status: int, text: str
) -> None:
    said = ctl(path, *arguments)

    assert said.returncode == status
    assert text in said.stderr
    assert said.stdout == ""


def test_trace_logs_messages_at_run_time(serve: Serve, client: Client, guest: Guest) -> None:
    guest.iommu.read("STATUS")
    client.call("trace", {"state": "on"})
    for _ in range(30):
        guest.iommu.read("STATUS")
    client.call("trace", {"state": "off"})
    guest.iommu.read("STATUS")
    serve.stop()

    traced = [line for line in serve.lines if line["level"] == "debug"]
    assert len(traced) == 60  # a request and a reply each; nothing is summed up
    assert "REGION_READ" in traced[0]["message"]


def test_a_reset_of_the_iommu_takes_its_contexts(client: Client, guest: Guest) -> None:
    guest.attach("dma0")
    client.call("reset", {"function": "iommu"})

    assert client.call("status")["contexts"] == 0
    assert guest.iommu.read("RING_STATUS") == 0


def test_statistics_count_what_the_guest_did(client: Client, guest: Guest) -> None:
    ctx = guest.iommu.alloc()
    guest.iommu.map(ctx, 0x10, 0x100, 3)

    assert client.call("statistics")["statistics"]["pages_mapped"] == 3
    assert "pviommu_pages_mapped_total 3\n" in client.call("statistics", {"format": "prometheus"})["text"]


def test_another_server_cannot_have_the_same_socket(serve: Serve, path: Path, topology: Path, tmp_path: Path) -> None:
    said = run(topology, "--socket-dir", tmp_path, "--ctl", path)

    assert said.returncode == 3
    assert f"cannot listen on {path}: another server listens on this socket" in said.stderr


def test_the_lab_hears_of_every_fault_with_its_explanation(serve: Serve, path: Path, guest: Guest) -> None:
    spans = Spans()
    guest.attach("dma0")
    refused_write(guest, 0x1000)
    spans.ended("one that passes", failed=False)
    refused_write(guest, 0x2000)
    spans.ended("one that fails", failed=True)
    refused_write(guest, 0x3000)

    found = spans.unexpected(ask(path).values())
    assert [(each["test"], each["iova"]) for each in found.faults] == [("one that fails", 0x2000), (None, 0x3000)]
    assert [each["explanation"]["cause"] for each in found.faults] == ["never-mapped", "never-mapped"]


def test_the_socket_has_the_mode_that_was_asked_for(folder: Path, topology: Path) -> None:
    with Serve(folder, topology, "--ctl", str(folder / "ctl"), "--ctl-mode", "660"):
        assert (folder / "ctl").stat().st_mode & 0o777 == 0o660
    assert not (folder / "ctl").exists()


def test_a_client_of_each_function_is_told(client: Client, guest: Guest) -> None:
    clients = [each["client"] for each in client.call("status")["functions"]]

    assert clients == [f"process {os.getpid()} of user {os.getuid()}"] * 3


def test_a_machine_goes_on_in_another_process(folder: Path, topology: Path, client: Client, serve: Serve) -> None:
    second = folder / "second"
    second.mkdir()
    with Guest(folder, "dma0", "dma1") as guest:
        ctx = guest.start().attach("dma0")
        assert guest.iommu.map(ctx, 0x10, 0x100, 2)[0] == 0
        assert client.call("snapshot", {"file": str(folder / "saved")})["bytes"] > 1000
        serve.stop()
        options = ("--ctl", str(second / "ctl"), "--history", "16")
        with Serve(second, topology, *options) as other, Guest(second, "dma0", "dma1", ram=guest.ram) as again:
            with Client(second / "ctl", PATIENCE_S) as control:
                control.call("restore", {"file": str(folder / "saved")})
                assert [each["pages"] for each in control.call("contexts")["contexts"]] == [0, 2]
                with pytest.raises(CommandError, match="not a snapshot of pviommu"):
                    control.call("restore", {"file": str(topology)})
            again.iommu.producer = guest.iommu.producer
            assert again.iommu.usage().mapped_pages == 2
            assert other.process.poll() is None


# -- clients that it is not for ---------------------------------------------------------------------------------------


def longest_wait(guest: Guest, serve: Serve) -> float:
    """The most that the server does while a guest waits for a slot, in seconds of its processor time, in the best of a
    few spells. Others use this host, too, so that the guest's own clock would tell of them.
    """
    return min(_longest_wait(guest, serve) for _ in range(4))


def _longest_wait(guest: Guest, serve: Serve) -> float:
    longest, end = 0, time.monotonic() + 0.15
    while time.monotonic() < end:
        began = processor_time_ns(serve.process.pid)
        guest.iommu.usage()
        longest = max(longest, processor_time_ns(serve.process.pid) - began)
    return longest / 1e9


class Hostile:
    """Clients of the control socket that do not care for its rules."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self.sockets: list[socket.socket] = []

    def connect(self) -> socket.socket:
        self.sockets.append(sock := socket.socket(socket.AF_UNIX))
        sock.connect(self._path)
        sock.setblocking(False)
        return sock

    def push(self, sock: socket.socket, data: bytes) -> None:
        """Send, as much as is taken within a moment."""
        deadline = time.monotonic() + 0.5
        view = memoryview(data)
        while view and time.monotonic() < deadline:
            try:
                view = view[sock.send(view) :]
            except BlockingIOError:
                time.sleep(0.001)
            except OSError:
                return

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


CAPABILITIES = b'{"execute": "qmp_capabilities"}\n'


@pytest.fixture
def hostile(serve: Serve, path: Path) -> Iterator[Hostile]:
    clients = Hostile(path)
    yield clients
    clients.close()


@pytest.mark.parametrize(
    "data",
    [
        os.urandom(1 << 16),
        b'{"execute": "stat',
        b"x" * (10 << 20),
        b"[" * (1 << 20),
        b'{"execute": "version"}' * 50_000,
        CAPABILITIES + b'{"execute": "commands"}' * 50_000,
        CAPABILITIES + b'{"execute": "nothing", "arguments": {"a": [[[[[[{}]]]]]]}}\n' * 20_000,
        b"\n" * (1 << 20),
        b"\xff" * (1 << 20),
    ],
    ids=[
        "garbage",
        "half-a-line",
        "10-MiB-line",
        "deep",
        "unnegotiated",
        "never-reads",
        "errors",
        "newlines",
        "resets",
    ],
)
def test_others_are_served_whatever_a_client_sends(
    serve: Serve, path: Path, guest: Guest, hostile: Hostile, data: bytes
) -> None:
    before = serve.resident()
    for _ in range(3):
        hostile.push(hostile.connect(), data)

    assert longest_wait(guest, serve) < 0.03
    with Client(path, PATIENCE_S) as client:
        assert client.call("status")["contexts"] == 0
    assert serve.resident() - before < 16 << 20
    assert serve.process.poll() is None


def test_a_hundred_connections_leave_room_for_one_that_asks(
    serve: Serve, path: Path, guest: Guest, hostile: Hostile
) -> None:
    before = serve.descriptors()
    for _ in range(100):
        hostile.connect()

    assert longest_wait(guest, serve) < 0.03
    with Client(path, PATIENCE_S) as client:
        assert client.call("version")["abi"] == 1
    assert serve.descriptors() - before <= 20


def test_a_dump_of_very_many_runs_delays_nobody(folder: Path, path: Path, hostile: Hostile, serve: Serve) -> None:
    with Guest(folder, "dma0") as guest:
        guest.start()
        ctx = guest.iommu.alloc()
        elements = b"".join(MapOp(dfn, dfn % 4096, 3, 0).pack() for dfn in range(RUNS))  # a map call each
        guest.ram.bytes[: len(elements)] = elements
        assert guest.iommu.call(Batch(0, RUNS, 0, ctx).pack(), OpClass.VENDOR, VendorOp.BATCH)[0] == 0
        before = serve.resident()
        sock = hostile.connect()
        hostile.push(sock, CAPABILITIES)
        command = json.dumps({"execute": "dump", "arguments": {"context": ctx, "limit": 1024}}).encode()
        for _ in range(20):
            hostile.push(sock, command * 100)

        assert longest_wait(guest, serve) < 0.03
        with Client(path, PATIENCE_S) as client:
            with pytest.raises(CommandError, match="must be an integer from 1 to 1024"):
                client.call("dump", {"context": ctx, "limit": 1 << 20})
            assert sum(1 for _ in _areas(client, ctx)) == RUNS
        assert serve.resident() - before < 16 << 20


def _areas(client: Client, ctx: int) -> Iterator[dict[str, Any]]:
    first = 0
    while first is not None:
        said = client.call("dump", {"context": ctx, "first": first, "limit": 1024})
        yield from said["areas"]
        first = said["next"]


def scenario_file(folder: Path, text: str) -> str:
    file = folder / "scenario.toml"
    file.write_text(f"version = 1\n{text}")
    return str(file)


MAPS_FAIL = """
[[rule]]
id = "no-memory"
on = "op.map_pages.pre"
schedule = { times = 1 }
do = { fail = "ENOMEM" }
"""


def test_rules_are_loaded_listed_and_taken_away(
    folder: Path, path: Path, serve: Serve, client: Client, guest: Guest
) -> None:
    ctx = guest.iommu.alloc()
    assert client.call("rules")["rules"] == []

    assert ctl(path, "rules-load", scenario_file(folder, MAPS_FAIL)).stdout == "loaded  1\n"
    assert [guest.iommu.map(ctx, 0x10, 0x100, 1)[0] for _ in range(2)] == [-errno.ENOMEM, 0]
    [rule] = client.call("rules")["rules"]
    assert (rule["id"], rule["class"], rule["passed"], rule["fired"]) == ("no-memory", "conforming", 2, 1)
    assert client.call("rules-unload")["ok"]
    assert client.call("rules")["rules"] == []
    assert guest.iommu.unmap(ctx, 0x10, 1)[0] == 0
    assert guest.iommu.map(ctx, 0x10, 0x100, 1)[0] == 0
    assert serve.stop() == 0


def test_events_of_rules_that_came_later_go_to_their_file(folder: Path, topology: Path, path: Path) -> None:
    events = folder / "events.jsonl"
    with Serve(folder, topology, "--ctl", str(path), "--events", str(events)):
        with Client(path, PATIENCE_S) as client, Guest(folder) as guest:
            ctx = guest.start().iommu.alloc()
            assert ctl(path, "rules-load", scenario_file(folder, MAPS_FAIL)).returncode == 0
            assert guest.iommu.map(ctx, 0x10, 0x100, 1)[0] == -errno.ENOMEM
            assert client.call("rules-unload")["events"] == 1
        [event] = map(json.loads, events.read_text().splitlines())
    assert (event["rule"], event["after"]) == ("no-memory", {"result": "ENOMEM"})


def test_rules_that_did_not_do_what_was_expected_are_the_status_of_the_server(
    folder: Path, path: Path, serve: Serve
) -> None:
    assert ctl(path, "rules-load", scenario_file(folder, MAPS_FAIL)).returncode == 0

    assert serve.stop() == ExitStatus.UNEXPECTED


def test_rules_that_are_taken_away_before_the_end_count_as_they_were_then(
    folder: Path, topology: Path, path: Path
) -> None:
    scenario = scenario_file(folder, MAPS_FAIL)
    with Serve(folder, topology, "--ctl", str(path), "--scenario", scenario) as serve:
        assert ctl(path, "rules-unload").returncode == 0
        with Guest(folder) as guest:  # what the rule would have met comes too late
            ctx = guest.start().iommu.alloc()
            assert guest.iommu.map(ctx, 0x10, 0x100, 1) == (0, 1)
        assert serve.stop() == ExitStatus.UNEXPECTED


SUSPENDED = """
[[rule]]
id = "late"
on = "op.map_pages.pre"
schedule = { times = 1 }
do = { suspend = "late" }
expect = { fired = "0.." }
"""


@pytest.mark.parametrize("command", [("resume", "late"), ("rules-unload",)], ids=" ".join)
def test_what_a_rule_suspended_goes_on_when_it_is_told_or_the_rule_goes(
    folder: Path, path: Path, client: Client, guest: Guest, command: tuple[str, ...]
) -> None:
    ctx = guest.iommu.alloc()
    assert ctl(path, "rules-load", scenario_file(folder, SUSPENDED)).returncode == 0
    position = guest.iommu.submit(guest.iommu.map_payload(ctx, 0x10, 0x100, 1))
    spin_until(lambda: client.call("rules")["suspended"] == ["late"], "nothing is suspended")
    assert ctl(path, *command).returncode == 0

    assert guest.iommu.wait(position)[0] == 0
    assert client.call("rules")["suspended"] == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"scenario": {"rule": [{"id": "a", "on": "op.map.pre"}]}}, "scenario: rule[0].on: rule a: no probe is"),
        (
            {"scenario": {"rule": [{"id": "a", "on": "reset.apply", "do": {"drop": False}}]}},
            "scenario: rule[0].do.drop = false",
        ),
        (
            {
                "scenario": {
                    "rule": [{"id": "a", "on": "reset.apply"}, {"id": "b", "on": "reset.pre", "where": {"x": 1}}]
                }
            },
            "scenario: rule[1].where.x: rule b: where has no key x here, but function",
        ),
        ({"scenario": {"rule": [{"id": "a", "on": "reset.apply", "schedule": 2}]}}, "must be a table"),
        ({"scenario": {"rules": []}}, "unknown key rules"),
        ({"scenario": {"rule": []}}, "scenario: it has no [[rule]]: nothing would go wrong"),
        ({"scenario": 7}, "rules-load: scenario 7: must be an object"),
        ({}, "rules-load: scenario is missing: as in docs/faults.md"),
    ],
)
def test_a_wrong_scenario_is_told_and_those_that_are_loaded_stay(
    folder: Path, path: Path, client: Client, arguments: dict[str, Any], text: str
) -> None:
    assert ctl(path, "rules-load", scenario_file(folder, SUSPENDED)).returncode == 0

    with pytest.raises(CommandError) as caught:
        client.call("rules-load", arguments)
    assert text in str(caught.value)
    assert [rule["id"] for rule in client.call("rules")["rules"]] == ["late"]


def test_a_tag_under_which_nothing_waits_is_told(client: Client) -> None:
    with pytest.raises(CommandError, match="nothing is suspended with tag 'early'; there are none"):
        client.call("resume", {"tag": "early"})


def test_a_file_that_is_no_scenario_is_told_before_anybody_is_asked(folder: Path, path: Path, serve: Serve) -> None:
    wrong = '[[rule]]\nid = "a"\non = "reset.pre"\n'
    for text, said in (
        ("rule = [", "scenario.toml: "),
        (None, "/nowhere: No such file"),
        (f"{wrong}text = 2026-11-29", "scenario.toml: line 5: rule[0].text = 2026-11-29: must be a string"),
        (
            f"{wrong}schedule = {{ probability = nan }}",
            "line 5: rule[0].schedule.probability = nan: must be more than 0",
        ),
    ):
        name = "/nowhere" if text is None else scenario_file(folder, text)
        done = ctl(path, "rules-load", name)
        assert done.returncode == 2
        assert said in done.stderr
