"""Exceptions in an endpoint's code: the endpoint fails until its reset, and nothing else does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar
from weakref import WeakSet

from vfio_user import Steps

from ..dma.fault import DmaRefusedError
from ..dma.translator import Translator
from ..hosted import Timer
from ..pci.hooks import Attempts

__all__ = ["CANCELLING", "EndpointAttempts"]

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")

CANCELLING = "cancelling its DMA"


class _Endpoint(Protocol):
    """See :class:`.endpoint.Endpoint`."""

    name: str
    stream: int
    on_ready: Callable[[], None]

    def cancel(self) -> None: ...


class EndpointAttempts(Attempts):
    """The calls of an endpoint's hooks. Each may give it something to do. An exception fails the endpoint; refused DMA
    that it does not catch only cancels what is queued.
    """

    def __init__(self, endpoint: _Endpoint, translator: Translator) -> None:
        self.failed = False
        self.generation = 0
        """counts resets"""
        self.timers: WeakSet[Timer] = WeakSet()
        """what is due before the next one"""
        self.in_threads = 0
        """work since the last one of which it has not heard yet"""
        self._endpoint = endpoint
        self._translator = translator

    def reset(self) -> None:
        self.failed = False
        self.generation += 1
        self.in_threads = 0
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()

    def make(self, what: str, hook: Callable[_P, _R], *arguments: _P.args, **named: _P.kwargs) -> _R | None:
        self._endpoint.on_ready()
        return self.quietly(what, hook, *arguments, **named)

    def quietly(self, what: str, hook: Callable[_P, _R], *arguments: _P.args, **named: _P.kwargs) -> _R | None:
        """The same for a hook that gives the endpoint nothing to do."""
        if self.failed:
            return None
        try:
            return hook(*arguments, **named)
        except Exception as error:
            self.caught(what, error)
            return None
        finally:
            self._translator.finished()

    def begin(
        self, what: str, hook: Callable[_P, Steps | None], *arguments: _P.args, **named: _P.kwargs
    ) -> Steps | None:
        steps = self.make(what, hook, *arguments, **named)
        return None if steps is None else self._each(what, steps)

    def _each(self, what: str, steps: Steps) -> Steps:
        """Carry out ``steps``, until the endpoint fails or is reset."""
        generation = self.generation
        while self.generation == generation and self.make(f"a step of {what}", _is_left, steps):
            yield

    def caught(self, what: str, error: Exception) -> None:
        """Called where ``error``, which ended ``what``, was caught."""
        name, stream = self._endpoint.name, self._endpoint.stream
        if isinstance(error, DmaRefusedError) and what != CANCELLING:
            log.info("%s: %s ended by refused DMA, what is queued is cancelled: %s", name, what, error)
            self._endpoint.cancel()
            return
        self.failed = True
        log.exception(
            "%s: failed in %s, and is stopped until its reset",
            *(name, what),
            extra={"event": "endpoint-failed", "fields": {"function": name, "stream": stream, "in": what}},
        )
        self._translator.endpoint_failed()


def _is_left(steps: Steps) -> bool:
    """Take the next step. Returns whether there was one."""
    return next(steps, _is_left) is None
