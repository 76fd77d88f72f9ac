"""The client against a session over a real socket, and against servers that answer nonsense."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
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
    server.sendall(reply(77, Command.DMA_READ, bytes(16), flags=0) + reply(0, Command.DEVICE_RESET))
    client.reset()
    received = server.recv(4096)
    assert Header.unpack(received, 16) == Header(77, Command.DMA_READ, 16, 1 | HeaderFlags.ERROR, errno.ENOSYS)


def test_request_of_the_server_without_reply_is_passed_over(alone: tuple[Client, socket.socket]) -> None:
    client, server = alone
    server.sendall(reply(77, Command.DMA_WRITE, bytes(16), flags=HeaderFlags.NO_REPLY) + reply(0, Command.DEVICE_RESET))
    client.reset()
    assert len(server.recv(4096)) == 16


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
