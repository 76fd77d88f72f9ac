"""A machine's functions behind the C library libvfio-user: for trusted clients, and to compare with :mod:`.vfio_user`.

The library reads its sockets itself, so that nothing of a client passes through :class:`~pviommu.inputs.Inputs`. It
answers DEVICE_GET_INFO, and a range of memory cannot be refused: that is only logged.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from libvfio_user import (
    ArgumentError,
    Device,
    DisconnectedError,
    DmaRange,
    Generation,
    Irq,
    Library,
    PciType,
    Region,
    RegionFlag,
    Reset,
    VfuError,
)
from vfio_user import DmaMapping, RegionFlags, RequestError
from vfio_user import Region as Described

from ..hosted import Host, Timer, Watch
from ..pci.config_space import CONFIG_SIZE
from ..pci.function import PciFunction
from . import LIBRARY
from .listening import REST_NS
from .peers import Peer, peer_of

__all__ = ["MOST_RANGES", "LibvfioUser", "descriptor_of"]

log = logging.getLogger(__name__)
T = TypeVar("T")

MOST_RANGES = 16
"""Of guest memory, for one function; compiled into the library of 2022."""

LONGEST_WRITE_S = 30.0
"""For a write of many steps, as a reset that works the rings off. It is given up and refused then: until it ends there
are neither timers nor signals nor the control socket."""
_MOST_LEFT = 64
"""Requests of a client that is gone that are carried out at a time, before the end of its connection."""


class LibvfioUser:
    """The sockets of one machine, and its clients: at most one per function."""

    no_snapshots = (
        f"behind --transport {LIBRARY} the library keeps the interrupts that clients set up, and does not tell them"
    )

    def __init__(self, host: Host, library: Library) -> None:
        self._host = host
        self._library = library
        self._served: list[_Function] = []

    def serve(self, path: Path, function: PciFunction, mode: int = 0o600, group: int | None = None) -> None:
        """Serve clients of ``function`` from now on, at the new socket ``path``.

        Raises OSError, and :class:`libvfio_user.ArgumentError` for a path that is too long.
        """
        mask = os.umask(0o177)
        try:
            self._served.append(_Function(path, function, self._host, self._library, self))
        except VfuError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            os.umask(mask)
        if group is not None:
            os.chown(path, -1, group)
        path.chmod(mode)

    def clients(self) -> dict[str, Peer]:
        """Who is connected, by function."""
        return {each.function.name: each.peer for each in self._served if each.peer is not None}

    def hang_up(self, name: str) -> None:
        """End the connection of the client of a function, if it has one."""
        for each in self._served:
            if each.function.name == name:
                each.hang_up()

    def serve_others(self) -> None:
        """Let the functions have a turn that are not in the middle of a request, while another one's takes long."""
        free = {each.watched: each for each in self._served if each.is_looked_at and not each.is_served}
        poller = select.poll()
        for fd in free:
            poller.register(fd, select.POLLIN)
        for fd, _ in poller.poll(0):
            free[fd].serve_next()

    def end_gone(self) -> bool:
        """End the connections whose clients are gone, before another client comes: its memory is not theirs. Its first
        socket may be looked at before the last one of the earlier client. Returns whether none is left.
        """
        for each in self._served:
            for _ in range(_MOST_LEFT):
                if each.has_gone and not each.is_served:
                    each.serve_next()
        return not any(each.has_gone for each in self._served)

    def close(self) -> None:
        """Drop every client."""
        for each in self._served:
            each.close()


class _Function(Device):
    """One function and its client. Its configuration space, registers and interrupts stay the function's own."""

    def __init__(
        self,
        path: Path,
        function: PciFunction,
        host: Host,
        library: Library,
        transport: LibvfioUser,
    ) -> None:
        self.function = function
        self.peer: Peer | None = None
        self.watched = -1
        """the descriptor that is readable when there is something to do: a copy, since the library closes its own when
        it likes; always the same one, so that none is needed when a client comes or goes"""
        self.is_served = False
        """whether a request is being carried out, so that the library must not be asked for another"""
        self._host = host
        self._transport = transport
        self._watch: Watch | None = None
        self._rest: Timer | None = None
        self._given: dict[Region, Described] = {}
        self._complaints: set[str] = set()
        """of what was tried in vain since the last client came"""
        try:
            super().__init__(path, library=library, name=function.name)
            self._build()
        except BaseException as error:
            self.close()
            if isinstance(error, ArgumentError):
                raise ArgumentError(f"{function.name}: {error}") from error
            raise

    def _build(self) -> None:
        self.pci(0, 0, kind=PciType.EXPRESS)  # never seen: each access to it goes to the function
        self.region(Region.CFG, CONFIG_SIZE, flags=RegionFlag.RW | RegionFlag.ALWAYS_CB)
        for index in range(Region.BAR0, Region.BAR5 + 1):
            self._set_up(Region(index))
        for irq in Irq:
            self.interrupts(irq, self.function.irq(irq).count)
        self.dma()
        self.realize()
        self.function.interrupts.elsewhere = self._interrupt
        self.watched = os.dup(self.poll_fd)
        self._look()

    def _set_up(self, region: Region) -> None:
        found = self.function.region(region)
        if found.size == 0 or found is self._given.get(region):
            return
        file = found.fd if found.flags & RegionFlags.MMAP else None
        self.region(region, found.size, file=file, areas=found.areas, offset=found.file_offset)
        self._given[region] = found

    def _interrupt(self, _: int, vector: int) -> bool:
        try:
            self.trigger(vector)
        except VfuError:  # the client has not set it up
            return False
        return True

    # -- the loop ---------------------------------------------------------------------------------------------------

    @property
    def is_looked_at(self) -> bool:
        """Whether the loop looks at :attr:`watched`: not while it rests."""
        return self._watch is not None

    @property
    def has_gone(self) -> bool:
        """Whether the client has hung up, and the library has not yet been asked for the end of the connection."""
        if not self.is_attached:
            return False
        poller = select.poll()
        poller.register(self.watched, select.POLLRDHUP)
        return bool(poller.poll(0))

    def _look(self) -> None:
        """Look at the socket that the library reads next."""
        self._stop_looking()
        try:
            os.dup2(self.poll_fd, self.watched, inheritable=False)
            self._watch = self._host.watch(self.watched, lambda _events, _may_go_on: self.serve_next())
        except OSError as error:
            self._complain(f"its socket cannot be looked at: {error}")
            self._look_later()

    def _look_later(self) -> None:
        """Whoever waits cannot be served yet, and stays where it is."""
        self._stop_looking()
        self._rest = self._host.at(self.function.inputs.now_ns() + REST_NS, self._look)

    def _stop_looking(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None

    def serve_next(self) -> None:
        """Carry out what the client asks for next, or take the next client, if there is one. Raises nothing."""
        self.is_served = True
        try:
            if self.is_attached:
                self._serve_client()
            else:
                self._take_client()
        finally:
            self.is_served = False

    def _serve_client(self) -> None:
        try:
            self.run()
        except DisconnectedError:
            self.peer = None
            self._look()
            self._log("client gone", "disconnected")
        except VfuError as error:
            log.error("%s: a request failed: %s", self.function.name, error)

    def _take_client(self) -> None:
        if not self.function.is_ready() or not self._transport.end_gone():
            self._look_later()
            return
        try:
            for index in self.function.bars:
                self._set_up(Region(index))  # what the earlier client does not know, if there was one
            if self.attach():
                self._connected()
        except (OSError, ArgumentError) as error:
            self._complain(f"no client can be taken: {error}")
            self._look_later()

    def _connected(self) -> None:
        self._complaints.clear()
        self._look()
        with self._connection() as client:
            self.peer = peer_of(client)
        self._log("client connected", "connected", process=self.peer.pid)

    def hang_up(self) -> None:
        """The library has no call for it, so let it find the end of the connection."""
        if self.is_attached:
            with self._connection() as client:
                client.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def _connection(self) -> Iterator[socket.socket]:
        """The socket of the client, which is the library's to close."""
        borrowed = socket.socket(fileno=self.poll_fd)
        try:
            yield borrowed
        finally:
            borrowed.detach()

    def _complain(self, text: str) -> None:
        """Loudly once only: it is tried again and again."""
        log.log(logging.DEBUG if text in self._complaints else logging.ERROR, "%s: %s", self.function.name, text)
        self._complaints.add(text)

    def _log(self, text: str, event: str, **fields: object) -> None:
        log.info(
            "%s: %s",
            *(self.function.name, text),
            extra={"event": event, "fields": {"function": self.function.name, **fields}},
        )

    def close(self) -> None:
        self._stop_looking()
        super().close()
        self.function.interrupts.elsewhere = None
        if self.watched >= 0:
            os.close(self.watched)
            self.watched = -1

    # -- what the library asks for ----------------------------------------------------------------------------------

    def read(self, region: Region, offset: int, count: int) -> bytes:
        return _refusing(partial(self.function.region_read, region, offset, count))

    def write(self, region: Region, offset: int, data: bytes) -> None:
        until = time.monotonic() + LONGEST_WRITE_S
        for _ in _refusing(partial(self.function.region_write, region, offset, data)) or ():
            self._transport.serve_others()  # the library waits for the end of this
            if time.monotonic() > until:
                raise OSError(errno.ETIMEDOUT, f"a write takes longer than {LONGEST_WRITE_S:g} s")
        self.function.settle()

    def reset(self, kind: Reset) -> None:
        if kind is Reset.LOST_CONN:
            _refusing(self.function.disconnected)
        else:
            _refusing(self.function.reset)
            self.function.settle()

    def dma_mapped(self, memory: DmaRange) -> None:
        if len(self.ranges) == MOST_RANGES and self.library.generation is Generation.OF_2022:
            log.warning(
                "%s: its client has registered %d ranges of memory, all that this libvfio-user takes: it refuses more, "
                "and DMA to those fails; attach fewer functions, or give the guest less memory",
                *(self.function.name, MOST_RANGES),
                extra={"event": "ranges-full", "fields": {"function": self.function.name}},
            )
        fd, offset = (None, 0) if memory.pointer is None else descriptor_of(memory.pointer)
        mapping = DmaMapping(memory.address, memory.size, offset, memory.is_readable, memory.is_writable, fd)
        _refusing(partial(self.function.dma_map, mapping))
        self.function.settle()

    def dma_unmapped(self, memory: DmaRange) -> None:
        _refusing(partial(self.function.dma_unmap, memory.address, memory.size))
        self.function.settle()


def _refusing(call: Callable[[], T]) -> T:
    """What ``call`` gives; a refusal as the bindings have it."""
    try:
        return call()
    except RequestError as error:
        raise OSError(error.errno, error.text) from error


def descriptor_of(pointer: int) -> tuple[int, int]:
    """A new descriptor of the file that is mapped at ``pointer``, and where in it that is, in bytes.

    The library keeps the client's descriptor open and does not tell it; it leaves it to be inherited by programs, which
    is mended here. Raises OSError(ENOENT) if none is found.
    """
    device, inode, offset = _mapped_at(pointer)
    for name in os.listdir("/proc/self/fd"):
        try:
            found = os.fstat(int(name))
        except OSError:  # that of the listing itself
            continue
        if (found.st_dev, found.st_ino) == (device, inode):
            os.set_inheritable(int(name), False)
            return os.dup(int(name)), offset
    raise FileNotFoundError(f"no descriptor of what is mapped at {pointer:#x} is open")


def _mapped_at(pointer: int) -> tuple[int, int, int]:
    with open("/proc/self/maps", encoding="utf-8") as lines:
        for line in lines:
            addresses, _, offset, device, inode, *_ = line.split()
            first, _, last = addresses.partition("-")
            if int(first, 16) <= pointer < int(last, 16):
                major, _, minor = device.partition(":")
                number = os.makedev(int(major, 16), int(minor, 16))
                return number, int(inode), int(offset, 16) + pointer - int(first, 16)
    raise FileNotFoundError(f"nothing is mapped at {pointer:#x}")
