"""Rules against two network cards: a frame may be lost, or a card may need a reset; after it frames arrive again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pviommu.counters import Counters
from pviommu.endpoints.virtio_net import CTRL_VQ, MAC, VirtioNet
from pviommu.faults.engine import Faults
from pviommu.faults.scenario import parse
from pviommu.guest.memory import GuestRam
from pviommu.guest.virtio import (
    ACCESS_PLATFORM,
    NEEDS_RESET,
    RING_EVENT_IDX,
    RING_PACKED,
    VERSION_1,
    VirtioFunction,
    VirtioGuest,
)
from pviommu.host.work import Work
from pviommu.machine import Machine
from pviommu.pci.function import Environment
from pviommu.probes import Probes
from pviommu.topology import load
from vfio_user import DmaMapping

from ..conftest import Inputs
from .conftest import Agenda

RAM = 4 << 20
FEATURES = VERSION_1 | ACCESS_PLATFORM | MAC | CTRL_VQ | RING_EVENT_IDX
RINGS = {"net0": 0x40000, "net1": 0x80000}
SENT, RECEIVED = 0x100000, 0x200000
FRAMES = 8
Rule = dict[str, Any]


class Cards:
    """The machine of the topology ``net``, whose second card has packed rings, with rules and its two drivers."""

    def __init__(self, rule: Rule) -> None:
        inputs = Inputs()
        scenario = parse({"version": 1, "rule": [{"id": "rule", "text": "a test's", **rule}]})
        self.faults = Faults(scenario, inputs)
        self.agenda = Agenda(inputs)
        self.faults.serve(self.agenda)
        probes = Probes(interposer=self.faults)
        self.machine = Machine.build(load(Path("net")), Environment(inputs, Counters(), probes))
        self.work = Work(self.machine).step
        self._ram = GuestRam(RAM)
        for function in self.machine.functions():
            function.dma_map(DmaMapping(0, RAM, 0, True, True, os.dup(self._ram.fd)))
        self.drivers: dict[str, VirtioGuest] = {}
        for name in RINGS:
            self.start(name)

    def read(self, address: int, length: int) -> bytes:
        return self._ram.bytes[address : address + length]

    def write(self, address: int, data: bytes) -> None:
        self._ram.bytes[address : address + len(data)] = data

    def card(self, name: str) -> VirtioNet:
        card = self.machine.endpoints[name]
        assert isinstance(card, VirtioNet)
        return card

    def start(self, name: str) -> None:
        """The function is reset, and its driver begins anew."""
        card = self.card(name)
        card.reset()
        card.region_write(7, 4, b"\6\0")
        driver = VirtioGuest(VirtioFunction(card.region_read, card.region_write), self, RINGS[name])
        assert driver.negotiate(FEATURES | (RING_PACKED if name == "net1" else 0))
        for queue in range(2):
            driver.set_up(queue, 64, vector=queue)
        driver.go()
        self.drivers[name] = driver

    def settle(self) -> None:
        for _ in range(20_000):
            if not self.work() and not self.agenda.run(10_000_000):
                return
        raise AssertionError("it does not come to rest")

    def exchange(self, fill: int) -> bool:
        """Whether a frame that net0 sends arrives at net1, byte for byte."""
        one, two = self.drivers["net0"], self.drivers["net1"]
        frame = bytes([0xFF] * 6 + [fill] * 90)
        self.write(SENT, bytes(12) + frame)
        self.write(RECEIVED, bytes(2048))
        two.rings[0].add([], [(RECEIVED, 2048)])
        two.function.notify(0)
        one.rings[1].add([(SENT, 12), (SENT + 12, len(frame))])
        one.function.notify(1)
        self.settle()
        returned = [two.rings[0].take(), one.rings[1].take()]
        return returned[0] is not None and returned[0].written > 0 and self.read(RECEIVED + 12, len(frame)) == frame

    def close(self) -> None:
        self.machine.close()
        self._ram.close()


@pytest.fixture
def cards() -> Iterator[Callable[[Rule], Cards]]:
    made: list[Cards] = []

    def make(rule: Rule) -> Cards:
        made.append(Cards(rule))
        return made[-1]

    yield make
    for each in made:
        each.close()


def at(address: int, length: int) -> str:
    return f"{address:#x}..{address + length - 1:#x}"


ONCE = {"nth": 3}
CASES = {
    "a late translation of the receiver": (
        {"on": "dma.translate.pre", "where": {"stream": 2}, "schedule": {"nth": 9}, "do": {"delay": "2ms"}},
        0,
        "",
    ),
    "a lost interrupt": ({"on": "interrupt.apply", "where": {"function": "net1"}, "do": {"drop": True}}, 0, ""),
    "a receive buffer that is refused": (
        {
            "on": "dma.translate.pre",
            "where": {"stream": 2, "iova": at(RECEIVED, 2048)},
            "schedule": ONCE,
            "do": {"fail": "NOT_MAPPED"},
        },
        1,
        "",
    ),
    "a frame to send that is refused": (
        {
            "on": "dma.translate.pre",
            "where": {"stream": 1, "iova": at(SENT, 2048)},
            "schedule": ONCE,
            "do": {"fail": "PERMISSION"},
        },
        1,
        "",
    ),
    "a split ring that is refused": (
        {
            "on": "dma.translate.pre",
            "where": {"stream": 1, "iova": at(RINGS["net0"], 0x6000)},
            "schedule": {"nth": 20},
            "do": {"fail": "NOT_MAPPED"},
        },
        None,
        "net0",
    ),
    "a packed ring that is refused": (
        {
            "on": "dma.translate.pre",
            "where": {"stream": 2, "iova": at(RINGS["net1"], 0x6000)},
            "schedule": {"nth": 20},
            "do": {"fail": "NOT_MAPPED"},
        },
        None,
        "net1",
    ),
    "a ring's memory that fails": (
        {
            "on": "dma.read.pre",
            "where": {"function": "net0", "iova": at(RINGS["net0"] + 0x4000, 0x1000)},
            "schedule": ONCE,
            "do": {"fail": "NOT_RAM"},
        },
        None,
        "net0",
    ),
}


@pytest.mark.row("virtio", 47)
@pytest.mark.row("virtio", 46)
@pytest.mark.parametrize("case", CASES)
def test_a_fault_costs_what_it_must_and_the_cards_go_on(cards: Callable[[Rule], Cards], case: str) -> None:
    rule, lost, needs_reset = CASES[case]
    played = cards(rule)
    arrived = [played.exchange(fill) for fill in range(1, FRAMES + 1)]
    assert played.faults.verdict().rules[0].fired > 0

    statuses = {name: bool(driver.status & NEEDS_RESET) for name, driver in played.drivers.items()}
    assert statuses == {name: name == needs_reset for name in RINGS}
    if lost is not None:
        assert arrived.count(False) == lost
        assert arrived[-1]
    assert not any(card.failed for card in played.machine.endpoints.values())
    if needs_reset:
        played.start(needs_reset)
        played.start("net0")
        assert all(played.exchange(fill) for fill in range(1, 4))


def test_a_card_that_fails_works_again_after_a_reset_of_its_function(cards: Callable[[Rule], Cards]) -> None:
    rule = {"on": "endpoint.work.pre", "where": {"function": "net1"}, "schedule": {"nth": 6}, "do": {"fail": "FAILED"}}
    played = cards(rule)
    for fill in range(1, FRAMES + 1):
        played.exchange(fill)
    assert played.card("net1").failed
    assert not played.exchange(1)
    assert not played.card("net0").failed

    played.start("net1")

    assert played.exchange(1)
