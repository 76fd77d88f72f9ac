"""What a PCI function is made of."""

from __future__ import annotations

from collections.abc import Iterable

from vfio_user import InterruptTable, IrqIndex
from vfio_user.foreign import is_eventfd
from vfio_user.framing import close_fds
from vfio_user.interrupts import Eventfds
from vfio_user.signals import signal
from wire_layout.registers import Register

from ..inputs import InputKind, Source
from .bars import Bars, MsixBar, RegisterBar, SharedBar
from .capabilities import MSIX_ENTRY_SIZE, msix, pcie
from .config_space import ConfigSpace, Identity
from .environment import Environment
from .hooks import Attempts
from .registers import RegisterFile, check_handlers
from .shared_memory import SharedMemory

__all__ = ["Description"]


class Description:
    """Configuration space, BARs and interrupts. A subclass describes them in ``__init__``, which ends with
    :meth:`power_on`."""

    def __init__(self, name: str, identity: Identity, environment: Environment, attempts: Attempts) -> None:
        of = environment.inputs.of
        self.name = name
        self.inputs = environment.inputs
        self.counters = environment.counters
        self.attempts = attempts
        self.config = ConfigSpace(identity)
        self.bars = Bars(name, self.config)
        self.copy_shared = self.inputs.copies(Source(InputKind.SHARED_MEMORY, name))
        """makes a private copy of shared memory, which the guest cannot change between check and use"""
        eventfds = Eventfds(
            of(Source(InputKind.DESCRIPTOR, name), is_eventfd),
            of(Source(InputKind.INTERRUPT, name), signal),
            of(Source(InputKind.CLOSED, name), close_fds),
        )
        self.interrupts = InterruptTable({IrqIndex.ERR: 1, IrqIndex.REQ: 1}, eventfds)
        self.probes = environment.probes
        self.probes.bind(self.interrupts, "trigger", "interrupt", name)
        self._is_on = False
        self._pcie = self.config.add_capability(*pcie())

    def add_register_bar(
        self, index: int, registers: Iterable[Register] | RegisterFile, size: int = 4096
    ) -> RegisterFile:
        """A 32-bit BAR of trapped registers, whose handlers are methods of this object unless a register file is
        given."""
        file = registers if isinstance(registers, RegisterFile) else RegisterFile(registers, self)
        end = file.registers.end
        if end > size:
            raise ValueError(f"{self.name}: the registers of BAR {index} end at {end:#x}, past its {size:#x} bytes")
        self.config.add_bar(index, size, wide=False, prefetchable=False)
        self.bars[index] = RegisterBar(file, size, self.attempts)
        return file

    def add_shared_bar(self, index: int, size: int) -> SharedMemory:
        """A 64-bit prefetchable BAR that the hypervisor maps into the guest; takes ``index`` and the next one."""
        self.config.add_bar(index, size, wide=True, prefetchable=True)
        shared = SharedMemory(f"pviommu-{self.name}", size, self.inputs)
        self.bars[index] = SharedBar(shared, self.copy_shared, self.attempts)
        return shared

    def add_msix_bar(self, index: int, vectors: int, size: int, pba_offset: int) -> None:
        """A 32-bit BAR with the MSI-X table of ``vectors`` at 0."""
        if vectors * MSIX_ENTRY_SIZE > pba_offset or pba_offset + (vectors + 63) // 64 * 8 > size:
            raise ValueError(f"{vectors} vectors: table and pending bits do not fit {size:#x} bytes")
        self.config.add_bar(index, size, wide=False, prefetchable=False)
        self.bars[index] = MsixBar(size, self.attempts)
        self.interrupts.counts[IrqIndex.MSIX] = vectors
        self.config.add_capability(*msix(vectors, index, pba_offset))

    def power_on(self) -> None:
        """The description is complete: take it as the state after power-on.

        Raises :class:`ValueError` for a handler that fits no register.
        """
        files = [bar.file for bar in self.bars.values() if isinstance(bar, RegisterBar)]
        check_handlers(files)
        for file in files:
            file.seal()
            self.probes.bind(file, "read", "register.read", self.name, file)
            self.probes.bind(file, "write", "register.write", self.name, file)
        self.config.seal()
        self._is_on = True

    def _check_is_on(self) -> None:
        if not self._is_on:
            what = f"{self.name} is used before it was powered on"
            raise RuntimeError(f"{what}: {type(self).__name__}.__init__ must end with self.power_on()")

    @property
    def descriptors(self) -> int:
        """How many descriptors this function may have open, besides its sockets and the client's memory."""
        self._check_is_on()
        return 2 * len(self.bars.shared) + sum(self.interrupts.counts.values())  # a mapping keeps a duplicate

    def close(self) -> None:
        """Give back memory and descriptors."""
        self.interrupts.close()
        for bar in self.bars.shared.values():
            bar.memory.close()
