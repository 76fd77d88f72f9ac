"""A scenario as the text of a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from .scenario import Scenario

__all__ = ["written"]


def written(scenario: Scenario) -> str:
    """As TOML; reading it gives the same scenario."""
    document = {"version": scenario.version, **msgspec.to_builtins(scenario)}
    rules = document.pop("rule", [])
    expect = document.pop("expect", None)
    lines = _lines(document)
    if expect:
        lines += ["", "[expect]", *_lines(expect)]
    for rule in rules:
        lines += ["", "[[rule]]", *_lines(rule)]
    return "\n".join(lines) + "\n"


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in table.items()]


def _value(value: Any) -> str:
    """As JSON has it; but TOML wants the character 127 escaped, too."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(_lines(value))} }}" if value else "{}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
