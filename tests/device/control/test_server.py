"""Clients of the control socket in the loop, whatever they do."""

import json
import os
import socket

import pytest

from pviommu.control.answers import Answers, Served
from pviommu.control.server import MOST_CLIENTS, Control
from pviommu.control.session import MOST_EVENT_BYTES
from pviommu.host.server import Server
from vfio_user import transport


class Controlled:
    """A server with a control socket, turned by hand."""

    def __init__(self, driver, path):
        self.driver = driver
        self.server = Server(driver.machine, {}, driver.inputs)
        self.listener = transport.listen(path)
        self.path = str(path)
        self.sockets = []
        faults = driver.iommu.keep_history(None)
        answers = Answers(Served(driver.machine, faults, self.server.stop))
        self.control = Control(self.listener, self.server.loop, driver.inputs, answers)

    def turn(self, times=3):
        for _ in range(times):
            self.server.turn()

    def client(self):
        self.sockets.append(sock := socket.socket(socket.AF_UNIX))
        sock.connect(self.path)
        sock.setblocking(False)
        self.turn()
        return sock

    def negotiated(self):
        sock = self.client()
        self.ask(sock, "qmp_capabilities")
        return sock

    def ask(self, sock, name, **arguments):
        sock.send(json.dumps({"execute": name, "arguments": arguments}).encode())
        return self.read(sock)[-1]

    def read(self, sock):
        data = b""
        for _ in range(50):
            self.turn(1)
            try:
                data += sock.recv(1 << 20)
            except BlockingIOError:
                if data.endswith(b"\n"):
                    break
        return [json.loads(line) for line in data.split(b"\r\n") if line]

    def close(self):
        self.control.close()
        self.listener.remove()
        self.server.close()
        for sock in self.sockets:
            sock.close()


@pytest.fixture
def controlled(driver, tmp_path):
    made = Controlled(driver, tmp_path / "ctl")
    yield made
    made.close()


def test_the_socket_is_for_its_user_only(controlled):
    assert os.stat(controlled.path).st_mode & 0o777 == 0o600


def test_a_client_is_greeted_and_served(controlled):
    sock = controlled.client()
    (greeting,) = controlled.read(sock)

    assert "QMP" in greeting
    assert controlled.ask(sock, "qmp_capabilities") == {"return": {}}
    assert controlled.ask(sock, "version")["return"]["abi"] == 1


def test_a_client_that_goes_is_forgotten(controlled):
    sock = controlled.negotiated()
    sock.close()
    controlled.turn()

    assert controlled.control._clients == {}


def test_one_that_never_reads_is_waited_for_with_one_reply(controlled):
    ctx = controlled.driver.alloc()[1]
    for place in range(1024):
        controlled.driver.iommu.engine.map(ctx, 2 * place, place, 1, 3)
    sock = controlled.negotiated()
    command = json.dumps({"execute": "dump", "arguments": {"context": ctx, "limit": 1024}}).encode()
    sent = 0
    for _ in range(2000):
        try:
            sent += sock.send(command)
        except BlockingIOError:
            break
        controlled.turn(1)
    controlled.turn(50)

    (client,) = controlled.control._clients.values()
    assert len(client.session.outgoing) < 200_000
    assert not client.session.is_read
    other = controlled.negotiated()
    assert "return" in controlled.ask(other, "status")


def test_one_too_many_takes_the_place_of_the_oldest_that_said_nothing(controlled):
    good = controlled.negotiated()
    for _ in range(100):
        controlled.client()

    assert len(controlled.control._clients) == MOST_CLIENTS
    assert controlled.ask(good, "version")["return"]["abi"] == 1
    assert controlled.ask(controlled.negotiated(), "version")["return"]["abi"] == 1


def test_one_too_many_is_refused_with_the_reason_if_all_are_in_use(controlled):
    good = [controlled.negotiated() for _ in range(MOST_CLIENTS)]
    one_more = controlled.client()

    assert controlled.read(one_more) == [
        {"error": {"class": "GenericError", "desc": "the control socket has 16 clients already"}}
    ]
    assert one_more.recv(1) == b""
    assert len(good) == len(controlled.control._clients)


def test_descriptors_that_a_client_sends_are_closed(controlled):
    sock = controlled.negotiated()
    controlled.turn()
    before = len(os.listdir("/proc/self/fd"))
    read, write = os.pipe()
    message = b'{"execute": "version"}'
    socket.send_fds(sock, [message], [read, write])
    os.close(write)
    assert "return" in controlled.read(sock)[-1]
    controlled.control.closer.wait(5)

    os.set_blocking(read, False)
    assert os.read(read, 1) == b""  # nobody has the other end any more
    os.close(read)
    assert len(os.listdir("/proc/self/fd")) == before


def test_events_are_told_and_those_that_are_too_many_are_counted(controlled):
    sock = controlled.negotiated()
    for number in range(50):
        controlled.control.tell("FAULT", {"number": number})
    told = controlled.read(sock)
    controlled.driver.inputs.time += 2_000_000_000
    controlled.control.tell("FAULT", {"number": 50})

    assert [event["data"]["number"] for event in told] == list(range(20))
    (last,) = controlled.read(sock)
    assert last["data"] == {"number": 50, "left_out": 30}
    assert set(last["timestamp"]) == {"seconds", "microseconds"}


def test_events_that_found_no_room_are_counted(controlled):
    sock, silent = controlled.negotiated(), controlled.client()
    controlled.read(silent)
    (client, _) = controlled.control._clients.values()
    client.session.outgoing += b" " * MOST_EVENT_BYTES
    controlled.control.tell("FAULT", {"number": 1})
    controlled.control.tell("FAULT", {"number": 2})
    controlled.turn()
    controlled.control.tell("FAULT", {"number": 3})

    (last,) = controlled.read(sock)
    assert last["data"] == {"number": 3, "lost": 2}
    with pytest.raises(BlockingIOError):  # who has not negotiated hears of nothing
        silent.recv(1)


def test_a_descriptor_that_is_missing_is_waited_for(controlled, monkeypatch, caplog):
    def fail(_):
        raise OSError(24, "Too many open files")

    accept = controlled.control._accept_one
    controlled.control._accept_one = fail
    sock = controlled.client()
    assert caplog.text.count("no client can be accepted") == 1
    controlled.control._accept_one = accept
    controlled.driver.inputs.time += 200_000_000

    assert "QMP" in controlled.read(sock)[0]


def test_the_end_of_the_server_sends_the_reply_to_quit(controlled):
    sock = controlled.negotiated()
    sock.send(b'{"execute": "quit", "id": 1}')
    controlled.turn()
    controlled.control.close()

    assert json.loads(sock.recv(100)) == {"return": {}, "id": 1}
    assert sock.recv(1) == b""


def test_a_turn_does_little_for_garbage(controlled):
    sock = controlled.negotiated()
    sock.setblocking(True)
    sock.settimeout(1)
    sock.send(b"x\n" * 20_000)
    controlled.turn()

    (client,) = controlled.control._clients.values()
    assert len(client.session._incoming._buffer) <= 2048
    assert "return" in controlled.ask(controlled.negotiated(), "version")
