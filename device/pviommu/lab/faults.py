"""Refused DMA of a run: what the server found out of each request, and which of them no test expected."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..control.client import Client, ConnectionLostError
from ..control.description import CommandError

__all__ = ["HISTORY", "MOST_SHOWN", "MOST_TOLD", "Spans", "Unexpected", "ask", "shown", "told"]

HISTORY = 65536
"""Operations that the server of a run keeps: 5.5 MiB."""
MOST_TOLD = 64
"""Of one run, in its results; the first ones explain most."""
MOST_SHOWN = 8
"""In the summary."""
_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Unexpected:
    """Requests that were refused while a test ran that failed, or that did not end. Each has the test's name, if it
    ended, and what the server says of a fault.
    """

    faults: list[dict[str, Any]] = field(default_factory=list)
    left_out: int = 0
    """beyond :data:`MOST_TOLD`"""


class Spans:
    """When each of the outermost tests ended. What happened before, and after the one before it, was during it."""

    def __init__(self) -> None:
        self._ends: list[tuple[int, str, bool]] = []
        self.on_failed: Callable[[], None] = lambda: None
        """called when one has failed: what the server has of it, it has not for ever"""

    def ended(self, name: str, *, failed: bool, time_ns: int | None = None) -> None:
        """A test ended this moment, or at a time of ``time.monotonic_ns``."""
        self._ends.append((time.monotonic_ns() if time_ns is None else time_ns, name, failed))
        if failed:
            self.on_failed()

    def unexpected(self, faults: Iterable[dict[str, Any]]) -> Unexpected:
        """Those that no test expected. A test that passed is believed to have wanted what was refused."""
        found = []
        for fault in faults:
            name, failed = self._during(fault["time_ns"])
            if failed:
                found.append({"test": name, **fault})
        return Unexpected(found[:MOST_TOLD], max(0, len(found) - MOST_TOLD))

    def _during(self, time_ns: int) -> tuple[str | None, bool]:
        for end, name, failed in self._ends:
            if time_ns <= end:
                return name, failed
        return None, True  # of a test that never ended, or of nobody


def ask(control: Path) -> dict[int, dict[str, Any]]:
    """The faults that the server at this control socket has kept, by number; none if it does not answer any more."""
    found: dict[int, dict[str, Any]] = {}
    try:
        with Client(control, _SECONDS) as client:
            first: int | None = 1
            while first is not None:
                said = client.call("faults", {"first": first})
                found |= {fault["number"]: fault for fault in said["faults"]}
                first = said["next"]
    except (ConnectionLostError, CommandError):  # it was killed, or ended by itself, which is told elsewhere
        pass
    return found


def told(unexpected: Unexpected) -> str:
    """All of it, for people: ``faults.txt``."""
    blocks = []
    for fault in unexpected.faults:
        lines = [_line(fault)]
        said = fault.get("explanation") or {}
        for side in ("below", "above"):
            if mapping := said.get(side):
                end = mapping["iova"] + mapping["length"]
                lines.append(f"    {side}: {mapping['iova']:#x} to {end:#x}, {mapping['access']}")
        for each in said.get("operations", ()):
            by = "" if each["ring"] is None else f", slot {each['slot']} of ring {each['ring']}"
            lines.append(
                f"    {each['ago_ns'] / 1000:.1f} us before: {each['operation']} of {each['pages']} pages at "
                f"{each['dfn'] << 12:#x}, {each['done']} done, result {each['result']} (operation {each['number']}{by})"
            )
        blocks.append("\n".join(lines))
    if unexpected.left_out:
        blocks.append(f"and {unexpected.left_out} more")
    return "\n\n".join(blocks) + "\n"


def shown(unexpected: Unexpected) -> list[str]:
    """The first ones as lines of a summary."""
    lines = [f"fault   {_line(fault)}" for fault in unexpected.faults[:MOST_SHOWN]]
    more = len(unexpected.faults) + unexpected.left_out - len(lines)
    return [*lines, *([f"fault   and {more} more, in faults.txt"] if more else [])]


def _line(fault: dict[str, Any]) -> str:
    said = fault.get("explanation") or {"text": "not explained, too many at a time"}
    during = f"during {fault['test']!r}" if fault["test"] else "during no test that ended"
    what = f"{fault['access']} at {fault['iova']:#x} by stream {fault['stream']} in context {fault['context']}"
    return f"{fault['number']}, {during}: {what}: {fault['reason']}: {said['text']}"
