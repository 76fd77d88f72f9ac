"""SET_IRQS, and interrupts in between.

Input: requests, each a u8 (what), and for SET_IRQS u32 flags, u8 index, u32 first vector, u32 number of vectors, u8
(low nibble number of descriptors, high nibble their first sort) and u8 bytes that follow.
"""

from __future__ import annotations

import os

from pviommu_abi.registers import MSIX_VECTORS
from vfio_user import Command, IrqIndex
from vfio_user.messages import SetIrqs, SetIrqsFlags

from .feed import Feed
from .machine import Descriptors, Talk, open_descriptors, sealed_memory, small_machine

__all__ = ["TOKENS", "target"]

MAX_REQUESTS = 64
SET, TRIGGER, FILL, BLOCKING, RESET = range(5)
_FULL = (1 << 64) - 2
TOKENS = tuple(
    int(kind | action).to_bytes(4, "little")
    for kind in (SetIrqsFlags.DATA_NONE, SetIrqsFlags.DATA_BOOL, SetIrqsFlags.DATA_EVENTFD)
    for action in (SetIrqsFlags.ACTION_MASK, SetIrqsFlags.ACTION_UNMASK, SetIrqsFlags.ACTION_TRIGGER)
)


def target(data: bytes) -> None:
    """At most one descriptor a vector is kept, an interrupt never blocks, and the end gives all of them back."""
    feed = Feed(data)
    descriptors = Descriptors(sealed_memory())
    try:
        with small_machine() as machine:
            iommu = machine.iommu
            talk = Talk(iommu)
            before = open_descriptors()
            for _ in range(MAX_REQUESTS):
                if not feed:
                    break
                _request(talk, feed, descriptors)
                for vector in range(MSIX_VECTORS):
                    iommu.interrupt(vector)
                assert open_descriptors() <= before + MSIX_VECTORS + 2  # and one each for ERR and REQ
            talk.close()
            assert not any(iommu.interrupts.armed(IrqIndex.MSIX, vector) for vector in range(MSIX_VECTORS))
            assert open_descriptors() == before
    finally:
        descriptors.close()


def _request(talk: Talk, feed: Feed, descriptors: Descriptors) -> None:
    what = feed.u8() % 5
    _, eventfd, _ = descriptors.sorts
    if what == SET:
        flags, index, start, count = feed.u32(), feed.u8(), feed.u32(), feed.u32()
        number = feed.u8()
        bools = feed.take(feed.u8())
        fds = [descriptors.send(sort) for sort in range(number >> 4, (number >> 4) + (number & 0xF))]
        if number >> 4 == 0xF:  # all of them eventfds: what a client really sends
            for fd in fds:
                os.dup2(eventfd, fd)
        payload = SetIrqs(SetIrqs.SIZE + len(bools), flags, index, start, count).pack() + bools
        talk.request(Command.DEVICE_SET_IRQS, payload, fds)
    elif what == FILL:  # a counter that nobody takes
        os.set_blocking(eventfd, False)
        os.eventfd_read(eventfd) if _holds_something(eventfd) else None
        os.eventfd_write(eventfd, _FULL)
    elif what == BLOCKING:
        os.set_blocking(eventfd, True)
    elif what == RESET:
        assert talk.request(Command.DEVICE_RESET, b"") == b""


def _holds_something(eventfd: int) -> bool:
    with open(f"/proc/self/fdinfo/{eventfd}") as info:
        return any(line.startswith("eventfd-count:") and int(line.split()[1], 16) for line in info)
