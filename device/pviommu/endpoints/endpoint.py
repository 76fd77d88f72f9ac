"""What every endpoint has: a stream, a way to memory, its part in resets, and its failures."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import ClassVar, ParamSpec, TypeVar
from weakref import WeakSet

from vfio_user import Steps

from ..dma.fault import DmaPendingError, DmaRefusedError
from ..dma.port import DmaPort
from ..hosted import Host, Timer
from ..inputs import Outcome
from ..pci.config_space import Identity
from ..pci.function import PciFunction
from .options import Options
from .surroundings import Surroundings

__all__ = ["Endpoint", "Options", "Surroundings"]

log = logging.getLogger(__name__)

_CANCELLING = "cancelling its DMA"
_P = ParamSpec("_P")
_R = TypeVar("_R")


class Endpoint(PciFunction):
    """A PCI function that does DMA. Subclasses set ``IDENTITY``, describe their BARs and end with ``power_on()``.

    An exception of a subclass, in whatever method, fails this endpoint and nothing else: until it is reset it does
    nothing, no DMA and no interrupt, its BARs read all ones where they are not mapped into the guest, and writes to
    them are ignored. Its configuration space goes on, so that the guest can reset it.
    """

    IDENTITY: ClassVar[Identity]
    OPTIONS: ClassVar[type[Options]] = Options
    """what a topology may set, if there is anything; :attr:`.surroundings.Surroundings.options` is one"""
    polls_memory: ClassVar[bool] = False
    """Whether :meth:`work` looks at memory that the guest writes to without telling: it is called in each turn then.
    Others have a turn after all that a client, the guest or another function's DMA has told them.
    """
    host: Host
    """the loop that serves it, once there is one"""

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings.name, self.IDENTITY, surroundings.environment)
        self.stream = surroundings.stream
        self.failed = False
        """whether it raised an exception since its last reset"""
        self.generation = 0
        """counts its resets"""
        self._timers: WeakSet[Timer] = WeakSet()
        self.on_ready: Callable[[], None] = lambda: None
        """called when there may be something to do for :meth:`step`"""
        self._translator = surroundings.translator
        self.memory.copier = surroundings.copier
        self.dma = DmaPort(
            self.stream,
            *(self._translator, self.memory, self.counters, lambda: self.config.bus_master and not self.failed),
        )
        for capability in surroundings.capabilities:
            self.add_capability(capability)
        self._translator.on_lost(self.cancel)

    # -- what a subclass does ---------------------------------------------------------------------------------------

    @property
    def is_in_progress(self) -> bool:
        """Whether a request has begun that takes several steps. Those of other endpoints that begin come first then."""
        return False

    def work(self) -> bool:
        """Do one bounded step of what is queued, a tenth of a millisecond or so. Whether there was anything: then it is
        called again in the next turn, otherwise when there is something new.

        :class:`DmaPendingError`, which any DMA may raise, may be let through if the request stays queued: nothing of it
        has happened, and this is called again. A :class:`DmaRefusedError` that it does not catch is no failure:
        everything queued is cancelled.
        """
        return False

    def on_arm(self) -> bool:
        """Of an endpoint that :attr:`polls_memory`: ask the guest to write to a register when there is work, and look
        once more. Whether there was none, so that the loop may sleep until then.
        """
        return True

    def on_disarm(self) -> None:
        """The guest need not do that any more."""

    def cancel_dma(self) -> None:
        """Finish queued requests as cancelled, without DMA: if that is refused, the endpoint fails."""

    def reset_device(self) -> None:
        """Registers and queues as at power-on."""

    # -- what a subclass may ask for --------------------------------------------------------------------------------

    def submit(self, work: Callable[[], _R], callback: Callable[[Outcome[_R]], None]) -> None:
        """Do ``work``, which may block, in another thread: it must touch neither this endpoint nor guest memory. With
        what came of it ``callback`` is called here, unless there was a reset meanwhile.
        """
        self.host.submit(self, work, partial(self._hear, callback))

    def _hear(self, callback: Callable[[Outcome[_R]], None], outcome: Outcome[_R]) -> None:
        self.attempt("what came of its work in a thread", callback, outcome)

    def at(self, time_ns: int, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` at ``time_ns`` of the inputs' clock, or soon after, unless there is a reset before that."""
        timer = self.host.at(time_ns, partial(self.attempt, "what was due", callback))
        self._timers.add(timer)
        return timer

    # -- what is asked of it ----------------------------------------------------------------------------------------

    def step(self) -> bool:
        """:meth:`work`, unless it has failed; raises nothing. Whether there was anything to do."""
        if self.failed:
            return False
        try:  # not by attempt(), which costs more: this is done at each turn, for each endpoint
            return self.work()
        except DmaPendingError:  # its request is still there
            return True
        except Exception as error:
            self._raised("its work", error)
            return False

    def goes_on(self) -> bool:
        """:attr:`is_in_progress`, unless it has failed; raises nothing."""
        if self.failed:
            return False
        try:
            return self.is_in_progress
        except Exception as error:
            self._raised("telling what it is at", error)
            return False

    def cancel(self) -> None:
        """:meth:`cancel_dma`, unless it has failed; raises nothing."""
        self.dma.give_up()
        self.attempt(_CANCELLING, self.cancel_dma)

    def arm(self) -> bool:
        """:meth:`on_arm`, unless it has failed; raises nothing. Whether the loop may sleep."""
        return self._try("asking for a doorbell", self.on_arm) is not False

    def disarm(self) -> None:
        """:meth:`on_disarm`, unless it has failed; raises nothing."""
        self._try("asking for no doorbell", self.on_disarm)

    def settle(self) -> None:
        self.on_ready()  # after requests that call no code of a subclass, too

    def attempt(self, what: str, hook: Callable[_P, _R], *arguments: _P.args, **named: _P.kwargs) -> _R | None:
        self.on_ready()
        return self._try(what, hook, *arguments, **named)

    def _try(self, what: str, hook: Callable[_P, _R], *arguments: _P.args, **named: _P.kwargs) -> _R | None:
        if self.failed:
            return None
        try:
            return hook(*arguments, **named)
        except Exception as error:
            self._raised(what, error)
            return None

    def _raised(self, what: str, error: Exception) -> None:
        """Called where ``error``, which ended ``what``, was caught."""
        if isinstance(error, DmaRefusedError) and what != _CANCELLING:
            log.info("%s: %s ended by refused DMA, what is queued is cancelled: %s", self.name, what, error)
            self.cancel()
            return
        self.failed = True
        log.exception(
            "%s: failed in %s, and is stopped until its reset",
            *(self.name, what),
            extra={"event": "endpoint-failed", "fields": {"function": self.name, "stream": self.stream, "in": what}},
        )
        self._translator.endpoint_failed()

    def _reset_by(self, hook: Callable[[], None]) -> None:
        self.failed = False
        self.generation += 1
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        super()._reset_by(hook)

    def _bar_read(self, index: int, offset: int, count: int) -> bytes:
        return b"\xff" * count if self.failed else super()._bar_read(index, offset, count)

    def _bar_write(self, index: int, offset: int, data: bytes) -> Steps | None:
        self.on_ready()
        steps = None if self.failed else super()._bar_write(index, offset, data)
        return None if steps is None else self._attempt_each(steps)

    def _attempt_each(self, steps: Steps) -> Steps:
        """``steps`` of a register write, until it fails or is reset."""
        generation = self.generation
        while self.generation == generation and self.attempt("a step of a write to its registers", _is_left, steps):
            yield

    def interrupt(self, vector: int) -> None:
        if not self.failed:
            super().interrupt(vector)

    def on_reset(self) -> None:
        self.dma.give_up()
        try:
            self.reset_device()
        finally:
            self._translator.endpoint_begins()

    def on_bus_master(self, enabled: bool) -> None:
        if enabled:
            self._translator.endpoint_begins()


def _is_left(steps: Steps) -> bool:
    """Take the next step. Whether there was one."""
    return next(steps, _is_left) is None
