"""A PCI function behind a vfio-user session: what all functions of this package have in common.

A subclass describes itself in ``__init__``, calls ``power_on()`` last (:mod:`.description`), and overrides the hooks
that it needs (:mod:`.hooks`).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

from vfio_user import (
    DeviceInfo,
    DmaMapping,
    Irq,
    IrqIndex,
    IrqRequest,
    Region,
    RegionFlags,
    RegionIndex,
    RequestError,
    Steps,
)

from ..dma.memory import GuestMemory
from ..dma.policy import ForeignMemoryError
from .capabilities import PCIE_DEVICE_CONTROL, PCIE_FLR
from .config_space import CONFIG_SIZE, Identity
from .description import Description
from .environment import Environment
from .hooks import Attempts, Hooks

__all__ = ["Environment", "PciFunction"]

log = logging.getLogger(__name__)

_ABSENT = Region()
_CONFIG = int(RegionIndex.CONFIG)
_CONFIG_REGION = Region(CONFIG_SIZE, RegionFlags.READ | RegionFlags.WRITE)


class PciFunction(Description, Hooks):
    """One PCI Express function with register, shared-memory and MSI-X BARs. Implements :class:`vfio_user.Device`."""

    def __init__(
        self, name: str, identity: Identity, environment: Environment, attempts: Attempts | None = None
    ) -> None:
        super().__init__(name, identity, environment, attempts or Attempts())
        self._files = environment.files
        self.memory = GuestMemory(self.inputs, self._ram_changed, self._files, name)
        self._foreign = ""
        """why the client belongs to another machine, if it does"""
        self.unfinished_writes = 0
        """accesses of the client that are not finished yet"""

    def interrupt(self, vector: int) -> None:
        """Raise MSI-X ``vector``, if the guest has set it up and the function has not failed."""
        if not self.attempts.failed and self.interrupts.trigger(IrqIndex.MSIX, vector):
            self.counters.interrupts += 1

    def close(self) -> None:
        self.memory.clear()
        super().close()

    # -- vfio_user.Device: what there is ----------------------------------------------------------------------------

    def describe(self) -> DeviceInfo:
        if self._foreign:
            raise RequestError(errno.EBUSY, f"{self.name}: {self._foreign}")
        self._check_is_on()
        self.check_client()
        return DeviceInfo()

    def region(self, index: int) -> Region:
        bar = self.bars.get(index)
        if bar is not None:
            return bar.region
        return _CONFIG_REGION if index == _CONFIG else _ABSENT

    def irq(self, index: int) -> Irq:
        return Irq(self.interrupts.counts.get(index, 0))

    # -- vfio_user.Device: accesses ---------------------------------------------------------------------------------

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        self._check_is_on()
        if index == _CONFIG:
            self.counters.config_accesses += 1
            return self.config.read(offset, count)
        self.counters.traps += 1
        return self.bars[index].read(offset, count)

    def region_write(self, index: int, offset: int, data: bytes) -> Steps | None:
        self._check_is_on()
        if index == _CONFIG:
            self.counters.config_accesses += 1
            self._config_write(offset, data)
            return None
        self.counters.traps += 1
        steps = self.bars[index].write(offset, data)
        return None if steps is None else self._noted(steps)

    def _noted(self, steps: Steps) -> Steps:
        self.unfinished_writes += 1
        try:
            yield from steps
        finally:
            self.unfinished_writes -= 1

    def _config_write(self, offset: int, data: bytes) -> None:
        was_master = self.config.bus_master
        self.config.write(offset, data)
        high = self._pcie + PCIE_DEVICE_CONTROL + 1 - offset  # the byte of Device Control with the reset bit
        if 0 <= high < len(data) and data[high] & PCIE_FLR >> 8:
            # The BARs stay where they are: the hypervisor answers reads of them itself, and a guest that finds there
            # what it saved before the reset does not write it again.
            self._reset_by(self.on_function_reset, keep_bars=True)
            return
        if self.config.bus_master != was_master:
            self.attempts.make("a change of bus mastering", self.on_bus_master, self.config.bus_master)
        self.attempts.make("a change of its configuration", self.on_configured)
        self.bars.decode()

    # -- vfio_user.Device: interrupts and memory --------------------------------------------------------------------

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
        self.attempts.make("a change of its memory", self.on_ram_changed, first, nr)

    def dma_unmap(self, address: int, size: int) -> int:
        return self.memory.unmap(address, size)

    def dma_unmap_all(self) -> None:
        self.memory.clear()

    # -- vfio_user.Device: resets, and the next client --------------------------------------------------------------

    def reset(self) -> None:
        """Registers and configuration space as at power-on; the client's memory maps stay."""
        self._reset_by(self.on_reset)

    def _reset_by(self, hook: Callable[[], None], *, keep_bars: bool = False) -> None:
        self._check_is_on()
        self.config.reset(keep_bars=keep_bars)
        self.attempts.reset()
        self.attempts.make("its reset", self.probes.probe("reset", hook, self.name))
        self.bars.decode()

    def disconnected(self) -> None:
        """Back to power-on, with none of the client's memory within reach."""
        self.interrupts.close()
        self._foreign = ""
        try:
            self._reset_by(self.on_reset)  # cancels what is queued, which shared memory may tell: renew that afterwards
        finally:
            self.memory.clear()
            self._files.disconnected()
            self.bars.stale.update(self.bars.shared)
            self._renew()

    def _renew(self) -> None:
        self.bars.renew()
        self.attempts.make("its new shared memory", self.on_shared_renewed)

    def is_ready(self) -> bool:
        """Whether the next client may come: it must not share memory with the one before."""
        if self.bars.stale:
            self._renew()
        return not self.bars.stale
