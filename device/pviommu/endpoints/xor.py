"""XORs a buffer of the guest with a key (interface: :mod:`pviommu_abi.xor`): an example with an option."""

from typing import Annotated

from msgspec import Meta

from pviommu_abi.registers import OTHER_SYSTEM_CLASS, VENDOR_ID, XOR_DEVICE_ID
from pviommu_abi.xor import MAX_LENGTH, REGISTERS, Status

from ..dma.fault import DmaRefusedError
from ..dma.plan import Access
from ..pci.config_space import Identity
from .endpoint import Endpoint, Options, Surroundings


class XorOptions(Options, frozen=True):
    key: Annotated[int, Meta(ge=0, le=255, description="what every byte is XORed with")] = 0x5A


class Xor(Endpoint):
    """One buffer at a time, in place."""

    IDENTITY = Identity(VENDOR_ID, XOR_DEVICE_ID, OTHER_SYSTEM_CLASS)
    OPTIONS = XorOptions

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings)
        self.registers = self.add_register_bar(0, REGISTERS)
        self.registers["KEY"] = surroundings.options.key
        self._xored = bytes(byte ^ surroundings.options.key for byte in range(256))
        self.add_msix_bar(4, vectors=1, size=4096, pba_offset=0x800)
        self.power_on()

    def write_start(self, _: int, __: int) -> None:
        address, length = self.registers["ADDRESS"], self.registers["LENGTH"]
        if self.registers["STATUS"] != Status.BUSY and 1 <= length <= MAX_LENGTH:  # as much as a step has time for
            self._span = address, length  # kept, because the guest may write other values before the step
            self.registers["STATUS"] = Status.BUSY

    def work(self) -> bool:
        if self.registers["STATUS"] != Status.BUSY:
            return False
        try:  # both or neither: a buffer that may be read but not written is not changed
            source, target = self.dma.plan(([self._span], Access.READ), ([self._span], Access.WRITE))
            self.dma.write_plan(target, self.dma.read_plan(source).translate(self._xored))
            self._finish(Status.DONE)
        except DmaRefusedError:
            self._finish(Status.REFUSED)
        return True

    def _finish(self, status: Status) -> None:
        self.registers["STATUS"] = status
        self.interrupt(0)

    def cancel_dma(self) -> None:
        if self.registers["STATUS"] == Status.BUSY:
            self._finish(Status.CANCELLED)

    def reset_device(self) -> None:
        self.registers.reset()
