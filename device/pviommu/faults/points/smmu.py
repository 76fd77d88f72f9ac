"""A virtual SMMUv3: the commands that it carries out, the structures that it reads, the events that it writes."""

from __future__ import annotations

from functools import partial
from typing import Any

from smmuv3.commands import COMMAND, Cfgi0, Opcode, Tlbi1
from smmuv3.events import Event
from smmuv3.page_requests import PageRequest

from ...interfaces.smmuv3.memory import Abort
from ...interfaces.smmuv3.queues import Consumed
from ..actions import Do
from ..catalogue import BITS
from ..holds import Hold
from .base import Args, Deferred, Done, Go, Outcome, Point, changed_bytes, changed_number, span

__all__ = ["AnswerPoint", "CommandPoint", "FetchPoint", "PageRequestPoint", "WriteEventPoint"]

_NAMES = {int(opcode): opcode.name for opcode in Opcode}
_BY_ADDRESS = (Opcode.TLBI_NH_VA, Opcode.TLBI_NH_VAA, Opcode.TLBI_S2_IPA)
_OF_STREAMS = (
    range(Opcode.PREFETCH_CFG, Opcode.CFGI_CD_ALL + 1),
    range(Opcode.ATC_INV, Opcode.PRI_RESP + 1),
    range(Opcode.RESUME, Opcode.STALL_TERM + 1),
)


class CommandPoint(Point):
    """A command, two dwords, of a queue, which is ``form``. Held, it and those behind it are not carried out yet."""

    neutral = Consumed.DONE

    def values(self, args: Args) -> dict[str, Any]:
        first, second = args
        opcode = first & int(Cfgi0.OPCODE)
        found: dict[str, Any] = {"command": _NAMES.get(opcode, f"{opcode:#x}"), "op": opcode}
        if any(opcode in each for each in _OF_STREAMS):
            found["sid"] = Cfgi0(first).SID
        elif opcode in _BY_ADDRESS:
            found["iova"] = span(second & int(Tlbi1.ADDR), 1)
        return found

    def do_fail(self, _do: Do, _args: Args) -> Outcome:
        return Done(Consumed.ILLEGAL, "CERROR_ILL")

    def do_corrupt(self, do: Do, args: Args) -> Outcome:
        new = changed_bytes(do, COMMAND.pack(*args), int(do.corrupt or 0))
        return Go(COMMAND.unpack(new), {"command": new})

    def hold_before(self, hold: Hold, stage: int, args: Args) -> Any:
        self.form.hold(hold, partial(self.go_on, stage, args), args)
        return Consumed.HELD


class FetchPoint(Point):
    """A structure that is read: its name, address and size."""

    def values(self, args: Args) -> dict[str, Any]:
        structure, address, size = args
        return {"structure": structure.name, "gpa": span(address, size), "length": size}

    def do_fail(self, _do: Do, args: Args) -> Outcome:
        return Done(Abort(args[1]), "external abort")

    def can(self, args: Args, result: Any, do: Do) -> bool:
        return do.corrupt is None or isinstance(result, bytes)

    def post_corrupt(self, do: Do, _args: Args, result: bytes) -> tuple[bytes, Any]:
        place = int(do.corrupt or 0)
        return changed_bytes(do, result, place), {"byte": place}


class WriteEventPoint(Deferred):
    """An event for the event queue, which is ``form``. Who waits for an answer to it is told that it was written."""

    neutral = True

    def values(self, args: Args) -> dict[str, Any]:
        event: Event = args[0]
        return {"event": event.type.name, "sid": event.sid, "iova": span(event.address, 1)}

    def do_corrupt(self, do: Do, args: Args) -> Outcome:
        name = str(do.corrupt)
        field = {"sid": "sid", "iova": "address", "event": "type"}[name]
        event: Event = args[0]
        new = changed_number(do, int(getattr(event, field)), BITS[name])
        changed: dict[str, Any] = {field: new}
        return Go((event._replace(**changed),), {name: new})

    def do_overflow(self, _do: Do, _args: Args) -> Outcome:
        self.form.lose()
        return Done(self.neutral, "lost, and the overflow told")


class PageRequestPoint(Point):
    """A page request for its queue, which is ``form``."""

    def values(self, args: Args) -> dict[str, Any]:
        asked: PageRequest = args[0]
        return {"sid": asked.sid, "iova": span(asked.address, 4096)}

    def do_overflow(self, _do: Do, args: Args) -> Outcome:
        return Done(self.form.lose(*args), "lost, and the overflow told")


class AnswerPoint(Deferred):
    """An answer of an endpoint, or to one, whose StreamID comes first."""

    def values(self, args: Args) -> dict[str, Any]:
        return {"sid": args[0]}
