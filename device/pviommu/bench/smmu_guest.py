"""A guest of a virtual SMMUv3 in this process, that writes tables, drives it, and asks for translations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from struct import Struct
from types import TracebackType
from typing import Self

from smmuv3.registers import REGISTER_BAR
from vfio_user import DmaMapping

from ..counters import Counters
from ..dma.fault import Fault
from ..dma.translator import PENDING
from ..engine import Access
from ..guest.memory import GuestRam
from ..guest.smmuv3 import SmmuV3
from ..inputs import LiveInputs
from ..lab.problems import RunError
from ..pci.function import Environment
from ..topology import EndpointSection, SmmuSection, Topology
from .cores import build_machine

__all__ = ["CACHED", "SIZES", "SmmuGuest"]

CACHED = 512
"""Translations that the SMMU remembers of each stage."""
SIZES = {"4K": 12, "2M": 21, "1G": 30}
"""Leaves, with 4 KiB pages and tables of 4 levels."""
_RAM = 1 << 30
_TABLE, _COMMANDS, _EVENTS, _CDS, _TTB, _SECOND = (0x10_0000 * each for each in (1, 2, 3, 4, 0x10, 0x80))
_MIB = 1 << 20
_PAGES, _PAGES_SIZE, _BLOCKS = 256 * _MIB, 64 * _MIB, 512 * _MIB
"""Where leaves of 4 KiB and of 2 MiB lead."""
_QUEUE_BITS = 10
_STREAM, _SID = 1, 8
_CD0, _MAIR = 0x0007E205C0003510, 0xF404FF44
"""As Linux writes it: 4 KiB, T0SZ 16, EPD1, 48 bits, AA64, R, A, ASET, ASID 7."""
_LEAF, _LEAF2 = 0xF44, 0x7C0
_VTCR = 4 << 48 | 1 << 51 | 1 << 58 | 2 << 38 | 20 << 32
"""STE dword 2: 44 bits, AA64, R, from level 0, S2T0SZ 20."""
_Q8, _WORD = Struct("<8Q"), Struct("<Q")


class SmmuGuest:
    """An SMMU with one endpoint, started as Linux does, with RAM at 0. A context manager."""

    def __init__(self, core: str, *, nested: bool = False, cached: int = CACHED) -> None:
        """``nested``: stage 1 stands on a stage 2 of 4 levels, with leaves as large as those that lead there, and pages
        of 4 KiB for tables.
        """
        endpoint = EndpointSection("dma0", "dma-test", _STREAM, smmu="smmu0", stream_id=_SID)
        section = SmmuSection("smmu0", stage2=nested, cache_entries=cached)
        topology = Topology(endpoint=(endpoint,), smmu=(section,))
        self._machine = build_machine(topology, Environment(LiveInputs(), Counters()), core)
        self._ram = GuestRam(_RAM)
        self.bytes = self._ram.bytes
        self.function = self._machine.smmus["smmu0"]
        self.function.dma_map(DmaMapping(0, _RAM, 0, True, True, os.dup(self._ram.fd)))
        self.driver = SmmuV3(
            self, self.function.work, commands=_COMMANDS, events=_EVENTS, cmdq_bits=_QUEUE_BITS, evtq_bits=_QUEUE_BITS
        )
        self._next_table = {_TTB: _TTB, _SECOND: _SECOND}
        self.store(_CDS, _Q8.pack(_CD0, _TTB, 0, _MAIR, 0, 0, 0, 0))
        self.store(_TABLE + 64 * _SID, _Q8.pack(_CDS | (0xF if nested else 0xB), 0xD6, _VTCR, _SECOND, 0, 0, 0, 0))
        self._far = _RAM if nested else 0
        if nested:
            for first, size, shift in ((0, 32 * _MIB, 12), (_PAGES, _PAGES_SIZE, 12), (_BLOCKS, 4 * _MIB, 21)):
                for address in range(first, first + size, 1 << shift):
                    self._map(_SECOND, address, address | _LEAF2, shift)
            self._map(_SECOND, self._far, _LEAF2, 30)
        self.driver.reset(_TABLE, 4)
        self._translator = self.function.stream(_STREAM)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._machine.close()
        self._ram.close()

    # -- the driver's frame -----------------------------------------------------------------------------------------

    def read(self, offset: int, count: int) -> bytes:
        return self.function.region_read(REGISTER_BAR, offset, count)

    def write(self, offset: int, data: bytes) -> None:
        self.function.region_write(REGISTER_BAR, offset, data)

    def load(self, address: int, count: int) -> bytes:
        return self.bytes[address : address + count]

    def store(self, address: int, data: bytes) -> None:
        self.bytes[address : address + len(data)] = data

    # -- tables -----------------------------------------------------------------------------------------------------

    def map(self, iova: int, frame: int, shift: int = 12) -> int:
        """Write a leaf of stage 1, and the tables above it; where the leaf is. ``frame`` says where it leads; there are
        16384 frames of 4 KiB, two of 2 MiB, and one of 1 GiB.
        """
        targets = {12: _PAGES + (frame << 12) % _PAGES_SIZE, 21: _BLOCKS + (frame % 2 << 21), 30: self._far}
        return self._map(_TTB, iova, targets[shift] | _LEAF, shift)

    def _map(self, root: int, address: int, leaf: int, shift: int) -> int:
        table = root
        for level in (39, 30, 21, 12):
            place = table + (address >> level & 511) * 8
            if level == shift:
                self.store(place, _WORD.pack(leaf | (3 if level == 12 else 1)))
                return place
            [found] = _WORD.unpack(self.load(place, 8))
            if not found:
                self._next_table[root] += 0x1000
                found = self._next_table[root] | 3
                self.store(place, _WORD.pack(found))
            table = found & ~0xFFF
        raise ValueError(f"leaves of {shift} bits: there are those of {tuple(SIZES.values())}")

    # -- DMA --------------------------------------------------------------------------------------------------------

    def translate(self, spans: Sequence[tuple[int, int]]) -> None:
        """Have a request translated. Raises RunError for one that is refused."""
        found = self._translator.translate([(spans, Access.READ)])
        if found is PENDING or isinstance(found, Fault):
            raise RunError(f"a translation that is mapped: {found}")
