"""Documents whose form :mod:`msgspec` types declare: their schema, and error messages that users can act on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from .toml_places import Place, place_of, shown, spelled

__all__ = ["WrongValueError", "convert", "rule", "schema", "within"]

_Document = TypeVar("_Document")


class WrongValueError(ValueError):
    """A value that breaks a rule; ``place`` is where it is."""

    def __init__(self, place: Place, text: str) -> None:
        super().__init__(text)
        self.place = place


def convert(document: Any, kind: type[_Document], whole: Any = None, place: Place = ()) -> _Document:
    """``document``, which is at ``place`` of ``whole`` or all of it, as a ``kind``. Raises :class:`WrongValueError`
    naming key, value and rule.
    """
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise _wrong(whole if place else document, schema(kind, ""), str(error), place) from error


@contextmanager
def within(*outer: str | int) -> Iterator[None]:
    """What breaks a rule inside is at its place within ``outer``."""
    try:
        yield
    except WrongValueError as error:
        raise WrongValueError((*outer, *error.place), str(error)) from error.__cause__


def schema(kind: type, title: str) -> dict[str, Any]:
    """The JSON Schema of ``kind``."""
    made = msgspec.json.schema(kind)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **made}


def _wrong(document: Any, whole: dict[str, Any], said: str, outer: Place) -> WrongValueError:
    text, inner = place_of(said)
    node = _node(whole, inner)
    place = (*outer, *inner)
    if place and node is not None and ("properties" not in node or text.startswith("Expected `object")):
        given = document
        for step in place:
            given = given[step]
        hint = f", each headed [[{place[-1]}]]" if node.get("type") == "array" and isinstance(given, dict) else ""
        return WrongValueError(place, f"{spelled(place)} = {shown(given, ())}: must be {rule(node)}{hint}")
    where = f"{spelled(place)}: " if place else ""
    if match := re.search("unknown field `(.*)`", text):
        keys = ", ".join(node["properties"]) if node else ""
        return WrongValueError((*place, match[1]), f"{where}unknown key {match[1][:64]}; known are {keys}")
    if match := re.search("missing required field `(.*)`", text):
        return WrongValueError(place, f"{where}the key {match[1]} is missing")
    return WrongValueError(place, f"{where}{text}")


def _node(whole: dict[str, Any], place: Place) -> dict[str, Any] | None:
    """The schema of a place."""
    node: dict[str, Any] | None = whole
    for step in place:
        node = _followed(whole, node or {})
        node = node.get("items") if isinstance(step, int) else node.get("properties", {}).get(step)
    return None if node is None else _followed(whole, node)


def _followed(whole: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """The definition that ``node`` refers to, or the choice in it that is not null, or ``node``."""
    for choice in node.get("anyOf", ()):
        if choice.get("type") != "null":
            return {**node, **_followed(whole, choice)}
    return whole["$defs"][node["$ref"].rsplit("/", 1)[-1]] if "$ref" in node else node


def rule(node: dict[str, Any]) -> str:
    """The rule of a node of a schema, as text."""
    if "$comment" in node:
        return str(node["$comment"])
    if "enum" in node:
        return " or ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in node["enum"])
    if node["type"] == "boolean":
        return "true or false"
    if node["type"] == "array":
        return f"at most {node['maxItems']} tables" if "maxItems" in node else "tables"
    if node["type"] == "object":
        keys = f", with the keys {', '.join(node['properties'])}" if "properties" in node else ""
        return f"a table, as {{ key = value }}{keys}"
    if node["type"] == "string" and "maxLength" in node:
        return f"a text of {node.get('minLength', 0)} to {node['maxLength']} characters"
    if node["type"] != "integer":
        return f"a {node['type']}"
    if "minimum" not in node:
        return "a whole number"
    least = node["minimum"]
    most = node["maximum"] if "maximum" in node else node["exclusiveMaximum"] - 1
    if "multipleOf" in node:
        size = node["multipleOf"]
        return f"a multiple of {size}, {-(-least // size) * size:#x} to {most // size * size:#x}"
    return f"a whole number, {least} to {most}"
