"""The client against a session over a real socket, and against servers that answer nonsense."""

from __future__ import annotations

import errno
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from vfio_user import (
    Client,
    Command,
    DmaMapFlags,
    Header,
    HeaderFlags,
    IrqAction,
    IrqIndex,
    IrqKind,
    ProtocolError,
    RegionIndex,
    RemoteError,
    Session,
    SessionLimits,
    State,
    transport,
)

TIMEOUT = 20


def serve(sock: socket.socket, session: Session) -> None:
    """Serve one client until it leaves, reading only what is wanted."""
    with sock:
        while session.state is not State.CLOSED:
            select.select([sock], [], [], TIMEOUT)
            chunk = transport.receive(sock, session.wanted)
            if chunk is None:
                session.eof()
            else:
                session.receive(*chunk)
            result = transport.flush(sock, session.outgoing)
            while result is transport.Flush.BLOCKED:
                select.select([], [sock], [], TIMEOUT)
                result = transport.flush(sock, session.outgoing)


@pytest.fixture
def connected(device: Any, no_fd_leak: None) -> Iterator[Callable[..., Client]]:
    """Makes clients of ``device``, each with limits of either side, and waits for their servers in the end."""
    running: list[tuple[Client, threading.Thread]] = []

    def make(server: SessionLimits | None = None, client: SessionLimits | None = None) -> Client:
        ours, theirs = socket.socketpair()
        ours.settimeout(TIMEOUT)
        theirs.setblocking(False)
        thread = threading.Thread(target=serve, args=(theirs, Session(device, server)))
        thread.start()
        found = Client(ours, client)
        running.append((found, thread))
        found.negotiate()
        return found

    yield make
    for client, thread in running:
        client.close()
        thread.join()


@pytest.fixture
def client(connected: Callable[..., Client]) -> Client:
    return connected()


def test_negotiation_learns_the_limits_of_the_server(connected: Callable[..., Client]) -> None:
    client = connected(SessionLimits(max_msg_fds=3, max_data_xfer_size=8192, max_dma_maps=7))
    assert (client.minor, client.server.max_msg_fds) == (0, 3)
    assert (client.server.max_data_xfer_size, client.server.max_dma_maps) == (8192, 7)


def test_device_region_and_irq_info_arrive(client: Client) -> None:
    assert (client.device_info().num_regions, client.irq_info(IrqIndex.MSIX).count) == (9, 4)
    with_areas = client.region_info(RegionIndex.BAR2)
    assert (with_areas.size, with_areas.offset, with_areas.areas) == (16384, 4096, ((0, 4096), (8192, 4096)))
    assert with_areas.fd is not None
    with_areas.close()
    plain = client.region_info(RegionIndex.BAR0)
    assert (plain.size, plain.areas, plain.fd) == (4096, (), None)


def test_mapped_region_shares_memory_with_the_device(client: Client) -> None:
    areas = client.map_region(RegionIndex.BAR2)
    assert [(area.offset, len(area.memory)) for area in areas] == [(0, 4096), (8192, 4096)]
    areas[1].memory[5:9] = b"ring"
    assert client.region_read(RegionIndex.BAR2, 8192 + 5, 4) == b"ring"
    client.region_write(RegionIndex.BAR2, 3, b"bell")
    assert areas[0].memory[3:7] == b"bell"
    assert client.map_region(RegionIndex.BAR0) == []


def test_msix_eventfds_fire_until_disabled(client: Client, device: Any) -> None:
    events = client.enable_msix(4)
    device.interrupts.trigger(IrqIndex.MSIX, 2)
    ready, _, _ = select.select(events, [], [], TIMEOUT)
    assert ready == [events[2]]
    assert os.eventfd_read(events[2]) == 1
    client.disable_irqs(IrqIndex.MSIX)
    assert not device.interrupts.trigger(IrqIndex.MSIX, 2)
    for fd in events:
        os.close(fd)


def test_more_eventfds_than_the_server_takes_go_in_parts(connected: Callable[..., Client], device: Any) -> None:
    client = connected(SessionLimits(max_msg_fds=3))
    for fd in client.enable_msix(4):
        os.close(fd)
    assert device.calls == ["set_irqs", "set_irqs"]
    assert all(device.interrupts.armed(IrqIndex.MSIX, vector) for vector in range(4))


def test_set_irqs_sends_bools(client: Client, device: Any) -> None:
    events = client.enable_msix(2)
    client.set_irqs(IrqIndex.MSIX, IrqAction.TRIGGER, IrqKind.BOOL, 0, 2, flags=(False, True))
    assert select.select(events, [], [], TIMEOUT)[0] == [events[1]]
    for fd in events:
        os.close(fd)


def test_enable_msix_that_is_refused_closes_its_eventfds(client: Client) -> None:
    with pytest.raises(RemoteError) as refused:
        client.enable_msix(5)
    assert refused.value.errno == errno.EINVAL


def test_posted_write_is_seen_by_the_next_read(client: Client) -> None:
    client.region_write(RegionIndex.BAR0, 16, b"posted", posted=True)
    assert client.region_read(RegionIndex.BAR0, 16, 6) == b"posted"


def test_configuration_space_is_read_and_written_as_integers(client: Client) -> None:
    assert client.config_read(0, 4) == 0x11011AF4
    client.config_write(4, 2, 0x0406)
    assert client.config_read(5, 1) == 0x04


def test_transfers_are_cut_to_what_the_server_takes(connected: Callable[..., Client], device: Any) -> None:
    device.memory[RegionIndex.BAR0] = bytearray(20000)
    client = connected(SessionLimits(max_data_xfer_size=4096))
    data = bytes(range(250)) * 80
    client.region_write(RegionIndex.BAR0, 0, data)
    assert client.region_read(RegionIndex.BAR0, 0, 20000) == data
    assert len(device.calls) == 10


def test_transfers_are_cut_to_what_the_client_itself_takes(connected: Callable[..., Client], device: Any) -> None:
    client = connected(client=SessionLimits(max_data_xfer_size=4096))
    client.region_write(RegionIndex.BAR2, 0, bytes(range(256)) * 64)
    assert client.region_read(RegionIndex.BAR2, 0, 16384) == bytes(range(256)) * 64
    assert device.calls == ["region_write"] * 4 + ["region_read"] * 4


def test_full_transfer_survives_partial_writes(client: Client, device: Any) -> None:
    device.memory[RegionIndex.BAR0] = bytearray(1 << 20)
    data = os.urandom(1 << 20)
    client.region_write(RegionIndex.BAR0, 0, data)
    assert client.region_read(RegionIndex.BAR0, 0, 1 << 20) == data


def test_dma_maps_reach_the_device_with_descriptor_and_flags(client: Client, device: Any) -> None:
    memory = os.memfd_create("guest")
    client.dma_map(0x1000, 0x2000, memory, 0x3000, DmaMapFlags.READ)
    os.close(memory)
    (mapping,) = device.maps.values()
    assert (mapping.address, mapping.size, mapping.offset) == (0x1000, 0x2000, 0x3000)
    assert (mapping.readable, mapping.writable, mapping.fd is None) == (True, False, False)
    client.dma_unmap(0x1000, 0x2000)
    assert device.maps == {}
    client.dma_map(0, 0x1000)
    client.dma_unmap_all()
    assert device.maps == {}


def test_more_maps_than_the_server_takes_are_not_even_sent(connected: Callable[..., Client], device: Any) -> None:
    client = connected(SessionLimits(max_dma_maps=1))
    client.dma_map(0, 4096)
    with pytest.raises(ValueError, match="1 at a time"):
        client.dma_map(4096, 4096)
    assert device.calls == ["dma_map"]


def test_an_unmap_over_several_maps_makes_room_for_as_many(connected: Callable[..., Client], device: Any) -> None:
    client = connected(SessionLimits(max_dma_maps=3))
    for address in (0x1000, 0x2000, 0x3000):
        client.dma_map(address, 0x1000)
    client.dma_unmap(0x1000, 0x2000)
    assert list(device.maps) == [(0x3000, 0x1000)]
    for address in (0x4000, 0x5000):
        client.dma_map(address, 0x1000)
    with pytest.raises(ValueError, match="3 at a time"):
        client.dma_map(0x6000, 0x1000)


def test_refusal_is_a_remote_error_and_the_connection_survives(client: Client, device: Any) -> None:
    with pytest.raises(RemoteError, match="DMA_UNMAP refused") as refused:
        client.dma_unmap(0, 4096)
    assert refused.value.errno == errno.ENOENT
    with pytest.raises(RemoteError, match="command 999 refused"):
        client.request(999)
    client.reset()
    assert device.calls[-1] == "reset"


def test_raw_request_without_reply_returns_none(client: Client) -> None:
    assert client.request(Command.DEVICE_RESET, no_reply=True) is None
    reply = client.request(Command.DEVICE_RESET)
    assert reply == (b"", [])


def test_leaving_client_disconnects_the_device_once(device: Any, tmp_path: Path, no_fd_leak: None) -> None:
    path = tmp_path / "s"
    with transport.listen(path) as listener:

        def run() -> None:
            select.select([listener], [], [], TIMEOUT)
            sock = transport.accept(listener)
            if sock is not None:
                serve(sock, Session(device))

        thread = threading.Thread(target=run)
        thread.start()
        with Client.connect(path, TIMEOUT) as client:
            client.device_info()
        thread.join()
    assert device.calls == ["describe", "disconnected"]


def test_a_client_whose_socket_does_not_block_has_others_work_meanwhile(device: Any, no_fd_leak: None) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least there is
    session = Session(device)
    waits = {"full": 0, "empty": 0}

    def idle() -> None:
        """The server's turn, in the same thread."""
        waits["full" if not select.select([], [ours], [], 0)[1] else "empty"] += 1
        while select.select([theirs], [], [], 0)[0]:
            session.receive(*transport.receive(theirs) or (b"", []))
            transport.flush(theirs, session.outgoing)

    with Client(ours, idle=idle) as client, theirs:
        client.negotiate()
        client.region_write(RegionIndex.BAR0, 0, bytes(range(256)) * 16)
        client.send(Header(99, Command.DEVICE_RESET, 16, HeaderFlags.NO_REPLY, 0).pack() * 500)
        assert client.region_read(RegionIndex.BAR0, 0, 4096) == bytes(range(256)) * 16
    assert min(waits.values()) > 0


# --- servers that answer nonsense ------------------------------------------------------------------------------------


@pytest.fixture
def alone(no_fd_leak: None) -> Iterator[tuple[Client, socket.socket]]:
    """A client and the other end of its socket, on which the test writes answers beforehand."""
    ours, theirs = socket.socketpair()
    ours.settimeout(TIMEOUT)
    with Client(ours) as client, theirs:
        yield client, theirs


def reply(number: int, command: int, payload: bytes = b"", flags: int = 1, error: int = 0) -> bytes:
    return Header(number, command, 16 + len(payload), flags, error).pack() + payload


@pytest.mark.parametrize(
    "answer",
    [
        reply(1, Command.DEVICE_GET_INFO, bytes(16)),
        reply(0, Command.DEVICE_RESET, bytes(16)),
        reply(0, Command.DEVICE_GET_INFO, bytes(16), flags=2),
        reply(0, Command.DEVICE_GET_INFO, bytes(15)),
        Header(0, Command.DEVICE_GET_INFO, 15, 1, 0).pack(),
    ],
)
def test_wrong_reply_is_a_protocol_error(alone: tuple[Client, socket.socket], answer: bytes) -> None:
    client, server = alone
    server.sendall(answer)
    with pytest.raises(ProtocolError):
        client.device_info()


def test_descriptor_in_a_reply_that_has_none_is_closed_and_an_error(alone: tuple[Client, socket.socket]) -> None:
    client, server = alone
    socket.send_fds(server, [reply(0, Command.DEVICE_RESET)], [server.fileno()])
    with pytest.raises(ProtocolError, match="1 descriptors"):
        client.reset()


def test_version_above_the_proposed_is_a_protocol_error(alone: tuple[Client, socket.socket]) -> None:
    client, server = alone
    server.sendall(reply(0, Command.VERSION, struct.pack("<HH", 0, 1)))
    with pytest.raises(ProtocolError, match=r"0\.1 to 0\.0"):
        client.negotiate()


def test_read_reply_of_another_length_is_a_protocol_error(alone: tuple[Client, socket.socket]) -> None:
    client, server = alone
    server.sendall(reply(0, Command.REGION_READ, struct.pack("<QII", 0, 7, 4) + b"toolong"))
    with pytest.raises(ProtocolError, match="asked to read region 7"):
        client.region_read(7, 0, 4)


@pytest.mark.parametrize(
    ("cap_offset", "capability"),
    [
        (16, bytes(32)),
        (4096, bytes(32)),
        (32, struct.pack("<HHI", 9, 1, 32) + bytes(24)),
        (32, struct.pack("<HHIII", 1, 1, 0, 0xFFFFFFFF, 0) + bytes(16)),
    ],
)
def test_broken_capabilities_are_a_protocol_error(
    alone: tuple[Client, socket.socket], cap_offset: int, capability: bytes
) -> None:
    client, server = alone
    info = struct.pack("<IIIIQQ", 64, 15, 2, cap_offset, 4096, 0)
    socket.send_fds(server, [reply(0, Command.DEVICE_GET_REGION_INFO, info + capability)], [server.fileno()])
    with pytest.raises(ProtocolError, match="region 2"):
        client.region_info(2)


def test_request_of_the_server_is_refused_while_waiting(alone: tuple[Client, socket.socket]) -> None:
    client, server = alone

    def run() -> bytes:
        received = server.recv(4096)
        server.sendall(reply(77, 999, bytes(16), flags=0) + reply(0, Command.DEVICE_RESET))
        return received + server.recv(4096)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run)
        client.reset()
        received = future.result(TIMEOUT)
    assert Header.unpack(received, 16) == Header(77, 999, 16, 1 | HeaderFlags.ERROR, errno.ENOSYS)


def test_request_of_the_server_without_reply_is_passed_over(alone: tuple[Client, socket.socket]) -> None:
    client, server = alone
    server.sendall(reply(77, Command.DMA_WRITE, bytes(16), flags=HeaderFlags.NO_REPLY) + reply(0, Command.DEVICE_RESET))
    client.reset()
    assert len(server.recv(4096)) == 16


def test_a_region_with_a_descriptor_for_each_area_is_mapped_by_them(alone: tuple[Client, socket.socket]) -> None:
    client, server = alone
    info = struct.pack("<IIIIQQHHIII", 80, 15, 1, 32, 3 * 4096, 4096, 1, 1, 0, 2, 0)
    areas = struct.pack("<QQQQ", 0, 4096, 8192, 4096)
    files = [os.memfd_create(f"area {number}") for number in range(2)]
    for number, fd in enumerate(files):
        os.truncate(fd, 4 * 4096)
        os.pwrite(fd, b"area %d" % number, 4096 + 8192 * number)
    socket.send_fds(server, [reply(0, Command.DEVICE_GET_REGION_INFO, info + areas)], files)
    mapped = client.map_region(1)
    assert [(area.offset, area.memory[:6]) for area in mapped] == [(0, b"area 0"), (8192, b"area 1")]
    for fd in files:
        os.close(fd)


def test_descriptors_that_no_area_is_for_are_a_protocol_error(alone: tuple[Client, socket.socket]) -> None:
    client, server = alone
    info = struct.pack("<IIIIQQ", 32, 7, 1, 0, 4096, 0)
    socket.send_fds(server, [reply(0, Command.DEVICE_GET_REGION_INFO, info)], [server.fileno()] * 2)
    with pytest.raises(ProtocolError, match="0 areas and 2 descriptors"):
        client.region_info(1)


def test_short_region_info_is_a_protocol_error_and_its_descriptor_closed(alone: tuple[Client, socket.socket]) -> None:
    client, server = alone
    socket.send_fds(server, [reply(0, Command.DEVICE_GET_REGION_INFO, bytes(31))], [server.fileno()])
    with pytest.raises(ProtocolError, match="shorter than 32 bytes"):
        client.region_info(2)


def test_region_info_larger_than_any_message_is_a_protocol_error(alone: tuple[Client, socket.socket]) -> None:
    client, server = alone
    info = struct.pack("<IIIIQQ", (1 << 20) + 1, 7, 2, 0, 4096, 0)
    server.sendall(reply(0, Command.DEVICE_GET_REGION_INFO, info))
    with pytest.raises(ProtocolError, match="larger than any message"):
        client.region_info(2)


def test_closing_closes_the_descriptors_of_messages_that_nobody_took(alone: tuple[Client, socket.socket]) -> None:
    client, server = alone
    first = reply(0, Command.DEVICE_RESET)
    socket.send_fds(server, [first + reply(1, Command.DEVICE_RESET)], [server.fileno()])
    server.sendall(Header(2, Command.DEVICE_RESET, 0, 1, 0).pack())
    client.reset()
    client.close()


def test_closing_passes_over_an_impossible_message_that_nobody_took(alone: tuple[Client, socket.socket]) -> None:
    client, server = alone
    server.sendall(reply(0, Command.DEVICE_RESET) + Header(1, Command.DEVICE_RESET, 0, 1, 0).pack())
    client.reset()
    client.close()
    assert len(server.recv(4096)) == 16
    assert server.recv(4096) == b""


def test_more_descriptors_than_vectors_are_not_even_sent(client: Client) -> None:
    fds = [0] * (client.server.max_msg_fds + 1)
    with pytest.raises(ValueError, match="one each"):
        client.set_irqs(2, IrqAction.TRIGGER, IrqKind.EVENTFD, 0, 1, fds=fds)


def test_vanished_server_is_a_connection_error(alone: tuple[Client, socket.socket]) -> None:
    client, server = alone
    server.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionResetError, match="closed the connection"):
        client.reset()
    server.close()
    with pytest.raises(ConnectionResetError):
        client.reset()
    with pytest.raises(ConnectionResetError):
        client.send(bytes(16))


def test_silent_server_is_a_timeout(no_fd_leak: None) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(0.01)
    with Client(ours) as client, theirs, pytest.raises(TimeoutError):
        client.reset()


def test_connect_that_fails_to_negotiate_leaves_nothing_open(tmp_path: Path, no_fd_leak: None) -> None:
    path = tmp_path / "s"
    with transport.listen(path) as listener:

        def run() -> None:
            select.select([listener], [], [], TIMEOUT)
            transport.accept(listener).close()  # type: ignore[union-attr]

        thread = threading.Thread(target=run)
        thread.start()
        with pytest.raises(ConnectionResetError):
            Client.connect(path, TIMEOUT)
        thread.join()


# --- memory that a server reaches by messages -------------------------------------------------------------------------

PAGE = 4096


def asks(address: int, count: int, data: bytes | None = None, number: int = 77, flags: int = 0) -> bytes:
    """A DMA_READ of a server, or with ``data`` a DMA_WRITE."""
    command = Command.DMA_READ if data is None else Command.DMA_WRITE
    return reply(number, command, struct.pack("<QQ", address, count) + (data or b""), flags)


@pytest.fixture
def memory() -> Iterator[int]:
    """A file of four pages, page n full of byte n."""
    fd = os.memfd_create("guest")
    os.write(fd, b"".join(bytes([page]) * PAGE for page in range(4)))
    yield fd
    os.close(fd)


@pytest.fixture
def mapped(alone: tuple[Client, socket.socket], memory: int) -> tuple[Client, socket.socket]:
    """At 0x10000: two pages of a file, the second read-only, one page without any memory, and one of a bytearray."""
    client, server = alone
    server.sendall(b"".join(reply(number, Command.DMA_MAP) for number in range(4)))
    client.dma_map(0x10000, PAGE, memory, 2 * PAGE)
    client.dma_map(0x11000, PAGE, memory, 3 * PAGE, DmaMapFlags.READ)
    client.dma_map(0x12000, PAGE)
    client.dma_map(0x13000, PAGE, memory=bytearray(b"bytes" * PAGE))
    while select.select([server], [], [], 0)[0]:
        for fd in socket.recv_fds(server, 4096, 4)[1]:
            os.close(fd)
    return client, server


def answered(client: Client, server: socket.socket, request: bytes) -> int | bytes:
    """The errno of the client's answer, or the bytes that follow the place asked for."""
    server.sendall(request)
    assert client.serve() == 1
    answer = server.recv(1 << 16)
    header = Header.unpack(answer)
    assert (header.id, header.command, header.size) == (77, Header.unpack(request).command, len(answer))
    if header.flags & HeaderFlags.ERROR:
        assert (header.flags, len(answer)) == (1 | HeaderFlags.ERROR, 16)
        return header.error
    assert (header.flags, header.error, answer[16:32]) == (1, 0, request[16:32])
    return answer[32:]


def test_a_server_reads_what_is_mapped_over_the_ends_of_maps(mapped: tuple[Client, socket.socket]) -> None:
    assert answered(*mapped, asks(0x10FFE, 4)) == b"\2\2\3\3"
    assert answered(*mapped, asks(0x13001, 4)) == b"ytes"
    assert answered(*mapped, asks(0x13000, 0)) == b""


def test_a_server_writes_what_is_mapped(mapped: tuple[Client, socket.socket], memory: int) -> None:
    assert answered(*mapped, asks(0x10004, 3, b"dma")) == b""
    assert os.pread(memory, 5, 2 * PAGE + 3) == b"\2dma\2"
    assert answered(*mapped, asks(0x13FFE, 2, b"!?")) == b""
    assert answered(*mapped, asks(0x13FFC, 4)) == b"te!?"


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        pytest.param(asks(0x14000, 1), errno.ENODEV, id="nothing is mapped"),
        pytest.param(asks(0x13FFF, 2), errno.ENODEV, id="runs off the end"),
        pytest.param(asks(0xFFFF_FFFF_FFFF_FFFF, 2), errno.ENODEV, id="wraps"),
        pytest.param(asks(0x12000, 1), errno.ENODEV, id="mapped without memory"),
        pytest.param(asks(0x10FFF, 2, b"xx"), errno.ENODEV, id="second page is read-only"),
        pytest.param(asks(0x10000, PAGE + 1), errno.E2BIG, id="more than the client takes"),
        pytest.param(asks(0x10000, 2, b"x"), errno.EINVAL, id="less data than announced"),
        pytest.param(asks(0x10000, 1, b"xy"), errno.EINVAL, id="more data than announced"),
        pytest.param(reply(77, Command.DMA_READ, bytes(15), 0), errno.EINVAL, id="too short"),
        pytest.param(reply(77, Command.DEVICE_RESET, b"", 0), errno.ENOSYS, id="another command"),
    ],
)
def test_a_request_that_cannot_be_served_changes_nothing(
    mapped: tuple[Client, socket.socket], memory: int, request_: bytes, expected: int
) -> None:
    client, server = mapped
    client._limits = SessionLimits(max_data_xfer_size=PAGE)
    before = os.pread(memory, 4 * PAGE, 0)
    assert answered(client, server, request_) == expected
    assert os.pread(memory, 4 * PAGE, 0) == before


def test_what_the_file_refuses_is_the_answer(alone: tuple[Client, socket.socket], tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(bytes(100))
    client, server = alone
    server.sendall(reply(0, Command.DMA_MAP) + reply(1, Command.DMA_MAP))
    with (tmp_path / "short").open("rb") as file:
        client.dma_map(0, PAGE, file.fileno())
    reader, writer = os.pipe()
    client.dma_map(PAGE, PAGE, reader)
    os.close(reader)
    os.close(writer)
    for fd in socket.recv_fds(server, 4096, 4)[1] + socket.recv_fds(server, 4096, 4)[1]:
        os.close(fd)
    assert answered(client, server, asks(0, 100)) == bytes(100)
    assert answered(client, server, asks(99, 2)) == errno.ENODEV
    assert answered(client, server, asks(0, 1, b"x")) == errno.EBADF
    assert answered(client, server, asks(PAGE, 1)) == errno.ESPIPE


def test_a_write_does_not_make_a_file_longer(mapped: tuple[Client, socket.socket], memory: int) -> None:
    os.truncate(memory, 2 * PAGE + 100)
    assert answered(*mapped, asks(0x10000 + 99, 2, b"xy")) == errno.ENODEV
    assert answered(*mapped, asks(0x10000 + 98, 2, b"xy")) == b""
    assert os.fstat(memory).st_size == 2 * PAGE + 100


def test_memory_that_is_closed_or_shrinks_is_no_memory(alone: tuple[Client, socket.socket]) -> None:
    client, server = alone
    server.sendall(reply(0, Command.DMA_MAP) + reply(1, Command.DMA_MAP))
    closed, shrunk = mmap.mmap(-1, PAGE), bytearray(PAGE)
    client.dma_map(0, PAGE, memory=closed)
    client.dma_map(PAGE, PAGE, memory=shrunk)
    server.recv(4096)
    closed.close()
    del shrunk[100:]
    for request in (asks(0, 1), asks(0, 1, b"x"), asks(PAGE + 99, 2), asks(PAGE + 99, 2, b"xy")):
        assert answered(client, server, request) == errno.ENODEV
    assert answered(client, server, asks(PAGE + 99, 1)) == b"\0"


def test_a_place_that_is_mapped_again_is_of_the_new_memory(mapped: tuple[Client, socket.socket]) -> None:
    client, server = mapped
    server.sendall(reply(4, Command.DMA_MAP))
    client.dma_map(0x13000, PAGE, memory=bytearray(PAGE))
    server.recv(4096)
    assert answered(client, server, asks(0x13000, 2)) == b"\0\0"


def test_a_map_that_is_refused_leaves_the_one_that_was_there(
    mapped: tuple[Client, socket.socket], tmp_path: Path
) -> None:
    client, server = mapped
    server.sendall(reply(4, Command.DMA_MAP, flags=0x21, error=errno.EEXIST))
    with (tmp_path / "other").open("w+b") as other, pytest.raises(RemoteError):
        client.dma_map(0x10000, PAGE, other.fileno())
    for fd in socket.recv_fds(server, 4096, 4)[1]:
        os.close(fd)
    assert answered(client, server, asks(0x10000, 1)) == b"\2"


def test_a_descriptor_with_a_dma_message_is_closed_and_einval(mapped: tuple[Client, socket.socket]) -> None:
    client, server = mapped
    socket.send_fds(server, [asks(0x10000, 1)], [server.fileno()])
    assert client.serve() == 1
    assert Header.unpack(server.recv(4096)).error == errno.EINVAL


def test_a_map_that_is_undone_is_out_of_reach_and_its_file_is_let_go(mapped: tuple[Client, socket.socket]) -> None:
    client, server = mapped
    before = len(os.listdir("/proc/self/fd"))
    for number, (address, expected) in enumerate([(0x10000, before), (0x11000, before - 1)]):
        server.sendall(reply(4 + number, Command.DMA_UNMAP))
        client.dma_unmap(address, PAGE)
        server.recv(4096)
        assert answered(client, server, asks(address, 1)) == errno.ENODEV
        assert len(os.listdir("/proc/self/fd")) == expected


def test_a_thousand_maps_of_one_file_keep_one_descriptor(alone: tuple[Client, socket.socket], memory: int) -> None:
    client, server = alone
    server.sendall(b"".join(reply(number, Command.DMA_MAP) for number in range(1000)))
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1000):
        client.dma_map(number * PAGE, PAGE, memory)
        for fd in socket.recv_fds(server, 4096, 1)[1]:
            os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before + 1


def test_less_memory_than_the_map_is_not_even_sent(alone: tuple[Client, socket.socket]) -> None:
    client, server = alone
    with pytest.raises(ValueError, match="0x1000: its memory has 0xfff bytes"):
        client.dma_map(0, PAGE, memory=bytearray(PAGE - 1))
    assert select.select([server], [], [], 0)[0] == []


@pytest.mark.parametrize(
    ("memory", "what"),
    [
        (memoryview(bytes(PAGE)), "is read-only: map it without WRITE"),
        (mmap.mmap(-1, PAGE, prot=mmap.PROT_READ), "is read-only: map it without WRITE"),
        (memoryview(bytearray(2 * PAGE))[::2], "is not contiguous"),
    ],
)
def test_memory_that_cannot_be_what_is_mapped_is_not_even_sent(
    alone: tuple[Client, socket.socket], memory: memoryview | mmap.mmap, what: str
) -> None:
    client, server = alone
    with pytest.raises(ValueError, match=rf"map 0x5000\+0x1000: its memory {what}"):
        client.dma_map(0x5000, PAGE, memory=memory)
    assert select.select([server], [], [], 0)[0] == []


def test_read_only_memory_is_mapped_without_write_and_no_server_writes_it(alone: tuple[Client, socket.socket]) -> None:
    client, server = alone
    server.sendall(reply(0, Command.DMA_MAP))
    client.dma_map(0, PAGE, flags=DmaMapFlags.READ, memory=memoryview(b"bytes" * PAGE))
    server.recv(4096)
    assert answered(client, server, asks(1, 4)) == b"ytes"
    assert answered(client, server, asks(1, 4, b"four")) == errno.ENODEV


def test_what_the_server_asks_meanwhile_is_served_before_its_reply(mapped: tuple[Client, socket.socket]) -> None:
    client, server = mapped

    def run() -> list[bytes]:
        received = [server.recv(4096)]
        for request in (asks(0x13000, 5), asks(0x13000, 5, b"other")):
            server.sendall(request)
            received.append(server.recv(4096))
        server.sendall(reply(4, Command.DEVICE_RESET))
        return received

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run)
        client.reset()
        sent, read, written = future.result(TIMEOUT)
    assert (Header.unpack(sent).command, read[32:], len(written)) == (Command.DEVICE_RESET, b"bytes", 32)
    assert answered(client, server, asks(0x13000, 5)) == b"other"


@pytest.mark.parametrize("posted", [False, True])
def test_what_the_server_has_asked_is_answered_before_a_request(
    mapped: tuple[Client, socket.socket], posted: bool
) -> None:
    client, server = mapped
    server.sendall(asks(0x13000, 2))
    if not posted:
        server.sendall(reply(4, Command.DEVICE_RESET))
    client.request(Command.DEVICE_RESET, no_reply=posted)
    received = server.recv(4096)
    assert [Header.unpack(received, at).command for at in (0, 34)] == [Command.DMA_READ, Command.DEVICE_RESET]


def test_a_request_of_which_a_part_has_come_is_waited_for(mapped: tuple[Client, socket.socket]) -> None:
    client, server = mapped
    request = asks(0x13000, 2000, bytes(2000))
    server.sendall(request[:1000])
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(client.request, Command.DEVICE_RESET, no_reply=True)
        assert select.select([server], [], [], 0.01)[0] == []
        server.sendall(request[1000:])
        future.result(TIMEOUT)
    assert Header.unpack(server.recv(4096)).command == Command.DMA_WRITE


def test_serving_waits_as_long_as_it_is_told_and_leaves_replies_alone(mapped: tuple[Client, socket.socket]) -> None:
    client, server = mapped
    assert select.select([client], [], [], 0)[0] == []
    assert (client.serve(), client.serve(0.001)) == (0, 0)
    sent = asks(0x13000, 1) * 2 + reply(4, Command.DEVICE_RESET)
    threading.Timer(0.01, server.sendall, [sent]).start()
    assert client.serve(TIMEOUT) == 2
    assert client.serve(TIMEOUT) == 0
    client.reset()


def test_serving_tells_that_the_server_is_gone(mapped: tuple[Client, socket.socket]) -> None:
    client, server = mapped
    server.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionResetError, match="closed the connection"):
        client.serve(TIMEOUT)


def test_a_dma_message_without_reply_is_carried_out_in_silence(mapped: tuple[Client, socket.socket]) -> None:
    client, server = mapped
    server.sendall(asks(0x13000, 5, b"quiet", flags=HeaderFlags.NO_REPLY))
    assert client.serve() == 1
    assert answered(client, server, asks(0x13000, 5)) == b"quiet"
