"""Places in TOML documents: a reader's path to a value, what is there, and on which line."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["Place", "line_of", "place_of", "shown", "spelled"]

Place = tuple[str | int, ...]
"""Keys, and from 0 the numbers of elements of arrays."""

_LONGEST = 60
_LONGEST_INTEGER = 128
"""Bits: Python refuses to write very long ones in decimal."""
_HEADER = r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]"
_KEY = r"""\s*([\w"'.\s-]+?)\s*="""


def place_of(error: str) -> tuple[str, Place]:
    """A message of msgspec without its place, and that place."""
    text, _, path = error.partition(" - at `$")
    steps = re.findall(r"\.([^.\[\]`]+)|\[(\d+)\]", path)
    return text, tuple(int(number) if number else key for key, number in steps)


def spelled(place: Place) -> str:
    """A place in words, for instance ``iommu.contexts`` or ``endpoint[0].name``."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).lstrip(".")


def shown(document: Any, place: Place) -> str:
    """The value at ``place`` on one short line."""
    for step in place:
        document = document[step]
    if isinstance(document, bool):
        return str(document).lower()
    if document is None:
        return "null"
    if isinstance(document, int):
        if document.bit_length() > _LONGEST_INTEGER:
            return f"{document:#x}"[:_LONGEST] + "..."
        return f"{document} ({document:#x})" if document >= 0x1000 else str(document)
    if isinstance(document, dict | list):
        return "a table" if isinstance(document, dict) else f"an array of {len(document)}"
    text = repr(document) if isinstance(document, str) else str(document)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def line_of(text: str, place: Place) -> int | None:
    """The line, from 1, of the key or table at ``place``, or of the nearest one around it that has a line."""
    if '"""' in text or "'''" in text:
        return None  # what looks like a key may be within a string
    lines = _lines(text)
    for length in range(len(place), 0, -1):
        outer = place[:length]
        for known in (outer, (*outer, 0)):  # an array begins with its first element
            if known in lines:
                return lines[known]
    return None


def _lines(text: str) -> dict[Place, int]:
    """The first line of each key and table."""
    lines: dict[Place, int] = {}
    counts: dict[Place, int] = {}
    table: Place = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if match := re.match(_HEADER, line):
            table = _table(_keys(match[2]), match[1] == "[[", counts)
            lines.setdefault(table, number)
        elif match := re.match(_KEY, line):
            lines.setdefault((*table, *_keys(match[1])), number)
    return lines


def _keys(dotted: str) -> list[str]:
    return [key.strip().strip("\"'") for key in dotted.split(".")]


def _table(keys: list[str], is_element: bool, counts: dict[Place, int]) -> Place:
    """The place of a table with this header; of arrays on the way to it, the last element is meant."""
    place: Place = ()
    for key in keys[:-1]:
        place = (*place, key)
        if place in counts:
            place = (*place, counts[place] - 1)
    place = (*place, keys[-1])
    if not is_element:
        return place
    counts[place] = counts.get(place, 0) + 1
    return (*place, counts[place] - 1)
