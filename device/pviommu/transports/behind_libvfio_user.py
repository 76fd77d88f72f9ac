"""A machine's functions behind the C library libvfio-user: for trusted clients, and to compare with :mod:`.vfio_user`.

The library reads its sockets itself, so that nothing of a client passes through :class:`~pviommu.inputs.Inputs`. It
answers DEVICE_GET_INFO, and a range of memory cannot be refused: that is only logged.
"""

from __future__ import annotations

import logging
import os
import select
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from libvfio_user import (
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

from ..hosted import Host, Watch
from ..pci.config_space import CONFIG_SIZE
from ..pci.function import PciFunction
from .peers import Peer, peer_of

__all__ = ["MOST_RANGES", "LibvfioUser", "descriptor_of"]

log = logging.getLogger(__name__)
T = TypeVar("T")

MOST_RANGES = 16
"""Of guest memory, for one function; compiled into the library of 2022."""


class LibvfioUser:
    """The sockets of one machine, and its clients: at most one per function."""

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
            self._served.append(_Function(path, function, self._host, self._library, self._serve_others))
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

    def _serve_others(self) -> None:
        """Let the functions have a turn that are not in the middle of a request, while another one's takes long."""
        free = {each.watched: each for each in self._served if not each.is_served}
        poller = select.poll()
        for fd in free:
            poller.register(fd, select.POLLIN)
        for fd, _ in poller.poll(0):
            free[fd].serve_next()

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
        serve_others: Callable[[], None],
    ) -> None:
        super().__init__(path, library=library, name=function.name)
        self.function = function
        self.peer: Peer | None = None
        self.watched = -1
        """the descriptor that is readable when there is something to do"""
        self.is_served = False
        """whether a request is being carried out, so that the library must not be asked for another"""
        self._host = host
        self._serve_others = serve_others
        self._watch: Watch | None = None
        self.pci(0, 0, kind=PciType.EXPRESS)  # never seen: each access to it goes to the function
        self.region(Region.CFG, CONFIG_SIZE, flags=RegionFlag.RW | RegionFlag.ALWAYS_CB)
        for index in range(Region.BAR0, Region.BAR5 + 1):
            self._set_up(Region(index))
        for irq in Irq:
            self.interrupts(irq, function.irq(irq).count)
        self.dma()
        self.realize()
        vars(function.interrupts)["trigger"] = function.probes.probe("interrupt", self._interrupt, function.name)
        self._look()

    def _set_up(self, region: Region) -> None:
        found = self.function.region(region)
        if found.size == 0:
            return
        file = found.fd if found.flags & RegionFlags.MMAP else None
        self.region(region, found.size, file=file, areas=found.areas, offset=found.file_offset)

    def _interrupt(self, _: int, vector: int) -> bool:
        try:
            self.trigger(vector)
        except VfuError:  # the client has not set it up
            return False
        return True

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Look at the library's socket, by a copy of its descriptor: it closes its own when it likes."""
        self._stop_looking()
        self.watched = os.dup(self.poll_fd)
        self._watch = self._host.watch(self.watched, lambda _events, _may_go_on: self.serve_next())

    def _stop_looking(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
            os.close(self.watched)

    def serve_next(self) -> None:
        """Carry out what the client asks for next, or take the next client, if there is one."""
        self.is_served = True
        try:
            if self.is_attached:
                self.run()
            elif self.function.is_ready() and self.attach():
                self._connected()
        except DisconnectedError:
            self._gone()
        except VfuError as error:
            log.error("%s: a client is refused: %s", self.function.name, error)
        finally:
            self.is_served = False

    def _connected(self) -> None:
        self._look()
        with socket.socket(fileno=os.dup(self.poll_fd)) as client:
            self.peer = peer_of(client)
        self._log("client connected", "connected", process=self.peer.pid)

    def hang_up(self) -> None:
        """The library has no call for it, so let it find the end of the connection."""
        if self.is_attached:
            with socket.socket(fileno=os.dup(self.poll_fd)) as client:
                client.shutdown(socket.SHUT_RDWR)

    def _gone(self) -> None:
        self.peer = None
        self._look()
        for region, bar in self.function.bars.items():
            if bar.region.flags & RegionFlags.MMAP:
                self._set_up(Region(region))  # the next client gets other memory
        self._log("client gone", "disconnected")

    def _log(self, text: str, event: str, **fields: object) -> None:
        log.info(
            "%s: %s",
            *(self.function.name, text),
            extra={"event": event, "fields": {"function": self.function.name, **fields}},
        )

    def close(self) -> None:
        self._stop_looking()
        super().close()

    # -- what the library asks for ----------------------------------------------------------------------------------

    def read(self, region: Region, offset: int, count: int) -> bytes:
        return _refusing(partial(self.function.region_read, region, offset, count))

    def write(self, region: Region, offset: int, data: bytes) -> None:
        for _ in _refusing(partial(self.function.region_write, region, offset, data)) or ():
            self._serve_others()  # the library waits for the end of this
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

    The library keeps the client's descriptor open and does not tell it. Raises OSError(ENOENT) if none is found.
    """
    device, inode, offset = _mapped_at(pointer)
    for name in os.listdir("/proc/self/fd"):
        try:
            found = os.fstat(int(name))
        except OSError:  # that of the listing itself
            continue
        if (found.st_dev, found.st_ino) == (device, inode):
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
