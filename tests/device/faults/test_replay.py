"""A scenario that is played again from the journal of its inputs gives the same events, byte for byte."""

from __future__ import annotations

from typing import Any

import pytest

from pviommu.counters import Counters
from pviommu.faults.engine import Faults
from pviommu.host.pacing import Pace
from pviommu.host.server import Server
from pviommu.inputs import Inputs
from pviommu.journal import DivergedError, Entry, JournalEndError, JournalInputs, ReplayInputs, Unconnected
from pviommu.machine import Machine
from pviommu.pci.function import Environment
from pviommu.probes import Probes
from pviommu.scenarios.run import played
from pviommu.scenarios.stage import TOPOLOGY, Stage
from pviommu.scenarios.workloads import WORKLOADS

from .conftest import scenario

RULES = (
    {"on": "op.map_pages.pre", "schedule": {"probability": 0.2}, "do": {"fail": "ENOMEM"}},
    {"on": "op.unmap_pages.pre", "schedule": {"probability": 0.3}, "do": {"delay": "3ms", "jitter": "2ms"}},
    {"on": "dma.translate.pre", "schedule": {"every": 5}, "do": {"delay": "1ms"}},
    {"on": "message.region_write.pre", "schedule": {"every": 3}, "do": {"delay": "1ms"}},
    {"on": "dma.write.pre", "schedule": {"every": 7}, "do": {"corrupt": 5, "xor": 255}},
    {"on": "*", "schedule": {"every": 11}, "do": {"log": "passed"}},
)


Lived = tuple[list[Entry], Stage, list[str]]


@pytest.fixture(scope="module")
def lived() -> Lived:
    """The journal of a run of the wire workload with seed 7, its stage, which is over, and its events."""
    kept: list[JournalInputs] = []

    def record(inputs: Inputs) -> Inputs:
        kept.append(JournalInputs(inputs))
        return kept[0]

    with Stage(scenario(*RULES, seed=7), record=record) as stage:
        for _ in WORKLOADS["wire"].play(stage):
            pass
        entries, events = list(kept[0].entries), list(stage.faults.log.lines)
    return entries, stage, events


def replayed(entries: list[Entry], stage: Stage, seed: int) -> list[str]:
    inputs: Any = ReplayInputs(entries)
    faults = Faults(scenario(*RULES, seed=seed), inputs)
    machine = Machine.build(TOPOLOGY, Environment(inputs, Counters(), Probes(interposer=faults)))
    sockets: Any = {name: Unconnected(number) for name, number in stage.sockets.items()}
    server = Server(machine, sockets, inputs, Pace(0))
    faults.serve(server.loop)
    for _ in range(stage.turns):
        server.turn()
    assert inputs.position == len(entries)
    return faults.log.lines


def test_the_events_of_a_replay_are_those_of_the_run_byte_for_byte(lived: Lived) -> None:
    entries, stage, events = lived
    assert len(events) > 100
    assert replayed(entries, stage, 7) == events


def test_another_seed_does_something_else(lived: Lived) -> None:
    entries, stage, _ = lived
    with pytest.raises((DivergedError, JournalEndError, AssertionError)):
        replayed(entries, stage, 8)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_two_runs_give_the_same_events(workload: str) -> None:
    logs: list[list[str]] = [[], []]
    first, second = (played(scenario(*RULES, seed=7), workload, log.append) for log in logs)
    assert logs[0] == logs[1] != []
    assert first == second
