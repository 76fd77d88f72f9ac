"""The server against programs that say what no library of ours says."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Iterator
from ctypes import addressof, c_char
from pathlib import Path

import pytest

from pviommu.interfaces.iommufd import DeviceConfig, System
from pviommu.vfio_run.server import Kind, Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(System([DeviceConfig("nic")]), tmp_path / "socket")
    yield made
    made.close()
    assert made.system.hardware.engine.domains() == ()


def connected(path: Path, *, named: bool = True) -> socket.socket:
    """A connection as the library makes it, with a name that the kernel chose."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if named:
        sock.bind("")
    sock.settimeout(5)
    sock.connect(str(path))
    return sock


def message(kind: int, request: int = 0, argument: int = 0, behind: bytes = b"") -> bytes:
    return struct.pack("<IIQ", kind, request, argument) + behind


def settle(server: Server) -> None:
    for _ in range(10):
        server.step(0)


def asked(server: Server, sock: socket.socket, data: bytes) -> tuple[int, int] | None:
    """The reply; None if the server has dropped the connection."""
    sock.send(data)
    settle(server)
    try:
        reply = sock.recv(64)
    except ConnectionResetError:
        return None
    return struct.unpack("<Ii", reply) if reply else None


def test_a_file_is_opened_and_asked(server: Server, tmp_path: Path) -> None:
    with connected(tmp_path / "socket") as sock:
        assert asked(server, sock, message(Kind.OPEN, behind=b"/dev/nothing")) == (0, -2)
        assert asked(server, sock, message(Kind.OPEN, behind=b"/dev/iommu")) == (0, 0)
        assert asked(server, sock, message(Kind.REQUEST, 0x3B64)) == (0, 0)
        assert asked(server, sock, message(Kind.REQUEST, 0x3B80, 8)) == (0, -14)
    settle(server)
    assert not server.connections


@pytest.mark.parametrize(
    "data",
    [
        b"short",
        message(9),
        message(Kind.REQUEST, 0x3B64),
        message(Kind.IS),
        message(Kind.CLAIM, 0, 1),
        message(Kind.OPEN, behind=b"\xff\xfe"),
    ],
    ids=["short", "unknown", "before it is open", "unasked", "of nothing", "no path"],
)
def test_what_is_out_of_place_ends_the_connection(server: Server, tmp_path: Path, data: bytes) -> None:
    with connected(tmp_path / "socket") as sock:
        assert asked(server, sock, data) is None
    assert not server.connections


def test_a_connection_without_a_name_is_not_taken(server: Server, tmp_path: Path) -> None:
    with connected(tmp_path / "socket", named=False) as sock:
        settle(server)
        assert sock.recv(8) == b""
    assert not server.connections


def test_a_descriptor_that_is_none_of_ours(server: Server, tmp_path: Path) -> None:
    """The structure is in this process. The library says so by an errno, or names what is no connection."""
    argument = bytearray(struct.pack("<IIiIQ", 24, 0, 77, 0, 0))
    place = addressof(c_char.from_buffer(argument))
    for answer, expected in ((message(Kind.IS, 9), -9), (message(Kind.IS, 0, 0xFFFFF), -77), (message(Kind.OPEN), -77)):
        with connected(tmp_path / "socket") as sock:
            assert asked(server, sock, message(Kind.OPEN, behind=b"/dev/vfio/devices/vfio0")) == (0, 0)
            sock.send(message(Kind.REQUEST, 0x3B76, place))
            sock.send(answer)
            settle(server)
            assert struct.unpack("<Ii", sock.recv(8)) == (1, 77)
            assert struct.unpack("<Ii", sock.recv(8)) == (0, expected)


@pytest.mark.parametrize("seed", range(4))
def test_random_messages_leave_the_server_whole(server: Server, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    socks: list[socket.socket] = []
    for _ in range(400):
        if not socks or chance.random() < 0.1:
            sock = connected(tmp_path / "socket")
            socks.append(sock)
            sock.send(message(Kind.OPEN, behind=chance.choice((b"/dev/iommu", b"/dev/vfio/vfio", b"/dev/vfio/0"))))
        sock = chance.choice(socks)
        kind, request = chance.choice((0, 1, 1, 1, 2, 3, 9)), 0x3B00 | chance.randrange(0x60, 0x98)
        data = message(kind, request, chance.choice((0, 1, 3, 1 << 63)), chance.randbytes(chance.randrange(8)))
        with contextlib.suppress(OSError):
            sock.send(data[: chance.choice((len(data), len(data), 7))])
        if chance.random() < 0.1:
            socks.remove(sock)
            sock.close()
        settle(server)
    for sock in socks:
        sock.close()
    settle(server)
    with connected(tmp_path / "socket") as sock:
        assert asked(server, sock, message(Kind.OPEN, behind=b"/dev/iommu")) == (0, 0)
        assert asked(server, sock, message(Kind.REQUEST, 0x3B64)) == (0, 0)
