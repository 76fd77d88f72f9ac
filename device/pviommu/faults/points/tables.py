"""Engine and contexts: page tables, pool, contexts, IOTLB. Nothing here can wait."""

from __future__ import annotations

from typing import Any

from ...engine import Outcome as EngineOutcome
from ...engine import Stop
from ...interfaces.pv.contexts import AllocResult, ContextStop
from ..actions import Do
from ..catalogue import BITS
from .base import Args, Done, Go, Outcome, Point, changed_number, span

__all__ = [
    "ContextAllocPoint",
    "ContextAttachPoint",
    "ContextFreePoint",
    "ContextHoldPoint",
    "IotlbPoint",
    "PoolPoint",
    "TablePoint",
]


def _stop(name: str) -> Stop | ContextStop:
    return Stop[name] if name in Stop.__members__ else ContextStop[name]


class _Numbers(Point):
    """Stands in for a call with numbers, of which the first have names."""

    names: tuple[str, ...] = ()

    def named(self, args: Args) -> dict[str, int]:
        return dict(zip(self.names, args, strict=False))

    def do_corrupt(self, do: Do, args: Args) -> Outcome:
        place = self.names.index(str(do.corrupt))
        new = changed_number(do, args[place], BITS[self.names[place]])
        return Go((*args[:place], new, *args[place + 1 :]), {self.names[place]: new})


class TablePoint(_Numbers):
    """A map or an unmap of the engine: domain, dfn, gfn if it maps, pages, access, and how."""

    has_keywords = True

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.names = ("ctx", "dfn", "gfn", "nr") if self.probe.name == "table.map" else ("ctx", "dfn", "nr")

    def values(self, args: Args) -> dict[str, Any]:
        found: dict[str, Any] = self.named(args)
        for frames in ("dfn", "gfn"):
            if frames in found:
                found[frames] = span(found[frames], found["nr"])
        return found

    def do_fail(self, do: Do, args: Args) -> Outcome:
        return Done(EngineOutcome(0, Stop[do.fail or ""], self.named(args)["dfn"]), {"stop": do.fail})

    def do_lie(self, _do: Do, args: Args) -> Outcome:
        return Done(EngineOutcome(self.named(args)["nr"], None, None), "nothing done, success answered")

    def can(self, args: Args, result: Any, do: Do) -> bool:
        """No part of a piece that is smaller, and no want of memory for a map that RESERVE covers."""
        named = self.named(args)
        if self.probe.name == "table.map" and do.lacks_memory and self.faults.has_reservation(named["ctx"]):
            return False
        return do.partial is None or do.partial < named["nr"]

    def do_partial(self, do: Do, args: Args) -> Outcome:
        count, place = do.partial or 0, self.names.index("nr")
        found: EngineOutcome = self.call(*args[:place], count, *args[place + 1 :])
        if found.stop is None:
            found = EngineOutcome(found.done, Stop[do.then or ""], self.named(args)["dfn"] + count)
        return Done(found, {"pages": found.done, "stop": found.stop.name if found.stop else None})


class PoolPoint(_Numbers):
    """Pool pages for a domain."""

    names = ("ctx", "count")

    def values(self, args: Args) -> dict[str, Any]:
        return self.named(args)

    def do_fail(self, do: Do, _args: Args) -> Outcome:
        return Done(Stop[do.fail or ""], {"stop": do.fail})

    def do_lie(self, _do: Do, _args: Args) -> Outcome:
        return Done(None, "nothing done, success answered")


class ContextAllocPoint(Point):
    """A new context: whether it is a clone."""

    def values(self, args: Args) -> dict[str, Any]:
        return {"flags": int(bool(args and args[0]))}

    def do_fail(self, do: Do, _args: Args) -> Outcome:
        return Done(AllocResult(None, _stop(do.fail or "")), {"stop": do.fail})


class ContextFreePoint(Point):
    """A context that goes: its number, and whether its endpoints move to the default one."""

    def values(self, args: Args) -> dict[str, Any]:
        return {"ctx": args[0], "flags": int(args[1])}

    def do_fail(self, do: Do, _args: Args) -> Outcome:
        return Done(_stop(do.fail or ""), {"stop": do.fail})

    def do_lie(self, _do: Do, _args: Args) -> Outcome:
        return Done(None, "nothing done, success answered")


class ContextAttachPoint(_Numbers):
    """An endpoint and the context that it moves to."""

    names = ("stream", "ctx")

    def values(self, args: Args) -> dict[str, Any]:
        return {**self.named(args), "device": self.faults.device_of(args[0])}

    def do_fail(self, do: Do, _args: Args) -> Outcome:
        return Done(_stop(do.fail or ""), {"stop": do.fail})

    def do_lie(self, _do: Do, _args: Args) -> Outcome:
        return Done(None, "nothing done, success answered")


class ContextHoldPoint(Point):
    """An endpoint that is taken out of its context."""

    def values(self, args: Args) -> dict[str, Any]:
        return {"stream": args[0], "device": self.faults.device_of(args[0])}

    def do_lie(self, _do: Do, _args: Args) -> Outcome:
        return Done(None, "nothing done, success answered")


class IotlbPoint(_Numbers):
    """The IOTLB: domain, dfn, and for a fill the run (gfn, pages, access), for an invalidation the pages."""

    def values(self, args: Args) -> dict[str, Any]:
        found: dict[str, Any] = {"ctx": args[0], "dfn": span(args[1], 1)}
        if self.probe.name == "iotlb.fill":
            gfn, pages, _ = args[2]
            found |= {"dfn": span(args[1], pages), "gfn": span(gfn, pages), "nr": pages}
        elif self.probe.name == "iotlb.invalidate":
            found |= {"dfn": span(args[1], args[2]), "nr": args[2]}
        return found

    def do_miss(self, _do: Do, _args: Args) -> Outcome:
        return Done(None, "nothing found")

    def can(self, args: Args, result: Any, do: Do) -> bool:
        return do.corrupt is None or self.probe.name != "iotlb.lookup" or result is not None

    def do_corrupt(self, do: Do, args: Args) -> Outcome:
        gfn, pages, access = args[2]
        if do.corrupt == "gfn":
            gfn = changed_number(do, gfn, BITS["gfn"])
        else:  # no longer than it may be: a run stays in its block
            pages = min(max(changed_number(do, pages, BITS["nr"]), 1), pages)
        return Go((*args[:2], (gfn, pages, access)), {"gfn": gfn, "nr": pages})

    def post_corrupt(self, do: Do, _args: Args, result: tuple[int, int, int]) -> tuple[Any, Any]:
        gfn, pages, access = result
        gfn = changed_number(do, gfn, BITS["gfn"])
        return (gfn, pages, access), {"gfn": gfn}
