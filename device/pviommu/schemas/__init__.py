"""JSON Schemas of what users write and programs read, as files beside this one: ``NAME.schema.json``."""

from __future__ import annotations

from pathlib import Path

__all__ = ["paths"]


def paths() -> dict[str, Path]:
    """The schemas by name."""
    found = Path(__file__).parent.glob("*.schema.json")
    return {path.name.removesuffix(".schema.json"): path for path in sorted(found)}
