"""Functions behind libvfio-user in the loop of one process: who has a turn when."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import itertools
import logging
import mmap
import os
import resource
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from unittest import mock

import pytest

from libvfio_user import ArgumentError, Device, Library, VfuError
from pviommu import resources
from pviommu.counters import Counters
from pviommu.host.loop import Loop
from pviommu.host.server import Server
from pviommu.inputs import LiveInputs
from pviommu.lab import libvfio_user as building
from pviommu.lab.progress import Progress
from pviommu.machine import Machine
from pviommu.pci.function import Environment
from pviommu.pci.shared_memory import SharedMemory
from pviommu.probes import ProbeCall, Probes, Rule
from pviommu.topology import load
from pviommu.transports import LIBRARY, behind_libvfio_user
from pviommu.transports.behind_libvfio_user import LibvfioUser, descriptor_of
from vfio_user import Steps
from vfio_user.messages import Command, Header, RegionAccess

REGISTERS = 0
MOST_STEPS = 1000


class Served:
    """The machine of the lab, and its clients, whose requests and replies wait in their sockets."""

    def __init__(self, folder: Path) -> None:
        library = the_library()
        self.folder = folder
        self._inputs = LiveInputs()
        topology = load(resources.qemu_configs() / "lab.toml")
        self.probed: list[ProbeCall] = []
        self.probes = Probes([Rule("interrupt.*", self.probed.append)])
        self._machine = Machine.build(topology, Environment(self._inputs, Counters(), probes=self.probes))
        self.functions = {function.name: function for function in self._machine.functions()}

        def serve(loop: Loop) -> LibvfioUser:
            made = LibvfioUser(loop, library)
            for name, function in self.functions.items():
                made.serve(folder / f"{name}.sock", function)
            return made

        self.server = Server(self._machine, {}, self._inputs, transport=serve)
        self.clients: dict[str, socket.socket] = {}
        for name in self.functions:
            self.knock(name)
            self.server.turn()
            assert self.is_answered(name)

    def knock(self, name: str, major: int = 0) -> None:
        """Have a client of ``name`` wait; nobody has looked yet."""
        client = self.clients[name] = socket.socket(socket.AF_UNIX)
        client.connect(str(self.folder / f"{name}.sock"))
        client.setblocking(False)
        client.send(Header(1, Command.VERSION, 20, 0, 0).pack() + struct.pack("<HH", major, 0))

    def wait_for_answer(self, name: str) -> None:
        time_of_turns(self, lambda: self.is_answered(name))

    def shared_file(self, name: str, index: int) -> tuple[int, int]:
        """Which file a client of ``name`` gets for a BAR."""
        self._send(name, Command.DEVICE_GET_REGION_INFO, struct.pack("<IIIIQQ", 4096, 0, index, 0, 0, 0))
        self.server.turn()
        _, (fd, *_), _, _ = socket.recv_fds(self.clients[name], 4096, 8)
        try:
            return identity(fd)
        finally:
            os.close(fd)

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


@cache
def the_library() -> Library:
    return Library(building.build(Progress(io.StringIO(), building.STEPS)))


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open no files meanwhile, and what it closes, another thread takes before it can use it again."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, open_files())) + 1, limits[1]))
    filled: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                filled.append(os.dup(0))
        with mock.patch("os.dup", side_effect=OSError(errno.EMFILE, os.strerror(errno.EMFILE))):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in filled:
            os.close(fd)


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


def test_a_write_that_does_not_come_to_its_end_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind_libvfio_user, "LONGEST_WRITE_S", 0.05)
    steps = itertools.repeat(None)
    monkeypatch.setattr(served.functions["iommu"], "region_write", lambda *_: itertools.islice(steps, 1_000_000))
    served.write("iommu")
    served.server.turn()
    reply = Header.unpack(served.clients["iommu"].recv(4096))
    assert (reply.command, reply.error) == (Command.REGION_WRITE, errno.ETIMEDOUT)
    served.read("iommu")
    served.server.turn()
    assert served.is_answered("iommu")


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


# -- the next client, and what the system has not got ---------------------------------------------------------------


def next_client_comes(served: Served) -> None:
    """The next client of the IOMMU function waits, while the one before is still connected to the engine, and has left
    requests there. Both have gone or come since the loop looked, and it looks at the IOMMU function first.
    """
    served.clients["iommu"].close()
    served.server.turn()
    for _ in range(10):
        served.read("dma0")
    served.clients["dma0"].close()
    served.knock("iommu")
    transport = served.server.transport
    assert isinstance(transport, LibvfioUser)
    transport._served[0].serve_next()


def test_all_that_an_earlier_client_had_is_gone_before_the_next_one_is_there(served: Served) -> None:
    """Its memory is not that of the next one."""
    next_client_comes(served)
    assert set(served.server.transport.clients()) == {"iommu", "dma1"}
    served.wait_for_answer("iommu")


def test_the_next_client_waits_while_the_earlier_one_has_a_request_in_progress(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    during: list[set[str]] = []

    def write(_index: int, _offset: int, _data: bytes) -> Steps:
        next_client_comes(served)
        during.append(set(served.server.transport.clients()))
        yield

    monkeypatch.setattr(served.functions["dma0"], "region_write", write)
    served.write("dma0")
    served.server.turn()
    assert during == [{"dma0", "dma1"}]
    served.wait_for_answer("iommu")
    assert set(served.server.transport.clients()) == {"iommu", "dma1"}


def test_the_next_client_gets_other_memory_even_if_there_was_none_when_the_first_went(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    (index,) = served.functions["iommu"].bars.shared
    first = served.shared_file("iommu", index)
    renew, failures = SharedMemory.renew, [OSError(errno.ENOMEM, "no memory")]

    def fail_once(memory: SharedMemory) -> None:
        if failures:
            raise failures.pop()
        renew(memory)

    monkeypatch.setattr(SharedMemory, "renew", fail_once)
    served.clients["iommu"].close()
    served.server.turn()
    assert served.functions["iommu"].bars.stale == {index}
    served.knock("iommu")
    served.wait_for_answer("iommu")
    second = served.shared_file("iommu", index)
    assert second == identity(served.functions["iommu"].bars.shared[index].memory.fd)
    assert second != first


def test_a_client_may_go_when_there_are_no_descriptors_left(served: Served) -> None:
    served.clients["iommu"].close()
    served.clients["dma0"].close()
    with no_descriptors():
        time_of_turns(served, lambda: set(served.server.transport.clients()) == {"dma1"})
    served.knock("iommu")
    served.wait_for_answer("iommu")


def test_a_client_may_go_without_descriptors_during_a_write_of_another(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_index: int, _offset: int, _data: bytes) -> Steps:
        served.clients["dma0"].close()
        with no_descriptors():
            for _ in range(MOST_STEPS):
                yield

    monkeypatch.setattr(served.functions["iommu"], "region_write", write)
    served.write("iommu")
    served.server.turn()
    reply = served.clients["iommu"].recv(4096)
    assert Header.unpack(reply).error == 0
    assert set(served.server.transport.clients()) == {"iommu", "dma1"}


def time_of_turns(served: Served, is_over: Callable[[], bool]) -> float:
    """Seconds that it takes."""
    begin = time.monotonic()
    while not is_over():
        assert time.monotonic() < begin + 10
        served.server.turn()
    return time.monotonic() - begin


def attempts(served: Served, name: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One element more for each time that it is seen whether a client of ``name`` may come."""
    function, made = served.functions[name], []
    is_ready = function.is_ready

    def counted() -> bool:
        made.append(1)
        return is_ready()

    monkeypatch.setattr(function, "is_ready", counted)
    return made


def test_a_client_that_cannot_be_accepted_waits_without_a_busy_loop(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served.clients["dma0"].close()
    served.server.turn()
    served.knock("dma0", major=99)  # what it is refused for, the system has no part in
    served.server.turn()
    served.clients["dma0"].close()
    served.knock("dma0")
    made = attempts(served, "dma0", monkeypatch)
    with no_descriptors():
        assert time_of_turns(served, lambda: len(made) == 3) >= 0.19
    assert caplog.text.count("dma0: no client can be taken: dma0: vfu_attach_ctx(): Too many open files") == 1
    served.wait_for_answer("dma0")


def test_a_client_that_must_wait_for_memory_waits_without_a_busy_loop(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: SharedMemory) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    with monkeypatch.context() as context:
        context.setattr(SharedMemory, "renew", never)
        served.clients["iommu"].close()
        served.server.turn()
        made = attempts(served, "iommu", monkeypatch)
        served.knock("iommu")
        assert time_of_turns(served, lambda: len(made) == 3) >= 0.19
    served.wait_for_answer("iommu")


def test_memory_that_the_library_cannot_be_told_of_keeps_the_client_waiting(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (index,) = served.functions["iommu"].bars.shared
    first = served.shared_file("iommu", index)
    served.clients["iommu"].close()
    served.server.turn()
    served.knock("iommu")
    with no_descriptors():
        served.server.turn()
    assert "iommu: no client can be taken: descriptor" in caplog.text
    assert not served.is_answered("iommu")
    served.wait_for_answer("iommu")
    assert served.shared_file("iommu", index) != first


def test_a_request_that_fails_is_not_said_to_be_a_client_that_is_not_taken(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served.clients["dma0"].close()
    served.server.turn()
    served.knock("dma0", major=99)
    served.server.turn()
    assert "dma0: no client can be taken: dma0: vfu_attach_ctx(): Invalid argument" in caplog.text
    caplog.clear()

    def run(_: Device) -> int:
        raise VfuError(errno.ENOMEM, "vfu_run_ctx()")

    monkeypatch.setattr(Device, "run", run)
    served.read("dma1")
    served.server.turn()
    assert "dma1: a request failed: vfu_run_ctx(): Cannot allocate memory" in caplog.text
    assert "no client" not in caplog.text


# -- how it begins and ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", ["dma", "realize"])
def test_a_function_that_cannot_be_set_up_leaves_nothing(
    served: Served, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise MemoryError(fails)

    monkeypatch.setattr(f"libvfio_user.Device.{fails}", fail)
    before = len(open_files())
    transport = LibvfioUser(served.server.loop, the_library())
    with pytest.raises(MemoryError, match=fails):
        transport.serve(served.folder / "new.sock", served.functions["dma0"])
    assert len(open_files()) == before
    assert not (served.folder / "new.sock").exists()


def test_what_is_wrong_with_a_path_is_said_with_the_function(served: Served) -> None:
    with pytest.raises(ArgumentError, match=r"^dma0: the socket's path .* has \d+ bytes, not 1 to 107$"):
        LibvfioUser(served.server.loop, the_library()).serve(Path("/x" * 100), served.functions["dma0"])


# -- interrupts -----------------------------------------------------------------------------------------------------


def test_rules_that_change_leave_interrupts_with_the_library(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    triggered: list[int] = []
    monkeypatch.setattr("libvfio_user.Device.trigger", lambda _, vector: triggered.append(vector))
    served.functions["dma0"].interrupt(0)
    assert [call.probe for call in served.probed] == ["interrupt.pre", "interrupt.post"]
    served.probes.rebind()
    served.functions["dma0"].interrupt(0)
    with served.probes.off():
        served.functions["dma0"].interrupt(0)
    assert triggered == [0, 0, 0]


def test_an_interrupt_that_the_guest_has_not_set_up_is_no_line_in_the_log(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    served.functions["dma0"].interrupt(0)
    assert [call.result for call in served.probed] == [None, False]
    assert "no fd" not in caplog.text


def test_there_are_no_snapshots_because_interrupts_would_be_lost(served: Served) -> None:
    assert f"--transport {LIBRARY}" in served.server.transport.no_snapshots


def test_a_descriptor_that_is_found_is_not_inherited_any_more() -> None:
    theirs = os.memfd_create("guest", 0)
    os.truncate(theirs, 4096)
    try:
        with contextlib.closing(mmap.mmap(theirs, 4096)) as mapped:
            place = ctypes.c_char.from_buffer(mapped)
            found, offset = descriptor_of(ctypes.addressof(place))
            del place
        assert (identity(found), offset) == (identity(theirs), 0)
        os.close(found)
        assert not os.get_inheritable(theirs)
    finally:
        os.close(theirs)
