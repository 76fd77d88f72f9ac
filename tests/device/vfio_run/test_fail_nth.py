"""fail-nth, as the kernel's fault injection has it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pviommu.interfaces.iommufd import System
from pviommu.vfio_run.fail_nth import FailNth, FailNthFile
from pviommu.vfio_run.running import run_program

from ..interfaces.iommufd.conftest import Program, fails

ME = os.getpid()
THERE_IS_NONE = 1 << 22
"""More than processes have."""


class Counted:
    """A program whose places count."""

    def __init__(self) -> None:
        self.numbers = FailNth()
        system = System()
        self.numbers.watch(system.places, dict)
        self.program = Program(system)

    def ioas(self, process: int = ME) -> int:
        self.numbers.begin(process, "")
        try:
            return self.program.ioas()
        finally:
            self.numbers.end()


@pytest.fixture
def counted() -> Counted:
    return Counted()


def test_the_nth_place_fails_and_no_other(counted: Counted) -> None:
    """IOAS_ALLOC copies size and structure, makes an object, copies back."""
    for number, code in enumerate(("EFAULT", "EFAULT", "ENOMEM", "EFAULT"), 1):
        counted.numbers.set(ME, number)
        with fails(code, "on purpose"):
            counted.ioas()
        assert counted.numbers.left(ME) == 0
    counted.numbers.set(ME, 5)
    assert counted.ioas() == 1  # and none of those before is there
    assert counted.numbers.left(ME) == 1


def test_what_others_do_does_not_count(counted: Counted) -> None:
    counted.numbers.set(ME, 3)
    counted.ioas(process=1)
    counted.program.ioas()  # a device, say: it is nobody's
    assert counted.numbers.left(ME) == 3


def test_what_begins_again_counts_once(counted: Counted) -> None:
    counted.numbers.set(ME, 6)
    counted.numbers.begin(ME, "")
    counted.program.ioas()
    assert counted.numbers.left(ME) == 2
    counted.numbers.rewind()
    assert counted.numbers.left(ME) == 6


def test_the_number_of_a_process_that_has_ended_is_not_that_of_the_next_one(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted.numbers.set(ME, 3)
    monkeypatch.setattr("pviommu.vfio_run.fail_nth._beginning_of", lambda process: "another time")
    assert counted.ioas() == 1
    assert counted.numbers.left(ME) == 0


@pytest.mark.parametrize(
    ("text", "number"), [("7", 7), ("0x10\n", 16), ("+2", 2), ("010", 8), ("0", 0), (str((1 << 32) - 1), (1 << 32) - 1)]
)
def test_numbers_are_written_as_in_c(text: str, number: int) -> None:
    numbers = FailNth()
    file = FailNthFile(numbers, ME)
    assert file.write(0, text.encode())[0] == len(text)
    assert file.read(0, 100) == f"{number}\n".encode()
    assert file.read(1, 100) == f"{number}\n".encode()[1:]


@pytest.mark.parametrize(
    ("text", "code"),
    [("", "EINVAL"), ("-1", "EINVAL"), ("08", "EINVAL"), ("1 ", "EINVAL"), ("0x", "EINVAL"), (str(1 << 32), "ERANGE")],
)
def test_what_is_no_number_changes_nothing(text: str, code: str) -> None:
    numbers = FailNth()
    numbers.set(ME, 5)
    with fails(code):
        FailNthFile(numbers, ME).write(0, text.encode())
    assert numbers.left(ME) == 5


def test_it_is_read_and_written_only() -> None:
    file = FailNthFile(FailNth(), ME)
    with fails("ENOTTY"):
        file.ioctl(None, 0x3B81, 0)
    with fails("ENODEV"):
        file.mapped(0, 4096)


@pytest.mark.parametrize(
    ("path", "by_number"),
    [
        ("/proc/self/task/{0}/fail-nth", False),
        ("/proc/thread-self/fail-nth", False),
        ("/proc/self/fail-nth", False),
        ("/proc/{0}/fail-nth", True),
        ("/proc/{0}/task/{0}/fail-nth", True),
    ],
)
def test_paths(path: str, by_number: bool) -> None:
    numbers = FailNth()
    file = numbers.file(path.format(ME), 77)
    assert file
    file.write(0, b"3")
    assert numbers.left(ME if by_number else 77) == 3


def test_other_paths() -> None:
    assert FailNth().file("/dev/iommu", ME) is None
    with fails("ENOENT", "there is none"):
        FailNth().file(f"/proc/{THERE_IS_NONE}/fail-nth", ME)


def test_a_program_counts_its_own_places(tmp_path: Path) -> None:
    script = """
import errno, fcntl, os, struct
assert "failslab" in os.listdir("/sys/kernel/debug")
number = os.open(f"/proc/self/task/{os.getpid()}/fail-nth", os.O_RDWR)
iommu = os.open("/dev/iommu", os.O_RDWR)
os.pwrite(number, b"3", 0)
assert os.pread(number, 100, 0) == b"3\\n"
try:
    fcntl.ioctl(iommu, 0x3B81, bytearray(struct.pack("<III", 12, 0, 0)))
except OSError as error:
    assert error.errno == errno.ENOMEM
else:
    raise AssertionError("it did not fail")
assert os.read(number, 100) == b"0\\n"
os.write(number, b"9")
fcntl.ioctl(iommu, 0x3B81, bytearray(struct.pack("<III", 12, 0, 0)))
assert os.pread(number, 100, 0) == b"5\\n"
"""
    assert run_program([sys.executable, "-c", script], System(), fail_nth=FailNth()) == 0


def test_without_being_told_so_there_is_none() -> None:
    script = "import os; assert not os.path.exists('/sys/kernel/debug/failslab')"
    assert run_program([sys.executable, "-c", script], System()) == 0
