"""A network card with a tap in a namespace of this host: files through TCP between host and guest, both ways."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Command

LIMIT = 180
BYTES = 8 << 20
TOPOLOGY = """\
[[endpoint]]
name = "net0"
kind = "virtio-net"
stream = 1
link = "tap"
tap = "tap0"
netns = "{name}"
address = "10.9.1.1/24"
mtu = 9000
packed = true
"""
PROGRAM = """\
#!/bin/sh
[ -d /sys/module/virtio_net ] || modprobe virtio_net || exit 1
pviommu-takeover || exit 1
for card in /sys/class/net/*; do
	case "$(cat "$card/address")" in 02:70:76:69:*) card=${card##*/} && break ;; esac
done
ip address replace 10.9.1.2/24 dev "$card" && ip link set "$card" up || exit 1
ping -c 10 -i 0.05 -W 5 10.9.1.1 >/dev/null && echo "ok   pings come back"
ping -c 3 -s 8000 -W 5 10.9.1.1 >/dev/null && echo "ok   jumbo pings come back"
nc -w 60 10.9.1.1 5001 </dev/null >/tmp/file && nc -w 60 10.9.1.1 5002 </tmp/file && echo "ok   the file is on its way"
"""


@pytest.fixture
def name() -> Iterator[str]:
    """The name of a namespace that the server is to make, and to remove."""
    if os.geteuid() != 0 or not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("a tap in a namespace needs root and /dev/net/tun")
    if subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this host allows no network namespaces")
    name = f"pviommu-vm-{os.getpid()}"
    yield name
    assert name not in os.listdir("/run/netns")


class Peer(threading.Thread):
    """Waits for the namespace, and is the other end there: it sends a file to who connects first, and takes one from
    who connects then."""

    def __init__(self, name: str, data: bytes) -> None:
        super().__init__(daemon=True)
        self.taken = b""
        self._name, self._data = name, data
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
                guest.sendall(self._data)
            with second.accept()[0] as guest:
                while part := guest.recv(1 << 20):
                    self.taken += part


def test_files_go_between_host_and_guest(command: Command, artefacts: Path, tmp_path: Path, name: str) -> None:
    topology, program = tmp_path / "tap.toml", tmp_path / "tap.sh"
    topology.write_text(TOPOLOGY.format(name=name))
    program.write_text(PROGRAM)
    program.chmod(0o755)
    data = os.urandom(BYTES)
    peer = Peer(name, data)
    peer.start()

    run = command.run(artefacts / "tap", LIMIT, "--topology", str(topology), "--run", str(program))

    peer.ended.set()
    peer.join(30)
    said = (run.folder / "program.out").read_text()
    assert run.status == 0, said + run.output[-2000:]
    assert said.count("ok   ") == 3, said
    assert hashlib.sha256(peer.taken).digest() == hashlib.sha256(data).digest()
    counts = run.results["counts"]
    assert counts["faults"] == 0
    assert counts["dma_bytes"] > 2 * BYTES
    assert counts["pages_mapped"] > 2 * BYTES >> 12
