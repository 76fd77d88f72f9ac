"""The DMA test engine: copy, fill, checksum and verify by descriptors (interface: :mod:`pviommu_abi.dma_test`)."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace

from pviommu_abi import dma_test as abi
from pviommu_abi.dma_test import Control, Descriptor, DescriptorFlags, DescriptorStatus, DmaOp, SgEntry
from pviommu_abi.registers import DMA_TEST_DEVICE_ID, OTHER_SYSTEM_CLASS, VENDOR_ID

from ..engine import Access
from ..iommu.function import PvIommu
from ..pci.config_space import Identity
from ..pci.function import Environment
from .dma import DmaRefusedError, Span
from .endpoint import Endpoint

__all__ = ["DmaTestEngine"]

_MASK = 0xFFFFFFFF
_KNOWN_FLAGS = int(DescriptorFlags.SRC_SG | DescriptorFlags.DST_SG | DescriptorFlags.INTERRUPT)
_STATUS = Descriptor.offset_of("status")


class InvalidDescriptorError(Exception):
    """A descriptor that breaks a rule; nothing of it is carried out."""


class DmaTestEngine(Endpoint):
    """A queue of descriptors in shared memory, worked off one a step."""

    IDENTITY = Identity(VENDOR_ID, DMA_TEST_DEVICE_ID, OTHER_SYSTEM_CLASS)

    def __init__(self, name: str, stream: int, iommu: PvIommu, environment: Environment) -> None:
        super().__init__(name, stream, iommu, environment)
        self._bar = self.add_register_bar(0, abi.REGISTERS)
        self.shared = self.add_shared_bar(2, abi.SHARED_BAR_SIZE)
        self.add_msix_bar(4, vectors=abi.MSIX_VECTORS, size=4096, pba_offset=0x800)
        for register, value in (
            ("MAGIC", abi.MAGIC),
            ("VERSION", abi.VERSION),
            ("ENTRIES", abi.ENTRIES),
            ("SG_ENTRIES", abi.SG_ENTRIES),
            ("MAX_LENGTH", abi.MAX_LENGTH),
        ):
            self._bar[register] = value
        self._operations: dict[int, Callable[[Descriptor], Descriptor]] = {
            int(op): getattr(self, f"op_{op.name.lower()}") for op in DmaOp
        }
        self.power_on()

    # -- registers --------------------------------------------------------------------------------------------------

    def write_control(self, _: int, value: int) -> None:
        if value & Control.RESET:
            self.reset_device()
        self._bar["CONTROL"] = value & Control.ENABLE

    def write_producer(self, _: int, value: int) -> None:
        if (value - self._bar["CONSUMER"]) & _MASK <= abi.ENTRIES:  # more than the queue holds cannot be meant
            self._bar["PRODUCER"] = value

    # -- queue ------------------------------------------------------------------------------------------------------

    def _queued(self) -> int:
        return (self._bar["PRODUCER"] - self._bar["CONSUMER"]) & _MASK

    def work(self) -> bool:
        """Carry out one descriptor. Its length is bounded, so the step is."""
        if not self._queued() or not self._bar["CONTROL"] & Control.ENABLE:
            return False
        descriptor = self._fetch()
        try:
            done = self._carry_out(descriptor)
        except DmaRefusedError as refused:
            reason = int(refused.reason) if refused.reason else 0
            done = replace(
                descriptor,
                status=DescriptorStatus.FAULT,
                detail=refused.iova,
                reason=reason,
                access=int(refused.access),
            )
        except InvalidDescriptorError:
            done = replace(descriptor, status=DescriptorStatus.INVALID)
        self._finish(done)
        return True

    def _carry_out(self, descriptor: Descriptor) -> Descriptor:
        operation = self._operations.get(descriptor.op)
        if operation is None or descriptor.flags & ~_KNOWN_FLAGS or descriptor.pad0:
            raise InvalidDescriptorError
        if not 1 <= descriptor.length <= abi.MAX_LENGTH:
            raise InvalidDescriptorError
        return operation(descriptor)

    def _place(self) -> int:
        """Offset in shared memory of the next descriptor to finish."""
        return self._bar["CONSUMER"] % abi.ENTRIES * Descriptor.SIZE

    def _fetch(self) -> Descriptor:
        place = self._place()
        return Descriptor.unpack(self.inputs.copy(self.shared.view[place : place + Descriptor.SIZE]))

    def _finish(self, descriptor: Descriptor) -> None:
        """Write the descriptor back, its status last, and count it as finished."""
        place = self._place()
        packed = descriptor.pack()
        self.shared.view[place : place + _STATUS] = packed[:_STATUS]
        self.shared.words[(place + _STATUS) // 4] = descriptor.status
        self._bar["CONSUMER"] = (self._bar["CONSUMER"] + 1) & _MASK
        if descriptor.flags & DescriptorFlags.INTERRUPT:
            self.interrupt(0)

    def cancel_dma(self) -> None:
        while self._queued():
            self._finish(replace(self._fetch(), status=DescriptorStatus.CANCELLED))

    def reset_device(self) -> None:
        self.cancel_dma()
        self._bar.clear(("CONTROL", "PRODUCER", "CONSUMER"))

    # -- operations -------------------------------------------------------------------------------------------------

    def _spans(self, descriptor: Descriptor, address: int, flag: DescriptorFlags) -> list[Span]:
        """Where ``src`` or ``dst`` is: one span, or what the scatter/gather entries name."""
        if not descriptor.flags & flag:
            return [(address, descriptor.length)]
        first, count = address & _MASK, address >> 32
        if not 1 <= count <= abi.SG_ENTRIES or first + count > abi.SG_ENTRIES:
            raise InvalidDescriptorError
        start = abi.SG_OFFSET + first * SgEntry.SIZE
        table = self.inputs.copy(self.shared.view[start : start + count * SgEntry.SIZE])
        spans = [(iova, length) for iova, length, _ in SgEntry.STRUCT.iter_unpack(table)]
        if any(length == 0 for _, length in spans) or sum(length for _, length in spans) != descriptor.length:
            raise InvalidDescriptorError
        return spans

    def _source(self, descriptor: Descriptor) -> list[Span]:
        return self._spans(descriptor, descriptor.src, DescriptorFlags.SRC_SG)

    def _destination(self, descriptor: Descriptor) -> list[Span]:
        return self._spans(descriptor, descriptor.dst, DescriptorFlags.DST_SG)

    def op_copy(self, descriptor: Descriptor) -> Descriptor:
        source, destination = self._source(descriptor), self._destination(descriptor)
        plan_in, plan_out = self.dma.plan((source, Access.READ), (destination, Access.WRITE))
        self.dma.write_plan(plan_out, self.dma.read_plan(plan_in))
        return replace(descriptor, status=DescriptorStatus.DONE)

    def op_fill(self, descriptor: Descriptor) -> Descriptor:
        self.dma.write(self._destination(descriptor), _repeated(descriptor.pattern, descriptor.length))
        return replace(descriptor, status=DescriptorStatus.DONE)

    def op_checksum(self, descriptor: Descriptor) -> Descriptor:
        checksum = zlib.crc32(self.dma.read(self._source(descriptor)))
        return replace(descriptor, status=DescriptorStatus.DONE, checksum=checksum)

    def op_verify(self, descriptor: Descriptor) -> Descriptor:
        data = self.dma.read(self._source(descriptor))
        expected = _repeated(descriptor.pattern, descriptor.length)
        if data == expected:
            return replace(descriptor, status=DescriptorStatus.DONE)
        difference = int.from_bytes(data, "little") ^ int.from_bytes(expected, "little")
        offset = ((difference & -difference).bit_length() - 1) // 8  # the lowest set bit is in the first different byte
        return replace(descriptor, status=DescriptorStatus.MISMATCH, detail=offset)


def _repeated(pattern: int, length: int) -> bytes:
    """``length`` bytes of the eight bytes of ``pattern`` over and over."""
    return (pattern.to_bytes(8, "little") * (length // 8 + 1))[:length]
