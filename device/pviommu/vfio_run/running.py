"""A program on a server, from its start to its end."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..host.descriptors import raise_limit
from ..host.signals import waking
from ..host.work import Machine
from ..interfaces.iommufd import System
from ..native.build import build
from .server import Server

__all__ = ["build_library", "run_program"]

_SOURCES = Path(__file__).with_name("src")
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
"""Signals that a terminal sends to the program as well: it decides what becomes of them."""
_FORWARDED = (signal.SIGTERM, signal.SIGHUP)
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37

_SEPARATORS = " :$"
"""What the loader does not take as part of a name in LD_PRELOAD: it would run the program without the library."""

_libc = ctypes.CDLL(None)


def build_library(environment: Mapping[str, str] = os.environ) -> Path:
    """The library that programs are given, built if it is not there yet. Raises native.build.BuildError."""
    return build(environment, sources=_SOURCES)


def run_program(
    command: Sequence[str],
    system: System,
    environment: Mapping[str, str] = os.environ,
    machine: Machine | None = None,
) -> int:
    """Run a program on a system until it ends, and return its exit status; of one that a signal ended, minus its
    number. ``machine``: what the system's devices are, if they are more than DMA. Raises native.build.BuildError, and
    OSError if the program cannot be started, or the library's path cannot be in LD_PRELOAD. In the main thread only.

    SIGTERM and SIGHUP are the program's meanwhile, and SIGINT and SIGQUIT do nothing here. Descendants stay such, even
    of a process that has ended, for only they can be served. Files that other processes have left open when the program
    ends are closed: they get EIO.
    """
    library = str(build_library(environment))
    if set(library) & set(_SEPARATORS):
        why = "LD_PRELOAD takes no path with a blank, a colon or $: choose another cache folder by XDG_CACHE_HOME"
        raise OSError(errno.EINVAL, why, library)
    preloaded = " ".join(filter(None, (library, environment.get("LD_PRELOAD"))))
    with tempfile.TemporaryDirectory(prefix="pviommu-vfio-") as made:
        path = Path(made).resolve() / "socket"  # the preloaded library tells paths by their text
        server = Server(system, path, machine)
        try:
            additions = {"LD_PRELOAD": preloaded, "PVIOMMU_VFIO_SOCKET": str(path)}
            with _adopting_orphans(), _signals() as signals:
                program = subprocess.Popen(command, env={**environment, **additions})
                with _most_files():
                    return _serve(program, server, signals)
        finally:
            server.close()


def _serve(program: subprocess.Popen[bytes], server: Server, signals: socket.socket) -> int:
    """Until the program has ended; its status."""
    ended = os.pidfd_open(program.pid)

    def signalled() -> None:
        with contextlib.suppress(BlockingIOError):
            for number in signals.recv(4096):
                if number in _FORWARDED:
                    program.send_signal(number)

    watches = [server.watch(ended, server.stop), server.watch(signals.fileno(), signalled)]
    try:
        server.run()
    finally:
        for watch in watches:
            watch.close()
        os.close(ended)
        if program.poll() is None:
            program.kill()
    return program.wait()


def _signals() -> contextlib.AbstractContextManager[socket.socket]:
    """The numbers of signals that come. Those that are ignored stay so, and all are as they were in children."""
    heeded = [number for number in (*_FROM_TERMINAL, *_FORWARDED) if signal.getsignal(number) is not signal.SIG_IGN]
    return waking(heeded, lambda *_: None)


@contextlib.contextmanager
def _adopting_orphans() -> Iterator[None]:
    """Within this, processes that lose their parent become children of this one, not of init: they stay descendants."""
    before = ctypes.c_int()
    _libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


@contextlib.contextmanager
def _most_files() -> Iterator[None]:
    """Within this, this process may have as many open files as it can: each of the program's is one here."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    raise_limit()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
