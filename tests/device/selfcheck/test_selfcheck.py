"""The rules of the self-check with hypothesis in the place of the seed: it finds short histories by itself."""

from __future__ import annotations

from random import Random
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from pviommu.selfcheck.checker import PATHS, Checker
from pviommu.selfcheck.rules import WEIGHTS, Rules
from pviommu.selfcheck.settings import Setting

RANDOMS = st.randoms(use_true_random=False)


class History(RuleBasedStateMachine):
    """Every rule of the self-check, on each of ``through`` and on the model."""

    through: ClassVar[tuple[str, ...]] = ()
    profile: ClassVar[str] = ""

    @initialize(random=RANDOMS)
    def start(self, random: Random) -> None:
        setting = Setting.drawn(random, self.profile)
        self.checker = Checker(setting, [PATHS[name] for name in self.through])
        oracle = self.checker.oracle
        self.rules = Rules(random, oracle.model, oracle.interface.malformed)

    def apply(self, name: str, random: Random) -> None:
        self.rules.random = random
        for op in getattr(self.rules, f"rule_{name}")():
            self.checker.step(op)

    def teardown(self) -> None:
        if hasattr(self, "checker"):
            try:
                self.checker.compare_all()
            finally:
                self.checker.__exit__()


def _add_rule(name: str) -> None:
    def apply(self: History, random: Random) -> None:
        self.apply(name, random)

    apply.__name__ = name
    setattr(History, f"rule_{name}", rule(random=RANDOMS)(apply))


for _name in WEIGHTS:
    if _name != "huge":  # a gigabyte page by page: the seeded runs do that
        _add_rule(_name)


def check(through: tuple[str, ...], profile: str, examples: int, steps: int) -> None:
    machine: Any = type("History", (History,), {"through": through, "profile": profile})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("profile", ["xen-2024", "xen-v7"])
def test_no_history_through_engine_and_ring_differs_from_the_model(profile: str) -> None:
    check(("engine", "ring"), profile, 15, 40)


@pytest.mark.parametrize("profile", ["xen-2024", "xen-v7"])
def test_no_history_through_engine_ring_and_wire_differs_from_the_model(profile: str) -> None:
    check(("engine", "ring", "wire"), profile, 3, 40)
