"""The tables of ``docs/faults*.md``, made from the declarations."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from .. import resources
from ..faults.actions import ACTIONS
from ..faults.catalogue import ANYWHERE, ARGUMENTS, PROBES, Place, marked
from ..faults.scenario import Expect, FinalState, Rule, Scenario, load
from ..faults.schedule import Schedule

__all__ = ["TABLES", "renewed"]

_TABLE = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end -->", re.DOTALL)

_GUEST = re.compile(r"^# Guest: (.+)$", re.MULTILINE)
"""In a shipped scenario: what came of it when it was played against a real guest, and when."""


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _keys() -> str:
    rows = []
    for prefix, kind in (("", Scenario), ("expect.", FinalState), ("rule.", Rule), ("rule.schedule.", Schedule),
                         ("rule.expect.", Expect)):  # fmt: skip
        made = msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"]
        for name, node in made.items():
            text = _description(node)
            if text:
                rows.append((f"`{prefix}{name}`", text))
    return _table(("key", "meaning"), rows)


def _description(node: dict[str, object]) -> str:
    if "description" in node:
        return str(node["description"])
    choices = node.get("anyOf")
    found = [_description(each) for each in choices] if isinstance(choices, list) else []
    return next((text for text in found if text), "")


def _probes() -> str:
    rows = [
        (
            f"`{probe.name}`",
            probe.text,
            ", ".join(probe.arguments),
            ", ".join((*probe.errors, *(f"{error}!" for error in probe.refusals))),
            "; ".join(f"`{place.side}` {_own(place)}" for place in probe.places if _own(place)),
        )
        for probe in PROBES.values()
    ]
    return _table(("probe", "passed when", "`where`", "errors", "possible"), rows)


def _own(place: Place) -> str:
    own = {name: nature for name, nature in place.actions.items() if name not in ANYWHERE}
    return " ".join(marked(name, nature) for name, nature in own.items())


def _actions() -> str:
    rows = []
    for name, action in ACTIONS.items():
        where = marked("everywhere", ANYWHERE[name]) if name in ANYWHERE else "see the list of places"
        rows.append((f"`{name}`", action.text, ", ".join(f"`{key}`" for key in action.parameters), where))
    return _table(("action", "what it does", "with", "where"), rows)


def _conditions() -> str:
    rows = [(f"`{name}`", argument.text, argument.kind.value) for name, argument in ARGUMENTS.items()]
    return _table(("condition", "about", "written as"), rows)


def _scenarios() -> str:
    rows = []
    for name, path in resources.scenarios().items():
        scenario, guest = load(path), _GUEST.search(path.read_text(encoding="utf-8"))
        rows.append(
            (f"`{name}`", scenario.text, scenario.nature.value, f"`{scenario.workload}`", guest[1] if guest else "")
        )
    return _table(("scenario", "stands for", "class", "workload", "against a guest"), rows)


TABLES = {"scenarios": _scenarios, "keys": _keys, "conditions": _conditions, "actions": _actions, "probes": _probes}
"""By the names that the page has for them."""


def renewed(page: str) -> str:
    """The page with its tables as they are now."""
    return _TABLE.sub(lambda match: f"<!-- table: {match[1]} -->\n\n{TABLES[match[1]]()}\n\n<!-- end -->", page)
