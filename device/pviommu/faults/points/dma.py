"""DMA of endpoints: translation, which may be asked for again, and the bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ...dma.fault import Fault, FaultKind
from ...dma.plan import DmaPlan, DmaRequest
from ...dma.translator import PENDING
from ...engine import PAGE_SHIFT, PAGE_SIZE, Access, Run
from ...engine.results import add_run
from ..actions import Do
from ..catalogue import BITS
from ..holds import Hold
from .base import Args, Done, Fails, Go, Outcome, Point, changed_bytes, changed_number, span

__all__ = ["ReadPoint", "TranslatePoint", "WritePoint"]

_REMEMBERED = 1 << 14
"""Pages whose translations are remembered, for one that is stale."""


class _Waiting(NamedTuple):
    requests: Sequence[DmaRequest]
    given_up: int
    """by the translator until then"""
    hold: Hold
    go: Callable[[], Any]


class TranslatePoint(Point):
    """Translation of one stream; ``form`` is its translator. Held, the answer is PENDING until then."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.stream: int = self.form.stream
        self._waiting: _Waiting | None = None
        self._remembers = any(active.rule.do and active.rule.do.stale for active in self._rules.get("post", ()))
        self._last: dict[tuple[int, Access], int] = {}
        """(page, access): frame, as it was translated last"""
        self._before: dict[tuple[int, Access], int] = {}
        """and as it was before that, if it was another one"""

    def __call__(self, *args: Any, **_named: Any) -> Any:
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return super().__call__(*args)
        if (waiting.given_up, waiting.requests) != (self.form.given_up, args[0]):
            self.faults.holds.drop(waiting.hold)
        if waiting.hold.is_forgotten:
            return super().__call__(*args)
        if waiting.hold.is_over:
            self.form.resume()
            return waiting.go()
        self._waiting = waiting
        return PENDING

    def hold(self, hold: Hold, go: Callable[[], Any]) -> Any:
        self.form.keep()  # what was translated, if it was: it is in flight meanwhile
        self._waiting = _Waiting(self._asked, self.form.given_up, hold, go)
        return PENDING

    def go_on(self, stage: int, args: Args) -> Any:
        self._asked: Sequence[DmaRequest] = args[0]
        return super().go_on(stage, args)

    def after(self, args: Args, result: Any) -> Any:
        if result is PENDING:  # asked again later: that is the same request
            return result
        if self._remembers and isinstance(result, list):
            self._remember(result)
        return super().after(args, result)

    def values(self, args: Args) -> dict[str, Any]:
        requests: Sequence[DmaRequest] = args[0]
        spans = [each for spans, _ in requests for each in spans]
        return {
            "stream": self.stream,
            "device": self.faults.device_of(self.stream),
            "ctx": self.faults.context_of(self.stream),
            "iova": (min(iova for iova, _ in spans), max(iova + length for iova, length in spans) - 1),
            "length": sum(length for _, length in spans),
            "access": (requests[0][1].name or ""),
        }

    def size(self, args: Args) -> int:
        return sum(length for spans, _ in args[0] for _, length in spans)

    def _fault(self, do: Do, args: Args) -> tuple[Fault, Any]:
        [(iova, length), *_], access = args[0][0]
        return Fault(FaultKind[do.fail or ""], self.stream, iova, access, length), {"fault": do.fail, "iova": iova}

    def do_fail(self, do: Do, args: Args) -> Outcome:
        return Done(*self._fault(do, args))

    def post_fail(self, do: Do, args: Args, _result: Any) -> tuple[Fault, Any]:
        return self._fault(do, args)

    def can(self, args: Args, result: Any, do: Do) -> bool:
        """Nothing is stale that is as it was, and only what was translated can be changed."""
        if do.stale:
            return self._stale(args[0], result) is not None
        return do.corrupt is None or isinstance(result, list)

    def post_corrupt(self, do: Do, _args: Args, result: list[DmaPlan]) -> tuple[list[DmaPlan], Any]:
        plan, *rest = result
        run, *runs = plan.translations[0]
        new = changed_number(do, run.gpa, BITS["gpa"])
        changed = plan._replace(translations=[[Run(new, run.length), *runs], *plan.translations[1:]])
        return [changed, *rest], {"gpa": new, "was": run.gpa}

    def post_stale(self, _do: Do, args: Args, result: Any) -> tuple[list[DmaPlan], Any]:
        plans = self._stale(args[0], result)
        assert plans is not None  # can() has seen it
        return plans, {"gpa": plans[0].translations[0][0].gpa}

    def _remember(self, plans: Sequence[DmaPlan]) -> None:
        if len(self._last) > _REMEMBERED:
            self._last.clear()
            self._before.clear()
        for plan in plans:
            for (iova, _), runs in zip(plan.spans, plan.translations, strict=True):
                position = iova
                for run in runs:
                    for offset in range(-(position % PAGE_SIZE), run.length, PAGE_SIZE):
                        key = (position + offset >> PAGE_SHIFT, plan.access)
                        frame = run.gpa + offset >> PAGE_SHIFT
                        if self._last.get(key, frame) != frame:
                            self._before[key] = self._last[key]
                        self._last[key] = frame
                    position += run.length

    def _stale(self, requests: Sequence[DmaRequest], result: Any) -> list[DmaPlan] | None:
        """How all of it was translated before ``result``; None if part of it was not."""
        known = self._before if isinstance(result, list) else self._last
        plans = []
        for spans, access in requests:
            translations = []
            for iova, length in spans:
                runs: list[Run] = []
                position, end = iova, iova + length
                while position < end:
                    frame = known.get((position >> PAGE_SHIFT, access))
                    if frame is None:
                        return None
                    size = min(end, (position | PAGE_SIZE - 1) + 1) - position
                    gpa = frame << PAGE_SHIFT | position % PAGE_SIZE
                    add_run(runs, gpa, size)
                    position += size
                translations.append(runs)
            plans.append(DmaPlan(spans, access, translations))
        return plans


class _BytesPoint(Point):
    """Bytes of a translated request; ``form`` is the port."""

    def values(self, args: Args) -> dict[str, Any]:
        plan: DmaPlan = args[0]
        runs = plan.runs()
        first = runs[0].gpa if runs else 0
        length = sum(run.length for run in runs)
        iova = plan.spans[0][0] if plan.spans else 0
        return {"iova": span(iova, length), "length": length, "gpa": span(first, length)}

    def do_fail(self, do: Do, args: Args) -> Outcome:
        return Fails(self._refusal(do.fail, args[0], 0), {"fault": do.fail})

    def _refusal(self, kind: str | None, plan: DmaPlan, byte: int) -> Exception:
        refused: Exception = self.form.refusal(plan, byte, FaultKind[kind or ""])
        return refused


class ReadPoint(_BytesPoint):
    """Bytes that are read."""

    def do_lie(self, _do: Do, args: Args) -> Outcome:
        return Done(bytes(sum(run.length for run in args[0].runs())), "zeros, nothing read")

    def post_corrupt(self, do: Do, _args: Args, result: bytes) -> tuple[bytes, Any]:
        place = int(do.corrupt or 0)
        return changed_bytes(do, result, place), {"byte": place}


class WritePoint(_BytesPoint):
    """Bytes that are written."""

    def do_corrupt(self, do: Do, args: Args) -> Outcome:
        plan, data = args
        place = int(do.corrupt or 0)
        return Go((plan, changed_bytes(do, bytes(data), place)), {"byte": place})

    def do_lie(self, _do: Do, _args: Args) -> Outcome:
        return Done(None, "nothing written")

    def can(self, args: Args, result: Any, do: Do) -> bool:
        return do.partial is None or do.partial < len(args[1])

    def do_partial(self, do: Do, args: Args) -> Outcome:
        plan, data = args
        left = do.partial or 0
        refusal = self._refusal(do.then, plan, left)
        runs = []
        for run in plan.runs():
            if left > 0:
                runs.append(Run(run.gpa, min(run.length, left)))
                left -= run.length
        self.call(DmaPlan(plan.spans, plan.access, [runs]), data[: do.partial])
        return Fails(refusal, {"bytes": do.partial, "fault": do.then})
