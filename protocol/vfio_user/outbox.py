"""What a session has to say to its client, in order, and what the log says of its messages."""

from __future__ import annotations

import logging
from collections import deque
from typing import NamedTuple

from .messages import Header, HeaderFlags, MessageType

__all__ = ["Outbox", "Outgoing"]

logger = logging.getLogger("vfio_user.server")  # a session has one name in the log

_REPLY = int(MessageType.REPLY)
_LOUD_REFUSALS = 20  # refusals of a session that are logged as warnings; a hostile client must not fill a log


class Outgoing(NamedTuple):
    """Bytes to send, with descriptors that ride on the first of them. The device keeps the descriptors."""

    data: bytes
    fds: tuple[int, ...] = ()


class Outbox:
    """Replies and refusals that wait to be sent."""

    def __init__(self, name: str, most: int, is_loud: bool) -> None:
        """``most``: bytes that may wait before there is no room. ``is_loud``: whether refusals are worth a warning."""
        self.messages: deque[Outgoing] = deque()
        """whoever sends them takes them from here"""
        self._name = name
        self._most = most
        self._queued = 0
        self._loud_refusals = _LOUD_REFUSALS if is_loud else 0

    @property
    def has_room(self) -> bool:
        """Whether there is room for the replies of further requests."""
        if self._queued > self._most:
            # The sender takes messages without saying so: this count may be too high, but never too low.
            self._queued = sum(len(item.data) for item in self.messages)
        return self._queued <= self._most

    def _put(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        self._queued = len(data) + (self._queued if self.messages else 0)
        self.messages.append(Outgoing(data, fds))

    def reply(self, header: Header, payload: bytes, fds: tuple[int, ...] = ()) -> None:
        """Answer the request of ``header``, if it wants that."""
        if not header.no_reply:
            # Not by a Record: every guest access waits for this.
            answer = Header.STRUCT.pack(header.id, header.command, Header.SIZE + len(payload), _REPLY, 0)
            self._put(answer + payload, fds)
            if logger.isEnabledFor(logging.DEBUG):
                self.trace(Header.unpack(answer), payload, len(fds))

    def refuse(self, header: Header, number: int, text: str) -> None:
        """Refuse the request of ``header`` with errno ``number``; ``text`` is why, for the log."""
        level = logging.WARNING if self._loud_refusals > 0 else logging.DEBUG
        self._loud_refusals -= 1
        logger.log(level, "request %d refused: %s", header.id, text)
        if not header.no_reply:
            flags = MessageType.REPLY | HeaderFlags.ERROR
            answer = Header(header.id, header.command, Header.SIZE, flags, number)
            self._put(answer.pack())
            if logger.isEnabledFor(logging.DEBUG):
                self.trace(answer, b"", 0)

    def trace(self, header: Header, payload: bytes, descriptors: int) -> None:
        """Log a message of either side."""
        from . import describe  # imported late, since it costs start-up time

        found = describe.fields(header, payload, descriptors)
        extra = {"event": "vfio-user", "fields": {"function": self._name, **found}}
        logger.debug("%s: %s", self._name, describe.text(found), extra=extra)
