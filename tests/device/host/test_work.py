"""What a machine has to do: rings, and the endpoints that have something to do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pviommu.counters import Counters
from pviommu.endpoints import ENDPOINTS
from pviommu.endpoints.endpoint import Endpoint
from pviommu.endpoints.template import Template
from pviommu.host.endpoints import ENDPOINTS_NS
from pviommu.host.work import Work
from pviommu.inputs import LiveInputs
from pviommu.machine import Machine
from pviommu.pci.function import Environment
from pviommu.topology import EndpointSection, Topology


@pytest.fixture
def machine() -> Iterator[Machine]:
    topology = Topology(endpoint=(EndpointSection("dma0", "dma-test", 1), EndpointSection("stamp", "template", 2)))
    machine = Machine.build(topology, Environment(LiveInputs(), Counters()))
    yield machine
    machine.close()


def test_a_machine_with_nothing_to_do_says_so(machine: Machine) -> None:
    work = Work(machine).step

    assert work() is False


def test_a_machine_works_every_endpoint_in_one_step(machine: Machine) -> None:
    work = Work(machine).step
    stamp = machine.endpoints["stamp"]
    stamp.region_write(0, 0, bytes(4))

    assert work() is True
    assert work() is False
    assert stamp.region_read(0, 8, 4) == (1).to_bytes(4, "little")


class Clock(LiveInputs):
    """Time that goes on only when somebody works."""

    def __init__(self) -> None:
        self.time = 0

    def now_ns(self) -> int:
        return self.time

    worked_ns = now_ns


class Worker(Endpoint):
    """Always has something to do, whose steps take ``cost``; ``long``: all of it is one request."""

    IDENTITY = Template.IDENTITY
    long = False
    steps = 0
    _cost = 0

    @property
    def cost(self) -> int:
        return self._cost

    @cost.setter
    def cost(self, cost: int) -> None:
        self._cost = cost
        self.on_ready()

    @property
    def is_in_progress(self) -> bool:
        return self.long and self.steps > 0

    def work(self) -> bool:
        if not self.cost:
            return False
        self.steps += 1
        assert isinstance(self.inputs, Clock)
        self.inputs.time += self.cost
        return True


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setitem(ENDPOINTS, "worker", "worker.Worker")
    monkeypatch.setattr("pviommu.machine.endpoint_class", lambda _: Worker)
    topology = Topology(endpoint=tuple(EndpointSection(f"w{n}", "worker", n + 1) for n in range(64)))
    machine = Machine.build(topology, Environment(Clock(), Counters()))
    yield machine
    machine.close()


def of(machine: Machine) -> list[Worker]:
    return [worker for worker in machine.endpoints.values() if isinstance(worker, Worker)]


@pytest.mark.row("server", 36)
def test_a_turn_of_endpoints_ends_in_time_and_the_next_goes_on_with_the_others(workers: Machine) -> None:
    work = Work(workers).step
    for worker in of(workers):
        worker.cost = ENDPOINTS_NS // 4
    taken = []
    for _ in range(16):
        begun = workers.iommu.inputs.now_ns()
        assert work()
        taken.append(workers.iommu.inputs.now_ns() - begun)
    assert max(taken) <= 2 * ENDPOINTS_NS
    assert {worker.steps for worker in of(workers)} <= {1, 2}


@pytest.mark.row("server", 36)
def test_an_endpoint_that_does_little_comes_first_in_the_next_turn(workers: Machine) -> None:
    work = Work(workers).step
    *busy, little = of(workers)
    for worker in busy:
        worker.cost = ENDPOINTS_NS // 4
    for _ in range(40):
        work()
    for expected in range(1, 4):
        little.cost = 1
        work()
        assert little.steps == expected
        little.cost = 0
        for _ in range(20):  # more than each of the others has had a step
            work()


@pytest.mark.row("server", 36)
def test_requests_that_begin_do_not_wait_for_those_in_progress_and_do_not_keep_them_from_ending(
    workers: Machine,
) -> None:
    work = Work(workers).step
    *many, short = of(workers)
    for worker in many:
        worker.cost, worker.long = ENDPOINTS_NS // 8, True
    while any(not worker.is_in_progress for worker in many):
        work()
    short.cost = ENDPOINTS_NS // 8
    before = sum(worker.steps for worker in many)
    for turn in range(1, 9):
        work()
        assert short.steps >= turn
    assert sum(worker.steps for worker in many) >= before + 8


@pytest.mark.row("server", 30)
def test_an_endpoint_whose_dma_has_to_wait_has_something_to_do_and_is_asked_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(machine).step
    stamp = machine.endpoints["stamp"]
    stamp.region_write(7, 4, b"\x06\x00")
    stamp.region_write(0, 0, bytes(4))
    answers = iter([False, False, True, True])
    monkeypatch.setattr(machine.iommu._executor.order, "drain", lambda _: next(answers))
    assert [work() for _ in range(4)] == [True, True, True, False]
    assert [stamp.region_read(0, at, 4)[0] for at in (4, 8)] == [0, 1]
    assert machine.iommu.counters.faults == 1
