"""The server against programs that say what no library of ours says."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import itertools
import os
import random
import resource
import socket
import struct
import time
from collections.abc import Iterator
from ctypes import addressof, c_char
from pathlib import Path
from types import SimpleNamespace

import pytest

from pviommu.host.fairness import Fairness
from pviommu.interfaces.iommufd import DeviceConfig, System
from pviommu.topology import load
from pviommu.transports.reserve import spare
from pviommu.vfio_run import remote
from pviommu.vfio_run.machine import build
from pviommu.vfio_run.server import Answer, Kind, Server

NUMBERS = itertools.count(1)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(System([DeviceConfig("nic")]), tmp_path / "socket")
    yield made
    made.close()
    assert made.system.hardware.engine.domains() == ()


def connected(path: Path, *, named: bool = True) -> socket.socket:
    """A connection as the library makes it, with a name that has its number."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if named:
        sock.bind(f"\0pviommu-{0:016x}-{next(NUMBERS):08x}-{0:08x}")
    sock.settimeout(5)
    sock.connect(str(path))
    return sock


def message(kind: int, request: int = 0, argument: int = 0, behind: bytes = b"", sequence: int = 1) -> bytes:
    return struct.pack("<IIQQ", kind, request, argument, sequence) + behind


def settle(server: Server) -> None:
    for _ in range(10):
        server.step(0)


def asked(server: Server, sock: socket.socket, data: bytes) -> tuple[int, int] | None:
    """The reply; None if the server has dropped the connection."""
    sock.send(data)
    settle(server)
    try:
        reply = heard(sock)
    except ConnectionResetError:
        return None
    return unpacked(reply)[:2] if reply else None


def heard(sock: socket.socket) -> bytes:
    """The next reply: not that there is something to read, which programs drop as well."""
    while (reply := sock.recv(64)) and unpacked(reply)[0] == Answer.READY:
        pass
    return reply


def unpacked(reply: bytes) -> tuple[int, int, int]:
    """Answer, value, sequence; whether it stays in the socket is left out."""
    answer, value, sequence = struct.unpack("<IiQ", reply)
    return answer & ~(1 << 31), value, sequence


def at(data: bytes) -> tuple[bytearray, int]:
    """A buffer, to be kept, and its address: the structure of a request is in this process."""
    buffer = bytearray(data)
    return buffer, addressof(c_char.from_buffer(buffer))


def number_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[-17:-9], 16)


def opened(server: Server, path: Path, name: str) -> socket.socket:
    sock = connected(path)
    assert asked(server, sock, message(Kind.OPEN, behind=name.encode())) == (0, 0)
    return sock


def test_a_file_is_opened_and_asked(server: Server, tmp_path: Path) -> None:
    with connected(tmp_path / "socket") as sock:
        for path in (b"/dev/nothing", b"/dev/vfio/\xff\xfe"):
            assert asked(server, sock, message(Kind.OPEN, behind=path)) == (0, -2)
        assert asked(server, sock, message(Kind.OPEN, behind=b"/dev/iommu")) == (0, 0)
        assert asked(server, sock, message(Kind.REQUEST, 0x3B64)) == (0, 0)
        assert asked(server, sock, message(Kind.REQUEST, 0x3B80, 8)) == (0, -14)
    settle(server)
    assert not server.connections


@pytest.mark.parametrize(
    "data",
    [
        b"short",
        message(99),
        message(Kind.REQUEST, 0x3B64),
        message(Kind.IS),
        message(Kind.CLAIM, 0, 1),
    ],
    ids=["short", "unknown", "before it is open", "unasked", "of nothing"],
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
            assert unpacked(heard(sock))[:2] == (1, 77)
            assert unpacked(heard(sock))[:2] == (0, expected)


def test_replies_have_the_number_of_their_message(server: Server, tmp_path: Path) -> None:
    with connected(tmp_path / "socket") as sock:
        sock.send(message(Kind.OPEN, behind=b"/dev/iommu", sequence=5))
        sock.send(message(Kind.REQUEST, 0x3B80, 8, sequence=1 << 40))
        settle(server)
        assert unpacked(heard(sock)) == (0, 0, 5)
        assert unpacked(heard(sock)) == (0, -14, 1 << 40)


def test_who_is_slow_to_say_what_a_descriptor_is_delays_nobody(server: Server, tmp_path: Path) -> None:
    kept, place = at(struct.pack("<IIiIQ", 24, 0, 77, 0, 0))
    with (
        opened(server, tmp_path / "socket", "/dev/iommu") as iommu,
        opened(server, tmp_path / "socket", "/dev/vfio/devices/vfio0") as device,
    ):
        assert asked(server, device, message(Kind.REQUEST, 0x3B76, place)) == (1, 77)
        began = time.monotonic()
        assert asked(server, iommu, message(Kind.REQUEST, 0x3B64)) == (0, 0)
        assert time.monotonic() - began < 2
        assert asked(server, device, message(Kind.IS, 0, number_of(iommu))) == (0, 0)
        assert struct.unpack_from("<I", kept, 12) == (1,)


def test_a_request_that_was_left_waiting_is_forgotten_for_the_next(server: Server, tmp_path: Path) -> None:
    """Its process was killed; another one goes on with the connection."""
    _kept, place = at(struct.pack("<IIiIQ", 24, 0, 77, 0, 0))
    with opened(server, tmp_path / "socket", "/dev/vfio/devices/vfio0") as device:
        assert asked(server, device, message(Kind.REQUEST, 0x3B76, place)) == (1, 77)
        assert asked(server, device, message(Kind.REQUEST, 0x3B77, 0)) == (0, -22)
        assert asked(server, device, message(Kind.IS, 9)) is None


@contextlib.contextmanager
def group_with_container(server: Server, path: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A group, in a container with an IOMMU."""
    _kept, place = at(struct.pack("<i", 77))
    with opened(server, path, "/dev/vfio/vfio") as container, opened(server, path, "/dev/vfio/0") as group:
        assert asked(server, group, message(Kind.REQUEST, 0x3B68, place)) == (1, 77)
        assert asked(server, group, message(Kind.IS, 0, number_of(container))) == (0, 0)
        assert asked(server, container, message(Kind.REQUEST, 0x3B66, 3)) == (0, 0)
        yield group, container


def test_what_is_opened_and_not_claimed_is_closed_at_the_next_message(server: Server, tmp_path: Path) -> None:
    _kept, name = at(b"nic\0")
    with group_with_container(server, tmp_path / "socket") as (group, _):
        first = asked(server, group, message(Kind.REQUEST, 0x3B6A, name))
        assert first is not None
        with connected(tmp_path / "socket") as device:
            assert asked(server, device, message(Kind.CLAIM, 0, first[1])) == (0, 0)
            assert asked(server, group, message(Kind.REQUEST, 0x3B69)) == (0, -16)
        settle(server)
        again = asked(server, group, message(Kind.REQUEST, 0x3B6A, name))
        assert again is not None
        assert again[0] == 2
        assert asked(server, group, message(Kind.REQUEST, 0x3B69)) == (0, 0)
        with connected(tmp_path / "socket") as device:
            assert asked(server, device, message(Kind.CLAIM, 0, again[1])) is None


def test_what_was_closed_is_closed_before_the_next_request(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the two the server hears of first."""
    structure, place = at(struct.pack("<IIII", 16, 0, 0, 0))
    _kept, gone = at(struct.pack("<II", 8, 1))
    with opened(server, tmp_path / "socket", "/dev/iommu") as sock:
        answer = asked(server, sock, message(Kind.REQUEST, 0x3B8E, place))
        assert answer is not None
        assert (answer[0] & 0xFF, answer[0] >> 8) == (2, 12)  # the descriptor belongs into the structure
        assert struct.unpack("<4I", structure)[2] == 1
        queue = connected(tmp_path / "socket")
        assert asked(server, queue, message(Kind.CLAIM, 0, answer[1])) == (0, 0)
        assert asked(server, sock, message(Kind.REQUEST, 0x3B80, gone)) == (0, -errno.EBUSY)
        monkeypatch.setattr(Fairness, "order", lambda _, watches: sorted(watches, key=lambda watch: watch.fd))
        queue.close()
        assert asked(server, sock, message(Kind.REQUEST, 0x3B80, gone)) == (0, 0)


def test_what_is_opened_and_not_claimed_is_closed_with_its_connection(server: Server, tmp_path: Path) -> None:
    _kept, name = at(b"nic\0")
    with group_with_container(server, tmp_path / "socket") as (group, _):
        answer = asked(server, group, message(Kind.REQUEST, 0x3B6A, name))
        assert answer is not None
        assert answer[0] == 2
    settle(server)
    assert server.system.devices["nic"].owner is None
    opened(server, tmp_path / "socket", "/dev/vfio/0").close()


def test_without_descriptors_one_open_fails_and_nothing_else(server: Server, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with opened(server, tmp_path / "socket", "/dev/iommu") as kept, connected(tmp_path / "socket") as refused:
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
        try:
            settle(server)
            with pytest.raises(OSError, match="Too many open files"):
                os.dup(0)
            assert refused.recv(64) == b""
            assert asked(server, kept, message(Kind.REQUEST, 0x3B64)) == (0, 0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        opened(server, tmp_path / "socket", "/dev/iommu").close()


def test_memories_of_processes_are_forgotten(server: Server, tmp_path: Path) -> None:
    with opened(server, tmp_path / "socket", "/dev/iommu") as iommu:
        assert asked(server, iommu, message(Kind.REQUEST, 0x3B64)) == (0, 0)
    settle(server)
    gc.collect()
    assert not server._memories


def test_memory_that_is_denied_is_said_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(*_: object) -> int:
        ctypes.set_errno(errno.EPERM)
        return -1

    monkeypatch.setattr(remote, "_libc", SimpleNamespace(process_vm_readv=denied, process_vm_writev=denied))
    with opened(server, tmp_path / "socket", "/dev/iommu") as iommu:
        for _ in range(2):
            assert asked(server, iommu, message(Kind.REQUEST, 0x3B81, 8)) == (0, -14)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"memory of process {os.getpid()} is denied: with kernel.yama.ptrace_scope=1" in said


def test_a_socket_whose_path_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="at most 107 bytes") as refused:
        Server(System(), tmp_path / ("x" * 108))
    assert refused.value.errno == errno.ENAMETOOLONG


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
        kind, request = chance.choice((0, 1, 1, 1, 2, 3, 9, 10, 11)), 0x3B00 | chance.randrange(0x60, 0x98)
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


@pytest.mark.row("space", 63)
@pytest.mark.parametrize("seed", range(3))
def test_random_use_of_a_device_leaves_the_server_whole(tmp_path: Path, seed: int) -> None:
    """Accesses, maps, and requests with random structures, of a device that is bound; sometimes with descriptors."""
    system, machine = build(load(Path("lab")))
    server = Server(system, tmp_path / "socket", machine)
    chance = random.Random(seed)
    numbers = [*range(0x6B, 0x79), 0x70, 0x81, 0x85, 0x86, 0x89]
    offsets = [index << 40 | at for index in (0, 2, 4, 7, 8) for at in (0, 4, 0x14, 0x18, 0xFFC, 0xFFFF)]
    kinds = (Kind.REQUEST, Kind.REQUEST, *(kind for kind in Kind if kind not in (Kind.OPEN, Kind.CLAIM)))
    event = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        for _ in range(6):
            iommu, device = (
                opened(server, tmp_path / "socket", f"/dev/{name}") for name in ("iommu", "vfio/devices/vfio0")
            )
            kept, place = at(struct.pack("<IIiIQ", 24, 0, 77, 0, 0).ljust(256, b"\0"))
            assert asked(server, device, message(Kind.REQUEST, 0x3B76, place)) == (1, 77)
            assert asked(server, device, message(Kind.IS, 0, number_of(iommu))) == (0, 0)
            for _ in range(60):
                words = [chance.choice((0, 1, 2, 3, 4, 24, 32, 64, 0x24, 1 << 31, event)) for _ in range(12)]
                kept[:48] = struct.pack("<12I", *words)
                kind = chance.choice(kinds)
                request = (
                    0x3B00 | chance.choice(numbers) if kind is Kind.REQUEST else chance.choice((0, 4, 64, 1 << 31))
                )
                argument = place if kind in (Kind.REQUEST, Kind.TAKE, Kind.PUT) else chance.choice(offsets)
                if kind is Kind.TAKE:
                    request = min(request, 64)  # it is written to this process
                behind = struct.pack("<Q", 4096) if kind is Kind.MAP else chance.randbytes(chance.choice((0, 4, 8, 64)))
                rights = [event] * (kind is Kind.COPY)
                with contextlib.suppress(OSError):
                    socket.send_fds(chance.choice((iommu, device)), [message(kind, request, argument, behind)], rights)
                settle(server)
                for sock in (iommu, device):
                    sock.setblocking(False)
                    with contextlib.suppress(OSError):
                        for fd in socket.recv_fds(sock, 8192, 1)[1]:
                            os.close(fd)
            iommu.close()
            device.close()
            settle(server)
            assert not server.connections
            assert all(each.owner is None for each in system.devices.values())
        assert not any(endpoint.failed for endpoint in machine.endpoints.values())
        assert system.hardware.engine.domains() == ()
    finally:
        os.close(event)
        server.close()
        machine.close()


def test_a_client_that_cannot_even_be_refused_is_looked_at_later(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left of the descriptors, and none comes back: the server rests instead of looking without end."""
    tried = []

    class Nobody:
        def accept(self) -> None:
            tried.append(1)
            raise OSError(errno.EMFILE, "none is left")

        def close(self) -> None:
            """See a socket."""

    listener = server._listener
    monkeypatch.setattr(server, "_listener", Nobody())
    monkeypatch.setattr(server._reserve, "_open", lambda: None)
    with connected(tmp_path / "socket") as waiting:
        settle(server)
        assert len(tried) <= 2
        monkeypatch.setattr(server, "_listener", listener)
        monkeypatch.setattr(server._reserve, "_open", spare)
        waiting.send(message(Kind.OPEN, behind=b"/dev/iommu"))
        for _ in range(100):
            server.step(0.1)
            if server.connections:
                break
        settle(server)
        assert unpacked(heard(waiting))[:2] == (0, 0)


def test_without_descriptors_a_request_fails_and_its_file_stays(server: Server, tmp_path: Path) -> None:
    """The file of the program has arrived, and there is no descriptor left for the mapping."""
    file = os.memfd_create("memory")
    os.truncate(file, 4096)
    kept, place = at(struct.pack("<IIIiQQQ", 40, 7, 1, 9, 0, 4096, 1 << 16))
    with opened(server, tmp_path / "socket", "/dev/iommu") as iommu:
        kept_too, space = at(struct.pack("<III", 12, 0, 0))
        assert asked(server, iommu, message(Kind.REQUEST, 0x3B81, space)) == (0, 0)
        gc.collect()  # what earlier tests have left
        open_before = len(os.listdir("/proc/self/fd"))
        assert asked(server, iommu, message(Kind.REQUEST, 0x3B8F, place)) == (1, 9)
        assert asked(server, iommu, message(Kind.IS, errno.EBADFD)) == (3, 9)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        socket.send_fds(iommu, [message(Kind.COPY)], [file])
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, before[1]))
        try:
            settle(server)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert unpacked(heard(iommu))[:2] == (0, -errno.EMFILE)
        assert len(os.listdir("/proc/self/fd")) == open_before
        assert asked(server, iommu, message(Kind.REQUEST, 0x3B64)) == (0, 0)
    os.close(file)
    del kept, kept_too


def test_what_was_opened_for_a_request_that_fails_is_closed(tmp_path: Path) -> None:
    """The structure came with the message, and cannot be written."""
    server = Server(System(mock=True), tmp_path / "socket")
    try:
        with opened(server, tmp_path / "socket", "/dev/iommu") as iommu:
            kept, space = at(struct.pack("<III", 12, 0, 0))
            assert asked(server, iommu, message(Kind.REQUEST, 0x3B81, space)) == (0, 0)
            create_access = struct.pack("<IIII56x", 72, 5, 1, 0)
            said = message(Kind.REQUEST, 0x3BA0, 4096, behind=create_access)
            assert asked(server, iommu, said) == (0, -errno.EFAULT)
            kept_too, number = at(struct.pack("<II", 8, 1))
            assert asked(server, iommu, message(Kind.REQUEST, 0x3B80, number)) == (0, 0), "nothing uses it"
            del kept, kept_too
    finally:
        server.close()


@pytest.mark.parametrize("close_fails", [False, True])
def test_a_fault_in_the_server_is_the_end_of_one_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, close_fails: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    path = tmp_path / "socket"
    with opened(server, path, "/dev/iommu") as iommu, opened(server, path, "/dev/vfio/devices/vfio0") as device:
        with monkeypatch.context() as patched:
            patched.setattr(server, "_carry_out", fail)
            if close_fails:
                patched.setattr(server, "_forget_opened", fail)
            assert asked(server, iommu, message(Kind.REQUEST, 0x3B64)) is None
        assert asked(server, device, message(Kind.REQUEST, 0x3B64)) is not None
    settle(server)
    failed = [record for record in caplog.records if record.exc_info]
    assert [record.exc_info[0] for record in failed] == [ZeroDivisionError] * (1 + close_fails)
    caplog.clear()
