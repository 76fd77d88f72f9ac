"""The bare exchanges that a ring is compared with: a word in shared memory, and a message that wakes a process."""

from __future__ import annotations

import mmap
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter_ns, sleep

from ..lab.problems import RunError
from ..lab.processes import Child
from .mechanisms import STOP_WORD, Mechanism

__all__ = ["BareEcho", "BareWords", "bare_echo", "bare_words"]

_PARTNER = (sys.executable, "-m", "pviommu.bench.partner")
_SIZE = 4096
_ASLEEP_SECONDS = 0.004
_WAIT_SECONDS = 20.0


class BareWords:
    """A word that another process returns, where both processes spin."""

    def __init__(self, mechanism: Mechanism, memory: memoryview, child: Child) -> None:
        self.exchange = mechanism.exchange(memory)
        self._child = child
        self._next = 1

    def rounds(self, count: int) -> int:
        """Nanoseconds of ``count`` rounds. Between calls the other process is stopped, since it spins. Raises
        RunError."""
        self._child.resume()
        try:
            self._ping(1)
            start = perf_counter_ns()
            self._ping(count)
            return perf_counter_ns() - start
        finally:
            self._child.pause()

    def _ping(self, count: int) -> None:
        done = self.exchange.ping(self._next, count)
        self._next = (self._next + count) % (1 << 30) + 1
        if not done:
            raise RunError("the other process of the bare exchange does not answer")


@contextmanager
def bare_words(mechanism: Mechanism, library: Path | None = None) -> Iterator[BareWords]:
    """The near end; the far one runs until this ends. ``library``: the file of a native ``mechanism``."""
    fd = os.memfd_create("bench-words", os.MFD_CLOEXEC)
    child = Child()
    try:
        os.truncate(fd, _SIZE)
        with mmap.mmap(fd, _SIZE) as memory, memoryview(memory) as view, view.cast("I") as words:
            command = [*_PARTNER, "words", str(fd), *([] if library is None else [str(library)])]
            with open(os.devnull, "wb") as nowhere:
                child.start(command, output=nowhere, pass_fds=(fd,))
            near = BareWords(mechanism, view, child)
            try:
                _until_it_answers(near)
                yield near
            finally:
                words[STOP_WORD] = 1
                child.resume()
                near.exchange.close()
    finally:
        child.stop()
        os.close(fd)


def _until_it_answers(near: BareWords) -> None:
    begun = perf_counter_ns()
    while True:
        try:
            near.rounds(1)
        except RunError:
            if perf_counter_ns() - begun > _WAIT_SECONDS * 1e9:
                raise
        else:
            return


class BareEcho:
    """A message that another process returns, which sleeps until it comes."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def rounds(self, count: int) -> int:
        """Nanoseconds of ``count`` rounds, each begun when the other process sleeps. Raises RunError."""
        taken = 0
        for _ in range(count):
            sleep(_ASLEEP_SECONDS)
            start = perf_counter_ns()
            self._sock.send(b"wake")
            answer = self._sock.recv(64)
            taken += perf_counter_ns() - start
            if not answer:
                raise RunError("the other process of the bare echo is gone")
        return taken


@contextmanager
def bare_echo() -> Iterator[BareEcho]:
    """The near end; the far one runs until this ends."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    child = Child()
    try:
        near.settimeout(_WAIT_SECONDS)
        with open(os.devnull, "wb") as nowhere:
            child.start([*_PARTNER, "echo", str(far.fileno())], output=nowhere, pass_fds=(far.fileno(),))
        far.close()
        echo = BareEcho(near)
        try:
            echo.rounds(1)  # it runs
        except OSError as problem:
            raise RunError(f"the other process of the bare echo does not start: {problem}") from problem
        yield echo
    finally:
        near.close()
        far.close()
        child.stop()
