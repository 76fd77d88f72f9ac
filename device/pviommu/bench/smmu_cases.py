"""What ``pviommu bench smmu`` measures: registers, commands, and translations of a guest's tables."""

from __future__ import annotations

from collections.abc import Callable
from time import thread_time_ns

from smmuv3.commands import Completion, Opcode, sync, tlbi
from smmuv3.registers import REGISTER

from ..lab.problems import RunError
from .local_guest import scattered
from .samples import Case, Work
from .smmu_guest import CACHED, SIZES, SmmuGuest

__all__ = ["LEAVES", "cold_cases", "command_cases", "translation_cases"]

LEAVES = {"4K": 256, "2M": 256, "1G": 64}
"""In a request."""
_MISSED = 2 * CACHED
"""Leaves that are asked for in turn, so that none is remembered when its turn comes."""
_AT = 1 << 40
_QUEUED = 256
_ASID = 7


def _timed(do: Callable[[], object]) -> Work:
    def work(count: int) -> int:
        start = thread_time_ns()
        for _ in range(count):
            do()
        return thread_time_ns() - start

    return work


def command_cases(guest: SmmuGuest) -> list[Case]:
    """Accesses to registers, as the transport makes them; commands, from the write of the producer index to the read of
    the consumer index that says that all are complete.
    """
    cr0, prod, cons = (REGISTER[name] for name in ("CR0", "CMDQ_PROD", "CMDQ_CONS"))
    zero = bytes(4)
    pages = [_AT + (page << 12) for page in range(CACHED)]
    for iova, frame in zip(pages, scattered(CACHED), strict=True):
        guest.map(iova, frame)

    def carry_out(*commands: bytes) -> Callable[[], None]:
        """All of them, again and again."""
        driver, number = guest.driver, len(commands)

        def do() -> None:
            producer = driver.get("CMDQ_PROD")
            for each in commands:
                driver.put(producer, each)
                producer = producer + 1 & 0x7FF
            wanted = producer.to_bytes(4, "little")
            guest.write(prod.offset, wanted)
            for _ in range(number + 1):
                if guest.read(cons.offset, 4) == wanted:
                    return
                guest.function.work()
            raise RunError("commands are not carried out")

        return do

    def unmap(iova: int) -> Callable[[], None]:
        return carry_out(tlbi(Opcode.TLBI_NH_VA, iova, asid=_ASID, leaf=True), sync(Completion.SEV))

    absent = unmap(0x1000)

    def with_empty_caches(count: int) -> int:
        guest.driver.issue(tlbi(Opcode.TLBI_NSNH_ALL))
        guest.driver.sync()
        return _timed(absent)(count)

    def with_full_caches(count: int) -> int:
        guest.translate([(iova, 8) for iova in pages])
        return _timed(absent)(count)

    def pair(count: int) -> int:
        """A page is mapped by a store, used once, and unmapped by a store, an invalidation and a wait."""
        iova = _AT + (1 << 30)
        place = guest.map(iova, 0)
        leaf, gone, flush = guest.load(place, 8), bytes(8), unmap(iova)
        spans = [(iova, 4096)]
        start = thread_time_ns()
        for _ in range(count):
            guest.store(place, leaf)
            guest.translate(spans)
            guest.store(place, gone)
            flush()
        return thread_time_ns() - start

    return [
        Case("register, read", _timed(lambda: guest.read(cr0.offset, 4))),
        Case("register, write", _timed(lambda: guest.write(REGISTER["EVENTQ_CONS"].offset, zero))),
        Case("CMD_SYNC", _timed(carry_out(sync(Completion.SEV)))),
        Case("TLBI and SYNC", with_empty_caches),
        Case(f"TLBI and SYNC, {CACHED} cached", with_full_caches),
        Case(f"{_QUEUED} TLBI and a SYNC", _timed(carry_out(*_many())), _QUEUED, "commands"),
        Case("map, translation, unmap", pair),
    ]


def _many() -> list[bytes]:
    pages = [tlbi(Opcode.TLBI_NH_VA, page << 12, asid=_ASID, leaf=True) for page in range(_QUEUED)]
    return [*pages, sync(Completion.SEV)]


def translation_cases(guest: SmmuGuest, suffix: str = "") -> list[Case]:
    """Translations of requests, by size of the leaves: one leaf that is remembered or not, and what each leaf costs in
    a request of many, which is what the walk takes.
    """
    cases = []
    for number, (size, shift) in enumerate(SIZES.items(), 1):
        at, step = _AT * (number + 1), 1 << shift
        for leaf, frame in enumerate(scattered(_MISSED)):
            guest.map(at + leaf * step, frame, shift)
        ones = [[(at + leaf * step, 8)] for leaf in range(_MISSED)]
        whole = LEAVES[size] * step
        many = [[(at + first, whole)] for first in range(0, _MISSED * step, whole)]
        for name, requests, leaves in (("one leaf", ones, 1), ("each of many", many, LEAVES[size])):
            for kind, asked in (("hit", requests[:1]), ("miss", requests)):
                cases.append(
                    Case(
                        f"{name}, {size}{suffix}, {kind}",
                        _in_turn(guest, asked, leaves),
                        least_count=len(asked) * leaves,
                    )
                )
    return cases


def cold_cases(guest: SmmuGuest, suffix: str = "") -> list[Case]:
    """As each of many of :func:`translation_cases`, for an SMMU that remembers nothing."""
    leaves = LEAVES["4K"]
    for leaf, frame in enumerate(scattered(leaves)):
        guest.map(_AT + (leaf << 12), frame)
    asked = [[(_AT, leaves << 12)]]
    return [Case(f"each of many, 4K{suffix}, nothing cached", _in_turn(guest, asked, leaves), least_count=leaves)]


def _in_turn(guest: SmmuGuest, requests: list[list[tuple[int, int]]], leaves: int) -> Work:
    def work(count: int) -> int:
        translate = guest.translate
        if len(requests) == 1:  # it is to be found as the last time, and other cases were measured since
            translate(requests[0])
        start = thread_time_ns()
        for _ in range(count // (leaves * len(requests))):
            for spans in requests:
                translate(spans)
        return thread_time_ns() - start

    return work
