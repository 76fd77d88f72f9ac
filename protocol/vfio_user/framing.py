"""Bytes and descriptors of a stream become frames: a header, its payload and its descriptors. Nothing here depends on
the command.

Which frame owns the descriptors
--------------------------------
A sender attaches descriptors to the first byte of a message, with one ``sendmsg`` per message (QEMU, libvfio-user).
Linux ends a ``recvmsg`` with the first buffer that carries descriptors, so a chunk that came with some may begin with
whole earlier messages, but ends inside, or at the end of, the message that owns them. Hence the rule of
:meth:`FrameReader.feed`: descriptors belong to the *last* frame of which the chunk holds a byte. That is right for
every size of read. A sender that puts several messages into one ``sendmsg`` is served correctly too if no chunk crosses
the end of a frame: read at most :attr:`FrameReader.wanted` bytes at a time.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from .messages import Header

__all__ = ["FDS_TRUNCATED", "MAX_FRAME_FDS", "BadFrame", "Frame", "FrameReader", "close_fds"]

FDS_TRUNCATED = -errno.EINVAL
"""stands in a list of descriptors for those that there was no room for; any negative errno stands for descriptors that
the kernel kept back (MSG_CTRUNC), and says why"""

MAX_FRAME_FDS = 64
"""descriptors that one frame may gather; more are closed and the frame is marked"""


def close_fds(fds: Iterable[int]) -> None:
    """Close each descriptor; negative numbers (:data:`FDS_TRUNCATED`) are passed over."""
    for fd in fds:
        if fd >= 0:
            os.close(fd)


@dataclass(slots=True)
class Frame:
    """One message. Whoever receives it owns ``fds``."""

    header: Header
    payload: bytes
    fds: list[int] = field(default_factory=list)
    fds_lost: int = 0
    """the errno for which its descriptors were dropped (EINVAL: too many); ``fds`` is empty then. 0: none were"""


@dataclass(slots=True)
class BadFrame:
    """A header with an impossible size. It ends the stream: what follows cannot be told apart."""

    header: Header
    text: str


class FrameReader:
    """Cuts a stream into frames, however it was split or coalesced on the way.

    ``max_size`` bounds a whole message in bytes and is enforced as soon as its header is there; nothing larger is
    gathered. ``max_fds`` bounds the descriptors of one message. ``close`` closes those that it drops.
    """

    def __init__(
        self, max_size: int, max_fds: int = MAX_FRAME_FDS, close: Callable[[Iterable[int]], None] = close_fds
    ) -> None:
        self._max_size = max_size
        self._max_fds = max_fds
        self._close_fds = close
        self._buffer = bytearray()
        self._fds: list[int] = []
        self._fds_lost = 0
        self._ended = False

    @property
    def wanted(self) -> int:
        """Bytes until the header, or else the frame, in progress is complete; at least 1."""
        have = len(self._buffer)
        if have < Header.SIZE:
            return Header.SIZE - have
        return Header.unpack(self._buffer).size - have

    @property
    def is_amid_frame(self) -> bool:
        """Whether the beginning of a frame has come, and its end is still to come."""
        return bool(self._buffer)

    @property
    def keeps_descriptors(self) -> bool:
        """Whether the beginning of a frame has come with descriptors, and its end is still to come."""
        return bool(self._fds)

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> list[Frame | BadFrame]:
        """Take a chunk and the descriptors that came with it (ownership passes); return the frames it completes.

        A :class:`BadFrame` is the last that a reader ever returns; later chunks are dropped, descriptors closed.
        """
        if self._ended or not data:
            self._close_fds(fds)
            return []
        stream: bytes | bytearray = data  # most chunks are one message, which is copied only once then
        if self._buffer:
            self._buffer += data
            stream = self._buffer
        frames: list[Frame | BadFrame] = []
        start = 0
        while len(stream) - start >= Header.SIZE:
            header = Header.unpack(stream, start)
            if not Header.SIZE <= header.size <= self._max_size:
                frames.append(BadFrame(header, self._size_text(header)))
                self._close_fds(fds)
                self.close()
                return frames
            end = start + header.size
            if end > len(stream):
                break
            if fds and end == len(stream):
                self._own(fds)
                fds = ()
            payload = bytes(stream[start + Header.SIZE : end])
            frames.append(Frame(header, payload, self._fds, self._fds_lost))
            self._fds, self._fds_lost = [], 0
            start = end
        if self._buffer:
            del self._buffer[:start]
        else:
            self._buffer += stream[start:]
        if fds:
            self._own(fds)
        return frames

    def close(self) -> None:
        """Drop what was gathered, close its descriptors, and end the stream."""
        self._close_fds(self._fds)
        self._fds = []
        self._buffer.clear()
        self._ended = True

    def _own(self, fds: Sequence[int]) -> None:
        """Give ``fds`` to the frame in progress, or drop all of its descriptors if they are too many."""
        self._fds.extend(fds)
        if not self._fds_lost:
            kept_back = [-fd for fd in self._fds if fd < 0]
            self._fds_lost = kept_back[0] if kept_back else errno.EINVAL * (len(self._fds) > self._max_fds)
        if self._fds_lost:
            self._close_fds(self._fds)
            self._fds = []

    def _size_text(self, header: Header) -> str:
        rule = f"a message is {Header.SIZE} to {self._max_size} bytes"
        return f"message {header.id} of command {header.command} announces {header.size} bytes: {rule}"
