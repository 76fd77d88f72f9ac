"""Plays a stimulus on both sides, step by step, and compares what can be seen after each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct
from typing import NamedTuple

from smmuv3.commands import COMMAND_SIZE
from smmuv3.events import EVENT_SIZE
from smmuv3.registers import REGISTER, GlobalError, QueueConsumer, QueueProducer

from ..guest.smmuv3 import SmmuV3, StuckError
from .sides import Dma, Side, driver, pattern
from .stimuli import THERE, Access, Issue, Read, Recover, Reset, Stimulus, Store, Write

__all__ = ["Found", "compare"]

_EVENT = Struct("<4Q")
_REGISTERS = tuple(each for each in THERE if each.count == 1)
"""All but those of whoever made it."""
_MOST_ERRORS = 8
_QUEUE_BYTES = 1 << 13
_GBPA_RESET = 0x8000_1000


class Found(NamedTuple):
    """Something that is not alike."""

    step: int
    """of the stimulus, or one more: at the end"""
    what: str
    ours: object
    theirs: object


class _Player:
    """One side, and what was seen on it."""

    def __init__(self, side: Side, stimulus: Stimulus) -> None:
        self.side = side
        self.driver: SmmuV3 = driver(side, stimulus.queues)
        self._evtq_bits = stimulus.queues.evtq_bits
        self._first = self._global_errors()
        self._written: list[tuple[int, int]] = []

    def reset(self, step: Reset) -> Iterator[tuple[str, object]]:
        self.driver.set("CR0", 0)
        self.driver.set("GERRORN", self.driver.get("GERROR"))
        self.driver.set("GBPA", _GBPA_RESET)
        self.driver.reset(step.table, step.config)
        self.side.interrupts()
        self._first = self._global_errors()
        yield "steps", tuple(self.driver.steps)

    def access(self, step: Access) -> Iterator[tuple[str, object]]:
        if step.value is not None:
            self.side.write(step.offset, step.value.to_bytes(step.size, "little"))
        else:
            value = int.from_bytes(self.side.read(step.offset, step.size), "little")
            yield f"{step.offset:#x}", value ^ (self._since(step.offset) if step.size == 4 else 0)

    def _since(self, offset: int) -> int:
        """Of GERROR and GERRORN only what has changed since the reset."""
        return self._first.get(offset, 0)

    def _global_errors(self) -> dict[int, int]:
        return {REGISTER[name].offset: self.driver.get(name) for name in ("GERROR", "GERRORN")}

    def _active(self) -> int:
        """The errors that are not acknowledged."""
        return self.driver.get("GERROR") ^ self.driver.get("GERRORN")

    def issue(self, step: Issue) -> Iterator[tuple[str, object]]:
        try:
            self.driver.issue(*step.commands)
        except StuckError:
            yield "queue", "stays full"
        yield from self.errors()
        yield "interrupts", self.side.interrupts()

    def errors(self) -> Iterator[tuple[str, object]]:
        consumer = self.driver.get("CMDQ_CONS")
        is_stopped = self.driver.is_active(GlobalError.CMDQ_ERR)
        yield "stopped at", self.side.load(self.driver.command_place(consumer), COMMAND_SIZE) if is_stopped else None
        yield "consumer", consumer & ~QueueConsumer.ERR
        yield "ERR", QueueConsumer(consumer).ERR
        yield "active", self._active()

    def recover(self) -> Iterator[tuple[str, object]]:
        for number in range(_MOST_ERRORS):
            if not self.driver.on_gerror():
                break
            yield from ((f"{what}, {number}", value) for what, value in self.errors())
        yield "interrupts", self.side.interrupts()

    def dma(self, step: Write | Read, expected: Dma | None) -> Iterator[tuple[str, object]]:
        runs = expected.runs if expected else ()
        find = self.side.dma_write if isinstance(step, Write) else self.side.dma_read
        for _ in range(step.times):
            self.last = find(step.iova, step.length)
        events, is_lost = self.events()  # first: they say most of why something differs
        yield "events", events
        if isinstance(step, Read):  # of zeros nobody can tell whether they were read
            yield "data", self.last.data if any(self.last.data) else None
        else:
            yield "done", self.last.is_done
            if self.last.is_done:
                yield "where it led", self._holds(runs or self.last.runs, step.length)
        yield "overflow", is_lost
        yield "active", self._active()
        yield "interrupts", self.side.interrupts()

    def _holds(self, runs: Sequence[tuple[int, int]], length: int) -> bool:
        found = b"".join(self.side.load(*run) for run in runs)
        for address, size in runs:
            self.side.store(address, b"\xff" * size)
            self._written.append((address, size))
        return found == pattern(length)

    def events(self) -> tuple[tuple[tuple[int, ...], ...], bool]:
        """The dwords of all events since the last call, and whether others were lost."""
        wrap, flag = (2 << self._evtq_bits) - 1, int(QueueProducer.OVFLG)
        producer, consumer = self.driver.get("EVENTQ_PROD"), self.driver.get("EVENTQ_CONS")
        index, found = consumer & wrap, list[tuple[int, ...]]()
        while index != producer & wrap and len(found) <= wrap:
            place = self.driver.event_place(index)
            found.append(_EVENT.unpack(self.side.load(place, EVENT_SIZE)))
            index = index + 1 & wrap
        self.driver.set("EVENTQ_CONS", producer)
        return tuple(found), bool((producer ^ consumer) & flag)

    def registers(self) -> Iterator[tuple[str, object]]:
        values = self.side.read_each([(register.offset, register.size) for register in _REGISTERS])
        for register, value in zip(_REGISTERS, values, strict=True):
            yield register.name, value ^ self._since(register.offset)

    def clean(self, stimulus: Stimulus) -> None:
        """What was written is 0 again."""
        for step in stimulus.steps:
            if isinstance(step, Store):
                self.side.store(step.address, bytes(len(step.data)))
        for address, size in self._written:
            self.side.store(address, bytes(size))
        for place in (stimulus.queues.commands, stimulus.queues.events):
            self.side.store(place, bytes(_QUEUE_BYTES))


def compare(stimulus: Stimulus, ours: Side, theirs: Side) -> list[Found]:
    """What is not alike, in order. Afterwards both sides are ready for the next stimulus."""
    found: list[Found] = []
    players = _Player(ours, stimulus), _Player(theirs, stimulus)
    answers: list[list[dict[str, object]]] = [[], []]
    may_be_old = False
    for number, step in enumerate((*stimulus.steps, None)):
        seen: list[dict[str, object]] = []
        for player in players:
            expected = players[0].last if isinstance(step, Write | Read) and seen else None
            seen.append(dict(_play(player, step, expected)))
        if isinstance(step, Write | Read):
            for each, what in zip(answers, seen, strict=True):
                each.append(what)
            if step.may_be_old:
                may_be_old = True
                continue
            if may_be_old:
                found += _of_either_time(number, answers)
                may_be_old = False
        found += [
            Found(number, what, seen[0].get(what), seen[1].get(what))
            for what in dict.fromkeys((*seen[0], *seen[1]))
            if seen[0].get(what) != seen[1].get(what)
        ]
    for player in players:
        player.clean(stimulus)
    return found


def _play(player: _Player, step: object, expected: Dma | None) -> Iterator[tuple[str, object]]:
    match step:
        case Store(address, data):
            player.side.store(address, data)
        case Reset():
            yield from player.reset(step)
        case Access():
            yield from player.access(step)
        case Issue():
            yield from player.issue(step)
        case Recover():
            yield from player.recover()
        case Write() | Read():
            yield from player.dma(step, expected)
        case None:
            yield from player.registers()


def _of_either_time(number: int, answers: list[list[dict[str, object]]]) -> Iterator[Found]:
    """What a request that might see the old state found, if it is neither that of the one before nor that of the one
    after it.
    """
    for name, (before, between, after) in zip(("ours", "QEMU"), (each[-3:] for each in answers), strict=True):
        if between not in (before, after):
            yield Found(number, f"neither old nor new, {name}", between, (before, after))
