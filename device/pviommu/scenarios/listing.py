"""``pviommu faults list``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ..exit_status import ExitStatus
from ..faults.actions import ACTIONS
from ..faults.catalogue import ANYWHERE, ARGUMENTS, Nature, Place, Probe, marked, places

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``pviommu faults list``."""
    parser.description = (
        "List the places where rules can be: what conditions may ask for there, which errors a rule may answer, and "
        "what it may do. Marked with ! is what no correct IOMMU does (adversarial). Exit status: 0, 2 no such place."
    )
    parser.add_argument("pattern", nargs="?", default="*", help="only places, or probes, of this name, with wildcards")
    parser.add_argument("--json", action="store_true", help="for programs")


def main(args: argparse.Namespace) -> int:
    """Run ``pviommu faults list``; returns its exit status."""
    found: dict[str, list[Place]] = {}
    for place in list(places(args.pattern)) or places(f"{args.pattern}.*"):
        found.setdefault(place.probe.name, []).append(place)
    if not found:
        print(f"pviommu: no place is {args.pattern!r}", file=sys.stderr)
        return ExitStatus.USAGE
    if args.json:
        print(json.dumps(_document(found), indent=2))
    else:
        print("\n".join(_lines(found)))
    return 0


def _lines(found: dict[str, list[Place]]) -> list[str]:
    lines = []
    for sides in found.values():
        probe = sides[0].probe
        lines += [f"{probe.name}: {probe.text}", f"    where    {', '.join(probe.arguments)}"]
        if probe.errors or probe.refusals:
            lines.append(f"    errors   {', '.join((*probe.errors, *(f'{error}!' for error in probe.refusals)))}")
        if probe.fields:
            lines.append(f"    fields   {', '.join(probe.fields)}")
        lines += [f"    {'.' + place.side:<8} {_actions(place)}" for place in sides]
    lines += ["", f"everywhere: {', '.join(marked(name, nature) for name, nature in ANYWHERE.items())}", ""]
    lines += [f"  {name:<10} {action.text}{_with(action.parameters)}" for name, action in ACTIONS.items()]
    return lines


def _with(parameters: tuple[str, ...]) -> str:
    return f" (with {', '.join(parameters)})" if parameters else ""


def _actions(place: Place) -> str:
    own = [marked(name, nature) for name, nature in place.actions.items() if name not in ANYWHERE]
    return ", ".join(own) or "-"


def _document(found: dict[str, list[Place]]) -> dict[str, Any]:
    return {
        "probes": [_probe(sides[0].probe, sides) for sides in found.values()],
        "arguments": {name: {"kind": each.kind.value, "text": each.text} for name, each in ARGUMENTS.items()},
        "actions": {name: {"text": each.text, "parameters": each.parameters} for name, each in ACTIONS.items()},
    }


def _probe(probe: Probe, sides: list[Place]) -> dict[str, Any]:
    errors = dict.fromkeys(probe.errors, Nature.CONFORMING.value)
    return {
        "name": probe.name,
        "text": probe.text,
        "arguments": probe.arguments,
        "errors": errors | dict.fromkeys(probe.refusals, Nature.ADVERSARIAL.value),
        "fields": probe.fields,
        "places": {place.name: {name: nature.value for name, nature in place.actions.items()} for place in sides},
    }
