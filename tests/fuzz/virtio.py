"""What a hostile driver of a network card does: registers, rings and buffers in any order, memory that changes while
the device looks at it.

Input: u8 features (see ``_FEATURES``; bit 6: native code helps a card that has a tap, else Python serves one that has a
peer; bit 7: memory changes after each look of Python's), then steps, each a u8 of ``_STEPS`` and
what that step takes. Rings are where :class:`pviommu.guest.virtio.VirtioGuest` puts them, so that few bytes reach each
of their fields.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from unittest import mock

from pviommu.endpoints import virtio_net as net
from pviommu.endpoints.virtio_net import VirtioNet, VirtioNetOptions
from pviommu.guest.virtio import (
    ACCESS_PLATFORM,
    INDIRECT_DESC,
    RING_EVENT_IDX,
    RING_PACKED,
    RING_RESET,
    VERSION_1,
    VirtioFunction,
    VirtioGuest,
)
from pviommu.host.work import Work
from pviommu.net import tap
from pviommu.topology import EndpointSection, IommuSection, Topology
from pviommu.virtio.layout import REGISTER_BAR_SIZE
from vfio_user import DmaMapping, IrqAction, IrqIndex, IrqKind, IrqRequest

from ..device.net.wire import Poller, Wire
from .feed import Feed
from .machine import RAM_SIZE, Meddled, build, native, nothing_raised, open_descriptors, sealed_memory

__all__ = ["TOKENS", "target"]

MAX_STEPS = 96
MAX_TURNS = 5000
"""in which a device comes to rest, whatever is in its rings"""
SIZE = 16
BASE, BUFFERS = 0x10000, 0x40000
_FEATURES = (
    INDIRECT_DESC,
    RING_EVENT_IDX,
    RING_PACKED,
    RING_RESET,
    net.MRG_RXBUF,
    net.CSUM | net.HOST_TSO4 | net.GUEST_CSUM,
)
HELPED, MEDDLED = 0x40, 0x80
_REQUIRED = (
    VERSION_1
    | ACCESS_PLATFORM
    | net.CTRL_VQ
    | net.CTRL_RX
    | net.CTRL_RX_EXTRA
    | net.CTRL_VLAN
    | net.CTRL_MAC_ADDR
    | net.MTU
)
TOKENS = tuple(flags.to_bytes(2, "little") for flags in (1, 2, 4, 5, 0x80, 0x8000, 0x8080, 0x81, 0x84))


class _Memory:
    """Guest memory by its file."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, address: int, length: int) -> bytes:
        return os.pread(self._fd, length, address)

    def write(self, address: int, data: bytes) -> None:
        os.pwrite(self._fd, data, address)


class _Guest:
    """The steps."""

    def __init__(
        self, card: VirtioNet, peer: VirtioNet | Wire, ram: int, features: int, feed: Feed, work: Callable[[], bool]
    ):
        self.card, self.feed, self.work = card, feed, work
        self.memory = _Memory(ram)
        self.features = _REQUIRED | sum(each for bit, each in enumerate(_FEATURES) if features >> bit & 1)
        self.driver = VirtioGuest(VirtioFunction(card.region_read, card.region_write), self.memory, BASE)
        self.peer = peer
        if isinstance(peer, VirtioNet):
            self.other = VirtioGuest(VirtioFunction(peer.region_read, peer.region_write), self.memory, BASE + 0x10000)
            self._start(self.other, self.features & ~RING_PACKED)
        else:
            card.host = self.poller = Poller()
        self.start()

    @staticmethod
    def _start(driver: VirtioGuest, features: int) -> None:
        if driver.negotiate(features):
            for queue in range(3):
                driver.set_up(queue, SIZE)
            driver.go()

    def start(self) -> None:
        """The driver begins anew, its rings where they were."""
        self.driver = VirtioGuest(self.driver.function, self.memory, BASE)
        self._start(self.driver, self.features)
        if isinstance(self.peer, Wire):
            for queue in self.card.state.queues:
                queue.vector = 0

    def poke(self) -> None:
        at, data = self.feed.u16(), self.feed.take(self.feed.u8() & 31)
        self.memory.write(BASE + at % 0x9000, data)

    def write(self) -> None:
        at, size = self.feed.u16() % REGISTER_BAR_SIZE, 1 << (self.feed.u8() & 3)
        if at + size <= REGISTER_BAR_SIZE:
            self.card.region_write(0, at, self.feed.take(size).ljust(size, b"\0"))

    def configure(self) -> None:
        at, data = self.feed.u8(), self.feed.take(1 + (self.feed.u8() & 15))
        if not at <= 4 < at + len(data):  # bus mastering stays on
            self.card.region_write(7, at, data)

    def read(self) -> None:
        at, size = self.feed.u16() % REGISTER_BAR_SIZE, 1 << (self.feed.u8() & 3)
        if at + size <= REGISTER_BAR_SIZE:
            assert len(self.card.region_read(0, at, size)) == size
        assert len(self.card.region_read(7, 0, 256)) == 256

    def add(self) -> None:
        """A buffer of well-formed descriptors, of any lengths."""
        queue, shape, lengths = self.feed.u8() % 3, self.feed.u8(), self.feed.take(8).ljust(8, b"\1")
        if ring := self.driver.rings.get(queue):
            spans = [(BUFFERS + 0x1000 * number, 16 * length) for number, length in enumerate(lengths)]
            readable, writable = spans[: shape & 3], spans[4 : 4 + (shape >> 2 & 3)]
            if readable or writable:
                ring.add(readable, writable, BUFFERS + 0x9000 if shape & 0x80 else None)

    def frame(self) -> None:
        """A header and a frame, or a command, from the start of the first buffer on."""
        self.memory.write(BUFFERS, self.feed.take(self.feed.u8()))

    def notify(self) -> None:
        self.card.region_write(0, 0x1000 + 4 * (self.feed.u8() % 3), b"\0\0")

    def answer(self) -> None:
        """The other card sends a frame, or one with any header comes from the tap."""
        if isinstance(self.peer, Wire):
            with contextlib.suppress(BlockingIOError):
                self.peer.far.send(self.feed.take(10).ljust(12, b"\0") + self.feed.take(14) + bytes(self.feed.u8()))
            return
        self.memory.write(BUFFERS + 0x10000, bytes(12) + self.feed.take(14).ljust(self.feed.u8() + 14, b"\xff"))
        self.other.rings[1].add([(BUFFERS + 0x10000, 80)])
        self.other.function.notify(1)

    def reset(self) -> None:
        self.card.reset()
        self.card.region_write(7, 4, b"\6\0")

    def save(self) -> None:
        """Its state is one that another device goes on from, and then has."""
        saved = self.card.save()
        self.card.load(saved)
        kept = self.card.save()
        assert kept.own.keys() == saved.own.keys()
        assert kept.own["queues"] == saved.own["queues"]
        assert kept.function.registers.keys() == saved.function.registers.keys()

    def settle(self) -> None:
        if not isinstance(self.peer, Wire):
            self._rest()
            return
        self.poller.look()
        self._rest()
        if (helper := self.card.stand_by()) is not None:
            helper.wait([helper], self.poller.epoll.fileno(), 0.02, 0.01, 0.005, 10_000)
            self.card.stood_by()
        self._rest()
        assert all(net.HEADER + net.MIN_FRAME <= len(frame) <= net.HEADER + net.MAX_FRAME for frame in self.peer.sent())

    def _rest(self) -> None:
        for _ in range(MAX_TURNS):
            if not self.work():
                return
        raise AssertionError(f"no rest after {MAX_TURNS} turns")


_STEPS: tuple[Callable[[_Guest], None], ...] = (
    _Guest.settle,
    _Guest.poke,
    _Guest.write,
    _Guest.read,
    _Guest.configure,
    _Guest.add,
    _Guest.frame,
    _Guest.notify,
    _Guest.answer,
    _Guest.reset,
    _Guest.start,
    _Guest.save,
)
STEP = {step.__name__: number for number, step in enumerate(_STEPS)}


def _topology(*options: VirtioNetOptions) -> Topology:
    cards = (EndpointSection(f"net{at}", "virtio-net", at, options=each) for at, each in enumerate(options))
    return Topology(IommuSection(), tuple(cards))


_TOPOLOGIES = (
    _topology(VirtioNetOptions("peer", "net1", packed=True), VirtioNetOptions("peer", "net0", packed=True)),
    _topology(VirtioNetOptions("tap", tap="tap0", packed=True)),
)
"""without and with help"""


def target(data: bytes) -> None:
    """Nothing raises or fails, work has an end, and what is kept stays within its bounds."""
    feed = Feed(data)
    features = feed.u8()
    inputs, ram, interrupt = Meddled(), sealed_memory(), os.eventfd(0, os.EFD_NONBLOCK)
    before = open_descriptors()
    try:
        with nothing_raised(), mock.patch.object(tap, "Tap", Wire):
            machine = build(_TOPOLOGIES[bool(features & HELPED)], inputs, native() if features & HELPED else None)
            try:
                for function in machine.functions():
                    function.dma_map(DmaMapping(0, RAM_SIZE, 0, True, True, os.dup(ram)))
                    function.region_write(7, 4, b"\6\0")
                cards = [card for card in machine.endpoints.values() if isinstance(card, VirtioNet)]
                one, peer = cards[0], cards[1] if len(cards) > 1 else cards[0]._link
                assert isinstance(peer, VirtioNet | Wire)
                one.set_irqs(IrqRequest(IrqIndex.MSIX, 0, 1, IrqAction.TRIGGER, IrqKind.EVENTFD, (os.dup(interrupt),)))
                guest = _Guest(one, peer, ram, features, feed, Work(machine).step)
                if features & MEDDLED:
                    inputs.meddle = lambda: os.pwrite(ram, feed.take(2), BASE + feed.u16() % 0x9000) and None
                for _ in range(MAX_STEPS):
                    if not feed:
                        break
                    feed.pick(_STEPS)(guest)
                    for card in cards:
                        _check(card)
                inputs.meddle = None
                guest.settle()
                _check(one)
            finally:
                machine.close()
                if features & HELPED:
                    guest.poller.epoll.close()
        assert open_descriptors() == before
    finally:
        os.close(ram)
        os.close(interrupt)


def _check(card: VirtioNet) -> None:
    assert not card.failed
    state = card.state
    assert len(state.queues) <= 3
    for queue in state.queues:
        assert 0 <= queue.next_avail <= 0xFFFF
        assert 0 <= queue.next_used <= 0xFFFF
        assert not queue.used or card.is_live is False
    assert card._inbox_bytes == [sum(len(frame) for _, frame in inbox) for inbox in state.inboxes or [[]]]
    for inbox in state.inboxes:
        assert len(inbox) <= net.INBOX_FRAMES
        assert sum(len(frame) for _, frame in inbox) <= net.INBOX_BYTES
    assert len(state.filter.unicast or ()) <= 64
    assert len(state.filter.vlans) <= 4096
    assert card.dma.stream == card.stream
