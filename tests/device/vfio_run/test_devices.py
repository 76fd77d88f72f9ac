"""Programs under the preloaded library whose devices are the endpoints of a topology. What a program asserts is what is
tested.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pviommu.cli import main
from pviommu.interfaces.iommufd import DeviceConfig, System
from pviommu.topology import Topology, load
from pviommu.vfio_run.machine import build
from pviommu.vfio_run.notifications import IS_KNOWN
from pviommu.vfio_run.running import By, run_program

from .test_running import BEGINNING, cache

if TYPE_CHECKING:
    from pviommu.vfio_run.machine import DeviceMachine

__all__ = ["cache"]

DEVICE = """
NAME = "0000:01:00.0"
CONFIG, BAR0, SHARED = 7 << 40, 0, 2 << 40
libc = ctypes.CDLL(None, use_errno=True)
DMA_IOVA = 0x100000

def bound(iommu):
    [number] = [name for name in os.listdir(f"/sys/bus/pci/devices/{NAME}/vfio-dev") if name.startswith("vfio")]
    device = opened(f"/dev/vfio/devices/{number}")
    asked(device, 0x76, "<IIiIQ", 0, iommu, 0, 0)
    return device

def mapped(iommu, device, length=1 << 21):
    space = ioas(iommu)
    asked(device, 0x77, "<III", 0, space)
    memory = mmap.mmap(-1, length)
    va = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    asked(iommu, 0x85, "<IIIIQQQ", 7, space, 0, va, length, DMA_IOVA)
    os.pwrite(device, bytes([6, 0]), CONFIG + 4)
    os.pwrite(device, struct.pack("<I", 1), BAR0 + 0x14)
    return memory

def copies(device, queue, count, length, flags=0):
    for number in range(count):
        struct.pack_into("<BBHIQQ", queue, 64 * number, 1, flags, 0, length, DMA_IOVA, DMA_IOVA + (1 << 20))
    os.pwrite(device, struct.pack("<I", count), BAR0 + 0x18)

def done(device):
    return struct.unpack("<I", os.pread(device, 4, BAR0 + 0x1C))[0]

def waited(device, count):
    import time
    until = time.monotonic() + 20
    while done(device) != count:
        assert time.monotonic() < until, "the engine does not end"
"""


def run(program: str, topology: Topology | None = None, by: By = By.PRELOAD) -> DeviceMachine:
    """A Python program on a topology, that of the lab if none is given. Fails unless it ends with status 0."""
    system, machine = build(topology or load(Path("lab")))
    try:
        command = [sys.executable, "-S", "-c", BEGINNING + DEVICE + textwrap.dedent(program)]
        assert run_program(command, system, machine=machine, by=by) == 0
        assert system.hardware.engine.domains() == ()
        assert all(device.owner is None for device in system.devices.values())
    finally:
        machine.close()
    return machine


@pytest.mark.row("space", 62)
@pytest.mark.usefixtures("cache")
def test_a_program_drives_a_device() -> None:
    run("""
        iommu = opened()
        device = bound(iommu)
        vendor, kind = (int(open(f"/sys/bus/pci/devices/{NAME}/{name}").read(), 16) for name in ("vendor", "device"))
        assert struct.unpack("<HH", os.pread(device, 4, CONFIG)) == (vendor, kind)
        memory = mapped(iommu, device)
        queue = mmap.mmap(device, 0x10000, offset=SHARED)
        interrupt = os.eventfd(0, os.EFD_NONBLOCK)
        setting = struct.pack("<IIIIIi", 24, 4 | 32, 2, 0, 1, interrupt)
        fcntl.ioctl(device, 0x3B6E, setting)
        refused(errno.EBADF, fcntl.ioctl, device, 0x3B6E, struct.pack("<IIIIIi", 24, 4 | 32, 2, 0, 1, 999))
        refused(errno.EINVAL, fcntl.ioctl, device, 0x3B6E, struct.pack("<IIIIIi", 24, 4 | 32, 2, 0, 1, 2))
        fcntl.ioctl(device, 0x3B6E, setting)
        memory[:5] = b"hello"
        copies(device, queue, 1, 5, flags=4)
        waited(device, 1)
        assert memory[1 << 20 : (1 << 20) + 5] == b"hello"
        assert os.eventfd_read(interrupt) == 1
        fcntl.ioctl(device, 0x3B6F)
        assert done(device) == 0
        assert os.pread(device, 4096, CONFIG)[4] == 6, "a reset leaves the header"
    """)


@pytest.mark.usefixtures("cache")
def test_errors_of_system_calls_on_a_device() -> None:
    run("""
        refused(errno.EINVAL, os.pread, opened(), 4, 0)
        refused(errno.ENXIO, mmap.mmap, opened(), 4096)
        device = opened("/dev/vfio/devices/vfio0")
        refused(errno.EINVAL, os.pread, device, 4, CONFIG)
        iommu = opened()
        device = bound(iommu)
        refused(errno.EINVAL, lambda: mmap.mmap(device, 8192, offset=BAR0))
        refused(errno.EINVAL, lambda: mmap.mmap(device, 4096, offset=CONFIG))
        refused(errno.EINVAL, lambda: mmap.mmap(device, 4096, flags=mmap.MAP_PRIVATE, offset=SHARED))
        refused(errno.EFAULT, os.pread, device, 8, CONFIG + 4092)
        refused(errno.EINVAL, os.pwrite, device, b"data", BAR0 + 4096)
        libc.pread.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]
        assert libc.pread(device, 8, 4, CONFIG) == -1
        assert ctypes.get_errno() == errno.EFAULT
        assert os.pread(device, 4, BAR0) == b"PVDT", "and nothing is left behind"
        assert len(os.pread(device, 0x20000, SHARED)) == 0x10000, "as much as there is"
        assert os.pwrite(device, bytes(9000), SHARED) == 9000
    """)


@pytest.mark.row("space", 63)
@pytest.mark.usefixtures("cache")
def test_dma_of_one_program_keeps_no_other_waiting() -> None:
    run("""
        iommu = opened()
        device = bound(iommu)
        memory = mapped(iommu, device)
        queue = mmap.mmap(device, 0x10000, offset=SHARED)
        copies(device, queue, 250, 1 << 20)
        answered = 0
        while done(device) < 200:
            assert ioas(iommu) > 0
            answered += 1
        assert answered > 10
        os.close(device)
    """)


@pytest.mark.row("space", 63)
@pytest.mark.usefixtures("cache")
def test_a_program_that_dies_during_dma_leaves_the_server_whole() -> None:
    run("""
        import signal, time
        for delay in (0, 0.001, 0.01, 0.05):
            reader, writer = os.pipe()
            child = os.fork()
            if not child:
                iommu = opened()
                device = bound(iommu)
                memory = mapped(iommu, device)
                queue = mmap.mmap(device, 0x10000, offset=SHARED)
                copies(device, queue, 250, 1 << 20)
                os.write(writer, b"x")
                while True:
                    done(device)
            os.read(reader, 1)
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        iommu = opened()
        while True:
            try:
                device = bound(iommu)
                break
            except OSError as error:
                assert error.errno == errno.EINVAL, "its file is not closed yet"
        memory = mapped(iommu, device)
        memory[:2] = b"on"
        copies(device, mmap.mmap(device, 0x10000, offset=SHARED), 1, 2)
        waited(device, 1)
        assert memory[1 << 20 : (1 << 20) + 2] == b"on"
    """)


@pytest.mark.row("space", 63)
@pytest.mark.usefixtures("cache")
def test_paths_in_any_spelling_lead_to_the_files() -> None:
    run("""
        for path in ("//dev/iommu", "/dev/./iommu", "/dev/vfio/../iommu", "/../dev//iommu"):
            assert ioas(opened(path)) == 1
        folder = os.open("/dev", os.O_RDONLY | os.O_DIRECTORY)
        assert ioas(os.open("iommu", os.O_RDWR, dir_fd=folder)) == 1
        os.chdir("/dev/vfio")
        os.close(opened("vfio"))
        os.close(opened("devices/vfio1"))
        assert sorted(os.listdir()) == ["0", "1", "devices", "vfio"]
        assert sorted(os.listdir("/dev/vfio/devices")) == ["vfio0", "vfio1"]
        os.chdir("/")
        assert ioas(opened("dev/iommu")) == 1
        import stat
        assert stat.S_ISCHR(os.stat("/dev/vfio/0").st_mode)
        assert stat.S_ISDIR(os.stat("/dev/vfio").st_mode)
        refused(errno.ENOENT, os.stat, "/dev/vfio/7")
        libc.fopen.restype = libc.realpath.restype = ctypes.c_void_p
        file = libc.fopen(b"/dev/vfio/vfio", b"r+")
        assert file
        assert libc.ioctl(libc.fileno(ctypes.c_void_p(file)), 0x3B64) == 0
        assert libc.__open_2(b"/dev/iommu", os.O_RDWR) >= 0
        assert libc.__openat_2(folder, b"iommu", os.O_RDWR) >= 0
        assert os.path.exists("/dev/null") and not os.path.exists("/dev/vfiox")
    """)


@pytest.mark.row("space", 63)
@pytest.mark.usefixtures("cache")
def test_sysfs_leads_to_the_files_of_a_device() -> None:
    run("""
        place = f"/sys/bus/pci/devices/{NAME}"
        assert os.path.basename(os.readlink(f"{place}/iommu_group")) == "0"
        assert os.path.basename(os.readlink(f"{place}/driver")) == "vfio-pci"
        assert os.listdir(f"{place}/iommu_group/devices") == [NAME]
        assert sorted(os.listdir("/sys/bus/pci/devices")) == [NAME, "0000:02:00.0"]
        assert os.path.realpath(place) == f"/sys/devices/pci0000:01/{NAME}"
        libc.realpath.restype = ctypes.c_char_p
        assert libc.realpath(place.encode(), None).decode() == f"/sys/devices/pci0000:01/{NAME}"
        assert open(f"/sys/devices/pci0000:01/{NAME}/class").read() == "0x088000\\n"
        assert open(f"{place}/config", "rb").read() == os.pread(bound(opened()), 4096, CONFIG)
        assert "0x00000000fee00000 0x00000000feefffff msi" in open("/sys/kernel/iommu_groups/0/reserved_regions").read()
        folder = os.open(place, os.O_RDONLY)
        descriptor = os.open("vendor", os.O_RDONLY, dir_fd=folder)
        assert os.read(descriptor, 7) == b"0x1234\\n"
        assert os.access(f"{place}/vendor", os.R_OK) and not os.access(f"{place}/nothing", os.R_OK)
        assert os.path.isdir("/sys/class"), "the rest is the machine's"
    """)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("by", [By.PRELOAD, *([By.SECCOMP] if IS_KNOWN else [])])
def test_files_of_devices_are_character_devices(by: By) -> None:
    """QEMU looks for the file of a device by its number."""
    run(
        """
        import select, stat
        paths = "/dev/iommu", "/dev/vfio/vfio", "/dev/vfio/1", "/dev/vfio/devices/vfio0"
        numbers = set()
        for path in paths:
            found = os.stat(path)
            fd = opened(path)
            assert found.st_mode == stat.S_IFCHR | 0o666
            assert (os.fstat(fd).st_mode, os.fstat(fd).st_rdev) == (found.st_mode, found.st_rdev)
            assert select.select([fd], [fd], [], 0)[:2] == ([fd], [fd]), "none of them has poll()"
            assert select.select([fd], [fd], [], 0)[:2] == ([fd], [fd])
            numbers.add(found.st_rdev)
            os.close(fd)
        assert len(numbers) == len(paths)
        text = open("/sys/bus/pci/devices/0000:01:00.0/vfio-dev/vfio0/dev").read()
        assert text == f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}\\n"
        """,
        by=by,
    )


@pytest.mark.row("space", 62)
@pytest.mark.usefixtures("cache")
def test_a_device_is_read_and_written_as_a_stream() -> None:
    """As VFIO does it, which has no lseek(): from where the last one of the open file has ended."""
    run("""
        iommu = opened()
        device = bound(iommu)
        head = os.pread(device, 16, BAR0)
        assert os.read(device, 4) == head[:4]
        assert os.read(os.dup(device), 4) == head[4:8]
        refused(errno.ESPIPE, os.lseek, device, 0, os.SEEK_SET)
        assert os.pread(device, 4, BAR0) == head[:4], "it has a place of its own"
        parts = [bytearray(4), bytearray(0), bytearray(4)]
        assert os.readv(device, parts) == 8
        assert b"".join(parts) == head[8:16]
        before = os.pread(device, 4, BAR0 + 0x14)
        assert os.read(device, 4) == os.pread(device, 4, BAR0 + 16)
        assert os.write(device, struct.pack("<I", 1)) == 4
        assert os.pread(device, 4, BAR0 + 0x14) == struct.pack("<I", 1) != before
        assert os.preadv(device, parts, SHARED) == 8
        assert os.pwritev(device, [b"ab", b"cd"], SHARED) == 4
        assert os.preadv(device, [parts[0]], SHARED) == 4 and parts[0] == b"abcd"
        refused(errno.EINVAL, os.preadv, device, parts, -5)
        refused(errno.EINVAL, os.preadv, device, parts, 9 << 40)
        refused(errno.EOPNOTSUPP, os.preadv, device, parts, SHARED, os.RWF_NOWAIT)
        libc.read.argtypes = libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
        os.pwrite(device, bytes([2, 0]), CONFIG + 4)
        assert libc.read(device, 8, 4) == -1 and ctypes.get_errno() == errno.EFAULT
        os.pwrite(device, bytes(2), CONFIG + 4)
        refused(errno.EIO, os.read, device, 4)
    """)


@pytest.mark.usefixtures("cache")
def test_without_devices_the_machine_keeps_its_sysfs() -> None:
    paths = "/sys/bus/pci/devices", "/sys/kernel/iommu_groups"
    before = [os.path.exists(path) for path in paths]
    code = f"import os; assert [os.path.exists(path) for path in {paths}] == {before}"
    assert run_program([sys.executable, "-S", "-c", code], System([DeviceConfig("nic")])) == 0


@pytest.mark.usefixtures("cache")
def test_devices_of_any_kind_are_there() -> None:
    run(
        """
        for number, kind in enumerate((0x1041, 0x1041)):
            place = f"/sys/bus/pci/devices/0000:{number + 1:02x}:00.0"
            assert int(open(f"{place}/device").read(), 16) == kind
            assert int(open(f"{place}/vendor").read(), 16) == 0x1AF4
        iommu = opened()
        device = bound(iommu)
        assert os.pread(device, 4, CONFIG)[:2] == b"\\xf4\\x1a"
        """,
        load(Path("net")),
    )


@pytest.mark.usefixtures("cache")
def test_a_c_program_that_was_compiled_with_checks(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    assert compiler, "the library itself could not be built"
    source = tmp_path / "program.c"
    source.write_text(
        """
        #define _GNU_SOURCE
        #include <dirent.h>
        #include <fcntl.h>
        #include <stdio.h>
        #include <string.h>
        #include <sys/stat.h>
        #include <unistd.h>
        int main(int argc, char **argv)
        {
            char text[64] = "";
            struct stat found;
            int flags = argc > 5 ? O_CREAT : O_RDWR;
            FILE *file = fopen("/sys/bus/pci/devices/0000:01:00.0/vendor", "re");
            DIR *folder = opendir("/sys/bus/pci/devices/0000:01:00.0/vfio-dev/");
            struct dirent **names;
            if (!file || !fgets(text, sizeof(text), file) || strcmp(text, "0x1234\\n"))
                return 1;
            if (!folder || scandir("/dev/vfio", &names, NULL, alphasort) != 6)
                return 2;
            if (readlink("/sys/bus/pci/devices/0000:01:00.0/iommu_group", text, argc * 32) < 0)
                return 3;
            if (open("/dev/iommu", flags) < 0 || lstat("/dev/vfio/1", &found) || !S_ISCHR(found.st_mode))
                return 4;
            return pread(open("/dev/iommu", flags), text, argc * 32, 0) < 0 ? 0 : 5;
        }
        """
    )
    program = tmp_path / "program"
    subprocess.run([compiler, "-O2", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2", "-o", program, source], check=True)
    system, machine = build(load(Path("lab")))
    try:
        assert run_program([str(program)], system, machine=machine) == 0
    finally:
        machine.close()


@pytest.mark.usefixtures("cache")
def test_the_command(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["vfio", "run", "--topology", "lab", "--list"]) == 0
    listed = capfd.readouterr().out
    assert listed == (
        "dma0 0000:01:00.0 /dev/vfio/0 /dev/vfio/devices/vfio0\ndma1 0000:02:00.0 /dev/vfio/1 /dev/vfio/devices/vfio1\n"
    )
    looks = "import os; raise SystemExit(len(os.listdir('/sys/bus/pci/devices')))"
    assert main(["vfio", "run", "--topology", "lab", "--", sys.executable, "-S", "-c", looks]) == 2
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('[[endpoint]]\nname = "a"\nkind = "xor"\nstream = 1\nsbdf = "00:05.0"\n' * 1 + "[[endpoint]]\n")
    for arguments, text in (
        (["--topology", "nowhere"], "cannot read topology nowhere"),
        (["--topology", str(wrong)], "topology"),
        (["--topology", "lab", "--proposed"], "--proposed"),
        ([], "no program is named"),
    ):
        assert main(["vfio", "run", *arguments, *(["--", "true"] if arguments else [])]) == 2
        assert text in capfd.readouterr().err


def test_two_endpoints_at_one_address_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    path.write_text(
        '[[endpoint]]\nname = "a"\nkind = "xor"\nstream = 1\n'
        '[[endpoint]]\nname = "b"\nkind = "xor"\nstream = 2\nsbdf = "01:00.0"\n'
    )
    with pytest.raises(ValueError, match=r"endpoint b: 0000:01:00\.0 is the address of another one"):
        build(load(path))
