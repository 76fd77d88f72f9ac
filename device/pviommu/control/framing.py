"""Where messages of a control client end: they are JSON objects one after the other, and need no line each.

A message ends where the object ends that it is. What is no object ends with its line, as does a text that has no end in
it; and the byte 0xff, which no JSON has, ends whatever came before (qmp-spec.rst, "QGA Synchronization").
"""

from __future__ import annotations

import re

__all__ = ["MOST_MESSAGE", "Framing", "TooLongError"]

MOST_MESSAGE = 64 << 10
"""Bytes of one message."""
_OUTSIDE = re.compile(rb'[{\[]+|["}\]\n\xff]')
_INSIDE = re.compile(rb'["\\\n\xff]')
"""What matters outside and inside of texts."""
_RESET = b"\xff"


class TooLongError(Exception):
    """A message has more than :data:`MOST_MESSAGE` bytes; all of it is dropped."""


class Framing:
    """Finds messages in what a client sends, of which it keeps little more than one."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._position = 0
        """up to where was looked"""
        self._depth = 0
        self._is_text = False
        self._is_dropping = False
        """whether the rest of a message is dropped, which is too long"""
        self._end: int | None = None
        """of the first message"""
        self._is_too_long = False
        """whether this is to be told"""

    @property
    def has_message(self) -> bool:
        """Whether :meth:`take` gives something."""
        return self._is_too_long or self._end is not None

    def receive(self, data: bytes) -> None:
        """More bytes."""
        self._buffer += data
        self._look()

    def take(self) -> bytes:
        """The next message. Raises :class:`TooLongError`, once, for one that is dropped."""
        if self._is_too_long:
            self._is_too_long = False
            raise TooLongError
        assert self._end is not None
        message = self._forget(self._end)
        self._look()
        if len(message) > MOST_MESSAGE:
            raise TooLongError
        return message.rstrip(_RESET)

    def _look(self) -> None:
        """Find the end of the first message, unless that is known."""
        while self._end is None and (end := self._find_end()) is not None:
            if self._is_dropping or not bytes(self._buffer[:end]).strip(b" \t\r\n" + _RESET):
                self._forget(end)
                self._is_dropping = False
            else:
                self._end = end
        if self._end is None and (self._is_dropping or len(self._buffer) > MOST_MESSAGE):
            self._is_too_long = self._is_too_long or not self._is_dropping
            self._is_dropping = True
            depth, is_text = self._depth, self._is_text
            self._forget(self._position)
            self._depth, self._is_text = depth, is_text

    def _forget(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._position = self._depth = 0
        self._is_text = False
        self._end = None
        return taken

    def _find_end(self) -> int | None:
        buffer = self._buffer
        while found := (_INSIDE if self._is_text else _OUTSIDE).search(buffer, self._position):
            character, end = found[0], found.end()
            if character == b"\\":
                if end == len(buffer):  # what it stands before is still to come
                    self._position = found.start()
                    return None
                if buffer[end : end + 1] != _RESET:  # which no text can have
                    end += 1
            elif character == b'"':
                self._is_text = not self._is_text
            elif character[0] in b"{[":
                self._depth += len(character)
            elif character in b"}]":
                self._depth -= 1
            self._position = end
            is_over = character in b"}]" and self._depth <= 0
            if is_over or character == _RESET or (character == b"\n" and (self._is_text or not self._depth)):
                return end
        self._position = len(buffer)
        return None
