"""An SMMU over guest memory, an endpoint behind it, and a guest that writes tables and drives it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from struct import Struct
from typing import Any

import pytest

from pviommu.counters import Counters
from pviommu.dma.atc import Atc
from pviommu.dma.fault import DmaRefusedError, Fault
from pviommu.dma.memory import GuestMemory
from pviommu.dma.memory_file import Guard, MemoryFiles
from pviommu.dma.pages import PageRequester
from pviommu.dma.path import DmaPath
from pviommu.engine import Engine, EngineConfig
from pviommu.guest.memory import GuestRam
from pviommu.guest.smmuv3 import SmmuV3
from pviommu.inputs import LiveInputs
from pviommu.interfaces.smmuv3.config import SmmuConfig
from pviommu.interfaces.smmuv3.smmu import Smmu
from pviommu.interfaces.smmuv3.stream import ParentFault
from pviommu.interfaces.smmuv3.translation import Stale
from smmuv3.registers import Vector
from smmuv3.structures import STE_SIZE
from vfio_user import DmaMapping

RAM, RAM_SIZE = 0x4000_0000, 0x2000_0000
OUTSIDE = 0x8000_0000
"""An address without RAM."""
IOVA = 0x8080604560
PAGE = 0x5000_0000
"""Where :data:`IOVA` leads, in the tables that :meth:`Guest.map` writes: its offset in the page is 0x560."""
TABLE, CDS, TTB, STTB = 0x4100_0000, 0x4200_0000, 0x4300_0000, 0x4700_0000
COMMANDS, EVENTS = 0x4400_0000, 0x4500_0000
SID, STREAM, PARENT, OWN = 8, 1, 1, 99
DATA = (0x12345678).to_bytes(4, "little")
CD0 = 0x0007E205C0003510
"""Of Linux: 4 KiB, T0SZ 16, EPD1, 48 bits, AA64, R, A, ASET, ASID 7."""
MAIR = 0xF404FF44
VTCR = 5 << 48 | 1 << 51 | 1 << 58 | 2 << 38 | 20 << 32
"""Dword 2 of an STE: 4 KiB, 44 bits of input from level 0, 48 of output, recorded."""
LEAF = 0xF47
"""AF, inner shareable, attributes 1, AP[1], nG of no significance."""
_Q8 = Struct("<8Q")


class Guest:
    """All of it. Addresses are the guest's physical ones, which the parent maps 1:1 unless a test changes that."""

    make_core: Callable[[], Any] = staticmethod(lambda: None)
    """makes the cores of all engines; None: Python's"""

    def __init__(
        self,
        queue_bits: tuple[int, int] = (8, 7),
        aperture: int = 48,
        guard: Guard | None = None,
        **settings: Any,
    ) -> None:
        """``queue_bits``: log2 of the entries of command and event queue. ``guard``: exchanges memory."""
        self.ram = GuestRam(RAM_SIZE)
        core = self.make_core()
        self.engine = Engine(EngineConfig(pool_pages=1 << 16, aperture_bits=aperture, reserved=()), core)
        files = MemoryFiles()
        files.guard = guard
        self.memory = GuestMemory(LiveInputs(), files=files, name="smmu0")
        self.memory.copier = core.copier() if core else None
        self.memory.map(DmaMapping(RAM, RAM_SIZE, 0, True, True, os.dup(self.ram.fd)))
        self.engine.set_ram([(RAM >> 12, (RAM + RAM_SIZE >> 12) - 1)])
        self.engine.add_endpoint(STREAM)
        assert self.engine.alloc_paging(PARENT, clone=True) is None
        self.interrupts: list[Vector] = []
        self.parent_faults: list[ParentFault] = []
        self.stale: list[Stale] = []
        self.timers: list[Callable[[], None]] = []
        """what is to be called when a CMD_SYNC has waited long enough"""
        config = SmmuConfig(**settings)
        self.smmu = Smmu(
            config,
            self.engine,
            self.memory,
            PARENT,
            own_stream=OWN,
            first_domain=100,
            interrupt=self.interrupts.append,
            on_parent_fault=self.parent_faults.append,
            on_stale=self.stale.append,
            later=self.timers.append,
            stages=core.stages(self.memory.copier, PARENT, 1 << config.address_bits) if core else None,
        )
        cmdq_bits, self.evtq_bits = queue_bits
        queues = {"commands": COMMANDS, "events": EVENTS, "cmdq_bits": cmdq_bits, "evtq_bits": self.evtq_bits}
        self.driver = SmmuV3(self, self.smmu.work, **queues)
        self.atc, self.has_ats = Atc(), True
        self.atc.is_enabled = lambda: self.has_ats
        self.requester = PageRequester()
        self.requester.is_enabled, self.requester.allocation = lambda: self.has_pri, lambda: 32
        self.has_pri = config.priq_bits > 0
        self.smmu.bind(STREAM, SID, self.atc if config.ats else None, self.requester if config.priq_bits else None)
        assert self.smmu.attach(STREAM) is None
        self.dma = self.path()

    def path(self, ssid: int | None = None, stream: int = STREAM) -> DmaPath:
        """The DMA of an endpoint."""
        return DmaPath(stream, self.smmu.translator(stream, ssid), self.memory, Counters(), lambda: True)

    def close(self) -> None:
        self.memory.clear()
        self.ram.close()

    # -- the driver's frame -----------------------------------------------------------------------------------------

    def read(self, offset: int, count: int) -> bytes:
        return self.smmu.read(offset, count)

    def write(self, offset: int, data: bytes) -> None:
        self.smmu.write(offset, data)

    def load(self, address: int, count: int) -> bytes:
        return self.ram.bytes[address - RAM : address - RAM + count]

    def store(self, address: int, data: bytes) -> None:
        self.ram.bytes[address - RAM : address - RAM + len(data)] = data

    # -- structures -------------------------------------------------------------------------------------------------

    def store_words(self, address: int, *dwords: int) -> None:
        self.store(address, b"".join(dword.to_bytes(8, "little") for dword in dwords))

    def word(self, address: int) -> int:
        return int.from_bytes(self.load(address, 8), "little")

    def ste(self, *dwords: int, sid: int = SID, table: int = TABLE) -> None:
        self.store(table + sid * STE_SIZE, _Q8.pack(*dwords, *[0] * (8 - len(dwords))))

    def stage1(self, cds: int = CDS, sid: int = SID) -> None:
        """The STE that Linux writes."""
        self.ste(cds | 0xB, 0xD6, sid=sid)

    def cd(self, cd0: int = CD0, ttb0: int = TTB, ttb1: int = 0, *, place: int = CDS, had: int = 0) -> None:
        self.store(place, _Q8.pack(cd0, ttb0 | had << 1, ttb1 | had << 1, MAIR, 0, 0, 0, 0))

    def map(
        self,
        leaf: int = PAGE | LEAF,
        iova: int = IOVA,
        *,
        root: int = TTB,
        granule: int = 12,
        start: int = 0,
        bits: int = 48,
        stop: int = 3,
        middle: int = 0,
    ) -> list[int]:
        """Write a leaf at level ``stop`` and the tables above it, one behind the other; ``middle``: further bits of the
        lowest table's descriptor. Returns the addresses of the descriptors.
        """
        places, table = [], root
        for level in range(start, stop + 1):
            shift = granule + (3 - level) * (granule - 3)
            index_bits = bits - shift if level == start else granule - 3
            places.append(table + (iova >> shift & (1 << index_bits) - 1) * 8)
            table = root + (level - start + 1) * 0x10_0000
            if level == stop:
                self.store_words(places[-1], leaf)
            else:
                self.store_words(places[-1], table | 3 | (middle if level == stop - 1 else 0))
        return places

    def start(self, log2size: int = 5) -> Guest:
        """Reset as Linux does, with a linear stream table; STE, CD and tables lead from IOVA to PAGE."""
        self.stage1()
        self.cd()
        self.leaf = self.map()[-1]
        self.driver.reset(TABLE, log2size)
        return self

    # -- DMA --------------------------------------------------------------------------------------------------------

    def put(self, iova: int = IOVA, path: DmaPath | None = None) -> Fault | None:
        """Write DATA; the fault, if it is refused."""
        try:
            (path or self.dma).write([(iova, 4)], DATA)
        except DmaRefusedError as refused:
            return refused.fault
        return None

    def get(self, iova: int = IOVA, path: DmaPath | None = None) -> bytes | Fault:
        try:
            return (path or self.dma).read([(iova, 4)])
        except DmaRefusedError as refused:
            return refused.fault

    def lands(self, address: int, iova: int = IOVA, path: DmaPath | None = None) -> bool:
        """Whether a write to ``iova`` is refused by nobody and changes ``address``."""
        self.store(address, bytes(4))
        return self.put(iova, path) is None and self.load(address, 4) == DATA

    def records(self) -> list[tuple[int, ...]]:
        """The dwords of all events since the last call."""
        driver, wrap = self.driver, (2 << self.evtq_bits) - 1
        index, producer, found = driver.get("EVENTQ_CONS") & wrap, driver.get("EVENTQ_PROD") & wrap, []
        while index != producer:
            place = EVENTS + (index & wrap >> 1) * 32
            found.append(tuple(self.word(place + 8 * each) for each in range(4)))
            index = index + 1 & wrap
        driver.on_eventq()
        return found

    def issue(self, *commands: bytes) -> None:
        """Commands, and wait for them."""
        self.driver.issue(*commands)
        self.driver.sync()

    def refused(self, records: Sequence[tuple[int, ...]], iova: int = IOVA) -> bool:
        """Whether a write is refused with exactly these records."""
        fault = self.put(iova)
        return fault is not None and fault.iova == iova and self.records() == list(records)


@pytest.fixture
def make_guest() -> Iterator[Callable[..., Guest]]:
    """Makes guests with settings of the SMMU."""
    made: list[Guest] = []

    def make(**settings: Any) -> Guest:
        made.append(Guest(**settings))
        return made[-1]

    yield make
    for guest in made:
        guest.close()


@pytest.fixture
def guest(make_guest: Callable[..., Guest]) -> Guest:
    """One that has done nothing yet."""
    return make_guest()


@pytest.fixture
def started(guest: Guest) -> Guest:
    """One with a mapping, reset as Linux does."""
    return guest.start()
