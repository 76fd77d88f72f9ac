"""BARs: what is behind each of them, and where the guest finds them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ClassVar, Protocol

from vfio_user import Region, RegionFlags, Steps

from ..dma.windows import Window
from .config_space import ConfigSpace
from .hooks import Attempts
from .registers import RegisterFile
from .shared_memory import SharedMemory

__all__ = ["Bar", "Bars", "MsixBar", "RegisterBar", "SharedBar"]

log = logging.getLogger(__name__)

_READ_WRITE = RegionFlags.READ | RegionFlags.WRITE


class Bar(Protocol):
    """One BAR. Accesses come from the guest, where its hypervisor traps them, and as DMA of other functions."""

    is_memory: ClassVar[bool]
    """whether the hypervisor maps it into the guest, and any bytes of it can be read and written at once"""
    region: Region
    """what a client is told about it"""

    def read(self, offset: int, count: int, /) -> bytes:
        """``count`` bytes, all ones if the function has failed; the caller has checked the bounds."""

    def write(self, offset: int, data: bytes, /) -> Steps | None:
        """Write ``data``, unless the function has failed. Returns the steps that are left, if any."""


class RegisterBar:
    """Registers: each access is trapped."""

    is_memory: ClassVar[bool] = False

    def __init__(self, file: RegisterFile, size: int, attempts: Attempts) -> None:
        self.file = file
        self.region = Region(size, _READ_WRITE)
        self._attempts = attempts

    def read(self, offset: int, count: int) -> bytes:
        data = self._attempts.make("a read of its registers", self.file.read, offset, count)
        return b"\xff" * count if data is None else data

    def write(self, offset: int, data: bytes) -> Steps | None:
        return self._attempts.begin("a write to its registers", self.file.write, offset, data)


class SharedBar:
    """Memory that the function shares with the guest."""

    is_memory: ClassVar[bool] = True

    def __init__(self, memory: SharedMemory, copy: Callable[[memoryview], bytes], attempts: Attempts) -> None:
        self.memory = memory
        self.region = Region(memory.size, _READ_WRITE | RegionFlags.MMAP, ((0, memory.size),), memory.fd)
        self._copy = copy
        self._attempts = attempts

    def read(self, offset: int, count: int) -> bytes:
        return b"\xff" * count if self._attempts.failed else self._copy(self.memory.view[offset : offset + count])

    def write(self, offset: int, data: bytes) -> None:
        self._attempts.make("a write to its shared memory", self._store, offset, data)

    def _store(self, offset: int, data: bytes) -> None:
        self.memory.view[offset : offset + len(data)] = data

    def renew(self) -> None:
        """Take other memory: see :meth:`.shared_memory.SharedMemory.renew`."""
        self.memory.renew()
        self.region = replace(self.region, fd=self.memory.fd)


class MsixBar:
    """Table and pending bits of MSI-X. The hypervisor emulates them and hides them from the server: nothing is ever
    pending here.
    """

    is_memory: ClassVar[bool] = False

    def __init__(self, size: int, attempts: Attempts) -> None:
        self.region = Region(size, _READ_WRITE)
        self._attempts = attempts

    def read(self, _offset: int, count: int) -> bytes:
        return b"\xff" * count if self._attempts.failed else bytes(count)

    def write(self, _offset: int, _data: bytes) -> None:
        pass


class Bars(dict[int, Bar]):
    """The BARs of one function, by index."""

    def __init__(self, name: str, config: ConfigSpace) -> None:
        super().__init__()
        self.on_change: Callable[[], None] = lambda: None
        """called after each change of :meth:`windows`"""
        self.stale: set[int] = set()
        """those whose shared memory is known to a client that is gone"""
        self._name = name
        self._config = config
        self._decoded: list[tuple[int, int, int]] = []

    # -- where the guest finds them ---------------------------------------------------------------------------------

    def decode(self) -> None:
        """Call :attr:`on_change` if a BAR appeared, moved or disappeared."""
        decoded = self._config.decoded()
        if decoded != self._decoded:
            self._decoded = decoded
            self.on_change()

    def windows(self) -> Iterator[Window]:
        """Where the guest finds them now; none while memory decoding is off."""
        for index, address, size in self._decoded:
            bar = self[index]
            yield Window(address, size, bar.is_memory, bar.read, bar.write)

    @property
    def registers(self) -> dict[int, RegisterFile]:
        """The register files of those that have one."""
        return {index: bar.file for index, bar in self.items() if isinstance(bar, RegisterBar)}

    # -- shared memory ----------------------------------------------------------------------------------------------

    @property
    def shared(self) -> dict[int, SharedBar]:
        """Those that are shared memory."""
        return {index: bar for index, bar in self.items() if isinstance(bar, SharedBar)}

    def renew(self) -> None:
        """Give new shared memory to those that are stale, as far as the system has any: the earlier client may keep its
        mapping for as long as it lives.
        """
        for index, bar in self.shared.items():
            if index in self.stale:
                try:
                    bar.renew()
                except OSError as error:
                    log.warning("%s: no new shared memory for BAR %d yet: %s", self._name, index, error)
                else:
                    self.stale.discard(index)
