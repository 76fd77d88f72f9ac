"""Network namespaces by their names, and who made them.

One is something to mount, and stays when its maker is killed: a note says who made which one, so that the next start
finds what was left behind, and nobody else's is ever removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from ..process_status import status_of
from .errors import explained

__all__ = ["NAMESPACE_ADVICE", "NOTES", "Maker", "Namespace", "lock"]

_T = TypeVar("_T")

NOTES = Path("/run/pviommu-netns")
"""One file for each namespace that a server made: which one, in which boot, and the process."""
_SO_NETNS_COOKIE = 71
_NEEDS_ROOT = "this needs root, and `pviommu serve` without --unshare-net"
NAMESPACE_ADVICE = {
    errno.EPERM: _NEEDS_ROOT,
    errno.EACCES: _NEEDS_ROOT,
    errno.EINVAL: "that is no network namespace",
}


class Namespace:
    """A network namespace by its name, as ``ip netns`` knows it: one that exists, or a new one."""

    def __init__(self, name: str) -> None:
        """Raises OSError."""
        from pyroute2 import netns  # only who has such a link needs it

        self.name = name
        self._netns = netns
        self._note = NOTES / name
        self._path = f"{netns.NETNS_RUN_DIR}/{name}"
        self.is_ours = False
        """whether it was made here"""
        try:
            held = lock()
        except OSError:
            if name in netns.listnetns():  # who may not write notes has made none
                return
            raise
        with held:
            is_used = False
            if name in netns.listnetns():
                if not self._is_left_behind():
                    return
                is_used = self.inside(_has_taps)
                if not is_used:
                    netns.remove(name)
            if not is_used:
                self._create()
            self._made = self._identity()
            self._text = f"{' '.join(map(str, Maker.this()))} {self._made}\n"
            try:
                self._note.unlink(missing_ok=True)
                with self._note.open("x", encoding="ascii") as note:
                    note.write(self._text)
            except BaseException:
                if not is_used:
                    netns.remove(name)
                raise
        self.is_ours = True

    def _create(self) -> None:
        """Make it, or leave nothing: a file that is no namespace would be in the way of every later start."""
        try:
            self._netns.create(self.name)
        except FileExistsError:  # somebody else was faster
            raise
        except BaseException:
            if not self._identity():
                with contextlib.suppress(OSError):
                    os.unlink(self._path)
            raise

    def _is_left_behind(self) -> bool:
        """Whether it is the one of a note, by a server that has ended. One whose processes are not seen from here
        counts as running."""
        try:
            process, began, boot, processes, made = self._note.read_text(encoding="ascii").split()
            maker = Maker(int(process), began, boot, processes)
            return maker.has_ended() and made == self._identity()
        except (OSError, ValueError):
            return False

    def _identity(self) -> str:
        """What tells it from every other one of that name in this boot; empty if there is none now. The kernel gives
        the numbers of namespaces out again, so that they alone would not do."""
        try:
            found = os.stat(self._path)
            return f"{found.st_dev}:{found.st_ino}:{self.inside(_cookie)}"
        except OSError:
            return ""

    def inside(self, call: Callable[[], _T]) -> _T:
        """The result of ``call`` there: in a thread of its own, which ends with it."""
        outcome: list[_T] = []
        problem: list[BaseException] = []

        def run() -> None:
            try:
                with explained(f"netns {self.name}: ", NAMESPACE_ADVICE):
                    self._netns.setns(self.name, flags=0)  # by itself it would make one
                outcome.append(call())
            except BaseException as error:
                problem.append(error)

        thread = threading.Thread(target=run, name="netns")
        thread.start()
        thread.join()
        if problem:
            raise problem[0]
        return outcome[0]

    def close(self) -> None:
        """Remove it, if it was made here and is still the one of that name."""
        if not self.is_ours:
            return
        self.is_ours = False
        with lock():
            if self._made and self._identity() == self._made:
                self._netns.remove(self.name)
            with contextlib.suppress(FileNotFoundError):
                if self._note.read_text(encoding="ascii") == self._text:
                    self._note.unlink()


@contextlib.contextmanager
def _held(fd: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(fd)


def lock() -> contextlib.AbstractContextManager[None]:
    """Wait until no other server makes or removes a namespace; none does until the end of the context."""
    NOTES.mkdir(mode=0o755, exist_ok=True)
    fd = os.open(NOTES / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except BaseException:
        os.close(fd)
        raise
    return _held(fd)


def _cookie() -> int:
    """The kernel's name for the namespace of this thread, never given twice in one boot; 0 before Linux 5.14."""
    with socket.socket() as probe, contextlib.suppress(OSError):
        return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
    return 0


def _has_taps() -> bool:
    """Whether somebody has taps in the namespace of this thread: those of a server go with it."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        found = [link.get_attr("IFLA_LINKINFO") for link in route.get_links()]
    return any(info and info.get_attr("IFLA_INFO_KIND") == "tun" for info in found)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _processes() -> str:
    """Which processes are seen from here: those of this PID namespace."""
    return str(os.stat("/proc/self/ns/pid").st_ino)


def _began(process: int) -> str:
    """When a process began, in the kernel's ticks; empty if there is none."""
    status = status_of(process)
    return str(status.started) if status else ""


class Maker(NamedTuple):
    """A process that made something, so that another one can tell later whether it still runs."""

    process: int
    began: str
    """in the kernel's ticks"""
    boot: str
    processes: str
    """the PID namespace that this is about"""

    @classmethod
    def this(cls) -> Maker:
        """This process."""
        return cls(os.getpid(), _began(os.getpid()), _boot(), _processes())

    def has_ended(self) -> bool:
        """Whether it does not run any more, in this boot. One whose processes are not seen from here counts as
        running."""
        here = (self.boot, self.processes) == (_boot(), _processes())
        return here and _began(self.process) != self.began
