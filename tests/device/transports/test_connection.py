"""One client behind a socket: how much of what it has sent a look takes, and how its answers are sent."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from pviommu import resources
from pviommu.counters import Counters
from pviommu.guest.memory import GuestRam
from pviommu.inputs import LiveInputs
from pviommu.machine import Machine
from pviommu.pci.function import Environment
from pviommu.topology import load
from pviommu.transports.connection import Connection
from pviommu.transports.peers import peer_of
from vfio_user import Command, transport
from vfio_user.foreign import Closer
from vfio_user.messages import DmaMap, DmaMapFlags, Header

PAGE = 4096
PAGES = 8


class Client:
    """Both ends of a connection to a PV-IOMMU, whose loop is the test."""

    def __init__(self, sock: socket.socket, connection: Connection, ram: GuestRam) -> None:
        self.sock = sock
        self.connection = connection
        self.ram = ram

    def send(self, command: Command, payload: bytes, *fds: int) -> None:
        header = Header(0, command, Header.SIZE + len(payload), 0, 0)
        transport.send(self.sock, header.pack() + payload, fds)

    def map(self, place: int) -> None:
        flags = DmaMapFlags.READ | DmaMapFlags.WRITE
        self.send(Command.DMA_MAP, DmaMap(DmaMap.SIZE, flags, place * PAGE, place * PAGE, PAGE).pack(), self.ram.fd)

    def look(self, may_go_on: Callable[[], bool] = lambda: True) -> None:
        self.connection.exchange(select.EPOLLIN, may_go_on)

    def answers(self) -> list[Header]:
        """Those that have come."""
        received = transport.receive(self.sock)
        if received is None:
            return []
        stream, found = received[0], []
        while stream:
            found.append(Header.unpack(stream))
            stream = stream[found[-1].size :]
        return found


@pytest.fixture
def client() -> Iterator[Client]:
    inputs = LiveInputs()
    machine = Machine.build(load(resources.qemu_configs() / "lab.toml"), Environment(inputs, Counters()))
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
    with closing(machine), GuestRam(PAGES * PAGE, PAGE) as ram, ours, theirs:
        connection = Connection(theirs, machine.iommu, inputs, Closer(), peer_of(theirs))
        made = Client(ours, connection, ram)
        made.send(Command.VERSION, b"\0\0\0\0{}\0")
        made.look()
        assert [answer.command for answer in made.answers()] == [Command.VERSION]
        yield made
        connection.session.eof()


def test_ranges_that_are_announced_at_once_are_taken_in_one_look_and_answered_at_once(client: Client) -> None:
    for place in range(PAGES):
        client.map(place)

    client.look()

    answers = client.answers()
    assert [(answer.command, answer.error) for answer in answers] == [(Command.DMA_MAP, 0)] * PAGES
    assert len(list(client.connection.function.memory)) == PAGES


def test_a_look_whose_time_is_over_leaves_the_rest_in_the_socket(client: Client) -> None:
    for place in range(PAGES):
        client.map(place)

    client.look(may_go_on=lambda: False)

    assert len(client.answers()) == 1
    client.look()
    assert len(client.answers()) == PAGES - 1


def test_a_client_that_closes_only_its_own_side_gets_its_answers(client: Client) -> None:
    client.map(0)
    client.map(1)
    client.sock.shutdown(socket.SHUT_WR)

    client.look()

    assert [answer.error for answer in client.answers()] == [0, 0]
