"""Where a request can fail in Linux whatever it asks for: memory is short, or the program's is not there just then.

Nothing is short here, and to pass such a place does nothing: whoever wants failures puts something in its way. Each is
a probe of the fault language, ``iommufd.NAME``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial

from ...probes import Probes
from .request_error import RequestError
from .user_memory import Place, UserMemory, located, write_back

__all__ = ["KEPT_IN_LINUX", "PLACES", "Places", "refusal"]

_OWNER = "iommufd"
PLACES = (
    *("file", "copy_in", "copy_out", "object", "area", "span", "pin", "table", "leaves", "attach", "event", "bitmap"),
    "interrupt",
)
KEPT_IN_LINUX = ("copy_out", "event")
"""Where a request may have done what it was for: if only its answer cannot be written, and an event that is lost is
told. What is new must be gone there, too."""


def refusal(place: str, error: str) -> RequestError:
    """What a request fails with at a place, with an errno by its name."""
    return RequestError(getattr(errno, error), f"{error} on purpose, at {place}")


class Places:
    """Those of one system."""

    def __init__(self, probes: Probes | None = None) -> None:
        self.watches_copies = False
        """Whether anybody cares for what is copied from and to programs."""
        if probes:
            for name in PLACES:
                probes.bind(self, name, f"iommufd.{name}", _OWNER)
            probes.bound(partial(self._look, probes))

    def _look(self, probes: Probes) -> None:
        self.watches_copies = any(probes.is_watched(f"iommufd.{name}") for name in ("copy_in", "copy_out"))

    def intercept(self, meet: Callable[[str], None]) -> None:
        """Call ``meet`` with the name of each place that is passed from now on; what it raises, the request does."""
        for name in PLACES:
            setattr(self, name, partial(meet, name))
        self.watches_copies = True

    def arguments(self, memory: UserMemory) -> UserMemory:
        """A program's memory as requests read and write it."""
        return _Arguments(memory, self) if self.watches_copies else memory

    def file(self) -> None:
        """A file is opened, or gets a descriptor."""

    def copy_in(self) -> None:
        """Something is copied from a program's memory."""

    def copy_out(self) -> None:
        """Something is copied to it."""

    def object(self) -> None:
        """An object begins, and nothing of it is done yet."""

    def area(self) -> None:
        """What is mapped is noted, or cut in two."""

    def span(self) -> None:
        """IOVAs are reserved, or allowed."""

    def pin(self) -> None:
        """Memory of a program is pinned."""

    def table(self) -> None:
        """A page table begins."""

    def leaves(self) -> None:
        """Pages enter a page table."""

    def attach(self) -> None:
        """A device's DMA is about to go through a page table."""

    def event(self) -> None:
        """A page request or an event is about to be queued."""

    def bitmap(self) -> None:
        """Dirty bits need room: those that a program asks for, or of a mapping of type1 that notes them."""

    def interrupt(self) -> None:
        """Numbers or eventfds for interrupts of a device need room."""


class _Arguments:
    """A :class:`UserMemory` whose copies pass places, but for those of nothing. What is mapped is the memory itself."""

    def __init__(self, memory: UserMemory, places: Places) -> None:
        self._memory = memory
        self._places = places

    def read(self, address: int, length: int) -> bytes:
        if length:
            self._places.copy_in()
        return self._memory.read(address, length)

    def write(self, address: int, data: bytes) -> None:
        if data:
            self._places.copy_out()
        self._memory.write(address, data)

    def write_back(self, address: int, data: bytes) -> None:
        if data:
            self._places.copy_out()
        write_back(self._memory, address, data)

    def holds(self, address: int, length: int, *, writeable: bool) -> bool:
        return self._memory.holds(address, length, writeable=writeable)

    def located(self, address: int, length: int) -> list[Place]:
        return located(self._memory, address, length)
