"""The command: a few ranges on a real server, and bars from figures made up here."""

from __future__ import annotations

import argparse
import io
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pviommu.bench import maps
from pviommu.bench.maps import LeanClient, Measured, judge
from pviommu.lab.problems import RunError
from vfio_user import transport

MAPPED = struct.pack("<HHIII", 0, 2, 16, 1, 0)
"""reply to a DMA_MAP"""


def run(*options: str) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    maps.add_arguments(parser)
    out = io.StringIO()
    return maps.main(parser.parse_args(["--core", "python", *options]), out=out), out.getvalue()


def test_everything_is_measured_against_a_server(tmp_path: Path) -> None:
    target = tmp_path / "maps.json"
    status, shown = run("--ranges", "200", "--json", str(target))
    assert status == 0
    document = json.loads(target.read_text())
    [core] = document["cores"]
    assert (core["core"], core["ranges"]) == ("python", 200)
    times = ("mapping", "mapping_server", "pipelined", "pipelined_server", "unmapping", "unmapping_server", "together")
    assert min(core[name] for name in times) > 0
    assert set(document["blocks"]) == {"maps", "maps-python-bars"}
    assert "all maps" in shown


@pytest.mark.parametrize("ranges", ["63", "65536"])
def test_more_ranges_than_there_can_be_end_with_status_2(capsys: pytest.CaptureFixture[str], ranges: str) -> None:
    assert run("--ranges", ranges)[0] == 2
    assert f"--ranges {ranges}: give 64 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ranges", "seconds", "grown", "words"),
    [
        (65535, 9.9, 1024 * 65535, ["met", "NOT MET", "met"]),
        (65535, 10.1, 1025 * 65535, ["NOT MET", "met", "NOT MET"]),
        (65534, 99.0, 0, ["reported", "reported", "reported"]),
    ],
)
def test_bars_are_judged_with_all_ranges_only(ranges: int, seconds: float, grown: int, words: list[str]) -> None:
    found = Measured("python", ranges, seconds, 1, 20 - seconds, 1, 1, 1, 1, grown)
    assert [one.word for one in judge(found)] == words


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's end of a connection, and the server's."""
    client, server = socket.socketpair()
    with client, server:
        yield client, server


def test_a_map_is_one_message_with_its_descriptor(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, server = ends
    server.send(MAPPED)
    LeanClient(ours, ours.fileno()).map(3)
    received = transport.receive(server)
    assert received is not None
    data, [fd] = received
    os.close(fd)
    assert data == struct.pack("<HHIIIIIQQQ", 0, 2, 48, 0, 0, 32, 3, 0x3000, 0x3000, 0x1000)


def test_an_unmap_takes_several_pages_at_once(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, server = ends
    request = struct.pack("<HHIIIIIQQ", 0, 3, 40, 0, 0, 24, 0, 0x3000, 0x2000)
    server.send(struct.pack("<HHIII", 0, 3, 40, 1, 0) + request[16:])
    LeanClient(ours, 0).unmap(3, 2)
    assert server.recv(100) == request


def test_pipelined_maps_are_all_sent_before_a_reply_is_read(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, server = ends
    server.settimeout(10)
    replies = MAPPED * 64
    seen: list[int] = []

    def answer() -> None:
        seen.extend(len(server.recvmsg(48)[0]) for _ in range(64))
        server.send(replies[:500])
        server.send(replies[500:])

    thread = threading.Thread(target=answer)
    thread.start()
    LeanClient(ours, 0).map_pipelined(range(64))
    thread.join()
    assert seen == [48] * 64


def test_a_refusal_ends_the_measurement(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, server = ends
    server.send(MAPPED + struct.pack("<HHIII", 0, 2, 16, 0x21, 28))
    with pytest.raises(RunError, match="No space left on device"):
        LeanClient(ours, 0).map_pipelined([0, 1])


def test_a_server_that_goes_ends_the_measurement(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, server = ends
    server.shutdown(socket.SHUT_WR)
    with pytest.raises(RunError, match="the server hung up"):
        LeanClient(ours, 0).map(0)
