"""Places in the device where rules may look on or step in: operations, translations, registers, interrupts and others.

Which places are watched is known when the device is built, so that a place that nobody watches is as if it were none:
what is called there is the callable itself. When other rules are loaded later, :meth:`Probes.rebind` follows them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, cast

__all__ = ["Act", "Interposer", "ProbeCall", "Probes", "Rule"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


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


class Act(NamedTuple):
    """What an interposer decided about a call."""

    time_ns: int
    """when, by the clock of the inputs"""
    rule: str
    """name of its rule"""
    action: str
    """as ``fail`` or ``drop``"""
    place: str
    """``NAME.pre``, ``NAME.apply`` or ``NAME.post``"""


class Interposer(Protocol):
    """Somebody who decides what becomes of calls: see :class:`pviommu.faults.engine.Faults`."""

    def watches(self, name: str) -> bool:
        """Whether it wants to decide at this probe."""

    def interpose(self, name: str, call: Callable[..., Any], owner: str, form: Any) -> Callable[..., Any]:
        """What to call instead of ``call``."""

    def interpose_pieces(
        self, name: str, begin: Callable[..., Any], go_on: Callable[..., Any] | None, owner: str, form: Any
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """What to call instead of ``begin`` and ``go_on``."""

    def attach(self, victim: Any) -> None:
        """The PV-IOMMU is this; its probes are bound."""

    def capability(self) -> Any:
        """The record by which the guest finds what the rules did; None if there is nothing to find."""

    def show(self, shared: Any) -> None:
        """The shared BAR of the PV-IOMMU is this, with zeros where the guest looks."""

    def reset(self, function: str) -> None:
        """A function was reset: calls that wait there are made no more."""

    def client_gone(self, client: object) -> None:
        """The connection ``client``, the form of calls for a client, is closed: none of its calls waits any more."""

    def acts(self, context: int, dfn: int) -> list[Act]:
        """What it decided lately about operations on a page of a context, the last first."""

    def act_on_request(self, iova: int) -> Act | None:
        """What it decided about the last DMA request itself, if anything, and if the address is in that."""


class Probes:
    """The rules of one machine. Each probe NAME has two sides, ``NAME.pre`` and ``NAME.post``."""

    def __init__(self, rules: Sequence[Rule] = (), interposer: Interposer | None = None) -> None:
        self._rules = rules
        self.interposer = interposer
        self._bound: list[Callable[[], None]] = []
        self._is_off = False

    def is_watched(self, name: str) -> bool:
        """Whether any rule looks on at one of the sides of ``name``, or decides there."""
        if self._is_off:
            return False
        return bool(self._told(f"{name}.pre") or self._told(f"{name}.post") or self._decides(name))

    def _told(self, side: str) -> list[Callable[[ProbeCall], None]]:
        return [rule.told for rule in self._rules if fnmatchcase(side, rule.pattern)]

    def _decides(self, name: str) -> bool:
        return self.interposer is not None and self.interposer.watches(name)

    def probe(self, name: str, call: Callable[_P, _R], owner: str = "", form: Any = None) -> Callable[_P, _R]:
        """What to call instead of ``call``: itself, unless ``name`` is watched. What ``call`` raises has no post.

        ``form``: what one who decides has to know of the arguments. Who looks on sees the call as it was asked for,
        and what came of it in the end.
        """
        if self.interposer is not None and self.interposer.watches(name):
            call = cast(Callable[_P, _R], self.interposer.interpose(name, call, owner, form))
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
        begin: Callable[..., _R],
        go_on: Callable[..., _R] | None,
        is_over: Callable[[_R], bool],
        owner: str = "",
        form: Any = None,
    ) -> tuple[Callable[..., _R], Callable[..., _R] | None]:
        """As :meth:`probe`, of what ``begin`` does, and ``go_on`` after it with the same first argument until the
        result ``is_over``: one call, whose post comes with that result.
        """
        if self.interposer is not None and self.interposer.watches(name):
            begin, go_on = self.interposer.interpose_pieces(name, begin, go_on, owner, form)
        first, last = self._told(f"{name}.pre"), self._told(f"{name}.post")
        if not first and not last:
            return begin, go_on

        def tell(arguments: tuple[Any, ...], result: _R) -> _R:
            for told in last if is_over(result) else ():
                told(ProbeCall(f"{name}.post", owner, arguments, result))
            return result

        @wraps(begin)
        def probed(*arguments: Any) -> _R:
            for told in first:
                told(ProbeCall(f"{name}.pre", owner, arguments))
            return tell(arguments, begin(*arguments))

        if go_on is None:
            return probed, None
        piece = go_on
        return probed, lambda *how_far: tell(how_far[:1], piece(*how_far))

    def bind(self, holder: object, method: str, name: str, owner: str, form: Any = None) -> None:
        """Make a method of ``holder``, which is looked up there at each call, a probe. Unless ``name`` is watched,
        nothing is done.
        """
        plain: Callable[..., Any] | None = None  # of one that is bound: to look at ``holder`` makes it slow in 3.11

        def bind() -> None:
            nonlocal plain
            if plain is not None:
                setattr(holder, method, plain)
                plain = None
            if self.is_watched(name):
                plain = getattr(holder, method)
                setattr(holder, method, self.probe(name, plain, owner, form))

        self.bound(bind)

    def bound(self, bind: Callable[[], None]) -> None:
        """Call ``bind``, which asks for probes and puts them where they are called, now and whenever rules change."""
        bind()
        self._bound.append(bind)

    def rebind(self) -> None:
        """The rules are other ones."""
        for bind in self._bound:
            bind()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Nothing is watched meanwhile. What is put around methods in this time stays there when rules change, and is
        called by what the probes let pass.
        """
        self._is_off = True
        self.rebind()
        try:
            yield
        finally:
            self._is_off = False
            self.rebind()
