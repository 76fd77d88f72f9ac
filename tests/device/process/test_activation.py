"""Sockets that were given: checked by type, each for one function."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pviommu.process import activation
from pviommu.process.activation import given_sockets

NAMES = ("iommu", "dma0", "dma1")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def listening(stack: ExitStack, path: Path) -> int:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.bind(str(path))
    sock.listen()
    return sock.fileno()


def connected(stack: ExitStack) -> int:
    ours, theirs = socket.socketpair()
    stack.enter_context(ours)
    return stack.enter_context(theirs).fileno()


def taken(*options: str, **environment: str) -> dict[str, int]:
    return given_sockets(options, NAMES, environment)


@pytest.mark.row("server", 87)
def test_sockets_that_listen_or_are_connected_are_taken(stack: ExitStack, tmp_path: Path) -> None:
    first, second = listening(stack, tmp_path / "s"), connected(stack)
    assert taken(f"iommu={first}", f"dma1={second}") == {"iommu": first, "dma1": second}


@pytest.mark.row("server", 87)
@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("iommu", "must be NAME=N"),
        ("nobody=3", "with NAME one of dma0, dma1, iommu"),
        ("iommu=\u0663", "must be NAME=N"),
        ("iommu=-3", "must be NAME=N"),
        ("iommu=2", "2 is standard error"),
        ("iommu=999", "Bad file descriptor"),
        (f"iommu={1 << 40}", "--fd iommu="),
    ],
)
def test_an_option_that_names_no_function_or_no_descriptor_is_refused(option: str, text: str) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        taken(option)
    assert f"--fd {option}" in str(caught.value)


@pytest.mark.row("server", 87)
@pytest.mark.parametrize(
    ("family", "kind", "text"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, "Unix stream socket, this is .*INET"),
        (socket.AF_UNIX, socket.SOCK_DGRAM, "Unix stream socket, this is .*DGRAM"),
        (socket.AF_UNIX, socket.SOCK_SEQPACKET, "Unix stream socket, this is .*SEQPACKET"),
        (socket.AF_UNIX, socket.SOCK_STREAM, "neither listens nor is connected"),
    ],
)
def test_a_socket_of_another_type_is_refused(family: int, kind: int, text: str) -> None:
    with socket.socket(family, kind) as sock, pytest.raises(ValueError, match=text):
        taken(f"iommu={sock.fileno()}")


@pytest.mark.row("server", 87)
def test_what_is_no_socket_is_refused() -> None:
    with open(os.devnull) as null, pytest.raises(ValueError, match="this is no socket"):
        taken(f"iommu={null.fileno()}")


@pytest.mark.row("server", 87)
def test_a_function_or_a_socket_that_is_given_twice_is_refused(stack: ExitStack, tmp_path: Path) -> None:
    first, second = listening(stack, tmp_path / "s"), connected(stack)
    with pytest.raises(ValueError, match=f"--fd iommu={second}: function iommu has a socket already"):
        taken(f"iommu={first}", f"iommu={second}")
    with pytest.raises(ValueError, match="same socket as that of function iommu"):
        taken(f"iommu={first}", f"dma0={first}")
    copy = os.dup(first)
    stack.callback(os.close, copy)
    with pytest.raises(ValueError, match="same socket as that of function iommu"):
        taken(f"iommu={first}", f"dma0={copy}")


class Systemd:
    """Descriptors in a row, as systemd passes them, but not from 3 on, which pytest uses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *fds: int) -> None:
        first = 500
        for place, fd in enumerate(fds):
            os.dup2(fd, first + place)
        monkeypatch.setattr(activation, "_FIRST", first)
        self.fds = range(first, first + len(fds))

    def variables(self, *labels: str) -> dict[str, str]:
        named = {"LISTEN_FDNAMES": ":".join(labels)} if labels else {}
        return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(self.fds)), **named}


@pytest.fixture
def systemd(stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    made = Systemd(monkeypatch, listening(stack, tmp_path / "dma1.sock"), listening(stack, tmp_path / "iommu.sock"))
    yield made
    for fd in made.fds:
        os.close(fd)


@pytest.mark.row("server", 88)
@pytest.mark.parametrize("labels", [(), ("pviommu.socket", "pviommu.socket"), ("unknown",)])
def test_sockets_of_systemd_are_known_by_their_files(systemd: Systemd, labels: tuple[str, ...]) -> None:
    assert taken(**systemd.variables(*labels)) == {"dma1": systemd.fds[0], "iommu": systemd.fds[1]}


@pytest.mark.row("server", 88)
def test_a_name_that_is_a_functions_goes_before_that_of_the_file(systemd: Systemd) -> None:
    assert taken(**systemd.variables("iommu", "dma0")) == {"iommu": systemd.fds[0], "dma0": systemd.fds[1]}


@pytest.mark.row("server", 88)
def test_sockets_for_another_process_are_left_alone(systemd: Systemd) -> None:
    assert taken(**systemd.variables() | {"LISTEN_PID": str(os.getppid())}) == {}
    assert taken(LISTEN_FDS="2") == {}


@pytest.mark.row("server", 88)
def test_the_variables_are_gone_afterwards(systemd: Systemd) -> None:
    environment = {"HOME": "/", **systemd.variables("iommu", "dma0")}
    given_sockets((), NAMES, environment)
    assert environment == {"HOME": "/"}


@pytest.mark.row("server", 88)
def test_a_socket_of_systemd_that_belongs_to_no_function_is_named(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd = Systemd(monkeypatch, listening(stack, tmp_path / "nvme0.sock"))
    stack.callback(os.close, systemd.fds[0])
    with pytest.raises(ValueError, match=r"500 of LISTEN_FDS, named x, at .*nvme0.sock: .* functions are dma0, dma1"):
        taken(**systemd.variables("x"))


@pytest.mark.row("server", 88)
def test_a_function_that_systemd_and_an_option_serve_is_refused(systemd: Systemd, stack: ExitStack) -> None:
    with pytest.raises(ValueError, match="function iommu has a socket already"):
        taken(f"iommu={connected(stack)}", **systemd.variables())


@pytest.mark.row("server", 88)
@pytest.mark.parametrize(("count", "text"), [("x", "LISTEN_FDS x"), ("", "LISTEN_FDS : must"), ("1", "descriptor 999")])
def test_a_bad_count_is_named(count: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "_FIRST", 999)
    with pytest.raises(ValueError, match=text):
        taken(LISTEN_PID=str(os.getpid()), LISTEN_FDS=count)
