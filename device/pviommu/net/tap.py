"""A tap of the host: frames of the card are those of a network interface there (Linux, tuntap.rst).

A tap that exists keeps its address, its MTU and whether it is up. One that does not is made, and gone when its
descriptors are closed, however the process ends. What else there is around one is in :mod:`.plumbing`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import select
import struct
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from ..hosted import HUNG_UP, MayGoOn, Watch
from ..inputs import InputKind, Inputs, Source
from .errors import explained
from .link import Link, Watcher
from .namespace import NAMESPACE_ADVICE, Namespace
from .offload import HEADER_BYTES
from .plumbing import Plan, Plumbing, existing

__all__ = ["Tap"]

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_TUN = "/dev/net/tun"
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_PERSIST, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x0800, 0x8000
_TUNSETIFF, _TUNGETIFF = 0x400454CA, 0x800454D2
_TUNSETOFFLOAD, _TUNSETVNETHDRSZ, _TUNSETVNETLE = 0x400454D0, 0x400454D8, 0x400454DC
_TUNSETCARRIER, _TUNSETQUEUE = 0x400454E2, 0x400454D9
_IFF_MULTI_QUEUE, _IFF_ATTACH_QUEUE, _IFF_DETACH_QUEUE = 0x0100, 0x0200, 0x0400
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6 = 1, 2, 4
_IFREQ = struct.Struct("16sH22x")
_HEADER = HEADER_BYTES + 2
_NO_BUFFERS = bytes(_HEADER - HEADER_BYTES)
"""in the place of ``num_buffers``, which is not looked at in what is sent"""
_MOST = _HEADER + (64 << 10) + 64
_TUN_ADVICE = {
    errno.EPERM: "this container may not use it",
    errno.EACCES: "this user may not open it: chmod 666 /dev/net/tun, as on most hosts, or run as root",
    errno.ENOENT: "modprobe tun, or give it to this container",
}
_TAP_ADVICE = {
    errno.EPERM: "making one needs CAP_NET_ADMIN: run as root, or with a network of its own (`pviommu serve "
    "--unshare-net`), or have it made for this user: ip tuntap add NAME mode tap user USER vnet_hdr",
    errno.EBUSY: "another process uses it",
    errno.EINVAL: "it is no tap with vnet_hdr and one queue: ip tuntap add NAME mode tap vnet_hdr",
}


class Tap(Link):
    """A tap, with a queue for each pair of the card's queues; one that exists may have a single queue for all."""

    def __init__(
        self,
        card: str,
        inputs: Inputs,
        name: str,
        *,
        netns: str | None = None,
        mtu: int = 1500,
        pairs: int = 1,
        **around: Any,
    ) -> None:
        """``card``: its name, for messages; ``pairs``: of its queues. A tap that is made here gets ``mtu`` and what is
        ``around`` it, fields of :class:`.plumbing.Plan`, and is set up. Raises OSError, with a text that says what
        to do.
        """
        self._source = Source(InputKind.FRAMES, card)
        self._inputs = inputs
        self._read, self._write = inputs.of(self._source, os.read), inputs.of(self._source, os.writev)
        self._ioctl = inputs.of(self._source, _ioctl)
        self._close = inputs.of(self._source, os.close)
        self._card, self._name, self._netns = card, name, netns
        self._plan = Plan(mtu=mtu, **around)
        self._pairs, self._used = pairs, 1
        self._watcher: Watcher | None = None
        self._watches: dict[int, Watch] = {}
        """by queue"""
        self._on_change: Callable[[], None] = lambda: None
        self._with_frames: dict[int, None] = {}
        """queues that may have frames, the one that was read last at the end"""
        self._empty: dict[int, None] = {}
        """those that had none at the last look, and of which epoll is not asked yet"""
        self._namespace: Namespace | None = None
        self._plumbing: Plumbing | None = None
        self._fds: list[int] = []
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        """Namespace, tap and what is around it. Raises OSError."""
        netns, of = self._netns, partial(self._inputs.of, self._source)
        try:
            if netns is not None and self._namespace is None:
                with explained(f"netns {netns}: ", NAMESPACE_ADVICE):
                    self._namespace = of(Namespace)(netns)
            with explained("", _TAP_ADVICE):
                self._fds.append(of(self._open)())
                for _ in range(1, self._pairs):
                    self._fds.append(of(self._open_another)())
            self._configure(of(self._set_up))
            self.use(1)
        except OSError as error:
            where = f", in netns {netns}" if netns is not None and f"netns {netns}" not in str(error) else ""
            text = f"{self._card}: link tap {self._name}: {error.strerror or error}{where}"
            raise OSError(error.errno, text) from error
        self.is_up = True

    def again(self) -> None:
        """In the same namespace, in which others may be."""
        self._release()
        try:
            self._make()
        except BaseException:
            self._release()
            raise
        self.is_gone = False

    @property
    def descriptors(self) -> int:  # type: ignore[override]
        return len(self._fds)

    def _inside(self, call: Callable[[], _T]) -> _T:
        return self._namespace.inside(call) if self._namespace else call()

    def _open(self) -> int:
        """The first queue, of a tap that is made, or of one that exists and stays when its processes end."""
        kind = _IFF_MULTI_QUEUE if self._pairs > 1 else 0
        try:
            return self._inside(lambda: _open_tap(self._name, kind | _IFF_TUN_EXCL))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        fd = self._open_existing()
        if _flags(_ioctl, fd) & _IFF_PERSIST:
            return fd
        os.close(fd)  # with several queues the kernel would let us share what another process has made for itself
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    def _open_existing(self) -> int:
        """A queue of a tap that has one for all pairs, unless it was made with several."""
        if self._pairs > 1:
            try:
                return self._open_another()
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            fd = self._inside(lambda: _open_tap(self._name))
            log.warning("%s: link tap %s: it has one queue, which all pairs share", self._card, self._name)
            self._pairs = 1
            return fd
        return self._inside(lambda: _open_tap(self._name))

    def _open_another(self) -> int:
        return self._inside(lambda: _open_tap(self._name, _IFF_MULTI_QUEUE))

    def _configure(self, set_up: Callable[[bool], None]) -> None:
        """Set up what was made here. One of somebody else gets the header and the offloads of a card, and keeps its
        address, its MTU and whether it is up."""
        first = self._fds[0]
        for request, value in ((_TUNSETVNETHDRSZ, _HEADER), (_TUNSETVNETLE, 1)):
            self._ioctl(first, request, struct.pack("<i", value))
        self._ioctl(first, _TUNSETOFFLOAD, 0)
        set_up(not _flags(self._ioctl, first) & _IFF_PERSIST)

    def _set_up(self, is_ours: bool) -> None:
        if is_ours:
            self._plumbing = Plumbing(self._plan, self._name, self._inside)
            self._plumbing.make()
            return
        for difference in self._inside(lambda: existing(self._name, self._plan, len(self._fds))):
            log.warning("%s: link tap %s exists, and stays as it is: %s", self._card, self._name, difference)

    # -- link -------------------------------------------------------------------------------------------------------

    def start(self, watch: Watcher, on_change: Callable[[], None]) -> None:
        self._watcher, self._on_change = watch, on_change
        self._look()

    def _look(self) -> None:
        """Watch the queues that are in use."""
        for queue in range(self._used if self._watcher and self.is_up else 0):
            if queue not in self._watches and self._watcher:
                self._watches[queue] = self._watcher(self._fds[queue], partial(self._ready, queue))

    def stop(self) -> None:
        self._watcher = None
        for queue in list(self._watches):
            self._watches.pop(queue).close()

    def use(self, pairs: int) -> None:
        """Queues that are not in use are detached: the kernel sends nothing there."""
        self._used = min(pairs, len(self._fds))
        for queue, fd in enumerate(self._fds[1:], 1):
            is_used = queue < self._used
            if not is_used and queue in self._watches:
                self._watches.pop(queue).close()
                self._with_frames.pop(queue, None)
                self._empty.pop(queue, None)
            with contextlib.suppress(OSError):  # it is so already, or the tap is gone
                flags = _IFF_ATTACH_QUEUE if is_used else _IFF_DETACH_QUEUE
                self._ioctl(fd, _TUNSETQUEUE, _IFREQ.pack(b"", flags))
        self._look()

    def _ready(self, queue: int, events: int, _may_go_on: MayGoOn) -> None:
        """There are frames: they are read in the card's step, and until then nothing more has to be said. Or the tap
        is gone, which epoll would say again and again, whatever it is asked for."""
        if events & HUNG_UP:
            self.end()
            return
        self._with_frames[queue] = None
        if queue in self._watches:
            self._watches[queue].events = 0
        self._on_change()

    def accept(self, checksum: bool, segments_4: bool, segments_6: bool) -> None:
        if self.is_up:
            offloads = checksum * _TUN_F_CSUM | segments_4 * _TUN_F_TSO4 | segments_6 * _TUN_F_TSO6
            with contextlib.suppress(OSError):  # then they stay, and the card does what its driver does not accept
                self._ioctl(self._fds[0], _TUNSETOFFLOAD, offloads)

    def carry(self, is_up: bool) -> None:
        """The interface has a carrier, or none, as with a cable that is pulled (Linux 5.0 and later)."""
        for fd in self._fds[:1]:  # none, if it is gone and could not be made anew
            with contextlib.suppress(OSError):
                self._ioctl(fd, _TUNSETCARRIER, struct.pack("<i", is_up))

    def transmit(self, header: bytes, frame: bytes, pair: int) -> bool:
        if not self.is_up:
            return False
        fd = self._fds[pair if pair < self._used else 0]
        return self._write(fd, (header, _NO_BUFFERS, frame)) > 0

    def look(self) -> None:
        self._with_frames.update(self._empty)
        self._empty.clear()

    def lend(self) -> tuple[int, bool] | None:
        watch = self._watches.get(0)
        if len(self._fds) != 1 or not self.is_up or watch is None or not self._inputs.may_be_bypassed:
            return None
        return self._fds[0], not watch.events

    def take_back(self, *, is_empty: bool) -> None:
        if is_empty and 0 in self._with_frames:
            del self._with_frames[0]
            self._empty[0] = None

    def receive(self) -> tuple[bytes, bytes] | None:
        while self._with_frames and self.is_up:
            queue = next(iter(self._with_frames))
            del self._with_frames[queue]
            try:
                data = self._read(self._fds[queue], _MOST)
            except BlockingIOError:
                self._empty[queue] = None
                continue
            except OSError as error:
                self.judge(error)
                continue
            self._with_frames[queue] = None
            return data[:HEADER_BYTES], data[_HEADER:]
        return None

    def rest(self) -> None:
        """To look once more costs less than to have epoll look, unless that is a while."""
        for queue in self._empty:
            if queue in self._watches:
                self._watches[queue].events = select.EPOLLIN
        self._empty.clear()

    def end(self) -> None:
        super().end()
        self.stop()
        self._on_change()

    def close(self) -> None:
        self._release()
        if self._namespace is not None:
            self._namespace.close()
            self._namespace = None

    def _release(self) -> None:
        """The tap, with all that is around it."""
        self.stop()
        self.is_up = False
        self._with_frames.clear()
        self._empty.clear()
        while self._fds:
            self._close(self._fds.pop())
        if self._plumbing is not None:
            self._plumbing.close()
            self._plumbing = None


def _ioctl(fd: int, request: int, argument: int | bytes) -> bytes:
    """An ioctl; what it has made of ``argument``, if that is bytes."""
    answer = fcntl.ioctl(fd, request, argument)
    return answer if isinstance(answer, bytes) else b""


def _flags(ioctl: Callable[[int, int, bytes], bytes], fd: int) -> int:
    """Those of a tap, ``IFF_...``."""
    _, flags = _IFREQ.unpack(ioctl(fd, _TUNGETIFF, bytes(_IFREQ.size)))
    return int(flags)


def _open_tap(name: str, kind: int = 0) -> int:
    """The descriptor of a queue of a tap, which is made unless there is one, in the namespace of this thread."""
    with explained(f"{_TUN}: ", _TUN_ADVICE):
        fd = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | kind))
    except OSError:
        os.close(fd)
        raise
    return fd
