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
    capture = Capture(str(path), "net0", LiveInputs(), 1 << 20)
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
        Capture(str(tmp_path / "missing" / "file"), "net0", LiveInputs(), 1 << 20)
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
    capture = Capture(str(tmp_path / "file"), "net0", inputs, 1 << 20)
    before = len(os.listdir("/proc/self/fd"))
    inputs.full = True
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            capture.frame(bytes(60), outbound=True)
    capture.close()

    assert [record.getMessage() for record in caplog.records] == [
        f"net0: pcap {tmp_path / 'file'} ends after {os.stat(tmp_path / 'file').st_size} bytes: No space left on device"
    ]
    assert len(os.listdir("/proc/self/fd")) == before - 1


@pytest.mark.parametrize("has_reader", [False, True])
def test_a_pipe_is_refused_at_once(tmp_path: Path, has_reader: bool) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if has_reader else -1
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=r"net0: pcap .*/pipe: must be a regular file"):
        Capture(str(path), "net0", LiveInputs(), 1 << 20)
    assert len(os.listdir("/proc/self/fd")) == before
    if has_reader:
        os.close(reader)


def test_a_device_is_refused() -> None:
    with pytest.raises(OSError, match=r"net0: pcap /dev/null: must be a regular file"):
        Capture("/dev/null", "net0", LiveInputs(), 1 << 20)


def test_a_file_that_was_there_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(9999))
    Capture(str(tmp_path / "file"), "net0", LiveInputs(), 1 << 20).close()

    assert len(list(blocks((tmp_path / "file").read_bytes()))) == 2


def test_a_capture_ends_at_its_limit_with_whole_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "file"
    capture = Capture(str(path), "net0", LiveInputs(), 4096)
    with caplog.at_level(logging.WARNING):
        for _ in range(10):
            capture.frame(bytes(1000), outbound=True)

    written = path.read_bytes()
    assert len(written) <= 4096
    assert len(list(blocks(written))) == 2 + 3
    assert [record.getMessage() for record in caplog.records] == [
        f"net0: pcap {path} ends after {len(written)} bytes: the limit of 4096 bytes"
    ]


def test_a_write_that_is_cut_short_says_how_short(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Short(LiveInputs):
        def of(self, source: Source, call: Callable[..., Any]) -> Callable[..., Any]:
            return (lambda fd, data: os.write(fd, data[:10])) if call is os.write else call

    path = tmp_path / "file"
    with caplog.at_level(logging.WARNING):
        Capture(str(path), "net0", Short(), 4096)

    [record] = caplog.records
    assert f"pcap {path} ends after 10 bytes: 10 of " in record.getMessage()
