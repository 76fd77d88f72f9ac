"""The commands about fault rules. As those of :class:`.answers.Answers`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ..documents import WrongValueError
from ..faults.scenario import Scenario, converted, in_words
from ..faults.verdict import Verdict
from .description import CommandError

__all__ = ["RuleCommands"]


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
            rules = converted(scenario)
            rules.check_has_rules()
            self._replace(rules)
        except WrongValueError as error:
            raise CommandError(f"scenario: {in_words(error)}") from None
        return {"loaded": len(rules.rule)}

    def do_rules_unload(self) -> dict[str, Any]:
        verdict = self._faults.verdict().as_dict()
        self._replace(Scenario())
        for handler in logging.getLogger().handlers:
            handler.flush()  # whoever asked looks there for what the rules have led to
        return verdict

    def do_resume(self, *, tag: str) -> dict[str, Any]:
        tags = self._faults.holds.tags()
        if tag not in tags:
            raise CommandError(f"nothing is suspended with tag {tag[:40]!r}; there are {', '.join(tags) or 'none'}")
        return {"resumed": self._faults.holds.resume(tag)}

    def _replace(self, scenario: Scenario) -> None:
        self._faults.load(scenario)
        self._rebind()
