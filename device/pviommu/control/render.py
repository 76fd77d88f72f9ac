"""A command's result for people: lines of names and values, and a table for each list."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..history.explanation import in_words
from .description import Command, Field, Form

__all__ = ["rendered"]


def rendered(command: Command, result: Mapping[str, Any]) -> str:
    """All of a result, ending in a newline unless it is empty."""
    if len(result) == 1 and isinstance(text := next(iter(result.values())), str) and "\n" in text:
        return text
    fields = [field for field in command.result if field.name in result and field.name != "next"]
    blocks = ["\n".join(_lines(result, [field for field in fields if not _is_table(field)]))]
    blocks += [_table(field, result[field.name]) for field in fields if _is_table(field)]
    text = "\n\n".join(block for block in blocks if block)
    return f"{text}\n" if text else ""


def _is_table(field: Field) -> bool:
    return field.form is Form.LIST and bool(field.fields)


def _lines(result: Mapping[str, Any], fields: Sequence[Field]) -> Iterator[str]:
    width = max((len(field.name) for field in fields), default=0)
    for field in fields:
        value = result[field.name]
        if field.form is Form.OBJECT and isinstance(value, dict) and not field.fields and len(value) > 4:
            yield f"{field.name}"
            inner = max(map(len, value))
            yield from (f"  {name:<{inner}}  {_plain(each)}" for name, each in value.items())
        else:
            yield f"{field.name:<{width}}  {_shown(field, value)}"


def _table(field: Field, rows: Sequence[Mapping[str, Any]]) -> str:
    columns = [each for each in field.fields if any(each.name in row for row in rows)]
    if not rows:
        return f"{field.name}: none"
    cells = [[each.name for each in columns]]
    cells += [[_shown(each, row.get(each.name)) for each in columns] for row in rows]
    widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
    return "\n".join((f"{field.name}:", *(f"  {line}" for line in lines)))


def _shown(field: Field, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if field.form is Form.HEX and isinstance(value, int):
        return f"{value:#x}"
    if field.form is Form.TIME and isinstance(value, int):
        return in_words(value)
    if isinstance(value, dict):
        if "text" in value:  # an explanation within a table
            return str(value["text"])
        by_name = {each.name: each for each in field.fields}
        return (
            ", ".join(
                f"{name} {_shown(by_name[name], each) if name in by_name else _plain(each)}"
                for name, each in value.items()
                if not isinstance(each, list)
            )
            or "-"
        )
    return _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items()) or "-"
    return value if isinstance(value, str) else json.dumps(value)
