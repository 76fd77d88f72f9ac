"""Frames in a file that Wireshark and tcpdump read (pcapng, IETF draft-ietf-opsawg-pcapng)."""

from __future__ import annotations

import logging
import os
import struct
import time

from ..inputs import InputKind, Inputs, Source

__all__ = ["Capture"]

log = logging.getLogger(__name__)

_ETHERNET = 1
_INBOUND, _OUTBOUND = 1, 2


def _block(kind: int, body: bytes) -> bytes:
    length = 12 + len(body)
    return struct.pack("<LL", kind, length) + body + struct.pack("<L", length)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


class Capture:
    """A new file, or one that is written anew. A frame is written at once: whoever looks at the file sees it."""

    def __init__(self, path: str, name: str, inputs: Inputs) -> None:
        """``name``: of the card. Raises OSError."""
        source = Source(InputKind.CAPTURED, name)
        self._path, self._name, self._inputs = path, name, inputs
        self._write, self._close = inputs.of(source, os.write), inputs.of(source, os.close)
        self._epoch_ns = inputs.of(source, time.time_ns)() - inputs.now_ns()
        try:
            self._fd = inputs.of(source, os.open)(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OSError(error.errno, f"{name}: pcap {path}: {error.strerror}") from error
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
        try:
            written = self._write(self._fd, data)
            if written < len(data):
                raise OSError(0, "no space left")
        except OSError as error:
            log.warning("%s: pcap %s ends: %s", self._name, self._path, error.strerror)
            self.close()

    def close(self) -> None:
        """Close the file; nothing is written any more. A second call does nothing."""
        if self._fd >= 0:
            self._close(self._fd)
            self._fd = -1
