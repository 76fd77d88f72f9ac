"""A tap of the host: frames of the card are those of a network interface there (Linux, tuntap.rst).

A tap that exists keeps its address, its MTU and whether it is up. One that does not is made, and gone when its
descriptor is closed, however the process ends. A network namespace is something to mount, and stays: a note says who
made which one, so that the next start finds what was left behind, and nobody else's is ever removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from ..hosted import HUNG_UP, MayGoOn, Watch
from ..inputs import InputKind, Inputs, Source
from ..process_status import status_of
from .link import Link, Watcher
from .offload import HEADER_BYTES

__all__ = ["NOTES", "Namespace", "Tap"]

_T = TypeVar("_T")

_TUN = "/dev/net/tun"
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_PERSIST = 0x0002, 0x1000, 0x4000, 0x0800
_TUNSETIFF, _TUNGETIFF = 0x400454CA, 0x800454D2
_TUNSETOFFLOAD, _TUNSETVNETHDRSZ, _TUNSETVNETLE = 0x400454D0, 0x400454D8, 0x400454DC
_TUNSETCARRIER = 0x400454E2
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6 = 1, 2, 4
_IFREQ = struct.Struct("16sH22x")
_HEADER = HEADER_BYTES + 2
_MOST = _HEADER + (64 << 10) + 64
NOTES = Path("/run/pviommu-netns")
"""One file for each namespace that a server made: which one, in which boot, and the process."""
_SO_NETNS_COOKIE = 71
_NEEDS_ROOT = "this needs root, or a user namespace: `unshare --user --map-root-user --net`"
_NAMESPACE_ADVICE = {
    errno.EPERM: "this needs root",
    errno.EACCES: "this needs root",
    errno.EINVAL: "that is no network namespace",
}
_TUN_ADVICE = {
    errno.EPERM: "this container may not use it",
    errno.EACCES: _NEEDS_ROOT,
    errno.ENOENT: "modprobe tun, or give it to this container",
}
_TAP_ADVICE = {
    errno.EPERM: "making one needs CAP_NET_ADMIN: run as root, in `unshare --user --map-root-user --net`, or have it "
    "made for this user: ip tuntap add NAME mode tap user USER vnet_hdr",
    errno.EBUSY: "another process uses it",
    errno.EINVAL: "it is no tap with vnet_hdr and one queue: ip tuntap add NAME mode tap vnet_hdr",
}


class _ExplainedError(OSError):
    """One whose text says what failed, and what to do."""


@contextlib.contextmanager
def _explained(what: str, advice: Mapping[int, str]) -> Iterator[None]:
    """Name ``what`` failed, with the advice for that error, unless something inside has done so."""
    try:
        yield
    except _ExplainedError:
        raise
    except OSError as error:
        text = os.strerror(error.errno) if error.errno else str(error)
        hint = advice.get(error.errno or 0)
        raise _ExplainedError(error.errno, what + text + (f" ({hint})" if hint else "")) from error


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
            lock = _lock()
        except OSError:
            if name in netns.listnetns():  # who may not write notes has made none
                return
            raise
        with lock:
            if name in netns.listnetns():
                if not self._is_left_behind():
                    return
                netns.remove(name)
            self._create()
            self._made = self._identity()
            self._text = f"{os.getpid()} {_began(os.getpid())} {_boot()} {_processes()} {self._made}\n"
            try:
                self._note.unlink(missing_ok=True)
                with self._note.open("x", encoding="ascii") as note:
                    note.write(self._text)
            except BaseException:
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
            has_ended = _began(int(process)) != began
        except (OSError, ValueError):
            return False
        return has_ended and (boot, processes, made) == (_boot(), _processes(), self._identity())

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
                with _explained(f"netns {self.name}: ", _NAMESPACE_ADVICE):
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
        with _lock():
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


def _lock() -> contextlib.AbstractContextManager[None]:
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


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _processes() -> str:
    """Which processes are seen from here: those of this PID namespace."""
    return str(os.stat("/proc/self/ns/pid").st_ino)


def _began(process: int) -> str:
    """When a process began, in the kernel's ticks; empty if there is none."""
    status = status_of(process)
    return str(status.started) if status else ""


class Tap(Link):
    """One queue of a tap."""

    def __init__(
        self,
        card: str,
        inputs: Inputs,
        name: str,
        *,
        netns: str | None = None,
        mtu: int = 1500,
        address: str | None = None,
    ) -> None:
        """``card``: its name, for messages. A tap that is made here gets ``mtu`` and ``address``, an IP address with
        the length of its prefix, and is set up. Raises OSError, with a text that says what to do.
        """
        source = Source(InputKind.FRAMES, card)
        self._read, self._write = inputs.of(source, os.read), inputs.of(source, os.write)
        self._ioctl = inputs.of(source, _ioctl)
        self._close = inputs.of(source, os.close)
        self._name = name
        self._watch: Watch | None = None
        self._on_change: Callable[[], None] = lambda: None
        self._has_frames = False
        self._namespace: Namespace | None = None
        self._fd = -1
        try:
            if netns is not None:
                with _explained(f"netns {netns}: ", _NAMESPACE_ADVICE):
                    self._namespace = inputs.of(source, Namespace)(netns)
            with _explained("", _TAP_ADVICE):
                self._fd = inputs.of(source, self._open)()
            self._configure(mtu, address)
        except BaseException as error:
            self.close()
            if not isinstance(error, OSError):
                raise
            where = f", in netns {netns}" if netns is not None and f"netns {netns}" not in str(error) else ""
            raise OSError(error.errno, f"{card}: link tap {name}: {error.strerror or error}{where}") from error
        self.is_up = True

    @property
    def descriptors(self) -> int:  # type: ignore[override]
        return 1

    def _inside(self, call: Callable[[], _T]) -> _T:
        return self._namespace.inside(call) if self._namespace else call()

    def _open(self) -> int:
        return self._inside(lambda: _open_tap(self._name))

    def _configure(self, mtu: int, address: str | None) -> None:
        """Set up what was made here. One of somebody else gets the header and the offloads of a card, and keeps its
        address, its MTU and whether it is up."""
        for request, value in ((_TUNSETVNETHDRSZ, _HEADER), (_TUNSETVNETLE, 1)):
            self._ioctl(self._fd, request, struct.pack("<i", value))
        self._ioctl(self._fd, _TUNSETOFFLOAD, 0)
        _, flags = _IFREQ.unpack(self._ioctl(self._fd, _TUNGETIFF, bytes(_IFREQ.size)))
        if not flags & _IFF_PERSIST:
            self._inside(lambda: _set_up(self._name, mtu, address))

    # -- link -------------------------------------------------------------------------------------------------------

    def start(self, watch: Watcher, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        if self.is_up and self._watch is None:
            self._watch = watch(self._fd, self._ready)

    def stop(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _ready(self, events: int, _may_go_on: MayGoOn) -> None:
        """There are frames: they are read in the card's step, and until then nothing more has to be said. Or the tap
        is gone, which epoll would say again and again, whatever it is asked for."""
        if events & HUNG_UP:
            self.end()
            return
        self._has_frames = True
        if self._watch is not None:
            self._watch.events = 0
        self._on_change()

    def accept(self, checksum: bool, segments_4: bool, segments_6: bool) -> None:
        if self.is_up:
            offloads = checksum * _TUN_F_CSUM | segments_4 * _TUN_F_TSO4 | segments_6 * _TUN_F_TSO6
            with contextlib.suppress(OSError):  # then they stay, and the card does what its driver does not accept
                self._ioctl(self._fd, _TUNSETOFFLOAD, offloads)

    def carry(self, is_up: bool) -> None:
        """The interface has a carrier, or none, as with a cable that is pulled (Linux 5.0 and later)."""
        with contextlib.suppress(OSError):
            self._ioctl(self._fd, _TUNSETCARRIER, struct.pack("<i", is_up))

    def transmit(self, header: bytes, frame: bytes, pair: int) -> bool:
        return self.is_up and self._write(self._fd, header + bytes(2) + frame) > 0

    def receive(self) -> tuple[bytes, bytes] | None:
        if not self._has_frames or not self.is_up:
            return None
        try:
            data = self._read(self._fd, _MOST)
        except BlockingIOError:
            self._has_frames = False
            if self._watch is not None:
                self._watch.events = select.EPOLLIN
            return None
        except OSError as error:
            self.judge(error)
            return None
        return data[:HEADER_BYTES], data[_HEADER:]

    def end(self) -> None:
        super().end()
        self.stop()
        self._on_change()

    def close(self) -> None:
        self.stop()
        self.is_up = False
        if self._fd >= 0:
            self._close(self._fd)
            self._fd = -1
        if self._namespace is not None:
            self._namespace.close()
            self._namespace = None


def _ioctl(fd: int, request: int, argument: int | bytes) -> bytes:
    """An ioctl; what it has made of ``argument``, if that is bytes."""
    answer = fcntl.ioctl(fd, request, argument)
    return answer if isinstance(answer, bytes) else b""


def _open_tap(name: str) -> int:
    """The descriptor of a queue of a tap, which is made unless there is one, in the namespace of this thread."""
    with _explained(f"{_TUN}: ", _TUN_ADVICE):
        fd = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
    except OSError:
        os.close(fd)
        raise
    return fd


def _set_up(name: str, mtu: int, address: str | None) -> None:
    """Give an interface of this thread's namespace its MTU and address, and set it up."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as route:

        def change(what: str, call: Callable[..., object], *args: object, **values: object) -> None:
            with _explained(what, {errno.EPERM: _NEEDS_ROOT}):
                try:
                    call(*args, **values)
                except NetlinkError as error:
                    raise OSError(error.code, os.strerror(error.code)) from error

        index = next(iter(route.link_lookup(ifname=name)), None)
        if index is None:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        change(f"mtu {mtu}: ", route.link, "set", index=index, mtu=mtu)
        if address:
            given = ipaddress.ip_interface(address)
            where = {"address": str(given.ip), "prefixlen": given.network.prefixlen}
            change(f"address {address}: ", route.addr, "add", index=index, **where)
        change("set up: ", route.link, "set", index=index, state="up")
