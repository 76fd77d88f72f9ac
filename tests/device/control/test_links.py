"""What is told of network cards, links that are set up and down, and addresses that are set."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pviommu.control.answers import Answers, Served, finished
from pviommu.control.commands import COMMANDS
from pviommu.control.description import CommandError
from pviommu.control.render import rendered
from pviommu.counters import Counters
from pviommu.endpoints.virtio_net import CTRL_MAC_ADDR, CTRL_VQ, MAC, STATUS, VirtioNet
from pviommu.guest.memory import GuestRam
from pviommu.guest.virtio import ACCESS_PLATFORM, VERSION_1, VirtioFunction, VirtioGuest
from pviommu.machine import Machine
from pviommu.pci.function import Environment
from pviommu.topology import load
from vfio_user import DmaMapping

from ..conftest import Inputs

RAM = 4 << 20
RINGS = {"net0": 0x40000, "net1": 0x80000}
SENT, RECEIVED = 0x100000, 0x200000
FEATURES = VERSION_1 | ACCESS_PLATFORM | MAC | STATUS | CTRL_VQ
COMMAND = {command.name: command for command in COMMANDS}
MACHINE = """[[endpoint]]
name = "net0"
kind = "virtio-net"
stream = 1
link = "peer"
peer = "net1"
mac = "52:54:00:00:00:01"
link-state = "{state}"

[[endpoint]]
name = "net1"
kind = "virtio-net"
stream = 2
link = "peer"
peer = "net0"
"""


class Cards:
    """Two cards that are joined, their drivers, and whoever asks."""

    def __init__(self, topology: Path) -> None:
        self.machine = Machine.build(load(topology), Environment(Inputs(), Counters()))
        self._ram = GuestRam(RAM)
        for function in self.machine.functions():
            function.dma_map(DmaMapping(0, RAM, 0, True, True, os.dup(self._ram.fd)))
        self.raised: dict[str, list[int]] = {name: [] for name in RINGS}
        self.drivers: dict[str, VirtioGuest] = {}
        for name in RINGS:
            self.start(name)
        self.answers = Answers(Served(self.machine, *[SimpleNamespace()] * 2))  # type: ignore[arg-type]

    def card(self, name: str) -> VirtioNet:
        card = self.machine.endpoints[name]
        assert isinstance(card, VirtioNet)
        return card

    def start(self, name: str) -> None:
        card = self.card(name)
        card.reset()
        card.region_write(7, 4, b"\6\0")
        card.interrupt = lambda vector: self.raised[name].append(vector)  # type: ignore[method-assign,assignment]
        driver = VirtioGuest(VirtioFunction(card.region_read, card.region_write), self, RINGS[name])
        assert driver.negotiate(FEATURES)
        driver.function["CONFIG_MSIX_VECTOR"] = 2
        for queue in range(2):
            driver.set_up(queue, 64, vector=queue)
        driver.go()
        self.drivers[name] = driver

    def read(self, address: int, length: int) -> bytes:
        return self._ram.bytes[address : address + length]

    def write(self, address: int, data: bytes) -> None:
        self._ram.bytes[address : address + len(data)] = data

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        return finished(self.answers.begin(command, arguments))

    def links(self) -> dict[str, dict[str, Any]]:
        return {link["name"]: link for link in self.ask("links")["links"]}

    def exchange(self, length: int = 100, to: bytes = b"\xff" * 6) -> bool:
        """Send a frame from net0; whether it arrives at net1."""
        one, two = self.drivers["net0"], self.drivers["net1"]
        self.write(SENT, bytes(12) + to + bytes(length - 6))
        two.rings[0].add([], [(RECEIVED, 2048)])
        two.function.notify(0)
        one.rings[1].add([(SENT, 12 + length)])
        one.function.notify(1)
        self.settle()
        return two.rings[0].take() is not None

    def settle(self) -> None:
        for _ in range(10_000):
            if not sum(self.card(name).step() for name in RINGS):
                return
        raise AssertionError("they do not come to rest")

    def state(self, name: str) -> tuple[int, int]:
        """What the guest sees: status bits of the configuration, and its generation."""
        function = self.drivers[name].function
        return function.device_config(6, 2), function["CONFIG_GENERATION"]

    def close(self) -> None:
        self.machine.close()
        self._ram.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Cards]]:
    made: list[Cards] = []

    def made_of(state: str = "up") -> Cards:
        (tmp_path / "cards.toml").write_text(MACHINE.format(state=state))
        made.append(Cards(tmp_path / "cards.toml"))
        return made[-1]

    yield made_of
    for each in made:
        each.close()


def test_links_tell_what_was_sent_and_received(make: Callable[..., Cards]) -> None:
    cards = make()
    assert cards.exchange(100)
    assert cards.exchange(200)

    said = cards.ask("links")["links"]
    assert said[0] == {
        "name": "net0",
        "link": "peer",
        "other": "net1",
        "up": True,
        "set": "up",
        "mac": "52:54:00:00:00:01",
        "sent": 2,
        "sent_bytes": 300,
        "received": 0,
        "received_bytes": 0,
        "sent_dropped": {},
        "received_dropped": {},
    }
    assert (said[1]["received"], said[1]["received_bytes"], said[1]["mac"]) == (2, 300, "02:70:76:69:00:02")
    mac = cards.ask("mac", card="net0", address="52:54:00:00:00:01")
    assert set(mac) == {field.name for field in COMMAND["mac"].result}
    for name in ("links", "link"):
        inner = COMMAND[name].result
        fields = {field.name for field in (inner[0].fields or inner)}
        assert set(said[0] if name == "links" else cards.ask("link", card="net0", state="up")) == fields


def test_counts_go_on_over_a_reset_of_the_card(make: Callable[..., Cards]) -> None:
    cards = make()
    cards.exchange()
    cards.start("net0")
    cards.exchange()

    assert cards.links()["net0"]["sent"] == 2
    assert cards.links()["net0"]["sent_bytes"] == 200


def test_what_is_dropped_is_counted_by_reason(make: Callable[..., Cards]) -> None:
    cards = make()
    cards.exchange(12)
    cards.card("net1").state.filter.promiscuous = False
    cards.exchange(100, to=bytes.fromhex("020000000099"))
    cards.drivers["net0"].rings[1].add([(0x9000_0000, 100)])  # no memory is there
    cards.drivers["net0"].function.notify(1)
    cards.settle()
    cards.exchange(2047)  # more than the buffer has room for
    assert cards.links()["net0"]["sent_dropped"] == {"malformed": 1, "refused": 1}
    assert cards.links()["net1"]["received_dropped"] == {"filtered": 1, "too-long": 1}

    for _ in range(300):  # two buffers are left from above
        cards.drivers["net0"].rings[1].add([(SENT, 112)])
        cards.write(SENT, bytes(12) + b"\xff" * 6 + bytes(94))
        cards.drivers["net0"].function.notify(1)
        cards.settle()
    assert cards.links()["net1"]["received_dropped"]["no-buffer"] > 0


@pytest.mark.row("virtio", 42)
def test_a_link_that_is_set_down_is_down_at_both_ends_and_the_guest_is_told(make: Callable[..., Cards]) -> None:
    cards = make()
    before = {name: cards.state(name) for name in RINGS}

    assert cards.ask("link", card="net0", state="down") == {"name": "net0", "up": False}

    for name in RINGS:
        status, generation = cards.state(name)
        assert (status, generation) == (0, before[name][1] + 1)
        assert cards.raised[name] == [2]
        assert cards.drivers[name].function.read(3, 0, 1) == 2
    assert not cards.exchange()
    assert cards.links()["net0"]["sent_dropped"] == {"link": 1}
    assert [link["set"] for link in cards.links().values()] == ["down", "up"]
    assert [link["up"] for link in cards.links().values()] == [False, False]


@pytest.mark.row("virtio", 42)
def test_a_link_that_is_set_up_again_works(make: Callable[..., Cards]) -> None:
    cards = make()
    cards.ask("link", card="net1", state="down")
    assert not cards.exchange()
    assert cards.links()["net0"]["sent_dropped"] == {"link": 1}
    cards.raised["net0"].clear()

    assert cards.ask("link", card="net1", state="up") == {"name": "net1", "up": True}

    assert cards.raised["net0"] == [2]
    assert cards.state("net0")[0] == 1
    assert cards.drivers["net1"].rings[0].take() is None
    assert cards.exchange()


def test_what_is_so_already_is_no_change(make: Callable[..., Cards]) -> None:
    cards = make()
    cards.ask("link", card="net0", state="up")

    assert cards.raised == {"net0": [], "net1": []}


def test_a_link_is_down_from_the_start_if_the_topology_says_so(make: Callable[..., Cards]) -> None:
    cards = make("down")

    assert [cards.state(name)[0] for name in RINGS] == [0, 0]
    assert cards.links()["net0"]["set"] == "down"
    cards.ask("link", card="net0", state="up")
    assert cards.exchange()


def test_a_link_stays_down_over_a_reset_of_its_card(make: Callable[..., Cards]) -> None:
    cards = make()
    cards.ask("link", card="net0", state="down")
    cards.start("net0")

    assert cards.state("net0")[0] == 0


def test_a_card_that_there_is_not_is_named(make: Callable[..., Cards]) -> None:
    with pytest.raises(CommandError, match=r"^there is no network card 'net7'; there are net0, net1$"):
        make().ask("link", card="net7", state="up")


def test_a_state_that_there_is_not_is_named(make: Callable[..., Cards]) -> None:
    with pytest.raises(CommandError, match=r"^link: state 'flap': must be one of up, down$"):
        make().ask("link", card="net0", state="flap")


def test_prometheus_reads_the_links_too(make: Callable[..., Cards]) -> None:
    cards = make()
    cards.exchange()
    cards.ask("link", card="net0", state="down")
    cards.exchange()
    cards.machine.counters.ops.clear()
    report = {name: cards.card(name).link_report() for name in RINGS}
    assert report == cards.links()

    from pviommu.control import prometheus

    text = prometheus.of_links(cards.ask("links")["links"])
    assert text.splitlines() == [
        "# HELP pviommu_link_up whether the guest sees the link of its network card up",
        "# TYPE pviommu_link_up gauge",
        'pviommu_link_up{card="net0"} 0',
        'pviommu_link_up{card="net1"} 0',
        "# HELP pviommu_link_frames_total frames that a network card sent or received",
        "# TYPE pviommu_link_frames_total counter",
        'pviommu_link_frames_total{card="net0",direction="sent"} 1',
        'pviommu_link_frames_total{card="net0",direction="received"} 0',
        'pviommu_link_frames_total{card="net1",direction="sent"} 0',
        'pviommu_link_frames_total{card="net1",direction="received"} 1',
        "# HELP pviommu_link_bytes_total bytes in these frames",
        "# TYPE pviommu_link_bytes_total counter",
        'pviommu_link_bytes_total{card="net0",direction="sent"} 100',
        'pviommu_link_bytes_total{card="net0",direction="received"} 0',
        'pviommu_link_bytes_total{card="net1",direction="sent"} 0',
        'pviommu_link_bytes_total{card="net1",direction="received"} 100',
        "# HELP pviommu_link_dropped_total frames that a network card dropped",
        "# TYPE pviommu_link_dropped_total counter",
        'pviommu_link_dropped_total{card="net0",direction="sent",reason="link"} 1',
    ]
    assert text in cards.ask("statistics", format="prometheus")["text"]
    assert cards.ask("statistics")["links"] == cards.ask("links")["links"]


def test_people_read_a_table(make: Callable[..., Cards]) -> None:
    cards = make()
    cards.exchange()
    lines = rendered(COMMAND["links"], cards.ask("links")).splitlines()

    assert lines[0] == "links:"
    assert lines[1].split()[:6] == ["name", "link", "other", "up", "set", "mac"]
    assert lines[2].split()[:8] == ["net0", "peer", "net1", "yes", "up", "52:54:00:00:00:01", "1", "100"]


GIVEN, DRIVEN = bytes.fromhex("02aabbccdd01"), bytes.fromhex("02aabbccdd02")


def mac_of(cards: Cards, name: str = "net1") -> bytes:
    """The address that the configuration says."""
    function = cards.drivers[name].function
    return bytes(function.device_config(place, 1) for place in range(6))


def reached(cards: Cards) -> set[bytes]:
    """The addresses at which net1 receives frames."""
    cards.card("net1").state.filter.promiscuous = False
    return {to for to in (FIRST, GIVEN, DRIVEN) if cards.exchange(to=to)}


FIRST = bytes.fromhex("027076690002")


@pytest.mark.row("virtio", 48)
def test_an_address_that_is_set_is_in_the_configuration_and_the_guest_is_told(make: Callable[..., Cards]) -> None:
    cards = make()
    assert mac_of(cards) == FIRST
    generation = cards.state("net1")[1]

    assert cards.ask("mac", card="net1", address=GIVEN.hex(":")) == {"name": "net1", "mac": GIVEN.hex(":")}

    assert cards.raised == {"net0": [], "net1": [2]}
    assert cards.drivers["net1"].function.read(3, 0, 1) == 2
    assert mac_of(cards) == GIVEN
    assert cards.state("net1")[1] == generation + 1
    assert cards.links()["net1"]["mac"] == GIVEN.hex(":")


@pytest.mark.row("virtio", 48)
def test_an_address_that_is_set_half_way_through_a_read_of_it_is_another_generation(make: Callable[..., Cards]) -> None:
    cards = make()
    function = cards.drivers["net1"].function
    before, first = function["CONFIG_GENERATION"], [function.device_config(place, 1) for place in range(4)]
    cards.ask("mac", card="net1", address=GIVEN.hex(":"))
    rest = [function.device_config(place, 1) for place in range(4, 6)]

    assert bytes(first + rest) == FIRST[:4] + GIVEN[4:]
    assert function["CONFIG_GENERATION"] != before


def test_a_driver_that_has_not_seen_its_new_address_receives_at_the_old_one_until_it_begins_anew(
    make: Callable[..., Cards],
) -> None:
    cards = make()
    cards.ask("mac", card="net1", address=GIVEN.hex(":"))
    assert reached(cards) == {FIRST, GIVEN}

    cards.start("net1")

    assert mac_of(cards) == GIVEN
    assert reached(cards) == {GIVEN}
    assert cards.raised["net1"].count(2) == 1


def test_a_driver_that_sets_an_address_has_that_one_only(make: Callable[..., Cards]) -> None:
    cards = make()
    cards.ask("mac", card="net1", address=GIVEN.hex(":"))
    cards.card("net1").state.driver_features |= CTRL_MAC_ADDR
    assert cards.card("net1")._set_mac(DRIVEN)

    assert mac_of(cards) == DRIVEN
    assert reached(cards) == {DRIVEN}

    cards.ask("mac", card="net1", address=FIRST.hex(":"))
    assert mac_of(cards) == FIRST
    assert reached(cards) == {FIRST, DRIVEN}


def test_the_address_that_a_card_has_already_is_no_change(make: Callable[..., Cards]) -> None:
    cards = make()
    cards.ask("mac", card="net1", address=FIRST.hex(":"))

    assert cards.raised["net1"] == []
    assert reached(cards) == {FIRST}


@pytest.mark.parametrize(
    "address", ["52:54:00:00:00", "53:54:00:00:00:01", "52:54:00:00:00:0G", "52-54-00-00-00-01", ""]
)
def test_what_is_no_address_of_one_card_is_refused_by_its_rule(make: Callable[..., Cards], address: str) -> None:
    cards = make()
    with pytest.raises(CommandError, match=f"^mac: address {address!r}: must be an address as 52:54:00:12:34:56, "):
        cards.ask("mac", card="net1", address=address)
    assert mac_of(cards) == FIRST


def test_an_address_goes_along_with_a_state_over_a_reset_too(make: Callable[..., Cards]) -> None:
    cards = make()
    cards.ask("mac", card="net1", address=GIVEN.hex(":"))
    cards.start("net1")
    state = cards.card("net1").save()
    other = make()
    other.card("net1").load(state)

    assert reached(other) == {GIVEN}
    other.start("net1")
    assert mac_of(other) == GIVEN

    other.card("net1").load(make().card("net1").save())
    assert mac_of(other) == FIRST


def test_a_card_that_goes_on_from_a_state_tells_its_driver_how_the_link_is_here(make: Callable[..., Cards]) -> None:
    state = make().card("net0").save()
    cards = make("down")
    cards.card("net0").load(state)
    cards.drivers["net0"].function.read(3, 0, 1)

    assert cards.raised["net0"] == [2]
    assert cards.state("net0")[0] & 1 == 0


def test_frames_are_counted_since_the_server_began_though_the_state_is_older(make: Callable[..., Cards]) -> None:
    cards = make()
    cards.exchange()
    state = cards.card("net0").save()
    other = make()
    other.card("net0").load(state)

    assert other.links()["net0"]["sent"] == 0


def test_a_link_that_cannot_be_made_anew_is_an_error_that_says_why(
    make: Callable[..., Cards], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(errno.EPERM, "net0: link tap tap0: Operation not permitted")

    cards = make()
    link = cards.card("net0")._link
    link.end()
    monkeypatch.setattr(link, "again", refuse)
    with pytest.raises(CommandError, match=r"^net0: link tap tap0: Operation not permitted$"):
        cards.ask("link", card="net0", state="up")
    assert cards.links()["net0"]["up"] is False
