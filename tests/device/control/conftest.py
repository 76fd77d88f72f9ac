"""The commands of a machine without a loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pviommu.control.answers import Answers, Served, finished
from pviommu.control.rules import RuleCommands
from pviommu.faults.engine import Faults
from pviommu.faults.scenario import Scenario
from pviommu.history.records import History
from pviommu.hosted import Owner
from pviommu.inputs import WorkOutcome
from pviommu.interfaces.pv.bindings import format_sbdf

from ..conftest import Driver


class Asked:
    """Carries out commands to their end, counting the steps."""

    def __init__(self, driver: Driver, history: History | None) -> None:
        self.stopped = False
        self.steps = 0
        self.faults = driver.iommu.keep_history(history)
        kinds = {"iommu": "iommu", "dma0": "dma-test", "dma1": "dma-test"}
        clients = SimpleNamespace(known={"iommu": "process 7 of user 0"})
        self.rules = Faults(Scenario(), driver.machine.inputs)
        self.served = Served(
            *(driver.machine, self.faults, self.stop, lambda: clients.known, kinds, format_sbdf, ("xen-2024",)),
            host=SimpleNamespace(submit=self._submit, at=self._at),  # type: ignore[arg-type]
            rules=RuleCommands(self.rules, lambda: None),  # this machine passes by its probes
        )
        self.answers = Answers(self.served)

    @staticmethod
    def _at(_time_ns: int, callback: Callable[[], None]) -> None:
        """At once."""
        callback()

    @staticmethod
    def _submit(owner: Owner, work: Callable[[], Any], callback: Callable[[WorkOutcome[Any]], None]) -> None:
        """At once, in no other thread."""
        try:
            outcome: WorkOutcome[Any] = WorkOutcome(1, work())
        except OSError as error:
            outcome = WorkOutcome(1, error=error)
        callback(outcome)

    def stop(self) -> None:
        self.stopped = True

    def __call__(self, name: str, **arguments: Any) -> dict[str, Any]:
        self.steps = 0
        return finished(self.answers.begin(name, arguments), self._step)

    def _step(self) -> None:
        self.steps += 1


@pytest.fixture
def history() -> History:
    return History(1000)


@pytest.fixture
def ask(driver: Driver, history: History) -> Asked:
    return Asked(driver, history)


@pytest.fixture
def ask_without(make_driver: Callable[..., Driver]) -> Iterator[Asked]:
    """Of a machine without history."""
    return Asked(make_driver().start(), None)  # type: ignore[return-value]
