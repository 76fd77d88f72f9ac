"""What a peer sends is told by kind, and closed where nobody waits."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfio_user import foreign
from vfio_user.foreign import Closer, is_eventfd, is_memory_file

PATIENCE_S = 10
LINGER_S = 3


@pytest.fixture
def opened(no_fd_leak: None) -> Iterator[list[int]]:
    """Descriptors that are closed in the end."""
    fds: list[int] = []
    yield fds
    for fd in fds:
        os.close(fd)


def lingering() -> tuple[int, socket.socket, socket.socket]:
    """A descriptor whose close waits LINGER_S, since its other end takes no data; what that needs."""
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    other, _ = listener.accept()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER_S))
    client.setblocking(False)
    try:
        while True:
            client.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    client.setblocking(True)
    return client.detach(), other, listener


class Closed:
    """Tells that a closer has nothing left."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.closer = Closer(self._event.set)

    def wait(self) -> None:
        assert self._event.wait(PATIENCE_S)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.mark.row("server", 10)
def test_kinds_are_told_apart(opened: list[int], tmp_path: Path) -> None:
    memory, event = os.memfd_create("ram"), os.eventfd(0)
    on_disk = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    named = os.open(tmp_path / "anon_inode:[eventfd]", os.O_RDWR | os.O_CREAT)
    opened += [memory, event, on_disk, named, *os.pipe()]
    assert [is_eventfd(fd) for fd in opened] == [False, True, False, False, False, False]
    assert [is_memory_file(fd) for fd in (memory, event)] == [True, False]


def test_no_name_breaks_a_line(opened: list[int]) -> None:
    opened.append(os.memfd_create("one\ntwo\udcff"))
    assert foreign.name_of(opened[0]) == "/memfd:one\\ntwo\\udcff (deleted)"
    assert "\n" not in foreign.name_of(-1)


@pytest.mark.row("server", 9)
def test_memory_and_eventfds_are_closed_at_once(no_fd_leak: None) -> None:
    fds = [os.memfd_create("ram"), os.eventfd(0)]
    closer = Closer()
    closer.close([*fds, -1])
    assert not closer.busy
    assert not any(is_open(fd) for fd in fds)


@pytest.mark.row("server", 9)
def test_a_descriptor_that_lingers_is_closed_elsewhere(no_fd_leak: None) -> None:
    fd, other, listener = lingering()
    closed = Closed()
    closed.closer.close([fd])
    assert closed.closer.busy  # the close itself takes LINGER_S
    other.close()  # resets the connection: nothing to wait for any more
    listener.close()
    closed.wait()
    assert not closed.closer.busy
    assert not is_open(fd)


@pytest.mark.row("server", 9)
def test_what_lies_unread_in_a_connection_is_closed_elsewhere_and_its_peer_sees_the_end_at_once(
    no_fd_leak: None,
) -> None:
    fd, other, listener = lingering()
    ours, theirs = socket.socketpair()
    socket.send_fds(theirs, [b"x"], [fd])
    os.close(fd)
    closed = Closed()
    closed.closer.close_socket(ours)
    assert closed.closer.busy
    with contextlib.suppress(ConnectionResetError):  # the other way to tell the end
        assert theirs.recv(1) == b""
    other.close()
    listener.close()
    closed.wait()
    theirs.close()


def test_a_connection_with_nothing_unread_is_closed_at_once(no_fd_leak: None) -> None:
    ours, theirs = socket.socketpair()
    closer = Closer()
    closer.close_socket(ours)
    assert not closer.busy
    assert ours.fileno() == -1
    theirs.close()


def test_a_listener_is_closed_elsewhere_and_who_waited_sees_the_end(tmp_path: Path, no_fd_leak: None) -> None:
    """Those who wait to be accepted may have sent anything."""
    closed = Closed()
    listener, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    client.connect(str(tmp_path / "s"))
    closed.closer.close_socket(listener)
    closed.wait()  # what is closed at once does not tell
    assert listener.fileno() == -1
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(1) == b""
    client.close()


@pytest.mark.row("server", 9)
def test_a_wait_for_what_is_left_ends_with_it_or_with_its_time(no_fd_leak: None) -> None:
    closer = Closer()
    assert closer.wait(0)
    fd, other, listener = lingering()
    closer.close([fd])
    assert not closer.wait(0.01)
    other.close()
    listener.close()
    assert closer.wait(PATIENCE_S)
    assert not is_open(fd)


def no_more(_: threading.Thread) -> None:
    """``Thread.start`` where there can be no further thread."""
    raise RuntimeError("can't start new thread")


@pytest.mark.row("server", 9)
def test_without_a_thread_nothing_is_closed_until_there_is_one(
    no_fd_leak: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = Closed()
    reader, writer = os.pipe()
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", no_more)
        closed.closer.close([reader, writer])
        assert closed.closer.busy
        assert is_open(reader)
    assert closed.closer.busy  # asking is what tries again
    closed.wait()
    assert not closed.closer.busy


def test_a_closer_is_stuck_as_long_as_there_is_no_thread_for_it(
    no_fd_leak: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = Closed()
    assert not closed.closer.is_stuck
    with monkeypatch.context() as none_left:
        none_left.setattr(threading.Thread, "start", no_more)
        closed.closer.close(os.pipe())
        assert closed.closer.is_stuck
    assert not closed.closer.is_stuck  # asking is what tries again
    closed.wait()


def test_a_closer_is_full_until_it_gets_to_close(no_fd_leak: None, monkeypatch: pytest.MonkeyPatch) -> None:
    closer = Closer()
    reader, writer = os.pipe()
    with monkeypatch.context() as none_left:
        none_left.setattr(threading.Thread, "start", no_more)
        closer.close([writer, *(os.dup(reader) for _ in range(foreign.MOST_LEFT - 2))])
        assert not closer.full
        closer.close([reader])
        assert closer.full
    assert closer.busy  # asking is what tries again
    assert closer.wait(PATIENCE_S)
    assert not closer.full


def test_a_closer_works_again_after_it_was_done(no_fd_leak: None) -> None:
    for _ in range(3):
        closed = Closed()
        reader, writer = os.pipe()
        closed.closer.close([reader])
        closed.closer.close([writer])
        closed.wait()
