"""Sockets and messages. ``form`` is the connection, but for accept.

Held, a message keeps the rest of its client waiting and nobody else; so does a socket that is not read or written.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from typing import Any

from vfio_user import RequestError
from vfio_user.commands import Reply
from vfio_user.framing import Frame
from vfio_user.messages import Command, DmaMap, DmaUnmap, RegionAccess, WriteMulti

from ..actions import Do, result_of
from ..holds import Hold
from .base import Args, Done, Fails, Go, Outcome, Point, changed_bytes, span

__all__ = ["AcceptPoint", "MessagePoint", "ReceivePoint", "SendPoint"]

_ECHOED = {
    Command.DMA_UNMAP: DmaUnmap.SIZE,
    Command.REGION_WRITE: RegionAccess.SIZE,
    Command.REGION_WRITE_MULTI: WriteMulti.SIZE,
}
"""How much of a request its reply repeats, of those whose reply says nothing else."""


def _refusal(number: int) -> RequestError:
    return RequestError(number, "by a rule")


class _ClientPoint(Point):
    """What a client waits for."""

    def ends(self, hold: Hold) -> None:
        hold.client = self.form


class MessagePoint(_ClientPoint):
    """A command of a client, and what it is answered."""

    def values(self, args: Args) -> dict[str, Any]:
        frame: Frame = args[0]
        found: dict[str, Any] = {
            "message": Command(frame.header.command).name,
            "length": len(frame.payload),
            "count": len(frame.fds),
        }
        command, payload = frame.header.command, frame.payload
        if command in (Command.REGION_READ, Command.REGION_WRITE) and len(payload) >= RegionAccess.SIZE:
            access = RegionAccess.unpack(payload)
            found |= {"region": access.region, "offset": access.offset, "size": access.count}
        elif command == Command.DMA_MAP and len(payload) >= DmaMap.SIZE:
            mapped = DmaMap.unpack(payload)
            found["gpa"] = span(mapped.address, mapped.size)
        elif command == Command.DMA_UNMAP and len(payload) >= DmaUnmap.SIZE:
            unmapped = DmaUnmap.unpack(payload)
            found["gpa"] = span(unmapped.address, unmapped.size)
        return found

    def size(self, args: Args) -> int:
        return len(args[0].payload)

    def hold_before(self, hold: Hold, stage: int, args: Args) -> Any:
        """A request that waits keeps its descriptors, which are closed otherwise once it has begun."""
        frame: Frame = args[0]
        kept = replace(frame, fds=list(frame.fds))
        frame.fds.clear()
        return self._steps(hold, partial(self.go_on, stage, (kept,)), kept.fds)

    def hold(self, hold: Hold, go: Callable[[], Any]) -> Any:
        return self._steps(hold, go, [])

    def _steps(self, hold: Hold, go: Callable[[], Any], fds: list[int]) -> Generator[Hold, None, Any]:
        try:
            while not hold.is_over:
                yield hold
            answer = go()
            return (yield from answer) if isinstance(answer, Generator) else answer
        finally:
            self.form.closer.close(fds)

    def after(self, args: Args, result: Any) -> Any:
        if "post" in self._rules and isinstance(result, Generator):
            return self._after_steps(args, result)
        return super().after(args, result)

    def _after_steps(self, args: Args, steps: Generator[Any, None, Any]) -> Generator[Any, None, Any]:
        result = yield from steps
        answer = super().after(args, result)
        return (yield from answer) if isinstance(answer, Generator) else answer

    def repeated(self, args: Args, times: int) -> Any:
        return self._each(args, times)

    def _each(self, args: Args, times: int) -> Generator[Any, None, Any]:
        for _ in range(times + 1):
            answer = self.call(*args)
            reply = (yield from answer) if isinstance(answer, Generator) else answer
            yield None
        return reply

    def do_fail(self, do: Do, _args: Args) -> Outcome:
        return Fails(_refusal(getattr(errno, do.fail or "")), {"errno": do.fail})

    def do_status(self, do: Do, _args: Args) -> Outcome:
        number = result_of(do.status or 0)
        return Fails(_refusal(number), {"errno": number})

    def post_status(self, do: Do, _args: Args, _result: Any) -> tuple[Any, Any]:
        raise _refusal(result_of(do.status or 0))

    def do_corrupt(self, do: Do, args: Args) -> Outcome:
        payload = changed_bytes(do, args[0].payload, int(do.corrupt or 0))
        return Go((replace(args[0], payload=payload),), {"byte": int(do.corrupt or 0)})

    def do_truncate(self, do: Do, args: Args) -> Outcome:
        return Go((replace(args[0], payload=args[0].payload[: do.truncate]),), {"bytes": do.truncate})

    def do_withhold(self, _do: Do, args: Args) -> Outcome:
        return Go((replace(args[0], fds=[]),), {"descriptors": len(args[0].fds)})

    def do_lie(self, _do: Do, args: Args) -> Outcome:
        frame: Frame = args[0]
        echoed = frame.payload[: _ECHOED.get(Command(frame.header.command), 0)]
        return Done(Reply(echoed), "nothing done, success answered")

    def do_drop(self, _do: Do, _args: Args) -> Outcome:
        return Done(None, "neither done nor answered")

    def can(self, args: Args, result: Any, do: Do) -> bool:
        if do.withhold:
            return bool(args[0].fds if result is None else result.fds)
        return True

    def post_corrupt(self, do: Do, _args: Args, result: Reply) -> tuple[Any, Any]:
        place = int(do.corrupt or 0)
        return result._replace(payload=changed_bytes(do, result.payload, place)), {"byte": place}

    def post_truncate(self, do: Do, _args: Args, result: Reply) -> tuple[Any, Any]:
        return result._replace(payload=result.payload[: do.truncate]), {"bytes": do.truncate}

    def post_withhold(self, _do: Do, _args: Args, result: Reply) -> tuple[Any, Any]:
        return result._replace(fds=()), {"descriptors": len(result.fds)}

    def post_drop(self, _do: Do, _args: Args, _result: Reply) -> tuple[Any, Any]:
        return None, "done and not answered"


class AcceptPoint(Point):
    """A client that waits at a listening socket."""

    def do_fail(self, do: Do, _args: Args) -> Outcome:
        number = getattr(errno, do.fail or "")
        return Fails(OSError(number, os.strerror(number)), {"errno": do.fail})


class _SocketPoint(_ClientPoint):
    """What is tried again later: a call that was held goes on then where it was."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._waiting: tuple[Hold, int] | None = None

    def __call__(self, *args: Any, **_named: Any) -> Any:
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return super().__call__(*args)
        hold, stage = waiting
        return self.go_on(stage, args) if hold.is_over else self.hold_before(hold, stage, args)

    def hold_before(self, hold: Hold, stage: int, args: Args) -> Any:
        self._waiting = hold, stage
        return self.later(hold)

    def later(self, hold: Hold) -> Any:
        """Have nothing tried before ``hold`` is over; what to answer meanwhile."""
        raise NotImplementedError


class ReceivePoint(_SocketPoint):
    """At most so many bytes are taken from a socket, with the descriptors that came with them."""

    def values(self, args: Args) -> dict[str, Any]:
        return {"length": args[1]}

    def answers(self, args: Args, result: Any) -> dict[str, Any]:
        return {} if result is None else {"length": len(result[0]), "count": len(result[1])}

    def later(self, hold: Hold) -> Any:
        self.form.reading = hold
        return b"", []

    def do_fail(self, do: Do, _args: Args) -> Outcome:
        return Done(None, {"errno": do.fail})

    def do_slice(self, do: Do, args: Args) -> Outcome:
        count = min(do.slice or 1, args[1])
        return Go((args[0], count), {"bytes": count})

    def can(self, args: Args, result: Any, do: Do) -> bool:
        if do.withhold:
            return result is not None and bool(result[1])
        return result is not None or (do.corrupt is None and do.truncate is None)

    def post_corrupt(self, do: Do, _args: Args, result: Any) -> tuple[Any, Any]:
        place = int(do.corrupt or 0)
        return (changed_bytes(do, result[0], place), result[1]), {"byte": place}

    def post_truncate(self, do: Do, _args: Args, result: Any) -> tuple[Any, Any]:
        return (result[0][: do.truncate], result[1]), {"bytes": do.truncate}

    def post_withhold(self, _do: Do, _args: Args, result: Any) -> tuple[Any, Any]:
        data, fds = result
        self.form.closer.close(fds)
        return (data, []), {"descriptors": len(fds)}


class SendPoint(_SocketPoint):
    """Bytes are sent, with descriptors; how many were taken."""

    def values(self, args: Args) -> dict[str, Any]:
        return {"length": len(args[1]), "count": len(args[2])}

    def size(self, args: Args) -> int:
        return len(args[1])

    def later(self, hold: Hold) -> Any:
        self.form.writing = hold
        raise BlockingIOError(errno.EAGAIN, "by a rule")

    def do_fail(self, do: Do, _args: Args) -> Outcome:
        number = getattr(errno, do.fail or "")
        return Fails(OSError(number, os.strerror(number)), {"errno": do.fail})

    def do_slice(self, do: Do, args: Args) -> Outcome:
        sock, data, fds = args
        return Go((sock, data[: max(do.slice or 1, 1)], fds), {"bytes": do.slice})

    def do_corrupt(self, do: Do, args: Args) -> Outcome:
        sock, data, fds = args
        return Go((sock, changed_bytes(do, data, int(do.corrupt or 0)), fds), {"byte": int(do.corrupt or 0)})

    def do_drop(self, _do: Do, args: Args) -> Outcome:
        return Done(len(args[1]), "not sent")

    def do_truncate(self, do: Do, args: Args) -> Outcome:
        sock, data, fds = args
        self.call(sock, data[: do.truncate], fds)
        return Done(len(data), {"bytes": do.truncate})

    def can(self, args: Args, result: Any, do: Do) -> bool:
        return do.truncate is None or 0 < do.truncate < len(args[1])
