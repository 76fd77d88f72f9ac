"""A complete endpoint to start from: copy this file, rename, change.

The device stamps: writing an address to STAMP_AT makes it write a counter there by DMA and interrupt the guest.
To add a device: put its class into a file of this folder, its name into ``ENDPOINTS`` of
:mod:`pviommu.endpoints`, and ``kind = "..."`` into a topology.
"""

from __future__ import annotations

from pviommu_abi.registers import OTHER_SYSTEM_CLASS, TEMPLATE_DEVICE_ID, VENDOR_ID
from wire_layout.registers import AccessKind, Register, RegisterMap

from ..dma.fault import DmaRefusedError
from ..pci.config_space import Identity
from .endpoint import Endpoint, Surroundings

# One line per register: name, offset, access kind, meaning.
REGISTERS = RegisterMap(
    Register("STAMP_AT", 0x00, AccessKind.WO, "device address to stamp; writing it queues the stamp"),
    Register("STAMPS", 0x04, AccessKind.RO, "stamps written"),
    Register("REFUSED", 0x08, AccessKind.RO, "stamps that the IOMMU refused"),
)


class Template(Endpoint):
    """Writes a 32-bit counter wherever the guest asks."""

    IDENTITY = Identity(VENDOR_ID, TEMPLATE_DEVICE_ID, OTHER_SYSTEM_CLASS)

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings)
        self.registers = self.add_register_bar(0, REGISTERS)  # BAR 0; handlers are found by name below
        self.add_msix_bar(4, vectors=1, size=4096, pba_offset=0x800)
        self._queue: list[int] = []
        self.power_on()  # the state so far is the power-on state

    def write_stamp_at(self, _: int, value: int) -> None:
        if len(self._queue) < 64:  # everything that a guest can fill has a bound
            self._queue.append(value)

    def work(self) -> bool:
        """One stamp per step: DMA happens here, never in a register handler, for which the guest waits."""
        if not self._queue:
            return False
        try:  # an address stays queued until its outcome is known: DMA that has to wait raises, too
            self.dma.write([(self._queue[0], 4)], (self.registers["STAMPS"] + 1).to_bytes(4, "little"))
            self.registers["STAMPS"] += 1
        except DmaRefusedError:  # the guest has been told
            self.registers["REFUSED"] += 1
        del self._queue[0]
        self.interrupt(0)
        return True

    def cancel_dma(self) -> None:
        self._queue.clear()

    def reset_device(self) -> None:
        self._queue.clear()
        self.registers.reset()
