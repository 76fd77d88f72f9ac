"""Captures, read back block by block."""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pviommu.inputs import LiveInputs, Source
from pviommu.net.capture import Capture


def blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        kind, length = struct.unpack_from("<LL", data)
        assert length % 4 == 0
        assert struct.unpack_from("<L", data, length - 4) == (length,)
        yield kind, data[8 : length - 4]
        data = data[length:]


def options(data: bytes) -> dict[int, bytes]:
    found = {}
    while True:
        code, length = struct.unpack_from("<HH", data)
        if code == 0:
            return found
        found[code] = data[4 : 4 + length]
        data = data[4 + length + -length % 4 :]


def test_frames_are_in_the_file_as_soon_as_they_are_captured(tmp_path: Path) -> None:
    path = tmp_path / "net0.pcapng"
    capture = Capture(str(path), "net0", LiveInputs())
    frames = [(b"\xaa" * 61, True), (b"\xbb" * 64, False)]
    for frame, outbound in frames:
        capture.frame(frame, outbound=outbound)

    (section, header), (kind, interface), *packets = blocks(path.read_bytes())

    assert (section, header[:8]) == (0x0A0D0D0A, bytes.fromhex("4d3c2b1a01000000"))
    assert (kind, interface[:2], options(interface[8:])) == (1, b"\1\0", {2: b"net0", 9: b"\x09"})
    for (frame, outbound), (kind, packet) in zip(frames, packets, strict=True):
        _, high, low, captured, length = struct.unpack_from("<LLLLL", packet)
        assert (kind, captured, length) == (6, len(frame), len(frame))
        assert packet[20 : 20 + length] == frame
        assert options(packet[20 + length + -length % 4 :]) == {2: bytes([2 if outbound else 1, 0, 0, 0])}
        assert abs((high << 32 | low) / 1e9 - path.stat().st_mtime) < 60
    assert path.stat().st_mode & 0o777 == 0o600
    capture.close()


def test_a_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"net0: pcap .*/missing/file: No such file") as caught:
        Capture(str(tmp_path / "missing" / "file"), "net0", LiveInputs())
    assert caught.value.errno == errno.ENOENT


def test_a_full_disk_ends_the_capture_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full(LiveInputs):
        full = False

        def of(self, source: Source, call: Callable[..., Any]) -> Callable[..., Any]:
            def write(fd: int, data: bytes) -> int:
                if self.full:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return os.write(fd, data)

            return write if call is os.write else call

    inputs = Full()
    capture = Capture(str(tmp_path / "file"), "net0", inputs)
    before = len(os.listdir("/proc/self/fd"))
    inputs.full = True
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            capture.frame(bytes(60), outbound=True)
    capture.close()

    assert [record.getMessage() for record in caplog.records] == [
        f"net0: pcap {tmp_path / 'file'} ends: No space left on device"
    ]
    assert len(os.listdir("/proc/self/fd")) == before - 1
