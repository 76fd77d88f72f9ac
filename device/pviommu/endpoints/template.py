"""A complete endpoint to start from: copy this file, rename, change.

The device stamps: writing an address to STAMP_AT makes it write a counter there by DMA and interrupt the guest.
To add a device: put its class into a file of this folder, its name into ``ENDPOINTS`` of
:mod:`pviommu.endpoints`, and ``kind = "..."`` into a topology.
"""

from __future__ import annotations

from msgspec import field

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

    class State(Endpoint.State):  # of self.state: all that is not in registers. A reset makes it anew
        queue: list[int] = field(default_factory=list)

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings)
        self.registers = self.add_register_bar(0, REGISTERS)  # BAR 0; handlers are found by name below
        self.add_msix_bar(4, vectors=1, size=4096, pba_offset=0x800)
        self.power_on()  # what was described so far is the power-on state

    def write_stamp_at(self, _: int, value: int) -> None:
        if len(self.state.queue) < 64:  # nothing that a guest can fill is without a bound
            self.state.queue.append(value)

    def work(self) -> bool:
        """One stamp a step: DMA happens here, never in a register handler, while the guest waits for an answer."""
        if not self.state.queue:
            return False
        try:  # an address stays queued until it is known what becomes of it: DMA that has to wait raises, too
            self.dma.write([(self.state.queue[0], 4)], (self.registers["STAMPS"] + 1).to_bytes(4, "little"))
            self.registers["STAMPS"] += 1
        except DmaRefusedError:  # the guest has been told
            self.registers["REFUSED"] += 1
        del self.state.queue[0]
        self.interrupt(0)
        return True

    def cancel_dma(self) -> None:
        self.state.queue.clear()
