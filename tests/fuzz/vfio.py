"""What programs may say to the server of ``pviommu vfio run``, about all the files that it has, and at any moment not
any more.

Input: a u8 that chooses the devices (endpoints; one with nesting; mock devices); then steps, each a u8 (what) and what
:data:`STEP` says. Words of a structure whose upper half is :data:`POINTER` become addresses in the program's memory.
Its memory is no real one, so that DMA into it does no harm.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

from pviommu.interfaces.iommufd import DeviceConfig, LocalMemory, System
from pviommu.interfaces.iommufd.nesting import NESTING
from pviommu.interfaces.iommufd.pci_device import Mappable, Piece
from pviommu.topology import EndpointSection, Topology
from pviommu.vfio_run.machine import DeviceMachine, build
from pviommu.vfio_run.server import Answer, Connection, Kind, Message, Server

from .feed import Feed
from .machine import nothing_raised, open_descriptors

__all__ = ["POINTER", "STEP", "TOKENS", "target"]

POINTER = 0x50414745
MEMORY = 1 << 16
MAX_STEPS, MAX_FILES, MAX_TURNS, MAX_ASKED = 64, 12, 4096, 16
PATHS = (
    b"/dev/iommu",
    b"/dev/vfio/devices/vfio0",
    b"/dev/vfio/0",
    b"/dev/vfio/vfio",
    b"/dev/vfio/devices/vfio1",
    b"/x",
)
PID = 1
STEP = {
    name: number
    for number, name in enumerate(
        (
            "open",  # u8 path
            "request",  # u8 file, u8 number, u8 bytes, and these; then for each descriptor that it names, u8 what it is
            "number",  # u8 file, u8 number, u8 argument: one that points to nothing
            "read",  # u8 file, u8 region, u16 offset, u8 bytes
            "write",  # u8 file, u8 region, u16 offset, u8 bytes, and these
            "map",  # u8 file, u8 region, u16 page, u8 pages
            "stream",  # u8 file, u8 whether to write, u8 bytes
            "close",  # u8 file
            "work",
            "out of place",  # u8 file, u8 kind, u32 request, u64 argument
        )
    )
}
TOKENS = (
    *(bytes([STEP["request"], 0, number]) for number in (*range(0x64, 0x79), *range(0x80, 0x95), 0xA0)),
    *(struct.pack("<II", offset, POINTER) for offset in (0, 0x1000, 0x8000)),
    *PATHS,
)


class _Program(LocalMemory):
    """Stands for the memory of a process."""

    def __init__(self) -> None:
        super().__init__()
        self.pid = PID
        self.token = 0
        self.known: tuple[int, bytes] | None = None
        self.buffer = bytearray(MEMORY)
        self.at = self.add(self.buffer)

    def is_there(self) -> bool:
        return True


class _File(Connection):
    """An open file: what the server answers is looked at here."""

    def __init__(self, number: int) -> None:
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(ours, number, None)
        self.answers: list[tuple[int, int, bytes]] = []

    def reply(self, answer: int, value: int, behind: bytes = b"") -> None:
        assert len(behind) <= self.most_data
        self.answers.append((answer, value, behind))

    def give(self, piece: Piece) -> None:
        assert piece.size > 0
        if piece.fd is not None:
            os.fstat(piece.fd)
        self.answers.append((Answer.DONE, 0, b""))

    def ring(self) -> None:
        """Nobody polls."""


class _Talk:
    """A program, and its server."""

    def __init__(self, server: Server, feed: Feed) -> None:
        self.server = server
        self.feed = feed
        self.memory = _Program()
        self.files: list[_File] = []
        self._numbers = 0
        self.steps: list[Callable[[], None]] = [
            *(self.open, self.request, self.number, self.read, self.write),
            *(self.map, self.stream, self.close, self.work, self.out_of_place),
        ]

    def new(self, kind: Kind, argument: int, behind: bytes) -> None:
        if len(self.files) == MAX_FILES:
            self.end(self.files[0])
        self._numbers += 1
        file = _File(self._numbers)
        self.server.adopt(file)
        self.files.append(file)
        if self.say(file, kind, 0, argument, behind)[:2] != (Answer.DONE, 0):
            self.end(file)

    def say(
        self, file: _File, kind: Kind, request: int, argument: int, behind: bytes = b"", fds: tuple[int, ...] = ()
    ) -> tuple[int, int, bytes]:
        """The answer; -1 if the server has given the file up."""
        file.answers.clear()
        self.server.told(file, Message(kind, request, argument, behind, PID, list(fds)))
        turns = 0
        while file.steps is not None and not file.answers:
            turns += 1
            assert turns < MAX_TURNS, "a write does not come to an end"
            self.server.step(0)
        assert len(file.answers) <= 1, file.answers
        return file.answers[0] if file.answers else (-1, 0, b"")

    def some(self) -> _File | None:
        number = self.feed.u8()
        return self.files[number % len(self.files)] if self.files else None

    def end(self, file: _File) -> None:
        self.files.remove(file)
        file.theirs.close()

    # Steps

    def open(self) -> None:
        self.new(Kind.OPEN, 0, self.feed.pick(PATHS))

    def request(self) -> None:
        file, number, size = self.some(), self.feed.u8(), self.feed.u8()
        data = bytearray(self.feed.take(size).ljust(size, b"\0"))
        for at in range(size - 7):
            offset, mark = struct.unpack_from("<II", data, at)
            if mark == POINTER:
                struct.pack_into("<Q", data, at, self.memory.at + offset % MEMORY)
        self.memory.buffer[: len(data)] = data
        self._ask(file, 0x3B00 | number, self.memory.at, bytes(data[:64]))

    def number(self) -> None:
        file, number = self.some(), self.feed.u8()
        self._ask(file, 0x3B00 | number, self.feed.u8(), b"")

    def _ask(self, file: _File | None, request: int, argument: int, known: bytes) -> None:
        if file is None:
            return
        answer, value, _ = self.say(file, Kind.REQUEST, request, argument, known)
        for _ in range(MAX_ASKED):
            if answer not in (Answer.NEED_FD, Answer.NEED_COPY):
                break
            answer, value, _ = self._describe(file, Answer(answer))
        else:
            raise AssertionError("a request asks for descriptors without end")
        if answer & 0xFF == Answer.OPENED:
            self.new(Kind.CLAIM, value, b"")

    def _describe(self, file: _File, wanted: Answer) -> tuple[int, int, bytes]:
        what = self.feed.u8()
        if what == 255:
            return self.say(file, Kind.IS if wanted is Answer.NEED_FD else Kind.COPY, 9, 0)
        if wanted is Answer.NEED_COPY:
            made = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if what & 1 else os.memfd_create("m")
            return self.say(file, Kind.COPY, 0, 0, fds=(made,))
        other = self.files[what % len(self.files)]
        return self.say(file, Kind.IS, 77 if what & 128 else 0, other.number)

    def _place(self) -> int:
        return (self.feed.u8() % 10) << 40 | self.feed.u16()

    def read(self) -> None:
        file, place, count = self.some(), self._place(), self.feed.u8()
        if file:
            _, value, data = self.say(file, Kind.READ, count, place)
            assert len(data) == max(value, 0) <= count

    def write(self) -> None:
        file, place, count = self.some(), self._place(), self.feed.u8()
        if file:
            data = self.feed.take(count)
            assert self.say(file, Kind.WRITE, len(data), place, data)[1] <= len(data)

    def map(self) -> None:
        file, region, page, pages = self.some(), self.feed.u8() % 10, self.feed.u16(), self.feed.u8()
        if file:
            self.say(file, Kind.MAP, 0, region << 40 | page << 12, struct.pack("<Q", pages << 12))

    def stream(self) -> None:
        file, kind, count = self.some(), (Kind.TAKE, Kind.PUT)[self.feed.u8() & 1], self.feed.u8()
        if file:
            assert self.say(file, kind, count, self.memory.at + 0x4000)[1] <= count

    def close(self) -> None:
        file = self.some()
        if file:
            self.end(file)

    def work(self) -> None:
        self.server.step(0)

    def out_of_place(self) -> None:
        file, kind, request, argument = self.some(), self.feed.u8(), self.feed.u32(), self.feed.u64()
        if file:
            self.say(file, Kind(kind % len(Kind)), request, argument)
            if file not in self.server.connections.values():
                self.end(file)


def _machine(which: int) -> tuple[System, DeviceMachine | None]:
    if which == 1:
        return System([DeviceConfig("a", model=NESTING, pasid_bits=20), DeviceConfig("b", pasid_bits=4)]), None
    if which == 2:
        return System([DeviceConfig("a")], mock=True), None
    system, machine = build(Topology(endpoint=(EndpointSection("a", "dma-test", 1), EndpointSection("b", "xor", 2))))
    for device in system.devices.values():
        if device.pci:
            device.pci.mappable = tuple(Mappable)[which % 3]
    return system, machine


def _same(program: _Program, _pid: int) -> _Program:
    """The only process that there is."""
    return program


def target(data: bytes) -> None:
    """Whatever a program says, when it is gone all that it had is as before, and nothing has raised."""
    feed = Feed(data)
    before = open_descriptors()
    system, machine = _machine(feed.u8() % 6)
    with (
        tempfile.TemporaryDirectory(prefix="pviommu-fuzz-") as folder,
        mock.patch("pviommu.vfio_run.server.make_files"),  # nobody looks at them, and they are most of the work
        contextlib.ExitStack() as kept,
        nothing_raised(),
    ):
        if machine:
            kept.callback(machine.close)
        server = Server(system, Path(folder) / "s", machine)
        kept.callback(server.close)
        talk = _Talk(server, feed)
        server.memory_of = partial(_same, talk.memory)  # type: ignore[method-assign, arg-type]
        for _ in range(MAX_STEPS):
            if not feed:
                break
            talk.steps[feed.u8() % len(talk.steps)]()
        while talk.files:
            talk.end(talk.files[-1])
        for _ in range(MAX_TURNS):  # a turn of a process that others keep waiting does little
            if not server.connections:
                break
            server.step(0)
        assert not server.connections
        assert all(device.owner is None for device in system.devices.values())
        assert system.hardware.engine.domains() == ()
        assert machine is None or not any(endpoint.failed for endpoint in machine.endpoints.values())
    del talk, server
    assert open_descriptors() == before
