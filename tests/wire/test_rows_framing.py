"""Framing and VERSION as bytes on the socket of a real back end."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from . import raw
from .raw import NO_REPLY, Raw, info, version

row = pytest.mark.row
PAYLOADS = {
    raw.DMA_MAP: raw.dma_map(0x100000000, 4096),
    raw.DMA_UNMAP: raw.dma_unmap(0x100000000, 4096),
    raw.GET_INFO: info(),
    raw.GET_REGION_INFO: raw.region_info(32, 0),
    raw.GET_REGION_IO_FDS: info(),
    raw.GET_IRQ_INFO: info(),
    raw.SET_IRQS: raw.set_irqs(raw.NONE | raw.TRIGGER, count=0),
    raw.REGION_READ: raw.access(0, 0, 4),
    raw.REGION_WRITE: raw.access(0, 0, 4) + bytes(4),
    raw.DEVICE_RESET: b"",
}
"""A good request of each command that is served."""
ALL_COMMANDS = range(20)


def message(command, payload=b"", number=1, flags=0, size=None, error=0):
    return raw.HEADER.pack(number, command, 16 + len(payload) if size is None else size, flags, error) + payload


def pipes(count):
    """Descriptors of ``count`` pipes: their reading ends, and the writing ends that a server is given."""
    pairs = [os.pipe() for _ in range(count)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def all_closed_elsewhere(readers, writers):
    """Close both ends here; whether nobody else kept a writing end open."""
    for fd in writers:
        os.close(fd)
    try:
        return all(os.read(fd, 1) == b"" for fd in readers)
    finally:
        for fd in readers:
            os.close(fd)


# -- framing ----------------------------------------------------------------------------------------------------------


@row("wire", 1)
@row("defect", "A17")
@pytest.mark.parametrize("size", [1, 2, 3, 7, 15, 16, 17, 31, 33, 64])
def test_requests_are_answered_alike_however_the_stream_is_cut(peer, size):
    stream = b"".join(message(raw.GET_INFO, info(), number) for number in range(8))
    for start in range(0, len(stream), size):
        peer.send_bytes(stream[start : start + size])
    answers = [peer.receive() for _ in range(8)]
    assert [answer.number for answer in answers] == list(range(8))
    assert {answer.payload for answer in answers} == {info(16, 3, 9, 5)}


@row("wire", 2)
@row("defect", "A17")
@pytest.mark.parametrize("size", [0, 15])
def test_a_size_below_the_header_is_einval_and_ends_the_connection(peer, size):
    number = peer.send(raw.GET_INFO, size=size)
    assert peer.receive()[:5] == (number, raw.GET_INFO, 16, 0x21, errno.EINVAL)
    assert peer.has_ended()


@row("wire", 3)
@row("defect", "A17")
@pytest.mark.parametrize("size", [raw.MAX_SIZE + 1, 0xFFFFFFFF])
def test_a_size_above_the_limit_is_einval_without_waiting_for_the_body(peer, size):
    number = peer.send(raw.REGION_WRITE, size=size)
    assert peer.receive()[:5] == (number, raw.REGION_WRITE, 16, 0x21, errno.EINVAL)
    assert peer.has_ended()


@row("wire", 3)
def test_a_message_of_exactly_the_largest_size_is_served(peer):
    assert peer.write(2, 0, bytes(1 << 20)) == 0


@row("wire", 4)
@row("defect", "A17")
@pytest.mark.parametrize("kind", [1, 2, 15])
def test_what_is_no_command_is_einval_and_the_session_goes_on(peer, kind):
    assert peer.ask(raw.GET_INFO, info(), flags=kind) == errno.EINVAL
    assert peer.is_alive()


@row("wire", 4)
@row("wire", 52, "no message DMA is ever sent, so every reply to one is of an unknown id: ignored, whatever it says")
@pytest.mark.parametrize("command", [raw.DMA_READ, raw.DMA_WRITE])
@pytest.mark.parametrize(("flags", "error"), [(1, 0), (0x21, errno.ENODEV), (0x21, errno.E2BIG)])
def test_a_reply_to_dma_that_was_never_requested_is_ignored(peer, command, flags, error):
    peer.send(command, struct.pack("<QQ", 0, 64) + bytes(200), flags=flags, error=error)
    assert peer.is_alive()


@row("wire", 5)
@row("wire", 60)
@pytest.mark.parametrize("command", [0, raw.DMA_READ, raw.DMA_WRITE, *range(14, 20), 65535])
def test_a_command_that_is_not_served_is_einval_and_the_session_goes_on(peer, command):
    assert peer.ask(command, bytes(24)) == errno.EINVAL
    assert peer.is_alive()


@row("wire", 6)
@pytest.mark.parametrize("command", [command for command in range(1, 19) if command != raw.DEVICE_RESET])
def test_a_header_alone_is_einval_for_all_but_reset(peer, command):
    assert peer.ask(command) == errno.EINVAL
    assert peer.is_alive()


@row("wire", 7)
def test_unknown_flags_and_an_error_in_a_command_are_ignored(peer):
    assert peer.ask(raw.GET_INFO, info(), flags=0xFFFFFF00 | raw.ERROR, error=77) == info(16, 3, 9, 5)


@row("wire", 8)
@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_no_reply_is_kept_in_success_and_failure(peer, command):
    for payload in (PAYLOADS.get(command, bytes(16)), b"\xff" * 7):
        peer.send(command, payload, NO_REPLY)
    assert peer.is_alive()


@row("wire", 9)
@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_replies_echo_id_and_command_and_errors_are_a_header_alone(peer, command):
    peer.number = 0xFFFD  # ids wrap
    for payload in (PAYLOADS.get(command, b""), b"\xff" * 7, PAYLOADS.get(command, b"")):
        peer.ask(command, payload)  # checks what all replies share


@row("wire", 9)
def test_one_id_may_be_used_by_several_requests_at_once(peer):
    peer.send_bytes(message(raw.GET_INFO, info(), 5) + message(raw.GET_INFO, info(8), 5))
    assert [(answer.number, answer.error) for answer in (peer.receive(), peer.receive())] == [(5, 0), (5, errno.EINVAL)]


@row("wire", 10)
@row("wire", 58)
def test_a_body_that_never_completes_holds_up_nobody_and_its_end_is_a_disconnect(back_end, peer):
    peer.send_bytes(message(raw.REGION_WRITE, b"half", size=4096))
    with Raw(back_end.folder / "dma0.sock") as other:
        other.negotiate()
        assert other.is_alive()
    peer.sock.close()
    with Raw(back_end.folder / "iommu.sock") as following:
        following.negotiate()
        assert following.is_alive()


@row("wire", 11)
@row("defect", "A12")
@pytest.mark.parametrize("command", [raw.GET_INFO, raw.DEVICE_RESET, raw.REGION_READ, raw.DMA_UNMAP, 99])
def test_descriptors_of_a_message_that_takes_none_are_closed_and_it_is_served(peer, command):
    expected = errno.EINVAL if command == 99 else errno.ENOENT if command == raw.DMA_UNMAP else None
    readers, writers = pipes(3)
    answer = peer.ask(command, PAYLOADS.get(command, b""), fds=writers)
    assert answer == expected if expected else isinstance(answer, bytes)
    assert all_closed_elsewhere(readers, writers)


@row("wire", 11)
@row("defect", "A12")
@pytest.mark.parametrize(
    ("command", "payload"),
    [
        (raw.DMA_MAP, raw.dma_map(0, 4096, flags=0x10)),
        (raw.DMA_MAP, raw.dma_map(0, 4096)),  # a pipe is no memory
        (raw.SET_IRQS, raw.set_irqs(raw.EVENTFD | raw.TRIGGER, start=1000)),
        (raw.SET_IRQS, raw.set_irqs(raw.EVENTFD | raw.TRIGGER)),  # a pipe is no eventfd
        (raw.SET_IRQS, b"short"),
    ],
)
def test_descriptors_of_a_refused_request_are_closed(peer, command, payload):
    readers, writers = pipes(1)
    assert peer.ask(command, payload, fds=writers) == errno.EINVAL
    assert all_closed_elsewhere(readers, writers)


@row("wire", 11)
@row("wire", 17)
def test_version_with_a_descriptor_is_einval_and_ends_the_connection(fresh):
    readers, writers = pipes(1)
    assert fresh.ask(raw.VERSION, version(0, 0, None), fds=writers) == errno.EINVAL
    assert fresh.has_ended()
    assert all_closed_elsewhere(readers, writers)


@row("wire", 12)
@row("defect", "A12")
@pytest.mark.parametrize("count", [17, 64, 100])
def test_more_descriptors_than_there_is_room_for_are_einval_and_all_closed(peer, count):
    readers, writers = pipes(count)
    payload = raw.set_irqs(raw.EVENTFD | raw.TRIGGER, count=count)
    assert peer.ask(raw.SET_IRQS, payload, fds=writers) == errno.EINVAL
    assert all_closed_elsewhere(readers, writers)
    assert peer.is_alive()


# -- VERSION ----------------------------------------------------------------------------------------------------------


@row("wire", 13)
def test_qemu_is_answered_0_0_with_capabilities_it_accepts(fresh):
    major, minor, told = fresh.negotiate()
    assert (major, minor) == (0, 0)
    assert told.keys() <= {"max_msg_fds", "max_data_xfer_size", "pgsizes", "max_dma_maps", "write_multiple"}
    assert 0 <= told["max_msg_fds"] <= 16
    assert 4096 <= told["max_data_xfer_size"] <= 64 << 20
    assert told["pgsizes"] >= 4096
    assert told["pgsizes"] % 4096 == 0
    assert told["max_dma_maps"] <= 65535
    assert told.get("write_multiple", False) in (True, False)


@row("wire", 14)
@pytest.mark.parametrize(("proposed", "answered"), [(0, 0), (1, 1), (2, 2), (3, 2), (0xFFFF, 2)])
def test_the_minor_version_answered_is_never_above_the_one_proposed(fresh, proposed, answered):
    assert fresh.negotiate(proposed)[:2] == (0, answered)


@row("wire", 15)
@pytest.mark.parametrize("major", [1, 999, 0xFFFF])
def test_another_major_version_is_einval_and_ends_the_connection(fresh, major):
    assert fresh.ask(raw.VERSION, version(major, 0, None)) == errno.EINVAL
    assert fresh.has_ended()


@row("wire", 16)
@pytest.mark.parametrize("payload", [b"", b"\0", b"\0\0\0"])
def test_a_short_version_is_einval_and_ends_the_connection(fresh, payload):
    assert fresh.ask(raw.VERSION, payload) == errno.EINVAL
    assert fresh.has_ended()


def capabilities(**found):
    return version(0, 0, {"capabilities": found})[4:]


@row("wire", 17)
@row("defect", "A5")
@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b"{\0",
        b'"\0',
        b"[]\0",
        b'"text"\0',
        b"\xff\0",
        b"[" * 100_000 + b"\0",
        b'{"capabilities":"23"}\0',
        b'{"capabilities":{"max_msg_fds":1' + b"0" * 5000 + b"}}\0",
        capabilities(max_msg_fds="foo"),
        capabilities(max_msg_fds=-1),
        capabilities(max_msg_fds=1025),
        capabilities(max_data_xfer_size="1"),
        capabilities(write_multiple=1),
        capabilities(migration="23"),
        capabilities(migration={"pgsize": "foo"}),
        capabilities(twin_socket=True),
    ],
)
def test_malformed_json_is_einval_and_ends_the_connection(fresh, text):
    assert fresh.ask(raw.VERSION, b"\0\0\0\0" + text) == errno.EINVAL
    assert fresh.has_ended()


@row("wire", 18)
@pytest.mark.parametrize("offer", [None, {}, {"capabilities": {}}])
def test_without_capabilities_the_defaults_hold(fresh, offer):
    fresh.negotiate(0, offer)
    assert fresh.is_alive()
    answer = fresh.ask(raw.GET_REGION_INFO, raw.region_info(4096, 2))
    assert struct.unpack_from("<II", answer)[1] & 4  # one descriptor may come: the region can be mapped
    assert len(fresh.read(2, 0, 1 << 20)) == 1 << 20


@row("wire", 18)
@row("defect", "A5")
def test_a_client_that_takes_no_descriptors_is_served_without_any(fresh):
    fresh.negotiate(0, {"capabilities": {"max_msg_fds": 0}})
    answer = fresh.ask(raw.GET_REGION_INFO, raw.region_info(4096, 2))
    assert struct.unpack_from("<II", answer) == (32, 3)


@row("wire", 19)
@pytest.mark.parametrize("command", [*(command for command in ALL_COMMANDS if command != raw.VERSION), 65535])
def test_another_command_first_is_einval_and_ends_the_connection(fresh, command):
    assert fresh.ask(command, PAYLOADS.get(command, bytes(16))) == errno.EINVAL
    assert fresh.has_ended()


@row("wire", 20)
def test_version_once_more_is_einval_and_changes_nothing(peer):
    assert peer.ask(raw.VERSION, version(0, 2, {"capabilities": {"max_msg_fds": 0}})) == errno.EINVAL
    answer = peer.ask(raw.GET_REGION_INFO, raw.region_info(4096, 2))
    assert struct.unpack_from("<II", answer)[1] & 4
    assert peer.is_alive()


@row("defect", "A10")
@pytest.mark.parametrize("error", [1 << 31, 0xFFFFFFFF])
def test_an_error_number_past_31_bits_is_as_good_as_any(peer, error):
    peer.send(raw.DMA_READ, flags=0x21, error=error)
    assert peer.ask(raw.GET_INFO, info(), error=error) == info(16, 3, 9, 5)


@row("wire", 57)
def test_a_second_client_is_refused_at_once_and_disturbs_nobody(back_end, peer):
    with Raw(back_end.folder / "iommu.sock") as second:
        assert second.ask(raw.VERSION, version(0, 0, None)) == errno.EBUSY
        assert second.has_ended()
    assert peer.is_alive()
    peer.sock.close()
    with Raw(back_end.folder / "iommu.sock") as third:
        third.negotiate()
        assert third.is_alive()
