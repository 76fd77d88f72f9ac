"""What the profiles share: each declares its operations, and adds what only it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol

from pviommu_abi.slots import Errno, OpClass
from wire_layout import Record

from ...counters import Counters
from ...dma.memory import GuestMemory
from ...engine import Outcome, Stop
from ...probes import Probes
from .bindings import Bindings, sbdf_of
from .config import IommuConfig
from .contexts import Contexts, ContextStop
from .page_operation import PageOperation, PageRules, must_be_zero
from .pages import PageOperations
from .profile import DONE, REFUSED, Answer, Begin, GoOn, Progress, Reply, probe_operation

__all__ = ["CONTEXT_RESULTS", "CONTEXT_STOPS", "MAP_RESULTS", "UNMAP_RESULTS", "Operation", "XenOperations"]

UNMAP_RESULTS = {
    Stop.NO_DOMAIN: -Errno.EINVAL,
    Stop.NOT_PAGING: -Errno.EINVAL,
    Stop.GUEST_TABLES: -Errno.EOPNOTSUPP,
    Stop.OUT_OF_APERTURE: -Errno.ERANGE,
    Stop.NOT_MAPPED: -Errno.ENOENT,
}
"""What both profiles answer to these outcomes of an unmap; for other outcomes each profile has its own errno."""
MAP_RESULTS = {
    Stop.NO_DOMAIN: -Errno.EINVAL,
    Stop.NOT_PAGING: -Errno.EINVAL,
    Stop.GUEST_TABLES: -Errno.EOPNOTSUPP,
    Stop.OUT_OF_APERTURE: -Errno.ERANGE,
    Stop.NO_ACCESS: -Errno.EINVAL,
    Stop.MAPPED: -Errno.EADDRINUSE,
    Stop.POOL_EXHAUSTED: -Errno.ENOMEM,
}
"""The same for a map."""
CONTEXT_RESULTS: dict[Stop | ContextStop, int] = {
    ContextStop.DEFAULT_CONTEXT: -Errno.EINVAL,
    Stop.NO_DOMAIN: -Errno.ENOENT,
    Stop.ENDPOINTS_ATTACHED: -Errno.EBUSY,
    Stop.NESTED_ATTACHED: -Errno.EBUSY,
    ContextStop.NO_FREE_CONTEXT: -Errno.ENOSPC,
    Stop.POOL_EXHAUSTED: -Errno.ENOMEM,
    Stop.RESERVED_CONFLICT: -Errno.EINVAL,
}
"""The same for operations that change contexts, or which endpoint is in which."""
CONTEXT_STOPS = frozenset((*CONTEXT_RESULTS, Stop.NO_ENDPOINT))
"""What may stop those."""


class Operation(NamedTuple):
    """What an operation requires of its structure, and when it may be carried out."""

    flags: str = ""
    """the field of flags"""
    allowed: int = 0
    """flags that have a meaning; others are refused"""
    is_answer: bool = False
    """whether the device fills the structure, so that its padding is not checked"""
    reorders: bool = False
    """whether it must wait for all rings: it changes contexts, or which endpoint is in which"""


class _Handler(NamedTuple):
    name: str
    mask: int
    """bits of the payload, as a little-endian number, that are fixed"""
    value: int
    """what they must be"""
    call: Begin
    go_on: GoOn | None = None
    """the next piece, if it may be long"""


class _Device(Protocol):
    """REATTACH_DEVICE of any profile."""

    @property
    def seg(self) -> int: ...
    @property
    def bus(self) -> int: ...
    @property
    def devfn(self) -> int: ...
    @property
    def ctx_no(self) -> int: ...


class XenOperations:
    """Carries out the operations that a subclass declares, each by its method ``op_NAME``."""

    op_class: ClassVar[OpClass]
    numbers: ClassVar[type[IntEnum]]
    """of the operations; NOOP is 0"""
    number_in_payload: ClassVar[bool] = False
    """whether they are the first 16 bits of the payload; otherwise the slot's header has them"""
    records: ClassVar[Mapping[Any, type[Record]]]
    """structure of the payload of each that is carried out"""
    operations: ClassVar[Mapping[Any, Operation]]
    """all of them but NOOP, MAP_PAGES and UNMAP_PAGES"""
    unknown: ClassVar[Reply]
    """the reply to an unknown number"""
    not_allowed: ClassVar[int]
    """negative errno of every operation where the guest may not use the IOMMU"""
    context_results: ClassVar[Mapping[Stop | ContextStop, int]]
    """negative errno of each of :data:`CONTEXT_STOPS`"""

    def __init__(
        self,
        contexts: Contexts,
        bindings: Bindings,
        memory: GuestMemory,
        counters: Counters,
        config: IommuConfig,
        page_rules: PageRules,
    ) -> None:
        """Raises ValueError for a subclass that does not say what it answers, or uses a number twice."""
        if missing := CONTEXT_STOPS - set(self.context_results):
            raise ValueError(f"{type(self).__name__}: no result for {', '.join(sorted(each.name for each in missing))}")
        self.page_rules = page_rules
        self.denied = 0 if config.allowed else self.not_allowed
        self._contexts = contexts
        self._engine = contexts.engine
        self._bindings = bindings
        self._memory = memory
        self._counters = counters
        self._config = config
        self._pages = PageOperations(contexts.engine, counters)
        self._reordering = frozenset(int(op) for op, each in self.operations.items() if each.reorders)
        self._handlers = {
            int(op): _Handler(
                op.name.lower(),
                must_be_zero(self.records[op], each.flags, each.allowed, is_answer=each.is_answer),
                0,
                getattr(self, f"op_{op.name.lower()}"),
                getattr(self, f"go_on_{op.name.lower()}", None),
            )
            for op, each in self.operations.items()
        }
        for name, rule, calls in (
            ("MAP_PAGES", page_rules.map, self._mapper(page_rules.map)),
            ("UNMAP_PAGES", page_rules.unmap, self._unmapper(page_rules.unmap)),
        ):
            number = int(self.numbers[name])
            if number in self._handlers:
                raise ValueError(f"{type(self).__name__}: {name} and {self._handlers[number].name} are both {number}")
            self._handlers[number] = _Handler(name.lower(), *rule.must_read, *calls)

    def bind(self, probes: Probes, owner: str) -> None:
        """Make each operation a probe, ``op.NAME``."""
        plain = dict(self._handlers)

        def bind() -> None:
            for op, handler in plain.items():
                record = self.records[self.numbers(op)]
                call, go_on = probe_operation(probes, handler.name, handler.call, handler.go_on, owner, record)
                self._handlers[op] = handler._replace(call=call, go_on=go_on)

        probes.bound(bind)

    @property
    def may_alloc(self) -> bool:
        """Whether there may be contexts yet; otherwise allocating one is -ENOSPC."""
        return True

    def reset(self) -> None:
        """Nothing to do, unless a subclass has state."""

    def reorders(self, op: int, payload: bytes) -> bool:
        """Whether the operation must wait for all rings: it changes contexts, or which endpoint is in which."""
        return (payload[0] | payload[1] << 8 if self.number_in_payload else op) in self._reordering

    def execute(self, op: int, payload: bytes) -> Answer:
        """Carry out ``op`` with the 48 bytes of ``payload``; ``op`` must be 0 if the payload has the number."""
        if self.denied:
            return Reply(self.denied)
        if self.number_in_payload:
            if op:
                return REFUSED
            op = payload[0] | payload[1] << 8
        handler = self._handlers.get(op)
        if handler is None:
            if op:
                return self.unknown
            self._counters.ops["noop"] += 1
            return DONE
        name, mask, value, call, _ = handler
        self._counters.ops[name] += 1
        return REFUSED if int.from_bytes(payload, "little") & mask != value else call(payload)

    def go_on(self, op: int, payload: bytes, progress: Progress) -> Answer:
        """Carry out the next piece of a long operation."""
        go_on = self._handlers[payload[0] | payload[1] << 8 if self.number_in_payload else op].go_on
        if go_on is None:
            raise ValueError(f"operation {op} with payload {payload.hex()} is not done in pieces")
        return go_on(payload, progress)

    # -- pages ------------------------------------------------------------------------------------------------------

    def map_errno(self, ctx: int, outcome: Outcome) -> int:
        """0 or a negative errno."""
        return self._result(self.page_rules.map, ctx, outcome)

    def unmap_errno(self, ctx: int, outcome: Outcome) -> int:
        """0 or a negative errno."""
        return self._result(self.page_rules.unmap, ctx, outcome)

    def _mapper(self, op: PageOperation) -> tuple[Begin, GoOn]:
        """Functions that carry out a map, or a piece of one, with all that they need of the declaration at hand."""
        unpack, operands, access, most, map_pages = op.unpack, op.operands, op.access, op.most, self._pages.map
        too_many, answer = Reply(op.too_many), self._answer(op)

        def op_map_pages(payload: bytes) -> Answer:
            ctx, dfn, nr, before, gfn, flags = operands(unpack(payload))
            if nr > most:
                return too_many
            return map_pages(ctx, dfn, gfn, nr, access[flags], partial(answer, payload, ctx, before))

        def go_on(payload: bytes, progress: Progress) -> Answer:
            ctx, dfn, nr, before, gfn, flags = operands(unpack(payload))
            reply = partial(answer, payload, ctx, before)
            return self._pages.go_on_mapping(ctx, dfn, gfn, nr, access[flags], progress.done, reply)

        return op_map_pages, go_on

    def _unmapper(self, op: PageOperation) -> tuple[Begin, GoOn]:
        """The same for an unmap."""
        unpack, operands, most, unmap_pages = op.unpack, op.operands, op.most, self._pages.unmap
        too_many, answer = Reply(op.too_many), self._answer(op)

        def op_unmap_pages(payload: bytes) -> Answer:
            ctx, dfn, nr, before = operands(unpack(payload))
            if nr > most:
                return too_many
            return unmap_pages(ctx, dfn, nr, partial(answer, payload, ctx, before))

        def go_on(payload: bytes, progress: Progress) -> Answer:
            ctx, dfn, nr, before = operands(unpack(payload))
            return self._pages.go_on_unmapping(ctx, dfn, nr, progress.done, partial(answer, payload, ctx, before))

        return op_unmap_pages, go_on

    def _answer(self, op: PageOperation) -> Callable[[bytes, int, int, Outcome], Reply]:
        """A function that makes the reply of an outcome from the payload, the context that it names, and its old
        count."""
        offset, size, largest, added = op.place

        def answer(payload: bytes, ctx: int, before: int, outcome: Outcome) -> Reply:
            counted = payload[:offset] + ((before & added) + outcome.done & largest).to_bytes(size, "little")
            if outcome.stop is None:
                return Reply(0, counted)
            stop = self._reported(op, ctx, outcome.stop, outcome.at)
            return Reply(op.results[stop], b"" if stop in op.uncounted else counted)

        return answer

    def _result(self, op: PageOperation, ctx: int, outcome: Outcome) -> int:
        return 0 if outcome.stop is None else op.results[self._reported(op, ctx, outcome.stop, outcome.at)]

    def _reported(self, op: PageOperation, ctx: int, stop: Stop, at: int | None) -> Stop:
        """Why it stopped at ``at``, as this profile has it."""
        if stop is Stop.NOT_RAM and op.reserved_first and at is not None and self._is_reserved(ctx, at):
            return Stop.RESERVED
        return stop

    def _is_reserved(self, ctx: int, dfn: int) -> bool:
        everywhere = [(region.first, region.last) for region in self._engine.config.reserved]
        return any(first <= dfn <= last for first, last in (*everywhere, *self._engine.direct(ctx)))

    # -- contexts and devices ---------------------------------------------------------------------------------------

    def _told(self, stop: Stop | ContextStop | None) -> Reply:
        return DONE if stop is None else Reply(self.context_results[stop])

    def _alloc(self, clone: bool, answer: Callable[[int], Record]) -> Reply:
        context, stop = self._contexts.alloc(clone)
        return self._told(stop) if context is None else Reply(0, answer(context).pack())

    def _free(self, ctx: int, reattach: bool) -> Reply:
        return self._told(self._contexts.free(ctx, reattach))

    def _reattach(self, op: _Device) -> Reply:
        stream = self._bindings.stream(sbdf_of(op.seg, op.bus, op.devfn))
        if stream is None:  # an unknown device outranks an unknown context
            return self._told(Stop.NO_ENDPOINT)
        return self._told(self._contexts.attach(stream, op.ctx_no))
