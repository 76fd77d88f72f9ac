"""What can be guest memory, and what else a descriptor may be."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pviommu.dma.memory_file import MemoryFiles
from vfio_user import RequestError, memory_kind
from vfio_user.memory_kind import NotMemoryError, check_memory, kind_of

row = pytest.mark.row
SIZE = 1 << 20
LOSETUP = shutil.which("losetup", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
"""It is not in the path of every user."""


@pytest.fixture
def opened() -> Iterator[list[int]]:
    fds: list[int] = []
    yield fds
    for fd in fds:
        os.close(fd)


def why_not(fd: int, to_write: bool = True) -> str:
    with pytest.raises(NotMemoryError) as caught:
        kind_of(fd, to_write)
    return str(caught.value)


@row("server", 57)
@pytest.mark.parametrize(
    ("path", "flags", "text"),
    [
        ("/sys/kernel/uevent_seqnum", os.O_RDONLY, "is on a file system of type sysfs, which holds no memory"),
        ("/proc/self/mem", os.O_RDWR, "/mem is on a file system of type proc, which holds no memory"),
        ("/dev/null", os.O_RDWR, "/dev/null is neither a file nor a block device"),
        ("/tmp", os.O_RDONLY, "/tmp is neither a file nor a block device"),
        ("/tmp", os.O_PATH, "it was opened with O_PATH"),
    ],
)
def test_what_has_a_path_but_is_no_memory_is_named(opened: list[int], path: str, flags: int, text: str) -> None:
    opened.append(os.open(path, flags))
    assert text in why_not(opened[0], flags == os.O_RDWR)


@row("server", 57)
def test_what_has_no_path_is_named(opened: list[int]) -> None:
    opened += os.pipe()
    opened += [sock.detach() for sock in socket.socketpair()]
    opened.append(os.eventfd(0))

    texts = [why_not(fd) for fd in opened]

    assert [text.split("[")[0] for text in texts] == ["it is pipe:"] * 2 + ["it is socket:"] * 2 + ["it is anon_inode:"]
    assert texts[-1] == "it is anon_inode:[eventfd]"


@row("server", 57)
@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (os.O_RDWR | os.O_APPEND, "it was opened for appending (O_APPEND), so every write would go to its end"),
        (os.O_RDONLY, "it was opened for reading only, and the range is one to write to"),
        (os.O_WRONLY, "it was opened for writing only"),
    ],
)
def test_a_file_that_cannot_be_written_anywhere_is_refused(
    opened: list[int], tmp_path: Path, flags: int, text: str
) -> None:
    (tmp_path / "ram").write_bytes(bytes(SIZE))
    opened.append(os.open(tmp_path / "ram", flags))
    assert why_not(opened[0]) == text


def test_a_file_that_is_only_to_be_read_need_not_be_writable(opened: list[int], tmp_path: Path) -> None:
    (tmp_path / "rom").write_bytes(bytes(SIZE))
    opened.append(os.open(tmp_path / "rom", os.O_RDONLY))
    assert kind_of(opened[0], False).size == SIZE


@row("server", 57)
@pytest.mark.parametrize("seal", [fcntl.F_SEAL_WRITE, 0x10])
def test_a_memory_file_that_is_sealed_against_writing_is_refused(opened: list[int], seal: int) -> None:
    opened.append(os.memfd_create("ram", os.MFD_ALLOW_SEALING))
    fcntl.fcntl(opened[0], fcntl.F_ADD_SEALS, seal)
    assert why_not(opened[0]) == "it is sealed against writing, and the range is one to write to"


@row("server", 56)
@pytest.mark.parametrize("folder", ["/dev/shm", None])
def test_a_plain_file_in_memory_or_on_disk_can_be_memory(opened: list[int], tmp_path: Path, folder: str | None) -> None:
    path = Path(folder or tmp_path) / f"pviommu-test-{os.getpid()}"
    path.write_bytes(bytes(SIZE))
    opened.append(os.open(path, os.O_RDWR))
    path.unlink()

    kind = kind_of(opened[0], True)

    assert (kind.size, kind.writable, kind.may_shrink, kind.is_huge, kind.is_device) == (SIZE, True, True, False, False)


@row("server", 56)
def test_a_block_device_has_the_size_of_its_medium(
    opened: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "disk").write_bytes(bytes(SIZE))
    device = _loop_device(tmp_path / "disk")
    files = MemoryFiles()
    try:
        fd = os.open(device, os.O_RDWR)
        kind = kind_of(fd, True)
        file = files.open(fd, True)

        assert (kind.size, kind.is_device) == (SIZE, True)
        assert files.area(file) is None
        assert "is a block device: it is read and written by system calls, which is slower" in caplog.text
    finally:
        files.release(file)
        subprocess.run([str(LOSETUP), "-d", device], check=True)


@row("server", 56)
def test_the_size_of_a_block_device_is_asked_of_it(opened: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where this user may make none: the kernel's answers are made up."""
    opened.append(os.memfd_create("disk", os.MFD_CLOEXEC))
    asked: list[tuple[int, int]] = []

    def size_of(fd: int, request: int, _: bytes) -> bytes:
        asked.append((fd, request))
        return SIZE.to_bytes(8, sys.byteorder)

    device = os.stat_result((stat.S_IFBLK | 0o600, 1, 2, 1, 0, 0, 0, 0, 0, 0))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", lambda _: device)
        patched.setattr(fcntl, "ioctl", size_of)
        kind = kind_of(opened[0], True)
    assert (kind.size, kind.is_device) == (SIZE, True)
    assert asked == [(opened[0], 0x80081272)]  # BLKGETSIZE64


def _loop_device(path: Path) -> str:
    """A block device with the contents of a file. This needs root and the loop driver, and is skipped without."""
    if LOSETUP is None:
        pytest.skip("this host gives no block device: there is no losetup")
    made = subprocess.run([LOSETUP, "--show", "-f", path], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"this host gives no block device: {made.stderr.strip() or 'losetup failed'}")
    return made.stdout.strip()


@row("server", 57)
def test_a_file_system_that_holds_no_memory_is_not_asked_anything(
    opened: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One in user space may never answer."""

    def asked(*_: object) -> None:
        raise AssertionError("the file system was asked")

    opened.append(os.open("/sys/kernel/uevent_seqnum", os.O_RDONLY))
    with monkeypatch.context() as patched:
        for name in ("fstat", "fstatvfs", "pread"):
            patched.setattr(os, name, asked)
        text = why_not(opened[0], False)

    assert "type sysfs" in text


@row("server", 57)
def test_a_file_system_that_this_process_does_not_see_is_refused(
    opened: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ram").write_bytes(bytes(SIZE))
    opened.append(os.open(tmp_path / "ram", os.O_RDWR))
    monkeypatch.setattr("vfio_user.memory_kind._mount_of", lambda _fd: b"no such mount")

    assert why_not(opened[0]) == f"{tmp_path}/ram is on a file system that is not mounted here"


@row("server", 10)
def test_what_a_client_sends_as_memory_is_refused_by_its_kind(opened: list[int], tmp_path: Path) -> None:
    opened += [os.eventfd(0), os.open(tmp_path, os.O_RDONLY), *os.pipe(), os.open("/dev/null", os.O_RDWR)]
    opened += [sock.detach() for sock in socket.socketpair()]
    for fd in opened:
        with pytest.raises(RequestError, match="a map: the file descriptor is not memory: ") as refused:
            check_memory(fd, True, "a map")
        assert refused.value.errno == errno.EINVAL


@row("server", 10)
@pytest.mark.parametrize(
    ("kind", "text"), [("fuse.sshfs", "type fuse.sshfs"), ("nfs4", "type nfs4"), (None, "not mounted here")]
)
def test_files_that_somebody_else_serves_are_not_looked_at(
    opened: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str | None, text: str
) -> None:
    opened.append(os.open("/proc/self/status", os.O_RDONLY))  # any file without seals
    monkeypatch.setattr(memory_kind, "_file_system", lambda _: kind)
    refused = None
    with monkeypatch.context() as nothing:
        for name in ("fstat", "pread", "read", "fstatvfs"):
            nothing.setattr(os, name, None)
        try:
            check_memory(opened[0], False, "a map")
        except RequestError as error:
            refused = error
    assert text in str(refused)


@row("server", 4)
def test_a_file_that_cannot_be_looked_at_has_its_errno(opened: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: int) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    opened.append(os.open("/proc/self/status", os.O_RDONLY))
    monkeypatch.setattr(memory_kind, "_mount_of", fails)
    with pytest.raises(RequestError, match="cannot be examined: Too many open files") as refused:
        check_memory(opened[0], False, "a map")
    assert refused.value.errno == errno.EMFILE
