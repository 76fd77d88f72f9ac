"""What a hostile guest does with an SMMU: registers, tables, commands and DMA in any order, memory that changes while
the SMMU looks at it.

Input: u16 settings (bit 0: stage 2, 1: substreams, 2: a strict cache, 3: no cache, 4: the native core walks, 5: each
DMA is explained, 6: faults may stall, 7: memory changes after each look of Python's, 8: the endpoint has ATS, 9: and
page requests), then steps, each a u8 of ``_STEPS`` and what that step takes. Words are an address of ``PLACES`` with
low bits, or any 64 bits (see ``_word``), so that few bytes make tables that lead to each other.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from pviommu.counters import Counters
from pviommu.dma.atc import ATC_ENTRIES
from pviommu.dma.fault import DmaPendingError, DmaRefusedError
from pviommu.dma.path import DmaPath
from pviommu.guest.smmuv3 import CommandFailedError, SmmuV3, StuckError
from pviommu.host.work import Work
from pviommu.interfaces.smmuv3.function import KEPT, SmmuFunction
from pviommu.machine import Machine
from pviommu.pci.capabilities import PRI_CAPACITY
from pviommu.topology import EndpointSection, SmmuSection, Topology
from smmuv3.commands import COMMAND, Opcode, PriResponse, pri_resp
from smmuv3.registers import FRAME_SIZE, REGISTER_BAR, REGISTERS
from vfio_user import DmaMapping, RegionIndex

from .feed import Feed
from .machine import RAM_SIZE, STREAM, Meddled, build, native, nothing_raised, open_descriptors, sealed_memory

__all__ = ["TOKENS", "target"]

MAX_STEPS = 96
MAX_TURNS = 600
"""in which the SMMU comes to rest, whatever is in its queue"""
SID = 3
CACHE, STALLS = 8, 3
MOST_READS = 64
"""of one address: five structures, and for each of them and four tables of stage 1 the tables of stage 2"""
TABLE, COMMANDS, EVENTS, REQUESTS, CDS, TTB, SECOND, PAGE = (0x1000 * each for each in (1, 2, 4, 5, 6, 8, 16, 24))
OUTSIDE = RAM_SIZE + 0x1000
PLACES = (TABLE, TABLE + 64 * SID, COMMANDS, EVENTS, CDS, TTB, TTB + 0x1000, TTB + 0x2000, TTB + 0x3000, SECOND, PAGE)
IOVA = 0x12_3456_7000
CD0, LEAF, BLOCK2, VTCR = 0x0007E205C0003510, 0xF47, 0x7FD, 5 << 48 | 1 << 51 | 1 << 58 | 1 << 38 | 25 << 32
SSIDS = (None, None, 0, 1, 5, 0xFFFFF)
COMMAND_CODES = (*Opcode, 0xFF)
TOKENS = (b"\0", b"\1", b"\x80", b"\xff", CD0.to_bytes(8, "little"), LEAF.to_bytes(2, "little"))


def _word(feed: Feed) -> int:
    kind = feed.u8()
    if kind < 0xC0:
        return PLACES[kind % len(PLACES)] | feed.u16()
    return OUTSIDE | feed.u16() if kind < 0xD0 else feed.u64()


class _Guest:
    """The steps. It is its own driver's frame."""

    def __init__(self, machine: Machine, ram: int, feed: Feed, work: Callable[[], bool], explains: bool) -> None:
        self.endpoint = machine.endpoints["dma0"]
        smmu = machine.smmus["smmu0"]
        self.smmu, self.ram, self.feed, self.work, self.explains = smmu, ram, feed, work, explains
        queues = {"commands": COMMANDS, "events": EVENTS, "requests": REQUESTS, "cmdq_bits": 7, "evtq_bits": 4}
        self.driver = SmmuV3(self, work, **queues, priq_bits=2 if smmu.settings.priq_bits else 0, turns=4)
        self.paths = {
            ssid: DmaPath(STREAM, smmu.smmu.translator(STREAM, ssid), smmu.memory, Counters(), lambda: True)
            for ssid in SSIDS
        }

    def read(self, offset: int, count: int) -> bytes:
        return self.smmu.region_read(REGISTER_BAR, offset, count)

    def write(self, offset: int, data: bytes) -> None:
        self.smmu.region_write(REGISTER_BAR, offset, data)

    def load(self, address: int, count: int) -> bytes:
        return os.pread(self.ram, count, address)

    def store(self, address: int, data: bytes) -> None:
        os.pwrite(self.ram, data, address)

    def words(self, address: int, *words: int) -> None:
        self.store(address, b"".join(word.to_bytes(8, "little") for word in words))

    # -- steps ------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        for _ in range(MAX_TURNS):
            if not self.work():
                assert not self.smmu.is_pressed()
                return
        raise AssertionError(f"no rest after {MAX_TURNS} turns")

    def start(self) -> None:
        """Tables by which IOVA is PAGE, and Linux's reset."""
        config = self.feed.u8()
        self.words(TABLE + 64 * SID, CDS | (config & 7) << 1 | 1, 0xD6 | (config >> 3 & 3) << 28, VTCR, SECOND)
        self.words(CDS, CD0, TTB, 0, 0xF404FF44)
        for level in range(4):
            at = TTB + level * 0x1000 + (IOVA >> 39 - 9 * level & 511) * 8
            self.words(at, TTB + (level + 1) * 0x1000 | 3 if level < 3 else PAGE | LEAF)
        self.words(SECOND, BLOCK2)
        with contextlib.suppress(
            StuckError, CommandFailedError
        ):  # memory changed meanwhile, or the queue was left with an error
            self.driver.reset(TABLE, 4)

    def poke(self) -> None:
        self.words(PLACES[self.feed.u8() % len(PLACES)] + 8 * (self.feed.u8() & 0x1F), _word(self.feed))

    def register(self) -> None:
        register = self.feed.pick(REGISTERS)
        value = _word(self.feed) if register.size == 8 else self.feed.u32()
        self.write(register.offset, value.to_bytes(8, "little")[: register.size])

    def access(self) -> None:
        """Of any place and size."""
        at, size = self.feed.u32() % FRAME_SIZE, 1 << (self.feed.u8() & 3)
        if at + size <= FRAME_SIZE:
            assert len(self.read(at, size)) == size
            self.write(at, self.feed.take(size).ljust(size, b"\0"))

    def command(self) -> None:
        first = self.feed.u64() & ~0xFF | self.feed.pick(COMMAND_CODES)
        producer = self.driver.get("CMDQ_PROD")
        self.driver.put(producer, COMMAND.pack(first, _word(self.feed)))
        self.driver.set("CMDQ_PROD", producer + 1 & 0xFF)

    def acknowledge(self) -> None:
        self.driver.on_gerror()

    def dma(self) -> None:
        path, is_write = self.paths[self.feed.pick(SSIDS)], self.feed.u8() & 1
        iova = (IOVA, PAGE, _word(self.feed))[self.feed.u8() % 3]
        length = min(1 + self.feed.u16() % 0x3000, (1 << 64) - iova)
        try:
            if is_write:
                path.write([(iova, length)], bytes(length))
            else:
                assert len(path.read([(iova, length)])) == length
        except DmaRefusedError as error:
            refused = error.fault.iova
        except DmaPendingError:
            if self.feed.u8() & 1:
                path.give_up()
            return
        else:
            return
        finally:
            if self.explains:
                said = self.smmu.explain(STREAM, iova)
                assert said["text"]
                assert len(said["reads"]) <= MOST_READS
        assert iova <= refused < iova + length

    def configure(self) -> None:
        """ATS and page requests of the endpoint, if it has them: capabilities at 0x100 and 0x108."""
        place, value = self.feed.pick((0x106, 0x10C, 0x10E, 0x114)), self.feed.pick((0, 1, 3, 64, 0x8000, 0x8004))
        self.endpoint.region_write(RegionIndex.CONFIG, place, value.to_bytes(2, "little"))

    def requests(self) -> None:
        """As a driver does: take page requests, and answer them or not."""
        if self.smmu.settings.priq_bits:
            for asked in self.driver.on_priq()[0]:
                if self.feed.u8() & 1:
                    with contextlib.suppress(StuckError):
                        self.driver.issue(pri_resp(asked.sid, asked.group, self.feed.pick(PriResponse)))

    def reset(self) -> None:
        self.smmu.reset()
        self.smmu.stream(STREAM).endpoint_begins()

    def save(self) -> None:
        saved = self.smmu.save()
        self.smmu.load(saved)
        assert self.smmu.save() == saved


_STEPS: tuple[Callable[[_Guest], None], ...] = (
    _Guest.settle,
    _Guest.start,
    _Guest.poke,
    _Guest.register,
    _Guest.access,
    _Guest.command,
    _Guest.acknowledge,
    _Guest.dma,
    _Guest.reset,
    _Guest.save,
    _Guest.configure,
    _Guest.requests,
)
STEP = {step.__name__: number for number, step in enumerate(_STEPS)}


def target(data: bytes) -> None:
    """Nothing raises, work has an end, and what is kept stays within its bounds."""
    feed = Feed(data)
    chosen = feed.u16()
    has_ats, has_pri = bool(chosen & 0x100), chosen & 0x300 == 0x300
    section = SmmuSection(
        "smmu0",
        ssid_bits=4 * (chosen >> 1 & 1),
        stage2=bool(chosen & 1),
        strict=bool(chosen & 4),
        cache_entries=0 if chosen & 8 else CACHE,
        stalls=STALLS if chosen & 0x40 else 0,
        ats=has_ats,
        priq_bits=4 if has_pri else 0,
        msi=bool(chosen & 2),  # as SubstreamIDs, with which they have nothing to do
    )
    endpoint = EndpointSection("dma0", "dma-test", STREAM, smmu="smmu0", stream_id=SID, ats=has_ats, pri=has_pri)
    inputs, ram = Meddled(), sealed_memory()
    before = open_descriptors()
    try:
        with nothing_raised():
            core = native() if chosen & 0x10 else None
            machine = build(Topology(endpoint=(endpoint,), smmu=(section,)), inputs, core)
            try:
                for function in machine.functions():
                    function.dma_map(DmaMapping(0, RAM_SIZE, 0, True, True, os.dup(ram)))
                guest = _Guest(machine, ram, feed, Work(machine).step, bool(chosen & 0x20))
                if chosen & 0x80:
                    inputs.meddle = lambda: feed and guest.poke()
                for _ in range(MAX_STEPS):
                    if not feed:
                        break
                    feed.pick(_STEPS)(guest)
                    _check(guest.smmu)
                inputs.meddle = None
                guest.settle()
            finally:
                machine.close()
        assert open_descriptors() == before
    finally:
        os.close(ram)


def _check(function: SmmuFunction) -> None:
    smmu = function.smmu
    caches, most = smmu.caches, 1 << 16 if smmu.config.strict else smmu.config.cache_entries
    for cache in (caches.streams, caches.contexts, caches.stage1, caches.stage2):
        assert len(cache) <= most
    assert len(smmu.stalls.waiting) <= smmu.config.stalls
    report = function.report()
    assert report["page_requests"] <= PRI_CAPACITY
    assert report["invalidations"] == 0
    kept = report["streams"].partition(" ATC ")[2]
    assert kept in ("", "off") or int(kept) <= ATC_ENTRIES
    assert len(function.parent_faults) <= KEPT
    assert len(function.stale) <= KEPT
    assert not smmu.caches.stage2 or smmu.config.stage2
