"""What is wrong after a run: harm to the guest or to the next one, exceptions in the server, what it left behind."""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator
from enum import Enum
from typing import NamedTuple

from vfio_user import ProtocolError

from ..faults.points.reports import WorkError
from ..faults.scenario import Scenario
from .run import Outcome, played
from .stage import ServerError, Stage, StuckError
from .workloads import WORKLOADS, newcomer

__all__ = ["Examined", "Failure", "Kind", "examined"]

_PATIENCE_S = 2.0
"""Real time in which threads close what clients have sent."""


class Kind(Enum):
    """What a failure is."""

    SERVER = "an exception in the server"
    HARM = "the guest came to harm"
    STUCK = "the guest did not come to its end"
    LEAK = "left behind"
    NEXT = "harm to the next guest"
    RULES = "a rule did not do what was expected"


class Failure(NamedTuple):
    """One thing that is wrong."""

    kind: Kind
    text: str

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.text}"


class Examined(NamedTuple):
    """A run, and all that is wrong after it."""

    outcome: Outcome
    found: tuple[Failure, ...]

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Those that no rule explains. Where an adversarial one did something, its own guest may come to harm; the
        server and the next guest may not.
        """
        if not self.outcome.is_adversarial:
            return self.found
        return tuple(failure for failure in self.found if failure.kind not in (Kind.HARM, Kind.STUCK))


class _Exceptions(logging.Handler):
    """Keeps exceptions that the server logs and survives, except what a rule has raised."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[Failure] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, WorkError):
            self.found.append(Failure(Kind.SERVER, f"{record.getMessage()}: {_raised(error)}"))


def _raised(error: BaseException) -> str:
    """An exception, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f", {os.path.basename(frames[-1].filename)} line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def examined(scenario: Scenario, workload: str) -> Examined:
    """Play a workload, then look at the machine, and let another guest use it without any rules."""
    found: list[Failure] = []
    has_clients = WORKLOADS[workload].has_clients
    handler = _Exceptions()
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        outcome = played(scenario, workload, around=lambda stage: _around(stage, has_clients, found))
    finally:
        root.removeHandler(handler)
    guest = [Failure(Kind.HARM, text) for text in outcome.harm]
    if outcome.failed:
        guest.append(Failure(Kind.SERVER, outcome.end))
    elif outcome.end != "done":
        guest.append(Failure(Kind.STUCK, outcome.end))
    rules = [Failure(Kind.RULES, text) for text in outcome.verdict.failures()]
    return Examined(outcome, (*handler.found, *guest, *found, *rules))


def _around(stage: Stage, has_clients: bool, found: list[Failure]) -> Callable[[Outcome], None]:
    before = footprint(stage)

    def after(outcome: Outcome) -> None:
        """The guest is gone."""
        stage.unload()
        if not has_clients:
            for function in stage.machine.functions():
                function.disconnected()
        try:
            leaks = list(_left_behind(stage, before))
            if not outcome.is_adversarial:  # otherwise the reset at its end may have been left out
                found.extend(leaks)
            found.extend(_next_guest(stage))
            if outcome.is_adversarial or not leaks:
                found.extend(_left_behind(stage, before))
        except ServerError as error:
            found.append(Failure(Kind.SERVER, str(error)))

    return after


def _next_guest(stage: Stage) -> Iterator[Failure]:
    try:
        harm = newcomer(stage)
    except (StuckError, OSError, ProtocolError) as error:
        harm = [str(error)]
    yield from (Failure(Kind.NEXT, text) for text in harm)


def footprint(stage: Stage) -> dict[str, int]:
    """What a machine and its server hold, by what it is."""
    iommu = stage.machine.iommu
    used, _ = iommu.engine.pool_pages()
    domains = iommu.engine.domains()
    return {
        "contexts": len(domains),
        "mapped pages": sum(map(iommu.engine.mapped_pages, domains)),
        "pages of the pool": used,
        "bindings": len(iommu.bindings),
        "clients": len(stage.server.transport.clients()),
        "ranges of guest memory": sum(len(function.memory.ram_ranges()) for function in stage.machine.functions()),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


def _left_behind(stage: Stage, before: dict[str, int]) -> Iterator[Failure]:
    """What there is more of than before the guest came, once nobody is at work any more."""
    end = time.monotonic() + _PATIENCE_S
    stage.turn()
    while (now := footprint(stage)) != before and time.monotonic() < end:
        stage.turn()
    for what, count in now.items():
        if count != before[what]:
            yield Failure(Kind.LEAK, f"{count} {what}, where there were {before[what]}")
