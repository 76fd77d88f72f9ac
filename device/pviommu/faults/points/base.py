"""What a call at a probe becomes where a rule is: the probe's own way of failing, waiting, lying and so on.

A point stands in for the call. A method ``do_ACTION`` says what becomes of a call that has not been made yet, at the
sides ``pre`` and ``apply``; a method ``post_ACTION`` what becomes of its result.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ..actions import WAITS, Do, duration_ns, rate
from ..holds import Hold

if TYPE_CHECKING:
    from ..catalogue import Probe
    from ..engine import ActiveRule, Faults

__all__ = ["Deferred", "Done", "Fails", "Go", "Held", "Point", "changed_bytes", "changed_number", "span"]

Args = tuple[Any, ...]
_SIDES = ("pre", "apply")
REORDER_NS = 10_000_000
"""How long a call waits for others at most, unless the rule says so."""


class Go(NamedTuple):
    """The call goes on, with these arguments."""

    args: Args
    after: Any = None
    """what there is to note"""


class Done(NamedTuple):
    """The call is not made; this is its result."""

    result: Any
    after: Any = None


class Held(NamedTuple):
    """The call waits, and then goes on."""

    hold: Hold
    after: Any = None


class Fails(NamedTuple):
    """The call ends with this exception."""

    error: Exception
    after: Any = None


Outcome = Go | Done | Held | Fails


def span(first: int, count: int) -> tuple[int, int]:
    """What ``count`` things from ``first`` on are to a condition."""
    return first, first + max(count, 1) - 1


def changed_number(do: Do, old: int, bits: int) -> int:
    """A field of so many bits as ``corrupt`` changes it."""
    new = old ^ do.xor if do.xor is not None else do.value or 0
    return new & (1 << bits) - 1


def changed_bytes(do: Do, data: bytes, place: int, size: int = 1) -> bytes:
    """``data`` with the little-endian number at ``place`` changed; as it is if that lies behind its end."""
    if place + size > len(data):
        return bytes(data)
    new = changed_number(do, int.from_bytes(data[place : place + size], "little"), 8 * size)
    return bytes(data[:place]) + new.to_bytes(size, "little") + bytes(data[place + size :])


def _spread(call: Callable[..., Any], *args: Any) -> Any:
    return call(*args[:-1], **args[-1])


class Point:
    """Stands in for one call. This one cannot wait."""

    neutral: ClassVar[Any] = None
    """the result of a call that is made later, or not at all"""
    has_keywords: ClassVar[bool] = False
    """whether the last of the arguments are those that were given by name, as a dict"""

    def __init__(self, faults: Faults, probe: Probe, call: Callable[..., Any], owner: str, form: Any) -> None:
        """``form``: what the place knows of its arguments, see each point."""
        self.faults = faults
        self.probe = probe
        self.call: Callable[..., Any] = partial(_spread, call) if self.has_keywords else call
        self.owner = owner
        self.form = form
        self._rules = faults.rules_at(probe)

    def __call__(self, *args: Any, **named: Any) -> Any:
        self.faults.holds.passed(self)
        return self.go_on(0, (*args, named) if self.has_keywords else args)

    def go_on(self, stage: int, args: Args) -> Any:
        """From this side on."""
        for number, side in enumerate(_SIDES[stage:], stage + 1):
            rules = self._rules.get(side)
            if rules is None:
                continue
            values = {"function": self.owner, **self.values(args)}
            active = self.faults.ask(rules, f"{self.probe.name}.{side}", values, partial(self.can, args, None))
            if active is None:
                continue
            outcome = self._decide(active, args)
            self.faults.note(active, f"{self.probe.name}.{side}", values, outcome.after)
            if isinstance(outcome, Fails):
                raise outcome.error
            if isinstance(outcome, Done):
                return self.after(args, outcome.result)
            if isinstance(outcome, Held):
                return self.hold_before(outcome.hold, number, args)
            args = outcome.args
        return self.after(args, self.call(*args))

    def _decide(self, active: ActiveRule, args: Args) -> Outcome:
        do = active.rule.do
        assert do is not None  # one without it decides nothing
        if waits := self._waits(active, do, args):
            return waits
        outcome: Outcome = getattr(self, f"do_{do.action}")(do, args)
        return outcome

    def _waits(self, active: ActiveRule, do: Do, args: Args) -> Go | Held | None:
        """What the actions come to that only take time; None for another one."""
        if do.action in WAITS and self.faults.holds.is_full:
            return Go(args, "not held: too many are")
        waits = self._takes_time(active, do, args)
        if isinstance(waits, Held):
            self.ends(waits.hold)
        return waits

    def ends(self, hold: Hold) -> None:
        """Say what ends a wait before its time: a reset of the function."""
        hold.function = self.owner

    def _takes_time(self, active: ActiveRule, do: Do, args: Args) -> Go | Held | None:
        holds = self.faults.holds
        if do.delay is not None:
            ns = self.faults.jittered_ns(active, do)
            if do.clock == "virtual":
                self.faults.skip(ns)
                return Go(args, {"passed_ns": ns})
            return Held(holds.delay(ns), {"held_ns": ns})
        if do.bandwidth is not None:
            units, now = self.size(args), self.faults.now_ns()
            active.free_at_ns = max(active.free_at_ns, now) + units * 1_000_000_000 // rate(do.bandwidth)
            return Held(holds.delay(active.free_at_ns - now), {"held_ns": active.free_at_ns - now})
        if do.suspend is not None:
            return Held(holds.suspend(do.suspend), {"suspended": do.suspend})
        if do.wait is not None:
            return Held(holds.wait(do.wait), {"waits_for": do.wait})
        if do.reorder is not None:
            within = duration_ns(do.within) if do.within else REORDER_NS
            return Held(holds.behind(self, do.reorder, within), {"behind": do.reorder})
        if do.hang:
            return Held(holds.hang(), "hangs")
        return None

    def after(self, args: Args, result: Any) -> Any:
        """The result is there: what the rules behind the call make of it."""
        rules = self._rules.get("post")
        if rules is None:
            return result
        place = f"{self.probe.name}.post"
        values = {"function": self.owner, **self.values(args), **self.answers(args, result)}
        active = self.faults.ask(rules, place, values, partial(self.can, args, result))
        if active is None:
            return result
        do = active.rule.do
        assert do is not None
        waits = self._waits(active, do, args)
        if isinstance(waits, Held):
            self.faults.note(active, place, values, waits.after)
            return self.hold(waits.hold, lambda: result)
        new, after = (result, waits.after) if waits else getattr(self, f"post_{do.action}")(do, args, result)
        self.faults.note(active, place, values, after)
        return new

    # -- what each point says ---------------------------------------------------------------------------------------

    def values(self, args: Args) -> dict[str, Any]:
        """What conditions are about."""
        return {}

    def answers(self, args: Args, result: Any) -> dict[str, Any]:
        """What the result adds to that."""
        return {}

    def can(self, args: Args, result: Any, do: Do) -> bool:
        """Whether this can be done to this call at all; otherwise the rule does not count it."""
        return True

    def size(self, args: Args) -> int:
        """What a bandwidth counts."""
        return 0

    def hold_before(self, hold: Hold, stage: int, args: Args) -> Any:
        """Have the call go on at this side once ``hold`` is over; the result meanwhile."""
        return self.hold(hold, partial(self.go_on, stage, args))

    def hold(self, hold: Hold, go: Callable[[], Any]) -> Any:
        """Have ``go`` called once ``hold`` is over; the result meanwhile."""
        raise NotImplementedError(f"{self.probe.name} cannot wait")

    def repeated(self, args: Args, times: int) -> Any:
        """Make the call several times; the last result."""
        for _ in range(times):
            self.call(*args)
        return self.call(*args)

    def do_duplicate(self, do: Do, args: Args) -> Outcome:
        times = do.duplicate or 1
        return Done(self.repeated(args, times), {"made": times + 1})

    def do_drop(self, _do: Do, _args: Args) -> Outcome:
        return Done(self.neutral, "dropped")


class Deferred(Point):
    """Stands in for a call whose result nobody waits for: held, it is made later."""

    def hold(self, hold: Hold, go: Callable[[], Any]) -> Any:
        hold.then(go)
        return self.neutral
