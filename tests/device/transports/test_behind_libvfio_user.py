"""Functions behind libvfio-user in the loop of one process: who has a turn when."""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from libvfio_user import Library
from pviommu import resources
from pviommu.counters import Counters
from pviommu.host.loop import Loop
from pviommu.host.server import Server
from pviommu.inputs import LiveInputs
from pviommu.lab import libvfio_user as building
from pviommu.lab.progress import Progress
from pviommu.machine import Machine
from pviommu.pci.function import Environment
from pviommu.topology import load
from pviommu.transports.behind_libvfio_user import LibvfioUser
from vfio_user import Steps
from vfio_user.messages import Command, Header, RegionAccess

REGISTERS = 0
MOST_STEPS = 1000


class Served:
    """The machine of the lab, and its clients, whose requests and replies wait in their sockets."""

    def __init__(self, folder: Path) -> None:
        library = Library(building.build(Progress(io.StringIO(), building.STEPS)))
        self._inputs = LiveInputs()
        topology = load(resources.qemu_configs() / "lab.toml")
        self._machine = Machine.build(topology, Environment(self._inputs, Counters()))
        self.functions = {function.name: function for function in self._machine.functions()}

        def serve(loop: Loop) -> LibvfioUser:
            made = LibvfioUser(loop, library)
            for name, function in self.functions.items():
                made.serve(folder / f"{name}.sock", function)
            return made

        self.server = Server(self._machine, {}, self._inputs, transport=serve)
        self.clients = {name: self._connect(folder / f"{name}.sock") for name in self.functions}

    def _connect(self, path: Path) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        client.send(Header(1, Command.VERSION, 20, 0, 0).pack() + struct.pack("<HH", 0, 0))
        self.server.turn()
        assert client.recv(4096)
        client.setblocking(False)
        return client

    def read(self, name: str) -> None:
        self._send(name, Command.REGION_READ, RegionAccess(0, REGISTERS, 4).pack())

    def write(self, name: str) -> None:
        self._send(name, Command.REGION_WRITE, RegionAccess(0x20, REGISTERS, 4).pack() + bytes(4))

    def _send(self, name: str, command: Command, payload: bytes) -> None:
        self.clients[name].send(Header(2, command, 16 + len(payload), 0, 0).pack() + payload)

    def is_answered(self, name: str) -> bool:
        """Whether there is a reply, which is taken."""
        with contextlib.suppress(BlockingIOError):
            return bool(self.clients[name].recv(4096))
        return False

    def close(self) -> None:
        for client in self.clients.values():
            client.close()
        self.server.close()
        self._machine.close()


@pytest.fixture
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="pviommu-") as folder, contextlib.closing(Served(Path(folder))) as made:
        yield made


def long_write(
    served: Served, name: str, other: str, monkeypatch: pytest.MonkeyPatch, *, ask: bool = True
) -> list[bool]:
    """Have a write to the registers of ``name`` take so many steps until the client of ``other``, which asks for
    something meanwhile, has its reply. What is returned gets whether it had.
    """
    seen: list[bool] = []

    def write(_index: int, _offset: int, _data: bytes) -> Steps:
        if ask:
            served.read(other)
        for _ in range(MOST_STEPS):
            if served.is_answered(other):
                seen.append(True)
                return
            yield
        seen.append(False)

    monkeypatch.setattr(served.functions[name], "region_write", write)
    return seen


def test_other_functions_have_their_turn_during_a_write_that_takes_long(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = long_write(served, "iommu", "dma0", monkeypatch)
    served.write("iommu")
    served.server.turn()
    assert seen == [True]
    assert served.is_answered("iommu")


def test_a_write_that_takes_long_may_come_during_another(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    outer = long_write(served, "iommu", "dma0", monkeypatch, ask=False)
    inner = long_write(served, "dma0", "dma1", monkeypatch)
    started = served.functions["iommu"].region_write

    def write(index: int, offset: int, data: bytes) -> Steps | None:
        served.write("dma0")
        return started(index, offset, data)

    monkeypatch.setattr(served.functions["iommu"], "region_write", write)
    served.write("iommu")
    served.server.turn()
    assert (inner, outer) == ([True], [True])
    assert served.is_answered("iommu")


def test_a_function_in_the_middle_of_a_request_is_asked_for_no_other(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = long_write(served, "iommu", "dma0", monkeypatch)
    served.write("iommu")
    served.read("iommu")  # waits behind it
    served.server.turn()
    served.server.turn()
    assert seen == [True]
    replies = served.clients["iommu"].recv(4096)
    assert [Header.unpack(replies, place).command for place in (0, 32)] == [Command.REGION_WRITE, Command.REGION_READ]


def test_a_client_may_go_while_a_write_of_another_takes_long(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(_index: int, _offset: int, _data: bytes) -> Steps:
        served.clients["dma0"].close()
        for _ in range(MOST_STEPS):
            yield

    monkeypatch.setattr(served.functions["iommu"], "region_write", write)
    served.write("iommu")
    served.server.turn()
    assert served.is_answered("iommu")
    assert set(served.server.transport.clients()) == {"iommu", "dma1"}
