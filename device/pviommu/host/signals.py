"""Signals to the process, in the loop."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

from .loop import Loop

__all__ = ["handled", "stopped_by_signals", "terminated_like_interrupted", "waking"]

_MOST_SIGNALS = 4096
_Handler = Callable[[int, FrameType | None], Any]


@contextlib.contextmanager
def handled(numbers: Iterable[int], handler: _Handler, afterwards: signal.Handlers | None = None) -> Iterator[None]:
    """Within this, these signals call ``handler``; then they do what they did before, or what is given. In the main
    thread only.
    """
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old if afterwards is None else afterwards)


@contextlib.contextmanager
def waking(
    numbers: Iterable[int], handler: _Handler, afterwards: signal.Handlers | None = None
) -> Iterator[socket.socket]:
    """As :func:`handled`, with a socket that can be read once one has come: its bytes are their numbers."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    with reader, writer, handled(numbers, handler, afterwards):
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(before)


def _unless_ignored(number: int) -> list[int]:
    """What nohup ignores stays so."""
    return [] if signal.getsignal(number) is signal.SIG_IGN else [number]


@contextlib.contextmanager
def stopped_by_signals(
    loop: Loop, on_hangup: Callable[[], None] | None = None, *, ends_process: bool = False
) -> Iterator[None]:
    """Within this, SIGTERM and SIGINT stop ``loop``, even while it sleeps. It may be closed within.

    SIGHUP calls ``on_hangup``; without one it stops the loop too, unless it was ignored (nohup). ``ends_process``: the
    process ends afterwards, and one more of these signals changes neither its status nor what it has still to say.
    """

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP and on_hangup:
            on_hangup()
        else:
            loop.stop()

    hangup = [signal.SIGHUP] if on_hangup else _unless_ignored(signal.SIGHUP)
    numbers = [signal.SIGTERM, signal.SIGINT, *hangup]
    with waking(numbers, on_signal, signal.SIG_IGN if ends_process else None) as reader:
        watch = loop.watch(reader.fileno(), lambda *_: _forget(reader))
        try:
            yield
        finally:
            watch.close()


def _forget(reader: socket.socket) -> None:
    """Read what signals have written: it has woken the loop, and would do so for ever."""
    reader.recv(_MOST_SIGNALS)


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Make SIGTERM and SIGHUP unwind like Ctrl-C, so that children end and folders go."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:  # a shell and the kernel each send it when a terminal closes: unwind once
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        raise KeyboardInterrupt

    with handled([signal.SIGTERM, *_unless_ignored(signal.SIGHUP)], interrupt):
        yield
