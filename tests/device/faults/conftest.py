"""A machine with a scenario, and a guest driver that plays on it by hand."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from pviommu.faults.engine import Faults
from pviommu.faults.scenario import Scenario, parse
from pviommu.probes import Probes

from ..conftest import Driver, Inputs

Rules = list[dict[str, Any]]
Load = Callable[..., "Faulty"]


class Agenda:
    """What is due, without a loop: done when :meth:`run` is called."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, time_ns: int, callback: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._due, (time_ns, self._count, callback))

    def run(self, after_ns: int = 0) -> int:
        """What is due after so much time; how much that was."""
        self._inputs.time += after_ns
        done = 0
        while self._due and self._due[0][0] <= self._inputs.time:
            heapq.heappop(self._due)[2]()
            done += 1
        return done


class Faulty:
    """A driver of a machine that rules are loaded for."""

    def __init__(self, make_driver: Callable[..., Driver], scenario: Scenario, **settings: Any) -> None:
        def probes(inputs: Inputs) -> Probes:
            self.faults = Faults(scenario, inputs)
            self.agenda = Agenda(inputs)
            self.faults.serve(self.agenda)
            return Probes(interposer=self.faults)

        self.driver = make_driver(probes=probes, **settings).start(rings=2)

    def fired(self) -> list[int]:
        """By rule."""
        return [rule.fired for rule in self.faults.verdict().rules]

    def events(self) -> list[dict[str, Any]]:
        """All of them."""
        return [msgspec.json.decode(line) for line in self.faults.log.lines]


def scenario(*rules: dict[str, Any], **more: Any) -> Scenario:
    """One of rules without ids."""
    numbered = [{"id": f"rule-{number}", **rule} for number, rule in enumerate(rules)]
    return parse({"version": 1, "rule": numbered, **more})


@pytest.fixture
def load(make_driver: Callable[..., Driver]) -> Load:
    """A started driver of a machine with these rules."""

    def make(*rules: dict[str, Any], settings: dict[str, Any] | None = None, **more: Any) -> Faulty:
        return Faulty(make_driver, scenario(*rules, **more), **(settings or {}))

    return make
