"""Endpoints are made ready by whatever may give them something to do, and by nothing else."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pviommu.counters import Counters
from pviommu.endpoints.endpoint import Endpoint
from pviommu.host.pacing import FOREVER
from pviommu.host.server import Server
from pviommu.host.timers import Timer
from pviommu.hosted import NAP_MS
from pviommu.machine import Machine
from pviommu.pci.capabilities import PCIE_DEVICE_CONTROL
from pviommu.pci.config_space import Identity
from pviommu.pci.function import Environment
from pviommu.topology import EndpointSection, Topology
from pviommu_abi.registers import AccessKind, Register
from vfio_user import DmaMapping, IrqAction, IrqIndex, IrqKind, IrqRequest, RegionIndex

from ..conftest import Inputs

COMMAND, MEMORY, MASTER = 4, 2, 4
BAR0, BAR2 = 0x10, 0x18
REGISTERS, SHARED = 0xE000_0000, 0xE010_0000


class Counting(Endpoint):
    """Counts its steps. ``todo``: how many more of them find something."""

    IDENTITY = Identity(1, 1, 0)
    polls = False
    steps = todo = 0

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.registers = self.add_register_bar(0, (Register("WORD", 0, AccessKind.RW, "anything"),))
        self.shared = self.add_shared_bar(2, 4096)
        self.power_on()

    def work(self) -> bool:
        self.steps += 1
        self.todo -= self.todo > 0
        return self.todo > 0


class Polling(Counting):
    """Has a doorbell in its shared memory, and asks for another one before the loop sleeps."""

    polls_memory = True

    def work(self) -> bool:
        super().work()
        rung, self.shared.words[0] = self.shared.words[0], 0
        return bool(rung)

    def on_arm(self) -> bool:
        self.shared.words[1] = 1
        return not self.shared.words[0]

    def on_disarm(self) -> None:
        self.shared.words[1] = 0


class Setting:
    """A server of a machine with endpoints of one class, ``e0`` and so on."""

    def __init__(self, kind: type[Counting], count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pviommu.machine.endpoint_class", lambda _: kind)
        topology = Topology(endpoint=tuple(EndpointSection(f"e{n}", "template", n + 1) for n in range(count)))
        self.inputs = Inputs()
        self.machine = Machine.build(topology, Environment(self.inputs, Counters()))
        self.server = Server(self.machine, {}, self.inputs)
        self.all = [endpoint for endpoint in self.machine.endpoints.values() if isinstance(endpoint, Counting)]
        self.first = self.all[0]
        self.step = self.server.work.step
        for at, address in ((BAR0, REGISTERS), (BAR2, SHARED)):
            self.first.region_write(RegionIndex.CONFIG, at, address.to_bytes(4, "little"))
        self.first.region_write(RegionIndex.CONFIG, COMMAND, bytes([MEMORY, 0]))
        self.rest()

    def rest(self) -> None:
        """Nobody has anything to do any more."""
        while self.step():
            pass
        self.step()
        for endpoint in self.all:
            endpoint.steps = 0

    def close(self) -> None:
        self.server.close()
        self.machine.close()


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Setting]]:
    made: list[Setting] = []

    def make(kind: type[Counting] = Counting, count: int = 2) -> Setting:
        made.append(Setting(kind, count, monkeypatch))
        return made[-1]

    yield make
    for setting in made:
        setting.close()


@pytest.fixture
def setting(make: Callable[..., Setting]) -> Setting:
    return make()


# -- ready ------------------------------------------------------------------------------------------------------------


def test_an_endpoint_that_has_nothing_to_do_is_not_asked_whatever_the_others_do(setting: Setting) -> None:
    idle, busy = setting.all
    busy.todo = 5
    busy.on_ready()
    for _ in range(20):
        setting.step()
    assert (idle.steps, busy.steps) == (0, 5)


def test_each_is_asked_once_at_first_whatever_was_done_before(make: Callable[..., Setting]) -> None:
    setting = make()
    for endpoint in setting.all:
        endpoint.steps = 0
    again = Server(setting.machine, {}, setting.inputs)
    for _ in range(3):
        again.work.step()
    again.close()
    assert [endpoint.steps for endpoint in setting.all] == [1, 1]


def write_register(setting: Setting) -> None:
    setting.first.region_write(0, 0, bytes(4))


def read_register(setting: Setting) -> None:
    setting.first.region_read(0, 0, 4)


def write_shared_memory_by_a_trap(setting: Setting) -> None:
    setting.first.region_write(2, 0, bytes(4))


def write_register_by_dma_of_another(setting: Setting) -> None:
    place = setting.machine.windows.find(REGISTERS, REGISTERS + 4)
    assert place is not None
    setting.machine.windows.write(place, bytes(4))


def write_shared_memory_by_dma_of_another(setting: Setting) -> None:
    place = setting.machine.windows.find(SHARED, SHARED + 4)
    assert place is not None
    setting.machine.windows.write(place, bytes(4))


def turn_bus_mastering_on(setting: Setting) -> None:
    setting.first.region_write(RegionIndex.CONFIG, COMMAND, bytes([MEMORY | MASTER, 0]))


def reset(setting: Setting) -> None:
    setting.first.reset()


def reset_by_its_own_capability(setting: Setting) -> None:
    at = setting.first._pcie + PCIE_DEVICE_CONTROL + 1
    setting.first.region_write(RegionIndex.CONFIG, at, b"\x80")


def lose_the_client(setting: Setting) -> None:
    setting.first.disconnected()


def get_memory(setting: Setting) -> None:
    fd = os.memfd_create("ram")
    os.truncate(fd, 4096)
    setting.first.dma_map(DmaMapping(0, 4096, 0, True, True, fd))


def get_an_interrupt_by_a_session(setting: Setting) -> None:
    request = IrqRequest(IrqIndex.MSIX, 0, 0, IrqAction.TRIGGER, IrqKind.NONE, ())
    setting.first.set_irqs(request)
    setting.first.settle()


def be_cancelled_by_the_iommu(setting: Setting) -> None:
    setting.first.cancel()


@pytest.mark.parametrize(
    "happen",
    [
        *(write_register, read_register, write_shared_memory_by_a_trap, write_register_by_dma_of_another),
        *(write_shared_memory_by_dma_of_another, turn_bus_mastering_on, reset, reset_by_its_own_capability),
        *(lose_the_client, get_memory, get_an_interrupt_by_a_session, be_cancelled_by_the_iommu),
    ],
)
def test_whatever_may_give_an_endpoint_something_to_do_makes_it_ready_and_no_other(
    setting: Setting, happen: Callable[[Setting], None]
) -> None:
    happen(setting)
    setting.step()
    setting.step()
    other = setting.all[1]
    assert (setting.first.steps, other.steps) == (1, 0)


def test_one_that_makes_itself_ready_in_its_step_has_another(setting: Setting) -> None:
    work = setting.first.work
    setting.first.work = lambda: (setting.first.steps < 3 and setting.first.on_ready(), work())[1]  # type: ignore[method-assign]
    setting.first.on_ready()
    for _ in range(10):
        setting.step()
    assert setting.first.steps == 4


def test_the_loop_does_not_sleep_while_an_endpoint_is_ready(setting: Setting) -> None:
    """Made so after the endpoints had their part of the turn."""
    setting.server.turn()
    assert setting.inputs.waits[-1] == FOREVER
    setting.inputs.waits.clear()
    work = setting.server.work
    step = work.step
    work.step = lambda: (step(), setting.first.on_ready())[0]  # type: ignore[method-assign]
    for _ in range(3):
        setting.server.loop._armed = False
        setting.server.turn()
    assert setting.inputs.waits == []
    assert setting.first.steps == 2


def test_nor_does_it_when_doorbells_are_asked_for_already(setting: Setting) -> None:
    setting.server.turn()
    assert setting.server.loop._armed
    work = setting.server.work
    step = work.step
    work.step = lambda: (step(), setting.first.on_ready())[0]  # type: ignore[method-assign]
    setting.inputs.waits.clear()
    setting.server.turn()
    assert setting.inputs.waits == []


# -- naps -----------------------------------------------------------------------------------------------------------


def naps_of(setting: Setting, turns: int) -> list[float]:
    setting.inputs.waits.clear()
    for _ in range(turns):
        setting.server.turn()
    return [timeout for timeout in setting.inputs.waits if timeout]


def test_between_steps_that_only_look_for_something_new_there_are_naps(setting: Setting) -> None:
    setting.first.todo, setting.first.may_nap = 5, True
    setting.first.on_ready()
    assert naps_of(setting, 4) == [NAP_MS] * 4
    assert setting.machine.counters.naps == 4
    assert setting.first.steps == 4


def test_a_nap_is_as_short_as_one_of_those_who_look_wants_it(setting: Setting) -> None:
    for endpoint in setting.all:
        endpoint.todo, endpoint.may_nap = 5, True
        endpoint.on_ready()
    setting.first.nap_ms = NAP_MS / 5
    assert naps_of(setting, 2) == [NAP_MS / 5] * 2
    setting.first.nap_ms = NAP_MS
    assert naps_of(setting, 1) == [NAP_MS]


def test_nobody_naps_while_another_one_has_more_to_do(setting: Setting) -> None:
    for endpoint in setting.all:
        endpoint.todo = 5
        endpoint.on_ready()
    setting.first.may_nap = True
    assert naps_of(setting, 4) == []
    assert [endpoint.steps for endpoint in setting.all] == [4, 4]


def test_nobody_naps_while_writes_to_registers_wait(setting: Setting) -> None:
    setting.first.todo, setting.first.may_nap = 5, True
    setting.first.on_ready()
    endpoints = setting.server.work.endpoints
    endpoints._posted = SimpleNamespace(is_waiting=True, deliver=lambda _: False)  # type: ignore[assignment]
    assert naps_of(setting, 4) == []


# -- polling memory ---------------------------------------------------------------------------------------------------


def test_one_that_polls_memory_is_asked_in_each_turn(make: Callable[..., Setting]) -> None:
    setting = make(Polling)
    for _ in range(5):
        assert setting.step() is False
    assert [endpoint.steps for endpoint in setting.all] == [5, 5]
    setting.first.shared.words[0] = 1
    assert setting.step() is True


def test_one_that_polls_memory_asks_for_a_doorbell_before_the_loop_sleeps_and_for_none_after(
    make: Callable[..., Setting],
) -> None:
    setting = make(Polling)
    setting.server.turn()
    words = setting.first.shared.words
    assert (words[1], [timeout for timeout in setting.inputs.waits if timeout]) == (1, [1])
    words[0] = 1
    setting.server.turn()
    assert words[1] == 0


def test_none_is_asked_for_once_a_descriptor_has_woken_the_loop(make: Callable[..., Setting]) -> None:
    setting = make(Polling)
    setting.server.turn()
    assert setting.first.shared.words[1] == 1
    fd = os.eventfd(1, os.EFD_NONBLOCK)
    watch = setting.server.loop.watch(fd, lambda _events, _may_go_on: os.eventfd_read(fd) and None)
    setting.server.turn()
    assert setting.first.shared.words[1] == 0
    watch.close()
    os.close(fd)


def test_a_doorbell_that_is_rung_while_it_is_asked_for_keeps_the_loop_awake(make: Callable[..., Setting]) -> None:
    setting = make(Polling)
    on_disarm = setting.all[1].on_disarm
    setting.all[0].on_arm = lambda: False  # type: ignore[method-assign]
    setting.inputs.waits.clear()
    disarmed: list[int] = []
    setting.all[1].on_disarm = lambda: (disarmed.append(1), on_disarm())[1]  # type: ignore[func-returns-value,method-assign]
    setting.server.turn()
    assert setting.inputs.waits == []
    assert disarmed == [1]


@pytest.mark.row("server", 5)
@pytest.mark.parametrize("hook", ["on_arm", "on_disarm"])
def test_an_exception_while_a_doorbell_is_asked_for_fails_that_endpoint_and_the_loop_sleeps(
    make: Callable[..., Setting], hook: str
) -> None:
    setting = make(Polling)
    setattr(setting.first, hook, lambda: 1 // 0)
    setting.server.turn()
    setting.all[1].shared.words[0] = 1
    setting.server.turn()
    assert [endpoint.failed for endpoint in setting.all] == [True, False]
    setting.rest()
    setting.inputs.waits.clear()
    while FOREVER not in setting.inputs.waits:
        setting.server.turn()


# -- threads and times ------------------------------------------------------------------------------------------------


def settle(setting: Setting, is_done: Callable[[], bool]) -> None:
    for _ in range(1000):
        if is_done():
            return
        select.select([setting.server.loop.watches.poller], [], [], 0.01)
        setting.server.turn()
    raise AssertionError("it never came")


def test_a_file_is_read_in_a_thread_and_who_asked_is_ready_when_it_hears_of_it(
    setting: Setting, tmp_path: Path
) -> None:
    (tmp_path / "disk").write_bytes(b"sector")
    heard: list[bytes] = []
    setting.first.submit((tmp_path / "disk").read_bytes, lambda outcome: heard.append(outcome.result()))
    settle(setting, lambda: bool(heard))
    setting.server.turn()
    assert heard == [b"sector"]
    assert setting.first.steps == 1


@pytest.mark.row("server", 5)
def test_an_exception_in_a_thread_that_is_not_caught_fails_the_endpoint_that_asked(setting: Setting) -> None:
    setting.first.submit(lambda: Path("/no/such/disk").read_bytes(), lambda outcome: outcome.result())
    settle(setting, lambda: setting.first.failed)
    assert [endpoint.failed for endpoint in setting.all] == [True, False]


def test_a_reset_drops_what_comes_late(setting: Setting) -> None:
    heard: list[str] = []
    may_end = threading.Event()
    setting.first.submit(lambda: may_end.wait(10), lambda _: heard.append("before"))
    setting.first.reset()
    setting.first.submit(lambda: may_end.wait(10), lambda _: heard.append("after"))
    may_end.set()
    settle(setting, lambda: bool(heard))
    for _ in range(3):
        setting.server.turn()
    assert heard == ["after"]


def test_what_is_due_is_done_and_makes_ready_unless_there_is_a_reset_before_it(setting: Setting) -> None:
    done: list[str] = []
    first, second = setting.all
    first.at(setting.inputs.time + 1_000_000, lambda: done.append("first"))
    second.at(setting.inputs.time + 1_000_000, lambda: done.append("second"))
    second.reset()
    setting.server.turn()
    first.steps = 0
    setting.inputs.time += 1_000_000
    setting.server.turn()
    assert done == ["first"]
    assert first.steps == 1


def test_a_reset_cancels_what_was_due(setting: Setting) -> None:
    first, second = setting.all
    timers = [endpoint.at(setting.inputs.time + 1_000_000, lambda: None) for endpoint in (first, second)]
    second.reset()
    assert [timer.is_over for timer in timers if isinstance(timer, Timer)] == [False, True]


@pytest.mark.row("server", 5)
def test_an_exception_in_what_is_due_fails_that_endpoint(setting: Setting) -> None:
    setting.first.at(setting.inputs.time, lambda: 1 // 0)  # type: ignore[arg-type,return-value]
    setting.server.turn()
    assert [endpoint.failed for endpoint in setting.all] == [True, False]
