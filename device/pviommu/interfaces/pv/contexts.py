"""Contexts: Xen's rules over the engine's domains.

Context 0, the default one, is a fixed domain of the engine: identity or blocked, as configured. The others are paging
domains, or such with tables of the guest, whose number is that of the context: the lowest free one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from pviommu_abi.slots import DEFAULT_CONTEXT

from ...engine import BLOCKED, IDENTITY, Engine, GuestTables, ReservedFrames, Stop
from .config import MAX_CONTEXT, DefaultPolicy

__all__ = ["MAX_CONTEXT", "AllocResult", "ContextStop", "Contexts", "ContextsState", "DefaultPolicy"]


class ContextStop(Enum):
    """Why an operation on a context stopped, if the engine was not the reason."""

    DEFAULT_CONTEXT = "the default context cannot be freed"
    NO_FREE_CONTEXT = "every context number is in use"


class AllocResult(NamedTuple):
    """Result of :meth:`Contexts.alloc`: one of the two is ``None``."""

    context: int | None
    stop: Stop | ContextStop | None


@dataclass(frozen=True)
class ContextsState:
    """The saved state of :class:`Contexts`, besides the engine's."""

    max_contexts: int
    """the limit in force"""
    held: tuple[int, ...] = ()
    """streams"""


class Contexts:
    """The default context, contexts 1 to a limit, and which endpoint is in which.

    An endpoint may be blocked: it stays in its context but reaches nothing. One that is held stays blocked until it is
    attached: its own reset does not unblock it.
    """

    def __init__(self, engine: Engine, max_contexts: int, default_policy: DefaultPolicy) -> None:
        """``max_contexts``: contexts besides the default one; their numbers are 1 to this."""
        self.engine = engine
        self.max_contexts = max_contexts
        """The limit in force."""
        self.default_policy = default_policy
        self._configured = max_contexts
        self._default = IDENTITY if default_policy is DefaultPolicy.IDENTITY else BLOCKED
        self._held: set[int] = set()

    def add_endpoint(self, stream: int, direct: tuple[ReservedFrames, ...] = ()) -> None:
        """A new endpoint in the default context. Raises ValueError as :meth:`Engine.add_endpoint` does."""
        self.engine.add_endpoint(stream, direct, self._default)

    def endpoints(self) -> dict[int, int]:
        """stream -> context, as it is now."""
        return {stream: self.context(domain) for stream, domain in self.engine.endpoints().items()}

    def of(self, stream: int) -> int:
        """The context of an endpoint; of an unknown one the default context."""
        return self.context(self.engine.endpoints().get(stream, self._default))

    def context(self, domain: int) -> int:
        """The context that is this domain of the engine."""
        return DEFAULT_CONTEXT if domain == self._default else domain

    def domain(self, ctx: int) -> int:
        """The domain of the engine that is context ``ctx``, if it exists."""
        return self._default if ctx == DEFAULT_CONTEXT else ctx

    def __contains__(self, ctx: int) -> bool:
        return ctx == DEFAULT_CONTEXT or self.engine.is_paging(ctx) or self.engine.has_guest_tables(ctx)

    def alloc(self, clone: bool = False) -> AllocResult:
        """A context under the lowest free number, empty or, with ``clone``, mapping all guest RAM 1:1.

        If it fails (NO_FREE_CONTEXT, POOL_EXHAUSTED), nothing has changed.
        """
        ctx = self._free_number()
        if ctx is None:
            return AllocResult(None, ContextStop.NO_FREE_CONTEXT)
        stop = self.engine.alloc_paging(ctx, clone=clone)
        return AllocResult(None, stop) if stop else AllocResult(ctx, None)

    def alloc_tables(self, guest: GuestTables) -> AllocResult:
        """A context with tables of the guest under the lowest free number; NO_FREE_CONTEXT."""
        ctx = self._free_number()
        if ctx is None:
            return AllocResult(None, ContextStop.NO_FREE_CONTEXT)
        self.engine.alloc_tables(ctx, guest)
        return AllocResult(ctx, None)

    def _free_number(self) -> int | None:
        return next((ctx for ctx in range(1, self.max_contexts + 1) if not self.engine.has_domain(ctx)), None)

    def free(self, ctx: int, reattach: bool) -> Stop | ContextStop | None:
        """Drop a context and its mappings; with ``reattach`` its endpoints move to the default context.

        What may stop it, in this order: DEFAULT_CONTEXT, NO_DOMAIN, ENDPOINTS_ATTACHED (only without ``reattach``),
        NESTED_ATTACHED. Nothing has changed then.
        """
        if ctx == DEFAULT_CONTEXT:
            return ContextStop.DEFAULT_CONTEXT
        if reattach:
            if self.engine.has_nested(ctx):
                return Stop.NESTED_ATTACHED
            for stream, current in list(self.engine.endpoints().items()):
                if current == ctx:
                    self.engine.attach(stream, self._default)
        return self.engine.free_domain(ctx)

    def attach(self, stream: int, ctx: int) -> Stop | None:
        """Move an endpoint to a context and unblock it; if it is in that context already, only unblock it. What may
        stop it: see :meth:`Engine.attach`.
        """
        stop = self.engine.attach(stream, self.domain(ctx))
        if stop is None:
            self._held.discard(stream)
            self.engine.unblock(stream)
        return stop

    def hold(self, stream: int) -> Stop | None:
        """Take an endpoint out of its context and refuse every translation until it is attached again;
        :meth:`unblock` does not end that. NO_ENDPOINT if unknown; nothing else can fail.
        """
        stop = self.engine.attach(stream, self._default)
        if stop is None:
            self._held.add(stream)
            self.engine.block(stream)
        return stop

    def unblock(self, stream: int) -> None:
        """Unblock an endpoint that a reset or :meth:`Engine.block` has blocked, but not one that is held."""
        if stream not in self._held:
            self.engine.unblock(stream)

    def set_limits(self, max_contexts: int, pool_pages: int) -> None:
        """Set the limits of contexts and of the pool, until reset.

        Raises ValueError, and then changes nothing, for limits beyond the configured ones or below what is in use.
        """
        self._check_limit(max_contexts)
        self.engine.resize_pool(pool_pages)
        self.max_contexts = max_contexts

    def _check_limit(self, max_contexts: int) -> None:
        highest = max(self.engine.domains(), default=0)
        if not highest <= max_contexts <= self._configured:
            raise ValueError(
                f"limit of {max_contexts} contexts: must be {highest}..{self._configured},"
                " from the highest number in use to what is configured"
            )

    def reset(self) -> list[int]:
        """Back to power-on: all endpoints are in the default context. Those that were outside it are blocked, lest a
        stale IOVA is taken for a physical address; returns their streams.

        Endpoints that were blocked stay so; those that were held are unblocked by their own reset from now on. The
        limits are the configured ones again. Guest RAM stays.
        """
        blocked = [
            stream
            for stream, domain in self.engine.endpoints().items()
            if domain != self._default or self.engine.is_blocked(stream)
        ]
        self.engine.reset()
        for stream in blocked:
            self.engine.block(stream)
        self.load(ContextsState(self._configured))
        return blocked

    def save(self) -> ContextsState:
        """The state, without that of the engine."""
        return ContextsState(self.max_contexts, tuple(sorted(self._held)))

    def load(self, state: ContextsState) -> None:
        """Take over a state; the engine has its own already.

        Raises ValueError, and then changes nothing, for a limit as :meth:`set_limits` does, and for a stream that is
        held but not blocked in the default context.
        """
        self._check_limit(state.max_contexts)
        for stream in state.held:
            if not self.engine.is_blocked(stream) or self.of(stream) != DEFAULT_CONTEXT:
                raise ValueError(f"stream {stream} is held: it must be blocked, and in the default context")
        self.max_contexts = state.max_contexts
        self._held = set(state.held)
