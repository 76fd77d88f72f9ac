"""The server side of one connection, without a socket: bytes and descriptors in, bytes and descriptors out.

The caller moves :attr:`Session.outgoing` to its socket and what the socket brings to :meth:`Session.receive`; see
:mod:`vfio_user.transport`. What the client may ask for is in :mod:`vfio_user.commands`.
"""

from __future__ import annotations

import enum
import errno
import logging
import os
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from . import negotiation
from .commands import Answer, Commands, Reply
from .device import Device, DeviceInfo, DmaMapping, Irq, IrqAction, IrqKind, IrqRequest, Region, Waiting
from .errors import ProtocolError, RequestError
from .foreign import Closer, is_eventfd
from .framing import BadFrame, Frame, FrameReader
from .memory_kind import DescriptorKind, check_memory
from .messages import Command, Header, MessageType
from .negotiation import Capabilities, SessionLimits
from .outbox import Outbox, Outgoing

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


class State(enum.Enum):
    """How far a session is."""

    NEGOTIATING = "negotiating"
    RUNNING = "running"
    CLOSED = "closed"


CarryOut = Callable[[Frame], Answer]
"""Carries a command out. Raises RequestError, and whatever the device raises."""


def _always() -> bool:
    return True


class Session:
    """One client of ``device``, from its first byte to its last. Nothing that a client sends raises out of it.

    ``closer`` closes the descriptors that are not wanted; the session makes one if none is given. With ``refusal`` the
    client's first message is answered with that error and the session ends; the device never learns of it.

    After :data:`State.CLOSED` send what is left in :attr:`outgoing`, then close the socket: QEMU waits for its
    full time limit on each access until the server's end is closed.
    """

    def __init__(
        self,
        device: Device,
        limits: SessionLimits | None = None,
        name: str = "client",
        *,
        closer: Closer | None = None,
        refusal: RequestError | None = None,
        check_memory: Callable[[int, bool, str], DescriptorKind] = check_memory,
        is_eventfd: Callable[[int], bool] = is_eventfd,
        around: Callable[[CarryOut], CarryOut] | None = None,
    ) -> None:
        """``name`` is what the log calls it. ``check_memory`` and ``is_eventfd`` tell what descriptors are. ``around``
        is given the function that carries out a command, and returns the one to call instead.
        """
        self._device = device
        self._limits = limits or SessionLimits()
        self._commands = Commands(device, self._limits, check_memory, is_eventfd)
        # whoever refuses a whole client logs that itself
        self._outbox = Outbox(name, 2 * self._limits.max_frame, is_loud=refusal is None)
        self.outgoing: deque[Outgoing] = self._outbox.messages
        self._state = State.NEGOTIATING
        self._refusal = refusal
        self._closer = closer or Closer()
        self._reader = FrameReader(self._limits.max_frame, close=self._closer.close)
        self._frames: deque[Frame | BadFrame] = deque()
        self._unfinished: tuple[Header, Generator[Any, None, Reply | None]] | None = None
        self.waits_for: Waiting | None = None
        """what the request in progress waits for, if that does not depend on its client"""
        self._around = around
        self._carry_out: CarryOut = around(self._commands.carry_out) if around else self._commands.carry_out

    @property
    def state(self) -> State:
        """How far the session is."""
        return self._state

    @property
    def client(self) -> Capabilities:
        """What the client can receive; the protocol's defaults before negotiation."""
        return self._commands.client

    @property
    def wanted(self) -> int:
        """Bytes that complete the message in progress; see :mod:`vfio_user.framing` for when to read just these."""
        return self._reader.wanted

    @property
    def paused(self) -> bool:
        """Whether requests wait: stop reading from the client, then resume.

        They wait because the client does not read its replies (two full transfers may be queued in :attr:`outgoing`,
        so that a client cannot make it grow), or because others are to have a turn first.
        """
        return bool(self._frames) or self._unfinished is not None

    @property
    def is_held(self) -> bool:
        """Whether the request in progress waits for something that does not depend on its client."""
        return self.waits_for is not None and not self.waits_for.is_over

    @property
    def may_keep_descriptors(self) -> bool:
        """Whether descriptors of the client may stay here until it acts: until it takes its replies, or sends the rest
        of a message that came with descriptors. One of them may be its own end of the connection, and then its hanging
        up is never seen.
        """
        return self._reader.keeps_descriptors or (self.paused and bool(self.outgoing))

    def receive(self, data: bytes, fds: list[int], may_go_on: Callable[[], bool] = _always) -> None:
        """Take a chunk of the stream and the descriptors that came with it (ownership passes), and act on it.

        ``may_go_on`` is asked after each request, and after each step of one that takes long, if there is more to do.
        Once it is False the rest waits for :meth:`resume`, so that a client's requests keep nobody else from being
        served.
        """
        if self._state is State.CLOSED:
            self._closer.close(fds)
            return
        self._frames.extend(self._reader.feed(data, fds))
        self.resume(may_go_on)

    def resume(self, may_go_on: Callable[[], bool] = _always) -> None:
        """Go on with requests that waited, by at least one step. Call it, after flushing, if :attr:`paused`."""
        frames = self._frames
        while (frames or self._unfinished is not None) and self._state is not State.CLOSED and self._outbox.has_room:
            if self.waits_for is not None and not self.waits_for.is_over:
                break
            if self._unfinished is not None:
                self._go_on(*self._unfinished)
            else:
                self._begin(frames.popleft())
            if self.paused and not may_go_on():
                break
        if self._refusal:
            return
        try:
            self._device.settle()
        except Exception:
            logger.exception("the device failed after requests of its client")

    def _begin(self, frame: Frame | BadFrame) -> None:
        if isinstance(frame, BadFrame):
            self._outbox.refuse(frame.header, errno.EINVAL, frame.text)
            self.close()
            return
        try:
            self._handle(frame)
        finally:
            if frame.fds:
                self._closer.close(frame.fds)

    def _go_on(self, header: Header, steps: Generator[Any, None, Reply | None]) -> None:
        """Carry out the next step of a request; its reply comes after the last."""
        self._unfinished = header, steps
        self.waits_for = None
        try:
            self.waits_for = next(steps)
        except StopIteration as end:
            self._unfinished = None
            self._answer(header, end.value)
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
        if self._refusal:
            return
        try:
            self._device.disconnected()
        except Exception:
            logger.exception("the device failed at the end of its session")

    def _handle(self, frame: Frame) -> None:
        header = frame.header
        if logger.isEnabledFor(logging.DEBUG):
            self._outbox.trace(header, frame.payload, len(frame.fds))
        kind = header.type
        if kind == _REPLY and header.command in (Command.DMA_READ, Command.DMA_WRITE):
            logger.debug("reply %d to no request of ours: ignored", header.id)
            return
        try:
            if self._refusal:
                raise self._refusal
            if kind or frame.fds or frame.fds_lost:
                self._check_frame(frame)
            carry_out = self._carry_out
            if self._state is State.NEGOTIATING:
                carry_out = self._around(self._negotiate) if self._around else self._negotiate
            answer = carry_out(frame)
        except Exception as error:
            self._fail(header, error)
        else:
            if answer is None or isinstance(answer, Reply):  # sooner told than whether it is a generator
                self._answer(header, answer)
            else:
                self._go_on(header, answer)

    def _answer(self, header: Header, reply: Reply | None) -> None:
        if reply is not None:
            self._outbox.reply(header, reply.payload, reply.fds)

    def _fail(self, header: Header, error: Exception) -> None:
        """An exception in the device must cost the client one access, never end the process."""
        if isinstance(error, RequestError):
            self._outbox.refuse(header, error.errno, error.text)
            if self._state is State.NEGOTIATING:
                self.close()
            return
        logger.error("the device failed at request %d, command %d", header.id, header.command, exc_info=error)
        self._outbox.refuse(header, errno.EIO, f"command {header.command} failed in the device")

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

    def _negotiate(self, frame: Frame) -> Answer:
        if frame.header.command != Command.VERSION:
            raise RequestError(errno.EINVAL, f"command {frame.header.command} first: VERSION comes first")
        if frame.fds:
            raise RequestError(errno.EINVAL, "VERSION with descriptors: it takes none")
        try:
            payload, offer = negotiation.accept(frame.payload, self._limits)
        except ProtocolError as error:
            raise RequestError(errno.EINVAL, str(error)) from error
        self._commands.client = offer.capabilities
        self._state = State.RUNNING
        logger.info("client speaks %d.%d, %s", offer.major, offer.minor, offer.capabilities)
        return Reply(payload)
