"""The server side of one connection, without a socket: bytes and descriptors in, bytes and descriptors out.

The caller moves :attr:`Session.outgoing` to its socket and what the socket brings to :meth:`Session.receive`; see
:mod:`vfio_user.transport`. Everything generic is checked here before the device is asked.
"""

from __future__ import annotations

import enum
import errno
import logging
import os
from collections import deque
from collections.abc import Callable, Generator
from typing import NamedTuple

from . import negotiation, requests
from .device import Device, DeviceInfo, DmaMapping, Irq, IrqAction, IrqKind, IrqRequest, Region, Steps
from .errors import ProtocolError, RequestError
from .foreign import Closer, is_eventfd
from .framing import BadFrame, Frame, FrameReader
from .memory_kind import Kind, check_memory
from .messages import (
    Command,
    DmaUnmapFlags,
    GetInfo,
    GetIrqInfo,
    GetRegionIoFds,
    Header,
    HeaderFlags,
    MessageType,
    RegionAccess,
    WriteMulti,
    WriteMultiEntry,
)
from .negotiation import Capabilities, Limits

__all__ = [
    "Device",
    "DeviceInfo",
    "DmaMapping",
    "Irq",
    "IrqAction",
    "IrqKind",
    "IrqRequest",
    "Outgoing",
    "Region",
    "RequestError",
    "Session",
    "State",
]

logger = logging.getLogger(__name__)

_REPLY = int(MessageType.REPLY)
_LOUD_REFUSALS = 20  # refusals of a session that are logged as warnings; a hostile client must not fill a log


class State(enum.Enum):
    """How far a session is."""

    NEGOTIATING = "negotiating"
    RUNNING = "running"
    CLOSED = "closed"


class Outgoing(NamedTuple):
    """Bytes to send, with descriptors that ride on the first of them. The descriptors stay the device's."""

    data: bytes
    fds: tuple[int, ...] = ()


class _Reply(NamedTuple):
    payload: bytes = b""
    fds: tuple[int, ...] = ()


_Answer = _Reply | Generator[None, None, _Reply]
"""A reply, or what has to be carried out in steps before there is one."""


def _always() -> bool:
    return True


class Session:
    """One client of ``device``, from its first byte to its last. Nothing that a client sends raises out of it.

    ``closer`` closes the descriptors that are not wanted; it has its own if none is given. With ``refusal`` the client
    is answered that to whatever it says first, and that is the end of it: the device never learns of it.

    After :data:`State.CLOSED` send what is left in :attr:`outgoing`, then close the socket: QEMU waits for its
    full time limit on each access until the server's end is closed.
    """

    def __init__(
        self,
        device: Device,
        limits: Limits | None = None,
        name: str = "client",
        *,
        closer: Closer | None = None,
        refusal: RequestError | None = None,
        check_memory: Callable[[int, bool, str], Kind] = check_memory,
        is_eventfd: Callable[[int], bool] = is_eventfd,
    ) -> None:
        """``name`` is what the log calls it. ``check_memory`` and ``is_eventfd`` tell what descriptors are."""
        self._check_memory, self._is_eventfd = check_memory, is_eventfd
        self.outgoing: deque[Outgoing] = deque()
        self._device = device
        self._limits = limits or Limits()
        self._client = Capabilities()
        self._state = State.NEGOTIATING
        self._refusal = refusal
        self._closer = closer or Closer()
        self._reader = FrameReader(self._limits.max_frame, close=self._closer.close)
        self._frames: deque[Frame | BadFrame] = deque()
        self._unfinished: tuple[Header, Generator[None, None, _Reply]] | None = None
        self._maps = 0
        self._queued = 0
        self._refusals = 0
        self._name = name

    @property
    def state(self) -> State:
        """How far the session is."""
        return self._state

    @property
    def client(self) -> Capabilities:
        """What the client can receive; the protocol's defaults before negotiation."""
        return self._client

    @property
    def wanted(self) -> int:
        """Bytes that complete the message in progress; see :mod:`vfio_user.framing` for when to read just these."""
        return self._reader.wanted

    @property
    def paused(self) -> bool:
        """Whether requests wait: stop reading from the client, then resume.

        They wait because the client does not read its replies (two full transfers may be queued in :attr:`outgoing`,
        so that a client cannot make it grow), or because others had to have a turn.
        """
        return bool(self._frames) or self._unfinished is not None

    @property
    def may_keep_descriptors(self) -> bool:
        """Whether what the client has sent waits for something that only it can do: to take its replies, or to send
        the rest of a message that came with descriptors. One of them may be its own end of the connection, whose end
        is then never seen.
        """
        return self._reader.keeps_descriptors or (self.paused and bool(self.outgoing))

    def receive(self, data: bytes, fds: list[int], may_go_on: Callable[[], bool] = _always) -> None:
        """Take a chunk of the stream and the descriptors that came with it (ownership passes), and act on it.

        ``may_go_on`` is asked after each request, and after each step of one that takes long. Once it is False the
        rest waits for :meth:`resume`, so that a client's requests keep nobody else from being served.
        """
        if self._state is State.CLOSED:
            self._closer.close(fds)
            return
        self._frames.extend(self._reader.feed(data, fds))
        self.resume(may_go_on)

    def resume(self, may_go_on: Callable[[], bool] = _always) -> None:
        """Go on with requests that waited, by at least one step. Call it, after flushing, if :attr:`paused`."""
        while self.paused and self._state is not State.CLOSED and self._has_room():
            if self._unfinished is not None:
                self._go_on(*self._unfinished)
            else:
                self._begin(self._frames.popleft())
            if not may_go_on():
                break
        if self._refusal:
            return
        try:
            self._device.settle()
        except Exception:
            logger.exception("the device failed after requests of its client")

    def _begin(self, frame: Frame | BadFrame) -> None:
        if isinstance(frame, BadFrame):
            self._refuse(frame.header, errno.EINVAL, frame.text)
            self.close()
            return
        try:
            self._handle(frame)
        finally:
            self._closer.close(frame.fds)

    def _go_on(self, header: Header, steps: Generator[None, None, _Reply]) -> None:
        """Carry out the next step of a request; its reply comes after the last."""
        self._unfinished = header, steps
        try:
            next(steps)
        except StopIteration as end:
            self._unfinished = None
            self._reply(header, end.value)
        except Exception as error:
            self._unfinished = None
            self._fail(header, error)

    def eof(self) -> None:
        """The client closed its end, at whatever byte. Replies that it did not wait for are dropped."""
        self.close()
        self.outgoing.clear()

    def close(self) -> None:
        """End the session and tell the device, once. :attr:`outgoing` stays, for the last error reply."""
        if self._state is State.CLOSED:
            return
        self._state = State.CLOSED
        self._reader.close()
        if self._unfinished is not None:
            self._unfinished[1].close()
            self._unfinished = None
        while self._frames:
            frame = self._frames.popleft()
            if isinstance(frame, Frame):
                self._closer.close(frame.fds)
        self._maps = 0
        if self._refusal:
            return
        try:
            self._device.disconnected()
        except Exception:
            logger.exception("the device failed at the end of its session")

    def _has_room(self) -> bool:
        bound = 2 * self._limits.max_frame
        if self._queued > bound:
            # The caller takes from outgoing without telling, so this count only ever errs upwards.
            self._queued = sum(len(item.data) for item in self.outgoing)
        return self._queued <= bound

    def _send(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        self._queued = len(data) + (self._queued if self.outgoing else 0)
        self.outgoing.append(Outgoing(data, fds))

    def _reply(self, header: Header, reply: _Reply) -> None:
        if not header.no_reply:
            size = Header.SIZE + len(reply.payload)
            # Without a record between: every guest access waits for this.
            answer = Header.STRUCT.pack(header.id, header.command, size, _REPLY, 0)
            self._send(answer + reply.payload, reply.fds)
            if logger.isEnabledFor(logging.DEBUG):
                self._trace(Header.unpack(answer), reply.payload, len(reply.fds))

    def _refuse(self, header: Header, number: int, text: str) -> None:
        self._refusals += 1
        is_loud = self._refusals <= _LOUD_REFUSALS and not self._refusal  # who refuses a whole client says so
        level = logging.WARNING if is_loud else logging.DEBUG
        logger.log(level, "request %d refused: %s", header.id, text)
        if not header.no_reply:
            flags = MessageType.REPLY | HeaderFlags.ERROR
            answer = Header(header.id, header.command, Header.SIZE, flags, number)
            self._send(answer.pack())
            if logger.isEnabledFor(logging.DEBUG):
                self._trace(answer, b"", 0)

    def _trace(self, header: Header, payload: bytes, descriptors: int) -> None:
        from . import describe  # only what is asked for costs start-up time

        found = describe.fields(header, payload, descriptors)
        extra = {"event": "vfio-user", "fields": {"function": self._name, **found}}
        logger.debug("%s: %s", self._name, describe.text(found), extra=extra)

    def _handle(self, frame: Frame) -> None:
        header = frame.header
        if logger.isEnabledFor(logging.DEBUG):
            self._trace(header, frame.payload, len(frame.fds))
        if header.type == MessageType.REPLY and header.command in (Command.DMA_READ, Command.DMA_WRITE):
            logger.debug("reply %d to no request of ours: ignored", header.id)
            return
        try:
            if self._refusal:
                raise self._refusal
            self._check_frame(frame)
            if self._state is State.NEGOTIATING:
                self._reply(header, self._negotiate(frame))
                return
            handler = _HANDLERS.get(header.command)
            if handler is None:
                raise RequestError(errno.EINVAL, self._unserved(header.command))
            answer = handler(self, frame)
        except Exception as error:
            self._fail(header, error)
        else:
            if isinstance(answer, _Reply):
                self._reply(header, answer)
            else:
                self._go_on(header, answer)

    def _fail(self, header: Header, error: Exception) -> None:
        """A fault of the device must cost the client one access, never the process."""
        if isinstance(error, RequestError):
            self._refuse(header, error.errno, error.text)
            if self._state is State.NEGOTIATING:
                self.close()
            return
        logger.error("the device failed at request %d, command %d", header.id, header.command, exc_info=error)
        self._refuse(header, errno.EIO, f"command {header.command} failed in the device")

    def _check_frame(self, frame: Frame) -> None:
        limit = self._limits.max_msg_fds
        if frame.fds_lost not in (0, errno.EINVAL):
            text = f"the kernel kept descriptors of this message back: {os.strerror(frame.fds_lost)}"
            raise RequestError(frame.fds_lost, text)
        if frame.fds_lost or len(frame.fds) > limit:
            raise RequestError(errno.EINVAL, f"too many descriptors in one message: at most {limit}")
        if frame.header.type != MessageType.COMMAND:
            text = f"message of type {frame.header.type}: a client sends commands, of type 0"
            raise RequestError(errno.EINVAL, text)

    def _unserved(self, command: int) -> str:
        if command == Command.VERSION:
            return "VERSION once more: it is negotiated once, first"
        name = Command(command).name if command in set(Command) else "unknown"
        return f"command {command} ({name}): this server does not serve it"

    def _negotiate(self, frame: Frame) -> _Reply:
        if frame.header.command != Command.VERSION:
            raise RequestError(errno.EINVAL, f"command {frame.header.command} first: VERSION comes first")
        if frame.fds:
            raise RequestError(errno.EINVAL, "VERSION with descriptors: it takes none")
        try:
            payload, offer = negotiation.accept(frame.payload, self._limits)
        except ProtocolError as error:
            raise RequestError(errno.EINVAL, str(error)) from error
        self._client = offer.capabilities
        self._state = State.RUNNING
        logger.info("client speaks %d.%d, %s", offer.major, offer.minor, offer.capabilities)
        return _Reply(payload)

    def _dma_map(self, frame: Frame) -> _Reply:
        mapping = requests.dma_map(frame.payload, frame.fds)
        if mapping.fd is not None:
            what = f"DMA_MAP {mapping.address:#x}+{mapping.size:#x}"
            mapping = mapping._replace(kind=self._check_memory(mapping.fd, mapping.writable, what))
        frame.fds.clear()  # the device owns it now
        self._maps += self._device.dma_map(mapping)
        if self._maps > self._limits.max_dma_maps:
            self._maps -= self._device.dma_unmap(mapping.address, mapping.size)
            what = f"DMA_MAP {mapping.address:#x}+{mapping.size:#x}"
            raise RequestError(errno.ENOSPC, f"{what}: at most {self._limits.max_dma_maps} maps at a time")
        return _Reply()

    def _dma_unmap(self, frame: Frame) -> _Reply:
        request = requests.dma_unmap(frame.payload)
        if request.flags & DmaUnmapFlags.ALL:
            self._device.dma_unmap_all()
            self._maps = 0
        else:
            self._maps -= self._device.dma_unmap(request.address, request.size)
        # Cloud Hypervisor waits until all of the echo is there.
        return _Reply(request.pack())

    def _get_info(self, frame: Frame) -> _Reply:
        requests.get_info(frame.payload)
        found = self._device.describe()
        return _Reply(GetInfo(GetInfo.SIZE, found.flags, found.num_regions, found.num_irqs).pack())

    def _get_region_info(self, frame: Frame) -> _Reply:
        request = requests.get_region_info(frame.payload)
        region = self._device.region(request.index)
        payload, fd = requests.region_info_reply(request, region, self._client.max_msg_fds > 0)
        return _Reply(payload, () if fd is None else (fd,))

    def _get_region_io_fds(self, frame: Frame) -> _Reply:
        request = requests.get_region_io_fds(frame.payload)
        # No region here has any: what a client does not find it traps.
        return _Reply(GetRegionIoFds(GetRegionIoFds.SIZE, 0, request.index, 0).pack())

    def _get_irq_info(self, frame: Frame) -> _Reply:
        request = requests.get_irq_info(frame.payload)
        found = self._device.irq(request.index)
        return _Reply(GetIrqInfo(GetIrqInfo.SIZE, found.flags, request.index, found.count).pack())

    def _set_irqs(self, frame: Frame) -> _Reply:
        request = requests.set_irqs(frame.payload, frame.fds, lambda index: self._device.irq(index).count)
        if not all(self._is_eventfd(fd) for fd in frame.fds):
            text = f"SET_IRQS index {request.index} vectors {request.start}+{request.count}"
            raise RequestError(errno.EINVAL, f"{text}: not every descriptor is an eventfd")
        frame.fds.clear()  # the device owns them now
        self._device.set_irqs(request)
        return _Reply()

    def _region_read(self, frame: Frame) -> _Reply:
        # The limit of the side that is asked, in both directions; a client asks for no more than it can receive.
        access = requests.region_read(frame.payload, self._limits.max_data_xfer_size)
        self._check_range(access.region, access.offset, access.count)
        data = b""
        if access.count:
            data = self._device.region_read(access.region, access.offset, access.count)
        if len(data) != access.count:
            raise ValueError(f"region {access.region} gave {len(data)} bytes, asked for {access.count}")
        return _Reply(frame.payload[: RegionAccess.SIZE] + data)

    def _region_write(self, frame: Frame) -> _Answer:
        access, data = requests.region_write(frame.payload, self._limits.max_data_xfer_size)
        self._check_range(access.region, access.offset, access.count)
        reply = _Reply(frame.payload[: RegionAccess.SIZE])
        steps = self._device.region_write(access.region, access.offset, data) if data else None
        return reply if steps is None else _after(steps, reply)

    def _write_multi(self, frame: Frame) -> _Answer:
        if not self._client.write_multiple:
            raise RequestError(errno.EINVAL, "several writes at once: write_multiple was not negotiated")
        entries = requests.write_multi(frame.payload)
        for entry in entries:
            self._check_range(entry.region, entry.offset, entry.count)
        return self._write_each(entries)

    def _write_each(self, entries: list[WriteMultiEntry]) -> Generator[None, None, _Reply]:
        """One write a step."""
        for entry in entries[:-1]:
            yield from self._write_entry(entry)
            yield
        yield from self._write_entry(entries[-1])
        return _Reply(WriteMulti(len(entries)).pack())

    def _write_entry(self, entry: WriteMultiEntry) -> Steps:
        steps = None
        if entry.count:
            steps = self._device.region_write(entry.region, entry.offset, entry.data[: entry.count])
        return iter(()) if steps is None else steps

    def _reset(self, frame: Frame) -> _Reply:
        self._device.reset()
        return _Reply()

    def _check_range(self, index: int, offset: int, count: int) -> None:
        requests.check_range(self._device.region(index), index, offset, count)


def _after(steps: Steps, reply: _Reply) -> Generator[None, None, _Reply]:
    yield from steps
    return reply


_HANDLERS: dict[int, Callable[[Session, Frame], _Answer]] = {
    Command.DMA_MAP: Session._dma_map,
    Command.DMA_UNMAP: Session._dma_unmap,
    Command.DEVICE_GET_INFO: Session._get_info,
    Command.DEVICE_GET_REGION_INFO: Session._get_region_info,
    Command.DEVICE_GET_REGION_IO_FDS: Session._get_region_io_fds,
    Command.DEVICE_GET_IRQ_INFO: Session._get_irq_info,
    Command.DEVICE_SET_IRQS: Session._set_irqs,
    Command.REGION_READ: Session._region_read,
    Command.REGION_WRITE: Session._region_write,
    Command.DEVICE_RESET: Session._reset,
    Command.REGION_WRITE_MULTI: Session._write_multi,
}
"""Not of the session: bound methods in it would be a cycle, and a server may collect those seldom or never."""
