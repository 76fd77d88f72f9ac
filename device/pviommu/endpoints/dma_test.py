"""The DMA test engine: copy, fill, checksum and verify by descriptors (interface: :mod:`pviommu_abi.dma_test`)."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace

from pviommu_abi import dma_test as abi
from pviommu_abi.dma_test import Control, Descriptor, DescriptorFlags, DescriptorStatus, DmaOp, SgEntry
from pviommu_abi.registers import DMA_TEST_DEVICE_ID, OTHER_SYSTEM_CLASS, VENDOR_ID

from ..dma.fault import REASON, DmaRefusedError
from ..dma.plan import Span
from ..dma.port import PIECE_BYTES, PIECE_SPANS, DmaPort, DmaSteps
from ..pci.config_space import Identity
from .endpoint import Endpoint, Surroundings

__all__ = ["DmaTestEngine"]

_MASK = 0xFFFFFFFF
_KNOWN_FLAGS = int(DescriptorFlags.SRC_SG | DescriptorFlags.DST_SG | DescriptorFlags.INTERRUPT | DescriptorFlags.PASID)
_STATUS = Descriptor.offset_of("status")
_PASID = int(DescriptorFlags.PASID)
_INTERRUPT = int(DescriptorFlags.INTERRUPT)
_FLAGS = Descriptor.offset_of("flags")
_ADDRESS, _LENGTH = SgEntry.offset_of("address"), SgEntry.offset_of("length")
STEP_NS = 100_000
"""A step ends with the piece of a descriptor that exceeds this time, because there may be many engines."""


class InvalidDescriptorError(Exception):
    """A descriptor that breaks a rule; nothing of it is carried out."""


class DmaTestEngine(Endpoint):
    """A queue of descriptors in shared memory, carried out one after the other; a long one takes several steps."""

    IDENTITY = Identity(VENDOR_ID, DMA_TEST_DEVICE_ID, OTHER_SYSTEM_CLASS)

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings)
        self._bar = self.add_register_bar(0, abi.REGISTERS)
        self.shared = self.add_shared_bar(2, abi.SHARED_BAR_SIZE)
        self.add_msix_bar(4, vectors=abi.MSIX_VECTORS, size=4096, pba_offset=0x800)
        self._running: DmaSteps[Descriptor] | None = None
        """the descriptor that is next to finish, if it has begun"""
        self._operations: dict[int, Callable[[Descriptor], DmaSteps[Descriptor]]] = {
            int(op): getattr(self, f"op_{op.name.lower()}") for op in DmaOp
        }
        self.power_on()

    # -- registers --------------------------------------------------------------------------------------------------

    def write_control(self, _: int, value: int) -> None:
        if value & Control.RESET:
            self.cancel_dma()
            self._bar.reset("PRODUCER", "CONSUMER")

    def accept_producer(self, _: int, value: int) -> bool:
        return (value - self._bar["CONSUMER"]) & _MASK <= abi.ENTRIES  # more than the queue holds cannot be meant

    # -- queue ------------------------------------------------------------------------------------------------------

    def _queued(self) -> int:
        return (self._bar["PRODUCER"] - self._bar["CONSUMER"]) & _MASK

    @property
    def is_in_progress(self) -> bool:
        return self._running is not None

    def work(self) -> bool:
        """Carry out one descriptor, or as much of it as a step has time for."""
        if not self._queued() or not self._bar["CONTROL"] & Control.ENABLE:
            return False
        if self._running is None:
            self._running = self._outcome(self._fetch())
        self._advance(self._running)
        return True

    def go_on(self) -> None:
        """What has begun is carried out, even if the engine is not enabled any more; but not what was taken back."""
        if self._running is not None and self._queued():
            self._advance(self._running)
        else:
            self._drop()

    def _advance(self, running: DmaSteps[Descriptor]) -> None:
        deadline = self.inputs.now_ns() + STEP_NS
        try:
            while next(running) and self.inputs.now_ns() <= deadline:
                pass
        except StopIteration as end:
            self._running = None
            self._finish(end.value)

    def _drop(self) -> None:
        """Forget the descriptor that has begun."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def _outcome(self, descriptor: Descriptor) -> DmaSteps[Descriptor]:
        """The descriptor after it was carried out or refused."""
        try:
            return (yield from self._carry_out(descriptor))
        except DmaRefusedError as refused:
            fault = refused.fault
            return replace(
                descriptor,
                status=DescriptorStatus.FAULT,
                detail=fault.iova,
                reason=REASON.get(fault.kind, 0),  # 0: it did not leave the function
                access=int(fault.access),
            )
        except InvalidDescriptorError:
            return replace(descriptor, status=DescriptorStatus.INVALID)

    def _carry_out(self, descriptor: Descriptor) -> DmaSteps[Descriptor]:
        operation = self._operations.get(descriptor.op)
        if operation is None or descriptor.flags & ~_KNOWN_FLAGS or descriptor.pad0:
            raise InvalidDescriptorError
        if not 1 <= descriptor.length <= abi.MAX_LENGTH:
            raise InvalidDescriptorError
        if _is_long(descriptor):
            yield False  # those of other engines that are not come first
        return (yield from operation(descriptor))

    def _place(self) -> int:
        """Offset in shared memory of the next descriptor to finish."""
        return self._bar["CONSUMER"] % abi.ENTRIES * Descriptor.SIZE

    def _fetch(self) -> Descriptor:
        place = self._place()
        return Descriptor.unpack(self.copy_shared(self.shared.view[place : place + Descriptor.SIZE]))

    def _finish(self, descriptor: Descriptor) -> None:
        """Write the descriptor back, its status last, and count it as finished."""
        place = self._place()
        packed = descriptor.pack()
        self.shared.view[place : place + _STATUS] = packed[:_STATUS]
        self.shared.words[(place + _STATUS) // 4] = descriptor.status
        self._count_finished(descriptor.flags)

    def _count_finished(self, flags: int) -> None:
        self._bar["CONSUMER"] = (self._bar["CONSUMER"] + 1) & _MASK
        if flags & _INTERRUPT:
            self.interrupt(0)

    def cancel_dma(self) -> None:
        self._drop()
        flags = self.copy_shared(self.shared.view[: abi.ENTRIES * Descriptor.SIZE])[_FLAGS :: Descriptor.SIZE]
        while self._queued():
            place = self._place()
            self.shared.words[(place + _STATUS) // 4] = DescriptorStatus.CANCELLED
            self._count_finished(flags[place // Descriptor.SIZE])

    def reset_device(self) -> None:
        self.cancel_dma()
        self._bar.reset()

    # -- operations -------------------------------------------------------------------------------------------------

    def _spans(self, descriptor: Descriptor, address: int, flag: DescriptorFlags) -> list[Span]:
        """Where ``src`` or ``dst`` is: one span, or what the scatter/gather entries name."""
        if not descriptor.flags & flag:
            return [(address, descriptor.length)]
        first, count = address & _MASK, address >> 32
        if not 1 <= count <= abi.SG_ENTRIES or first + count > abi.SG_ENTRIES:
            raise InvalidDescriptorError
        start = abi.SG_OFFSET + first * SgEntry.SIZE
        table = self.copy_shared(self.shared.view[start : start + count * SgEntry.SIZE])
        addresses = memoryview(table).cast("Q")[_ADDRESS // 8 :: SgEntry.SIZE // 8].tolist()
        lengths = memoryview(table).cast("I")[_LENGTH // 4 :: SgEntry.SIZE // 4].tolist()
        if 0 in lengths or sum(lengths) != descriptor.length:
            raise InvalidDescriptorError
        return list(zip(addresses, lengths, strict=True))

    def _source(self, descriptor: Descriptor) -> list[Span]:
        return self._spans(descriptor, descriptor.src, DescriptorFlags.SRC_SG)

    def _destination(self, descriptor: Descriptor) -> list[Span]:
        return self._spans(descriptor, descriptor.dst, DescriptorFlags.DST_SG)

    def _port(self, descriptor: Descriptor) -> DmaPort:
        """What carries out its DMA."""
        if not descriptor.flags & _PASID:
            return self.dma
        port = self.dma_as(descriptor.pasid)
        if port is None:
            raise InvalidDescriptorError
        return port

    def op_copy(self, descriptor: Descriptor) -> DmaSteps[Descriptor]:
        yield from self._port(descriptor).copy_in_steps(self._source(descriptor), self._destination(descriptor))
        return replace(descriptor, status=DescriptorStatus.DONE)

    def op_fill(self, descriptor: Descriptor) -> DmaSteps[Descriptor]:
        data = _repeated(descriptor.pattern, descriptor.length)
        yield from self._port(descriptor).write_in_steps(self._destination(descriptor), data)
        return replace(descriptor, status=DescriptorStatus.DONE)

    def op_checksum(self, descriptor: Descriptor) -> DmaSteps[Descriptor]:
        data = yield from self._port(descriptor).read_in_steps(self._source(descriptor))
        checksum = 0
        for start in range(0, len(data), PIECE_BYTES):
            checksum = zlib.crc32(data[start : start + PIECE_BYTES], checksum)
            yield True
        return replace(descriptor, status=DescriptorStatus.DONE, checksum=checksum)

    def op_verify(self, descriptor: Descriptor) -> DmaSteps[Descriptor]:
        data = yield from self._port(descriptor).read_in_steps(self._source(descriptor))
        expected = _repeated(descriptor.pattern, min(descriptor.length, PIECE_BYTES))
        for start in range(0, len(data), PIECE_BYTES):
            offset = _first_difference(data[start : start + PIECE_BYTES], expected)
            if offset is not None:
                return replace(descriptor, status=DescriptorStatus.MISMATCH, detail=start + offset)
            yield True
        return replace(descriptor, status=DescriptorStatus.DONE)


def _is_long(descriptor: Descriptor) -> bool:
    """Whether it takes several steps."""
    lists = (
        address >> 32
        for address, flag in ((descriptor.src, DescriptorFlags.SRC_SG), (descriptor.dst, DescriptorFlags.DST_SG))
        if descriptor.flags & flag
    )
    return descriptor.length > PIECE_BYTES or max(lists, default=1) > PIECE_SPANS


def _first_difference(data: bytes | bytearray, expected: bytes) -> int | None:
    """The first difference between ``data`` and the beginning of ``expected``."""
    if expected.startswith(data):
        return None
    difference = int.from_bytes(data, "little") ^ int.from_bytes(expected[: len(data)], "little")
    return ((difference & -difference).bit_length() - 1) // 8  # the lowest set bit is in the first different byte


def _repeated(pattern: int, length: int) -> bytes:
    """``length`` bytes of the eight bytes of ``pattern`` over and over."""
    return (pattern.to_bytes(8, "little") * (length // 8 + 1))[:length]
