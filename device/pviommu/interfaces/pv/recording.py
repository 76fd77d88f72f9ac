"""What a history records of a PV-IOMMU: its operations, with the slots that asked for them, and refused DMA."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from ...dma.fault import REASON, Fault
from ...dma.plan import DmaRequest
from ...history.explanation import Asked, Explainer
from ...history.faults import FaultLog, SeenFault
from ...history.recorder import Recorder
from ...history.records import NOBODY, History
from ...probes import Act, Interposer
from .bindings import Bindings, format_sbdf
from .contexts import Contexts
from .order import Executed
from .ring import CommandRing
from .stream import PvStream

__all__ = ["RefusedDma", "record_operations"]


def record_operations(
    history: History, contexts: Contexts, executors: Iterable[Executed], now_ns: Callable[[], int]
) -> None:
    """Record what Python carries out from now on. A native core is given ``history`` by its owner."""
    executing = [NOBODY]
    """stack of rings: a slot of each is being carried out because the one before it has to wait for that"""
    recorder = Recorder(history, now_ns, lambda: executing[-1])
    recorder.attach_to(contexts.engine)

    def execute(ring: CommandRing, call: Callable[..., None], limit: int, deadline_ns: float) -> None:
        executing.append(ring.number)
        try:
            call(limit, deadline_ns)
        finally:
            executing.pop()

    def finish(
        ring: CommandRing, call: Callable[..., None], position: int, result: int, sequence: int, *rest: Any
    ) -> None:
        recorder.completed(ring.number, ring.completed + position & NOBODY, sequence, result)
        call(position, result, sequence, *rest)

    def disable(ring: CommandRing, call: Callable[[], None]) -> None:
        recorder.dropped(ring.number)
        call()

    for executor in executors:
        ring = executor.ring
        for owner, name, told in ((executor, "execute", execute), (ring, "finish", finish), (ring, "disable", disable)):
            setattr(owner, name, partial(told, ring, getattr(owner, name)))


class RefusedDma:
    """Puts the faults of one PV-IOMMU into a log."""

    def __init__(
        self,
        history: History | None,
        contexts: Contexts,
        bindings: Bindings,
        now_ns: Callable[[], int],
        interposer: Interposer | None,
    ) -> None:
        """``interposer``: has rules that may be to blame."""
        self._contexts = contexts
        self._bindings = bindings
        self._now_ns = now_ns
        self._requests: dict[int, Sequence[DmaRequest]] = {}
        """by stream: what was translated last"""
        self._interposer = interposer
        self.log = FaultLog(Explainer(contexts.engine, history, now_ns, contexts.context, self._acts))

    def watch(self, streams: Iterable[PvStream]) -> None:
        """Remember what each of them requests: a fault does not say where the refused request began."""
        for stream in streams:
            stream.translate = partial(self._translate, stream.stream, stream.translate)  # type: ignore[method-assign]

    def _translate(self, stream: int, call: Callable[..., Any], requests: Sequence[DmaRequest]) -> Any:
        self._requests[stream] = requests
        return call(requests)

    def add(self, fault: Fault) -> None:
        """Log a fault that the guest is told about."""
        context = self._contexts.of(fault.stream)
        history = self.log.explainer.history
        reason = REASON[fault.kind].name
        seen = SeenFault(
            *(0, self._now_ns(), fault.stream, format_sbdf(self._bindings.sbdf(fault.stream)), context, fault.iova),
            *(fault.length, fault.access.name or "", reason, history.count if history else 0),
        )
        start, end = next(self._around(fault), (None, None))
        domain = self._contexts.domain(context)
        by_rule = self._interposer.act_on_request(fault.iova) if self._interposer else None
        self.log.add(seen, Asked(domain, fault.iova, reason, fault.access, fault.stream, start, end, by_rule))

    def _acts(self, context: int, dfn: int) -> list[Act]:
        return self._interposer.acts(context, dfn) if self._interposer else []

    def _around(self, fault: Fault) -> Iterator[tuple[int, int]]:
        """First byte, and the one after the last, of the span that the refused address is in."""
        for spans, access in self._requests.get(fault.stream, ()):
            for iova, length in spans:
                if access == fault.access and iova <= fault.iova < iova + length:
                    yield iova, iova + length
