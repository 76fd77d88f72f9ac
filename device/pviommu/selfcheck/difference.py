"""The difference that a self-check finds."""

from __future__ import annotations

__all__ = ["Difference", "require"]


class Difference(Exception):  # noqa: N818 - a finding, not a failure of the program
    """A path has done something else than the model. ``path`` is its name, ``what`` was compared."""

    def __init__(self, path: str, what: str, expected: object, found: object) -> None:
        super().__init__(f"{path}: {what}: expected {_shown(expected)}, found {_shown(found)}")
        self.path = path
        self.what = what


def _shown(value: object) -> str:
    text = value.hex() if isinstance(value, bytes) else repr(value)
    return text if len(text) <= 400 else f"{text[:400]}... ({len(text)} characters)"


def require(path: str, what: str, expected: object, found: object) -> None:
    """Raise :class:`Difference` unless both are equal."""
    if expected != found:
        raise Difference(path, what, expected, found)
