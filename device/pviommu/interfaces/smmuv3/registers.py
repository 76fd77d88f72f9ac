"""What accesses to the register frame do."""

from __future__ import annotations

from typing import Protocol

from smmuv3.registers import (
    REGISTERS,
    Cr0,
    Cr2,
    Gbpa,
    GlobalError,
    IrqControl,
    MsiAddress,
    PageRequestInterrupt,
    QueueBase,
    StreamTableConfig,
    Vector,
)

from ...pci.registers import RegisterFile
from .config import SmmuConfig

__all__ = ["RegisterOwner", "SmmuRegisters"]

_CIDR = (0x0D, 0xF0, 0x05, 0xB1)
"""Of every component of Arm's."""
_MSI_OF = {
    Vector.GERROR: ("GERROR_IRQ_CFG0", "GERROR_IRQ_CFG1", int(GlobalError.MSI_GERROR_ABT_ERR)),
    Vector.EVENTQ: ("EVENTQ_IRQ_CFG0", "EVENTQ_IRQ_CFG1", int(GlobalError.MSI_EVENTQ_ABT_ERR)),
    Vector.PRIQ: ("PRIQ_IRQ_CFG0", "PRIQ_IRQ_CFG1", int(GlobalError.MSI_PRIQ_ABT_ERR)),
}
"""Registers that say where and what, and the error if it cannot be written."""
_ENABLE_OF = {
    Vector.GERROR: int(IrqControl.GERROR_IRQEN),
    Vector.EVENTQ: int(IrqControl.EVENTQ_IRQEN),
    Vector.PRIQ: int(IrqControl.PRIQ_IRQEN),
}


class RegisterOwner(Protocol):
    """The SMMU that the registers belong to."""

    def interrupt(self, vector: Vector) -> None:
        """Raise an interrupt."""

    def write_msi(self, address: int, data: int) -> bool:
        """Write ``data`` there; whether that was possible."""


class SmmuRegisters:
    """The handlers of :attr:`file`, and what it says."""

    def __init__(self, config: SmmuConfig, owner: RegisterOwner) -> None:
        self._owner = owner
        self._most_bits = {
            "CMDQ_BASE": config.cmdq_bits,
            "EVENTQ_BASE": config.evtq_bits,
            "PRIQ_BASE": config.priq_bits,
        }
        self._queues: dict[str, tuple[int, tuple[int, int]]] = {}
        """what :meth:`queue` has made of a register's value: it is asked all the time"""
        self._sid_bits = config.sid_bits
        self._has_pri = config.priq_bits > 0
        self._controls = ~((0 if config.ats else Cr0.ATSCHK) | (0 if self._has_pri else Cr0.PRIQEN))
        """bits of CR0 that there are"""
        self._interrupts = -1 if self._has_pri else ~IrqControl.PRIQ_IRQEN
        """and of IRQ_CTRL"""
        self._has_msi = config.msi
        self._queue_addresses = int(QueueBase.ADDR) & (1 << config.address_bits) - 1
        self.file = RegisterFile(REGISTERS, self)
        for name, value in config.identification().items():
            self.file[name] = value
        self.file.seal()

    # -- what is on -------------------------------------------------------------------------------------------------

    def has(self, enable: int) -> bool:
        """Whether a bit of CR0 is set."""
        return bool(self.file["CR0"] & enable)

    def write_cr0(self, _: int, __: int) -> None:
        self.file["CR0"] &= self._controls
        self.file["CR0ACK"] = self.file["CR0"]  # what a turn has begun is done

    def accept_cr1(self, _: int, __: int) -> bool:
        return not self.file["CR0"]

    def accept_cr2(self, _: int, __: int) -> bool:
        return not self.has(Cr0.SMMUEN)

    @property
    def records_unknown_streams(self) -> bool:
        """Whether StreamIDs out of range are recorded."""
        return bool(self.file["CR2"] & Cr2.RECINVSID)

    def accept_gbpa(self, _: int, value: int) -> bool:
        return bool(value & Gbpa.UPDATE)

    def write_gbpa(self, _: int, __: int) -> None:
        self.file["GBPA"] &= ~Gbpa.UPDATE

    @property
    def aborts_all(self) -> bool:
        """Whether transactions are aborted while translation is off."""
        return bool(self.file["GBPA"] & Gbpa.ABORT)

    # -- interrupts and global errors -------------------------------------------------------------------------------

    def write_irq_ctrl(self, _: int, __: int) -> None:
        self.file["IRQ_CTRL"] &= self._interrupts
        self.file["IRQ_CTRLACK"] = self.file["IRQ_CTRL"]

    def interrupt(self, vector: Vector) -> None:
        """Raise an interrupt, if IRQ_CTRL has it enabled; nothing there is about that of CMD_SYNC."""
        if vector in _ENABLE_OF and not self.file["IRQ_CTRL"] & _ENABLE_OF[vector]:
            return
        place, data, error = _MSI_OF.get(vector, ("", "", 0))
        address = self.file[place] & int(MsiAddress.ADDR) if place else 0
        if not address:
            self._owner.interrupt(vector)
        else:
            self.send(address, self.file[data], error)

    def send(self, address: int, data: int, error: int) -> None:
        """Write an MSI; ``error`` becomes active if that is not possible."""
        if not self._owner.write_msi(address, data):
            self.activate(error)

    def is_active(self, error: int) -> bool:
        """Whether a global error is not acknowledged yet."""
        return bool((self.file["GERROR"] ^ self.file["GERRORN"]) & error)

    def activate(self, error: int) -> None:
        """A global error has occurred. While one is active the next of its kind is not told."""
        if not self.is_active(error):
            self.file["GERROR"] ^= error
            if error != GlobalError.MSI_GERROR_ABT_ERR:  # it would be written to the same place
                self.interrupt(Vector.GERROR)

    def accept_gerrorn(self, _: int, value: int) -> bool:
        """Take over the bits of errors that are active: others cannot be acknowledged."""
        active = self.file["GERROR"] ^ self.file["GERRORN"]
        self.file["GERRORN"] ^= (self.file["GERRORN"] ^ value) & active & sum(GlobalError)
        return False

    def _may_set(self, vector: Vector) -> bool:
        return not self.file["IRQ_CTRL"] & _ENABLE_OF[vector]

    def _may_place_msi(self, vector: Vector) -> bool:
        return self._has_msi and self._may_set(vector)

    def accept_gerror_irq_cfg0(self, _: int, __: int) -> bool:
        return self._may_place_msi(Vector.GERROR)

    def accept_eventq_irq_cfg0(self, _: int, __: int) -> bool:
        return self._may_place_msi(Vector.EVENTQ)

    accept_gerror_irq_cfg1 = accept_gerror_irq_cfg2 = accept_gerror_irq_cfg0
    accept_eventq_irq_cfg1 = accept_eventq_irq_cfg2 = accept_eventq_irq_cfg0

    def accept_priq_irq_cfg0(self, _: int, __: int) -> bool:
        return self._has_pri and self._may_place_msi(Vector.PRIQ)

    accept_priq_irq_cfg1 = accept_priq_irq_cfg0

    def accept_priq_irq_cfg2(self, _: int, __: int) -> bool:
        return self._has_pri and self._may_set(Vector.PRIQ)

    def write_priq_irq_cfg2(self, _: int, __: int) -> None:
        if not self._has_msi:
            self.file["PRIQ_IRQ_CFG2"] &= PageRequestInterrupt.LO

    @property
    def tells_of_groups(self) -> bool:
        """Whether the last page request of each group interrupts, instead of the first one in an empty queue."""
        return bool(self.file["PRIQ_IRQ_CFG2"] & PageRequestInterrupt.LO)

    # -- tables and queues ------------------------------------------------------------------------------------------

    def _is_off(self, enable: int) -> bool:
        return not self.has(enable)

    def accept_strtab_base(self, _: int, __: int) -> bool:
        return self._is_off(Cr0.SMMUEN)

    def accept_strtab_base_cfg(self, _: int, __: int) -> bool:
        return self._is_off(Cr0.SMMUEN)

    def accept_cmdq_base(self, _: int, __: int) -> bool:
        return self._is_off(Cr0.CMDQEN)

    def accept_cmdq_cons(self, _: int, __: int) -> bool:
        return self._is_off(Cr0.CMDQEN)

    def accept_eventq_base(self, _: int, __: int) -> bool:
        return self._is_off(Cr0.EVENTQEN)

    def accept_eventq_prod(self, _: int, __: int) -> bool:
        return self._is_off(Cr0.EVENTQEN)

    def accept_priq_base(self, _: int, __: int) -> bool:
        return self._has_pri and self._is_off(Cr0.PRIQEN)

    def accept_priq_prod(self, _: int, __: int) -> bool:
        return self._has_pri and self._is_off(Cr0.PRIQEN)

    def accept_priq_cons(self, _: int, __: int) -> bool:
        return self._has_pri

    def queue(self, name: str) -> tuple[int, int]:
        """The base address of a queue, of CMDQ_BASE or another, without its alignment, and log2 of its entries. Bits
        beyond the output size do not count (IHI 0070, 3.4.3).
        """
        value = self.file[name]
        known = self._queues.get(name)
        if known is None or known[0] != value:
            base = QueueBase(value)
            known = value, (int(base & self._queue_addresses), min(base.LOG2SIZE, self._most_bits[name]))
            self._queues[name] = known
        return known[1]

    def stream_table(self) -> tuple[int, StreamTableConfig, int]:
        """Address and format of the stream table, and bits of the StreamIDs in it."""
        config = StreamTableConfig(self.file["STRTAB_BASE_CFG"])
        address = self.file["STRTAB_BASE"] & 0xF_FFFF_FFFF_FFC0
        return address, config, min(config.LOG2SIZE, self._sid_bits)

    def read_cidr(self, index: int) -> int:
        return _CIDR[index]
