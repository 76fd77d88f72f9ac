"""Guest memory: what DMA_MAP announced, and nothing else.

A :class:`GuestMemory` belongs to one connection. It holds the ranges of guest physical addresses (GPAs) that
the client announced and gives access to those that came with a file descriptor. Ranges without one (ROMs, BARs of other
devices) are kept, because they must be unmapped exactly as they were mapped, but they cannot be reached.

DMA of an endpoint also reaches :attr:`GuestMemory.windows`: BARs of its machine's functions.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Iterator, Sequence

from vfio_user import DmaMapping, RequestError
from vfio_user.memory_kind import NotMemoryError, check_memory

from ..engine.ranges import FrameRanges
from ..engine.results import ADDRESS_LIMIT, PAGE_SHIFT
from ..inputs import InputKind, Inputs, Source
from .access import GONE, GuestMemoryError, MemoryAccess
from .mappings import Mapping, WouldCutError, in_words
from .memory_file import MemoryFile, MemoryFiles
from .policy import MapPolicy
from .usage import is_used_by_guest

__all__ = ["GuestMemory"]


class GuestMemory(MemoryAccess):
    """The guest memory of one connection.

    What is derived from its ranges (RAM, the copier's ranges) is updated with each change and never rebuilt.
    """

    def __init__(
        self,
        inputs: Inputs,
        changed: Callable[[int, int], None] = lambda _first, _nr: None,
        files: MemoryFiles | None = None,
        name: str = "",
    ) -> None:
        """``changed(first, frames)`` is called after each change of RAM, which is within these frames. ``files``: those
        of the machine; without them no other function shares them.
        """
        super().__init__(inputs, name)
        self._name = name
        self._check_memory = inputs.of(Source(InputKind.DESCRIPTOR, name), check_memory)
        self._close = inputs.of(Source(InputKind.CLOSED, name), os.close)
        self._changed = changed
        self._files = MemoryFiles(inputs) if files is None else files
        self.policy = MapPolicy(self._mappings)
        self.ram = FrameRanges()
        """frames that DMA may both read and write"""

    def belongs_with(self, other: GuestMemory) -> None:
        """Both are views of one guest's memory: they must map each GPA alike."""
        self.policy.belongs_with(other.policy)

    @property
    def has_exchange(self) -> bool:
        """Whether :meth:`exchange` is possible: Python cannot do that, the native core can."""
        return self._files.guard is not None

    def exchange(self, gpa: int, before: int, after: int) -> int:
        """Replace the 64 bits at ``gpa``, a multiple of 8, by ``after`` if they are ``before``, as one atomic step for
        the guest's processors too. Returns those that were there. Raises :class:`.access.GuestMemoryError`.
        """
        guard, address = self._files.guard, self.address_of(gpa)
        if guard is None or address is None:
            raise GuestMemoryError(gpa, "cannot be compared and exchanged: that needs the native core and mapped RAM")
        found = self._inputs.of(self._written, guard.exchange)(address, before, after)
        if found is None:
            raise GuestMemoryError(gpa, GONE)
        return found

    # -- what the client says ---------------------------------------------------------------------------------------

    def map(self, request: DmaMapping) -> bool:
        """DMA_MAP. Takes ownership of ``request.fd``, also when it raises. Returns whether the range is new.

        The identical range again is a success; any other overlap is EEXIST. Raises :class:`vfio_user.RequestError`.
        """
        file = self._open(request)
        try:
            new = Mapping(request.address, request.size, request.offset, request.readable, request.writable, file)
            if not self.policy.admits(new):
                return False
            if file is not None:
                if new.is_ram:
                    self._make_ram(new, file)
                file.users += 1
                self.policy.added(file)
        finally:
            if file is not None:
                self._files.release(file)
        self._mappings.add(new)
        return True

    def _open(self, request: DmaMapping) -> MemoryFile | None:
        if request.fd is None:
            return None
        try:
            kind = request.kind or self._check_memory(request.fd, request.writable, in_words(request))
        except BaseException:
            self._close(request.fd)
            raise
        return self._files.open(request.fd, request.writable, kind)

    def _make_ram(self, new: Mapping, file: MemoryFile) -> None:
        try:
            new.area = self._files.area(file)
        except NotMemoryError as error:
            raise RequestError(errno.EINVAL, f"{in_words(new)}: the file cannot be used as memory: {error}") from error
        except OSError as error:
            text = f"{in_words(new)}: the file cannot be mapped: {error.strerror or error}"
            raise RequestError(error.errno or errno.EINVAL, text) from error
        if self.copier and new.area:
            guarded = new.area.guard is not None
            self.copier.add(new.address, new.size, new.area.address + new.offset, may_vanish=guarded)
        frames = _frames(new.address, new.size)
        self.ram.add(*frames)
        self._changed(*frames)

    def unmap(self, address: int, size: int) -> int:
        """DMA_UNMAP: removes every range inside ``[address, address + size)`` and returns how many these were.

        Raises :class:`vfio_user.RequestError`, and then nothing has changed: EINVAL if a range would be cut, ENOENT if
        there is none. The protocol demands one range exactly as it was mapped, but QEMU maps in pieces what it later
        unmaps at once (virtio-mem), and does not handle a refusal.
        """
        what = f"unmap [{address:#x}, +{size:#x})"
        try:
            gone = self._mappings.remove(address, size)
        except WouldCutError as cut:
            raise RequestError(errno.EINVAL, f"{what}: it would cut {cut}; ranges are unmapped as a whole") from cut
        if not gone:
            raise RequestError(errno.ENOENT, f"{what}: no such range is mapped")
        self._forget(gone)
        return len(gone)

    def clear(self) -> None:
        """Remove everything and close every file that no other function uses."""
        gone = self._mappings.remove(0, ADDRESS_LIMIT)
        if gone:
            self._forget(gone)

    def _forget(self, gone: Sequence[Mapping]) -> None:
        """Remove what was derived from removed ranges, which are in order."""
        address, size = gone[0].address, gone[-1].end - gone[0].address
        self._forget_last()
        if self.copier:
            self.copier.remove(address, min(size, ADDRESS_LIMIT - 1))
        frames = _frames(address, size)
        if self.ram.within(*frames):
            self.ram.remove(*frames)
            self._changed(*frames)
        for file, ranges in self.policy.removed(gone).items():
            self._files.release(file, ranges)

    # -- what there is ----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Mapping]:
        return iter(self._mappings)

    def overlapping(self, address: int, size: int) -> Sequence[Mapping]:
        """The ranges that share an address with ``[address, address + size)``, in order."""
        return self._mappings.overlapping(address, size)

    def ram_ranges(self) -> list[tuple[int, int]]:
        """RAM as ``(first GPA, last GPA)``, inclusive, merged and in order."""
        return [(first << PAGE_SHIFT, (last + 1 << PAGE_SHIFT) - 1) for first, last in self.ram]

    def is_used_by_guest(self, step_ns: int) -> Generator[None, None, bool]:
        """See :func:`.usage.is_used_by_guest`."""
        return is_used_by_guest(self._mappings, self._inputs, step_ns, self._name)


def _frames(address: int, size: int) -> tuple[int, int]:
    """(first frame, frames) of whole pages."""
    return address >> PAGE_SHIFT, size >> PAGE_SHIFT
