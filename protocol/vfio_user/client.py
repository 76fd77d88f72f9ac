"""A blocking vfio-user client: what a test, a tool or another VMM needs to drive a server."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

from . import negotiation, transport
from .client_memory import Buffer, ClientMemory, unusable
from .device import DeviceInfo, Irq, IrqAction, IrqKind
from .errors import ProtocolError, RemoteError, RequestError
from .framing import BadFrame, Frame, FrameReader, close_fds
from .messages import (
    CapabilityHeader,
    CapabilityId,
    Command,
    DeviceFlags,
    DmaMap,
    DmaMapFlags,
    DmaUnmap,
    DmaUnmapFlags,
    GetInfo,
    GetIrqInfo,
    GetRegionInfo,
    Header,
    HeaderFlags,
    IrqIndex,
    IrqInfoFlags,
    MessageType,
    RegionAccess,
    RegionFlags,
    RegionIndex,
    SetIrqs,
    SparseArea,
    SparseMmap,
)
from .negotiation import Capabilities, SessionLimits
from .server import Outgoing

__all__ = ["Client", "MappedArea", "RegionInfo", "Reply"]

logger = logging.getLogger(__name__)


class Reply(NamedTuple):
    """What a server answered. Whoever gets it owns ``fds``."""

    payload: bytes
    fds: list[int]


class MappedArea(NamedTuple):
    """A mapped part of a region: where it begins, in bytes into the region, and its memory."""

    offset: int
    memory: mmap.mmap


@dataclass(frozen=True)
class RegionInfo:
    """A region as the server describes it. The caller closes ``fds``, by :meth:`close` for instance."""

    index: int
    flags: RegionFlags
    size: int
    offset: int
    """where the region begins in the file of its descriptor, in bytes"""
    areas: tuple[tuple[int, int], ...]
    """(offset into the region, size) of the parts that may be mapped; if MMAP is set and this is empty, all of it may
    be"""
    fds: tuple[int, ...]
    """its descriptors: none, one for all of it, or one for each of ``areas`` in their order, as libvfio-user of 2022
    sends them"""

    @property
    def fd(self) -> int | None:
        """The descriptor of all of the region, or of its first area."""
        return self.fds[0] if self.fds else None

    def close(self) -> None:
        """Close the descriptors. Call it once."""
        close_fds(self.fds)


class Client:
    """A connection to a vfio-user server. A context manager; closes its socket.

    Requests raise :class:`RemoteError` if the server refuses, :class:`ProtocolError` if its reply breaks the protocol,
    ConnectionError if it is gone and TimeoutError if it takes longer than the timeout. After the last three the
    connection cannot be used any more.

    What the server asks for by DMA_READ and DMA_WRITE is answered from the memory of :meth:`dma_map`: while a request
    waits for its reply, before the next one is sent, and by :meth:`serve` at any other time.
    """

    def __init__(
        self, sock: socket.socket, limits: SessionLimits | None = None, *, idle: Callable[[], None] | None = None
    ) -> None:
        """Speak on the connected ``sock``, which passes to the client. :meth:`negotiate` comes next.

        The ``max_data_xfer_size`` of ``limits`` also bounds what the client sends in one message. A server on
        libvfio-user announces 1 MiB and of 2022 takes only what its socket hands over at once: 32 KiB always arrive so.

        ``idle`` is called repeatedly while a non-blocking socket has nothing to read, or no room to write.
        """
        self._idle = idle
        self.server = Capabilities()
        """what the server can receive"""
        self.minor: int | None = None
        """the version agreed on"""
        self._sock = sock
        self._limits = limits or SessionLimits()
        self._reader = FrameReader(self._limits.max_frame)
        self._frames: deque[Frame | BadFrame] = deque()
        self._next_id = 0
        self._memory = ClientMemory()
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)

    @classmethod
    def connect(
        cls, path: str | os.PathLike[str], timeout: float | None = 5.0, limits: SessionLimits | None = None
    ) -> Self:
        """Connect to the server at ``path`` and negotiate; ``timeout`` in seconds bounds each wait. Raises OSError."""
        client = cls(transport.connect(path, timeout), limits)
        try:
            client.negotiate()
        except BaseException:
            client.close()
            raise
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. May be called again."""
        self._sock.close()
        self._reader.close()
        while self._frames:
            frame = self._frames.popleft()
            if isinstance(frame, Frame):
                close_fds(frame.fds)
        self._memory.clear()

    def fileno(self) -> int:
        """The socket, to wait on until :meth:`serve` has something to do."""
        return self._sock.fileno()

    def negotiate(self, minor: int = 0) -> None:
        """Exchange VERSION. QEMU proposes ``minor`` 0."""
        found = negotiation.parse(self._plain(Command.VERSION, negotiation.offer(self._limits, minor)))
        if found.minor > minor:
            raise ProtocolError(f"server answers version 0.{found.minor} to 0.{minor}: it must not be higher")
        self.server, self.minor = found.capabilities, found.minor

    def device_info(self) -> DeviceInfo:
        """What the device is."""
        payload = self._plain(Command.DEVICE_GET_INFO, GetInfo(GetInfo.SIZE, 0, 0, 0).pack(), GetInfo.SIZE)
        found = GetInfo.unpack(payload)
        return DeviceInfo(DeviceFlags(found.flags), found.num_regions, found.num_irqs)

    def region_info(self, index: int) -> RegionInfo:
        """Region ``index``, its areas and its descriptor; asks a second time if the areas did not fit into the first
        reply."""
        found, reply = self._region_info(index, GetRegionInfo.SIZE)
        if found.argsz > GetRegionInfo.SIZE and not found.flags & RegionFlags.CAPS:
            close_fds(reply.fds)
            if found.argsz > self.server.max_data_xfer_size:
                raise ProtocolError(f"region {index} info of {found.argsz} bytes: larger than any message")
            found, reply = self._region_info(index, found.argsz)
        try:
            areas = _areas(reply.payload, found)
        except ProtocolError:
            close_fds(reply.fds)
            raise
        if len(reply.fds) not in (0, 1, len(areas)):
            close_fds(reply.fds)
            raise ProtocolError(f"region {index} has {len(areas)} areas and {len(reply.fds)} descriptors")
        return RegionInfo(index, RegionFlags(found.flags), found.size, found.offset, areas, tuple(reply.fds))

    def map_region(self, index: int) -> list[MappedArea]:
        """Map the parts of region ``index`` that may be mapped; their memory is shared with the server. Empty if there
        are none.

        Raises OSError or ValueError, as mmap does, if an area is not page aligned or not in the file.
        """
        info = self.region_info(index)
        try:
            if not info.fds or not info.flags & RegionFlags.MMAP:
                return []
            areas = info.areas or ((0, info.size),)
            fds = info.fds if len(info.fds) == len(areas) else info.fds * len(areas)
            return [
                MappedArea(offset, mmap.mmap(fd, size, mmap.MAP_SHARED, offset=info.offset + offset))
                for fd, (offset, size) in zip(fds, areas, strict=True)
            ]
        finally:
            info.close()

    def irq_info(self, index: int) -> Irq:
        """Interrupt index ``index``."""
        request = GetIrqInfo(GetIrqInfo.SIZE, 0, index, 0).pack()
        found = GetIrqInfo.unpack(self._plain(Command.DEVICE_GET_IRQ_INFO, request, GetIrqInfo.SIZE))
        return Irq(found.count, IrqInfoFlags(found.flags))

    def set_irqs(
        self,
        index: int,
        action: IrqAction,
        kind: IrqKind,
        start: int = 0,
        count: int = 0,
        *,
        fds: Sequence[int] = (),
        flags: Iterable[bool] = (),
    ) -> None:
        """Send a SET_IRQS, or several if ``fds`` are more than the server takes at once. The caller keeps ``fds``."""
        most = max(1, self.server.max_msg_fds)
        if len(fds) > most:
            if len(fds) != count:
                raise ValueError(f"{len(fds)} descriptors for {count} vectors: one each")
            for first in range(0, count, most):
                part = fds[first : first + most]
                self.set_irqs(index, action, kind, start + first, len(part), fds=part)
            return
        bools = bytes(flags)
        request = SetIrqs(SetIrqs.SIZE + len(bools), action | kind, index, start, count)
        self._plain(Command.DEVICE_SET_IRQS, request.pack() + bools, fds=fds)

    def enable_msix(self, vectors: int) -> list[int]:
        """Install new eventfds for MSI-X vectors 0 to ``vectors - 1``. The caller closes them."""
        fds: list[int] = []
        try:
            fds.extend(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(vectors))
            self.set_irqs(IrqIndex.MSIX, IrqAction.TRIGGER, IrqKind.EVENTFD, 0, vectors, fds=fds)
        except BaseException:
            close_fds(fds)
            raise
        return fds

    def disable_irqs(self, index: int) -> None:
        """Take every eventfd of ``index`` away."""
        self.set_irqs(index, IrqAction.TRIGGER, IrqKind.NONE)

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        """Read ``count`` bytes; in several messages if that is more than either side takes at once."""
        most = self._most
        found = bytearray()
        while len(found) < count:
            part = RegionAccess(offset + len(found), index, min(most, count - len(found)))
            size = RegionAccess.SIZE + part.count
            reply = self._plain(Command.REGION_READ, part.pack(), size)
            if len(reply) != size or RegionAccess.unpack(reply) != part:
                text = f"asked to read region {index} {part.offset:#x}+{part.count:#x}"
                raise ProtocolError(f"{text}, server answers {len(reply)} bytes or another place")
            found += reply[RegionAccess.SIZE :]
        return bytes(found)

    def region_write(self, index: int, offset: int, data: bytes, posted: bool = False) -> None:
        """Write ``data``; in several messages if that is more than either side takes at once. ``posted``: no reply, no
        error."""
        most = self._most
        for first in range(0, len(data), most):
            part = data[first : first + most]
            request = RegionAccess(offset + first, index, len(part)).pack() + part
            if posted:
                self.request(Command.REGION_WRITE, request, no_reply=True)
            else:
                self._plain(Command.REGION_WRITE, request, RegionAccess.SIZE)

    def config_read(self, offset: int, size: int) -> int:
        """The little-endian value of ``size`` bytes of configuration space."""
        return int.from_bytes(self.region_read(RegionIndex.CONFIG, offset, size), "little")

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write ``size`` bytes of configuration space, little-endian."""
        self.region_write(RegionIndex.CONFIG, offset, value.to_bytes(size, "little"))

    def dma_map(
        self,
        address: int,
        size: int,
        fd: int | None = None,
        offset: int = 0,
        flags: DmaMapFlags = DmaMapFlags.READ | DmaMapFlags.WRITE,
        memory: Buffer | None = None,
    ) -> None:
        """Let the device reach ``size`` bytes at ``address``: those of ``fd`` from ``offset`` on.

        The caller keeps ``fd``, of which the client has a duplicate as long as the map exists. ``memory`` is what the
        server reaches by messages, instead of ``fd`` or without one; with neither it is refused. ValueError: too many
        maps, or ``memory`` that is smaller than ``size``, not contiguous, or read-only though ``flags`` have WRITE.
        OSError: no descriptor is left.
        """
        if (address, size) not in self._memory and len(self._memory) >= self.server.max_dma_maps:
            raise ValueError(f"map {address:#x}+{size:#x}: the server takes {self.server.max_dma_maps} at a time")
        if memory is not None and (wrong := unusable(memory, size, flags)):
            raise ValueError(f"map {address:#x}+{size:#x}: its memory {wrong}")
        request = DmaMap(DmaMap.SIZE, flags, offset, address, size)
        prepared = self._memory.prepare(address, size, flags, fd, offset, memory)
        try:
            self._plain(Command.DMA_MAP, request.pack(), fds=() if fd is None else (fd,))
        except BaseException:
            self._memory.drop(prepared)
            raise
        self._memory.add(prepared)

    def dma_unmap(self, address: int, size: int) -> None:
        """Undo the map of exactly this range; a server that goes beyond the protocol undoes all maps inside it."""
        self._plain(Command.DMA_UNMAP, DmaUnmap(DmaUnmap.SIZE, 0, address, size).pack())
        self._memory.remove(address, size)

    def dma_unmap_all(self) -> None:
        """Undo every map."""
        self._plain(Command.DMA_UNMAP, DmaUnmap(DmaUnmap.SIZE, DmaUnmapFlags.ALL, 0, 0).pack())
        self._memory.clear()

    def reset(self) -> None:
        """Reset the device."""
        self._plain(Command.DEVICE_RESET)

    def serve(self, wait: float = 0.0) -> int:
        """Answer what the server has asked for; wait at most ``wait`` seconds for the first request. How many were
        answered.

        Raises ConnectionError if the server is gone, TimeoutError if the rest of a message does not come.
        """
        served = 0
        while self._has_message(0.0 if served else wait):
            frame = self._frames[0]
            if isinstance(frame, BadFrame) or frame.header.type != MessageType.COMMAND:
                break
            self._frames.popleft()
            self._serve(frame)
            served += 1
        return served

    def request(
        self, command: int, payload: bytes = b"", fds: Sequence[int] = (), no_reply: bool = False
    ) -> Reply | None:
        """Send any command as it is and wait for its reply; None with ``no_reply``."""
        header = self._post(command, payload, fds, HeaderFlags.NO_REPLY if no_reply else 0)
        return None if no_reply else self._await(header)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes as they are, for tests of what a server does with them."""
        outgoing = deque([Outgoing(data, tuple(fds))])
        while (flushed := transport.flush(self._sock, outgoing)) is transport.Flush.BLOCKED and self._idle:
            self._idle()
        if flushed is transport.Flush.CLOSED:
            raise ConnectionResetError(errno.ECONNRESET, "the vfio-user server closed the connection")

    def receive(self) -> Frame:
        """Wait for the next message, whatever it is. The caller owns its descriptors."""
        while not self._frames:
            self._read()
        frame = self._frames.popleft()
        if isinstance(frame, BadFrame):
            raise ProtocolError(frame.text)
        return frame

    @property
    def _most(self) -> int:
        """Data bytes in one message."""
        return min(self.server.max_data_xfer_size, self._limits.max_data_xfer_size)

    def _read(self) -> None:
        chunk = transport.receive(self._sock)
        if chunk is None:
            raise ConnectionResetError(errno.ECONNRESET, "the vfio-user server closed the connection")
        if self._idle and not chunk[0]:
            self._idle()
        self._frames.extend(self._reader.feed(*chunk))

    def _has_message(self, wait: float) -> bool:
        """Whether a message is there, whole, after at most ``wait`` seconds for its first byte."""
        while not self._frames:
            if not self._reader.is_amid_frame and not self._readable.poll(wait * 1000):
                return False
            self._read()
        return True

    def _post(self, command: int, payload: bytes, fds: Sequence[int], flags: int = 0) -> Header:
        """Send a command; the header that its reply must fit."""
        # libvfio-user waits for the reply to its own request, and takes whatever comes for that
        if self._readable.poll(0) and self._sock.fileno() >= 0:
            self.serve()
        number = self._next_id
        self._next_id = (number + 1) & 0xFFFF
        header = Header(number, command, Header.SIZE + len(payload), MessageType.COMMAND | flags, 0)
        self.send(header.pack() + payload, fds)
        return header

    def _await(self, sent: Header) -> Reply:
        name = Command(sent.command).name if sent.command in set(Command) else f"command {sent.command}"
        while True:
            frame = self.receive()
            header = frame.header
            if header.type == MessageType.COMMAND:
                self._serve(frame)
                continue
            if (header.id, header.command, header.type) != (sent.id, sent.command, MessageType.REPLY):
                close_fds(frame.fds)
                got = f"reply {header.id} to command {header.command}, type {header.type}"
                raise ProtocolError(f"{got}: waiting for reply {sent.id} to {name}")
            if header.flags & HeaderFlags.ERROR:
                close_fds(frame.fds)
                raise RemoteError(header.error, name)
            return Reply(frame.payload, frame.fds)

    def _serve(self, frame: Frame) -> None:
        """Carry out or refuse a request of the server."""
        header, payload, error = frame.header, b"", 0
        try:
            payload = self._memory.answer(frame, self._limits.max_data_xfer_size)
        except RequestError as refusal:
            logger.info("request %d of the server refused: %s", header.id, refusal)
            error = refusal.errno
        finally:
            close_fds(frame.fds)
        if not header.no_reply:
            flags = MessageType.REPLY | (HeaderFlags.ERROR if error else 0)
            self.send(Header(header.id, header.command, Header.SIZE + len(payload), flags, error).pack() + payload)

    def _plain(self, command: Command, payload: bytes = b"", least: int = 0, fds: Sequence[int] = ()) -> bytes:
        """The payload of a reply that carries at least ``least`` bytes and no descriptors."""
        reply = self._await(self._post(command, payload, fds))
        close_fds(reply.fds)
        if reply.fds or len(reply.payload) < least:
            got = f"{len(reply.payload)} bytes and {len(reply.fds)} descriptors"
            raise ProtocolError(f"{command.name} reply of {got}: at least {least} bytes, no descriptors")
        return reply.payload

    def _region_info(self, index: int, argsz: int) -> tuple[GetRegionInfo, Reply]:
        request = GetRegionInfo(argsz, 0, index, 0, 0, 0).pack()
        reply = self._await(self._post(Command.DEVICE_GET_REGION_INFO, request, ()))
        if len(reply.payload) < GetRegionInfo.SIZE:
            close_fds(reply.fds)
            raise ProtocolError(f"region {index} info is shorter than {GetRegionInfo.SIZE} bytes")
        return GetRegionInfo.unpack(reply.payload), reply


def _areas(payload: bytes, info: GetRegionInfo) -> tuple[tuple[int, int], ...]:
    """The areas of the SPARSE_MMAP capability in a region info reply; none if it has none."""
    areas: list[tuple[int, int]] = []
    where = info.cap_offset if info.flags & RegionFlags.CAPS else 0
    while where:
        first = where + CapabilityHeader.SIZE
        if where < GetRegionInfo.SIZE or first > len(payload):
            raise ProtocolError(f"region {info.index} capability at {where}: the reply has {len(payload)} bytes")
        header = CapabilityHeader.unpack(payload, where)
        if header.id == CapabilityId.SPARSE_MMAP and first + SparseMmap.SIZE <= len(payload):
            count = SparseMmap.unpack(payload, first).nr_areas
            first += SparseMmap.SIZE
            if first + count * SparseArea.SIZE > len(payload):
                raise ProtocolError(f"region {info.index} has {count} areas: the reply has {len(payload)} bytes")
            for position in range(count):
                area = SparseArea.unpack(payload, first + position * SparseArea.SIZE)
                areas.append((area.offset, area.size))
        # A chain that only goes forwards comes to an end.
        if header.next and header.next <= where:
            raise ProtocolError(f"region {info.index} capability at {where} points back to {header.next}")
        where = header.next
    return tuple(areas)
