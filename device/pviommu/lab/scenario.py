"""The scenario of faults that a run plays. Its rules go through the server's control socket, as does its verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pviommu_abi.shared import name_hash

from ..control.client import Client, ConnectionLostError
from ..control.description import CommandError
from ..faults import scenario as language
from ..faults.scenario import Scenario, ScenarioError
from ..faults.verdict import Verdict
from ..faults.where import number_range
from .problems import UsageError
from .vm import Alarm

__all__ = [
    "DEFAULT",
    "EVENTS",
    "RULES_PATH",
    "WITH_A_CONNECTION",
    "Play",
    "Played",
    "chosen_start",
    "found",
    "of_connections",
]

DEFAULT = "lab"
"""The scenario of a run that names none."""
EVENTS = "events.jsonl"
"""The file of a run with the events of its scenario."""
RULES_PATH = "/lab/rules"
"""Where the guest finds what the rules are expected to do: a line ``HASH FIRST LAST ID`` for each of them."""
_SECONDS = 10.0
_NO_LIMIT = 1 << 63
WITH_A_CONNECTION = ("message.", "socket.")
"""Places that a guest passes only on connections made later, and QEMU makes one."""


@dataclass(frozen=True, slots=True)
class Played:
    """What came of it, for the record of a run. ``verdict`` None: it was begun, and nobody could ask the server."""

    name: str
    verdict: Verdict | None

    @property
    def problems(self) -> list[str]:
        """What speaks against the run."""
        if self.verdict is None:
            return [f"scenario {self.name}: it was not played to its end, so nobody knows what its rules did"]
        of_rules = [f"rule {rule.id}: {problem}" for rule in self.verdict.rules for problem in rule.problems]
        return [*of_rules, *(f"scenario {self.name}: {problem}" for problem in self.verdict.problems)]

    @property
    def line(self) -> str:
        """For the verdict of the run."""
        if self.verdict is None:
            return f"scenario {self.name}: no verdict"
        rules, count = self.verdict.rules, len(self.verdict.rules)
        wrong = sum(bool(rule.problems) for rule in rules)
        outcome = "all as expected" if self.verdict.ok else f"{wrong} not as expected" if wrong else "not as expected"
        return f"scenario {self.name}: {count} {'rule' if count == 1 else 'rules'}, {outcome}"

    def as_dict(self) -> dict[str, Any]:
        """For ``results.json``."""
        verdict = None if self.verdict is None else self.verdict.as_dict()
        return {"name": self.name, "events_file": EVENTS, "verdict": verdict}


def found(given: Path) -> tuple[str, Scenario]:
    """A scenario by its file or its name: what it is called, and the scenario. Raises UsageError."""
    try:
        return language.find(given).stem, language.load(given)
    except ScenarioError as error:
        raise UsageError(str(error)) from error


def chosen_start(scenario: Scenario, asked: str | None) -> str:
    """``boot`` or ``tests``: what was ``asked`` for, else ``boot`` for rules that meet only connections made later."""
    return asked or ("boot" if of_connections(scenario) else "tests")


def of_connections(scenario: Scenario) -> str | None:
    """The first place of a rule that is about the messages or the socket of a client; None if there is none."""
    places = (place.name for rule in scenario.rule for place in rule.places())
    return next((name for name in places if name.startswith(WITH_A_CONNECTION)), None)


class Play:
    """One scenario in one run."""

    def __init__(self, name: str, scenario: Scenario, start: str) -> None:
        self.name = name
        self.start = start
        """``boot``: the rules are there before the machine is; ``tests``: the guest asks for them"""
        self._scenario = scenario
        self._begun = False
        self._verdict: Verdict | None = None

    @property
    def at_boot(self) -> bool:
        """Whether the rules are loaded before the machine is started."""
        return self.start == "boot"

    def requests(self, control: Path) -> Mapping[str, Callable[[], str | None]]:
        """What the guest may ask for."""
        return {"rules-load": lambda: self.load(control), "rules-unload": lambda: self.unload(control)}

    def alarm(self, requests: Alarm) -> Alarm:
        """A scenario has no time limit of its own."""
        return requests

    def expectations(self) -> bytes:
        """The lines of :data:`RULES_PATH`."""
        lines = []
        for rule in self._scenario.rule:
            fired, passed = rule.expect.fired, rule.expect.passed
            first, last = number_range(fired) if fired is not None else (0 if passed is not None else 1, _NO_LIMIT)
            most = "-" if last >= _NO_LIMIT else last  # a shell counts to there
            lines.append(f"{name_hash(rule.id):016x} {first} {most} {rule.id}\n")
        return "".join(lines).encode()

    def load(self, control: Path) -> str | None:
        """Load the rules; why that is not possible."""
        self._begun = True
        return self._call(control, "rules-load", {"scenario": msgspec.to_builtins(self._scenario)})

    def unload(self, control: Path) -> str | None:
        """Take the rules away, and keep their verdict; why that is not possible."""
        if not self._begun:
            return "no rules were loaded"
        if self._verdict is not None:
            return "they are gone already"
        return self._call(control, "rules-unload", {})

    def finish(self, control: Path) -> None:
        """The guest is gone: whatever it left there is judged as it is."""
        if self._begun and self._verdict is None:
            self.unload(control)

    def played(self, *, wanted: bool) -> Played | None:
        """What came of it. None if the guest asked for none, unless one was ``wanted``."""
        return Played(self.name, self._verdict) if self._begun or wanted else None

    def _call(self, control: Path, command: str, arguments: Mapping[str, Any]) -> str | None:
        try:
            with Client(control, _SECONDS) as client:
                answer = client.call(command, arguments)
        except (ConnectionLostError, CommandError) as error:
            return str(error)
        if command == "rules-unload":
            self._verdict = msgspec.convert(answer, Verdict)
        return None
