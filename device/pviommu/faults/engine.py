"""A scenario that is loaded: its rules meet calls at the probes, and what came of that is counted, noted and judged."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import msgspec

from pviommu_abi.shared import FaultRule, FaultRuleFlags, FaultRules, name_hash

from ..engine import PAGE_SHIFT
from ..inputs import Inputs
from ..interfaces.pv.bindings import format_sbdf
from ..probes import Act
from .actions import WAITS, Do, duration_ns
from .catalogue import ANYWHERE, PROBES, Nature, Probe
from .events import EventLog
from .holds import Holds, Scheduler
from .page import CAPABILITY, RulePage, Shared
from .points import POINTS
from .points.operations import Answering
from .scenario import Rule, Scenario
from .schedule import Turns, stream_of
from .verdict import Earlier, Verdict, judged, problems_of
from .where import Values, Where

__all__ = ["ActiveRule", "Faults", "Victim"]


_MOST_DECISIONS = 1024
_MOST_ACTS = 4
_MOST_BROKEN = 32


class Victim(Protocol):
    """The PV-IOMMU that a scenario is about: see :class:`pviommu.interfaces.pv.function.PvIommu`."""

    @property
    def name(self) -> str: ...
    @property
    def bindings(self) -> Any: ...
    @property
    def contexts(self) -> Any: ...
    def interrupt(self, vector: int) -> None: ...
    def on_reset(self) -> None: ...


class ActiveRule:
    """A rule, and how far it is."""

    def __init__(self, number: int, rule: Rule, seed: int) -> None:
        probes = [place.probe for place in rule.places()]
        self.number = number
        self.rule = rule
        self._hash = name_hash(rule.id)
        self.random = stream_of(seed, rule.id)
        self.turns = Turns(rule.schedule, self.random)
        self.where = Where(rule.where, probes)
        asserted = rule.do.assert_ if rule.do else None
        self.asserted = None if asserted is None else Where(asserted, probes, "assert")
        self.at = rule.natures()
        """the places where it is, and what it is there"""
        self.nature = Nature.ADVERSARIAL if Nature.ADVERSARIAL in self.at.values() else Nature.CONFORMING
        self.free_at_ns = 0
        """when what a bandwidth allows is used up"""
        self.is_gone = False
        """whether others were loaded: a call that it held goes on past it"""

    def record(self) -> FaultRule:
        """For the guest."""
        flags = FaultRuleFlags.ADVERSARIAL if self.nature is Nature.ADVERSARIAL else 0
        return FaultRule(self._hash, self.turns.passed, self.turns.fired, flags)


def _is_about(values: Mapping[str, Any], context: int, dfn: int) -> bool:
    """Whether a call was about a page of a context."""
    if values.get("ctx", context) != context:
        return False
    if "dfn" in values:
        first, last = values["dfn"]
    elif "iova" in values:
        first, last = (each >> PAGE_SHIFT for each in values["iova"])
    else:
        return False
    return bool(first <= dfn <= last)


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Faults:
    """The rules of one machine. An :class:`pviommu.probes.Interposer`.

    Give it to :class:`pviommu.probes.Probes`, build the machine with these, and :meth:`attach` it; then :meth:`serve`
    it by the loop, if there is one.
    """

    def __init__(self, scenario: Scenario, inputs: Inputs, sink: Callable[[str], None] | None = None) -> None:
        """``sink`` gets each line of the log of events. Raises :class:`pviommu.documents.WrongValueError`."""
        self.log = EventLog(sink)
        self.holds = Holds(inputs.now_ns)
        self.crash: Callable[[], None] = _crash
        self.hang_up: Callable[[str], None] = lambda _function: None
        """ends the session of the client of a function"""
        self._inputs = inputs
        self._page = RulePage()
        self._shared: Shared | None = None
        self._victim: Victim | None = None
        self._skipped_ns = 0
        """by delays in virtual time"""
        self._began_ns = 0
        self._broken: list[str] = []
        """assertions that did not hold, the first ones"""
        self._decided: deque[tuple[Act, Mapping[str, Any]]] = deque(maxlen=_MOST_DECISIONS)
        """the last decisions, each with what the call was about; those about DMA are not kept"""
        self._on_request: tuple[Act, Mapping[str, Any]] | None = None
        """the one about the last DMA request"""
        self.rules: list[ActiveRule] = []
        self._earlier = Earlier()
        self.load(scenario)

    # -- what it is about -------------------------------------------------------------------------------------------

    def load(self, scenario: Scenario) -> None:
        """Other rules from now on, all counts 0; those before are judged as they are, and what they held goes on,
        unless it hangs. Whoever built the machine binds its probes anew (:meth:`pviommu.probes.Probes.rebind`). Raises
        :class:`pviommu.documents.WrongValueError`, and then nothing has changed.
        """
        scenario.check()
        if self.rules:
            self._earlier.add(self.verdict())
        for active in self.rules:
            active.is_gone = True
        self.scenario = scenario
        self.state = scenario.state
        self.rules = [ActiveRule(number, rule, scenario.seed) for number, rule in enumerate(scenario.rule)]
        self._watched = {place.probe.name for rule in scenario.rule for place in rule.places()}
        self._assertions, self._broken = 0, []
        self._began_ns = self._inputs.now_ns()
        self._show()
        self.holds.release()

    def attach(self, victim: Victim) -> None:
        """The rules are about this PV-IOMMU."""
        self._victim = victim

    def serve(self, scheduler: Scheduler) -> None:
        """``scheduler``, the loop, calls back what is delayed."""
        self.holds.serve(scheduler)

    @property
    def victim(self) -> Victim:
        if self._victim is None:
            raise RuntimeError("the scenario is attached to no machine")
        return self._victim

    def reset(self, function: str) -> None:
        """A function was reset: what was held for it is gone; with the PV-IOMMU also what decisions were about."""
        self.holds.forget(function)
        if function == self.victim.name:
            self._decided.clear()

    def client_gone(self, client: object) -> None:
        """A client is gone, and what it waited for."""
        self.holds.forget_client(client)

    @property
    def has_begun(self) -> bool:
        """Whether there are rules, or were."""
        return bool(self.rules or self._earlier.scenarios)

    def finish(self) -> Verdict:
        """The run is over: nothing is written to shared memory any more. What came of it, of rules that went before
        the end as well.
        """
        self._page.hide()
        self._shared = None
        last = self.verdict()
        if not self._earlier.scenarios:
            return last
        return msgspec.structs.replace(last, ok=last.ok and not self._earlier.wrong, earlier=self._earlier)

    # -- an interposer ----------------------------------------------------------------------------------------------

    def watches(self, name: str) -> bool:
        """Whether any rule is at this probe."""
        return name in self._watched

    def interpose(self, name: str, call: Callable[..., Any], owner: str, form: Any) -> Callable[..., Any]:
        """What to call instead of ``call``."""
        probe = PROBES[name]
        return POINTS[name](self, probe, call, owner, form)

    def interpose_pieces(
        self, name: str, begin: Callable[..., Any], go_on: Callable[..., Any] | None, owner: str, form: Any
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """What to call instead of ``begin`` and ``go_on``."""
        point = POINTS[name](self, PROBES[name], begin, owner, form)
        if not isinstance(point, Answering):
            raise TypeError(f"{name} is not done in pieces")
        return point.pieces(go_on)

    def capability(self) -> FaultRules | None:
        """What the guest is told of its page; None while there are no rules."""
        return CAPABILITY if self.rules else None

    def show(self, shared: Shared) -> None:
        """The shared BAR is this, and zeros where the page is."""
        self._shared = shared
        self._show()

    def _show(self) -> None:
        if self._shared is not None and self.rules:
            records = [rule.record() for rule in self.rules]
            self._page.show(self._shared, self.scenario.seed, self.state, records)

    def acts(self, context: int, dfn: int) -> list[Act]:
        """What the rules decided lately about operations on a page of a context, the last first."""
        found = (act for act, values in reversed(self._decided) if _is_about(values, context, dfn))
        return list(islice(found, _MOST_ACTS))

    def act_on_request(self, iova: int) -> Act | None:
        """What the rules decided about the last DMA request itself, if anything, and if the address is in that."""
        if self._on_request is None:
            return None
        act, values = self._on_request
        first, last = values["iova"]
        return act if first <= iova <= last else None

    # -- what points ask --------------------------------------------------------------------------------------------

    def rules_at(self, probe: Probe) -> dict[str, list[ActiveRule]]:
        """By side, in the order of the scenario."""
        found = {place.side: [rule for rule in self.rules if place.name in rule.at] for place in probe.places}
        return {side: rules for side, rules in found.items() if rules}

    def now_ns(self) -> int:
        """Since the scenario was loaded, in virtual time."""
        return self._inputs.now_ns() - self._began_ns + self._skipped_ns

    def skip(self, ns: int) -> None:
        """So much virtual time passes at once."""
        self._skipped_ns += ns

    def ask(
        self, rules: Sequence[ActiveRule], place: str, values: Values, is_possible: Callable[[Do], bool]
    ) -> ActiveRule | None:
        """Let the rules of a place meet a call. The one that decides what becomes of it: the first that fires with more
        to do than to look on. Those behind it are not asked.
        """
        if place.startswith("dma."):
            self._on_request = None
        for active in rules:
            rule, turns = active.rule, active.turns
            if active.is_gone:
                continue
            if rule.when_state not in (None, self.state) or not active.where.holds(values):
                continue
            if rule.do is not None and not is_possible(rule.do):
                continue
            fires = turns.next()
            self._page.count(active.number, turns.passed, turns.fired)
            if not fires:
                continue
            if rule.set_state is not None:
                self.state = rule.set_state
                self._page.enter(self.state)
            if rule.do is None:
                self.note(active, place, values, None)
            elif rule.do.action in ANYWHERE:
                self._look_on(active, rule.do, place, values)
            else:
                self._remember(active.rule.id, rule.do.action, place, values)
                return active
        return None

    def _remember(self, rule: str, action: str, place: str, values: Values) -> None:
        """A rule decides."""
        decided = Act(self._inputs.now_ns(), rule, action, place), values
        if not place.startswith("dma."):
            self._decided.append(decided)
        elif action not in WAITS:
            self._on_request = decided

    def note(self, active: ActiveRule, place: str, before: Mapping[str, Any], after: Any) -> int:
        """Write an event."""
        do = active.rule.do
        return self.log.write(
            time_ns=self.now_ns(),
            rule=active.rule.id,
            **{"class": active.at[place].value},
            on=place,
            action=do.action if do else "count",
            state=self.state,
            before=before,
            after=after,
        )

    def _look_on(self, active: ActiveRule, do: Do, place: str, values: Values) -> None:
        """What leaves the call alone."""
        after: Any = None
        if do.log is not None:
            after = do.log
        elif active.asserted is not None:
            broken = active.asserted.broken(values)
            after = "holds" if not broken else f"does not hold: {', '.join(broken)}"
        elif do.resume is not None:
            after = self.holds.resume(do.resume)
        number = self.note(active, place, values, after)
        if active.asserted is not None and after != "holds":
            self._assertions += 1
            if len(self._broken) < _MOST_BROKEN:
                self._broken.append(f"rule {active.rule.id}: event {number}: the assertion {after}")
        if do.interrupt is not None:
            vector = do.interrupt
            self.holds.soon(lambda: self.victim.interrupt(vector))
        elif do.reset:
            self.holds.soon(self.victim.on_reset)
        elif do.disconnect:
            self.holds.soon(lambda: self.hang_up(str(values.get("function", ""))))
        elif do.crash:
            self.crash()

    def context_of(self, stream: int) -> int:
        """The context that a stream is attached to."""
        return int(self.victim.contexts.of(stream))

    def has_reservation(self, context: int) -> bool:
        """Whether the guest has had pool pages reserved for a context, so that maps there may not lack any."""
        contexts = self.victim.contexts
        return context in contexts and bool(contexts.engine.has_reservation(contexts.domain(context)))

    def device_of(self, stream: int) -> str:
        """The PCI address that the guest bound a stream to."""
        return format_sbdf(self.victim.bindings.sbdf(stream))

    def jittered_ns(self, active: ActiveRule, do: Do) -> int:
        """How long a delay takes, this time."""
        ns = duration_ns(do.delay or "0ns")
        return ns + (active.random.randrange(duration_ns(do.jitter) + 1) if do.jitter else 0)

    # -- the end ----------------------------------------------------------------------------------------------------

    def verdict(self) -> Verdict:
        """Of the rules that are loaded, as it is now."""
        results = tuple(
            judged(active.rule, active.nature, active.turns.passed, active.turns.fired) for active in self.rules
        )
        wanted = self.scenario.expect.state if self.scenario.expect else None
        more = self._assertions - len(self._broken)
        broken = [*self._broken, f"and {more} more assertions that did not hold"] if more else self._broken
        problems = problems_of(broken, self.state, wanted, *self.holds.never_over())
        ok = not problems and not any(result.problems for result in results)
        return Verdict(ok, self.scenario.seed, self.state, self.log.count, results, problems)
