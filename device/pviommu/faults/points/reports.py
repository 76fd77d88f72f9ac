"""What the guest notices without an operation: faults, events, interrupts, registers, resets, endpoints that work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pviommu_abi.shared import EventReason
from vfio_user import IrqIndex

from ...dma.fault import REASON, Fault
from ...engine import Access
from ..actions import Do
from ..catalogue import BITS
from ..holds import Hold
from .base import Args, Deferred, Done, Fails, Go, Outcome, Point, changed_bytes, changed_number, span

__all__ = [
    "EventPoint",
    "FaultPoint",
    "InterruptPoint",
    "ReadRegisterPoint",
    "ResetPoint",
    "WorkPoint",
    "WriteRegisterPoint",
]


class FaultPoint(Deferred):
    """A refused request that is told of."""

    def values(self, args: Args) -> dict[str, Any]:
        fault: Fault = args[0]
        return {
            "reason": REASON[fault.kind].name,
            "stream": fault.stream,
            "device": self.faults.device_of(fault.stream),
            "ctx": self.faults.context_of(fault.stream),
            "iova": span(fault.iova, fault.length),
            "length": fault.length,
            "access": fault.access.name or "",
        }


class EventPoint(Deferred):
    """An event, field by field; ``form`` reports it."""

    has_keywords = True

    def values(self, args: Args) -> dict[str, Any]:
        fields = args[0]
        found: dict[str, Any] = {"reason": _reason(fields["reason"])}
        if "stream" in fields:
            found |= {"stream": fields["stream"], "device": self.faults.device_of(fields["stream"])}
        if "iova" in fields:
            found["iova"] = span(fields["iova"], fields.get("length", 1))
            found["length"] = fields.get("length", 0)
        if "ctx_no" in fields:
            found["ctx"] = fields["ctx_no"]
        if "access" in fields:
            found["access"] = Access(fields["access"]).name or ""
        return found

    def do_corrupt(self, do: Do, args: Args) -> Outcome:
        given = str(do.corrupt)
        name = "ctx_no" if given == "ctx" else given
        new = changed_number(do, int(args[0].get(name, 0)), BITS[given])
        return Go(({**args[0], name: new},), {given: new})

    def do_overflow(self, _do: Do, _args: Args) -> Outcome:
        self.form.lose()
        return Done(None, "lost and counted")


def _reason(number: int) -> str:
    return EventReason(number).name if number in set(EventReason) else str(int(number))


class InterruptPoint(Deferred):
    """An interrupt: index and vector."""

    neutral = False
    """not raised"""

    def values(self, args: Args) -> dict[str, Any]:
        return {"vector": args[1]} if args[0] == IrqIndex.MSIX else {}


class _RegisterPoint(Point):
    """An access to the registers of a BAR, which are ``form``."""

    def register(self, offset: int) -> str:
        for register in self.form.registers:
            if any(place <= offset < place + register.size for place in register.places):
                return str(register.name)
        return ""


class ReadRegisterPoint(_RegisterPoint):
    """A read: offset and bytes."""

    def values(self, args: Args) -> dict[str, Any]:
        return {"register": self.register(args[0]), "offset": args[0], "size": args[1]}

    def do_lie(self, _do: Do, args: Args) -> Outcome:
        return Done(b"\xff" * args[1], "all ones")

    def post_corrupt(self, do: Do, _args: Args, result: bytes) -> tuple[bytes, Any]:
        new = changed_bytes(do, result, int(do.corrupt or 0))
        return new, {"data": new}


class WriteRegisterPoint(_RegisterPoint):
    """A write: offset and data. One that is made again is made with what is left to do in steps of the last one."""

    def values(self, args: Args) -> dict[str, Any]:
        offset, data = args
        value = int.from_bytes(data, "little")
        return {"register": self.register(offset), "offset": offset, "size": len(data), "value": value}

    def do_corrupt(self, do: Do, args: Args) -> Outcome:
        new = changed_bytes(do, bytes(args[1]), int(do.corrupt or 0))
        return Go((args[0], new), {"data": new})


class ResetPoint(Point):
    """A reset of a function."""


class WorkError(RuntimeError):
    """An endpoint that a rule lets fail."""


class WorkPoint(Point):
    """A step of an endpoint, which is ``form``: whether there was anything to do. Held, there is not, until then."""

    neutral = False

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._waiting: tuple[Hold, Callable[[], Any]] | None = None

    def __call__(self, *args: Any, **_named: Any) -> Any:
        waiting, self._waiting = self._waiting, None
        if waiting is None or waiting[0].is_forgotten:
            return super().__call__(*args)
        if waiting[0].is_over:
            return waiting[1]()
        self._waiting = waiting
        return False

    def hold(self, hold: Hold, go: Callable[[], Any]) -> Any:
        self._waiting = hold, go
        hold.then(self.form.on_ready)
        return False

    def values(self, args: Args) -> dict[str, Any]:
        return {"stream": self.form.stream, "device": self.faults.device_of(self.form.stream)}

    def do_fail(self, _do: Do, _args: Args) -> Outcome:
        return Fails(WorkError("it fails by a rule"), "failed")
