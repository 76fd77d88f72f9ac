"""Why DMA to an address is refused, or was: from what is mapped now and from the history of operations."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import Any

from ..engine import PAGE_SHIFT, Area, Engine
from ..engine.results import Access
from ..probes import Act
from .records import NOBODY, STOPS, History, Kind, Record

__all__ = ["NOT_YET", "Asked", "Cause", "Explainer", "Explanation", "access_text", "in_words"]

_MOST_OPERATIONS = 16
_MOST_LEAVES = 256
"""Of a mapping beside the address: what lies farther away is left out of it."""
_MOST_CONTEXTS = 64
"""Other contexts that are looked into, those with the lowest numbers."""
_NEAR = 1 << 16
"""Bytes: a refused address that is not farther behind a mapping is past its end."""


class Cause(Enum):
    """Why. The value goes into JSON."""

    NONE = "not-refused"
    NEVER_MAPPED = "never-mapped"
    UNKNOWN = "not-mapped"
    """what was there before the history begins is not known"""
    UNMAPPED = "unmapped"
    """use after unmap"""
    GONE = "context-gone"
    """its context was freed, or the device reset, since it was mapped"""
    LATE = "mapped-later"
    """the map came after the DMA"""
    MAP_FAILED = "map-failed"
    PERMISSION = "wrong-permission"
    WRONG_CONTEXT = "wrong-context"
    PAST_THE_END = "past-the-end"
    REFUSED = "refused-by-rule"
    """a rule refused it, whatever is mapped"""
    STALE = "stale-by-rule"
    """a rule had the device use, or keep, another translation"""
    CHANGED = "changed-by-rule"
    """a rule changed what an operation on the page did"""
    GUEST_TABLES = "not-in-guest-tables"
    """the guest owns the tables of the context, and they do not map it"""
    BLOCKED = "blocked"
    OUT_OF_APERTURE = "out-of-aperture"
    RESERVED = "reserved"
    NOT_RAM = "not-ram"
    ABORTED = "aborted"


NOT_YET = (Cause.NEVER_MAPPED, Cause.UNKNOWN)
"""Causes that a map which comes later puts in another light."""
_AT_ONCE = {
    "OUT_OF_APERTURE": (Cause.OUT_OF_APERTURE, "the address is beyond what any context can map"),
    "RESERVED": (Cause.RESERVED, "the address is in a reserved region, where no context translates"),
    "NOT_RAM": (Cause.NOT_RAM, "it is mapped, to what is neither guest RAM nor a BAR of this machine any more"),
    "ABORTED": (Cause.ABORTED, "it is mapped to a BAR, which does not allow this access"),
}
"""Refusals that need no history, by the name of their reason."""


@dataclass(frozen=True)
class Asked:
    """What is to be explained: a refused request, or just an address."""

    domain: int
    iova: int
    reason: str = ""
    """of a refusal, its name; empty: nothing was refused"""
    access: Access | None = None
    stream: int | None = None
    start: int | None = None
    """first byte of the span that was asked for, if that is known"""
    end: int | None = None
    """first byte behind it"""
    by_rule: Act | None = None
    """what a rule did to the request itself"""


@dataclass
class Explanation:
    """What was found out, ready to be shown. Addresses and lengths are in bytes, frames and counts in 4 KiB pages."""

    cause: Cause
    text: str
    """one sentence"""
    now: dict[str, Any]
    """what was at the address when it was asked: ``state``, and of a mapping ``gfn``, ``access``"""
    below: dict[str, Any] | None
    """the nearest mapping that ends at the address or before it"""
    above: dict[str, Any] | None
    """the nearest one behind it"""
    contexts: list[int]
    """others that map the address"""
    operations: list[dict[str, Any]] = field(default_factory=list)
    """on this page, the last one first"""
    history: dict[str, Any] = field(default_factory=dict)
    """how far back they reach"""
    rules: list[dict[str, Any]] = field(default_factory=list)
    """what fault rules did about this page lately, the last one first"""

    def report(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return vars(self) | {"cause": self.cause.value}


@dataclass
class _Found:
    """What the history has on one page."""

    covering: Record | None = None
    """the last one that changed the page"""
    failed: Record | None = None
    """the last map that was to cover it and stopped before it"""
    ended: Record | None = None
    """what emptied the domain last: a reset, its end or its beginning"""
    earlier: Record | None = None
    """the last one before that which changed the page"""
    lost: Record | None = None
    """what emptied the domain after it"""
    blocked: Record | None = None
    """what blocked the stream last"""
    elsewhere: dict[int, Record] = field(default_factory=dict)
    """by domain: the last one that changed the page there"""
    operations: list[Record] = field(default_factory=list)


class Explainer:
    """Explains for one engine. ``history``: None where none is kept."""

    def __init__(
        self,
        engine: Engine,
        history: History | None,
        now_ns: Callable[[], int],
        context: Callable[[int], int] = lambda domain: domain,
        acts: Callable[[int, int], list[Act]] = lambda _context, _dfn: [],
    ) -> None:
        """``context``: what whoever asks calls a domain of the engine. ``acts``: what rules did about a page of a
        context, the last first.
        """
        self._engine = engine
        self._now_ns = now_ns
        self._context = context
        self._acts = acts
        self.history = history

    def begin(self, asked: Asked) -> Generator[None, None, Explanation]:
        """Look at what is there now, at once; then steps, each bounded, which return the explanation."""
        now = self._now_ns()
        dfn = asked.iova >> PAGE_SHIFT
        until = self.history.count if self.history else 0
        explanation = Explanation(
            Cause.NONE,
            "",
            self._state(asked.domain, dfn),
            *self._neighbours(asked.domain, asked.iova),
            self._elsewhere(asked.domain, dfn),
        )
        acts = [*([asked.by_rule] if asked.by_rule else []), *self._acts(self._context(asked.domain), dfn)]
        return self._steps(asked, explanation, acts, now, until)

    # -- what is there ----------------------------------------------------------------------------------------------

    def _state(self, domain: int, dfn: int) -> dict[str, Any]:
        engine = self._engine
        if any(first <= dfn <= last for first, last in engine.direct(domain)):
            return {"state": "direct", "gfn": dfn, "access": "READ|WRITE"}
        if any(region.first <= dfn <= region.last for region in engine.config.reserved):
            return {"state": "reserved"}
        found = engine.lookup(domain, dfn)
        tables = engine.guest_tables(domain)
        more = {} if tables is None else {"entries": [{"gpa": gpa, "entry": entry} for gpa, entry in tables.trace(dfn)]}
        if found is None:
            return {"state": "not mapped", **more}
        return {"state": "mapped", "gfn": found[0], "access": access_text(int(found[1])), **more}

    def _neighbours(self, domain: int, iova: int) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """The mappings before and behind the page of an address. Nobody looks for those of the guest's own tables."""
        if self._engine.has_guest_tables(domain):
            return None, None
        dfn = iova >> PAGE_SHIFT
        page = self._last_page_below(domain, dfn)
        below = None if page is None else self._area_up_to(domain, page)
        above = None
        for piece in islice(self._engine.pieces(domain, dfn + 1), _MOST_LEAVES):
            if above is not None and not _goes_on(above, piece):
                break
            above = _joined(above, piece)
        return _mapping(below, iova), _mapping(above, iova)

    def _last_page_below(self, domain: int, dfn: int) -> int | None:
        """The last mapped page before ``dfn``. The pieces from a page on begin before ``dfn`` up to that page."""

        def has_below(position: int) -> bool:
            piece = next(self._engine.pieces(domain, position), None)
            return piece is not None and piece.dfn < dfn

        low, high, distance = dfn, dfn, 1
        while low and not has_below(low := max(0, dfn - distance)):
            high, distance = low, distance * 8
        if low == high:  # down to 0
            return None
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (middle, high) if has_below(middle) else (low, middle)
        return low

    def _area_up_to(self, domain: int, page: int) -> Area:
        """What is mapped up to ``page`` by the map call that mapped it, as far back as a few leaves tell."""
        found, width = next(self._engine.pieces(domain, page)), 8
        while True:
            low, area = max(0, page - width), None
            for piece in islice(self._engine.pieces(domain, low), _MOST_LEAVES):
                if piece.dfn > page:
                    break
                area = _joined(area, piece)
            if area is None or area.dfn + area.nr <= page:
                break
            found = area
            if area.dfn > low or not low:
                break
            width *= 8
        return found._replace(nr=page + 1 - found.dfn)

    def _elsewhere(self, domain: int, dfn: int) -> list[int]:
        others = [number for number in self._engine.domains()[:_MOST_CONTEXTS] if number != domain]
        return [self._context(number) for number in others if self._engine.lookup(number, dfn)]

    # -- what was there ---------------------------------------------------------------------------------------------

    def _steps(
        self, asked: Asked, explanation: Explanation, acts: list[Act], now_ns: int, until: int
    ) -> Generator[None, None, Explanation]:
        dfn = asked.iova >> PAGE_SHIFT
        found = _Found()
        if self.history:
            explanation.history = {"size": self.history.size, "first": self.history.oldest, "operations": until}
            for records in self.history.on_page(dfn, until):
                for record in records:
                    _look_at(found, record, asked, dfn)
                yield
            explanation.operations = [self.operation(record, now_ns) for record in found.operations]
        explanation.cause, explanation.text = self._why(asked, explanation, found, now_ns, dfn)
        began_ns = found.ended.time_ns if found.ended else 0  # of another context of that number they say nothing
        explanation.rules = [_act(act, now_ns) for act in acts if act.time_ns >= began_ns]
        _blame_rules(asked, explanation)
        if asked.reason and self.history and explanation.cause in NOT_YET:
            later = yield from self.mapped_since(until, asked.domain, dfn)
            if later is not None:
                self.came_late(explanation, later, now_ns)
        return explanation

    def mapped_since(self, number: int, domain: int, dfn: int) -> Generator[None, None, Record | None]:
        """Steps, which return the map of a page that came at operation ``number`` or later, if any did."""
        found = None
        for records in self.history.on_page(dfn, least=number) if self.history else ():
            for record in records:
                if record.kind == Kind.MAP and record.domain == domain and record.covers(dfn):
                    found = record
            yield
        return found

    def came_late(self, explanation: Explanation, record: Record, refused_ns: int) -> None:
        """It was refused because ``record``, its map, came only then."""
        explanation.cause = Cause.LATE
        wait = in_words(max(0, record.time_ns - refused_ns))
        explanation.text = f"its map came {wait} after this DMA: {self._named(record)}"

    def _why(self, asked: Asked, explanation: Explanation, found: _Found, now_ns: int, dfn: int) -> tuple[Cause, str]:
        if not asked.reason:
            now = _now_in_words(explanation.now)
            is_there = explanation.now["state"] in ("mapped", "direct")
            return Cause.NONE, now if is_there else f"{now}; no DMA to it was refused lately"
        if asked.reason in _AT_ONCE:
            return _AT_ONCE[asked.reason]
        if asked.reason == "BLOCKED":
            since = f"since {self._named(found.blocked)}" if found.blocked else "by what attaches it to nothing"
            return Cause.BLOCKED, f"stream {asked.stream} is blocked, {since}"
        context = self._context(asked.domain)
        if asked.reason == "PERMISSION":
            allowed = explanation.now.get("access", "another access")
            by = f", by {self._named(found.covering)}" if found.covering else ""
            return Cause.PERMISSION, f"context {context} maps it for {allowed} only{by}"
        return self._why_not_mapped(asked, explanation, found, now_ns, dfn)

    def _why_not_mapped(
        self, asked: Asked, explanation: Explanation, found: _Found, now_ns: int, dfn: int
    ) -> tuple[Cause, str]:
        context = self._context(asked.domain)
        if "entries" in explanation.now:
            return Cause.GUEST_TABLES, _of_guest_tables(context, explanation.now)
        last = found.covering
        if last is not None and last.kind == Kind.UNMAP:
            ago = in_words(now_ns - last.time_ns)
            return Cause.UNMAPPED, f"use after unmap: context {context} had it until {ago} ago, {self._named(last)}"
        if found.earlier is not None and found.earlier.kind == Kind.MAP and found.lost is not None:
            ago = in_words(now_ns - found.lost.time_ns)
            text = f"context {context} had it until all that it had went {ago} ago, by {self._named(found.lost)}"
            return Cause.GONE, text
        if found.failed is not None:
            return Cause.MAP_FAILED, f"the map of it failed: {self._named(found.failed)}"
        below = explanation.below
        if below and asked.start is not None and asked.start < below["iova"] + below["length"] <= asked.iova:
            past = (asked.end or asked.iova + 1) - asked.iova
            text = f"the request goes {past} bytes past the end of the mapping at {below['iova']:#x}"
            return Cause.PAST_THE_END, f"{text}, which has {below['length']} bytes"
        others = explanation.contexts or sorted(
            self._context(domain)
            for domain, record in found.elsewhere.items()
            if record.kind == Kind.MAP and self._engine.lookup(domain, dfn)
        )
        if others:
            where = ", ".join(map(str, others))
            return Cause.WRONG_CONTEXT, f"it is mapped in context {where}, and the request went to context {context}"
        if below and below["distance"] < _NEAR:
            text = f"it is {below['distance']} bytes past the end of the mapping at {below['iova']:#x}"
            return Cause.PAST_THE_END, f"{text}, which has {below['length']} bytes"
        if not self.history:
            return Cause.UNKNOWN, f"context {context} does not map it; no history is kept that would tell of before"
        if self.history.oldest and found.ended is None:
            text = f"context {context} does not map it, and has not in the last {self.history.size} operations"
            return Cause.UNKNOWN, text
        since = f" since {self._named(found.ended)}" if found.ended else ""
        return Cause.NEVER_MAPPED, f"context {context} has never mapped it{since}"

    # -- words ------------------------------------------------------------------------------------------------------

    def operation(self, record: Record, now_ns: int) -> dict[str, Any]:
        """A record for people and JSON, as it looks at ``now_ns``."""
        stop = STOPS[record.stop]
        return {
            "number": record.number,
            "operation": Kind(record.kind).name.lower(),
            "time_ns": record.time_ns,
            "ago_ns": now_ns - record.time_ns,
            "context": self._context(record.domain),
            "dfn": record.dfn,
            "pages": record.nr,
            "done": record.done,
            "gfn": record.gfn if record.kind == Kind.MAP else None,
            "access": access_text(record.access) if record.kind == Kind.MAP else None,
            "before": record.before,
            "after": record.after,
            "stop": stop if stop is None or isinstance(stop, str) else stop.value,
            "stream": None if record.stream == NOBODY else record.stream,
            "ring": None if record.ring == NOBODY else record.ring,
            "slot": None if record.ring == NOBODY else record.slot,
            "sequence": None if record.ring == NOBODY else record.sequence,
            "result": record.result,
        }

    def _named(self, record: Record) -> str:
        """A record as the end of a sentence."""
        context = self._context(record.domain)
        what = {
            Kind.MAP: f"map of {record.nr} pages at {record.dfn << PAGE_SHIFT:#x} for {access_text(record.access)}",
            Kind.UNMAP: f"unmap of {record.nr} pages at {record.dfn << PAGE_SHIFT:#x}",
            Kind.ALLOC: f"the beginning of context {context}",
            Kind.FREE: f"the end of context {context}",
            Kind.ATTACH: f"the attachment of stream {record.stream} to context {context}",
            Kind.BLOCK: f"the block of stream {record.stream}",
            Kind.UNBLOCK: f"the end of the block of stream {record.stream}",
            Kind.RESET: "a reset",
            Kind.RAM: "a change of guest RAM",
        }[Kind(record.kind)]
        by = "" if record.ring == NOBODY else f", slot {record.slot} of ring {record.ring}"
        answer = f", result {record.result}" if record.result else ""
        return f"{what} (operation {record.number}{by}{answer})"


def _act(act: Act, now_ns: int) -> dict[str, Any]:
    return {"rule": act.rule, "action": act.action, "on": act.place, "ago_ns": now_ns - act.time_ns}


def _blame_rules(asked: Asked, explanation: Explanation) -> None:
    """What rules did comes before what the tables and the history tell."""
    if not asked.reason or not explanation.rules:
        return
    last = explanation.rules[0]
    rule = f"rule {last['rule']} ({last['action']} at {last['on']})"
    if asked.by_rule and last["action"] in ("fail", "partial"):
        explanation.cause = Cause.REFUSED
        explanation.text = f"{rule} refused it; {_now_in_words(explanation.now)}"
    else:
        is_stale = last["on"].startswith("iotlb.") or last["action"] == "stale"
        explanation.cause = Cause.STALE if is_stale else Cause.CHANGED
        explanation.text = f"{rule} acted on this page {in_words(last['ago_ns'])} ago; {explanation.text}"


def _look_at(found: _Found, record: Record, asked: Asked, dfn: int) -> None:
    """Take in one more record; later ones were before."""
    kind, is_own = record.kind, record.domain == asked.domain
    if kind <= Kind.UNMAP:
        if not is_own:
            if record.domain not in found.elsewhere and record.covers(dfn):
                found.elsewhere[record.domain] = record
        elif record.asks_for(dfn):
            _look_at_own(found, record, dfn)
    elif kind == Kind.RESET or (is_own and kind in (Kind.FREE, Kind.ALLOC) and record.done):
        found.ended = found.ended or record
        if found.earlier is None:
            found.lost = record
    elif kind in (Kind.BLOCK, Kind.ATTACH) and record.stream == asked.stream:
        found.blocked = found.blocked or (record if kind == Kind.BLOCK else None)
        _keep(found, record)


def _look_at_own(found: _Found, record: Record, dfn: int) -> None:
    _keep(found, record)
    if found.ended is not None:
        if found.earlier is None and record.covers(dfn):
            found.earlier = record
    elif record.covers(dfn):
        found.covering = found.covering or record
    elif record.kind == Kind.MAP and found.covering is None and found.failed is None:
        found.failed = record


def _keep(found: _Found, record: Record) -> None:
    if len(found.operations) < _MOST_OPERATIONS:
        found.operations.append(record)


def _goes_on(area: Area, piece: Area) -> bool:
    """Whether a piece belongs to the same map call."""
    return not piece.starts_call and (area.dfn + area.nr, area.gfn + area.nr) == (piece.dfn, piece.gfn)


def _joined(area: Area | None, piece: Area) -> Area:
    return area._replace(nr=area.nr + piece.nr) if area and _goes_on(area, piece) else piece


def _mapping(area: Area | None, iova: int) -> dict[str, Any] | None:
    """A mapping beside an address: where, and how many bytes lie between."""
    if area is None:
        return None
    first, end = area.dfn << PAGE_SHIFT, area.dfn + area.nr << PAGE_SHIFT
    return {
        "iova": first,
        "length": end - first,
        "gfn": area.gfn,
        "access": access_text(int(area.access)),
        "distance": iova - end if end <= iova else first - iova,
    }


def _now_in_words(now: dict[str, Any]) -> str:
    if now["state"] in ("mapped", "direct"):
        return f"it is {now['state']}: gfn {now['gfn']:#x}, for {now['access']}"
    return f"it is {now['state']}"


def _of_guest_tables(context: int, now: dict[str, Any]) -> str:
    text = f"the guest owns the tables of context {context}"
    if now["state"] == "mapped":
        return f"{text}, and maps it by now, not when this DMA was refused: gfn {now['gfn']:#x}, for {now['access']}"
    if not now["entries"]:
        return f"{text}, and no entry of them can be read: the root is not in guest RAM any more"
    last = now["entries"][-1]
    return f"{text}; the walk ended at entry {len(now['entries'])}, {last['entry']:#x} at GPA {last['gpa']:#x}"


def access_text(bits: int) -> str:
    """READ, WRITE, READ|WRITE, or nothing."""
    return "|".join(each.name or "" for each in Access if each & bits) or "nothing"


def in_words(ns: int) -> str:
    """A time as people say it."""
    for unit, size in (("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns} ns"
