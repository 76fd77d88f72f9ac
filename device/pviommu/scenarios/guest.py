"""A guest that is played: a driver that expects what the interface promises, and notes when it is not so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol

from pviommu_abi.dma_test import Descriptor, DescriptorStatus, DmaOp
from pviommu_abi.registers import Profile
from pviommu_abi.shared import RING_AREA_OFFSET, Event, EventReason
from pviommu_abi.slots import SLOT_SIZE, Errno, OpClass
from pviommu_abi.vendor import VendorOp

from ..guest.dma_test import DescriptorRing
from ..guest.events import EventRing
from ..guest.function import Function
from ..guest.memory import GuestRam
from ..guest.ring import Ring
from ..guest.xen_2024 import Xen2024
from ..topology import EndpointSection, Topology
from .stage import StuckError

__all__ = ["TRIES", "Place", "Played", "PlayedGuest", "guest_in_words"]

_FIRST_DEVFN = 0x28
TRIES = 3
"""How often it asks for what there is not right now."""
_ENTRIES = 256
"""Of each ring."""


class Place(Protocol):
    """Where a guest is played: see :class:`.stage.Stage`."""

    @property
    def topology(self) -> Topology: ...
    @property
    def ram(self) -> GuestRam: ...
    def functions(self) -> dict[str, Function]: ...
    def until(self, condition: Callable[[], Any], what: str) -> None: ...


class Played(Protocol):
    """What is asked of whoever was played."""

    harm: list[str]
    """What it found that was not to be."""
    answers: Counter[str]
    """What it was answered, how often."""


def _devfn(entry: EndpointSection, number: int) -> int:
    """Where an engine is on bus 0, unless the topology says that: in slots from 5 on."""
    fixed = entry.fixed_sbdf()
    return _FIRST_DEVFN + 8 * number if fixed is None else fixed & 0xFF


class PlayedGuest(Xen2024):
    """Drives the functions of a stage: ring 0, ring 1 if it is turned on, and all DMA test engines."""

    def __init__(self, stage: Place, functions: Mapping[str, Function] | None = None) -> None:
        """``functions`` by name, if not as the stage has them."""
        self.stage = stage
        self.harm: list[str] = []
        """what no correct IOMMU lets happen: data that is wrong, pages that are mapped though they are not, waits
        without end
        """
        self.answers: Counter[str] = Counter()
        """how often what was answered, or what became of DMA"""
        self.functions: Mapping[str, Function] = functions or stage.functions()
        self.iommu = self.functions[stage.topology.iommu.name]
        self.ring, self.second_ring = (
            Ring(self.iommu, number, _ENTRIES, RING_AREA_OFFSET + number * _ENTRIES * SLOT_SIZE) for number in range(2)
        )
        self.events = EventRing(self.iommu)
        self._events: list[Event] = []
        entries = [entry for entry in stage.topology.endpoint if entry.name in self.functions]
        self.engines = {entry.name: DescriptorRing(self.functions[entry.name]) for entry in entries}
        self.streams = {entry.name: entry.stream for entry in entries}
        self.devfns = {entry.name: _devfn(entry, number) for number, entry in enumerate(entries)}

    def start(self, profile: int = Profile.XEN_2024) -> None:
        """Select a profile, turn the ring and the engines on."""
        self.iommu.write("PROFILE", profile)
        self.ring.turn_on()
        if self.iommu.read("RING_STATUS") != 1:
            self.harm.append("the ring does not turn on")
        for engine in self.engines.values():
            engine.turn_on()

    def check(self, is_right: bool, what: str) -> bool:
        """Note ``what`` unless it is right; whether it is."""
        if not is_right:
            self.harm.append(what)
        return is_right

    # -- the IOMMU --------------------------------------------------------------------------------------------------

    def call(self, payload: bytes, op_class: int = OpClass.XEN_2024, op: int = 0) -> tuple[int, bytes]:
        return self.answer(self.ring, self.submit(self.ring, payload, op_class, op))

    def burst(self, count: int) -> None:
        """Ask so many times at once how much is in use, which must be answered alike."""
        positions = [self.ring.put(OpClass.VENDOR, VendorOp.QUERY_USAGE, 0, b"") for _ in range(count)]
        if self.ring.doorbell_wanted(positions[0]):
            self.ring.ring_doorbell()
        answers = {self.answer(self.ring, position) for position in positions}
        self.check(len(answers) == 1, f"{count} questions at once have {len(answers)} answers")

    @staticmethod
    def submit(ring: Ring, payload: bytes, op_class: int = OpClass.XEN_2024, op: int = 0) -> int:
        """Put a slot into a ring and wait for nothing: its position."""
        position = ring.put(op_class, op, 0, payload)
        if ring.doorbell_wanted(position):
            ring.ring_doorbell()
        return position

    def answer(self, ring: Ring, position: int) -> tuple[int, bytes]:
        """Wait for a slot: its result and payload."""
        self.stage.until(lambda: ring.is_complete(position), f"the completion of slot {position}")
        result, sequence, answer = ring.result(position)
        self.check(sequence == position, f"slot {position} was completed with sequence {sequence}")
        known = -result in set(Errno) or not result
        self.answers["done" if not result else Errno(-result).name if known else f"result {result}"] += 1
        self.check(known, f"slot {position} answered {result}, which is no result of an operation")
        return result, answer

    def retried(self, call: Callable[[], tuple[int, Any] | int]) -> tuple[int, Any]:
        """Ask again if there is nothing to be had right now."""
        for _ in range(TRIES):
            answer = call()
            result, value = answer if isinstance(answer, tuple) else (answer, None)
            if result not in (-Errno.ENOMEM, -Errno.ENOSPC):
                break
        return result, value

    def attached(self, name: str) -> int | None:
        """Bind an engine and attach it to a new context: its number, or None if that is refused."""
        if self.bind_stream(self.devfns[name], self.streams[name]) not in (0, -Errno.EEXIST):
            return None
        result, ctx = self.retried(self.alloc_context)
        if result:
            return None
        if not self.check(ctx > 0, f"a new context has number {ctx}"):
            return None
        return int(ctx) if self.retried(lambda: self.reattach_device(self.devfns[name], ctx))[0] == 0 else None

    def attach(self, name: str) -> int:
        """The same where it is not to be refused. Raises AssertionError."""
        ctx = self.attached(name)
        if ctx is None:
            raise AssertionError(f"{name} was not attached to a new context; answers so far: {dict(self.answers)}")
        return ctx

    # -- DMA --------------------------------------------------------------------------------------------------------

    def dma(self, name: str, op: int, length: int, **fields: int) -> Descriptor:
        """Have an engine carry a descriptor out; once more, after a reset, if it stops and says so."""
        for _ in range(TRIES):
            engine = self.engines[name]
            place = engine.put(op, length, **fields)
            engine.start()
            self.stage.until(partial(self._is_over, name, place), f"the end of a descriptor of {name}")
            if engine.is_done(place):
                break
            self.answers["engine reset"] += 1
            self.reset_engine(name)
        else:
            raise StuckError(f"{name} stops again and again")
        done = engine.descriptor(place)
        self.answers[f"DMA {DescriptorStatus(done.status).name}"] += 1
        return done

    def _is_over(self, name: str, place: int) -> bool:
        return self.engines[name].is_done(place) or self._is_stopped(name)

    def _is_stopped(self, name: str) -> bool:
        """Whether an engine is blocked without having asked for anything: it waits for its reset."""
        return any(
            (event.reason, event.access, event.stream) == (EventReason.BLOCKED, 0, self.streams[name])
            for event in self._told()
        )

    def _told(self) -> list[Event]:
        """The events since the last look that forgot them."""
        self._events += self.events.take()
        return self._events

    def fill(self, name: str, iova: int, gpa: int, length: int, pattern: int) -> bool:
        """Write to where ``iova`` is mapped, and look at what arrived at ``gpa`` and beside it; whether it was let
        through.
        """
        ram = self.stage.ram.bytes
        start = max(gpa - 8, 0)
        before = ram[start:gpa], ram[gpa + length : gpa + length + 8]
        old = ram[gpa : gpa + length]
        done = self.dma(name, DmaOp.FILL, length, dst=iova, pattern=pattern)
        if done.status == DescriptorStatus.DONE:
            wanted = (pattern.to_bytes(8, "little") * (length // 8 + 1))[:length]
            self.check(ram[gpa : gpa + length] == wanted, f"DMA of {length} bytes to {iova:#x} did not arrive")
            found = self.dma(name, DmaOp.VERIFY, length, src=iova, pattern=pattern).status
            self.check(found != DescriptorStatus.MISMATCH, f"DMA of {length} bytes from {iova:#x} reads something else")
        elif done.status == DescriptorStatus.FAULT:
            self.check(ram[gpa : gpa + length] == old, f"DMA to {iova:#x} is refused, and wrote a part")
        after = ram[start:gpa], ram[gpa + length : gpa + length + 8]
        self.check(before == after, f"DMA to {iova:#x} wrote beside its place")
        return done.status == DescriptorStatus.DONE

    def fill_in_the_end(self, name: str, iova: int, gpa: int, length: int, pattern: int) -> None:
        """The same until it is let through; an engine that does not come to an end is reset, as a driver does then."""
        for _ in range(TRIES):
            try:
                if self.fill(name, iova, gpa, length, pattern):
                    return
            except StuckError:
                self.reset_engine(name)
        self.harm.append(f"DMA of {name} to {iova:#x} is not done in {TRIES} tries")

    def reset_engine(self, name: str) -> None:
        """By its function's reset; nothing is queued afterwards, and it works again."""
        self._events.clear()
        self.functions[name].reset()
        self.engines[name] = DescriptorRing(self.functions[name])
        self.engines[name].turn_on()

    def reset_iommu(self) -> None:
        """By its function's reset: rings, events, contexts and bindings are gone. What is to work again is set up."""
        self.iommu.reset()
        self.events = EventRing(self.iommu)
        self._events.clear()
        self.start()

    def refused(self, name: str, iova: int) -> None:
        """Write to where nothing is mapped: it must be refused, and told."""
        lost = self.events.lost
        self._told().clear()
        done = self.dma(name, DmaOp.FILL, 8, dst=iova, pattern=0x5555555555555555)
        if not self.check(done.status == DescriptorStatus.FAULT, f"DMA to {iova:#x}, which is not mapped, is done"):
            return
        try:
            self.stage.until(lambda: self._told() or self.events.lost > lost, "the event of a fault")
        except StuckError as stuck:
            self.harm.append(str(stuck))
            return
        if self.events.lost == lost:
            self.check(any(event.iova == iova for event in self._told()), f"no event tells of the fault at {iova:#x}")


def guest_in_words(answers: Mapping[str, int], harm: Iterable[str]) -> list[str]:
    """How often a guest was answered what, and what it noted that no correct IOMMU lets happen: lines for people."""
    said = ", ".join(f"{count} {answer}" for answer, count in sorted(answers.items()))
    return [f"guest: {said or 'nothing answered'}", *(f"  harm: {text}" for text in harm)]
