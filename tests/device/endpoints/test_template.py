"""The template: short enough to read at once, and a device that works."""

from __future__ import annotations

import inspect
import os
from typing import Any

import pytest

from pviommu.endpoints import template
from pviommu.endpoints.template import REGISTERS, Template

OFFSET = {register.name: register.offset for register in REGISTERS}


@pytest.fixture
def device(guest: Any) -> Template:
    device = guest.make(Template, "stamp", 1)
    guest.plug(device)
    guest.map(0x100, 0x20)
    return device


def stamp(device: Template, address: int) -> None:
    device.region_write(0, OFFSET["STAMP_AT"], address.to_bytes(4, "little"))


def register(device: Template, name: str) -> int:
    return int.from_bytes(device.region_read(0, OFFSET[name], 4), "little")


def test_the_template_is_short() -> None:
    assert len(inspect.getsource(template).splitlines()) <= 60


def test_a_stamp_is_written_by_dma_and_interrupts(guest: Any, device: Template) -> None:
    fd = guest.arm_interrupt(device)
    stamp(device, 0x100000)
    stamp(device, 0x100010)
    assert guest.peek(0x20000, 4) == bytes(4), "the register handler itself does no DMA"

    assert [device.work(), device.work(), device.work()] == [True, True, False]

    assert (guest.peek(0x20000, 4), guest.peek(0x20010, 4)) == (b"\1\0\0\0", b"\2\0\0\0")
    assert (register(device, "STAMPS"), register(device, "REFUSED")) == (2, 0)
    assert os.eventfd_read(fd) == 2
    os.close(fd)


def test_a_refused_stamp_is_counted_and_reported(guest: Any, device: Template) -> None:
    stamp(device, 0x200000)

    assert device.work() is True

    assert (register(device, "STAMPS"), register(device, "REFUSED")) == (0, 1)
    assert [event.iova for event in guest.events()] == [0x200000]


def test_the_queue_has_a_bound(device: Template) -> None:
    for _ in range(100):
        stamp(device, 0x100000)

    while device.work():
        pass

    assert register(device, "STAMPS") == 64


def test_cancelled_stamps_are_not_written(guest: Any, device: Template) -> None:
    stamp(device, 0x100000)

    device.cancel_dma()

    assert device.work() is False
    assert guest.peek(0x20000, 4) == bytes(4)


def test_reset_clears_queue_and_registers(device: Template) -> None:
    stamp(device, 0x100000)
    device.work()
    stamp(device, 0x100000)

    device.reset()

    assert device.work() is False
    assert register(device, "STAMPS") == 0
