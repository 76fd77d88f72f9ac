"""A vfio-user client that knows bytes and nothing else.

What it sends and expects is spelled out here and in the tests, from the protocol's text and from what QEMU does, and
not taken from the package under test.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS, GET_IRQ_INFO, SET_IRQS = range(1, 9)
REGION_READ, REGION_WRITE, DMA_READ, DMA_WRITE, DEVICE_RESET, DIRTY_PAGES, REGION_WRITE_MULTI = range(9, 16)
DEVICE_FEATURE, MIG_DATA_READ, MIG_DATA_WRITE = 16, 17, 18

REPLY, NO_REPLY, ERROR = 1, 0x10, 0x20
MAX_SIZE = (1 << 20) + 32
HEADER = struct.Struct("<HHIII")
CONFIG = 7
INTX, MSI, MSIX, ERR, REQ = range(5)
NONE, BOOL, EVENTFD, MASK, UNMASK, TRIGGER = 1, 2, 4, 8, 16, 32

QEMU_OFFER = {
    "capabilities": {
        "pgsizes": 4096,
        "max_msg_fds": 16,
        "max_dma_maps": 65535,
        "max_data_xfer_size": 1048576,
        "migration": {"max_bitmap_size": 268435456, "pgsize": 4096},
        "write_multiple": True,
    }
}
"""What QEMU 11.1 sends."""

PATIENCE_S = 10.0
"""Bound of every wait; nothing waits that long unless something is broken."""


class Answer(NamedTuple):
    """A message of the server."""

    number: int
    command: int
    size: int
    flags: int
    error: int
    payload: bytes
    fds: list[int]


class Raw:
    """A connection. A context manager; closes it."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(str(path))
        self.number = 0x1200
        self.told: dict[str, Any] = {}
        """the server's capabilities, once negotiated"""

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the server may have been first
            self.sock.shutdown(socket.SHUT_RDWR)  # also for a duplicate that the server was given and still holds
        self.sock.close()

    def send(
        self,
        command: int,
        payload: bytes = b"",
        flags: int = 0,
        fds: Sequence[int] = (),
        size: int | None = None,
        error: int = 0,
    ) -> int:
        """Send one message; its id. ``size`` is what its header says, if not the truth."""
        self.number = (self.number + 1) & 0xFFFF
        size = HEADER.size + len(payload) if size is None else size
        self.send_bytes(HEADER.pack(self.number, command, size, flags, error) + payload, fds)
        return self.number

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        if fds:
            sent = socket.send_fds(self.sock, [data], list(fds))
            data = data[sent:]
        self.sock.sendall(data)

    def receive(self) -> Answer:
        """The next message, whole."""
        head, ancillary, flags, _ = self.sock.recvmsg(HEADER.size, socket.CMSG_SPACE(64 * 4))
        fds = array.array("i")
        for _level, _kind, data in ancillary:
            fds.frombytes(data)
        if not head:
            raise EOFError("the server closed the connection")
        assert not flags & socket.MSG_CTRUNC
        head += self._exactly(HEADER.size - len(head))
        number, command, size, kind, error = HEADER.unpack(head)
        return Answer(number, command, size, kind, error, self._exactly(size - HEADER.size), list(fds))

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self.sock.recv(count - len(data))
            if not part:
                raise EOFError("the server closed the connection in the middle of a message")
            data += part
        return bytes(data)

    def ask(self, command: int, payload: bytes = b"", flags: int = 0, fds: Sequence[int] = (), error: int = 0) -> Any:
        """The errno of an error reply (an int), or the payload of another (bytes). Checks what all replies share."""
        number = self.send(command, payload, flags, fds, error=error)
        answer = self.receive()
        for fd in answer.fds:
            os.close(fd)
        assert (answer.number, answer.command) == (number, command & 0xFFFF)
        if answer.flags & ERROR:
            assert (answer.flags, answer.size, answer.payload) == (REPLY | ERROR, 16, b"")
            assert answer.error > 0
            return answer.error
        assert (answer.flags, answer.error, answer.fds if command != GET_REGION_INFO else []) == (REPLY, 0, [])
        return answer.payload

    def negotiate(self, minor: int = 0, offer: Any = QEMU_OFFER) -> tuple[int, int, dict[str, Any]]:
        """VERSION as QEMU sends it; the reply: major, minor, capabilities."""
        reply = self.ask(VERSION, version(0, minor, offer))
        assert reply[-1:] == b"\0"
        self.told = json.loads(reply[4:-1])["capabilities"]
        return (*struct.unpack_from("<HH", reply), self.told)

    def has_ended(self) -> bool:
        """Whether the server closes the connection now."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def is_alive(self) -> bool:
        """Whether the next request is served, and nothing else was sent before its reply."""
        return isinstance(self.read(CONFIG, 0, 4), bytes)

    def read(self, region: int, offset: int, count: int) -> Any:
        """The bytes read, or an errno."""
        reply = self.ask(REGION_READ, access(region, offset, count))
        if isinstance(reply, int):
            return reply
        assert reply[:16] == access(region, offset, count)
        return reply[16:]

    def write(self, region: int, offset: int, data: bytes) -> int:
        """0 or an errno."""
        reply = self.ask(REGION_WRITE, access(region, offset, len(data)) + data)
        if isinstance(reply, int):
            return reply
        assert reply == access(region, offset, len(data))
        return 0

    def post(self, region: int, offset: int, data: bytes) -> None:
        """A posted write."""
        self.send(REGION_WRITE, access(region, offset, len(data)) + data, NO_REPLY)


def version(major: int, minor: int, offer: Any) -> bytes:
    """A VERSION payload; without JSON if ``offer`` is None."""
    return struct.pack("<HH", major, minor) + (b"" if offer is None else json.dumps(offer).encode() + b"\0")


def info(argsz: int = 16, second: int = 0, third: int = 0, fourth: int = 0) -> bytes:
    """The four words of DEVICE_GET_INFO, GET_IRQ_INFO and GET_REGION_IO_FDS."""
    return struct.pack("<IIII", argsz, second, third, fourth)


def region_info(argsz: int, index: int) -> bytes:
    return struct.pack("<IIIIQQ", argsz, 0, index, 0, 0, 0)


def access(region: int, offset: int, count: int) -> bytes:
    return struct.pack("<QII", offset, region, count)


def dma_map(address: int, size: int, offset: int = 0, flags: int = 3, argsz: int = 32) -> bytes:
    return struct.pack("<IIQQQ", argsz, flags, offset, address, size)


def dma_unmap(address: int, size: int, flags: int = 0, argsz: int = 24) -> bytes:
    return struct.pack("<IIQQ", argsz, flags, address, size)


def set_irqs(
    flags: int, index: int = MSIX, start: int = 0, count: int = 1, bools: bytes = b"", argsz: int = 20
) -> bytes:
    return struct.pack("<IIIII", argsz, flags, index, start, count) + bools
