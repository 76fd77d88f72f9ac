"""Programs that no library is loaded into: their system calls wait for the server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pviommu.cli import main
from pviommu.interfaces.iommufd import DeviceConfig, System
from pviommu.topology import load
from pviommu.vfio_run.machine import build
from pviommu.vfio_run.notifications import IS_KNOWN
from pviommu.vfio_run.running import By, chosen, run_program

from .test_registers import compiler
from .test_running import run

pytestmark = pytest.mark.skipif(not IS_KNOWN, reason="the numbers of system calls are those of x86-64")

PROGRAM = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(true)                                                             \
    do {                                                                        \
        if (!(true)) {                                                          \
            printf("line %d: %s, errno %d\n", __LINE__, #true, errno);          \
            fflush(stdout);                                                     \
            _exit(99);                                                          \
        }                                                                       \
    } while (0)

struct bind { uint32_t size, flags; int32_t iommufd; uint32_t devid; uint64_t token; };
struct alloc { uint32_t size, flags, id; };
struct attach { uint32_t size, flags, id; };
struct map { uint32_t size, flags, ioas, reserved; uint64_t va, length, iova; };
int main(void)
{
    char path[PATH_MAX], text[64] = "";
    struct stat found;
    DIR *folder;
    int iommu, device, copy, event, fd, status;
    struct bind bind = { sizeof(bind), 0, 0, 0, 0 };
    struct alloc alloc = { sizeof(alloc), 0, 0 };
    struct attach attach = { sizeof(attach), 0, 0 };
    struct map map = { sizeof(map), 7, 0, 0, 0, 1 << 20, 1 << 20 };
    struct vfio_region_info info = { .argsz = sizeof(info) };
    uint32_t config, value;
    struct { struct vfio_irq_set set; int fd; } irqs;

    fd = open("/sys/bus/pci/devices/0000:01:00.0/vendor", O_RDONLY);
    CHECK(fd >= 0 && read(fd, text, 63) > 0 && strtol(text, NULL, 16) == 0x1234 && !close(fd));
    CHECK(realpath("/sys/bus/pci/devices/0000:01:00.0/iommu_group", path));
    CHECK(!strcmp(path, "/sys/kernel/iommu_groups/0"));
    CHECK((folder = opendir("/sys/bus/pci/devices/0000:01:00.0/vfio-dev")) != NULL);
    CHECK(!stat("/dev/iommu", &found) && S_ISCHR(found.st_mode));
    CHECK(access("/dev/vfio/nothing", R_OK) && errno == ENOENT);
    CHECK((iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC)) >= 0);
    CHECK((device = open("/dev/vfio/devices/vfio0", O_RDWR)) >= 0);
    CHECK(open("/dev/vfio/devices/nothing", O_RDWR) < 0 && errno == ENOENT);
    bind.iommufd = iommu;
    CHECK(!ioctl(device, 0x3b76, &bind) && bind.devid);
    CHECK(!ioctl(iommu, 0x3b81, &alloc));
    attach.id = map.ioas = alloc.id;
    map.va = (uintptr_t)mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(!ioctl(device, 0x3b77, &attach) && !ioctl(iommu, 0x3b85, &map));
    map.va = 4096;
    map.iova = 1 << 24;
    CHECK(ioctl(iommu, 0x3b85, &map) && errno == EFAULT);
    CHECK(pread(device, &config, 4, 7ULL << 40) == 4 && (config & 0xffff) == 0x1234);
    CHECK((copy = dup(device)) >= 0 && pread(copy, &value, 4, 7ULL << 40) == 4 && value == config);
    CHECK(!close(copy));
    CHECK(!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) && !(info.flags & VFIO_REGION_INFO_FLAG_MMAP));
    value = 6;
    CHECK(pwrite(device, &value, 2, (7ULL << 40) + 4) == 2);
    value = 1;
    CHECK(pwrite(device, &value, 4, info.offset + 0x14) == 4);
    CHECK(pread(device, &value, 4, info.offset + 0x14) == 4 && value & 1);
    CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, device, info.offset) == MAP_FAILED && errno == ENODEV);
    CHECK((event = eventfd(0, EFD_NONBLOCK)) >= 0);
    irqs.set = (struct vfio_irq_set){ sizeof(irqs), VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, 2, 0, 1 };
    irqs.fd = event;
    CHECK(!ioctl(device, VFIO_DEVICE_SET_IRQS, &irqs));
    irqs.fd = 99;
    CHECK(ioctl(device, VFIO_DEVICE_SET_IRQS, &irqs) && errno == EBADF);
    CHECK(!ioctl(device, VFIO_DEVICE_RESET));
    if (!fork()) {
        CHECK(pread(device, &value, 4, 7ULL << 40) == 4 && value == config);
        execl("/bin/sh", "sh", "-c",
              "test -c /dev/iommu && cat /sys/bus/pci/devices/0000:01:00.0/device >/dev/null && exit 23", NULL);
        _exit(98);
    }
    CHECK(wait(&status) > 0 && WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 23);
    CHECK(!close(device));
    CHECK((device = open("/dev/vfio/devices/vfio0", O_RDWR)) >= 0 && !ioctl(device, 0x3b76, &bind));
    return 0;
}
"""
THREADS = r"""
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int iommu;

static void *ask(void *argument)
{
    struct { uint32_t size, id; } destroy = { sizeof(destroy), 99 };
    int i;

    for (i = 0; i < 100; i++)
        if (ioctl(iommu, 0x3b80, &destroy) != -1 || errno != ENOENT)
            return "destroyed";
    return argument;
}

int main(void)
{
    pthread_t threads[4];
    void *wrong = NULL;
    int i;

    iommu = open("/dev/iommu", O_RDWR);
    for (i = 0; i < 4; i++)
        if (pthread_create(&threads[i], NULL, ask, NULL))
            return 1;
    for (i = 0; i < 4; i++)
        if (pthread_join(threads[i], &wrong) || wrong)
            return 2;
    return iommu < 512;
}
"""
SIGNALS = r"""
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/time.h>

static volatile int ticks;

static void tick(int number)
{
    ticks++;
}

int main(void)
{
    struct { uint32_t size, flags, id; } alloc = { sizeof(alloc), 0, 0 };
    struct { uint32_t size, id; } destroy = { sizeof(destroy), 0 };
    struct sigaction action = { .sa_handler = tick, .sa_flags = SA_RESTART };
    struct itimerval timer = { { 0, 300 }, { 0, 300 } };
    int i, iommu = open("/dev/iommu", O_RDWR);

    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &timer, NULL);
    for (i = 0; i < 300 || ticks < 100; i++) {
        if (ioctl(iommu, 0x3b81, &alloc))
            return 1;
        destroy.id = alloc.id;
        if (ioctl(iommu, 0x3b80, &destroy))
            return 2; /* that was done before */
    }
    return 0;
}
"""
HOSTILE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define GIVES(call, value, code)                                                \
    do {                                                                        \
        long got = (errno = 0, (call));                                         \
                                                                                \
        if ((value) < 0 ? got >= 0 || errno != (code) : got < 0) {              \
            printf("line %d: %s: %ld, errno %d\n", __LINE__, #call, got, errno); \
            fflush(stdout);                                                     \
            _exit(99);                                                          \
        }                                                                       \
    } while (0)

struct bind { uint32_t size, flags; int32_t iommufd; uint32_t devid; uint64_t token; };

int main(void)
{
    const char *link = "/sys/bus/pci/devices/0000:01:00.0", *iommus = "/dev/iommu";
    uint64_t how[3] = { 0xffffffff00000000ULL | O_RDWR, 0, 0 };
    int i, iommu = open(iommus, O_RDWR), device = open("/dev/vfio/devices/vfio0", O_RDWR);
    struct bind bind = { sizeof(bind), 0, iommu, 0, 0 };
    struct rlimit limit;
    struct stat found;
    char text[64];
    pid_t child;

    /* Of words that are ints in C the kernel sees one half. */
    GIVES(syscall(SYS_openat, -100, "/sys/bus/pci/devices", 0xffffffff80000000), 0, 0);
    GIVES(syscall(SYS_openat, -100, "/sys/bus/pci/devices", 0x1234500000000ULL), 0, 0);
    GIVES(syscall(SYS_openat2, -100, iommus, how, 24), 0, 0);
    GIVES(syscall(SYS_openat2, -100, iommus, 8, 24), -1, EFAULT);
    GIVES(syscall(SYS_fcntl, iommu, 0x500000000ULL, 0), 0, 0);
    GIVES(syscall(SYS_fcntl, iommu, F_DUPFD, -1L), -1, EINVAL);
    GIVES(syscall(SYS_fcntl, iommu, F_DUPFD, 1 << 30), -1, EINVAL);
    GIVES(open("/dev/vfio/\xff\xfe", O_RDWR), -1, ENOENT);
    GIVES(open("/dev/vfio/99999999999999999999999", O_RDWR), -1, ENOENT);
    GIVES(open("/dev/vfio/\xd9\xa3", O_RDWR), -1, ENOENT);
    GIVES(stat("/sys/bus/pci/\xff\xfe", &found), -1, ENOENT);
    GIVES(syscall(SYS_readlink, link, text, 0), -1, EINVAL);
    GIVES(syscall(SYS_readlink, link, text, -1L), -1, EINVAL);
    GIVES(syscall(SYS_readlink, link, 8, 64), -1, EFAULT);
    GIVES(syscall(SYS_access, iommus, 0xffff), -1, EINVAL);
    GIVES(syscall(SYS_stat, iommus, -1L), -1, EFAULT);
    GIVES(syscall(SYS_stat, -1L, &found), -1, EFAULT);
    GIVES(syscall(SYS_pread64, device, text, 4, -1L), -1, EINVAL);
    GIVES(syscall(SYS_pread64, device, text, 4, 1L << 62), -1, EINVAL);
    GIVES(syscall(SYS_pwrite64, device, -1L, 4, 7L << 40), -1, EFAULT);
    GIVES(syscall(SYS_ioctl, iommu, 0x3b81, -1L), -1, EFAULT);
    for (i = 0; i < 40; i++) {
        if (!(child = fork()))
            for (;;) {
                ioctl(device, 0x3b76, &bind);
                close(dup(iommu));
            }
        usleep(997 * (i % 8));
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    bind.size = sizeof(bind);
    GIVES(ioctl(device, 0x3b76, &bind), -1, EINVAL); /* a child has done it */
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = 256;
    setrlimit(RLIMIT_NOFILE, &limit);
    GIVES(open(iommus, O_RDWR), -1, EMFILE);
    return 0;
}
"""


def compiled(folder: Path, text: str, *options: str) -> str:
    source, made = folder / "program.c", folder / "program"
    source.write_text(text)
    subprocess.run([compiler(), "-O2", "-w", *options, "-o", made, source, "-lpthread"], check=True)
    return str(made)


@pytest.mark.row("space", 63)
def test_a_static_program_drives_a_device(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = compiled(tmp_path, PROGRAM, "-static")
    assert chosen(program) is By.SECCOMP
    system, machine = build(load(Path("lab")))
    try:
        assert run_program([program], system, machine=machine, by=By.SECCOMP) == 0
        assert system.hardware.engine.domains() == ()
        assert all(device.owner is None for device in system.devices.values())
    finally:
        machine.close()
    assert "mmap() of 0x0+0x1000 of a device's file is refused (ENODEV)" in capfd.readouterr().err


def test_the_command_chooses_the_way(tmp_path: Path) -> None:
    program = compiled(tmp_path, PROGRAM, "-static")
    assert main(["vfio", "run", "--topology", "lab", "--", program]) == 0
    assert main(["vfio", "run", "--topology", "lab", "--by", "preload", "--", program]) == 99, "nothing reaches it"


def test_threads_of_a_static_program_wait_for_each_other(tmp_path: Path) -> None:
    system = System([DeviceConfig("nic")])
    assert run_program([compiled(tmp_path, THREADS, "-static")], system, by=By.SECCOMP) == 0


def test_handlers_of_signals_make_no_request_be_carried_out_twice(tmp_path: Path) -> None:
    system = System([DeviceConfig("nic")])
    assert run_program([compiled(tmp_path, SIGNALS, "-static")], system, by=By.SECCOMP) == 0


def test_arguments_that_are_wrong_and_processes_that_are_killed_harm_nobody_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    status = main(["vfio", "run", "--topology", "lab", "--", compiled(tmp_path, HOSTILE, "-static")])
    assert (status, capfd.readouterr().out) == (0, "")
    assert not caplog.records


def test_requests_descriptors_and_the_end_of_a_process_are_as_with_the_library() -> None:
    run(
        """
        import resource, stat
        fd = opened()
        assert ioas(fd) == 1
        refused(errno.ENOENT, asked, fd, 0x80, "<II", 99)
        refused(errno.ENOENT, opened, "/dev/vfio/nothing")
        assert stat.S_ISCHR(os.stat("/dev/iommu").st_mode)
        assert (os.fstat(fd).st_mode, os.fstat(fd).st_rdev) == (stat.S_IFCHR | 0o666, os.stat("/dev/iommu").st_rdev)
        assert sorted(os.listdir("/dev/vfio")) == ["0", "devices", "vfio"]
        folder = os.open("/dev", os.O_PATH)
        copy = os.open("iommu", os.O_RDWR, dir_fd=folder)
        assert ioas(copy) == 1
        os.close(copy)
        device = opened("/dev/vfio/devices/vfio0")
        refused(errno.EBADF, asked, device, 0x76, "<IIiIQ", 0, 999, 0, 0)
        refused(errno.EBADFD, asked, device, 0x76, "<IIiIQ", 0, 0, 0, 0)
        asked(device, 0x76, "<IIiIQ", 0, fd, 0, 0)
        another = opened("/dev/vfio/devices/vfio0")
        refused(errno.EINVAL, asked, another, 0x76, "<IIiIQ", 0, fd, 0, 0)
        copy = os.dup(device)
        os.close(device)
        refused(errno.EINVAL, asked, another, 0x76, "<IIiIQ", 0, fd, 0, 0)
        os.close(copy)
        asked(another, 0x76, "<IIiIQ", 0, fd, 0, 0)
        child = os.fork()
        if not child:
            assert ioas(fd) == 3
            os.kill(os.getpid(), 9)
        os.waitpid(child, 0)
        assert ioas(fd) == 4
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.open(8, 0) == -1 and ctypes.get_errno() == errno.EFAULT
        assert libc.ioctl(fd, 0x3B81, 8) == -1 and ctypes.get_errno() == errno.EFAULT
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, 1024))
        refused(errno.EMFILE, opened)
        """,
        by=By.SECCOMP,
    )


@pytest.mark.parametrize(("program", "way"), [("sh", By.PRELOAD), ("nothing-of-this-name", By.PRELOAD)])
def test_other_programs_get_the_library(program: str, way: By) -> None:
    assert chosen(program) is way


def test_a_script_is_what_its_interpreter_is(tmp_path: Path) -> None:
    static = compiled(tmp_path, "int main(void) { return 0; }", "-static")
    for interpreter, way in ((static, By.SECCOMP), (sys.executable, By.PRELOAD)):
        script = tmp_path / "script"
        script.write_text(f"#! {interpreter} -x\n")
        script.chmod(0o755)
        assert chosen(str(script)) is way


def test_a_program_that_cannot_be_started() -> None:
    with pytest.raises(FileNotFoundError):
        run_program(["./nothing"], System([DeviceConfig("nic")]), by=By.SECCOMP)
