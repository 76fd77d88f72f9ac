"""The queues in guest memory: their indices, and what is read and written there."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol

from smmuv3.commands import COMMAND, COMMAND_SIZE, Sync0, Sync1
from smmuv3.events import EVENT_SIZE, Event
from smmuv3.page_requests import PAGE_REQUEST_SIZE, PageRequest
from smmuv3.registers import CommandError, Cr0, GlobalError, QueueConsumer, QueueProducer, Vector

from ...dma.pages import Response
from ...engine.stages import Commands
from .memory import Abort, GuestReader
from .registers import SmmuRegisters

__all__ = ["MAX_LOOKED_AT", "CommandQueue", "Consumed", "EventQueue", "PageRequestQueue"]

_OVERFLOW = int(QueueProducer.OVFLG)
MAX_LOOKED_AT = 1 << 16
"""Cached entries that the commands of a turn look at, after which no further command is begun: some 20 ms."""


class Consumed(Enum):
    """What became of a command."""

    ILLEGAL = "nothing was done"
    DONE = "it is complete"
    SIGNALLED = "it is complete, and an interrupt says so"
    LATE = "an endpoint has not answered an ATC_INV that it waited for"
    HELD = "it waits, and those behind it: see :meth:`CommandQueue.hold`"


_ERRORS = {Consumed.ILLEGAL: CommandError.ILL, Consumed.LATE: CommandError.ATC_INV_SYNC}


class Wait(Protocol):
    """Why a command waits."""

    @property
    def is_over(self) -> bool: ...
    @property
    def is_forgotten(self) -> bool: ...


class CommandQueue:
    """Commands of the guest, carried out in their order, some in each turn."""

    def __init__(
        self,
        registers: SmmuRegisters,
        memory: GuestReader,
        carry_out: Callable[[int, int], Consumed],
        budget: int,
        looked_at: Callable[[], int],
        core: Commands | None = None,
        *,
        has_msi: bool = False,
        may_wait: Callable[[], bool] = lambda: False,
    ) -> None:
        """``carry_out`` is given the two dwords of a command, and must not raise. ``budget``: commands in a turn.
        ``looked_at``: cached entries that commands have looked at so far, which also ends a turn. ``core``: does the
        same as ``carry_out``, as far as it knows commands. ``has_msi``: whether CMD_SYNC may be told by an MSI.
        ``may_wait``: whether CMD_SYNC has to wait for something now, which is no work of the core.
        """
        self._may_wait = may_wait
        self._registers = registers
        self._memory = memory
        self._core = core
        self._has_msi = has_msi
        self._own = self.carry_out = carry_out
        """looked up for each command: a rule may stand before it"""
        self._held: tuple[Wait, Callable[[], Consumed], tuple[int, int]] | None = None
        self._budget = budget
        self._looked_at = looked_at

    def work(self) -> bool:
        """Carry out commands, a bounded number. Returns whether there are more that may be carried out."""
        left, most = self._budget, -1
        while left:
            base, bits, first, count = self._waiting()
            if not count:
                return False
            index = first & (1 << bits) - 1
            at, whole = (base & -(COMMAND_SIZE << bits)) + index * COMMAND_SIZE, count
            count = min(count, left, (1 << bits) - index)
            is_plain = self.carry_out is self._own and self._held is None and not self._may_wait()
            if self._core is not None and is_plain:
                done, is_signalled, is_enough = self._core.run(at, count)
                self._advance(bits, done)
                left -= done
                if is_signalled:
                    self._registers.interrupt(Vector.CMD_SYNC)
                if done == whole or is_enough:
                    return done < whole
                if most < 0:
                    most = self._looked_at() + MAX_LOOKED_AT  # not before: it is rarely needed
                elif self._looked_at() > most:
                    return True
                if done:
                    continue
                count = 1  # is not of its kinds
            elif most < 0:
                most = self._looked_at() + MAX_LOOKED_AT
            chunk = self._memory.read(at, count * COMMAND_SIZE)
            if isinstance(chunk, Abort) and count > 1:  # find out which of them it is
                count, chunk = 1, self._memory.read(at, COMMAND_SIZE)
            if isinstance(chunk, Abort):
                self._fail(CommandError.ABT)
                return False
            for dwords in COMMAND.iter_unpack(chunk):
                outcome = self._outcome(dwords)
                if outcome is Consumed.HELD:
                    return False
                if outcome in _ERRORS:
                    self._fail(_ERRORS[outcome])
                    return False
                self._advance(bits)
                if outcome is Consumed.SIGNALLED:
                    self._signal(dwords)
                if self._looked_at() > most:
                    return bool(self._waiting()[3])
            left -= count
        return bool(self._waiting()[3])

    def _signal(self, dwords: tuple[int, int]) -> None:
        """Tell that a CMD_SYNC is complete: by an MSI, if it says where to, or by a wire."""
        address = Sync1(dwords[1]) & int(Sync1.MSIADDRESS) if self._has_msi else 0
        if address:
            self._registers.send(int(address), Sync0(dwords[0]).MSIDATA, GlobalError.MSI_CMDQ_ABT_ERR)
        else:
            self._registers.interrupt(Vector.CMD_SYNC)

    def is_waiting(self) -> bool:
        """Whether there is a command that may be carried out."""
        return bool(self.count())

    def count(self) -> int:
        """Commands that may be carried out."""
        return self._waiting()[3]

    def hold(self, wait: Wait, go: Callable[[], Consumed], dwords: tuple[int, int]) -> None:
        """The command of these dwords, which is the next one, waits; ``go`` carries it out when that is over."""
        self._held = wait, go, dwords

    def _outcome(self, dwords: tuple[int, int]) -> Consumed:
        """Carry out the next command, or go on with it."""
        held, self._held = self._held, None
        if held is None or held[0].is_forgotten or held[2] != dwords:
            return self.carry_out(*dwords)
        return held[1]()

    def _waiting(self) -> tuple[int, int, int, int]:
        """Base, not aligned yet, and log2 of the entries; index of the next command, and how many may be carried out.
        None if the indices cannot be: the producer more than a queue ahead.
        """
        registers, file = self._registers, self._registers.file
        base, bits = registers.queue("CMDQ_BASE")
        wrap = (2 << bits) - 1
        consumer = file["CMDQ_CONS"] & wrap
        count = (file["CMDQ_PROD"] & wrap) - consumer & wrap
        if not count:
            return base, bits, consumer, 0
        is_held = self._held is not None and not self._held[0].is_over
        is_stopped = not registers.has(Cr0.CMDQEN) or registers.is_active(GlobalError.CMDQ_ERR) or is_held
        return base, bits, consumer, 0 if is_stopped or count > 1 << bits else count

    def _advance(self, bits: int, count: int = 1) -> None:
        file = self._registers.file
        wrap = (2 << bits) - 1
        following = (file["CMDQ_CONS"] & wrap) + count & wrap
        file["CMDQ_CONS"] = file["CMDQ_CONS"] & int(QueueConsumer.ERR) | following

    def _fail(self, error: CommandError) -> None:
        """Stop at the command that is next; the code stays when the guest goes on."""
        file = self._registers.file
        file["CMDQ_CONS"] = QueueConsumer(file["CMDQ_CONS"]).replace(ERR=error)
        self._registers.activate(GlobalError.CMDQ_ERR)


class _Producer:
    """A queue that the SMMU writes to: its registers, whose names begin with ``name``, and its records."""

    def __init__(
        self, name: str, size: int, registers: SmmuRegisters, memory: GuestReader, error: int, vector: Vector
    ) -> None:
        """``size``: of a record. ``error``: the global error of a record that cannot be written. ``vector``: the
        interrupt of a queue that is no longer empty.
        """
        self._base, self._produced, self._consumed = f"{name}_BASE", f"{name}_PROD", f"{name}_CONS"
        self._size = size
        self._registers = registers
        self._memory = memory
        self._error = error
        self._vector = vector

    @property
    def has_failed(self) -> bool:
        """Whether a record could not be written, which the guest has not acknowledged."""
        return self._registers.is_active(self._error)

    @property
    def has_overflowed(self) -> bool:
        """Whether something was lost for want of room, which the guest has not acknowledged."""
        file = self._registers.file
        return bool((file[self._produced] ^ file[self._consumed]) & _OVERFLOW)

    def is_full(self) -> bool:
        file, (_, bits) = self._registers.file, self._registers.queue(self._base)
        return (file[self._produced] ^ file[self._consumed]) & (2 << bits) - 1 == 1 << bits

    def write(self, record: bytes, interrupts: bool | None = None) -> bool:
        """Write a record; there is room. Returns whether that was possible. ``interrupts``: whether there is one for
        it; None: if the queue was empty.
        """
        registers, file = self._registers, self._registers.file
        base, bits = registers.queue(self._base)
        wrap = (2 << bits) - 1
        produced, consumed = file[self._produced] & wrap, file[self._consumed] & wrap
        place = (base & -(self._size << bits)) + (produced & (1 << bits) - 1) * self._size
        if self._memory.write(place, record) is not None:
            registers.activate(self._error)
            return False
        file[self._produced] = file[self._produced] & _OVERFLOW | produced + 1 & wrap
        if interrupts or (interrupts is None and produced == consumed):
            registers.interrupt(self._vector)
        return True

    def lose(self) -> None:
        """Something is lost for want of room, which the guest is told once until it has acknowledged it."""
        if not self.has_overflowed:
            self._registers.file[self._produced] ^= _OVERFLOW


class EventQueue:
    """Events for the guest. One that cannot be written is discarded; the architecture says how that is told."""

    def __init__(self, registers: SmmuRegisters, memory: GuestReader) -> None:
        self._registers = registers
        error = GlobalError.EVENTQ_ABT_ERR
        self._queue = _Producer("EVENTQ", EVENT_SIZE, registers, memory, error, Vector.EVENTQ)

    def record(self, event: Event) -> bool:
        """Write an event. Returns whether the guest will find it. That of a stalled transaction waits if the queue is
        full: it is not lost, so there is no overflow.
        """
        if not self._registers.has(Cr0.EVENTQEN) or self._queue.has_failed:
            return False
        if self._queue.is_full():
            if event.stag is None:
                self.lose()
            return False
        return self._queue.write(event.pack())

    def lose(self) -> None:
        """An event is lost for want of room."""
        self._queue.lose()


class PageRequestQueue:
    """Page requests for the guest (IHI 0070, chapter 8)."""

    def __init__(
        self, registers: SmmuRegisters, memory: GuestReader, has_stream: Callable[[int], bool] = lambda _: True
    ) -> None:
        """``has_stream``: whether a StreamID has a legal STE that can be read."""
        self._registers = registers
        self._has_stream = has_stream
        error = GlobalError.PRIQ_ABT_ERR
        self._queue = _Producer("PRIQ", PAGE_REQUEST_SIZE, registers, memory, error, Vector.PRIQ)

    def record(self, asked: PageRequest) -> Response | None:
        """Write a page request. The answer to its group, if that comes from the SMMU at once: there is no queue, or no
        room, in which case the endpoint is to try again. None is written until the guest has acknowledged that.
        """
        is_on = self._registers.has(Cr0.SMMUEN) and self._registers.has(Cr0.PRIQEN)
        if not is_on or self._queue.has_failed:
            return Response.FAILURE
        if self._queue.has_overflowed or self._queue.is_full():
            return self.lose(asked)
        interrupts = asked.is_last if self._registers.tells_of_groups else None
        return None if self._queue.write(asked.pack(), interrupts) else Response.FAILURE

    def lose(self, asked: PageRequest) -> Response | None:
        """One is lost for want of room. Whether an answer has the PASID of its request is the STE's to say (PPAR), so
        that of a request with one is a failure where there is no such STE.
        """
        self._queue.lose()
        if not asked.is_last:
            return None
        if self._registers.tells_of_groups:
            self._registers.interrupt(Vector.PRIQ)
        return Response.SUCCESS if asked.ssid is None or self._has_stream(asked.sid) else Response.FAILURE
