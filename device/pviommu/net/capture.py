"""Frames in a regular file that Wireshark and tcpdump read (pcapng, IETF draft-ietf-opsawg-pcapng)."""

from __future__ import annotations

import errno
import logging
import os
import stat
import struct
import time

from ..inputs import InputKind, Inputs, Source

__all__ = ["Capture"]

log = logging.getLogger(__name__)

_ETHERNET = 1
_INBOUND, _OUTBOUND = 1, 2
_ONLY_REGULAR = "must be a regular file: a pipe or a device could stop the server"


def _block(kind: int, body: bytes) -> bytes:
    length = 12 + len(body)
    return struct.pack("<LL", kind, length) + body + struct.pack("<L", length)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


class Capture:
    """A new file, or one that is written anew, of at most ``limit`` bytes. A frame is written at once: whoever looks at
    the file sees it. Pipes and devices are refused, since whoever is at their other end could stop the server.
    """

    def __init__(self, path: str, name: str, inputs: Inputs, limit: int) -> None:
        """``name``: of the card. Raises OSError."""
        source = Source(InputKind.CAPTURED, name)
        self._path, self._name, self._inputs = path, name, inputs
        self._write, self._close = inputs.of(source, os.write), inputs.of(source, os.close)
        self._epoch_ns = inputs.of(source, time.time_ns)() - inputs.now_ns()
        self._limit, self._bytes = limit, 0
        try:
            self._fd = inputs.of(source, _open)(path)
        except OSError as error:
            text = _ONLY_REGULAR if error.errno == errno.ENXIO else error.strerror  # ENXIO: a pipe without a reader
            raise OSError(error.errno, f"{name}: pcap {path}: {text}") from error
        header = struct.pack("<LHHq", 0x1A2B3C4D, 1, 0, -1)
        nanoseconds = _option(9, b"\x09")
        interface = struct.pack("<HHL", _ETHERNET, 0, 0) + _option(2, name.encode()) + nanoseconds + _option(0, b"")
        self._put(_block(0x0A0D0D0A, header) + _block(1, interface))

    def frame(self, frame: bytes, *, outbound: bool) -> None:
        """One that the card sent or received. When the file cannot be written, that is logged and no more is."""
        if self._fd < 0:
            return
        now = self._inputs.now_ns() + self._epoch_ns
        head = struct.pack("<LLLLL", 0, now >> 32, now & 0xFFFFFFFF, len(frame), len(frame))
        direction = _option(2, (_OUTBOUND if outbound else _INBOUND).to_bytes(4, "little"))
        self._put(_block(6, head + frame + bytes(-len(frame) % 4) + direction + _option(0, b"")))

    def _put(self, data: bytes) -> None:
        if self._bytes + len(data) > self._limit:
            self._end(f"the limit of {self._limit} bytes")
            return
        try:
            written = self._write(self._fd, data)
        except OSError as error:
            self._end(str(error.strerror))
            return
        self._bytes += written
        if written < len(data):
            self._end(f"{written} of {len(data)} bytes were written: the disk, or what this process may use, is full")

    def _end(self, why: str) -> None:
        log.warning("%s: pcap %s ends after %d bytes: %s", self._name, self._path, self._bytes, why)
        self.close()

    def close(self) -> None:
        """Close the file; nothing is written any more. A second call does nothing."""
        if self._fd >= 0:
            self._close(self._fd)
            self._fd = -1


def _open(path: str) -> int:
    """A descriptor to write a regular file anew. Nothing is waited for, and nothing else is written to."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, _ONLY_REGULAR)
        os.ftruncate(fd, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd
