"""Places in the device that rules can watch: an operation, a translation, a register, an interrupt, a reset.

The rules are known when the device is built, so a place that no rule watches costs nothing: the callable itself is
called there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from fnmatch import fnmatchcase
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

__all__ = ["ProbeCall", "Probes", "Rule"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_A = TypeVar("_A")
_B = TypeVar("_B")


class ProbeCall(NamedTuple):
    """A call at a probe: before it, or after it."""

    probe: str
    """``NAME.pre`` or ``NAME.post``"""
    owner: str
    """the function concerned, by its name"""
    arguments: tuple[Any, ...]
    result: Any = None
    """with ``post``: the result of the call; for a call in steps, after the last one"""


class Rule(NamedTuple):
    """A callback for calls at probes whose name matches."""

    pattern: str
    """shell pattern of probes: ``op.unmap_pages.pre``, ``op.*.post``"""
    told: Callable[[ProbeCall], None]
    """must not raise; called where it happens"""


class Probes:
    """The rules of one machine. Each probe NAME has two sides, ``NAME.pre`` and ``NAME.post``."""

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self._rules = rules

    def is_watched(self, name: str) -> bool:
        """Whether any rule watches one of the sides of ``name``."""
        return bool(self._told(f"{name}.pre") or self._told(f"{name}.post"))

    def _told(self, side: str) -> list[Callable[[ProbeCall], None]]:
        return [rule.told for rule in self._rules if fnmatchcase(side, rule.pattern)]

    def probe(self, name: str, call: Callable[_P, _R], owner: str = "") -> Callable[_P, _R]:
        """What to call instead of ``call``: itself, unless ``name`` is watched. What ``call`` raises has no post."""
        before, after = f"{name}.pre", f"{name}.post"
        first, last = self._told(before), self._told(after)
        if not first and not last:
            return call

        def tell(result: Any, arguments: tuple[Any, ...]) -> None:
            for told in last:
                told(ProbeCall(after, owner, arguments, result))

        def in_steps(steps: Generator[Any, Any, Any], arguments: tuple[Any, ...]) -> Generator[Any, Any, Any]:
            result = yield from steps
            tell(result, arguments)
            return result

        @wraps(call)
        def probed(*arguments: _P.args, **named: _P.kwargs) -> Any:
            for told in first:
                told(ProbeCall(before, owner, arguments))
            result = call(*arguments, **named)
            if last and isinstance(result, Generator):
                return in_steps(result, arguments)
            tell(result, arguments)
            return result

        return probed

    def probe_pieces(
        self,
        name: str,
        begin: Callable[[_A], _R],
        go_on: Callable[[_A, _B], _R] | None,
        is_over: Callable[[_R], bool],
        owner: str = "",
    ) -> tuple[Callable[[_A], _R], Callable[[_A, _B], _R] | None]:
        """As :meth:`probe`, of what ``begin`` does, and ``go_on`` after it with the same first argument until the
        result ``is_over``: one call, whose post comes with that result.
        """
        first, last = self._told(f"{name}.pre"), self._told(f"{name}.post")
        if not first and not last:
            return begin, go_on

        def tell(argument: _A, result: _R) -> _R:
            for told in last if is_over(result) else ():
                told(ProbeCall(f"{name}.post", owner, (argument,), result))
            return result

        @wraps(begin)
        def probed(argument: _A) -> _R:
            for told in first:
                told(ProbeCall(f"{name}.pre", owner, (argument,)))
            return tell(argument, begin(argument))

        if go_on is None:
            return probed, None
        piece = go_on
        return probed, lambda argument, how_far: tell(argument, piece(argument, how_far))

    def bind(self, holder: object, method: str, name: str, owner: str) -> None:
        """Make a method of ``holder``, which is looked up there at each call, a probe. Unless ``name`` is watched,
        nothing is done.
        """
        if self.is_watched(name):
            setattr(holder, method, self.probe(name, getattr(holder, method), owner))
