"""Signals reach eventfds and wait for nothing, not even for a client that fills the counter between look and write."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import platform
import signal as signals_of_the_process
from collections.abc import Iterator

import pytest

from vfio_user import signals
from vfio_user.signals import AsynchronousSignals, signal


@pytest.fixture
def event(no_fd_leak: None) -> Iterator[int]:
    """An eventfd whose writes block."""
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.fixture
def no_patience() -> Iterator[None]:
    """Whoever waits is interrupted, and the test fails."""

    def give_up(*_: object) -> None:
        raise TimeoutError("it waits for the client")

    before = signals_of_the_process.signal(signals_of_the_process.SIGALRM, give_up)
    signals_of_the_process.alarm(20)
    yield
    signals_of_the_process.alarm(0)
    signals_of_the_process.signal(signals_of_the_process.SIGALRM, before)


def test_each_signal_adds_one(event: int) -> None:
    for _ in range(1000):  # more than are in flight at once
        signal(event)
    assert os.eventfd_read(event) == 1000


def test_who_signals_in_the_same_context_shares_the_count_of_completions(event: int) -> None:
    shared = signals.signal_context()
    assert shared is not None
    context, counted = shared
    assert context
    for _ in range(130):
        before = ctypes.c_uint32.from_address(counted).value
        signal(event)
        assert ctypes.c_uint32.from_address(counted).value == (before + 1) % 64


def test_a_semaphore_is_signalled_too(no_fd_leak: None) -> None:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
    signal(fd)
    signal(fd)
    assert os.eventfd_read(fd) == 1
    os.close(fd)


@pytest.mark.row("server", 8)
def test_a_blocking_eventfd_that_is_full_holds_nobody_up(event: int, no_patience: None) -> None:
    os.eventfd_write(event, 2**64 - 2)
    for _ in range(200):
        signal(event)
    assert os.eventfd_read(event) >= 2**64 - 2
    signal(event)
    assert os.eventfd_read(event) == 1


@pytest.mark.row("server", 8)
def test_nothing_that_looks_before_it_acts_is_called(event: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a look at the counter or its flags and a write the client may change both: so there is no write."""
    signal(event)
    for name in ("write", "eventfd_write", "set_blocking", "get_blocking"):
        monkeypatch.setattr(os, name, None)
    signal(event)
    assert os.eventfd_read(event) == 2


def test_what_is_no_eventfd_is_not_signalled(no_fd_leak: None) -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    with pytest.raises(OSError, match="io_submit"):
        AsynchronousSignals().signal(writer)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    os.close(reader)
    os.close(writer)


def test_without_asynchronous_io_signals_are_written_and_one_line_says_so(
    event: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused() -> None:
        raise OSError(errno.EAGAIN, "io_setup: no more")

    signals._signaller.cache_clear()
    monkeypatch.setattr(signals, "AsynchronousSignals", refused)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            signal(event)
    assert signals.signal_context() is None
    signals._signaller.cache_clear()
    assert os.eventfd_read(event) == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "fs.aio-max-nr" in caplog.text


def test_a_full_eventfd_is_not_written_to(event: int, no_patience: None) -> None:
    """Without asynchronous I/O."""
    os.eventfd_write(event, 2**64 - 2)
    signals._write(event)
    assert os.eventfd_read(event) == 2**64 - 2


def test_a_machine_whose_calls_have_no_known_numbers_has_no_asynchronous_io(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    with pytest.raises(OSError, match="no numbers of system calls for vax") as refused:
        AsynchronousSignals()
    assert refused.value.errno == errno.ENOSYS


def test_a_kernel_without_asynchronous_io_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    no_such_call = -1
    monkeypatch.setitem(signals._CALLS, platform.machine(), (no_such_call,) * 3)
    with pytest.raises(OSError, match="io_setup"):
        AsynchronousSignals()
