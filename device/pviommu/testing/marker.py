"""What ``@pytest.mark.scenario(...)`` may be given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from .. import resources
from ..faults.scenario import Scenario, ScenarioError, load, loads

__all__ = ["RULE", "MarkerError", "scenario_of"]

RULE = (
    "give one argument: the name of a .toml or .json file, beside the test or below the root folder; a name of "
    "`pviommu faults scenarios`; rules as TOML text, which has more than one line; or a dict, as docs/faults.md has it "
    "in TOML"
)


class MarkerError(Exception):
    """A marker that names no scenario, or a wrong one; the text names the value and the rule."""


def scenario_of(arguments: Sequence[Any], named: Mapping[str, Any], folders: Sequence[Path]) -> tuple[Scenario, str]:
    """The scenario of a marker and what to call it. A file is looked for in ``folders``. Raises MarkerError."""
    if len(arguments) != 1 or named:
        given = [*map(repr, arguments), *(f"{name}={value!r}" for name, value in named.items())]
        raise MarkerError(f"scenario({', '.join(given)}): {RULE}")
    source = arguments[0]
    try:
        if isinstance(source, Scenario):
            return source, "of the marker"
        if isinstance(source, Path):
            return _load(source, folders)
        if isinstance(source, str):
            return (loads(source.encode(), _INLINE), _INLINE) if "\n" in source else _load(Path(source), folders)
        if isinstance(source, dict):
            return loads(_json(source), _INLINE, is_json=True), _INLINE
    except ScenarioError as error:
        raise MarkerError(str(error)) from None
    raise MarkerError(f"scenario({source!r}): {type(source).__name__} is no scenario: {RULE}")


_INLINE = "of the marker"


def _json(source: dict[Any, Any]) -> bytes:
    try:
        return msgspec.json.encode(source)
    except (TypeError, ValueError, RecursionError) as error:
        raise MarkerError(f"scenario({source!r}): {error}: {RULE}") from None


def _load(name: Path, folders: Sequence[Path]) -> tuple[Scenario, str]:
    if shipped := resources.scenarios().get(str(name)):
        return load(shipped), str(name)
    if name.suffix not in (".toml", ".json"):
        raise MarkerError(f"scenario({str(name)!r}): {RULE}")
    places = [folder / name for folder in folders]
    for path in places:
        if path.is_file():
            return load(path), str(name)
    looked = ", ".join(dict.fromkeys(map(str, places)))
    raise MarkerError(f"scenario({str(name)!r}): there is no such file: looked for {looked}")
