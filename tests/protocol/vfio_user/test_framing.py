"""Frames come out the same however the stream was cut, and descriptors stay with their frame."""

from __future__ import annotations

import errno
import itertools
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfio_user import transport
from vfio_user.framing import FDS_TRUNCATED, BadFrame, Frame, FrameReader, close_fds
from vfio_user.messages import Header

MAX = 256
payloads = st.lists(st.binary(max_size=MAX - 16), max_size=8)


def message(payload: bytes = b"", size: int | None = None, number: int = 7) -> bytes:
    return Header(number, 9, 16 + len(payload) if size is None else size, 0, 0).pack() + payload


def devnull() -> int:
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


def is_open(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")


def good(frames: list[Frame | BadFrame]) -> list[Frame]:
    found = [frame for frame in frames if isinstance(frame, Frame)]
    assert len(found) == len(frames)
    return found


@given(payloads, st.data())
@pytest.mark.row("defect", "A17")
@pytest.mark.row("wire", 1)
def test_any_split_of_any_frames_parses_identically(bodies: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(message(body, number=number) for number, body in enumerate(bodies))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12))
    reader = FrameReader(MAX)
    frames: list[Frame] = []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(stream)], strict=True):
        frames += good(reader.feed(stream[start:end]))
    assert [(frame.header.id, frame.payload) for frame in frames] == list(enumerate(bodies))


@pytest.fixture
def pair(no_fd_leak: None) -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    other.setblocking(False)
    with one, other:
        yield one, other


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.binary(max_size=80), st.integers(0, 3)), max_size=6),
    st.lists(st.integers(1, 300), min_size=1, max_size=20),
)
def test_descriptors_reach_their_frame_at_any_read_size(bodies: list[tuple[bytes, int]], sizes: list[int]) -> None:
    sender, receiver = socket.socketpair()
    with sender, receiver:
        receiver.setblocking(False)
        for number, (body, count) in enumerate(bodies):
            fds = [devnull() for _ in range(count)]
            socket.send_fds(sender, [message(body, number=number)], fds)
            close_fds(fds)
        reader = FrameReader(MAX)
        found = []
        for size in itertools.cycle(sizes):
            data, fds = transport.receive(receiver, size) or (b"", [])
            for frame in good(reader.feed(data, fds)):
                found.append((frame.payload, len(frame.fds)))
                close_fds(frame.fds)
            if not data:
                break
    assert found == bodies


def test_reading_what_is_wanted_gives_descriptors_of_coalesced_messages_to_the_first(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    sender, receiver = pair
    fd = devnull()
    socket.send_fds(sender, [message(b"first") + message(b"second")], [fd])
    os.close(fd)
    reader = FrameReader(MAX)
    frames: list[Frame] = []
    while (chunk := transport.receive(receiver, reader.wanted)) and chunk[0]:
        frames += good(reader.feed(*chunk))
    assert [(frame.payload, len(frame.fds)) for frame in frames] == [(b"first", 1), (b"second", 0)]
    close_fds(frames[0].fds)


def test_wanted_counts_down_to_the_end_of_header_and_frame() -> None:
    reader = FrameReader(MAX)
    stream = message(b"x" * 10)
    wanted = [reader.wanted]
    for byte in stream[:-1]:
        reader.feed(bytes([byte]))
        wanted.append(reader.wanted)
    assert wanted == [*range(16, 0, -1), *range(10, 0, -1)]


@pytest.mark.parametrize("size", [0, 15, MAX + 1, 0xFFFFFFFF])
@pytest.mark.row("wire", 3)
def test_impossible_size_ends_the_stream_before_the_body_is_gathered(size: int, no_fd_leak: None) -> None:
    reader = FrameReader(MAX)
    frames = reader.feed(message(b"ok") + message(size=size), [devnull()])
    assert isinstance(frames[0], Frame)
    assert isinstance(frames[1], BadFrame)
    assert frames[1].header.size == size
    assert f"announces {size} bytes" in frames[1].text
    assert reader.feed(message(), [devnull()]) == []


def test_largest_frame_passes(no_fd_leak: None) -> None:
    (frame,) = good(FrameReader(MAX).feed(message(b"x" * (MAX - 16))))
    assert len(frame.payload) == MAX - 16


@pytest.mark.row("wire", 12)
def test_descriptors_beyond_the_bound_are_closed_and_the_frame_marked(no_fd_leak: None) -> None:
    reader = FrameReader(MAX, max_fds=2)
    reader.feed(message(b"body")[:8], [devnull(), devnull()])
    (frame,) = good(reader.feed(message(b"body")[8:], [devnull()]))
    assert (frame.fds, frame.fds_lost) == ([], errno.EINVAL)
    (after,) = good(reader.feed(message()))
    assert not after.fds_lost


def test_descriptors_that_come_after_too_many_are_closed_too(no_fd_leak: None) -> None:
    reader = FrameReader(MAX, max_fds=1)
    reader.feed(message(b"body")[:8], [devnull(), devnull()])
    reader.feed(message(b"body")[8:12], [devnull()])
    (frame,) = good(reader.feed(message(b"body")[12:], [devnull()]))
    assert (frame.fds, frame.fds_lost) == ([], errno.EINVAL)


def test_descriptors_are_kept_until_their_message_is_complete(no_fd_leak: None) -> None:
    reader = FrameReader(MAX)
    assert not reader.keeps_descriptors
    reader.feed(message(b"body")[:-1], [devnull()])
    assert reader.keeps_descriptors
    (frame,) = good(reader.feed(message(b"body")[-1:]))
    assert not reader.keeps_descriptors
    close_fds(frame.fds)


def test_descriptors_that_the_kernel_dropped_mark_their_frame(no_fd_leak: None) -> None:
    (frame,) = good(FrameReader(MAX).feed(message(), [FDS_TRUNCATED]))
    assert (frame.fds, frame.fds_lost) == ([], errno.EINVAL)


def test_close_closes_descriptors_of_an_unfinished_frame(no_fd_leak: None) -> None:
    reader = FrameReader(MAX)
    fd = devnull()
    reader.feed(message(b"body")[:-1], [fd])
    assert is_open(fd)
    reader.close()
    assert not is_open(fd)
