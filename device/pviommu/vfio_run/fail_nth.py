"""fail-nth of Linux' fault injection for programs that are served: ``/proc/self/task/N/fail-nth``.

A process writes a number, and as many places on is the one at which a request of it fails (see
:mod:`pviommu.interfaces.iommufd.places`): with the error that Linux gives there for want of memory, or for memory of
the program that is not there. The number that is read is what is left of it: 0 once that has happened. As
fs/proc/base.c and lib/fault-inject.c of Linux 7.3, but that all threads of a process count together.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vfio_user import Steps

from ..faults.catalogue import PROBES
from ..interfaces.iommufd import RequestError
from ..interfaces.iommufd.pci_device import Piece
from ..interfaces.iommufd.places import Places, refusal

__all__ = ["DEBUG_FILES", "FailNth", "FailNthFile"]

DEBUG_FILES = {
    "failslab": ("ignore-gfp-wait", "verbose"),
    "fail_page_alloc": ("ignore-gfp-highmem", "ignore-gfp-wait", "verbose"),
    "fail_usercopy": ("verbose",),
}
"""What a program that looks whether there is fault injection finds below /sys/kernel/debug. Writing there changes
nothing else."""

_PATH = re.compile(r"/proc/(self|thread-self|[0-9]{1,10})/(?:task/([0-9]{1,10})/)?fail-nth")
_NUMBER = re.compile(r"\+?(0[xX][0-9a-fA-F]+|[0-9]+)\n?", re.ASCII)
_MOST = (1 << 32) - 1


class FailNth:
    """The numbers of all processes."""

    def __init__(self) -> None:
        self.process = 0
        """Whose message is being carried out; 0: none."""
        self._left: dict[int, tuple[int, str]] = {}
        """By process; with when that began, as another one may have its number later."""
        self._before = 0

    def watch(self, places: Places, look: Callable[[], dict[str, Any]]) -> None:
        """Count what is passed there. ``look`` gives what the system has of programs."""
        places.intercept(self._meet)

    def begin(self, process: int, doing: str) -> None:
        """A message of a process is carried out from now on; ``doing``: what it asks for, in words."""
        if process in self._left and self._left[process][1] != _beginning_of(process):
            self.set(process, 0)
        self.process, self._before = process, self.left(process)

    def rewind(self) -> None:
        """It begins again later, when the process has been asked something, and has done nothing so far."""
        self.set(self.process, self._before)

    def end(self) -> None:
        """What follows is nobody's: devices work by themselves."""
        self.process = 0

    def over(self) -> None:
        """All programs have ended, and their files are closed."""

    def left(self, process: int) -> int:
        """How many places on a request fails; 0: none does."""
        return self._left.get(process, (0, ""))[0]

    def set(self, process: int, number: int) -> None:
        """Let a request fail so many places on; 0: none."""
        if number:
            self._left[process] = number, _beginning_of(process)
        else:
            self._left.pop(process, None)

    def _meet(self, place: str) -> None:
        if self.process in self._left:
            left, began = self._left[self.process]
            self._left[self.process] = left - 1, began
            if left == 1:
                self.set(self.process, 0)
                raise refusal(place, PROBES[f"iommufd.{place}"].errors[0])

    def file(self, path: str, asking: int) -> FailNthFile | None:
        """What a process opens at a path, if that is such a file. Raises OSError (ENOENT) for a process that there is
        not.
        """
        found = _PATH.fullmatch(path)
        if found is None:
            return None
        return FailNthFile(self, asking if "self" in found[1] else _process_of(int(found[2] or found[1])))


def _beginning_of(process: int) -> str:
    """When a process began, in words of the kernel's; empty for one that there is not."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return status.rpartition(")")[2].split()[19]


def _process_of(thread: int) -> int:
    """Raises OSError (ENOENT)."""
    try:
        status = Path(f"/proc/{thread}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        raise RequestError(errno.ENOENT, f"process {thread}: there is none") from None
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Tgid:"))


class FailNthFile:
    """The number of one process."""

    def __init__(self, numbers: FailNth, process: int) -> None:
        self._numbers = numbers
        self._process = process

    def ioctl(self, process: object, request: int, argument: int) -> int:
        """Raises OSError (ENOTTY)."""
        raise RequestError(errno.ENOTTY, f"request {request:#x} of fail-nth: it has none")

    def close(self) -> None:
        """The number stays."""

    def mapped(self, offset: int, length: int) -> Piece:
        """As mmap(). Raises OSError (ENODEV)."""
        raise RequestError(errno.ENODEV, "map fail-nth: it cannot be mapped")

    def read(self, offset: int, count: int) -> bytes:
        """As pread()."""
        return f"{self._numbers.left(self._process)}\n".encode()[offset : offset + count]

    def write(self, offset: int, data: bytes) -> tuple[int, Steps]:
        """As pwrite(), wherever: the number, decimal, or as C writes it. Raises OSError: EINVAL, and ERANGE for more
        than 32 bits.
        """
        text = data.decode("ascii", "replace")
        found = _NUMBER.fullmatch(text)
        if found is None:
            raise RequestError(errno.EINVAL, f"fail-nth {text!r}: must be a number")
        digits = found[1].lower()
        base = 16 if digits.startswith("0x") else 8 if digits.startswith("0") else 10
        try:
            number = int(digits, base)
        except ValueError:
            raise RequestError(errno.EINVAL, f"fail-nth {text!r}: an octal number has digits below 8") from None
        if number > _MOST:
            raise RequestError(errno.ERANGE, f"fail-nth {number}: at most {_MOST}")
        self._numbers.set(self._process, number)
        return len(data), iter(())
