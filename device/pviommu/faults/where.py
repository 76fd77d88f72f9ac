"""Conditions on what a probe is told: numbers, ranges, names."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

from ..documents import WrongValueError
from ..toml_places import shown
from .catalogue import ARGUMENTS, Kind, Probe

__all__ = ["Span", "Values", "Where", "number_range"]

Span = tuple[int, int]
"""First and last, inclusive."""
Values = Mapping[str, Any]
"""What a probe was told: numbers, :data:`Span`, names, by names of :data:`.catalogue.ARGUMENTS`."""

_NUMBER = r"0[xX][0-9a-fA-F]+|0|[1-9][0-9]*"
_RANGE = re.compile(rf"({_NUMBER})?\s*\.\.\s*({_NUMBER})?")
_LONGEST = 64
"""Characters of a number or a range: of longer ones neither reading nor telling may cost anything."""
_LONGEST_NAME = 256
_SBDF = re.compile(r"^(?:([0-9a-f]{4}):)?([0-9a-f]{2}:[01][0-9a-f]\.[0-7])$")
_MOST = (1 << 64) - 1
_RULE = 'must be a number or a range as "0x1000..0x1fff", "5.." or "..5", both ends included'


def number_range(value: Any) -> Span:
    """What a number or a range means. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        first = last = value
    elif not isinstance(value, str) or len(value) > _LONGEST:
        raise ValueError(f"{shown(value, ())}: {_RULE}")
    elif re.fullmatch(_NUMBER, text := value.strip()):
        first = last = int(text, 0)
    elif (match := _RANGE.fullmatch(text)) and (match[1] or match[2]):
        first, last = int(match[1] or "0", 0), int(match[2], 0) if match[2] else _MOST
    else:
        raise ValueError(f"{shown(value, ())}: {_RULE}")
    if not 0 <= first <= last <= _MOST:
        raise ValueError(f"{shown(value, ())}: {_RULE}, at most {_MOST:#x} and not backwards")
    return first, last


def _test(name: str, value: Any) -> Callable[[Any], bool]:
    kind = ARGUMENTS[name].kind
    if kind is Kind.NAME:
        if not isinstance(value, str) or not value:
            raise ValueError(f"{shown(value, ())}: must be {kind.value}")
        if len(value) > _LONGEST_NAME:
            raise ValueError(f"{shown(value, ())}: must have at most {_LONGEST_NAME} characters")
        pattern = value
        if name == "device" and (match := _SBDF.match(value)):
            pattern = f"{match[1] or '0000'}:{match[2]}"
        return lambda seen: fnmatchcase(seen, pattern)
    first, last = number_range(value)
    if kind is Kind.SPAN:
        return lambda seen: bool(seen[0] <= last and first <= seen[1])
    return lambda seen: bool(first <= seen <= last)


class Where:
    """Conditions, all of which must hold. What a probe does not tell meets none."""

    def __init__(self, conditions: Mapping[str, Any], probes: Collection[Probe], key: str = "where") -> None:
        """Raises :class:`.WrongValueError`, places within the table, for what none of ``probes`` tells, and for values
        that are none.
        """
        self._tests: list[tuple[str, Callable[[Any], bool]]] = []
        for name, value in conditions.items():
            if not any(name in probe.arguments for probe in probes):
                told = {argument: None for probe in probes for argument in probe.arguments}
                raise WrongValueError(
                    (name,), f"{key} has no key {name[:_LONGEST]} here, but {', '.join(told) or 'none'}"
                )
            try:
                self._tests.append((name, _test(name, value)))
            except ValueError as error:
                raise WrongValueError((name,), f"{key}.{name} = {error}") from None

    def holds(self, values: Values) -> bool:
        """Whether they hold for what a probe was told."""
        return all(values.get(name) is not None and test(values[name]) for name, test in self._tests)

    def broken(self, values: Values) -> list[str]:
        """The names of those that do not hold."""
        return [name for name, test in self._tests if values.get(name) is None or not test(values[name])]
