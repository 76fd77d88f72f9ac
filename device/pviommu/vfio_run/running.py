"""A program on a server, from its start to its end."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from enum import Enum
from functools import partial
from pathlib import Path

from ..elf import read_elf
from ..host.descriptors import raise_limit
from ..host.signals import waking
from ..host.work import Machine
from ..interfaces.iommufd import System
from ..interfaces.iommufd.pci_device import Mappable
from ..native.build import build
from .fail_nth import FailNth
from .notifications import IS_KNOWN, Listener, begin_to_notify, received_listener
from .server import Server
from .supervised import Supervisor

__all__ = ["MAPS_REGISTERS", "By", "build_library", "chosen", "run_program"]

_SOURCES = Path(__file__).with_name("src")
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
"""Signals that a terminal sends to the program as well: it decides what becomes of them."""
_FORWARDED = (signal.SIGTERM, signal.SIGHUP)
MAPS_REGISTERS = platform.machine() == "x86_64"
"""Whether the preloaded library knows the instructions that touch a register."""
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37

_MOST_INTERPRETERS = 5
"""That Linux goes through, if each is a script of the next one."""
_SEPARATORS = " :$"
"""What the loader does not take as part of a name in LD_PRELOAD: it would run the program without the library."""


class By(Enum):
    """How a program reaches the server."""

    PRELOAD = "preload"
    """A library that is loaded into it, and into what it starts."""
    SECCOMP = "seccomp"
    """Its system calls wait, and those of what it starts."""


_libc = ctypes.CDLL(None)


def chosen(program: str, environment: Mapping[str, str] = os.environ) -> By:
    """The way for a program that is found as the shell finds it: no library can be loaded into one that is linked
    statically.
    """
    path = shutil.which(program, path=environment.get("PATH"))
    return By.SECCOMP if path and _is_static(Path(path)) else By.PRELOAD


def _is_static(path: Path) -> bool:
    """Whether no library is loaded into it; of a script, into its interpreter."""
    for _ in range(_MOST_INTERPRETERS):
        try:
            content = path.read_bytes()
        except OSError:
            return False  # whoever starts it says why
        words = content[2:].split(b"\n", 1)[0].split() if content.startswith(b"#!") else []
        if not words:
            found = read_elf(content)
            return found is not None and found.is_static
        path = Path(os.fsdecode(words[0]))
    return False


def build_library(environment: Mapping[str, str] = os.environ) -> Path:
    """The library that programs are given, built if it is not there yet. Raises native.build.BuildError."""
    return build(environment, sources=_SOURCES)


def run_program(
    command: Sequence[str],
    system: System,
    environment: Mapping[str, str] = os.environ,
    machine: Machine | None = None,
    *,
    maps_registers: bool = MAPS_REGISTERS,
    by: By = By.PRELOAD,
    fail_nth: FailNth | None = None,
    limit_s: float | None = None,
) -> int:
    """Run a program on a system until it ends, and return its exit status; of one that a signal ended, minus its
    number. ``machine``: what the system's devices are, if they are more than DMA. ``maps_registers``: whether programs
    can map all of a BAR; by seccomp they can map nothing. ``fail_nth``: what programs may let fail by the file of that
    name; not by seccomp. ``limit_s``: when it is killed. Raises native.build.BuildError, and OSError if the program
    cannot be started, or the library's path cannot be in LD_PRELOAD. In the main thread only.

    SIGTERM and SIGHUP are the program's meanwhile, and SIGINT and SIGQUIT do nothing here. Descendants stay such, even
    of a process that has ended, for only they can be served; this process waits for those that become children of its
    main thread by that, so the machine must start none there meanwhile. Files that other processes have left open when
    the program ends are closed: they get EIO.
    """
    library = None if by is By.SECCOMP else build_library(environment)
    if library and set(str(library)) & set(_SEPARATORS):
        why = "LD_PRELOAD takes no path with a blank, a colon or $: choose another cache folder by XDG_CACHE_HOME"
        raise OSError(errno.EINVAL, why, str(library))
    if library is None and not IS_KNOWN:
        raise OSError(errno.ENOSYS, "seccomp: the numbers of system calls are known of x86-64 only", command[0])
    with tempfile.TemporaryDirectory(prefix="pviommu-vfio-") as made:
        path = Path(made).resolve() / "socket"  # the preloaded library tells paths by their text
        server = Server(system, path, machine, library, fail_nth)
        mappable = Mappable.EVERYTHING if maps_registers else Mappable.SHARED
        for device in system.devices.values():
            if device.pci:
                device.pci.mappable = mappable if library else Mappable.NOTHING
        try:
            with _adopting_orphans(), _signals() as signals:
                others = _children()
                with ExitStack() as kept:
                    if library:
                        program = _preloaded(command, environment, library, path)
                    else:
                        program, listener = _notifying(command, environment)
                        kept.enter_context(closing(Supervisor(server, listener, path)))
                    kept.enter_context(_most_files())
                    if limit_s is not None:
                        server.after(limit_s, program.kill)
                    return _serve(program, server, signals, others | {program.pid})
        finally:
            server.close()


def _preloaded(
    command: Sequence[str], environment: Mapping[str, str], library: Path, path: Path
) -> subprocess.Popen[bytes]:
    """Start a program with the library."""
    preloaded = " ".join(filter(None, (str(library), environment.get("LD_PRELOAD"))))
    changed = {**environment, "LD_PRELOAD": preloaded, "PVIOMMU_VFIO_SOCKET": str(path)}
    return subprocess.Popen(command, env=changed, close_fds=False)


def _notifying(command: Sequence[str], environment: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], Listener]:
    """Start a program whose system calls wait. Nobody answers them before it has started: until then its process must
    make none of those, which closing all descriptors would be.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            program = subprocess.Popen(
                command, env=environment, close_fds=False, preexec_fn=partial(begin_to_notify, theirs)
            )
        except subprocess.SubprocessError as error:
            raise OSError(
                errno.ENOSYS, "seccomp user notification, as of Linux 5.19, is not there or not allowed", command[0]
            ) from error
        theirs.close()
        return program, Listener(received_listener(ours))


def _serve(program: subprocess.Popen[bytes], server: Server, signals: socket.socket, known: set[int]) -> int:
    """Until the program has ended; its status. ``known``: children that were not adopted."""
    ended = os.pidfd_open(program.pid)

    def signalled() -> None:
        with contextlib.suppress(BlockingIOError):
            for number in signals.recv(4096):
                if number in _FORWARDED:
                    program.send_signal(number)
                elif number == signal.SIGCHLD:
                    _reap(_children() - known)

    watches = [server.watch(ended, server.stop), server.watch(signals.fileno(), signalled)]
    try:
        server.run()
    finally:
        for watch in watches:
            watch.close()
        os.close(ended)
        if program.poll() is None:
            program.kill()
    status = program.wait()
    _reap(_children() - known)
    return status


def _children() -> set[int]:
    """Children of the main thread, those that have ended among them: a process that is adopted becomes one."""
    pid = os.getpid()
    return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()}


def _reap(adopted: set[int]) -> None:
    """Forget those that have ended."""
    for pid in adopted:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _signals() -> contextlib.AbstractContextManager[socket.socket]:
    """The numbers of signals that come. Those that are ignored stay so, and all are as they were in children."""
    heeded = [number for number in (*_FROM_TERMINAL, *_FORWARDED) if signal.getsignal(number) is not signal.SIG_IGN]
    return waking([*heeded, signal.SIGCHLD], lambda *_: None)


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
