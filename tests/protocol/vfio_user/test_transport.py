"""Sockets: listening, stale files, descriptors, partial writes, vanished peers."""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfio_user import Outgoing, transport
from vfio_user.framing import close_fds
from vfio_user.transport import Flush


@pytest.fixture
def pair(no_fd_leak: None) -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    one.setblocking(False)
    other.setblocking(False)
    with one, other:
        yield one, other


def devnull() -> int:
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


def test_receive_returns_bytes_and_descriptors_closed_on_exec(pair: tuple[socket.socket, socket.socket]) -> None:
    fd = devnull()
    socket.send_fds(pair[0], [b"data"], [fd, fd])
    os.close(fd)
    chunk = transport.receive(pair[1])
    assert chunk is not None
    assert (chunk[0], len(chunk[1])) == (b"data", 2)
    assert not any(os.get_inheritable(received) for received in chunk[1])
    close_fds(chunk[1])


def test_receive_has_room_for_as_many_descriptors_as_linux_passes(pair: tuple[socket.socket, socket.socket]) -> None:
    fd = devnull()
    socket.send_fds(pair[0], [b"x"], [fd] * 253)
    os.close(fd)
    chunk = transport.receive(pair[1])
    assert chunk is not None
    assert len(chunk[1]) == 253
    close_fds(chunk[1])


@pytest.mark.row("server", 4)
@pytest.mark.row("wire", 12)
@pytest.mark.row("defect", "A12")
def test_descriptors_that_this_process_has_no_room_for_are_reported(pair: tuple[socket.socket, socket.socket]) -> None:
    fd = devnull()
    socket.send_fds(pair[0], [b"x"], [fd] * 10)
    os.close(fd)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (pair[1].fileno() + 4, limits[1]))
    try:
        chunk = transport.receive(pair[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert chunk is not None
    assert (chunk[0], len(chunk[1]), chunk[1][-1]) == (b"x", 4, -errno.EMFILE)
    close_fds(chunk[1])


def test_descriptors_kept_back_although_there_is_room_were_not_allowed(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a security module; here it is room in the message that is missing."""
    monkeypatch.setattr(transport, "_ANCILLARY", socket.CMSG_SPACE(1))
    fd = devnull()
    socket.send_fds(pair[0], [b"x"], [fd] * 10)
    os.close(fd)
    chunk = transport.receive(pair[1])
    assert chunk is not None
    assert (chunk[0], chunk[1][-1]) == (b"x", -errno.EACCES)
    close_fds(chunk[1])


def test_receive_of_nothing_is_empty_and_of_a_closed_peer_none(pair: tuple[socket.socket, socket.socket]) -> None:
    assert transport.receive(pair[1]) == (b"", [])
    pair[0].close()
    assert transport.receive(pair[1]) is None


def test_receive_after_a_reset_is_none(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].sendall(b"never read")
    pair[0].close()
    assert transport.receive(pair[1]) is None


def test_flush_sends_each_message_with_its_descriptors(pair: tuple[socket.socket, socket.socket]) -> None:
    fd = devnull()
    outgoing = deque([Outgoing(b"one"), Outgoing(b"two", (fd,))])
    assert transport.flush(pair[0], outgoing)
    os.close(fd)
    chunk = transport.receive(pair[1])
    assert chunk is not None
    assert (chunk[0], len(chunk[1])) == (b"onetwo", 1)
    close_fds(chunk[1])


def test_flush_keeps_what_a_full_socket_does_not_take(pair: tuple[socket.socket, socket.socket]) -> None:
    fd = devnull()
    data = bytes(range(256)) * 16384
    outgoing = deque([Outgoing(data, (fd,)), Outgoing(b"last")])
    result = transport.flush(pair[0], outgoing)
    assert result is Flush.BLOCKED
    assert not result
    found, fds = b"", 0
    while not result:
        while (chunk := transport.receive(pair[1])) and chunk[0]:
            found += chunk[0]
            fds += len(chunk[1])
            close_fds(chunk[1])
        result = transport.flush(pair[0], outgoing)
    os.close(fd)
    while (chunk := transport.receive(pair[1])) and chunk[0]:
        found += chunk[0]
    assert found == data + b"last"
    assert fds == 1
    assert not outgoing


@pytest.mark.row("wire", 55)
def test_flush_to_a_vanished_peer_is_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].close()
    assert transport.flush(pair[0], deque([Outgoing(b"x")])) is Flush.CLOSED


def test_flush_that_cannot_pass_a_descriptor_is_closed_and_logged(
    pair: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    assert transport.flush(pair[0], deque([Outgoing(b"x", (999_999,))])) is Flush.CLOSED
    assert "cannot send 1 bytes with 1 descriptors" in caplog.text


def test_listen_makes_a_socket_file_of_its_mode_and_accepts(tmp_path: Path, no_fd_leak: None) -> None:
    path = tmp_path / "s"
    with transport.listen(path) as listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert transport.accept(listener) is None
        with transport.connect(path, 1) as client:
            server = transport.accept(listener)
            assert server is not None
            with server:
                client.sendall(b"x")
                assert transport.receive(server) == (b"x", [])


def test_listen_honours_another_mode(tmp_path: Path) -> None:
    with transport.listen(tmp_path / "s", 0o666):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o666


def test_listen_gives_the_file_to_a_group(tmp_path: Path, no_fd_leak: None) -> None:
    path = tmp_path / "s"
    group = os.getgroups()[-1] if os.getgroups() else os.getgid()
    with transport.listen(path, 0o660, group), transport.connect(path, 1):
        assert (path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (group, 0o660)


def test_listen_that_may_not_give_the_file_to_its_group_says_so_and_leaves_none(
    tmp_path: Path, no_fd_leak: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    path = tmp_path / "s"
    with monkeypatch.context() as not_allowed:
        not_allowed.setattr(os, "chown", refuse)
        with pytest.raises(PermissionError, match=f"cannot give it to group 4711: .*{path}"):
            transport.listen(path, 0o660, 4711)
    assert not path.exists()


@pytest.mark.row("server", 85)
def test_a_removed_listener_takes_its_own_file_along(tmp_path: Path, no_fd_leak: None) -> None:
    listener = transport.listen(tmp_path / "s")
    listener.remove()
    assert not (tmp_path / "s").exists()
    assert listener.fileno() == -1


@pytest.mark.row("server", 85)
def test_a_removed_listener_leaves_what_took_the_place_of_its_file(tmp_path: Path, no_fd_leak: None) -> None:
    path = tmp_path / "s"
    listener = transport.listen(path)
    path.rename(tmp_path / "moved")  # which keeps the number of the file in use
    path.write_text("precious")
    listener.remove()
    assert path.read_text() == "precious"


@pytest.mark.row("server", 85)
def test_a_listener_whose_file_is_gone_is_removed_all_the_same(tmp_path: Path, no_fd_leak: None) -> None:
    listener = transport.listen(tmp_path / "s")
    (tmp_path / "s").unlink()
    listener.remove()
    assert listener.fileno() == -1


@pytest.mark.row("wire", 57)
def test_listen_replaces_a_stale_socket_file(tmp_path: Path, no_fd_leak: None) -> None:
    path = tmp_path / "s"
    transport.listen(path).close()
    with transport.listen(path), transport.connect(path, 1):
        assert path.is_socket()


def test_listen_refuses_a_live_socket_and_leaves_it(tmp_path: Path, no_fd_leak: None) -> None:
    path = tmp_path / "s"
    with transport.listen(path):
        with pytest.raises(OSError, match="another server listens") as refused:
            transport.listen(path)
        assert refused.value.errno == errno.EADDRINUSE
        transport.connect(path, 1).close()


def test_listen_refuses_another_kind_of_file_and_leaves_it(tmp_path: Path, no_fd_leak: None) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(OSError, match="not a socket") as refused:
        transport.listen(path)
    assert refused.value.errno == errno.EADDRINUSE
    assert path.read_text() == "precious"


@pytest.mark.parametrize("open_socket", [transport.listen, lambda path: transport.connect(path, 1)])
def test_too_long_path_is_refused_with_its_limit(tmp_path: Path, open_socket: object) -> None:
    path = tmp_path / ("x" * 108)
    with pytest.raises(OSError, match="at most 107 bytes") as refused:
        open_socket(path)  # type: ignore[operator]
    assert refused.value.errno == errno.ENAMETOOLONG


def test_listen_in_a_missing_folder_names_the_path(tmp_path: Path, no_fd_leak: None) -> None:
    with pytest.raises(FileNotFoundError, match="missing/s"):
        transport.listen(tmp_path / "missing" / "s")


def test_connect_without_a_server_names_the_path(tmp_path: Path, no_fd_leak: None) -> None:
    with pytest.raises(FileNotFoundError, match="nobody"):
        transport.connect(tmp_path / "nobody", 1)


def test_second_client_waits_without_disturbing_the_first(tmp_path: Path, no_fd_leak: None) -> None:
    path = tmp_path / "s"
    with transport.listen(path) as listener, transport.connect(path, 1) as first:
        server = transport.accept(listener)
        assert server is not None
        with server, transport.connect(path, 1) as second:
            second.sendall(b"second")
            first.sendall(b"first")
            assert transport.receive(server) == (b"first", [])
            first.close()
            assert transport.receive(server) is None
            following = transport.accept(listener)
            assert following is not None
            with following:
                assert transport.receive(following) == (b"second", [])


def test_nobody_waiting_is_none(tmp_path: Path, no_fd_leak: None) -> None:
    with transport.listen(tmp_path / "s") as listener:
        assert transport.accept(listener) is None


def test_a_socket_whose_time_runs_out_raises_and_keeps_what_is_left(no_fd_leak: None) -> None:
    one, other = socket.socketpair()
    one.settimeout(0.01)
    outgoing = deque([Outgoing(bytes(1 << 20))] * 8)
    with one, other, pytest.raises(TimeoutError):
        transport.flush(one, outgoing)
    assert outgoing


def test_ancillary_data_that_is_no_descriptor_is_passed_over(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    pair[0].sendall(b"data")
    assert transport.receive(pair[1]) == (b"data", [])


def test_a_connection_that_times_out_says_so(tmp_path: Path, no_fd_leak: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(_sock: socket.socket, _address: str) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket.socket, "connect", late)
    with pytest.raises(TimeoutError, match="timed out"):
        transport.connect(tmp_path / "s", 0.01)


def test_a_stale_file_that_vanishes_meanwhile_is_no_error(
    tmp_path: Path, no_fd_leak: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    path.write_text("in the way for a moment")
    lstat = os.lstat

    def vanish(name: str) -> os.stat_result:
        monkeypatch.setattr(os, "lstat", lstat)  # whoever calls it next, a failing test's report too, gets the real one
        path.unlink()
        return lstat(name)

    monkeypatch.setattr(os, "lstat", vanish)
    transport.listen(path).close()
    assert stat.S_ISSOCK(lstat(path).st_mode)


def test_a_socket_whose_backlog_is_full_is_busy(tmp_path: Path, no_fd_leak: None) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(path))
        listener.listen(0)
        waiting.connect(str(path))
        with pytest.raises(OSError, match="another server listens") as caught:
            transport.listen(path)
    assert caught.value.errno == errno.EADDRINUSE
