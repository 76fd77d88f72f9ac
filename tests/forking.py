"""Processes of the command ``pviommu`` that are forked from one that has imported it.

Importing takes most of the processor time that a server needs between its start and its end, so tests that start
hundreds of servers, and are not about how they start, have them forked. What a forked process does from there on is
``pviommu.cli.main``: it has the descriptors, the environment and the working folder that a new interpreter would have.

The one that forks, which runs this file, forks twice, and the process that asked is the subreaper of that
moment, so that the new process is a child of it: it can wait for it, and the processor time is counted as its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

__all__ = ["SUBPROCESS", "Forked", "Forker", "fork", "forker", "popen", "run"]

CHECKOUT = Path(__file__).parents[1]
IMPORTED = ("pviommu.process.backend", "pviommu.process.logs", "pviommu.faults.engine", "pviommu.faults.scenario")
IMPORTED += ("pviommu.control.answers", "pviommu.control.command", "pviommu.native.library", "platform")
"""Modules that processes of the command find imported, with those that these import."""
PROGRAM = (sys.executable, "-m", "pviommu")
"""What the command is where it is started."""
_SET_CHILD_SUBREAPER = 36
_MAX_REQUEST = 1 << 20
_MAX_DESCRIPTORS = 64
_STANDARD = (0, 1, 2)


class Forked:
    """A process that was forked, with the part of :class:`subprocess.Popen` that tests use."""

    def __init__(self, pid: int, stderr: IO[str] | None = None) -> None:
        self.pid = pid
        self.stderr = stderr
        """what it writes there, if that was asked for"""
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, minus the signal that ended it; None while it runs."""
        return self._reap(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        """The same at its end. Raises TimeoutExpired after ``timeout`` seconds."""
        if self.returncode is None and timeout is not None:
            watched = os.pidfd_open(self.pid)
            try:
                if not select.select([watched], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired("pviommu", timeout)
            finally:
                os.close(watched)
        status = self._reap(0)
        assert status is not None
        return status

    def send_signal(self, number: int) -> None:
        """Does nothing once it is known to have ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _reap(self, how: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, how)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


class Forker:
    """The process that forks. It ends with the one that made it.

    It imports the modules ``imported`` from ``path``; what it forks calls ``main``, a function's module and name.
    """

    def __init__(
        self,
        main: str = "pviommu.cli:main",
        imported: Iterable[str] = IMPORTED,
        path: Iterable[Path] = (CHECKOUT / "protocol", CHECKOUT / "device"),
    ) -> None:
        self._socket, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with far:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(far.fileno()), main, *imported],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[far.fileno()],
            )

    def close(self) -> None:
        """End it and wait for that."""
        self._socket.close()
        self._process.wait()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def fork(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        descriptors: Mapping[int, int],
        *,
        session: bool = False,
    ) -> int:
        """A process with the arguments ``words``; ``descriptors`` are those of this process by their number in it.
        With ``session`` it leads a session of its own.
        """
        request = json.dumps([list(words), dict(environment), str(folder), list(descriptors), session]).encode()
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.prctl(_SET_CHILD_SUBREAPER, 1) == 0
        try:
            socket.send_fds(self._socket, [request], list(descriptors.values()))
            return int(self._socket.recv(64))
        finally:
            libc.prctl(_SET_CHILD_SUBREAPER, 0)

    def run(
        self, words: Sequence[str], environment: Mapping[str, str], folder: Path, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """A process to its end: its exit status and what it said. Kills it and raises TimeoutExpired after ``timeout``
        seconds.
        """
        said = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("stdout", "stderr")]
        with open(said[0], encoding="utf-8") as stdout, open(said[1], encoding="utf-8") as stderr:
            with open(os.devnull, "rb") as nothing:
                descriptors = dict(zip(_STANDARD, (nothing.fileno(), *said), strict=True))
                process = Forked(self.fork(words, environment, folder, descriptors))
            try:
                status = process.wait(timeout)
            finally:
                process.kill()
                process.wait()
            stdout.seek(0)
            stderr.seek(0)
            return subprocess.CompletedProcess(list(words), status, stdout.read(), stderr.read())


@functools.cache
def forker() -> Forker:
    """The one of this process."""
    return Forker()


def fork(
    words: Sequence[str], environment: Mapping[str, str], *, stderr: bool = False, fds: Sequence[int] = ()
) -> Forked:
    """``pviommu WORDS...``, which has the descriptors ``fds`` under the same numbers. With ``stderr`` what it writes
    there can be read, else that goes nowhere, as its standard output does.
    """
    with open(os.devnull, "r+b", buffering=0) as nothing:
        near, far = os.pipe() if stderr else (None, os.dup(nothing.fileno()))
        try:
            standard = dict(zip(_STANDARD, (nothing.fileno(), nothing.fileno(), far), strict=True))
            pid = forker().fork(words, environment, Path.cwd(), standard | {fd: fd for fd in fds})
        finally:
            os.close(far)
    return Forked(pid, None if near is None else open(near, encoding="utf-8"))


def popen(
    command: Sequence[str],
    *,
    stdin: int | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    start_new_session: bool = False,
    **how: Any,
) -> Forked | subprocess.Popen[bytes]:
    """In the place of :class:`subprocess.Popen`: forks what is ``python -m pviommu WORDS...``, and starts others.

    ``how`` is for those only. No stream can be a new pipe.
    """
    if tuple(command[: len(PROGRAM)]) != PROGRAM:
        how |= {"env": env, "pass_fds": pass_fds, "start_new_session": start_new_session}
        return subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr, **how)
    descriptors = {fd: fd for fd in pass_fds}
    with open(os.devnull, "r+b", buffering=0) as nothing:
        for number, stream in zip(_STANDARD, (stdin, stdout, stderr), strict=True):
            known = {None: number, subprocess.DEVNULL: nothing}.get(stream, stream)
            descriptors[number] = known if isinstance(known, int) else known.fileno()
        environment = os.environ if env is None else env
        words = command[len(PROGRAM) :]
        return Forked(forker().fork(words, environment, Path.cwd(), descriptors, session=start_new_session))


SUBPROCESS = SimpleNamespace(**{**vars(subprocess), "Popen": popen})
"""What a module may be given in the place of :mod:`subprocess`, so that the servers that it starts are forked."""


def run(words: Sequence[str], environment: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """``pviommu WORDS...`` to its end, as :meth:`Forker.run`."""
    return forker().run(words, environment, Path.cwd(), timeout)


def _main(listening: int, main: str, *imported: str) -> int:
    """Fork for each request, until nobody can send one any more. In a forked process: its exit status."""
    module, _, function = main.partition(":")
    for name in (module, *imported):
        importlib.import_module(name)
    gc.freeze()  # what all have in common is no garbage of theirs
    with socket.socket(fileno=listening) as requests:
        while True:
            request, descriptors, _, _ = socket.recv_fds(requests, _MAX_REQUEST, _MAX_DESCRIPTORS)
            if not request:
                return 0
            told, tell = os.pipe()
            between = os.fork()
            if between == 0:
                if (pid := os.fork()) == 0:
                    break
                os.write(tell, b"%d" % pid)
                os._exit(0)
            os.waitpid(between, 0)
            requests.send(os.read(told, 64))
            for descriptor in (told, tell, *descriptors):
                os.close(descriptor)
        words, environment, folder, numbers, session = json.loads(request)
        _take(dict(zip(numbers, descriptors, strict=True)))
        requests.detach()
    if session:
        os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))  # else read when the interpreter starts
    sys.argv = [module, *words]
    status: int = getattr(sys.modules[module], function)()
    return status


def _take(descriptors: Mapping[int, int]) -> None:
    """Have ``descriptors`` under these numbers, and no others."""
    above = max((*descriptors, *map(int, os.listdir("/proc/self/fd")))) + 1
    moved = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for number, fd in descriptors.items()}
    for number, fd in moved.items():
        os.dup2(fd, number)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number not in descriptors:
            with contextlib.suppress(OSError):  # the folder's own
                os.close(number)


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1]), *sys.argv[2:]))
