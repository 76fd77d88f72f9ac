"""Programs that touch registers of a device where they have mapped them, and the decoder of their instructions."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pviommu.interfaces.iommufd import System
from pviommu.topology import load
from pviommu.vfio_run import running
from pviommu.vfio_run.machine import build
from pviommu.vfio_run.running import MAPS_REGISTERS, run_program

from .test_running import cache

__all__ = ["cache"]

pytestmark = pytest.mark.skipif(not MAPS_REGISTERS, reason="only of x86-64 the instructions are known")

SOURCES = Path(running.__file__).with_name("src")
PROGRAM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(true) \
    do { if (!(true)) { printf("line %d: %s\n", __LINE__, #true); fflush(stdout); _exit(99); } } while (0)
#define REGISTER(type, offset) (*(volatile type *)(bar + (offset)))

struct bind { uint32_t size, flags; int32_t iommufd; uint32_t devid; uint64_t token; };
struct alloc { uint32_t size, flags, id; };
struct attach { uint32_t size, flags, id; };
struct map { uint32_t size, flags, ioas, reserved; uint64_t va, length, iova; };
struct descriptor { uint8_t operation, flags; uint16_t status; uint32_t length; uint64_t source, target; };

static int device;
static struct vfio_region_info info;
static char *bar;
static sigjmp_buf back;
static volatile sig_atomic_t caught;
static void *volatile caught_at;
static volatile char *volatile nowhere = (char *)8;

static void jump(int number, siginfo_t *info, void *context)
{
    (void)context;
    caught = number;
    caught_at = info->si_addr;
    siglongjmp(back, 1);
}

static void touch(int number)
{
    caught = REGISTER(uint32_t, 0) ? number : 0;
}

static void catch(int number)
{
    struct sigaction action = { .sa_sigaction = jump, .sa_flags = SA_SIGINFO };

    CHECK(!sigaction(number, &action, NULL));
    caught = 0;
}

static void open_device(void)
{
    struct bind bind = { sizeof(bind), 0, open("/dev/iommu", O_RDWR), 0, 0 };

    device = open("/dev/vfio/devices/vfio0", O_RDWR);
    CHECK(!ioctl(device, 0x3b76, &bind));
    info.argsz = sizeof(info);
    CHECK(!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) && info.flags & VFIO_REGION_INFO_FLAG_MMAP);
    bar = mmap(NULL, info.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, info.offset);
    CHECK(bar != MAP_FAILED);
}

/* What pread() says of so many bytes: the registers of this device answer accesses of 4 only. */
static uint64_t said(unsigned int offset, int size)
{
    uint64_t value = 0;

    CHECK(pread(device, &value, size, info.offset + offset) == size);
    return value;
}

static uint32_t asked(unsigned int offset)
{
    return said(offset, 4);
}

static void *in_thread(void *argument)
{
    int i;

    for (i = 0; i < 50; i++)
        CHECK(REGISTER(uint32_t, 0) == *(uint32_t *)argument);
    return NULL;
}

/* The engine copies what its registers tell it to, and nothing but MOV has told it. */
static void drive(void)
{
    struct vfio_region_info shared = { .argsz = sizeof(shared), .index = 2 };
    char *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int iommu = open("/dev/iommu", O_RDWR);
    struct alloc alloc = { sizeof(alloc), 0, 0 };
    volatile struct descriptor *queue;
    struct map map = { sizeof(map), 7, 0, 0, (uintptr_t)memory, 1 << 20, 1 << 20 };
    struct attach attach = { sizeof(attach), 0, 0 };
    struct bind bind = { sizeof(bind), 0, iommu, 0, 0 };
    uint16_t master = 6;

    device = open("/dev/vfio/devices/vfio0", O_RDWR);
    CHECK(!ioctl(device, 0x3b76, &bind));
    info.argsz = sizeof(info);
    CHECK(!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info));
    bar = mmap(NULL, info.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, info.offset);
    CHECK(!ioctl(iommu, 0x3b81, &alloc));
    map.ioas = attach.id = alloc.id;
    CHECK(!ioctl(device, 0x3b77, &attach) && !ioctl(iommu, 0x3b85, &map));
    CHECK(!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &shared));
    queue = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED, device, shared.offset);
    CHECK(queue != MAP_FAILED);
    CHECK(pwrite(device, &master, 2, (7ULL << 40) + 4) == 2);
    REGISTER(uint32_t, 0x14) = 1;
    CHECK(asked(0x14) & 1 && REGISTER(uint32_t, 0x14) == asked(0x14));
    strcpy(memory, "by registers");
    queue->operation = 1;
    queue->length = 16;
    queue->source = 1 << 20;
    queue->target = (1 << 20) + 4096;
    REGISTER(uint32_t, 0x18) = 1;
    while (REGISTER(uint32_t, 0x1c) != 1)
        ;
    CHECK(!strcmp(memory + 4096, "by registers"));
}

static void read_in_every_way(void)
{
    uint32_t word = asked(0);
    pthread_t threads[3];
    sigset_t all;
    int i, status;

    CHECK(word && REGISTER(uint32_t, 0) == word && REGISTER(uint64_t, 0) == said(0, 8) && said(0, 8) >> 32);
    CHECK(REGISTER(uint16_t, 2) == said(2, 2) && REGISTER(uint8_t, 1) == said(1, 1));
    for (i = 0; i < 8; i++) {
        int64_t byte = REGISTER(int8_t, i), half = REGISTER(int16_t, i & ~1), whole = REGISTER(int32_t, i & ~3);
        int32_t narrow = REGISTER(int8_t, i);

        CHECK(byte == (int8_t)said(i, 1) && half == (int16_t)said(i & ~1, 2) && whole == (int32_t)said(i & ~3, 4));
        CHECK(narrow == byte);
    }
    for (i = 0; i < 3; i++)
        CHECK(!pthread_create(&threads[i], NULL, in_thread, &word));
    for (i = 0; i < 3; i++)
        CHECK(!pthread_join(threads[i], NULL));
    sigfillset(&all);
    CHECK(!pthread_sigmask(SIG_SETMASK, &all, NULL));
    CHECK(REGISTER(uint32_t, 0) == word);
    if (!fork()) {
        CHECK(REGISTER(uint32_t, 0) == word);
        _exit(17);
    }
    CHECK(wait(&status) > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 17);
    sigemptyset(&all);
    CHECK(!pthread_sigmask(SIG_SETMASK, &all, NULL));
    signal(SIGUSR1, touch);
    raise(SIGUSR1);
    CHECK(caught == SIGUSR1);
    CHECK(REGISTER(uint32_t, info.size - 4) == asked(info.size - 4));
}

/* Two pages of registers between two of memory: each has its rights, and registers never become memory. */
static void protect_in_parts(void)
{
    char *area = mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int i;

    CHECK(info.size == 2 * 4096);
    bar = mmap(area + 4096, info.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, device, info.offset);
    CHECK(bar == area + 4096);
    CHECK(!mprotect(area, 4 * 4096 - 1, PROT_READ) && REGISTER(uint32_t, 0) == asked(0));
    for (i = 0; i < 4; i++) {
        catch(SIGSEGV);
        if (!sigsetjmp(back, 1))
            *(volatile uint32_t *)(area + i * 4096 + 8) = 1;
        CHECK(caught == SIGSEGV && caught_at == area + i * 4096 + 8);
    }
    CHECK(!mprotect(bar + 4096, 2 * 4096, PROT_NONE) && REGISTER(uint32_t, 0) == asked(0));
    for (i = 2; i < 4; i++) {
        catch(SIGSEGV);
        if (!sigsetjmp(back, 1))
            (void)*(volatile uint32_t *)(area + i * 4096);
        CHECK(caught == SIGSEGV);
    }
    CHECK(!mprotect(area, 4 * 4096, PROT_READ | PROT_WRITE));
    *area = area[3 * 4096] = 1;
    for (i = 0; i < 2; i++)
        CHECK(REGISTER(uint32_t, i * 4096) == asked(i * 4096));
    CHECK(!munmap(bar, 4096) && REGISTER(uint32_t, 4096) == asked(4096));
    CHECK(munmap(bar + 1, 4096) && REGISTER(uint32_t, 4096) == asked(4096));
    CHECK(!munmap(area, 4 * 4096));
}

static void fail_in_every_way(void)
{
    uint16_t off = 0, on = 2;
    char *before = bar;
    void *other;

    catch(SIGSEGV);
    if (!sigsetjmp(back, 1))
        *nowhere = 1;
    CHECK(caught == SIGSEGV && caught_at == nowhere);
    catch(SIGSEGV);
    if (!sigsetjmp(back, 1))
        __atomic_fetch_add((uint32_t *)(bar + 4), 1, __ATOMIC_SEQ_CST);
    CHECK(caught == SIGSEGV && caught_at == bar + 4);
    CHECK(REGISTER(uint32_t, 0) == asked(0));
    catch(SIGBUS);
    CHECK(pwrite(device, &off, 2, (7ULL << 40) + 4) == 2);
    if (!sigsetjmp(back, 1))
        (void)REGISTER(uint32_t, 0);
    CHECK(caught == SIGBUS && caught_at == bar);
    CHECK(pwrite(device, &on, 2, (7ULL << 40) + 4) == 2);
    CHECK(REGISTER(uint32_t, 0) == asked(0));
    CHECK(!close(device));
    CHECK(REGISTER(uint32_t, 0) && open("/dev/vfio/devices/vfio0", O_RDWR) >= 0);
    CHECK(!mprotect(bar, 4096, PROT_READ));
    catch(SIGSEGV);
    if (!sigsetjmp(back, 1))
        REGISTER(uint32_t, 0x14) = 1;
    CHECK(caught == SIGSEGV && REGISTER(uint32_t, 0));
    other = mmap(bar, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(other == bar && !*bar);
    CHECK(!munmap(bar, info.size));
    catch(SIGSEGV);
    if (!sigsetjmp(back, 1))
        caught = *(volatile char *)before;
    CHECK(caught == SIGSEGV);
}

int main(int count, char **arguments)
{
    if (count > 1 && !strcmp(arguments[1], "drive")) {
        drive();
        return 0;
    }
    open_device();
    if (count > 1 && !strcmp(arguments[1], "protect")) {
        protect_in_parts();
        return 0;
    }
    if (count > 1 && !strcmp(arguments[1], "cross")) {
        char *end = bar + info.size;

        CHECK(mmap(end, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == end);
        REGISTER(uint64_t, info.size - 4) = 1;
        return 0;
    }
    if (count > 1 && !strcmp(arguments[1], "add")) {
        __atomic_fetch_add((uint32_t *)(bar + 4), 1, __ATOMIC_SEQ_CST);
        return 0;
    }
    read_in_every_way();
    fail_in_every_way();
    return 0;
}
"""


def compiler() -> str:
    found = shutil.which("cc")
    assert found, "the library itself could not be built"
    return found


@pytest.fixture(params=["-O0", "-O2"])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    source, made = tmp_path / "program.c", tmp_path / "program"
    source.write_text(PROGRAM)
    subprocess.run([compiler(), request.param, "-Wall", "-Werror", "-o", made, source, "-lpthread"], check=True)
    return made


def run(*command: str, maps_registers: bool = True, topology: Path = Path("lab")) -> tuple[int, System]:
    system, machine = build(load(topology))
    try:
        return run_program(command, system, machine=machine, maps_registers=maps_registers), system
    finally:
        machine.close()


@pytest.mark.row("space", 62)
@pytest.mark.usefixtures("cache")
def test_a_program_dereferences_registers(program: Path) -> None:
    status, system = run(str(program))
    assert status == 0
    assert all(device.owner is None for device in system.devices.values())


@pytest.mark.usefixtures("cache")
def test_a_driver_that_knows_nothing_but_memory_makes_dma(program: Path) -> None:
    assert run(str(program), "drive")[0] == 0


@pytest.mark.usefixtures("cache")
def test_another_instruction_is_named_and_ends_the_program(program: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(str(program), "add")[0] == -signal.SIGSEGV
    said = capfd.readouterr().err
    assert "register at 0x4 of a device's file" in said
    assert "its bytes: f0 83" in said or "its bytes: f0 0f c1" in said, "LOCK ADD or LOCK XADD"


@pytest.mark.usefixtures("cache")
def test_rights_of_registers_are_of_pages(program: Path, tmp_path: Path) -> None:
    topology = tmp_path / "network.toml"
    topology.write_text('[iommu]\ncontexts = 4\n[[endpoint]]\nname = "net0"\nkind = "virtio-net"\nstream = 1\n')
    assert run(str(program), "protect", topology=topology)[0] == 0


@pytest.mark.usefixtures("cache")
def test_an_access_beyond_the_registers_is_named(program: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(str(program), "cross")[0] == -signal.SIGSEGV
    assert "moves 8 bytes from address" in capfd.readouterr().err


@pytest.mark.usefixtures("cache")
def test_without_traps_only_shared_memory_is_mapped(program: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(str(program), maps_registers=False)[0] == 99
    assert "VFIO_REGION_INFO_FLAG_MMAP" in capfd.readouterr().out


# The decoder

NAMES = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16))]
VALUES = [0x1000 + 0x123456 * number for number in range(16)] + [0x400000]
"""Of the registers; the last is that of the next instruction to begin with."""


def part(number: int, size: int) -> str:
    """A register by its number, as the assembler calls so many bytes of it."""
    if number >= 8:
        return "%" + NAMES[number] + {1: "b", 2: "w", 4: "d", 8: ""}[size]
    letters = NAMES[number][1:]
    return {
        1: f"%{letters[0]}l" if letters[1] == "x" else f"%{letters}l",
        2: f"%{letters}",
        4: f"%e{letters}",
        8: f"%r{letters}",
    }[size]


class Access(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in ("length", "size", "writes", "target", "is_high", "width")),
        *((name, ctypes.c_uint64) for name in ("immediate", "address")),
        ("is_signed", ctypes.c_int),
    )


@pytest.fixture(scope="module")
def decode(tmp_path_factory: pytest.TempPathFactory) -> ctypes._NamedFuncPointer:
    made = tmp_path_factory.mktemp("decoder") / "decode.so"
    subprocess.run([compiler(), "-shared", "-fPIC", "-O1", "-o", made, SOURCES / "decode.c"], check=True)
    return ctypes.CDLL(str(made)).decode


def assembled(folder: Path, lines: Sequence[str]) -> list[bytes]:
    """The bytes of each instruction."""
    text = "".join(f"i{number}: {line}\n.balign 16, 0x90\n" for number, line in enumerate(lines))
    (folder / "code.s").write_text(f".text\n.balign 16\n{text}")
    subprocess.run([compiler(), "-c", "-o", folder / "code.o", folder / "code.s"], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", folder / "code.o", folder / "code"], check=True)
    code = (folder / "code").read_bytes()
    return [code[16 * number : 16 * number + 16] for number in range(len(lines))]


def operands() -> Iterator[tuple[str, int]]:
    """Operands in memory, and their addresses."""
    for base, displacement in itertools.product(range(16), (0, 5, -128, 0x12345)):
        yield f"{displacement or ''}(%{NAMES[base]})", VALUES[base] + displacement
    for base, index, scale in itertools.product((0, 4, 5, 12, 13), (1, 5, 8, 12), (1, 8)):
        yield f"8(%{NAMES[base]},%{NAMES[index]},{scale})", VALUES[base] + VALUES[index] * scale + 8
        yield f"(%{NAMES[base]},%{NAMES[index]},{scale})", VALUES[base] + VALUES[index] * scale
    yield "0x100(,%rdx,4)", VALUES[2] * 4 + 0x100


def found(decode: ctypes._NamedFuncPointer, code: bytes) -> Access | None:
    access = Access()
    registers = (ctypes.c_uint64 * 17)(*VALUES)
    return access if decode(code, len(code), registers, ctypes.byref(access)) else None


def test_instructions_between_memory_and_registers(decode: ctypes._NamedFuncPointer, tmp_path: Path) -> None:
    expected: list[tuple[str, tuple[int, ...]]] = []
    for number, (place, address) in enumerate(operands()):
        register = number % 16
        for size in (1, 2, 4, 8):
            name = part(register, size)
            expected.append((f"mov {name}, {place}", (size, 1, register, 0, size, address)))
            expected.append((f"mov {place}, {name}", (size, 0, register, 0, size, address)))
        for suffix, size, width in (("bw", 1, 2), ("bl", 1, 4), ("bq", 1, 8), ("wl", 2, 4), ("wq", 2, 8)):
            expected.append((f"movz{suffix} {place}, {part(register, width)}", (size, 0, register, 0, width, address)))
            expected.append((f"movs{suffix} {place}, {part(register, width)}", (size, 0, register, 0, width, address)))
        expected.append((f"movslq {place}, {part(register, 8)}", (4, 0, register, 0, 8, address)))
    for number, high in enumerate(("ah", "ch", "dh", "bh")):
        expected.append((f"mov %{high}, 4(%rsi)", (1, 1, number, 1, 1, VALUES[6] + 4)))
        expected.append((f"mov 4(%rsi), %{high}", (1, 0, number, 1, 1, VALUES[6] + 4)))
    codes = assembled(tmp_path, [line for line, _ in expected])
    for (line, fields), code in zip(expected, codes, strict=True):
        access = found(decode, code)
        assert access is not None, line
        seen = access.size, access.writes, access.target, access.is_high, access.width, access.address
        assert seen == tuple(value & (1 << 64) - 1 for value in fields), line
        assert access.is_signed == line.startswith("movs"), line
        assert set(code[access.length :]) <= {0x90, 0x66, 0x2E, 0x0F, 0x1F, 0x84, 0x00, 0x44, 0x40, 0x80}, line


def test_constants_are_written(decode: ctypes._NamedFuncPointer, tmp_path: Path) -> None:
    lines = {
        "movb $0x85, 3(%rdi)": (1, 0x85, VALUES[7] + 3),
        "movw $0x8765, 3(%r9)": (2, 0x8765, VALUES[9] + 3),
        "movl $0x87654321, (%r13)": (4, 0x87654321, VALUES[13]),
        "movq $-2, (%rsp)": (8, (1 << 64) - 2, VALUES[4]),
        "movl $7, 0x20(%rip)": (4, 7, VALUES[16] + 10 + 0x20),
    }
    for (line, (size, value, address)), code in zip(lines.items(), assembled(tmp_path, list(lines)), strict=True):
        access = found(decode, code)
        assert access is not None, line
        assert (access.size, access.writes, access.target, access.address) == (size, 1, -1, address), line
        assert access.immediate & (1 << 8 * size) - 1 == value, line


@pytest.mark.parametrize(
    "line",
    [
        "add %eax, (%rdi)",
        "lock incl (%rdi)",
        "mov %fs:(%rdi), %eax",
        "movups (%rdi), %xmm0",
        "cmpl $1, (%rdi)",
        "mov (%edi), %eax",
        "mov %eax, %ebx",
        "rep movsb",
        "movsb",
        "movbe (%rdi), %eax",
        "movabs 0x1122334455667788, %eax",
        "push (%rdi)",
    ],
)
def test_others_are_refused(decode: ctypes._NamedFuncPointer, tmp_path: Path, line: str) -> None:
    [code] = assembled(tmp_path, [line])
    assert found(decode, code) is None


def test_an_instruction_that_is_cut_short_is_refused(decode: ctypes._NamedFuncPointer, tmp_path: Path) -> None:
    lines = ["movl $0x12345678, 0x1000(%r12,%rcx,2)", "movzwl 8(%rsp), %r8d", "mov %ax, 0x11223344(%rip)"]
    for code in assembled(tmp_path, lines):
        access = found(decode, code)
        assert access is not None
        assert not any(found(decode, code[:length]) for length in range(access.length))
