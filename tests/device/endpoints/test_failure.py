"""An endpoint whose code raises: it stands still until its reset, and nobody else does."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest

from pviommu.dma.fault import DmaRefusedError
from pviommu.endpoints.surroundings import Surroundings
from pviommu.endpoints.template import REGISTERS, Template
from pviommu.host.work import Work
from pviommu.machine import Machine
from pviommu.process import logs
from pviommu_abi.registers import REGISTER
from pviommu_abi.shared import EventReason

PAGE = 4096
OFFSET = {register.name: register.offset for register in REGISTERS}
BUS_MASTER = (0x6).to_bytes(2, "little")
FUNCTION_RESET = 0x8000


class Broken(Template):
    """A template whose methods raise while they are named in ``broken``."""

    def __init__(self, surroundings: Surroundings) -> None:
        self.broken: set[str] = set()
        self.worked = 0
        super().__init__(surroundings)

    def _may_raise(self, name: str) -> None:
        if name in self.broken:
            raise ZeroDivisionError(f"a bug in {name}")

    def work(self) -> bool:
        self._may_raise("work")
        self.worked += 1
        return super().work()

    def cancel_dma(self) -> None:
        self._may_raise("cancel_dma")
        super().cancel_dma()

    def reset_device(self) -> None:
        self._may_raise("reset_device")
        super().reset_device()

    def on_bus_master(self, enabled: bool) -> None:
        self._may_raise("on_bus_master")
        super().on_bus_master(enabled)

    def on_ram_changed(self, first: int, nr: int) -> None:
        self._may_raise("on_ram_changed")

    def write_stamp_at(self, index: int, value: int) -> None:
        self._may_raise("write_stamp_at")
        super().write_stamp_at(index, value)

    def read_stamps(self, _: int) -> int:
        self._may_raise("read_stamps")
        return self.registers["STAMPS"]


class Careless(Template):
    """Does DMA and does not catch that it is refused; ``keeps`` its queue until a stamp is written."""

    def work(self) -> bool:
        if not self.state.queue:
            return False
        self.dma.write([(self.state.queue[0], 4)], b"mark")
        self.state.queue.pop(0)
        return True


class Stubborn(Careless):
    """Tells by DMA, too, that its queue was cancelled, and does not catch that this is refused."""

    def cancel_dma(self) -> None:
        self.dma.write([(0x300000, 4)], b"gone")
        super().cancel_dma()


class Stepwise(Template):
    """Writes to its register are carried out in steps, the second of which raises; or by DMA to another function."""

    to: int | None = None

    def write_stamp_at(self, _: int, value: int) -> Any:
        if self.to is not None:
            self.dma.write([(self.to, 4)], value.to_bytes(4, "little"))
            return None
        return self._steps()

    def _steps(self) -> Iterator[None]:
        yield
        raise ZeroDivisionError("a bug in a step")


@pytest.fixture
def broken(guest: Any) -> Broken:
    device = guest.make(Broken, "broken", 1)
    guest.plug(device)
    guest.map(0x100, 0x20)
    guest.events()
    return device


@pytest.fixture
def sound(guest: Any) -> Template:
    device = guest.make(Template, "sound", 2)
    guest.plug(device)
    return device


def stamp(device: Template, address: int = 0x100000) -> None:
    device.region_write(0, OFFSET["STAMP_AT"], address.to_bytes(4, "little"))


def register(device: Template, name: str) -> int:
    return int.from_bytes(device.region_read(0, OFFSET[name], 4), "little")


def function_reset(device: Template) -> None:
    config = device.region_read(7, 0, 256)
    offset = config[0x34]
    while config[offset] != 0x10:
        offset = config[offset + 1]
    device.region_write(7, offset + 8, FUNCTION_RESET.to_bytes(2, "little"))


def fail(device: Broken) -> None:
    device.broken = {"work"}
    assert device.step() is False
    device.broken = set()
    assert device.failed


def provoke_work(_: Any, device: Broken) -> None:
    device.step()


def provoke_write(_: Any, device: Broken) -> None:
    stamp(device)


def provoke_read(_: Any, device: Broken) -> None:
    assert register(device, "STAMPS") == 0xFFFFFFFF


def provoke_bus_master(guest: Any, device: Broken) -> None:
    guest.set_bus_master(device, False)


def provoke_reset(_: Any, device: Broken) -> None:
    device.reset()


def provoke_function_reset(_: Any, device: Broken) -> None:
    function_reset(device)


def provoke_cancel(guest: Any, _: Broken) -> None:
    guest.iommu.region_write(0, REGISTER["RESET"].offset, (1).to_bytes(4, "little"))


def provoke_memory(guest: Any, device: Broken) -> None:
    device.dma_unmap(0, 16 << 20)


PROVOKED = {
    "work": provoke_work,
    "write_stamp_at": provoke_write,
    "read_stamps": provoke_read,
    "on_bus_master": provoke_bus_master,
    "reset_device": provoke_reset,
    "cancel_dma": provoke_cancel,
    "on_ram_changed": provoke_memory,
}


@pytest.mark.row("server", 5)
@pytest.mark.parametrize("method", PROVOKED)
def test_an_exception_fails_the_endpoint_with_a_traceback_and_an_event(
    guest: Any, broken: Broken, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    broken.broken = {method}

    PROVOKED[method](guest, broken)

    assert broken.failed
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    said = json.loads(logs.JsonFormatter().format(record))
    assert (said["event"], said["function"], said["stream"]) == ("endpoint-failed", "broken", 1)
    assert f"ZeroDivisionError: a bug in {method}" in said["traceback"]
    (event,) = guest.events()[-1:]
    assert (event.reason, event.stream, event.access, event.length) == (EventReason.BLOCKED, 1, 0, 0)


@pytest.mark.row("server", 5)
def test_a_failed_endpoint_does_nothing_and_reads_all_ones(guest: Any, broken: Broken) -> None:
    fd = guest.arm_interrupt(broken)
    stamp(broken)
    fail(broken)
    worked = broken.worked

    stamp(broken)
    broken.interrupt(0)

    assert (broken.step(), broken.worked) == (False, worked)
    assert broken.region_read(0, OFFSET["STAMPS"], 4) == b"\xff" * 4
    with pytest.raises(DmaRefusedError):
        broken.dma.write([(0x100000, 4)], b"mark")
    with pytest.raises(DmaRefusedError):
        broken.dma.read([(0x100000, 4)])
    with pytest.raises(BlockingIOError):
        os.eventfd_read(fd)
    assert guest.peek(0x20000, 4) == bytes(4)
    os.close(fd)


@pytest.mark.row("server", 5)
def test_its_configuration_space_goes_on(broken: Broken) -> None:
    before = broken.region_read(7, 0, 64)
    fail(broken)
    assert broken.region_read(7, 0, 64) == before


@pytest.mark.row("server", 5)
@pytest.mark.parametrize("reset", [function_reset, Template.reset, Template.disconnected])
def test_a_reset_revives_it(guest: Any, broken: Broken, reset: Any) -> None:
    fail(broken)

    reset(broken)

    assert not broken.failed
    if reset is Template.disconnected:
        guest.give_memory(broken)
    guest.set_bus_master(broken, True)
    stamp(broken)
    assert broken.step() is True
    assert guest.peek(0x20000, 4) == b"\1\0\0\0"


@pytest.mark.row("server", 5)
def test_a_reset_that_raises_does_not_revive_it_and_the_next_one_does(broken: Broken) -> None:
    broken.broken = {"reset_device"}
    broken.reset()
    assert broken.failed
    broken.broken = set()
    broken.reset()
    assert not broken.failed


@pytest.mark.row("server", 5)
def test_a_client_that_leaves_a_broken_endpoint_leaves_no_memory_in_it(broken: Broken) -> None:
    broken.broken = {"reset_device"}
    broken.disconnected()
    assert list(broken.memory) == []


@pytest.mark.row("server", 5)
def test_the_iommu_is_reset_and_the_others_work_although_one_raises(
    guest: Any, broken: Broken, sound: Template
) -> None:
    machine = Machine(guest.iommu, {"broken": broken, "sound": sound})
    work = Work(machine).step
    guest.map(0x100, 0x20)
    stamp(sound)
    broken.broken = {"work", "cancel_dma"}

    assert work() is True

    assert guest.peek(0x20000, 4) == b"\1\0\0\0"
    stamp(sound)
    guest.iommu.region_write(0, REGISTER["RESET"].offset, (1).to_bytes(4, "little"))
    assert guest.iommu.engine.domains() == ()
    assert work() is False, "its queue was cancelled with the IOMMU's reset"


@pytest.mark.row("server", 5)
@pytest.mark.parametrize("method", ["read_stamps", "write_stamp_at"])
def test_dma_of_another_function_to_its_registers_fails_the_one_that_raises(
    guest: Any, broken: Broken, sound: Template, method: str
) -> None:
    machine = Machine(guest.iommu, {"broken": broken, "sound": sound})
    work = Work(machine).step
    bar, dfn = 0xF0000000, 0x300
    broken.region_write(7, 0x10, bar.to_bytes(4, "little"))
    guest.set_bus_master(broken, True)  # and memory decoding
    guest.map(dfn, bar >> 12)
    broken.broken = {method}

    if method == "read_stamps":
        assert sound.dma.read([(dfn * PAGE + OFFSET["STAMPS"], 4)]) == b"\xff" * 4
    else:
        stamp(sound, dfn * PAGE + OFFSET["STAMP_AT"])
        assert work() is True

    assert (broken.failed, sound.failed) == (True, False)


@pytest.mark.row("server", 5)
def test_it_is_logged_once_however_often_it_is_asked(broken: Broken, caplog: pytest.LogCaptureFixture) -> None:
    broken.broken = {"work"}
    for _ in range(100):
        broken.step()
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


@pytest.mark.row("server", 6)
def test_refused_dma_that_nobody_catches_cancels_what_is_queued(guest: Any, caplog: pytest.LogCaptureFixture) -> None:
    device = guest.make(Careless, "careless", 1)
    guest.plug(device)
    guest.map(0x100, 0x20)
    for address in (0x200000, 0x100000):
        stamp(device, address)

    assert device.step() is False

    assert not device.failed
    assert [event.iova for event in guest.events()] == [0x200000]
    assert device.step() is False, "the second one is cancelled"
    assert guest.peek(0x20000, 4) == bytes(4)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    stamp(device)
    assert device.step() is True
    assert guest.peek(0x20000, 4) == b"mark"


@pytest.mark.row("server", 6)
def test_dma_that_is_refused_while_the_queue_is_cancelled_fails_the_endpoint(
    guest: Any, sound: Template, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    device = guest.make(Stubborn, "stubborn", 1)
    guest.plug(device)
    machine = Machine(guest.iommu, {"stubborn": device, "sound": sound})
    work = Work(machine).step
    guest.map(0x100, 0x20)
    guest.events()
    stamp(device, 0x200000)
    stamp(sound)

    assert work() is True

    assert (device.failed, sound.failed) == (True, False)
    assert [event.iova for event in guest.events()][:2] == [0x200000, 0x300000]
    assert len([record for record in caplog.records if "ended by refused DMA" in record.message]) == 1
    assert guest.peek(0x20000, 4) == b"\1\0\0\0"


@pytest.mark.row("server", 6)
def test_an_endpoint_whose_reset_is_ended_by_refused_dma_leaves_its_block_all_the_same(guest: Any) -> None:
    class Impolite(Careless):
        def reset_device(self) -> None:
            self.dma.write([(0x300000, 4)], b"gone")

    device = guest.make(Impolite, "impolite", 1)
    guest.plug(device)
    guest.map(0x100, 0x20)
    guest.iommu.engine.block(1)

    function_reset(device)

    assert not guest.iommu.engine.is_blocked(1)


@pytest.fixture
def stepwise(guest: Any) -> Stepwise:
    device = guest.make(Stepwise, "stepwise", 1)
    guest.plug(device)
    guest.map(0x100, 0x20)
    return device


def reach_by_dma(guest: Any, device: Template, bar: int, dfn: int) -> int:
    """Give BAR 0 an address; the device address of STAMP_AT."""
    device.region_write(7, 0x10, bar.to_bytes(4, "little"))
    guest.set_bus_master(device, True)  # and memory decoding
    guest.map(dfn, bar >> 12)
    return dfn * PAGE + OFFSET["STAMP_AT"]


@pytest.mark.row("server", 5)
def test_a_later_step_of_a_register_write_that_raises_fails_the_endpoint(guest: Any, stepwise: Stepwise) -> None:
    steps = stepwise.region_write(0, OFFSET["STAMP_AT"], bytes(4))
    assert steps is not None
    assert list(steps) == [None]
    assert stepwise.failed


@pytest.mark.row("server", 5)
def test_steps_of_a_register_write_end_with_the_failure_of_the_endpoint(guest: Any, stepwise: Stepwise) -> None:
    steps = stepwise.region_write(0, OFFSET["STAMP_AT"], bytes(4))
    assert steps is not None
    next(steps)
    stepwise.attempts.make("something else", lambda: 1 // 0)
    function_reset(stepwise)
    assert list(steps) == [], "they are of the time before the reset"
    assert not stepwise.failed


@pytest.mark.row("server", 5)
def test_a_later_step_of_what_dma_has_written_fails_the_endpoint_and_nothing_else(
    guest: Any, stepwise: Stepwise, sound: Template
) -> None:
    machine = Machine(guest.iommu, {"stepwise": stepwise, "sound": sound})
    work = Work(machine).step
    stamp(sound, reach_by_dma(guest, stepwise, 0xF0000000, 0x300))
    assert work() is True
    assert (stepwise.failed, sound.failed) == (True, False)
    stamp(sound)
    assert work() is True
    assert guest.peek(0x20000, 4) == b"\2\0\0\0"


@pytest.mark.row("driver", 46)
def test_what_a_register_handler_writes_by_dma_arrives_although_nobody_else_has_work(
    guest: Any, stepwise: Stepwise, sound: Template
) -> None:
    machine = Machine(guest.iommu, {"stepwise": stepwise, "sound": sound})
    work = Work(machine).step
    here = reach_by_dma(guest, stepwise, 0xF0000000, 0x300)
    stepwise.to = reach_by_dma(guest, sound, 0xF0001000, 0x301)
    place = machine.windows.find(0xF0000000 + here % PAGE, 0xF0000000 + here % PAGE + 4)
    assert place is not None
    machine.windows.write(place, 0x100000.to_bytes(4, "little"))
    while work():  # as the server does before it sleeps
        pass
    assert register(sound, "STAMPS") == 1
