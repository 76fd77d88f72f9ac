"""The commands about fault rules. As those of :class:`.answers.Answers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ..documents import WrongValueError
from ..faults.scenario import Scenario, parse
from ..faults.verdict import Verdict
from ..toml_places import spelled
from .description import CommandError

__all__ = ["RuleCommands"]

_LONGEST_PLACE = 128
"""Characters: a key of a message may have any number of them."""


class _Holds(Protocol):
    def resume(self, tag: str) -> int: ...
    def tags(self) -> list[str]: ...


class _Faults(Protocol):
    """See :class:`pviommu.faults.engine.Faults`."""

    @property
    def holds(self) -> _Holds: ...
    def load(self, scenario: Scenario) -> None: ...
    def verdict(self) -> Verdict: ...


class RuleCommands:
    """Of one server."""

    def __init__(self, faults: _Faults, rebind: Callable[[], None]) -> None:
        """``rebind`` binds the probes of the machine anew, after other rules were loaded."""
        self._faults = faults
        self._rebind = rebind

    def do_rules(self) -> dict[str, Any]:
        return self._faults.verdict().as_dict() | {"suspended": self._faults.holds.tags()}

    def do_rules_load(self, *, scenario: Mapping[str, Any]) -> dict[str, Any]:
        try:
            parsed = parse(scenario)
        except WrongValueError as error:
            place = spelled(error.place)[:_LONGEST_PLACE]
            where = "" if not place or place in str(error) else f"{place}: "
            raise CommandError(f"scenario: {where}{error}") from None
        self._replace(parsed)
        return {"loaded": len(parsed.rule)}

    def do_rules_unload(self) -> dict[str, Any]:
        verdict = self._faults.verdict().as_dict()
        self._replace(Scenario())
        return verdict

    def do_resume(self, *, tag: str) -> dict[str, Any]:
        tags = self._faults.holds.tags()
        if tag not in tags:
            raise CommandError(f"nothing is suspended with tag {tag[:40]!r}; there are {', '.join(tags) or 'none'}")
        return {"resumed": self._faults.holds.resume(tag)}

    def _replace(self, scenario: Scenario) -> None:
        self._faults.load(scenario)
        self._rebind()
