"""What all that a test can be about has in common: commands, rules with their verdict, and a report of its state."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from pviommu_abi.slots import Errno

from ..control.client import ConnectionLostError
from ..control.commands import COMMANDS
from ..control.description import CommandError
from ..control.render import rendered
from ..engine import PAGE_SHIFT
from ..faults.scenario import Scenario
from ..faults.verdict import Verdict
from ..history.explanation import in_words
from ..scenarios.guest import PlayedGuest, guest_in_words

__all__ = ["HISTORY", "Subject"]

HISTORY = 4096
"""Operations that are kept for explanations."""
_AREAS, _CONTEXTS, _EVENTS, _FAULTS, _OPERATIONS = 8, 8, 10, 3, 12
"""How many of each a report shows, of events, faults and operations the last ones."""
_BY_NAME = {command.name: command for command in COMMANDS}
_OFTEN = ("map", "unmap")


class Subject(ABC):
    """A PV-IOMMU that a test is about, wherever it is."""

    def __init__(self, name: str) -> None:
        self.name = name
        """in messages"""
        self.guests: list[PlayedGuest] = []
        """those that were played on it"""
        self.begin(None)

    @abstractmethod
    def call(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Execute a command of the control socket (docs/ctl.md); its result. Raises :class:`.CommandError`, and
        :class:`.ConnectionLostError` if there is no server any more.
        """

    def log(self) -> list[str]:
        """The end of what its processes wrote."""
        return []

    def events(self) -> list[str]:
        """The log of events of the rules, a JSON object a line, as far as it is kept: the last ones."""
        return []

    def begin(self, scenario: str | None) -> None:
        """A test begins, with rules of ``scenario``; None: without any."""
        self.scenario = scenario
        """what its rules were read from; None: it has none"""
        self._replaced: list[str] = []
        """what was wrong with rules that others have replaced"""
        self._may_harm = False
        """whether one of those fired that no correct IOMMU follows"""

    # -- what tests ask ---------------------------------------------------------------------------------------------

    def explain(self, iova: int, *, stream: int | None = None, context: int | None = None) -> dict[str, Any]:
        """Why DMA to ``iova``, in bytes, is refused, or was: see the command ``explain``. Give either a stream or a
        context.
        """
        given = {"stream": stream, "context": context}
        return self.call("explain", iova=iova, **{name: value for name, value in given.items() if value is not None})

    def load(self, scenario: Scenario | Mapping[str, Any], name: str = "loaded by the test") -> None:
        """Replace the rules; the test fails at its end unless all did what was expected, those that are replaced until
        now. An empty one takes them away. ``name``: of the scenario. Raises :class:`.CommandError` for a wrong one.
        """
        document = msgspec.to_builtins(scenario)
        problems, may_harm = self._judged()
        if document:
            self.call("rules-load", scenario=document)
        else:
            self.call("rules-unload")
        self.scenario = name
        self._replaced += problems
        self._may_harm |= may_harm

    def verdict(self) -> Verdict:
        """What came of the rules so far."""
        return msgspec.convert(self.call("rules"), Verdict)

    # -- what the end of a test asks --------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """What fails a test that did not fail by itself: rules that did not do what was expected, and harm that came
        to a played guest though no rule fired that no correct IOMMU follows.
        """
        try:
            problems, may_harm = self._judged()
        except (CommandError, ConnectionLostError) as error:
            return [f"scenario {self.scenario}: its verdict cannot be had: {error}"]
        found = [*self._replaced, *problems]
        if not (may_harm or self._may_harm):
            found += [f"harm: {harm}" for guest in self.guests for harm in guest.harm]
        return found

    def _judged(self) -> tuple[list[str], bool]:
        """What is wrong with the rules that are loaded, and whether one has fired that no correct IOMMU follows."""
        if self.scenario is None:
            return [], False
        verdict = self.verdict()
        return [f"scenario {self.scenario}: {problem}" for problem in verdict.failures()], verdict.is_adversarial

    def report(self) -> str:
        """Its state, for whoever looks for the cause of a failure."""
        parts = (self._rules, self._faults, self._contexts, self._endpoints, self._operations, self._guests)
        blocks = []
        for part in parts:
            try:
                lines = list(part())
            except ConnectionLostError as error:
                blocks.append(f"it does not answer: {error}")
                break
            except CommandError as error:
                lines = [f"{part.__name__[1:]}: {error}"]
            if lines:
                blocks.append("\n".join(lines))
        return "\n\n".join(blocks)

    def _rules(self) -> Iterator[str]:
        if self.scenario is None:
            return
        yield f"scenario {self.scenario}:"
        verdict = self.verdict()
        yield from (f"  {line}" for line in verdict.lines())
        events = self.events()
        if events:
            yield f"last events of {verdict.events}:"
            yield from (f"  {_event(line)}" for line in events[-_EVENTS:])

    def _faults(self) -> Iterator[str]:
        found = self.call("faults", limit=1)
        count = found["count"]
        if not count:
            yield "refused DMA: none"
            return
        found = self.call("faults", first=max(1, count - _FAULTS + 1))
        yield f"refused DMA, the last of {count}:"
        for fault in found["faults"]:
            yield (
                f"  #{fault['number']}: {fault['access']} of {fault['length']} bytes at {fault['iova']:#x}, "
                f"stream {fault['stream']}, context {fault['context']}: {fault['reason']}"
            )
            said = self.explain(fault["iova"], stream=fault["stream"])
            yield f"    why    {said['text']}"
            yield f"    now    {_now(said['now'])}"
            yield from (f"    {side}  {_mapping(said[side])}" for side in ("below", "above"))
            for act in said["rules"]:
                yield f"    rule   {act['rule']}: {act['action']} at {act['on']}, {in_words(act['ago_ns'])} ago"

    def _contexts(self) -> Iterator[str]:
        contexts = self.call("contexts", limit=_CONTEXTS)
        yield from self._shown("contexts", contexts)
        for context in contexts["contexts"]:
            if not context["pages"]:
                continue
            dump = self.call("dump", context=context["context"], limit=_AREAS)
            more = "" if dump["next"] is None else f", from dfn {dump['next']:#x} on more"
            yield f"context {context['context']} maps:"
            for area in dump["areas"]:
                yield (
                    f"  dfn {area['dfn']:#x}, {area['pages']} pages -> gfn {area['gfn']:#x} for {area['access']}"
                    f" (iova {area['dfn'] << PAGE_SHIFT:#x})"
                )
            if more:
                yield f"  ...{more}"

    def _endpoints(self) -> Iterator[str]:
        yield from self._shown("endpoints", self.call("endpoints"))

    def _operations(self) -> Iterator[str]:
        count = self.call("status")["operations"]
        if not count:
            yield "operations: none"
            return
        found = self.call("operations", first=max(0, count - _OPERATIONS))["operations"]
        yield f"operations, the last of {count}:"
        yield from (f"  {_operation(each)}" for each in found)

    def _guests(self) -> Iterator[str]:
        for guest in self.guests:
            yield from guest_in_words(guest.answers, guest.harm)

    @staticmethod
    def _shown(command: str, result: Mapping[str, Any]) -> list[str]:
        return rendered(_BY_NAME[command], result).splitlines()


def _event(line: str) -> str:
    event = json.loads(line)
    after = "" if event["after"] is None else f" -> {_short(event['after'])}"
    return (
        f"#{event['seq']} {in_words(event['time_ns'])}: {event['rule']}: {event['action']} at {event['on']}, "
        f"{_short(event['before'])}{after}"
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _now(now: Mapping[str, Any]) -> str:
    if "gfn" not in now:
        return str(now["state"])
    return f"{now['state']}, gfn {now['gfn']:#x} for {now['access']}"


def _mapping(mapping: Mapping[str, Any] | None) -> str:
    if mapping is None:
        return "nothing is mapped"
    return (
        f"iova {mapping['iova']:#x}, {mapping['length']:#x} bytes -> gfn {mapping['gfn']:#x} for {mapping['access']}, "
        f"{mapping['distance']} bytes away"
    )


def _operation(operation: Mapping[str, Any]) -> str:
    kind, result = operation["operation"], operation["result"]
    words = [f"#{operation['number']} {in_words(operation['ago_ns'])} ago: {kind}, context {operation['context']}"]
    if kind in _OFTEN:
        words.append(f"dfn {operation['dfn']:#x}, {operation['done']} of {operation['pages']} pages")
    if operation["gfn"] is not None:
        words.append(f"gfn {operation['gfn']:#x} for {operation['access']}")
    if operation["stream"] is not None:
        words.append(f"stream {operation['stream']}")
    if operation["stop"] is not None:
        words.append(f"stopped: {operation['stop']}")
    if operation["ring"] is not None:
        words.append(f"slot {operation['slot']} of ring {operation['ring']}")
    if result:
        known = -result in set(Errno)
        words.append(f"result {result}" + (f" ({Errno(-result).name})" if known else ""))
    return ", ".join(words)
