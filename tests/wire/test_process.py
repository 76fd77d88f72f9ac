"""The server as a process that a host manages: its log, its files, its signals and the sockets that it is given."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pviommu.bench.wire_guest import processor_time_ns
from pviommu.process.log_limits import MOST
from vfio_user import Client

from .guest import PATIENCE_S, Serve, command, environment, run


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def serve(folder: Path, topology: Path) -> Iterator[Serve]:
    """A server that began as a user's does."""
    with Serve(folder, topology, whole=True) as process:
        yield process


@contextlib.contextmanager
def started(folder: Path, *arguments: str | Path, program: tuple[str, ...] = (), **how: object) -> Iterator[Popen]:
    """A server whose end the test sees to; killed in the end if it still runs."""
    options = (*arguments, "--socket-dir", folder, "--pidfile", folder / "pid")
    process = subprocess.Popen([*program, *command(*options)], **{"env": environment(), **how})  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


Popen = subprocess.Popen[bytes]


def ask(path: Path, times: int = 1) -> None:
    """Be a client that is served."""
    with Client.connect(path) as client:
        for _ in range(times):
            assert client.device_info().num_regions == 9


# -- the log ----------------------------------------------------------------------------------------------------------


@pytest.mark.row("server", 82)
@pytest.mark.parametrize("read_at_the_end", [False, True])
def test_a_log_that_nobody_reads_stops_neither_the_service_nor_its_end(
    folder: Path, topology: Path, read_at_the_end: bool
) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    options = ("--log-level", "debug", "--log-format", "json")
    with started(folder, topology, *options, stderr=writer) as process:
        os.close(writer)
        until((folder / "pid").exists)
        for _ in range(100):
            ask(folder / "iommu.sock")
        ask(folder / "iommu.sock", 5000)  # several times what pipe and queue hold
        process.send_signal(signal.SIGTERM)
        said = b""
        if read_at_the_end:
            while piece := os.read(reader, 1 << 16):
                said += piece
        assert process.wait(PATIENCE_S) == 0
    os.close(reader)
    assert list(folder.iterdir()) == []
    if read_at_the_end:
        lines = [json.loads(line) for line in said.splitlines()]
        assert any("lines of the log were lost: nothing read them" in line["message"] for line in lines)
        assert lines[-1]["event"] == "summary"


@pytest.mark.row("server", 82)
def test_a_pipe_that_is_shared_stays_as_it_was(folder: Path, topology: Path) -> None:
    reader, writer = os.pipe()
    before = fcntl.fcntl(writer, fcntl.F_GETFL)
    with started(folder, topology, stderr=writer) as process:
        until((folder / "pid").exists)
        assert fcntl.fcntl(writer, fcntl.F_GETFL) == before
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    os.close(reader)
    os.close(writer)


@pytest.mark.row("server", 81)
def test_clients_that_come_and_go_cannot_fill_a_log(folder: Path, topology: Path) -> None:
    with Serve(folder, topology, whole=True) as serve:
        for _ in range(5 * MOST):
            ask(folder / "iommu.sock")
        assert serve.stop() == 0
    connected = [line for line in serve.lines if line["event"] == "connected"]
    repeated = [line for line in serve.lines if line["event"] == "repeated" and line["of"] == "connected"]
    assert len(connected) < 5 * MOST
    assert len(connected) + sum(line["count"] for line in repeated) == 5 * MOST
    assert all(line["function"] == "iommu" for line in repeated)


@pytest.mark.row("server", 80)
def test_at_level_debug_the_log_shows_each_message_both_ways(folder: Path, topology: Path) -> None:
    with Serve(folder, topology, "--log-level", "debug", whole=True) as serve:
        with Client.connect(folder / "dma0.sock") as client:
            client.device_info()
            client.region_write(0, 0x10, b"\1\0\0\0")
        assert serve.stop() == 0
    found = [line for line in serve.lines if line["event"] == "vfio-user"]
    assert [(line["direction"], line["command"]) for line in found] == [
        (direction, name)
        for name in ("VERSION", "DEVICE_GET_INFO", "REGION_WRITE")
        for direction in ("request", "reply")
    ]
    assert found[4] | {"function": "dma0", "region": "BAR0", "offset": 16, "count": 4, "data": "01000000"} == found[4]


# -- SIGHUP -----------------------------------------------------------------------------------------------------------


@pytest.mark.row("server", 86)
def test_sighup_opens_the_log_file_anew_and_the_server_sleeps_on(folder: Path, topology: Path) -> None:
    path = folder / "log"
    with started(folder, topology, "--log-file", path, stderr=subprocess.PIPE) as process:
        until(lambda: path.exists() and "listening" in path.read_text())
        path.rename(folder / "log.1")
        process.send_signal(signal.SIGHUP)
        until(path.exists)
        ask(folder / "iommu.sock")
        until(lambda: "client gone" in path.read_text())
        assert "listening" in (folder / "log.1").read_text()
        assert "client gone" not in (folder / "log.1").read_text()
        time.sleep(0.2)
        before = processor_time_ns(process.pid)
        time.sleep(0.3)
        assert processor_time_ns(process.pid) == before
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert "summary" in path.read_text()


@pytest.mark.row("server", 86)
def test_without_a_log_file_sighup_ends_the_server_like_sigterm(serve: Serve) -> None:
    serve.process.send_signal(signal.SIGHUP)
    assert serve.process.wait(PATIENCE_S) == 0
    assert list(serve.folder.iterdir()) == []


@pytest.mark.row("server", 86)
def test_under_nohup_sighup_is_ignored(folder: Path, topology: Path) -> None:
    with started(folder, topology, program=("nohup",), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        until((folder / "pid").exists)
        process.send_signal(signal.SIGHUP)
        ask(folder / "iommu.sock")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.row("server", 86)
@pytest.mark.parametrize("kind", ["folder", "fifo", "missing"])
def test_a_log_file_that_cannot_be_one_is_status_3_in_one_line(folder: Path, topology: Path, kind: str) -> None:
    path = folder / "log"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path = folder / "none" / "log"
    done = run(topology, "--socket-dir", folder, "--log-file", path)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert f"--log-file {path}: " in done.stderr
    assert not (folder / "iommu.sock").exists()


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.row("server", 84)
def test_a_second_server_with_the_same_pidfile_is_refused_and_harms_nothing(serve: Serve, topology: Path) -> None:
    other = serve.folder / "other"
    other.mkdir()
    done = run(topology, "--socket-dir", other, "--pidfile", serve.pidfile, "--log-level", "error")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert f"--pidfile {serve.pidfile}: belongs to a running server, process {serve.process.pid}" in done.stderr
    assert serve.pidfile.read_text() == f"{serve.process.pid}\n"
    assert list(other.iterdir()) == []


@pytest.mark.row("server", 84)
def test_after_a_kill_the_next_server_takes_pidfile_and_sockets_over(folder: Path, topology: Path) -> None:
    with started(folder, topology, stderr=subprocess.DEVNULL) as process:
        until((folder / "pid").exists)
    assert (folder / "pid").read_text() == f"{process.pid}\n"
    with Serve(folder, topology, whole=True) as serve:
        until(lambda: (folder / "pid").read_text() == f"{serve.process.pid}\n")
        ask(folder / "iommu.sock")
        assert serve.stop() == 0
    assert list(folder.iterdir()) == []


@pytest.mark.row("server", 84)
@pytest.mark.row("server", 85)
def test_files_that_others_put_in_their_place_are_left_alone(folder: Path, topology: Path) -> None:
    with Serve(folder, topology, whole=True) as serve:
        until((folder / "pid").exists)
        for name in ("pid", "iommu.sock"):
            (folder / name).unlink()
            (folder / name).write_text("another's\n")
        assert serve.stop() == 0
    assert sorted(path.name for path in folder.iterdir()) == ["iommu.sock", "pid"]


@pytest.mark.row("server", 91)
def test_sockets_have_the_mode_and_group_that_were_asked_for(folder: Path, topology: Path) -> None:
    group = grp.getgrgid(os.getgid())
    with Serve(folder, topology, "--socket-mode", "660", "--socket-group", group.gr_name, whole=True):
        for path in folder.glob("*.sock"):
            status = path.stat()
            assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, group.gr_gid)
            assert stat.S_ISSOCK(status.st_mode)


# -- given sockets ----------------------------------------------------------------------------------------------------

SYSTEMD = """
import os, sys
given, names, *command = sys.argv[1:]
fds = [int(fd) for fd in given.split(",")]
for place, fd in enumerate(fds):
    os.dup2(fd, 100 + place)
for place in range(len(fds)):
    os.dup2(100 + place, 3 + place, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=names)
os.execv(command[0], command)
"""


@pytest.mark.row("server", 88)
@pytest.mark.row("server", 89)
def test_a_socket_of_systemd_is_served_and_the_manager_told(folder: Path, topology: Path) -> None:
    path, told = folder / "dma1.sock", folder / "notify"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        listener.bind(str(path))
        listener.listen()
        manager.bind(str(told))
        manager.settimeout(PATIENCE_S)
        program = (sys.executable, "-c", SYSTEMD, str(listener.fileno()), "pviommu.socket")
        how = {"pass_fds": (listener.fileno(),), "env": environment() | {"NOTIFY_SOCKET": str(told)}}
        with started(folder, topology, program=program, stderr=subprocess.DEVNULL, **how) as process:
            lines = manager.recv(4096).decode().split("\n")
            assert lines == ["READY=1", lines[1]]
            assert lines[1].startswith("STATUS=listening on dma0, dma1, iommu, ")
            ask(path)
            assert (folder / "iommu.sock").exists()
            process.send_signal(signal.SIGTERM)
            assert manager.recv(4096).startswith(b"STOPPING=1")
            assert process.wait(PATIENCE_S) == 0
        assert select.select([manager], [], [], 0)[0] == []
    assert sorted(entry.name for entry in folder.iterdir()) == ["dma1.sock", "notify"]


@pytest.mark.row("server", 87)
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_descriptor_that_cannot_be_served_is_status_2_in_one_line(folder: Path, topology: Path, kind: int) -> None:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        done = run(topology, "--socket-dir", folder, "--fd", f"iommu={sock.fileno()}", fds=(sock.fileno(),))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert list(folder.iterdir()) == []
