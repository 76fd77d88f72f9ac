"""Two network cards that are joined (virtio 1.2, section 5.1), driven by hand."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pviommu.counters import Counters
from pviommu.dma.fault import DmaPendingError
from pviommu.endpoints import virtio_net as net
from pviommu.endpoints.virtio_device import STEP_NS
from pviommu.endpoints.virtio_net import VirtioNet, VirtioNetOptions
from pviommu.guest.memory import GuestRam
from pviommu.guest.virtio import (
    ACCESS_PLATFORM,
    INDIRECT_DESC,
    RING_EVENT_IDX,
    RING_PACKED,
    VERSION_1,
    VirtioFunction,
    VirtioGuest,
)
from pviommu.machine import Machine
from pviommu.net.link import Link, Watcher
from pviommu.net.offload import GSO_TCPV4, NEEDS_CSUM, PLAIN, checksum
from pviommu.net.reception import FLOWS
from pviommu.pci.function import Environment
from pviommu.snapshot import restore, take
from pviommu.topology import TopologyError, load
from vfio_user import DmaMapping

from ..conftest import Inputs

PAGES = 256
GPA = {"net0": 0x40_0000, "net1": 0x80_0000}
IOVA = {"net0": 0x1_0000_0000, "net1": 0x2_0000_0000}
MAC = {"net0": bytes.fromhex("525400000001"), "net1": bytes.fromhex("525400000002")}
BUFFERS = 0x40000
"""Where frames are, in each card's memory."""
REQUIRED = VERSION_1 | ACCESS_PLATFORM
PLAIN_FEATURES = REQUIRED | net.MAC | net.STATUS | net.MTU | net.CTRL_VQ
LAYOUTS = pytest.mark.parametrize("layout", [pytest.param(0, id="split"), pytest.param(RING_PACKED, id="packed")])


class Card:
    """A card with its driver, which sends and receives frames."""

    def __init__(self, guest: Any, device: VirtioNet) -> None:
        self.guest, self.device, self.name = guest, device, device.name
        self.driver = VirtioGuest(VirtioFunction(device.region_read, device.region_write), self, IOVA[self.name])
        self._next = 0
        self._posted: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def read(self, address: int, length: int) -> bytes:
        found: bytes = self.guest.peek(address - IOVA[self.name] + GPA[self.name], length)
        return found

    def write(self, address: int, data: bytes) -> None:
        self.guest.poke(address - IOVA[self.name] + GPA[self.name], data)

    def place(self, length: int) -> int:
        """Where a buffer of so many bytes may be, for a while."""
        if self._next + length > 0xB0000:
            self._next = 0
        place = IOVA[self.name] + BUFFERS + self._next
        self._next += length + 15 & ~15
        return place

    def start(self, features: int = PLAIN_FEATURES, pairs: int = 1, size: int = 64) -> Card:
        self.pairs = pairs
        assert self.driver.negotiate(features)
        for queue in range(2 * pairs):
            self.driver.set_up(queue, size)
        if features & net.CTRL_VQ:
            self.driver.set_up(self.control, size)
        self.driver.go()
        return self

    @property
    def control(self) -> int:
        return 2 * self.device.registers["MAX_VIRTQUEUE_PAIRS"] if self.driver.features & net.MQ else 2

    def post(self, lengths: Sequence[int] = (2048,), pair: int = 0, at: int | None = None) -> None:
        """A receive buffer of one descriptor for each length."""
        spans = [(at or self.place(length), length) for length in lengths]
        self._posted[pair, self.driver.rings[2 * pair].add([], spans)] = spans
        self.driver.function.notify(2 * pair)

    def send(self, frame: bytes, header: bytes = PLAIN, pair: int = 0, split: int = 12) -> None:
        """Send a frame, its header and the first bytes in a descriptor of their own."""
        data = header + bytes(2) + frame
        place = self.place(len(data))
        self.write(place, data)
        spans = [span for span in ((place, split), (place + split, len(data) - split)) if span[1]]
        self.driver.rings[2 * pair + 1].add(spans)
        self.driver.function.notify(2 * pair + 1)

    def received(self, pair: int = 0) -> list[bytes]:
        """What came back, each buffer with its header."""
        found = []
        while returned := self.driver.rings[2 * pair].take():
            spans, left, data = self._posted[pair, returned.id], returned.written, b""
            for address, length in spans:
                data += self.read(address, min(length, left))
                left -= min(length, left)
            assert len(data) == returned.written
            found.append(data)
        return found

    def command(self, kind: int, number: int, data: bytes = b"") -> int:
        """The device's answer."""
        place, answer = self.place(2 + len(data)), self.place(1)
        self.write(place, bytes([kind, number]) + data)
        self.write(answer, b"\xee")
        self.driver.rings[self.control].add(
            [(place, 2), (place + 2, len(data))] if data else [(place, 2)], [(answer, 1)]
        )
        self.driver.function.notify(self.control)
        settle(self.device)
        assert self.driver.rings[self.control].take() is not None
        return self.read(answer, 1)[0]


def settle(*devices: Any) -> None:
    for _ in range(10_000):
        if not sum(device.step() for device in devices):
            return
    raise AssertionError("they do not come to rest")


def frame(to: bytes = MAC["net1"], length: int = 60, fill: int = 0xAB, vlan: int | None = None) -> bytes:
    tag = b"" if vlan is None else b"\x81\x00" + vlan.to_bytes(2, "big")
    head = to + MAC["net0"] + tag + b"\x08\x00"
    return head + bytes([fill]) * (length - len(head))


@pytest.fixture
def make(guest: Any) -> Any:
    def make(**options: Any) -> tuple[Card, Card]:
        cards = []
        for stream, (name, other) in enumerate((("net0", "net1"), ("net1", "net0")), 1):
            mine = options | ({"pcap": options["pcap"] + name} if "pcap" in options else {})
            given = VirtioNetOptions(link="peer", peer=other, mac=MAC[name].hex(":"), packed=True, **mine)
            device = guest.make(VirtioNet, name, stream, given)
            guest.plug(device)
            guest.map(IOVA[name] >> 12, GPA[name] >> 12, PAGES)
            cards.append(Card(guest, device))
        return cards[0], cards[1]

    return make


@pytest.fixture
def cards(make: Any) -> tuple[Card, Card]:
    made: tuple[Card, Card] = make()
    return made


# -- what it shows --------------------------------------------------------------------------------------------------


def test_the_configuration_is_that_of_the_topology(make: Any) -> None:
    one, _ = make(mtu=9000, queue_pairs=4)
    config = one.driver.function.device_config
    assert bytes(config(place, 1) for place in range(6)) == MAC["net0"]
    assert [config(*field) for field in ((6, 2), (8, 2), (10, 2), (12, 4), (16, 1))] == [1, 4, 9000, 10_000, 1]
    assert one.driver.function["NUM_QUEUES"] == 9


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"offloads": False}, net.CSUM | net.HOST_TSO4 | net.HOST_TSO6 | net.GUEST_OFFLOADS | net.CTRL_GUEST_OFFLOADS),
        ({"packed": False}, RING_PACKED),
        ({"queue_pairs": 1}, net.MQ),
    ],
)
def test_what_the_topology_turns_off_is_not_offered(guest: Any, options: dict[str, Any], missing: int) -> None:
    everything = {"offloads": True, "packed": True, "queue_pairs": 2}
    full = guest.make(VirtioNet, "full", 1, VirtioNetOptions(**everything))
    less = guest.make(VirtioNet, "less", 2, VirtioNetOptions(**(everything | options)))
    guest.endpoints += [full, less]

    assert full.offered & ~less.offered == missing
    assert full.offered & REQUIRED == less.offered & REQUIRED == REQUIRED


def test_without_a_link_the_link_is_down_and_frames_are_gone(guest: Any) -> None:
    device = guest.make(VirtioNet, "net0", 1, VirtioNetOptions())
    guest.plug(device)
    guest.map(IOVA["net0"] >> 12, GPA["net0"] >> 12, PAGES)
    card = Card(guest, device).start()
    assert card.driver.function.device_config(6, 2) == 0
    assert device.mac == bytes.fromhex("027076690001")

    card.send(frame())
    settle(device)

    assert card.driver.rings[1].take() is not None


@pytest.mark.row("virtio", 4)
@pytest.mark.parametrize(
    "options", [{}, {"offloads": False}, {"queue_pairs": 4}, {"packed": True}, {"offloads": False, "queue_pairs": 2}]
)
def test_a_feature_is_offered_with_those_that_it_needs(guest: Any, options: dict[str, Any]) -> None:
    device = guest.make(VirtioNet, "net0", 1, VirtioNetOptions(**options))
    guest.endpoints.append(device)

    assert device.fits(device.offered)


@pytest.mark.row("virtio", 4)
@pytest.mark.parametrize("feature", sorted(net.NEEDS))
def test_a_feature_without_what_it_needs_gets_no_features_ok(make: Any, feature: int) -> None:
    one, _ = make(queue_pairs=2)
    assert one.device.offered & feature

    assert one.driver.negotiate(REQUIRED | feature) is False
    assert one.driver.negotiate(REQUIRED | feature | net.NEEDS[feature]) is True


# -- frames ---------------------------------------------------------------------------------------------------------


@pytest.mark.row("virtio", 6)
@LAYOUTS
@pytest.mark.parametrize("rings", [0, RING_EVENT_IDX | INDIRECT_DESC])
@pytest.mark.parametrize("split", [12, 1, 30, 0])
def test_frames_arrive_as_they_were_sent(cards: tuple[Card, Card], layout: int, rings: int, split: int) -> None:
    one, two = (card.start(PLAIN_FEATURES | layout | rings) for card in cards)
    for number in range(100):
        two.post()
        one.send(frame(length=60 + number, fill=number), split=split)
        settle(one.device, two.device)

        assert two.received() == [PLAIN + b"\1\0" + frame(length=60 + number, fill=number)]
        assert one.driver.rings[1].take() is not None
    assert one.device.state.traffic == net.Traffic(sent=100)
    assert two.device.state.traffic == net.Traffic(received=100)


@pytest.mark.row("virtio", 13)
@LAYOUTS
def test_a_frame_is_spread_over_the_buffers_that_it_needs(cards: tuple[Card, Card], layout: int) -> None:
    one, two = (card.start(PLAIN_FEATURES | net.MRG_RXBUF | layout) for card in cards)
    for lengths in ((100,), (50, 50), (100,), (1000,), (100,)):
        two.post(lengths)
    sent = frame(length=1000)
    one.send(sent)
    settle(one.device, two.device)

    [first, *rest] = two.received()

    assert first[:12] == PLAIN + b"\4\0"
    assert b"".join([first[12:], *rest]) == sent
    assert [len(each) for each in (first, *rest)] == [100, 100, 100, 712]


def test_an_answer_to_a_frame_needs_no_notification(cards: tuple[Card, Card]) -> None:
    one, two = (card.start(PLAIN_FEATURES | RING_EVENT_IDX) for card in cards)
    two.post()
    settle(one.device, two.device)
    transmits = two.driver.rings[1]
    two.driver.function.notify = lambda _queue: None  # type: ignore[method-assign]

    one.send(frame())
    for device in (one.device, two.device):
        device.step()
    two.send(frame(MAC["net0"]))
    assert not transmits.needs_notification()
    settle(two.device)

    assert two.device.state.traffic.sent == 1


@pytest.mark.parametrize("seed", range(4))
def test_frames_whose_dma_has_to_wait_arrive_once(
    cards: tuple[Card, Card], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    one, two = (card.start(PLAIN_FEATURES | RING_EVENT_IDX) for card in cards)
    settle(one.device, two.device)
    chance = random.Random(seed)

    def put_off(call: Callable[..., Any]) -> Callable[..., Any]:
        def some_later(*arguments: Any) -> Any:
            if chance.random() < 0.2:
                raise DmaPendingError
            return call(*arguments)

        return some_later

    for card in cards:
        for name in ("read", "write"):
            monkeypatch.setattr(card.device.dma, name, put_off(getattr(card.device.dma, name)))
    for number in range(40):
        source, target = (one, two) if number % 2 else (two, one)
        target.post()
        source.send(frame(MAC[target.name], fill=number))
        settle(one.device, two.device)
        assert [each[12:] for each in target.received()] == [frame(MAC[target.name], fill=number)]


def test_a_frame_waits_until_there_are_buffers_enough(cards: tuple[Card, Card]) -> None:
    one, two = (card.start(PLAIN_FEATURES | net.MRG_RXBUF) for card in cards)
    two.post((500,))
    one.send(frame(length=900))
    settle(one.device, two.device)
    assert two.received() == []
    requests = two.device.counters.dma_requests
    assert not two.device.step()
    assert two.device.counters.dma_requests == requests  # it waits for a notification

    two.post((500,))
    settle(two.device)

    assert [len(each) for each in two.received()] == [500, 412]


@LAYOUTS
def test_a_frame_that_waits_takes_what_has_come_in_the_next_step(cards: tuple[Card, Card], layout: int) -> None:
    one, two = (card.start(PLAIN_FEATURES | net.MRG_RXBUF | RING_EVENT_IDX | layout) for card in cards)
    two.post((500,))
    one.send(frame(length=900))
    one.device.step()
    two.device.step()  # which sees that one buffer is not enough
    assert two.received() == []

    two.post((500,))
    two.device.step()

    assert [len(each) for each in two.received()] == [500, 412]


@LAYOUTS
def test_a_step_looks_once_at_a_queue_that_has_no_more(cards: tuple[Card, Card], layout: int) -> None:
    one, two = (card.start(PLAIN_FEATURES | RING_EVENT_IDX | layout) for card in cards)
    settle(one.device, two.device)
    looks = 0
    ring = one.device.ring(1)
    assert ring is not None
    fetch = ring._fetch

    def counted(count: int) -> list[Any]:
        nonlocal looks
        looks += 1
        return fetch(count)

    ring._fetch = counted  # type: ignore[method-assign]
    one.send(frame())
    assert one.device.step()
    assert (looks, one.device.state.traffic.sent) == (1, 1)
    one.device.step()
    assert looks == 2


@pytest.mark.parametrize("merges", [0, net.MRG_RXBUF])
def test_a_frame_that_never_fits_is_dropped_and_the_next_one_arrives(cards: tuple[Card, Card], merges: int) -> None:
    one, two = (card.start(PLAIN_FEATURES | merges, size=4) for card in cards)
    for _ in range(4):
        two.post((100,))
    one.send(frame(length=1000))
    one.send(frame(length=80))
    settle(one.device, two.device)

    assert [each[12:] for each in two.received()] == [frame(length=80)]
    assert two.device.state.traffic == net.Traffic(received=1, not_received=1)


def test_frames_beyond_what_may_wait_are_dropped(cards: tuple[Card, Card]) -> None:
    one, two = (card.start() for card in cards)
    for _ in range(net.INBOX_FRAMES + 10):
        one.send(frame())
        settle(one.device, two.device)
        assert one.driver.rings[1].take() is not None

    assert len(two.device.state.inboxes[0]) == net.INBOX_FRAMES
    assert two.device.state.traffic.not_received == 10


def test_a_card_that_is_not_live_receives_nothing(cards: tuple[Card, Card]) -> None:
    one, two = cards
    one.start()
    one.send(frame())
    settle(one.device, two.device)
    two.start()
    two.post()
    settle(one.device, two.device)

    assert two.received() == []


def test_a_frame_longer_than_the_mtu_is_not_received(make: Any) -> None:
    one, two = make(mtu=1000)
    one.start()
    two.start()
    for sent in (frame(length=1014), frame(length=1018, vlan=5), frame(length=1015), frame(length=1019, vlan=5)):
        two.post()
        one.send(sent)
    settle(one.device, two.device)

    assert [len(each) - 12 for each in two.received()] == [1014, 1018]


@pytest.mark.parametrize("length", [0, 1, 13, net.MAX_FRAME + 1])
def test_a_frame_of_a_length_that_no_frame_has_is_not_sent(cards: tuple[Card, Card], length: int) -> None:
    one, two = (card.start() for card in cards)
    two.post()
    one.send(bytes(length))
    one.send(frame())
    settle(one.device, two.device)

    assert len(two.received()) == 1
    assert [one.driver.rings[1].take() is not None for _ in range(3)] == [True, True, False]
    assert one.device.state.traffic == net.Traffic(sent=1, not_sent=1)


def test_a_claim_of_gigabytes_is_not_read(cards: tuple[Card, Card]) -> None:
    one, two = (card.start() for card in cards)
    one.driver.rings[1].add([(IOVA["net0"], 0xFFFFFFFF)])
    one.driver.function.notify(1)
    settle(one.device, two.device)

    assert one.driver.rings[1].take() == (0, 0)
    assert one.guest.events() == []


# -- offloads -------------------------------------------------------------------------------------------------------


def udp(length: int = 100) -> tuple[bytes, bytes, bytes]:
    """A header and a frame with half a checksum, and the frame with all of it."""
    payload = bytes(range(length))
    datagram = struct.pack(">HHHH", 1, 2, 8 + length, 0) + payload
    pseudo = b"\n\0\0\1\n\0\0\2" + struct.pack(">HH", 17, len(datagram))
    head = MAC["net1"] + MAC["net0"] + b"\x08\x00" + bytes(20)
    half = (checksum(pseudo) ^ 0xFFFF).to_bytes(2, "big")
    whole = checksum(pseudo + datagram).to_bytes(2, "big")
    header = struct.pack("<BBHHHH", NEEDS_CSUM, 0, 0, 0, 34, 6)
    return header, head + datagram[:6] + half + payload, head + datagram[:6] + whole + payload


def tcp(length: int) -> tuple[bytes, bytes]:
    """A header and a frame to be divided into segments of 1000 bytes."""
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40 + length, 1, 0, 64, 6, 0, b"\n\0\0\1", b"\n\0\0\2")
    segment = struct.pack(">HHLLBBHHH", 1, 2, 0, 0, 0x50, 0x10, 0, 0, 0) + bytes(length)
    return struct.pack("<BBHHHH", NEEDS_CSUM, 1, 54, 1000, 34, 16), frame()[:12] + b"\x08\x00" + ip + segment


def test_a_checksum_is_left_to_a_driver_that_accepts_that(cards: tuple[Card, Card]) -> None:
    one, two = cards
    one.start(PLAIN_FEATURES | net.CSUM)
    two.start(PLAIN_FEATURES | net.GUEST_CSUM)
    header, half, _ = udp()
    two.post()
    one.send(half, header)
    settle(one.device, two.device)

    assert two.received() == [header + b"\1\0" + half]


def test_a_checksum_is_completed_for_a_driver_that_does_not(cards: tuple[Card, Card]) -> None:
    one, two = cards
    one.start(PLAIN_FEATURES | net.CSUM)
    two.start()
    header, half, whole = udp()
    two.post()
    one.send(half, header)
    settle(one.device, two.device)

    assert two.received() == [PLAIN + b"\1\0" + whole]


@pytest.mark.parametrize("accepts", [True, False])
def test_a_frame_of_many_segments_is_divided_for_a_driver_that_cannot_take_it(
    cards: tuple[Card, Card], accepts: bool
) -> None:
    one, two = cards
    one.start(PLAIN_FEATURES | net.CSUM | net.HOST_TSO4)
    two.start(PLAIN_FEATURES | net.MRG_RXBUF | (net.GUEST_CSUM | net.GUEST_TSO4 if accepts else 0))
    header, large = tcp(60_000)
    for _ in range(62):
        two.post((2048,))
    one.send(large, header)
    settle(one.device, two.device)

    got = two.received()

    if accepts:
        assert got[0][:12] == header + len(got).to_bytes(2, "little")
        assert b"".join([got[0][12:], *got[1:]]) == large
    else:
        assert [len(each) - 12 for each in got] == [1054] * 60
        assert {each[:12] for each in got} == {PLAIN + b"\1\0"}


def test_the_driver_may_turn_offloads_off_and_on(cards: tuple[Card, Card]) -> None:
    one, two = cards
    one.start(PLAIN_FEATURES | net.CSUM)
    two.start(PLAIN_FEATURES | net.GUEST_CSUM | net.CTRL_GUEST_OFFLOADS)
    header, half, whole = udp()
    got = []
    for offloads in (0, net.GUEST_CSUM):
        assert two.command(5, 0, offloads.to_bytes(8, "little")) == 0
        two.post()
        one.send(half, header)
        settle(one.device, two.device)
        got += two.received()
    assert two.command(5, 0, net.GUEST_TSO4.to_bytes(8, "little")) == 1  # not negotiated
    assert two.command(5, 0, b"\0") == 1

    assert got == [PLAIN + b"\1\0" + whole, header + b"\1\0" + half]


@pytest.mark.parametrize(
    ("header", "features"),
    [
        (udp()[0], 0),
        (tcp(100)[0], net.CSUM),
        (struct.pack("<BBHHHH", NEEDS_CSUM, 0, 0, 0, 1000, 0), net.CSUM),
        (struct.pack("<BBHHHH", NEEDS_CSUM, GSO_TCPV4, 0, 0, 34, 16), net.CSUM | net.HOST_TSO4),
        (struct.pack("<BBHHHH", 0xFF, 0, 0, 0, 0, 0), net.CSUM),
    ],
)
def test_a_header_that_is_wrong_or_not_negotiated_costs_its_frame(
    cards: tuple[Card, Card], header: bytes, features: int
) -> None:
    one, two = cards
    one.start(PLAIN_FEATURES | features)
    two.start()
    two.post()
    one.send(udp()[1], header)
    settle(one.device, two.device)

    assert two.received() == []
    assert one.device.state.traffic == net.Traffic(not_sent=1)
    assert one.driver.rings[1].take() is not None


# -- control queue --------------------------------------------------------------------------------------------------


def reaches(one: Card, two: Card, sent: bytes) -> bool:
    two.post()
    one.send(sent)
    settle(one.device, two.device)
    return [each[12:] for each in two.received()] == [sent]


CONTROL = PLAIN_FEATURES | net.CTRL_RX | net.CTRL_VLAN | net.CTRL_MAC_ADDR
GROUP, OTHER = bytes.fromhex("01005e000001"), bytes.fromhex("525400000009")


def table(*addresses: bytes) -> bytes:
    return len(addresses).to_bytes(4, "little") + b"".join(addresses)


def test_the_driver_chooses_what_it_receives(cards: tuple[Card, Card]) -> None:
    one, two = (card.start(CONTROL, size=8) for card in cards)
    assert reaches(one, two, frame(OTHER))
    assert two.command(0, 0, b"\0") == 0

    assert [reaches(one, two, frame(to)) for to in (MAC["net1"], OTHER, GROUP)] == [True, False, False]
    assert two.command(0, 1, b"\1") == 0
    assert reaches(one, two, frame(GROUP))
    assert two.command(0, 1, b"\0") == two.command(1, 0, table(OTHER) + table(GROUP)) == 0
    assert reaches(one, two, frame(GROUP))
    assert reaches(one, two, frame(OTHER))
    assert two.command(1, 0, table() + table()) == 0
    assert not reaches(one, two, frame(GROUP))
    assert two.device.state.traffic.filtered == 3


def test_more_addresses_than_there_is_room_for_are_all_of_them(cards: tuple[Card, Card]) -> None:
    one, two = (card.start(CONTROL) for card in cards)
    two.command(0, 0, b"\0")
    many = [b"\x02" + number.to_bytes(5, "big") for number in range(65)]
    assert two.command(1, 0, table(*many[:64]) + table()) == 0
    assert not reaches(one, two, frame(OTHER))

    assert two.command(1, 0, table(*many) + table()) == 0

    assert reaches(one, two, frame(OTHER))


def test_vlans_are_filtered_if_that_is_negotiated(cards: tuple[Card, Card]) -> None:
    one, two = (card.start(CONTROL) for card in cards)
    two.command(0, 0, b"\0")
    assert not reaches(one, two, frame(vlan=5))
    assert two.command(2, 0, (5).to_bytes(2, "little")) == 0
    assert reaches(one, two, frame(vlan=5))
    assert two.command(2, 1, (5).to_bytes(2, "little")) == 0
    assert not reaches(one, two, frame(vlan=5))


def test_a_card_may_have_another_address(cards: tuple[Card, Card]) -> None:
    one, two = (card.start(CONTROL) for card in cards)
    two.command(0, 0, b"\0")
    assert two.command(1, 1, OTHER) == 0

    assert bytes(two.driver.function.device_config(place, 1) for place in range(6)) == OTHER
    assert reaches(one, two, frame(OTHER))
    assert not reaches(one, two, frame(MAC["net1"]))
    two.driver.function["DEVICE_STATUS"] = 0
    assert bytes(two.driver.function.device_config(place, 1) for place in range(6)) == MAC["net1"]


@pytest.mark.parametrize(
    ("kind", "number", "data"),
    [
        (0, 0, b""),
        (0, 0, b"\2"),
        (0, 6, b"\1"),
        (1, 0, b""),
        (1, 0, table(OTHER)),
        (1, 0, table() + b"\xff\xff\xff\xff"),
        (1, 0, table() + table() + b"\0"),
        (1, 1, OTHER[:5]),
        (2, 0, b"\xff\xff"),
        (2, 0, b"\1"),
        (3, 0, b"\1"),
        (4, 0, b"\1\0"),
        (4, 1, b"\1\0"),
        (6, 0, b"\1"),
        (0xFF, 0xFF, bytes(100)),
    ],
)
def test_a_wrong_command_is_an_error_and_changes_nothing(
    cards: tuple[Card, Card], kind: int, number: int, data: bytes
) -> None:
    one, _ = cards
    one.start(CONTROL)
    before = (one.device.state.filter, one.device.state.mac, one.device.state.pairs)

    assert one.command(kind, number, data) == 1

    assert (one.device.state.filter, one.device.state.mac, one.device.state.pairs) == before


@pytest.mark.parametrize(("kind", "number", "data"), [(0, 0, b"\0"), (2, 0, b"\1\0"), (1, 1, OTHER), (3, 0, b"")])
def test_a_command_that_was_not_negotiated_is_an_error(
    cards: tuple[Card, Card], kind: int, number: int, data: bytes
) -> None:
    one, _ = cards
    one.start()

    assert one.command(kind, number, data) == 1


def test_commands_of_any_shape_come_back(cards: tuple[Card, Card]) -> None:
    one, _ = cards
    one.start(CONTROL)
    ring, place = one.driver.rings[2], IOVA["net0"] + BUFFERS
    for readable, writable in (([], [(place, 1)]), ([(place, 1)], []), ([(place, 0x40000)], [(place, 8)])):
        ring.add(readable, writable)
        one.driver.function.notify(2)
        settle(one.device)
        assert ring.take() is not None
    assert not one.driver.status & 0x40


# -- several queues -------------------------------------------------------------------------------------------------


def connection(port: int, back: bool = False) -> bytes:
    ends, ports = (b"\n\0\0\1", b"\n\0\0\2"), (port.to_bytes(2, "big"), b"\0\x50")
    if back:
        ends, ports = ends[::-1], ports[::-1]
    ip = b"\x45" + bytes(8) + b"\x06" + bytes(2) + ends[0] + ends[1]
    to, source = (MAC["net0"], MAC["net1"]) if back else (MAC["net1"], MAC["net0"])
    return to + source + b"\x08\x00" + ip + ports[0] + ports[1] + bytes(40)


def test_a_connection_comes_back_by_the_queue_that_sends_it(make: Any) -> None:
    one, two = make(queue_pairs=4)
    one.start(PLAIN_FEATURES | net.MQ, pairs=4)
    two.start()
    assert one.command(4, 0, b"\4\0") == 0
    for pair in range(4):
        for _ in range(4):
            one.post(pair=pair)
    for port, pair in ((1000, 0), (1001, 1), (1002, 2), (1003, 3)):
        two.post()
        one.send(connection(port), pair=pair)
        settle(one.device, two.device)
        two.send(connection(port, back=True))
        settle(one.device, two.device)

        assert [each[12:] for each in one.received(pair)] == [connection(port, back=True)], pair
    assert len(one.device._flows) <= FLOWS


def test_queues_that_are_not_in_use_receive_nothing(make: Any) -> None:
    one, two = make(queue_pairs=4)
    one.start(PLAIN_FEATURES | net.MQ, pairs=2)
    two.start()
    one.post()
    one.send(connection(1), pair=1)
    settle(one.device, two.device)
    two.send(connection(1, back=True))
    settle(one.device, two.device)

    assert len(one.received()) == 1
    assert [one.command(4, 0, pairs.to_bytes(2, "little")) for pairs in (0, 2, 5)] == [1, 0, 1]


@pytest.mark.parametrize("already", [0, net.INBOX_FRAMES - 1])
def test_frames_that_wait_for_a_queue_that_is_given_up_arrive_by_the_first(make: Any, already: int) -> None:
    """As far as there is room (section 5.1.6.5.5.2)."""
    one, two = make(queue_pairs=2)
    one.start(PLAIN_FEATURES | net.MQ, pairs=2)
    two.start()
    assert one.command(4, 0, b"\2\0") == 0
    for port, pair in ((1000, 0), (1001, 1)):
        one.send(connection(port), pair=pair)
    settle(one.device, two.device)
    for port, times in ((1000, already), (1001, 2)):
        for _ in range(times):
            two.send(connection(port, back=True))
            settle(one.device, two.device)
            assert two.driver.rings[1].take() is not None
    assert [len(each) for each in one.device.state.inboxes] == [already, 2]
    assert one.command(4, 0, b"\1\0") == 0

    for pair in (0, 1):
        one.post(pair=pair)
    settle(one.device)
    assert one.received(1) == []
    assert len(one.received(0)) == 1
    assert one.device.state.traffic.not_received == (1 if already else 0)
    assert one.device._inbox_bytes == [sum(len(each) for _, each in box) for box in one.device.state.inboxes]


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_the_extra_receive_modes_need_their_feature(cards: tuple[Card, Card], number: int) -> None:
    one, two = cards
    one.start(PLAIN_FEATURES | net.CTRL_RX)
    two.start(PLAIN_FEATURES | net.CTRL_RX | net.CTRL_RX_EXTRA)

    assert one.command(0, number, b"\1") == 1
    assert one.device.state.filter == net.Filter()
    assert two.command(0, number, b"\1") == 0


def test_without_mq_the_control_queue_is_the_third(make: Any) -> None:
    one, _ = make(queue_pairs=4)
    one.start(CONTROL)

    assert one.control == 2
    assert one.command(0, 0, b"\0") == 0


# -- memory that the IOMMU refuses ----------------------------------------------------------------------------------


@pytest.mark.row("virtio", 46)
@pytest.mark.row("virtio", 13)
def test_a_receive_buffer_that_is_not_mapped_costs_its_frame_only(cards: tuple[Card, Card]) -> None:
    one, two = (card.start() for card in cards)
    two.post(at=0x3_0000_0000)
    two.post()
    one.send(frame(fill=1))
    one.send(frame(fill=2))
    settle(one.device, two.device)

    [lost, arrived] = two.received()

    assert (lost, arrived[12:]) == (b"", frame(fill=2))
    assert [event.iova for event in two.guest.events()] == [0x3_0000_0000]
    assert two.device.state.traffic == net.Traffic(received=1, not_received=1)
    assert not two.driver.status & 0x40


def test_buffers_of_a_frame_that_was_refused_come_back_empty(cards: tuple[Card, Card]) -> None:
    one, two = (card.start(PLAIN_FEATURES | net.MRG_RXBUF) for card in cards)
    two.post((100,))
    two.post((1000,), at=0x3_0000_0000)
    two.post()
    one.send(frame(length=900))
    one.send(frame())
    settle(one.device, two.device)

    assert [each[12:] for each in two.received()] == [b"", b"", frame()]
    assert two.device.state.traffic == net.Traffic(received=1, not_received=1)


def test_a_frame_to_send_that_is_not_mapped_is_not_sent(cards: tuple[Card, Card]) -> None:
    one, two = (card.start() for card in cards)
    two.post()
    one.driver.rings[1].add([(0x3_0000_0000, 100)])
    one.send(frame())
    settle(one.device, two.device)

    assert len(two.received()) == 1
    assert [event.iova for event in one.guest.events()] == [0x3_0000_0000]
    assert one.device.state.traffic == net.Traffic(sent=1, not_sent=1)


def test_a_command_that_is_not_mapped_comes_back(cards: tuple[Card, Card]) -> None:
    one, _ = cards
    one.start(CONTROL)
    one.driver.rings[2].add([(0x3_0000_0000, 3)], [(IOVA["net0"] + BUFFERS, 1)])
    one.driver.function.notify(2)
    settle(one.device)

    assert one.driver.rings[2].take() == (0, 0)
    assert one.command(0, 0, b"\0") == 0


# -- another link ---------------------------------------------------------------------------------------------------


class Wire(Link):
    """A link to nothing, whose other end is the test."""

    is_up = True

    def __init__(self) -> None:
        self.arriving: list[tuple[bytes, bytes]] = []
        self.sent: list[tuple[bytes, bytes]] = []
        self.takes = True
        self.accepted: list[tuple[bool, bool, bool]] = []
        self.on_change: Callable[[], None] | None = None

    def start(self, watch: Watcher, on_change: Callable[[], None]) -> None:
        self.on_change = on_change

    def stop(self) -> None:
        self.on_change = None

    def accept(self, checksum: bool, segments_4: bool, segments_6: bool) -> None:
        self.accepted.append((checksum, segments_4, segments_6))

    def send(self, header: bytes, frame: bytes, pair: int = 0) -> bool:
        self.sent.append((header, frame))
        return self.takes

    def receive(self) -> tuple[bytes, bytes] | None:
        return self.arriving.pop(0) if self.arriving else None


@pytest.fixture
def wired(cards: tuple[Card, Card]) -> tuple[Card, Wire]:
    wire = Wire()
    cards[0].device._link = wire
    cards[0].device._was_up = True
    return cards[0], wire


def test_frames_of_a_link_arrive_with_what_is_left_to_do(wired: tuple[Card, Wire]) -> None:
    card, wire = wired
    card.start(PLAIN_FEATURES | net.GUEST_CSUM | net.GUEST_TSO4 | net.CSUM | net.HOST_TSO4)
    header, half, _ = udp()
    card.post()
    wire.arriving.append((header, half))
    settle(card.device)
    card.send(half, header)
    settle(card.device)

    assert card.received() == [header + b"\1\0" + half]
    assert wire.sent == [(header, half)]
    assert wire.accepted == [(True, True, False)]


def test_a_link_hears_what_offloads_the_driver_turns_off(wired: tuple[Card, Wire]) -> None:
    card, wire = wired
    card.start(PLAIN_FEATURES | net.GUEST_CSUM | net.CTRL_GUEST_OFFLOADS)
    card.command(5, 0, bytes(8))

    assert wire.accepted == [(True, False, False), (False, False, False)]


def test_a_link_is_used_from_driver_ok_to_the_reset(wired: tuple[Card, Wire]) -> None:
    card, wire = wired
    assert wire.on_change is None
    card.start()
    assert wire.on_change is not None
    card.driver.function["DEVICE_STATUS"] = 0
    assert wire.on_change is None


@pytest.mark.parametrize(
    ("header", "length"), [(PLAIN, 13), (PLAIN, net.MAX_FRAME + 1), (b"\1" + bytes(5) + b"\xff\xff\0\0", 60)]
)
def test_a_frame_of_a_link_that_is_none_is_dropped(wired: tuple[Card, Wire], header: bytes, length: int) -> None:
    card, wire = wired
    card.start()
    card.post()
    wire.arriving.append((header, bytes(length)))
    settle(card.device)

    assert card.received() == []
    assert card.device.state.traffic == net.Traffic(not_received=1)


def test_a_frame_that_the_link_does_not_take_is_not_sent(wired: tuple[Card, Wire]) -> None:
    card, wire = wired
    card.start()
    wire.takes = False
    card.send(frame())
    settle(card.device)

    assert card.device.state.traffic == net.Traffic(not_sent=1)
    assert card.driver.rings[1].take() is not None


def test_small_frames_stay_in_the_link_while_the_card_has_no_room(wired: tuple[Card, Wire]) -> None:
    card, wire = wired
    card.start()
    wire.arriving += [(PLAIN, frame())] * 1000
    settle(card.device)

    assert len(card.device.state.inboxes[0]) == net.INBOX_FRAMES // 2
    assert len(wire.arriving) == 1000 - net.INBOX_FRAMES // 2


def test_frames_stay_in_the_link_while_the_card_has_no_room(wired: tuple[Card, Wire]) -> None:
    card, wire = wired
    card.start(PLAIN_FEATURES | net.GUEST_CSUM | net.GUEST_TSO4)
    header, large = tcp(60_000)
    wire.arriving += [(header, large)] * 100
    settle(card.device)

    waiting = sum(len(each) for _, each in card.device.state.inboxes[0])
    assert net.INBOX_BYTES // 2 < waiting <= net.INBOX_BYTES
    assert len(wire.arriving) + len(card.device.state.inboxes[0]) == 100
    assert card.device.state.traffic.not_received == 0


def test_the_driver_is_told_when_the_link_goes_down(wired: tuple[Card, Wire]) -> None:
    card, wire = wired
    card.start()
    assert card.driver.function.device_config(6, 2) == 1
    generation = card.driver.function["CONFIG_GENERATION"]
    wire.is_up = False
    assert wire.on_change is not None
    wire.on_change()

    assert card.driver.function.read(3, 0, 1) == 2
    assert card.driver.function.device_config(6, 2) == 0
    assert card.driver.function["CONFIG_GENERATION"] == generation + 1


# -- turns, state, capture ------------------------------------------------------------------------------------------


def test_a_step_ends_in_time_however_much_there_is(cards: tuple[Card, Card]) -> None:
    one = cards[0].start(size=256)
    for _ in range(200):
        one.send(frame())
    one.device.inputs.time_step = 30_000

    assert one.device.step()

    assert 0 < one.device.state.traffic.sent < 10


def test_a_card_that_always_has_frames_to_send_receives_and_obeys_too(cards: tuple[Card, Card]) -> None:
    """However short a step is."""
    one, two = (card.start(CONTROL, size=256) for card in cards)
    for _ in range(20):
        one.post()
    two.send(frame(MAC["net0"]))
    settle(two.device)
    place, answer = one.place(3), one.place(1)
    one.write(place, b"\0\0\0")
    one.driver.rings[2].add([(place, 3)], [(answer, 1)])
    one.driver.function.notify(2)
    one.device.inputs.time_step = STEP_NS  # each frame takes a whole step
    for _ in range(20):
        one.send(frame())
        one.send(frame())
        assert one.device.step()

    assert one.device.state.traffic.sent >= 15
    assert len(one.received()) == 1
    assert one.driver.rings[2].take() is not None


@LAYOUTS
def test_frames_that_wait_are_part_of_the_state(cards: tuple[Card, Card], layout: int) -> None:
    one, two = (card.start(CONTROL | net.GUEST_ANNOUNCE | layout) for card in cards)
    two.command(1, 0, table(OTHER) + table())
    two.command(2, 0, b"\5\0")
    two.command(0, 0, b"\0")
    one.send(frame())
    settle(one.device, two.device)
    saved = two.device.save()
    size = list(two.device._inbox_bytes)
    assert size == [60]

    two.device.reset()
    assert two.device._inbox_bytes == [0]
    two.guest.set_bus_master(two.device, True)
    two.device.load(saved)

    assert two.device._inbox_bytes == size
    assert two.device.state.filter == net.Filter(promiscuous=False, unicast={OTHER}, vlans={5})
    two.post()
    settle(two.device)
    assert [each[12:] for each in two.received()] == [frame()]
    assert two.driver.function.device_config(6, 2) == 3  # it is asked to announce itself
    assert two.command(3, 0) == 0
    assert two.driver.function.device_config(6, 2) == 1


def test_every_frame_is_in_the_captures(guest: Any, make: Any, tmp_path: Path) -> None:
    one, two = make(pcap=f"{tmp_path}/")
    one.start()
    two.start()
    two.post()
    one.send(frame(fill=0x77))
    settle(one.device, two.device)

    for name in ("net0", "net1"):
        assert (tmp_path / name).read_bytes().count(frame(fill=0x77)) == 1


class Ram:
    """Memory that every function of a machine has at 0."""

    def __init__(self, machine: Machine) -> None:
        self._file = GuestRam(4 << 20)
        self.bytes = self._file.bytes
        self.join(machine)

    def join(self, machine: Machine) -> None:
        for function in machine.functions():
            function.dma_map(DmaMapping(0, 4 << 20, 0, True, True, os.dup(self._file.fd)))

    def close(self) -> None:
        self._file.close()

    def read(self, address: int, length: int) -> bytes:
        return self.bytes[address : address + length]

    def write(self, address: int, data: bytes) -> None:
        self.bytes[address : address + len(data)] = data


def test_the_machine_of_the_topology_goes_on_in_another_process() -> None:
    """With the frame that was under way between its cards."""
    machine = Machine.build(load(Path("net")), Environment(Inputs(), Counters()))
    ram, drivers = Ram(machine), []
    for number, device in enumerate(machine.endpoints.values()):
        device.region_write(7, 4, b"\6\0")
        drivers.append(
            VirtioGuest(VirtioFunction(device.region_read, device.region_write), ram, 0x40000 * (number + 1))
        )
        assert drivers[-1].negotiate(PLAIN_FEATURES | (RING_PACKED if number else 0))
        for queue in range(3):
            drivers[-1].set_up(queue, 64)
        drivers[-1].go()
    ram.write(0x100000, bytes(12) + frame())
    drivers[0].rings[1].add([(0x100000, 72)])
    drivers[0].function.notify(1)
    settle(*machine.endpoints.values())
    snapshot = take(machine)
    machine.close()

    other = Machine.build(load(Path("net")), Environment(Inputs(), Counters()))
    ram.join(other)
    restore(other, snapshot)
    device = other.endpoints["net1"]
    drivers[1].function = VirtioFunction(device.region_read, device.region_write)
    drivers[1].rings[0].add([], [(0x110000, 2048)])
    drivers[1].function.notify(0)
    settle(*other.endpoints.values())

    assert drivers[1].rings[0].take() == (0, 72)
    assert ram.read(0x110000, 72) == PLAIN + b"\1\0" + frame()
    other.close()
    ram.close()


def test_a_capture_is_a_descriptor_more(guest: Any, tmp_path: Path) -> None:
    without = guest.make(VirtioNet, "net0", 1, VirtioNetOptions())
    with_one = guest.make(VirtioNet, "net1", 2, VirtioNetOptions(pcap=str(tmp_path / "file")))
    guest.endpoints += [without, with_one]

    assert with_one.descriptors == without.descriptors + 1


def test_a_card_that_cannot_be_made_leaves_nothing_of_the_others(tmp_path: Path) -> None:
    topology = load(written(tmp_path, f'pcap = "{tmp_path}/good"\n', f'pcap = "{tmp_path}/missing/bad"\n'))
    environment = Environment(Inputs(), Counters())
    before = os.listdir("/proc/self/fd")

    with pytest.raises(OSError, match=r"net1: pcap .*/missing/bad: No such file or directory"):
        Machine.build(topology, environment)

    assert os.listdir("/proc/self/fd") == before


def test_cards_without_a_tap_do_not_import_what_only_taps_need() -> None:
    program = (
        "import sys; from pathlib import Path; from pviommu.counters import Counters; "
        "from pviommu.inputs import LiveInputs; from pviommu.machine import Machine; "
        "from pviommu.pci.function import Environment; from pviommu.topology import load; "
        "Machine.build(load(Path('net')), Environment(LiveInputs(), Counters())).close(); "
        "assert not {'pyroute2', 'pviommu.net.tap'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# -- topologies -----------------------------------------------------------------------------------------------------


def written(tmp_path: Path, *cards: str) -> Path:
    path = tmp_path / "net.toml"
    heads = (f'[[endpoint]]\nname = "net{n}"\nkind = "virtio-net"\nstream = {n}\n' for n in range(len(cards)))
    path.write_text("".join(head + card for head, card in zip(heads, cards, strict=True)))
    return path


PEER = 'link = "peer"\npeer = "net{}"\n'


def test_cards_that_name_each_other_are_joined(tmp_path: Path) -> None:
    topology = load(written(tmp_path, PEER.format(1), PEER.format(0)))

    assert [entry.options.peer for entry in topology.endpoint] == ["net1", "net0"]


@pytest.mark.parametrize(
    ("cards", "text"),
    [
        ([PEER.format(1)], "endpoint net0: peer 'net1': must be the name of another endpoint of kind virtio-net"),
        ([PEER.format(0)], "endpoint net0: peer 'net0': must be the name of another"),
        (['link = "peer"\n'], "endpoint net0: peer None: must be the name of another"),
        ([PEER.format(1), ""], "endpoint net0: peer 'net1': that must have link = \"peer\" and peer = 'net0'"),
        (['peer = "net1"\n', ""], "endpoint net0: peer 'net1': only with link = \"peer\""),
        (['mac = "03:00:00:00:00:01"\n'], "endpoint[0].mac = '03:00:00:00:00:01': must be an address as 52:54:00"),
        (['pcap = "a"\n', 'pcap = "a"\n'], "endpoint net0: pcap 'a': that is the file of net1"),
        (["mtu = 67\n"], "endpoint[0].mtu = 67: must be a whole number, 68 to 65535"),
        (["queue-pairs = 5\n"], "endpoint[0].queue-pairs = 5: must be a whole number, 1 to 4"),
        (["queue-size = 100\n"], "endpoint[0].queue-size = 100: must be"),
        (['link = "tap"\n'], 'endpoint net0: link = "tap" needs tap, the name of an interface'),
        (['tap = "tap0"\n'], "endpoint net0: tap 'tap0': only with link = \"tap\""),
        (['netns = "a"\n'], "endpoint net0: netns 'a': only with link"),
        (['link = "tap"\ntap = "tap0"\n'] * 2, "endpoint net0: tap 'tap0': that is the one of net1"),
        (['link = "tap"\ntap = "a/b"\n'], "endpoint[0].tap = 'a/b': must be a name of an interface: 1 to 15"),
        (['link = "tap"\ntap = "a"\nnetns = "../x"\n'], "endpoint[0].netns = '../x': must be 1 to 64 characters"),
        (['link = "tap"\ntap = "a"\nrate-kbit = 1\n'], "rate-kbit 1: must be 0, or 2 and more"),
        (['link = "tap"\ntap = "a"\naddress = "10.0.0.1/33"\n'], "address '10.0.0.1/33': must be as 10.0.0.1/24"),
        (['link = "tap"\ntap = "a"\naddress = "10.0.0.1"\n'], "address '10.0.0.1': must be as 10.0.0.1/24"),
        (['link = "tap"\ntap = "a"\naddress = "10.0.0.1/255.255.255.0"\n'], "/255.255.255.0': must be as 10.0.0.1/24"),
        (['link = "tap"\ntap = "a"\naddress = "fe80::1%a/64"\n'], "address 'fe80::1%a/64': must be as 10.0.0.1/24"),
        (['link = "tap"\ntap = "äääääääääääääää"\n'], "must be a name of an interface: 1 to 15 characters of ASCII"),
        (['link = "tap"\ntap = "a\\n"\n'], "tap 'a\\n': must be a name of an interface: 1 to 15"),
        (['link = "tap"\ntap = "a"\nnetns = "x\\n"\n'], "netns 'x\\n': must be 1 to 64 characters"),
        (['bridge = "br0"\n'], "endpoint net0: bridge 'br0': only with link = \"tap\""),
        (["delay-us = 5\n"], 'endpoint net0: delay-us 5: only with link = "tap"'),
        (["loss-percent = 101\n"], "endpoint[0].loss-percent = 101: must be a whole number, 0 to 100"),
        (['link = "tap"\ntap = "a"\nbridge = "a b"\n'], "endpoint[0].bridge = 'a b': must be a name of an interface"),
        (['link = "tap"\ntap = "a"\nveth = "v"\n'], "endpoint net0: veth 'v': only with bridge"),
        (['link = "tap"\ntap = "a"\nbridge = "b"\nveth-netns = "v"\n'], "net0: veth-netns 'v': only with veth"),
        (
            ['link = "tap"\ntap = "a"\nbridge = "b"\nveth = "thirteenchars"\n'],
            "endpoint[0].veth = 'thirteenchars': must be a name of an interface: 1 to 12 characters of ASCII",
        ),
        (
            ['link = "tap"\ntap = "a"\nbridge = "b"\nveth = "v"\nveth-address = "10.0.0.1"\n'],
            "endpoint net0: veth-address '10.0.0.1': must be as 10.0.0.1/24",
        ),
        (['link-state = "flap"\n'], "endpoint[0].link-state = 'flap': must be"),
        (['link = "tape"\n'], "endpoint[0].link = 'tape': must be"),
        (
            ["speed = 1\n"],
            "unknown key speed; known are name, kind, stream, sbdf, reserved, smmu, stream-id, ats, pri, pasid-bits, "
            "link, peer, tap",
        ),
    ],
)
def test_a_mistake_names_line_value_and_rule(tmp_path: Path, cards: list[str], text: str) -> None:
    with pytest.raises(TopologyError) as caught:
        load(written(tmp_path, *cards))
    assert text in str(caught.value)
    assert ": line " in str(caught.value)
