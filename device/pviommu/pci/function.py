"""A PCI function behind a vfio-user session: what all functions of this package have in common.

A subclass describes its BARs in ``__init__``, calls :meth:`PciFunction.power_on` last, and overrides the
``on_*`` hooks.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ParamSpec, TypeVar

from vfio_user import (
    DeviceInfo,
    DmaMapping,
    InterruptTable,
    Irq,
    IrqIndex,
    IrqRequest,
    Region,
    RegionFlags,
    RegionIndex,
    RequestError,
    Steps,
)
from vfio_user.foreign import is_eventfd
from vfio_user.framing import close_fds
from vfio_user.interrupts import Eventfds
from vfio_user.signals import signal
from wire_layout.registers import Register

from ..counters import Counters
from ..dma.memory import GuestMemory
from ..dma.memory_file import MemoryFiles
from ..dma.policy import ForeignMemoryError
from ..dma.windows import Window
from ..inputs import Inputs, Kind, Source
from ..probes import Probes
from .capabilities import MSIX_ENTRY_SIZE, PCIE_DEVICE_CONTROL, PCIE_FLR, Capability, msix, pcie
from .config_space import CONFIG_SIZE, ConfigSpace, Identity
from .registers import RegisterFile, check_handlers
from .shared_memory import SharedMemory

__all__ = ["Environment", "PciFunction"]

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")

_ABSENT = Region()
_READ_WRITE = RegionFlags.READ | RegionFlags.WRITE


@dataclass(frozen=True)
class Environment:
    """What a function is given to live in."""

    inputs: Inputs
    counters: Counters
    files: MemoryFiles = field(init=False)
    """of guest memory, shared by the functions of a machine"""

    probes: Probes = field(default_factory=Probes)
    """who looks on where"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", MemoryFiles(self.inputs))


class PciFunction:
    """One PCI Express function with register, shared-memory and MSI-X BARs. Implements :class:`vfio_user.Device`."""

    def __init__(self, name: str, identity: Identity, environment: Environment) -> None:
        self.name = name
        self.inputs = environment.inputs
        self.counters = environment.counters
        self.config = ConfigSpace(identity)
        self._files = environment.files
        self._probes = environment.probes
        self.memory = GuestMemory(self.inputs, self._ram_changed, self._files, name)
        self.copy_shared = self.inputs.copies(Source(Kind.SHARED_MEMORY, name))
        """makes a private copy of shared memory: what is checked afterwards cannot change any more"""
        self.interrupts = self._interrupt_table({})
        self.on_bars: Callable[[], None] = lambda: None
        """called after each change of what :meth:`windows` gives"""
        self._decoded: list[tuple[int, int, int]] = []
        self._vectors = 0
        self._foreign = ""
        self._not_renewed: set[int] = set()
        self._regions: dict[int, Region] = {
            RegionIndex.CONFIG: Region(CONFIG_SIZE, _READ_WRITE),
        }
        self._described: dict[int, RegisterFile] = {}
        """register files, until :meth:`power_on` has looked at their handlers"""
        self._registers: dict[int, RegisterFile] = {}
        self._shared: dict[int, SharedMemory] = {}
        self._is_on = False
        self._pcie = self.add_capability(pcie())

    # -- describing a function --------------------------------------------------------------------------------------

    def add_capability(self, capability: Capability) -> int:
        """Append a conventional capability; returns its offset."""
        return self.config.add_capability(capability.body, capability.writable)

    def add_register_bar(self, index: int, registers: Iterable[Register], size: int = 4096) -> RegisterFile:
        """A 32-bit BAR of trapped registers, whose handlers are methods of this object."""
        file = RegisterFile(registers, self)
        self.add_register_file(index, file, size)
        return file

    def add_register_file(self, index: int, file: RegisterFile, size: int = 4096) -> None:
        """The same for registers whose handlers are methods of another object."""
        end = file.registers.end
        if end > size:
            raise ValueError(f"{self.name}: the registers of BAR {index} end at {end:#x}, past its {size:#x} bytes")
        self.config.add_bar(index, size, wide=False, prefetchable=False)
        self._regions[index] = Region(size, _READ_WRITE)
        self._described[index] = file

    def add_shared_bar(self, index: int, size: int) -> SharedMemory:
        """A 64-bit prefetchable BAR that the hypervisor maps into the guest; takes ``index`` and the next one."""
        self.config.add_bar(index, size, wide=True, prefetchable=True)
        shared = self._shared[index] = SharedMemory(f"pviommu-{self.name}", size, self.inputs)
        flags = _READ_WRITE | RegionFlags.MMAP
        self._regions[index] = Region(size, flags, ((0, size),), shared.fd)
        return shared

    def add_msix_bar(self, index: int, vectors: int, size: int, pba_offset: int) -> None:
        """A 32-bit BAR with the MSI-X table at 0. The hypervisor emulates the table and hides it from the server."""
        if vectors * MSIX_ENTRY_SIZE > pba_offset or pba_offset + (vectors + 63) // 64 * 8 > size:
            raise ValueError(f"{vectors} vectors: table and pending bits do not fit {size:#x} bytes")
        self.config.add_bar(index, size, wide=False, prefetchable=False)
        self._regions[index] = Region(size, _READ_WRITE)
        self._vectors = vectors
        self.add_capability(msix(vectors, index, pba_offset))

    def power_on(self) -> None:
        """The description is complete: take it as the state after power-on.

        Raises :class:`ValueError` for a handler that fits no register.
        """
        check_handlers(self._described.values())
        for file in self._described.values():
            file.seal()
        for file in self._described.values():
            self._probes.bind(file, "read", "register.read", self.name)
            self._probes.bind(file, "write", "register.write", self.name)
        self._registers = self._described  # an access that finds no registers asks whether this was forgotten
        self._is_on = True
        self.config.seal()
        self.interrupts = self._interrupt_table(
            {IrqIndex.INTX: 0, IrqIndex.MSI: 0, IrqIndex.MSIX: self._vectors, IrqIndex.ERR: 1, IrqIndex.REQ: 1}
        )

    def _interrupt_table(self, counts: Mapping[int, int]) -> InterruptTable:
        of, name = self.inputs.of, self.name
        eventfds = Eventfds(
            of(Source(Kind.DESCRIPTOR, name), is_eventfd),
            of(Source(Kind.INTERRUPT, name), signal),
            of(Source(Kind.CLOSED, name), close_fds),
        )
        table = InterruptTable(counts, eventfds)
        self._probes.bind(table, "trigger", "interrupt", name)
        return table

    def _check_is_on(self) -> None:
        if not self._is_on:
            what = f"{self.name} is used before it was powered on"
            raise RuntimeError(f"{what}: {type(self).__name__}.__init__ must end with self.power_on()")

    @property
    def descriptors(self) -> int:
        """Files that this function may have open, but for its sockets and the client's memory."""
        self._check_is_on()
        shared = 2 * len(self._shared)  # a mapping keeps a duplicate
        return shared + sum(self.irq(index).count for index in IrqIndex)

    # -- hooks ------------------------------------------------------------------------------------------------------

    def attempt(self, what: str, hook: Callable[_P, _R], *arguments: _P.args, **named: _P.kwargs) -> _R | None:
        """Call ``hook``, which a subclass may have written; every call of such code goes through here.

        ``what`` it is, for logs. A subclass may decide what an exception means, and not to call anything: the result
        is None then.
        """
        return hook(*arguments, **named)

    def on_reset(self) -> None:
        """The function is reset: device reset, function-level reset, or the client is gone."""

    def on_function_reset(self) -> None:
        """The function was reset by its own PCI Express capability; as :meth:`on_reset` unless it matters by whom."""
        self.on_reset()

    def on_bus_master(self, enabled: bool) -> None:
        """The guest allowed or forbade DMA."""

    def on_ram_changed(self, first: int, nr: int) -> None:
        """RAM came or went among ``nr`` frames from ``first`` on, by a request of the client."""

    def settle(self) -> None:
        """Requests that came together are done, and their replies are not sent yet."""

    def on_shared_renewed(self) -> None:
        """Shared memory is zeros again: publish there what there is."""

    def check_client(self) -> None:
        """Called when the client has announced its memory; raise :class:`vfio_user.RequestError` to refuse it."""

    # -- for subclasses ---------------------------------------------------------------------------------------------

    def interrupt(self, vector: int) -> None:
        """Raise MSI-X ``vector``, if the guest has set it up."""
        if self.interrupts.trigger(IrqIndex.MSIX, vector):
            self.counters.interrupts += 1

    def close(self) -> None:
        """Give back memory and descriptors."""
        self.memory.clear()
        self.interrupts.close()
        for shared in self._shared.values():
            shared.close()

    # -- vfio_user.Device -------------------------------------------------------------------------------------------

    def describe(self) -> DeviceInfo:
        if self._foreign:
            raise RequestError(errno.EBUSY, f"{self.name}: {self._foreign}")
        self._check_is_on()
        self.check_client()
        return DeviceInfo()

    def region(self, index: int) -> Region:
        return self._regions.get(index, _ABSENT)

    def irq(self, index: int) -> Irq:
        counts = {IrqIndex.MSIX: self._vectors, IrqIndex.ERR: 1, IrqIndex.REQ: 1}
        return Irq(counts.get(IrqIndex(index), 0))

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        if index == RegionIndex.CONFIG:
            self._check_is_on()
            self.counters.config_accesses += 1
            return self.config.read(offset, count)
        self.counters.traps += 1
        return self._bar_read(index, offset, count)

    def _bar_read(self, index: int, offset: int, count: int) -> bytes:
        if index in self._registers:
            data = self.attempt("a read of its registers", self._registers[index].read, offset, count)
            return b"\xff" * count if data is None else data
        self._check_is_on()
        if index in self._shared:
            return self.copy_shared(self._shared[index].view[offset : offset + count])
        return bytes(count)  # the MSI-X BAR: nothing is ever pending here

    def region_write(self, index: int, offset: int, data: bytes) -> Steps | None:
        if index == RegionIndex.CONFIG:
            self.counters.config_accesses += 1
            self._config_write(offset, data)
            return None
        self.counters.traps += 1
        return self._bar_write(index, offset, data)

    def _bar_write(self, index: int, offset: int, data: bytes) -> Steps | None:
        if index in self._registers:
            return self.attempt("a write to its registers", self._registers[index].write, offset, data)
        self._check_is_on()
        if index in self._shared:
            self._shared[index].view[offset : offset + len(data)] = data
        return None

    def _config_write(self, offset: int, data: bytes) -> None:
        self._check_is_on()
        was_master = self.config.bus_master
        self.config.write(offset, data)
        high = self._pcie + PCIE_DEVICE_CONTROL + 1 - offset  # the byte of Device Control with the reset bit
        if 0 <= high < len(data) and data[high] & PCIE_FLR >> 8:
            # The BARs stay where they are: the hypervisor answers reads of them itself, and a guest that finds there
            # what it saved before the reset does not write it again.
            self.config.reset(keep_bars=True)
            self._reset_by(self.on_function_reset)
        elif self.config.bus_master != was_master:
            self.attempt("a change of bus mastering", self.on_bus_master, self.config.bus_master)
        self._decode()

    def _decode(self) -> None:
        """Tell of BARs that came, moved or went."""
        decoded = self.config.decoded()
        if decoded != self._decoded:
            self._decoded = decoded
            self.on_bars()

    def windows(self) -> Iterator[Window]:
        """Where the guest finds the BARs now; none while memory decoding is off."""
        for index, address, size in self._decoded:
            read, write = partial(self._bar_read, index), partial(self._bar_write, index)
            yield Window(address, size, index in self._shared, read, write)

    def set_irqs(self, request: IrqRequest) -> None:
        self.interrupts.set_irqs(request)

    def dma_map(self, mapping: DmaMapping) -> bool:
        try:
            return self.memory.map(mapping)
        except ForeignMemoryError as error:
            if not self._foreign:  # once a client: it asks what the device is next, and is refused as a whole
                self._foreign = error.text
                log.error(
                    "%s: client refused: %s, and one topology is one machine: start a server for each QEMU",
                    *(self.name, error.text),
                    extra={"event": "client-refused", "fields": {"function": self.name, "errno": error.errno}},
                )
            raise

    def _ram_changed(self, first: int, nr: int) -> None:
        self.attempt("a change of its memory", self.on_ram_changed, first, nr)

    def dma_unmap(self, address: int, size: int) -> int:
        return self.memory.unmap(address, size)

    def dma_unmap_all(self) -> None:
        self.memory.clear()

    def reset(self) -> None:
        """Registers and configuration space as at power-on; the client's memory maps stay."""
        self._power_cycle()

    def _power_cycle(self) -> None:
        self._check_is_on()
        self.config.reset()
        self._reset_by(self.on_reset)
        self._decode()

    def _reset_by(self, hook: Callable[[], None]) -> None:
        self.attempt("its reset", self._probes.probe("reset", hook, self.name))

    def disconnected(self) -> None:
        """Power-on state, and nothing of the client reachable any more."""
        self.interrupts.close()
        self._foreign = ""
        try:
            self._power_cycle()  # cancels what is queued, which may say so in shared memory: renew that afterwards
        finally:
            self.memory.clear()
            self._files.disconnected()
            self._renew(list(self._shared))
            self.attempt("its new shared memory", self.on_shared_renewed)

    def _renew(self, bars: Sequence[int]) -> None:
        """Take other shared memory: the client may keep its mapping for as long as it lives."""
        for index in bars:
            shared = self._shared[index]
            try:
                shared.renew()
            except OSError as error:
                log.warning("%s: no new shared memory for BAR %d yet: %s", self.name, index, error)
                self._not_renewed.add(index)
            else:
                self._regions[index] = replace(self._regions[index], fd=shared.fd)
                self._not_renewed.discard(index)

    def is_ready(self) -> bool:
        """Whether the next client may come: it must not share memory with the last one, even if there was no other."""
        if self._not_renewed:
            self._renew(sorted(self._not_renewed))
            self.attempt("its new shared memory", self.on_shared_renewed)
        return not self._not_renewed
