"""The driver of an SMMUv3, which does what Linux's arm-smmu-v3 does: its reset, its commands, its interrupts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from smmuv3.commands import ALL_STREAMS, COMMAND_SIZE, Completion, Opcode, cfgi, sync, tlbi
from smmuv3.events import EVENT_SIZE, Event
from smmuv3.page_requests import PAGE_REQUEST_SIZE, PageRequest
from smmuv3.registers import (
    REGISTER,
    CommandError,
    Cr0,
    Gbpa,
    GlobalError,
    Idr0,
    IrqControl,
    QueueBase,
    QueueConsumer,
    QueueProducer,
)

__all__ = ["CR1", "CR2", "CommandFailedError", "Frame", "SmmuV3", "StuckError"]

CR1 = 0xD75
"""Tables and queues inner shareable and write-back."""
CR2 = 0x6
"""PTM and RECINVSID."""
TURNS = 1000
"""How often a register is polled, with a turn of the device each time, unless another number is given."""
_FLAG = int(QueueProducer.OVFLG)


class Frame(Protocol):
    """The register frame, and guest memory."""

    def read(self, offset: int, count: int, /) -> bytes: ...
    def write(self, offset: int, data: bytes, /) -> None: ...
    def load(self, address: int, count: int, /) -> bytes: ...
    def store(self, address: int, data: bytes, /) -> None: ...


class StuckError(Exception):
    """A register did not become what the driver waits for."""


class CommandFailedError(Exception):
    """The SMMU stopped at a command."""

    def __init__(self, error: CommandError, index: int) -> None:
        super().__init__(f"{error.name} at index {index:#x} of the command queue")
        self.error = error
        self.index = index


class SmmuV3:
    """The driver of one SMMU. ``turn`` lets the device work for a while."""

    def __init__(
        self,
        frame: Frame,
        turn: Callable[[], object],
        *,
        commands: int,
        events: int,
        cmdq_bits: int,
        evtq_bits: int,
        requests: int = 0,
        priq_bits: int = 0,
        turns: int = TURNS,
    ) -> None:
        """``commands``, ``events`` and ``requests`` are where the queues are to be, of 2 ** ``cmdq_bits``,
        ``evtq_bits`` and ``priq_bits`` entries, each aligned to its size; without the last it uses no page requests.
        ``turns``: how many it waits for anything.
        """
        self._requests, self._priq_bits = requests, priq_bits
        self._turns = turns
        self._frame = frame
        self._turn = turn
        self._commands, self._cmdq_bits = commands, cmdq_bits
        self._events, self._evtq_bits = events, evtq_bits
        self.steps: list[str] = []
        """of :meth:`reset`, as far as it came"""

    # -- registers --------------------------------------------------------------------------------------------------

    def get(self, name: str) -> int:
        """The value of a register."""
        register = REGISTER[name]
        return int.from_bytes(self._frame.read(register.offset, register.size), "little")

    def set(self, name: str, value: int) -> None:
        """Write a register."""
        register = REGISTER[name]
        self._frame.write(register.offset, value.to_bytes(register.size, "little"))

    def _poll(self, name: str, expected: int, mask: int = 0xFFFFFFFF) -> None:
        for _ in range(self._turns):
            if self.get(name) & mask == expected:
                return
            self._turn()
        raise StuckError(f"{name} is {self.get(name):#x} and not {expected:#x}")

    def _set_and_wait(self, name: str, value: int) -> None:
        """Write a register and wait for its acknowledgement in the one behind it."""
        self.set(name, value)
        self._poll(f"{name}ACK", value)

    def set_gbpa(self, *, abort: bool) -> None:
        """What is to happen to transactions while translation is off."""
        self._poll("GBPA", 0, int(Gbpa.UPDATE))
        value = self.get("GBPA") & ~Gbpa.ABORT
        self.set("GBPA", value | Gbpa.UPDATE | (Gbpa.ABORT if abort else 0))
        self._poll("GBPA", 0, int(Gbpa.UPDATE))

    # -- reset ------------------------------------------------------------------------------------------------------

    def reset(self, table: int, table_config: int) -> None:
        """arm_smmu_device_reset(): ``table`` and ``table_config`` are STRTAB_BASE and STRTAB_BASE_CFG. Raises
        :class:`StuckError` or :class:`CommandFailedError`.
        """
        self.steps.clear()
        for step in self._reset_steps(table, table_config):
            self.steps.append(step)

    def _reset_steps(self, table: int, table_config: int) -> Iterator[str]:
        if self.get("CR0") & Cr0.SMMUEN:
            self.set_gbpa(abort=True)
            yield "GBPA"
        self._set_and_wait("CR0", 0)
        yield "disabled"
        self.set("CR1", CR1)
        self.set("CR2", CR2)
        yield "CR1 and CR2"
        self.set("STRTAB_BASE", table)
        self.set("STRTAB_BASE_CFG", table_config)
        yield "stream table"
        self.set("CMDQ_BASE", QueueBase(self._commands, LOG2SIZE=self._cmdq_bits, ALLOCATE=1))
        self.set("CMDQ_PROD", 0)
        self.set("CMDQ_CONS", 0)
        enabled = int(Cr0.CMDQEN)
        self._set_and_wait("CR0", enabled)
        yield "command queue"
        self.issue(cfgi(Opcode.CFGI_STE_RANGE, span=ALL_STREAMS))
        self.sync()
        yield "configuration invalidated"
        self.issue(tlbi(Opcode.TLBI_NSNH_ALL))
        self.sync()
        yield "translations invalidated"
        self.set("EVENTQ_BASE", QueueBase(self._events, LOG2SIZE=self._evtq_bits, ALLOCATE=1))
        self.set("EVENTQ_PROD", 0)
        self.set("EVENTQ_CONS", 0)
        enabled |= Cr0.EVENTQEN
        self._set_and_wait("CR0", enabled)
        yield "event queue"
        interrupts = IrqControl.EVENTQ_IRQEN | IrqControl.GERROR_IRQEN
        if self._priq_bits:
            self.set("PRIQ_BASE", QueueBase(self._requests, LOG2SIZE=self._priq_bits, ALLOCATE=1))
            self.set("PRIQ_PROD", 0)
            self.set("PRIQ_CONS", 0)
            enabled |= Cr0.PRIQEN
            interrupts |= IrqControl.PRIQ_IRQEN
            self._set_and_wait("CR0", enabled)
            yield "queue of page requests"
        if self.get("IDR0") & Idr0.ATS:
            enabled |= Cr0.ATSCHK
            self._set_and_wait("CR0", enabled)
            yield "ATS"
        self._set_and_wait("IRQ_CTRL", 0)
        self._set_and_wait("IRQ_CTRL", interrupts)
        yield "interrupts"
        self._set_and_wait("CR0", enabled | Cr0.SMMUEN)
        yield "enabled"

    # -- commands ---------------------------------------------------------------------------------------------------

    def issue(self, *commands: bytes) -> None:
        """Queue commands; waits for room. Raises :class:`StuckError`."""
        wrap = (2 << self._cmdq_bits) - 1
        for command in commands:
            producer = self.get("CMDQ_PROD") & wrap
            for _ in range(self._turns):
                if producer - self.get("CMDQ_CONS") & wrap != 1 << self._cmdq_bits:
                    break
                self._turn()
            else:
                raise StuckError("the command queue stays full")
            self.put(producer, command)
            self.set("CMDQ_PROD", producer + 1 & wrap)

    def put(self, index: int, command: bytes) -> None:
        """Write a command to a place in the queue."""
        self._frame.store(self.command_place(index), command)

    def command_place(self, index: int) -> int:
        """Where a command of the queue is."""
        return self._commands + (index & (1 << self._cmdq_bits) - 1) * COMMAND_SIZE

    def sync(self, completion: Completion = Completion.SEV) -> None:
        """Wait until all commands are complete: polls, as Linux does without MSIs of the SMMU. Raises
        :class:`CommandFailedError` if the SMMU stops before.
        """
        self.issue(sync(completion))
        self.drain()

    def drain(self) -> None:
        """Wait until the queue is empty; raises as :meth:`sync`."""
        wrap = (2 << self._cmdq_bits) - 1
        for _ in range(self._turns):
            consumer = QueueConsumer(self.get("CMDQ_CONS"))
            if self.is_active(GlobalError.CMDQ_ERR):
                raise CommandFailedError(CommandError(consumer.ERR), consumer.RD & wrap)
            if consumer & wrap == self.get("CMDQ_PROD") & wrap:
                return
            self._turn()
        raise StuckError(f"CMDQ_CONS is {self.get('CMDQ_CONS'):#x} and CMDQ_PROD {self.get('CMDQ_PROD'):#x}")

    # -- interrupts -------------------------------------------------------------------------------------------------

    def is_active(self, error: int) -> bool:
        """Whether a global error is not acknowledged."""
        return bool((self.get("GERROR") ^ self.get("GERRORN")) & error)

    def on_gerror(self) -> int:
        """Linux's handler of the global error interrupt: an illegal command is overwritten by a CMD_SYNC. Returns the
        active errors, which are acknowledged now.
        """
        errors = self.get("GERROR")
        active = errors ^ self.get("GERRORN")
        consumer = QueueConsumer(self.get("CMDQ_CONS"))
        if active & GlobalError.CMDQ_ERR and consumer.ERR == CommandError.ILL:
            self.put(consumer.RD, sync())
        self.set("GERRORN", errors)
        return active

    def on_eventq(self) -> tuple[list[Event], bool]:
        """Linux's handler of the event queue's interrupt: takes all events, and acknowledges an overflow. Returns the
        events and whether others were lost.
        """
        records, lost = self._take("EVENTQ", self._events, self._evtq_bits, EVENT_SIZE)
        return [Event.unpack(record) for record in records], lost

    def on_priq(self) -> tuple[list[PageRequest], bool]:
        """Linux's handler of the interrupt of page requests, which likewise takes all of them."""
        records, lost = self._take("PRIQ", self._requests, self._priq_bits, PAGE_REQUEST_SIZE)
        return [PageRequest.unpack(record) for record in records], lost

    def _take(self, name: str, base: int, bits: int, size: int) -> tuple[list[bytes], bool]:
        """The records of a queue that were not taken yet, and whether others were lost."""
        wrap, found = (2 << bits) - 1, []
        producer, consumer = self.get(f"{name}_PROD"), self.get(f"{name}_CONS")
        index = consumer & wrap
        while index != producer & wrap:
            found.append(self._frame.load(base + (index & wrap >> 1) * size, size))
            index = index + 1 & wrap
        self.set(f"{name}_CONS", producer & _FLAG | index)
        return found, bool((producer ^ consumer) & _FLAG)

    def event_place(self, index: int) -> int:
        """Where the record of an index of the event queue is."""
        return self._events + (index & (1 << self._evtq_bits) - 1) * EVENT_SIZE
