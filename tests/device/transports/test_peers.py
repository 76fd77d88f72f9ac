"""Whether the process at the other end of a socket is gone."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pviommu.transports import peers
from pviommu.transports.peers import is_gone, peer_of

pytestmark = pytest.mark.row("server", 15)


class Process:
    """One that has connected a socket, and waits."""

    def __init__(self) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("")
            listener.listen()
            self.pid = os.fork()
            if self.pid == 0:
                connected = socket.socket(socket.AF_UNIX)
                connected.connect(listener.getsockname())
                signal.pause()
                os._exit(0)
            self.sock, _ = listener.accept()
        self.peer = peer_of(self.sock)

    def end(self, *, is_noted: bool) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.pid, os.WEXITED | (0 if is_noted else os.WNOWAIT))


@pytest.fixture
def process() -> Iterator[Process]:
    made = Process()
    yield made
    made.sock.close()
    with contextlib.suppress(ProcessLookupError, ChildProcessError):  # a test may have ended it
        made.end(is_noted=True)


@pytest.fixture(params=["by pidfd", "by number"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How it is found out; the second is that of kernels before 6.5."""
    if request.param == "by number":
        without_pidfds(monkeypatch, errno.ENOPROTOOPT)


def without_pidfds(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fails(_: socket.socket) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(peers, "_pidfd_of", fails)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("is_noted", [False, True])
def test_a_process_is_gone_when_it_has_ended_whether_its_parent_has_noted_it_or_not(
    process: Process, is_noted: bool
) -> None:
    assert not is_gone(process.sock, process.peer)
    process.end(is_noted=is_noted)
    assert is_gone(process.sock, process.peer)


def test_a_kernel_that_gives_no_pidfd_of_a_process_that_is_gone_says_so(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pidfds(monkeypatch, errno.ESRCH)
    assert is_gone(process.sock, process.peer)


def test_a_process_whose_number_another_one_has_now_is_gone(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pidfds(monkeypatch, errno.ENOPROTOOPT)
    assert process.peer.started is not None
    assert is_gone(process.sock, replace(process.peer, started=process.peer.started - 1))


@pytest.mark.parametrize("what", [{"pid": 0}, {"started": None}])
def test_a_process_of_which_nothing_can_be_told_is_not_gone(
    process: Process, monkeypatch: pytest.MonkeyPatch, what: dict[str, int | None]
) -> None:
    without_pidfds(monkeypatch, errno.ENOPROTOOPT)
    if "started" in what:
        monkeypatch.setattr(peers, "status_of", lambda _: None)  # /proc hides it
    else:
        process.end(is_noted=True)
    assert not is_gone(process.sock, replace(process.peer, **what))
