"""A guest with two network cards that are joined: frames go to and fro, and those that are lost are sent again.

Its driver maps the memory of each frame for as long as the card needs it, as Linux' DMA API does when it is strict. It
sleeps until an interrupt, and looks for itself if none comes, as a driver's watchdog does. A network may lose, repeat
and damage frames, so none of this is harm; memory that is written though the IOMMU does not map it, or that a card
does not give back after a reset either, is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

from vfio_user import IrqIndex
from vfio_user.device import IrqAction, IrqKind, IrqRequest

from ..endpoints.virtio_net import VirtioNet
from ..guest.local import LocalFunction
from ..guest.virtio import (
    ACCESS_PLATFORM,
    NEEDS_RESET,
    RING_EVENT_IDX,
    RING_PACKED,
    VERSION_1,
    Returned,
    VirtioFunction,
    VirtioGuest,
)
from ..topology import Topology, load
from .guest import PlayedGuest
from .stage import Stage

__all__ = ["cards_of", "exchanges", "topology"]

MAC, STATUS, CTRL_VQ = 1 << 5, 1 << 16, 1 << 17
LINK_UP = 1
FEATURES = VERSION_1 | ACCESS_PLATFORM | RING_EVENT_IDX | MAC | STATUS | CTRL_VQ
ROUNDS = 24
TRIES = 6
"""How often a frame is sent."""
RECEIVE, TRANSMIT, CONFIG = 0, 1, 2
"""Queues, and the vectors of their interrupts and of changes of the configuration."""
_ENTRIES, _BUFFERS = 64, 8
_TIMEOUT_NS = 20_000_000
"""After which a driver looks without having been interrupted, and a frame is sent again."""
_LINK_NS = 200_000_000
"""How long a driver waits for a link that is down."""
_GPA, _EACH = 0x200000, 0x400000
_IOVA = 0x40000000
_RINGS, _SENT, _RECEIVED = 0, 0x100000, 0x200000
"""Where a card's rings and frames are in its memory, of which each has so much."""
_RING_PAGES, _PLACES = 8, 64
_HEADER, _ROOM = 12, 2048
_BLANK = b"\xa5"


def topology() -> Topology:
    """The one that is shipped for two cards."""
    return load(Path("net"))


def cards_of(stage: Stage) -> list[VirtioNet]:
    """The network cards of a stage."""
    return [each for each in stage.machine.endpoints.values() if isinstance(each, VirtioNet)]


class PlayedCard:
    """One card, and its driver."""

    def __init__(self, guest: NetworkGuest, name: str, number: int, stack: contextlib.ExitStack) -> None:
        self.guest, self.name = guest, name
        self.device = guest.stage.machine.endpoints[name]
        self.gpa, self.iova = _GPA + number * _EACH, _IOVA + number * _EACH
        self.mac = bytes.fromhex("5254000000") + bytes([number + 1])
        self.ctx: int | None = None
        self.seen: list[bytes] = []
        """frames that arrived, those that are whole"""
        self._posted: dict[int, int] = {}
        """where each receive buffer is, by its ID"""
        self._sending: dict[int, int] = {}
        self._taken: set[int] = set()
        """receive buffers that are not mapped any more though the card has them"""
        self._next = {_SENT: 0, _RECEIVED: 0}
        self._function = LocalFunction(self.device, {})  # type: ignore[arg-type]  # it has no shared memory
        self._function.plug(0, guest.stage.ram.size, guest.stage.ram.fd)
        self._eventfds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(3)]
        for fd in self._eventfds:
            stack.callback(os.close, fd)

    # -- memory, by the addresses that the card uses ---------------------------------------------------------------

    def read(self, address: int, length: int) -> bytes:
        place = address - self.iova + self.gpa
        return self.guest.stage.ram.bytes[place : place + length]

    def write(self, address: int, data: bytes) -> None:
        place = address - self.iova + self.gpa
        self.guest.stage.ram.bytes[place : place + len(data)] = data

    def _map(self, address: int, pages: int = 1) -> bool:
        assert self.ctx is not None
        dfn, gfn = address >> 12, address - self.iova + self.gpa >> 12
        return self.guest.retried(lambda: self.guest.map(self.ctx, dfn, gfn, pages))[0] == 0  # type: ignore[arg-type]

    def _unmap(self, address: int) -> None:
        assert self.ctx is not None
        if address in self._taken:
            self._taken.remove(address)
            return
        result, _ = self.guest.unmap(self.ctx, address >> 12, 1)
        self.guest.check(result == 0, f"the page of a frame at {address:#x} cannot be unmapped")

    def _place(self, area: int) -> int:
        place = self._next[area]
        self._next[area] = (place + 1) % _PLACES
        return self.iova + area + (place << 12)

    # -- the driver ------------------------------------------------------------------------------------------------

    def attach(self) -> bool:
        """To a context of its own, with its rings mapped. Whether that succeeds."""
        self.ctx = self.guest.attached(self.name)
        return self.ctx is not None and self._map(self.iova + _RINGS, _RING_PAGES)

    def start(self) -> None:
        """Reset the function, and begin anew: what was under way is lost."""
        for address in (*self._posted.values(), *self._sending.values()):
            self._unmap(address)
        self._posted.clear()
        self._sending.clear()
        self._function.reset()
        self._function.set_bus_master(True)
        fds = tuple(map(os.dup, self._eventfds))
        request = IrqRequest(int(IrqIndex.MSIX), 0, len(fds), IrqAction.TRIGGER, IrqKind.EVENTFD, fds)
        self.device.set_irqs(request)
        function = VirtioFunction(self.device.region_read, self.device.region_write)
        self.driver = VirtioGuest(function, self, self.iova + _RINGS)
        offered = self.driver.offered()
        agreed = self.driver.negotiate(FEATURES | offered & RING_PACKED)
        self.guest.check(agreed, f"{self.name} does not accept the features that it offers")
        function["CONFIG_MSIX_VECTOR"] = CONFIG
        for queue in (RECEIVE, TRANSMIT):
            self.driver.set_up(queue, _ENTRIES, vector=queue)
        self.driver.go()

    @property
    def is_up(self) -> bool:
        """Whether the configuration says that the link is up."""
        return bool(self.driver.function.device_config(6, 2) & LINK_UP)

    @property
    def is_working(self) -> bool:
        """Whether the card has not asked for a reset, or stopped."""
        status = self.driver.status
        return status != 0xFF and not status & NEEDS_RESET

    def post(self) -> bool:
        """Have some buffers to receive into, as far as they can be mapped. Whether there are any."""
        ring = self.driver.rings[RECEIVE]
        while len(self._posted) < _BUFFERS and self._map(address := self._place(_RECEIVED)):
            self.write(address, _BLANK * 4096)
            self._posted[ring.add([], [(address, _ROOM)])] = address
        self._notify(RECEIVE)
        return bool(self._posted)

    def take_away(self) -> int:
        """Unmap the buffer that the card receives into next: its address."""
        address = next(iter(self._posted.values()))
        self._unmap(address)
        self._taken.add(address)
        return address

    def send(self, frame: bytes) -> bool:
        """Have a frame sent; whether its memory could be mapped."""
        address = self._place(_SENT)
        if not self._map(address):
            return False
        self.write(address, bytes(_HEADER) + frame)
        ring = self.driver.rings[TRANSMIT]
        self._sending[ring.add([(address, _HEADER), (address + _HEADER, len(frame))])] = address
        self._notify(TRANSMIT)
        return True

    def _notify(self, queue: int) -> None:
        ring = self.driver.rings[queue]
        ring.want_interrupt(True)
        if ring.needs_notification():
            self.driver.function.notify(queue)

    def was_interrupted(self) -> bool:
        """Whether it was, since this was last asked."""
        found = False
        for fd in self._eventfds:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(fd)
                found = True
        return found

    def look(self) -> int:
        """Take what came back of both queues. How many buffers these were."""
        count = 0
        for queue, owned, done in ((RECEIVE, self._posted, self._received), (TRANSMIT, self._sending, None)):
            ring = self.driver.rings[queue]
            while self.is_working and (returned := self._take(queue)):
                count += 1
                address = owned.pop(returned.id, None)
                if address is None:
                    self.guest.harm.append(f"{self.name} gives back buffer {returned.id}, which it does not have")
                    return count
                self._unmap(address)
                if done:
                    done(address, returned.written)
            ring.want_interrupt(True)
        return count

    def _take(self, queue: int) -> Returned | None:
        try:
            return self.driver.rings[queue].take()
        except KeyError as error:  # of a packed ring
            self.guest.harm.append(f"{self.name} gives back buffer {error}, which it does not have")
            return None

    def _received(self, address: int, written: int) -> None:
        if not self.guest.check(written <= _ROOM, f"{self.name} wrote {written} bytes into {_ROOM}"):
            return
        behind = self.read(address + written, 4096 - written)
        self.guest.check(behind == _BLANK * len(behind), f"{self.name} wrote behind the {written} bytes that it tells")
        frame = self.read(address + _HEADER, max(0, written - _HEADER))
        if not written:
            self.guest.answers["frame lost in memory"] += 1
        elif len(frame) < 22 or crc32(frame[:-4]).to_bytes(4, "little") != frame[-4:]:
            self.guest.answers["frame damaged"] += 1
        else:
            self.seen.append(frame)

    @property
    def is_sending(self) -> bool:
        """Whether a frame has not come back."""
        return bool(self._sending)

    @property
    def room(self) -> int:
        """How many buffers there are to receive into."""
        return len(self._posted)


class NetworkGuest(PlayedGuest):
    """Drives the IOMMU and the cards of a stage, by calls."""

    stage: Stage

    def __init__(self, stage: Stage, stack: contextlib.ExitStack) -> None:
        super().__init__(stage)
        names = [entry.name for entry in stage.topology.endpoint]
        self.streams = {entry.name: entry.stream for entry in stage.topology.endpoint}
        self.devfns = {name: 0x28 + 8 * number for number, name in enumerate(names)}
        self.cards = [PlayedCard(self, name, number, stack) for number, name in enumerate(names)]

    def wait(self, is_over: Callable[[], bool], ns: int) -> bool:
        """Turn the loop until it is so, so long at most, and look at what came back of each card that interrupts; of
        all of them in the end. Whether it is so.
        """
        end_ns = self.stage.clock.time_ns + ns
        while not is_over() and self.stage.clock.time_ns < end_ns:
            self.stage.turn()
            for card in self.cards:
                if card.was_interrupted():
                    card.look()
        missed = [] if is_over() else [card.look() for card in self.cards]
        if any(missed):
            self.answers["interrupt missed"] += 1
        return is_over()

    def exchange(self, number: int) -> bool:
        """One frame arrives, sent several times if it must. Whether there is a network at all."""
        one, two = self.cards[number % 2], self.cards[1 - number % 2]
        body = number.to_bytes(4, "little") * (12 + number * 37 % 300)
        frame = two.mac + one.mac + b"\x88\xb5" + body
        frame += crc32(frame).to_bytes(4, "little")
        for _ in range(TRIES):
            for card in (one, two):
                if not card.is_working:
                    self.answers["card reset"] += 1
                    card.start()
            if not self.wait(lambda: one.is_up and two.is_up, 0):
                self.answers["link down"] += 1
                if not self.wait(lambda: one.is_up and two.is_up, _LINK_NS):
                    return False
            if not two.post() or not one.send(frame):
                continue
            self.wait(lambda: frame in two.seen, _TIMEOUT_NS)
            if self.wait(lambda: not one.is_sending or not one.is_working, _TIMEOUT_NS) is False:
                self.answers["card reset"] += 1  # as the watchdog of a driver does when a queue is stuck
                one.start()
            if frame in two.seen:
                self.answers["frame arrived"] += 1
                if two.seen.count(frame) > 1:
                    self.answers["frame repeated"] += 1
                two.seen.clear()
                return True
            self.answers["frame lost"] += 1
        self.harm.append(f"frame {number} did not arrive in {TRIES} tries")
        return True

    def takes_away(self) -> None:
        """Unmap a receive buffer under the card that has it, and send a frame: it must not be written."""
        one, two = self.cards
        if not two.post():
            return
        room, address = two.room, two.take_away()
        one.send(two.mac + one.mac + b"\x88\xb5" + b"late" * 40)
        self.wait(lambda: two.room < room, _TIMEOUT_NS)
        left = two.read(address, 4096)
        self.check(left == _BLANK * 4096, f"a frame was written to {address:#x}, which is not mapped any more")


def exchanges(stage: Stage, rounds: int = ROUNDS) -> Iterator[NetworkGuest]:
    """By calls: frames to and fro between two cards; a buffer that is unmapped under its card; resets where they are
    asked for.
    """
    with contextlib.ExitStack() as stack:
        guest = NetworkGuest(stage, stack)
        yield guest
        guest.start()
        for card in guest.cards:
            if not card.attach():
                return
            card.start()
        for number in range(rounds):
            if number == rounds // 2:
                guest.takes_away()
            if not guest.exchange(number):
                return
