"""Options of an endpoint: keys of its ``[[endpoint]]`` in a topology, beside those that all endpoints have."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

__all__ = ["Options", "text_like"]


def text_like(pattern: re.Pattern[str], rule: str, description: str) -> msgspec.Meta:
    """What a schema says of a string that must match ``pattern``; ``rule`` says that in words."""
    return msgspec.Meta(pattern=pattern.pattern, description=description, extra_json_schema={"$comment": rule})


class Options(msgspec.Struct, forbid_unknown_fields=True, rename="kebab", frozen=True):
    """No options. A subclass declares each as a field, whose type may be an ``Annotated[int, msgspec.Meta(...)]`` with
    the least and the greatest value, and a description for the schema.
    """

    def check(self, name: str, others: Mapping[str, object]) -> None:
        """Raise ValueError for what the types alone do not exclude. ``name`` is the endpoint's, ``others`` are the
        options of the other endpoints by name, None for those that have none.
        """
