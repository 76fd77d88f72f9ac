"""A session answers every request as the protocol says, and nothing that a client sends raises out of it."""

from __future__ import annotations

import errno
import gc
import logging
import os
import struct
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfio_user import Command, DeviceInfo, Header, HeaderFlags, RequestError, Session, SessionLimits, State
from vfio_user.messages import REGION_COUNT
from vfio_user.outbox import Outbox

EINVAL = errno.EINVAL
READ_WRITE = 3
ALL = 2
TRIGGER, MASK, UNMASK = 32, 8, 16
NONE, BOOL, EVENTFD = 1, 2, 4
BAR0, BAR1, BAR2, CONFIG = 0, 1, 2, 7
MSIX, ERR = 2, 3
WRITE_MULTIPLE = b'\0\0\0\0{"capabilities":{"write_multiple":true}}\0'


def dma_map(argsz: int = 32, flags: int = 3, offset: int = 0, address: int = 0x1000, size: int = 0x1000) -> bytes:
    return struct.pack("<IIQQQ", argsz, flags, offset, address, size)


def dma_unmap(argsz: int = 24, flags: int = 0, address: int = 0x1000, size: int = 0x1000) -> bytes:
    return struct.pack("<IIQQ", argsz, flags, address, size)


def region_info(argsz: int, index: int) -> bytes:
    return struct.pack("<IIIIQQ", argsz, 0, index, 0, 0, 0)


def four(argsz: int = 16, second: int = 0, third: int = 0, fourth: int = 0) -> bytes:
    return struct.pack("<IIII", argsz, second, third, fourth)


def set_irqs(
    flags: int, index: int = MSIX, start: int = 0, count: int = 1, argsz: int = 20, bools: bytes = b""
) -> bytes:
    return struct.pack("<IIIII", argsz, flags, index, start, count) + bools


def access(region: int, offset: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<QII", offset, region, count) + data


def multi(*entries: tuple[int, int, bytes], count: int | None = None) -> bytes:
    packed = b"".join(struct.pack("<QII8s", offset, region, len(data), data) for region, offset, data in entries)
    return struct.pack("<Q", len(entries) if count is None else count) + packed


class Peer:
    """A client of one session, without sockets."""

    def __init__(self, device: Any, limits: SessionLimits | None = None, refusal: RequestError | None = None) -> None:
        self.session = Session(device, limits, refusal=refusal)
        self.fds: tuple[int, ...] = ()
        self._id = 0x4242

    def send(self, command: int, payload: bytes = b"", flags: int = 0, fds: tuple[int, ...] = ()) -> None:
        self._id += 1
        header = Header(self._id & 0xFFFF, command, 16 + len(payload), flags, 0)
        self.session.receive(header.pack() + payload, list(fds))

    def ask(self, command: int, payload: bytes = b"", flags: int = 0, fds: tuple[int, ...] = ()) -> int | bytes:
        """The errno of an error reply, or the payload of another; checks the rest of the reply."""
        self.send(command, payload, flags, fds)
        (item,) = self.session.outgoing
        self.session.outgoing.clear()
        self.fds = item.fds
        header = Header.unpack(item.data)
        assert (header.id, header.command, header.size) == (self._id & 0xFFFF, command & 0xFFFF, len(item.data))
        if header.flags & HeaderFlags.ERROR:
            assert (header.flags, len(item.data), item.fds) == (0x21, 16, ())
            assert header.error > 0
            return header.error
        assert (header.flags, header.error) == (1, 0)
        return item.data[16:]


@pytest.fixture
def fresh(device: Any, no_fd_leak: None) -> Iterator[Peer]:
    """A session before VERSION."""
    peer = Peer(device)
    yield peer
    peer.session.eof()


@pytest.fixture
def peer(fresh: Peer) -> Peer:
    """A session that has negotiated."""
    assert isinstance(fresh.ask(Command.VERSION, b"\0\0\0\0"), bytes)
    return fresh


@pytest.fixture
def several(device: Any, no_fd_leak: None) -> Iterator[Peer]:
    """A session that has negotiated write_multiple."""
    peer = Peer(device, SessionLimits(write_multiple=True))
    assert isinstance(peer.ask(Command.VERSION, WRITE_MULTIPLE), bytes)
    yield peer
    peer.session.eof()


def eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def memfd() -> int:
    return os.memfd_create("ram", os.MFD_CLOEXEC)


def devnull() -> int:
    return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


# --- VERSION ---------------------------------------------------------------------------------------------------------


def test_version_starts_the_session(fresh: Peer) -> None:
    reply = fresh.ask(Command.VERSION, b"\0\0\0\0")
    assert isinstance(reply, bytes)
    assert reply.endswith(b"\0")
    assert fresh.session.state is State.RUNNING


def test_session_knows_what_its_client_can_receive(fresh: Peer) -> None:
    assert fresh.session.client.max_msg_fds == 1
    fresh.ask(Command.VERSION, b'\0\0\0\0{"capabilities":{"max_msg_fds":7}}\0')
    assert fresh.session.client.max_msg_fds == 7


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        (Command.DEVICE_GET_INFO, four()),
        (Command.DEVICE_RESET, b""),
        (999, b""),
        (Command.VERSION, b""),
        (Command.VERSION, b"\0\0"),
        (Command.VERSION, b"\x01\0\0\0"),
        (Command.VERSION, b"\0\0\0\0{}"),
        (Command.VERSION, b"\0\0\0\0{\0"),
    ],
)
def test_bad_start_is_refused_and_closes(fresh: Peer, device: Any, command: int, payload: bytes) -> None:
    assert fresh.ask(command, payload) == EINVAL
    assert fresh.session.state is State.CLOSED
    assert device.calls == ["disconnected"]


def test_version_with_descriptor_is_refused_and_closes(fresh: Peer) -> None:
    assert fresh.ask(Command.VERSION, b"\0\0\0\0", fds=(devnull(),)) == EINVAL
    assert fresh.session.state is State.CLOSED


def test_second_version_is_refused_and_changes_nothing(peer: Peer) -> None:
    assert peer.ask(Command.VERSION, b"\0\0\0\0") == EINVAL
    assert peer.session.state is State.RUNNING
    assert isinstance(peer.ask(Command.DEVICE_GET_INFO, four()), bytes)


@pytest.mark.row("server", 11)
@pytest.mark.parametrize(
    ("command", "payload"), [(Command.VERSION, b"\0\0\0\0"), (Command.DEVICE_GET_INFO, four()), (999, b"")]
)
def test_a_client_to_be_refused_is_answered_that_at_once_and_the_device_never_learns_of_it(
    device: Any, no_fd_leak: None, caplog: pytest.LogCaptureFixture, command: int, payload: bytes
) -> None:
    device.settle = lambda: device.calls.append("settle")
    peer = Peer(device, refusal=RequestError(errno.EBUSY, "another client is served"))
    assert peer.ask(command, payload, fds=(devnull(),)) == errno.EBUSY
    assert peer.session.state is State.CLOSED
    peer.session.eof()
    assert device.calls == []
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]  # left to who refuses


# --- framing and headers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 15, (1 << 20) + 33, 0xFFFFFFFF])
def test_impossible_size_is_refused_and_closes(peer: Peer, device: Any, size: int) -> None:
    peer.session.receive(Header(9, Command.REGION_WRITE, size, 0, 0).pack(), [])
    (item,) = peer.session.outgoing
    assert Header.unpack(item.data) == Header(9, Command.REGION_WRITE, 16, 0x21, EINVAL)
    assert peer.session.state is State.CLOSED
    assert device.calls == ["disconnected"]


def test_message_byte_by_byte_is_answered_once_complete(peer: Peer) -> None:
    data = Header(1, Command.DEVICE_GET_INFO, 32, 0, 0).pack() + four()
    for byte in data[:-1]:
        peer.session.receive(bytes([byte]), [])
    assert not peer.session.outgoing
    peer.session.receive(data[-1:], [])
    assert len(peer.session.outgoing) == 1


def test_coalesced_requests_are_answered_in_order(peer: Peer) -> None:
    data = b"".join(Header(number, Command.DEVICE_GET_INFO, 32, 0, 0).pack() + four() for number in range(5))
    peer.session.receive(data, [])
    assert [Header.unpack(item.data).id for item in peer.session.outgoing] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", [1, 2, 15])
def test_message_that_is_no_command_is_refused(peer: Peer, kind: int) -> None:
    assert peer.ask(Command.DEVICE_GET_INFO, four(), flags=kind) == EINVAL


def test_late_reply_to_message_dma_is_ignored(peer: Peer) -> None:
    peer.send(Command.DMA_READ, bytes(16), flags=1)
    assert not peer.session.outgoing


def test_unknown_flags_and_error_field_of_a_command_are_ignored(peer: Peer) -> None:
    header = Header(3, Command.DEVICE_RESET, 16, 0xFFFFFF00 | HeaderFlags.ERROR, 77)
    peer.session.receive(header.pack(), [])
    (item,) = peer.session.outgoing
    assert Header.unpack(item.data) == Header(3, Command.DEVICE_RESET, 16, 1, 0)


@pytest.mark.parametrize("command", [*Command, 0, 19, 65535])
@pytest.mark.parametrize("payload", [b"", bytes(16), four(), dma_map(), access(CONFIG, 0, 4)])
def test_no_reply_is_never_answered(peer: Peer, command: int, payload: bytes) -> None:
    peer.send(command, payload, flags=HeaderFlags.NO_REPLY)
    assert not peer.session.outgoing


UNSERVED = (0, 11, 12, 14, 15, 16, 17, 18, 19, 65535)


@pytest.mark.parametrize("command", UNSERVED)
def test_unserved_command_is_refused_and_the_session_goes_on(peer: Peer, command: int) -> None:
    assert peer.ask(command, bytes(24)) == EINVAL
    assert isinstance(peer.ask(Command.DEVICE_RESET), bytes)


@pytest.mark.parametrize("command", [command for command in Command if command != Command.DEVICE_RESET])
def test_header_only_message_is_refused(peer: Peer, command: int) -> None:
    assert peer.ask(command) == EINVAL


# --- the errno rows --------------------------------------------------------------------------------------------------

REFUSED = {
    "info short": (Command.DEVICE_GET_INFO, bytes(8)),
    "info argsz 8": (Command.DEVICE_GET_INFO, four(8)),
    "info argsz 12": (Command.DEVICE_GET_INFO, four(12)),
    "region short": (Command.DEVICE_GET_REGION_INFO, bytes(8)),
    "region argsz 31": (Command.DEVICE_GET_REGION_INFO, region_info(31, 0)),
    "region index 9": (Command.DEVICE_GET_REGION_INFO, region_info(32, REGION_COUNT)),
    "irq short": (Command.DEVICE_GET_IRQ_INFO, bytes(8)),
    "irq argsz 8": (Command.DEVICE_GET_IRQ_INFO, four(8)),
    "irq index 5": (Command.DEVICE_GET_IRQ_INFO, four(third=5)),
    "io fds index 9": (Command.DEVICE_GET_REGION_IO_FDS, four(third=9)),
    "io fds flags": (Command.DEVICE_GET_REGION_IO_FDS, four(second=1)),
    "io fds count": (Command.DEVICE_GET_REGION_IO_FDS, four(fourth=1)),
    "io fds argsz 15": (Command.DEVICE_GET_REGION_IO_FDS, four(15)),
    "io fds argsz > 1 MiB": (Command.DEVICE_GET_REGION_IO_FDS, four((1 << 20) + 1)),
    "map short": (Command.DMA_MAP, dma_map()[:-1]),
    "map argsz 31": (Command.DMA_MAP, dma_map(argsz=31)),
    "map flags 0x10": (Command.DMA_MAP, dma_map(flags=0x13)),
    "map mmap mode without fd": (Command.DMA_MAP, dma_map(flags=7)),
    "map file mode without fd": (Command.DMA_MAP, dma_map(flags=11)),
    "map size 0": (Command.DMA_MAP, dma_map(size=0)),
    "map wraps": (Command.DMA_MAP, dma_map(address=(1 << 64) - 0x1000, size=0x1001)),
    "unmap short": (Command.DMA_UNMAP, bytes(8)),
    "unmap argsz 8": (Command.DMA_UNMAP, dma_unmap(argsz=8)),
    "unmap argsz > 1 MiB": (Command.DMA_UNMAP, dma_unmap(argsz=(1 << 20) + 1)),
    "unmap dirty": (Command.DMA_UNMAP, dma_unmap(flags=1)),
    "unmap flags 4": (Command.DMA_UNMAP, dma_unmap(flags=4)),
    "unmap all and dirty": (Command.DMA_UNMAP, dma_unmap(flags=3, address=0, size=0)),
    "unmap all with address": (Command.DMA_UNMAP, dma_unmap(flags=ALL, address=1, size=0)),
    "unmap all with size": (Command.DMA_UNMAP, dma_unmap(flags=ALL, address=0, size=1)),
    "irqs short": (Command.DEVICE_SET_IRQS, bytes(19)),
    "irqs argsz 19": (Command.DEVICE_SET_IRQS, set_irqs(NONE | TRIGGER, argsz=19)),
    "irqs bools missing": (Command.DEVICE_SET_IRQS, set_irqs(BOOL | TRIGGER, count=2, bools=b"\1")),
    "irqs bools too many": (Command.DEVICE_SET_IRQS, set_irqs(BOOL | TRIGGER, count=1, bools=b"\1\1")),
    "irqs index 5": (Command.DEVICE_SET_IRQS, set_irqs(NONE | TRIGGER, index=5)),
    "irqs no action": (Command.DEVICE_SET_IRQS, set_irqs(NONE)),
    "irqs two actions": (Command.DEVICE_SET_IRQS, set_irqs(NONE | TRIGGER | MASK)),
    "irqs no data": (Command.DEVICE_SET_IRQS, set_irqs(TRIGGER)),
    "irqs two data": (Command.DEVICE_SET_IRQS, set_irqs(NONE | EVENTFD | TRIGGER)),
    "irqs start past end": (Command.DEVICE_SET_IRQS, set_irqs(NONE | TRIGGER, start=4)),
    "irqs end past end": (Command.DEVICE_SET_IRQS, set_irqs(NONE | TRIGGER, start=1, count=4)),
    "irqs count wraps": (Command.DEVICE_SET_IRQS, set_irqs(NONE | TRIGGER, start=1, count=0xFFFFFFFF)),
    "irqs absent index": (Command.DEVICE_SET_IRQS, set_irqs(NONE | TRIGGER, index=0)),
    "irqs err masked": (Command.DEVICE_SET_IRQS, set_irqs(NONE | MASK, index=ERR)),
    "irqs err count 2": (Command.DEVICE_SET_IRQS, set_irqs(NONE | TRIGGER, index=ERR, count=2)),
    "irqs count 0 start 1": (Command.DEVICE_SET_IRQS, set_irqs(NONE | TRIGGER, start=1, count=0)),
    "irqs count 0 mask": (Command.DEVICE_SET_IRQS, set_irqs(NONE | MASK, count=0)),
    "irqs count 0 eventfd": (Command.DEVICE_SET_IRQS, set_irqs(EVENTFD | TRIGGER, count=0)),
    "read short": (Command.REGION_READ, bytes(15)),
    "read region 9": (Command.REGION_READ, access(9, 0, 4)),
    "read region 0xdeadbeef": (Command.REGION_READ, access(0xDEADBEEF, 0, 4)),
    "read past end": (Command.REGION_READ, access(BAR0, 4093, 4)),
    "read at 2^64-1": (Command.REGION_READ, access(BAR0, (1 << 64) - 1, 4)),
    "read more than negotiated": (Command.REGION_READ, access(BAR0, 0, (1 << 20) + 8)),
    "read absent region": (Command.REGION_READ, access(BAR1, 0, 1)),
    "read nothing of absent region": (Command.REGION_READ, access(BAR1, 0, 0)),
    "write short": (Command.REGION_WRITE, bytes(8)),
    "write count above data": (Command.REGION_WRITE, access(BAR0, 0, 4, b"abc")),
    "write count below data": (Command.REGION_WRITE, access(BAR0, 0, 4, b"abcde")),
    "write past end": (Command.REGION_WRITE, access(BAR0, 4095, 2, b"ab")),
    "write region 9": (Command.REGION_WRITE, access(9, 0, 1, b"a")),
    "multi not negotiated": (Command.REGION_WRITE_MULTI, multi((BAR0, 0, b"a"))),
    "feature": (Command.DEVICE_FEATURE, struct.pack("<II", 16, 1 | 1 << 16) + bytes(8)),
}


@pytest.mark.parametrize("row", REFUSED, ids=list(REFUSED))
def test_invalid_request_gets_einval_and_never_reaches_the_device(peer: Peer, device: Any, row: str) -> None:
    command, payload = REFUSED[row]
    assert peer.ask(command, payload, fds=()) == EINVAL
    assert device.calls == []
    assert peer.session.state is State.RUNNING


def test_map_above_8_tib_is_enospc(peer: Peer) -> None:
    assert peer.ask(Command.DMA_MAP, dma_map(size=(8 << 40) + 1)) == errno.ENOSPC


def test_map_with_two_descriptors_is_refused_and_both_closed(peer: Peer) -> None:
    assert peer.ask(Command.DMA_MAP, dma_map(), fds=(devnull(), devnull())) == EINVAL


def test_map_whose_file_range_overflows_is_refused(peer: Peer) -> None:
    assert peer.ask(Command.DMA_MAP, dma_map(offset=(1 << 63) - 1), fds=(devnull(),)) == EINVAL


@pytest.mark.parametrize(
    ("payload", "count"),
    [
        (set_irqs(EVENTFD | TRIGGER, count=2), 1),
        (set_irqs(EVENTFD | TRIGGER, count=1), 2),
        (set_irqs(NONE | TRIGGER), 1),
        (set_irqs(BOOL | TRIGGER, bools=b"\1"), 1),
        (set_irqs(EVENTFD | TRIGGER, start=4), 1),
    ],
)
def test_set_irqs_with_wrong_descriptors_is_refused_and_they_are_closed(peer: Peer, payload: bytes, count: int) -> None:
    assert peer.ask(Command.DEVICE_SET_IRQS, payload, fds=tuple(eventfd() for _ in range(count))) == EINVAL


def test_more_descriptors_than_announced_are_refused_and_closed(device: Any, no_fd_leak: None) -> None:
    peer = Peer(device, SessionLimits(max_msg_fds=2))
    peer.ask(Command.VERSION, b"\0\0\0\0")
    fds = tuple(eventfd() for _ in range(3))
    assert peer.ask(Command.DEVICE_SET_IRQS, set_irqs(EVENTFD | TRIGGER, count=3), fds=fds) == EINVAL
    assert peer.session.state is State.RUNNING


@pytest.mark.row("server", 4)
@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES])
def test_descriptors_that_the_kernel_kept_back_are_answered_with_its_reason(
    peer: Peer, device: Any, number: int
) -> None:
    assert peer.ask(Command.DMA_MAP, dma_map(), fds=(memfd(), -number)) == number
    assert device.calls == []
    assert peer.ask(Command.DMA_MAP, dma_map(), fds=(memfd(),)) == b""


@pytest.mark.row("server", 10)
@pytest.mark.parametrize("action", [TRIGGER, UNMASK])
def test_set_irqs_with_a_descriptor_that_is_no_eventfd_is_refused(peer: Peer, device: Any, action: int) -> None:
    fds = (eventfd(), devnull())
    assert peer.ask(Command.DEVICE_SET_IRQS, set_irqs(EVENTFD | action, count=2), fds=fds) == EINVAL
    assert device.calls == []
    assert not device.interrupts.armed(MSIX, 0)


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        (Command.DEVICE_GET_INFO, four()),
        (Command.DEVICE_RESET, b""),
        (Command.REGION_READ, access(CONFIG, 0, 4)),
    ],
)
def test_descriptors_on_a_request_that_takes_none_are_closed_and_it_is_served(
    peer: Peer, command: int, payload: bytes
) -> None:
    assert isinstance(peer.ask(command, payload, fds=(devnull(),)), bytes)


# --- what is answered ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [four(), four(32), four(16, 9, 9, 9), four() + bytes(16)])
def test_info_describes_a_pci_function(peer: Peer, payload: bytes) -> None:
    assert peer.ask(Command.DEVICE_GET_INFO, payload) == four(16, 3, 9, 5)


def test_device_may_refuse_its_client_at_info(peer: Peer, device: Any) -> None:
    device.refusal = RequestError(errno.EPERM, "guest memory must be share=on")
    assert peer.ask(Command.DEVICE_GET_INFO, four()) == errno.EPERM


@pytest.mark.parametrize("index", [1, 3, 4, 5, 6, 8])
def test_absent_region_has_size_zero(peer: Peer, index: int) -> None:
    reply = struct.pack("<IIIIQQ", 32, 0, index, 0, 0, 0)
    assert peer.ask(Command.DEVICE_GET_REGION_INFO, region_info(32, index)) == reply


def test_configuration_region_is_4096_bytes(peer: Peer) -> None:
    reply = struct.pack("<IIIIQQ", 32, 3, CONFIG, 0, 4096, 0)
    assert peer.ask(Command.DEVICE_GET_REGION_INFO, region_info(32, CONFIG) + bytes(4032)) == reply


def test_sparse_region_first_tells_only_what_room_it_needs(peer: Peer) -> None:
    reply = struct.pack("<IIIIQQ", 80, 7, BAR2, 0, 4 * 4096, 4096)
    assert peer.ask(Command.DEVICE_GET_REGION_INFO, region_info(32, BAR2)) == reply
    assert peer.fds == ()


def test_sparse_region_then_gives_areas_and_one_descriptor(peer: Peer, device: Any) -> None:
    capability = struct.pack("<HHIIIQQQQ", 1, 1, 0, 2, 0, 0, 4096, 8192, 4096)
    reply = struct.pack("<IIIIQQ", 80, 15, BAR2, 32, 4 * 4096, 4096) + capability
    assert peer.ask(Command.DEVICE_GET_REGION_INFO, region_info(80, BAR2)) == reply
    assert peer.fds == (device.shared,)


def test_client_that_takes_no_descriptors_gets_none_and_no_mmap_flag(fresh: Peer) -> None:
    fresh.ask(Command.VERSION, b'\0\0\0\0{"capabilities":{"max_msg_fds":0}}\0')
    reply = struct.pack("<IIIIQQ", 32, 3, BAR2, 0, 4 * 4096, 4096)
    assert fresh.ask(Command.DEVICE_GET_REGION_INFO, region_info(80, BAR2)) == reply
    assert fresh.fds == ()


@pytest.mark.parametrize(("index", "count"), [(0, 0), (1, 0), (2, 4), (3, 1), (4, 0)])
def test_irq_info_counts_vectors(peer: Peer, index: int, count: int) -> None:
    assert peer.ask(Command.DEVICE_GET_IRQ_INFO, four(20, 0, index)) == four(16, 1, index, count)


def test_region_has_no_io_descriptors(peer: Peer) -> None:
    assert peer.ask(Command.DEVICE_GET_REGION_IO_FDS, four(64, 0, BAR0)) == four(16, 0, BAR0, 0)


@pytest.mark.parametrize("count", [0, 1, 2, 4, 8, 3, 4096])
def test_read_gives_exactly_the_bytes_asked_for(peer: Peer, device: Any, count: int) -> None:
    data = bytes(device.memory[CONFIG][:count])
    assert peer.ask(Command.REGION_READ, access(CONFIG, 0, count)) == access(CONFIG, 0, count, data)


@pytest.mark.row("server", 54)
def test_reads_are_bounded_by_what_the_server_takes_as_writes_are(fresh: Peer) -> None:
    fresh.ask(Command.VERSION, b'\0\0\0\0{"capabilities":{"max_data_xfer_size":1024}}\0')
    for count in (1024, 1025, 4096):
        assert isinstance(fresh.ask(Command.REGION_READ, access(CONFIG, 0, count)), bytes)
    assert fresh.ask(Command.REGION_READ, access(CONFIG, 0, (1 << 20) + 1)) == EINVAL


def test_what_requests_have_changed_is_settled_before_they_are_answered(peer: Peer, device: Any) -> None:
    seen: list[tuple[int, int]] = []
    device.settle = lambda: seen.append((len(device.maps), len(peer.session.outgoing)))
    peer.ask(Command.DMA_MAP, dma_map())
    assert seen == [(1, 1)]


def test_a_device_that_fails_to_settle_ends_nothing(peer: Peer, device: Any, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("no")

    device.settle = fail
    assert peer.ask(Command.DMA_MAP, dma_map()) == b""
    assert "the device failed after requests of its client" in caplog.text


def test_maps_are_counted_by_what_an_unmap_took(device: Any) -> None:
    fresh = Peer(device, SessionLimits(max_dma_maps=2))
    fresh.ask(Command.VERSION, b"\0\0\0\0")
    for address in (0x1000, 0x2000, 0x2000):
        assert fresh.ask(Command.DMA_MAP, dma_map(address=address)) == b""
    assert fresh.ask(Command.DMA_MAP, dma_map(address=0x3000)) == errno.ENOSPC
    assert fresh.ask(Command.DMA_UNMAP, dma_unmap(address=0x1000, size=0x2000)) == dma_unmap(
        address=0x1000, size=0x2000
    )
    for address in (0x3000, 0x4000):
        assert fresh.ask(Command.DMA_MAP, dma_map(address=address)) == b""
    assert fresh.ask(Command.DMA_MAP, dma_map(address=0x1000)) == errno.ENOSPC


def test_write_is_echoed_and_posted_writes_are_seen_by_the_next_read(peer: Peer) -> None:
    assert peer.ask(Command.REGION_WRITE, access(BAR0, 8, 4, b"abcd")) == access(BAR0, 8, 4)
    peer.send(Command.REGION_WRITE, access(BAR0, 10, 2, b"XY"), flags=HeaderFlags.NO_REPLY)
    assert peer.ask(Command.REGION_READ, access(BAR0, 8, 4)) == access(BAR0, 8, 4, b"abXY")


def test_write_of_nothing_succeeds_without_the_device(peer: Peer, device: Any) -> None:
    assert peer.ask(Command.REGION_WRITE, access(BAR0, 4096, 0)) == access(BAR0, 4096, 0)
    assert device.calls == []


@pytest.mark.row("wire", 43)
@pytest.mark.row("defect", "A20")
def test_several_writes_are_applied_in_order(several: Peer, device: Any) -> None:
    payload = multi((BAR0, 0, b"abcdefgh"), (BAR0, 2, b"XY"), (BAR0, 3, b"Z"), (BAR0, 0, b""))
    assert several.ask(Command.REGION_WRITE_MULTI, payload) == struct.pack("<Q", 4)
    assert device.memory[BAR0][:8] == b"abXZefgh"


@pytest.mark.parametrize(
    "payload",
    [
        bytes(7),
        multi(),
        multi((BAR0, 0, b"a"), count=2),
        multi((BAR0, 0, b"a"), count=1 << 63),
        multi(*[(BAR0, 0, b"a")] * 201),
        multi((BAR0, 0, b"a")) + b"\0",
        multi((BAR0, 0, b"a"), (9, 0, b"b")),
        multi((BAR0, 0, b"a"), (BAR0, 4096, b"b")),
        struct.pack("<QQII8s", 1, 0, BAR0, 9, bytes(8)),
    ],
)
@pytest.mark.row("wire", 43)
def test_one_bad_write_of_several_refuses_all(several: Peer, device: Any, payload: bytes) -> None:
    assert several.ask(Command.REGION_WRITE_MULTI, payload) == EINVAL
    assert device.calls == []


@pytest.mark.row("wire", 43)
def test_most_writes_at_once_pass(several: Peer) -> None:
    payload = multi(*[(BAR0, 0, b"a")] * 200)
    assert several.ask(Command.REGION_WRITE_MULTI, payload) == struct.pack("<Q", 200)


def test_reset_reaches_the_device_and_ignores_its_payload(peer: Peer, device: Any) -> None:
    assert peer.ask(Command.DEVICE_RESET) == b""
    assert peer.ask(Command.DEVICE_RESET, b"extra") == b""
    assert device.calls == ["reset", "reset"]


# --- DMA -------------------------------------------------------------------------------------------------------------


def test_map_reaches_the_device_before_info_with_and_without_descriptor(peer: Peer, device: Any) -> None:
    assert peer.ask(Command.DMA_MAP, dma_map(offset=0x2000), fds=(memfd(),)) == b""
    assert peer.ask(Command.DMA_MAP, dma_map(flags=1, address=0xFFFC0000)) == b""
    first, second = device.maps.values()
    assert (first.address, first.size, first.offset, first.readable, first.writable) == (
        0x1000,
        0x1000,
        0x2000,
        True,
        True,
    )
    assert first.fd is not None
    assert (second.readable, second.writable, second.fd) == (True, False, None)


def test_unmap_echoes_its_24_bytes(peer: Peer, device: Any) -> None:
    peer.ask(Command.DMA_MAP, dma_map())
    assert peer.ask(Command.DMA_UNMAP, dma_unmap() + b"tail", fds=(devnull(),)) == dma_unmap()
    assert device.maps == {}


@pytest.mark.row("defect", "A4")
def test_unmap_of_nothing_is_enoent(peer: Peer) -> None:
    assert peer.ask(Command.DMA_UNMAP, dma_unmap()) == errno.ENOENT


def test_unmap_all_drops_every_map(peer: Peer, device: Any) -> None:
    peer.ask(Command.DMA_MAP, dma_map())
    request = dma_unmap(flags=ALL, address=0, size=0)
    assert peer.ask(Command.DMA_UNMAP, request) == request
    assert device.maps == {}


@pytest.mark.row("defect", "A3")
def test_maps_beyond_the_limit_are_enospc_until_one_goes(device: Any, no_fd_leak: None) -> None:
    peer = Peer(device, SessionLimits(max_dma_maps=2))
    peer.ask(Command.VERSION, b"\0\0\0\0")
    places = [dma_map(address=address) for address in (0, 0x1000, 0x2000)]
    assert [peer.ask(Command.DMA_MAP, place) for place in places] == [b"", b"", errno.ENOSPC]
    assert peer.ask(Command.DMA_MAP, places[0]) == b""
    peer.ask(Command.DMA_UNMAP, dma_unmap(address=0))
    assert peer.ask(Command.DMA_MAP, places[2]) == b""


# --- interrupts ------------------------------------------------------------------------------------------------------


def test_set_irqs_installs_replaces_and_disables(peer: Peer, device: Any) -> None:
    for _ in range(2):
        fds = (eventfd(), eventfd())
        assert peer.ask(Command.DEVICE_SET_IRQS, set_irqs(EVENTFD | TRIGGER, start=1, count=2), fds=fds) == b""
    assert [device.interrupts.armed(MSIX, vector) for vector in range(4)] == [False, True, True, False]
    assert peer.ask(Command.DEVICE_SET_IRQS, set_irqs(EVENTFD | TRIGGER, start=1)) == b""
    assert not device.interrupts.armed(MSIX, 1)
    assert peer.ask(Command.DEVICE_SET_IRQS, set_irqs(NONE | TRIGGER, count=0)) == b""
    assert not device.interrupts.armed(MSIX, 2)


@pytest.mark.parametrize(
    "payload",
    [
        set_irqs(NONE | TRIGGER, index=0, count=0),
        set_irqs(NONE | TRIGGER, index=4, count=0),
        set_irqs(EVENTFD | TRIGGER),
        set_irqs(EVENTFD | UNMASK),
        set_irqs(NONE | MASK, count=4),
        set_irqs(BOOL | TRIGGER, count=2, argsz=22, bools=b"\0\1"),
        set_irqs(NONE | TRIGGER | 0x40),
    ],
)
def test_harmless_set_irqs_succeeds(peer: Peer, payload: bytes) -> None:
    assert peer.ask(Command.DEVICE_SET_IRQS, payload) == b""


# --- a device that fails, and the end --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "payload", "fds"),
    [
        (Command.DEVICE_GET_INFO, four(), 0),
        (Command.REGION_READ, access(BAR0, 0, 4), 0),
        (Command.REGION_WRITE, access(BAR0, 0, 1, b"a"), 0),
        (Command.DEVICE_SET_IRQS, set_irqs(EVENTFD | TRIGGER), 1),
        (Command.DMA_MAP, dma_map(), 1),
        (Command.DMA_UNMAP, dma_unmap(), 0),
        (Command.DEVICE_RESET, b"", 0),
    ],
)
@pytest.mark.row("defect", "A5")
@pytest.mark.row("defect", "C16")
@pytest.mark.row("wire", 44)
def test_device_that_raises_costs_one_request_and_is_logged(
    peer: Peer, device: Any, caplog: pytest.LogCaptureFixture, command: int, payload: bytes, fds: int
) -> None:
    device.failure = ZeroDivisionError("a bug")
    make = memfd if command == Command.DMA_MAP else eventfd
    assert peer.ask(command, payload, fds=tuple(make() for _ in range(fds))) == errno.EIO
    assert "ZeroDivisionError: a bug" in caplog.text
    device.failure = None
    assert isinstance(peer.ask(Command.DEVICE_GET_INFO, four()), bytes)


@pytest.mark.parametrize("more", [DeviceInfo(num_regions=10), DeviceInfo(num_irqs=6)])
def test_device_that_describes_what_nobody_can_ask_for_is_eio_and_is_logged(
    peer: Peer, device: Any, caplog: pytest.LogCaptureFixture, more: DeviceInfo
) -> None:
    device.describe = lambda: more
    assert peer.ask(Command.DEVICE_GET_INFO, four()) == errno.EIO
    assert f"{more.num_regions} regions and {more.num_irqs} interrupt indexes: at most 9 and 5" in caplog.text


def test_device_that_answers_with_too_few_bytes_is_eio(peer: Peer, device: Any) -> None:
    del device.memory[CONFIG][100:]
    device.region = lambda index: type(device).region(device, BAR0)
    assert peer.ask(Command.REGION_READ, access(CONFIG, 96, 8)) == errno.EIO


def test_device_that_fails_at_the_end_is_logged_only(device: Any, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise ZeroDivisionError("a bug at the end")

    device.disconnected = broken
    Session(device).eof()
    assert "a bug at the end" in caplog.text


@pytest.mark.parametrize("cut", range(0, 33, 4))
@pytest.mark.row("wire", 54)
@pytest.mark.row("defect", "A12")
def test_end_at_any_byte_disconnects_once_and_closes_what_came(peer: Peer, device: Any, cut: int) -> None:
    data = Header(1, Command.DMA_MAP, 48, 0, 0).pack() + dma_map()
    peer.session.receive(data[: cut + 1], [devnull()])
    peer.session.eof()
    peer.session.eof()
    peer.session.receive(data, [devnull()])
    assert device.calls == ["disconnected"]
    assert peer.session.state is State.CLOSED
    assert not peer.session.outgoing


@pytest.mark.row("defect", "A13")
def test_a_session_that_ended_is_freed_without_the_garbage_collector(device: Any) -> None:
    session = Session(device)
    session.receive(Header(1, Command.VERSION, 20, 0, 0).pack() + b"\0\0\0\0", [])
    session.eof()
    alive = weakref.ref(session)
    gc.disable()
    try:
        del session
        assert alive() is None
    finally:
        gc.enable()


def test_refusals_are_logged_but_not_without_end(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            peer.ask(99)
    assert len(caplog.records) == 20
    assert "command 99 (unknown)" in caplog.text


@pytest.mark.row("defect", "A3")
@pytest.mark.row("wire", 58)
def test_client_that_reads_no_replies_is_paused_and_resumed(peer: Peer, device: Any) -> None:
    device.memory[BAR0] = bytearray(1 << 20)
    request = Header(0, Command.REGION_READ, 32, 0, 0).pack() + access(BAR0, 0, 1 << 20)
    peer.session.receive(request * 50, [])
    assert peer.session.paused
    assert len(peer.session.outgoing) <= 3
    answered = 0
    while peer.session.outgoing:
        peer.session.outgoing.popleft()
        answered += 1
        peer.session.resume()
    assert answered == 50
    assert not peer.session.paused


def test_descriptors_may_be_kept_by_replies_that_are_not_taken_and_by_half_a_message(peer: Peer) -> None:
    assert not peer.session.may_keep_descriptors
    header = Header(1, Command.DMA_MAP, 16 + 32, 0, 0).pack()
    peer.session.receive(header, [memfd()])
    assert peer.session.may_keep_descriptors
    peer.session.receive(dma_map(), [])
    assert not peer.session.may_keep_descriptors
    while not peer.session.paused:
        peer.send(Command.REGION_READ, access(BAR0, 0, 4096))
    assert peer.session.may_keep_descriptors
    peer.session.outgoing.clear()
    assert not peer.session.may_keep_descriptors


def test_end_while_paused_closes_the_descriptors_of_waiting_requests(peer: Peer, device: Any) -> None:
    device.memory[BAR0] = bytearray(1 << 20)
    request = Header(0, Command.REGION_READ, 32, 0, 0).pack() + access(BAR0, 0, 1 << 20)
    peer.session.receive(request * 10, [])
    peer.send(Command.DMA_MAP, dma_map(), fds=(devnull(),))
    assert peer.session.paused
    peer.session.eof()
    assert device.maps == {}


# --- turns of others -------------------------------------------------------------------------------------------------


def write(offset: int, data: bytes) -> bytes:
    payload = access(BAR0, offset, len(data)) + data
    return Header(offset, Command.REGION_WRITE, Header.SIZE + len(payload), 0, 0).pack() + payload


def taken_ids(peer: Peer) -> list[int]:
    """Ids of the replies, which are taken."""
    found = [Header.unpack(item.data).id for item in peer.session.outgoing]
    peer.session.outgoing.clear()
    return found


@pytest.mark.row("server", 34)
def test_requests_wait_for_turns_of_others_and_none_is_lost_or_done_twice(peer: Peer, device: Any) -> None:
    peer.session.receive(b"".join(write(n, bytes([n])) for n in range(1, 6)), [], lambda: False)
    seen = [taken_ids(peer)]
    while peer.session.paused:
        peer.session.resume(lambda: False)
        seen.append(taken_ids(peer))
    assert seen == [[1], [2], [3], [4], [5]]
    assert device.calls.count("region_write") == 5
    assert device.memory[BAR0][:6] == bytes(range(6))


def test_it_is_not_asked_whether_to_go_on_where_nothing_is_left_to_do(peer: Peer) -> None:
    asked: list[bool] = []

    def may_go_on() -> bool:
        asked.append(True)
        return True

    peer.session.receive(write(1, b"a"), [], may_go_on)
    assert asked == []
    peer.session.receive(write(2, b"b") + write(3, b"c"), [], may_go_on)
    assert asked == [True]


@pytest.mark.row("server", 34)
def test_the_end_drops_requests_that_wait_for_a_turn(peer: Peer, device: Any) -> None:
    peer.session.receive(write(1, b"1") + write(2, b"2"), [], lambda: False)
    peer.session.eof()
    assert not peer.session.paused
    assert device.memory[BAR0][:3] == b"\0" + b"1" + b"\0"


@pytest.mark.row("server", 34)
def test_the_end_drops_an_impossible_message_that_waits_for_its_turn(peer: Peer, device: Any) -> None:
    peer.session.receive(write(1, b"1") + Header(2, Command.REGION_WRITE, 0, 0, 0).pack(), [], lambda: False)
    assert peer.session.paused
    peer.session.eof()
    assert not peer.session.paused
    assert device.calls == ["region_write", "disconnected"]


class Stepping:
    """Writes of a device that take three steps, as ``region_write``; ``error`` ends the second."""

    def __init__(self, device: Any, error: Exception | None = None) -> None:
        self._write = device.region_write
        self._error = error
        self.closed = 0

    def __call__(self, index: int, offset: int, data: bytes) -> Any:
        return self._steps(index, offset, data)

    def _steps(self, index: int, offset: int, data: bytes) -> Any:
        try:
            yield
            if self._error is not None:
                raise self._error
            yield
            self._write(index, offset, data)
        except GeneratorExit:
            self.closed += 1
            raise


@pytest.mark.row("server", 35)
def test_a_write_in_steps_is_answered_after_the_last_and_what_follows_waits(peer: Peer, device: Any) -> None:
    device.region_write = Stepping(device)
    peer.session.receive(write(1, b"1") + write(2, b"2"), [], lambda: False)
    steps = 1
    while not peer.session.outgoing:
        assert device.memory[BAR0][1] == 0
        peer.session.resume(lambda: False)
        steps += 1
    assert (steps, taken_ids(peer), device.memory[BAR0][1:3]) == (3, [1], b"1\0")
    peer.session.resume()
    assert (taken_ids(peer), device.memory[BAR0][1:3], peer.session.paused) == ([2], b"12", False)


class Held:
    """What a request waits for until a test says otherwise."""

    is_over = False

    def then(self, _callback: Callable[[], None], /) -> None:
        raise AssertionError("a session asks again itself")


def test_a_request_that_waits_for_nothing_of_its_client_is_gone_on_with_once_that_is_over(
    peer: Peer, device: Any
) -> None:
    held = Held()

    def region_write(index: int, offset: int, data: bytes) -> Any:
        yield held
        device.memory[index][offset : offset + len(data)] = data

    device.region_write = region_write
    assert not peer.session.is_held
    peer.session.receive(write(1, b"1") + write(2, b"2"), [])
    peer.session.resume()
    assert (peer.session.is_held, peer.session.paused, taken_ids(peer)) == (True, True, [])

    held.is_over = True
    assert not peer.session.is_held
    peer.session.resume()
    assert (taken_ids(peer), device.memory[BAR0][1:3], peer.session.paused) == ([1, 2], b"12", False)


@pytest.mark.row("server", 35)
@pytest.mark.parametrize(
    ("error", "number"), [(RequestError(errno.EBUSY, "no"), errno.EBUSY), (ValueError("oops"), errno.EIO)]
)
def test_a_step_that_fails_costs_one_request(peer: Peer, device: Any, error: Exception, number: int) -> None:
    device.region_write = Stepping(device, error)
    peer.session.receive(write(1, b"1"), [])
    (reply,) = peer.session.outgoing
    assert Header.unpack(reply.data).error == number
    assert not peer.session.paused


@pytest.mark.row("server", 35)
def test_steps_of_a_client_that_is_gone_are_closed(peer: Peer, device: Any) -> None:
    device.region_write = stepping = Stepping(device)
    peer.session.receive(write(1, b"1"), [], lambda: False)
    peer.session.eof()
    assert (stepping.closed, device.memory[BAR0][1], peer.session.paused) == (1, 0, False)


# --- anything at all -------------------------------------------------------------------------------------------------

PAYLOADS = st.one_of(st.binary(max_size=64), st.sampled_from([payload for _, payload in REFUSED.values()]))
MESSAGES = st.tuples(
    st.one_of(st.sampled_from(Command), st.integers(0, 65535)), st.sampled_from([0, 0, 0x10, 1]), PAYLOADS
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.booleans(),
    st.lists(MESSAGES, max_size=8),
    st.binary(max_size=40),
    st.lists(st.tuples(st.integers(1, 90), st.integers(0, 2)), min_size=1, max_size=8),
)
@pytest.mark.row("defect", "A5")
@pytest.mark.row("defect", "A12")
@pytest.mark.row("defect", "A17")
def test_no_bytes_raise_or_leak_a_descriptor(
    device: Any,
    no_fd_leak: None,
    negotiated: bool,
    messages: list[tuple[int, int, bytes]],
    tail: bytes,
    chunks: list[tuple[int, int]],
) -> None:
    peer = Peer(device, SessionLimits(write_multiple=True))
    device.calls.clear()
    if negotiated:
        peer.ask(Command.VERSION, WRITE_MULTIPLE)
    stream = b"".join(
        Header(number, command, 16 + len(payload), flags, 0).pack() + payload
        for number, (command, flags, payload) in enumerate(messages)
    )
    stream += tail
    while stream:
        for size, count in chunks:
            peer.session.receive(stream[:size], [devnull() for _ in range(count)])
            stream = stream[size:]
    peer.session.eof()
    assert device.calls.count("disconnected") == 1


# --- the log ---------------------------------------------------------------------------------------------------------


@pytest.mark.row("server", 80)
def test_at_level_debug_each_request_and_its_reply_are_logged_in_turn(
    device: Any, caplog: pytest.LogCaptureFixture
) -> None:
    peer = Peer(device)
    caplog.set_level(logging.DEBUG)
    peer.ask(Command.VERSION, b"\0\0\0\0")
    peer.ask(Command.REGION_READ, access(BAR0, 0, 4))
    peer.ask(Command.DMA_UNMAP, dma_unmap(flags=64))
    peer.send(Command.REGION_WRITE, access(BAR0, 0, 1, b"x"), HeaderFlags.NO_REPLY)
    peer.session.eof()
    found = [record.fields for record in caplog.records if getattr(record, "event", "") == "vfio-user"]
    assert [(entry["direction"], entry["command"], entry.get("error")) for entry in found] == [
        ("request", "VERSION", None),
        ("reply", "VERSION", None),
        ("request", "REGION_READ", None),
        ("reply", "REGION_READ", None),
        ("request", "DMA_UNMAP", None),
        ("reply", "DMA_UNMAP", "EINVAL"),
        ("request", "REGION_WRITE", None),
    ]
    assert found[3]["data"] == "00000000"
    assert all(entry["function"] == "client" for entry in found)


@pytest.mark.row("server", 80)
def test_at_other_levels_no_message_is_decoded(
    device: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    monkeypatch.setattr(Outbox, "trace", lambda *message: calls.append(message))
    caplog.set_level(logging.INFO)
    peer = Peer(device)
    peer.ask(Command.VERSION, b"\0\0\0\0")
    peer.ask(Command.REGION_READ, access(BAR0, 0, 4))
    peer.ask(Command.DMA_UNMAP, dma_unmap(flags=64))
    assert calls == []
    caplog.set_level(logging.DEBUG)
    peer.ask(Command.REGION_READ, access(BAR0, 0, 4))
    assert len(calls) == 2
    peer.session.eof()
