"""Network cards in a real guest, with the kernel's own driver: two that are joined and, for root, one with a tap in a
namespace of this host. One machine shows all of it."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import subprocess
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Command, LabRun

LIMIT = 400
"""Seconds; it takes a tenth of that on an idle machine."""
CHECKS = 35
"""of ``net.sh``, without that of the tap"""
FILE_BYTES = 2 << 20
TAP = """
[[endpoint]]
name = "net2"
kind = "virtio-net"
stream = 3
link = "tap"
tap = "tap0"
netns = "{name}"
address = "10.9.1.1/24"
mac = "52:54:00:00:00:03"
mtu = 9000
packed = true
"""
_ENHANCED_PACKET, _FLAGS = 6, 2
"""A block, and an option of it, of pcapng."""
DIRECTIONS = {1: "in", 2: "out"}
Frame = tuple[str, int, int]
"""Direction, length, CRC."""


class Peer(threading.Thread):
    """Waits for the namespace, and is the other end there: it sends a file to who connects first, and takes one from
    who connects then."""

    def __init__(self, name: str, data: bytes) -> None:
        super().__init__(daemon=True)
        self.taken = b""
        self._name, self.data = name, data
        self.ended = threading.Event()

    def run(self) -> None:
        from pyroute2 import netns

        while self._name not in netns.listnetns():
            if self.ended.wait(0.1):
                return
        netns.setns(self._name)
        with socket.create_server(("", 5001)) as first, socket.create_server(("", 5002)) as second:
            for server in (first, second):
                server.settimeout(LIMIT)
            with first.accept()[0] as guest:
                guest.sendall(self.data)
            with second.accept()[0] as guest:
                while part := guest.recv(1 << 20):
                    self.taken += part


@dataclass(frozen=True)
class Outcome:
    """One machine, and what was around it."""

    run: LabRun
    pcap: Path
    no_tap: str
    """why there was none; empty if there was one"""
    sent: bytes
    taken: bytes
    """by the host through its tap"""

    @property
    def said(self) -> str:
        """What the program wrote."""
        return (self.run.folder / "program.out").read_text()


def _no_tap() -> str:
    if os.geteuid() != 0 or not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "a tap in a namespace needs root and /dev/net/tun"
    if subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, check=False).returncode:
        return "this host allows no network namespaces"
    return ""


@pytest.fixture(scope="module")
def outcome(
    command: Command, artefacts: Path, checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Outcome]:
    folder = tmp_path_factory.mktemp("net")
    name, no_tap = f"pviommu-vm-{os.getpid()}", _no_tap()
    topology, pcap = folder / "net.toml", folder / "net0.pcapng"
    joined = (checkout / "qemu-configs/net.toml").read_text()
    marked = joined.replace('name = "net0"\n', f'name = "net0"\npcap = "{pcap}"\n', 1)
    topology.write_text(marked + ("" if no_tap else TAP.format(name=name)))
    programs = checkout / "guest-tools/programs"
    peer = Peer(name, os.urandom(FILE_BYTES))
    if not no_tap:
        peer.start()

    options = ("--topology", str(topology), "--vcpus", "2", "--scenario", str(programs / "net-faults.toml"))
    run = command.run(artefacts / "net", LIMIT, *options, "--run", str(programs / "net.sh"))

    peer.ended.set()
    if not no_tap:
        peer.join(30)
    yield Outcome(run, pcap, no_tap, peer.data, peer.taken)
    assert no_tap or name not in os.listdir("/run/netns")


def test_the_kernels_own_driver_does_with_two_joined_cards_all_that_it_can(outcome: Outcome) -> None:
    run, said = outcome.run, outcome.said

    assert run.status == 0, said + run.output[-2000:] + run.console[-4000:]
    assert (said.count("ok   "), said.count("FAIL")) == (CHECKS + (not outcome.no_tap), 0), said
    counts = run.results["counts"]
    assert counts["faults"] == 4  # those of the rules, and none besides
    assert run.results["scenario"]["verdict"]["ok"]
    assert counts["pages_mapped"] > 4 * (2 << 20 >> 12)  # by sender and receiver of what net.sh sends each way
    assert counts["traps"] < counts["ops"]["map_pages"] / 2  # most packets need no notification


def _captured(path: Path) -> list[Frame]:
    """The frames of a pcapng file."""
    data, found, place = path.read_bytes(), [], 0
    while place < len(data):
        kind, length = struct.unpack_from("<LL", data, place)
        if kind == _ENHANCED_PACKET:
            size = struct.unpack_from("<L", data, place + 20)[0]
            frame = data[place + 28 : place + 28 + size]
            option, _, direction = struct.unpack_from("<HHL", data, place + 28 + (size + 3 & ~3))
            assert option == _FLAGS
            found.append((DIRECTIONS[direction], size, zlib.crc32(frame)))
        place += length
    return found


def test_a_capture_in_the_guest_has_the_frames_of_the_servers_own(outcome: Outcome) -> None:
    lines = [line.split() for line in outcome.said.splitlines() if line.startswith("frame ")]
    in_guest = [(direction, int(length), int(crc, 16)) for _, direction, length, crc in lines]
    in_server = _captured(outcome.pcap)

    assert len(in_guest) >= 5 + 2 * 8, outcome.said  # frames for others, and pings with their answers
    for direction in DIRECTIONS.values():
        guest = Counter(frame for frame in in_guest if frame[0] == direction)
        server = [frame for frame in in_server if frame[0] == direction]
        length = guest.total()
        begins = (place for place, frame in enumerate(server) if frame in guest)
        assert any(Counter(server[place : place + length]) == guest for place in begins), (direction, guest)


def test_files_go_between_host_and_guest_through_a_tap(outcome: Outcome) -> None:
    if outcome.no_tap:
        pytest.skip(outcome.no_tap)

    assert "ok   files go through the tap" in outcome.said, outcome.said
    assert hashlib.sha256(outcome.taken).digest() == hashlib.sha256(outcome.sent).digest()
