"""Operations: what a slot carries, and the slot itself. Held, they are long operations that come to no end yet."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from pviommu_abi.slots import Errno
from wire_layout import Record

from ...hosted import Waiting
from ...interfaces.pv.bindings import format_sbdf, sbdf_of
from ...interfaces.pv.profile import Answer, Held, Progress, Reply
from ...interfaces.pv.ring import Operation
from ..actions import Do, result_of
from ..catalogue import BITS
from ..holds import Hold
from .base import Args, Done, Go, Outcome, Point, changed_bytes, changed_number, span

__all__ = ["OperationPoint", "SlotPoint"]

_NAMES = {
    "ctx": ("ctx_no",),
    "nr": ("nr_pages",),
    "flags": ("flags", "map_flags", "alloc_flags", "free_flags"),
    "gpa": ("address", "arg", "root"),
    "count": ("count", "pages"),
    "op": ("op", "subop"),
}
"""What fields of structures are called by rules, where that is something else."""
_DONE = ("mapped", "unmapped")


Steps = Generator[Waiting | None, None, Reply]
"""What a point makes of an operation that it holds, or has more to do with: each item is what it waits for."""


class Answering(Point):
    """Stands in for what gives an ``Answer``: the outcome, or how far it is. Inside, the latter are steps."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._go_on: Callable[..., Answer] | None = None

    def pieces(self, go_on: Callable[..., Answer] | None) -> tuple[Callable[..., Answer], Callable[..., Answer]]:
        """What is called instead of what begins an operation, and of ``go_on``."""
        self._go_on = go_on
        return self.begin, self.next_piece

    def begin(self, *args: Any) -> Answer:
        """Carry it out, or as much of it as goes at once."""
        answer = self(*args)
        return self._step(answer) if isinstance(answer, Generator) else answer

    def next_piece(self, *args: Any) -> Answer:
        """Carry out the next piece: what holds an operation goes on with it by itself, also if it is not bound here
        any more.
        """
        return self._plain(*args)

    def _plain(self, *args: Any) -> Answer:
        if self._go_on is None:
            raise ValueError(f"{self.probe.name} is not done in pieces")
        return self._go_on(*args)

    def _step(self, steps: Steps) -> Answer:
        try:
            waiting = next(steps)
        except StopIteration as end:
            reply: Reply = end.value
            return reply
        held = Held(waiting=waiting, carry_on=lambda: self._step(steps) if held.is_over else held)
        return held

    def going_on(self, args: Args, progress: Progress) -> Args:
        """What a call that began with ``args`` goes on with."""
        return (*args, progress)

    def _whole(self, args: Args, answer: Any) -> Steps:
        """All that is left of it."""
        while not isinstance(answer, Reply):
            if isinstance(answer, Generator):
                answer = yield from answer
            else:
                held = answer if isinstance(answer, Held) else Held()
                yield held.waiting
                answer = held.carry_on() if held.carry_on is not None else self._plain(*self.going_on(args, answer))
        return answer

    def hold(self, hold: Hold, go: Callable[[], Any]) -> Any:
        return self._held(hold, lambda: ((), go()))

    def hold_before(self, hold: Hold, stage: int, args: Args) -> Any:
        return self._held(hold, lambda: (args, self.go_on(stage, args)))

    def _held(self, hold: Hold, go: Callable[[], tuple[Args, Any]]) -> Steps:
        while not hold.is_over:
            yield hold
        return (yield from self._whole(*go()))

    def after(self, args: Args, result: Any) -> Any:
        """Of what goes on as it is nothing is made that cannot be saved."""
        if isinstance(result, Reply):
            return super().after(args, result)
        if isinstance(result, Progress) and "post" not in self._rules and args is self._given:
            return result
        return self._after_whole(args, result)

    def _after_whole(self, args: Args, result: Any) -> Steps:
        reply = yield from self._whole(args, result)
        answer = super().after(args, reply)
        return answer if isinstance(answer, Reply) else (yield from answer)

    def go_on(self, stage: int, args: Args) -> Any:
        if stage == 0:
            self._given = args
        return super().go_on(stage, args)

    def repeated(self, args: Args, times: int) -> Any:
        return self._each(args, times)

    def _each(self, args: Args, times: int) -> Steps:
        for _ in range(times + 1):
            reply = yield from self._whole(args, self.call(*args))
            yield None
        return reply

    def untouched(self, _args: Args, result: int) -> Reply:
        """The reply to what did nothing."""
        return Reply(result)

    def do_fail(self, do: Do, args: Args) -> Outcome:
        return Done(self.untouched(args, -Errno[do.fail or ""]), {"result": do.fail})

    def do_status(self, do: Do, args: Args) -> Outcome:
        result = -result_of(do.status or 0)
        return Done(self.untouched(args, result), {"result": result})

    def do_lie(self, _do: Do, _args: Args) -> Outcome:
        return Done(Reply(0), "nothing done, success answered")

    def post_status(self, do: Do, _args: Args, result: Reply) -> tuple[Reply, Any]:
        status = -result_of(do.status or 0)
        return result._replace(result=status), {"result": status, "was": result.result}


class OperationPoint(Answering):
    """An operation on a payload; ``form`` is the payload's structure."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        record: type[Record] = self.form
        self._places = {each.name: each for each in record.FIELDS}
        self._fields = {
            argument: field
            for argument in self.probe.arguments
            for name in _NAMES.get(argument, (argument,))
            if (field := self._places.get(name))
        }
        self._done = next((self._places[name] for name in _DONE if name in self._places), None)

    def _field(self, argument: str, payload: bytes) -> int:
        place = self._fields[argument]
        return int.from_bytes(payload[place.offset : place.offset + place.size], "little")

    def values(self, args: Args) -> dict[str, Any]:
        payload: bytes = args[0]
        found: dict[str, Any] = {argument: self._field(argument, payload) for argument in self._fields}
        count = found.get("nr", 1)
        for frames in ("dfn", "gfn"):
            if frames in found:
                found[frames] = span(found[frames], count)
        if "gpa" in found:
            found["gpa"] = span(found["gpa"], 1)
        if "devfn" in self._places:
            seg, bus, devfn = (
                int.from_bytes(payload[each.offset : each.offset + each.size], "little")
                for each in map(self._places.__getitem__, ("seg", "bus", "devfn"))
            )
            found["device"] = format_sbdf(sbdf_of(seg, bus, devfn))
        return found

    def size(self, args: Args) -> int:
        return self._field("nr", args[0])

    def _corrupt(self, do: Do, payload: bytes) -> tuple[bytes, Any]:
        if isinstance(do.corrupt, int):
            new = changed_bytes(do, payload, do.corrupt)
            return new, {"payload": new}
        name = do.corrupt or ""
        field = self._places["devfn"] if name == "device" else self._fields[name]
        new = changed_bytes(do, payload, field.offset, field.size)
        return new, {name: int.from_bytes(new[field.offset : field.offset + field.size], "little")}

    def can(self, args: Args, result: Any, do: Do) -> bool:
        """Not a field that this profile's structure does not have, no part of a request that is smaller, and no want
        of memory for a map that RESERVE covers.
        """
        if (
            self.probe.name == "op.map_pages"
            and do.lacks_memory
            and self.faults.has_reservation(self._field("ctx", args[0]))
        ):
            return False
        if do.partial is not None:
            return do.partial < self._field("nr", args[0])
        return not isinstance(do.corrupt, str) or do.corrupt in self._fields or "devfn" in self._places

    def do_corrupt(self, do: Do, args: Args) -> Outcome:
        payload, after = self._corrupt(do, args[0])
        return Go((payload,), after)

    def post_corrupt(self, do: Do, args: Args, result: Reply) -> tuple[Reply, Any]:
        payload, after = self._corrupt(do, result.payload + args[0][len(result.payload) :])
        return result._replace(payload=payload), after

    def untouched(self, args: Args, result: int) -> Reply:
        """A count of pages is there also on error: there are none."""
        if self._done is None:
            return Reply(result)
        return Reply(result, self._with_done(args[0], self._before(args[0])))

    def do_lie(self, _do: Do, args: Args) -> Outcome:
        reply = Reply(0)
        if self._done is not None:
            count = self._before(args[0]) + self._field("nr", args[0])
            reply = Reply(0, self._with_done(args[0], count))
        return Done(reply, "nothing done, success answered")

    def _before(self, payload: bytes) -> int:
        """What the count of pages is added to: what it was, in structures of xen-v7."""
        done = self._done
        if done is None or "pgsize" not in self._places:
            return 0
        return int.from_bytes(payload[done.offset : done.offset + done.size], "little")

    def _with_done(self, payload: bytes, count: int) -> bytes:
        done = self._done
        assert done is not None
        return payload[: done.offset] + (count & (1 << 8 * done.size) - 1).to_bytes(done.size, "little")

    def do_partial(self, do: Do, args: Args) -> Outcome:
        payload: bytes = args[0]
        count = do.partial or 0
        part = (self._with_nr(payload, count),)
        then = Errno[do.then or ""]
        answer = self._cut(payload, then, self._whole(part, self.call(*part)))
        return Done(answer, {"pages": count, "result": then.name})

    def _with_nr(self, payload: bytes, count: int) -> bytes:
        field = self._fields["nr"]
        return payload[: field.offset] + count.to_bytes(field.size, "little") + payload[field.offset + field.size :]

    def _cut(self, payload: bytes, then: Errno, part: Steps) -> Steps:
        """All of it, given its first pages."""
        reply = yield from part
        answered = reply.payload
        field = self._fields["nr"]
        if len(answered) >= field.offset + field.size:  # what the guest asked for stays
            answered = self._with_nr(answered, self._field("nr", payload))
        return Reply(reply.result or -then, answered)


class SlotPoint(Answering):
    """A slot: its class, operation, flags and payload. ``form`` is nothing."""

    def going_on(self, args: Args, progress: Progress) -> Args:
        op_class, op, flags, payload = args
        return (Operation(op_class, op, flags, 0, payload, progress),)

    def values(self, args: Args) -> dict[str, Any]:
        op_class, op, flags, _ = args
        return {"class": op_class, "op": op, "flags": flags}

    def do_corrupt(self, do: Do, args: Args) -> Outcome:
        op_class, op, flags, payload = args
        if isinstance(do.corrupt, int):
            payload = changed_bytes(do, payload, do.corrupt)
            return Go((op_class, op, flags, payload), {"payload": payload})
        found = {"class": op_class, "op": op, "flags": flags}
        name = do.corrupt or ""
        found[name] = changed_number(do, found[name], BITS[name])
        return Go((*found.values(), payload), found)

    def can(self, args: Args, result: Any, do: Do) -> bool:
        """A completed slot has a result and a payload, and none of the fields."""
        return result is None or not isinstance(do.corrupt, str)

    def post_corrupt(self, do: Do, args: Args, result: Reply) -> tuple[Reply, Any]:
        payload = result.payload + args[3][len(result.payload) :]
        payload = changed_bytes(do, payload, int(do.corrupt or 0))
        return result._replace(payload=payload), {"payload": payload}
