"""Two machines with an SMMUv3, alike for their driver: ours, and QEMU's board ``virt``. Each has RAM, and two devices
behind the SMMU, of which one writes and the other reads.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from smmuv3.registers import REGISTER, Cr0, Gbpa, Vector
from vfio_user import DmaMapping

from ..counters import Counters
from ..dma.fault import DmaRefusedError
from ..dma.memory import GuestMemory
from ..dma.path import DmaPath
from ..engine import Access, Engine, EngineConfig, Run
from ..guest.memory import GuestRam
from ..guest.smmuv3 import SmmuV3
from ..inputs import LiveInputs
from ..interfaces.smmuv3.config import SmmuConfig
from ..interfaces.smmuv3.smmu import Smmu
from ..lab.provision import Qemu
from .qtest import Qtest

__all__ = ["PATTERN", "RAM", "RAM_SIZE", "READER", "SCRATCH", "WRITER", "Dma", "Ours", "Queues", "Side", "Theirs"]

RAM, RAM_SIZE = 0x4000_0000, 64 << 20
SCRATCH = RAM + RAM_SIZE - 0x1000
"""A page that belongs to the reading device."""
WRITER, READER = 0x08, 0x10
"""StreamIDs: functions of slots 1 and 2."""
PATTERN = (0x12345678).to_bytes(4, "little")
"""What the writing device writes, again and again."""
_PARENT, _FIRST_DOMAIN, _OWN_STREAM = 1, 2, 1 << 32


@dataclass(frozen=True)
class Queues:
    """Where the queues are, and log2 of their entries."""

    commands: int
    events: int
    cmdq_bits: int
    evtq_bits: int


class Dma(NamedTuple):
    """What became of a request."""

    is_done: bool
    data: bytes = b""
    """what a read has brought"""
    runs: Sequence[Run] = ()
    """where it led, as far as that is known"""


class Side(Protocol):
    """One of the two. ``read`` and ``write`` are accesses of the register frame, ``load`` and ``store`` of RAM."""

    name: str

    def read(self, offset: int, count: int, /) -> bytes: ...
    def write(self, offset: int, data: bytes, /) -> None: ...
    def read_each(self, places: Sequence[tuple[int, int]], /) -> list[int]: ...
    def load(self, address: int, count: int, /) -> bytes: ...
    def store(self, address: int, data: bytes, /) -> None: ...
    def turn(self) -> None: ...
    def dma_write(self, iova: int, length: int) -> Dma: ...
    def dma_read(self, iova: int, length: int) -> Dma: ...
    def interrupts(self) -> set[Vector]: ...
    def close(self) -> None: ...


def driver(side: Side, queues: Queues) -> SmmuV3:
    """Linux's driver of a side's SMMU."""
    where = {"commands": queues.commands, "events": queues.events}
    return SmmuV3(side, side.turn, **where, cmdq_bits=queues.cmdq_bits, evtq_bits=queues.evtq_bits, turns=50)


class _Ram:
    """RAM that is a file here."""

    def __init__(self) -> None:
        self.ram = GuestRam(RAM_SIZE)

    def load(self, address: int, count: int) -> bytes:
        return self.ram.bytes[address - RAM : address - RAM + count]

    def store(self, address: int, data: bytes) -> None:
        self.ram.bytes[address - RAM : address - RAM + len(data)] = data


class Ours(_Ram):
    """The SMMU of this package, in this process."""

    name = "ours"

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine(EngineConfig(pool_pages=1 << 16, aperture_bits=48, reserved=()))
        self.memory = GuestMemory(LiveInputs(), name="smmu0")
        self.memory.map(DmaMapping(RAM, RAM_SIZE, 0, True, True, os.dup(self.ram.fd)))
        self.engine.set_ram([(RAM >> 12, (RAM + RAM_SIZE >> 12) - 1)])
        self.engine.alloc_paging(_PARENT, clone=True)
        self._interrupts: set[Vector] = set()
        config = SmmuConfig(cmdq_bits=19, evtq_bits=19, stage2=True)  # as QEMU's
        self.smmu = Smmu(
            *(config, self.engine, self.memory, _PARENT),
            own_stream=_OWN_STREAM,
            first_domain=_FIRST_DOMAIN,
            interrupt=self._interrupts.add,
        )
        self._paths = {sid: self._path(sid) for sid in (WRITER, READER)}

    def _path(self, sid: int) -> DmaPath:
        self.engine.add_endpoint(sid)
        self.smmu.bind(sid, sid)
        self.smmu.attach(sid)
        return DmaPath(sid, self.smmu.translator(sid), self.memory, Counters(), lambda: True)

    def close(self) -> None:
        self.memory.clear()
        self.ram.close()

    def read(self, offset: int, count: int) -> bytes:
        return self.smmu.read(offset, count)

    def write(self, offset: int, data: bytes) -> None:
        self.smmu.write(offset, data)
        while self.smmu.work():
            pass

    def read_each(self, places: Sequence[tuple[int, int]]) -> list[int]:
        """What is at each (offset, size)."""
        return [int.from_bytes(self.read(*place), "little") for place in places]

    def turn(self) -> None:
        """All work is done at once."""

    def interrupts(self) -> set[Vector]:
        """Those since the last call."""
        found = set(self._interrupts)
        self._interrupts.clear()
        return found

    def dma_write(self, iova: int, length: int) -> Dma:
        path = self._paths[WRITER]
        try:
            [plan] = path.plan(([(iova, length)], Access.WRITE))
            path.write_plan(plan, pattern(length))
        except DmaRefusedError:
            return Dma(False)
        return Dma(True, runs=list(plan.runs()))

    def dma_read(self, iova: int, length: int) -> Dma:
        path = self._paths[READER]
        try:
            [plan] = path.plan(([(iova, length)], Access.READ))
            return Dma(True, path.read_plan(plan), list(plan.runs()))
        except DmaRefusedError:
            return Dma(False)


def pattern(length: int) -> bytes:
    """What the writing device writes."""
    return (PATTERN * (length // len(PATTERN) + 1))[:length]


# -- QEMU -----------------------------------------------------------------------------------------------------------

_SMMU, _ECAM, _BAR = 0x0905_0000, 0x40_1000_0000, {WRITER: 0x1000_0000, READER: 0x1010_0000}
"""Of the board ``virt``: the register frame, configuration space, and where the devices' BARs are put."""
_CR0, _GBPA = REGISTER["CR0"].offset, REGISTER["GBPA"].offset
_GICD = 0x0800_0000
_ICFGR, _ICPENDR, _ISPENDR = _GICD + 0xC18, _GICD + 0x28C, _GICD + 0x20C
"""Of the interrupt controller, the words that are about the SMMU's interrupts..."""
_PENDING = {10: Vector.EVENTQ, 12: Vector.CMD_SYNC, 13: Vector.GERROR}
"""... which these bits are, the shared peripheral interrupts from 74 on. The eleventh is that of page requests."""
_EDGE = 0xAA << 20
_BAR0, _COMMAND, _MEMORY_AND_MASTER = 0x10, 0x04, 0x6


class _Testdev:
    """Registers of ``iommu-testdev``, which writes a pattern when one of them is read."""

    TRIGGER, IOVA_LOW, IOVA_HIGH, LENGTH, RESULT, DOORBELL, GPA_LOW, GPA_HIGH = 0, 4, 8, 0xC, 0x10, 0x14, 0x1C, 0x20
    IS_REFUSED, IS_OTHERWISE = 0xDEAD0002, (0, 0xDEAD0004)
    """Results: the write was refused; or not, whatever is found at an address that it looks at then."""


class _Edu:
    """Registers of ``edu``, which copies between its buffer and memory a tenth of a second after it was asked."""

    SOURCE, TARGET, COUNT, COMMAND, BUFFER = 0x80, 0x88, 0x90, 0x98, 0x40000
    FROM_MEMORY, TO_MEMORY = 1, 3
    DELAY_NS = 101_000_000


class Theirs(_Ram):
    """QEMU's."""

    name = "QEMU"

    def __init__(self, qemu: Qemu) -> None:
        """Raises :class:`.qtest.QtestError`."""
        super().__init__()
        board = "virt,acpi=off,gic-version=3,iommu=smmuv3,memory-backend=ram"
        memory = f"memory-backend-file,id=ram,size={RAM_SIZE},share=on,mem-path=/dev/fd/{self.ram.fd}"
        devices = ["-device", "iommu-testdev,addr=1", "-device", f"edu,addr=2,dma_mask={(1 << 64) - 1}"]
        machine = ["-machine", board, "-cpu", "max", "-m", f"{RAM_SIZE >> 20}M", "-object", memory, *devices]
        self._bus = Qtest(qemu, machine, (self.ram.fd,))
        for sid, bar in _BAR.items():
            place = _ECAM + (sid << 12)
            self._bus.write(place + _BAR0, 4, bar)
            self._bus.write(place + _COMMAND, 4, _MEMORY_AND_MASTER)
        self._bus.write(_ICFGR, 4, _EDGE)  # so that a pulse stays pending
        self._bus.flush()

    def close(self) -> None:
        self._bus.close()
        self.ram.close()

    def load(self, address: int, count: int) -> bytes:
        self._bus.flush()
        return super().load(address, count)

    def store(self, address: int, data: bytes) -> None:
        self._bus.flush()
        super().store(address, data)

    def read(self, offset: int, count: int) -> bytes:
        return self._bus.read((_SMMU + offset, count))[0].to_bytes(count, "little")

    def write(self, offset: int, data: bytes) -> None:
        self._bus.write(_SMMU + offset, len(data), int.from_bytes(data, "little"))

    def read_each(self, places: Sequence[tuple[int, int]]) -> list[int]:
        """What is at each (offset, size), in one exchange of messages."""
        return self._bus.read(*((_SMMU + offset, size) for offset, size in places))

    def turn(self) -> None:
        """It works while an access waits."""

    def interrupts(self) -> set[Vector]:
        """Those since the last call."""
        pending, _ = self._bus.ask(f"readl {_ISPENDR:#x}", f"writel {_ICPENDR:#x} 0xffffffff")
        return {vector for bit, vector in _PENDING.items() if int(pending, 16) >> bit & 1}

    def dma_write(self, iova: int, length: int) -> Dma:
        bar, low = _BAR[WRITER], (1 << 32) - 1
        values = (
            (_Testdev.IOVA_LOW, iova & low),
            (_Testdev.IOVA_HIGH, iova >> 32),
            (_Testdev.GPA_LOW, SCRATCH & low),
            (_Testdev.GPA_HIGH, SCRATCH >> 32),
            (_Testdev.LENGTH, length),
            (_Testdev.DOORBELL, 1),
        )
        writes = [f"writel {bar + offset:#x} {value:#x}" for offset, value in values]
        *_, result = self._bus.ask(*writes, f"readl {bar + _Testdev.TRIGGER:#x}", f"readl {bar + _Testdev.RESULT:#x}")
        return Dma(int(result, 16) != _Testdev.IS_REFUSED)

    def dma_read(self, iova: int, length: int) -> Dma:
        """``is_done`` says nothing: the device does not tell a refusal, and its data are zeros then."""
        self._copy(_Edu.FROM_MEMORY, iova, _Edu.BUFFER, length)
        cr0, gbpa = self.read_each([(_CR0, 4), (_GBPA, 4)])
        self._bus.write(_SMMU + _GBPA, 4, gbpa & ~Gbpa.ABORT | Gbpa.UPDATE)
        self._bus.write(_SMMU + _CR0, 4, cr0 & ~Cr0.SMMUEN)
        self._copy(_Edu.TO_MEMORY, _Edu.BUFFER, SCRATCH, length)
        self._bus.write(_SMMU + _GBPA, 4, gbpa | Gbpa.UPDATE)
        self._bus.write(_SMMU + _CR0, 4, cr0)
        data = self.load(SCRATCH, length)
        self.store(SCRATCH, bytes(length))
        return Dma(any(data), data)

    def _copy(self, command: int, source: int, target: int, length: int) -> None:
        values = ((_Edu.SOURCE, source), (_Edu.TARGET, target), (_Edu.COUNT, length), (_Edu.COMMAND, command))
        writes = [f"writeq {_BAR[READER] + offset:#x} {value:#x}" for offset, value in values]
        self._bus.ask(*writes, f"clock_step {_Edu.DELAY_NS}")
