"""Queues, files in memory and mock devices of programs under the preloaded library."""

from __future__ import annotations

import mmap
import os
import sys
import textwrap
from ctypes import addressof, c_char
from pathlib import Path

import pytest

from pviommu.cli import main
from pviommu.interfaces.iommufd import DeviceConfig, System
from pviommu.interfaces.iommufd.user_memory import Place
from pviommu.vfio_run.notifications import IS_KNOWN
from pviommu.vfio_run.remote import DescriptorMemory, RemoteMemory
from pviommu.vfio_run.running import By

from ..interfaces.iommufd.conftest import fails
from .test_running import cache, run

__all__ = ["cache"]

WAYS = pytest.mark.parametrize("by", [By.PRELOAD, *([By.SECCOMP] if IS_KNOWN else [])])
MOCK = """
import select

TEST = "<IIII48sII"

def test(fd, operation, number, layout="", *values):
    body = struct.pack(layout, *values).ljust(48, b"\\0")
    return asked(fd, 0xA0, TEST, operation, number, 0, body, 0, 0)[4]

def alloc(fd, device, on, flags, fault=0):
    data = ctypes.create_string_buffer(struct.pack("<II", 0xBADBEEF, 0), 8)
    kind = (0xDEAD, 8, ctypes.addressof(data)) if flags & 4 else (0, 0, 0)
    return asked(fd, 0x89, "<IIIIIIIIQII", flags, device, on, 0, 0, *kind, fault, 0)[4]
"""


@pytest.mark.usefixtures("cache")
@pytest.mark.row("space", 59)
@WAYS
def test_page_requests_are_polled_for_read_and_answered(by: By) -> None:
    program = """
        fd = opened()
        stdev, _, device, _ = struct.unpack("<4I", test(fd, 2, ioas(fd))[:16])
        _, _, queue, events = asked(fd, 0x8E, "<IIII", 0, 0, 0)
        assert fcntl.fcntl(events, fcntl.F_GETFD) == fcntl.FD_CLOEXEC
        nested = alloc(fd, device, alloc(fd, device, 1, 1), 4, queue)
        test(fd, 10, stdev, "<I", nested)
        poll = select.poll()
        poll.register(events, select.POLLIN)
        assert not poll.poll(0)
        assert os.read(events, 40) == b""
        for number in range(2):
            test(fd, 15, 0, "<IIIIQ", device, 0, number, 1, 0x1000 * number)
        again = os.dup(events)
        assert poll.poll(10000)
        refused(errno.ESPIPE, os.read, events, 39)
        assert poll.poll(10000)
        first = struct.unpack("<6IQII", os.read(again, 40))
        assert poll.poll(10000)
        second = struct.unpack("<6IQII", os.read(events, 40))
        assert not poll.poll(0)
        assert (first[6], second[6]) == (0, 0x1000)
        assert os.write(events, struct.pack("<II", second[8], 0)) == 8
        refused(errno.EINVAL, os.write, events, struct.pack("<II", second[8], 0))
        refused(errno.EINVAL, os.read, fd, 40)
        refused(errno.EINVAL, os.write, fd, b"x")
        os.close(events)
        refused(errno.EBUSY, asked, fd, 0x80, "<II", queue)
        os.close(again)
        test(fd, 10, stdev, "<I", 1)
        asked(fd, 0x80, "<II", nested)
        asked(fd, 0x80, "<II", queue)
    """
    run(MOCK + "\n" + textwrap.dedent(program), System(mock=True), by)


@pytest.mark.usefixtures("cache")
@WAYS
def test_files_in_memory_are_mapped_by_descriptor(by: By) -> None:
    program = """
        fd, device = opened(), opened("/dev/vfio/devices/vfio0")
        asked(device, 0x76, "<IIiIQ", 0, fd, 0, 0)
        space = ioas(fd)
        table = asked(device, 0x77, "<III", 0, space)[2]
        file = os.memfd_create("memory")
        os.ftruncate(file, 8192)

        def map_file(number, length=4096, flags=7):
            return asked(fd, 0x8F, "<IIIiQQQ", flags, space, number, 4096, length, 0x10000)

        refused(errno.EBADF, map_file, 99)
        refused(errno.EINVAL, map_file, fd)
        refused(errno.EINVAL, map_file, file, 8192)
        with open("/proc/self/exe", "rb") as disk:
            refused(errno.EINVAL, map_file, disk.fileno(), 4096, 5)
        map_file(file)
        os.close(file)
        asked(fd, 0x92, "<II", 0)
    """
    run(program, by=by)


@pytest.mark.usefixtures("cache")
def test_memory_of_a_virtual_iommu_is_mapped() -> None:
    program = """
        fd = opened()
        device = struct.unpack("<4I", test(fd, 2, ioas(fd))[:16])[2]
        parent = alloc(fd, device, 1, 1)
        data = bytearray(struct.pack("<IIQQ", 7, 0, 0, 0))
        place = ctypes.addressof(ctypes.c_char.from_buffer(data))
        viommu = asked(fd, 0x90, "<8IQ", 0, 0xDEADBEEF, device, parent, 0, 24, 0, place)[5]
        _, out, offset, length = struct.unpack("<IIQQ", data)
        refused(errno.ENXIO, lambda: mmap.mmap(fd, length, offset=offset + length))
        mapped = mmap.mmap(fd, length, offset=offset)
        assert (out, mapped[0]) == (7, 7)
        refused(errno.EBUSY, asked, fd, 0x80, "<II", viommu)
        mapped.close()
        asked(fd, 0x80, "<II", viommu)
    """
    run(MOCK + "\n" + textwrap.dedent(program), System(mock=True))


@pytest.mark.usefixtures("cache")
def test_shared_memory_outlives_the_process_that_mapped_it() -> None:
    program = """
        fd = opened()
        space = ioas(fd)
        test(fd, 2, space)
        memory = mmap.mmap(-1, 8192)
        place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        memory[:4] = b"data"
        if not os.fork():
            asked(fd, 0x85, "<IIIIQQQ", 7, space, 0, place, 8192, 1 << 24)
            os._exit(0)
        assert os.wait()[1] == 0
        access = struct.unpack("<II", test(fd, 5, space, "<II", 0, 0)[:8])[0]
        there = bytearray(4)
        to = ctypes.addressof(ctypes.c_char.from_buffer(there))
        test(fd, 8, access, "<QQQII", 1 << 24, 4, to, 0, 0)
        assert there == b"data"
        there[:] = b"more"
        test(fd, 8, access, "<QQQII", (1 << 24) + 4096, 4, to, 1, 0)
        assert memory[4096:4100] == b"more"
    """
    run(MOCK + "\n" + textwrap.dedent(program), System(mock=True))


def test_where_memory_of_a_process_really_is() -> None:
    fd = os.memfd_create("shared", os.MFD_CLOEXEC)
    os.truncate(fd, 8192)
    file = DescriptorMemory(fd)
    with mmap.mmap(fd, 8192) as shared, mmap.mmap(-1, 4096, mmap.MAP_PRIVATE) as private:
        places = []
        for mapped in (shared, private):
            first = c_char.from_buffer(mapped)
            places.append(addressof(first))
            del first
        memory = RemoteMemory(os.getpid())
        assert memory.located(places[0] + 4000, 200) == file.located(4000, 200)
        assert memory.located(places[1], 8) == [Place(memory, places[1], 8)]
        with fails("EFAULT"):
            memory.located(0, 8)


def test_a_file_of_a_program_is_read_and_written_in_place() -> None:
    fd = os.memfd_create("memory", os.MFD_CLOEXEC)
    os.truncate(fd, 4096)
    file = DescriptorMemory(os.dup(fd))

    file.write(4090, b"the en")
    assert os.pread(fd, 6, 4090) == file.read(4090, 6) == b"the en"
    for address, length in ((4095, 2), (8192, 1)):
        with fails("EFAULT"):
            file.read(address, length)
        with fails("EFAULT"):
            file.write(address, bytes(length))
    assert file.holds(0, 4096, writeable=True)
    assert not file.holds(1, 4096, writeable=True)
    os.close(fd)


def test_only_files_in_memory_are_memory() -> None:
    file = DescriptorMemory(os.open(Path(__file__), os.O_RDONLY))
    assert not file.holds(0, 1, writeable=False)
    with fails("EINVAL", "not in memory"):
        file.read(0, 1)


@pytest.mark.parametrize("option", ["--mock", "--nesting"])
def test_options_that_exclude_each_other(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vfio", "run", option, "--proposed", "true"]) == 2
    assert f"{option}: not with --proposed" in capsys.readouterr().err


@pytest.mark.usefixtures("cache")
def test_the_command_gives_a_program_what_the_options_say() -> None:
    program = """
import fcntl, os, struct
fd, device = os.open("/dev/iommu", os.O_RDWR), os.open("/dev/vfio/devices/vfio0", os.O_RDWR)
fcntl.ioctl(device, 0x3B76, bytearray(struct.pack("<IIiIQ", 24, 0, fd, 0, 0)), True)
info = bytearray(struct.pack("<IIIIQIIQ", 40, 0, 1, 0, 0, 0, 0, 0))
fcntl.ioctl(fd, 0x3B8A, info, True)
assert struct.unpack("<IIIIQIIQ", info)[5:7] == (0x70760001, 20)
space = bytearray(struct.pack("<III", 12, 0, 0))
fcntl.ioctl(fd, 0x3B81, space, True)
number = struct.unpack("<III", space)[2]
fcntl.ioctl(fd, 0x3BA0, struct.pack("<IIII48sII", 72, 2, number, 0, bytes(48), 0, 0))
"""
    assert main(["vfio", "run", "--mock", "--nesting", "--", sys.executable, "-S", "-c", program]) == 0


def test_a_system_has_no_mock_devices_unless_it_is_told() -> None:
    assert not System([DeviceConfig("nic")]).is_mock
