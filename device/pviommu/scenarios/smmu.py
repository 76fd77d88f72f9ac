"""A guest with a DMA test engine behind a virtual SMMUv3: pages are mapped and unmapped as Linux's DMA API does it when
it is strict, and each DMA is looked at. An abort that is told, once, is no harm; memory that is written though nothing
maps it is, and so is a refusal that nobody is told of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct
from typing import ClassVar

from pviommu_abi.dma_test import DescriptorStatus, DmaOp
from smmuv3.commands import Opcode, PriResponse, atc_inv, cfgi, pri_resp, tlbi
from smmuv3.registers import REGISTER_BAR, REGISTERS, CommandError
from smmuv3.structures import Cd0, Ste0, Ste1, SteAts, SteConfig

from ..guest.function import Function
from ..guest.local import LocalFunction
from ..guest.smmuv3 import CommandFailedError, SmmuV3
from ..guest.smmuv3 import StuckError as DriverStuckError
from ..interfaces.smmuv3.function import SmmuFunction
from ..topology import EndpointSection, IommuSection, SmmuSection, Topology
from .guest import TRIES, PlayedGuest
from .stage import Stage, StuckError

__all__ = ["AtsGuest", "SmmuGuest", "ats_rounds", "ats_topology", "rounds", "topology"]

_SMMU, _ENGINE, _SID, _ASID = "smmu0", "dma0", 8, 7
_ROUNDS = 24
_TURNS = 1000
"""How often the driver looks while it waits."""
_TABLE, _CD, _ROOT = 0x800000, 0x801000, 0x810000
_TABLE_BITS = 5
_COMMANDS, _EVENTS, _REQUESTS = 0x820000, 0x830000, 0x840000
_QUEUE_BITS = {"cmdq_bits": 7, "evtq_bits": 5}
_PRIQ_BITS = 5
_ATS, _ATS_CONTROL, _ATS_ENABLE = 0x0F, 6, 1 << 15
_PRI, _PRI_CONTROL, _PRI_ALLOCATION, _PRI_ENABLE = 0x13, 4, 12, 1
"""Extended capabilities (PCI Express base 4.0, 7.8.8 and 10.5)."""
_IOVA, _GPA = 0x40000000, 0x200000
_LEAF = 0x743
"""AF, inner shareable, AP[1], a page."""
_EIGHT = Struct("<8Q")


def topology() -> Topology:
    """One SMMU and one engine behind it, beside a PV-IOMMU that nobody uses."""
    engine = EndpointSection(_ENGINE, "dma-test", 1, smmu=_SMMU, stream_id=_SID)
    return Topology(IommuSection(rings=2), (engine,), (SmmuSection(_SMMU),))


def ats_topology() -> Topology:
    """The same with an engine that has ATS and page requests."""
    engine = EndpointSection(_ENGINE, "dma-test", 1, smmu=_SMMU, stream_id=_SID, ats=True, pri=True)
    return Topology(IommuSection(rings=2), (engine,), (SmmuSection(_SMMU, ats=True, priq_bits=_PRIQ_BITS),))


class _Frame:
    """The register frame of the SMMU, and the guest's memory."""

    def __init__(self, stage: Stage) -> None:
        self._function: SmmuFunction = stage.machine.smmus[_SMMU]
        self._ram = stage.ram.bytes

    def read(self, offset: int, count: int) -> bytes:
        return self._function.region_read(REGISTER_BAR, offset, count)

    def write(self, offset: int, data: bytes) -> None:
        self._function.region_write(REGISTER_BAR, offset, data)

    def load(self, address: int, count: int) -> bytes:
        return self._ram[address : address + count]

    def store(self, address: int, data: bytes) -> None:
        self._ram[address : address + len(data)] = data


class SmmuGuest(PlayedGuest):
    """The guest, and its driver."""

    ste1 = Ste1(0)
    queues: ClassVar[dict[str, int]] = {}
    """further ones of the driver"""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._frame = _Frame(stage)
        smmu: Function = LocalFunction(stage.machine.smmus[_SMMU], {each.name: each for each in REGISTERS})  # type: ignore[arg-type]  # it has no shared memory
        smmu.plug(0, stage.ram.size, stage.ram.fd)
        smmu.set_bus_master(True)
        queues = {"commands": _COMMANDS, "events": _EVENTS, **_QUEUE_BITS, **self.queues}
        self._driver = SmmuV3(self._frame, stage.turn, turns=_TURNS, **queues)
        self._is_lost = False

    def begin(self) -> None:
        """Write the structures, with nothing mapped, and set the SMMU up as Linux does. Raises StuckError."""
        self._store(_TABLE + 64 * _SID, Ste0(V=1, CONFIG=SteConfig.STAGE_1) | _CD, self.ste1)
        cd0 = Cd0(V=1, AA64=1, R=1, A=1, ASET=1, ASID=_ASID, IPS=4, T0SZ=25, EPD1=1)
        self._store(_CD, cd0, _ROOT)
        for level in range(2):
            place = _ROOT + (level << 12) + (8 if level == 0 else 0)
            self._frame.store(place, (_ROOT + (level + 1 << 12) | 3).to_bytes(8, "little"))
        self._frame.store(_ROOT + 0x2000, bytes(0x1000))
        self._try(lambda: self._driver.reset(_TABLE, _TABLE_BITS))
        self.engines[_ENGINE].turn_on()

    def _store(self, address: int, *dwords: int) -> None:
        self._frame.store(address, _EIGHT.pack(*dwords, *[0] * (8 - len(dwords))))

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except DriverStuckError as stuck:
            raise StuckError(str(stuck)) from stuck
        except CommandFailedError as failed:
            self.harm.append(f"the SMMU stops at a command: {failed}")
            self._driver.on_gerror()

    def _set(self, page: int, leaf: int) -> None:
        self._frame.store(_ROOT + 0x2000 + 8 * page, leaf.to_bytes(8, "little"))

    def round(self, number: int) -> None:
        """Map a page, DMA there, unmap it, and DMA there."""
        page, gpa = number % 512, _GPA + (number % 64 << 12)
        iova = _IOVA + (page << 12)
        self._set(page, gpa | _LEAF)
        try:
            self.fill(_ENGINE, iova + 5, gpa + 5, 0xFF0, 0x1122334455667788 + number)
        except StuckError:
            self.reset_engine(_ENGINE)  # as a driver does whose device does not come to an end
        self._set(page, 0)
        self._invalidate(iova)
        self._events_now()
        self.refused(_ENGINE, iova)
        if number % 8 == 7:
            self._try(lambda: self._driver.issue(cfgi(Opcode.CFGI_STE, _SID), cfgi(Opcode.CFGI_CD, _SID, ssid=0)))
            self._try(self._driver.sync)

    def _invalidate(self, iova: int) -> None:
        """Have a page forgotten."""
        self._try(lambda: self._driver.issue(tlbi(Opcode.TLBI_NH_VA, iova, asid=_ASID, leaf=True)))
        self._try(self._driver.sync)

    def _events_now(self) -> list[int]:
        """The addresses that events tell of, since the last call."""
        try:
            events, lost = self._driver.on_eventq()
        except ValueError as error:
            self.harm.append(f"an event that is none: {error}")
            return []
        self._is_lost |= lost
        for event in events:
            self.answers[f"event {event.type.name}"] += 1
        return [event.address for event in events]

    def refused(self, name: str, iova: int) -> None:
        """Write to where nothing is mapped: it must be refused, and told."""
        try:
            done = self.dma(name, DmaOp.FILL, 8, dst=iova, pattern=0x5555555555555555)
        except StuckError:
            self.reset_engine(name)
            return
        if not self.check(done.status == DescriptorStatus.FAULT, f"DMA to {iova:#x}, which is not mapped, is done"):
            return
        told: list[int] = []
        self._is_lost = False

        def is_told() -> bool:
            told.extend(self._events_now())
            return bool(told) or self._is_lost

        try:
            self.stage.until(is_told, "the event of a fault")
        except StuckError as stuck:
            self.harm.append(str(stuck))

    def finish(self) -> None:
        """Turn translation off."""
        self._driver.set("CR0", 0)


class AtsGuest(SmmuGuest):
    """One whose engine has ATS and page requests. Pages are mapped when it asks for them."""

    ste1 = Ste1(EATS=SteAts.FULL)
    queues: ClassVar[dict[str, int]] = {"requests": _REQUESTS, "priq_bits": _PRIQ_BITS}

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._mapped: dict[int, int] = {}
        """addresses that may be asked for, and where they are to lead"""

    def begin(self) -> None:
        super().begin()
        self._turn_on()

    def _turn_on(self) -> None:
        engine = self.functions[_ENGINE]
        pri, ats = engine.extended_capability(_PRI), engine.extended_capability(_ATS)
        engine.write_config(ats + _ATS_CONTROL, 2, _ATS_ENABLE)
        engine.write_config(pri + _PRI_ALLOCATION, 4, 1 << _PRIQ_BITS)
        engine.write_config(pri + _PRI_CONTROL, 2, _PRI_ENABLE)

    def reset_engine(self, name: str) -> None:
        super().reset_engine(name)
        self._turn_on()

    def round(self, number: int) -> None:
        """DMA to a page that is mapped when that is asked for; unmap it, and DMA there."""
        page, gpa = number % 512, _GPA + (number % 64 << 12)
        iova = _IOVA + (page << 12)
        self._mapped = {iova: gpa}
        self.fill_in_the_end(_ENGINE, iova + 5, gpa + 5, 0xFF0, 0x1122334455667788 + number)
        self._mapped = {}
        self._set(page, 0)
        self._invalidate(iova)
        try:
            done = self.dma(_ENGINE, DmaOp.FILL, 8, dst=iova, pattern=0x5555555555555555)
        except StuckError:
            self.reset_engine(_ENGINE)
            return
        self.check(done.status == DescriptorStatus.FAULT, f"DMA to {iova:#x}, which is not mapped, is done")

    def _invalidate(self, iova: int) -> None:
        super()._invalidate(iova)
        for _ in range(TRIES):
            try:
                self._driver.issue(atc_inv(_SID, iova, 0))
                self._driver.sync()
                return
            except CommandFailedError as failed:
                self.answers[f"command {failed.error.name}"] += 1
                self._driver.on_gerror()
                self._try(self._driver.drain)
                if failed.error is not CommandError.ATC_INV_SYNC:
                    break
            except DriverStuckError as stuck:
                raise StuckError(str(stuck)) from stuck
        self.harm.append(f"the engine does not forget {iova:#x}")

    def _is_over(self, name: str, place: int) -> bool:
        self._serve()
        return super()._is_over(name, place)

    def _serve(self) -> None:
        """Map what is asked for, if it may be, and answer."""
        asked, is_lost = self._driver.on_priq()
        if is_lost:
            self.answers["overflow of page requests"] += 1
        refused: set[int] = set()
        for each in asked:
            self.answers["page request"] += 1
            gpa = self._mapped.get(each.address)
            if gpa is None:
                refused.add(each.group)
            else:
                self._set((each.address - _IOVA) >> 12, gpa | _LEAF)
            if each.is_last:
                response = PriResponse.INVALID if each.group in refused else PriResponse.SUCCESS
                self._driver.issue(pri_resp(_SID, each.group, response))
                self._try(self._driver.sync)


def rounds(stage: Stage, count: int = _ROUNDS) -> Iterator[PlayedGuest]:
    """By calls in one process."""
    yield from _play(SmmuGuest(stage), count)


def ats_rounds(stage: Stage, count: int = _ROUNDS) -> Iterator[PlayedGuest]:
    """The same with ATS and page requests."""
    yield from _play(AtsGuest(stage), count)


def _play(guest: SmmuGuest, count: int) -> Iterator[PlayedGuest]:
    yield guest
    guest.begin()
    for number in range(count):
        guest.round(number)
    guest.finish()
