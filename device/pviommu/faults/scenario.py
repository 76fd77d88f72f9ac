"""Scenarios: files of rules, as TOML or JSON, or the same as Python objects.

For example::

    version = 1
    seed = 7

    [[rule]]
    id = "second-map-out-of-memory"
    on = "op.map_pages.pre"
    where = { ctx = 3, dfn = "0x1000..0x1fff" }
    schedule = { nth = 2 }
    do = { fail = "ENOMEM" }
    expect = { fired = 1 }

"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pviommu_abi.shared import FAULT_RULES_MOST

from .. import documents, resources, toml_places
from ..documents import WrongValueError
from .actions import Do
from .catalogue import ARGUMENTS, PROBES, Kind, Nature, Place, places
from .schedule import Schedule
from .where import Where, number_range

__all__ = [
    "Expect",
    "Rule",
    "Scenario",
    "ScenarioError",
    "converted",
    "find",
    "in_words",
    "load",
    "loads",
    "parse",
    "schema",
]

_ID = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$(?!\n)"
"""Python's ``$`` fits before a last newline, too."""
_ID_RULE = "1 to 64 of letters, digits, _, . and -, the first of which is a letter or a digit"
_STATE_RULE = "the name of a state, which reads as an id"
_Name = Annotated[str, Meta(pattern=_ID, extra_json_schema={"$comment": _STATE_RULE})]
_COUNT_RULE = {"$comment": 'a number or a range as "1..5"'}
_MOST_SEED = (1 << 63) - 1
_MOST_BYTES = 4 << 20
"""Of a file: many times what its rules can have, and not all of memory."""
_LONGEST_PLACE = 128
"""Characters: a key may have any number of them."""


class ScenarioError(Exception):
    """A scenario that cannot be read or breaks a rule; the text names the file, the line, the value and the rule."""


class _Table(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True, kw_only=True):
    pass


class Expect(_Table, frozen=True):
    """``expect`` of a rule. One that never fired without saying so fails the run."""

    fired: Annotated[
        int | str | None,
        Meta(description="how often it acted; without this, once or more", extra_json_schema=_COUNT_RULE),
    ] = None
    passed: Annotated[
        int | str | None, Meta(description="how often its conditions were met", extra_json_schema=_COUNT_RULE)
    ] = None

    def check(self) -> None:
        """Raises :class:`.WrongValueError`."""
        for key in ("fired", "passed"):
            if getattr(self, key) is not None:
                try:
                    number_range(getattr(self, key))
                except ValueError as error:
                    raise WrongValueError((key,), f"expect.{key} = {error}") from None


class Rule(_Table, frozen=True):
    """``[[rule]]``."""

    id: Annotated[
        str, Meta(pattern=_ID, description="by which reports name it", extra_json_schema={"$comment": _ID_RULE})
    ]
    on: Annotated[
        str,
        Meta(
            min_length=1, max_length=128, description="places as `pviommu faults list` has them, or a pattern of them"
        ),
    ]
    where: Annotated[
        dict[str, Any], Meta(description="conditions on what the probe is told, all of which must hold")
    ] = {}
    schedule: Annotated[Schedule, Meta(description="which of the passes that meet the conditions count")] = Schedule()
    when_state: Annotated[_Name | None, Meta(description="only in this state of the scenario")] = None
    set_state: Annotated[_Name | None, Meta(description="the state from now on, each time that it fires")] = None
    do: Annotated[Do | None, Meta(description="what happens then; without it the rule only counts")] = None
    expect: Annotated[Expect, Meta(description="what must have come of it at the end of the run")] = Expect()
    text: Annotated[str, Meta(description="what it stands for, for reports")] = ""

    def places(self) -> tuple[Place, ...]:
        """Where it is. Raises :class:`.WrongValueError` for a pattern that fits none."""
        found = places(self.on)
        if not found:
            if sides := [place.name for place in places(f"{self.on}.*")] if self.on in PROBES else []:
                raise WrongValueError(("on",), f"the probe {self.on} needs its side: {', '.join(sides)}")
            names = [place.name for place in places("*")]
            near = difflib.get_close_matches(self.on, names, 3, 0.3)
            hint = f"the nearest are {', '.join(near)}; " if near else ""
            raise WrongValueError(("on",), f"no probe is {self.on!r}: {hint}`pviommu faults list` has them all")
        return found

    def check(self) -> None:
        """Raises :class:`.WrongValueError`, places within the rule."""
        found = self.places()
        probes = [place.probe for place in found]
        with documents.within("where"):
            Where(self.where, probes)
        with documents.within("schedule"):
            self.schedule.check()
        with documents.within("expect"):
            self.expect.check()
        if self.do is not None:
            with documents.within("do"):
                self.do.check()
                self.do.check_at(found)
                if self.do.assert_ is not None:
                    with documents.within("assert"):
                        Where(self.do.assert_, probes, "assert")

    def natures(self) -> dict[str, Nature]:
        """What it is at each of its places, by their names."""
        found = places(self.on)
        return self.do.natures_at(found) if self.do else {place.name: Nature.CONFORMING for place in found}

    @property
    def nature(self) -> Nature:
        """Adversarial if it is so at any of its places."""
        return Nature.ADVERSARIAL if Nature.ADVERSARIAL in self.natures().values() else Nature.CONFORMING


class FinalState(_Table, frozen=True):
    """``[expect]``: of the whole scenario."""

    state: Annotated[_Name, Meta(description="the state that it must be in at the end")]


class Scenario(_Table, frozen=True):
    """A whole file."""

    version: Annotated[Literal[1], Meta(description="of this language")] = 1
    seed: Annotated[
        int, Meta(ge=0, le=_MOST_SEED, description="of the random stream that each rule has of its own")
    ] = 0
    text: Annotated[str, Meta(description="one sentence on the failure that it stands for")] = ""
    workload: Annotated[
        str, Meta(description="that of `pviommu faults run` which passes its places; `maps`, if it says nothing")
    ] = "maps"
    state: Annotated[_Name, Meta(description="the state that it begins in")] = "start"
    rule: Annotated[tuple[Rule, ...], Meta(max_length=FAULT_RULES_MOST, description="asked in this order")] = ()
    expect: FinalState | None = None

    @property
    def nature(self) -> Nature:
        """Adversarial if one of its rules is."""
        is_adversarial = any(rule.nature is Nature.ADVERSARIAL for rule in self.rule)
        return Nature.ADVERSARIAL if is_adversarial else Nature.CONFORMING

    def check_has_rules(self) -> None:
        """Raises :class:`.WrongValueError` for one that could only be as expected."""
        if not self.rule:
            raise WrongValueError((), "it has no [[rule]]: nothing would go wrong, and nothing could be judged")

    def check(self) -> None:
        """Raises :class:`.WrongValueError`."""
        seen: dict[str, int] = {}
        for number, rule in enumerate(self.rule):
            with documents.within("rule", number):
                if rule.id in seen:
                    raise WrongValueError(("id",), f"id {rule.id!r}: rule[{seen[rule.id]}] has it already")
                seen[rule.id] = number
                try:
                    rule.check()
                except WrongValueError as error:
                    raise WrongValueError(error.place, f"rule {rule.id}: {error}") from error
        states = self._states()
        for number, rule in enumerate(self.rule):
            if rule.when_state is not None and rule.when_state not in states:
                raise WrongValueError(("rule", number, "when_state"), self._no_state(rule.when_state, states))
        if self.expect is not None and self.expect.state not in states:
            raise WrongValueError(("expect", "state"), self._no_state(self.expect.state, states))

    def _states(self) -> set[str]:
        """Those that it can come to."""
        states, before = {self.state}, 0
        while len(states) > before:
            before = len(states)
            for rule in self.rule:
                if rule.set_state is not None and (rule.when_state is None or rule.when_state in states):
                    states.add(rule.set_state)
        return states

    @staticmethod
    def _no_state(name: str, states: set[str]) -> str:
        return f"state {name!r} is never reached: the states are {', '.join(sorted(states))}"


def parse(document: Mapping[str, Any]) -> Scenario:
    """A scenario from plain dicts and lists, as JSON has them. Raises :class:`.WrongValueError`."""
    scenario = converted(document)
    scenario.check()
    return scenario


def converted(document: Mapping[str, Any]) -> Scenario:
    """The same, of which no more is known yet than that its form is right. Raises :class:`.WrongValueError`."""
    try:
        return documents.convert(document, Scenario)
    except WrongValueError as error:
        raise WrongValueError(error.place, f"{error}{_whose(document, error.place)}") from error


def _whose(document: Any, place: toml_places.Place) -> str:
    """The id of the rule that a place of a wrong document is in, behind what is wrong."""
    if len(place) < 2 or place[0] != "rule":
        return ""
    rule = document["rule"][place[1]]
    name = rule.get("id") if isinstance(rule, dict) else None
    return f" (rule {name})" if isinstance(name, str) and re.match(_ID, name) else ""


def in_words(error: WrongValueError) -> str:
    """What is wrong, and where, in a document that has no lines."""
    place = toml_places.spelled(error.place)[:_LONGEST_PLACE]
    return str(error) if not place or place in str(error) else f"{place}: {error}"


def find(given: Path) -> Path:
    """The file that is meant: ``given`` if it is a file, else the shipped scenario of that name, else ``given``."""
    return given if given.is_file() else resources.scenarios().get(str(given), given)


def load(given: Path) -> Scenario:
    """Read a scenario, or a shipped one by its name: JSON if the file's name ends so, otherwise TOML. Raises
    :class:`ScenarioError`.
    """
    path = find(given)
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        hint = "" if given.suffix or given.parent.name else "; `pviommu faults scenarios` lists those that are shipped"
        if hint and (near := difflib.get_close_matches(given.name, resources.scenarios(), 1)):
            hint += f", as {near[0]}"
        raise ScenarioError(f"cannot read scenario {path}: {error.strerror}{hint}") from error
    if len(data) > _MOST_BYTES:
        raise ScenarioError(f"scenario {path}: it has more than {_MOST_BYTES} bytes")
    return loads(data, str(path), is_json=path.suffix == ".json")


def loads(data: bytes, name: str, *, is_json: bool = False) -> Scenario:
    """The same from the content of a file, which errors call ``name``. Raises :class:`ScenarioError`."""
    try:
        scenario = parse(_unique(data) if is_json else msgspec.toml.decode(data))
        scenario.check_has_rules()
        return scenario
    except WrongValueError as error:
        line = None if is_json else toml_places.line_of(data.decode(), error.place)
        said = in_words(error) if is_json else str(error) if line is None else f"line {line}: {error}"
        raise ScenarioError(f"scenario {name}: {said}") from error
    except RecursionError:
        raise ScenarioError(f"scenario {name}: it is nested too deeply") from None
    except (msgspec.DecodeError, ValueError) as error:  # what is no text, or a number that Python does not read
        raise ScenarioError(f"scenario {name}: {error}") from error


def _unique(data: bytes) -> Any:
    """JSON, whose parsers take the last of members that have one name."""
    document = msgspec.json.decode(data)

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise WrongValueError((), f"an object has the key {twice[:_LONGEST_PLACE]} twice")
        return found

    json.loads(data, object_pairs_hook=members)
    return document


def schema() -> dict[str, Any]:
    """The JSON Schema of a scenario file."""
    made = documents.schema(Scenario, "pviommu scenario")
    rule = made["$defs"]["Rule"]["properties"]
    rule["where"]["properties"] = _conditions()
    rule["where"]["additionalProperties"] = False
    rule["on"]["examples"] = [place.name for place in places("*")]
    errors = sorted({error for probe in PROBES.values() for error in (*probe.errors, *probe.refusals)})
    do = made["$defs"]["Do"]["properties"]
    for key in ("fail", "then"):
        do[key] = {**do[key], "examples": errors}
    return made


def _conditions() -> dict[str, Any]:
    return {
        name: {
            "description": argument.text,
            "type": "string" if argument.kind is Kind.NAME else ["integer", "string"],
            "$comment": argument.kind.value,
        }
        for name, argument in ARGUMENTS.items()
    }
