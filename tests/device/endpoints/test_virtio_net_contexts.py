"""Two joined cards in two contexts, whose drivers use the same device addresses for different memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pviommu.counters import Counters
from pviommu.endpoints.virtio_net import CTRL_VQ, MAC
from pviommu.guest.local import LocalFunction
from pviommu.guest.memory import GuestRam
from pviommu.guest.ring import Ring
from pviommu.guest.virtio import ACCESS_PLATFORM, NEEDS_RESET, RING_PACKED, VERSION_1, VirtioFunction, VirtioGuest
from pviommu.guest.xen_2024 import Xen2024
from pviommu.host.work import Work
from pviommu.machine import Machine
from pviommu.pci.function import Environment
from pviommu.topology import load
from pviommu_abi.registers import REGISTER, Profile
from pviommu_abi.shared import RING_AREA_OFFSET
from pviommu_abi.slots import OpClass
from vfio_user import DmaMapping

from ..conftest import Inputs

PAGE = 4096
PAGES = 64
"""of each card, at device addresses from 0 on"""
MEMORY = {"net0": 0x100 * PAGE, "net1": 0x200 * PAGE}
"""where these are"""
OWN_PAGE = {"net0": 80, "net1": 90}
"""a page that only this card has, at this device frame; it is the one behind its others"""
RINGS, SENT, RECEIVED = 0, 0x20000, 0x30000
FRAME = bytes([0xFF] * 6) + bytes(range(90))


class Memory:
    """That of one card, by its device addresses."""

    def __init__(self, ram: GuestRam, name: str) -> None:
        self._ram, self._begin, self._own = ram, MEMORY[name], OWN_PAGE[name] * PAGE

    def _place(self, address: int) -> int:
        if self._own <= address < self._own + PAGE:
            return self._begin + PAGES * PAGE + address - self._own
        return self._begin + address

    def read(self, address: int, length: int) -> bytes:
        return self._ram.bytes[self._place(address) : self._place(address) + length]

    def write(self, address: int, data: bytes) -> None:
        self._ram.bytes[self._place(address) : self._place(address) + len(data)] = data


class Cards(Xen2024):
    """The machine of the topology ``net`` with a driver of its IOMMU, and one of each card."""

    def __init__(self) -> None:
        self.counters, self.ram = Counters(), GuestRam(4 << 20)
        self.machine = Machine.build(load(Path("net")), Environment(Inputs(), self.counters))
        self._work = Work(self.machine).step
        for function in self.machine.functions():
            function.region_write(7, 4, b"\6\0")
            function.dma_map(DmaMapping(0, self.ram.size, 0, True, True, os.dup(self.ram.fd)))
        iommu = LocalFunction(self.machine.iommu, REGISTER)
        self._ring = Ring(iommu, 0, 64, RING_AREA_OFFSET)
        iommu.write("PROFILE", Profile.XEN_2024)
        self._ring.turn_on()
        self.memory, self.drivers = {}, {}
        for stream, (name, begin) in enumerate(MEMORY.items(), 1):
            assert self.bind_stream(8 * stream, stream) == 0
            result, ctx = self.alloc_context()
            assert result == 0
            assert self.map(ctx, 0, begin // PAGE, PAGES) == (0, PAGES)
            assert self.map(ctx, OWN_PAGE[name], begin // PAGE + PAGES, 1) == (0, 1)
            assert self.reattach_device(8 * stream, ctx) == 0
            card = self.machine.endpoints[name]
            self.memory[name] = Memory(self.ram, name)
            driver = VirtioGuest(VirtioFunction(card.region_read, card.region_write), self.memory[name], RINGS)
            packed = RING_PACKED if name == "net1" else 0
            assert driver.negotiate(VERSION_1 | ACCESS_PLATFORM | MAC | CTRL_VQ | packed)
            for queue in range(2):
                driver.set_up(queue, 16)
            driver.go()
            self.drivers[name] = driver

    def call(self, payload: bytes, op_class: int = OpClass.XEN_2024, op: int = 0) -> tuple[int, bytes]:
        position = self._ring.put(op_class, op, 0, payload)
        self._ring.ring_doorbell()
        while not self._ring.is_complete(position):
            self._work()
        result, _, answer = self._ring.result(position)
        return result, answer

    def exchange(self, sent: int = SENT, received: int = RECEIVED) -> int:
        """Send a frame from net0, at device address ``sent``, to net1, at ``received``: the bytes that its driver is
        told of."""
        one, two = self.drivers["net0"], self.drivers["net1"]
        two.rings[0].add([], [(received, 2048)])
        two.function.notify(0)
        one.rings[1].add([(sent, 12 + len(FRAME))])
        one.function.notify(1)
        for _ in range(100):
            self._work()
        assert one.rings[1].take() is not None
        returned = two.rings[0].take()
        return returned.written if returned else -1

    def close(self) -> None:
        self.machine.close()
        self.ram.close()


@pytest.fixture
def cards() -> Iterator[Cards]:
    found = Cards()
    found.memory["net0"].write(SENT, bytes(12) + FRAME)
    yield found
    found.close()


def test_one_address_leads_two_cards_to_different_memory(cards: Cards) -> None:
    cards.memory["net0"].write(RECEIVED, b"kept" * 512)

    assert cards.exchange() == 12 + len(FRAME)

    assert cards.memory["net1"].read(RECEIVED + 12, len(FRAME)) == FRAME
    assert cards.memory["net0"].read(RECEIVED, 2048) == b"kept" * 512
    assert cards.memory["net1"].read(SENT, 2048) == bytes(2048)
    assert cards.counters.faults == 0


def test_a_card_sends_nothing_out_of_memory_that_only_another_one_has(cards: Cards) -> None:
    cards.memory["net1"].write(OWN_PAGE["net1"] * PAGE, bytes(12) + FRAME)

    assert cards.exchange(sent=OWN_PAGE["net1"] * PAGE) == -1

    assert cards.counters.faults == 1
    assert not cards.drivers["net0"].status & NEEDS_RESET
    assert cards.exchange() == 12 + len(FRAME)


def test_a_card_receives_nothing_into_memory_that_only_another_one_has(cards: Cards) -> None:
    own = OWN_PAGE["net0"] * PAGE
    cards.memory["net0"].write(own, b"kept" * 512)

    assert cards.exchange(received=own) == 0

    assert cards.counters.faults == 1
    assert cards.memory["net0"].read(own, 2048) == b"kept" * 512
    assert not cards.drivers["net1"].status & NEEDS_RESET
    assert cards.exchange() == 12 + len(FRAME)
