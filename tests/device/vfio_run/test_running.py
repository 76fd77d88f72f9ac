"""Programs under the preloaded library. Each runs in a process of its own, and what it asserts is what is tested."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from ctypes import addressof, c_char
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pviommu.cli import main
from pviommu.interfaces.iommufd import DeviceConfig, DmaRefusedError, System
from pviommu.vfio_run.notifications import IS_KNOWN
from pviommu.vfio_run.remote import RemoteMemory
from pviommu.vfio_run.running import By, build_library, run_program
from pviommu.vfio_run.server import Server

from ..interfaces.iommufd.conftest import fails

if TYPE_CHECKING:
    from ...workers import Once

BEGINNING = """
import ctypes, errno, fcntl, mmap, os, struct, sys, threading

def opened(path="/dev/iommu"):
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)

def asked(fd, number, layout, *values):
    data = bytearray(struct.pack(layout, struct.calcsize(layout), *values))
    fcntl.ioctl(fd, 0x3B00 + number, data, True)
    return struct.unpack(layout, data)

def refused(code, call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        assert error.errno == code, (error, code)
    else:
        raise AssertionError("it was not refused")

def ioas(fd):
    return asked(fd, 0x81, "<III", 0, 0)[2]
"""


def _build(folder: Path) -> None:
    build_library({**os.environ, "XDG_CACHE_HOME": str(folder)})


@pytest.fixture
def cache(once: Once, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the library is built, once for all tests."""
    folder = once("preloaded-library", _build)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def run(program: str, system: System | None = None, by: By = By.PRELOAD) -> System:
    """A Python program on a system with a device. Fails unless it ends with status 0."""
    used = system or System([DeviceConfig("nic")])
    status = run_program([sys.executable, "-S", "-c", BEGINNING + textwrap.dedent(program)], used, by=by)
    assert status == 0
    assert used.hardware.engine.domains() == ()
    assert all(device.owner is None for device in used.devices.values())
    return used


@pytest.mark.usefixtures("cache")
def test_a_program_makes_requests_and_gets_errnos() -> None:
    run("""
        fd = opened()
        assert ioas(fd) == 1
        refused(errno.ENOENT, asked, fd, 0x80, "<II", 9)
        refused(errno.EFAULT, fcntl.ioctl, fd, 0x3B80, 0)
        refused(errno.ENOTTY, fcntl.ioctl, fd, 0x3B7F, 0)
        memory = mmap.mmap(-1, 8192)
        va = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        mapped = asked(fd, 0x85, "<IIIIQQQ", 6, 1, 0, va, 8192, 0)
        assert mapped[6] % 4096 == 0
        assert asked(fd, 0x86, "<IIQQ", 1, mapped[6], 8192)[3] == 8192
        assert fcntl.ioctl(fd, 0x3B64) == 0
        refused(errno.ENOENT, opened, "/dev/vfio/99")
        assert open("/dev/null").read() == ""
    """)


@pytest.mark.usefixtures("cache")
def test_a_device_is_bound_by_descriptor_and_only_memory_that_is_there_is_mapped() -> None:
    system = System([DeviceConfig("nic")])
    run(
        """
        fd, device = opened(), opened("/dev/vfio/devices/vfio0")
        refused(errno.EBADF, asked, device, 0x76, "<IIiIQ", 0, 99, 0, 0)
        refused(errno.EBADFD, asked, device, 0x76, "<IIiIQ", 0, 2, 0, 0)
        assert asked(device, 0x76, "<IIiIQ", 0, fd, 0, 0)[3] == 1
        space = ioas(fd)
        assert asked(device, 0x77, "<III", 0, space)[2] == 3
        memory = mmap.mmap(-1, 4096)
        va = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        asked(fd, 0x85, "<IIIIQQQ", 7, space, 0, va, 4096, 0x10000)
        refused(errno.EFAULT, asked, fd, 0x85, "<IIIIQQQ", 7, space, 0, 0x1000, 4096, 0x20000)
        read_only = mmap.mmap(-1, 4096, prot=mmap.PROT_READ)
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        place = libc.mmap(None, ctypes.c_size_t(4096), 1, 0x22, -1, 0)
        refused(errno.EFAULT, asked, fd, 0x85, "<IIIIQQQ", 7, space, 0, place, 4096, 0x30000)
        asked(fd, 0x85, "<IIIIQQQ", 5, space, 0, place, 4096, 0x30000)
        """,
        system,
    )


@pytest.mark.usefixtures("cache")
def test_dma_reaches_the_memory_of_the_program(tmp_path: Path) -> None:
    system = System([DeviceConfig("nic")])
    program = """
        fd, device = opened(), opened("/dev/vfio/devices/vfio0")
        asked(device, 0x76, "<IIiIQ", 0, fd, 0, 0)
        asked(device, 0x77, "<III", 0, ioas(fd))
        memory = mmap.mmap(-1, 4096)
        memory[:4] = b"from"
        va = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        asked(fd, 0x85, "<IIIIQQQ", 7, 2, 0, va, 4096, 0x10000)
        while memory[4:6] != b"to":
            pass
    """
    server = Server(system, tmp_path / "socket")
    environment = {"LD_PRELOAD": str(build_library()), "PVIOMMU_VFIO_SOCKET": str(tmp_path / "socket")}
    command = [sys.executable, "-S", "-c", BEGINNING + textwrap.dedent(program)]
    with subprocess.Popen(command, env={**os.environ, **environment}) as running:
        found = b""
        while found != b"from" and running.poll() is None:
            server.step(0.01)
            with contextlib.suppress(DmaRefusedError):
                found = system.read("nic", 0x10000, 4)
        system.write("nic", 0x10004, b"to")
        while running.poll() is None:
            server.step(0.01)
    assert (found, running.returncode) == (b"from", 0)
    server.close()


@pytest.mark.usefixtures("cache")
def test_descriptors_are_duplicated_inherited_and_closed_as_the_kernels() -> None:
    run("""
        fd = opened()
        number = ioas(fd)
        again = os.dup(fd)
        os.close(fd)
        child = os.fork()
        if not child:
            assert ioas(again) == 2
            refused(errno.EBADF, asked, fd, 0x81, "<III", 0, 0)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert ioas(again) == 3
        os.set_inheritable(again, True)
        code = f"import fcntl; fcntl.ioctl({again}, 0x3B80, bytes.fromhex('0800000003000000'))"
        os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", code], os.environ)
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
        assert ioas(again) == 3
        os.close(again)
        assert ioas(opened()) == 1
    """)


@pytest.mark.usefixtures("cache")
def test_threads_and_processes_that_share_a_file_get_their_own_answers() -> None:
    run("""
        fd = opened()
        kept, limit = [], 40
        def work(into):
            for _ in range(limit):
                into.append(ioas(fd))
        threads = [threading.Thread(target=work, args=(kept,)) for _ in range(3)]
        child = os.fork()
        if not child:
            own = []
            work(own)
            os._exit(0 if len(set(own)) == limit else 1)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(set(kept)) == 3 * limit
        assert ioas(fd) == 4 * limit + 1
    """)


@pytest.mark.usefixtures("cache")
def test_a_group_gives_a_device_away_as_a_descriptor() -> None:
    run("""
        container, group = opened("/dev/vfio/vfio"), opened("/dev/vfio/0")
        refused(errno.EBUSY, opened, "/dev/vfio/0")
        fcntl.ioctl(group, 0x3B68, struct.pack("i", container))
        fcntl.ioctl(container, 0x3B66, 3)
        device = fcntl.ioctl(group, 0x3B6A, bytearray(b"nic\\0"), True)
        assert device > group and os.stat(device)
        refused(errno.ENOTTY, fcntl.ioctl, device, 0x3B6B, b"\\0" * 16)
        info = asked(container, 0x70, "<IIQII", 0, 0, 0, 0)
        assert info[0] == 120
    """)


@pytest.mark.usefixtures("cache")
def test_a_program_that_is_killed_leaves_the_server_whole() -> None:
    system = run("""
        children = []
        for _ in range(4):
            child = os.fork()
            if not child:
                while True:
                    fd = opened()
                    for _ in range(20):
                        ioas(fd)
                    os.close(fd)
            children.append(child)
        import time
        time.sleep(0.2)
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)
        assert ioas(opened()) == 1
    """)
    run("assert ioas(opened()) == 1", system)


@pytest.mark.usefixtures("cache")
def test_a_reply_that_somebody_killed_has_left_is_nobodys() -> None:
    run("""
        import socket
        fd = opened()
        with socket.socket(fileno=os.dup(fd)) as left:
            left.send(struct.pack("<IIQQ", 1, 0x3B80, 0, 1 << 60))
        for number in range(1, 4):
            assert ioas(fd) == number
            refused(errno.ENOENT, asked, fd, 0x80, "<II", 99)
    """)


@pytest.mark.usefixtures("cache")
def test_a_process_killed_in_the_middle_leaves_its_files_whole() -> None:
    run("""
        import signal, time
        fd = opened()
        for _ in range(20):
            child = os.fork()
            if not child:
                while True:
                    refused(errno.ENOENT, asked, fd, 0x80, "<II", 99)
            time.sleep(0.003)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            ioas(fd)
            refused(errno.ENOTTY, fcntl.ioctl, fd, 0x3B7F, 0)
    """)


@pytest.mark.usefixtures("cache")
def test_programs_that_share_a_file_get_their_own_answers() -> None:
    """Each has loaded the library anew. One's requests all fail, the other's all succeed."""
    run("""
        fd = opened()
        os.set_inheritable(fd, True)
        code = (
            f"import errno, fcntl\\n"
            f"for _ in range(400):\\n"
            f"    try:\\n"
            f"        fcntl.ioctl({fd}, 0x3B80, bytes.fromhex('0800000063000000'))\\n"
            f"    except OSError as error:\\n"
            f"        assert error.errno == errno.ENOENT\\n"
            f"    else:\\n"
            f"        raise AssertionError('it was not refused')\\n"
        )
        others = [os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", code], os.environ) for _ in range(2)]
        ended = 0
        while ended < len(others):
            assert fcntl.ioctl(fd, 0x3B64) == 0
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                assert status == 0
                ended += 1
    """)


@pytest.mark.usefixtures("cache")
def test_a_file_that_does_not_block_waits_for_its_answers() -> None:
    run("""
        fd = opened()
        os.set_blocking(fd, False)
        for number in range(1, 100):
            assert ioas(fd) == number
    """)


@pytest.mark.usefixtures("cache")
def test_a_program_without_descriptors_gets_no_device_and_keeps_none() -> None:
    run("""
        import resource
        container, group = opened("/dev/vfio/vfio"), opened("/dev/vfio/0")
        fcntl.ioctl(group, 0x3B68, struct.pack("i", container))
        fcntl.ioctl(container, 0x3B66, 3)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (group + 1, hard))
        refused(errno.EMFILE, fcntl.ioctl, group, 0x3B6A, bytearray(b"nic\\0"), True)
        assert fcntl.ioctl(group, 0x3B69) == 0
    """)


@pytest.mark.usefixtures("cache")
def test_paths_never_go_to_the_machine_instead(tmp_path: Path) -> None:
    run("""
        refused(errno.ENAMETOOLONG, opened, "/dev/vfio/devices/" + "x" * 46)
        refused(errno.ENOENT, opened, "/dev/vfio/devices/" + "x" * 45)
    """)
    gone = tmp_path / "socket"
    too_long = tmp_path / ("x" * 108)
    for place, code in (
        (gone, "refused(errno.EIO, opened); refused(errno.EIO, opened, '/dev/vfio/0')"),
        (too_long, ""),
    ):
        environment = {**os.environ, "LD_PRELOAD": str(build_library()), "PVIOMMU_VFIO_SOCKET": str(place)}
        command = [sys.executable, "-S", "-c", f"{BEGINNING}\n{code}"]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if place is gone:
            assert (ended.returncode, ended.stderr) == (0, "")
        else:
            said = f"pviommu: PVIOMMU_VFIO_SOCKET={too_long}: File name too long\n"
            assert (ended.returncode, ended.stderr) == (127, said)


@pytest.mark.usefixtures("cache")
def test_a_process_that_lost_its_parent_is_served() -> None:
    run(f"""
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            if os.fork():
                os._exit(0)
            parent = os.getppid()
            while parent != {os.getpid()}:
                assert parent != 1
                parent = os.getppid()
            os.write(writer, bytes([ioas(opened())]))
            os._exit(0)
        os.waitpid(child, 0)
        os.close(writer)
        assert os.read(reader, 1) == b"\\x01"
    """)


@pytest.mark.usefixtures("cache")
def test_adopted_processes_leave_no_zombies_and_children_of_others_stay() -> None:
    mine = subprocess.Popen(["true"])
    theirs: list[subprocess.Popen[bytes]] = []
    starts, may_end = threading.Event(), threading.Event()

    def start() -> None:
        starts.wait()
        theirs.append(subprocess.Popen(["sh", "-c", "exit 7"]))
        may_end.wait()

    another = threading.Thread(target=start)
    another.start()
    starts.set()
    run(f"""
        import time
        for _ in range(5):
            child = os.fork()
            if not child:
                if not os.fork():
                    while os.getppid() != {os.getpid()}:
                        time.sleep(0.001)
                os._exit(0)
            os.waitpid(child, 0)

        def ended():
            pids = open("/proc/{os.getpid()}/task/{os.getpid()}/children").read().split()
            states = [open(f"/proc/{{pid}}/stat").read().split(") ")[1][0] for pid in pids]
            return states.count("Z")

        until = time.monotonic() + 20
        while ended() > 1:
            assert time.monotonic() < until, "processes that nobody waits for"
            time.sleep(0.01)
    """)
    may_end.set()
    another.join()
    assert mine.wait() == 0
    assert [process.wait() for process in theirs] == [7]


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    "by", [By.PRELOAD, pytest.param(By.SECCOMP, marks=pytest.mark.skipif(not IS_KNOWN, reason="x86-64 only"))]
)
def test_descriptors_are_inherited_as_without_the_server(by: By) -> None:
    inside, outside = os.pipe()
    os.set_inheritable(outside, True)
    try:
        run(
            f"""
            fds = {{int(name) for name in os.listdir("/proc/self/fd")}}
            assert {outside} in fds and {inside} not in fds, fds
            os.write({outside}, b"inherited")
            """,
            by=by,
        )
        assert os.read(inside, 64) == b"inherited"
    finally:
        os.close(inside)
        os.close(outside)


@pytest.mark.usefixtures("cache")
def test_signals_are_the_programs() -> None:
    """Of a terminal it gets its own; others are passed on, and it is waited for."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run("""
        import signal
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGQUIT) is signal.SIG_DFL
        heard = []
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: heard.append(number))
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getppid(), number)
        while len(heard) < 2:
            signal.sigtimedwait([], 0.01)
        assert sorted(heard) == [signal.SIGHUP, signal.SIGTERM]
        assert ioas(opened()) == 1
    """)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.usefixtures("cache")
def test_the_server_may_have_more_files_than_the_program() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = max(int(name) for name in os.listdir("/proc/self/fd")) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, before[1]))
    try:
        run(f"""
            import resource
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == {few}
            resource.setrlimit(resource.RLIMIT_NOFILE, ({before[1]}, {before[1]}))
            files = [opened() for _ in range({few})]
        """)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == few
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "--device: the name is empty"),
        ("a/b", "--device a/b: a name has no slash"),
        ("..", "--device ..: a name has no slash, and is neither . nor .."),
        ("é" * 23, "a name has at most 45 bytes, and this one has 46"),
    ],
)
def test_names_that_no_device_can_have(name: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vfio", "run", "--device", name, "--", "true"]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.usefixtures("cache")
def test_a_device_with_the_longest_name_is_opened() -> None:
    name = "x" * 45
    program = f"import os; os.open('/dev/vfio/devices/{name}', 2)"
    assert main(["vfio", "run", "--proposed", "--device", name, "--", sys.executable, "-S", "-c", program]) == 0


@pytest.mark.usefixtures("cache")
def test_a_folder_for_the_socket_that_is_too_deep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    assert main(["vfio", "run", "--", "true"]) == 3
    assert "sockets have paths of at most 107 bytes" in capsys.readouterr().err


@pytest.mark.usefixtures("cache")
def test_the_command_ends_as_the_program_does(capfd: pytest.CaptureFixture[str]) -> None:
    python = [sys.executable, "-S", "-c"]
    assert (
        main(["vfio", "run", "--", *python, "import os; os.open('/dev/vfio/devices/vfio0', 2); raise SystemExit(7)"])
        == 7
    )
    assert main(["vfio", "run", "--", *python, "import os; os.kill(os.getpid(), 15)"]) == 143
    proposed = "import fcntl, os; fd = os.open('/dev/iommu', 2); raise SystemExit(fcntl.ioctl(fd, 0x3B64, 1) + 10)"
    assert main(["vfio", "run", "--proposed", "--", *python, proposed]) == 11
    named = "import os; os.open('/dev/vfio/devices/vfio1', 2)"
    assert main(["vfio", "run", "--device", "a", "--device", "b", "--", *python, named]) == 0
    assert main(["vfio", "run", "--", "/no/such/program"]) == 3
    assert main(["vfio", "run", "--device", "a", "--device", "a", "--", "true"]) == 2
    said = capfd.readouterr().err
    assert "pviommu: /no/such/program: No such file or directory" in said
    assert "pviommu: device a: there are two of this name" in said


def test_without_a_compiler_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))

    assert main(["vfio", "run", "--", sys.executable, "-c", ""]) == 3
    assert "no C compiler" in capfd.readouterr().err


@pytest.mark.parametrize("asks", [True, False], ids=["asks for one mapping", "reads the list of all"])
def test_memory_of_another_process(monkeypatch: pytest.MonkeyPatch, asks: bool) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOTTY, "as before Linux 6.11")

    if not asks:
        monkeypatch.setattr(fcntl, "ioctl", unknown)
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            memory = RemoteMemory(other.pid)
            maps = Path(f"/proc/{other.pid}/maps").read_text().splitlines()
            place = next((line.split()[0].split("-") for line in maps if " rw-p " in line and "stack" in line), [])
            first, end = (int(part, 16) for part in place)
            memory.write(first, b"somewhere")
            assert memory.read(first, 9) == b"somewhere"
            assert memory.holds(first, end - first, writeable=True)
            assert not memory.holds(first - 1, 2, writeable=False)
            for address, length in ((0, 1), (end - 1, 2), (1 << 63, 8)):
                with fails("EFAULT"):
                    memory.read(address, length)
                with fails("EFAULT"):
                    memory.write(address, bytes(length))
            assert memory.read(0, 0) == b""
        finally:
            other.kill()
    assert not memory.holds(first, 1, writeable=False)


def test_memory_of_a_process_whose_number_was_given_to_another() -> None:
    data = bytearray(b"here")
    place = addressof(c_char.from_buffer(data))
    assert RemoteMemory(os.getpid()).read(place, 4) == b"here"
    with subprocess.Popen(["sleep", "60"]) as other:
        memory = RemoteMemory(other.pid)
        other.kill()
    memory.pid = os.getpid()
    with fails("EFAULT", "No such process"):
        memory.read(place, 4)
    with fails("EFAULT"):
        memory.write(place, b"gone")
    assert not memory.holds(place, 4, writeable=False)
    assert data == b"here"


def test_an_address_that_none_can_be_is_bad() -> None:
    with pytest.raises(FileNotFoundError):
        os.stat("/no/such/file")  # leaves an errno behind
    with fails("EFAULT", "Bad address"):
        RemoteMemory(os.getpid()).read(1 << 63, 8)


@pytest.mark.usefixtures("cache")
def test_a_folder_behind_a_link_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says where a program is without the link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "link"))
    run("""
        os.chdir("/dev/vfio")
        assert fcntl.ioctl(opened("vfio"), 0x3B64) == 0
    """)


@pytest.mark.parametrize("name", ["my cache", "a:b", "$LIB"])
def test_a_cache_that_nothing_can_be_loaded_from(
    cache: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loader would run the program without the library, and give it the machine's files."""
    shutil.copytree(cache, tmp_path / name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
    assert main(["vfio", "run", "--", "true"]) == 3
    assert f"{name}/" in (said := capsys.readouterr().err)
    assert "choose another cache folder by XDG_CACHE_HOME" in said


@pytest.mark.usefixtures("cache")
def test_handlers_of_signals_and_threads_with_small_stacks(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    assert compiler, "the library itself could not be built"
    source = tmp_path / "program.c"
    source.write_text(
        """
        #include <errno.h>
        #include <fcntl.h>
        #include <pthread.h>
        #include <signal.h>
        #include <sys/ioctl.h>
        #include <sys/time.h>
        #include <sys/wait.h>
        #include <unistd.h>

        static int fd;
        static volatile sig_atomic_t handled, wrong;

        static void handle(int number)
        {
            (void)number;
            wrong |= ioctl(fd, 0x3B64, 0) != 0;
            handled++;
        }

        static void *opens(void *unused)
        {
            return open("/dev/null", O_RDONLY) < 0 || open("..", O_RDONLY) < 0 ? unused : NULL;
        }

        static int work(void)
        {
            struct itimerval often = { { 0, 200 }, { 0, 200 } }, never = { { 0, 0 }, { 0, 0 } };
            pthread_attr_t small;
            pthread_t thread;
            void *answer;

            fd = open("/dev/iommu", O_RDWR);
            signal(SIGALRM, handle);
            setitimer(ITIMER_REAL, &often, NULL);
            while (handled < 200)
                wrong |= ioctl(fd, 0x3B64, 0) != 0;
            setitimer(ITIMER_REAL, &never, NULL);
            pthread_attr_init(&small);
            if (pthread_attr_setstacksize(&small, 16384) || pthread_create(&thread, &small, opens, &fd))
                return 2;
            pthread_join(thread, &answer);
            return wrong || answer || creat("/dev/iommu", 0600) < 0;
        }

        int main(void)
        {
            pid_t child = fork();
            int status, tries;

            if (!child)
                _exit(work());
            for (tries = 0; tries < 2000; tries++, usleep(10000))
                if (waitpid(child, &status, WNOHANG) == child)
                    return !WIFEXITED(status) || WEXITSTATUS(status);
            kill(child, SIGKILL);
            return 3;
        }
        """
    )
    program = tmp_path / "program"
    subprocess.run([compiler, "-O2", "-pthread", "-o", program, source], check=True)
    assert run_program([str(program)], System([DeviceConfig("nic")])) == 0
