"""What a core in another language does of the rings' work."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

from ...dma.access import Copier
from ...dma.memory_file import Guard
from ...dma.plan import Span
from ...engine.core import Core
from ...hosted import Helper, Poll
from ...inputs import Inputs
from ...pci.shared_memory import SharedMemory
from .page_operation import PageKinds, PageRules
from .ring import CommandRing

__all__ = ["DeviceCore", "Poll", "Reason", "Report", "RingCore"]


class Reason(IntEnum):
    """Why a core stopped."""

    DONE = 0
    """as many slots as were asked for, or as there were"""
    OVERDUE = 1
    """time is up"""
    FOR_PYTHON = 2
    """the next slot is not for the core"""
    POSTED_FAILED = 3
    """the last slot was posted and failed; ``unpublished`` ones wait until the event about it is out"""
    BROKEN = 4
    """a ring has an impossible producer index"""


class Report(Protocol):
    """What a core has done. Slots that it left to Python are not counted."""

    slots: int
    posted: int
    failed: int
    maps: int
    unmaps: int
    pages_mapped: int
    pages_unmapped: int
    waits: int
    """how many times somebody in the guest began to wait, as polls saw it"""
    reason: int
    interrupt: int
    """whether the guest asked to be interrupted"""
    unpublished: int
    ring: int
    """number of the ring that was worked on last"""
    sequence: int
    """sequence number of the last slot that failed, and its result"""
    result: int


class RingCore(Protocol):
    """Carries out the common slots of rings that it has made."""

    def ring(self, number: int) -> CommandRing:
        """Ring ``number``, off."""

    def select(self, rules: PageRules | None, carried_out: PageKinds = PageKinds.BOTH) -> None:
        """Carry out slots of these rules and kinds from now on, and leave all others to Python. None: leave all slots
        to Python."""

    def keep_history(self, buffer: bytearray) -> None:
        """Record what is carried out from now on, in the buffer of a :class:`pviommu.history.records.History`."""

    def execute(self, ring: CommandRing, limit: int, budget_ns: int) -> Report:
        """Execute up to ``limit`` slots, which the ring has, for about ``budget_ns``. The report is valid until the
        next call."""

    def spin(self, poll: Poll) -> Report:
        """Poll all rings and execute what appears. The report is valid until the next call."""


class DeviceCore(Core, Protocol):
    """A core for an engine, and perhaps for the rings that lead to it and for guest memory."""

    address: int
    """for native code, once it has started"""

    def rings(self, count: int, shared: SharedMemory, inputs: Inputs) -> RingCore | None:
        """Called once, after :meth:`start`. None: Python serves the rings, as it must if ``inputs`` may not be
        bypassed."""

    def copier(self) -> Copier | None:
        """The copier for the guest memory of one connection. None: Python copies."""

    def transfer(
        self,
        domain: int,
        spans: Sequence[Span],
        copier: Copier,
        data: bytes | memoryview | None,
        word: int,
        step: int,
    ) -> bytes | None:
        """Carry out a request by tables of the guest that this core walks: see :meth:`.translator.Translator.transfer`.
        The 32-bit word at the address ``word`` of this process is ``step`` meanwhile, and one more afterwards.
        """

    def card(self, copier: object) -> Helper | None:
        """What does the plain traffic of a network card whose guest memory ``copier`` copies; None: Python does."""

    def another(self) -> DeviceCore:
        """One with the same parts, for another engine."""

    def guard(self) -> Guard:
        """The guard for guest memory that may go away while it is copied."""
